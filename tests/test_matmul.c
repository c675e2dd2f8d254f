// Products with a weight: forward, and backward to the input and to the weight. See op_test.h for
// the method.
#include <sys/mman.h>
#include <unistd.h>

#include "op_test.h"

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
// One shape in one row of formats

static const linear_plan USUAL;

typedef struct product_inputs {
    formats f;
    shape s;
    tensor in, w, bias, dout;
} product_inputs;

enum { OUT, OUT_PLAIN, DIN, DW, DBIAS, DW_PLAIN, RESULTS };
static const char* const NAMES[] = {"out",   "out without bias", "din", "dw",
                                    "dbias", "dw without dbias"};

static prepared* prepare(backend* b, const formats* f, tensor w) {
    prepared* p = memcmp(&f->plan, &USUAL, sizeof USUAL) ? b->weight_plan(b, &f->plan) : NULL;
    return b->weight_prepare(b, p, w.data, w.rows, w.cols, f->operand, f->backward);
}

static void run_product(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const product_inputs* c = inputs;
    tensor in = rows_of(c->in, first, n), dout = rows_of(c->dout, first, n);
    prepared* w = prepare(b, &c->f, c->w);
    b->matmul_forward(b, rows_of(r[OUT], first, n), in, w, c->bias.data);
    b->matmul_forward(b, rows_of(r[OUT_PLAIN], first, n), in, w, NULL);
    b->matmul_backward_input(b, rows_of(r[DIN], first, n), dout, w);
    b->matmul_backward_weight(b, r[DW].data, r[DBIAS].data, dout, in, w);
    b->matmul_backward_weight(b, r[DW_PLAIN].data, NULL, dout, in, w);
    b->weight_release(b, w);
}

static product_inputs inputs_new(shape s, formats f) {
    return (product_inputs){f,
                            s,
                            matrix_random(s.m, s.k, f.in),
                            weight_random(s.n, s.k),
                            vector_random(s.n),
                            matrix_random(s.m, s.n, f.in)};
}

// Scales that the rows of a call share leave traces of how rows are cut into calls.
static op_case product_case(const product_inputs* c) {
    shape s = c->s;
    const formats* f = &c->f;
    const format* gradient = f->plan.gradient ? f->plan.gradient : f->backward;
    op_case o = {"matmul", run_product, c, s.m, 0, RESULTS, NAMES, {{0}}};
    o.whole = gradient->scaled || f->backward->scaled || f->plan.activation_per_tensor;
    o.results[OUT] = matrix_new(s.m, s.n, f->out);
    o.results[OUT_PLAIN] = matrix_new(s.m, s.n, f->out);
    o.results[DIN] = matrix_new(s.m, s.k, f->out);
    o.results[DW] = weight_random(s.n, s.k);
    o.results[DW_PLAIN] = matrix_copy(o.results[DW]);
    o.results[DBIAS] = vector_random(s.n);
    return o;
}

static void check_product_on(shape s, formats f, int first_device, int step) {
    int mark = array_count;
    product_inputs c = inputs_new(s, f);
    op_case o = product_case(&c);
    o.what = text("matmul m %d n %d k %d, %s in %s, out %s", s.m, s.n, s.k, f.operand->name,
                  f.in->name, f.out->name);
    check_case_on(&o, first_device, step);
    if (s.m == 17) check_formats_show(&o);
    arrays_free(mark, o.what);
}

static void check_product(shape s, formats f) {
    check_product_on(s, f, device_next(), device_step);
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
        check_product(s, FORMAT_ROWS[0]);
    }
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        check_product(edges[i], FORMAT_ROWS[0]);
    check_product_on((shape){70, 200, 270}, FORMAT_ROWS[0], 0, 1);
}

static void check_formats(void) {
    for (int f = 1; f < FORMAT_ROW_COUNT; f++) {
        check_product((shape){17, 35, 270}, FORMAT_ROWS[f]);
        check_product((shape){1, 16, 5}, FORMAT_ROWS[f]);
    }
}

// Weights so small that their scaled values need more than the upper half of an fp32 number, next
// to some that do not: no bit of them may be lost where packed weights are 16-bit numbers.
static void check_tiny_weights(void) {
    int mark = array_count, lost = 0;
    formats f = {&FORMAT_FP32, &FORMAT_E4M3, &FORMAT_BF16, &FORMAT_FP32, {0}};
    product_inputs c = inputs_new((shape){7, 40, 30}, f);
    for (int r = 0; r < 40; r++)
        for (int k = 0; k < 30; k++)
            row_at(c.w, r)[k] = ldexpf(row_at(c.w, r)[k], r % 3 ? -130 : 0);
    tensor operand = operands_of(c.w, f.operand);
    for (int r = 0; r < 40; r++)
        for (int k = 0; k < 30; k++) lost += (float_bits(row_at(operand, r)[k]) & 0xffff) != 0;
    CHECK(lost > 100, "%d weights need more than 16 bits", lost);
    for (int r = 0; r < 7; r++)
        for (int k = 0; k < 30; k++) row_at(c.in, r)[k] = ldexpf(row_at(c.in, r)[k], 90);
    op_case o = product_case(&c);
    check_case_on(&o, 0, 1);
    // The highest bit that 16-bit numbers lack, alone.
    for (int r = 0; r < 40; r++)
        for (int k = 0; k < 30; k++) row_at(c.w, r)[k] = (r + k) % 7 ? 0 : 0x1p-134f;
    check_case_on(&o, 0, 1);
    arrays_free(mark, "tiny weights");
}

// What a format is: the product of operands that the test has rounded, in fp32, then rounded.
static void check_operands(void) {
    for (int i = 1; i < FORMAT_ROW_COUNT; i++) {
        int mark = array_count;
        formats f = FORMAT_ROWS[i], exact = f;
        product_inputs c = inputs_new((shape){6, 7, 30}, f), rounded = c, gradient = c;
        exact.operand = exact.backward = &FORMAT_FP32;
        rounded.f = exact;
        rounded.in = operands_of(c.in, f.operand);
        rounded.w = matrix_copy(c.w);
        copy_values(rounded.w, operands_of(c.w, f.operand));
        gradient.f = exact;
        gradient.in = operands_of(c.in, f.backward);
        gradient.w = matrix_copy(c.w);
        copy_values(gradient.w, operands_of(c.w, f.backward));
        gradient.dout = operands_of(c.dout, f.backward);
        op_case o = product_case(&c);
        tensor r[3][RESULTS_MAX];
        for (int k = 0; k < 3; k++) {
            const product_inputs* p[] = {&c, &rounded, &gradient};
            results_copy(r[k], &o);
            run_product(plain_device, p[k], r[k], 0, 6);
        }
        check_same(r[0][OUT], r[1][OUT], "out", "operands rounded before", plain_device);
        check_same(r[0][DIN], r[2][DIN], "din", "operands rounded before", plain_device);
        check_same(r[0][DW], r[2][DW], "dw", "operands rounded before", plain_device);
        arrays_free(mark, "operands rounded before");
    }
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
        check_product((shape){17, 35, 270}, rows[i]);
        check_product((shape){41, 70, 600}, rows[i]);
        check_product((shape){1, 16, 5}, rows[i]);
    }
}

// Each part of a plan changes bits, so the equalities above see it; and so would scales along the
// other axis.
static void check_plan_points(void) {
    int mark = array_count;
    formats f = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "fp32", NULL, 0, 0, 0);
    product_inputs c = inputs_new((shape){30, 31, 300}, f);
    linear_plan plans[] = {{NULL, 0, 0, 0},
                           {NULL, 1, 0, 0},
                           {NULL, 0, 1, 0},
                           {NULL, 0, 0, 2},
                           {&FORMAT_E5M2, 0, 0, 0}};
    static const int changes[][3] = {{0, 0, 0}, {1, 1, 0}, {1, 1, 1}, {1, 0, 0}, {0, 1, 1}};
    op_case o = product_case(&c);
    tensor usual[RESULTS_MAX], r[RESULTS_MAX];
    results_copy(usual, &o);
    run_product(plain_device, &c, usual, 0, 30);
    for (int i = 0; i < 5; i++) {
        c.f.plan = plans[i];
        results_copy(r, &o);
        run_product(plain_device, &c, r, 0, 30);
        int changed[] = {first_difference(r[OUT], usual[OUT]) >= 0,
                         first_difference(r[DIN], usual[DIN]) >= 0,
                         first_difference(r[DW], usual[DW]) >= 0};
        for (int k = 0; k < 3; k++)
            CHECK(changed[k] == changes[i][k], "plan %d, %s: %d", i, NAMES[k ? k + 1 : 0],
                  changed[k]);
    }
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
    product_inputs c = inputs_new((shape){n, n, n}, f);
    set_zero(c.w);
    set_zero(c.in);
    for (int i = 0; i < n; i++) row_at(c.w, i)[i] = row_at(c.in, i)[i] = 1;
    for (int d = 0; d <= device_count; d += device_step) {
        op_case o = product_case(&c);
        set_zero(o.results[DW]);
        run_product(devices[d], &c, o.results, 0, n);
        check_scaled_values(o.results[DIN], f.plan.gradient, "backward to the input", devices[d]);
        check_scaled_values(o.results[DW], f.plan.gradient, "backward to the weight", devices[d]);
    }
    arrays_free(mark, "values of a gradient");
}

// With scaled gradients too, how rows are cut into calls does not change values that are normal
// next to their column's largest; it does change smaller ones.
static void check_scaled_splits(void) {
    formats f = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "fp32", "fp8_e5m2", 0, 0, 0);
    for (int small = 0; small < 2; small++) {
        int mark = array_count;
        backend* b = devices[device_next()];
        product_inputs c = inputs_new((shape){60, 21, 37}, f);
        for (int r = 0; r < 60 && !small; r++) {
            for (int j = 0; j < 21; j++)
                row_at(c.dout, r)[j] = ldexpf(1 + (float)random_below(128) / 128, random_below(8));
            for (int j = 0; j < 37; j++)
                row_at(c.in, r)[j] = -ldexpf(1 + (float)random_below(128) / 128, random_below(8));
        }
        op_case o = product_case(&c);
        tensor parts[RESULTS_MAX];
        results_copy(parts, &o);
        run_product(b, &c, o.results, 0, 60);
        for (int first = 0; first < 60; first += 20) run_product(b, &c, parts, first, 20);
        CHECK((first_difference(parts[DW], o.results[DW]) >= 0) == small,
              "fp8 in parts, small values: %d", small);
        arrays_free(mark, "fp8 products in parts");
    }
}

// Preparing again takes the new weight, for all products; release gives back all memory.
static void check_prepared_again(backend* b, formats f) {
    int mark = array_count;
    product_inputs c = inputs_new((shape){3, 19, 40}, f);
    op_case o = product_case(&c);
    const tensor* r = o.results;
    tensor expected[RESULTS_MAX], other = weight_random(19, 40);
    results_copy(expected, &o);
    run_product(plain_device, &c, expected, 0, 3);
    size_t before = b->allocated;
    prepared* w = b->weight_prepare(b, NULL, other.data, 19, 40, &FORMAT_FP32, &FORMAT_FP32);
    b->weight_prepare(b, w, other.data, 19, 40, f.operand, f.backward);
    prepared* again = b->weight_prepare(b, w, c.w.data, 19, 40, f.operand, f.backward);
    CHECK(again == w, "another weight (%s)", b->name);
    b->matmul_forward(b, r[OUT], c.in, again, c.bias.data);
    b->matmul_backward_input(b, r[DIN], c.dout, again);
    check_same(r[OUT], expected[OUT], "out", "a weight prepared again", b);
    check_same(r[DIN], expected[DIN], "din", "a weight prepared again", b);
    size_t held = b->allocated;
    b->weight_release(b, again);
    CHECK(b->allocated < held && b->allocated >= before, "%zu, %zu, %zu bytes (%s)", before, held,
          b->allocated, b->name);
    arrays_free(mark, "a weight prepared again");
}

static void check_prepare_again(void) {
    formats fp8 = plan_row("bf16", "fp8_e4m3", "fp8_e4m3", "bf16", NULL, 0, 0, 0);
    for (int d = 0; d <= device_count; d += device_step) {
        check_prepared_again(devices[d], FORMAT_ROWS[6]);
        check_prepared_again(devices[d], fp8);  // with a copy for backward
    }
}

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
    for (int d = 0; d <= device_count; d += device_step)
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

// Against float64, and finite differences.
static void check_known(backend* b) {
    int mark = array_count;
    product_inputs c = {FORMAT_ROWS[0],
                        {5, 7, 270},
                        fixture_matrix("linear", "in", 5, 3),
                        fixture_matrix("linear", "w", 7, 0),
                        fixture_matrix("linear", "bias", 1, 0),
                        fixture_matrix("linear", "dout", 5, 3)};
    op_case o = product_case(&c);
    const tensor* r = o.results;
    set_zero(r[DW]);
    set_zero(r[DBIAS]);
    run_product(b, &c, r, 0, 5);
    check_fixture(r[OUT], "linear", "out", b);
    check_fixture(r[DIN], "linear", "din", b);
    check_fixture(r[DW], "linear", "dw", b);
    check_fixture(r[DBIAS], "linear", "dbias", b);

    product_inputs s = {FORMAT_ROWS[0],     {5, 9, 21},        matrix_grid(5, 21),
                        weight_grid(9, 21), weight_grid(1, 9), matrix_grid(5, 9)};
    o = product_case(&s);
    set_zero(o.results[DW]);
    set_zero(o.results[DBIAS]);
    run_product(b, &s, o.results, 0, 5);
    tensor dw = matrix_copy(o.results[DW]), dbias = matrix_copy(o.results[DBIAS]);
    slope_case slope = {b, &o, o.results, {OUT, -1}, {s.dout}};
    double roundings = 21 + 1;  // of one output
    check_slopes(s.in, o.results[DIN], result_loss, &slope, roundings, "slope by the input");
    check_slopes(s.w, dw, result_loss, &slope, roundings, "slope by the weight");
    check_slopes(s.bias, dbias, result_loss, &slope, roundings, "slope by the bias");
    arrays_free(mark, "matmul");
}

int main(void) {
    devices_open();
    check_shapes();
    check_formats();
    check_operands();
    check_tiny_weights();
    check_plans();
    check_plan_points();
    check_gradient_values();
    check_scaled_splits();
    check_prepare_again();
    check_fences();
    for (int d = 0; d <= device_count; d += device_step) check_known(devices[d]);
    fixtures_close();
    devices_close();
    return test_report();
}
