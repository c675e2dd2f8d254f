// Attention of the CUDA device: training, forward and backward, and the KV cache. See cuda_test.h
// for the method. The float64 versions take operands rounded as products want them, so that what is
// left of an error are the roundings in between and the order of sums.
#include "cuda_test.h"

// What products round to, and what is stored.
typedef struct formats {
    const format *operand, *store;
} formats;
static const formats FORMATS_HERE[] = {{&FORMAT_FP32, &FORMAT_FP32},
                                       {&FORMAT_TF32, &FORMAT_FP32},
                                       {&FORMAT_BF16, &FORMAT_BF16},
                                       {&FORMAT_FP16, &FORMAT_FP16}};

// Runs of the next case: one case in four has as many as there are schedules, the others two; each
// run has another schedule.
static int runs_next(void) {
    static int turn;
    return turn++ % 4 ? 2 : schedules;
}
static void schedule_next(void) {
    static int turn;
    schedule_set(turn++ % (2 * SCHEDULES_MAX));
}

// Numbers that give scores of a few units: a softmax that is neither flat nor one key's.
static tensor moderate(int rows, int cols, const format* f) {
    tensor t = matrix_new(rows, cols, f);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) row_at(t, r)[c] = format_round(random_float(), f);
    return t;
}

// ------------------------------------------------------------------------------------------------
// Training: packed sequences

// Lengths of sequences; negative: the sequence continues the last one before it whose length is
// not.
enum { SEQUENCES_MAX = 6 };
typedef struct pack {
    int heads, kv_heads, head_dim, sequences, lengths[SEQUENCES_MAX];
} pack;

typedef struct results {
    tensor out, stats, dqkv;
} results;

typedef struct training {
    pack p;
    formats f;
    head_shape heads;
    int channels, kv_channels, width;  // of the queries, of the keys, of a row of qkv
    int rows, start[SEQUENCES_MAX + 1], prefix[SEQUENCES_MAX], continues;
    tensor qkv, dout;
    char what[160];
} training;

static training training_new(pack p, formats f) {
    training t = {.p = p, .f = f, .heads = {p.heads, p.kv_heads, p.head_dim}};
    t.channels = p.heads * p.head_dim;
    t.kv_channels = p.kv_heads * p.head_dim;
    t.width = t.channels + 2 * t.kv_channels;
    char lengths[64] = "";
    for (int s = 0, root = 0; s < p.sequences; s++) {
        if (p.lengths[s] >= 0) root = s;
        t.prefix[s] = p.lengths[s] < 0 ? root : -1;
        t.continues |= p.lengths[s] < 0;
        t.start[s + 1] = t.start[s] + abs(p.lengths[s]);
        snprintf(lengths + strlen(lengths), sizeof lengths - strlen(lengths), " %d", p.lengths[s]);
    }
    t.rows = t.start[p.sequences];
    t.qkv = moderate(t.rows, t.width, f.store);
    t.dout = moderate(t.rows, t.channels, f.store);
    snprintf(t.what, sizeof t.what, "%d and %d heads of %d, sequences of%s, %s", p.heads,
             p.kv_heads, p.head_dim, lengths, f.operand->name);
    return t;
}

static results results_new(const training* t) {
    results r = {matrix_new(t->rows, t->channels, t->f.store),
                 array_new(t->rows, 2 * t->p.heads, 0, &FORMAT_FP32),
                 matrix_new(t->rows, t->width, t->f.store)};
    return r;
}

static double dot(const float* a, const float* b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

// Where query i of a head has its results, in float64.
typedef struct exact_results {
    double *out, *stats, *dqkv;
} exact_results;

// The row of key j of sequence s.
static int key_row(const training* t, int s, int j) {
    int prefix = t->prefix[s];
    int shared = prefix < 0 ? 0 : t->start[prefix + 1] - t->start[prefix];
    return j < shared ? t->start[prefix] + j : t->start[s] + j - shared;
}

// The first column of the keys that query head h reads; the values' lie kv_channels further on.
static int key_column(const training* t, int h) {
    return t->channels + h / (t->p.heads / t->p.kv_heads) * t->p.head_dim;
}

// The query of sequence s that key i is the last for, in float64: out and stats, and its part of
// dqkv. Rows of q, k, v and d (dout) are operands, those of the prefix before its own.
static void exact_query(const training* t, const exact_results* to, int s, int h, int i,
                        const tensor m[4]) {
    int n = m[0].cols, channels = t->channels;
    const float *q = row_at(m[0], i), *d = row_at(m[3], i);
    double scale = 1 / sqrt(n), max = -INFINITY, total = 0, mean = 0;
    double *p = xalloc(i + 1, sizeof *p, "probabilities"), *dp = xalloc(i + 1, sizeof *dp, "dp");
    for (int j = 0; j <= i; j++) max = fmax(max, p[j] = dot(q, row_at(m[1], j), n) * scale);
    for (int j = 0; j <= i; j++) total += p[j] = exp(p[j] - max);
    for (int j = 0; j <= i; j++) mean += (p[j] /= total) * (dp[j] = dot(d, row_at(m[2], j), n));
    int64_t row = key_row(t, s, i), at = row * t->width + h * n;
    to->stats[(row * t->p.heads + h) * 2] = max;
    to->stats[(row * t->p.heads + h) * 2 + 1] = total;
    for (int j = 0; j <= i; j++) {
        int64_t key = (int64_t)key_row(t, s, j) * t->width + key_column(t, h);
        double ds = p[j] * (dp[j] - mean) * scale;
        for (int c = 0; c < n; c++) {
            to->out[row * channels + h * n + c] += p[j] * row_at(m[2], j)[c];
            to->dqkv[at + c] += ds * row_at(m[1], j)[c];
            to->dqkv[key + c] += ds * q[c];
            to->dqkv[key + t->kv_channels + c] += p[j] * d[c];
        }
    }
    free(p);
    free(dp);
}

static exact_results exact_new(const training* t) {
    size_t rows = t->rows, channels = t->channels;
    exact_results to = {xalloc(rows * channels, sizeof(double), "out"),
                        xalloc(rows * 2 * t->p.heads, sizeof(double), "stats"),
                        xalloc(rows * t->width, sizeof(double), "dqkv")};
    for (size_t i = 0; i < rows * channels; i++) to.out[i] = 0;
    for (size_t i = 0; i < rows * t->width; i++) to.dqkv[i] = 0;
    for (int s = 0; s < t->p.sequences; s++)
        for (int h = 0; h < t->p.heads; h++) {
            int mark = array_count, n = t->p.head_dim, prefix = t->prefix[s];
            int shared = prefix < 0 ? 0 : t->start[prefix + 1] - t->start[prefix];
            int keys = shared + t->start[s + 1] - t->start[s];
            tensor m[4], qkv = matrix_new(keys, t->width, t->f.store);
            tensor dout = matrix_new(keys, t->channels, t->f.store);
            for (int j = 0; j < keys; j++) {
                copy_values(rows_of(qkv, j, 1), rows_of(t->qkv, key_row(t, s, j), 1));
                copy_values(rows_of(dout, j, 1), rows_of(t->dout, key_row(t, s, j), 1));
            }
            int column[3] = {h * n, key_column(t, h), key_column(t, h) + t->kv_channels};
            for (int i = 0; i < 3; i++)
                m[i] = operands_of(columns_of(qkv, column[i], n), t->f.operand);
            m[3] = operands_of(columns_of(dout, h * n, n), t->f.operand);
            for (int i = shared; i < keys; i++) exact_query(t, &to, s, h, i, m);
            arrays_drop(mark);
        }
    return to;
}

static void exact_free(exact_results* e) {
    free(e->out);
    free(e->stats);
    free(e->dqkv);
}

static results on_cpu(const training* t) {
    results r = results_new(t);
    packing cut = {t->p.sequences, t->start, t->prefix};
    cpu->attention_forward(cpu, r.out, r.stats.data, t->qkv, &cut, t->heads, t->f.operand);
    cpu->attention_backward(cpu, r.dqkv, t->dout, t->qkv, r.out, r.stats.data, &cut, t->heads,
                            t->f.operand, t->f.operand);
    return r;
}

// With `gap` elements between the rows of all matrices.
static results on_gpu(const training* t, int gap) {
    int mark = gpu_array_count;
    // Where a gap leaves rows that no 16-byte access fits, it is in all matrices or in one of two.
    static int turn;
    int alone = gap % 8 ? turn++ % 3 : 0;
    results r = results_new(t);
    tensor qkv = gpu_matrix_gap(t->qkv, alone ? 0 : gap);
    tensor out = gpu_matrix_gap(r.out, alone ? 0 : gap);
    tensor dout = gpu_matrix_gap(t->dout, alone == 2 ? 0 : gap);
    tensor dqkv = gpu_matrix_gap(r.dqkv, alone == 1 ? 0 : gap);
    tensor stats = gpu_matrix(r.stats);
    packing cut = {t->p.sequences, gpu_copy(t->start, sizeof t->start), NULL};
    if (t->continues) cut.prefix = gpu_copy(t->prefix, sizeof t->prefix);
    gpu->attention_forward(gpu, out, stats.data, qkv, &cut, t->heads, t->f.operand);
    gpu->attention_backward(gpu, dqkv, dout, qkv, out, stats.data, &cut, t->heads, t->f.operand,
                            t->f.operand);
    r = (results){gpu_read(out), gpu_read(stats), gpu_read(dqkv)};
    gpu_arrays_free(mark);
    return r;
}

static void check_equal(results a, results b, const char* what) {
    check_same(a.out, b.out, "out", what, gpu);
    check_same(a.stats, b.stats, "stats", what, gpu);
    check_same(a.dqkv, b.dqkv, "dqkv", what, gpu);
}

// Sums of a few fp32 roundings of numbers of this test's size, for results that are exact in one
// order of sums and not in another: those of a single key. Tensor cores do not round their sums
// to nearest, which shows where nothing else is rounded: in stats.
#define ROUNDINGS 4e-6

static void check_training(pack p, formats f, int gap) {
    int mark = array_count, single = 1, runs = runs_next();
    training t = training_new(p, f);
    for (int s = 0; s < p.sequences; s++) single &= p.lengths[s] < 2;
    exact_results exact = exact_new(&t);
    results plain = on_cpu(&t), first = {0};
    for (int s = 0; s < runs; s++) {
        int inner = array_count;
        schedule_next();
        results r = on_gpu(&t, s % 2 ? gap : 0);
        if (s) {
            check_equal(r, first, t.what);
            arrays_free(inner, t.what);
            continue;
        }
        first = r;
        check_error(r.out, plain.out, exact.out, 0, "out", t.what);
        check_error(r.stats, plain.stats, exact.stats, f.store == &FORMAT_FP32 ? 0 : ROUNDINGS,
                    "stats", t.what);
        static const char* const names[] = {"dq", "dk", "dv"};
        for (int i = 0, column = 0; i < 3; i++) {
            int c = i ? t.kv_channels : t.channels;
            double* part = xalloc((size_t)t.rows * c, sizeof *part, "a part of dqkv");
            for (int64_t k = 0; k < (int64_t)t.rows * c; k++)
                part[k] = exact.dqkv[k / c * t.width + column + k % c];
            check_error(columns_of(r.dqkv, column, c), columns_of(plain.dqkv, column, c), part,
                        single ? ROUNDINGS : 0, names[i], t.what);
            free(part);
            column += c;
        }
    }
    exact_free(&exact);
    arrays_free(mark, t.what);
}

static void check_shapes(void) {
    static const int head_dims[] = {8, 16, 20, 48, 64, 80, 128, 160};
    static const pack packs[] = {
        {4, 2, 0, 4, {1, 2, 0, 32}},  // 32: whole steps of a group's queries
        {1, 1, 0, 2, {130, 17}},
        {3, 1, 0, 3, {21, -50, -17}},
        {1, 1, 0, 5, {65, -3, 64, -1, -70}},
        {3, 3, 0, 1, {1}},
        {2, 2, 0, 6, {64, 65, 0, 63, 7, 0}}};
    for (int i = 0; i < 8; i++)
        for (int f = 0; f < 4; f++)
            for (int k = 0; k < 6; k++) {
                pack p = packs[k];
                p.head_dim = head_dims[i];
                // Rows that 16-byte accesses fit, and some that they do not.
                int gap = (i + f + k) % 2 ? 3 : 16;
                if (!quick() || k == 0 || ((k == 1 || k == 2) && (i + f) % 4 == k))
                    check_training(p, FORMATS_HERE[f], gap);
            }
}

// Behind a prefix a sequence has the bits that it has with the prefix's rows copied before its own,
// whatever the tiles and steps: out, stats, and the gradients of its own rows (N1).
static void check_prefix(void) {
    static const int head_dims[] = {16, 64, 80, 160};
    for (int i = 0; i < 16; i++) {
        int mark = array_count, shared = 70, n = 45;
        if (quick() && (i + i / 4) % 4) continue;
        pack p = {2, 1 + i / 4 % 2, head_dims[i % 4], 3, {shared, -9, -n}}, one = p;
        one.sequences = 1;
        one.lengths[0] = shared + n;
        training t = training_new(p, FORMATS_HERE[i / 4]),
                 alone = training_new(one, FORMATS_HERE[i / 4]);
        copy_values(rows_of(alone.qkv, 0, shared), rows_of(t.qkv, 0, shared));
        copy_values(rows_of(alone.qkv, shared, n), rows_of(t.qkv, shared + 9, n));
        copy_values(rows_of(alone.dout, shared, n), rows_of(t.dout, shared + 9, n));
        schedule_set(i);
        results all = on_gpu(&t, 0), apart = on_gpu(&alone, 0);
        int c = t.channels;
        tensor dq[2] = {columns_of(all.dqkv, 0, c), columns_of(apart.dqkv, 0, c)};
        check_same(rows_of(all.out, 0, shared), rows_of(apart.out, 0, shared), "out", t.what, gpu);
        check_same(rows_of(all.out, shared + 9, n), rows_of(apart.out, shared, n), "out", t.what,
                   gpu);
        check_same(rows_of(all.stats, shared + 9, n), rows_of(apart.stats, shared, n), "stats",
                   t.what, gpu);
        check_same(rows_of(dq[0], shared + 9, n), rows_of(dq[1], shared, n), "dq", t.what, gpu);
        arrays_free(mark, "a prefix");
    }
}

// A sequence gets the same bits alone and between others.
static void check_apart(void) {
    for (int f = 0; f < 4; f++) {
        int mark = array_count;
        pack p = {2, 2, 32, 3, {21, 70, 5}}, one = {2, 2, 32, 1, {70}};
        training t = training_new(p, FORMATS_HERE[f]), alone = training_new(one, FORMATS_HERE[f]);
        copy_values(alone.qkv, rows_of(t.qkv, 21, 70));
        copy_values(alone.dout, rows_of(t.dout, 21, 70));
        schedule_set(f);
        results all = on_gpu(&t, 0), apart = on_gpu(&alone, 0);
        results part = {rows_of(all.out, 21, 70), rows_of(all.stats, 21, 70),
                        rows_of(all.dqkv, 21, 70)};
        check_equal(part, apart, text("a sequence alone, %s", alone.what));
        arrays_free(mark, "a sequence alone");
    }
}

// dV of a key head is summed over its query heads in order. In a sequence of one token every p is
// 1: what is small is kept only where the two large gradients before it cancel first.
static void check_head_order(void) {
    static const int head_dims[] = {16, 160};
    for (int i = 0; i < 8; i++) {
        int mark = array_count, dim = head_dims[i % 2];
        pack p = {6, 2, dim, 2, {1, 1}};
        training t = training_new(p, FORMATS_HERE[i / 2]);
        float large = 0x1p15f, small = 0x1p-12f;
        for (int h = 0; h < 6; h++)
            set_rows(columns_of(t.dout, h * dim, dim), 0, 2,
                     (float[]){large, -large, small}[h % 3]);
        tensor expected = matrix_new(2, t.kv_channels, t.f.store);
        set_rows(expected, 0, 2, small);
        schedule_next();
        results r = on_gpu(&t, 0);
        check_same(columns_of(r.dqkv, t.channels + t.kv_channels, t.kv_channels), expected, "dv",
                   t.what, gpu);
        arrays_free(mark, t.what);
    }
}

static void round_to(tensor t, const format* f) {
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) row_at(t, r)[c] = format_round(row_at(t, r)[c], f);
}

// Products round q, k, v to tf32: it is the same where they came rounded. Then the rounding of
// exp(s - max), p and ds is what is left of the difference from fp32.
static void check_rounding_shows(void) {
    int mark = array_count;
    pack p = {1, 1, 16, 1, {20}};
    training t = training_new(p, FORMATS_HERE[1]), plain = t;
    plain.f.operand = &FORMAT_FP32;
    schedule_set(0);
    results before = on_gpu(&t, 0);
    round_to(t.qkv, &FORMAT_TF32);
    results tf32 = on_gpu(&t, 0), fp32 = on_gpu(&plain, 0);
    check_equal(before, tf32, "operands rounded before");
    CHECK(first_difference(tf32.stats, fp32.stats) < 0, "scores are those of the operands");
    CHECK(first_difference(tf32.out, fp32.out) >= 0, "probabilities are rounded to tf32");
    round_to(t.dout, &FORMAT_TF32);
    tf32 = on_gpu(&t, 0), fp32 = on_gpu(&plain, 0);
    for (int i = 0; i < 3; i++)
        CHECK(first_difference(columns_of(tf32.dqkv, i * 16, 16),
                               columns_of(fp32.dqkv, i * 16, 16)) >= 0,
              "p and ds are rounded to tf32");
    arrays_free(mark, "tf32");
}

// ------------------------------------------------------------------------------------------------
// The cache

enum { SLOTS = 4, SLOT_PAGES = 11, PAGES = 24, LAYERS = 2, ROWS = 200 };

// What rows hold: slots 0 .. 2 with this many positions, and an idle row each. The first are enough
// for every warp of a block to go from one page to a second and third.
static const int positions_of[SLOTS - 1] = {150, 33, 1};

typedef struct cached {
    const format *rows, *kv, *operand;
    head_shape heads;
    int channels, kv_channels;  // of the queries, of the keys
    int n;                      // rows
    int slot[ROWS], position[ROWS], table[SLOTS][SLOT_PAGES];
    tensor qkv;
    char what[160];
} cached;

static void swap(int* a, int* b) {
    int t = *a;
    *a = *b;
    *b = t;
}

static cached cached_new(head_shape heads, const format* rows, const format* kv,
                         const format* operand) {
    cached c = {.rows = rows, .kv = kv, .operand = operand, .heads = heads};
    c.channels = heads.query * heads.dim;
    c.kv_channels = heads.kv * heads.dim;
    for (int s = 0; s < SLOTS - 1; s++)
        for (int i = -1; i < positions_of[s]; i++, c.n++) {
            c.slot[c.n] = s;
            c.position[c.n] = i;
        }
    for (int i = c.n - 1; i > 0; i--) {
        int j = random_below(i + 1);
        swap(&c.slot[i], &c.slot[j]);
        swap(&c.position[i], &c.position[j]);
    }
    // Pages in random order; the last two are nobody's.
    int page[PAGES - 2];
    for (int i = 0; i < PAGES - 2; i++) page[i] = i;
    for (int i = PAGES - 3; i > 0; i--) swap(&page[i], &page[random_below(i + 1)]);
    for (int s = 0, next = 0; s < SLOTS; s++)
        for (int i = 0; i < SLOT_PAGES; i++)
            c.table[s][i] = s < 3 && i * KV_PAGE < positions_of[s] ? page[next++] : PAGES - 1;
    c.qkv = moderate(c.n, c.channels + 2 * c.kv_channels, rows);
    snprintf(c.what, sizeof c.what, "cached, %d and %d heads of %d, rows %s, cache %s, operands %s",
             heads.query, heads.kv, heads.dim, rows->name, kv->name, operand->name);
    return c;
}

static kv_cache cache_of(const cached* c, backend* b) {
    kv_cache kv = {.layers = LAYERS,
                   .pages = PAGES,
                   .heads = c->heads,
                   .pages_per_slot = SLOT_PAGES,
                   .operand = c->operand,
                   .format = c->kv};
    size_t bytes = b->kv_bytes(&kv);
    void* undefined = xalloc(bytes, 1, "a cache");
    memset(undefined, 0xff, bytes);  // NaN in every format
    kv.data = b->alloc(b, bytes, "a cache");
    b->upload(b, kv.data, undefined, bytes);
    free(undefined);
    return kv;
}

static double kept(float x, const cached* c) {
    return format_round(format_round(x, c->kv), c->operand);
}

// Row r in float64: looks for the rows that hold the keys it sees.
static void exact_row(const cached* c, double* out, int r, int h) {
    int n = c->heads.dim, key = c->channels + h / (c->heads.query / c->heads.kv) * n;
    double total = 0, p;
    for (int d = 0; d < n; d++) out[d] = 0;
    if (c->position[r] < 0) return;
    for (int j = 0; j < c->n; j++) {
        if (c->slot[j] != c->slot[r] || c->position[j] < 0 || c->position[j] > c->position[r])
            continue;
        const float *q = row_at(c->qkv, r) + h * n, *k = row_at(c->qkv, j) + key;
        double s = 0;
        for (int d = 0; d < n; d++) s += format_round(q[d], c->operand) * kept(k[d], c);
        total += p = exp(s / sqrt(n));  // scores are moderate
        for (int d = 0; d < n; d++) out[d] += p * kept(k[c->kv_channels + d], c);
    }
    for (int d = 0; d < n; d++) out[d] /= total;
}

static tensor cached_on_cpu(const cached* c) {
    kv_cache kv = cache_of(c, cpu);
    tensor out = matrix_new(c->n, c->channels, c->rows);
    kv.page_table = c->table[0];
    cpu->kv_write(cpu, &kv, 1, c->qkv, c->slot, c->position);
    cpu->attention_cached(cpu, out, &kv, 1, c->qkv, c->slot, c->position);
    cpu->release(cpu, kv.data, cpu->kv_bytes(&kv));
    return out;
}

// Rows first .. first + n - 1 attend, in one call.
static tensor attend_rows(const cached* c, const kv_cache* kv, int gap, int first, int n) {
    int mark = gpu_array_count;
    tensor out = gpu_matrix_gap(matrix_new(n, c->channels, c->rows), gap);
    tensor qkv = gpu_matrix_gap(rows_of(c->qkv, first, n), gap);
    const int* slot = gpu_copy(c->slot + first, n * sizeof(int));
    const int* position = gpu_copy(c->position + first, n * sizeof(int));
    gpu->attention_cached(gpu, out, kv, 1, qkv, slot, position);
    tensor result = gpu_read(out);
    gpu_arrays_free(mark);
    return result;
}

// Writes all rows to layer 1, and NaN to the rest of slot 0's last page. The second page of slot 0
// moves to the page PAGES - 2, and what it leaves behind becomes NaN, by way of slot 3.
static void write_rows(cached* c, kv_cache* kv, int gap) {
    int n = positions_of[0], beyond_slot[2 * KV_PAGE], beyond[2 * KV_PAGE];
    for (int i = 0; i < KV_PAGE; i++) {
        beyond_slot[i] = 0;
        beyond[i] = n + i < (n + KV_PAGE - 1) / KV_PAGE * KV_PAGE ? n + i : -1;
        beyond_slot[KV_PAGE + i] = SLOTS - 1;
        beyond[KV_PAGE + i] = i;
    }
    tensor nothing = matrix_new(2 * KV_PAGE, c->qkv.cols, c->rows);
    set_rows(nothing, 0, nothing.rows, NAN);
    kv->page_table = gpu_copy(c->table, sizeof c->table);
    gpu->kv_write(gpu, kv, 1, gpu_matrix_gap(c->qkv, gap), gpu_copy(c->slot, sizeof c->slot),
                  gpu_copy(c->position, sizeof c->position));
    gpu->kv_copy_page(gpu, kv, PAGES - 2, c->table[0][1]);
    c->table[SLOTS - 1][0] = c->table[0][1];
    c->table[0][1] = PAGES - 2;
    kv->page_table = gpu_copy(c->table, sizeof c->table);
    gpu->kv_write(gpu, kv, 1, gpu_matrix_gap(nothing, gap), gpu_copy(beyond_slot, sizeof beyond),
                  gpu_copy(beyond, sizeof beyond));
}

// Layer 0 is as it was, but for the page that was copied to: that has the same NaN.
static void check_layer_0(const cached* c, const kv_cache* kv) {
    size_t bytes = gpu->kv_bytes(kv), untouched = 0;
    unsigned char* data = xalloc(bytes, 1, "a cache");
    gpu->download(gpu, data, kv->data, bytes);
    for (size_t i = 0; i < bytes / LAYERS; i++) untouched += data[i] == 0xff;
    CHECK(untouched == bytes / LAYERS, "%s: layer 0 was written", c->what);
    free(data);
}

static tensor cached_on_gpu(const cached* from, int gap) {
    int mark = gpu_array_count;
    cached c = *from;
    kv_cache kv = cache_of(&c, gpu);
    write_rows(&c, &kv, gap);
    tensor out = attend_rows(&c, &kv, gap, 0, c.n);
    for (int r = 0; r < c.n; r += 13)
        check_same(attend_rows(&c, &kv, gap, r, 1), rows_of(out, r, 1), "a row alone", c.what, gpu);
    check_layer_0(&c, &kv);
    gpu->release(gpu, kv.data, gpu->kv_bytes(&kv));
    gpu_arrays_free(mark);
    return out;
}

static void check_cached_case(head_shape heads, const format* rows, const format* kv,
                              const format* operand, int gap) {
    int mark = array_count, runs = runs_next();
    cached c = cached_new(heads, rows, kv, operand);
    int channels = c.channels;
    double* exact = xalloc((size_t)c.n * channels, sizeof *exact, "out");
    for (int r = 0; r < c.n; r++)
        for (int h = 0; h < heads.query; h++)
            exact_row(&c, exact + (size_t)r * channels + h * heads.dim, r, h);
    tensor plain = cached_on_cpu(&c), first = {0};
    for (int s = 0; s < runs; s++) {
        int inner = array_count;
        schedule_next();
        tensor out = cached_on_gpu(&c, s % 2 ? gap : 0);
        if (s) {
            check_same(out, first, "out", c.what, gpu);
            arrays_free(inner, c.what);
            continue;
        }
        first = out;
        check_error(out, plain, exact, 0, "out", c.what);
        for (int r = 0; r < c.n; r++)
            for (int d = 0; c.position[r] < 0 && d < channels; d++)
                CHECK_SAME(row_at(out, r)[d], 0.0f, "an idle row");
    }
    free(exact);
    arrays_free(mark, c.what);
}

// As check_rounding_shows.
static void check_cached_rounding(void) {
    int mark = array_count;
    cached c = cached_new((head_shape){1, 1, 16}, &FORMAT_FP32, &FORMAT_FP32, &FORMAT_TF32);
    schedule_set(0);
    tensor before = cached_on_gpu(&c, 0);
    round_to(c.qkv, &FORMAT_TF32);
    tensor tf32 = cached_on_gpu(&c, 0);
    c.operand = &FORMAT_FP32;
    tensor fp32 = cached_on_gpu(&c, 0);
    check_same(before, tf32, "out", "cached operands rounded before", gpu);
    CHECK(first_difference(tf32, fp32) >= 0, "cached probabilities are rounded to tf32");
    // Of values that are all 1 the result is the sum of rounded probabilities over that of the
    // probabilities. Some sums differ by more than the roundings of fp32 add up to.
    set_rows(columns_of(c.qkv, 32, 16), 0, c.n, 1);
    c.operand = &FORMAT_TF32;
    tf32 = cached_on_gpu(&c, 0);
    float most = 0;
    for (int r = 0; r < c.n; r++)
        if (c.position[r] >= 0) most = fmaxf(most, fabsf(row_at(tf32, r)[0] - 1));
    CHECK(most > 0x1p-16f, "rounded probabilities over their own sum: 1, up to %g", (double)most);
    // Operands as they are, of a cache in tf32: the same as of numbers that were rounded before.
    c.operand = &FORMAT_FP32, c.kv = &FORMAT_TF32;
    fill(columns_of(c.qkv, 16, 32));
    before = cached_on_gpu(&c, 0);
    round_to(columns_of(c.qkv, 16, 32), &FORMAT_TF32);
    c.kv = &FORMAT_FP32;
    check_same(before, cached_on_gpu(&c, 0), "out", "a cache in tf32", gpu);
    arrays_free(mark, "cached tf32");
}

// Heads of queries and of keys: alone, grouped, apart, and more in a group than a warp takes at
// once.
static head_shape grouped(int i, int head_dim) {
    static const head_shape shapes[] = {{1, 1, 0}, {4, 2, 0}, {3, 3, 0}, {10, 1, 0}};
    head_shape h = shapes[i % 4];
    h.dim = head_dim;
    return h;
}

// Every storage of rows with every format of the cache; operands like the rows, and narrower than
// the cache. The quick part leaves out what no kernel needs in order to run.
static void check_cached(void) {
    static const format* const all[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16, &FORMAT_TF32};
    static const int head_dims[] = {64, 8, 20, 80, 160, 128, 4};
    int turn = 0;
    for (int t = 0; t < 3; t++)
        for (int kv = 0; kv < 4; kv++)
            for (int o = 0; o < 4; o++) {
                if (t && o != t && o != 3) continue;
                int head_dim = head_dims[turn % 7], gap = turn % 2 ? 3 : 8;
                turn++;
                if (quick() && (turn % 4 == 1 || turn % 7 == 3)) continue;
                check_cached_case(grouped(turn % 3, head_dim), all[t], all[kv], all[o], gap);
            }
    // One byte per element.
    const format* const narrow[] = {&FORMAT_E4M3, &FORMAT_E5M2, format_find("e3m4")};
    for (int t = 0; t < 3; t++)
        for (int d = 0; d < 7; d++)
            if (!quick() || (t + d) % 4 == 0)
                check_cached_case(grouped(t + d, head_dims[d]), all[t], narrow[(t + d) % 3], all[t],
                                  d % 2 ? 3 : 8);
}

// Values of later keys are larger, up to 2^9 times: what a row does not see must not shift its
// sums.
static void raise_values(cached* c) {
    for (int r = 0; r < c->n; r++)
        for (int d = c->channels + c->kv_channels; c->position[r] > 0 && d < c->qkv.cols; d++)
            row_at(c->qkv, r)[d] *= ldexpf(1, c->position[r] / 16);
}

// A row of the cache gets the bits that training gives it, in every format.
static void check_decoding_case(head_shape heads, formats f, const format* kv, int gap) {
    int mark = array_count, gpu_mark = gpu_array_count, start[SLOTS] = {0};
    cached c = cached_new(heads, f.store, kv, f.operand);
    raise_values(&c);
    for (int s = 0; s < SLOTS - 1; s++) start[s + 1] = start[s] + positions_of[s];
    int rows = start[SLOTS - 1];
    tensor packed = matrix_new(rows, c.qkv.cols, f.store);
    for (int r = 0; r < c.n; r++)
        if (c.position[r] >= 0)
            memcpy(row_at(packed, start[c.slot[r]] + c.position[r]), row_at(c.qkv, r),
                   (size_t)c.qkv.cols * sizeof(float));
    schedule_next();
    tensor decoded = cached_on_gpu(&c, gap);
    tensor out = gpu_matrix(matrix_new(rows, c.channels, f.store));
    tensor stats = gpu_matrix(matrix_new(rows, 2 * heads.query, &FORMAT_FP32));
    packing cut = {SLOTS - 1, gpu_copy(start, sizeof start), NULL};
    tensor qkv = gpu_matrix_gap(packed, gap);
    if (kv != f.operand) gpu->kv_round(gpu, qkv, heads, kv);
    gpu->attention_forward(gpu, out, stats.data, qkv, &cut, heads, f.operand);
    tensor trained = gpu_read(out);
    for (int r = 0; r < c.n; r++)
        if (c.position[r] >= 0)
            check_same(rows_of(decoded, r, 1),
                       rows_of(trained, start[c.slot[r]] + c.position[r], 1),
                       "a decoded row beside training's", c.what, gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, c.what);
}

// The number of the way in which the PTX machine's tensor cores sum; -1 on a GPU.
static int way_of_sums(void) {
    static const char* const ways[] = {"chain", "exact", "block8", "block16"};
    const char* way = getenv("PTX_SUM");
    for (int i = 0; i < 4 && way; i++)
        if (!strcmp(way, ways[i])) return i;
    return -1;
}

static void check_decoding(void) {
    static const int head_dims[] = {64, 8, 20, 80, 160, 128, 4};
    for (int f = 0; f < 4; f++)
        for (int d = 0; d < 7; d++)
            if (!quick() || (f > 1 ? d < 4 : (f + d) % 3 == 0))  // each kernel once
                check_decoding_case(grouped(f + d, head_dims[d]), FORMATS_HERE[f],
                                    FORMATS_HERE[f].operand, d % 2 ? 3 : 8);
    // A cache in another format, and the trainer's keys and values rounded to it. In the quick part
    // on the PTX machine each way in which a tensor core may sum takes one case in four: together
    // they run every kernel.
    const format* const caches[] = {&FORMAT_E4M3, &FORMAT_FP16, &FORMAT_BF16, &FORMAT_FP32,
                                    format_find("e3m2")};
    int turn = 0;
    for (int f = 0; f < 4; f++)
        for (int kv = 0; kv < 5; kv++)
            for (int d = 0; d < 7; d++) {
                if (caches[kv] == FORMATS_HERE[f].operand) continue;
                int each_once = f > 1 ? d < 4 : d == 0 || (f == 0 && (d == 3 || d == 4));
                if (quick() && !each_once) continue;
                if (quick() && way_of_sums() >= 0 && turn++ % 4 != way_of_sums()) continue;
                check_decoding_case(grouped(f + d, head_dims[d]), FORMATS_HERE[f], caches[kv],
                                    d % 2 ? 3 : 8);
            }
}

// ------------------------------------------------------------------------------------------------
// Caches with one byte per element

// What a code stands for, after the OCP 8-bit floating point specification 1.0 (and, for other
// formats, after IEEE 754); NaN where that is no finite number of the format. ml_dtypes' types say
// the same.
static float meaning(int code, const format* f) {
    int bias = (1 << (f->exponent_bits - 1)) - 1, m = code & ((1 << f->mantissa_bits) - 1);
    int e = (code & 0x7f) >> f->mantissa_bits, top = (1 << f->exponent_bits) - 1;
    int finite = f == &FORMAT_E4M3 ? e < top || (e == top && m < 7) : e < top;
    double x = e ? ldexp(m + (1 << f->mantissa_bits), e - bias - f->mantissa_bits)
                 : ldexp(m, 1 - bias - f->mantissa_bits);
    return finite ? (float)(code & 0x80 ? -x : x) : NAN;
}

// A row of 4 key heads of 64 has a value for each of 256 codes; a single key's value is the result.
static void check_codes_of(const format* f) {
    enum { DIM = 64, CODES = 4 * DIM };
    int mark = array_count, gpu_mark = gpu_array_count, zero = 0, wrong = 0, numbers = 0;
    tensor qkv = matrix_new(1, 3 * CODES, &FORMAT_BF16), out = matrix_new(1, CODES, &FORMAT_BF16);
    for (int i = 0; i < 3 * CODES; i++) row_at(qkv, 0)[i] = meaning(i % CODES, f);
    set_rows(columns_of(qkv, 0, 2 * CODES), 0, 1, 1);
    kv_cache kv = {.layers = 1,
                   .pages = 1,
                   .heads = {4, 4, DIM},
                   .page_table = gpu_copy(&zero, sizeof zero),
                   .pages_per_slot = 1,
                   .operand = &FORMAT_BF16,
                   .format = f};
    size_t bytes = gpu->kv_bytes(&kv);
    CHECK(bytes == 2 * KV_PAGE * CODES, "%s: %zu bytes", f->name, bytes);
    unsigned char* data = xalloc(bytes, 1, "a cache");
    kv.data = gpu->alloc(gpu, bytes, "a cache");
    tensor in = gpu_matrix(qkv), to = gpu_matrix(out);
    const int* place = gpu_copy(&zero, sizeof zero);
    gpu->kv_write(gpu, &kv, 0, in, place, place);
    gpu->attention_cached(gpu, to, &kv, 0, in, place, place);
    gpu->download(gpu, data, kv.data, bytes);
    out = gpu_read(to);
    for (int i = 0; i < CODES; i++) {
        float x = meaning(i, f);
        int code = data[(i / DIM * 2 + 1) * KV_PAGE * DIM + i % DIM];
        int is_nan = isnan(x);
        numbers += !is_nan;
        wrong += is_nan ? (code & 0x7f) != 0x7f || !isnan(row_at(out, 0)[i])
                        : code != i || row_at(out, 0)[i] != x;
    }
    CHECK(wrong == 0, "%s: %d of 256 codes", f->name, wrong);
    CHECK(numbers > 8, "%s: %d numbers", f->name, numbers);
    free(data);
    gpu->release(gpu, kv.data, bytes);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "codes");
}

static void check_codes(void) {
    static const char* const names[] = {"fp8_e4m3", "fp8_e5m2", "e4m3", "e3m4", "e6m1", "e2m1"};
    for (int i = 0; i < 6; i++) {
        schedule_set(i % schedules);
        check_codes_of(format_find(names[i]));
    }
}

// In place: keys and values, to the format and then to what holds them.
static void check_kv_round(void) {
    const format* const to[] = {&FORMAT_E4M3, &FORMAT_E5M2, &FORMAT_FP16, format_find("e5m6")};
    for (int f = 0; f < 4; f++)
        for (int k = 0; k < 4; k++) {
            int mark = array_count, gpu_mark = gpu_array_count;
            head_shape heads = grouped(k, 20);
            tensor qkv = moderate(5, (heads.query + 2 * heads.kv) * 20, FORMATS_HERE[f].store);
            for (int c = 0; c < qkv.cols; c++) row_at(qkv, 2)[c] *= ldexpf(1, c % 40 - 20);
            round_to(qkv, qkv.format);
            row_at(qkv, 1)[qkv.cols - 1] = NAN, row_at(qkv, 1)[qkv.cols - 2] = -INFINITY;
            schedule_set(k);
            tensor there = gpu_matrix_gap(qkv, k % 2 ? 3 : 0);
            gpu->kv_round(gpu, there, heads, to[k]);
            cpu->kv_round(cpu, qkv, heads, to[k]);
            tensor got = gpu_read(there);
            CHECK(isnan(row_at(got, 1)[qkv.cols - 1]), "NaN stays");
            row_at(got, 1)[qkv.cols - 1] = row_at(qkv, 1)[qkv.cols - 1] = 0;
            check_same(got, qkv, "qkv", text("rounded to %s", to[k]->name), gpu);
            gpu_arrays_free(gpu_mark);
            arrays_free(mark, "kv_round");
        }
    schedule_set(0);
}

// ------------------------------------------------------------------------------------------------
// Gathering rows

static void check_gather(void) {
    static const int row[] = {4, 0, 0, 3};
    for (int f = 0; f < 4; f++)
        for (int k = 0; k < 4; k++) {
            int mark = array_count, gpu_mark = gpu_array_count;
            tensor from = moderate(5, k % 2 ? 20 : 64, FORMATS_HERE[f].store);
            tensor expected = matrix_new(4, from.cols, from.format);
            cpu->gather_rows(cpu, expected, from, row);
            schedule_set(k);
            tensor to = gpu_matrix_gap(matrix_new(4, from.cols, from.format), k / 2 * 3);
            gpu->gather_rows(gpu, to, gpu_matrix(from), gpu_copy(row, sizeof row));
            check_same(gpu_read(to), expected, "rows", "gathered rows", gpu);
            gpu_arrays_free(gpu_mark);
            arrays_free(mark, "gathered rows");
        }
}

int main(void) {
    cuda_test_open();
    check_gather();
    check_shapes();
    check_prefix();
    check_apart();
    check_head_order();
    check_rounding_shows();
    check_cached();
    check_cached_rounding();
    check_decoding();
    check_codes();
    check_kv_round();
    cuda_test_close();
    return test_report();
}
