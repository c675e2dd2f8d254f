// What the op files of cpu/ share. Each is compiled once an instruction set (-DISA_avx512,
// -DISA_avx2 or -DISA_c, which is plain C, and NEON on AArch64); ISA(name) gives its functions a
// name of their own. Vectors come in two ways: `vf`, the machine's own width, where registers are
// scheduled by hand (products, reductions), and `omp simd` loops over the functions of numerics.h
// elsewhere. Lanes never mix except in row_sum and row_max, whose order is that of 16 lanes
// whatever the machine's width: so all instruction sets give the same bits.
#ifndef LLMC_CPU_ISA_H
#define LLMC_CPU_ISA_H

#include "../backend.h"
#include "cpu.h"

#if defined(ISA_avx512) || defined(ISA_avx2)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define PRAGMA(x) _Pragma(#x)
#define UNROLL PRAGMA(GCC unroll 16)
#define SIMD PRAGMA(omp simd)
// The loop that follows, shared by the device's threads: equal pieces, or piece by piece.
#ifdef _OPENMP
#define PARALLEL_FOR(b) PRAGMA(omp parallel for schedule(static) num_threads(cpu_active(b)))
#define PARALLEL_DYNAMIC(b) PRAGMA(omp parallel for schedule(dynamic) num_threads(cpu_active(b)))
#define PARALLEL_SIMD(b) PRAGMA(omp parallel for simd schedule(static) num_threads(cpu_active(b)))
#else
#define PARALLEL_FOR(b) (void)(b);
#define PARALLEL_DYNAMIC(b) (void)(b);
#define PARALLEL_SIMD(b) \
    (void)(b);           \
    SIMD
#endif

// fp16 numbers as fp32 and back. The exponents' biases are 112 apart, so that a product with a
// power of two does it, subnormals included.
INLINE float fp16_value(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, bits = (uint32_t)(h & 0x7fff) << 13;
    float x = float_from_bits(bits) * 0x1p112f;
    bits = h < 0x7c00 || (h >= 0x8000 && h < 0xfc00) ? float_bits(x) : bits | 0x7f800000;
    return float_from_bits(bits | sign);
}
INLINE uint16_t fp16_bits(float x) {
    uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t infinite = 0x7c00 | (size > 0x7f800000) << 9;
    uint32_t h = float_bits(float_from_bits(size) * 0x1p-112f) >> 13;
    return (uint16_t)(sign | (size < 0x7f800000 ? h : infinite));
}

#if defined(ISA_avx512)
#define ISA(name) name##_avx512
typedef __m512 vf;
enum { VL = 16 };
INLINE vf vf_load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float* p, vf x) { _mm512_storeu_ps(p, x); }
// bf16, the upper halves of fp32, and fp16.
INLINE vf vf_bf16(const uint16_t* p) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
INLINE vf vf_fp16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
#elif defined(ISA_avx2)
#define ISA(name) name##_avx2
typedef __m256 vf;
enum { VL = 8 };
INLINE vf vf_load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float* p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vf_bf16(const uint16_t* p) {
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
INLINE vf vf_fp16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define ISA(name) name##_c
typedef float32x4_t vf;
enum { VL = 4 };
INLINE vf vf_load(const float* p) { return vld1q_f32(p); }
INLINE void vf_store(float* p, vf x) { vst1q_f32(p, x); }
INLINE vf vf_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE vf vf_fp16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE vf vf_set(float x) { return vdupq_n_f32(x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
#else
#define ISA(name) name##_c
typedef float vf __attribute__((vector_size(16)));
enum { VL = 4 };
INLINE vf vf_load(const float* p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void vf_store(float* p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf vf_bf16(const uint16_t* p) {
    vf x;
    for (int l = 0; l < VL; l++) x[l] = float_from_bits((uint32_t)p[l] << 16);
    return x;
}
INLINE vf vf_fp16(const uint16_t* p) {
    vf x;
    for (int l = 0; l < VL; l++) x[l] = fp16_value(p[l]);
    return x;
}
INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
INLINE vf vf_fma(vf a, vf b, vf c) {
    for (int l = 0; l < VL; l++) c[l] = num_fma(a[l], b[l], c[l]);
    return c;
}
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
#endif

// VL numbers from number `at` of an array on.
INLINE vf vf_kept(const storage kept, const void* array, int64_t at) {
    return kept == KEPT_BF16   ? vf_bf16((const uint16_t*)array + at)
           : kept == KEPT_FP16 ? vf_fp16((const uint16_t*)array + at)
                               : vf_load((const float*)array + at);
}
// Stores a number that the storage can hold; returns what is lost of its bits.
INLINE uint32_t keep(const storage kept, void* array, int64_t at, float x) {
    uint32_t bits = float_bits(x);
    uint16_t* half = (uint16_t*)array + at;
    if (kept == KEPT_FP32) {
        ((float*)array)[at] = x;
        return 0;
    }
    if (kept == KEPT_BF16) {
        *half = (uint16_t)(bits >> 16);
        return bits << 16;
    }
    *half = fp16_bits(x);
    return float_bits(fp16_value(*half)) ^ bits;
}

INLINE float* row_of(tensor t, int64_t r) { return (float*)t.data + r * t.stride; }

// The fixed tree: lane l takes x[l], x[l + 16], ... in order; then halves are added.
INLINE float row_sum(const float* x, int n) {
    vf sum[16 / VL];
    int i = 0;
    UNROLL
    for (int v = 0; v < 16 / VL; v++) sum[v] = vf_set(0);
    for (; i + 16 <= n; i += 16) UNROLL
    for (int v = 0; v < 16 / VL; v++) sum[v] = vf_add(sum[v], vf_load(x + i + v * VL));
    float lane[16];
    UNROLL
    for (int v = 0; v < 16 / VL; v++) vf_store(lane + v * VL, sum[v]);
    for (int l = 0; i + l < n; l++) lane[l] += x[i + l];
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

INLINE float row_max(const float* x, int n) {
    float max = x[0];
    PRAGMA(omp simd reduction(max : max))
    for (int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

INLINE void row_round(float* x, int n, const format* how) {
    if (how->drop == 0) return;
    const format f = *how;
    SIMD
    for (int i = 0; i < n; i++) x[i] = format_round(x[i], &f);
}

// Whether values of `from` are unchanged by rounding to `to`. Those of a scaled format are, too:
// their scale is at most 1, so they become larger, and no bit of them is lost.
INLINE int format_fits(const format* from, const format* to) {
    return to == &FORMAT_FP32 || from == to;
}

// The larger of amax and the largest magnitude of n values.
INLINE float row_amax(float amax, const float* x, int n) {
    PRAGMA(omp simd reduction(max : amax))
    for (int i = 0; i < n; i++) {
        float a = float_from_bits(float_bits(x[i]) & 0x7fffffffu);
        amax = a > amax ? a : amax;
    }
    return amax;
}

// Rounds n values to an operand of a product; fp8 with the power-of-two scale for the magnitude
// `amax`.
INLINE void operand_round_to(float* to, const float* from, int n, const format* how, float amax) {
    const format f = *how;
    const float scale = format_scale(amax, how), inverse = 1 / scale;
    SIMD
    for (int i = 0; i < n; i++) to[i] = format_round(from[i] * inverse, &f) * scale;
}

// The same with the scale of these n.
INLINE void operand_round(float* to, const float* from, int n, const format* how) {
    if (how->drop == 0)
        memcpy(to, from, n * sizeof(float));
    else
        operand_round_to(to, from, n, how, how->scaled ? row_amax(0, from, n) : 0);
}

#endif
