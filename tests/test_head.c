// The vocabulary head, forward and backward, and the sampler behind it. See op_test.h for the
// method; a row is a row that the head is asked for.
#include "device/cpu/cpu.h"
#include "op_test.h"

// Operands of the products; the logits and their gradient; what comes in and goes out.
typedef struct formats {
    const format *operand, *backward, *logits, *in, *dx;
    linear_plan plan;
} formats;

static formats formats_of(const format* product, const format* logits, const format* store) {
    return (formats){product, product, logits, store, store, {0}};
}

typedef struct shape {
    int n, vocabulary, channels;
    float inverse_temperature;
    int kept;  // in a hundred; 0: no kept sets
} shape;

static int words_of(int vocabulary) { return (vocabulary + 31) / 32; }
static int is_kept(const uint32_t* nucleus, int i) {
    return !nucleus || (nucleus[i / 32] >> (i % 32) & 1);
}

// ------------------------------------------------------------------------------------------------
// Log-probabilities, entropies, gradients

enum { ASKED = 3 };  // candidates of a row
typedef struct head_inputs {
    shape s;
    formats f;
    int *row, *target, *asked;
    uint32_t* nucleus;         // or NULL
    tensor x, w, coef, bonus;  // bonus: 0 in some rows
} head_inputs;

enum { LOGP, ENTROPY, LOGP_PLAIN, ASKED_LOGP, STATS, DX, DW, RESULTS };
static const char* const NAMES[] = {
    "logp", "entropy", "logp without entropy", "candidates' logp", "stats", "dx", "dw"};

static prepared* prepare(backend* b, const head_inputs* c) {
    static const linear_plan usual;
    prepared* p = memcmp(&c->f.plan, &usual, sizeof usual) ? b->weight_plan(b, &c->f.plan) : NULL;
    return b->weight_prepare(b, p, c->w.data, c->w.rows, c->w.cols, c->f.operand, c->f.backward);
}

static void run_head(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const head_inputs* c = inputs;
    const int *row = c->row + first, *target = c->target + first;
    int64_t words = words_of(c->s.vocabulary);
    const uint32_t* nucleus = c->nucleus ? c->nucleus + first * words : NULL;
    candidates asked = {ASKED, c->asked + first * ASKED,
                        (float*)r[ASKED_LOGP].data + first * ASKED};
    float *logp = r[LOGP].data, *entropy = r[ENTROPY].data, *again = r[LOGP_PLAIN].data;
    float t = c->s.inverse_temperature, *stats = (float*)r[STATS].data + 2 * first;
    prepared* w = prepare(b, c);
    b->head_forward(b, again + first, NULL, NULL, c->x, row, target, n, w, c->f.logits, t, nucleus,
                    NULL);
    b->head_forward(b, logp + first, entropy + first, stats, c->x, row, target, n, w, c->f.logits,
                    t, nucleus, &asked);
    b->head_backward(b, r[DX], r[DW].data, stats, c->x, row, target, (float*)c->coef.data + first,
                     c->f.logits->scaled ? NULL : (float*)c->bonus.data + first, n, w, c->f.logits,
                     t, nucleus);
    b->weight_release(b, w);
}

static void fill_nucleus(head_inputs* c) {
    int words = words_of(c->s.vocabulary);
    c->nucleus = (uint32_t*)ints_new(c->s.n * words);
    memset(c->nucleus, 0, (size_t)c->s.n * words * sizeof *c->nucleus);
    for (int i = 0; i < c->s.n; i++)
        for (int j = 0; j < c->s.vocabulary; j++)
            if (j == c->target[i] || random_below(100) < c->s.kept)
                c->nucleus[i * words + j / 32] |= 1u << (j % 32);
}

static head_inputs inputs_new(shape s, formats f) {
    head_inputs c = {s,
                     f,
                     ints_new(s.n),
                     ints_new(s.n),
                     ints_new(s.n * ASKED),
                     NULL,
                     matrix_random(s.n + 3, s.channels, f.in),
                     weight_random(s.vocabulary, s.channels),
                     vector_random(s.n),
                     vector_random(s.n)};
    for (int i = 0; i < s.n; i++) {
        if (i % 3 == 1) row_at(c.bonus, 0)[i] = 0;
        c.row[i] = s.n + 2 - i;  // some rows unasked, the others in another order
        if (i % 5 == 4) c.row[i] = c.row[random_below(i)];  // some for several targets
        c.target[i] = random_below(s.vocabulary);
        for (int j = 0; j < ASKED; j++) c.asked[i * ASKED + j] = j == 1 ? -1 : c.target[i];
    }
    if (s.kept) fill_nucleus(&c);
    return c;
}

// dx, dw: what they are before backward.
static op_case head_case(const head_inputs* c) {
    shape s = c->s;
    op_case o = {"head", run_head, c, s.n, 0, RESULTS, NAMES, {{0}}};
    for (int i = 0; i < ASKED_LOGP; i++) o.results[i] = vector_new(s.n);
    o.results[ASKED_LOGP] = vector_new(s.n * ASKED);
    o.results[STATS] = vector_new(s.n * 2);
    o.results[DX] = matrix_random(c->x.rows, s.channels, c->f.dx);
    o.results[DW] = weight_random(s.vocabulary, s.channels);
    o.what = text("head of %d rows, %d tokens, %d channels, 1/T %g, %d %% kept, %s, logits %s", s.n,
                  s.vocabulary, s.channels, (double)s.inverse_temperature, s.kept,
                  c->f.operand->name, c->f.logits->name);
    return o;
}

static void check_head_on(shape s, formats f, int first_device, int step) {
    int mark = array_count;
    head_inputs c = inputs_new(s, f);
    op_case o = head_case(&c);
    check_case_on(&o, first_device, step);
    if (f.in != f.dx) check_formats_show(&o);
    arrays_free(mark, o.what);
}

static void check_head(shape s, formats f) { check_head_on(s, f, device_next(), device_step); }

static void check_shapes(void) {
    static const shape shapes[] = {
        {1, 1, 1, 1, 0},      {1, 1, 7, 0.5f, 50},   {2, 2, 16, 1, 0},     {3, 15, 5, 2, 0},
        {5, 16, 17, 1, 30},   {4, 17, 20, 1.25f, 0}, {17, 31, 33, 1, 50},  {9, 32, 8, 1.5f, 20},
        {20, 33, 40, 1, 0},   {6, 63, 12, 1, 0},     {7, 64, 1, 0.8f, 70}, {33, 70, 24, 1, 10},
        {300, 13, 20, 1, 40}, {11, 300, 270, 1, 0},  {2, 600, 9, 1, 5},
    };
    formats f = formats_of(&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_head(shapes[i], f);
    check_head_on((shape){90, 150, 50, 1, 0}, f, 0, 1);
    check_head((shape){113, 20011, 3, 1, 0}, f);
}

static void check_formats(void) {
    const format *fp32 = &FORMAT_FP32, *tf32 = &FORMAT_TF32, *bf16 = &FORMAT_BF16;
    const format* fp16 = &FORMAT_FP16;
    const formats rows[] = {
        formats_of(tf32, fp32, fp32),
        formats_of(bf16, fp32, bf16),
        formats_of(bf16, bf16, bf16),
        formats_of(fp16, fp32, fp16),
        formats_of(fp16, fp16, fp16),
        formats_of(fp32, bf16, fp32),
        formats_of(bf16, &FORMAT_E4M3, bf16),
        formats_of(tf32, format_find("e2m2"), fp32),
        // Not rows of the contract's table: every rounding point has work to do.
        {tf32, tf32, fp32, fp32, fp16, {0}},
        {bf16, bf16, fp16, fp32, tf32, {0}},
        {bf16, fp16, fp32, fp32, bf16, {.gradient = tf32}},
        {bf16, bf16, fp32, bf16, bf16, {.gradient = tf32}},
        {fp32, fp32, fp32, fp32, fp32, {.split_k = 3}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_head((shape){15, 67, 37, 0.75f, (int)i % 2 * 40}, rows[i]);
        check_head((shape){9, 40, 21, 1, 0}, rows[i]);
    }
}

// Each format, and each part of a plan, changes the results that it should, and no others.
static void check_formats_count(void) {
    static const int changes[][RESULTS] = {
        {1, 1, 1, 1, 1, 1, 1},  // operands forward
        {0, 0, 0, 0, 0, 1, 1},  // operands backward
        {1, 1, 1, 1, 1, 1, 1},  // logits
        {0, 0, 0, 0, 0, 1, 0},  // of dx
        {0, 0, 0, 0, 0, 1, 1},  // the gradient once more
        {1, 1, 1, 1, 1, 1, 1},  // a sum in parts
    };
    for (int i = 0; i < 6; i++) {
        int mark = array_count;
        formats f = {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_FP16, &FORMAT_FP32, &FORMAT_FP16, {0}};
        if (i > 3) f.operand = f.logits = &FORMAT_FP32;
        if (i == 5) f.dx = &FORMAT_FP32;
        head_inputs c = inputs_new((shape){9, 40, 21, 1, 0}, f);
        op_case o = head_case(&c);
        tensor changed[RESULTS_MAX];
        results_copy(changed, &o);
        run_head(plain_device, &c, o.results, 0, 9);
        if (i == 0) c.f.operand = &FORMAT_FP32;
        if (i == 1) c.f.backward = &FORMAT_FP32;
        if (i == 2) c.f.logits = &FORMAT_FP32;
        if (i == 3) changed[DX].format = &FORMAT_FP32;
        if (i == 4) c.f.plan.gradient = &FORMAT_TF32;
        if (i == 5) c.f.plan.split_k = 3;
        run_head(plain_device, &c, changed, 0, 9);
        for (int k = 0; k < RESULTS; k++)
            CHECK((first_difference(changed[k], o.results[k]) >= 0) == changes[i][k],
                  "head: %s, format %d", NAMES[k], i);
        arrays_free(mark, "formats of the head");
    }
}

// The scale is what keeps gradients alive in fp8, whatever the size of their coefficients: times a
// power of two they are the same.
static void check_scaled_gradient(void) {
    int mark = array_count;
    head_inputs c =
        inputs_new((shape){9, 40, 21, 1, 0}, formats_of(&FORMAT_FP32, &FORMAT_E4M3, &FORMAT_FP32));
    tensor r[2][RESULTS_MAX];
    op_case o = head_case(&c);
    set_zero(o.results[DW]);
    for (int small = 0; small < 2; small++) {
        results_copy(r[small], &o);
        for (int i = 0; i < 9 && small; i++) row_at(c.coef, 0)[i] *= 0x1p-40f;
        run_head(plain_device, &c, r[small], 0, 9);
    }
    int nonzero = 0;
    for (int i = 0; i < 40 * 21; i++) {
        ((float*)r[1][DW].data)[i] *= 0x1p40f;
        nonzero += ((float*)r[0][DW].data)[i] != 0;
    }
    CHECK(nonzero > 40 * 21 / 2, "%d gradients are not 0", nonzero);
    check_same(r[1][DW], r[0][DW], "dw", "small gradients of fp8 logits", plain_device);
    arrays_free(mark, "small gradients of fp8 logits");
}

// A logit that overflows to -infinity has the probability 0 and no part in the entropy.
static void check_infinite_logit(void) {
    int row[2] = {0, 0}, target[2] = {1, 3};
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count;
        backend* b = devices[d];
        tensor x = matrix_new(1, 1, &FORMAT_FP32), w = weight_random(4, 1);
        tensor logp = vector_new(2), entropy = vector_new(2);
        set_rows(x, 0, 1, 1);
        set_zero(w);
        set_rows(w, 3, 1, -1e6f);  // beyond fp16
        prepared* p = b->weight_prepare(b, NULL, w.data, 4, 1, &FORMAT_FP32, &FORMAT_FP32);
        b->head_forward(b, logp.data, entropy.data, NULL, x, row, target, 2, p, &FORMAT_FP16, 1,
                        NULL, NULL);
        b->weight_release(b, p);
        // log 3, of which num_logf may be an ulp off.
        CHECK_NEAR(row_at(logp, 0)[0], -log(3), 0x1p-23, "log-probability beside -infinity");
        CHECK_SAME(row_at(logp, 0)[1], -INFINITY, "log-probability of -infinity");
        for (int i = 0; i < 2; i++)
            CHECK_NEAR(row_at(entropy, 0)[i], log(3), 0x1p-23, "entropy beside -infinity");
        arrays_free(mark, "an infinite logit");
    }
}

// Against float64, and finite differences: the loss is sum coef (-log p) less sum bonus entropy.
static void check_known(backend* b, const char* op, int with_nucleus) {
    int mark = array_count, *row = ints_new(6);
    for (int i = 0; i < 6; i++) row[i] = i;
    head_inputs c = {.s = {6, 70, 20, *fixture_floats(op, "inverse_temperature"), 0},
                     .f = formats_of(&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32),
                     .row = row,
                     .target = fixture_ints(op, "target"),
                     .asked = ints_new(6 * ASKED),
                     .x = fixture_matrix(op, "x", 6, 3),
                     .w = fixture_matrix(op, "w", 70, 0),
                     .coef = fixture_matrix(op, "coef", 1, 0),
                     .bonus = fixture_matrix(op, "bonus", 1, 0)};
    for (int i = 0; i < 6 * ASKED; i++) c.asked[i] = c.target[i / ASKED];
    if (with_nucleus) c.nucleus = (uint32_t*)fixture_ints(op, "keep");
    op_case o = head_case(&c);
    const tensor* r = o.results;
    set_zero(r[DX]);
    set_zero(r[DW]);
    run_head(b, &c, r, 0, 6);
    check_fixture(r[LOGP], op, "logp", b);
    check_fixture(r[ENTROPY], op, "entropy", b);
    check_fixture(r[DX], op, "dx", b);
    check_fixture(r[DW], op, "dw", b);
    for (int i = 0; i < 6; i++)
        CHECK_SAME(row_at(r[ASKED_LOGP], 0)[i * ASKED], row_at(r[LOGP], 0)[i], "the target asked");
    arrays_free(mark, op);
}

static void check_differences(backend* b, int kept) {
    int mark = array_count;
    head_inputs c = inputs_new((shape){5, 23, 8, 1.25f, kept},
                               formats_of(&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32));
    fill_grid(c.x);
    fill_grid(c.w);
    fill_grid(c.coef);
    fill_grid(c.bonus);
    op_case o = head_case(&c);
    const tensor* r = o.results;
    set_zero(r[DX]);
    set_zero(r[DW]);
    run_head(b, &c, r, 0, 5);
    tensor minus = matrix_copy(c.coef), less = matrix_copy(c.bonus), dx = matrix_copy(r[DX]),
           dw = matrix_copy(r[DW]);
    for (int i = 0; i < 5; i++) row_at(minus, 0)[i] *= -1, row_at(less, 0)[i] *= -1;
    slope_case s = {b, &o, r, {LOGP, ENTROPY}, {minus, less}};
    // A logit of 8 terms, as large as log p or less; the sum of 23 exp and its logarithm.
    check_slopes(c.x, dx, result_loss, &s, 20, "slope of log p and entropy by x");
    check_slopes(c.w, dw, result_loss, &s, 20, "slope of log p and entropy by the weight");
    arrays_free(mark, "differences of the head");
}

// ------------------------------------------------------------------------------------------------
// The sampler

typedef struct sampler_case {
    int rows, vocabulary, channels;
    const format* logits;
    int ties;  // many tokens with equal logits
    sampling how;
} sampler_case;

enum { MAX_NEW = 4, IDLE_EVERY = 7 };

typedef struct slots {
    slot_state s;
    int count;   // slots, and sequences
    tensor all;  // the memory behind s, for comparison
    int* row_slot;
} slots;

// Pointers of a state into one array.
static slot_state state_at(int* at, int n, int words) {
    return slot_state_at(at, n, MAX_NEW, words);
}

// Slots in some state, one more than rows; slot i serves a sequence of another number.
static slots slots_new(int rows, int vocabulary) {
    int n = rows + 1, words = words_of(vocabulary);
    slots t = {.count = n, .all = vector_new(n * (5 + MAX_NEW * (3 + words)))};
    memset(t.all.data, 0, t.all.cols * sizeof(float));
    t.s = state_at(t.all.data, n, words);
    t.s.ends = (end_set){2, {vocabulary - 1, vocabulary - 2}};
    t.row_slot = ints_new(rows);
    for (int i = 0; i < n; i++) {
        t.s.token[i] = random_below(vocabulary);
        t.s.position[i] = i % IDLE_EVERY == 3 ? -1 : random_below(500);
        t.s.sequence[i] = n - 1 - i;
        t.s.left[i] = random_between(1, MAX_NEW);
        t.s.length[i] = random_below(2);
    }
    for (int i = 0; i < rows; i++) t.row_slot[i] = rows - i;  // slot 0 has no row
    return t;
}

static slots slots_copy(const slots* from) {
    slots t = *from;
    t.all = matrix_copy(from->all);
    t.s = state_at(t.all.data, t.count, from->s.nucleus_words);
    t.s.ends = from->s.ends;
    return t;
}

static void plain_sample(slots* t, tensor x, tensor w, const sampler_case* c) {
    backend* b = plain_device;
    prepared* p =
        b->weight_prepare(b, NULL, w.data, c->vocabulary, c->channels, &FORMAT_FP32, &FORMAT_FP32);
    b->sample(b, &t->s, x, t->row_slot, c->rows, p, c->logits, &c->how);
    b->weight_release(b, p);
}

static const char* sampler_text(const sampler_case* c) {
    return text("sample, %d rows, %d tokens, 1/T %g, greedy %d, top-k %d, top-p %g, %s%s", c->rows,
                c->vocabulary, (double)c->how.inverse_temperature, c->how.greedy, c->how.top_k,
                (double)c->how.top_p, c->logits->name, c->ties ? ", ties" : "");
}

// The log-probabilities of the drawn tokens are those that head_forward gives, for the same keep
// sets.
static void check_same_logp(backend* b, const slots* before, const slots* after, tensor x,
                            const prepared* w, const sampler_case* c) {
    int mark = array_count, n = x.rows, words = words_of(c->vocabulary);
    int *row = ints_new(n), *target = ints_new(n), count = 0;
    tensor logp = vector_new(n), entropy = vector_new(n);
    tensor drawn = vector_new(n), drawn_entropy = vector_new(n);
    uint32_t* nucleus = (uint32_t*)ints_new(n * words);
    for (int i = 0; i < n; i++) {
        int slot = after->row_slot[i], sequence = after->s.sequence[slot];
        if (before->s.position[slot] < 0) continue;
        int at = sequence * MAX_NEW + before->s.length[sequence];
        row[count] = i;
        target[count] = after->s.out_token[at];
        row_at(drawn, 0)[count] = after->s.out_logp[at];
        row_at(drawn_entropy, 0)[count] = after->s.out_entropy[at];
        memcpy(nucleus + count++ * words, after->s.out_nucleus + at * words,
               words * sizeof *nucleus);
    }
    int narrowed = c->how.top_k > 0 || c->how.top_p < 1;
    b->head_forward(b, logp.data, entropy.data, NULL, x, row, target, count, w, c->logits,
                    c->how.inverse_temperature, narrowed ? nucleus : NULL, NULL);
    check_same(columns_of(drawn, 0, count), columns_of(logp, 0, count), "logp against the head's",
               sampler_text(c), b);
    check_same(columns_of(drawn_entropy, 0, count), columns_of(entropy, 0, count),
               "entropy against the head's", sampler_text(c), b);
    arrays_drop(mark);
}

static void check_sampler_on(backend* b, const sampler_case* c, const slots* before,
                             const slots* expected, tensor x, tensor w) {
    int mark = array_count;
    const char* what = sampler_text(c);
    slots t = slots_copy(before), bare = slots_copy(before);
    prepared* p =
        b->weight_prepare(b, NULL, w.data, c->vocabulary, c->channels, &FORMAT_FP32, &FORMAT_FP32);
    b->sample(b, &t.s, x, t.row_slot, c->rows, p, c->logits, &c->how);
    int64_t at = first_difference(t.all, expected->all);
    CHECK(at < 0, "%s: word %d of the slots' state differs (%s)", what, (int)at, b->name);
    check_same_logp(b, before, &t, x, p, c);
    bare.s.out_nucleus = NULL;
    b->sample(b, &bare.s, x, bare.row_slot, c->rows, p, c->logits, &c->how);
    int without = (int)((float*)t.s.out_nucleus - (float*)t.all.data);
    at = first_difference(columns_of(bare.all, 0, without), t.all);
    CHECK(at < 0, "%s: word %d differs where no kept sets are kept (%s)", what, (int)at, b->name);
    b->weight_release(b, p);
    arrays_free(mark, what);
}

// Whether `best` (count) are the first of v tokens by falling log-probability, ties by rising id;
// -1 stands where there are no more.
static int are_best(const int* best, const float* best_logp, int count, const float* logp, int v,
                    const uint32_t* nucleus) {
    int right = 1;
    for (int k = 0; k < count; k++) {
        int first = -1;
        for (int j = 0; j < v; j++) {
            int taken = !is_kept(nucleus, j);
            for (int i = 0; i < k; i++) taken |= best[i] == j;
            if (!taken && (first < 0 || logp[j] > logp[first])) first = j;
        }
        right &= best[k] == first && same_bits(best_logp[k], first < 0 ? -INFINITY : logp[first]);
    }
    return right;
}

// The best tokens at each place, of those that are kept, against the log-probabilities that
// head_forward gives for all tokens; and those that it gives for the candidates.
static void check_best_on(backend* b, const sampler_case* c, const slots* before, int count,
                          tensor x, tensor w) {
    int mark = array_count, v = c->vocabulary, words = words_of(v);
    int places = before->count * MAX_NEW, narrowed = c->how.top_k > 0 || c->how.top_p < 1;
    slots t = slots_copy(before);
    float *again = floats_new(count), *every = floats_new(v), logp, entropy;
    float inverse = c->how.inverse_temperature;
    int* token = ints_new(v);
    t.s.best = (candidates){count, ints_new(places * count), floats_new(places * count)};
    for (int j = 0; j < v; j++) token[j] = j;
    prepared* p = b->weight_prepare(b, NULL, w.data, v, c->channels, &FORMAT_FP32, &FORMAT_FP32);
    b->sample(b, &t.s, x, t.row_slot, c->rows, p, c->logits, &c->how);
    for (int i = 0; i < c->rows; i++) {
        int slot = t.row_slot[i], sequence = t.s.sequence[slot];
        if (before->s.position[slot] < 0) continue;
        int64_t at = (int64_t)sequence * MAX_NEW + before->s.length[sequence];
        const uint32_t* set = narrowed ? t.s.out_nucleus + at * words : NULL;
        int* id = t.s.best.id + at * count;
        candidates all = {v, token, every}, asked = {count, id, again};
        b->head_forward(b, &logp, &entropy, NULL, x, &i, &t.s.out_token[at], 1, p, c->logits,
                        inverse, set, &all);
        CHECK(are_best(id, t.s.best.logp + at * count, count, every, v, set),
              "%s: the %d candidates of row %d (%s)", sampler_text(c), count, i, b->name);
        b->head_forward(b, &logp, &entropy, NULL, x, &i, &t.s.out_token[at], 1, p, c->logits,
                        inverse, set, &asked);
        CHECK(!memcmp(again, t.s.best.logp + at * count, count * sizeof(float)),
              "%s: the head's candidates of row %d (%s)", sampler_text(c), i, b->name);
    }
    b->weight_release(b, p);
    arrays_drop(mark);
}

static void check_best(void) {
    static const int counts[] = {1, 2, 5, 20, 40};
    for (int i = 0; i < 5; i++)
        for (int how = 0; how < 4; how++) {
            int mark = array_count, v = i == 1 ? 3 : 33 + 300 * (i % 2);
            sampler_case c = {
                how ? 9 : 300,
                v,
                7,
                how % 2 ? &FORMAT_BF16 : &FORMAT_FP32,
                how == 1 ? 4 : 0,
                {0.8f, how == 3, how == 2 ? 9 : 0, how > 1 ? 0.7f : 1, 5, STREAM_SAMPLE, 1, 0}};
            tensor x = matrix_random(c.rows, c.channels, &FORMAT_FP32);
            tensor w = weight_random(v, c.channels);
            for (int j = 0; c.ties && j < v; j++)
                copy_values(rows_of(w, j, 1), rows_of(w, j * 7 % c.ties % v, 1));
            slots before = slots_new(c.rows, v);
            for (int d = 0; d <= device_count; d += device_step)
                check_best_on(devices[d], &c, &before, counts[i], x, w);
            arrays_free(mark, "candidates");
        }
}

static void check_sampler_case(sampler_case c, int first_device, int step) {
    int mark = array_count;
    tensor x = matrix_random(c.rows, c.channels, &FORMAT_FP32);
    tensor w = weight_random(c.vocabulary, c.channels);
    for (int j = 0; c.ties && j < c.vocabulary; j++)
        copy_values(rows_of(w, j, 1), rows_of(w, j * 7 % c.ties % c.vocabulary, 1));
    slots before = slots_new(c.rows, c.vocabulary), expected = slots_copy(&before);
    plain_sample(&expected, x, w, &c);
    for (int d = first_device; d < device_count; d += step)
        check_sampler_on(devices[d], &c, &before, &expected, x, w);
    check_sampler_on(plain_device, &c, &before, &expected, x, w);
    arrays_free(mark, sampler_text(&c));
}

static void check_sampler(void) {
    static const int vocabularies[] = {1, 2, 5, 31, 32, 33, 64, 70};
    for (int v = 0; v < 8; v++)
        for (int i = 0; i < SAMPLING_COUNT; i++) {
            const format* logits = i % 3 == 2 ? &FORMAT_BF16 : &FORMAT_FP32;
            int ties = (v + i / 2) % 3 ? 0 : 3;
            sampler_case c = {10 + v, vocabularies[v], 6, logits, ties, SAMPLINGS[i]};
            check_sampler_case(c, device_next(), device_step);
        }
    // More rows than logits are held for; and so much that threads run at the same time: scratch
    // memory that they shared would show.
    check_sampler_case((sampler_case){500, 137, 5, &FORMAT_FP32, 9, SAMPLINGS[9]}, 0, 1);
}

// What becomes of a slot: its token is appended and is its next input; it goes on, or is idle after
// the end token and when nothing is left to sample. Slots that are idle or have no row stay.
static void check_slots(backend* b) {
    int mark = array_count, rows = 60, v = 5, wrong = 0, ended = 0;
    tensor x = matrix_random(rows, 6, &FORMAT_FP32), w = weight_random(v, 6);
    const sampling how = {0.2f, 0, 0, 1, 3, STREAM_SAMPLE, 1, 0};
    slots before = slots_new(rows, v), t = slots_copy(&before);
    prepared* p = b->weight_prepare(b, NULL, w.data, v, 6, &FORMAT_FP32, &FORMAT_FP32);
    b->sample(b, &t.s, x, t.row_slot, rows, p, &FORMAT_FP32, &how);
    b->weight_release(b, p);
    for (int i = 0; i <= rows; i++) {
        int sequence = t.s.sequence[i], drawn = i > 0 && before.s.position[i] >= 0;
        int length = before.s.length[sequence], token = before.s.token[i];
        int left = before.s.left[i], position = before.s.position[i];
        if (drawn) {
            token = t.s.out_token[sequence * MAX_NEW + length];
            int end = end_set_has(&t.s.ends, token);
            left -= !end;
            position = end || left == 0 ? -1 : position + 1;
            ended += end;
        }
        wrong += token < 0 || token >= v || t.s.token[i] != token || t.s.left[i] != left ||
                 t.s.position[i] != position || t.s.length[sequence] != length + drawn ||
                 sequence != before.s.sequence[i];
    }
    CHECK(wrong == 0 && ended > 0, "%d slots are wrong, %d have ended (%s)", wrong, ended, b->name);
    arrays_free(mark, "slots");
}

// Tokens of probability 2^-33 count: a thousand of them reach a p of 1 - 2^-24 that the first token
// alone does not.
static void check_rare_tokens(void) {
    int mark = array_count, v = 1000;
    sampler_case c = {1, v, 1, &FORMAT_FP32, 0, {1, 0, 0, 0x1.fffffep-1f, 1, STREAM_SAMPLE, 0, 0}};
    tensor x = matrix_new(1, 1, &FORMAT_FP32), w = weight_random(v, 1);
    set_rows(x, 0, 1, 1);
    set_rows(w, 0, v, -22.9f);
    set_rows(w, 0, 1, 0);
    slots before = slots_new(1, v), expected = slots_copy(&before);
    plain_sample(&expected, x, w, &c);
    int at = expected.s.sequence[1] * MAX_NEW + before.s.length[expected.s.sequence[1]];
    CHECK(expected.s.out_nucleus[at * expected.s.nucleus_words] > 1,
          "only the first token is kept");
    for (int d = 0; d <= device_count; d += device_step)
        check_sampler_on(devices[d], &c, &before, &expected, x, w);
    arrays_free(mark, "rare tokens");
}

// One row of input 1 through a weight of one channel, whose entries are then the logits; slot 1
// draws the first token of sequence 0. Returns the state.
static slots draw_one(backend* b, tensor logits, const sampling* how) {
    tensor x = matrix_new(1, 1, &FORMAT_FP32);
    set_rows(x, 0, 1, 1);
    slots t = slots_new(1, logits.rows);
    t.s.position[1] = t.s.length[0] = 0;
    prepared* p =
        b->weight_prepare(b, NULL, logits.data, logits.rows, 1, &FORMAT_FP32, &FORMAT_FP32);
    b->sample(b, &t.s, x, t.row_slot, 1, p, &FORMAT_FP32, how);
    b->weight_release(b, p);
    return t;
}

// The set of top-p ends with the token that just reaches p: of equal tokens, exactly a share of p.
static void check_top_p_reached(void) {
    static const struct {
        int k;
        float p;
        unsigned kept;
    } cases[] = {{0, 0.5f, 3}, {0, 0.25f, 1}, {0, 0.75f, 7}, {2, 0.5f, 1}, {0, 0.625f, 7}};
    for (int d = 0; d <= device_count; d += device_step)
        for (int i = 0; i < 5; i++) {
            int mark = array_count;
            tensor logits = weight_random(4, 1);
            set_zero(logits);
            sampling how = {1, 0, cases[i].k, cases[i].p, 1, STREAM_SAMPLE, 0, 0};
            slots t = draw_one(devices[d], logits, &how);
            CHECK(t.s.out_nucleus[0] == cases[i].kept, "top-k %d, top-p %g of 4 equal tokens: %x",
                  cases[i].k, (double)cases[i].p, t.s.out_nucleus[0]);
            arrays_drop(mark);
        }
}

// All 64 bits of a draw count, and a point on the border of two tokens is the second one's. Token 0
// has the weight 2^40 and each of 4095 others, e^-27.4 of it, the weight 1: a point of 2^40 + i is
// on such a border, and token 1 + i is drawn. One step in 2^28 draws such a point; these were found
// by trying. The tokens are floor(u (2^40 + 4095) / 2^64) - 2^40 + 1, computed in Python.
static void check_exact_draws(void) {
    static const struct {
        uint32_t step;
        int token;
    } cases[] = {{39249152, 447}, {136204816, 1282}, {338731346, 3056}, {876493862, 123}};
    enum { TOKENS = 4096 };
    for (int d = 0; d <= device_count; d += device_step)
        for (int i = 0; i < 4; i++) {
            int mark = array_count;
            tensor logits = weight_random(TOKENS, 1);
            set_rows(logits, 0, TOKENS, -27.4f);
            set_rows(logits, 0, 1, 0);
            sampling how = {1, 0, 0, 1, 1, STREAM_SAMPLE, cases[i].step, 0};
            slots t = draw_one(devices[d], logits, &how);
            CHECK(t.s.out_token[0] == cases[i].token, "step %u draws %d, not %d (%s)",
                  cases[i].step, t.s.out_token[0], cases[i].token, devices[d]->name);
            arrays_drop(mark);
        }
}

// Equal rows for one sequence after another, from an empty state.
typedef struct same_rows {
    tensor x, w;
    prepared* p;
    slots t;
} same_rows;

static same_rows same_rows_new(backend* b, int rows, int vocabulary) {
    same_rows s = {matrix_new(rows, 4, &FORMAT_FP32), weight_random(vocabulary, 4), NULL,
                   slots_new(rows, vocabulary)};
    tensor one = matrix_random(1, 4, &FORMAT_FP32);
    for (int r = 0; r < rows; r++) copy_values(rows_of(s.x, r, 1), one);
    for (int i = 0; i <= rows; i++) {
        s.t.s.position[i] = 10;
        s.t.s.sequence[i] = i;
        s.t.s.left[i] = MAX_NEW;
        s.t.s.length[i] = 0;
    }
    s.p = b->weight_prepare(b, NULL, s.w.data, vocabulary, 4, &FORMAT_FP32, &FORMAT_FP32);
    return s;
}

// Each part of the key counts: another seed, stream, step, sequence or position, other draws. A
// sequence is the same by its number and by that of the first.
static void check_keys(backend* b) {
    int mark = array_count, rows = 64;
    same_rows s = same_rows_new(b, rows, 33);
    const sampling how = {0, 0, 0, 1, 5, STREAM_SAMPLE, 7, 4000000000u};  // uniform over the tokens
    int* first = NULL;
    for (int change = 0; change < 8; change++) {
        slots t = slots_copy(&s.t);
        sampling h = how;
        if (change == 1) h.seed++;
        if (change == 2) h.seed += 1ull << 32;
        if (change == 3) h.stream = STREAM_EVALUATE;
        if (change == 4) h.step++;
        for (int i = 0; i <= rows; i++) {
            t.s.sequence[i] = change == 5 ? (i + 1) % (rows + 1) : i;
            t.s.position[i] += change == 6;
            t.s.sequence[i] = change == 7 ? (i + 1) % (rows + 1) : t.s.sequence[i];
        }
        h.first -= change == 7;
        b->sample(b, &t.s, s.x, t.row_slot, rows, s.p, &FORMAT_FP32, &h);
        int differing = 0;
        if (!first) first = t.s.token;
        for (int i = 1; i < rows; i++) differing += t.s.token[i] != first[i];
        // 2 of 63 draws from 33 tokens agree by chance.
        CHECK(change % 7 == 0 ? differing == 0 : differing > 50, "change %d: %d of %d draws differ",
              change, differing, rows);
    }
    b->weight_release(b, s.p);
    arrays_free(mark, "keys of draws");
}

// Frequencies match the probabilities: with up to 11 degrees of freedom, chi-square exceeds 60 once
// in 10^8 cases (and here, with fixed seeds, always or never).
static void check_frequencies(backend* b) {
    static const sampling hows[] = {{1, 0, 0, 1, 1, STREAM_SAMPLE, 0, 0},
                                    {0.6f, 0, 0, 1, 2, STREAM_SAMPLE, 0, 0},
                                    {1, 0, 5, 1, 3, STREAM_SAMPLE, 0, 0},
                                    {0.5f, 0, 0, 0.8f, 4, STREAM_SAMPLE, 0, 0}};
    enum { ROWS = 5000, TOKENS = 12 };
    for (int m = 0; m < 4; m++) {
        int mark = array_count, drawn[TOKENS] = {0}, kept[TOKENS];
        same_rows s = same_rows_new(b, ROWS, TOKENS);
        double p[TOKENS], total = 0, square = 0;
        s.t.s.ends.count = 0;
        for (int step = 0; step < MAX_NEW; step++)
            b->sample(b, &s.t.s, s.x, s.t.row_slot, ROWS, s.p, &FORMAT_FP32, &hows[m]);
        for (int i = 1; i <= ROWS; i++)
            for (int k = 0; k < MAX_NEW; k++) drawn[s.t.s.out_token[i * MAX_NEW + k]]++;
        int narrowed = hows[m].top_k > 0 || hows[m].top_p < 1;
        for (int j = 0; j < TOKENS; j++) {
            kept[j] = is_kept(narrowed ? s.t.s.out_nucleus + MAX_NEW : NULL, j);
            double l = 0;
            for (int k = 0; k < 4; k++) l += (double)row_at(s.x, 0)[k] * row_at(s.w, j)[k];
            total += p[j] = kept[j] ? exp(l * hows[m].inverse_temperature) : 0;
        }
        for (int j = 0; j < TOKENS; j++) {
            double expected = p[j] / total * ROWS * MAX_NEW, off = drawn[j] - expected;
            CHECK(kept[j] || !drawn[j], "token %d was drawn without being kept", j);
            square += expected > 0 ? off * off / expected : 0;
        }
        CHECK(square < 60, "chi-square %g of mode %d", square, m);
        b->weight_release(b, s.p);
        arrays_free(mark, "frequencies");
    }
}

// The set of top-p reaches p, and without its least probable token it does not.
static void check_top_p_is_smallest(backend* b) {
    int mark = array_count, rows = 40, v = 50;
    tensor x = matrix_random(rows, 6, &FORMAT_FP32), w = weight_random(v, 6);
    prepared* p = b->weight_prepare(b, NULL, w.data, v, 6, &FORMAT_FP32, &FORMAT_FP32);
    for (int step = 1; step < 10; step++) {
        slots t = slots_new(rows, v);
        memset(t.s.length, 0, t.count * sizeof(int));
        sampling how = {0.4f, 0, 0, (float)step * 0.1f, 1, STREAM_SAMPLE, 0, 0};
        b->sample(b, &t.s, x, t.row_slot, rows, p, &FORMAT_FP32, &how);
        for (int i = 0; i < rows; i++) {
            int sequence = t.s.sequence[t.row_slot[i]];
            const uint32_t* nucleus = t.s.out_nucleus + sequence * MAX_NEW * t.s.nucleus_words;
            double total = 0, mass = 0, least = INFINITY;
            if (t.s.length[sequence] == 0) continue;  // idle
            for (int j = 0; j < v; j++) {
                double l = 0;
                for (int k = 0; k < 6; k++) l += (double)row_at(x, i)[k] * row_at(w, j)[k];
                double weight = exp(l * how.inverse_temperature);
                total += weight;
                if (!is_kept(nucleus, j)) continue;
                mass += weight;
                least = fmin(least, weight);
            }
            // fp32 logits of a few units, so probabilities within 1e-5 of these.
            CHECK(mass >= (how.top_p - 1e-5) * total, "row %d: %g of %g", i, mass / total,
                  (double)how.top_p);
            CHECK(mass - least < (how.top_p + 1e-5) * total, "row %d: %g of %g without the last", i,
                  (mass - least) / total, (double)how.top_p);
        }
    }
    b->weight_release(b, p);
    arrays_free(mark, "top-p");
}

// ------------------------------------------------------------------------------------------------
// Logits that forward left for backward, of 3, 2 or 1 blocks of rows: whatever comes between the
// two, gradients are those of backward right after forward.

enum between { NOTHING, BACKWARD, OTHER_FORWARD, SAMPLE, OTHER_X, BETWEEN };
enum { BLOCK = 256, LEFT_ROWS = 2 * BLOCK + 88, LEFT_VOCABULARY = 13 };

typedef struct left_case {
    head_inputs c;
    prepared* w;
    tensor logp, stats, dx, dw;
} left_case;

static void left_forward(backend* b, left_case* l, float* stats, int n) {
    b->head_forward(b, l->logp.data, NULL, stats, l->c.x, l->c.row, l->c.target, n, l->w,
                    &FORMAT_FP32, l->c.s.inverse_temperature, l->c.nucleus, NULL);
}
static void left_backward(backend* b, left_case* l) {
    set_zero(l->dx);
    set_zero(l->dw);
    b->head_backward(b, l->dx, l->dw.data, l->stats.data, l->c.x, l->c.row, l->c.target,
                     l->c.coef.data, l->c.bonus.data, LEFT_ROWS, l->w, &FORMAT_FP32,
                     l->c.s.inverse_temperature, l->c.nucleus);
}

static void check_left_between(backend* b, left_case* l, enum between between, int blocks,
                               const tensor* expected) {
    int mark = array_count, other = 0;
    tensor x = l->c.x, zeros = matrix_copy(x), stats = vector_new(2);
    sampling how = {.inverse_temperature = 1, .top_p = 1};
    const char* what = text("%d blocks left, number %d between", blocks, between);
    ((cpu_context*)b->context)->logits_kept = sizeof(float) * BLOCK * LEFT_VOCABULARY * blocks;
    set_zero(l->stats);
    left_forward(b, l, l->stats.data, LEFT_ROWS);
    check_same(l->logp, expected[0], "logp", what, b);
    if (between == BACKWARD) left_backward(b, l);
    if (between == OTHER_FORWARD) left_forward(b, l, stats.data, 1);
    if (between == SAMPLE) {
        slots t = slots_new(5, LEFT_VOCABULARY);
        b->sample(b, &t.s, x, t.row_slot, 5, l->w, &FORMAT_FP32, &how);
    }
    set_zero(zeros);
    if (between == OTHER_X) l->c.x = zeros;
    left_backward(b, l);
    l->c.x = x;
    // dx comes of logits alone, and shows which ones backward has computed from another x.
    for (int r = 0; r < LEFT_ROWS && between == OTHER_X; r++)
        other += (first_difference(rows_of(l->dx, r, 1), rows_of(expected[1], r, 1)) >= 0) !=
                 (r >= blocks * BLOCK);
    CHECK(other == 0, "%s: %d rows", what, other);
    if (between != OTHER_X) check_same(l->dx, expected[1], "dx", what, b);
    if (between != OTHER_X) check_same(l->dw, expected[2], "dw", what, b);
    arrays_drop(mark);
}

static void check_left_logits(backend* b) {
    int mark = array_count;
    size_t usual = ((cpu_context*)b->context)->logits_kept;
    shape s = {LEFT_ROWS, LEFT_VOCABULARY, 20, 0.8f, 40};
    left_case l = {.c = inputs_new(s, formats_of(&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32))};
    for (int i = 0; i < LEFT_ROWS; i++) l.c.row[i] = i;
    l.logp = vector_new(LEFT_ROWS), l.stats = vector_new(2 * LEFT_ROWS);
    l.dx = matrix_copy(l.c.x), l.dw = matrix_copy(l.c.w);
    l.w = prepare(plain_device, &l.c);
    left_forward(plain_device, &l, l.stats.data, LEFT_ROWS);
    left_backward(plain_device, &l);
    plain_device->weight_release(plain_device, l.w);
    const tensor expected[] = {matrix_copy(l.logp), matrix_copy(l.dx), matrix_copy(l.dw)};
    l.w = prepare(b, &l.c);
    for (int blocks = 1; blocks <= 3; blocks++)
        for (enum between between = NOTHING; between < BETWEEN; between++)
            check_left_between(b, &l, between, blocks, expected);
    b->weight_release(b, l.w);
    ((cpu_context*)b->context)->logits_kept = usual;
    arrays_free(mark, "logits left");
}

int main(void) {
    devices_open();
    check_shapes();
    check_formats();
    check_formats_count();
    check_scaled_gradient();
    check_infinite_logit();
    check_sampler();
    check_best();
    check_rare_tokens();
    check_top_p_reached();
    check_exact_draws();
    for (int d = device_step > 1; d < device_count; d += device_step) check_left_logits(devices[d]);
    for (int d = 0; d <= device_count; d += device_step) {
        check_known(devices[d], "head", 0);
        check_known(devices[d], "head_keep", 1);
        check_differences(devices[d], 0);
        check_differences(devices[d], 50);
        check_slots(devices[d]);
        check_keys(devices[d]);
        check_frequencies(devices[d]);
        check_top_p_is_smallest(devices[d]);
    }
    fixtures_close();
    devices_close();
    return test_report();
}
