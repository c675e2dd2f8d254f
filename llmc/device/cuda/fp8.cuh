// The handwritten product of fp8 operands, from codes of one byte (operand.cuh):
//
//   C[i][j] = (sum over k of a[i][k] b[j][k]) a_scale[i] b_scale[j] + bias[j], or added to C
//
// with a and b codes of fp8_e4m3 or fp8_e5m2 and scales that are powers of two. The sum of each
// FP8_STEP of k starts from 0 in the tensor cores; these sums are added in order, in fp32, and the
// whole is scaled, which is exact. Then bias and rounding, and blocks of k where C is accumulated,
// as in gemm.cuh. So a row of C has the same bits in every batch here too (N1).
//
// The steps are there because tensor cores may keep few bits of the terms that they add, and of the
// sum, where operands are fp8: Hopper's about 14 (DeepSeek-V3, arXiv 2412.19437, section 3.5.2), by
// wgmma, which is used if it is asked for (matmul.cuh). mma.m16n8k32 is an instruction of Ada;
// ptxas makes conversions and two mma of fp16 of it for Hopper, and so does this file for GPUs
// before Ada.
//
// Both operands lie along k, so that two neighbouring codes are one 16-bit element: slabs and
// fragments are those of gemm.cuh with half of k, and the fragments of mma.m16n8k32.
#ifndef LLMC_CUDA_FP8_CUH
#define LLMC_CUDA_FP8_CUH

#include "gemm.cuh"
#include "operand.cuh"

constexpr int FP8_STEP = 128;  // of k

// Two sets of sums take more registers than gemm.cuh's one. Each slab is one step.
using fp8_large = mma_tile<64, 128, FP8_STEP / 2, 32, 64, 2, 2>;
using fp8_middle = mma_tile<64, 64, FP8_STEP / 2, 32, 32, 3, 2>;
using fp8_small = mma_tile<32, 32, FP8_STEP / 2, 16, 16, 3, 4>;

// By wgmma, which has ended with a step before the next one.
template <int BM, int BLOCKS>
struct fp8_wgmma : wgmma_tile<BM, 64, 3, BLOCKS> {
    static constexpr int AHEAD = 2;
};
using fp8_wgmma_large = fp8_wgmma<128, 2>;
using fp8_wgmma_small = fp8_wgmma<64, 3>;

// ------------------------------------------------------------------------------------------------
// The product of two fragments

// Two codes of A or of B.
template <class A, class B>
struct code_pair {
    uint16_t bits;
};

#if !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 890

struct e4m3 {};
struct e5m2 {};
template <class A, class B>
constexpr float FP8_UNIT = 1;  // of what mma_m16n8k16 of these operands adds up

#define FP8_MMA(A, B)                                                                         \
    template <>                                                                               \
    __device__ inline void mma_m16n8k16<code_pair<A, B>>(float(&d)[4], const uint32_t(&a)[4], \
                                                         const uint32_t(&b)[2]) {             \
        asm volatile("mma.sync.aligned.m16n8k32.row.col.f32." #A "." #B                       \
                     ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"             \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));     \
    }

#else

// Before Ada there is no such instruction. Two codes become two values of fp16, which holds those
// of e5m2, and 2^-8 of those of e4m3: the same digits, under exponents with another bias.
struct e4m3 {
    static constexpr float UNIT = 0x1p8f;
    // `two`: codes in the upper bytes of each half. The magnitude of a NaN, 0x3f80, gets the
    // exponent of fp16's.
    static __device__ inline uint32_t to_fp16(uint32_t two) {
        uint32_t magnitude = two >> 1 & 0x3f803f80u;
        uint32_t nan = (magnitude + 0x00800080u) & 0x40004000u;
        return magnitude | nan | (two & 0x80008000u);
    }
};
struct e5m2 {
    static constexpr float UNIT = 1;
    static __device__ inline uint32_t to_fp16(uint32_t two) { return two; }
};
template <class A, class B>
constexpr float FP8_UNIT = A::UNIT* B::UNIT;

// Codes 0 and 1 of each word, then 2 and 3: k in another order, the same for A and for B.
template <class A, class B>
static __device__ inline void mma_codes(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
    for (int half = 0; half < 2; half++) {
        uint32_t wide_a[4], wide_b[2], select = half ? 0x3424 : 0x1404;  // byte 4: a zero
        for (int i = 0; i < 4; i++) wide_a[i] = A::to_fp16(__byte_perm(a[i], 0, select));
        for (int i = 0; i < 2; i++) wide_b[i] = B::to_fp16(__byte_perm(b[i], 0, select));
        mma_m16n8k16<fp16>(d, wide_a, wide_b);
    }
}
#define FP8_MMA(A, B)                                                                         \
    template <>                                                                               \
    __device__ inline void mma_m16n8k16<code_pair<A, B>>(float(&d)[4], const uint32_t(&a)[4], \
                                                         const uint32_t(&b)[2]) {             \
        mma_codes<A, B>(d, a, b);                                                             \
    }

#endif

// The same of 64 x 32 and 32 x 64 codes (wgmma.cuh).
#define FP8_WGMMA(A, B)                                                                       \
    template <>                                                                               \
    __device__ inline void wgmma<code_pair<A, B>, true, true>(float(&d)[8][4], uint64_t left, \
                                                              uint64_t right) {               \
        WGMMA_ASM("wgmma.mma_async.sync.aligned.m64n64k32.f32." #A "." #B " {" WGMMA_32       \
                  "}, %32, %33, 1, 1, 1;"                                                     \
                  : SUMS_16(0), SUMS_16(4)                                                    \
                  : "l"(left), "l"(right));                                                   \
    }

#define FP8_TYPES(A, B) FP8_MMA(A, B) FP8_WGMMA(A, B)
FP8_TYPES(e4m3, e4m3)
FP8_TYPES(e4m3, e5m2)
FP8_TYPES(e5m2, e4m3)
FP8_TYPES(e5m2, e5m2)
#undef FP8_TYPES
#undef FP8_WGMMA
#undef FP8_MMA

// ------------------------------------------------------------------------------------------------
// The kernel

// x times two powers of two whose product fp32 may not hold: in two factors of nearly one size. A
// sum of codes' products is a multiple of 2^-32, so that x times the first is subnormal only where
// the result is 0.
static __device__ inline float scaled(float x, float a, float b) {
    uint32_t exponents = (float_bits(a) >> 23) + (float_bits(b) >> 23), half = exponents / 2;
    return x * float_from_bits(half << 23) * float_from_bits((exponents - half) << 23);
}

// A warp's sums, from row i0 and column j0 on, times the scales. Those outside of C stay.
template <class TILE>
static __device__ inline void fp8_scale(float (&sum)[TILE::WM / 16][TILE::WN / 8][4],
                                        const product& p, const float* a_scale,
                                        const float* b_scale, int i0, int j0) {
    int lane = threadIdx.x % WARP;
    float of_row[TILE::WM / 8];
#pragma unroll
    for (int i = 0; i < TILE::WM / 8; i++) {
        int row = i0 + i * 8 + lane / 4;
        of_row[i] = row < p.m ? a_scale[row] : 1.0f;
    }
#pragma unroll
    for (int j = 0; j < TILE::WN / 4; j++) {
        int col = j0 + j / 2 * 8 + lane % 4 * 2 + j % 2;
        float of_col = col < p.n ? b_scale[col] : 1.0f;
#pragma unroll
        for (int i = 0; i < TILE::WM / 8; i++) {
            float& x = sum[i / 2][j / 2][i % 2 * 2 + j % 2];
            x = scaled(x, of_row[i], of_col);
        }
    }
}

// As product_mma_kernel. Strides and slabs are of pairs of codes, p.k is of codes. A row's zeros
// fill its last packet, so that all are whole.
template <class A, class B, class TILE>
static __global__ void __launch_bounds__(TILE::THREADS, TILE::BLOCKS)
    product_fp8_kernel(product p, const float* a_scale, const float* b_scale, storage how,
                       float* partial) {
    using T = code_pair<A, B>;
    using SLAB_A = typename TILE::template slab<TILE::BM, true>;
    using SLAB_B = typename TILE::template slab<TILE::BN, true>;
    constexpr int BK = TILE::BK, STAGES = TILE::STAGES;
    static_assert(BK == FP8_STEP / 2 && TILE::AHEAD == STAGES - 1, "a slab is a step");
    DYN_SHARED(packet<T>, memory);
    T* slabs = (T*)memory;
    if (TILE::WGMMA) slabs += -shared_address(slabs) % WGMMA_ALIGN / sizeof(T);
    int i0 = blockIdx.x * TILE::BM, j0 = blockIdx.y * TILE::BN, warp = threadIdx.x / WARP;
    int warp_i = warp / (TILE::BN / TILE::WN) * TILE::WM;
    int warp_j = warp % (TILE::BN / TILE::WN) * TILE::WN;
    int first = blockIdx.z * MMA_BLOCK, k = partial ? min(p.k - first, MMA_BLOCK) : p.k;
    int depth = (k + 15) / 16 * 8, count = (depth + BK - 1) / BK;
    slab_reader<T, SLAB_A, TILE::THREADS, true> a(p.a, p.a_stride / 2, i0, p.m, first / 2);
    slab_reader<T, SLAB_B, TILE::THREADS, true> b(p.b, p.b_stride / 2, j0, p.n, first / 2);
    int column = threadIdx.x % (BK / packet<T>::N) * packet<T>::N;  // that both readers have
    auto fetch = [&](int s, int stage) {
        T *to_a = slabs + stage * (SLAB_A::SIZE + SLAB_B::SIZE), *to_b = to_a + SLAB_A::SIZE;
        if (column + s * BK >= depth) a.rows = b.rows = 0;  // from here on there are zeros
        if (s < count) {
            a.fetch(to_a);
            b.fetch(to_b);
        }
        cp_async_commit();
    };
    float sum[TILE::WM / 16][TILE::WN / 8][4] = {};
    for (int s = 0; s < STAGES - 1; s++) fetch(s, s);
    for (int s = 0, stage = 0; s < count; s++) {
        cp_async_wait<STAGES - 2>();
        if constexpr (TILE::WGMMA) wgmma_shared_written();
        __syncthreads();
        fetch(s + STAGES - 1, stage ? stage - 1 : STAGES - 1);
        const T* slab_a = slabs + stage * (SLAB_A::SIZE + SLAB_B::SIZE);
        float step[TILE::WM / 16][TILE::WN / 8][4] = {};
        if constexpr (TILE::WGMMA)
            wgmma_slabs<TILE, true, true>(step, slab_a, slab_a + SLAB_A::SIZE, warp_i);
        else
            mma_slabs<TILE, true, true>(step, slab_a, slab_a + SLAB_A::SIZE, warp_i, warp_j);
#pragma unroll
        for (int i = 0; i < TILE::WM / 16; i++)
#pragma unroll
            for (int j = 0; j < TILE::WN / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][j][e] += step[i][j][e] * FP8_UNIT<A, B>;
        stage = stage + 1 < STAGES ? stage + 1 : 0;
    }
    fp8_scale<TILE>(sum, p, a_scale, b_scale, i0 + warp_i, j0 + warp_j);
    if (partial) {
        p.c = partial + blockIdx.z * (int64_t)p.m * p.n;
        p.c_stride = p.n;
        p.accumulate = false;
    }
    mma_store<TILE>(p, how, i0 + warp_i, j0 + warp_j, sum);
}

// ------------------------------------------------------------------------------------------------
// Which kernel

template <class A, class B, class TILE>
static void product_fp8_tile(backend* b, const product& p, const coded& x, const coded& y) {
    product_in_blocks<TILE>(b, p, [&](dim3 grid, float* partial) {
        LAUNCH((product_fp8_kernel<A, B, TILE>), grid, dim3(TILE::THREADS),
               (slab_bytes<TILE, true, true>), stream_of(b), p, x.scale, y.scale,
               storage_of(p.c_format), partial);
    });
}

// The largest tile that gives every processor a block.
template <class A, class B>
static void product_fp8_of(backend* b, const product& p, const coded& x, const coded& y) {
    if (context_of(b)->wgmma) {
        if (product_fills(b, p, fp8_wgmma_large::BM, fp8_wgmma_large::BN))
            product_fp8_tile<A, B, fp8_wgmma_large>(b, p, x, y);
        else
            product_fp8_tile<A, B, fp8_wgmma_small>(b, p, x, y);
    } else if (product_fills(b, p, fp8_large::BM, fp8_large::BN))
        product_fp8_tile<A, B, fp8_large>(b, p, x, y);
    else if (product_fills(b, p, fp8_middle::BM, fp8_middle::BN))
        product_fp8_tile<A, B, fp8_middle>(b, p, x, y);
    else
        product_fp8_tile<A, B, fp8_small>(b, p, x, y);
}

// p, all but its operands, of x (m, k) and y (n, k).
static void product_fp8(backend* b, product p, const coded& x, const coded& y) {
    if (p.m == 0 || p.n == 0 || p.k == 0) return;
    p.a = x.codes, p.a_stride = x.stride;
    p.b = y.codes, p.b_stride = y.stride, p.b_transposed = true;
    bool x_e4m3 = x.format == &FORMAT_E4M3, y_e4m3 = y.format == &FORMAT_E4M3;
    if (x_e4m3 && y_e4m3) product_fp8_of<e4m3, e4m3>(b, p, x, y);
    if (x_e4m3 && !y_e4m3) product_fp8_of<e4m3, e5m2>(b, p, x, y);
    if (!x_e4m3 && y_e4m3) product_fp8_of<e5m2, e4m3>(b, p, x, y);
    if (!x_e4m3 && !y_e4m3) product_fp8_of<e5m2, e5m2>(b, p, x, y);
}

#endif
