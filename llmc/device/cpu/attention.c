// Causal attention (Vaswani et al., arXiv 1706.03762), a few queries at a time. Keys come in blocks
// of 16 that count from the first key, transposed so that 16 keys lie in the lanes; values in
// blocks of 16 rows. Training lays them out so for each head of each sequence; the cache holds them
// so in its pages. Every sum is a chain of its own, so it does not matter which queries share a
// tile: a token decoded through the cache gets the bits of the same token in a training forward.
#include "attention.h"

#include "ops.h"

enum {
    KEY_BLOCK = 256,  // the contract's k-block, in keys
    NV = 16 / VL,     // vectors of 16 floats
    // Queries of a tile, or keys in backward: as many as keep their sums in registers.
    TILE = VL == 16  ? 8
           : VL == 8 ? 6
                     : 4,
    CACHED_TILE = VL == 4 ? 1 : 4,
    SUMS = TILE * NV > 4 * NV ? TILE* NV : 4 * NV,
    POINTER_FLOATS = sizeof(void*) / sizeof(float)  // what a pointer takes of scratch memory
};

// What a tile works on. Query i of the tile sees n keys, or n + i if `causal`.
typedef struct tile {
    const void *const *keys, *const *values;  // blocks of 16, kept as one storage
    const float* q;                           // (TILE, padded) operands
    float *score, *sum;                       // (TILE, width), (TILE, padded)
    int64_t width;
    int n, causal, head_dim;
} tile;

static int seen(const tile* t, int i) { return t->causal ? t->n + i : t->n; }

// score[i][j] = q_i . k_j * scale for the 16 keys of each of `wide` blocks.
INLINE void score_blocks(const int rows, const int wide, const storage kept, float* score,
                         const tile* t, const float* q, const void* const* keys, float scale) {
    int64_t padded = padded_dim(t->head_dim);
    vf sum[SUMS];
    UNROLL
    for (int v = 0; v < rows * wide * NV; v++) sum[v] = vf_set(0);
    for (int d = 0; d < t->head_dim; d++) {
        vf k[4 * NV];
        UNROLL
        for (int v = 0; v < wide * NV; v++)
            k[v] = vf_kept(kept, keys[v / NV], d * KV_PAGE + v % NV * VL);
        UNROLL
        for (int i = 0; i < rows; i++) {
            vf qi = vf_set(q[i * padded + d]);
            UNROLL
            for (int v = 0; v < wide * NV; v++)
                sum[i * wide * NV + v] = vf_fma(qi, k[v], sum[i * wide * NV + v]);
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++) UNROLL
    for (int v = 0; v < wide * NV; v++)
        vf_store(score + i * t->width + v * VL, vf_mul(sum[i * wide * NV + v], vf_set(scale)));
}

// The same for `blocks` blocks: fewer queries take more keys at a time.
INLINE void scores(const int rows, const storage kept, float* score, const tile* t, const float* q,
                   const void* const* keys, int blocks, float scale) {
    const int wide = rows == 1 ? 4 : 2 * rows <= TILE ? 2 : 1;
    int b = 0;
    for (; b + wide <= blocks; b += wide)
        score_blocks(rows, wide, kept, score + b * KV_PAGE, t, q, keys + b, scale);
    for (; wide > 1 && b < blocks; b++)
        score_blocks(rows, 1, kept, score + b * KV_PAGE, t, q, keys + b, scale);
}

// sum_i += p_ij v_j for 16 * wide columns of the values of key j, which lie at `at` of their block,
// and queries from `first` on.
INLINE void weigh_row(const int rows, const int wide, const storage kept, vf* sum, const float* p,
                      int64_t width, const void* block, int64_t at, int first) {
    UNROLL
    for (int i = 0; i < rows; i++) {
        if (i < first) continue;
        vf pi = vf_set(p[i * width]);
        UNROLL
        for (int c = 0; c < wide * NV; c++)
            sum[i * wide * NV + c] =
                vf_fma(pi, vf_kept(kept, block, at + c * VL), sum[i * wide * NV + c]);
    }
}

// Weighted values of 16 * wide columns, of which the values' first is d.
INLINE void weigh_columns(const int rows, const int wide, const storage kept, const tile* t,
                          const void* const* values, const float* p, int d) {
    int padded = padded_dim(t->head_dim);
    for (int j0 = 0; j0 < t->n; j0 += KEY_BLOCK) {
        int j1 = j0 + KEY_BLOCK < t->n ? j0 + KEY_BLOCK : t->n;
        vf sum[SUMS];
        UNROLL
        for (int v = 0; v < rows * wide * NV; v++) sum[v] = vf_set(0);
        for (int j = j0; j < j1;) {
            const void* block = values[j / KV_PAGE];
            int end = (j / KV_PAGE + 1) * KV_PAGE < j1 ? (j / KV_PAGE + 1) * KV_PAGE : j1;
            for (int at = j % KV_PAGE * padded + d; j < end; j++, at += padded)
                weigh_row(rows, wide, kept, sum, p + j, t->width, block, at, 0);
        }
        // Later queries of the tile see more keys, which lie in the same k-block (tile_height).
        if (t->causal && j1 == t->n) UNROLL
        for (int i = 1; i < rows; i++) {
            int j = t->n + i - 1;
            weigh_row(rows, wide, kept, sum, p + j, t->width, values[j / KV_PAGE],
                      j % KV_PAGE * padded + d, i);
        }
        UNROLL
        for (int i = 0; i < rows; i++) UNROLL
        for (int v = 0; v < wide * NV; v++) {
            float* to = t->sum + i * padded + d + v * VL;
            vf x = sum[i * wide * NV + v];
            vf_store(to, j0 ? vf_add(vf_load(to), x) : x);
        }
    }
}

// sum_i = sum_j p_ij v_j, all columns.
INLINE void weigh(const int rows, const storage kept, const tile* t, const void* const* values,
                  const float* p) {
    const int wide = rows == 1 ? 4 : 2 * rows <= TILE ? 2 : 1;
    int d = 0, padded = padded_dim(t->head_dim);
    for (; d + 16 * wide <= padded; d += 16 * wide)
        weigh_columns(rows, wide, kept, t, values, p, d);
    for (; wide > 1 && d < padded; d += 16) weigh_columns(rows, 1, kept, t, values, p, d);
}

// Scores p of a query that sees n keys become exp(p - max), rounded; stats = {max, sum}. Whole
// blocks: the last one's other keys get the weight 0. Not inline: once for all heights.
static NOINLINE void softmax(float* p, float stats[2], int n, int whole, const format* operand) {
    for (int j = n; j < whole; j++) p[j] = -__builtin_inff();
    float max = row_max(p, whole);
    SIMD
    for (int j = 0; j < whole; j++) p[j] = num_expf(p[j] - max);
    stats[0] = max;
    stats[1] = row_sum(p, whole);
    row_round(p, n, operand);
}

// Forward: out of query i, (head_dim) at out + i * out_stride; stats (2) likewise.
typedef struct forward_tile {
    tile t;
    float *out, *stats;
    int64_t out_stride, stats_stride;
    const format *operand, *round;
} forward_tile;

static NOINLINE void divide(float* out, const float* sum, float total, int n, const format* round) {
    SIMD
    for (int d = 0; d < n; d++) out[d] = sum[d] / total;
    row_round(out, n, round);
}

INLINE void forward_rows(const int rows, const storage kept, const forward_tile* f) {
    const tile* t = &f->t;
    int whole = padded_dim(seen(t, rows - 1)), padded = padded_dim(t->head_dim);
    float scale = 1.0f / __builtin_sqrtf((float)t->head_dim);
    scores(rows, kept, t->score, t, t->q, t->keys, whole / KV_PAGE, scale);
    for (int i = 0; i < rows; i++)
        softmax(t->score + i * t->width, f->stats + i * f->stats_stride, seen(t, i), whole,
                f->operand);
    weigh(rows, kept, t, t->values, t->score);
    for (int i = 0; i < rows; i++) {
        float total = f->stats[i * f->stats_stride + 1];
        divide(f->out + i * f->out_stride, t->sum + i * padded, total, t->head_dim, f->round);
    }
}

// Backward, for one query head of one sequence, with p = exp(s - max) / sum and D_i = dout_i .
// out_i:
//   dp_ij = dout_i . v_j, ds = p (dp - D), dq_i = scale sum_j ds_ij k_j,
//   dk_j = scale sum_i ds_ij q_i, dv_j = sum_i p_ij dout_i
// (Dao, arXiv 2307.08691, section 3.1). dq is a sum over keys like the output; the chains of dk and
// dv run over the queries in order, QUERIES at a time; they are carried on from one group of
// queries to the next, from one query head to the next that reads the same key head, and from a
// sequence to those that continue it.
enum { QUERIES = 48 };

// p and ds of the tile's queries, as operands, and their dq.
typedef struct backward_tile {
    tile t;                      // keys and values transposed; score: p; sum: dq
    const void* const* k_rows;   // blocks of the keys' rows
    const float* dout;           // (TILE, padded) operands
    float* ds;                   // (TILE, width)
    const float *delta, *stats;  // D and {max, sum} of each query
    int64_t stats_stride;
    const format *operand, *gradient;
} backward_tile;

// Scores p and products ds become operands; stats = {max, sum} of the scores.
static NOINLINE void softmax_backward(float* p, float* ds, const float stats[2], float delta, int n,
                                      const backward_tile* b) {
    float max = stats[0], total = stats[1];
    SIMD
    for (int j = 0; j < n; j++) {
        p[j] = num_expf(p[j] - max) / total;
        ds[j] = p[j] * (ds[j] - delta);
    }
    row_round(p, n, b->operand);
    row_round(ds, n, b->gradient);
}

INLINE void backward_rows(const int rows, const backward_tile* b) {
    const tile* t = &b->t;
    int whole = padded_dim(seen(t, rows - 1));  // keys that a query does not see are not read
    float scale = 1.0f / __builtin_sqrtf((float)t->head_dim);
    scores(rows, KEPT_FP32, t->score, t, t->q, t->keys, whole / KV_PAGE, scale);
    scores(rows, KEPT_FP32, b->ds, t, b->dout, t->values, whole / KV_PAGE, 1.0f);
    for (int i = 0; i < rows; i++)
        softmax_backward(t->score + i * t->width, b->ds + i * t->width,
                         b->stats + i * b->stats_stride, b->delta[i], whole, b);
    weigh(rows, KEPT_FP32, t, b->k_rows, b->ds);
}

// sum_r += x_ir row_i, of 16 columns, for keys r and queries i < count; of the first queries, query
// i sees keys r <= i + ahead.
typedef struct key_tile {
    float* sum;
    const float *x, *rows;
    int64_t padded, width;
    int count, ahead;
} key_tile;

INLINE void carry_rows(const int keys, const key_tile* k) {
    vf sum[SUMS];
    const float *x = k->x, *row = k->rows;
    int i = 0;
    UNROLL
    for (int r = 0; r < keys; r++) UNROLL
    for (int v = 0; v < NV; v++) sum[r * NV + v] = vf_load(k->sum + r * k->padded + v * VL);
    for (; i + k->ahead < keys - 1 && i < k->count; i++, x += k->width, row += k->padded) UNROLL
    for (int r = 0; r < keys; r++) UNROLL
    for (int v = 0; v < NV; v++)
        if (r <= i + k->ahead)
            sum[r * NV + v] = vf_fma(vf_set(x[r]), vf_load(row + v * VL), sum[r * NV + v]);
    for (; i < k->count; i++, x += k->width, row += k->padded) UNROLL
    for (int r = 0; r < keys; r++) UNROLL
    for (int v = 0; v < NV; v++)
        sum[r * NV + v] = vf_fma(vf_set(x[r]), vf_load(row + v * VL), sum[r * NV + v]);
    UNROLL
    for (int r = 0; r < keys; r++) UNROLL
    for (int v = 0; v < NV; v++) vf_store(k->sum + r * k->padded + v * VL, sum[r * NV + v]);
}

// One compiled kernel for each height of a tile; over 16-bit caches up to CACHED_TILE, since
// kernels that few ask for cost as much to compile.
// clang-format off
#define HEIGHT(rows)                                                                                \
    static NOINLINE void forward_##rows(const forward_tile* f) { forward_rows(rows, KEPT_FP32, f); } \
    static NOINLINE void backward_##rows(const backward_tile* b) { backward_rows(rows, b); } \
    static NOINLINE void carry_##rows(const key_tile* k) { carry_rows(rows, k); }
#define HALF_HEIGHT(rows) \
    static NOINLINE void bf16_##rows(const forward_tile* f) { forward_rows(rows, KEPT_BF16, f); } \
    static NOINLINE void fp16_##rows(const forward_tile* f) { forward_rows(rows, KEPT_FP16, f); }
HEIGHT(1) HEIGHT(2) HEIGHT(3) HEIGHT(4)
HALF_HEIGHT(1)
#if !defined(ISA_c)
HALF_HEIGHT(2) HALF_HEIGHT(3) HALF_HEIGHT(4)
#define HALF_HEIGHTS(name) {NULL, name##_1, name##_2, name##_3, name##_4}
#else
#define HALF_HEIGHTS(name) {NULL, name##_1}
#endif
#if defined(ISA_avx2) || defined(ISA_avx512)
HEIGHT(5) HEIGHT(6)
#endif
#if defined(ISA_avx512)
HEIGHT(7) HEIGHT(8)
#define HEIGHTS(name) {NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}
#elif defined(ISA_avx2)
#define HEIGHTS(name) {NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}
#else
#define HEIGHTS(name) {NULL, name##_1, name##_2, name##_3, name##_4}
#endif
static void (*const FORWARD[][TILE + 1])(const forward_tile*) = {
    [KEPT_FP32] = HEIGHTS(forward), [KEPT_BF16] = HALF_HEIGHTS(bf16), [KEPT_FP16] = HALF_HEIGHTS(fp16)};
static void (*const BACKWARD[TILE + 1])(const backward_tile*) = HEIGHTS(backward);
static void (*const CARRY[TILE + 1])(const key_tile*) = HEIGHTS(carry);
// clang-format on

// The height of the tile whose first query is at `position`, of `left` queries. The keys that its
// queries see then end in one k-block.
static int tile_height(int position, int left) {
    int height = left < TILE ? left : TILE, room = KEY_BLOCK - position % KEY_BLOCK;
    return height < room ? height : room;
}

// A head's row as operands, padded with zeros.
INLINE void put_row(float* to, const float* from, int head_dim, const format* operand) {
    for (int d = 0; d < head_dim; d++) to[d] = from[d];
    row_round(to, head_dim, operand);
    for (int d = head_dim; d < padded_dim(head_dim); d++) to[d] = 0;
}

// A row of operands into the lane of key j of its block.
INLINE void put_transposed(float* blocks, const float* row, int j, int head_dim) {
    float* to = blocks + j / KV_PAGE * block_size(head_dim) + j % KV_PAGE;
    for (int d = 0; d < head_dim; d++) to[d * KV_PAGE] = row[d];
}

// ---------------------------------------------------------------------------------------------
// Packed batches

// A sequence: its rows, and how many keys it finds in its prefix.
typedef struct span {
    int first, n, shared;
} span;

static span span_of(const packing* pack, int s) {
    int prefix = prefix_of(pack, s);
    span a = {pack->start[s], pack->start[s + 1] - pack->start[s], 0};
    if (prefix >= 0) a.shared = pack->start[prefix + 1] - pack->start[prefix];
    return a;
}

// Whether s is `root` or continues it.
static int belongs(const packing* pack, int s, int root) {
    return s < pack->sequences && (s == root || prefix_of(pack, s) == root);
}

// Blocks that the keys of any sequence take.
static int most_blocks(const packing* pack) {
    int most = 0;
    for (int s = 0; s < pack->sequences; s++) {
        span a = span_of(pack, s);
        if (a.shared + a.n > most) most = a.shared + a.n;
    }
    return (most + KV_PAGE - 1) / KV_PAGE;
}

// Where a row of qkv has query head h, and the key head and the values that it reads.
INLINE int query_at_column(head_shape heads, int h) { return h * heads.dim; }
INLINE int key_head(head_shape heads, int h) { return h / (heads.query / heads.kv); }
INLINE int key_at_column(head_shape heads, int g) { return (heads.query + g) * heads.dim; }
INLINE int value_at_column(head_shape heads, int g) {
    return (heads.query + heads.kv + g) * heads.dim;
}

// What a thread needs forward. The keys and values of a sequence that others continue stay where
// they are while those come and go behind them.
typedef struct forward_head {
    int blocks;
    const void **key, **value;  // (blocks)
    float *keys, *values;       // (blocks, block_size)
    float *q, *score, *sum;     // (TILE, padded), (TILE, 16 blocks), (TILE, padded)
} forward_head;

static size_t whole_lines(size_t floats) { return (floats + 15) / 16 * 16; }

static size_t forward_floats(int blocks, int head_dim) {
    size_t padded = padded_dim(head_dim), pointers = whole_lines(2 * blocks * POINTER_FLOATS);
    return pointers + 2 * blocks * block_size(head_dim) + TILE * (2 * padded + blocks * KV_PAGE);
}

static forward_head forward_head_at(float* memory, int blocks, int head_dim) {
    int64_t stride = block_size(head_dim), padded = padded_dim(head_dim);
    forward_head w = {.blocks = blocks, .key = (const void**)memory};
    w.value = w.key + blocks;
    w.keys = memory + whole_lines(2 * blocks * POINTER_FLOATS);
    w.values = w.keys + blocks * stride;
    w.q = w.values + blocks * stride;
    w.sum = w.q + TILE * padded;
    w.score = w.sum + TILE * padded;
    for (int i = 0; i < blocks; i++) {
        w.key[i] = w.keys + i * stride;
        w.value[i] = w.values + i * stride;
    }
    return w;
}

static void forward_sequence(forward_head* w, tensor out, float* stats, tensor qkv, span a,
                             head_shape heads, int h, const format* operand) {
    int head_dim = heads.dim, padded = padded_dim(head_dim), g = key_head(heads, h);
    for (int i = 0; i < a.n; i++) {
        const float* row = row_of(qkv, a.first + i);
        put_row(w->q, row + key_at_column(heads, g), head_dim, operand);
        put_transposed(w->keys, w->q, a.shared + i, head_dim);
        put_row(w->values + (size_t)(a.shared + i) * padded, row + value_at_column(heads, g),
                head_dim, operand);
    }
    forward_tile f = {.t = {.keys = w->key,
                            .values = w->value,
                            .q = w->q,
                            .score = w->score,
                            .sum = w->sum,
                            .width = w->blocks * KV_PAGE,
                            .causal = 1,
                            .head_dim = head_dim},
                      .out_stride = out.stride,
                      .stats_stride = 2 * heads.query,
                      .operand = operand,
                      .round = out.format};
    for (int i = 0, height; i < a.n; i += height) {
        height = tile_height(a.shared + i, a.n - i);
        for (int k = 0; k < height; k++)
            put_row(w->q + k * padded, row_of(qkv, a.first + i + k) + query_at_column(heads, h),
                    head_dim, operand);
        f.t.n = a.shared + i + 1;
        f.out = row_of(out, a.first + i) + h * head_dim;
        f.stats = stats + ((int64_t)(a.first + i) * heads.query + h) * 2;
        FORWARD[KEPT_FP32][height](&f);
    }
}

void ISA(attention_forward)(backend* b, tensor out, float* stats, tensor qkv, const packing* pack,
                            head_shape heads, const format* operand) {
    int blocks = most_blocks(pack);
    size_t each = whole_lines(forward_floats(blocks, heads.dim));
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(float));
    PARALLEL_DYNAMIC(b)
    for (int t = 0; t < pack->sequences * heads.query; t++) {
        int root = t / heads.query, h = t % heads.query;
        if (prefix_of(pack, root) >= 0) continue;
        forward_head w = forward_head_at(memory + cpu_thread() * each, blocks, heads.dim);
        for (int s = root; belongs(pack, s, root); s++)
            forward_sequence(&w, out, stats, qkv, span_of(pack, s), heads, h, operand);
    }
}

// What a thread needs backward, for one key head.
typedef struct backward_head {
    int head_dim, padded, blocks;
    float *q, *dout;                     // (keys, padded) operands of the queries
    float *k, *dk, *dv;                  // (keys, padded)
    float *k_transposed, *v_transposed;  // blocks of 16 keys in the lanes
    const void **k_rows, **k_block, **v_block;
    float *p, *ds;      // (QUERIES, 16 blocks)
    float *dq, *delta;  // (TILE, padded), (TILE)
} backward_head;

static size_t backward_floats(int blocks, int head_dim) {
    size_t padded = padded_dim(head_dim), keys = (size_t)blocks * KV_PAGE;
    return whole_lines(3 * blocks * POINTER_FLOATS) + 7 * keys * padded + 2 * QUERIES * keys +
           TILE * padded + 16;
}

static backward_head backward_head_at(float* memory, int blocks, int head_dim) {
    backward_head w = {.head_dim = head_dim, .padded = padded_dim(head_dim), .blocks = blocks};
    size_t keys = (size_t)blocks * KV_PAGE, rows = keys * w.padded, stride = block_size(head_dim);
    w.k_rows = (const void**)memory;
    w.k_block = w.k_rows + blocks;
    w.v_block = w.k_block + blocks;
    w.q = memory + whole_lines(3 * blocks * POINTER_FLOATS);
    w.dout = w.q + rows;
    w.k = w.dout + rows;
    w.dk = w.k + rows;
    w.dv = w.dk + rows;
    w.k_transposed = w.dv + rows;
    w.v_transposed = w.k_transposed + rows;
    w.p = w.v_transposed + rows;
    w.ds = w.p + QUERIES * keys;
    w.dq = w.ds + QUERIES * keys;
    w.delta = w.dq + TILE * w.padded;
    for (int i = 0; i < blocks; i++) {
        w.k_rows[i] = w.k + i * stride;
        w.k_block[i] = w.k_transposed + i * stride;
        w.v_block[i] = w.v_transposed + i * stride;
    }
    return w;
}

// The keys and values of key head g behind those of the prefix; their dk and dv begin at 0.
static void backward_load_keys(backward_head* w, tensor qkv, span a, head_shape heads, int g,
                               const format* operand) {
    size_t first = (size_t)a.shared * w->padded, floats = (size_t)a.n * w->padded;
    for (int i = 0; i < a.n; i++) {
        const float* row = row_of(qkv, a.first + i);
        float* k = w->k + first + (size_t)i * w->padded;
        put_row(k, row + key_at_column(heads, g), w->head_dim, operand);
        put_row(w->dq, row + value_at_column(heads, g), w->head_dim, operand);
        put_transposed(w->k_transposed, k, a.shared + i, w->head_dim);
        put_transposed(w->v_transposed, w->dq, a.shared + i, w->head_dim);
    }
    memset(w->dk + first, 0, floats * sizeof(float));
    memset(w->dv + first, 0, floats * sizeof(float));
}

static void backward_load_queries(backward_head* w, tensor qkv, tensor dout, span a, int column,
                                  const format* operand, const format* gradient) {
    for (int i = 0; i < a.n; i++) {
        size_t at = (size_t)i * w->padded;
        put_row(w->q + at, row_of(qkv, a.first + i) + column, w->head_dim, operand);
        put_row(w->dout + at, row_of(dout, a.first + i) + column, w->head_dim, gradient);
    }
}

// Queries i0 .. i1 - 1 into dk and dv of every key they see.
static void backward_keys(const backward_head* w, span a, int i0, int i1) {
    int padded = w->padded, end = a.shared + i1;
    for (int j = 0, keys; j < end; j += keys) {
        keys = end - j < TILE ? end - j : TILE;
        int i = j - a.shared > i0 ? j - a.shared : i0;  // earlier queries see none of the keys
        size_t at = (size_t)(i - i0) * w->blocks * KV_PAGE + j, row = (size_t)i * padded;
        key_tile k = {.padded = padded,
                      .width = w->blocks * KV_PAGE,
                      .count = i1 - i,
                      .ahead = a.shared + i - j};
        for (int d = 0; d < padded; d += 16) {
            size_t to = (size_t)j * padded + d;
            k.sum = w->dk + to, k.x = w->ds + at, k.rows = w->q + row + d;
            CARRY[keys](&k);
            k.sum = w->dv + to, k.x = w->p + at, k.rows = w->dout + row + d;
            CARRY[keys](&k);
        }
    }
}

// Query head h: its dq, and its share of dk and dv.
static void backward_query_head(backward_head* w, tensor dqkv, tensor dout, tensor qkv, tensor out,
                                const float* stats, span a, head_shape heads, int h,
                                const format* operand, const format* gradient) {
    int head_dim = w->head_dim, padded = w->padded, width = w->blocks * KV_PAGE;
    float scale = 1.0f / __builtin_sqrtf((float)head_dim);
    backward_tile f = {.t = {.keys = w->k_block,
                             .values = w->v_block,
                             .sum = w->dq,
                             .width = width,
                             .causal = 1,
                             .head_dim = head_dim},
                       .k_rows = w->k_rows,
                       .delta = w->delta,
                       .stats_stride = 2 * heads.query,
                       .operand = operand,
                       .gradient = gradient};
    backward_load_queries(w, qkv, dout, a, query_at_column(heads, h), operand, gradient);
    for (int i0 = 0, i1; i0 < a.n; i0 = i1) {
        i1 = i0 + QUERIES < a.n ? i0 + QUERIES : a.n;
        for (int i = i0, height; i < i1; i += height) {
            height = tile_height(a.shared + i, i1 - i);
            f.t.n = a.shared + i + 1;
            f.t.q = w->q + (size_t)i * padded;
            f.dout = w->dout + (size_t)i * padded;
            f.t.score = w->p + (size_t)(i - i0) * width;
            f.ds = w->ds + (size_t)(i - i0) * width;
            f.stats = stats + ((int64_t)(a.first + i) * heads.query + h) * 2;
            for (int k = 0; k < height; k++) {
                const float* d = row_of(dout, a.first + i + k) + h * head_dim;
                const float* o = row_of(out, a.first + i + k) + h * head_dim;
                for (int c = 0; c < head_dim; c++) w->dq[c] = d[c] * o[c];
                w->delta[k] = row_sum(w->dq, head_dim);
            }
            BACKWARD[height](&f);
            for (int k = 0; k < height; k++) {
                float* to = row_of(dqkv, a.first + i + k) + h * head_dim;
                for (int c = 0; c < head_dim; c++) to[c] = w->dq[k * padded + c] * scale;
                row_round(to, head_dim, dqkv.format);
            }
        }
        backward_keys(w, a, i0, i1);
    }
}

// dk and dv of the sequence's own keys are complete.
static void backward_store_keys(const backward_head* w, tensor dqkv, span a, head_shape heads,
                                int g) {
    float scale = 1.0f / __builtin_sqrtf((float)w->head_dim);
    for (int i = 0; i < a.n; i++) {
        size_t at = (size_t)(a.shared + i) * w->padded;
        float* dk = row_of(dqkv, a.first + i) + key_at_column(heads, g);
        float* dv = row_of(dqkv, a.first + i) + value_at_column(heads, g);
        for (int c = 0; c < w->head_dim; c++) {
            dk[c] = w->dk[at + c] * scale;
            dv[c] = w->dv[at + c];
        }
        row_round(dk, w->head_dim, dqkv.format);
        row_round(dv, w->head_dim, dqkv.format);
    }
}

void ISA(attention_backward)(backend* b, tensor dqkv, tensor dout, tensor qkv, tensor out,
                             const float* stats, const packing* pack, head_shape heads,
                             const format* operand, const format* gradient) {
    int blocks = most_blocks(pack), group = heads.query / heads.kv;
    size_t each = whole_lines(backward_floats(blocks, heads.dim));
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(float));
    PARALLEL_DYNAMIC(b)
    for (int t = 0; t < pack->sequences * heads.kv; t++) {
        int root = t / heads.kv, g = t % heads.kv;
        if (prefix_of(pack, root) >= 0) continue;
        backward_head w = backward_head_at(memory + cpu_thread() * each, blocks, heads.dim);
        for (int s = root; belongs(pack, s, root); s++) {
            span a = span_of(pack, s);
            backward_load_keys(&w, qkv, a, heads, g, operand);
            for (int h = g * group; h < (g + 1) * group; h++)
                backward_query_head(&w, dqkv, dout, qkv, out, stats, a, heads, h, operand,
                                    gradient);
            if (s != root) backward_store_keys(&w, dqkv, a, heads, g);
        }
        backward_store_keys(&w, dqkv, span_of(pack, root), heads, g);
    }
}

// ---------------------------------------------------------------------------------------------
// The cache

static size_t cached_floats(int blocks, int head_dim) {
    size_t pointers = whole_lines(2 * blocks * POINTER_FLOATS);
    return pointers + TILE * (2 * padded_dim(head_dim) + blocks * KV_PAGE + 2);
}

// Query heads that read the same key head are a tile.
void ISA(attention_cached)(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                           const int* row_slot, const int* row_position) {
    head_shape heads = kv->heads;
    int head_dim = heads.dim, padded = padded_dim(head_dim), blocks = kv->pages_per_slot;
    int group = heads.query / heads.kv;
    void (*const* kernel)(const forward_tile*) = FORWARD[kv_storage(kv)];
    const int most = kv_storage(kv) == KEPT_FP32 ? TILE : CACHED_TILE;
    size_t each = whole_lines(cached_floats(blocks, head_dim));
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        int n = row_position[r] + 1;
        if (n <= 0) {
            memset(row_of(out, r), 0, out.cols * sizeof(float));
            continue;
        }
        const int* pages = kv->page_table + (int64_t)row_slot[r] * kv->pages_per_slot;
        float* mine = memory + cpu_thread() * each;
        const void **key = (const void**)mine, **value = key + blocks;
        float* q = mine + whole_lines(2 * blocks * POINTER_FLOATS);
        float *sum = q + TILE * padded, *score = sum + TILE * padded;
        forward_tile f = {.t = {.keys = key,
                                .values = value,
                                .q = q,
                                .score = score,
                                .sum = sum,
                                .width = blocks * KV_PAGE,
                                .n = n,
                                .head_dim = head_dim},
                          .stats = score + TILE * blocks * KV_PAGE,
                          .out_stride = head_dim,
                          .stats_stride = 2,
                          .operand = kv->operand,
                          .round = out.format};
        for (int g = 0; g < heads.kv; g++) {
            for (int i = 0; i <= (n - 1) / KV_PAGE; i++) {
                key[i] = kv_block(kv, layer, pages[i], g);
                value[i] = (const char*)key[i] + kv_block_bytes(kv);
            }
            for (int h = g * group, height; h < (g + 1) * group; h += height) {
                height = (g + 1) * group - h < most ? (g + 1) * group - h : most;
                for (int k = 0; k < height; k++)
                    put_row(q + k * padded, row_of(qkv, r) + (h + k) * head_dim, head_dim,
                            kv->operand);
                f.out = row_of(out, r) + h * head_dim;
                kernel[height](&f);
            }
        }
    }
}

size_t ISA(kv_bytes)(const kv_cache* kv) {
    return (size_t)kv->layers * kv->pages * kv->heads.kv * 2 * kv_block_bytes(kv);
}

// `count` numbers into a block, from `at` on, `stride` apart.
static void put_numbers(char* block, storage kept, int64_t at, int stride, const float* from,
                        int count) {
    for (int d = 0; d < count; d++) keep(kept, block, at + (int64_t)d * stride, from[d]);
}

// What is kept is rounded to the cache's format, then to an operand.
void ISA(kv_write)(backend* b, const kv_cache* kv, int layer, tensor qkv, const int* row_slot,
                   const int* row_position) {
    int head_dim = kv->heads.dim, padded = padded_dim(head_dim);
    storage kept = kv_storage(kv);
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * (size_t)padded * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < qkv.rows; r++) {
        int position = row_position[r], lane = position % KV_PAGE;
        if (position < 0) continue;
        float* row = memory + cpu_thread() * (size_t)padded;
        int page = kv->page_table[(int64_t)row_slot[r] * kv->pages_per_slot + position / KV_PAGE];
        for (int g = 0; g < kv->heads.kv; g++) {
            char *keys = kv_block(kv, layer, page, g), *values = keys + kv_block_bytes(kv);
            put_row(row, row_of(qkv, r) + key_at_column(kv->heads, g), head_dim, kv->format);
            row_round(row, head_dim, kv->operand);
            put_numbers(keys, kept, lane, KV_PAGE, row, head_dim);
            put_row(row, row_of(qkv, r) + value_at_column(kv->heads, g), head_dim, kv->format);
            row_round(row, head_dim, kv->operand);
            put_numbers(values, kept, lane * padded, 1, row, padded);
        }
    }
}

void ISA(kv_round)(backend* b, tensor qkv, head_shape heads, const format* f) {
    int keys = heads.query * heads.dim;
    PARALLEL_FOR(b)
    for (int r = 0; r < qkv.rows; r++) {
        row_round(row_of(qkv, r) + keys, qkv.cols - keys, f);
        row_round(row_of(qkv, r) + keys, qkv.cols - keys, qkv.format);
    }
}

void ISA(kv_copy_page)(backend* b, const kv_cache* kv, int to_page, int from_page) {
    (void)b;
    size_t bytes = (size_t)kv->heads.kv * 2 * kv_block_bytes(kv);
    for (int layer = 0; layer < kv->layers; layer++)
        memcpy(kv_block(kv, layer, to_page, 0), kv_block(kv, layer, from_page, 0), bytes);
}
