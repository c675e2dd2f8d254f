// Tests of the shim that plays CUDA on the CPU (cuda_shim.h): every wrapper against a plain
// computation, under several schedules, and faults planted in kernels. Each fault runs in a child
// process, which must die with the expected sentence. Some can be seen by one build alone: by the
// sanitizers, or by the race checker.
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "cuda_shim.h"
#include "test.h"

#ifdef __SANITIZE_ADDRESS__
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifndef ASAN
#define ASAN 0
#endif
#ifdef CUDA_RACE
enum { RACE = 1 };
#else
enum { RACE = 0 };
#endif

#if ASAN
// The children's reports are read by a program: names of functions would only take time.
extern "C" const char* __asan_default_options() { return "symbolize=0"; }
#endif

enum { SCHEDULES = 6 };

static void schedule_set(int s) {
    char number[16];
    snprintf(number, sizeof number, "%d", s);
    setenv("CUDA_SHIM_SCHEDULE", number, 1);
}

// n values in device memory.
template <class T>
struct device_array {
    T* p;
    size_t n;

    explicit device_array(size_t count) : n(count) { CUDA_CHECK(cudaMalloc(&p, n * sizeof(T))); }
    explicit device_array(const std::vector<T>& from) : device_array(from.size()) {
        CUDA_CHECK(cudaMemcpyAsync(p, from.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    device_array(const device_array&) = delete;
    ~device_array() { cudaFree(p); }
    std::vector<T> host() const {
        std::vector<T> to(n);
        CUDA_CHECK(cudaMemcpyAsync(to.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return to;
    }
};

static std::vector<float> counting(size_t n) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = (float)i;
    return x;
}

// ------------------------------------------------------------------------------------------------
// 16-bit formats. Every value reads back; halfway between neighbours goes to the even one, and the
// floats next to halfway to the nearer one, up to infinity.

static double value_of(int bits, int mantissa_bits, int bias) {
    int exponent = bits >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    if (!exponent) return ldexp(mantissa, 1 - bias - mantissa_bits);
    return ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

template <class T>
static void check_rounding(const char* name, T (*round)(float), float (*expand)(T), int infinity,
                           int mantissa_bits, int bias) {
    int wrong = 0, wrong_value = 0;
    for (int h = 0; h < infinity; h++) {
        double here = value_of(h, mantissa_bits, bias), next = value_of(h + 1, mantissa_bits, bias);
        float middle = (float)((here + next) / 2);
        int even = h + (h & 1);
        wrong_value += expand({(uint16_t)h}) != (float)here;
        wrong_value += expand({(uint16_t)(h | 0x8000)}) != -(float)here;
        wrong += round((float)here).bits != h;
        wrong += round(-(float)here).bits != (h | 0x8000);
        wrong += round(middle).bits != even;
        wrong += round(-middle).bits != (even | 0x8000);
        // bf16's subnormals are floats' subnormals: the middle still is a float.
        wrong += round(nextafterf(middle, 0)).bits != h;
        wrong += round(nextafterf(middle, INFINITY)).bits != h + 1;
    }
    CHECK(wrong_value == 0, "%s: %d values", name, wrong_value);
    CHECK(wrong == 0, "%s: %d roundings", name, wrong);
    CHECK(expand({(uint16_t)infinity}) == INFINITY, "%s: infinity", name);
    CHECK(round(-INFINITY).bits == (infinity | 0x8000), "%s: infinity", name);
    CHECK(round(3.4e38f).bits == infinity || mantissa_bits == 7, "%s: overflow", name);
    CHECK(isnan(expand(round(NAN))) && isnan(expand({0xffff})), "%s: NaN", name);
}

static void test_formats() {
    check_rounding("half", __float2half_rn, __half2float, 0x7c00, 10, 15);
    check_rounding("bf16", __float2bfloat16_rn, __bfloat162float, 0x7f80, 7, 127);
#ifdef __FLT16_MANT_DIG__
    int wrong = 0;
    for (uint32_t i = 0; i < 1u << 20; i++) {
        float x = __uint_as_float(i * 4093u);
        _Float16 h = (_Float16)x;
        wrong += !isnan(x) && __float2half_rn(x).bits != __builtin_bit_cast(uint16_t, h);
    }
    CHECK(wrong == 0, "half: %d roundings differ from the compiler's", wrong);
#endif
}

static void test_intrinsics() {
    CHECK(__umulhi(0xfffffffeu, 0x12345678u) == 0x12345677u, "umulhi");
    CHECK(__umul64hi(0xfffffffffffffffeull, 0x123456789abcdefull) == 0x123456789abcdeeull,
          "umul64hi");
    CHECK(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64, "popc");
    CHECK(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41, "ffs");
    CHECK(__clz(0) == 32 && __clz(1) == 31 && __clzll(1) == 63 && __clzll(0) == 64, "clz");
    CHECK(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.0f, "bits");
    CHECK(min(3, 5) == 3 && max(3u, 5u) == 5u && max(1.5f, 2) == 2.0f, "min, max");
}

// ------------------------------------------------------------------------------------------------
// Threads and schedules

template <class T, int SCALE>
__global__ void indices(T* out, int64_t add, float scale) {
    unsigned in_block = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned i = in_block + block * blockDim.x * blockDim.y * blockDim.z;
    out[i] = (T)(SCALE * (int)i + (int)add) * (T)scale;
}

__global__ void order_of_warps(int* order, int* count) {
    if (threadIdx.x % 32 == 0)
        order[atomicAdd(count, 1)] = (int)(8 * blockIdx.x + threadIdx.x / 32);
    __syncwarp();
}

static std::vector<int> warp_order(int schedule) {
    schedule_set(schedule);
    device_array<int> order(32), count(std::vector<int>{0});
    LAUNCH(order_of_warps, 4, 256, 0, nullptr, order.p, count.p);
    return order.host();
}

static void test_launch() {
    for (int s = 0; s < SCHEDULES; s++) {
        schedule_set(s);
        device_array<double> out(12 * 24);
        LAUNCH((indices<double, 3>), dim3(3, 2, 2), dim3(4, 3, 2), 0, nullptr, out.p, 7, 2.0);
        std::vector<double> x = out.host();
        int wrong = 0;
        for (size_t i = 0; i < x.size(); i++) wrong += x[i] != 2 * (3.0 * (double)i + 7);
        CHECK(wrong == 0, "schedule %d: %d threads", s, wrong);
    }
    int ascending = 0, descending = 0;
    for (int i = 0; i < 32; i++) {
        ascending += warp_order(0)[(size_t)i] == i;
        descending += warp_order(1)[(size_t)i] == 31 - i;
    }
    CHECK(ascending == 32 && descending == 32, "%d, %d warps in order", ascending, descending);
    CHECK(warp_order(2) != warp_order(3), "another seed, another order");
    CHECK(warp_order(2) == warp_order(2), "the same seed, the same order");
}

// ------------------------------------------------------------------------------------------------
// Warp operations and barriers, each against its definition

template <class T>
__global__ void shuffles(T* out, int width) {
    unsigned t = threadIdx.x;
    T x = (T)((T)1e10 * (T)(t + 1) + (T)t);  // more than 32 bits, where T has them
    out[t] = __shfl_sync(~0u, x, 5, width);
    out[64 + t] = __shfl_xor_sync(~0u, x, 6, width);
    out[128 + t] = __shfl_up_sync(~0u, x, 3, width);
    out[192 + t] = __shfl_down_sync(~0u, x, 3, width);
}

template <class T>
static void check_shuffles(int width, const char* type) {
    device_array<T> out(256);
    LAUNCH(shuffles<T>, 1, 64, 0, nullptr, out.p, width);
    std::vector<T> x = out.host();
    int wrong = 0;
    for (int t = 0; t < 64; t++) {
        int first = t / width * width, last = first + width - 1;
        int source[4] = {first + 5 % width, (t ^ 6) <= last ? t ^ 6 : t, t - 3 < first ? t : t - 3,
                         t + 3 > last ? t : t + 3};
        for (int k = 0; k < 4; k++) {
            T expected = (T)((T)1e10 * (T)(source[k] + 1) + (T)source[k]);
            wrong += x[(size_t)(64 * k + t)] != expected;
        }
    }
    CHECK(wrong == 0, "shuffles of %s, width %d: %d lanes", type, width, wrong);
}

// Lanes of each half meet among themselves; the lower half more often.
__global__ void votes(unsigned* out) {
    unsigned t = threadIdx.x, half = t % 32 < 16 ? 0xffffu : 0xffff0000u;
    unsigned x = t;
    for (unsigned m = 8; m; m /= 2) x += __shfl_xor_sync(half, x, (int)m);
    if (half == 0xffffu)
        for (int i = 0; i < 4; i++) x += __shfl_sync(half, x, 0) & 0;
    out[t] = x;
    out[64 + t] = __ballot_sync(~0u, t % 3 == 0);
    out[128 + t] = (unsigned)(__any_sync(~0u, t == 40) + 2 * __all_sync(~0u, t < 40));
    unsigned count = (unsigned)__syncthreads_count(t % 5 == 0);
    out[192 + t] = count + 100 * (unsigned)__syncthreads_or(t == 63) +
                   1000 * (unsigned)__syncthreads_and(t < 63);
}

static void test_warps() {
    for (int s = 0; s < SCHEDULES; s++) {
        schedule_set(s);
        for (int width : {32, 16, 8}) {
            check_shuffles<float>(width, "float");
            check_shuffles<int64_t>(width, "int64_t");
            check_shuffles<uint64_t>(width, "uint64_t");
            check_shuffles<double>(width, "double");
        }
        device_array<unsigned> out(256);
        LAUNCH(votes, 1, 64, 0, nullptr, out.p);
        std::vector<unsigned> x = out.host();
        int wrong = 0;
        for (unsigned t = 0; t < 64; t++) {
            unsigned threes = 0;
            for (unsigned l = 0; l < 32; l++) threes |= (unsigned)((t / 32 * 32 + l) % 3 == 0) << l;
            wrong += x[t] != t / 16 * 16 * 16 + 120;
            wrong += x[64 + t] != threes;
            wrong += x[128 + t] != (t < 32 ? 2u : 1u);
            wrong += x[192 + t] != 13 + 100;
        }
        CHECK(wrong == 0, "schedule %d: %d votes", s, wrong);
    }
}

// A lane that does not take part gives NaN; threads that have ended are not waited for.
__global__ void undefined_lane(float* out) {
    if (threadIdx.x >= 40) return;
    float x = (float)threadIdx.x;
    if (threadIdx.x < 8) x = __shfl_sync(0xffu, x, 20);
    __syncthreads();
    out[threadIdx.x] = x;
}

static void test_undefined_lane() {
    device_array<float> out(40);
    LAUNCH(undefined_lane, 1, 64, 0, nullptr, out.p);
    std::vector<float> x = out.host();
    CHECK(isnan(x[0]) && isnan(x[7]), "%g, %g", (double)x[0], (double)x[7]);
    CHECK(x[8] == 8 && x[39] == 39, "%g, %g", (double)x[8], (double)x[39]);
}

// ------------------------------------------------------------------------------------------------
// Matrix instructions. Fragments as in the tables of the PTX ISA, section on m16n8k16.

template <class T>
static T narrow(float x);
template <>
__half narrow<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

template <class T>
__global__ void one_mma(float* d, const T* a, const T* b) {
    int lane = (int)threadIdx.x, group = lane >> 2, in_group = lane & 3;
    T fa[8], fb[4];
    float fd[4];
    uint32_t ra[4], rb[2];
    for (int i = 0; i < 8; i++) {
        int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        fa[i] = a[row * 16 + column];
    }
    for (int i = 0; i < 4; i++) fb[i] = b[(in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)) * 8 + group];
    memcpy(ra, fa, 16);
    memcpy(rb, fb, 8);
    for (int i = 0; i < 4; i++) fd[i] = d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
    mma_m16n8k16<T>(fd, ra, rb);
    for (int i = 0; i < 4; i++) d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = fd[i];
}

template <class T>
static void check_mma(const char* type) {
    std::vector<T> a(256), b(128);
    std::vector<float> d(128), fa(256), fb(128);
    for (size_t i = 0; i < 256; i++) a[i] = narrow<T>(fa[i] = (float)((int)(i * 37 % 61) - 30));
    for (size_t i = 0; i < 128; i++) b[i] = narrow<T>(fb[i] = (float)((int)(i * 29 % 53) - 26));
    for (size_t i = 0; i < 128; i++) d[i] = (float)i;
    device_array<T> da(a), db(b);
    device_array<float> dd(d);
    LAUNCH(one_mma<T>, 1, 32, 0, nullptr, dd.p, da.p, db.p);
    std::vector<float> x = dd.host();
    int wrong = 0;
    for (size_t r = 0; r < 16; r++)
        for (size_t c = 0; c < 8; c++) {
            float sum = d[r * 8 + c];  // whole numbers below 2^24: exact in any order
            for (size_t k = 0; k < 16; k++) sum += fa[r * 16 + k] * fb[k * 8 + c];
            wrong += x[r * 8 + c] != sum;
        }
    CHECK(wrong == 0, "mma of %s: %d elements", type, wrong);
}

// Matrix i of four is the 8 x 8 block i of a 32 x 8 array.
__global__ void load_matrices(uint32_t* out, const uint16_t* from) {
    SHARED(uint4, rows, 32);
    uint32_t plain[4], transposed[4];
    memcpy(&rows[threadIdx.x], from + 8 * threadIdx.x, 16);
    __syncwarp();
    ldmatrix_x4(plain, &rows[threadIdx.x]);
    ldmatrix_x4_trans(transposed, &rows[threadIdx.x]);
    for (unsigned i = 0; i < 4; i++) {
        out[i * 32 + threadIdx.x] = plain[i];
        out[128 + i * 32 + threadIdx.x] = transposed[i];
    }
}

static void test_matrices() {
    std::vector<uint16_t> from(256);
    for (size_t i = 0; i < 256; i++) from[i] = (uint16_t)(1000 + i);
    for (int s = 0; s < SCHEDULES; s++) {
        schedule_set(s);
        check_mma<__half>("fp16");
        check_mma<__nv_bfloat16>("bf16");
        device_array<uint16_t> device(from);
        device_array<uint32_t> out(256);
        LAUNCH(load_matrices, 1, 32, 0, nullptr, out.p, device.p);
        std::vector<uint32_t> x = out.host();
        int wrong = 0;
        for (unsigned i = 0; i < 4; i++)
            for (unsigned l = 0; l < 32; l++) {
                unsigned r = l / 4, c = l % 4 * 2, base = 1000 + 64 * i;
                wrong += x[i * 32 + l] != ((base + 8 * r + c) | (base + 8 * r + c + 1) << 16);
                wrong +=
                    x[128 + i * 32 + l] != ((base + 8 * c + r) | (base + 8 * (c + 1) + r) << 16);
            }
        CHECK(wrong == 0, "ldmatrix: %d registers", wrong);
    }
}

// ------------------------------------------------------------------------------------------------
// Asynchronous copies

// Tiles of 4 floats a thread go through a ring of two stages; the sum over all tiles of a thread's
// neighbour. The last of `tiles` is not there: zeros.
__global__ void pipeline(float* out, const float* from, int tiles) {
    DYN_SHARED(float4, stage);
    int t = (int)threadIdx.x, n = (int)blockDim.x;
    float sum = 0;
    for (int k = 0; k <= tiles; k++) {
        if (k < tiles) cp_async_16(&stage[k % 2 * n + t], from + 4 * (k * n + t), k < tiles - 1);
        cp_async_commit();
        if (k == 0) continue;
        cp_async_wait<1>();
        __syncthreads();
        float4 x = stage[(k - 1) % 2 * n + (t + 1) % n];
        sum += x.x + x.y + x.z + x.w;
        __syncthreads();
    }
    out[t] = sum;
}

// What is readable: after fewer waits than groups, without a commit, before any wait.
__global__ void copy_states(float* out, const float* from) {
    SHARED(float4, s, 4);
    if (threadIdx.x) return;
    cp_async_wait<0>();  // of nothing
    for (int i = 0; i < 2; i++) {
        cp_async_16(&s[i], from + 4 * i);
        cp_async_commit();
    }
    cp_async_16(&s[2], from + 8);
    out[0] = s[0].x;
    cp_async_wait<1>();
    out[1] = s[0].x, out[2] = s[1].x;
    cp_async_wait<0>();
    out[3] = s[1].w, out[4] = s[2].x;
}

static void test_copies() {
    std::vector<float> numbers = counting(4 * 64 * 5);
    for (int s = 0; s < SCHEDULES; s++) {
        schedule_set(s);
        device_array<float> from(numbers), out(64);
        LAUNCH(pipeline, 1, 64, 2 * 64 * 16, nullptr, out.p, from.p, 5);
        std::vector<float> x = out.host();
        int wrong = 0;
        for (size_t t = 0; t < 64; t++) {
            float sum = 0;
            for (size_t k = 0; k < 4; k++)
                for (size_t i = 0; i < 4; i++) sum += numbers[4 * (k * 64 + (t + 1) % 64) + i];
            wrong += x[t] != sum;
        }
        CHECK(wrong == 0, "schedule %d: %d sums", s, wrong);
    }
    device_array<float> from(numbers), states(5);
    LAUNCH(copy_states, 1, 32, 0, nullptr, states.p, from.p);
    std::vector<float> y = states.host();
    CHECK(isnan(y[0]) && y[1] == 0 && isnan(y[2]), "%g %g %g", (double)y[0], (double)y[1],
          (double)y[2]);
    CHECK(y[3] == 7 && isnan(y[4]), "%g %g", (double)y[3], (double)y[4]);
}

// ------------------------------------------------------------------------------------------------
// Kernels without a fault, of kinds that a race checker could get wrong

// A tile, a barrier, a row updated in place.
__global__ void reverse_in_place(float* x) {
    SHARED(float, tile, 64);
    float* row = x + 64 * blockIdx.x;
    unsigned t = threadIdx.x;
    for (int i = 0; i < 3; i++) {
        tile[t] = row[t];
        __syncthreads();
        row[63 - t] = tile[t] + 1;
        __syncthreads();
        row[t] += 1;
    }
}

// Each warp has a row of shared memory, read by all its lanes and then written again; lane 0 reads
// and writes what all have read.
__global__ void warp_rows(float* x) {
    SHARED(float, rows, 2 * 33);
    unsigned lane = threadIdx.x % 32;
    float* row = rows + threadIdx.x / 32 * 33;
    float sum = 0;
    if (lane == 0) row[32] = 0;
    __syncwarp();
    for (int i = 0; i < 3; i++) {
        row[lane] = (float)(lane + threadIdx.x);
        __syncwarp();
        sum += row[lane ^ 5] + row[32];
        __syncwarp();
        if (lane == 0) row[32] += row[1];
        __syncwarp();
    }
    x[threadIdx.x] = sum;
}

// Neighbours write the halves and the bytes of one word; atomics of many blocks meet.
__global__ void neighbours(uint16_t* halves, uint8_t* bytes, int* counters) {
    unsigned i = threadIdx.x + blockIdx.x * blockDim.x;
    halves[i] = (uint16_t)i;
    halves[i]++;
    bytes[i] = (uint8_t)i;
    bytes[i]++;
    atomicAdd(&counters[0], (int)i);
    atomicMax(&counters[1], (int)i);
    atomicMin(&counters[2], (int)i);
    atomicOr(&counters[3], 1 << i % 8);
    atomicCAS(&counters[4], 0, 7);
    atomicExch(&counters[5], 9);
}

struct by_value {
    float* to;
    int64_t stride;
    float add[20];
};
static const float constant_table[4] = {1, 2, 3, 4};
__global__ void structure(by_value v) {
    v.to[threadIdx.x * v.stride] = v.add[threadIdx.x % 20] + constant_table[threadIdx.x % 4];
}

static void test_harmless() {
    for (int s = 0; s < SCHEDULES; s++) {
        schedule_set(s);
        device_array<float> x(counting(128)), y(64), z(32);
        device_array<uint16_t> halves(128);
        device_array<uint8_t> bytes(128);
        device_array<int> counters(std::vector<int>{0, 0, 1 << 20, 0, 0, 0});
        LAUNCH(reverse_in_place, 2, 64, 0, nullptr, x.p);
        LAUNCH(warp_rows, 1, 64, 0, nullptr, y.p);
        LAUNCH(neighbours, 2, 64, 0, nullptr, halves.p, bytes.p, counters.p);
        by_value v = {z.p, 2, {}};
        for (int i = 0; i < 20; i++) v.add[i] = (float)(10 * i);
        LAUNCH(structure, 1, 16, 0, nullptr, v);
        std::vector<float> r = x.host(), sums = y.host(), w = z.host();
        CHECK(r[0] == 63 + 6 && r[63] == 0 + 6 && r[64] == 127 + 6, "%g %g %g", (double)r[0],
              (double)r[63], (double)r[64]);
        // Three times the neighbour's, and row[32]: 0, once and twice row[1].
        CHECK(sums[0] == 3 * 10 + 3 * 2 && sums[33] == 3 * 40 + 3 * 34, "%g %g", (double)sums[0],
              (double)sums[33]);
        CHECK(w[2] == 12 && w[30] == 154 && isnan(w[1]), "%g %g %g", (double)w[2], (double)w[30],
              (double)w[1]);
        std::vector<int> c = counters.host();
        CHECK(c == (std::vector<int>{127 * 64, 127, 0, 255, 7, 9}), "%d %d %d %d %d %d", c[0], c[1],
              c[2], c[3], c[4], c[5]);
        CHECK(halves.host()[77] == 78 && bytes.host()[99] == 100, "neighbours");
    }
}

// ------------------------------------------------------------------------------------------------
// Memory

__global__ void fresh_shared(float* out) {
    SHARED(float, a, 3);
    SHARED(double, b, 1);
    SHARED(float4, d, 1);
    DYN_SHARED(int, c);
    unsigned t = threadIdx.x;
    // Aligned as the type asks and no better: who needs more must not get it by luck.
    bool aligned = (uintptr_t)a % 16 == 4 && (uintptr_t)b % 16 == 8 && (uintptr_t)d % 16 == 0 &&
                   (uintptr_t)c % 16 == 0;
    bool undefined = isnan(a[t]) && isnan(b[0]) && c[t] == -1 && sizeof a == 12;
    __syncthreads();
    a[t] = 1, c[t] = 1;
    if (t == 0) b[0] = 1;
    out[3 * blockIdx.x + t] = aligned && undefined;
}

static void test_memory() {
    device_array<float> fresh(5), flags(9);
    std::vector<float> x = fresh.host();
    CHECK(isnan(x[0]) && isnan(x[4]), "%g: fresh memory is undefined", (double)x[0]);
    LAUNCH(fresh_shared, 3, 3, 227 * 1024 - 48, nullptr, flags.p);
    CHECK(flags.host() == std::vector<float>(9, 1),
          "shared memory of each block is aligned and undefined");
    CUDA_CHECK(cudaMemsetAsync(fresh.p, 0, 20, nullptr));
    CHECK(fresh.host() == std::vector<float>(5, 0), "memset");

    size_t left, total;
    void *p, *q;
    setenv("CUDA_SHIM_MEMORY", "1000", 1);
    CHECK(cudaMemGetInfo(&left, &total) == cudaSuccess && total == 1000 && left == 944, "%zu",
          left);
    CHECK(cudaMalloc(&p, 945) == cudaErrorMemoryAllocation && !p, "more than there is");
    CHECK(cudaMalloc(&p, 944) == cudaSuccess && p && (uintptr_t)p % 256 == 0, "all there is");
    CHECK(cudaMalloc(&q, 1) == cudaErrorMemoryAllocation, "nothing is left");
    CHECK(cudaFree(p) == cudaSuccess && cudaMalloc(&p, 900) == cudaSuccess, "again");
    CHECK(cudaFree(p) == cudaSuccess && cudaFree(nullptr) == cudaSuccess, "free");
    unsetenv("CUDA_SHIM_MEMORY");
}

static void test_runtime() {
    int n;
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceCount(&n) == cudaSuccess && n == 1, "%d devices", n);
    CHECK(cudaGetDeviceProperties(&properties, 0) == cudaSuccess, "properties");
    CHECK(!strcmp(properties.name, "CUDA shim") && properties.major == 9, "%s", properties.name);
    setenv("CUDA_SHIM_DEVICES", "0", 1);
    CHECK(cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver && n == 0, "%d devices", n);
    CHECK(cudaSetDevice(0) != cudaSuccess, "no device");
    unsetenv("CUDA_SHIM_DEVICES");
    cudaStream_t stream;
    cudaEvent_t start = nullptr, end = nullptr;
    float ms = -1;
    CHECK(cudaStreamCreate(&stream) == cudaSuccess && stream, "stream");
    CHECK(cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess, "event");
    cudaEventRecord(start, stream), cudaEventRecord(end, stream);
    CHECK(cudaEventElapsedTime(&ms, start, end) == cudaSuccess && ms >= 0, "%g ms", (double)ms);
    cudaEventDestroy(start), cudaEventDestroy(end), cudaStreamDestroy(stream);
}

// ------------------------------------------------------------------------------------------------
// Planted faults

// `run` must end its process with a message that holds the words.
static void check_fault(const char* what, void (*run)(), const char* words) {
    char text[16384] = "";
    int ends[2], status;
    fflush(stdout);
    pid_t child = pipe(ends) ? -1 : fork();
    if (child < 0) {
        perror("fork");
        exit(1);
    }
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        dup2(ends[1], STDERR_FILENO);
        run();
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; n < sizeof text - 1; n += (size_t)got)
        if ((got = read(ends[0], text + n, sizeof text - 1 - n)) <= 0) break;
    close(ends[0]);
    waitpid(child, &status, 0);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status), "%s: went unseen", what);
    CHECK(strstr(text, words), "%s: \"%s\" expected in \"%.800s\"", what, words, text);
}
// The statement launches the kernel on x, 64 floats of device memory.
#define FAULT(what, words, ...)                 \
    check_fault(                                \
        what,                                   \
        [] {                                    \
            float* x;                           \
            CUDA_CHECK(cudaMalloc(&x, 64 * 4)); \
            CUDA_CHECK(cudaMemset(x, 0, 256));  \
            __VA_ARGS__;                        \
        },                                      \
        words)

__global__ void divergent_barrier(float* x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    x[0] = 1;
}
__global__ void barrier_in_half_a_warp(float* x) {
    if (threadIdx.x < 16) __syncthreads();
    __syncwarp();
    x[threadIdx.x] = 1;
}
__global__ void not_in_own_mask(float* x) { x[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0); }
__global__ void ended_lane(float* x) {
    if (threadIdx.x == 3) return;
    __syncwarp(0xf0u | 1u << threadIdx.x);
    __syncwarp();
    x[threadIdx.x] = 1;
}
__global__ void two_operations(float* x) {
    if (threadIdx.x < 16)
        __syncwarp();
    else
        x[0] = __shfl_sync(~0u, 1.0f, 0);
}
__global__ void half_a_warp_of_mma(float* x) {
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    mma_m16n8k16<__half>(d, a, b);
    x[threadIdx.x] = d[0];
}
__global__ void misaligned_ldmatrix(float* x) {
    DYN_SHARED(uint16_t, s);
    uint32_t r[4];
    ldmatrix_x4(r, s + 8 * threadIdx.x + 4);
    x[threadIdx.x] = (float)r[0];
}
__global__ void ldmatrix_of_device_memory(float* x) {
    uint32_t r[4];
    ldmatrix_x4(r, x);
}
__global__ void misaligned_copy(float* x) {
    DYN_SHARED(float4, s);
    cp_async_16(&s[threadIdx.x], x + 1);
}
__global__ void copy_beyond_shared(float* x) {
    DYN_SHARED(float4, s);
    cp_async_16(&s[threadIdx.x], x);
}
__global__ void nothing(float*) {}
__global__ void much_shared(float* x) {
    SHARED(float, a, 6000);
    SHARED(float, b, 6500);
    x[0] = a[0] + b[0];
}

static void test_faults() {
    schedule_set(0);
    FAULT("divergent barrier",
          "divergent barrier: ", LAUNCH(divergent_barrier, 1, 64, 0, nullptr, x));
    FAULT("its place", "kernel divergent_barrier, block (0,0,0), thread (32,0,0), ",
          LAUNCH(divergent_barrier, 1, 64, 0, nullptr, x));
    FAULT("deadlock", "deadlock: 32 threads wait, 0 have ended: thread 0 in __syncthreads at ",
          LAUNCH(barrier_in_half_a_warp, 1, 32, 0, nullptr, x));
    FAULT("own mask", "a shuffle: lane 16 is not in its own mask 0x0000ffff",
          LAUNCH(not_in_own_mask, 1, 32, 0, nullptr, x));
    FAULT("ended lane", "__syncwarp: mask 0xffffffff names lane 3, which has ended",
          LAUNCH(ended_lane, 1, 32, 0, nullptr, x));
    FAULT("two operations", "divergent warp operation: a shuffle here, but other lanes of mask",
          LAUNCH(two_operations, 1, 32, 0, nullptr, x));
    FAULT("half a warp", "mma needs all 32 lanes, and the warp has 0x0000ffff",
          LAUNCH(half_a_warp_of_mma, 1, 16, 0, nullptr, x));
    FAULT("ldmatrix", "ldmatrix: offset 8 in the dynamic array is not 16-byte aligned",
          LAUNCH(misaligned_ldmatrix, 1, 32, 1024, nullptr, x));
    FAULT("ldmatrix", "is not shared memory",
          LAUNCH(ldmatrix_of_device_memory, 1, 32, 0, nullptr, x));
    FAULT("cp.async", "is not 16-byte aligned", LAUNCH(misaligned_copy, 1, 32, 512, nullptr, x));
    FAULT("cp.async", "cp.async: 16 bytes at offset 496 exceed the 500 bytes of the dynamic array",
          LAUNCH(copy_beyond_shared, 1, 32, 500, nullptr, x));
    FAULT("threads", "blocks of 1025 x 1 x 1 threads", LAUNCH(nothing, 1, 1025, 0, nullptr, x));
    FAULT("grid", "a grid of 0 x 1 x 1 blocks", LAUNCH(nothing, 0, 32, 0, nullptr, x));
    FAULT("grid", "a grid of 1 x 65536 x 1", LAUNCH(nothing, dim3(1, 65536), 32, 0, nullptr, x));
    FAULT("dynamic", "of dynamic shared memory; 227 KiB are possible",
          LAUNCH(nothing, 1, 32, 227 * 1024 + 1, nullptr, x));
    FAULT("static", "more than 48 KiB of static shared memory, with b",
          LAUNCH(much_shared, 1, 32, 0, nullptr, x));
    FAULT("static and dynamic", "more than 227 KiB of shared memory",
          LAUNCH(much_shared, 1, 32, 220 * 1024, nullptr, x));
    FAULT("copy", "exceed an allocation of 256 bytes", cudaMemset(x, 0, 257));
    FAULT("copy", "is device memory, not the host's", float y;
          cudaMemcpyAsync(&y, x, 4, cudaMemcpyHostToDevice));
    FAULT("copy", "is not device memory", float y;
          cudaMemcpyAsync(x, &y, 4, cudaMemcpyDeviceToDevice));
    FAULT("free", "which cudaMalloc did not return", cudaFree(x + 1));
}

// Faults that show as results: NaN, or other values under some schedule.

__global__ void missing_barrier(float* x) {
    SHARED(float, s, 64);
    unsigned t = threadIdx.x;
    s[t] = (float)t;
    x[t] = s[63 - t];
}
__global__ void missing_barrier_before_reuse(float* x) {
    SHARED(float, s, 64);
    unsigned t = threadIdx.x;
    float sum = 0;
    for (unsigned k = 0; k < 4; k++) {
        s[t] = (float)(t + 100 * k);
        __syncthreads();
        sum += s[63 - t];
    }
    x[t] = sum;
}
__global__ void missing_wait(float* x, const float* from) {
    SHARED(float4, s, 1);
    cp_async_16(s, from);
    cp_async_commit();
    x[0] = s[0].x;
}

// How many of the schedules give the right sum over 64 results.
static int right_schedules(void (*kernel)(float*), float expected) {
    int right = 0;
    for (int s = 0; s < SCHEDULES; s++) {
        schedule_set(s);
        device_array<float> x(64);
        LAUNCH(kernel, 1, 64, 0, nullptr, x.p);
        float sum = 0;
        for (float y : x.host()) sum += y;
        right += sum == expected;
    }
    schedule_set(0);
    return right;
}

static void test_wrong_results() {
    if (RACE) return;  // which sees the causes
    int right = right_schedules(missing_barrier, 63 * 32);
    CHECK(right < SCHEDULES, "a missing barrier: %d schedules see nothing", right);
    right = right_schedules(missing_barrier_before_reuse, 4 * 63 * 32 + 600 * 64);
    CHECK(right < SCHEDULES, "a missing barrier before reuse: %d schedules see nothing", right);
    device_array<float> x(1), from(counting(4));
    LAUNCH(missing_wait, 1, 1, 0, nullptr, x.p, from.p);
    CHECK(isnan(x.host()[0]), "a missing wait gives %g", (double)x.host()[0]);
}

// Faults of memory

__global__ void beyond_global(float* x, int n) { x[n] = 1; }
__global__ void beyond_shared(float* x) {
    SHARED(float, s, 64);
    float* p = s;
    p[threadIdx.x + 1] = 1;
    x[threadIdx.x] = p[threadIdx.x];
}
__global__ void beyond_dynamic(float* x) {
    DYN_SHARED(float, s);
    s[threadIdx.x] = 1;
    x[threadIdx.x] = s[threadIdx.x];
}
__global__ void misaligned_vector(float* x) { *(int4*)(x + 8) = *(const int4*)(x + 1); }
__global__ void divides_by(float* x, int n) { x[0] = (float)(7 / n); }

static void test_memory_faults() {
    const char* global = RACE ? "out of bounds of device memory" : "use-after-poison";
    const char* shared = RACE ? "out of bounds of shared memory" : "use-after-poison";
    const char* host = RACE ? "host code touches device memory" : "use-after-poison";
    [[maybe_unused]] const char* vector =
        RACE ? "misaligned access: read of 16" : "misaligned address";
    if (RACE || ASAN) {
        FAULT("global", global, LAUNCH(beyond_global, 1, 1, 0, nullptr, x, 64));
        FAULT("global", global, LAUNCH(beyond_global, 1, 1, 0, nullptr, x, -1));
        FAULT("shared", shared, LAUNCH(beyond_shared, 1, 64, 0, nullptr, x));
        FAULT("dynamic", shared, LAUNCH(beyond_dynamic, 1, 64, 255, nullptr, x));
        FAULT("host code", host, x[3] = 1);
#ifndef __clang__  // which copies structures without a check
        FAULT("vector", vector, LAUNCH(misaligned_vector, 1, 1, 0, nullptr, x));
#endif
    } else {
        FAULT("wild pointer", "invalid memory access",
              LAUNCH(beyond_global, 1, 1, 0, nullptr, (float*)16, 64));
        FAULT("division", "integer division by zero", LAUNCH(divides_by, 1, 1, 0, nullptr, x, 0));
    }
}

// Races

__global__ void missing_syncwarp(float* x) {
    SHARED(float, s, 32);
    s[threadIdx.x] = 1;
    x[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void missing_syncwarp_before_ldmatrix(float* x) {
    SHARED(uint4, s, 32);
    uint32_t r[4];
    s[threadIdx.x ^ 1] = make_uint4(threadIdx.x, 1, 2, 3);
    ldmatrix_x4(r, &s[threadIdx.x]);
    x[threadIdx.x] = (float)r[0];
}
__global__ void blocks_write_one_place(float* x) { x[0] = (float)blockIdx.x; }
__global__ void blocks_read_what_others_write(float* x) {
    x[blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x] + 1;
}
__global__ void plain_read_of_a_counter(float* x, int* counter) {
    atomicAdd(counter, 1);
    x[blockIdx.x] = (float)*counter;
}
__global__ void missing_barrier_around_memcpy(float* x) {
    SHARED(float, s, 64);
    float mine[8];
    s[threadIdx.x] = 1;
    memcpy(mine, s + 8, 32);
    x[threadIdx.x] = mine[threadIdx.x % 8];
}
__global__ void copy_into_what_others_read(float* x) {
    SHARED(float4, s, 64);
    s[threadIdx.x] = {};
    __syncthreads();
    float4 v = s[63 - threadIdx.x];
    cp_async_16(&s[threadIdx.x], x);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    if (!threadIdx.x) x[0] = v.x;
}

__global__ void writes_to_a_neighbours_variable(float* x) {
    SHARED(float*, address, 1);
    float mine = 0;
    if (threadIdx.x == 0) address[0] = &mine;
    __syncthreads();
    if (threadIdx.x == 1) *address[0] = 1;
    __syncthreads();
    x[threadIdx.x] = mine;
}

static void test_races() {
    if (!RACE) return;
    FAULT("barrier", "race on shared memory: ", LAUNCH(missing_barrier, 1, 64, 0, nullptr, x));
    FAULT("its places", " at test_shim.cc:", LAUNCH(missing_barrier, 1, 64, 0, nullptr, x));
    FAULT("barrier before reuse",
          "race on shared memory: ", LAUNCH(missing_barrier_before_reuse, 1, 64, 0, nullptr, x));
    FAULT("syncwarp", "race on shared memory: ", LAUNCH(missing_syncwarp, 1, 32, 0, nullptr, x));
    FAULT("ldmatrix", "race on shared memory: ",
          LAUNCH(missing_syncwarp_before_ldmatrix, 1, 32, 0, nullptr, x));
    FAULT("blocks", "race on global memory: write of 4 bytes by block (1,0,0)",
          LAUNCH(blocks_write_one_place, 3, 1, 0, nullptr, x));
    FAULT("blocks", "by another block at test_shim.cc:",
          LAUNCH(blocks_read_what_others_write, 3, 1, 0, nullptr, x));
    FAULT("counter", "and atomic by another block", int* c; cudaMalloc(&c, 4);
          LAUNCH(plain_read_of_a_counter, 2, 1, 0, nullptr, x, c));
    FAULT("memcpy",
          "race on shared memory: ", LAUNCH(missing_barrier_around_memcpy, 1, 64, 0, nullptr, x));
    FAULT("cp.async",
          "race on shared memory: ", LAUNCH(copy_into_what_others_read, 1, 64, 0, nullptr, x));
    FAULT("another thread's stack", "neither device nor shared memory",
          LAUNCH(writes_to_a_neighbours_variable, 1, 2, 0, nullptr, x));
    FAULT("host pointer", "neither device nor shared memory (a host pointer?): write of 4",
          float y[4];
          LAUNCH(beyond_global, 1, 1, 0, nullptr, y, 1));
}

int main() {
    test_formats();
    test_intrinsics();
    test_launch();
    test_warps();
    test_undefined_lane();
    test_matrices();
    test_copies();
    test_harmless();
    test_memory();
    test_runtime();
    test_faults();
    test_wrong_results();
    test_memory_faults();
    test_races();
    return test_report();
}
