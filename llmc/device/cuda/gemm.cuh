// The handwritten matrix product. Its order of sums depends on nothing but the product's depth k,
// whatever m, n, the tile, the strides and the number of blocks. So a row of C has the same bits in
// every batch (row independence, N1 of docs/contract.md).
//
//   bf16, fp16  tensor cores: one chain from 0 over k in steps of 16 (zeros beyond k); then bias,
//               then one rounding. An accumulating product has a chain for each MMA_BLOCK of k;
//               their sums are added in order, and then to C. By wgmma, if it is asked for, all
//               products are, of rows however aligned: what the two sum may differ in bits.
//   fp32        FMAs, the order of the CPU device and its bits: one chain over k in blocks of 256
//               whose sums are added in order, then the bias; an accumulating product is one chain
//               that starts from C and has no blocks.
//   tf32        the fp32 kernel with operands rounded as they are read: an exact simulation. The
//               fast tf32 is that of cublaslt.cuh.
//
// Both kernels compute a tile of C a block from slabs of A and B in shared memory, while the next
// slabs are on their way. An operand is a matrix of `outer` (m or n) by k that lies in memory along
// k (rows of k) or along outer (k rows): that is all that a layout is.
#ifndef LLMC_CUDA_GEMM_CUH
#define LLMC_CUDA_GEMM_CUH

#include "wgmma.cuh"

// C = A B, or C += A B: (m, k) times (k, n), fp32 accumulation.
struct product {
    int m, n, k;
    const void* a;     // (m, k) rows; (k, m) rows where a_transposed
    int64_t a_stride;  // elements
    bool a_transposed;
    const void* b;  // (k, n) rows; (n, k) rows where b_transposed
    int64_t b_stride;
    bool b_transposed;
    void* c;  // (m, n)
    int64_t c_stride;
    const format* c_format;  // FP32/TF32: stored as float; BF16, FP16: rounded to nearest
    const float* bias;       // (n), or NULL: added in fp32 before the rounding
    bool accumulate;         // C += (fp32 C only)
    bool forward;            // of a forward pass
    const format* operand;   // FP32; TF32 (stored fp32, both operands rounded to tf32); BF16; FP16
    // The bias once more, as the library takes it; NULL: not there.
    const void* library_bias;
};

// Elements (i, j) and (i, j + 1) of C from their sums; what lies outside C is passed over.
// `pairs`: C takes two elements in one access, at even j.
static __device__ inline void product_store(const product& p, storage how, bool pairs, int i, int j,
                                            float x0, float x1) {
    if (i >= p.m || j >= p.n) return;
    int64_t at = i * p.c_stride + j;
    bool both = j + 1 < p.n;
    if (p.bias) {
        x0 += p.bias[j];
        if (both) x1 += p.bias[j + 1];
    }
    if (how == STORE_FP32) {
        float* c = (float*)p.c + at;
        if (pairs && both) {
            *(float2*)c = make_float2(x0, x1);
        } else {
            c[0] = x0;
            if (both) c[1] = x1;
        }
    } else if (pairs && both) {
        *(uint32_t*)((bf16*)p.c + at) = how == STORE_BF16 ? two<bf16>(x0, x1) : two<fp16>(x0, x1);
    } else if (how == STORE_BF16) {
        bf16* c = (bf16*)p.c + at;
        c[0] = to<bf16>(x0);
        if (both) c[1] = to<bf16>(x1);
    } else {
        fp16* c = (fp16*)p.c + at;
        c[0] = to<fp16>(x0);
        if (both) c[1] = to<fp16>(x1);
    }
}

static __host__ __device__ inline bool product_pairs(const product& p, storage how) {
    return p.c_stride % 2 == 0 && (uintptr_t)p.c % (how == STORE_FP32 ? 8 : 4) == 0;
}

// ------------------------------------------------------------------------------------------------
// 16-bit operands: tensor cores

// A slab of an operand in shared memory. Rows are 16 bytes longer than a multiple of 64 bytes, so
// that the eight rows of an ldmatrix fall onto different banks.
template <int OUTER, int BK, bool ALONG_K>
struct mma_slab {
    static constexpr int ROWS = ALONG_K ? OUTER : BK, COLS = ALONG_K ? BK : OUTER;
    static constexpr int STRIDE = COLS + 8, SIZE = ROWS * STRIDE;
    static __host__ __device__ constexpr int place(int row, int col) { return row * STRIDE + col; }
};

// A block's tile of C and its slabs of k; a warp has WM x WN of the tile. STAGES: slabs in shared
// memory, one in use, the others on their way. BLOCKS: that a processor is to hold at a time, since
// one's first slabs and last stores take as long as many slabs between.
template <int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_, int BLOCKS_>
struct mma_tile {
    static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_;
    static constexpr int THREADS = BM / WM * (BN / WN) * WARP, STAGES = STAGES_, BLOCKS = BLOCKS_;
    static constexpr int AHEAD = STAGES - 1;  // slabs fetched before they are multiplied
    static constexpr bool WGMMA = false;
    template <int OUTER, bool ALONG_K>
    using slab = mma_slab<OUTER, BK, ALONG_K>;
};
using mma_large = mma_tile<128, 128, 64, 64, 64, 2, 3>;
using mma_middle = mma_tile<64, 64, 32, 32, 32, 3, 4>;
using mma_small = mma_tile<32, 32, 64, 16, 16, 3, 4>;

// The same by wgmma, for which 64 rows are the least: the slab before the one in use may still be
// read. That m64n128 and m64n64 add k in one order NVIDIA does not say; test_cuda_matmul compares
// them.
template <int BM, int BN, int STAGES, int BLOCKS>
struct wgmma_tile : mma_tile<BM, BN, 64, 16, BN, STAGES, BLOCKS> {
    static constexpr int AHEAD = STAGES - 2;
    static constexpr bool WGMMA = true;
    template <int OUTER, bool ALONG_K>
    using slab = wgmma_slab<OUTER, 64, ALONG_K>;
};
using wgmma_large = wgmma_tile<128, 128, 3, 2>;
using wgmma_small = wgmma_tile<64, 64, 4, 3>;

constexpr int MMA_BLOCK = 4096;  // of k in accumulating products, whose k is the rows of a batch

// A packet of a row from col on, of which `cols` exist, zeros beyond.
template <class T>
static __device__ inline packet<T> packet_gather(const T* row, int col, int cols) {
    packet<T> x;
    for (int e = 0; e < packet<T>::N; e++) x.v[e] = col + e < cols ? row[col + e] : to<T>(0.0f);
    return x;
}

// Starts the copy of a slab whose first element is (row0, col0) of `from`, a matrix of rows x cols;
// zeros beyond it. ALIGNED: its rows start at multiples of 16 bytes. For slabs at the matrix's end.
template <class T, class SLAB, int THREADS, bool ALIGNED>
static __device__ inline void mma_fetch(T* slab, const T* from, int64_t stride, int row0, int col0,
                                        int rows, int cols) {
    constexpr int EACH = packet<T>::N, PACKETS = SLAB::COLS / EACH;
    static_assert(SLAB::ROWS * PACKETS % THREADS == 0, "every thread copies as much");
#pragma unroll
    for (int i = threadIdx.x; i < SLAB::ROWS * PACKETS; i += THREADS) {
        int r = i / PACKETS, c = i % PACKETS * EACH, row = row0 + r, col = col0 + c;
        const T* source = from + row * stride;
        T* target = slab + SLAB::place(r, c);
        bool exists = row < rows && col < cols;
        if (ALIGNED && (col + EACH <= cols || !exists))
            cp_async_16(target, source + col, exists);
        else
            packet_store(target, packet_gather(source, col, exists ? cols : 0));
    }
}

// Copies slabs that end within k, one after the other. A thread has one column of each and every
// EVERY-th row, so what exists is known before the first. Packets along outer must be whole.
template <class T, class SLAB, int THREADS, bool ALONG_K>
struct slab_reader {
    static constexpr int PACKETS = SLAB::COLS / packet<T>::N, EVERY = THREADS / PACKETS;
    static_assert(SLAB::ROWS % EVERY == 0, "every thread copies as much");
    static_assert(SLAB::place(EVERY, 0) == EVERY * SLAB::STRIDE);
    const T* next;
    int64_t every, slab;  // elements from row to row, and from slab to slab
    int rows;             // of the thread's that exist
    int at;               // of the thread's first packet in a slab

    __device__ slab_reader(const void* matrix, int64_t stride, int outer0, int outers, int k0) {
        int r = threadIdx.x / PACKETS, c = threadIdx.x % PACKETS * packet<T>::N;
        const T* from = (const T*)matrix;
        next =
            ALONG_K ? from + (outer0 + r) * stride + k0 + c : from + (k0 + r) * stride + outer0 + c;
        every = EVERY * stride;
        slab = ALONG_K ? SLAB::COLS : SLAB::ROWS * stride;
        rows = ALONG_K               ? (outers - outer0 - r + EVERY - 1) / EVERY
               : outer0 + c < outers ? SLAB::ROWS
                                     : 0;
        at = SLAB::place(r, c);
    }
    __device__ void fetch(T* to) {
#pragma unroll
        for (int j = 0; j < SLAB::ROWS / EVERY; j++)
            cp_async_16(to + at + j * EVERY * SLAB::STRIDE, next + j * every, j < rows);
        next += slab;
    }
};

// The 16 x 16 elements of a slab from (outer, k) on, as four 8 x 8 matrices: the second differs
// from the first by 8 in outer (OUTER_FIRST) or in k, the third in the other.
template <class SLAB, bool ALONG_K, bool OUTER_FIRST, class T>
static __device__ inline void mma_fragment(uint32_t (&r)[4], const T* slab, int outer, int k) {
    int lane = threadIdx.x % WARP, row = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    outer += OUTER_FIRST ? first : second;
    k += OUTER_FIRST ? second : first;
    if (ALONG_K)
        ldmatrix_x4(r, slab + (outer + row) * SLAB::STRIDE + k);
    else
        ldmatrix_x4_trans(r, slab + (k + row) * SLAB::STRIDE + outer);
}

// acc += the product of two slabs, for this warp's part of the tile.
template <class TILE, bool A_ALONG_K, bool B_ALONG_K, class T>
static __device__ inline void mma_slabs(float (&acc)[TILE::WM / 16][TILE::WN / 8][4],
                                        const T* slab_a, const T* slab_b, int i0, int j0) {
    using A = typename TILE::template slab<TILE::BM, A_ALONG_K>;
    using B = typename TILE::template slab<TILE::BN, B_ALONG_K>;
#pragma unroll
    for (int k = 0; k < TILE::BK; k += 16) {
        uint32_t a[TILE::WM / 16][4], b[TILE::WN / 16][4];
#pragma unroll
        for (int i = 0; i < TILE::WM / 16; i++)
            mma_fragment<A, A_ALONG_K, true>(a[i], slab_a, i0 + i * 16, k);
#pragma unroll
        for (int j = 0; j < TILE::WN / 16; j++)
            mma_fragment<B, B_ALONG_K, false>(b[j], slab_b, j0 + j * 16, k);
#pragma unroll
        for (int i = 0; i < TILE::WM / 16; i++)
#pragma unroll
            for (int j = 0; j < TILE::WN / 8; j++) {
                const uint32_t half[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                mma_m16n8k16<T>(acc[i][j], a[i], half);
            }
    }
}

// The same by wgmma, which goes on; the products of slabs that may be fetched over have ended.
template <class TILE, bool A_ALONG_K, bool B_ALONG_K, class T>
static __device__ inline void wgmma_slabs(float (&acc)[1][TILE::BN / 8][4], const T* slab_a,
                                          const T* slab_b, int i0) {
    using A = typename TILE::template slab<TILE::BM, A_ALONG_K>;
    using B = typename TILE::template slab<TILE::BN, B_ALONG_K>;
    uint64_t a = A::descriptor(slab_a) + A::step(i0 / 64 * 64, 0), b = B::descriptor(slab_b);
    wgmma_begin(acc[0]);
#pragma unroll
    for (int k = 0; k < TILE::BK; k += 16)
        wgmma<T, A_ALONG_K, B_ALONG_K>(acc[0], a + A::step(0, k), b + B::step(0, k));
    wgmma_commit();
    wgmma_wait<TILE::STAGES - 1 - TILE::AHEAD>(acc[0]);
}

static __device__ inline void store_pair(float* c, float x0, float x1) {
    *(float2*)c = make_float2(x0, x1);
}
template <class T>
static __device__ inline void store_pair(T* c, float x0, float x1) {
    *(uint32_t*)c = two<T>(x0, x1);
}

// A warp's part of the tile to C, from row i0 and column j0 on, where all of it is there, in pairs.
template <class C, class TILE>
static __device__ inline void mma_store_inside(const product& p, int i0, int j0,
                                               const float (&acc)[TILE::WM / 16][TILE::WN / 8][4]) {
    int lane = threadIdx.x % WARP, row = i0 + lane / 4, col = j0 + lane % 4 * 2;
    float more[TILE::WN / 8][2] = {};  // what is added to the sums: the bias, or C
#pragma unroll
    for (int j = 0; p.bias && j < TILE::WN / 8; j++)
        for (int e = 0; e < 2; e++) more[j][e] = p.bias[col + j * 8 + e];
#pragma unroll
    for (int i = 0; i < TILE::WM / 8; i++) {
        C* c = (C*)p.c + (row + i * 8) * p.c_stride + col;
#pragma unroll
        for (int j = 0; p.accumulate && j < TILE::WN / 8; j++)
            for (int e = 0; e < 2; e++) more[j][e] = to_float(c[j * 8 + e]);
#pragma unroll
        for (int j = 0; j < TILE::WN / 8; j++) {
            const float* sum = acc[i / 2][j] + i % 2 * 2;
            store_pair(c + j * 8, sum[0] + more[j][0], sum[1] + more[j][1]);
        }
    }
}

// The same, of whatever is there.
template <class TILE>
static __device__ inline void mma_store(const product& p, storage how, int i0, int j0,
                                        const float (&acc)[TILE::WM / 16][TILE::WN / 8][4]) {
    int lane = threadIdx.x % WARP;
    bool pairs = product_pairs(p, how);
    if (pairs && i0 + TILE::WM <= p.m && j0 + TILE::WN <= p.n) {
        if (how == STORE_FP32) return mma_store_inside<float, TILE>(p, i0, j0, acc);
        if (how == STORE_BF16) return mma_store_inside<bf16, TILE>(p, i0, j0, acc);
        return mma_store_inside<fp16, TILE>(p, i0, j0, acc);
    }
#pragma unroll
    for (int i = 0; i < TILE::WM / 16; i++)
#pragma unroll
        for (int j = 0; j < TILE::WN / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = i0 + i * 16 + h * 8 + lane / 4, col = j0 + j * 8 + lane % 4 * 2;
                float x0 = acc[i][j][2 * h], x1 = acc[i][j][2 * h + 1];
                if (p.accumulate && row < p.m) {
                    const float* c = (const float*)p.c + row * p.c_stride + col;
                    if (col < p.n) x0 += c[0];
                    if (col + 1 < p.n) x1 += c[1];
                }
                product_store(p, how, pairs, row, col, x0, x1);
            }
}

// Slabs are fetched AHEAD of the one that is multiplied: one barrier a slab, which both shows the
// arrived slab to all and says that the one fetched over is done with.
//
// partial: NULL, or room for the sums of all blocks of k, (blocks, m, n), of which blockIdx.z is
// one.
template <class T, class TILE, bool A_ALONG_K, bool B_ALONG_K, bool ALIGNED>
static __global__ void __launch_bounds__(TILE::THREADS, TILE::BLOCKS)
    product_mma_kernel(product p, storage how, float* partial) {
    using A = typename TILE::template slab<TILE::BM, A_ALONG_K>;
    using B = typename TILE::template slab<TILE::BN, B_ALONG_K>;
    constexpr int BK = TILE::BK, THREADS = TILE::THREADS, STAGES = TILE::STAGES;
    constexpr int AHEAD = TILE::AHEAD;
    DYN_SHARED(packet<T>, memory);
    T* slabs = (T*)memory;
    if (TILE::WGMMA) slabs += -shared_address(slabs) % WGMMA_ALIGN / sizeof(T);
    int i0 = blockIdx.x * TILE::BM, j0 = blockIdx.y * TILE::BN, warp = threadIdx.x / WARP;
    int warp_i = warp / (TILE::BN / TILE::WN) * TILE::WM;
    int warp_j = warp % (TILE::BN / TILE::WN) * TILE::WN;
    int k0 = blockIdx.z * MMA_BLOCK, depth = partial ? min(p.k - k0, MMA_BLOCK) : p.k;
    int count = (depth + BK - 1) / BK;
    bool whole_packets = ALIGNED && (A_ALONG_K || p.m % 8 == 0 || i0 + TILE::BM <= p.m) &&
                         (B_ALONG_K || p.n % 8 == 0 || j0 + TILE::BN <= p.n);
    int whole = whole_packets ? depth / BK : 0;
    slab_reader<T, A, THREADS, A_ALONG_K> a(p.a, p.a_stride, i0, p.m, k0);
    slab_reader<T, B, THREADS, B_ALONG_K> b(p.b, p.b_stride, j0, p.n, k0);
    auto fetch = [&](int s, int stage) {
        T *to_a = slabs + stage * (A::SIZE + B::SIZE), *to_b = to_a + A::SIZE;
        if (s < whole) {
            a.fetch(to_a);
            b.fetch(to_b);
        } else if (s < count) {
            int k = k0 + s * BK, end = k0 + depth;
            mma_fetch<T, A, THREADS, ALIGNED>(to_a, (const T*)p.a, p.a_stride, A_ALONG_K ? i0 : k,
                                              A_ALONG_K ? k : i0, A_ALONG_K ? p.m : end,
                                              A_ALONG_K ? end : p.m);
            mma_fetch<T, B, THREADS, ALIGNED>(to_b, (const T*)p.b, p.b_stride, B_ALONG_K ? j0 : k,
                                              B_ALONG_K ? k : j0, B_ALONG_K ? p.n : end,
                                              B_ALONG_K ? end : p.n);
        }
        cp_async_commit();  // an empty group too: the count of groups is that of slabs
    };
    float acc[TILE::WM / 16][TILE::WN / 8][4] = {};
    for (int s = 0; s < AHEAD; s++) fetch(s, s);
    for (int s = 0, stage = 0; s < count; s++) {
        cp_async_wait<AHEAD - 1>();
        if constexpr (TILE::WGMMA) wgmma_shared_written();
        __syncthreads();
        fetch(s + AHEAD, stage + AHEAD < STAGES ? stage + AHEAD : stage + AHEAD - STAGES);
        const T *slab_a = slabs + stage * (A::SIZE + B::SIZE), *slab_b = slab_a + A::SIZE;
        if constexpr (TILE::WGMMA)
            wgmma_slabs<TILE, A_ALONG_K, B_ALONG_K>(acc, slab_a, slab_b, warp_i);
        else
            mma_slabs<TILE, A_ALONG_K, B_ALONG_K>(acc, slab_a, slab_b, warp_i, warp_j);
        stage = stage + 1 < STAGES ? stage + 1 : 0;
    }
    if constexpr (TILE::WGMMA) wgmma_wait<0>(acc[0]);
    if (partial) {
        p.c = partial + blockIdx.z * (int64_t)p.m * p.n;
        p.c_stride = p.n;
        p.accumulate = false;
    }
    mma_store<TILE>(p, how, i0 + warp_i, j0 + warp_j, acc);
}

// c += the sums of `blocks` blocks of k, added in order. A block a row.
static __global__ void add_partial(float* c, int64_t c_stride, const float* partial, int blocks,
                                   int n) {
    int64_t row = blockIdx.x, block = (int64_t)gridDim.x * n;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        float sum = partial[row * n + j];
        for (int b = 1; b < blocks; b++) sum += partial[b * block + row * n + j];
        c[row * c_stride + j] = sum + c[row * c_stride + j];
    }
}

// ------------------------------------------------------------------------------------------------
// fp32 operands: FMAs. A block of 16 x 16 threads computes 16 MT x 64 elements of C, a thread MT x
// 4 of them.

constexpr int FMA_SLAB = 16, FMA_BLOCK_THREADS = 256, FMA_COLS = 4, FMA_BN = 16 * FMA_COLS;
constexpr int FMA_BLOCK = 256;  // the contract's k-block

// A slab is [k][outer]; rows are 16 bytes longer, which keeps packets aligned and spreads the
// writes of a slab along k over the banks.
template <int OUTER>
struct fma_slab {
    static constexpr int STRIDE = OUTER + 4, SIZE = FMA_SLAB * STRIDE;
    static constexpr int EACH = FMA_SLAB * OUTER / FMA_BLOCK_THREADS;  // elements a thread carries
};

// Where the thread's i-th element of a slab belongs, so that neighbours read neighbours.
template <int OUTER, bool ALONG_K>
static __device__ inline void fma_place(int i, int* outer, int* k) {
    int e = threadIdx.x + i * FMA_BLOCK_THREADS;
    *outer = ALONG_K ? e / FMA_SLAB : e % OUTER;
    *k = ALONG_K ? e % FMA_SLAB : e / OUTER;
}

// The thread's elements of the slab from (outer0, k0) on; zeros beyond `outers` and `depth`.
template <int OUTER, bool ALONG_K>
static __device__ inline void fma_fetch(float (&x)[fma_slab<OUTER>::EACH], const float* from,
                                        int64_t stride, int outer0, int k0, int outers, int depth,
                                        bool tf32) {
#pragma unroll
    for (int i = 0; i < fma_slab<OUTER>::EACH; i++) {
        int outer, k;
        fma_place<OUTER, ALONG_K>(i, &outer, &k);
        outer += outer0;
        k += k0;
        x[i] = 0;
        if (outer < outers && k < depth)
            x[i] = ALONG_K ? from[outer * stride + k] : from[k * stride + outer];
        if (tf32) x[i] = round_tf32(x[i]);
    }
}

template <int OUTER, bool ALONG_K>
static __device__ inline void fma_put(float* slab, const float (&x)[fma_slab<OUTER>::EACH]) {
#pragma unroll
    for (int i = 0; i < fma_slab<OUTER>::EACH; i++) {
        int outer, k;
        fma_place<OUTER, ALONG_K>(i, &outer, &k);
        slab[k * fma_slab<OUTER>::STRIDE + outer] = x[i];
    }
}

// acc goes on over the first `depth` steps of a slab: not over the zeros beyond, which would turn
// a chain at -0 into +0.
template <int MT>
static __device__ inline void fma_slabs(float (&acc)[MT][FMA_COLS], const float* a, const float* b,
                                        int depth) {
#pragma unroll 8
    for (int k = 0; k < depth; k++) {
        packet<float> x[MT / 4], y = packet_load(b + k * fma_slab<FMA_BN>::STRIDE);
#pragma unroll
        for (int i = 0; i < MT / 4; i++)
            x[i] = packet_load(a + k * fma_slab<16 * MT>::STRIDE + 4 * i);
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int j = 0; j < FMA_COLS; j++)
                acc[i][j] = num_fma(x[i / 4].v[i % 4], y.v[j], acc[i][j]);
    }
}

// The end of a k-block: its sum is added to those before; the first is taken as it is.
template <int MT>
static __device__ inline void fma_fold(float (&sum)[MT][FMA_COLS], float (&acc)[MT][FMA_COLS],
                                       bool first) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < FMA_COLS; j++) {
            sum[i][j] = first ? acc[i][j] : sum[i][j] + acc[i][j];
            acc[i][j] = 0;
        }
}

// Where chains start: from C, or from 0.
template <int MT>
static __device__ inline void fma_start(float (&acc)[MT][FMA_COLS], const product& p, int i0,
                                        int j0) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < FMA_COLS; j++) {
            bool carries = p.accumulate && i0 + i < p.m && j0 + j < p.n;
            acc[i][j] = carries ? ((const float*)p.c)[(i0 + i) * p.c_stride + j0 + j] : 0;
        }
}

// The next slabs come into registers while those in shared memory are multiplied, and go into the
// other half of it.
template <int MT, bool A_ALONG_K, bool B_ALONG_K>
static __global__ void __launch_bounds__(FMA_BLOCK_THREADS, MT == 4 ? 2 : 1)
    product_fma_kernel(product p, storage how, bool tf32) {
    constexpr int BM = 16 * MT, SIZE_A = fma_slab<BM>::SIZE, SIZE_B = fma_slab<FMA_BN>::SIZE;
    __shared__ packet<float> memory[(SIZE_A + SIZE_B) / 2];
    float *slab_a = (float*)memory, *slab_b = slab_a + 2 * SIZE_A;
    int i0 = blockIdx.x * BM, j0 = blockIdx.y * FMA_BN;
    int row = threadIdx.x / 16 * MT, col = threadIdx.x % 16 * FMA_COLS;
    int count = (p.k + FMA_SLAB - 1) / FMA_SLAB;
    float next_a[fma_slab<BM>::EACH], next_b[fma_slab<FMA_BN>::EACH];
    auto fetch = [&](int s) {
        fma_fetch<BM, A_ALONG_K>(next_a, (const float*)p.a, p.a_stride, i0, s * FMA_SLAB, p.m, p.k,
                                 tf32);
        fma_fetch<FMA_BN, B_ALONG_K>(next_b, (const float*)p.b, p.b_stride, j0, s * FMA_SLAB, p.n,
                                     p.k, tf32);
    };
    float acc[MT][FMA_COLS], sum[MT][FMA_COLS] = {};
    fma_start(acc, p, i0 + row, j0 + col);
    fetch(0);
    for (int s = 0; s < count; s++) {
        int half = s % 2, done = (s + 1) * FMA_SLAB;
        fma_put<BM, A_ALONG_K>(slab_a + half * SIZE_A, next_a);
        fma_put<FMA_BN, B_ALONG_K>(slab_b + half * SIZE_B, next_b);
        __syncthreads();  // after it nobody reads the half that the next turn writes
        if (s + 1 < count) fetch(s + 1);
        fma_slabs<MT>(acc, slab_a + half * SIZE_A + row, slab_b + half * SIZE_B + col,
                      done < p.k ? FMA_SLAB : p.k - s * FMA_SLAB);
        if (s + 1 == count || (done % FMA_BLOCK == 0 && !p.accumulate))
            fma_fold(sum, acc, done <= FMA_BLOCK || p.accumulate);
    }
    bool pairs = product_pairs(p, how);
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < FMA_COLS; j += 2)
            product_store(p, how, pairs, i0 + row + i, j0 + col + j, sum[i][j], sum[i][j + 1]);
}

// ------------------------------------------------------------------------------------------------
// Which kernel

// Whether rows of 16-bit elements start at multiples of 16 bytes.
static inline bool rows_aligned(const void* data, int64_t stride) {
    return (uintptr_t)data % 16 == 0 && stride % 8 == 0;
}

static inline dim3 product_grid(const product& p, int bm, int bn) {
    return dim3(blocks_for(p.m, bm), blocks_for(p.n, bn));
}

// Blocks of k, each with sums of its own.
static inline int product_blocks(const product& p) {
    bool mma = storage_of(p.operand) != STORE_FP32;
    return mma && p.accumulate ? blocks_for(p.k, MMA_BLOCK) : 1;
}

// Whether tiles of this size are enough for every processor to have one.
static inline bool product_fills(backend* b, const product& p, int bm, int bn) {
    int64_t tiles = (int64_t)blocks_for(p.m, bm) * blocks_for(p.n, bn);
    return tiles * product_blocks(p) >= context_of(b)->processors;
}

// Runs the statements with A_ALONG_K and B_ALONG_K the layout of a product.
#define WITH_LAYOUT(p, ...)                                      \
    do {                                                         \
        if (!(p).a_transposed && (p).b_transposed) {             \
            constexpr bool A_ALONG_K = true, B_ALONG_K = true;   \
            __VA_ARGS__;                                         \
        } else if (!(p).a_transposed) {                          \
            constexpr bool A_ALONG_K = true, B_ALONG_K = false;  \
            __VA_ARGS__;                                         \
        } else if (!(p).b_transposed) {                          \
            constexpr bool A_ALONG_K = false, B_ALONG_K = false; \
            __VA_ARGS__;                                         \
        } else {                                                 \
            fatal("a product of two transposed matrices");       \
        }                                                        \
    } while (0)

// Bytes of shared memory for a tile's slabs, of elements of 16 bits.
template <class TILE, bool A_ALONG_K, bool B_ALONG_K>
constexpr size_t slab_bytes = TILE::STAGES * sizeof(uint16_t) *
                                  (TILE::template slab<TILE::BM, A_ALONG_K>::SIZE +
                                   TILE::template slab<TILE::BN, B_ALONG_K>::SIZE) +
                              (TILE::WGMMA ? WGMMA_ALIGN : 0);

// Calls launch(grid, partial): NULL, or where k has several blocks, room for their sums, which are
// added to C after it.
template <class TILE, class F>
static void product_in_blocks(backend* b, const product& p, F launch) {
    dim3 grid = product_grid(p, TILE::BM, TILE::BN);
    grid.z = product_blocks(p);
    float* partial = NULL;
    if (grid.z > 1)
        partial = (float*)cuda_scratch(b, SCRATCH_PARTIAL, sizeof(float) * grid.z * p.m * p.n);
    launch(grid, partial);
    if (partial)
        LAUNCH(add_partial, dim3(p.m), dim3(256), 0, stream_of(b), (float*)p.c, p.c_stride, partial,
               (int)grid.z, p.n);
}

template <class T, class TILE, bool ALIGNED>
static void product_mma_tile(backend* b, const product& p) {
    product_in_blocks<TILE>(b, p, [&](dim3 grid, float* partial) {
        WITH_LAYOUT(p, LAUNCH((product_mma_kernel<T, TILE, A_ALONG_K, B_ALONG_K, ALIGNED>), grid,
                              dim3(TILE::THREADS), (slab_bytes<TILE, A_ALONG_K, B_ALONG_K>),
                              stream_of(b), p, storage_of(p.c_format), partial));
    });
}

// The largest tile that gives every processor a block; rows that no 16-byte access fits have a
// middle one.
template <class T>
static void product_mma(backend* b, const product& p) {
    bool aligned = rows_aligned(p.a, p.a_stride) && rows_aligned(p.b, p.b_stride);
    if (context_of(b)->wgmma) {
        if (!aligned)
            product_mma_tile<T, wgmma_small, false>(b, p);
        else if (product_fills(b, p, wgmma_large::BM, wgmma_large::BN))
            product_mma_tile<T, wgmma_large, true>(b, p);
        else
            product_mma_tile<T, wgmma_small, true>(b, p);
    } else if (!aligned)
        product_mma_tile<T, mma_middle, false>(b, p);
    else if (product_fills(b, p, mma_large::BM, mma_large::BN))
        product_mma_tile<T, mma_large, true>(b, p);
    else if (product_fills(b, p, mma_middle::BM, mma_middle::BN))
        product_mma_tile<T, mma_middle, true>(b, p);
    else
        product_mma_tile<T, mma_small, true>(b, p);
}

template <int MT>
static void product_fma_tile(backend* b, const product& p) {
    WITH_LAYOUT(p, LAUNCH((product_fma_kernel<MT, A_ALONG_K, B_ALONG_K>),
                          product_grid(p, 16 * MT, FMA_BN), dim3(FMA_BLOCK_THREADS), 0,
                          stream_of(b), p, storage_of(p.c_format), p.operand == &FORMAT_TF32));
}

static void product_fma(backend* b, const product& p) {
    if (product_fills(b, p, 128, FMA_BN))
        product_fma_tile<8>(b, p);
    else
        product_fma_tile<4>(b, p);
}

static void product_handwritten(backend* b, const product& p) {
    switch (storage_of(p.operand)) {
        case STORE_FP32:
            product_fma(b, p);
            break;
        case STORE_BF16:
            product_mma<bf16>(b, p);
            break;
        case STORE_FP16:
            product_mma<fp16>(b, p);
            break;
    }
}

#endif
