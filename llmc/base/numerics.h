// numerics: number formats and their rounding, counter-based randomness, and the elementary
// functions. Everything here has the same bits on every machine and at every vector width, because
// it uses IEEE-exact operations alone (+ - * / fma sqrt, integers, scaling by powers of two) in a
// fixed order, branch-free where kernels use it. What it asks of the build and the machine:
//   -ffp-contract=off and never -ffast-math: an FMA is used where it is written, nowhere else;
//   round to nearest, and subnormals alive (FTZ and DAZ off) in every thread;
//   -fno-math-errno -fno-trapping-math, for the loops to vectorise.
// In a loop, copy the format to a local first (`const format f = *out_format;`): the compiler then
// knows that stores do not change it, and vectorises.
// Changing a bit of any result must change ARITHMETIC_VERSION: caches are keyed by it.
#ifndef LLMC_NUMERICS_H
#define LLMC_NUMERICS_H

#include <string.h>

#include "common.h"

#ifdef __FAST_MATH__
#error "numerics.h needs IEEE arithmetic: remove -ffast-math"
#endif

#ifdef __CUDACC__
#define NUM_INLINE static inline __host__ __device__
#else
#define NUM_INLINE static inline __attribute__((always_inline))
#endif

LLMC_BEGIN

#define ARITHMETIC_VERSION 2

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

// ---------------------------------------------------------------------------------------------
// Formats. A value is held as fp32 and rounded where the numerics contract says (N3): exact, since
// every value of these formats is an fp32 value. With e exponent and m mantissa bits, a format has
// the smallest normal number 2^(2 - 2^(e-1)), and below it the constant spacing 2^-m of that.

typedef struct format {
    const char* name;
    int exponent_bits, mantissa_bits;
    float max;       // largest finite value
    float overflow;  // what a value that rounds beyond max becomes: infinity, or max (fp8)
    uint32_t drop;   // mantissa bits of fp32 that the format lacks: 23 - mantissa_bits
    // Both 0 for a format with fp32's exponents: there rounding the bits serves subnormals too.
    float min_normal, subnormal_spacing;
    int scaled;  // operands of matrix products carry power-of-two scales (fp8)
} format;

extern const format FORMAT_FP32, FORMAT_TF32, FORMAT_BF16, FORMAT_FP16, FORMAT_E4M3, FORMAT_E5M2;
extern const format* const FORMATS[];  // these, ends with NULL

// The format of this name, always the same pointer; NULL if there is none. Next to FORMATS, which
// have names, there is eXmY for every X from 2 to 8 exponent bits and Y from 1 to 22 mantissa bits,
// in the manner of IEEE 754: the top exponent is infinity and NaN, and what rounds beyond max is
// infinity. Up to 8 bits with the sign they are as fp8 is: scaled, and saturating. So e4m3 ends at
// 240 where fp8_e4m3 has 448. e8m23, e8m7, e5m10 and e5m2 are fp32, bf16, fp16 and fp8_e5m2.
const format* format_find(const char* name);
#define FORMAT_BY_BITS "eXmY (X from 2 to 8, Y from 1 to 22)"

// Common tail of both roundings. Selects the normal (fp32 bits) or subnormal result for |x|,
// restores the sign, and handles overflow and NaN (quieted, payload truncated).
NUM_INLINE float format_finish(float x, uint32_t normal, float subnormal, const format* f) {
    uint32_t u = float_bits(x), kept = ~((1u << f->drop) - 1);
    float magnitude = float_from_bits(u & 0x7fffffffu);
    float y = magnitude < f->min_normal ? subnormal : float_from_bits(normal);
    y = y > f->max ? f->overflow : y;
    u = x != x ? (u | 0x00400000u) & kept : float_bits(y) | (u & 0x80000000u);
    return float_from_bits(u);
}

// x rounded to nearest, ties to the even mantissa. Signed zeros and NaN stay; beyond max it is
// f->overflow, so infinity stays infinity except in fp8, which saturates (OCP 8-bit floating point
// specification 1.0, section 5.2.1). Exact: the only rounding is the one asked for.
NUM_INLINE float format_round(float x, const format* f) {
    uint32_t a = float_bits(x) & 0x7fffffffu, low = (1u << f->drop) - 1;
    // Just under half a unit, and one more where the kept part is odd: carries when it must.
    uint32_t normal = (a + (low >> 1) + (a >> f->drop & low & 1)) & ~low;
    // One unit of fp32 at 1.5 * 2^23 * spacing is the spacing: the sum rounds to a multiple of it.
    float magnitude = float_from_bits(a), magic = 0x1.8p23f * f->subnormal_spacing;
    return format_finish(x, normal, (magnitude + magic) - magic, f);
}

// x rounded up or down to a neighbour in the format, away from zero with the probability of its
// distance to the neighbour nearer zero; `random` is 32 uniform bits. That probability is exact for
// normal results, and up to 2^-24 too high for subnormal ones. Values of the format, infinities and
// NaN do as in format_round; between max and the next power of two the upper neighbour is overflow.
NUM_INLINE float format_round_stochastic(float x, const format* f, uint32_t random) {
    uint32_t a = float_bits(x) & 0x7fffffffu, low = (1u << f->drop) - 1;
    uint32_t normal = (a + (random & low)) & ~low;
    float magnitude = float_from_bits(a), spacing = f->subnormal_spacing;
    float magic = 0x1.8p23f * spacing, lower = (magnitude + magic) - magic;  // as in format_round
    lower -= lower > magnitude ? spacing : 0.0f;
    float threshold = (float)(int32_t)(random >> 8) * (0x1p-24f * spacing);
    float subnormal = magnitude - lower > threshold ? lower + spacing : lower;
    return format_finish(x, normal, subnormal, f);
}

// The smallest power of two s >= 2^-126 with |x / s| <= f->max for every |x| <= amax, that is
// 2^ceil(log2(amax / max)). 1 where amax is 0 or not finite, and for formats that are not scaled.
NUM_INLINE float format_scale(float amax, const format* f) {
    // Read as fixed-point logarithms, exponent.mantissa, the bits subtract to the exponent of
    // amax / max; adding all ones below the exponent rounds it up, and 0x3f800000 is its bias.
    uint32_t quotient = float_bits(amax) - float_bits(f->max) + 0x3f800000u + 0x007fffffu;
    int32_t s = (int32_t)quotient < 0x00800000 ? 0x00800000 : (int32_t)(quotient & 0x7f800000u);
    int usable = f->scaled && amax > 0.0f && amax < float_from_bits(0x7f800000u);
    return usable ? float_from_bits((uint32_t)s) : 1.0f;
}

// ---------------------------------------------------------------------------------------------
// Randomness: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
// 3", SC11), keyed by (seed, stream, step, sequence, position), so that a draw depends on what it
// is for and on nothing that ran before it (the numerics contract, N4).

typedef enum {
    STREAM_INIT,      // initial weights
    STREAM_PROMPT,    // training prompts
    STREAM_WARMUP,    // warm-up examples
    STREAM_HELD_OUT,  // evaluation prompts
    STREAM_SAMPLE,    // tokens of training rollouts
    STREAM_EVALUATE,  // tokens of evaluation samples
    STREAM_ROUND,     // stochastic rounding of weights
    STREAM_SANITY,    // tokens that choose the prompts of the sanity protocol
    STREAM_DEAL       // which groups go to which mini-batch
} rng_stream;

NUM_INLINE void philox4x32(uint32_t out[4], const uint32_t counter[4], uint32_t key0,
                           uint32_t key1) {
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3];
    for (int i = 0; i < 10; i++) {
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

// A sequence of draws for host code (prompts, initial weights): random_at at one position after
// another, four words from each, 2^34 words in all.
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
void rng_permutation(rng* r, size_t n, uint32_t* order);  // of 0 .. n-1, each equally likely
double rng_uniform(rng* r);                               // uniform in [0, 1), 53 bits
double rng_normal(rng* r);                                // standard normal (Box-Muller)

// ---------------------------------------------------------------------------------------------
// Elementary functions for kernels, fp32, defined for every input. The errors are maxima over all
// floats, in units in the last place of the exact result; tests/test_numerics.c samples them.

// a * b + c with one rounding, whatever the instruction set.
NUM_INLINE float num_fma(float a, float b, float c) {
#ifdef __CUDA_ARCH__
    return fmaf(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

// e^x within 0.892 ulp; 0 where the result would be subnormal, infinity where it overflows.
// With n = round(x / ln 2) and r = x - n ln 2 (ln 2 in two parts: Cody and Waite), e^x = 2^n e^r,
// and e^r is a minimax polynomial of degree 6 on |r| <= ln 2 / 2.
NUM_INLINE float num_expf(float x) {
    float n = num_fma(x, 0x1.715476p0f, 0x1.8p23f);  // n sits in the low bits of the sum
    uint32_t exponent = float_bits(n) << 23;
    n -= 0x1.8p23f;
    float r = num_fma(n, -0x1.62e4p-1f, x);
    r = num_fma(n, -0x1.7f7d1cp-20f, r);
    float p = 0x1.6ac74ap-10f;
    p = num_fma(p, r, 0x1.123dep-7f);
    p = num_fma(p, r, 0x1.555858p-5f);
    p = num_fma(p, r, 0x1.55548cp-3f);
    p = num_fma(p, r, 0x1.fffffcp-2f);
    p = num_fma(p, r, 1.0f);
    p = num_fma(p, r, 1.0f);
    float y = float_from_bits(float_bits(p) + exponent);  // 2^n p, for the x that pass below
    y = x < -0x1.5d589ep6f ? 0.0f : y;                    // ln 2^-126 = -87.3365...
    return x <= 0x1.62e42ep6f
               ? y
               : x + float_from_bits(0x7f800000u);  // ln 2^128; NaN takes this branch
}

// ln x within 0.827 ulp; -infinity at 0, NaN below, infinity at infinity.
// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); then k ln 2 (in two parts) plus a polynomial
// in f of degree 11 (coefficients: logf of the Cephes library, S. Moshier).
NUM_INLINE float num_logf(float x) {
    int subnormal = x < 0x1p-126f;
    uint32_t u = float_bits(subnormal ? x * 0x1p23f : x) - 0x3f3504f3u;  // sqrt(1/2) becomes 0
    float k = (float)(((int32_t)u >> 23) - (subnormal ? 23 : 0));
    float f = float_from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = num_fma(p, f, -1.1514610310e-1f);
    p = num_fma(p, f, 1.1676998740e-1f);
    p = num_fma(p, f, -1.2420140846e-1f);
    p = num_fma(p, f, 1.4249322787e-1f);
    p = num_fma(p, f, -1.6668057665e-1f);
    p = num_fma(p, f, 2.0000714765e-1f);
    p = num_fma(p, f, -2.4999993993e-1f);
    p = num_fma(p, f, 3.3333331174e-1f);
    float y = num_fma(p * z, f, k * -2.12194440e-4f);
    y = num_fma(-0.5f, z, y);
    y = num_fma(k, 0.693359375f, f + y);
    y = x < float_from_bits(0x7f800000u) ? y : x;  // infinity and NaN
    y = x == 0.0f ? -float_from_bits(0x7f800000u) : y;
    return x < 0.0f ? float_from_bits(0x7fc00000u) : y;
}

// tanh x within 1.04 ulp, exactly odd. Below 0.8 a minimax polynomial, |x| + |x|^3 p(x^2); from
// there on 1 - 2 / (e^(2 |x|) + 1), which ends at exactly 1.
NUM_INLINE float num_tanhf(float x) {
    float a = float_from_bits(float_bits(x) & 0x7fffffffu), z = a * a;
    float p = 0x1.9fb708p-10f;
    p = num_fma(p, z, -0x1.e5ce68p-8f);
    p = num_fma(p, z, 0x1.5d1486p-6f);
    p = num_fma(p, z, -0x1.b92b4p-5f);
    p = num_fma(p, z, 0x1.110b5ap-3f);
    p = num_fma(p, z, -0x1.55553ep-2f);
    p = num_fma(p * z, a, a);
    float y = a < 0.8f ? p : 1.0f - 2.0f / (num_expf(2.0f * a) + 1.0f);
    return float_from_bits(float_bits(y) | (float_bits(x) & 0x80000000u));
}

// ---------------------------------------------------------------------------------------------
// Elementary functions for host code, double, defined for every input, in plain + - * /. The errors
// are the largest seen on 10^7 points a range, in units in the last place of the exact result.

double num_exp(double x);               // 0.87 ulp
double num_expm1(double x);             // e^x - 1: 1.51 ulp
double num_log(double x);               // natural logarithm: 0.86 ulp; -infinity at 0, NaN below
double num_sinpi(double x);             // sin(pi x): 1.84 ulp, exact at every half; NaN at infinity
double num_cospi(double x);             // cos(pi x): the same
double num_powi(double x, uint64_t n);  // x^n by squaring: relative error below n 2^-53

LLMC_END
#endif
