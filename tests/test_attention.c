// Causal attention over a packed batch, forward and backward, and over a KV cache. See cpu_test.h
// for the method.
#include "cpu_test.h"

// The rounding points: operands, probabilities, what is written; KV is the cache's own format.
enum { Q, K, V, P, OUT, DOUT, DS, DQKV, KV, POINTS };

typedef struct formats {
    const format* f[POINTS];
} formats;

// A row of the contract's table: products' operands, and what is written.
static formats formats_of(const format* product, const format* store) {
    formats a = {{product, product, product, product, store, product, product, store, store}};
    return a;
}

// A packed batch: lengths of its sequences, ends with 0.
enum { SEQUENCES_MAX = 8 };
typedef struct pack {
    int heads, head_dim, lengths[SEQUENCES_MAX];
} pack;

static head_shape heads_of(const pack* p) { return (head_shape){p->heads, p->heads, p->head_dim}; }

static int pack_starts(const pack* p, int* start) {
    int n = 0;
    for (start[0] = 0; n < SEQUENCES_MAX && p->lengths[n]; n++)
        start[n + 1] = start[n] + p->lengths[n];
    return n;
}

static const char* pack_text(const pack* p, const formats* f) {
    char lengths[64] = "";
    for (int s = 0; s < SEQUENCES_MAX && p->lengths[s]; s++)
        snprintf(lengths + strlen(lengths), sizeof lengths - strlen(lengths), " %d", p->lengths[s]);
    return text("attention, %d heads of %d, sequences of%s, %s products, %s", p->heads, p->head_dim,
                lengths, f->f[Q]->name, f->f[OUT]->name);
}

// ------------------------------------------------------------------------------------------------
// Naive versions

// One query against its first n keys.
static void naive_query(float* out, float* stats, const float* q, tensor k, tensor v, int n,
                        const formats* a) {
    float *p = xalloc(n, sizeof *p, "scores"), max = -INFINITY;
    float scale = 1.0f / sqrtf((float)k.cols);
    for (int j = 0; j < n; j++) {
        p[j] = chain(0, q, 1, row_at(k, j), 1, k.cols) * scale;
        max = fmaxf(max, p[j]);
    }
    for (int j = 0; j < n; j++) p[j] = num_expf(p[j] - max);
    float total = tree_sum(p, n);
    for (int j = 0; j < n; j++) p[j] = format_round(p[j], a->f[P]);
    for (int d = 0; d < k.cols; d++) {
        float sum = block_chain(p, 1, (float*)v.data + d, v.stride, n);
        out[d] = format_round(sum / total, a->f[OUT]);
    }
    stats[0] = max;
    stats[1] = total;
    free(p);
}

// Query, key or value rows of one head of a sequence, as operands. `which`: Q, K or V.
static tensor head_operands(tensor rows, int which, int heads, int h, const formats* a) {
    int head_dim = rows.cols / heads / 3, first = (which * heads + h) * head_dim;
    return operands_of(columns_of(rows, first, head_dim), a->f[which]);
}

static void naive_sequence(tensor out, tensor stats, tensor qkv, int heads, const formats* a) {
    for (int h = 0; h < heads; h++) {
        int mark = array_count;
        tensor q = head_operands(qkv, Q, heads, h, a), k = head_operands(qkv, K, heads, h, a);
        tensor v = head_operands(qkv, V, heads, h, a);
        for (int i = 0; i < qkv.rows; i++)
            naive_query(row_at(out, i) + h * q.cols, row_at(stats, i) + 2 * h, row_at(q, i), k, v,
                        i + 1, a);
        arrays_drop(mark);
    }
}

static void naive_forward(tensor out, tensor stats, tensor qkv, const pack* p, const formats* a) {
    int start[SEQUENCES_MAX + 1], sequences = pack_starts(p, start);
    for (int s = 0; s < sequences; s++)
        naive_sequence(rows_of(out, start[s], p->lengths[s]),
                       rows_of(stats, start[s], p->lengths[s]),
                       rows_of(qkv, start[s], p->lengths[s]), p->heads, a);
}

// Probabilities and score gradients of query i, rounded, into row i of p and ds.
static void naive_scores(tensor p, tensor ds, int i, const float* stats, float delta,
                         const float* q, const float* dout, tensor k, tensor v, const formats* a) {
    float scale = 1.0f / sqrtf((float)k.cols);
    for (int j = 0; j <= i; j++) {
        float s = chain(0, q, 1, row_at(k, j), 1, k.cols) * scale;
        float dp = chain(0, dout, 1, row_at(v, j), 1, k.cols);
        float probability = num_expf(s - stats[0]) / stats[1];
        row_at(p, i)[j] = format_round(probability, a->f[P]);
        row_at(ds, i)[j] = format_round(probability * (dp - delta), a->f[DS]);
    }
}

// One head of a sequence; dq, dk, dv: its columns of dqkv. dq is a sum over keys in blocks, as the
// output is; dk and dv are chains over the queries from the sequence's start.
static void naive_backward_head(tensor dq, tensor dk, tensor dv, tensor dout, tensor qkv,
                                tensor out, tensor stats, int heads, int h, const formats* a) {
    int mark = array_count, n = qkv.rows, head_dim = dq.cols;
    tensor q = head_operands(qkv, Q, heads, h, a), k = head_operands(qkv, K, heads, h, a);
    tensor v = head_operands(qkv, V, heads, h, a);
    tensor o = columns_of(out, h * head_dim, head_dim);
    tensor plain = columns_of(dout, h * head_dim, head_dim), d = operands_of(plain, a->f[DOUT]);
    tensor p = matrix_new(n, n, &FORMAT_FP32), ds = matrix_new(n, n, &FORMAT_FP32);
    float scale = 1.0f / sqrtf((float)head_dim), *product = floats_new(head_dim);
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < head_dim; c++) product[c] = row_at(plain, i)[c] * row_at(o, i)[c];
        naive_scores(p, ds, i, row_at(stats, i) + 2 * h, tree_sum(product, head_dim), row_at(q, i),
                     row_at(d, i), k, v, a);
    }
    for (int i = 0; i < n; i++)
        for (int c = 0; c < head_dim; c++) {
            float sum_q = block_chain(row_at(ds, i), 1, (float*)k.data + c, k.stride, i + 1);
            float sum_k = chain(0, row_at(ds, i) + i, ds.stride, row_at(q, i) + c, q.stride, n - i);
            float sum_v = chain(0, row_at(p, i) + i, p.stride, row_at(d, i) + c, d.stride, n - i);
            row_at(dq, i)[c] = format_round(sum_q * scale, a->f[DQKV]);
            row_at(dk, i)[c] = format_round(sum_k * scale, a->f[DQKV]);
            row_at(dv, i)[c] = format_round(sum_v, a->f[DQKV]);
        }
    arrays_drop(mark);
}

static void naive_backward(tensor dqkv, tensor dout, tensor qkv, tensor out, tensor stats,
                           const pack* p, const formats* a) {
    int start[SEQUENCES_MAX + 1], sequences = pack_starts(p, start);
    for (int s = 0; s < sequences; s++)
        for (int h = 0; h < p->heads; h++) {
            int first = start[s], n = p->lengths[s], c = h * p->head_dim, channels = out.cols;
            tensor d = rows_of(dqkv, first, n);
            naive_backward_head(columns_of(d, c, p->head_dim),
                                columns_of(d, channels + c, p->head_dim),
                                columns_of(d, 2 * channels + c, p->head_dim),
                                rows_of(dout, first, n), rows_of(qkv, first, n),
                                rows_of(out, first, n), rows_of(stats, first, n), p->heads, h, a);
        }
}

// ------------------------------------------------------------------------------------------------
// Packed batches

typedef struct attention_case {
    pack p;
    formats a;
    int sequences, start[SEQUENCES_MAX + 1];
    tensor qkv, out, stats, dout, dqkv;  // expected, where they are results
} attention_case;

// `plain`: 1 for inputs that products must still round, where they are narrower.
static attention_case case_new(pack p, formats a, int plain) {
    attention_case c = {.p = p, .a = a};
    c.sequences = pack_starts(&p, c.start);
    int rows = c.start[c.sequences], channels = p.heads * p.head_dim;
    const format* in = plain ? &FORMAT_FP32 : a.f[OUT];
    c.qkv = matrix_random(rows, 3 * channels, in);
    c.dout = matrix_random(rows, channels, in);
    c.out = matrix_new(rows, channels, a.f[OUT]);
    c.stats = array_new(rows, 2 * p.heads, 0, &FORMAT_FP32);
    c.dqkv = matrix_new(rows, 3 * channels, a.f[DQKV]);
    naive_forward(c.out, c.stats, c.qkv, &p, &a);
    return c;
}

static void check_forward_on(backend* b, const attention_case* c) {
    int mark = array_count;
    const char* what = pack_text(&c->p, &c->a);
    tensor out = matrix_new(c->out.rows, c->out.cols, c->out.format);
    tensor stats = array_new(c->stats.rows, c->stats.cols, 0, &FORMAT_FP32);
    b->attention_forward(b, out, stats.data, c->qkv, c->start, c->sequences, heads_of(&c->p),
                         c->a.f[Q]);
    check_same(out, c->out, "out", what, b);
    check_same(stats, c->stats, "stats", what, b);
    arrays_free(mark, what);
}

static void check_backward_on(backend* b, const attention_case* c) {
    int mark = array_count;
    const char* what = pack_text(&c->p, &c->a);
    tensor dqkv = matrix_new(c->dqkv.rows, c->dqkv.cols, c->dqkv.format);
    b->attention_backward(b, dqkv, c->dout, c->qkv, c->out, c->stats.data, c->start, c->sequences,
                          heads_of(&c->p), c->a.f[Q], c->a.f[DS]);
    check_same(dqkv, c->dqkv, "dqkv", what, b);
    arrays_free(mark, what);
}

static void check_case(pack p, formats a, int plain, int first_device, int step) {
    int mark = array_count;
    attention_case c = case_new(p, a, plain);
    naive_backward(c.dqkv, c.dout, c.qkv, c.out, c.stats, &p, &a);
    for (int d = first_device; d < device_count; d += step) {
        check_forward_on(devices[d], &c);
        check_backward_on(devices[d], &c);
    }
    arrays_free(mark, pack_text(&p, &a));
}

static void check_shapes(void) {
    static const pack packs[] = {
        {1, 1, {1}},       {1, 8, {1, 1, 2}},       {3, 5, {5, 1, 17, 16, 15}},
        {2, 16, {33, 2}},  {1, 20, {48, 31, 7, 1}}, {4, 3, {64}},
        {1, 8, {3, 530}},  {2, 64, {19, 4}},        {1, 80, {2, 18}},
        {1, 100, {1, 20}}, {5, 33, {9, 8}}};
    formats a = formats_of(&FORMAT_FP32, &FORMAT_FP32);
    for (size_t i = 0; i < sizeof packs / sizeof *packs; i++)
        check_case(packs[i], a, 0, device_next(), device_step);
    check_case((pack){3, 24, {60, 5, 100, 31}}, a, 0, 0, 1);
}

static void check_formats(void) {
    static const format* const rows[][2] = {
        {&FORMAT_TF32, &FORMAT_FP32}, {&FORMAT_BF16, &FORMAT_BF16}, {&FORMAT_FP16, &FORMAT_FP16}};
    pack p = {2, 20, {35, 1, 6}};
    for (int i = 0; i < 3; i++)
        for (int plain = 0; plain < 2; plain++)
            check_case(p, formats_of(rows[i][0], rows[i][1]), plain, device_next(), device_step);
    // Gradients of a format of their own: products', what is written, and as operands and written.
    static const format* const gradients[][4] = {
        {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_FP32, &FORMAT_FP32},
        {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_BF16, &FORMAT_BF16},
        {&FORMAT_TF32, &FORMAT_FP32, &FORMAT_FP16, &FORMAT_FP16},
        {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_TF32, &FORMAT_FP32}};
    for (int i = 0; i < 4; i++) {
        formats a = formats_of(gradients[i][0], gradients[i][1]);
        a.f[DOUT] = a.f[DS] = gradients[i][2];
        a.f[DQKV] = gradients[i][3];
        check_case(p, a, 1, device_next(), device_step);
    }
}

// Leaving out one rounding point changes bits.
static void check_rounding_points(void) {
    int mark = array_count;
    pack p = {2, 12, {21, 9}};
    attention_case c = case_new(p, formats_of(&FORMAT_BF16, &FORMAT_FP16), 1);
    tensor out = matrix_copy(c.out), dqkv = matrix_copy(c.dqkv), stats = matrix_copy(c.stats);
    naive_backward(c.dqkv, c.dout, c.qkv, c.out, c.stats, &p, &c.a);
    for (int off = 0; off < KV; off++) {
        formats a = c.a;
        a.f[off] = &FORMAT_FP32;
        naive_forward(out, stats, c.qkv, &p, &a);
        naive_backward(dqkv, c.dout, c.qkv, c.out, c.stats, &p, &a);
        int forward = off <= OUT, backward = off != OUT;
        CHECK((first_difference(out, c.out) >= 0) == forward, "forward, point %d", off);
        CHECK((first_difference(dqkv, c.dqkv) >= 0) == backward, "backward, point %d", off);
    }
    arrays_free(mark, "rounding points of attention");
}

// Later tokens and other sequences are skipped, not weighted by zero: NaN there does not come
// through.
static void check_masking(void) {
    pack p = {2, 20, {18, 40, 3}};
    for (int d = 0; d < device_count; d += device_step) {
        int mark = array_count, middle = 18, kept = 23;
        attention_case c = case_new(p, formats_of(&FORMAT_FP32, &FORMAT_FP32), 0);
        tensor out = matrix_copy(c.out), stats = matrix_copy(c.stats);
        backend* b = devices[d];
        set_rows(c.qkv, 0, middle, NAN);
        set_rows(c.qkv, middle + kept, c.qkv.rows - middle - kept, NAN);
        b->attention_forward(b, out, stats.data, c.qkv, c.start, c.sequences, heads_of(&p),
                             &FORMAT_FP32);
        check_same(rows_of(out, middle, kept), rows_of(c.out, middle, kept), "out",
                   "attention beside NaN", b);
        arrays_free(mark, "attention beside NaN");
    }
}

// The gradients of a sequence are its own: other sequences' may be NaN.
static void check_backward_apart(void) {
    pack p = {2, 20, {18, 40, 3}};
    for (int d = 0; d < device_count; d += device_step) {
        int mark = array_count;
        attention_case c = case_new(p, formats_of(&FORMAT_FP32, &FORMAT_FP32), 0);
        backend* b = devices[d];
        naive_backward(c.dqkv, c.dout, c.qkv, c.out, c.stats, &p, &c.a);
        tensor dqkv = matrix_copy(c.dqkv);
        set_rows(c.dout, 0, 18, NAN);
        set_rows(c.dout, 58, 3, NAN);
        b->attention_backward(b, dqkv, c.dout, c.qkv, c.out, c.stats.data, c.start, 3, heads_of(&p),
                              &FORMAT_FP32, &FORMAT_FP32);
        check_same(rows_of(dqkv, 18, 40), rows_of(c.dqkv, 18, 40), "dqkv",
                   "attention's gradient beside NaN", b);
        arrays_free(mark, "attention's gradient beside NaN");
    }
}

// ------------------------------------------------------------------------------------------------
// The cache

// Keys and values lie in whole vectors of 16.
static int layer_floats(const kv_cache* kv) {
    return kv->pages * kv->heads.kv * 2 * ((kv->heads.dim + 15) / 16 * 16) * KV_PAGE;
}

// A cache full of NaN, and a page table whose entries name the last page, which nobody writes.
static kv_cache cache_new(int layers, int pages, int slots, int pages_per_slot, const pack* p,
                          const formats* a) {
    int* table = ints_new(slots * pages_per_slot);
    for (int i = 0; i < slots * pages_per_slot; i++) table[i] = pages - 1;
    kv_cache kv = {.layers = layers,
                   .pages = pages,
                   .heads = heads_of(p),
                   .page_table = table,
                   .pages_per_slot = pages_per_slot,
                   .format = a->f[KV],
                   .operand = a->f[K]};
    kv.data = floats_new(layers * layer_floats(&kv));
    return kv;
}

static void shuffle(int* x, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = random_below(i + 1), t = x[i];
        x[i] = x[j];
        x[j] = t;
    }
}

static int* ints_from(int n, int first) {
    int* x = ints_new(n);
    for (int i = 0; i < n; i++) x[i] = first + i;
    return x;
}

static int* ints_all(int n, int value) {
    int* x = ints_new(n);
    for (int i = 0; i < n; i++) x[i] = value;
    return x;
}

// Rows of t in the order of `position`.
static tensor rows_at_positions(tensor t, const int* position, int n) {
    tensor to = matrix_new(n, t.cols, t.format);
    for (int i = 0; i < n; i++)
        memcpy(row_at(to, i), row_at(t, position[i]), t.cols * sizeof(float));
    return to;
}

// One sequence written to slot 1, pages in random order, rows in random order, in layer 1 of 2;
// then every position attends, in another order. The bits are those of the packed batch.
static void check_cached_on(backend* b, const attention_case* c) {
    int mark = array_count, n = c->qkv.rows, used = (n + KV_PAGE - 1) / KV_PAGE;
    const char* what = text("cached %s", pack_text(&c->p, &c->a));
    kv_cache kv = cache_new(2, used + 1, 2, used + 2, &c->p, &c->a);
    int *pages = ints_from(used, 0), *order = ints_from(n, 0), *slot = ints_all(n, 1);
    shuffle(pages, used);
    memcpy((int*)kv.page_table + kv.pages_per_slot, pages, used * sizeof(int));
    shuffle(order, n);
    b->kv_write(b, &kv, 1, rows_at_positions(c->qkv, order, n), slot, order);
    shuffle(order, n);
    tensor out = matrix_new(n, c->out.cols, c->out.format);
    b->attention_cached(b, out, &kv, 1, rows_at_positions(c->qkv, order, n), slot, order);
    check_same(out, rows_at_positions(c->out, order, n), "out", what, b);
    CHECK(poisoned(kv.data, layer_floats(&kv)), "%s: layer 0 was written (%s)", what, b->name);
    arrays_free(mark, what);
}

// Across the blocks of 256 keys, at head dimensions with and without padding. One device an
// instruction set, and one with threads.
static void check_long(void) {
    static const int head_dims[] = {8, 16, 20, 64, 80};
    for (int i = 0; i < 5; i++) {
        int mark = array_count;
        pack p = {1, head_dims[i], {600}};
        attention_case c = case_new(p, formats_of(&FORMAT_FP32, &FORMAT_FP32), 0);
        for (int d = 0; d < device_count; d += device_step) {
            check_forward_on(devices[d], &c);
            check_cached_on(devices[d], &c);
        }
        check_forward_on(devices[device_count - 1], &c);
        check_cached_on(devices[device_count - 1], &c);
        arrays_free(mark, "long sequences");
    }
}

static void check_cached(void) {
    static const format* const rows[][2] = {{&FORMAT_FP32, &FORMAT_FP32},
                                            {&FORMAT_TF32, &FORMAT_FP32},
                                            {&FORMAT_BF16, &FORMAT_BF16},
                                            {&FORMAT_FP16, &FORMAT_FP16}};
    static const pack packs[] = {{1, 1, {1}}, {2, 8, {40}}, {3, 20, {16}}, {1, 80, {17}}};
    for (int i = 0; i < 16; i++) {
        int mark = array_count;
        attention_case c = case_new(packs[i % 4], formats_of(rows[i / 4][0], rows[i / 4][1]), 0);
        for (int d = i / 4 ? i % device_step : 0; d < device_count; d += i / 4 ? device_step : 1)
            check_cached_on(devices[d], &c);
        arrays_free(mark, "cached attention");
    }
}

// All devices write the same cache. So much that threads run at the same time: scratch memory that
// they shared would show.
static void check_written(void) {
    enum { SLOTS = 60, POSITIONS = 48, ROWS = SLOTS * POSITIONS };
    int mark = array_count, *slot = ints_new(ROWS), *position = ints_new(ROWS);
    pack p = {4, 20, {0}};
    formats a = formats_of(&FORMAT_TF32, &FORMAT_FP32);
    tensor qkv = matrix_random(ROWS, 3 * 80, &FORMAT_FP32), expected = {0};
    for (int r = 0; r < ROWS; r++) {
        slot[r] = r / POSITIONS;
        position[r] = r % POSITIONS;
    }
    for (int d = 0; d < device_count; d++) {
        kv_cache kv = cache_new(1, SLOTS * 3 + 1, SLOTS, 3, &p, &a);
        for (int i = 0; i < SLOTS * 3; i++) ((int*)kv.page_table)[i] = i;
        devices[d]->kv_write(devices[d], &kv, 0, qkv, slot, position);
        tensor written = as_vector(kv.data, layer_floats(&kv));
        if (d == 0) expected = written;
        int64_t at = first_difference(written, expected);
        CHECK(at < 0, "%lld of a written cache differs (%s)", (long long)at, devices[d]->name);
    }
    arrays_free(mark, "a written cache");
}

// Token by token, as in decoding; what earlier positions gave does not change.
static void check_decoding(void) {
    pack p = {2, 20, {50}};
    formats a = formats_of(&FORMAT_FP32, &FORMAT_FP32);
    for (int d = 0; d < device_count; d += device_step) {
        int mark = array_count;
        attention_case c = case_new(p, a, 0);
        backend* b = devices[d];
        kv_cache kv = cache_new(1, 5, 1, 4, &p, &a);
        for (int i = 0; i < 4; i++) ((int*)kv.page_table)[i] = 3 - i;
        tensor out = matrix_new(1, 40, &FORMAT_FP32);
        for (int i = 0, slot = 0; i < 50; i++) {
            poison(out);
            b->kv_write(b, &kv, 0, rows_of(c.qkv, i, 1), &slot, &i);
            b->attention_cached(b, out, &kv, 0, rows_of(c.qkv, i, 1), &slot, &i);
            check_same(out, rows_of(c.out, i, 1), "out", text("decoding position %d", i), b);
        }
        arrays_free(mark, "decoding");
    }
}

// Slot 1 shares the full pages of slot 0's 40 tokens, gets a copy of the partly filled one, and
// goes its own way; so does slot 0. An idle row in between; NaN at positions that a row may not
// see.
static void check_shared_pages_on(backend* b, formats a) {
    int mark = array_count, shared = 40, n = 60;
    pack p = {2, 20, {60, 60}};
    attention_case c = case_new(p, a, 0);
    tensor first = rows_of(c.qkv, 0, n), second = rows_of(c.qkv, n, n);
    copy_values(rows_of(second, 0, shared), first);
    naive_forward(c.out, c.stats, c.qkv, &p, &a);

    kv_cache kv = cache_new(2, 7, 2, 5, &p, &a);
    static const int tables[2][4] = {{2, 5, 0, 4}, {2, 5, 1, 3}};
    for (int s = 0; s < 2; s++) memcpy((int*)kv.page_table + 5 * s, tables[s], sizeof tables[s]);
    int *zeros = ints_all(n, 0), *position = ints_from(n, 0);
    b->kv_write(b, &kv, 1, rows_of(first, 0, shared), zeros, position);
    b->kv_write(b, &kv, 0, rows_of(second, 0, shared), zeros, position);
    b->kv_copy_page(b, &kv, 1, 0);

    tensor out = matrix_new(3, 40, a.f[OUT]), rows = matrix_new(3, 120, a.f[OUT]);
    tensor nothing = matrix_new(1, 40, a.f[OUT]), beyond = matrix_new(1, 120, &FORMAT_FP32);
    set_zero(nothing);
    set_rows(beyond, 0, 1, NAN);
    for (int i = shared; i < n; i++) {
        int slot[3] = {1, 0, 0}, at[3] = {i, -1, i}, next = i + 1;
        copy_values(rows_of(rows, 0, 1), rows_of(second, i, 1));
        copy_values(rows_of(rows, 2, 1), rows_of(first, i, 1));
        poison(out);
        b->kv_write(b, &kv, 1, rows, slot, at);
        b->kv_write(b, &kv, 1, beyond, slot, &next);
        b->attention_cached(b, out, &kv, 1, rows, slot, at);
        const char* what = text("position %d of slots with shared pages, %s", i, a.f[Q]->name);
        check_same(rows_of(out, 0, 1), rows_of(c.out, n + i, 1), "slot 1", what, b);
        check_same(rows_of(out, 1, 1), nothing, "an idle row", what, b);
        check_same(rows_of(out, 2, 1), rows_of(c.out, i, 1), "slot 0", what, b);
    }
    // The copy took all layers: layer 0 of both slots holds the second sequence's start.
    int both[2] = {0, 1}, at[2] = {shared - 1, shared - 1};
    copy_values(rows_of(rows, 0, 1), rows_of(second, shared - 1, 1));
    copy_values(rows_of(rows, 1, 1), rows_of(second, shared - 1, 1));
    b->attention_cached(b, rows_of(out, 0, 2), &kv, 0, rows_of(rows, 0, 2), both, at);
    check_same(rows_of(out, 1, 1), rows_of(out, 0, 1), "layer 0", "a copied page", b);
    check_same(rows_of(out, 1, 1), rows_of(c.out, n + shared - 1, 1), "layer 0", "a copied page",
               b);
    arrays_free(mark, "shared pages");
}

static void check_shared_pages(void) {
    for (int d = 0; d < device_count; d++)
        check_shared_pages_on(devices[d], d % 2 ? formats_of(&FORMAT_TF32, &FORMAT_FP32)
                                                : formats_of(&FORMAT_BF16, &FORMAT_BF16));
}

// A cache narrower than QKV: keys and values are rounded to its format, queries are not. Then they
// are rounded to operands, which changes nothing any more; in the other order, what bf16 rounds to
// halfway between two numbers of the cache's would end on the wrong one of them.
static void check_narrow_cache(void) {
    pack p = {2, 20, {40}};
    for (int d = 0; d < 2 * device_count; d += device_step) {
        int mark = array_count;
        formats a = formats_of(d < device_count ? &FORMAT_FP32 : &FORMAT_BF16, &FORMAT_FP32);
        attention_case wide = case_new(p, a, 0), c = wide;
        c.a.f[KV] = &FORMAT_E4M3;
        c.qkv = matrix_copy(wide.qkv);
        c.out = matrix_copy(wide.out);
        tensor kept = columns_of(c.qkv, 40, 80), query = columns_of(wide.qkv, 0, 40);
        for (int r = 0; r < 40; r++)
            for (int i = 0; i < 80; i++)
                row_at(kept, r)[i] = format_round(row_at(kept, r)[i], &FORMAT_E4M3);
        naive_forward(c.out, c.stats, c.qkv, &p, &c.a);
        CHECK(first_difference(c.out, wide.out) >= 0, "the cache's format shows");
        copy_values(c.qkv, wide.qkv);
        check_cached_on(devices[d % device_count], &c);
        CHECK(first_difference(columns_of(c.qkv, 0, 40), query) < 0, "queries stay");
        arrays_free(mark, "a narrow cache");
    }
}

// ------------------------------------------------------------------------------------------------
// Against float64, and finite differences

static void check_float64_op(const char* op, int rows, int sequences) {
    int mark = array_count;
    for (int d = 0; d < device_count; d += device_step) {
        backend* b = devices[d];
        int count = *fixture_ints(op, "heads"), *start = fixture_ints(op, "seq_start");
        tensor qkv = fixture_matrix(op, "qkv", rows, 3), dout = fixture_matrix(op, "dout", rows, 1);
        head_shape heads = {count, count, dout.cols / count};
        tensor out = matrix_new(rows, dout.cols, &FORMAT_FP32);
        tensor dqkv = matrix_new(rows, qkv.cols, &FORMAT_FP32);
        float* stats = floats_new(rows * count * 2);
        b->attention_forward(b, out, stats, qkv, start, sequences, heads, &FORMAT_FP32);
        b->attention_backward(b, dqkv, dout, qkv, out, stats, start, sequences, heads, &FORMAT_FP32,
                              &FORMAT_FP32);
        check_fixture(out, op, "out", b);
        check_fixture(dqkv, op, "dqkv", b);
    }
    arrays_free(mark, op);
}

typedef struct slope_case {
    backend* b;
    tensor qkv, weight, out;
    float* stats;
} slope_case;

static const int SLOPE_STARTS[] = {0, 7, 8, 11};
static const head_shape SLOPE_HEADS = {2, 2, 3};

static double forward_loss(const void* context, double* size) {
    const slope_case* s = context;
    s->b->attention_forward(s->b, s->out, s->stats, s->qkv, SLOPE_STARTS, 3, SLOPE_HEADS,
                            &FORMAT_FP32);
    return weighted_sum(s->out, s->weight, size);
}

static void check_differences(void) {
    int mark = array_count;
    backend* b = devices[device_count - device_step];
    slope_case s = {b, matrix_grid(11, 18), matrix_grid(11, 6), matrix_new(11, 6, &FORMAT_FP32),
                    floats_new(11 * 2 * 2)};
    tensor dqkv = matrix_new(11, 18, &FORMAT_FP32);
    double size = 0;
    forward_loss(&s, &size);
    b->attention_backward(b, dqkv, s.weight, s.qkv, s.out, s.stats, SLOPE_STARTS, 3, SLOPE_HEADS,
                          &FORMAT_FP32, &FORMAT_FP32);
    // A score of 3 terms, its exp, the sums over at most 7 keys, the quotient; and the terms of a
    // weighted mean are larger than the mean.
    for (int i = 0; i < 3; i++)
        check_slopes(s.qkv, dqkv, forward_loss, &s, 40, "slope of attention");
    arrays_free(mark, "differences of attention");
}

int main(void) {
    devices_open();
    check_shapes();
    check_formats();
    check_rounding_points();
    check_masking();
    check_backward_apart();
    check_long();
    check_cached();
    check_written();
    check_decoding();
    check_shared_pages();
    check_narrow_cache();
    check_float64_op("attention", 29, 3);
    check_float64_op("attention_long", 272, 1);
    check_differences();
    fixtures_close();
    devices_close();
    return test_report();
}
