// What the optimizer does with whole arrays: rounding, adding, the sum of squares, AdamW. See
// op_test.h for the method; a row is an element here.
#include "op_test.h"

static const int COUNTS[] = {1, 2, 15, 16, 17, 100, 4095, 4096, 4097, 10000};
enum { COUNT_COUNT = sizeof COUNTS / sizeof *COUNTS };

// ------------------------------------------------------------------------------------------------
// Rounding and adding

enum { ROUNDED, SUM, ARRAY_RESULTS };
static const char* const ARRAY_NAMES[] = {"to", "sum"};

static void run_arrays(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const float* from = (const float*)inputs + first;
    b->cast(b, (float*)r[ROUNDED].data + first, from, n, r[ROUNDED].format);
    b->add(b, (float*)r[SUM].data + first, from, n);
}

static void check_arrays(void) {
    for (int i = 0; i < COUNT_COUNT; i++)
        for (int f = 0; FORMATS[f]; f++) {
            int mark = array_count, n = COUNTS[i];
            float* from = floats_random(n);
            op_case o = {text("%d elements to %s", n, FORMATS[f]->name),
                         run_arrays,
                         from,
                         n,
                         0,
                         ARRAY_RESULTS,
                         ARRAY_NAMES,
                         {vector_new(n), vector_random(n)}};
            o.results[ROUNDED].format = FORMATS[f];
            for (int j = 0; j < n && i % 2; j++) {  // subnormal: no thread may flush them
                from[j] *= 0x1p-130f;
                row_at(o.results[SUM], 0)[j] *= 0x1p-130f;
            }
            check_case(&o);
            if (n > 10 && !(i % 2)) check_formats_show(&o);
            int wrong = 0;
            for (int j = 0; j < n; j++) {  // what these ops are, on the plain device
                float sum = row_at(o.results[SUM], 0)[j] + from[j];
                run_arrays(plain_device, from, o.results, j, 1);
                wrong += !same_bits(row_at(o.results[SUM], 0)[j], sum);
                wrong +=
                    !same_bits(row_at(o.results[ROUNDED], 0)[j], format_round(from[j], FORMATS[f]));
            }
            CHECK(wrong == 0, "%s: %d of the plain device are wrong", o.what, wrong);
            arrays_free(mark, o.what);
        }
}

// ------------------------------------------------------------------------------------------------
// Sum of squares

static void check_sum_squares(void) {
    for (int i = 0; i < COUNT_COUNT + 1; i++) {
        int mark = array_count, n = i < COUNT_COUNT ? COUNTS[i] : 70001;
        float* x = floats_random(n);
        for (int j = 0; j < n; j++) x[j] *= (float)(1 << random_below(20));
        double expected = square_sum(plain_device, x, n), in_order = 0;
        for (int j = 0; j < n; j++) in_order += (double)x[j] * x[j];
        // Each order errs by less than one rounding a term of the sum, at most; usually far less.
        CHECK_NEAR(expected, in_order, n * 0x1p-53 * in_order, "the plain sum of squares");
        for (int d = device_next(); d < device_count; d += device_step) {
            double sum = square_sum(devices[d], x, n);
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
    for (int d = 0; d <= device_count; d += device_step) {
        backend* b = devices[d];
        for (int i = 0; i < 5; i++) {
            float kept = x[places[i]];
            x[places[i]] = 0x1.fffffep127f;
            CHECK(isfinite(square_sum(b, x, n)), "the largest float at %d", places[i]);
            x[places[i]] = -INFINITY;
            CHECK(isinf(square_sum(b, x, n)), "infinity at %d (%s)", places[i], b->name);
            x[places[i]] = NAN;
            CHECK(isnan(square_sum(b, x, n)), "NaN at %d (%s)", places[i], b->name);
            x[places[i]] = kept;
        }
        CHECK(square_sum(b, x, 0) == 0, "the sum of nothing (%s)", b->name);
    }
    arrays_free(mark, "sum of squares");
}

// ------------------------------------------------------------------------------------------------
// AdamW

typedef struct adamw_inputs {
    size_t first;
    const float* g;
    adamw_step how;
} adamw_inputs;

enum { W, M, V, ADAMW_RESULTS };
static const char* const ADAMW_NAMES[] = {"w", "m", "v"};

static void run_adamw(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const adamw_inputs* c = inputs;
    b->adamw(b, (float*)r[W].data + first, (float*)r[M].data + first, (float*)r[V].data + first,
             c->g + first, n, c->first + first, &c->how);
}

static op_case adamw_case(const adamw_inputs* c, int n) {
    op_case o = {"AdamW", run_adamw, c, n, 0, ADAMW_RESULTS, ADAMW_NAMES, {{0}}};
    for (int i = 0; i < ADAMW_RESULTS; i++) o.results[i] = vector_random(n);
    o.results[W].format = c->how.format;
    for (int j = 0; j < n; j++) {
        row_at(o.results[W], 0)[j] = format_round(row_at(o.results[W], 0)[j], c->how.format);
        row_at(o.results[V], 0)[j] *= row_at(o.results[V], 0)[j];
    }
    return o;
}

static void check_adamw_case(int n, size_t first, const format* f) {
    int mark = array_count;
    adamw_inputs c = {first, floats_random(n), adamw_step_to(f)};
    op_case o = adamw_case(&c, n);
    o.what = text("AdamW of %d from %zu on, %s", n, first, f->name);
    check_case(&o);
    arrays_free(mark, o.what);
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
        adamw_inputs c = {7, floats_random(50),
                          adamw_step_to(rounding ? &FORMAT_BF16 : &FORMAT_FP32)};
        adamw_step* how = &c.how;
        float* parts[] = {&how->lr,          &how->beta1,         &how->beta2,
                          &how->eps,         &how->weight_decay,  &how->correction1,
                          &how->correction2, &how->gradient_scale};
        op_case o = adamw_case(&c, 50);
        tensor changed[RESULTS_MAX];
        results_copy(changed, &o);
        run_adamw(plain_device, &c, o.results, 0, 50);
        if (!rounding) *parts[part] *= 1.01f;
        if (part == 8) how->format = &FORMAT_FP32;
        if (part == 9) how->seed += 1ull << 32;
        if (part == 10) how->step++;
        if (part == 11) c.first++;
        run_adamw(plain_device, &c, changed, 0, 50);
        CHECK(first_difference(changed[W], o.results[W]) >= 0, "AdamW does not see part %d", part);
        arrays_free(mark, "parts of AdamW");
    }
}

// A weight is rounded to one of its two neighbours in the format, and on average to itself.
static void check_stochastic_rounding(void) {
    int mark = array_count, n = 20000;
    adamw_inputs c = {7, floats_random(n), adamw_step_to(&FORMAT_FP32)}, narrow = c;
    op_case o = adamw_case(&c, n);
    tensor r[RESULTS_MAX];
    results_copy(r, &o);
    narrow.how.format = &FORMAT_BF16;
    run_adamw(plain_device, &c, o.results, 0, n);
    run_adamw(plain_device, &narrow, r, 0, n);
    double drift = 0;
    int far = 0;
    for (int j = 0; j < n; j++) {
        float exact = row_at(o.results[W], 0)[j], rounded = row_at(r[W], 0)[j];
        float unit = ldexpf(1, ilogbf(exact) - 7);  // the spacing of bf16 there
        far += fabsf(rounded - exact) >= unit;
        drift += exact == 0 ? 0 : (double)(rounded - exact) / unit;
    }
    CHECK(far == 0, "%d weights are not rounded to a neighbour", far);
    // The deviation of one is at most 1/2: four of those of the mean.
    CHECK(fabs(drift / n) < 4 * 0.5 / sqrt(n), "rounding drifts by %g units", drift / n);
    arrays_free(mark, "stochastic rounding");
}

static void check_float64(void) {
    for (int d = 0; d <= device_count; d += device_step) {
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
    check_arrays();
    check_sum_squares();
    check_not_finite();
    check_adamw();
    check_adamw_parts();
    check_stochastic_rounding();
    check_float64();
    fixtures_close();
    devices_close();
    return test_report();
}
