// cuda.cuh: what every kernel file shares: the launch, shared memory, storage types, tensor-core
// and copy instructions, reductions, and the device's context.
//
// Numerics: nvcc runs with -fmad=false, and an FMA is used where it is written. What an op writes
// is accumulated in fp32 and rounded once, to nearest. No kernel adds floats with atomics: the same
// call gives the same bits, always.
#ifndef LLMC_CUDA_CUH
#define LLMC_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../backend.h"

// ------------------------------------------------------------------------------------------------
// Language

// T name[] in shared memory, of a size that the launch gives.
#define DYN_SHARED(T, name)                                   \
    extern __shared__ __align__(16) unsigned char dynamic_[]; \
    T* name = (T*)dynamic_

// Ends the program where a CUDA call failed.
#define CUDA_CHECK(call) cuda_check(call, #call)
static inline void cuda_check(cudaError_t e, const char* what) {
    if (e != cudaSuccess) fatal("CUDA: %s: %s", what, cudaGetErrorString(e));
}

// *allowed: bytes of dynamic shared memory that the kernel may have by now.
template <class... P, class... A>
static void cuda_launch(const char* name, size_t* allowed, void (*kernel)(P...), dim3 grid,
                        dim3 block, size_t shared, cudaStream_t stream, A... arguments) {
    if (shared > *allowed) {
        cuda_check(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
            name);
        *allowed = shared;
    }
    kernel<<<grid, block, shared, stream>>>(P(arguments)...);
    cuda_check(cudaGetLastError(), name);
}
// LAUNCH((kernel<T>), grid, block, dynamic shared bytes, stream, arguments...)
#define LAUNCH(kernel, ...)                                   \
    do {                                                      \
        static size_t allowed_ = 48 << 10;                    \
        cuda_launch(#kernel, &allowed_, kernel, __VA_ARGS__); \
    } while (0)

// d += a b for tiles of 16 x 16 and 16 x 8 (mma.sync.m16n8k16, fp32 accumulation), with the
// fragments of the PTX ISA: lane 4 g + t holds rows g and g + 8, columns 2t, 2t+1 (and 8 more).
template <class T>
static __device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[2]);
template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ inline uint32_t shared_address(const void* p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
// Four 8 x 8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8
// of matrix l / 8, 16-byte aligned. _trans: each transposed.
static __device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies 16 bytes from global to shared memory in the background, or writes zeros there where not
// `valid` (then `from` is not read, and may lie anywhere). They have arrived for this thread when
// cp_async_wait<n> finds at most n younger groups open, for the others after a barrier.
static __device__ inline void cp_async_16(void* to_shared, const void* from, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                 "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
static __device__ inline void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int n>
static __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// ------------------------------------------------------------------------------------------------
// Storage: fp32 and tf32 as float (tf32 products round their operands), bf16 and fp16 natively.

using bf16 = __nv_bfloat16;
using fp16 = __half;

static __device__ inline float to_float(float x) { return x; }
static __device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
static __device__ inline float to_float(fp16 x) { return __half2float(x); }

static __device__ inline float minus_infinity() { return float_from_bits(0xff800000u); }

// x rounded to nearest even.
template <class T>
static __device__ inline T to(float x);
template <>
__device__ inline float to<float>(float x) {
    return x;
}
template <>
__device__ inline bf16 to<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ inline fp16 to<fp16>(float x) {
    return __float2half_rn(x);
}

// Two 16-bit values as one register of an mma fragment, the lower index in the low half.
template <class T>
static __device__ inline uint32_t two(float low, float high) {
    T pair[2] = {to<T>(low), to<T>(high)};
    uint32_t bits;
    memcpy(&bits, pair, 4);
    return bits;
}

// Rounded to tf32: 10 mantissa bits, ties to even.
static __device__ inline float round_tf32(float x) {
    uint32_t u = float_bits(x);
    if ((u & 0x7f800000u) == 0x7f800000u) return x;
    return float_from_bits((u + 0xfffu + (u >> 13 & 1)) & ~0x1fffu);
}

// A value of a format of up to 8 bits in a byte: the sign, then exponent and mantissa, as in the
// OCP 8-bit floating point specification 1.0. 0x7f is NaN in all of these formats.
struct code {
    uint8_t bits;
};

// 2^(127 - bias) of such a format: values over it have fp32's exponents, subnormal ones too, so
// that their fp32 bits are exponent and mantissa of the code.
static __host__ __device__ inline float code_unit(const format& f) {
    return f.min_normal * 0x1p126f;
}
// x is a value of f, or NaN.
static __device__ inline code to_code(float x, const format& f) {
    uint32_t u = float_bits(x * (1.0f / code_unit(f)));
    uint32_t magnitude = x != x ? 0x7fu : (u & 0x7fffffffu) >> f.drop;
    return {(uint8_t)(u >> 24 & 0x80u | magnitude)};
}
static __device__ inline float from_code(code c, const format& f) {
    uint32_t magnitude = c.bits & 0x7fu, sign = (c.bits & 0x80u) << 24;
    float x = float_from_bits(magnitude << f.drop | sign) * code_unit(f);
    return magnitude == 0x7f ? float_from_bits(0x7fc00000u) : x;
}

// 16 bytes of T, one memory access.
template <class T>
struct alignas(16) packet {
    static constexpr int N = 16 / sizeof(T);
    T v[N];
};
template <class T>
static __device__ inline packet<T> packet_load(const T* p) {
    int4 bits = *(const int4*)p;
    packet<T> x;
    memcpy(&x, &bits, 16);
    return x;
}
template <class T>
static __device__ inline void packet_store(T* p, const packet<T>& x) {
    int4 bits;
    memcpy(&bits, &x, 16);
    *(int4*)p = bits;
}

// Four elements of T, one memory access.
template <class T>
struct alignas(4 * sizeof(T)) four {
    T v[4];
};

enum storage { STORE_FP32, STORE_BF16, STORE_FP16 };
static inline storage storage_of(const format* f) {
    if (f == &FORMAT_BF16) return STORE_BF16;
    if (f == &FORMAT_FP16) return STORE_FP16;
    if (f != &FORMAT_FP32 && f != &FORMAT_TF32)
        fatal("the CUDA device has no %s; use --device cpu, or fp32, tf32, bf16 or fp16", f->name);
    return STORE_FP32;
}
// The format that operands of a product are held in: those of up to 8 bits in bf16 (operand.cuh).
static inline const format* held_in(const format* f) { return f->scaled ? &FORMAT_BF16 : f; }

// N consecutive elements as floats: one, or SPAN in whole packets.
constexpr int SPAN = 8;
template <int N, class T>
static __device__ inline void load_span(float (&x)[N], const T* p) {
    if constexpr (N == 1) {
        x[0] = to_float(*p);
    } else {
        for (int i = 0; i < N; i += packet<T>::N) {
            packet<T> part = packet_load(p + i);
            for (int k = 0; k < packet<T>::N; k++) x[i + k] = to_float(part.v[k]);
        }
    }
}
template <int N, class T>
static __device__ inline void store_span(T* p, const float (&x)[N]) {
    if constexpr (N == 1) {
        *p = to<T>(x[0]);
    } else {
        for (int i = 0; i < N; i += packet<T>::N) {
            packet<T> part;
            for (int k = 0; k < packet<T>::N; k++) part.v[k] = to<T>(x[i + k]);
            packet_store(p + i, part);
        }
    }
}

// Whether all rows of a matrix can be read in spans, each packet at a multiple of 16 bytes.
static inline bool spans_fit(const tensor& t) {
    size_t element = storage_of(t.format) == STORE_FP32 ? 4 : 2;
    return t.cols % SPAN == 0 && ((uintptr_t)t.data | t.stride * element) % 16 == 0;
}
static inline bool spans_fit(const float* p) { return (uintptr_t)p % 16 == 0; }

// Runs the statements with T the storage type of a format.
#define WITH_STORAGE(format, T, ...)  \
    do {                              \
        switch (storage_of(format)) { \
            case STORE_FP32: {        \
                using T = float;      \
                __VA_ARGS__;          \
            } break;                  \
            case STORE_BF16: {        \
                using T = bf16;       \
                __VA_ARGS__;          \
            } break;                  \
            case STORE_FP16: {        \
                using T = fp16;       \
                __VA_ARGS__;          \
            } break;                  \
        }                             \
    } while (0)

// Runs the statements with N = SPAN where it fits, else 1.
#define WITH_SPAN(fits, N, ...)     \
    do {                            \
        if (fits) {                 \
            constexpr int N = SPAN; \
            __VA_ARGS__;            \
        } else {                    \
            constexpr int N = 1;    \
            __VA_ARGS__;            \
        }                           \
    } while (0)

// ------------------------------------------------------------------------------------------------
// Reductions, in a fixed order: butterflies, so that every lane or thread gets the same bits.

constexpr int WARP = 32;

static __device__ inline float warp_sum(float x) {
    for (int m = WARP / 2; m; m /= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

// ------------------------------------------------------------------------------------------------
// The context

// Scratch memory: one buffer a purpose, which grows to the largest request; see cuda_scratch.
enum {
    SCRATCH_PARTIAL,
    SCRATCH_BIAS,
    SCRATCH_OPERAND,
    SCRATCH_SECOND,
    SCRATCH_LOGITS,
    SCRATCH_ROWS,
    SCRATCHES
};

// Memory from which uploads go on while the host does other things: bytes in all, and of one.
enum { STAGING = 1 << 20, STAGED_MOST = 1 << 16 };

struct cublaslt;  // cublaslt.cuh
struct nccl;      // nccl.cuh

struct cuda_context {
    cudaStream_t stream;  // where work goes
    cudaStream_t other;   // aside(b, 1) and aside(b, 0) swap the two
    cudaEvent_t event;
    struct {
        void* data;
        size_t bytes;
    } scratch[SCRATCHES];
    char* staging;           // (STAGING) page-locked memory of the host's
    size_t staged;           // bytes of it that copies under way may read
    uint64_t moves;          // how often scratch memory has become other memory
    size_t logits_kept;      // bytes of logits that forward may leave for backward
    const float* logits_of;  // what lies in SCRATCH_LOGITS: the logits of the head_forward that
                             // wrote these stats, from the first on; NULL: other things
    cublaslt* products;      // NULL: the handwritten ones
    bool forward_handwritten;
    bool wgmma;      // handwritten products, but those of fp32, are by Hopper's instruction
    nccl* group;     // NULL: the device exchanges nothing with others
    int processors;  // streaming multiprocessors
    char* name;
};

static inline cuda_context* context_of(backend* b) { return (cuda_context*)b->context; }
static inline cudaStream_t stream_of(backend* b) { return context_of(b)->stream; }

// At least `bytes` bytes of scratch memory, undefined content, until the next request of this
// number.
void* cuda_scratch(backend* b, int which, size_t bytes);

static inline int blocks_for(size_t n, int each) { return (int)((n + each - 1) / each); }

template <class T>
static __host__ __device__ inline T* row_of(const tensor& t, int64_t r) {
    return (T*)t.data + r * t.stride;
}

// A weight made ready: W rounded to the operands' format. In held_in(operand), rows of zeros
// follow.
static inline int padded_outputs(int outputs) { return (outputs + 31) / 32 * 32; }
struct prepared {
    int outputs, inputs;
    const format *operand, *backward_operand;
    const format* gradient;  // operand that a gradient becomes; NULL: backward_operand
    const float* master;     // W itself, which backward products round where their operand differs
    void* w;  // (padded_outputs(outputs), inputs), in held_in(operand); or codes (operand.cuh)
    size_t bytes;
    bool codes;
    const float* bias;          // what library_bias is made of; NULL: of nothing
    const format* bias_format;  // of the outputs that it was made for
    void* library_bias;         // (outputs) as the library takes it; NULL: no memory yet
};

#endif
