// Causal attention within each sequence of a packed batch, forward and backward: flash attention
// (Dao, arXiv 2307.08691). The matrix of scores never exists as a whole: a block holds one tile of
// queries and walks over the keys that they see, a step at a time; the softmax is kept up by
// rescaling what has been summed whenever a row's maximum grows.
//
// Backward recomputes the scores from stats = {max, sum}. Three kernels, no atomics:
//   backward_rows  dout . out of every row and head, beside the row's stats;
//   backward_keys  a tile of keys of a key head: dK and dV, summed over its query heads in order,
//                  and for each over the queries that see them;
//   backward_queries  a tile of queries: dQ, summed over the keys they see.
//
// Each exists twice. _mma: bf16 and fp16 with head_dim up to 128, on tensor cores; a warp owns 16
// of its tile's 64 rows. _fma: fp32 and tf32, and head_dim up to 256 in any type; operands lie in
// shared memory as fp32, rounded as products want them, and a thread owns a few rows and columns of
// each product. In both the rounding points are those of cpu/attention.c: q, k, v, dout, p and ds
// are rounded to the operands' format; sums and everything in between are fp32.
//
// Tiles count from the start of their sequence, and steps from its first key, which may lie in its
// prefix, or from the tile's first position (queries), so a sequence's bits do not depend on its
// neighbours. The queries of sequences that continue another follow its own. Rows beyond the last
// one and columns beyond head_dim are zeros in shared memory.
#ifndef LLMC_CUDA_ATTENTION_CUH
#define LLMC_CUDA_ATTENTION_CUH

#include "cuda.cuh"

// ------------------------------------------------------------------------------------------------
// What all kernels share

// How operands of products are rounded.
enum rounding : uint8_t { ROUND_NONE, ROUND_TF32, ROUND_BF16, ROUND_FP16 };

static inline rounding rounding_of(const format* f) {
    switch (storage_of(f)) {
        case STORE_BF16:
            return ROUND_BF16;
        case STORE_FP16:
            return ROUND_FP16;
        default:
            return f == &FORMAT_TF32 ? ROUND_TF32 : ROUND_NONE;
    }
}

// exp(s scale - max) = 2^(s scale log2 e - max log2 e), by the hardware's approximation (2 units in
// the last place): on tensor cores it becomes a 16-bit operand.
constexpr float LOG2_E = 1.44269504f;
static __device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ inline float rounded(float x, rounding how) {
    if (how == ROUND_TF32) return round_tf32(x);
    if (how == ROUND_BF16) return to_float(to<bf16>(x));
    if (how == ROUND_FP16) return to_float(to<fp16>(x));
    return x;
}

// What backward needs of a query and head: {max, 1 / sum, dout . out, -max log2 e}.
typedef packet<float> query_stats;

// Row r begins at data + r * stride.
template <class T>
struct matrix {
    T* data;
    int64_t stride;
};
template <class T>
static matrix<T> matrix_of(const tensor& t) {
    return {(T*)t.data, t.stride};
}

// The arguments of all kernels.
template <class T>
struct attention_call {
    matrix<T> qkv, dqkv;   // (rows, (heads + 2 * key_heads) * head_dim)
    matrix<T> out, dout;   // (rows, heads * head_dim)
    float* stats;          // (rows, heads, 2): {max, sum}
    query_stats* queries;  // (heads, rows)
    packing pack;          // arrays on the device
    int rows, heads, key_heads, head_dim;
    float scale;  // 1 / sqrt(head_dim)
    rounding operand;
    bool packed;  // every head of every row can be moved 16 bytes at a time
};
// nvcc takes the address of a parameter that is larger, which the PTX machine refuses.
static_assert(sizeof(attention_call<float>) <= 128);

// Where a block works: a sequence's number, first row and length, and the first position of the
// tile; of its prefix, the first row, and how many.
struct tile_place {
    int sequence, start, length, first, before, shared;
};

// The place of a tile. Sequence s owns the numbers from start[s] / tile + s on: these grow with s,
// and there are enough for the sequence's length. A number too many has first >= length.
static __device__ inline tile_place place_of(const packing& pack, int number, int tile) {
    int s = 0, beyond = pack.sequences;
    while (beyond - s > 1) {
        int middle = (s + beyond) / 2;
        if (pack.start[middle] / tile + middle <= number)
            s = middle;
        else
            beyond = middle;
    }
    int start = pack.start[s], prefix = pack.prefix ? pack.prefix[s] : -1;
    tile_place at = {s, start, pack.start[s + 1] - start, (number - start / tile - s) * tile, 0, 0};
    if (prefix >= 0) {
        at.before = pack.start[prefix];
        at.shared = pack.start[prefix + 1] - at.before;
    }
    return at;
}

// Rows from the sequence's first one on whose queries see its keys: its own, and those of the
// sequences that continue it.
static __device__ inline int seeing_rows(const packing& pack, const tile_place& at) {
    int last = at.sequence, beyond = pack.prefix ? pack.sequences : last + 1;
    while (beyond - last > 1) {
        int middle = (last + beyond) / 2;
        if (pack.prefix[middle] == at.sequence)
            last = middle;
        else
            beyond = middle;
    }
    return pack.start[last + 1] - at.start;
}

static inline dim3 tile_grid(int rows, int sequences, int heads, int tile) {
    return dim3(rows / tile + sequences, heads);
}

// What a row holds one after another; out and dout have the queries' columns only.
enum row_part { Q_PART, K_PART, V_PART };

// The first column of a head: a query head, or a key head.
template <class T>
static __device__ inline int column_of(const attention_call<T>& x, row_part part, int head) {
    int before = part == Q_PART ? 0 : x.heads + (part == V_PART ? x.key_heads : 0);
    return (before + head) * x.head_dim;
}

// A head of the block's sequence, from the sequence's first row on.
template <class T>
static __device__ inline matrix<T> head_of(matrix<T> m, const attention_call<T>& x,
                                           const tile_place& at, row_part part, int head) {
    return {m.data + at.start * m.stride + column_of(x, part, head), m.stride};
}
template <class T>
static __device__ inline T* row_at(const matrix<T>& m, int r) {
    return m.data + r * m.stride;
}

// The same for the keys that the sequence sees: those of the prefix, then its own. Row j is key
// j's, and lies `ahead` elements further on where j < shared.
template <class T>
struct key_rows : matrix<T> {
    int shared;
    int64_t ahead;
};
template <class T>
static __device__ inline key_rows<T> keys_of(matrix<T> m, const attention_call<T>& x,
                                             const tile_place& at, row_part part, int head) {
    int first = at.start - at.shared;
    return {{m.data + column_of(x, part, head) + first * m.stride, m.stride},
            at.shared,
            (at.before - first) * m.stride};
}
template <class T>
static __device__ inline int64_t ahead_of(const matrix<T>&, int) {
    return 0;
}
template <class T>
static __device__ inline int64_t ahead_of(const key_rows<T>& k, int j) {
    return j < k.shared ? k.ahead : 0;
}
template <class T>
static __device__ inline T* row_at(const key_rows<T>& k, int j) {
    return k.data + j * k.stride + ahead_of(k, j);
}

constexpr int ROW_THREADS = 256;

// A warp for each row and head.
template <class T>
static __global__ void backward_rows(attention_call<T> x) {
    int64_t item = (int64_t)blockIdx.x * (ROW_THREADS / WARP) + threadIdx.x / WARP;
    int64_t row = item / x.heads, head = item % x.heads;
    int lane = threadIdx.x % WARP;
    if (row >= x.rows) return;
    const T* out = x.out.data + row * x.out.stride + head * x.head_dim;
    const T* dout = x.dout.data + row * x.dout.stride + head * x.head_dim;
    float sum = 0;
    for (int d = lane; d < x.head_dim; d += WARP) sum += to_float(dout[d]) * to_float(out[d]);
    sum = warp_sum(sum);
    if (lane == 0) {
        const float* stats = x.stats + item * 2;
        x.queries[head * x.rows + row] = {{stats[0], 1.0f / stats[1], sum, -stats[0] * LOG2_E}};
    }
}

// ------------------------------------------------------------------------------------------------
// Tensor cores

constexpr int MMA_TILE = 64, MMA_THREADS = 128;

// A tile's matrices lie in shared memory with 8 more elements a row, so that the 8 rows of an
// ldmatrix lie in different banks. Steps: rows that a block takes at a time of what it walks over,
// as many as its registers have room for the scores of.
template <int D>
struct mma_shape {
    static constexpr int STRIDE = D + 8, FORWARD_STEP = D > 64 ? 32 : 64, BACKWARD_STEP = 32;
    static constexpr size_t FORWARD = (MMA_TILE + 4 * FORWARD_STEP) * STRIDE * 2;
    static constexpr size_t QUERIES = (2 * MMA_TILE + 4 * BACKWARD_STEP) * STRIDE * 2;
    static constexpr size_t KEYS = QUERIES + 2 * BACKWARD_STEP * sizeof(query_stats);
};

// Rows first .. first + N - 1 of a head (a matrix, or key_rows) into shared memory, in the
// background where they are packed; zeros from row `end` and column head_dim on.
template <int D, int N, class T, class ROWS>
static __device__ inline void mma_load(T* shared, const ROWS& head, int first, int end,
                                       const attention_call<T>& x) {
    constexpr int STRIDE = mma_shape<D>::STRIDE, PACKETS = D / 8, EVERY = MMA_THREADS / PACKETS;
    if (x.packed) {  // a thread has one column and every EVERY-th row
        int row = threadIdx.x / PACKETS, c = threadIdx.x % PACKETS * 8;
        if (EVERY > N && row >= N) return;
        first += row;
        int left = c < x.head_dim ? end - first : 0;
        const T* from = head.data + first * head.stride + c;
        int64_t every = EVERY * head.stride;
        shared += row * STRIDE + c;
#pragma unroll
        for (int r = 0; r < N; r += EVERY, from += every)
            cp_async_16(shared + r * STRIDE, from + ahead_of(head, first + r), r < left);
        return;
    }
    int c = threadIdx.x % D;
#pragma unroll 1
    for (int r = threadIdx.x / D; r < N; r += MMA_THREADS / D) {
        bool valid = first + r < end && c < x.head_dim;
        shared[r * STRIDE + c] = valid ? row_at(head, first + r)[c] : to<T>(0.0f);
    }
}

// s = a b^T for 16 rows of a and N rows of b, both in shared memory. A lane holds, of each 8
// columns of s, columns 2 (lane % 4) and the next of rows lane / 4 (elements 0, 1) and 8 further
// down (2, 3).
template <class T, int D, int N>
static __device__ inline void mma_scores(float (&s)[N / 8][4], const T* a, const T* b) {
    constexpr int STRIDE = mma_shape<D>::STRIDE;
    int lane = threadIdx.x % WARP;
    a += lane % 16 * STRIDE + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int e = 0; e < 4; e++) s[n][e] = 0;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4];
        ldmatrix_x4(left, a + k);
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
            uint32_t right[4];
            ldmatrix_x4(right, b + n * 8 * STRIDE + k);
            mma_m16n8k16<T>(s[n], left, {right[0], right[1]});
            mma_m16n8k16<T>(s[n + 1], left, {right[2], right[3]});
        }
    }
}

// o += p b for 16 rows of p, which a warp holds as mma_scores leaves them, rounded to T; b has N
// rows in shared memory.
template <class T, int D, int N>
static __device__ inline void mma_weighted(float (&o)[D / 8][4], const float (&p)[N / 8][4],
                                           const T* b) {
    constexpr int STRIDE = mma_shape<D>::STRIDE;
    int lane = threadIdx.x % WARP;
    b += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const float *low = p[2 * k], *high = p[2 * k + 1];
        uint32_t left[4] = {two<T>(low[0], low[1]), two<T>(low[2], low[3]),
                            two<T>(high[0], high[1]), two<T>(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t right[4];
            ldmatrix_x4_trans(right, b + k * 16 * STRIDE + n * 8);
            mma_m16n8k16<T>(o[n], left, {right[0], right[1]});
            mma_m16n8k16<T>(o[n + 1], left, {right[2], right[3]});
        }
    }
}

// The warp's 16 rows of o, the upper 8 times factor[0], the lower 8 times factor[1], by way of its
// own 16 rows of shared memory to positions from `first` on and below `end`.
template <class T, int D>
static __device__ inline void mma_store(matrix<T> head, int first, int end, T* shared,
                                        const float (&o)[D / 8][4], const float (&factor)[2],
                                        const attention_call<T>& x) {
    constexpr int STRIDE = mma_shape<D>::STRIDE;
    int lane = threadIdx.x % WARP;
    __syncwarp();
    T* part = shared + lane / 4 * STRIDE + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        for (int e = 0; e < 4; e++)
            part[e / 2 * 8 * STRIDE + n * 8 + e % 2] = to<T>(o[n][e] * factor[e / 2]);
    __syncwarp();
    if (x.packed) {
        for (int i = lane; i < 16 * D / 8; i += WARP) {
            int r = i / (D / 8), c = i % (D / 8) * 8;
            if (first + r < end && c < x.head_dim)
                packet_store(head.data + (first + r) * head.stride + c,
                             packet_load(shared + r * STRIDE + c));
        }
        return;
    }
    for (int i = lane; i < 16 * D; i += WARP) {
        int r = i / D, c = i % D;
        if (first + r < end && c < x.head_dim)
            head.data[(first + r) * head.stride + c] = shared[r * STRIDE + c];
    }
}

// Scores of 16 queries against N keys from position `key` on become exp(s - max) with the maximum
// so far; what was summed before is rescaled to it. query: the last positions that the lane's two
// queries see, of which the second may be left out. A lane's sums are those of its own columns.
template <int D, int N, int QUERIES = 2>
static __device__ inline void mma_softmax(float (&s)[N / 8][4], float (&o)[D / 8][4],
                                          float (&max)[2], float (&sum)[2], const int (&query)[2],
                                          int key, float scale) {
    key += threadIdx.x % WARP % 4 * 2;
    float scale_log2 = scale * LOG2_E;
#pragma unroll
    for (int half = 0; half < QUERIES; half++) {
        float top = minus_infinity();
        // Most steps hide nothing.
        if (__ballot_sync(~0u, key + N > query[half])) {
#pragma unroll
            for (int n = 0; n < N / 8; n++)
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    if (key + n * 8 + e % 2 > query[half]) s[n][e] = minus_infinity();
        }
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            for (int e = 2 * half; e < 2 * half + 2; e++) top = fmaxf(top, s[n][e]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(max[half], fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * scale);
        // A maximum that stays shrinks by exactly 1: steps that hide all change nothing (N2).
        float shift = -top * LOG2_E, shrink = exp2_fast((max[half] - top) * LOG2_E);
        max[half] = top;
        sum[half] *= shrink;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n][e] = exp2_fast(num_fma(s[n][e], scale_log2, shift));
                sum[half] += s[n][e];
            }
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            for (int e = 2 * half; e < 2 * half + 2; e++) o[n][e] *= shrink;
    }
}

// The sums of a row's four lanes, in each of them.
static __device__ inline void mma_sums(float (&sum)[2]) {
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
}

template <class T, int D>
static __global__ void __launch_bounds__(MMA_THREADS) forward_mma(attention_call<T> x) {
    constexpr int STEP = mma_shape<D>::FORWARD_STEP, STRIDE = mma_shape<D>::STRIDE;
    constexpr int BUFFER = STEP * STRIDE;
    DYN_SHARED(packet<T>, memory);
    T *q = (T*)memory, *k = q + MMA_TILE * STRIDE, *v = k + 2 * BUFFER;
    // The last tiles of a sequence take longest: they go first.
    tile_place at = place_of(x.pack, gridDim.x - 1 - blockIdx.x, MMA_TILE);
    if (at.first >= at.length) return;
    int head = blockIdx.y, key_head = head / (x.heads / x.key_heads);
    int end = min(at.first + MMA_TILE, at.length), keys = at.shared + end;
    int steps = (keys + STEP - 1) / STEP;
    key_rows<T> all_k = keys_of(x.qkv, x, at, K_PART, key_head);
    key_rows<T> all_v = keys_of(x.qkv, x, at, V_PART, key_head);
    auto load_step = [&](int step) {
        int buffer = step % 2 * BUFFER, first = step * STEP;
        mma_load<D, STEP>(k + buffer, all_k, first, keys, x);
        mma_load<D, STEP>(v + buffer, all_v, first, keys, x);
        cp_async_commit();
    };
    mma_load<D, MMA_TILE>(q, head_of(x.qkv, x, at, Q_PART, head), at.first, end, x);
    load_step(0);

    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16;  // the warp's first row
    int first = at.first + row;
    int query[2] = {at.shared + first + lane / 4, at.shared + first + lane / 4 + 8};
    float o[D / 8][4] = {}, max[2] = {minus_infinity(), minus_infinity()}, sum[2] = {};
    for (int step = 0; step < steps; step++) {
        int buffer = step % 2 * BUFFER;
        float s[STEP / 8][4];
        cp_async_wait<0>();
        __syncthreads();  // the step has arrived, and the other buffer is no longer read
        if (step + 1 < steps) load_step(step + 1);
        mma_scores<T, D, STEP>(s, q + row * STRIDE, k + buffer);
        mma_softmax<D, STEP>(s, o, max, sum, query, step * STEP, x.scale);
        mma_weighted<T, D, STEP>(o, s, v + buffer);
    }

    float inverse[2];
    mma_sums(sum);
    for (int half = 0; half < 2; half++) {
        inverse[half] = 1.0f / sum[half];
        int r = half * 8 + lane / 4;
        if (lane % 4 || first + r >= end) continue;
        float* to = x.stats + ((int64_t)(at.start + first + r) * x.heads + head) * 2;
        to[0] = max[half];
        to[1] = sum[half];
    }
    mma_store<T, D>(head_of(x.out, x, at, Q_PART, head), first, end, q + row * STRIDE, o, inverse,
                    x);
}

// p and ds of a query and a key that it sees, whose scores are 0 where it does not.
struct gradient_pair {
    float p, ds;
};
static __device__ inline gradient_pair mma_gradient(float s, float dp, const query_stats& query,
                                                    float scale_log2) {
    float p = exp2_fast(num_fma(s, scale_log2, query.v[3])) * query.v[1];
    return {p, p * (dp - query.v[2])};
}
// Scores and dP of a warp's 16 keys and N queries, transposed as mma_scores leaves them, become p
// and ds. The first key is the tile's `row`-th, the first query stands at its `ahead`-th key.
template <int N>
static __device__ inline void mma_gradients(float (&p)[N / 8][4], float (&ds)[N / 8][4],
                                            const query_stats* queries, int row, int ahead,
                                            float scale_log2) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int column = 0; column < 2; column++) {
            query_stats stats =
                packet_load((const float*)(queries + n * 8 + lane % 4 * 2 + column));
            for (int e = column; e < 4; e += 2) {
                gradient_pair g = mma_gradient(p[n][e], ds[n][e], stats, scale_log2);
                p[n][e] = g.p;
                ds[n][e] = g.ds;
            }
        }
    if (ahead >= row + 16) return;  // else some of the queries come before some of the keys
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int e = 0; e < 4; e++) {
            int query = ahead + n * 8 + lane % 4 * 2 + e % 2;
            if (row + lane / 4 + e / 2 * 8 > query) p[n][e] = ds[n][e] = 0;
        }
}
// The same of one pair with the software's exponential; both 0 where the query does not see the
// key.
static __device__ inline gradient_pair gradient_of(float s, float dp, const query_stats& query,
                                                   bool visible) {
    float p = num_expf(s - query.v[0]) * query.v[1];
    return {visible ? p : 0.0f, visible ? p * (dp - query.v[2]) : 0.0f};
}

template <class T, int D>
static __global__ void __launch_bounds__(MMA_THREADS, D == 32 ? 2 : 0)  // at 32 it would spill
    backward_keys_mma(attention_call<T> x) {
    constexpr int STEP = mma_shape<D>::BACKWARD_STEP, STRIDE = mma_shape<D>::STRIDE;
    constexpr int BUFFER = STEP * STRIDE;
    DYN_SHARED(packet<T>, memory);
    T *k = (T*)memory, *v = k + MMA_TILE * STRIDE;
    T *q = v + MMA_TILE * STRIDE, *dout = q + 2 * BUFFER;
    query_stats* queries = (query_stats*)(dout + 2 * BUFFER);
    tile_place at = place_of(x.pack, blockIdx.x, MMA_TILE);
    if (at.first >= at.length) return;
    int head = blockIdx.y, group = x.heads / x.key_heads, seeing = seeing_rows(x.pack, at);
    int each = (seeing - at.first + STEP - 1) / STEP;  // steps of a query head
    int steps = group * each;
    int query_head = head * group, first = at.first;  // of the next step to be loaded
    auto load_step = [&](int step) {
        int buffer = step % 2 * BUFFER;
        mma_load<D, STEP>(q + buffer, head_of(x.qkv, x, at, Q_PART, query_head), first, seeing, x);
        mma_load<D, STEP>(dout + buffer, head_of(x.dout, x, at, Q_PART, query_head), first, seeing,
                          x);
        const query_stats* from = x.queries + (int64_t)query_head * x.rows + at.start + first;
        if (threadIdx.x < STEP)  // p = exp(0 - 0) * 0 where there is none
            cp_async_16(queries + step % 2 * STEP + threadIdx.x, from + threadIdx.x,
                        first + (int)threadIdx.x < seeing);
        cp_async_commit();
        first += STEP;
        if (first >= seeing) query_head++, first = at.first;
    };
    mma_load<D, MMA_TILE>(k, head_of(x.qkv, x, at, K_PART, head), at.first, at.length, x);
    mma_load<D, MMA_TILE>(v, head_of(x.qkv, x, at, V_PART, head), at.first, at.length, x);
    load_step(0);

    int row = threadIdx.x / WARP * 16;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, scale_log2 = x.scale * LOG2_E;
    int ahead = 0;  // of the tile's first key, the step's first query
    for (int step = 0; step < steps; step++) {
        int buffer = step % 2 * BUFFER;
        float p[STEP / 8][4], ds[STEP / 8][4];  // transposed: a row for each key
        cp_async_wait<0>();
        __syncthreads();  // the step has arrived, and the other buffer is no longer read
        if (step + 1 < steps) load_step(step + 1);
        mma_scores<T, D, STEP>(p, k + row * STRIDE, q + buffer);
        mma_scores<T, D, STEP>(ds, v + row * STRIDE, dout + buffer);
        mma_gradients<STEP>(p, ds, queries + step % 2 * STEP, row, ahead, scale_log2);
        mma_weighted<T, D, STEP>(dv, p, dout + buffer);
        mma_weighted<T, D, STEP>(dk, ds, q + buffer);
        ahead = ahead + STEP < each * STEP ? ahead + STEP : 0;
    }

    float scale[2] = {x.scale, x.scale}, one[2] = {1.0f, 1.0f};
    int end = at.length;
    first = at.first + row;
    mma_store<T, D>(head_of(x.dqkv, x, at, K_PART, head), first, end, k + row * STRIDE, dk, scale,
                    x);
    mma_store<T, D>(head_of(x.dqkv, x, at, V_PART, head), first, end, v + row * STRIDE, dv, one, x);
}

template <class T, int D>
static __global__ void __launch_bounds__(MMA_THREADS, 2) backward_queries_mma(attention_call<T> x) {
    constexpr int STEP = mma_shape<D>::BACKWARD_STEP, STRIDE = mma_shape<D>::STRIDE;
    constexpr int BUFFER = STEP * STRIDE;
    DYN_SHARED(packet<T>, memory);
    T *q = (T*)memory, *dout = q + MMA_TILE * STRIDE, *k = dout + MMA_TILE * STRIDE,
      *v = k + 2 * BUFFER;
    tile_place at = place_of(x.pack, gridDim.x - 1 - blockIdx.x, MMA_TILE);
    if (at.first >= at.length) return;
    int head = blockIdx.y, key_head = head / (x.heads / x.key_heads);
    int end = min(at.first + MMA_TILE, at.length), keys = at.shared + end;
    int steps = (keys + STEP - 1) / STEP;
    key_rows<T> all_k = keys_of(x.qkv, x, at, K_PART, key_head);
    key_rows<T> all_v = keys_of(x.qkv, x, at, V_PART, key_head);
    auto load_step = [&](int step) {
        int buffer = step % 2 * BUFFER, first = step * STEP;
        mma_load<D, STEP>(k + buffer, all_k, first, keys, x);
        mma_load<D, STEP>(v + buffer, all_v, first, keys, x);
        cp_async_commit();
    };
    mma_load<D, MMA_TILE>(q, head_of(x.qkv, x, at, Q_PART, head), at.first, end, x);
    mma_load<D, MMA_TILE>(dout, head_of(x.dout, x, at, Q_PART, head), at.first, end, x);
    load_step(0);

    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16;
    int first = at.first + row;
    query_stats stats[2] = {};
    for (int half = 0; half < 2; half++) {
        int r = half * 8 + lane / 4;
        if (first + r < end) stats[half] = x.queries[(int64_t)head * x.rows + at.start + first + r];
    }
    float dq[D / 8][4] = {}, scale_log2 = x.scale * LOG2_E;
    for (int step = 0; step < steps; step++) {
        int buffer = step % 2 * BUFFER;
        float s[STEP / 8][4], ds[STEP / 8][4];
        cp_async_wait<0>();
        __syncthreads();  // the step has arrived, and the other buffer is no longer read
        if (step + 1 < steps) load_step(step + 1);
        mma_scores<T, D, STEP>(s, q + row * STRIDE, k + buffer);
        mma_scores<T, D, STEP>(ds, dout + row * STRIDE, v + buffer);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
            for (int e = 0; e < 4; e++)
                ds[n][e] = mma_gradient(s[n][e], ds[n][e], stats[e / 2], scale_log2).ds;
        if (step * STEP + STEP > at.shared + first) {  // some keys come after some queries
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
                for (int e = 0; e < 4; e++) {
                    int key = step * STEP + n * 8 + lane % 4 * 2 + e % 2;
                    if (key > at.shared + first + lane / 4 + e / 2 * 8) ds[n][e] = 0;
                }
        }
        mma_weighted<T, D, STEP>(dq, ds, k + buffer);
    }
    float scale[2] = {x.scale, x.scale};
    mma_store<T, D>(head_of(x.dqkv, x, at, Q_PART, head), first, end, q + row * STRIDE, dq, scale,
                    x);
}

// ------------------------------------------------------------------------------------------------
// Without tensor cores: 16 x 16 threads; thread (y, x) owns rows y, y + 16, ... of a tile of scores
// and their columns x, x + 16, ...; of a product with D columns the same rows, and of each 64
// columns 4. A row belongs to 16 threads of one warp.

constexpr int FMA_SIDE = 16, SQUARE_THREADS = FMA_SIDE * FMA_SIDE;

// TILE: rows of all tiles. 4 more floats a row let 8 rows be read 16 bytes each without conflicts.
template <int D>
struct fma_shape {
    static constexpr int TILE = 4096 / D, ROWS = TILE / FMA_SIDE, COLUMNS = D / FMA_SIDE;
    static constexpr int STRIDE = D + 4, MATRIX = TILE * STRIDE;
    static constexpr int SCORE_STRIDE = TILE + 4, SCORES = TILE * SCORE_STRIDE;
    static constexpr size_t FORWARD = (3 * MATRIX + SCORES) * sizeof(float);
    static constexpr size_t QUERIES = (4 * MATRIX + SCORES) * sizeof(float);
    static constexpr size_t KEYS = QUERIES + TILE * sizeof(query_stats);
};

// Rows first .. first + TILE - 1 of a head (a matrix, or key_rows) as operands; zeros from row
// `end` and column head_dim on.
template <int D, class T, class ROWS>
static __device__ inline void fma_load(float* shared, const ROWS& head, int first, int end,
                                       const attention_call<T>& x) {
    constexpr int EVERY = SQUARE_THREADS / D;  // a thread has one column and every EVERY-th row
    int row = threadIdx.x / D, c = threadIdx.x % D;
    first += row;
    int left = c < x.head_dim ? end - first : 0;
    const T* from = head.data + first * head.stride + c;
    int64_t every = EVERY * head.stride;
    shared += row * fma_shape<D>::STRIDE + c;
#pragma unroll 4
    for (int r = 0; r < fma_shape<D>::TILE; r += EVERY, from += every) {
        float value = r < left ? to_float(from[ahead_of(head, first + r)]) : 0.0f;
        shared[r * fma_shape<D>::STRIDE] = rounded(value, x.operand);
    }
}

// s = a b^T of two tiles: chains over head_dim.
template <int D>
static __device__ inline void fma_scores(float (&s)[fma_shape<D>::ROWS][fma_shape<D>::ROWS],
                                         const float* a, const float* b, int head_dim) {
    constexpr int ROWS = fma_shape<D>::ROWS, STRIDE = fma_shape<D>::STRIDE;
    a += threadIdx.x / FMA_SIDE * STRIDE;
    b += threadIdx.x % FMA_SIDE * STRIDE;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < ROWS; j++) s[i][j] = 0;
    for (int d = 0; d < head_dim; d += 4) {
        packet<float> left[ROWS], right[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            left[i] = packet_load(a + i * FMA_SIDE * STRIDE + d);
            right[i] = packet_load(b + i * FMA_SIDE * STRIDE + d);
        }
#pragma unroll
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < ROWS; j++)
                    s[i][j] = num_fma(left[i].v[e], right[j].v[e], s[i][j]);
    }
}

// o += p b, with p a tile of scores in shared memory that the row's own threads wrote.
template <int D>
static __device__ inline void fma_weighted(float (&o)[fma_shape<D>::ROWS][fma_shape<D>::COLUMNS],
                                           const float* p, const float* b) {
    constexpr int ROWS = fma_shape<D>::ROWS, STRIDE = fma_shape<D>::STRIDE;
    constexpr int SCORE_STRIDE = fma_shape<D>::SCORE_STRIDE;
    p += threadIdx.x / FMA_SIDE * SCORE_STRIDE;
    b += threadIdx.x % FMA_SIDE * 4;
    for (int k = 0; k < fma_shape<D>::TILE; k += 4) {
        packet<float> left[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) left[i] = packet_load(p + i * FMA_SIDE * SCORE_STRIDE + k);
#pragma unroll
        for (int e = 0; e < 4; e++)
            for (int c = 0; c < fma_shape<D>::COLUMNS; c += 4) {
                packet<float> right = packet_load(b + (k + e) * STRIDE + c * FMA_SIDE);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < 4; j++)
                        o[i][c + j] = num_fma(left[i].v[e], right.v[j], o[i][c + j]);
            }
    }
}

// A thread's scores, rounded as operands, to where fma_weighted reads them.
template <int D>
static __device__ inline void fma_keep(float* shared,
                                       const float (&s)[fma_shape<D>::ROWS][fma_shape<D>::ROWS],
                                       rounding operand) {
    constexpr int ROWS = fma_shape<D>::ROWS, SCORE_STRIDE = fma_shape<D>::SCORE_STRIDE;
    int y = threadIdx.x / FMA_SIDE, column = threadIdx.x % FMA_SIDE;
    __syncwarp();  // what lies there has been read
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < ROWS; j++)
            shared[(y + i * FMA_SIDE) * SCORE_STRIDE + column + j * FMA_SIDE] =
                rounded(s[i][j], operand);
    __syncwarp();
}

// A thread's part of the tile's results, to positions from `first` on and below `end`.
template <int D, class T>
static __device__ inline void fma_store(matrix<T> head, int first, int end,
                                        const float (&o)[fma_shape<D>::ROWS][fma_shape<D>::COLUMNS],
                                        float factor, int head_dim) {
#pragma unroll
    for (int i = 0; i < fma_shape<D>::ROWS; i++)
        for (int c = 0; c < fma_shape<D>::COLUMNS; c++) {
            int r = first + threadIdx.x / FMA_SIDE + i * FMA_SIDE;
            int d = c / 4 * 64 + threadIdx.x % FMA_SIDE * 4 + c % 4;
            if (r < end && d < head_dim) head.data[r * head.stride + d] = to<T>(o[i][c] * factor);
        }
}

// The same in the 16 threads of a row.
static __device__ inline float side_max(float x) {
    for (int m = FMA_SIDE / 2; m; m /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, m));
    return x;
}
static __device__ inline float side_sum(float x) {
    for (int m = FMA_SIDE / 2; m; m /= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

// As mma_softmax, for a tile of queries from position `query` and keys from position `key` on.
template <int D>
static __device__ inline void fma_softmax(float (&s)[fma_shape<D>::ROWS][fma_shape<D>::ROWS],
                                          float (&o)[fma_shape<D>::ROWS][fma_shape<D>::COLUMNS],
                                          float (&max)[fma_shape<D>::ROWS],
                                          float (&sum)[fma_shape<D>::ROWS], int query, int key,
                                          float scale) {
    constexpr int ROWS = fma_shape<D>::ROWS;
    query += threadIdx.x / FMA_SIDE;
    key += threadIdx.x % FMA_SIDE;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float top = max[i];
        for (int j = 0; j < ROWS; j++) {
            bool visible = key + j * FMA_SIDE <= query + i * FMA_SIDE;
            s[i][j] = visible ? s[i][j] * scale : minus_infinity();
            top = fmaxf(top, s[i][j]);
        }
        top = side_max(top);
        float shrink = num_expf(max[i] - top);
        max[i] = top;
        sum[i] *= shrink;
        for (int j = 0; j < ROWS; j++) {
            s[i][j] = num_expf(s[i][j] - top);
            sum[i] += s[i][j];
        }
        for (int c = 0; c < fma_shape<D>::COLUMNS; c++) o[i][c] *= shrink;
    }
}

template <class T, int D>
static __global__ void __launch_bounds__(SQUARE_THREADS) forward_fma(attention_call<T> x) {
    constexpr int TILE = fma_shape<D>::TILE, ROWS = fma_shape<D>::ROWS;
    constexpr int COLUMNS = fma_shape<D>::COLUMNS, MATRIX = fma_shape<D>::MATRIX;
    DYN_SHARED(packet<float>, memory);
    float *q = (float*)memory, *k = q + MATRIX, *v = k + MATRIX, *p = v + MATRIX;
    tile_place at = place_of(x.pack, gridDim.x - 1 - blockIdx.x, TILE);
    if (at.first >= at.length) return;
    int head = blockIdx.y, key_head = head / (x.heads / x.key_heads);
    int end = min(at.first + TILE, at.length), keys = at.shared + end;
    fma_load<D>(q, head_of(x.qkv, x, at, Q_PART, head), at.first, end, x);

    float o[ROWS][COLUMNS] = {}, max[ROWS], sum[ROWS] = {};
    for (int i = 0; i < ROWS; i++) max[i] = minus_infinity();
    for (int key = 0; key < keys; key += TILE) {
        float s[ROWS][ROWS];
        __syncthreads();  // the last step's keys have been read
        fma_load<D>(k, keys_of(x.qkv, x, at, K_PART, key_head), key, keys, x);
        fma_load<D>(v, keys_of(x.qkv, x, at, V_PART, key_head), key, keys, x);
        __syncthreads();
        fma_scores<D>(s, q, k, x.head_dim);
        fma_softmax<D>(s, o, max, sum, at.shared + at.first, key, x.scale);
        fma_keep<D>(p, s, x.operand);
        fma_weighted<D>(o, p, v);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float total = side_sum(sum[i]);
        for (int c = 0; c < COLUMNS; c++) o[i][c] /= total;
        int row = at.first + threadIdx.x / FMA_SIDE + i * FMA_SIDE;
        if (threadIdx.x % FMA_SIDE || row >= end) continue;
        float* to = x.stats + ((int64_t)(at.start + row) * x.heads + head) * 2;
        to[0] = max[i];
        to[1] = total;
    }
    fma_store<D>(head_of(x.out, x, at, Q_PART, head), at.first, end, o, 1.0f, x.head_dim);
}

template <class T, int D>
static __global__ void __launch_bounds__(SQUARE_THREADS, 2) backward_keys_fma(attention_call<T> x) {
    constexpr int TILE = fma_shape<D>::TILE, ROWS = fma_shape<D>::ROWS;
    constexpr int COLUMNS = fma_shape<D>::COLUMNS, MATRIX = fma_shape<D>::MATRIX;
    DYN_SHARED(packet<float>, memory);
    float *k = (float*)memory, *v = k + MATRIX, *q = v + MATRIX, *dout = q + MATRIX,
          *scores = dout + MATRIX;
    query_stats* queries = (query_stats*)(scores + fma_shape<D>::SCORES);
    tile_place at = place_of(x.pack, blockIdx.x, TILE);
    if (at.first >= at.length) return;
    int head = blockIdx.y, group = x.heads / x.key_heads;
    fma_load<D>(k, head_of(x.qkv, x, at, K_PART, head), at.first, at.length, x);
    fma_load<D>(v, head_of(x.qkv, x, at, V_PART, head), at.first, at.length, x);

    float dk[ROWS][COLUMNS] = {}, dv[ROWS][COLUMNS] = {};
    int key = at.first + threadIdx.x / FMA_SIDE, column = threadIdx.x % FMA_SIDE;
    int seeing = seeing_rows(x.pack, at);
    int query_head = head * group, first = at.first;
    while (query_head < (head + 1) * group) {
        float p[ROWS][ROWS], ds[ROWS][ROWS];  // transposed: a row for each key
        __syncthreads();                      // the last step's queries have been read
        fma_load<D>(q, head_of(x.qkv, x, at, Q_PART, query_head), first, seeing, x);
        fma_load<D>(dout, head_of(x.dout, x, at, Q_PART, query_head), first, seeing, x);
        if (threadIdx.x < TILE) {
            query_stats none = {};  // p = exp(0 - 0) * 0
            int64_t row = (int64_t)query_head * x.rows + at.start + first + threadIdx.x;
            queries[threadIdx.x] = first + (int)threadIdx.x < seeing ? x.queries[row] : none;
        }
        __syncthreads();
        fma_scores<D>(p, k, q, x.head_dim);
        fma_scores<D>(ds, v, dout, x.head_dim);
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            int query = column + j * FMA_SIDE;
            query_stats stats = queries[query];
            for (int i = 0; i < ROWS; i++) {
                bool visible = key + i * FMA_SIDE <= first + query;
                gradient_pair g = gradient_of(p[i][j] * x.scale, ds[i][j], stats, visible);
                p[i][j] = g.p;
                ds[i][j] = g.ds;
            }
        }
        fma_keep<D>(scores, p, x.operand);
        fma_weighted<D>(dv, scores, dout);
        fma_keep<D>(scores, ds, x.operand);
        fma_weighted<D>(dk, scores, q);
        first += TILE;
        if (first >= seeing) query_head++, first = at.first;
    }
    fma_store<D>(head_of(x.dqkv, x, at, K_PART, head), at.first, at.length, dk, x.scale,
                 x.head_dim);
    fma_store<D>(head_of(x.dqkv, x, at, V_PART, head), at.first, at.length, dv, 1.0f, x.head_dim);
}

template <class T, int D>
static __global__ void __launch_bounds__(SQUARE_THREADS, 2)
    backward_queries_fma(attention_call<T> x) {
    constexpr int TILE = fma_shape<D>::TILE, ROWS = fma_shape<D>::ROWS;
    constexpr int COLUMNS = fma_shape<D>::COLUMNS, MATRIX = fma_shape<D>::MATRIX;
    DYN_SHARED(packet<float>, memory);
    float *q = (float*)memory, *dout = q + MATRIX, *k = dout + MATRIX, *v = k + MATRIX,
          *scores = v + MATRIX;
    tile_place at = place_of(x.pack, gridDim.x - 1 - blockIdx.x, TILE);
    if (at.first >= at.length) return;
    int head = blockIdx.y, key_head = head / (x.heads / x.key_heads);
    int end = min(at.first + TILE, at.length), keys = at.shared + end;
    fma_load<D>(q, head_of(x.qkv, x, at, Q_PART, head), at.first, end, x);
    fma_load<D>(dout, head_of(x.dout, x, at, Q_PART, head), at.first, end, x);

    float dq[ROWS][COLUMNS] = {};
    query_stats stats[ROWS] = {};
    int query = at.first + threadIdx.x / FMA_SIDE, column = threadIdx.x % FMA_SIDE;
    for (int i = 0; i < ROWS; i++) {
        int64_t row = (int64_t)head * x.rows + at.start + query + i * FMA_SIDE;
        if (query + i * FMA_SIDE < end) stats[i] = x.queries[row];
    }
    for (int key = 0; key < keys; key += TILE) {
        float s[ROWS][ROWS], ds[ROWS][ROWS];
        __syncthreads();  // the last step's keys have been read
        fma_load<D>(k, keys_of(x.qkv, x, at, K_PART, key_head), key, keys, x);
        fma_load<D>(v, keys_of(x.qkv, x, at, V_PART, key_head), key, keys, x);
        __syncthreads();
        fma_scores<D>(s, q, k, x.head_dim);
        fma_scores<D>(ds, dout, v, x.head_dim);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < ROWS; j++) {
                bool visible = key + column + j * FMA_SIDE <= at.shared + query + i * FMA_SIDE;
                ds[i][j] = gradient_of(s[i][j] * x.scale, ds[i][j], stats[i], visible).ds;
            }
        fma_keep<D>(scores, ds, x.operand);
        fma_weighted<D>(dq, scores, k);
    }
    fma_store<D>(head_of(x.dqkv, x, at, Q_PART, head), at.first, end, dq, x.scale, x.head_dim);
}

// ------------------------------------------------------------------------------------------------
// Launches

template <class T, int D>
static void mma_launch(backend* b, const attention_call<T>& x, bool backward) {
    typedef mma_shape<D> shape;
    dim3 grid = tile_grid(x.rows, x.pack.sequences, x.heads, MMA_TILE), block(MMA_THREADS);
    cudaStream_t stream = stream_of(b);
    if (!backward) {
        LAUNCH((forward_mma<T, D>), grid, block, shape::FORWARD, stream, x);
        return;
    }
    dim3 keys(grid.x, x.key_heads);
    LAUNCH((backward_keys_mma<T, D>), keys, block, shape::KEYS, stream, x);
    LAUNCH((backward_queries_mma<T, D>), grid, block, shape::QUERIES, stream, x);
}

template <class T, int D>
static void fma_launch(backend* b, const attention_call<T>& x, bool backward) {
    typedef fma_shape<D> shape;
    dim3 grid = tile_grid(x.rows, x.pack.sequences, x.heads, shape::TILE), block(SQUARE_THREADS);
    cudaStream_t stream = stream_of(b);
    if (!backward) {
        LAUNCH((forward_fma<T, D>), grid, block, shape::FORWARD, stream, x);
        return;
    }
    dim3 keys(grid.x, x.key_heads);
    LAUNCH((backward_keys_fma<T, D>), keys, block, shape::KEYS, stream, x);
    LAUNCH((backward_queries_fma<T, D>), grid, block, shape::QUERIES, stream, x);
}

// Tensor cores where operands are what is stored. Elsewhere 16-bit storage has one shape for all.
template <class T>
static void attention_launch(backend* b, const attention_call<T>& x, bool backward,
                             bool stored_operands) {
    int d = x.head_dim;
    if (d > 256) fatal("the CUDA device has attention heads of at most 256 channels, not %d", d);
    if (backward)
        LAUNCH((backward_rows<T>), dim3(blocks_for((size_t)x.rows * x.heads, ROW_THREADS / WARP)),
               dim3(ROW_THREADS), 0, stream_of(b), x);
    if constexpr (sizeof(T) == 2) {
        if (!stored_operands || d > 128) return fma_launch<T, 256>(b, x, backward);
        if (d <= 16) return mma_launch<T, 16>(b, x, backward);
        if (d <= 32) return mma_launch<T, 32>(b, x, backward);
        if (d <= 64) return mma_launch<T, 64>(b, x, backward);
        return mma_launch<T, 128>(b, x, backward);
    } else {
        if (d <= 64) return fma_launch<T, 64>(b, x, backward);
        if (d <= 128) return fma_launch<T, 128>(b, x, backward);
        return fma_launch<T, 256>(b, x, backward);
    }
}

// What forward and backward have in common.
template <class T>
static attention_call<T> attention_call_of(tensor out, tensor qkv, const packing* pack,
                                           head_shape heads, const format* operand) {
    attention_call<T> x = {};
    x.qkv = matrix_of<T>(qkv);
    x.out = matrix_of<T>(out);
    x.pack = *pack;
    x.rows = out.rows;
    x.heads = heads.query;
    x.key_heads = heads.kv;
    x.head_dim = heads.dim;
    x.scale = 1.0f / sqrtf((float)x.head_dim);
    x.operand = rounding_of(operand);
    x.packed = x.head_dim % SPAN == 0 && spans_fit(qkv) && spans_fit(out);
    return x;
}

static void cuda_attention_forward(backend* b, tensor out, float* stats, tensor qkv,
                                   const packing* pack, head_shape heads, const format* operand) {
    if (!out.rows) return;
    WITH_STORAGE(qkv.format, T, {
        attention_call<T> x = attention_call_of<T>(out, qkv, pack, heads, operand);
        x.stats = stats;
        attention_launch(b, x, false, operand == qkv.format);
    });
}

static void cuda_attention_backward(backend* b, tensor dqkv, tensor dout, tensor qkv, tensor out,
                                    const float* stats, const packing* pack, head_shape heads,
                                    const format* operand, const format* gradient) {
    if (!out.rows) return;
    if (gradient != operand)
        fatal("the CUDA device has no attention of %s with gradients in %s; use --device cpu",
              operand->name, gradient->name);
    size_t bytes = (size_t)out.rows * heads.query * sizeof(query_stats);
    query_stats* queries = (query_stats*)cuda_scratch(b, SCRATCH_ROWS, bytes);
    WITH_STORAGE(qkv.format, T, {
        attention_call<T> x = attention_call_of<T>(out, qkv, pack, heads, operand);
        x.dout = matrix_of<T>(dout);
        x.dqkv = matrix_of<T>(dqkv);
        x.stats = (float*)stats;
        x.queries = queries;
        x.packed = x.packed && spans_fit(dout) && spans_fit(dqkv);
        attention_launch(b, x, true, operand == qkv.format);
    });
}

#endif
