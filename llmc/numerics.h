// numerics: number formats and their rounding, counter-based randomness, and the elementary
// functions. Everything here has the same bits on every machine: only IEEE-exact operations and
// written FMAs are used, so this code must be compiled with -ffp-contract=off and without
// -ffast-math. Kernels use the float functions (branch-free, they vectorise); host code the double
// ones. Changing a bit of any result must change ARITHMETIC_VERSION: caches are keyed by it.
#ifndef LLMC_NUMERICS_H
#define LLMC_NUMERICS_H

#include <string.h>

#include "common.h"

#ifdef __CUDACC__
#define NUM_INLINE static inline __host__ __device__
#else
#define NUM_INLINE static inline __attribute__((always_inline))
#endif

LLMC_BEGIN

#define ARITHMETIC_VERSION 1

// ---------------------------------------------------------------------------------------------
// Formats. A value is held as fp32 and rounded where DESIGN's table N3 says: exact, since every
// value of these formats is an fp32 value.

typedef struct format {
    const char* name;
    int exponent_bits, mantissa_bits;
    float max;       // largest finite value
    float overflow;  // what a finite value that rounds beyond max becomes: infinity, or max (fp8)
    // derived, for format_round:
    uint32_t drop;       // mantissa bits of fp32 that the format lacks: 23 - mantissa_bits
    float min_normal;    // below it the spacing is constant; 0 where fp32's own subnormals do it
    float subnormal_magic;  // 1.5 * 2^23 * (spacing of the subnormals): adding it rounds
    int scaled;          // operands of matrix products carry power-of-two scales (fp8)
} format;

extern const format FORMAT_FP32, FORMAT_TF32, FORMAT_BF16, FORMAT_FP16, FORMAT_E4M3, FORMAT_E5M2;
extern const format* const FORMATS[];  // all of them, ends with NULL

const format* format_find(const char* name);  // NULL if there is none of this name

NUM_INLINE uint32_t float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

NUM_INLINE float float_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// Rounds to nearest, ties to even. NaN stays NaN, infinity stays infinity (fp8 saturates: OCP
// 8-bit floating point specification 1.0, section 5.2.1, saturating mode).
NUM_INLINE float format_round(float x, const format* f) {
    uint32_t u = float_bits(x), sign = u & 0x80000000u, a = u & 0x7fffffffu;
    uint32_t half = (1u << f->drop) >> 1;
    uint32_t n = a + (half - (half != 0)) + ((a >> f->drop) & (half != 0));
    n &= ~((1u << f->drop) - 1);
    float magnitude = float_from_bits(a);
    float normal = float_from_bits(n);
    float small = (magnitude + f->subnormal_magic) - f->subnormal_magic;
    float y = magnitude < f->min_normal ? small : normal;
    y = y > f->max ? f->overflow : y;
    y = a > 0x7f800000u ? float_from_bits(a | 0x00400000u) : y;
    return float_from_bits(float_bits(y) | sign);
}

// Rounds x up or down to a neighbour in the format, up with the probability of its distance to the
// lower one (resolution 2^-32); `random` is uniform. Values of the format stay as they are.
float format_round_stochastic(float x, const format* f, uint32_t random);

// The power-of-two scale s = 2^ceil(log2(amax / max)) under which x / s fits the format; 1 for an
// amax of 0 or not finite. Every |x| <= amax has |x / s| <= max.
float format_scale(float amax, const format* f);

// ---------------------------------------------------------------------------------------------
// Randomness: Philox4x32-10 (Salmon et al., SC11), keyed by (seed, stream, step, sequence,
// position), so that a draw depends on what it is for and on nothing that ran before it.

typedef enum {
    STREAM_INIT,     // initial weights
    STREAM_PROMPT,   // training prompts
    STREAM_WARMUP,   // warm-up examples
    STREAM_HELD_OUT, // evaluation prompts
    STREAM_SAMPLE,   // tokens of training rollouts
    STREAM_EVALUATE, // tokens of evaluation samples
    STREAM_ROUND     // stochastic rounding of weights
} rng_stream;

NUM_INLINE void philox4x32(uint32_t out[4], const uint32_t counter[4], uint32_t key0,
                           uint32_t key1) {
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p = 0xD2511F53ull * a, q = 0xCD9E8D57ull * c;
        a = (uint32_t)(q >> 32) ^ b ^ key0;
        b = (uint32_t)q;
        c = (uint32_t)(p >> 32) ^ d ^ key1;
        d = (uint32_t)p;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// 128 random bits for one place in a run.
NUM_INLINE void random_at(uint32_t out[4], uint64_t seed, rng_stream stream, uint32_t step,
                          uint32_t sequence, uint32_t position) {
    uint32_t counter[4] = {position, sequence, step, (uint32_t)stream};
    philox4x32(out, counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

// A sequence of draws for host code (prompts, initial weights): position counts up.
typedef struct rng {
    uint64_t seed;
    rng_stream stream;
    uint32_t step, sequence, position;
    uint32_t word[4];
    int left;  // words not yet used
} rng;

rng rng_at(uint64_t seed, rng_stream stream, uint32_t step, uint32_t sequence);
uint32_t rng_u32(rng* r);
uint32_t rng_below(rng* r, uint32_t n);  // uniform in 0 .. n-1, without bias; n >= 1
double rng_uniform(rng* r);              // uniform in [0, 1), 53 bits
double rng_normal(rng* r);               // standard normal (Box-Muller)

// ---------------------------------------------------------------------------------------------
// Elementary functions for kernels, fp32. Errors are measured by tests/test_numerics.c.

NUM_INLINE float num_fma(float a, float b, float c) {
#ifdef __CUDA_ARCH__
    return fmaf(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

// e^x. 0 below -87.33 (where the result would be subnormal), infinity above 88.72, NaN for NaN.
// Reduction to |r| <= ln2 / 2 (Cody and Waite), then a polynomial of degree 6 in r.
NUM_INLINE float num_expf(float x) {
    float y = x < -87.33f ? -87.33f : x;
    y = y > 88.72f ? 88.72f : y;
    float n = num_fma(y, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: the sum holds round(x / ln2)
    uint32_t exponent = float_bits(n) << 23;
    n -= 12582912.0f;
    float r = num_fma(n, -0.693145751953125f, y);
    r = num_fma(n, -1.42860676533018e-6f, r);
    float p = 1.9875691500e-4f;
    p = num_fma(p, r, 1.3981999507e-3f);
    p = num_fma(p, r, 8.3334519073e-3f);
    p = num_fma(p, r, 4.1665795894e-2f);
    p = num_fma(p, r, 1.6666665459e-1f);
    p = num_fma(p, r, 5.0000001201e-1f);
    p = num_fma(p, r * r, r) + 1.0f;
    float e = float_from_bits(float_bits(p) + exponent);
    e = x < -87.33f ? 0.0f : e;
    e = x > 88.72f ? float_from_bits(0x7f800000u) : e;
    return x != x ? x : e;
}

// ln x for normal x > 0; -infinity at 0, NaN below, infinity at infinity.
// x = 2^k m with m in [sqrt(1/2), sqrt(2)), then a polynomial of degree 9 in m - 1.
NUM_INLINE float num_logf(float x) {
    uint32_t u = float_bits(x) - 0x3f3504f3u;
    int32_t k = (int32_t)u >> 23;
    float f = float_from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f, n = (float)k;
    float z = f * f, p = 7.0376836292e-2f;
    p = num_fma(p, f, -1.1514610310e-1f);
    p = num_fma(p, f, 1.1676998740e-1f);
    p = num_fma(p, f, -1.2420140846e-1f);
    p = num_fma(p, f, 1.4249322787e-1f);
    p = num_fma(p, f, -1.6668057665e-1f);
    p = num_fma(p, f, 2.0000714765e-1f);
    p = num_fma(p, f, -2.4999993993e-1f);
    p = num_fma(p, f, 3.3333331174e-1f);
    float y = num_fma(p * z, f, n * -2.12194440e-4f);
    y = num_fma(-0.5f, z, y);
    y = num_fma(n, 0.693359375f, f + y);
    y = x == float_from_bits(0x7f800000u) ? x : y;
    y = x == 0.0f ? -float_from_bits(0x7f800000u) : y;
    return x < 0.0f || x != x ? float_from_bits(0x7fc00000u) : y;
}

// tanh x: an odd polynomial below 0.625, 1 - 2 / (e^2x + 1) above.
NUM_INLINE float num_tanhf(float x) {
    float a = float_from_bits(float_bits(x) & 0x7fffffffu), z = x * x;
    float p = -5.70498872745e-3f;
    p = num_fma(p, z, 2.06390887954e-2f);
    p = num_fma(p, z, -5.37397155531e-2f);
    p = num_fma(p, z, 1.33314422036e-1f);
    p = num_fma(p, z, -3.33332819422e-1f);
    p = num_fma(p * z, x, x);
    float q = 1.0f - 2.0f / (num_expf(2.0f * (a > 10.0f ? 10.0f : a)) + 1.0f);
    q = float_from_bits(float_bits(q) | (float_bits(x) & 0x80000000u));
    q = a < 0.625f ? p : q;
    return x != x ? x : q;
}

// ---------------------------------------------------------------------------------------------
// Elementary functions for host code, double.

double num_exp(double x);
double num_expm1(double x);
double num_log(double x);
double num_sinpi(double x);             // sin(pi x)
double num_cospi(double x);             // cos(pi x)
double num_powi(double x, uint64_t n);  // x^n by repeated squaring

LLMC_END
#endif
