// Products with a weight: forward, and backward to the input and to the weight. See cpu_test.h for
// the method.
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "cpu_test.h"

typedef struct shape {
    int m, n, k;  // rows, outputs, inputs
} shape;

// What is rounded where. `in` is the format that input and gradient have when they come.
typedef struct formats {
    const format *in, *operand, *backward, *out;
    linear_plan plan;
} formats;

static const formats FORMAT_ROWS[] = {
    {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32, {0}},
    {&FORMAT_FP32, &FORMAT_TF32, &FORMAT_TF32, &FORMAT_FP32, {0}},
    {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16, {0}},
    {&FORMAT_FP16, &FORMAT_FP16, &FORMAT_FP16, &FORMAT_FP16, {0}},
    {&FORMAT_BF16, &FORMAT_E4M3, &FORMAT_BF16, &FORMAT_BF16, {0}},
    {&FORMAT_BF16, &FORMAT_E5M2, &FORMAT_BF16, &FORMAT_BF16, {0}},
    // Not rows of the contract's table: every rounding point has work to do.
    {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16, &FORMAT_TF32, {0}},
    {&FORMAT_FP32, &FORMAT_E4M3, &FORMAT_TF32, &FORMAT_FP16, {0}},
};
enum { FORMAT_ROW_COUNT = sizeof FORMAT_ROWS / sizeof *FORMAT_ROWS };

// ------------------------------------------------------------------------------------------------
// Naive versions; f[] names the format of each rounding point.

enum { IN, WEIGHT, OUT, POINTS };

static const linear_plan USUAL;

static tensor transposed(tensor from) {
    tensor to = matrix_new(from.cols, from.rows, from.format);
    for (int r = 0; r < from.rows; r++)
        for (int c = 0; c < from.cols; c++) row_at(to, c)[r] = row_at(from, r)[c];
    return to;
}

// Operands with a scale a column, or with one for all.
static tensor operands_along(tensor from, const format* f, int per_tensor) {
    if (!per_tensor) return transposed(operands_of(transposed(from), f));
    tensor all = vector_new(from.rows * from.cols),
           to = matrix_new(from.rows, from.cols, all.format);
    for (int i = 0; i < all.cols; i++)
        row_at(all, 0)[i] = row_at(from, i / from.cols)[i % from.cols];
    all = operands_of(all, f);
    for (int i = 0; i < all.cols; i++) row_at(to, i / from.cols)[i % from.cols] = row_at(all, 0)[i];
    return to;
}

static tensor operands_across(tensor from, const format* f, int per_tensor) {
    return per_tensor ? operands_along(from, f, 1) : operands_of(from, f);
}

// The sum over k in equal parts.
static float split_chain(const float* a, const float* b, int n, int parts) {
    float sum = 0;
    for (int p = 0, k = 0, end; p < parts; p++, k = end) {
        end = n * (p + 1) / parts;
        float part = block_chain(a + k, 1, b + k, 1, end - k);
        sum = p ? sum + part : part;
    }
    return sum;
}

static void naive_forward(tensor out, tensor in, tensor w, const float* bias,
                          const format* const f[POINTS], const linear_plan* plan) {
    tensor a = operands_across(in, f[IN], plan->activation_per_tensor);
    tensor b = operands_across(w, f[WEIGHT], plan->weight_per_tensor);
    int parts = plan->split_k < 1 ? 1 : plan->split_k > in.cols ? in.cols : plan->split_k;
    for (int i = 0; i < out.rows; i++)
        for (int j = 0; j < out.cols; j++) {
            float sum = split_chain(row_at(a, i), row_at(b, j), in.cols, parts);
            row_at(out, i)[j] = format_round(bias ? sum + bias[j] : sum, f[OUT]);
        }
}

// The weight's scales do not vary along what is summed over: the outputs.
static void naive_backward_input(tensor din, tensor dout, tensor w, const format* const f[POINTS],
                                 const linear_plan* plan) {
    tensor a = operands_across(dout, f[IN], plan->activation_per_tensor);
    tensor b = operands_along(w, f[WEIGHT], plan->weight_per_tensor);
    for (int i = 0; i < din.rows; i++)
        for (int j = 0; j < din.cols; j++) {
            float sum = block_chain(row_at(a, i), 1, (float*)b.data + j, b.stride, dout.cols);
            row_at(din, i)[j] = format_round(sum, f[OUT]);
        }
}

// Without k-blocks: the chains go on from what dw and dbias hold. OUT has no part in it. Scales do
// not vary along the rows.
static void naive_backward_weight(tensor dw, tensor dbias, tensor dout, tensor in,
                                  const format* const f[POINTS], const linear_plan* plan) {
    tensor a = operands_along(dout, f[IN], plan->activation_per_tensor);
    tensor b = operands_along(in, f[WEIGHT], plan->activation_per_tensor);
    for (int i = 0; i < dw.rows; i++)
        for (int j = 0; j < dw.cols; j++)
            row_at(dw, i)[j] = chain(row_at(dw, i)[j], (float*)a.data + i, a.stride,
                                     (float*)b.data + j, b.stride, dout.rows);
    for (int r = 0; r < dout.rows; r++)
        for (int j = 0; j < dout.cols; j++) row_at(dbias, 0)[j] += row_at(dout, r)[j];
}

// ------------------------------------------------------------------------------------------------
// One shape in one row of formats

typedef struct product_case {
    formats f;
    shape s;
    tensor in, w, bias, dout, out, din, dw, dbias;
} product_case;

static product_case case_new(shape s, formats f) {
    product_case p = {.f = f, .s = s};
    p.in = matrix_random(s.m, s.k, f.in);
    p.w = weight_random(s.n, s.k);
    p.bias = vector_random(s.n);
    p.dout = matrix_random(s.m, s.n, f.in);
    p.out = matrix_new(s.m, s.n, f.out);
    p.din = matrix_new(s.m, s.k, f.out);
    p.dw = weight_random(s.n, s.k);
    p.dbias = vector_random(s.n);
    return p;
}

static void check_case(shape s, formats f, int first_device, int step) {
    int mark = array_count;
    const char* what = text("matmul m %d n %d k %d, %s in %s, out %s", s.m, s.n, s.k,
                            f.operand->name, f.in->name, f.out->name);
    product_case p = case_new(s, f);
    tensor out = matrix_copy(p.out), plain = matrix_copy(p.out), din = matrix_copy(p.din);
    tensor dw = matrix_copy(p.dw), dbias = matrix_copy(p.dbias);
    const format* const forward[POINTS] = {f.operand, f.operand, f.out};
    const format* const backward[POINTS] = {f.plan.gradient ? f.plan.gradient : f.backward,
                                            f.backward, f.out};
    naive_forward(out, p.in, p.w, p.bias.data, forward, &f.plan);
    naive_forward(plain, p.in, p.w, NULL, forward, &f.plan);
    naive_backward_input(din, p.dout, p.w, backward, &f.plan);
    naive_backward_weight(dw, dbias, p.dout, p.in, backward, &f.plan);
    for (int d = first_device; d < device_count; d += step) {
        backend* b = devices[d];
        int inner = array_count;
        tensor got_out = matrix_new(s.m, s.n, f.out), got_plain = matrix_new(s.m, s.n, f.out);
        tensor got_din = matrix_new(s.m, s.k, f.out);
        tensor got_dw = matrix_copy(p.dw), got_dbias = matrix_copy(p.dbias);
        prepared* w = memcmp(&f.plan, &USUAL, sizeof USUAL) ? b->weight_plan(b, &f.plan) : NULL;
        w = b->weight_prepare(b, w, p.w.data, s.n, s.k, f.operand, f.backward);
        b->matmul_forward(b, got_out, p.in, w, p.bias.data);
        b->matmul_forward(b, got_plain, p.in, w, NULL);
        b->matmul_backward_input(b, got_din, p.dout, w);
        b->matmul_backward_weight(b, got_dw.data, got_dbias.data, p.dout, p.in, w);
        b->weight_release(b, w);
        check_same(got_out, out, "out", what, b);
        check_same(got_plain, plain, "out without bias", what, b);
        check_same(got_din, din, "din", what, b);
        check_same(got_dw, dw, "dw", what, b);
        check_same(got_dbias, dbias, "dbias", what, b);
        arrays_free(inner, what);
    }
    arrays_free(mark, what);
}

// Tile heights, panels, k-blocks: every number of rows up to 40 at random widths, then edges.
static void check_shapes(void) {
    static const shape edges[] = {{1, 1, 1},     {1, 64, 600},   {2, 15, 255},   {3, 16, 256},
                                  {5, 17, 257},  {13, 31, 511},  {14, 32, 512},  {15, 33, 513},
                                  {29, 96, 40},  {7, 600, 3},    {41, 97, 300},  {100, 257, 20},
                                  {169, 65, 33}, {337, 20, 17},  {300, 5, 270},  {600, 3, 9},
                                  {9, 300, 290}, {290, 290, 30}, {30, 70, 1021}, {300, 800, 12},
                                  {6, 600, 800}, {290, 40, 290}, {19, 300, 1021}};
    for (int m = 1; m <= 40; m++) {
        shape s = {m, random_between(1, 70), random_between(1, m % 4 ? 120 : 600)};
        check_case(s, FORMAT_ROWS[0], device_next(), device_step);
    }
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        check_case(edges[i], FORMAT_ROWS[0], device_next(), device_step);
    check_case((shape){70, 200, 270}, FORMAT_ROWS[0], 0, 1);
}

static void check_formats(void) {
    for (int f = 1; f < FORMAT_ROW_COUNT; f++) {
        check_case((shape){17, 35, 270}, FORMAT_ROWS[f], device_next(), device_step);
        check_case((shape){1, 16, 5}, FORMAT_ROWS[f], device_next(), device_step);
    }
}

// Leaving out one rounding point changes bits, so the equalities above see each of them.
static void check_rounding_points(void) {
    int mark = array_count;
    for (int i = FORMAT_ROW_COUNT - 2; i < FORMAT_ROW_COUNT; i++) {
        product_case p = case_new((shape){6, 7, 30}, FORMAT_ROWS[i]);
        for (int off = 0; off < POINTS; off++) {
            const format* f[POINTS] = {p.f.operand, p.f.operand, p.f.out};
            const format* g[POINTS] = {p.f.backward, p.f.backward, p.f.out};
            tensor out = matrix_copy(p.out), din = matrix_copy(p.din);
            tensor dw = matrix_copy(p.dw), dbias = matrix_copy(p.dbias), dw_start = p.dw;
            naive_forward(p.out, p.in, p.w, p.bias.data, f, &USUAL);
            naive_backward_input(p.din, p.dout, p.w, g, &USUAL);
            f[off] = g[off] = &FORMAT_FP32;
            naive_forward(out, p.in, p.w, p.bias.data, f, &USUAL);
            naive_backward_input(din, p.dout, p.w, g, &USUAL);
            CHECK(first_difference(out, p.out) >= 0, "matmul forward, point %d", off);
            CHECK(first_difference(din, p.din) >= 0, "matmul backward to input, point %d", off);
            if (off == OUT) continue;
            naive_backward_weight(dw, dbias, p.dout, p.in, g, &USUAL);
            g[off] = p.f.backward;
            tensor full = matrix_copy(dw_start);
            naive_backward_weight(full, dbias, p.dout, p.in, g, &USUAL);
            CHECK(first_difference(dw, full) >= 0, "matmul backward to weight, point %d", off);
        }
    }
    arrays_free(mark, "rounding points of matmul");
}

// Plans: fp8 backward, scales per tensor, gradients of their own format, split sums.
static formats plan_row(const char* in, const char* operand, const char* backward, const char* out,
                        const char* gradient, int weight, int activation, int split_k) {
    formats f = {format_find(in),
                 format_find(operand),
                 format_find(backward),
                 format_find(out),
                 {gradient ? format_find(gradient) : NULL, weight, activation, split_k}};
    return f;
}

static void check_plans(void) {
    const formats rows[] = {
        plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "bf16", "fp8_e5m2", 0, 0, 0),
        plan_row("bf16", "fp8_e5m2", "fp8_e5m2", "fp32", NULL, 0, 0, 1),
        plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "bf16", "fp8_e5m2", 1, 1, 0),
        plan_row("bf16", "fp8_e4m3", "bf16", "bf16", NULL, 1, 0, 0),
        plan_row("bf16", "fp8_e4m3", "bf16", "bf16", NULL, 0, 1, 0),
        plan_row("bf16", "bf16", "bf16", "bf16", "fp8_e5m2", 0, 0, 0),
        plan_row("fp32", "tf32", "tf32", "fp32", "bf16", 0, 0, 2),
        plan_row("fp32", "fp32", "fp32", "fp32", NULL, 0, 0, 3),
        plan_row("fp16", "fp16", "fp16", "fp16", NULL, 0, 0, 1000),
        plan_row("bf16", "e3m4", "e3m4", "bf16", "e2m3", 0, 1, 4),
        plan_row("e5m7", "e5m7", "e5m7", "e5m7", NULL, 0, 0, 0),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_case((shape){17, 35, 270}, rows[i], device_next(), device_step);
        check_case((shape){41, 70, 600}, rows[i], device_next(), device_step);
        check_case((shape){1, 16, 5}, rows[i], device_next(), device_step);
    }
}

// Each part of a plan changes bits, so the equalities above see it; and so would scales along the
// other axis.
static void check_plan_points(void) {
    int mark = array_count;
    formats f = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "fp32", "fp8_e5m2", 0, 0, 0);
    product_case p = case_new((shape){30, 31, 300}, f);
    const format* const forward[POINTS] = {f.operand, f.operand, f.out};
    const format* const backward[POINTS] = {f.plan.gradient, f.backward, f.out};
    const format* const same[POINTS] = {f.backward, f.backward, f.out};
    linear_plan plans[] = {{NULL, 0, 0, 0}, {NULL, 1, 0, 0}, {NULL, 0, 1, 0}, {NULL, 0, 0, 2}};
    tensor out[4], din[4], dw[4];
    for (int i = 0; i < 4; i++) {
        tensor dbias = matrix_copy(p.dbias);
        out[i] = matrix_copy(p.out), din[i] = matrix_copy(p.din), dw[i] = matrix_copy(p.dw);
        naive_forward(out[i], p.in, p.w, NULL, forward, &plans[i]);
        naive_backward_input(din[i], p.dout, p.w, backward, &plans[i]);
        naive_backward_weight(dw[i], dbias, p.dout, p.in, backward, &plans[i]);
    }
    for (int i = 1; i < 4; i++) {
        CHECK(first_difference(out[i], out[0]) >= 0, "forward, plan %d", i);
        CHECK((first_difference(din[i], din[0]) >= 0) == (i < 3), "backward to input, plan %d", i);
        CHECK((first_difference(dw[i], dw[0]) >= 0) == (i == 2), "backward to weight, plan %d", i);
    }
    naive_backward_input(din[1], p.dout, p.w, same, &plans[0]);
    CHECK(first_difference(din[1], din[0]) >= 0, "a gradient of its own format, to the input");
    tensor by_row = operands_of(p.in, f.backward), by_column = operands_along(p.in, f.backward, 0);
    CHECK(first_difference(by_row, by_column) >= 0, "scales of rows and of columns");
    arrays_free(mark, "plans of products");
}

// What fp8 products read of a gradient is values of its format times powers of two: a product with
// a unit matrix gives the operand itself, rows scaled alike backward to the input, columns backward
// to the weight.
static void check_scaled_values(tensor t, const format* f, const char* what, const backend* b) {
    int strange = 0, distinct = 0;
    for (int r = 0; r < t.rows; r++) {
        float amax = 0;
        for (int c = 0; c < t.cols; c++) amax = fmaxf(amax, fabsf(row_at(t, r)[c]));
        float scale = format_scale(amax, f);
        for (int c = 0; c < t.cols; c++) {
            float x = row_at(t, r)[c] / scale;
            strange += !same_bits(format_round(x, f), x);
            distinct += x != 0;
        }
    }
    CHECK(strange == 0 && distinct > t.rows * t.cols / 2, "%s: %d values are not %s's (%s)", what,
          strange, f->name, b->name);
}

static void check_gradient_values(void) {
    int mark = array_count, n = 33;
    formats f = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "fp32", "fp8_e5m2", 0, 0, 0);
    for (int d = 0; d < device_count; d += device_step) {
        backend* b = devices[d];
        product_case p = case_new((shape){n, n, n}, f);
        set_zero(p.w);
        set_zero(p.in);
        set_zero(p.dw);
        for (int i = 0; i < n; i++) row_at(p.w, i)[i] = row_at(p.in, i)[i] = 1;
        prepared* w =
            b->weight_prepare(b, b->weight_plan(b, &f.plan), p.w.data, n, n, f.operand, f.backward);
        b->matmul_backward_input(b, p.din, p.dout, w);
        b->matmul_backward_weight(b, p.dw.data, p.dbias.data, p.dout, p.in, w);
        b->weight_release(b, w);
        check_scaled_values(p.din, f.plan.gradient, "backward to the input", b);
        check_scaled_values(p.dw, f.plan.gradient, "backward to the weight", b);
    }
    arrays_free(mark, "values of a gradient");
}

// Micro-batches leave no trace in a weight's gradient (N5).
static void check_splits(void) {
    int mark = array_count;
    product_case p = case_new((shape){300, 21, 37}, FORMAT_ROWS[0]);
    const format* const f[POINTS] = {&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32};
    tensor dw = matrix_copy(p.dw), dbias = matrix_copy(p.dbias);
    naive_backward_weight(dw, dbias, p.dout, p.in, f, &USUAL);
    for (int d = 0; d < device_count; d++) {
        backend* b = devices[d];
        prepared* w = b->weight_prepare(b, NULL, p.w.data, 21, 37, &FORMAT_FP32, &FORMAT_FP32);
        tensor got_dw = matrix_copy(p.dw), got_dbias = matrix_copy(p.dbias);
        for (int first = 0, n; first < p.s.m; first += n) {
            n = random_between(1, d % 2 ? 7 : 120);
            if (n > p.s.m - first) n = p.s.m - first;
            b->matmul_backward_weight(b, got_dw.data, got_dbias.data, rows_of(p.dout, first, n),
                                      rows_of(p.in, first, n), w);
        }
        b->weight_release(b, w);
        check_same(got_dw, dw, "dw", "matmul in micro-batches", b);
        check_same(got_dbias, dbias, "dbias", "matmul in micro-batches", b);
    }
    arrays_free(mark, "matmul in micro-batches");
}

// With fp8 gradients they leave none either in values that are normal beside their column's
// largest; but in smaller ones they do.
static void check_scaled_splits(void) {
    formats f = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "fp32", "fp8_e5m2", 0, 0, 0);
    backend* b = devices[device_next()];
    for (int small = 0; small < 2; small++) {
        int mark = array_count;
        product_case p = case_new((shape){60, 21, 37}, f);
        for (int r = 0; r < 60 && !small; r++) {
            for (int j = 0; j < 21; j++)
                row_at(p.dout, r)[j] = ldexpf(1 + (float)random_below(128) / 128, random_below(8));
            for (int j = 0; j < 37; j++)
                row_at(p.in, r)[j] = -ldexpf(1 + (float)random_below(128) / 128, random_below(8));
        }
        tensor parts = matrix_copy(p.dw), parts_bias = matrix_copy(p.dbias);
        prepared* w = b->weight_prepare(b, b->weight_plan(b, &f.plan), p.w.data, 21, 37, f.operand,
                                        f.backward);
        b->matmul_backward_weight(b, p.dw.data, p.dbias.data, p.dout, p.in, w);
        for (int first = 0; first < 60; first += 20)
            b->matmul_backward_weight(b, parts.data, parts_bias.data, rows_of(p.dout, first, 20),
                                      rows_of(p.in, first, 20), w);
        b->weight_release(b, w);
        CHECK((first_difference(parts, p.dw) >= 0) == small, "fp8 in parts, small values: %d",
              small);
        arrays_free(mark, "fp8 products in parts");
    }
}

// Preparing again takes the new weight, for all products; release gives back all memory.
static void check_prepared_again(backend* b, formats f) {
    int mark = array_count;
    product_case p = case_new((shape){3, 19, 40}, f);
    size_t before = b->allocated;
    const format* const forward[POINTS] = {f.operand, f.operand, f.out};
    const format* const backward[POINTS] = {f.backward, f.backward, f.out};
    tensor first = weight_random(19, 40);
    prepared* w = b->weight_prepare(b, NULL, first.data, 19, 40, &FORMAT_FP32, &FORMAT_FP32);
    b->weight_prepare(b, w, first.data, 19, 40, f.operand, f.backward);
    prepared* again = b->weight_prepare(b, w, p.w.data, 19, 40, f.operand, f.backward);
    CHECK(again == w, "another weight (%s)", b->name);
    tensor out = matrix_copy(p.out), din = matrix_copy(p.din);
    naive_forward(out, p.in, p.w, p.bias.data, forward, &USUAL);
    naive_backward_input(din, p.dout, p.w, backward, &USUAL);
    b->matmul_forward(b, p.out, p.in, again, p.bias.data);
    b->matmul_backward_input(b, p.din, p.dout, again);
    check_same(p.out, out, "out", "a weight prepared again", b);
    check_same(p.din, din, "din", "a weight prepared again", b);
    size_t held = b->allocated;
    b->weight_release(b, again);
    CHECK(b->allocated < held && b->allocated >= before, "%zu, %zu, %zu bytes (%s)", before, held,
          b->allocated, b->name);
    arrays_free(mark, "a weight prepared again");
}

static void check_prepare_again(void) {
    formats fp8 = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "bf16", NULL, 0, 0, 0);
    for (int d = 0; d < device_count; d += device_step) {
        check_prepared_again(devices[d], FORMAT_ROWS[6]);
        check_prepared_again(devices[d], fp8);  // with a copy for backward
    }
}

// A row alone, then among others: the contract's N1 said directly.
static void check_rows_alone(void) {
    int mark = array_count;
    for (int d = 0; d < device_count; d++) {
        backend* b = devices[d];
        formats f = FORMAT_ROWS[d % FORMAT_ROW_COUNT];
        product_case p = case_new((shape){37, 40, 260}, f);
        tensor one = matrix_new(1, 40, f.out);
        prepared* w = b->weight_prepare(b, NULL, p.w.data, 40, 260, f.operand, f.backward);
        b->matmul_forward(b, p.out, p.in, w, p.bias.data);
        for (int r = 0; r < 37; r += 4) {
            b->matmul_forward(b, one, rows_of(p.in, r, 1), w, p.bias.data);
            check_same(one, rows_of(p.out, r, 1), "out", text("row %d alone", r), b);
        }
        b->weight_release(b, w);
    }
    arrays_free(mark, "a row alone");
}

// ------------------------------------------------------------------------------------------------
// Against float64, and finite differences

// A matrix whose last element is the last of a page, before one that must not be touched.
typedef struct fenced {
    tensor t;
    void* memory;
    size_t bytes;
} fenced;

static fenced fenced_random(int rows, int cols) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (size_t)rows * cols * sizeof(float);
    fenced f = {.bytes = (used + page - 1) / page * page + page};
    f.memory = mmap(NULL, f.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* end = (char*)f.memory + f.bytes - page;
    if (f.memory == MAP_FAILED || mprotect(end, page, PROT_NONE))
        fatal("a test has no memory with a fence");
    f.t = (tensor){end - used, rows, cols, cols, &FORMAT_FP32};
    fill(f.t);
    return f;
}

// Nothing reads or writes beyond a matrix, whatever is left over of tiles, panels and vectors: all
// heights up to more than a tile, and some of more than a block, at widths of few panels and of
// many. A fault ends the program.
static void check_fences(void) {
    static const int widths[] = {1, 16, 33, 257, 289, 300}, blocks[] = {81, 121, 283};
    for (int d = 0; d < device_count; d += device_step)
        for (int i = 0; i < 6; i++)
            for (int h = 1; h <= 37; h += i < 3 || h > 33 ? 1 : 3) {
                backend* b = devices[d];
                int rows = 5, inputs = widths[i], height = h <= 34 ? h : blocks[h - 35];
                fenced in = fenced_random(rows, inputs), w = fenced_random(height, inputs);
                fenced out = fenced_random(rows, height), dw = fenced_random(height, inputs);
                fenced bias = fenced_random(1, height);
                prepared* p = b->weight_prepare(b, NULL, w.t.data, height, inputs, &FORMAT_FP32,
                                                &FORMAT_FP32);
                b->matmul_forward(b, out.t, in.t, p, bias.t.data);
                b->matmul_backward_weight(b, dw.t.data, bias.t.data, out.t, in.t, p);
                b->matmul_backward_input(b, in.t, out.t, p);
                b->weight_release(b, p);
                const fenced* all[] = {&in, &w, &out, &dw, &bias};
                for (int k = 0; k < 5; k++) munmap(all[k]->memory, all[k]->bytes);
            }
}

static void check_float64(void) {
    int mark = array_count;
    for (int d = 0; d < device_count; d += device_step) {
        backend* b = devices[d];
        tensor in = fixture_matrix("linear", "in", 5, 3),
               dout = fixture_matrix("linear", "dout", 5, 3);
        tensor w = fixture_matrix("linear", "w", 7, 0);
        tensor out = matrix_new(5, 7, &FORMAT_FP32), din = matrix_new(5, 270, &FORMAT_FP32);
        tensor dw = array_new(7, 270, 0, &FORMAT_FP32), dbias = vector_new(7);
        set_zero(dw);
        set_zero(dbias);
        prepared* p = b->weight_prepare(b, NULL, w.data, 7, 270, &FORMAT_FP32, &FORMAT_FP32);
        b->matmul_forward(b, out, in, p, fixture_floats("linear", "bias"));
        b->matmul_backward_input(b, din, dout, p);
        b->matmul_backward_weight(b, dw.data, dbias.data, dout, in, p);
        b->weight_release(b, p);
        check_fixture(out, "linear", "out", b);
        check_fixture(din, "linear", "din", b);
        check_fixture(dw, "linear", "dw", b);
        check_fixture(dbias, "linear", "dbias", b);
    }
    arrays_free(mark, "matmul against float64");
}

typedef struct slope_case {
    backend* b;
    tensor in, w, bias, weight, out;
} slope_case;

static double forward_loss(const void* context, double* size) {
    const slope_case* s = context;
    prepared* p = s->b->weight_prepare(s->b, NULL, s->w.data, s->w.rows, s->w.cols, &FORMAT_FP32,
                                       &FORMAT_FP32);
    s->b->matmul_forward(s->b, s->out, s->in, p, s->bias.data);
    s->b->weight_release(s->b, p);
    return weighted_sum(s->out, s->weight, size);
}

static void check_differences(void) {
    int mark = array_count, m = 5, n = 9, k = 21;
    backend* b = devices[device_count - device_step];
    slope_case s = {b,
                    matrix_grid(m, k),
                    weight_grid(n, k),
                    weight_grid(1, n),
                    matrix_grid(m, n),
                    matrix_new(m, n, &FORMAT_FP32)};
    tensor din = matrix_new(m, k, &FORMAT_FP32), dw = array_new(n, k, 0, &FORMAT_FP32);
    tensor dbias = vector_new(n);
    set_zero(dw);
    set_zero(dbias);
    prepared* p = b->weight_prepare(b, NULL, s.w.data, n, k, &FORMAT_FP32, &FORMAT_FP32);
    b->matmul_backward_input(b, din, s.weight, p);
    b->matmul_backward_weight(b, dw.data, dbias.data, s.weight, s.in, p);
    b->weight_release(b, p);
    double roundings = k + 1;  // of one output
    check_slopes(s.in, din, forward_loss, &s, roundings, "slope of matmul by its input");
    check_slopes(s.w, dw, forward_loss, &s, roundings, "slope of matmul by its weight");
    check_slopes(s.bias, dbias, forward_loss, &s, roundings, "slope of matmul by its bias");
    arrays_free(mark, "differences of matmul");
}

int main(void) {
    devices_open();
    check_shapes();
    check_formats();
    check_rounding_points();
    check_plans();
    check_plan_points();
    check_gradient_values();
    check_splits();
    check_scaled_splits();
    check_prepare_again();
    check_rows_alone();
    check_fences();
    check_float64();
    check_differences();
    fixtures_close();
    devices_close();
    return test_report();
}
