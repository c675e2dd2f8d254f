// Causal attention over a packed batch, forward and backward, and over a KV cache. See op_test.h
// for the method; a row is a sequence here.
#include "op_test.h"

// Operands of the products forward and backward; what is written; KV is the cache's own format.
typedef struct formats {
    const format *operand, *gradient, *out, *dqkv, *kv;
} formats;

// A row of the contract's table: products' operands, and what is written.
static formats formats_of(const format* product, const format* store) {
    return (formats){product, product, store, store, store};
}

// A packed batch: lengths of its sequences, ends with 0. Negative: the sequence continues the last
// one before it whose length is positive, a root.
enum { SEQUENCES_MAX = 8 };
typedef struct pack {
    int heads, kv_heads, head_dim, lengths[SEQUENCES_MAX];
} pack;

static head_shape heads_of(const pack* p) {
    return (head_shape){p->heads, p->kv_heads, p->head_dim};
}

static int qkv_width(const pack* p) { return (p->heads + 2 * p->kv_heads) * p->head_dim; }

static int pack_starts(const pack* p, int* start) {
    int n = 0;
    for (start[0] = 0; n < SEQUENCES_MAX && p->lengths[n]; n++)
        start[n + 1] = start[n] + abs(p->lengths[n]);
    return n;
}

static const char* pack_text(const pack* p, const formats* f) {
    char lengths[64] = "";
    for (int s = 0; s < SEQUENCES_MAX && p->lengths[s]; s++)
        snprintf(lengths + strlen(lengths), sizeof lengths - strlen(lengths), " %d", p->lengths[s]);
    return text("attention, %d and %d heads of %d, sequences of%s, %s products, %s", p->heads,
                p->kv_heads, p->head_dim, lengths, f->operand->name, f->out->name);
}

// ------------------------------------------------------------------------------------------------
// Packed batches

typedef struct attention_inputs {
    pack p;
    formats f;
    int sequences, start[SEQUENCES_MAX + 1], prefix[SEQUENCES_MAX];
    int roots, root[SEQUENCES_MAX + 1];  // roots, and the number of sequences
    tensor qkv, dout;
} attention_inputs;

enum { OUT, STATS, DQKV, RESULTS };
static const char* const NAMES[] = {"out", "stats", "dqkv"};

// Roots first .. first+n-1 and what continues them, as a batch of their own. Where nothing does,
// the prefixes may be left out.
static void run_attention(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const attention_inputs* c = inputs;
    int begin = c->root[first], sequences = c->root[first + n] - begin;
    int start[SEQUENCES_MAX + 1], prefix[SEQUENCES_MAX];
    int at = c->start[begin], rows = c->start[begin + sequences] - at;
    for (int s = 0; s <= sequences; s++) start[s] = c->start[begin + s] - at;
    for (int s = 0; s < sequences; s++)
        prefix[s] = c->prefix[begin + s] < 0 ? -1 : c->prefix[begin + s] - begin;
    packing cut = {sequences, start, sequences == n && first % 2 ? NULL : prefix};
    tensor qkv = rows_of(c->qkv, at, rows), dout = rows_of(c->dout, at, rows);
    tensor out = rows_of(r[OUT], at, rows), dqkv = rows_of(r[DQKV], at, rows);
    float* stats = row_at(r[STATS], at);
    b->attention_forward(b, out, stats, qkv, &cut, heads_of(&c->p), c->f.operand);
    b->attention_backward(b, dqkv, dout, qkv, out, stats, &cut, heads_of(&c->p), c->f.operand,
                          c->f.gradient);
}

static void find_roots(attention_inputs* c) {
    for (int s = 0; s < c->sequences; s++) {
        if (c->p.lengths[s] > 0) c->root[c->roots++] = s;
        c->prefix[s] = c->p.lengths[s] > 0 ? -1 : c->root[c->roots - 1];
    }
    c->root[c->roots] = c->sequences;
}

// `wide`: 1 for inputs that products must still round, where they are narrower.
static attention_inputs inputs_new(pack p, formats f, int wide) {
    attention_inputs c = {.p = p, .f = f};
    c.sequences = pack_starts(&p, c.start);
    find_roots(&c);
    c.qkv = matrix_random(c.start[c.sequences], qkv_width(&p), wide ? &FORMAT_FP32 : f.out);
    c.dout = matrix_random(c.start[c.sequences], p.heads * p.head_dim, wide ? &FORMAT_FP32 : f.out);
    return c;
}

static op_case attention_case(const attention_inputs* c) {
    int rows = c->qkv.rows;
    op_case o = {pack_text(&c->p, &c->f), run_attention, c, c->roots, 0, RESULTS, NAMES, {{0}}};
    o.results[OUT] = matrix_new(rows, c->dout.cols, c->f.out);
    o.results[STATS] = array_new(rows, 2 * c->p.heads, 0, &FORMAT_FP32);
    o.results[DQKV] = matrix_new(rows, c->qkv.cols, c->f.dqkv);
    return o;
}

static void check_attention(pack p, formats f, int wide, int everywhere) {
    int mark = array_count;
    attention_inputs c = inputs_new(p, f, wide);
    op_case o = attention_case(&c);
    check_case_on(&o, everywhere ? 0 : device_next(), everywhere ? 1 : device_step);
    if (wide) check_formats_show(&o);
    arrays_free(mark, o.what);
}

static void check_shapes(void) {
    static const pack packs[] = {
        {1, 1, 1, {1}},
        {1, 1, 8, {1, 1, 2}},
        {3, 3, 5, {5, 1, 17, 16, 15}},
        {2, 2, 16, {33, 2}},
        {4, 2, 16, {33, 2}},
        {1, 1, 20, {48, 31, 7, 1}},
        {4, 4, 3, {64}},
        {4, 1, 3, {64}},
        {1, 1, 8, {3, 530}},
        {2, 1, 8, {3, 530}},
        {2, 2, 64, {19, 4}},
        {1, 1, 80, {2, 18}},
        {1, 1, 100, {1, 20}},
        {5, 5, 33, {9, 8}},
        {6, 3, 33, {9, 70, 8}},
        {6, 2, 20, {16, 130}},
        {8, 2, 10, {65, 1, 3}},
        // Sequences that continue another: blocks and tiles that it leaves partly filled.
        {1, 1, 8, {5, -3, -4}},
        {2, 2, 16, {16, -1, -33, -7}},
        {4, 2, 20, {17, -40, -40, 3, -8, 9}},
        {6, 2, 12, {9, 6, 4, -30, -2}},
        {2, 1, 24, {255, -3, -300}},
        {3, 3, 64, {250, -12, -1, -13}},
        {2, 2, 33, {1, -70, -50}}};
    formats f = formats_of(&FORMAT_FP32, &FORMAT_FP32);
    for (size_t i = 0; i < sizeof packs / sizeof *packs; i++) check_attention(packs[i], f, 0, 0);
    check_attention((pack){3, 3, 24, {60, 5, 100, 31}}, f, 0, 1);
    check_attention((pack){6, 2, 24, {60, 5, 100, 31}}, f, 0, 1);
    check_attention((pack){6, 2, 24, {60, -35, -100, -31, 20, -7}}, f, 0, 1);
}

static void check_formats(void) {
    static const format* const rows[][2] = {
        {&FORMAT_TF32, &FORMAT_FP32}, {&FORMAT_BF16, &FORMAT_BF16}, {&FORMAT_FP16, &FORMAT_FP16}};
    // Gradients of a format of their own: products', what is written, and as operands and written.
    static const format* const gradients[][4] = {
        {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_FP32, &FORMAT_FP32},
        {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_BF16, &FORMAT_BF16},
        {&FORMAT_TF32, &FORMAT_FP32, &FORMAT_FP16, &FORMAT_FP16},
        {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_TF32, &FORMAT_FP32}};
    for (int grouped = 0; grouped < 2; grouped++) {
        pack p = {2 + grouped * 2, 2, 20, {35, 1, 6, grouped ? -14 : 14}};
        for (int i = 0; i < 6; i++)
            check_attention(p, formats_of(rows[i / 2][0], rows[i / 2][1]), i % 2, 0);
        for (int i = 0; i < 4; i++) {
            formats f = formats_of(gradients[i][0], gradients[i][1]);
            f.gradient = gradients[i][2];
            f.dqkv = gradients[i][3];
            check_attention(p, f, 1, 0);
        }
    }
}

// to += the first rows of `from`.
static void add_values(tensor to, tensor from) {
    for (int r = 0; r < to.rows; r++)
        for (int i = 0; i < to.cols; i++) row_at(to, r)[i] += row_at(from, r)[i];
}

// Differences are at most `share` of the largest value.
static void check_close(tensor got, tensor expected, float share, backend* b) {
    float largest = 0;
    for (int r = 0; r < got.rows; r++)
        for (int i = 0; i < got.cols; i++) largest = fmaxf(largest, fabsf(row_at(expected, r)[i]));
    for (int r = 0; r < got.rows; r++)
        for (int i = 0; i < got.cols; i++) {
            float x = row_at(got, r)[i], y = row_at(expected, r)[i];
            CHECK(fabsf(x - y) <= share * largest, "row %d, column %d: %.9g, not %.9g (%s)", r, i,
                  (double)x, (double)y, b->name);
        }
}

// Sequences that continue another one have the bits that they have with its rows copied before
// their own, forward and in the gradients of their own rows; those of the shared rows are the sums
// over the copies: fp32 gradients to 2^-20 of the largest, after at most 64 roundings in 3 copies.
static void check_prefix(void) {
    enum { SHARED = 21, COPIES = 3 };
    static const int own[COPIES] = {30, 1, 12};
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count, at = SHARED;
        formats f = formats_of(&FORMAT_FP32, &FORMAT_FP32);
        attention_inputs c = inputs_new((pack){4, 2, 20, {SHARED, -30, -1, -12}}, f, 0);
        fill_grid(c.qkv);
        fill_grid(c.dout);
        op_case o = attention_case(&c);
        run_attention(devices[d], &c, o.results, 0, 1);
        tensor sum = matrix_new(SHARED, c.qkv.cols, &FORMAT_FP32);
        set_zero(sum);
        for (int i = 0; i < COPIES; at += own[i++]) {
            attention_inputs one = inputs_new((pack){4, 2, 20, {SHARED + own[i]}}, f, 0);
            copy_values(rows_of(one.qkv, 0, SHARED), rows_of(c.qkv, 0, SHARED));
            copy_values(rows_of(one.qkv, SHARED, own[i]), rows_of(c.qkv, at, own[i]));
            copy_values(rows_of(one.dout, 0, SHARED), rows_of(c.dout, 0, SHARED));
            copy_values(rows_of(one.dout, SHARED, own[i]), rows_of(c.dout, at, own[i]));
            if (i) set_rows(one.dout, 0, SHARED, 0);  // the shared rows' own gradient counts once
            op_case alone = attention_case(&one);
            run_attention(devices[d], &one, alone.results, 0, 1);
            const tensor* r = alone.results;
            check_same(rows_of(o.results[OUT], 0, SHARED), rows_of(r[OUT], 0, SHARED), "out",
                       "a prefix", devices[d]);
            for (int k = 0; k < RESULTS; k++)
                check_same(rows_of(o.results[k], at, own[i]), rows_of(r[k], SHARED, own[i]),
                           NAMES[k], "behind a prefix", devices[d]);
            add_values(sum, r[DQKV]);
        }
        check_close(rows_of(o.results[DQKV], 0, SHARED), sum, 0x1p-20f, devices[d]);
        arrays_free(mark, "a prefix");
    }
}

// What a format is: inputs that the test has rounded change nothing; and each of the two formats of
// operands changes bits.
static void check_operands(void) {
    int mark = array_count;
    formats f = {&FORMAT_BF16, &FORMAT_FP16, &FORMAT_FP32, &FORMAT_FP32, NULL};
    attention_inputs c = inputs_new((pack){4, 2, 12, {21, 9}}, f, 1), rounded = c, exact = c;
    rounded.qkv = operands_of(c.qkv, f.operand);
    exact.f.operand = &FORMAT_FP32;
    op_case o = attention_case(&c);
    tensor r[3][RESULTS_MAX];
    for (int i = 0; i < 3; i++) {
        const attention_inputs* inputs[] = {&c, &rounded, &exact};
        results_copy(r[i], &o);
        run_attention(plain_device, inputs[i], r[i], 0, 2);
    }
    for (int i = 0; i < RESULTS; i++) {
        check_same(r[0][i], r[1][i], NAMES[i], "operands rounded before", plain_device);
        CHECK(first_difference(r[0][i], r[2][i]) >= 0, "the operands' format, %s", NAMES[i]);
    }
    exact.f = f;
    exact.f.gradient = &FORMAT_FP32;
    run_attention(plain_device, &exact, r[2], 0, 2);
    CHECK(first_difference(r[0][DQKV], r[2][DQKV]) >= 0, "the gradients' format");
    arrays_free(mark, "operands of attention");
}

// Later tokens and other sequences are skipped, not weighted by zero: NaN there does not come
// through, neither forward nor backward.
static void check_beside_nan(void) {
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count, middle = 18, kept = 23, end = 58;
        attention_inputs c =
            inputs_new((pack){4, 2, 20, {18, 40, 3}}, formats_of(&FORMAT_FP32, &FORMAT_FP32), 0);
        op_case o = attention_case(&c);
        tensor forward[RESULTS_MAX], backward[RESULTS_MAX];
        results_copy(forward, &o);
        results_copy(backward, &o);
        run_attention(plain_device, &c, o.results, 0, 3);
        set_rows(c.dout, 0, middle, NAN);
        set_rows(c.dout, end, 3, NAN);
        run_attention(devices[d], &c, backward, 0, 3);
        check_same(rows_of(backward[DQKV], middle, end - middle),
                   rows_of(o.results[DQKV], middle, end - middle), "dqkv", "beside NaN",
                   devices[d]);
        set_rows(c.qkv, 0, middle, NAN);
        set_rows(c.qkv, middle + kept, c.qkv.rows - middle - kept, NAN);
        run_attention(devices[d], &c, forward, 0, 3);
        check_same(rows_of(forward[OUT], middle, kept), rows_of(o.results[OUT], middle, kept),
                   "out", "beside NaN", devices[d]);
        arrays_free(mark, "attention beside NaN");
    }
}

// ------------------------------------------------------------------------------------------------
// The cache

static int layer_floats(backend* b, const kv_cache* kv) {
    return (int)(b->kv_bytes(kv) / sizeof(float)) / kv->layers;
}

// A cache full of NaN, and a page table whose entries name the last page, which nobody writes.
static kv_cache cache_new(backend* b, int layers, int pages, int slots, int pages_per_slot,
                          const pack* p, const formats* f) {
    int* table = ints_new(slots * pages_per_slot);
    for (int i = 0; i < slots * pages_per_slot; i++) table[i] = pages - 1;
    kv_cache kv = {.layers = layers,
                   .pages = pages,
                   .heads = heads_of(p),
                   .page_table = table,
                   .pages_per_slot = pages_per_slot,
                   .format = f->kv,
                   .operand = f->operand};
    kv.data = floats_new(layers * layer_floats(b, &kv));
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
// then every position attends, in another order. The bits are those of the packed batch: `out`.
static void check_cached_on(backend* b, const attention_inputs* c, tensor out) {
    int mark = array_count, n = c->qkv.rows, used = (n + KV_PAGE - 1) / KV_PAGE;
    const char* what = text("cached %s", pack_text(&c->p, &c->f));
    kv_cache kv = cache_new(b, 2, used + 1, 2, used + 2, &c->p, &c->f);
    int *pages = ints_from(used, 0), *order = ints_from(n, 0), *slot = ints_all(n, 1);
    shuffle(pages, used);
    memcpy((int*)kv.page_table + kv.pages_per_slot, pages, used * sizeof(int));
    shuffle(order, n);
    b->kv_write(b, &kv, 1, rows_at_positions(c->qkv, order, n), slot, order);
    shuffle(order, n);
    tensor got = matrix_new(n, out.cols, out.format);
    b->attention_cached(b, got, &kv, 1, rows_at_positions(c->qkv, order, n), slot, order);
    check_same(got, rows_at_positions(out, order, n), "out", what, b);
    CHECK(poisoned(kv.data, layer_floats(b, &kv)), "%s: layer 0 was written (%s)", what, b->name);
    arrays_free(mark, what);
}

// Across the blocks of 256 keys, at head dimensions with and without padding, from caches of fp32,
// bf16 and fp16. One device an instruction set, and one with threads.
static void check_long(void) {
    static const int head_dims[] = {8, 16, 20, 64, 80, 20, 64};
    for (int i = 0; i < 7; i += getenv("TEST_QUICK") ? 5 : 1) {
        int mark = array_count;
        const format* f = i < 5 ? &FORMAT_FP32 : i < 6 ? &FORMAT_BF16 : &FORMAT_FP16;
        attention_inputs c =
            inputs_new((pack){2, 1 + i % 2, head_dims[i], {600}}, formats_of(f, f), 0);
        op_case o = attention_case(&c);
        run_attention(plain_device, &c, o.results, 0, 1);
        check_on(&o, o.results, 0, device_step);
        check_on(&o, o.results, device_count - 1, 1);
        for (int d = 0; d <= device_count; d += device_step)
            check_cached_on(devices[d], &c, o.results[OUT]);
        check_cached_on(devices[device_count - 1], &c, o.results[OUT]);
        arrays_free(mark, "long sequences");
    }
}

static void check_cached(void) {
    static const format* const rows[][2] = {{&FORMAT_FP32, &FORMAT_FP32},
                                            {&FORMAT_TF32, &FORMAT_FP32},
                                            {&FORMAT_BF16, &FORMAT_BF16},
                                            {&FORMAT_FP16, &FORMAT_FP16}};
    static const pack packs[] = {
        {1, 1, 1, {1}}, {2, 2, 8, {40}}, {3, 1, 20, {16}}, {4, 2, 80, {17}}};
    for (int i = 0; i < 16; i++) {
        int mark = array_count;
        attention_inputs c =
            inputs_new(packs[i % 4], formats_of(rows[i / 4][0], rows[i / 4][1]), 0);
        op_case o = attention_case(&c);
        run_attention(plain_device, &c, o.results, 0, 1);
        for (int d = i / 4 ? i % device_step : 0; d < device_count; d += i / 4 ? device_step : 1)
            check_cached_on(devices[d], &c, o.results[OUT]);
        check_cached_on(plain_device, &c, o.results[OUT]);
        arrays_free(mark, "cached attention");
    }
}

// What bf16 can hold takes two bytes a number, whether the cache or the products ask for it.
static void check_width(void) {
    static const struct {
        const format *operand, *kv;
        int bytes;
    } rows[] = {{&FORMAT_FP32, &FORMAT_FP32, 4}, {&FORMAT_TF32, &FORMAT_FP32, 4},
                {&FORMAT_FP16, &FORMAT_FP16, 2}, {&FORMAT_BF16, &FORMAT_FP32, 2},
                {&FORMAT_FP32, &FORMAT_BF16, 2}, {&FORMAT_FP16, &FORMAT_E4M3, 2},
                {&FORMAT_BF16, &FORMAT_E5M2, 2}};
    backend* b = devices[0];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kv_cache kv = {.layers = 3,
                       .pages = 5,
                       .heads = {6, 2, 32},
                       .pages_per_slot = 1,
                       .format = rows[i].kv,
                       .operand = rows[i].operand};
        size_t numbers = 3 * 5 * 2 * 2 * 32 * KV_PAGE;
        CHECK(b->kv_bytes(&kv) == numbers * rows[i].bytes, "%s in %s: %zu bytes for %zu numbers",
              rows[i].operand->name, rows[i].kv->name, b->kv_bytes(&kv), numbers);
    }
}

// All instruction sets write the same cache. So much that threads run at the same time: scratch
// memory that they shared would show.
static void check_written(void) {
    enum { SLOTS = 60, POSITIONS = 48, ROWS = SLOTS * POSITIONS };
    int mark = array_count, *slot = ints_new(ROWS), *position = ints_new(ROWS);
    pack p = {4, 4, 20, {0}};
    formats f = formats_of(&FORMAT_TF32, &FORMAT_FP32);
    tensor qkv = matrix_random(ROWS, 3 * 80, &FORMAT_FP32), expected = {0};
    for (int r = 0; r < ROWS; r++) {
        slot[r] = r / POSITIONS;
        position[r] = r % POSITIONS;
    }
    for (int d = 0; d < device_count; d++) {
        kv_cache kv = cache_new(devices[d], 1, SLOTS * 3 + 1, SLOTS, 3, &p, &f);
        for (int i = 0; i < SLOTS * 3; i++) ((int*)kv.page_table)[i] = i;
        devices[d]->kv_write(devices[d], &kv, 0, qkv, slot, position);
        tensor written = as_vector(kv.data, layer_floats(devices[d], &kv));
        if (d == 0) expected = written;
        int64_t at = first_difference(written, expected);
        CHECK(at < 0, "%lld of a written cache differs (%s)", (long long)at, devices[d]->name);
    }
    arrays_free(mark, "a written cache");
}

// Token by token, as in decoding; what earlier positions gave does not change.
static void check_decoding(void) {
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count;
        pack p = {4, 2, 20, {50}};
        attention_inputs c = inputs_new(p, formats_of(&FORMAT_FP32, &FORMAT_FP32), 0);
        op_case o = attention_case(&c);
        run_attention(plain_device, &c, o.results, 0, 1);
        backend* b = devices[d];
        kv_cache kv = cache_new(b, 1, 5, 1, 4, &p, &c.f);
        for (int i = 0; i < 4; i++) ((int*)kv.page_table)[i] = 3 - i;
        tensor out = matrix_new(1, 80, &FORMAT_FP32);
        for (int i = 0, slot = 0; i < 50; i++) {
            poison(out);
            b->kv_write(b, &kv, 0, rows_of(c.qkv, i, 1), &slot, &i);
            b->attention_cached(b, out, &kv, 0, rows_of(c.qkv, i, 1), &slot, &i);
            check_same(out, rows_of(o.results[OUT], i, 1), "out", text("decoding position %d", i),
                       b);
        }
        arrays_free(mark, "decoding");
    }
}

// Slot 1 shares the full pages of slot 0's 40 tokens, gets a copy of the partly filled one, and
// goes its own way; so does slot 0. An idle row in between; NaN at positions that a row may not
// see.
static void check_shared_pages_on(backend* b, formats f) {
    int mark = array_count, shared = 40, n = 60;
    pack p = {4, 2, 20, {60, 60}};
    attention_inputs c = inputs_new(p, f, 0);
    tensor first = rows_of(c.qkv, 0, n), second = rows_of(c.qkv, n, n);
    copy_values(rows_of(second, 0, shared), first);
    op_case o = attention_case(&c);
    run_attention(plain_device, &c, o.results, 0, 2);
    tensor expected = o.results[OUT];

    kv_cache kv = cache_new(b, 2, 7, 2, 5, &p, &f);
    static const int tables[2][4] = {{2, 5, 0, 4}, {2, 5, 1, 3}};
    for (int s = 0; s < 2; s++) memcpy((int*)kv.page_table + 5 * s, tables[s], sizeof tables[s]);
    int *zeros = ints_all(n, 0), *position = ints_from(n, 0);
    b->kv_write(b, &kv, 1, rows_of(first, 0, shared), zeros, position);
    b->kv_write(b, &kv, 0, rows_of(second, 0, shared), zeros, position);
    b->kv_copy_page(b, &kv, 1, 0);

    tensor out = matrix_new(3, 80, f.out), rows = matrix_new(3, c.qkv.cols, f.out);
    tensor nothing = matrix_new(1, 80, f.out), beyond = matrix_new(1, c.qkv.cols, &FORMAT_FP32);
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
        const char* what = text("position %d of slots with shared pages, %s", i, f.operand->name);
        check_same(rows_of(out, 0, 1), rows_of(expected, n + i, 1), "slot 1", what, b);
        check_same(rows_of(out, 1, 1), nothing, "an idle row", what, b);
        check_same(rows_of(out, 2, 1), rows_of(expected, i, 1), "slot 0", what, b);
    }
    // The copy took all layers: layer 0 of both slots holds the second sequence's start.
    int both[2] = {0, 1}, at[2] = {shared - 1, shared - 1};
    copy_values(rows_of(rows, 0, 1), rows_of(second, shared - 1, 1));
    copy_values(rows_of(rows, 1, 1), rows_of(second, shared - 1, 1));
    b->attention_cached(b, rows_of(out, 0, 2), &kv, 0, rows_of(rows, 0, 2), both, at);
    for (int s = 0; s < 2; s++)
        check_same(rows_of(out, s, 1), rows_of(expected, n + shared - 1, 1), "layer 0",
                   "a copied page", b);
    arrays_free(mark, "shared pages");
}

static void check_shared_pages(void) {
    for (int d = 0; d <= device_count; d++)
        check_shared_pages_on(devices[d], d % 2 ? formats_of(&FORMAT_TF32, &FORMAT_FP32)
                                                : formats_of(&FORMAT_BF16, &FORMAT_BF16));
}

// A cache narrower than QKV: keys and values are rounded to its format, queries are not. Then they
// are rounded to operands, which changes nothing any more; in the other order, what bf16 rounds to
// halfway between two numbers of the cache's would end on the wrong one of them.
static void check_narrow_cache(void) {
    for (int d = 0; d <= device_count; d += device_step)
        for (int narrow = 0; narrow < 2; narrow++) {
            int mark = array_count;
            formats f = formats_of(narrow ? &FORMAT_BF16 : &FORMAT_FP32, &FORMAT_FP32);
            attention_inputs wide = inputs_new((pack){2, 2, 20, {40}}, f, 0), c = wide;
            c.qkv = matrix_copy(wide.qkv);
            for (int r = 0; r < 40; r++)
                for (int i = 40; i < 120; i++)
                    row_at(c.qkv, r)[i] = format_round(row_at(c.qkv, r)[i], &FORMAT_E4M3);
            op_case o = attention_case(&c);
            run_attention(plain_device, &c, o.results, 0, 1);
            wide.f.kv = &FORMAT_E4M3;
            check_cached_on(devices[d], &wide, o.results[OUT]);
            arrays_free(mark, "a narrow cache");
        }
}

// ------------------------------------------------------------------------------------------------
// Against float64, and finite differences

static void check_known(backend* b, const char* op) {
    int mark = array_count, *count = fixture_ints(op, "heads");
    const int *start = fixture_ints(op, "seq_start"), *prefix = fixture_ints(op, "prefix");
    int sequences = (int)fixture_find(op, "prefix").count;
    attention_inputs c = {.sequences = sequences, .f = formats_of(&FORMAT_FP32, &FORMAT_FP32)};
    memcpy(c.start, start, (sequences + 1) * sizeof(int));
    c.qkv = fixture_matrix(op, "qkv", start[sequences], 3);
    c.dout = fixture_matrix(op, "dout", start[sequences], 1);
    c.p = (pack){count[0], count[1], c.dout.cols / count[0], {0}};
    for (int s = 0; s < sequences; s++)
        c.p.lengths[s] = (start[s + 1] - start[s]) * (prefix[s] < 0 ? 1 : -1);
    find_roots(&c);
    op_case o = attention_case(&c);
    run_attention(b, &c, o.results, 0, c.roots);
    check_fixture(o.results[OUT], op, "out", b);
    check_fixture(o.results[DQKV], op, "dqkv", b);
    arrays_free(mark, op);
}

static void check_differences(backend* b, int kv_heads) {
    int mark = array_count;
    attention_inputs c =
        inputs_new((pack){2, kv_heads, 3, {7, 1, 3}}, formats_of(&FORMAT_FP32, &FORMAT_FP32), 0);
    fill_grid(c.qkv);
    fill_grid(c.dout);
    op_case o = attention_case(&c);
    run_attention(b, &c, o.results, 0, 3);
    tensor dqkv = matrix_copy(o.results[DQKV]);
    slope_case s = {b, &o, o.results, {OUT, -1}, {c.dout}};
    // A score of 3 terms, its exp, the sums over at most 7 keys, the quotient; and the terms of a
    // weighted mean are larger than the mean.
    for (int i = 0; i < 3; i++) check_slopes(c.qkv, dqkv, result_loss, &s, 40, "attention's slope");
    arrays_free(mark, "differences of attention");
}

int main(void) {
    devices_open();
    check_shapes();
    check_formats();
    check_operands();
    check_prefix();
    check_beside_nan();
    check_long();
    check_width();
    check_cached();
    check_written();
    check_decoding();
    check_shared_pages();
    check_narrow_cache();
    for (int d = 0; d <= device_count; d += device_step) {
        check_known(devices[d], "attention");
        check_known(devices[d], "attention_long");
        check_known(devices[d], "attention_grouped");
        check_known(devices[d], "attention_shared");
        check_known(devices[d], "attention_prefix");
        check_differences(devices[d], 2);
        check_differences(devices[d], 1);
    }
    fixtures_close();
    devices_close();
    return test_report();
}
