// The ladder of attention: for each sequence and head, out = softmax(q k^T / sqrt(head_dim)) v,
// where a query sees the keys up to its own position. bf16 in and out, fp32 in between. See
// ladder.h.
//
// The op needs 4 head_dim floating-point operations for each query and key that it sees, 256 of
// them here, but holds only a few bytes for each query and each key: so the limit is how fast
// products are computed, if only keys and values are read seldom enough. Rungs differ in where
// scores live, how often a key is read, and which units multiply. What backward needs (the maximum
// and the sum of each softmax) only the op in use writes.
#include "ladder.h"
#include "product_rate.h"

constexpr int D = 64;            // head_dim, as in every GPT-2
constexpr int TILE = 64;         // queries of a block
constexpr float SCALE = 0.125f;  // 1 / sqrt(D)

struct attention_case : ladder_case {
    bf16* qkv;       // (rows, 3 * heads * D)
    int* seq_start;  // (sequences + 1): sequence s has rows seq_start[s] .. seq_start[s + 1] - 1
    int sequences, heads, longest;
    float* scores;  // (rows, heads, longest), for rung 1
    float* stats;   // (rows, heads, 2), for the op in use
};

// What kernels get.
struct attention_call {
    bf16* out;
    const bf16* qkv;
    const int* seq_start;
    float* scores;
    int heads, longest;
};

// A block's place: block (i, h, s) has queries TILE * i and on of head h of sequence s. Position
// p's query begins at q + p * 3 * width, likewise k and v; its output at out + p * width.
struct place {
    const bf16 *q, *k, *v;
    bf16* out;
    int start, length, first, width;
};

static __device__ place place_of(const attention_call& x) {
    int start = x.seq_start[blockIdx.z], width = x.heads * D;
    const bf16* q = x.qkv + (int64_t)start * 3 * width + blockIdx.y * D;
    bf16* out = x.out + (int64_t)start * width + blockIdx.y * D;
    int length = x.seq_start[blockIdx.z + 1] - start;
    return {q, q + width, q + 2 * width, out, start, length, (int)blockIdx.x * TILE, width};
}

static dim3 grid_of(const attention_case& c) {
    return dim3(blocks_for(c.longest, TILE), c.heads, c.sequences);
}
static attention_call call_of(const attention_case& c) {
    return {c.out, c.qkv, c.seq_start, c.scores, c.heads, c.longest};
}

// ------------------------------------------------------------------------------------------------
// 1. A thread a query, as the formula says: scores, their softmax, then the weighted sum of values.
// Scores lie in memory, 4 bytes for each query and key, written twice and read D + 1 times.

static __global__ void scores_in_memory(attention_call x) {
    place at = place_of(x);
    int query = at.first + threadIdx.x, stride = 3 * at.width;
    if (query >= at.length) return;
    const bf16* q = at.q + query * stride;
    float* s = x.scores + ((int64_t)(at.start + query) * x.heads + blockIdx.y) * x.longest;
    float max = -INFINITY, sum = 0;
    for (int key = 0; key <= query; key++) {
        float dot = 0;
        for (int d = 0; d < D; d++)
            dot = num_fma(to_float(q[d]), to_float(at.k[key * stride + d]), dot);
        s[key] = dot * SCALE;
        max = fmaxf(max, s[key]);
    }
    for (int key = 0; key <= query; key++) {
        s[key] = num_expf(s[key] - max);
        sum += s[key];
    }
    for (int d = 0; d < D; d++) {
        float o = 0;
        for (int key = 0; key <= query; key++)
            o = num_fma(s[key], to_float(at.v[key * stride + d]), o);
        at.out[query * at.width + d] = to<bf16>(o / sum);
    }
}

static void run_scores_in_memory(backend* b, const attention_case& c) {
    LAUNCH(scores_in_memory, grid_of(c), dim3(TILE), 0, stream_of(b), call_of(c));
}

// ------------------------------------------------------------------------------------------------
// 2. The same with the online softmax (Milakov and Gimelshein, arXiv 1805.02867): a query keeps the
// maximum so far and what was summed relative to it, and rescales that when the maximum grows. One
// pass over the keys, nothing in memory; query and output stay in registers.

struct online_softmax {
    float q[D], o[D], max, sum;
};

static __device__ inline void begin(online_softmax& a, const bf16* q) {
    a.max = -INFINITY;
    a.sum = 0;
#pragma unroll
    for (int d = 0; d < D; d += SPAN) {
        float part[SPAN];
        load_span<SPAN>(part, q + d);
        for (int i = 0; i < SPAN; i++) {
            a.q[d + i] = part[i];
            a.o[d + i] = 0;
        }
    }
}

template <class T>
static __device__ inline void see(online_softmax& a, const T* k, const T* v) {
    float part[SPAN], dot[SPAN] = {}, s = 0;
#pragma unroll
    for (int d = 0; d < D; d += SPAN) {
        load_span<SPAN>(part, k + d);
        for (int i = 0; i < SPAN; i++) dot[i] = num_fma(a.q[d + i], part[i], dot[i]);
    }
    for (int i = 0; i < SPAN; i++) s += dot[i];
    s *= SCALE;
    if (s > a.max) {
        float shrink = num_expf(a.max - s);
        a.max = s;
        a.sum *= shrink;
        for (int d = 0; d < D; d++) a.o[d] *= shrink;
    }
    float p = num_expf(s - a.max);
    a.sum += p;
#pragma unroll
    for (int d = 0; d < D; d += SPAN) {
        load_span<SPAN>(part, v + d);
        for (int i = 0; i < SPAN; i++) a.o[d + i] = num_fma(p, part[i], a.o[d + i]);
    }
}

static __device__ inline void finish(const online_softmax& a, bf16* out) {
#pragma unroll
    for (int d = 0; d < D; d += SPAN) {
        float part[SPAN];
        for (int i = 0; i < SPAN; i++) part[i] = a.o[d + i] / a.sum;
        store_span<SPAN>(out + d, part);
    }
}

static __global__ void __launch_bounds__(TILE) one_pass(attention_call x) {
    place at = place_of(x);
    int query = at.first + threadIdx.x, stride = 3 * at.width;
    if (query >= at.length) return;
    online_softmax a;
    begin(a, at.q + query * stride);
    for (int key = 0; key <= query; key++) see(a, at.k + key * stride, at.v + key * stride);
    finish(a, at.out + query * at.width);
}

static void run_one_pass(backend* b, const attention_case& c) {
    LAUNCH(one_pass, grid_of(c), dim3(TILE), 0, stream_of(b), call_of(c));
}

// ------------------------------------------------------------------------------------------------
// 3. The same arithmetic, with keys and values in shared memory, a tile at a time: the block reads
// them once for all its queries, in whole lines, and turns them into fp32 once. All threads of a
// warp then read the same address, which shared memory serves in one go.

static __global__ void __launch_bounds__(TILE) tiles_in_shared_memory(attention_call x) {
    __shared__ packet<float> k_packets[TILE * D / 4];
    __shared__ packet<float> v_packets[TILE * D / 4];
    float *k = (float*)k_packets, *v = (float*)v_packets;
    place at = place_of(x);
    if (at.first >= at.length) return;
    int query = at.first + threadIdx.x, stride = 3 * at.width;
    int end = min(at.first + TILE, at.length);
    online_softmax a;
    if (query < end) begin(a, at.q + query * stride);
    for (int tile = 0; tile < end; tile += TILE) {
        int keys = min(TILE, end - tile);
        __syncthreads();  // the last tile has been read
        for (int i = threadIdx.x * SPAN; i < keys * D; i += TILE * SPAN) {
            float part[SPAN];
            int from = (tile + i / D) * stride + i % D;
            load_span<SPAN>(part, at.k + from);
            store_span<SPAN>(k + i, part);
            load_span<SPAN>(part, at.v + from);
            store_span<SPAN>(v + i, part);
        }
        __syncthreads();
        if (query < end)
            for (int key = 0; key < keys && tile + key <= query; key++)
                see(a, k + key * D, v + key * D);
    }
    if (query < end) finish(a, at.out + query * at.width);
}

static void run_tiles_in_shared_memory(backend* b, const attention_case& c) {
    LAUNCH(tiles_in_shared_memory, grid_of(c), dim3(TILE), 0, stream_of(b), call_of(c));
}

// ------------------------------------------------------------------------------------------------
// 4. Tensor cores, the idea of flash attention: the same tiles and the same online softmax, with
// both products as mma_m16n8k16. A warp has 16 queries. The scores that one product leaves in a
// lane's registers are just the elements that the lane must give to the next one, so they stay
// there.

constexpr int MMA_THREADS = TILE / 16 * WARP;
constexpr int STRIDE = D + 8;  // of a row in shared memory: 8 rows then begin in different banks

// Two neighbouring elements as one register of a fragment.
static __device__ inline uint32_t pair_at(const bf16* p) {
    uint32_t bits;
    memcpy(&bits, p, 4);
    return bits;
}
static __device__ inline uint32_t pair_of(bf16 low, bf16 high) {
    bf16 both[2] = {low, high};
    return pair_at(both);
}

// Rows tile .. tile + TILE - 1 of keys or values to shared memory; zeros from row `end` on.
static __device__ inline void load_tile(bf16* shared, const bf16* from, int tile, int end,
                                        int stride) {
    for (int i = threadIdx.x * SPAN; i < TILE * D; i += MMA_THREADS * SPAN) {
        int r = i / D, c = i % D;
        packet<bf16> zeros = {};
        bool valid = tile + r < end;
        packet_store(shared + r * STRIDE + c,
                     valid ? packet_load(from + (tile + r) * stride + c) : zeros);
    }
}

// Scores of one of the lane's two queries against the tile's keys, elements e and e + 1 of each
// fragment, become exp(score - max). `key`: the lane's first.
static __device__ inline void weigh(float (&s)[TILE / 8][4], float (&o)[D / 8][4], float& max,
                                    float& sum, int e, int query, int key) {
    float top = max;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
        for (int i = 0; i < 2; i++) {
            bool visible = key + n * 8 + i <= query;
            s[n][e + i] = visible ? s[n][e + i] * SCALE : -INFINITY;
            top = fmaxf(top, s[n][e + i]);
        }
    for (int m = 1; m < 4; m *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    float shrink = num_expf(max - top);
    max = top;
    sum *= shrink;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        for (int i = 0; i < 2; i++) o[n][e + i] *= shrink;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
        for (int i = 0; i < 2; i++) {
            s[n][e + i] = num_expf(s[n][e + i] - top);
            sum += s[n][e + i];
        }
}

static __global__ void __launch_bounds__(MMA_THREADS) tensor_cores(attention_call x) {
    __shared__ packet<bf16> k_packets[TILE * STRIDE / 8];
    __shared__ packet<bf16> v_packets[TILE * STRIDE / 8];
    bf16 *k = (bf16*)k_packets, *v = (bf16*)v_packets;
    place at = place_of(x);
    if (at.first >= at.length) return;
    int end = min(at.first + TILE, at.length), stride = 3 * at.width;
    // The lane holds columns 2t and 2t + 1 (of each 8) of rows g and g + 8.
    int lane = threadIdx.x % WARP, g = lane / 4, t2 = lane % 4 * 2;
    int query = at.first + threadIdx.x / WARP * 16 + g;
    uint32_t q[D / 16][4];
#pragma unroll
    for (int d = 0; d < D / 16; d++)
        for (int i = 0; i < 4; i++) {
            int row = query + i % 2 * 8, column = d * 16 + i / 2 * 8 + t2;
            q[d][i] = row < end ? pair_at(at.q + row * stride + column) : 0;
        }

    float o[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int tile = 0; tile < end; tile += TILE) {
        __syncthreads();  // the last tile has been read
        load_tile(k, at.k, tile, end, stride);
        load_tile(v, at.v, tile, end, stride);
        __syncthreads();
        float s[TILE / 8][4] = {};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
            for (int d = 0; d < D / 16; d++) {
                const bf16* from = k + (n * 8 + g) * STRIDE + d * 16 + t2;
                mma_m16n8k16<bf16>(s[n], q[d], {pair_at(from), pair_at(from + 8)});
            }
        for (int half = 0; half < 2; half++)
            weigh(s, o, max[half], sum[half], 2 * half, query + 8 * half, tile + t2);
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            const float *low = s[2 * j], *high = s[2 * j + 1];
            uint32_t p[4] = {two<bf16>(low[0], low[1]), two<bf16>(low[2], low[3]),
                             two<bf16>(high[0], high[1]), two<bf16>(high[2], high[3])};
            for (int n = 0; n < D / 8; n++) {
                const bf16* from = v + (j * 16 + t2) * STRIDE + n * 8 + g;
                mma_m16n8k16<bf16>(
                    o[n], p,
                    {pair_of(from[0], from[STRIDE]), pair_of(from[8 * STRIDE], from[9 * STRIDE])});
            }
        }
    }
    for (int half = 0; half < 2; half++) {
        for (int m = 1; m < 4; m *= 2) sum[half] += __shfl_xor_sync(~0u, sum[half], m);
        int row = query + 8 * half;
        if (row >= end) continue;
        for (int n = 0; n < D / 8; n++)
            for (int i = 0; i < 2; i++)
                at.out[row * at.width + n * 8 + t2 + i] = to<bf16>(o[n][2 * half + i] / sum[half]);
    }
}

static void run_tensor_cores(backend* b, const attention_case& c) {
    LAUNCH(tensor_cores, grid_of(c), dim3(MMA_THREADS), 0, stream_of(b), call_of(c));
}

// ------------------------------------------------------------------------------------------------
// 5. The one in use (llmc/device/cuda/attention.cuh): the next tile is copied in the background
// (cp.async) while the products of this one run, ldmatrix fetches fragments four at a time and
// transposes values on the way, output is stored in whole lines, and the last tiles of a sequence,
// which take longest, go first; no block is launched for tiles that a sequence lacks.

static void run_in_use(backend* b, const attention_case& c) {
    tensor out = {c.out, c.rows, c.cols, c.cols, &FORMAT_BF16};
    tensor qkv = {c.qkv, c.rows, 3 * c.cols, 3 * c.cols, &FORMAT_BF16};
    packing pack = {c.sequences, c.seq_start, NULL};
    b->attention_forward(b, out, c.stats, qkv, &pack, {c.heads, c.heads, D}, &FORMAT_BF16);
}

// ------------------------------------------------------------------------------------------------
// Cases

// Sequence s is s * `shorter` tokens shorter than the longest.
static const struct {
    int sequences, longest, shorter, heads;
} SHAPES[] = {{3, 70, 33, 2}, {1, 129, 0, 1}, {2, 64, 63, 3}, {8, 1024, 0, 12}, {64, 256, 0, 12}};
enum { SMALL = 3, CASES = sizeof SHAPES / sizeof SHAPES[0] };

static void exact_row(double* out, double* p, const float* qkv, int keys, int width) {
    const float *q = qkv + (size_t)(keys - 1) * 3 * width, *k = qkv + width, *v = k + width;
    double max = -INFINITY, sum = 0;
    for (int j = 0; j < keys; j++) {
        p[j] = 0;
        for (int d = 0; d < D; d++) p[j] += (double)q[d] * k[(size_t)j * 3 * width + d];
        p[j] /= sqrt(D);
        max = fmax(max, p[j]);
    }
    for (int j = 0; j < keys; j++) sum += p[j] = exp(p[j] - max);
    for (int d = 0; d < D; d++) out[d] = 0;
    for (int j = 0; j < keys; j++)
        for (int d = 0; d < D; d++) out[d] += p[j] / sum * v[(size_t)j * 3 * width + d];
}

static void compute_exact(attention_case* c, const bf16* qkv, const int* seq_start) {
    size_t n = (size_t)c->rows * 3 * c->cols;
    float* x = host_array<float>(n);
    double *to = c->exact, *p = host_array<double>(c->longest);
    for (size_t i = 0; i < n; i++) x[i] = __bfloat162float(qkv[i]);
    for (int r = 0, s = 0; r < c->rows; r += c->step) {
        while (r >= seq_start[s + 1]) s++;
        const float* sequence = x + (size_t)seq_start[s] * 3 * c->cols;
        for (int h = 0; h < c->heads; h++, to += D)
            exact_row(to, p, sequence + h * D, r - seq_start[s] + 1, c->cols);
    }
}

static attention_case make_case(backend* b, int number) {
    attention_case c = {};
    auto shape = SHAPES[number];
    int* seq_start = host_array<int>(shape.sequences + 1);
    for (int s = 0; s < shape.sequences; s++) {
        int length = shape.longest - s * shape.shorter;
        seq_start[s + 1] = seq_start[s] + length;
        c.work += 4.0 * D * shape.heads * length * (length + 1) / 2;
    }
    snprintf(c.shape, sizeof c.shape, "%d x %d%s, %d heads", shape.sequences, shape.longest,
             shape.shorter ? " (ragged)" : "", shape.heads);
    c.sequences = shape.sequences;
    c.heads = shape.heads;
    c.longest = shape.longest;
    c.rows = seq_start[shape.sequences];
    c.cols = c.heads * D;
    c.step = check_step(c.rows) | 1;  // odd, to meet every place in a tile
    size_t n = (size_t)c.rows * c.cols, pairs = (size_t)c.rows * c.heads;
    bf16* qkv = random_array(3 * n, 4, 0, 2);
    c.exact = host_array<double>((size_t)blocks_for(c.rows, c.step) * c.cols);
    compute_exact(&c, qkv, seq_start);
    c.qkv = device_array(b, 3 * n, qkv);
    c.out = device_array<bf16>(b, n, NULL);
    c.seq_start = device_array(b, c.sequences + 1, seq_start);
    c.scores = device_array<float>(b, pairs * c.longest, NULL);
    c.stats = device_array<float>(b, pairs * 2, NULL);
    return c;
}

int main(int argc, char** argv) {
    static const rung<attention_case> rungs[] = {
        {"a thread a query, scores in memory", run_scores_in_memory},
        {"online softmax, one pass", run_one_pass},
        {"tiles in shared memory", run_tiles_in_shared_memory},
        {"tensor cores", run_tensor_cores},
        {"in use: background copies, ldmatrix", run_in_use},
    };
    return climb(argc, argv, "attention", rungs, 5, make_case, SMALL, CASES, PRODUCT_RATE);
}
