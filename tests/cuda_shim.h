// cuda_shim.h: what kernels see of CUDA when they run on the CPU: the language, the intrinsics, the
// wrappers of cuda.cuh and the few runtime functions that the CUDA device calls. No toolkit needed.
//
// The idea: every thread of a block is a fiber (cuda_shim.cc). Blocks run one after another, and of
// a block one thread at a time, until it waits for others: at a barrier, or in a warp operation,
// where each lane posts its operands and the last one to arrive computes for all. What the GPU
// leaves undefined is made visible: memory nobody wrote holds NaN (bytes 0xff), an asynchronous
// copy shows its data at the wait and NaN until then, a lane that does not take part gives NaN.
//
// CUDA_SHIM_SCHEDULE, read at every launch, is the order of threads: 0 ascending, 1 descending, and
// from 2 on a seed for random priorities of warps, where a warp runs as far as it can before one of
// lower priority starts. Kernels must give the same bits under all of them.
// CUDA_SHIM_MEMORY is the size of the device's memory in bytes, CUDA_SHIM_DEVICES=0 takes it away.
//
// What breaks the rules of CUDA ends the program with one line and abort(). More is found by
// -fsanitize=address,undefined (bounds of every array, misaligned vectors, host code that touches
// device memory) and by the race checker (cuda_race.cc).
#ifndef CUDA_SHIM_H
#define CUDA_SHIM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "common.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

// The shim's own memory accesses are not the kernel's: the race checker must not see them.
#define SHIM_UNSEEN __attribute__((no_sanitize("thread")))
// Where the kernel calls an operation; for messages.
#define SHIM_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Whether this file is compiled for the race checker.
#ifdef __SANITIZE_THREAD__
#define SHIM_RACE 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SHIM_RACE 1
#endif
#endif

// The checker sees copies of up to 16 bytes as plain accesses; larger ones go through it.
#ifdef SHIM_RACE
void* shim_memcpy(void* to, const void* from, size_t bytes);
void* shim_memset(void* p, int byte, size_t bytes);
#define SHIM_PLAIN(n) (__builtin_constant_p(n) && (n) <= 16 && ((n) & ((n)-1)) == 0)
#define memcpy(to, from, n) \
    (SHIM_PLAIN(n) ? __builtin_memcpy(to, from, n) : shim_memcpy(to, from, n))
#define memset(p, byte, n) (SHIM_PLAIN(n) ? __builtin_memset(p, byte, n) : shim_memset(p, byte, n))
#endif

// ------------------------------------------------------------------------------------------------
// Vector types

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

#define SHIM_VECTORS(base, type)                                            \
    struct alignas(2 * sizeof(type)) base##2 {                              \
        type x, y;                                                          \
    };                                                                      \
    struct alignas(16) base##4 {                                            \
        type x, y, z, w;                                                    \
    };                                                                      \
    static inline base##2 make_##base##2(type x, type y) { return {x, y}; } \
    static inline base##4 make_##base##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SHIM_VECTORS(float, float)
SHIM_VECTORS(int, int)
SHIM_VECTORS(uint, unsigned)
SHIM_VECTORS(double, double)
#undef SHIM_VECTORS

// ------------------------------------------------------------------------------------------------
// 16-bit floating point: bits, and the conversions of cuda_bf16.h and cuda_fp16.h.

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half {
    uint16_t bits;
};

static inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
static inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
static inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
static inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
static inline unsigned short __half_as_ushort(__half x) { return x.bits; }
static inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

static inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(x.bits << 16); }

// To nearest, ties to even: adding just under half a unit, and one more where the kept part is odd,
// carries exactly when it must, up to infinity.
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {(uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }

// With its bits moved into place, a half is the float 2^-112 times its value, subnormals included.
static inline float __half2float(__half x) {
    uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = (uint32_t)(x.bits & 0x7fff) << 13;
    if (rest >= 0x7c00u << 13) return __uint_as_float(sign | 0x7f800000u | rest);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));
}

// To nearest, ties to even. Subnormal results have the constant spacing 2^-24, which is one unit of
// a float at 0.5: the sum with it rounds, and its low bits are the result.
static inline __half __float2half_rn(float x) {
    uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    uint32_t h;
    if (a > 0x7f800000u) return {0x7fff};
    if (a < 0x38800000u)  // 2^-14, the smallest normal half
        h = __float_as_uint(__uint_as_float(a) + 0.5f) - __float_as_uint(0.5f);
    else if (a >= 0x477ff000u)  // 65520: halfway from the largest half to the next power of two
        h = 0x7c00;
    else
        h = (a - (112u << 23) + 0xfffu + (a >> 13 & 1)) >> 13;
    return {(uint16_t)(sign | h)};
}
static inline __half __float2half(float x) { return __float2half_rn(x); }

// ------------------------------------------------------------------------------------------------
// The model of execution, as cuda_shim.cc keeps it

enum { SHIM_THREADS = 1024, SHIM_LANES = 32 };

struct shim_thread {
    uint3 index;       // threadIdx
    int number;        // in the block: x fastest
    int stack;         // the number of its stack; -1 before its start and after its end
    const char* file;  // the operation it waits in or was in last
    int line;
    const char* waits;  // the name of that operation, NULL while it can run
    uint64_t value;     // operands of a warp operation
    int source;
    const void* operand[3];
    uint32_t clock;  // grows at warp operations: what came before one has smaller clocks
};

extern shim_thread* shim_self;  // the thread that runs; NULL in host code
extern uint3 shim_block_index;
extern dim3 shim_block_dim, shim_grid_dim;

SHIM_UNSEEN static inline uint3 shim_thread_index() { return shim_self->index; }
SHIM_UNSEEN static inline uint3 shim_get_block_index() { return shim_block_index; }
SHIM_UNSEEN static inline dim3 shim_get_block_dim() { return shim_block_dim; }
SHIM_UNSEEN static inline dim3 shim_get_grid_dim() { return shim_grid_dim; }
#define threadIdx shim_thread_index()
#define blockIdx shim_get_block_index()
#define blockDim shim_get_block_dim()
#define gridDim shim_get_grid_dim()
static constexpr int warpSize = SHIM_LANES;

// Ends the program, naming kernel, block, thread and place.
[[noreturn]] void shim_die(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ------------------------------------------------------------------------------------------------
// Shared memory

// An array of the block's shared memory: one object a declaration, found again by its threads.
struct shim_array {
    const char* name;
    uint64_t block;  // number of the block it was last laid out for
    void* data;
};
// The array has the alignment of its type and no more, like the compiler's: where 16 bytes are
// needed (packets, ldmatrix, cp.async), the type must say so.
void* shim_shared(shim_array* array, size_t bytes, size_t alignment, SHIM_PLACE);
void* shim_dynamic(size_t alignment, SHIM_PLACE);

// n values of type T shared by the block; T name[] of a size the launch gives.
#define SHARED(T, name, n)                                 \
    static shim_array name##_array_ = {#name, 0, nullptr}; \
    T(&name)[n] = *(T(*)[n])shim_shared(&name##_array_, sizeof(T) * (n), alignof(T))
#define DYN_SHARED(T, name) T* name = (T*)shim_dynamic(alignof(T))

// ------------------------------------------------------------------------------------------------
// Barriers and warp operations

// `site` tells calls on one line apart. The other forms reduce a condition over the block.
void shim_barrier(const char* file, int line, int site);
struct shim_votes {
    int count, any, all;
};
shim_votes shim_barrier_vote(int condition, const char* file, int line, int site);
#define __syncthreads() shim_barrier(__FILE__, __LINE__, __COUNTER__)
#define __syncthreads_count(p) shim_barrier_vote(p, __FILE__, __LINE__, __COUNTER__).count
#define __syncthreads_or(p) shim_barrier_vote(p, __FILE__, __LINE__, __COUNTER__).any
#define __syncthreads_and(p) shim_barrier_vote(p, __FILE__, __LINE__, __COUNTER__).all

void shim_syncwarp(unsigned mask, const char* file, int line);
uint64_t shim_shuffle(unsigned mask, uint64_t value, int source, const char* file, int line);
unsigned shim_ballot(unsigned mask, int condition, const char* file, int line);

static inline void __syncwarp(unsigned mask = ~0u, SHIM_PLACE) { shim_syncwarp(mask, file, line); }
static inline unsigned __ballot_sync(unsigned mask, int condition, SHIM_PLACE) {
    return shim_ballot(mask, condition, file, line);
}
static inline int __any_sync(unsigned mask, int condition, SHIM_PLACE) {
    return shim_ballot(mask, condition, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int condition, SHIM_PLACE) {
    return shim_ballot(mask, !condition, file, line) == 0;
}

SHIM_UNSEEN static inline int shim_lane() { return shim_self->number % SHIM_LANES; }

template <class T>
SHIM_UNSEEN static inline T shim_shuffle_of(unsigned mask, T x, int source, const char* file,
                                            int line) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8);
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &x, sizeof(T));
    bits = shim_shuffle(mask, bits, source, file, line);
    __builtin_memcpy(&x, &bits, sizeof(T));
    return x;
}
// Lanes form groups of `width`; a source outside the group becomes the lane itself.
template <class T>
static inline T __shfl_sync(unsigned mask, T x, int source, int width = 32, SHIM_PLACE) {
    int first = shim_lane() & ~(width - 1);
    return shim_shuffle_of(mask, x, first | (source & (width - 1)), file, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32, SHIM_PLACE) {
    int lane = shim_lane(), source = lane ^ lanes, end = (lane & ~(width - 1)) + width;
    return shim_shuffle_of(mask, x, source < end ? source : lane, file, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, SHIM_PLACE) {
    int lane = shim_lane(), source = lane - (int)delta, first = lane & ~(width - 1);
    return shim_shuffle_of(mask, x, source >= first ? source : lane, file, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, SHIM_PLACE) {
    int lane = shim_lane(), source = lane + (int)delta, end = (lane & ~(width - 1)) + width;
    return shim_shuffle_of(mask, x, source < end ? source : lane, file, line);
}

// The wrappers of cuda.cuh. mma_m16n8k16 adds each element's 16 products in order, then d.
void shim_mma(float* d, const uint32_t* a, const uint32_t* b, bool half, const char* file,
              int line);
template <class T>
static inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                SHIM_PLACE) {
    static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
    shim_mma(d, a, b, std::is_same_v<T, __half>, file, line);
}
void shim_ldmatrix(uint32_t* r, const void* row, bool transposed, const char* file, int line);
static inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SHIM_PLACE) {
    shim_ldmatrix(r, row, false, file, line);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SHIM_PLACE) {
    shim_ldmatrix(r, row, true, file, line);
}

void cp_async_16(void* to_shared, const void* from, bool valid = true, SHIM_PLACE);
void cp_async_commit();
void shim_cp_async_wait(int groups);
template <int n>
static inline void cp_async_wait() {
    shim_cp_async_wait(n);
}

// ------------------------------------------------------------------------------------------------
// Atomics, on integers alone: a float sum would depend on the order. Threads take turns only where
// they wait, so that plain code is atomic.

void shim_race_atomic(void* p, size_t bytes);  // defined by the race checker
#ifdef SHIM_RACE
#define SHIM_SEE_ATOMIC(p) shim_race_atomic(p, sizeof(*p))
#else
#define SHIM_SEE_ATOMIC(p) (void)0
#endif

#define SHIM_ATOMICS(name, result)                                      \
    template <class T>                                                  \
    SHIM_UNSEEN static inline T name(T* p, std::type_identity_t<T> x) { \
        static_assert(std::is_integral_v<T> && sizeof(T) >= 4);         \
        SHIM_SEE_ATOMIC(p);                                             \
        T old = *p;                                                     \
        *p = (T)(result);                                               \
        return old;                                                     \
    }
SHIM_ATOMICS(atomicAdd, old + x)
SHIM_ATOMICS(atomicSub, old - x)
SHIM_ATOMICS(atomicMax, old < x ? x : old)
SHIM_ATOMICS(atomicMin, x < old ? x : old)
SHIM_ATOMICS(atomicOr, old | x)
SHIM_ATOMICS(atomicAnd, old& x)
SHIM_ATOMICS(atomicXor, old ^ x)
SHIM_ATOMICS(atomicExch, x)
#undef SHIM_ATOMICS

template <class T>
SHIM_UNSEEN static inline T atomicCAS(T* p, std::type_identity_t<T> expected,
                                      std::type_identity_t<T> x) {
    static_assert(std::is_integral_v<T> && sizeof(T) >= 4);
    SHIM_SEE_ATOMIC(p);
    T old = *p;
    if (old == expected) *p = x;
    return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// ------------------------------------------------------------------------------------------------
// Intrinsics

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    __extension__ typedef unsigned __int128 wide;
    return (unsigned long long)((wide)a * b >> 64);
}
static inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
static inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }

static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }

template <class T>
static inline T __ldg(const T* p) {
    return *p;
}
template <class T>
static inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
static inline void __stcs(T* p, std::type_identity_t<T> x) {
    *p = x;
}
template <class T, class U>
static constexpr inline std::common_type_t<T, U> min(T a, U b) {
    using C = std::common_type_t<T, U>;
    return (C)b < (C)a ? (C)b : (C)a;
}
template <class T, class U>
static constexpr inline std::common_type_t<T, U> max(T a, U b) {
    using C = std::common_type_t<T, U>;
    return (C)a < (C)b ? (C)b : (C)a;
}

// ------------------------------------------------------------------------------------------------
// Runtime functions. There is one stream, and all is done when a call returns.

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventDisableTiming = 2 };
typedef struct shim_stream* cudaStream_t;
typedef struct shim_event* cudaEvent_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, warpSize, l2CacheSize, memoryBusWidth;
};

const char* cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceSynchronize();

cudaError_t shim_malloc(void** p, size_t bytes);
template <class T>
static inline cudaError_t cudaMalloc(T** p, size_t bytes) {
    return shim_malloc((void**)p, bytes);
}
cudaError_t cudaFree(void* p);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t shim_malloc_host(void** p, size_t bytes);
template <class T>
static inline cudaError_t cudaMallocHost(T** p, size_t bytes) {
    return shim_malloc_host((void**)p, bytes);
}
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* p, int byte, size_t bytes);

cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int) {
    return cudaSuccess;
}

// Ends the program where a CUDA call failed.
#define CUDA_CHECK(call) cuda_check(call, #call)
static inline void cuda_check(cudaError_t e, const char* what) {
    if (e != cudaSuccess) fatal("CUDA: %s: %s", what, cudaGetErrorString(e));
}

// ------------------------------------------------------------------------------------------------
// Launch

// Runs run(arguments) as every thread of the grid.
void shim_run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   void (*run)(const void*), const void* arguments, size_t argument_bytes);

// A kernel with its arguments, which every thread gets a copy of.
template <class... P>
struct shim_call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;

    template <size_t... i>
    SHIM_UNSEEN void run(std::index_sequence<i...>) const {
        kernel(std::get<i>(arguments)...);
    }
    SHIM_UNSEEN static void run(const void* call) {
        ((const shim_call*)call)->run(std::index_sequence_for<P...>());
    }
};

template <class... P, class... A>
static void shim_launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
                        size_t shared, cudaStream_t, A... arguments) {
    shim_call<P...> call = {kernel, std::tuple<P...>(P(arguments)...)};
    shim_run_grid(name, grid, block, shared, shim_call<P...>::run, &call, sizeof call);
}
// LAUNCH((kernel<T>), grid, block, dynamic shared bytes, stream, arguments...)
#define LAUNCH(kernel, ...) shim_launch(#kernel, kernel, __VA_ARGS__)

// ------------------------------------------------------------------------------------------------
// What the race checker needs to know

enum shim_access { SHIM_READ, SHIM_WRITE, SHIM_ATOMIC };
struct shim_memory {
    const char* data;  // NULL: none
    size_t bytes;
    const char* name;  // of an array in shared memory
};

// One count of all that orders memory accesses of a block: it grows at every barrier, block and
// launch. An access is from an earlier launch, another block of this one, or before the last
// barrier, if its phase is below the respective one.
extern uint32_t shim_phase, shim_block_phase, shim_launch_phase;

// The race checker's functions, or NULL where it is not linked.
struct shim_checker {
    void (*access)(const void* p, size_t bytes, shim_access kind, const void* code);
    void (*launch_done)();
    void (*freed)(const void* p);
};
extern const shim_checker* shim_race;

const char* shim_kernel_name();
shim_memory shim_find_device(const void* p);  // the allocation that begins last before p
shim_memory shim_find_shared(const void* p);  // the array that begins last before p
shim_memory shim_shared_region();             // all shared memory, with the gaps between arrays
shim_memory shim_stack();                     // of the thread that runs
shim_memory shim_arguments();                 // of the kernel that runs

#endif
