// The ladder of attention's backward pass: of out = softmax(q k^T / sqrt(head_dim)) v, where a
// query sees the keys up to its own position, from dout to dq, dk and dv. bf16 in and out, fp32 in
// between. See ladder.h, and docs/derivations/attention.md for the formulas:
//
//     p = exp(s - max) / sum of the row     dv = p^T dout     dp = dout v^T
//     ds = p (dp - dout . out)              dk = ds^T q scale     dq = ds k scale
//
// These are five products: s, dv, dp, dk, dq. The sums of dk and dv go over queries, those of dq
// over keys. A block that keeps the one sum in registers needs the other one from many blocks. The
// op in use computes s and dp in two kernels, one for each sum: seven products, and no block needs
// another. The rungs before it compute each product once, and add up dq in other ways. All of them
// add in an order that is fixed, so the same call gives the same bits, always.
//
// The op needs 10 head_dim floating-point operations for each query and key that it sees.
#include "device/cuda/attention.cuh"
#include "ladder.h"
#include "product_rate.h"

constexpr int D = 64;           // head_dim, as in every GPT-2
constexpr int TILE = MMA_TILE;  // keys of a block
constexpr int STEP = mma_shape<D>::BACKWARD_STEP, STRIDE = mma_shape<D>::STRIDE;

struct backward_case : ladder_case {
    attention_call<bf16> call;  // dqkv is the case's out
    tensor dqkv, dout, qkv, attended;
    packing pack;
    int tiles;     // of a head, of all sequences
    float* parts;  // (most tiles of a sequence, heads, rows, D), for rung 2
    float* sums;   // (heads, rows, D), for rung 3
    int* counts;   // 1 + (heads, tiles, 2), for rung 3
};

// {max, 1 / sum, dout . out, ...} of every row and head, which all rungs begin with.
static void run_rows(backend* b, const backward_case& c) {
    int warps = ROW_THREADS / WARP;
    LAUNCH(backward_rows<bf16>, dim3(blocks_for((size_t)c.rows * c.call.heads, warps)),
           dim3(ROW_THREADS), 0, stream_of(b), c.call);
}

// ------------------------------------------------------------------------------------------------
// 1. A thread for each row, as the formulas say: one kernel for queries, one for keys.

static __device__ inline float dot(const bf16* a, const bf16* b) {
    float sum = 0;
#pragma unroll 8  // or the compiler keeps whole rows in registers, and there are too few
    for (int d = 0; d < D; d++) sum = num_fma(to_float(a[d]), to_float(b[d]), sum);
    return sum;
}

// A sequence's rows of a head.
struct plain_rows {
    matrix<bf16> q, k, v, dout;
    const query_stats* stats;
    float scale;
};
static __device__ inline plain_rows rows_of(const attention_call<bf16>& x, const tile_place& at,
                                            int head) {
    return {head_of(x.qkv, x, at, Q_PART, head),           head_of(x.qkv, x, at, K_PART, head),
            head_of(x.qkv, x, at, V_PART, head),           head_of(x.dout, x, at, Q_PART, head),
            x.queries + (int64_t)head * x.rows + at.start, x.scale};
}
static __device__ inline gradient_pair gradient_of(const plain_rows& x, int query, int key) {
    float s = dot(row_at(x.q, query), row_at(x.k, key)) * x.scale;
    float dp = dot(row_at(x.dout, query), row_at(x.v, key));
    return gradient_of(s, dp, x.stats[query], true);
}
static __device__ inline void add_row(float (&sum)[D], float factor, const bf16* row) {
    for (int d = 0; d < D; d++) sum[d] = num_fma(factor, to_float(row[d]), sum[d]);
}
static __device__ inline void store_row(bf16* row, const float (&x)[D], float factor) {
    for (int d = 0; d < D; d++) row[d] = to<bf16>(x[d] * factor);
}

static __global__ void __launch_bounds__(TILE) plain_queries(attention_call<bf16> x) {
    tile_place at = place_of(x.pack, blockIdx.x, TILE);
    int query = at.first + threadIdx.x, head = blockIdx.y;
    if (query >= at.length) return;
    plain_rows rows = rows_of(x, at, head);
    float dq[D] = {};
    for (int key = 0; key <= query; key++)
        add_row(dq, gradient_of(rows, query, key).ds, row_at(rows.k, key));
    store_row(row_at(head_of(x.dqkv, x, at, Q_PART, head), query), dq, x.scale);
}

static __global__ void __launch_bounds__(TILE) plain_keys(attention_call<bf16> x) {
    tile_place at = place_of(x.pack, blockIdx.x, TILE);
    int key = at.first + threadIdx.x, head = blockIdx.y;
    if (key >= at.length) return;
    plain_rows rows = rows_of(x, at, head);
    float dk[D] = {}, dv[D] = {};
    for (int query = key; query < at.length; query++) {
        gradient_pair g = gradient_of(rows, query, key);
        add_row(dk, g.ds, row_at(rows.q, query));
        add_row(dv, g.p, row_at(rows.dout, query));
    }
    store_row(row_at(head_of(x.dqkv, x, at, K_PART, head), key), dk, x.scale);
    store_row(row_at(head_of(x.dqkv, x, at, V_PART, head), key), dv, 1.0f);
}

static void run_plain(backend* b, const backward_case& c) {
    dim3 grid(c.tiles, c.call.heads);
    run_rows(b, c);
    LAUNCH(plain_queries, grid, dim3(TILE), 0, stream_of(b), c.call);
    LAUNCH(plain_keys, grid, dim3(TILE), 0, stream_of(b), c.call);
}

// ------------------------------------------------------------------------------------------------
// 2 and 3. One pass on tensor cores: a block has 64 keys, a warp 16 of them, and walks over the
// queries that see them, 32 a step, from the block's own tile on. Scores and dp are transposed, a
// row for each key, as in backward_keys_mma; so dk and dv stay in registers. dq sums over keys, and
// so over the warps: ds goes through shared memory, and there each warp takes all 64 keys and 32
// queries, but only 16 of the 64 columns of dq. Its part of k never changes and stays in registers.

constexpr int DS_STRIDE = STEP + 8;  // of a key's row of ds: 8 rows begin in different banks
constexpr int DQ_COLUMNS = D / (MMA_THREADS / WARP);
static_assert(DQ_COLUMNS == 16 && STEP == 32 && TILE == 64);

// Where the sums of dq come together.
struct dq_call {
    float* parts;  // rung 2: (tiles of keys, heads, rows, D); rung 3: sums, (heads, rows, D)
    int* ticket;   // rung 3: how many blocks have started
    int* counts;   // (heads, tiles, 2): how many parts each step's queries have got
    int tiles;
};

// Shared memory, in bytes.
constexpr size_t ONE_PASS = mma_shape<D>::KEYS + TILE * DS_STRIDE * sizeof(bf16);

// The columns of k, for products with all keys: fragments of 16 keys and 8 columns.
static __device__ inline void load_columns(uint32_t (&right)[TILE / 16][4], const bf16* k) {
    int lane = threadIdx.x % WARP;
    k += lane % 16 * STRIDE + threadIdx.x / WARP * DQ_COLUMNS + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) ldmatrix_x4_trans(right[j], k + j * 16 * STRIDE);
}

// ds of the warp's 16 keys, as mma_scores left it, to its rows of shared memory.
static __device__ inline void keep_ds(bf16* rows, const float (&ds)[STEP / 8][4]) {
    int lane = threadIdx.x % WARP;
    rows += lane / 4 * DS_STRIDE + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
        for (int half = 0; half < 2; half++) {
            *(uint32_t*)(rows + half * 8 * DS_STRIDE + n * 8) =
                two<bf16>(ds[n][2 * half], ds[n][2 * half + 1]);
        }
}

// dq = ds k for 16 queries and the warp's columns. `ds`: the first key's, from the first query on.
static __device__ inline void multiply_ds(float (&dq)[2][4], const bf16* ds,
                                          const uint32_t (&right)[TILE / 16][4]) {
    int lane = threadIdx.x % WARP;
    ds += (lane / 16 * 8 + lane % 8) * DS_STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < 2; n++)
        for (int e = 0; e < 4; e++) dq[n][e] = 0;
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
        uint32_t left[4];
        ldmatrix_x4_trans(left, ds + j * 16 * DS_STRIDE);
        mma_m16n8k16<bf16>(dq[0], left, {right[j][0], right[j][1]});
        mma_m16n8k16<bf16>(dq[1], left, {right[j][2], right[j][3]});
    }
}

// Handing over (rung 3). A step's queries get the part of their own tile's keys first, then that of
// the tile before, and so on to the first tile: an order that no schedule changes. The block of the
// tile n before theirs waits until n parts have been added, adds its own, and says so. What one
// block wrote the next one sees: threads write, a barrier of the block comes, one thread stores the
// count (release); one thread of the next block reads it (acquire), a barrier comes, threads read.
//
// No block waits for ever. A block's place comes from a ticket, and tickets count a head's tiles
// from the last to the first. So it waits only for blocks with smaller tickets, which have started;
// the smallest ticket of those that are not done waits for nobody. blockIdx would not do: nothing
// says in which order blocks start. Blocks that start together walk side by side, each at its own
// tile, then at the next: a block comes to each step just after the one that it waits for.
static __device__ inline int count_now(const int* count) {
    int n;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(count) : "memory");
    return n;
}
static __device__ inline void set_count(int* count, int n) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(count), "r"(n) : "memory");
}

// Adds the block's part to the dq of 16 queries, from `first` of the block's own on. `before`:
// parts that are there already. The block of the first tile has the last part, and writes the whole
// dq.
template <bool HANDED_OVER>
static __device__ inline void add_dq(const float (&dq)[2][4], const tile_place& at, int head,
                                     int first, int before, const attention_call<bf16>& x,
                                     const dq_call& to) {
    int lane = threadIdx.x % WARP, column = threadIdx.x / WARP * DQ_COLUMNS + lane % 4 * 2;
    for (int half = 0; half < 2; half++) {
        int r = at.first + first + half * 8 + lane / 4;
        if (r >= at.length) continue;
        float* sum = to.parts + (head * x.rows + (int64_t)(at.start + r)) * D + column;
        if (!HANDED_OVER) sum += (int64_t)(at.first / TILE) * x.heads * x.rows * D;
        bf16* whole = row_at(head_of(x.dqkv, x, at, Q_PART, head), r) + column;
        for (int n = 0; n < 2; n++) {
            float2 pair = make_float2(dq[n][2 * half], dq[n][2 * half + 1]);
            float2* at_sum = (float2*)(sum + n * 8);
            if (HANDED_OVER && before) pair = {at_sum->x + pair.x, at_sum->y + pair.y};
            if (HANDED_OVER && at.first == 0) {
                *(uint32_t*)(whole + n * 8) = two<bf16>(pair.x * x.scale, pair.y * x.scale);
            } else {
                *at_sum = pair;
            }
        }
    }
}

template <bool HANDED_OVER>
static __global__ void __launch_bounds__(MMA_THREADS, 2)  // at 3 it would spill
    one_pass(attention_call<bf16> x, dq_call to) {
    constexpr int BUFFER = STEP * STRIDE;
    DYN_SHARED(packet<bf16>, memory);
    bf16 *k = (bf16*)memory, *v = k + TILE * STRIDE;
    bf16 *q = v + TILE * STRIDE, *dout = q + 2 * BUFFER;
    query_stats* queries = (query_stats*)(dout + 2 * BUFFER);
    bf16* ds_rows = (bf16*)(queries + 2 * STEP);
    int number = blockIdx.x, head = blockIdx.y;
    if (HANDED_OVER) {
        __shared__ int ticket;
        if (threadIdx.x == 0) ticket = atomicAdd(to.ticket, 1);
        __syncthreads();
        number = to.tiles - 1 - ticket % to.tiles;
        head = ticket / to.tiles;
    }
    tile_place at = place_of(x.pack, number, TILE);
    if (at.first >= at.length) return;
    int steps = (at.length - at.first + STEP - 1) / STEP;
    auto load_step = [&](int step) {
        int buffer = step % 2 * BUFFER, first = at.first + step * STEP;
        mma_load<D, STEP>(q + buffer, head_of(x.qkv, x, at, Q_PART, head), first, at.length, x);
        mma_load<D, STEP>(dout + buffer, head_of(x.dout, x, at, Q_PART, head), first, at.length, x);
        const query_stats* from = x.queries + (int64_t)head * x.rows + at.start + first;
        if (threadIdx.x < STEP)  // p = exp(0 - 0) * 0 where there is none
            cp_async_16(queries + step % 2 * STEP + threadIdx.x, from + threadIdx.x,
                        first + (int)threadIdx.x < at.length);
        cp_async_commit();
    };
    mma_load<D, TILE>(k, head_of(x.qkv, x, at, K_PART, head), at.first, at.length, x);
    mma_load<D, TILE>(v, head_of(x.qkv, x, at, V_PART, head), at.first, at.length, x);
    load_step(0);

    int row = threadIdx.x / WARP * 16;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, scale_log2 = x.scale * LOG2_E;
    uint32_t columns[TILE / 16][4];
    int* counts = to.counts + (head * to.tiles + number) * (TILE / STEP);  // of each step
    auto parts_before = [](int step) { return step / (TILE / STEP); };     // that others add first
    auto hand_over = [&](int step) {  // after a barrier; the first tile's block has the last part
        if (threadIdx.x == 0 && at.first > 0) set_count(counts + step, parts_before(step) + 1);
    };
    for (int step = 0; step < steps; step++) {
        int buffer = step % 2 * BUFFER;
        float p[STEP / 8][4], ds[STEP / 8][4];  // transposed: a row for each key
        cp_async_wait<0>();
        __syncthreads();  // the step has arrived; the other buffer and ds are no longer read
        if (HANDED_OVER && step > 0) hand_over(step - 1);
        if (step == 0) load_columns(columns, k);
        if (step + 1 < steps) load_step(step + 1);
        mma_scores<bf16, D, STEP>(p, k + row * STRIDE, q + buffer);
        mma_scores<bf16, D, STEP>(ds, v + row * STRIDE, dout + buffer);
        mma_gradients<STEP>(p, ds, queries + step % 2 * STEP, row, step * STEP, scale_log2);
        keep_ds(ds_rows + row * DS_STRIDE, ds);
        mma_weighted<bf16, D, STEP>(dv, p, dout + buffer);
        mma_weighted<bf16, D, STEP>(dk, ds, q + buffer);
        int before = parts_before(step);
        if (HANDED_OVER && before && threadIdx.x == 0)
            while (count_now(counts + step) != before) {
            }
        __syncthreads();  // all keys' ds are there; the parts before have been added
#pragma unroll 1
        for (int m = 0; m < STEP / 16; m++) {
            float dq[2][4];
            multiply_ds(dq, ds_rows + m * 16, columns);
            add_dq<HANDED_OVER>(dq, at, head, step * STEP + m * 16, before, x, to);
        }
    }
    if (HANDED_OVER) {
        __syncthreads();
        hand_over(steps - 1);
    }

    float scale[2] = {x.scale, x.scale}, one[2] = {1.0f, 1.0f};
    int first = at.first + row, end = at.length;
    mma_store<bf16, D>(head_of(x.dqkv, x, at, K_PART, head), first, end, k + row * STRIDE, dk,
                       scale, x);
    mma_store<bf16, D>(head_of(x.dqkv, x, at, V_PART, head), first, end, v + row * STRIDE, dv, one,
                       x);
}

// Rung 2: each tile of keys has memory of its own for what it adds to dq, and a second kernel adds
// these parts in the order of rung 3. Nobody waits, but the parts are written and read: 4 D bytes
// for each query and tile of keys that it sees.
constexpr int ADD_THREADS = 256;
static __global__ void __launch_bounds__(ADD_THREADS)
    add_parts(attention_call<bf16> x, const float* parts) {
    constexpr int EACH = D / 4;  // threads of a row
    tile_place at = place_of(x.pack, blockIdx.x, TILE);
    int head = blockIdx.y, column = threadIdx.x % EACH * 4;
    int end = min(at.first + TILE, at.length);
    for (int r = at.first + threadIdx.x / EACH; r < end; r += ADD_THREADS / EACH) {
        int64_t place = ((int64_t)head * x.rows + at.start + r) * D + column;
        int64_t apart = (int64_t)x.heads * x.rows * D;
        packet<float> sum = packet_load(parts + at.first / TILE * apart + place);
        for (int tile = at.first / TILE - 1; tile >= 0; tile--) {
            packet<float> part = packet_load(parts + tile * apart + place);
            for (int i = 0; i < 4; i++) sum.v[i] += part.v[i];
        }
        *(uint2*)(row_at(head_of(x.dqkv, x, at, Q_PART, head), r) + column) = {
            two<bf16>(sum.v[0] * x.scale, sum.v[1] * x.scale),
            two<bf16>(sum.v[2] * x.scale, sum.v[3] * x.scale)};
    }
}

static void run_parts(backend* b, const backward_case& c) {
    dim3 grid(c.tiles, c.call.heads);
    run_rows(b, c);
    dq_call to = {c.parts, NULL, NULL, c.tiles};
    LAUNCH(one_pass<false>, grid, dim3(MMA_THREADS), ONE_PASS, stream_of(b), c.call, to);
    LAUNCH(add_parts, grid, dim3(ADD_THREADS), 0, stream_of(b), c.call, c.parts);
}

static void run_handed_over(backend* b, const backward_case& c) {
    dim3 grid(c.tiles, c.call.heads);
    size_t counts = 1 + (size_t)c.call.heads * c.tiles * (TILE / STEP);
    run_rows(b, c);
    CUDA_CHECK(cudaMemsetAsync(c.counts, 0, counts * sizeof(int), stream_of(b)));
    dq_call to = {c.sums, c.counts, c.counts + 1, c.tiles};
    LAUNCH(one_pass<true>, grid, dim3(MMA_THREADS), ONE_PASS, stream_of(b), c.call, to);
}

// ------------------------------------------------------------------------------------------------
// 4. The one in use (llmc/device/cuda/attention.cuh): a kernel for keys and one for queries, which
// both compute s and dp.

static void run_in_use(backend* b, const backward_case& c) {
    cuda_attention_backward(b, c.dqkv, c.dout, c.qkv, c.attended, c.call.stats, &c.pack,
                            {c.call.heads, c.call.heads, D}, &FORMAT_BF16, &FORMAT_BF16);
}

// ------------------------------------------------------------------------------------------------
// Cases

// Sequence s is s * `shorter` tokens shorter than the longest.
static const struct {
    int sequences, longest, shorter, heads;
} SHAPES[] = {{3, 70, 33, 2}, {1, 321, 0, 1}, {2, 64, 63, 3}, {8, 1024, 0, 12}, {64, 256, 0, 12}};
enum { SMALL = 3, CASES = sizeof SHAPES / sizeof SHAPES[0] };

// What the reference reads: the same values as the rungs, on the host.
struct exact_inputs {
    const float *qkv, *dout, *stats;
    const double* dots;  // dout . out of each row and head
    int heads;
};

static double exact_dot(const float* a, const float* b) {
    double sum = 0;
    for (int d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

// {p, ds} of a query and a key, by their rows.
struct exact_pair {
    double p, ds;
};
static exact_pair exact_gradient(const exact_inputs& x, int query, int key, int head) {
    size_t width = (size_t)x.heads * D, item = (size_t)query * x.heads + head;
    const float* q = x.qkv + 3 * width * query + head * D;
    const float* k = x.qkv + 3 * width * key + width + head * D;
    double s = exact_dot(q, k) / sqrt(D), dp = exact_dot(x.dout + item * D, k + width);
    double p = exp(s - x.stats[2 * item]) / x.stats[2 * item + 1];
    return {p, p * (dp - x.dots[item])};
}

// dq, dk and dv of a row of the sequence in rows begin .. end - 1, and a head.
static void exact_row(double* dq, double* dk, double* dv, const exact_inputs& x, int begin, int end,
                      int row, int head) {
    size_t width = (size_t)x.heads * D;
    for (int d = 0; d < D; d++) dq[d] = dk[d] = dv[d] = 0;
    for (int key = begin; key <= row; key++) {
        double ds = exact_gradient(x, row, key, head).ds / sqrt(D);
        const float* k = x.qkv + 3 * width * key + width + head * D;
        for (int d = 0; d < D; d++) dq[d] += ds * k[d];
    }
    for (int query = row; query < end; query++) {
        exact_pair g = exact_gradient(x, query, row, head);
        const float *q = x.qkv + 3 * width * query + head * D, *dout = x.dout + width * query;
        for (int d = 0; d < D; d++) {
            dk[d] += g.ds / sqrt(D) * q[d];
            dv[d] += g.p * dout[head * D + d];
        }
    }
}

static float* floats_of(const bf16* x, size_t n) {
    float* to = host_array<float>(n);
    for (size_t i = 0; i < n; i++) to[i] = __bfloat162float(x[i]);
    return to;
}

static void compute_exact(backend* b, backward_case* c, const bf16* qkv, const bf16* dout,
                          const int* seq_start) {
    int heads = c->call.heads, width = heads * D;
    size_t items = (size_t)c->rows * heads;
    bf16* out = host_array<bf16>(items * D);
    float* stats = host_array<float>(items * 2);
    double* dots = host_array<double>(items);
    b->download(b, out, c->attended.data, items * D * sizeof(bf16));
    b->download(b, stats, c->call.stats, items * 2 * sizeof(float));
    exact_inputs x = {floats_of(qkv, 3 * items * D), floats_of(dout, items * D), stats, dots,
                      heads};
    const float* attended = floats_of(out, items * D);
    for (size_t i = 0; i < items; i++) dots[i] = exact_dot(x.dout + i * D, attended + i * D);
    double* to = c->exact;
    for (int r = 0, s = 0; r < c->rows; r += c->step, to += 3 * width) {
        while (r >= seq_start[s + 1]) s++;
        for (int h = 0; h < heads; h++)
            exact_row(to + h * D, to + width + h * D, to + 2 * width + h * D, x, seq_start[s],
                      seq_start[s + 1], r, h);
    }
}

static backward_case make_case(backend* b, int number) {
    backward_case c = {};
    auto shape = SHAPES[number];
    int* seq_start = host_array<int>(shape.sequences + 1);
    for (int s = 0; s < shape.sequences; s++) {
        int length = shape.longest - s * shape.shorter;
        seq_start[s + 1] = seq_start[s] + length;
        c.work += 10.0 * D * shape.heads * length * (length + 1) / 2;
    }
    snprintf(c.shape, sizeof c.shape, "%d x %d%s, %d heads", shape.sequences, shape.longest,
             shape.shorter ? " (ragged)" : "", shape.heads);
    int heads = shape.heads, width = heads * D;
    c.rows = seq_start[shape.sequences];
    c.cols = 3 * width;
    c.outputs = 3;
    c.step = check_step(c.rows) | 1;  // odd, to meet every place in a tile
    c.tiles = tile_grid(c.rows, shape.sequences, heads, TILE).x;
    size_t n = (size_t)c.rows * width, most_tiles = blocks_for(shape.longest, TILE);
    bf16 *qkv = random_array(3 * n, 4, 0, 2), *dout = random_array(n, 5, 0, 1);
    c.out = device_array<bf16>(b, 3 * n, NULL);
    c.parts = device_array<float>(b, most_tiles * n, NULL);
    c.sums = device_array<float>(b, n, NULL);
    c.counts = device_array<int>(b, 1 + (size_t)heads * c.tiles * (TILE / STEP), NULL);
    c.pack = {shape.sequences, device_array(b, shape.sequences + 1, seq_start), NULL};
    c.dqkv = {c.out, c.rows, 3 * width, 3 * width, &FORMAT_BF16};
    c.qkv = {device_array(b, 3 * n, qkv), c.rows, 3 * width, 3 * width, &FORMAT_BF16};
    c.dout = {device_array(b, n, dout), c.rows, width, width, &FORMAT_BF16};
    c.attended = {device_array<bf16>(b, n, NULL), c.rows, width, width, &FORMAT_BF16};
    head_shape all = {heads, heads, D};
    c.call = attention_call_of<bf16>(c.attended, c.qkv, &c.pack, all, &FORMAT_BF16);
    c.call.dout = matrix_of<bf16>(c.dout);
    c.call.dqkv = matrix_of<bf16>(c.dqkv);
    c.call.stats = device_array<float>(b, (size_t)c.rows * heads * 2, NULL);
    c.call.queries = device_array<query_stats>(b, (size_t)c.rows * heads, NULL);
    cuda_attention_forward(b, c.attended, c.call.stats, c.qkv, &c.pack, all, &FORMAT_BF16);
    c.exact = host_array<double>((size_t)blocks_for(c.rows, c.step) * c.cols);
    compute_exact(b, &c, qkv, dout, seq_start);
    return c;
}

int main(int argc, char** argv) {
    static const rung<backward_case> rungs[] = {
        {"a thread a row", run_plain},
        {"one pass, parts of dq in memory", run_parts},
        {"one pass, dq handed from block to block", run_handed_over, true},
        {"in use: two kernels, 7 products", run_in_use},
    };
    return climb(argc, argv, "backward", rungs, 4, make_case, SMALL, CASES, PRODUCT_RATE);
}
