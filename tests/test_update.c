// What the optimizer does with whole arrays: rounding, adding, the sum of squares, AdamW. See
// cpu_test.h for the method.
#include "cpu_test.h"

static const int COUNTS[] = {1, 2, 15, 16, 17, 100, 4095, 4096, 4097, 10000};
enum { COUNT_COUNT = sizeof COUNTS / sizeof *COUNTS };

static void check_cast(void) {
    for (int i = 0; i < COUNT_COUNT; i++)
        for (const format* const* f = FORMATS; *f; f++) {
            int mark = array_count, n = COUNTS[i];
            tensor from = vector_random(n), expected = vector_new(n);
            expected.format = *f;
            for (int j = 0; j < n; j++)
                row_at(expected, 0)[j] = format_round(row_at(from, 0)[j], *f);
            for (int d = device_next(); d < device_count; d += device_step) {
                tensor to = vector_new(n);
                to.format = *f;
                devices[d]->cast(devices[d], to.data, from.data, n, *f);
                check_same(to, expected, "to", text("cast of %d to %s", n, (*f)->name), devices[d]);
            }
            arrays_free(mark, "cast");
        }
}

static void check_add(void) {
    for (int i = 0; i < COUNT_COUNT; i++) {
        int mark = array_count, n = COUNTS[i];
        tensor from = vector_random(n), start = vector_random(n), expected = vector_new(n);
        for (int j = 0; j < n; j++) {
            if (i % 2) {  // subnormal: no thread may flush them
                row_at(start, 0)[j] *= 0x1p-130f;
                row_at(from, 0)[j] *= 0x1p-130f;
            }
            row_at(expected, 0)[j] = row_at(start, 0)[j] + row_at(from, 0)[j];
        }
        for (int d = device_next(); d < device_count; d += device_step) {
            tensor to = matrix_copy(start);
            devices[d]->add(devices[d], to.data, from.data, n);
            check_same(to, expected, "to", text("sum of %d", n), devices[d]);
        }
        arrays_free(mark, "sum");
    }
}

// ------------------------------------------------------------------------------------------------
// Sum of squares: 16 lanes and the tree within chunks of 4096, chunks in order, in fp64.

static double naive_sum_squares(const float* x, int n) {
    double total = 0;
    for (int i = 0; i < n; i += 4096) {
        double lane[16] = {0};
        for (int j = i; j < n && j < i + 4096; j++) lane[j % 16] += (double)x[j] * x[j];
        for (int half = 8; half; half /= 2)
            for (int l = 0; l < half; l++) lane[l] += lane[l + half];
        total += lane[0];
    }
    return total;
}

static void check_sum_squares(void) {
    for (int i = 0; i < COUNT_COUNT + 1; i++) {
        int mark = array_count, n = i < COUNT_COUNT ? COUNTS[i] : 70001;
        float* x = floats_random(n);
        for (int j = 0; j < n; j++) x[j] *= (float)(1 << random_below(20));
        double expected = naive_sum_squares(x, n), plain = 0;
        for (int j = 0; j < n; j++) plain += (double)x[j] * x[j];
        // Each order errs by less than one rounding a term of the sum, at most; usually far less.
        CHECK_NEAR(expected, plain, n * 0x1p-53 * plain, "the naive sum of squares");
        for (int d = device_next(); d < device_count; d += device_step) {
            double sum = devices[d]->sum_squares(devices[d], x, n);
            CHECK(sum == expected, "sum of %d squares is %a, expected %a (%s)", n, sum, expected,
                  devices[d]->name);
        }
        arrays_free(mark, "sum of squares");
    }
}

// Elements that are not finite show, wherever they are; large finite ones do not overflow.
static void check_not_finite(void) {
    static const int places[] = {0, 17, 4095, 4096, 9999};
    int mark = array_count, n = 10000;
    float* x = floats_random(n);
    for (int d = device_next(); d < device_count; d += device_step) {
        backend* b = devices[d];
        for (int i = 0; i < 5; i++) {
            float kept = x[places[i]];
            x[places[i]] = 0x1.fffffep127f;
            CHECK(isfinite(b->sum_squares(b, x, n)), "the largest float at %d", places[i]);
            x[places[i]] = -INFINITY;
            CHECK(isinf(b->sum_squares(b, x, n)), "infinity at %d (%s)", places[i], b->name);
            x[places[i]] = NAN;
            CHECK(isnan(b->sum_squares(b, x, n)), "NaN at %d (%s)", places[i], b->name);
            x[places[i]] = kept;
        }
        CHECK(b->sum_squares(b, x, 0) == 0, "the sum of nothing (%s)", b->name);
    }
    arrays_free(mark, "sum of squares");
}

// ------------------------------------------------------------------------------------------------
// AdamW

static void naive_adamw(float* w, float* m, float* v, const float* g, int n, uint64_t first,
                        const adamw_step* h) {
    for (int i = 0; i < n; i++) {
        float d = g[i] * h->gradient_scale;
        m[i] = num_fma(h->beta1, m[i], (1.0f - h->beta1) * d);
        v[i] = num_fma(h->beta2, v[i], (1.0f - h->beta2) * d * d);
        float step = (m[i] / h->correction1) / (sqrtf(v[i] / h->correction2) + h->eps);
        w[i] = num_fma(-h->lr, num_fma(h->weight_decay, w[i], step), w[i]);
        uint32_t random[4];
        uint64_t index = first + (uint64_t)i;
        random_at(random, h->seed, STREAM_ROUND, h->step, (uint32_t)(index >> 32), (uint32_t)index);
        if (h->format != &FORMAT_FP32) w[i] = format_round_stochastic(w[i], h->format, random[0]);
    }
}

typedef struct adamw_case {
    int n;
    size_t first;
    tensor w, m, v, g;
} adamw_case;

static adamw_case adamw_case_new(int n, size_t first, const format* f) {
    adamw_case c = {
        n, first, vector_random(n), vector_random(n), vector_random(n), vector_random(n)};
    c.w.format = f;
    for (int i = 0; i < n; i++) {
        row_at(c.w, 0)[i] = format_round(row_at(c.w, 0)[i], f);
        row_at(c.v, 0)[i] *= row_at(c.v, 0)[i];
    }
    return c;
}

static adamw_case adamw_case_copy(const adamw_case* from) {
    adamw_case c = {
        from->n, from->first, matrix_copy(from->w), matrix_copy(from->m), matrix_copy(from->v),
        from->g};
    return c;
}

static void naive_adamw_case(adamw_case* c, const adamw_step* how) {
    naive_adamw(c->w.data, c->m.data, c->v.data, c->g.data, c->n, c->first, how);
}

static adamw_step adamw_step_to(const format* f) {
    adamw_step h = {.lr = 1e-2f,
                    .beta1 = 0.9f,
                    .beta2 = 0.99f,
                    .eps = 1e-3f,
                    .weight_decay = 0.1f,
                    .correction1 = 0.271f,
                    .correction2 = 0.0297f,
                    .gradient_scale = 0.3f,
                    .format = f,
                    .seed = 0x123456789abcull,
                    .step = 3};
    return h;
}

// The whole array at once, and cut in two anywhere: the same bits.
static void check_adamw_case(int n, size_t first, const format* f) {
    int mark = array_count;
    adamw_case start = adamw_case_new(n, first, f), expected = adamw_case_copy(&start);
    adamw_step how = adamw_step_to(f);
    const char* what = text("AdamW of %d from %zu on, %s", n, first, f->name);
    naive_adamw_case(&expected, &how);
    for (int d = device_next(); d < device_count; d += device_step) {
        adamw_case c = adamw_case_copy(&start);
        backend* b = devices[d];
        int cut = random_below(n + 1), rest = n - cut;
        float *w = c.w.data, *m = c.m.data, *v = c.v.data, *g = c.g.data;
        b->adamw(b, w, m, v, g, cut, first, &how);
        b->adamw(b, w + cut, m + cut, v + cut, g + cut, rest, first + cut, &how);
        check_same(c.w, expected.w, "w", what, b);
        check_same(c.m, expected.m, "m", what, b);
        check_same(c.v, expected.v, "v", what, b);
    }
    arrays_free(mark, what);
}

static void check_adamw(void) {
    static const format* const masters[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16};
    for (int f = 0; f < 3; f++) {
        for (int i = 0; i < COUNT_COUNT; i++) check_adamw_case(COUNTS[i], 1000 * i, masters[f]);
        check_adamw_case(50, (1ull << 32) - 20, masters[f]);
    }
}

// Each part counts: every hyper-parameter, and of stochastic rounding the format, seed, step and
// index.
static void check_adamw_parts(void) {
    enum { PARTS = 12, FIRST_OF_ROUNDING = 8 };
    for (int part = 0; part < PARTS; part++) {
        int mark = array_count, rounding = part >= FIRST_OF_ROUNDING;
        adamw_case a = adamw_case_new(50, 7, rounding ? &FORMAT_BF16 : &FORMAT_FP32);
        adamw_case c = adamw_case_copy(&a);
        adamw_step how = adamw_step_to(a.w.format);
        float* parts[] = {&how.lr,          &how.beta1,         &how.beta2,
                          &how.eps,         &how.weight_decay,  &how.correction1,
                          &how.correction2, &how.gradient_scale};
        naive_adamw_case(&a, &how);
        if (!rounding) *parts[part] *= 1.01f;
        if (part == 8) how.format = &FORMAT_FP32;
        if (part == 9) how.seed += 1ull << 32;
        if (part == 10) how.step++;
        if (part == 11) c.first++;
        naive_adamw_case(&c, &how);
        CHECK(first_difference(a.w, c.w) >= 0, "AdamW does not see part %d", part);
        arrays_free(mark, "parts of AdamW");
    }
}

static void check_float64(void) {
    for (int d = 0; d < device_count; d += device_step) {
        int mark = array_count, n = 60;
        backend* b = devices[d];
        const float* hyper = fixture_floats("adamw", "hyper");
        tensor w = fixture_matrix("adamw", "w", 1, 0), g = fixture_matrix("adamw", "g", 5, 0);
        tensor m = vector_new(n), v = vector_new(n);
        adamw_step how = {hyper[0], hyper[1], hyper[2],     hyper[3], hyper[4], 0,
                          0,        1,        &FORMAT_FP32, 0,        0};
        set_zero(m);
        set_zero(v);
        for (int t = 0; t < 5; t++) {
            how.correction1 = (float)(1 - pow(how.beta1, t + 1));
            how.correction2 = (float)(1 - pow(how.beta2, t + 1));
            b->adamw(b, w.data, m.data, v.data, row_at(g, t), n, 0, &how);
        }
        check_fixture(w, "adamw", "after", b);
        check_fixture(m, "adamw", "m", b);
        check_fixture(v, "adamw", "v", b);
        arrays_free(mark, "AdamW against float64");
    }
}

int main(void) {
    devices_open();
    check_cast();
    check_add();
    check_sum_squares();
    check_not_finite();
    check_adamw();
    check_adamw_parts();
    check_float64();
    fixtures_close();
    devices_close();
    return test_report();
}
