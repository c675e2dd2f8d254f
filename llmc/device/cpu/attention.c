// Causal attention, one query at a time (Vaswani et al., arXiv 1706.03762). Keys come in blocks of
// 16 that count from the sequence's own start, transposed so that 16 keys lie in the lanes; values
// in blocks of 16 rows. Training lays them out so for each head of each sequence; the cache holds
// them so in its pages. Query, count of keys and blocks are then all that `attend` needs, and a
// token decoded through the cache gets the bits of the same token in a training forward.
#include "attention.h"

#include "ops.h"

enum {
    KEY_BLOCK = 256,                                // the contract's k-block, in keys
    POINTER_FLOATS = sizeof(void*) / sizeof(float)  // what a pointer takes of scratch memory
};

// score[j] = q . k_j * scale for the 16 keys of each of `blocks` blocks: as many chains at a time.
INLINE void block_scores(const int blocks, float* score, const float* q, const float* const* keys,
                         int head_dim, float scale) {
    vf sum[4 * 16 / VL];
    UNROLL
    for (int v = 0; v < blocks * 16 / VL; v++) sum[v] = vf_set(0);
    for (int d = 0; d < head_dim; d++) {
        vf qd = vf_set(q[d]);
        UNROLL
        for (int v = 0; v < blocks * 16 / VL; v++) {
            const float* k = keys[v / (16 / VL)] + d * KV_PAGE + v % (16 / VL) * VL;
            sum[v] = vf_fma(qd, vf_load(k), sum[v]);
        }
    }
    UNROLL
    for (int v = 0; v < blocks * 16 / VL; v++)
        vf_store(score + v * VL, vf_mul(sum[v], vf_set(scale)));
}

// The same for keys j < n, in blocks of 16, the last one whole.
INLINE void scores(float* score, const float* q, const float* const* keys, int n, int head_dim,
                   float scale) {
    int i = 0, blocks = (n + KV_PAGE - 1) / KV_PAGE;
    for (; i + 4 <= blocks; i += 4)
        block_scores(4, score + i * KV_PAGE, q, keys + i, head_dim, scale);
    if (i + 2 <= blocks) {
        block_scores(2, score + i * KV_PAGE, q, keys + i, head_dim, scale);
        i += 2;
    }
    if (i < blocks) block_scores(1, score + i * KV_PAGE, q, keys + i, head_dim, scale);
}

// out[d] = sum_j p_j v_j[d] for the 16 * w columns from d on.
INLINE void weighted_values(const int w, float* out, const float* p, const float* const* values,
                            int n, int padded, int d) {
    for (int j0 = 0; j0 < n; j0 += KEY_BLOCK) {
        int j1 = j0 + KEY_BLOCK < n ? j0 + KEY_BLOCK : n;
        vf sum[4 * 16 / VL];
        UNROLL
        for (int v = 0; v < w * 16 / VL; v++) sum[v] = vf_set(0);
        for (int j = j0; j < j1; j++) {
            const float* row = values[j / KV_PAGE] + (j % KV_PAGE) * padded + d;
            vf pj = vf_set(p[j]);
            UNROLL
            for (int v = 0; v < w * 16 / VL; v++)
                sum[v] = vf_fma(pj, vf_load(row + v * VL), sum[v]);
        }
        UNROLL
        for (int v = 0; v < w * 16 / VL; v++) {
            float* to = out + d + v * VL;
            vf_store(to, j0 ? vf_add(vf_load(to), sum[v]) : sum[v]);
        }
    }
}

// The same for all columns.
static void weighted_rows(float* out, const float* p, const float* const* values, int n,
                          int padded) {
    int d = 0;
    for (; d + 64 <= padded; d += 64) weighted_values(4, out, p, values, n, padded, d);
    for (; d < padded; d += 16) weighted_values(1, out, p, values, n, padded, d);
}

// What one query needs, in a thread's scratch memory.
typedef struct query {
    const float **keys, **values;  // (blocks)
    float *q, *sum;                // (padded dim): operands of the query; weighted values
    float* score;                  // (blocks * 16)
} query;

static size_t query_floats(int blocks, int padded) {
    return (size_t)blocks * (2 * POINTER_FLOATS + KV_PAGE) + 2 * padded;
}

static query query_at(float* memory, int blocks, int padded) {
    query w;
    w.keys = (const float**)memory;
    w.values = w.keys + blocks;
    w.q = (float*)(w.values + blocks);
    w.sum = w.q + padded;
    w.score = w.sum + padded;
    return w;
}

// The query against the first n keys. stats may be NULL.
static void attend(float* out, float* stats, query* w, int n, int head_dim, const format* operand,
                   const format* round) {
    float* p = w->score;
    scores(p, w->q, w->keys, n, head_dim, 1.0f / __builtin_sqrtf((float)head_dim));
    // Whole blocks from here on: the last one's other keys get the weight 0.
    int whole = padded_dim(n);
    for (int j = n; j < whole; j++) p[j] = -__builtin_inff();
    float max = row_max(p, whole);
    SIMD
    for (int j = 0; j < whole; j++) p[j] = num_expf(p[j] - max);
    float total = row_sum(p, whole);
    row_round(p, n, operand);
    weighted_rows(w->sum, p, w->values, n, padded_dim(head_dim));
    for (int i = 0; i < head_dim; i++) out[i] = w->sum[i] / total;
    row_round(out, head_dim, round);
    if (stats) {
        stats[0] = max;
        stats[1] = total;
    }
}

// A head's row as operands, padded with zeros.
INLINE void put_row(float* to, const float* from, int head_dim, const format* operand) {
    for (int d = 0; d < head_dim; d++) to[d] = from[d];
    row_round(to, head_dim, operand);
    for (int d = head_dim; d < padded_dim(head_dim); d++) to[d] = 0;
}

// A row of operands into the lane of key j of its block.
INLINE void put_transposed(float* blocks, const float* row, int j, int head_dim) {
    float* to = blocks + j / KV_PAGE * block_floats(head_dim) + j % KV_PAGE;
    for (int d = 0; d < head_dim; d++) to[d * KV_PAGE] = row[d];
}

static int longest(const int* seq_start, int sequences) {
    int max = 0;
    for (int s = 0; s < sequences; s++)
        if (seq_start[s + 1] - seq_start[s] > max) max = seq_start[s + 1] - seq_start[s];
    return max;
}

// Where a row of qkv has query head h, and the key head and the values that it reads.
INLINE int query_at_column(head_shape heads, int h) { return h * heads.dim; }
INLINE int key_head(head_shape heads, int h) { return h / (heads.query / heads.kv); }
INLINE int key_at_column(head_shape heads, int g) { return (heads.query + g) * heads.dim; }
INLINE int value_at_column(head_shape heads, int g) {
    return (heads.query + heads.kv + g) * heads.dim;
}

void ISA(attention_forward)(backend* b, tensor out, float* stats, tensor qkv, const int* seq_start,
                            int sequences, head_shape heads, const format* operand) {
    int head_dim = heads.dim, padded = padded_dim(head_dim);
    int blocks = (longest(seq_start, sequences) + KV_PAGE - 1) / KV_PAGE;
    int64_t stride = block_floats(head_dim);
    size_t each = (2 * blocks * stride + query_floats(blocks, padded)) / 16 * 16 + 16;
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(float));
    PARALLEL_DYNAMIC(b)
    for (int t = 0; t < sequences * heads.query; t++) {
        int s = t / heads.query, h = t % heads.query, g = key_head(heads, h);
        float* keys = memory + cpu_thread() * each;
        float* values = keys + blocks * stride;
        query w = query_at(values + blocks * stride, blocks, padded);
        for (int i = 0; i < blocks; i++) {
            w.keys[i] = keys + i * stride;
            w.values[i] = values + i * stride;
        }
        int start = seq_start[s], n = seq_start[s + 1] - start;
        for (int i = 0; i < n; i++) {
            const float* row = row_of(qkv, start + i);
            put_row(w.q, row + key_at_column(heads, g), head_dim, operand);
            put_transposed(keys, w.q, i, head_dim);
            put_row(values + (size_t)i * padded, row + value_at_column(heads, g), head_dim,
                    operand);
            put_row(w.q, row + query_at_column(heads, h), head_dim, operand);
            attend(row_of(out, start + i) + h * head_dim,
                   stats + ((int64_t)(start + i) * heads.query + h) * 2, &w, i + 1, head_dim,
                   operand, out.format);
        }
    }
}

// Backward, for one query head of one sequence, with p = exp(s - max) / sum and D_i = dout_i .
// out_i:
//   dp_ij = dout_i . v_j, ds = p (dp - D), dq_i = scale sum_j ds_ij k_j,
//   dk_j = scale sum_i ds_ij q_i, dv_j = sum_i p_ij dout_i
// (Dao, arXiv 2307.08691, section 3.1). dq is a sum over keys like the output; the chains of dk and
// dv run over the queries in order, QUERIES at a time; they are carried on from one group of
// queries to the next, and from one query head to the next that reads the same key head.
enum { QUERIES = 64 };

typedef struct backward_head {
    int n, head_dim, padded, blocks;
    float *q, *k, *dout;                 // (n, padded), operands
    float *k_transposed, *v_transposed;  // blocks of 16 keys in the lanes
    float *dk, *dv, *dq;                 // (n, padded), (n, padded), (padded)
    const float **k_rows, **k_block, **v_block;
    float *p, *ds;  // (QUERIES, blocks * 16)
} backward_head;

static size_t backward_floats(int n, int blocks, int padded) {
    size_t floats = (size_t)n * padded * 5 + padded + 2 * (size_t)blocks * KV_PAGE * padded +
                    3 * (size_t)blocks * POINTER_FLOATS + 2 * (size_t)QUERIES * blocks * KV_PAGE;
    return floats / 16 * 16 + 16;
}

static backward_head backward_at(float* memory, int n, int blocks, int head_dim) {
    backward_head w = {
        .n = n, .head_dim = head_dim, .padded = padded_dim(head_dim), .blocks = blocks};
    size_t rows = (size_t)n * w.padded, stride = block_floats(head_dim);
    w.k_rows = (const float**)memory;
    w.k_block = w.k_rows + blocks;
    w.v_block = w.k_block + blocks;
    w.q = (float*)(w.v_block + blocks);
    w.k = w.q + rows;
    w.dout = w.k + rows;
    w.dk = w.dout + rows;
    w.dv = w.dk + rows;
    w.dq = w.dv + rows;
    w.k_transposed = w.dq + w.padded;
    w.v_transposed = w.k_transposed + blocks * stride;
    w.p = w.v_transposed + blocks * stride;
    w.ds = w.p + (size_t)QUERIES * blocks * KV_PAGE;
    for (int i = 0; i < blocks; i++) {
        w.k_rows[i] = w.k + i * stride;
        w.k_block[i] = w.k_transposed + i * stride;
        w.v_block[i] = w.v_transposed + i * stride;
    }
    return w;
}

// The keys and values of key head g; dk and dv begin at 0.
static void backward_load_keys(backward_head* w, tensor qkv, int start, head_shape heads, int g,
                               const format* operand) {
    for (int i = 0; i < w->n; i++) {
        const float* row = row_of(qkv, start + i);
        size_t at = (size_t)i * w->padded;
        put_row(w->k + at, row + key_at_column(heads, g), w->head_dim, operand);
        put_row(w->dq, row + value_at_column(heads, g), w->head_dim, operand);
        put_transposed(w->k_transposed, w->k + at, i, w->head_dim);
        put_transposed(w->v_transposed, w->dq, i, w->head_dim);
    }
    memset(w->dk, 0, (size_t)w->n * w->padded * sizeof(float));
    memset(w->dv, 0, (size_t)w->n * w->padded * sizeof(float));
}

static void backward_load_queries(backward_head* w, tensor qkv, tensor dout, int start, int column,
                                  const format* operand, const format* gradient) {
    for (int i = 0; i < w->n; i++) {
        size_t at = (size_t)i * w->padded;
        put_row(w->q + at, row_of(qkv, start + i) + column, w->head_dim, operand);
        put_row(w->dout + at, row_of(dout, start + i) + column, w->head_dim, gradient);
    }
}

// p and ds of query i, as operands.
static void backward_scores(const backward_head* w, float* p, float* ds, int i, const float* stats,
                            float delta, float scale, const format* operand,
                            const format* gradient) {
    float max = stats[0], total = stats[1];
    int whole = padded_dim(i + 1);  // the last block's other keys are computed and not read
    scores(p, w->q + (size_t)i * w->padded, w->k_block, i + 1, w->head_dim, scale);
    scores(ds, w->dout + (size_t)i * w->padded, w->v_block, i + 1, w->head_dim, 1.0f);
    SIMD
    for (int j = 0; j < whole; j++) {
        p[j] = num_expf(p[j] - max) / total;
        ds[j] = p[j] * (ds[j] - delta);
    }
    row_round(p, whole, operand);
    row_round(ds, whole, gradient);
}

// sum += x_i row_i for 16 columns and `count` rows, carrying on the chain in `sum`.
INLINE void carry_rows(float* sum, const float* x, int x_stride, const float* rows, int padded,
                       int count) {
    vf chain[16 / VL];
    UNROLL
    for (int v = 0; v < 16 / VL; v++) chain[v] = vf_load(sum + v * VL);
    for (int i = 0; i < count; i++) {
        vf xi = vf_set(x[(size_t)i * x_stride]);
        UNROLL
        for (int v = 0; v < 16 / VL; v++)
            chain[v] = vf_fma(xi, vf_load(rows + (size_t)i * padded + v * VL), chain[v]);
    }
    UNROLL
    for (int v = 0; v < 16 / VL; v++) vf_store(sum + v * VL, chain[v]);
}

// Queries i0 .. i1 into dk and dv of every key they see.
static void backward_keys(const backward_head* w, int i0, int i1) {
    int width = w->blocks * KV_PAGE, padded = w->padded;
    for (int j = 0; j < i1; j++) {
        int i = j > i0 ? j : i0;  // earlier queries do not see the key
        size_t at = (size_t)(i - i0) * width + j, row = (size_t)i * padded;
        for (int d = 0; d < padded; d += 16) {
            size_t to = (size_t)j * padded + d;
            carry_rows(w->dk + to, w->ds + at, width, w->q + row + d, padded, i1 - i);
            carry_rows(w->dv + to, w->p + at, width, w->dout + row + d, padded, i1 - i);
        }
    }
}

// Query head h: its dq, and its share of dk and dv. `stats` are those of the head at row `start`.
static void backward_query_head(backward_head* w, tensor dqkv, tensor dout, tensor qkv, tensor out,
                                const float* stats, int start, head_shape heads, int h,
                                const format* operand, const format* gradient) {
    int head_dim = w->head_dim, width = w->blocks * KV_PAGE;
    float scale = 1.0f / __builtin_sqrtf((float)head_dim);
    backward_load_queries(w, qkv, dout, start, query_at_column(heads, h), operand, gradient);
    for (int i0 = 0; i0 < w->n; i0 += QUERIES) {
        int i1 = i0 + QUERIES < w->n ? i0 + QUERIES : w->n;
        for (int i = i0; i < i1; i++) {
            const float* d = row_of(dout, start + i) + h * head_dim;
            const float* o = row_of(out, start + i) + h * head_dim;
            float *p = w->p + (size_t)(i - i0) * width, *ds = w->ds + (size_t)(i - i0) * width;
            for (int j = 0; j < head_dim; j++) w->dq[j] = d[j] * o[j];
            float delta = row_sum(w->dq, head_dim);
            backward_scores(w, p, ds, i, stats + ((int64_t)(start + i) * heads.query + h) * 2,
                            delta, scale, operand, gradient);
            weighted_rows(w->dq, ds, w->k_rows, i + 1, w->padded);
            float* to = row_of(dqkv, start + i) + h * head_dim;
            for (int j = 0; j < head_dim; j++) to[j] = w->dq[j] * scale;
            row_round(to, head_dim, dqkv.format);
        }
        backward_keys(w, i0, i1);
    }
}

static void backward_key_head(backward_head* w, tensor dqkv, tensor dout, tensor qkv, tensor out,
                              const float* stats, int start, head_shape heads, int g,
                              const format* operand, const format* gradient) {
    int head_dim = w->head_dim, group = heads.query / heads.kv;
    float scale = 1.0f / __builtin_sqrtf((float)head_dim);
    backward_load_keys(w, qkv, start, heads, g, operand);
    for (int h = g * group; h < (g + 1) * group; h++)
        backward_query_head(w, dqkv, dout, qkv, out, stats, start, heads, h, operand, gradient);
    for (int i = 0; i < w->n; i++) {
        float* dk = row_of(dqkv, start + i) + key_at_column(heads, g);
        float* dv = row_of(dqkv, start + i) + value_at_column(heads, g);
        for (int j = 0; j < head_dim; j++) {
            dk[j] = w->dk[(size_t)i * w->padded + j] * scale;
            dv[j] = w->dv[(size_t)i * w->padded + j];
        }
        row_round(dk, head_dim, dqkv.format);
        row_round(dv, head_dim, dqkv.format);
    }
}

void ISA(attention_backward)(backend* b, tensor dqkv, tensor dout, tensor qkv, tensor out,
                             const float* stats, const int* seq_start, int sequences,
                             head_shape heads, const format* operand, const format* gradient) {
    int head_dim = heads.dim, blocks = (longest(seq_start, sequences) + KV_PAGE - 1) / KV_PAGE;
    size_t each = backward_floats(blocks * KV_PAGE, blocks, padded_dim(head_dim));
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(float));
    PARALLEL_DYNAMIC(b)
    for (int t = 0; t < sequences * heads.kv; t++) {
        int s = t / heads.kv, g = t % heads.kv;
        int start = seq_start[s], n = seq_start[s + 1] - start;
        backward_head w = backward_at(memory + cpu_thread() * each, n, blocks, head_dim);
        backward_key_head(&w, dqkv, dout, qkv, out, stats, start, heads, g, operand, gradient);
    }
}

void ISA(attention_cached)(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                           const int* row_slot, const int* row_position) {
    int head_dim = kv->heads.dim, padded = padded_dim(head_dim), blocks = kv->pages_per_slot;
    size_t each = query_floats(blocks, padded) / 16 * 16 + 16;
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        int n = row_position[r] + 1;
        if (n <= 0) {
            memset(row_of(out, r), 0, out.cols * sizeof(float));
            continue;
        }
        const int* pages = kv->page_table + (int64_t)row_slot[r] * kv->pages_per_slot;
        query w = query_at(memory + cpu_thread() * each, blocks, padded);
        for (int h = 0; h < kv->heads.query; h++) {
            for (int i = 0; i <= (n - 1) / KV_PAGE; i++) {
                w.keys[i] = kv_block(kv, layer, pages[i], key_head(kv->heads, h));
                w.values[i] = w.keys[i] + block_floats(head_dim);
            }
            put_row(w.q, row_of(qkv, r) + h * head_dim, head_dim, kv->operand);
            attend(row_of(out, r) + h * head_dim, NULL, &w, n, head_dim, kv->operand, out.format);
        }
    }
}

size_t ISA(kv_bytes)(const kv_cache* kv) {
    size_t blocks = (size_t)kv->layers * kv->pages * kv->heads.kv * 2;
    return blocks * block_floats(kv->heads.dim) * sizeof(float);
}

// What is kept is rounded to the cache's format, then to an operand.
void ISA(kv_write)(backend* b, const kv_cache* kv, int layer, tensor qkv, const int* row_slot,
                   const int* row_position) {
    int head_dim = kv->heads.dim, padded = padded_dim(head_dim);
    float* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * (size_t)padded * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < qkv.rows; r++) {
        int position = row_position[r], lane = position % KV_PAGE;
        if (position < 0) continue;
        float* row = memory + cpu_thread() * (size_t)padded;
        int page = kv->page_table[(int64_t)row_slot[r] * kv->pages_per_slot + position / KV_PAGE];
        for (int g = 0; g < kv->heads.kv; g++) {
            float *keys = kv_block(kv, layer, page, g), *values = keys + block_floats(head_dim);
            put_row(row, row_of(qkv, r) + key_at_column(kv->heads, g), head_dim, kv->format);
            row_round(row, head_dim, kv->operand);
            put_transposed(keys, row, lane, head_dim);
            put_row(row, row_of(qkv, r) + value_at_column(kv->heads, g), head_dim, kv->format);
            put_row(values + lane * padded, row, head_dim, kv->operand);
        }
    }
}

void ISA(kv_copy_page)(backend* b, const kv_cache* kv, int to_page, int from_page) {
    (void)b;
    size_t bytes = (size_t)kv->heads.kv * 2 * block_floats(kv->heads.dim) * sizeof(float);
    for (int layer = 0; layer < kv->layers; layer++)
        memcpy(kv_block(kv, layer, to_page, 0), kv_block(kv, layer, from_page, 0), bytes);
}
