// The vocabulary head and the sampler on the GPU. See cuda_test.h for the method.
//
// Log-probabilities and gradients have the errors of the plain version: of the CPU device; of a
// gradient whose operands are 16-bit that of float64 arithmetic rounded at the same points, since
// the CPU device does not round gradients of logits to the operands' format. Sampled tokens, keep
// sets and the state of slots are the CPU device's bits, wherever logits are: here every product is
// exact in any order.
//
// One row, or five, may have much smaller errors in the CPU device's order of sums than in another
// order, by chance. So the errors that fp32 sums are expected to have are allowed in any case; they
// follow from the sizes of what is added (see exact_row).
#include "cuda_test.h"

static int words_of(int vocabulary) { return (vocabulary + 31) / 32; }
static int is_kept(const uint32_t* nucleus, int i) {
    return !nucleus || (nucleus[i / 32] >> (i % 32) & 1);
}

// ------------------------------------------------------------------------------------------------
// Forward and backward

typedef struct shape {
    int n, vocabulary, channels;
    float inverse_temperature;
    int kept;  // in a hundred; 0: no kept sets
} shape;

typedef struct head_case {
    shape s;
    const format *operand, *logits;
    int rows, *row, *target;
    uint32_t* nucleus;          // or NULL
    tensor x, w, coef, dx, dw;  // dx, dw: as they are before backward
} head_case;

typedef struct head_result {
    tensor logp, entropy, dx, dw;
} head_result;

// The same in float64, and the squares of the errors that fp32 is expected to make, in units of
// 2^-24.
typedef struct head_values {
    double *logp, *entropy, *dx, *dw;
} head_values;
typedef struct head_exact {
    head_values value, noise;
} head_exact;

static const uint32_t* nucleus_at(const head_case* c, int i) {
    return c->nucleus ? c->nucleus + i * words_of(c->s.vocabulary) : NULL;
}

static const char* case_text(const head_case* c) {
    return text("head of %d rows, %d tokens, %d channels, 1/T %g, %d %% kept, %s, logits %s",
                c->s.n, c->s.vocabulary, c->s.channels, (double)c->s.inverse_temperature, c->s.kept,
                c->operand->name, c->logits->name);
}

static head_case case_new(shape s, const format* operand, const format* logits) {
    const format* store = operand == &FORMAT_TF32 ? &FORMAT_FP32 : operand;
    head_case c = {.s = s, .operand = operand, .logits = logits, .rows = s.n + 3};
    c.x = matrix_random(c.rows, s.channels, store);
    c.w = weight_random(s.vocabulary, s.channels);
    for (int j = 0; j < s.vocabulary; j++)  // logits of a few units
        for (int k = 0; k < s.channels; k++) row_at(c.w, j)[k] *= 0.125f;
    c.coef = vector_random(s.n);
    c.row = ints_new(s.n);
    c.target = ints_new(s.n);
    for (int i = 0; i < s.n; i++) {
        c.row[i] = s.n + 2 - i;  // some rows unasked, the others in another order
        if (i % 7 == 6) c.row[i] = c.row[random_below(i)];  // some for several targets
        c.target[i] = random_below(s.vocabulary);
    }
    int words = words_of(s.vocabulary);
    if (s.kept) c.nucleus = memset(ints_new(s.n * words), 0, (size_t)s.n * words * sizeof(int));
    for (int i = 0; s.kept && i < s.n; i++)
        for (int j = 0; j < s.vocabulary; j++)
            // Not every target is kept.
            if ((j == c.target[i] && i % 4 != 3) || random_below(100) < s.kept)
                c.nucleus[i * words + j / 32] |= 1u << (j % 32);
    c.dx = matrix_random(c.rows, s.channels, &FORMAT_FP32);
    c.dw = weight_random(s.vocabulary, s.channels);
    return c;
}

static double square(double x) { return x * x; }

// Adds dlogits of row i to dx and dw, and their noise to the noise of these. w: (V, C), x: (C) as
// operands.
static void exact_backward(const head_exact* e, const head_case* c, int i, const double* dlogits,
                           const double* noise, const double* w, const double* x) {
    int channels = c->s.channels;
    double* dx = e->value.dx + (size_t)c->row[i] * channels;
    double* dx_noise = e->noise.dx + (size_t)c->row[i] * channels;
    for (int j = 0; j < c->s.vocabulary; j++)
        for (int k = 0; k < channels; k++) {
            size_t at = (size_t)j * channels + k;
            dx[k] += dlogits[j] * w[at];
            dx_noise[k] += noise[j] * square(w[at]);
            e->value.dw[at] += dlogits[j] * x[k];
            e->noise.dw[at] += noise[j] * square(x[k]);
        }
}

// What errors of logits and of the arithmetic after them do to a row's results. p: probabilities;
// l: logits less the greatest, of target y; size: see exact_row. noise: of dlogits / scale.
static void row_noise(const head_exact* e, int i, int v, int y, const double* p, const double* l,
                      const double* size, double log_sum, double* noise) {
    double entropy = e->value.entropy[i], common = 0;
    e->noise.logp[i] = square(l[y]) + square(log_sum) + 1;
    e->noise.entropy[i] = square(log_sum) + square(log_sum - entropy) + 1;
    for (int j = 0; j < v; j++) {
        if (p[j] == 0 && j != y) continue;
        e->noise.logp[i] += square(((j == y) - p[j]) * size[j]);
        e->noise.entropy[i] += square(p[j] * (l[j] - log_sum + entropy) * size[j]);
        common += square(p[j] * size[j]);
    }
    // A probability changes with its own logit by p (1 - p), with another by p times that one's.
    for (int j = 0; j < v; j++) {
        double own = square((1 - p[j]) * size[j]), others = common - square(p[j] * size[j]);
        noise[j] = square(p[j]) * (own + others + 1);
    }
}

// One row; l has room for 4 V numbers. `rounded`: with the rounding points of the formats.
//
// The noise: a sum of k products in fp32 has, in any order, an error of about 2^-24 of the sum of
// their magnitudes (for random signs the root mean square is a third of it), and so has a logit,
// `size`. These errors are independent, so their squares add up, each times the square of the
// result's slope. The arithmetic after the logits rounds numbers that lie about l - max, log sum
// and 1, and each of these roundings adds its square.
static void exact_row(const head_exact* e, const head_case* c, int i, int rounded, double* l,
                      const double* w) {
    int v = c->s.vocabulary, channels = c->s.channels, y = c->target[i];
    double *p = l + v, *size = p + v, *noise = size + v;
    double max = -INFINITY, sum = 0, moment = 0, x[64];
    for (int k = 0; k < channels; k++) x[k] = format_round(row_at(c->x, c->row[i])[k], c->operand);
    for (int j = 0; j < v; j++) {
        l[j] = size[j] = 0;
        for (int k = 0; k < channels; k++) {
            l[j] += x[k] * w[(size_t)j * channels + k];
            size[j] += fabs(x[k] * w[(size_t)j * channels + k]);
        }
        if (rounded) l[j] = format_round((float)l[j], c->logits);
        l[j] *= c->s.inverse_temperature;
        size[j] *= c->s.inverse_temperature;
        if (is_kept(nucleus_at(c, i), j)) max = fmax(max, l[j]);
    }
    for (int j = 0; j < v; j++) {
        l[j] -= max;
        p[j] = is_kept(nucleus_at(c, i), j) ? exp(l[j]) : 0;
        sum += p[j];
        moment += p[j] > 0 ? p[j] * l[j] : 0;
    }
    for (int j = 0; j < v; j++) p[j] /= sum;
    e->value.logp[i] = l[y] - log(sum);
    e->value.entropy[i] = log(sum) - moment / sum;
    row_noise(e, i, v, y, p, l, size, log(sum), noise);
    double scale = (double)row_at(c->coef, 0)[i] * c->s.inverse_temperature;
    float unit = format_scale((float)fabs(scale * (p[y] - 1)), c->logits);
    for (int j = 0; j < v; j++) {
        noise[j] *= square(scale);
        p[j] = scale * (p[j] - (j == y));
        if (rounded)
            p[j] = format_round(format_round((float)p[j] / unit, c->logits) * unit, c->operand);
    }
    exact_backward(e, c, i, p, noise, w, x);
}

static head_values values_at(double* memory, int n, size_t dx) {
    return (head_values){memory, memory + n, memory + 2 * n, memory + 2 * n + dx};
}

static head_exact exact_new(const head_case* c, int rounded) {
    int n = c->s.n, v = c->s.vocabulary, channels = c->s.channels;
    size_t dx = (size_t)c->rows * channels, dw = (size_t)v * channels, all = 2 * n + dx + dw;
    double* memory = xalloc(2 * all + dw + 4 * v, sizeof *memory, "exact results");
    head_exact e = {values_at(memory, n, dx), values_at(memory + all, n, dx)};
    double *w = memory + 2 * all, *l = w + dw;
    for (size_t i = 0; i < dw; i++) {
        w[i] = format_round(((float*)c->w.data)[i], c->operand);
        e.value.dw[i] = ((float*)c->dw.data)[i];
    }
    for (int r = 0; r < c->rows; r++)
        for (int k = 0; k < channels; k++)
            e.value.dx[(size_t)r * channels + k] = row_at(c->dx, r)[k];
    for (int i = 0; i < n; i++) exact_row(&e, c, i, rounded, l, w);
    return e;
}

static tensor exact_rounded(tensor like, const double* exact) {
    tensor t = matrix_new(like.rows, like.cols, &FORMAT_FP32);
    for (int r = 0; r < t.rows; r++)
        for (int k = 0; k < t.cols; k++) row_at(t, r)[k] = (float)exact[(size_t)r * t.cols + k];
    return t;
}

// The plain version.
static head_result plain_result(const head_case* c) {
    int n = c->s.n;
    head_result a = {vector_new(n), vector_new(n), matrix_copy(c->dx), matrix_copy(c->dw)};
    tensor stats = vector_new(2 * n);
    prepared* w = cpu->weight_prepare(cpu, NULL, c->w.data, c->s.vocabulary, c->s.channels,
                                      c->operand, c->operand);
    cpu->head_forward(cpu, a.logp.data, a.entropy.data, stats.data, c->x, c->row, c->target, n, w,
                      c->logits, c->s.inverse_temperature, c->nucleus, NULL);
    cpu->head_backward(cpu, a.dx, a.dw.data, stats.data, c->x, c->row, c->target, c->coef.data,
                       NULL, n, w, c->logits, c->s.inverse_temperature, c->nucleus);
    cpu->weight_release(cpu, w);
    if (c->operand == &FORMAT_BF16 || c->operand == &FORMAT_FP16) {
        head_exact e = exact_new(c, 1);
        a.dx = exact_rounded(a.dx, e.value.dx);
        a.dw = exact_rounded(a.dw, e.value.dw);
        free(e.value.logp);
    }
    return a;
}

// A case on the GPU.
typedef struct gpu_case {
    tensor x;
    int *row, *target;
    float* coef;
    uint32_t* nucleus;
    prepared* w;
} gpu_case;

static gpu_case gpu_case_new(const head_case* c) {
    size_t ints = c->s.n * sizeof(int);
    gpu_case g = {.x = c->s.n % 2 ? gpu_matrix_odd(c->x) : gpu_matrix(c->x),
                  .row = gpu_copy(c->row, ints),
                  .target = gpu_copy(c->target, ints),
                  .coef = gpu_copy(c->coef.data, ints)};
    if (c->nucleus) g.nucleus = gpu_copy(c->nucleus, ints * words_of(c->s.vocabulary));
    g.w = gpu->weight_prepare(gpu, NULL, gpu_matrix(c->w).data, c->s.vocabulary, c->s.channels,
                              c->operand, c->operand);
    return g;
}

static void backward(const head_case* c, const gpu_case* g, tensor stats, tensor dx, tensor dw) {
    gpu->head_backward(gpu, dx, dw.data, stats.data, g->x, g->row, g->target, g->coef, NULL, c->s.n,
                       g->w, c->logits, c->s.inverse_temperature, g->nucleus);
}

static head_result gpu_result(const head_case* c, const gpu_case* g) {
    int n = c->s.n, gpu_mark = gpu_array_count;
    head_result empty = {vector_new(n), vector_new(n), c->dx, c->dw}, a;
    tensor logp = gpu_matrix(empty.logp), again = gpu_matrix(empty.logp);
    tensor entropy = gpu_matrix(empty.entropy), dw = gpu_matrix(c->dw);
    tensor stats = gpu_matrix(vector_new(2 * n));
    tensor dx = n % 3 ? gpu_matrix_odd(c->dx) : gpu_matrix(c->dx);
    gpu->head_forward(gpu, logp.data, entropy.data, stats.data, g->x, g->row, g->target, n, g->w,
                      c->logits, c->s.inverse_temperature, g->nucleus, NULL);
    // Asked for: the target, where it is kept, and none.
    tensor two = array_new(n, 2, 0, &FORMAT_FP32), asked_logp = gpu_matrix(two);
    for (int i = 0; i < n; i++) {
        int id[2] = {is_kept(nucleus_at(c, i), c->target[i]) ? c->target[i] : -1, -1};
        memcpy(row_at(two, i), id, sizeof id);
    }
    candidates asked = {2, gpu_matrix(two).data, asked_logp.data};
    gpu->head_forward(gpu, again.data, NULL, NULL, g->x, g->row, g->target, n, g->w, c->logits,
                      c->s.inverse_temperature, g->nucleus, &asked);
    backward(c, g, stats, dx, dw);
    a = (head_result){gpu_read(logp), gpu_read(entropy), gpu_read(dx), gpu_read(dw)};
    check_same(gpu_read(again), a.logp, "logp without entropy", case_text(c), gpu);
    asked_logp = gpu_read(asked_logp);
    for (int i = 0; i < n; i++) {
        int kept = is_kept(nucleus_at(c, i), c->target[i]);
        row_at(two, i)[0] = kept ? row_at(a.logp, 0)[i] : -INFINITY;
        row_at(two, i)[1] = -INFINITY;
    }
    check_same(asked_logp, two, "logp of candidates", case_text(c), gpu);
    gpu_arrays_free(gpu_mark);
    return a;
}

// Rounding the exact result once is always allowed, and so is the noise.
static void check_part(tensor actual, tensor plain, const double* exact, const double* noise,
                       const char* name, const char* what) {
    double allowed = 0, n = (double)actual.rows * actual.cols;
    for (size_t i = 0; i < (size_t)n; i++) allowed += square(exact[i]) + noise[i];
    check_error(actual, plain, exact, 0x1p-24 * sqrt(allowed / n), name, what);
}

static void check_errors(const head_case* c, const head_result* a) {
    const char* what = case_text(c);
    head_result plain = plain_result(c);
    head_exact e = exact_new(c, 0);
    check_part(a->logp, plain.logp, e.value.logp, e.noise.logp, "logp", what);
    check_part(a->entropy, plain.entropy, e.value.entropy, e.noise.entropy, "entropy", what);
    check_part(a->dx, plain.dx, e.value.dx, e.noise.dx, "dx", what);
    check_part(a->dw, plain.dw, e.value.dw, e.noise.dw, "dw", what);
    check_same(rows_of(a->dx, 0, 3), rows_of(c->dx, 0, 3), "dx of rows not named", what, gpu);
    free(e.value.logp);
}

// Single rows have the bits that they have among all.
static void check_alone(const head_case* c, const gpu_case* g, const head_result* all) {
    for (int t = 0; t < 4; t++) {
        int i = t ? random_below(c->s.n) : c->s.n - 1, gpu_mark = gpu_array_count;
        tensor one = vector_new(1), logp = gpu_matrix(one), entropy = gpu_matrix(one);
        gpu->head_forward(gpu, logp.data, entropy.data, NULL, g->x, g->row + i, g->target + i, 1,
                          g->w, c->logits, c->s.inverse_temperature,
                          g->nucleus ? g->nucleus + i * words_of(c->s.vocabulary) : NULL, NULL);
        check_same(gpu_read(logp), columns_of(all->logp, i, 1), "logp alone", case_text(c), gpu);
        check_same(gpu_read(entropy), columns_of(all->entropy, i, 1), "entropy alone", case_text(c),
                   gpu);
        gpu_arrays_free(gpu_mark);
    }
}

static void check_case(shape s, const format* operand, const format* logits, int orders) {
    int mark = array_count, gpu_mark = gpu_array_count;
    head_case c = case_new(s, operand, logits);
    gpu_case g = gpu_case_new(&c);
    schedule_set(0);
    head_result first = gpu_result(&c, &g);
    check_errors(&c, &first);
    for (int order = 1; order < orders; order++) {
        schedule_set(order);
        head_result a = gpu_result(&c, &g);
        check_same(a.logp, first.logp, "logp", case_text(&c), gpu);
        check_same(a.entropy, first.entropy, "entropy", case_text(&c), gpu);
        check_same(a.dx, first.dx, "dx", case_text(&c), gpu);
        check_same(a.dw, first.dw, "dw", case_text(&c), gpu);
    }
    if (!library()) check_alone(&c, &g, &first);
    gpu->weight_release(gpu, g.w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, case_text(&c));
}

static void check_shapes(void) {
    static const shape shapes[] = {
        {1, 1, 1, 1, 0},        {2, 3, 5, 0.5f, 50},     {9, 24, 8, 1, 0},
        {12, 97, 24, 0.7f, 30}, {3, 512, 16, 1, 0},      {4, 1000, 33, 1, 40},
        {5, 1023, 8, 2, 0},     {7, 5000, 16, 1.25f, 5}, {50, 130, 64, 1, 0},
    };
    static const format* const operands[] = {&FORMAT_FP32, &FORMAT_BF16};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int f = 0; f < 2; f++)
            if (!quick() || i % 2 == (size_t)f)
                check_case(shapes[i], operands[f], &FORMAT_FP32, schedules);
    // More rows than logits exist for; and a row for the largest block there is.
    check_case((shape){4100, 24, 8, 1, 60}, &FORMAT_BF16, &FORMAT_FP32, quick() ? 1 : 2);
    if (!quick()) check_case((shape){3, 50257, 8, 1, 3}, &FORMAT_FP16, &FORMAT_FP32, 2);
}

// With one row of x whose first number is 1, the gradient of the weight's first column is that of
// the logits itself: of the logits' format (fp8: times a power of two), and of the operands'. The
// library may multiply tf32 operands as they are, in fp32: it is asked for tf32 at least.
static void check_gradient_format(const format* operand, const format* logits) {
    int mark = array_count, gpu_mark = gpu_array_count, v = 300;
    head_case c = case_new((shape){1, v, 4, 0.9f, 0}, operand, logits);
    const char* what = case_text(&c);
    set_zero(c.dw);
    set_zero(c.x);
    row_at(c.coef, 0)[0] = 0.7f;
    for (int r = 0; r < c.rows; r++) row_at(c.x, r)[0] = 1;
    gpu_case g = gpu_case_new(&c);
    head_result a = gpu_result(&c, &g);
    int fit = 0, vanished = 0, operands_fit = !(library() && operand == &FORMAT_TF32);
    float unit = format_scale(fabsf(row_at(a.dw, c.target[0])[0]), logits);
    for (int j = 0; j < v; j++) {
        float x = row_at(a.dw, j)[0];
        vanished += x == 0;
        fit += same_bits(x, format_round(x / unit, logits) * unit) &&
               (!operands_fit || same_bits(x, format_round(x, operand)));
    }
    CHECK(fit == v, "%s: %d of %d gradients of logits fit", what, fit, v);
    // Logits of up to 2 leave no token less than 2^-14; in units for the largest gradient, all
    // formats reach to 2^-16 of it.
    CHECK(vanished == 0, "%s: %d of %d gradients of logits vanished", what, vanished, v);
    gpu->weight_release(gpu, g.w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void check_formats(void) {
    static const format* const operands[] = {&FORMAT_FP32, &FORMAT_TF32, &FORMAT_BF16,
                                             &FORMAT_FP16};
    for (int f = 0; f < 4; f++)
        for (int l = 0; FORMATS[l]; l++) {
            check_gradient_format(operands[f], FORMATS[l]);
            if (!quick() || (f + l) % 2)
                check_case((shape){15, 67, 37, 0.75f, (f + l) % 2 * 40}, operands[f], FORMATS[l],
                           quick() ? 1 : 2);
        }
}

// ------------------------------------------------------------------------------------------------
// The sampler

typedef struct sampler_case {
    int rows, vocabulary, channels;
    const format *operand, *logits;
    int ties;  // logits are small multiples of 1/32; otherwise any numbers of the operands' format
    sampling how;
} sampler_case;

enum { MAX_NEW = 4, IDLE_EVERY = 7 };

typedef struct slots {
    slot_state s;
    int count;   // slots, and sequences
    tensor all;  // the memory behind s
    int* row_slot;
} slots;

static const char* sampler_text(const sampler_case* c) {
    return text("sample, %d rows, %d tokens, 1/T %g, greedy %d, top-k %d, top-p %g, %s, %s%s",
                c->rows, c->vocabulary, (double)c->how.inverse_temperature, c->how.greedy,
                c->how.top_k, (double)c->how.top_p, c->operand->name, c->logits->name,
                c->ties ? ", ties" : "");
}

// Points t->s into the array at `at`.
static void state_at(slots* t, int* at, int vocabulary) {
    int n = t->count, words = words_of(vocabulary);
    slot_state s = slot_state_at(at, n, MAX_NEW, words);
    s.ends = (end_set){1, {vocabulary - 1}};
    t->s = s;
}

// Slots in some state, one more than rows; slot i serves a sequence of another number.
static slots slots_new(const sampler_case* c) {
    int n = c->rows + 1;
    slots t = {.count = n};
    t.all = vector_new(n * (5 + MAX_NEW * (3 + words_of(c->vocabulary))));
    memset(t.all.data, 0, t.all.cols * sizeof(float));
    state_at(&t, t.all.data, c->vocabulary);
    t.row_slot = ints_new(c->rows);
    for (int i = 0; i < n; i++) {
        t.s.token[i] = random_below(c->vocabulary);
        t.s.position[i] = i % IDLE_EVERY == 3 ? -1 : random_below(500);
        t.s.sequence[i] = n - 1 - i;
        t.s.left[i] = random_between(1, MAX_NEW);
        t.s.length[i] = random_below(2);
    }
    for (int i = 0; i < c->rows; i++) t.row_slot[i] = c->rows - i;  // slot 0 has no row
    return t;
}

static slots slots_copy(const slots* from, int vocabulary) {
    slots t = *from;
    t.all = matrix_copy(from->all);
    state_at(&t, t.all.data, vocabulary);
    return t;
}

// Rows of x and weights whose products are exact in any order: sums of few multiples of 1/32; or
// rows of x that have one number other than 0, a power of two.
static void fill_exact(tensor x, tensor w, const sampler_case* c) {
    for (int j = 0; j < w.rows; j++)
        for (int k = 0; k < w.cols; k++)
            row_at(w, j)[k] = c->ties ? (float)random_between(-4, 4) * 0.25f
                                      : format_round(random_float() * 2, c->operand);
    for (int i = 0; i < x.rows; i++) {
        int one = random_below(x.cols);
        for (int k = 0; k < x.cols; k++) {
            float power = ldexpf(random_below(2) ? 1 : -1, random_between(-1, 1));
            row_at(x, i)[k] =
                c->ties ? (float)random_between(-8, 8) * 0.125f : (k == one ? power : 0);
        }
    }
}

// logp and entropy of one draw may differ by the rounding of sums in another order: some units in
// the last place of what they are differences of, which is below 100.
static void check_slots(tensor actual, const slots* expected, const char* what) {
    const float* logp = (const float*)expected->s.out_logp;
    int64_t first = logp - (float*)expected->all.data;
    int64_t end = first + 2ll * expected->count * MAX_NEW, wrong = -1;
    for (int64_t i = 0; i < actual.cols && wrong < 0; i++) {
        float a = row_at(actual, 0)[i], e = row_at(expected->all, 0)[i];
        if (i >= first && i < end ? !(fabsf(a - e) <= 100 * 0x1p-22f) : !same_bits(a, e)) wrong = i;
    }
    CHECK(wrong < 0, "%s: word %d of the slots' state differs: %g (%u), expected %g (%u)", what,
          (int)wrong, (double)row_at(actual, 0)[wrong], float_bits(row_at(actual, 0)[wrong]),
          (double)row_at(expected->all, 0)[wrong], float_bits(row_at(expected->all, 0)[wrong]));
}

// The log-probabilities and entropies of the drawn tokens are those that head_forward gives on the
// GPU, for the same kept sets. `after`: the GPU's slots, on the host.
static void check_same_logp(const slots* before, const slots* after, tensor x, const prepared* w,
                            const sampler_case* c) {
    int mark = array_count, gpu_mark = gpu_array_count, words = words_of(c->vocabulary), count = 0;
    int *row = ints_new(c->rows), *target = ints_new(c->rows);
    tensor drawn = vector_new(c->rows), drawn_entropy = vector_new(c->rows);
    uint32_t* nucleus = (uint32_t*)ints_new(c->rows * words);
    for (int i = 0; i < c->rows; i++) {
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
    tensor logp = gpu_matrix(vector_new(count)), entropy = gpu_matrix(vector_new(count));
    gpu->head_forward(
        gpu, logp.data, entropy.data, NULL, x, gpu_copy(row, count * sizeof(int)),
        gpu_copy(target, count * sizeof(int)), count, w, c->logits, c->how.inverse_temperature,
        narrowed ? gpu_copy(nucleus, (size_t)count * words * sizeof *nucleus) : NULL, NULL);
    check_same(columns_of(drawn, 0, count), gpu_read(logp), "logp against the head's",
               sampler_text(c), gpu);
    check_same(columns_of(drawn_entropy, 0, count), gpu_read(entropy), "entropy against the head's",
               sampler_text(c), gpu);
    gpu_arrays_free(gpu_mark);
    arrays_drop(mark);
}

// Samples on the GPU from a copy of `before`; its slots then, on the host. `keep`: whether there is
// memory for kept sets.
static slots gpu_sample(const slots* before, tensor x, const prepared* w, const sampler_case* c,
                        int nucleus) {
    int gpu_mark = gpu_array_count;
    tensor all = gpu_matrix(before->all);
    slots there = *before, here = *before;
    state_at(&there, all.data, c->vocabulary);
    if (!nucleus) there.s.out_nucleus = NULL;
    gpu->sample(gpu, &there.s, x, gpu_copy(before->row_slot, c->rows * sizeof(int)), c->rows, w,
                c->logits, gpu_copy(&c->how, sizeof c->how));
    here.all = gpu_read(all);
    state_at(&here, here.all.data, c->vocabulary);
    gpu_arrays_free(gpu_mark);
    return here;
}

static void check_sampler_on_gpu(const sampler_case* c, const slots* before, const slots* expected,
                                 tensor x_host, tensor w_host, int orders) {
    int gpu_mark = gpu_array_count;
    const char* what = sampler_text(c);
    tensor x = c->rows % 2 ? gpu_matrix_odd(x_host) : gpu_matrix(x_host), first = {0};
    prepared* w = gpu->weight_prepare(gpu, NULL, gpu_matrix(w_host).data, c->vocabulary,
                                      c->channels, c->operand, c->operand);
    for (int order = 0; order < orders; order++) {
        schedule_set(order);
        slots after = gpu_sample(before, x, w, c, 1), bare = gpu_sample(before, x, w, c, 0);
        int without = (int)((float*)after.s.out_nucleus - (float*)after.all.data);
        check_slots(after.all, expected, what);
        check_same_logp(before, &after, x, w, c);
        if (order == 0) first = after.all;
        CHECK(first_difference(after.all, first) < 0, "%s: order %d", what, order);
        bare.all = columns_of(bare.all, 0, without);
        CHECK(first_difference(bare.all, after.all) < 0, "%s: without kept sets", what);
    }
    gpu->weight_release(gpu, w);
    gpu_arrays_free(gpu_mark);
}

// From these slots; those of the CPU device afterwards.
static slots check_sampler_from(const sampler_case* c, slots before, tensor x, tensor w,
                                int orders) {
    slots expected = slots_copy(&before, c->vocabulary);
    prepared* p =
        cpu->weight_prepare(cpu, NULL, w.data, c->vocabulary, c->channels, c->operand, c->operand);
    cpu->sample(cpu, &expected.s, x, expected.row_slot, c->rows, p, c->logits, &c->how);
    cpu->weight_release(cpu, p);
    check_sampler_on_gpu(c, &before, &expected, x, w, orders);
    return expected;
}

static void check_sampler_with(const sampler_case* c, tensor x, tensor w, int orders) {
    int mark = array_count;
    check_sampler_from(c, slots_new(c), x, w, orders);
    arrays_free(mark, sampler_text(c));
}

static void check_sampler_case(sampler_case c, int orders) {
    int mark = array_count;
    const format* store = c.operand == &FORMAT_TF32 ? &FORMAT_FP32 : c.operand;
    tensor x = matrix_new(c.rows, c.channels, store), w = weight_random(c.vocabulary, c.channels);
    fill_exact(x, w, &c);
    check_sampler_with(&c, x, w, orders);
    arrays_free(mark, sampler_text(&c));
}

// The best tokens are the CPU device's, where logits are; head_forward gives their
// log-probabilities the bits that the sampler gave them.
static void check_best(int rows, int v, int count, sampling how, int orders) {
    int mark = array_count, words = words_of(v), narrowed = how.top_k > 0 || how.top_p < 1;
    sampler_case c = {rows, v, 6, &FORMAT_BF16, &FORMAT_FP32, 1, how};
    tensor x_host = matrix_new(rows, 6, &FORMAT_BF16), w_host = weight_random(v, 6);
    fill_exact(x_host, w_host, &c);
    slots before = slots_new(&c), expected = slots_copy(&before, v);
    int size = before.count * MAX_NEW * count;
    tensor ids = vector_new(size), logps = vector_new(size);
    memset(ids.data, 0, size * sizeof(int));
    memset(logps.data, 0, size * sizeof(float));
    prepared* p = cpu->weight_prepare(cpu, NULL, w_host.data, v, 6, c.operand, c.operand);
    tensor cpu_ids = matrix_copy(ids), cpu_logps = matrix_copy(logps);
    expected.s.best = (candidates){count, cpu_ids.data, cpu_logps.data};
    cpu->sample(cpu, &expected.s, x_host, expected.row_slot, rows, p, c.logits, &how);
    cpu->weight_release(cpu, p);

    int gpu_mark = gpu_array_count;
    tensor x = gpu_matrix(x_host), one = vector_new(1);
    prepared* w =
        gpu->weight_prepare(gpu, NULL, gpu_matrix(w_host).data, v, 6, c.operand, c.operand);
    for (int order = 0; order < orders; order++) {
        schedule_set(order);
        tensor all = gpu_matrix(before.all), id = gpu_matrix(ids), logp = gpu_matrix(logps);
        slots there = before;
        state_at(&there, all.data, v);
        there.s.best = (candidates){count, id.data, logp.data};
        gpu->sample(gpu, &there.s, x, gpu_copy(before.row_slot, rows * sizeof(int)), rows, w,
                    c.logits, gpu_copy(&how, sizeof how));
        tensor found = gpu_read(id), found_logp = gpu_read(logp);
        check_same(found, cpu_ids, "candidates", sampler_text(&c), gpu);
        for (int i = 0; i < size; i++) {
            float a = row_at(found_logp, 0)[i], e = row_at(cpu_logps, 0)[i];
            // As in check_slots.
            CHECK(a == e || fabsf(a - e) <= 100 * 0x1p-22f, "%s: candidate's logp %g, not %g",
                  sampler_text(&c), (double)a, (double)e);
        }
        for (int i = 0; i < rows; i++) {
            int slot = before.row_slot[i], sequence = before.s.sequence[slot];
            if (before.s.position[slot] < 0) continue;
            int at = sequence * MAX_NEW + before.s.length[sequence];
            int row_mark = array_count, row_gpu_mark = gpu_array_count;
            tensor part = columns_of(found, at * count, count), again = gpu_matrix(part);
            candidates asked = {count, gpu_matrix(part).data, again.data};
            gpu->head_forward(
                gpu, gpu_matrix(one).data, NULL, NULL, x, gpu_copy(&i, sizeof i),
                gpu_copy(expected.s.out_token + at, sizeof(int)), 1, w, c.logits,
                how.inverse_temperature,
                narrowed ? gpu_copy(expected.s.out_nucleus + at * words, words * sizeof(uint32_t))
                         : NULL,
                &asked);
            check_same(gpu_read(again), columns_of(found_logp, at * count, count),
                       "the head's candidates", sampler_text(&c), gpu);
            gpu_arrays_free(row_gpu_mark);
            arrays_drop(row_mark);
        }
    }
    gpu->weight_release(gpu, w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, sampler_text(&c));
}

static void check_candidates(void) {
    static const sampling hows[] = {{1, 0, 0, 1, 11, STREAM_SAMPLE, 3, 0},
                                    {0.7f, 0, 9, 1, 12, STREAM_SAMPLE, 4, 0},
                                    {1, 1, 0, 0.8f, 13, STREAM_EVALUATE, 5, 0}};
    static const int vocabularies[] = {2, 33, 520, 1000};
    for (int i = 0; i < 3; i++)
        for (int v = 0; v < 4; v++)
            check_best(i == 0 && v == 1 ? 9 : 4, vocabularies[v], v == 2 ? 40 : 5, hows[i],
                       v % 2 ? schedules : 1);
}

static void check_sampler(void) {
    static const int vocabularies[] = {1, 2, 24, 31, 32, 33, 97, 520, 1000, 5000};
    static const format* const operands[] = {&FORMAT_FP32, &FORMAT_TF32, &FORMAT_BF16,
                                             &FORMAT_FP16};
    static const format* const logits[] = {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16,
                                           &FORMAT_E4M3};
    int turn = 0;
    for (int v = 0; v < 10; v++)
        for (int i = 0; i < SAMPLING_COUNT; i++, turn++) {
            if (quick() && turn % 3) continue;
            int tokens = vocabularies[v], rows = tokens < 500 ? 9 + v : 3;
            sampler_case c = {rows,         tokens,      6, operands[turn % 4], logits[turn % 5],
                              turn / 2 % 2, SAMPLINGS[i]};
            check_sampler_case(c, (i + v) % 4 ? 1 : schedules);
        }
    // More rows than logits exist for; and a row for the largest block there is.
    sampler_case many = {4100, 24, 6, &FORMAT_BF16, &FORMAT_FP32, 1, SAMPLINGS[quick() ? 1 : 4]};
    check_sampler_case(many, 1);
    for (int i = 0; i < SAMPLING_COUNT && !quick(); i += 3) {
        sampler_case wide = {2, 50257, 6, &FORMAT_BF16, &FORMAT_FP32, i % 2, SAMPLINGS[i]};
        check_sampler_case(wide, 1);
    }
}

// Tokens of probability 2^-33 count: a thousand of them reach a p of 1 - 2^-24 that the first token
// alone does not.
static void check_rare_tokens(void) {
    int mark = array_count, v = 1000;
    sampler_case c = {
        1, v, 1, &FORMAT_FP32, &FORMAT_FP32, 0, {1, 0, 0, 0x1.fffffep-1f, 1, STREAM_SAMPLE, 0, 0}};
    tensor x = matrix_new(1, 1, &FORMAT_FP32), w = weight_random(v, 1);
    set_rows(x, 0, 1, 1);
    set_rows(w, 0, v, -22.9f);
    set_rows(w, 0, 1, 0);
    check_sampler_with(&c, x, w, schedules);
    arrays_free(mark, "rare tokens");
}

// Logits that round to 0 and -0 are equal: the lower id goes first. And half of the tokens weigh
// exactly half.
static void check_zeros(void) {
    static const sampling hows[] = {{1, 1, 0, 1, 1, STREAM_SAMPLE, 0, 0},
                                    {1, 0, 3, 1, 2, STREAM_SAMPLE, 0, 0},
                                    {1, 0, 0, 0.5f, 3, STREAM_SAMPLE, 0, 0}};
    int mark = array_count, v = 40;
    tensor x = matrix_new(1, 1, &FORMAT_FP32), w = weight_random(v, 1);
    set_rows(x, 0, 1, 1);
    for (int j = 0; j < v; j++) row_at(w, j)[0] = j % 3 ? 0x1p-20f : -0x1p-20f;
    for (int i = 0; i < 3; i++) {
        sampler_case c = {1, v, 1, &FORMAT_FP32, &FORMAT_E4M3, 1, hows[i]};
        check_sampler_with(&c, x, w, 1);
    }
    arrays_free(mark, "zeros");
}

// Logits of row `kind` of those whose sets are hard to find. Keys have eight digits: four of the
// logit, four of the id.
static const char* const THRESHOLDS[] = {"equal logits",          // the ids decide
                                         "the last bits differ",  // the logit's last digit decides
                                         "all magnitudes", "some of -infinity", "negative"};
static float threshold_logit(int kind, int token) {
    float magnitude = ldexpf(1 + (float)(token * 37 % 101) / 101, token * 7 % 33 - 30);
    switch (kind) {
        case 0:
            return 3;
        case 1:
            return 1 + (float)(token * 7919 % 200) * 0x1p-23f;
        case 2:
            return token % 3 ? magnitude : -magnitude;
        case 3:
            return token % 3 ? magnitude : -INFINITY;
        default:
            return -5 - magnitude;
    }
}

static void check_threshold(int kind, int v, sampling how, int orders) {
    int mark = array_count;
    sampler_case c = {1, v, 1, &FORMAT_FP32, &FORMAT_FP32, kind, how};
    tensor x = matrix_new(1, 1, &FORMAT_FP32), w = weight_random(v, 1);
    set_rows(x, 0, 1, 1);
    for (int j = 0; j < v; j++) row_at(w, j)[0] = threshold_logit(kind, j);
    check_sampler_with(&c, x, w, orders);
    arrays_free(mark, THRESHOLDS[kind]);
}

static void check_thresholds(void) {
    static const int ks[] = {0, 1, 300, 999, 2000};
    static const float ps[] = {1, 0x1p-30f, 0.5f, 1 - 0x1p-24f};
    for (int kind = 0; kind < 5; kind++)
        for (int k = 0; k < 5; k++)
            for (int p = 0; p < 4; p++) {
                sampling how = {1, 0, ks[k], ps[p], 1, STREAM_SAMPLE, 0, 0};
                if (!quick() || (kind + k + p) % 3 == 0)
                    check_threshold(kind, 1000, how, (k + p) % 4 ? 1 : schedules);
            }
    // Ids of three digits.
    check_threshold(0, 70000, (sampling){1, 0, 0, 0.96f, 1, STREAM_SAMPLE, 0, 0}, 1);
}

// A point that is exactly a running sum belongs to the next token. The first token weighs 2^40, all
// others 1, so that every point beyond 2^40 is one: these seeds were searched for such. Within a
// packet; at its end, where the next lane begins; at the end of a warp's section of 512 tokens.
static void check_boundaries(void) {
    static const struct {
        uint64_t seed;
        int token;
    } of[] = {{64894680, 13453}, {158931080, 1492}, {3170702448, 2560}};
    int mark = array_count, v = 16384;
    tensor x = matrix_new(1, 1, &FORMAT_FP32), w = weight_random(v, 1);
    set_rows(x, 0, 1, 1);
    set_rows(w, 0, v, -27.6f);
    set_rows(w, 0, 1, 0);
    for (int i = 0; i < 3; i++) {
        sampler_case c = {
            1, v, 1, &FORMAT_FP32, &FORMAT_FP32, 0, {1, 0, 0, 1, of[i].seed, STREAM_SAMPLE, 0, 0}};
        slots before = slots_new(&c);
        before.s.position[1] = 7;  // of sequence 0
        slots after = check_sampler_from(&c, before, x, w, 1);
        CHECK(after.s.token[1] == of[i].token, "seed %llu draws %d", (unsigned long long)of[i].seed,
              after.s.token[1]);
    }
    arrays_free(mark, "boundaries");
}

// Logits that are not numbers draw some token, and so does one that is infinite.
static void check_no_numbers(void) {
    static const float firsts[] = {NAN, INFINITY};
    for (int i = 0; i < SAMPLING_COUNT; i++)
        for (int f = 0; f < 2; f++) {
            int mark = array_count, gpu_mark = gpu_array_count, v = 40;
            sampler_case c = {1, v, 1, &FORMAT_FP32, &FORMAT_FP32, 0, SAMPLINGS[i]};
            tensor x = matrix_new(1, 1, &FORMAT_FP32), w_host = weight_random(v, 1);
            set_rows(x, 0, 1, 1);
            set_rows(w_host, 0, f ? 1 : v, firsts[f]);
            slots before = slots_new(&c);
            before.s.position[1] = 7;
            prepared* w =
                gpu->weight_prepare(gpu, NULL, gpu_matrix(w_host).data, v, 1, c.operand, c.operand);
            slots after = gpu_sample(&before, gpu_matrix(x), w, &c, 0);
            int token = after.s.token[1];
            CHECK(token >= 0 && token < v, "%s: token %d of %d", sampler_text(&c), token, v);
            gpu->weight_release(gpu, w);
            gpu_arrays_free(gpu_mark);
            arrays_free(mark, "not numbers");
        }
}

// A token whose logit is -infinity is as one that is not kept.
static void check_minus_infinity(void) {
    int mark = array_count, gpu_mark = gpu_array_count, v = 40;
    head_case c = case_new((shape){1, v, 1, 1, 50}, &FORMAT_FP32, &FORMAT_FP32), all = c;
    set_rows(c.x, 0, c.rows, 1);
    all.w = matrix_copy(c.w);
    all.nucleus = NULL;
    for (int j = 0; j < v; j++)
        if (!is_kept(c.nucleus, j)) row_at(all.w, j)[0] = -INFINITY;
    schedule_set(0);
    gpu_case some_kept = gpu_case_new(&c), all_kept = gpu_case_new(&all);
    head_result a = gpu_result(&all, &all_kept), b = gpu_result(&c, &some_kept);
    check_same(a.logp, b.logp, "logp", "logits of -infinity", gpu);
    check_same(a.entropy, b.entropy, "entropy", "logits of -infinity", gpu);
    gpu->weight_release(gpu, some_kept.w);
    gpu->weight_release(gpu, all_kept.w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "logits of -infinity");
}

// All logits are 0: each token has the same probability, and what lies beyond the vocabulary has
// none, in formats too that cannot express -infinity.
static void check_equal_logits(const format* logits) {
    int mark = array_count, gpu_mark = gpu_array_count, v = 67;
    head_case c = case_new((shape){3, v, 8, 0.5f, 0}, &FORMAT_FP32, logits);
    set_zero(c.x);
    gpu_case g = gpu_case_new(&c);
    head_result a = gpu_result(&c, &g);
    for (int i = 0; i < c.s.n; i++) {
        // The sum is exact, its logarithm an ulp of 2^-21.
        CHECK_NEAR(row_at(a.logp, 0)[i], -log(v), 0x1p-21, case_text(&c));
        CHECK_NEAR(row_at(a.entropy, 0)[i], log(v), 0x1p-21, case_text(&c));
    }
    gpu->weight_release(gpu, g.w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, case_text(&c));
}

// ------------------------------------------------------------------------------------------------
// Logits that forward left for backward, whatever came between the two: the gradients are those of
// backward right after forward.

enum between { NOTHING, BACKWARD, OTHER_FORWARD, SAMPLE, BETWEEN };

// Samples from the case's head.
static void sample_some(const head_case* c, const gpu_case* g) {
    sampling how = {.inverse_temperature = 1, .top_p = 1};
    sampler_case some = {5, c->s.vocabulary, c->s.channels, c->operand, c->logits, 0, how};
    slots before = slots_new(&some);
    gpu_sample(&before, g->x, g->w, &some, 0);
}

static void check_left_logits(shape s, const format* operand) {
    int mark = array_count, gpu_mark = gpu_array_count, n = s.n;
    head_case c = case_new(s, operand, &FORMAT_FP32);
    gpu_case g = gpu_case_new(&c);
    tensor first_dx = {0}, first_dw = {0};
    for (enum between between = NOTHING; between < BETWEEN; between++) {
        tensor stats = gpu_matrix(vector_new(2 * n)), others = gpu_matrix(vector_new(2));
        tensor logp = gpu_matrix(vector_new(n)), dx = gpu_matrix(c.dx), dw = gpu_matrix(c.dw);
        gpu->head_forward(gpu, logp.data, NULL, stats.data, g.x, g.row, g.target, n, g.w, c.logits,
                          s.inverse_temperature, g.nucleus, NULL);
        if (between == BACKWARD) backward(&c, &g, stats, gpu_matrix(c.dx), gpu_matrix(c.dw));
        if (between == OTHER_FORWARD)
            gpu->head_forward(gpu, logp.data, NULL, others.data, g.x, g.row + n - 1, g.target, 1,
                              g.w, c.logits, 0.5f, NULL, NULL);
        if (between == SAMPLE) sample_some(&c, &g);
        backward(&c, &g, stats, dx, dw);
        dx = gpu_read(dx), dw = gpu_read(dw);
        if (between == NOTHING) first_dx = dx, first_dw = dw;
        const char* what = text("%s, number %d between", case_text(&c), between);
        check_same(dx, first_dx, "dx", what, gpu);
        check_same(dw, first_dw, "dw", what, gpu);
    }
    gpu->weight_release(gpu, g.w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "logits left");
}

int main(void) {
    cuda_test_open();
    check_shapes();
    check_minus_infinity();
    check_formats();
    for (int i = 0; FORMATS[i]; i++) check_equal_logits(FORMATS[i]);
    check_equal_logits(format_find("e2m1"));
    check_equal_logits(format_find("e3m2"));
    check_left_logits((shape){15, 67, 37, 0.75f, 40}, &FORMAT_BF16);
    check_left_logits((shape){6, 300, 24, 1, 0}, &FORMAT_FP32);
    check_sampler();
    check_candidates();
    check_rare_tokens();
    check_zeros();
    check_thresholds();
    check_boundaries();
    check_no_numbers();
    cuda_test_close();
    return test_report();
}
