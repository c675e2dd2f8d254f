// Products with a weight on the CUDA device. See cuda_test.h for the method.
//
// The handwritten products of fp32 and tf32 have the CPU device's order and must give its bits. The
// others, fp8's from codes of one byte among them, are compared in two ways: on small integers,
// whose sums are exact in any order, with ==; and on random values with float64. The library's
// products, with CUDA_PRODUCTS=cublaslt, have no order that is known: all of them are compared in
// these two ways.
#include "cuda_test.h"
#include "refusal.h"

typedef struct shape {
    int m, n, k;  // rows, outputs, inputs
} shape;

// `backward`: the operand of backward products; `gradient`: what a gradient becomes there.
typedef struct formats {
    const format *in, *operand, *out, *backward, *gradient;
} formats;

#define USUAL(in, operand, out) \
    { &FORMAT_##in, &FORMAT_##operand, &FORMAT_##out, &FORMAT_##operand, &FORMAT_##operand }
#define FP8_RUN \
    { &FORMAT_BF16, &FORMAT_E4M3, &FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16 }
static const formats FORMAT_ROWS[] = {
    USUAL(FP32, FP32, FP32),
    USUAL(FP32, TF32, FP32),
    USUAL(BF16, BF16, BF16),
    USUAL(FP16, FP16, FP16),
    USUAL(BF16, BF16, FP32),
    USUAL(FP32, FP32, FP16),
    FP8_RUN,
    {&FORMAT_BF16, &FORMAT_E4M3, &FORMAT_BF16, &FORMAT_E4M3, &FORMAT_E5M2},
    {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16, &FORMAT_E5M2},
    {&FORMAT_BF16, &FORMAT_E4M3, &FORMAT_FP32, &FORMAT_E5M2, &FORMAT_E4M3},
    {&FORMAT_BF16, &FORMAT_E5M2, &FORMAT_BF16, &FORMAT_E5M2, &FORMAT_E5M2},
};
enum {
    FORMAT_ROW_COUNT = sizeof FORMAT_ROWS / sizeof *FORMAT_ROWS,
    FP8_GRADIENTS = 7,  // a row
    FP8_OTHERS = 9      // other formats in each product, those of both directions too
};

// Whether products of fp8 take codes.
static int codes(void) { return !library(); }

// How rows lie on the device: no gap between them; at multiples of 16 bytes with a gap, which may
// begin within 16 bytes, and a bias that begins elsewhere; an element behind such multiples; or
// such that no 16-byte access fits.
typedef enum { CLOSE, ALIGNED, SHIFTED, ODD, LAYOUTS } layout;
static const char* const LAYOUT_NAMES[] = {"close", "aligned", "shifted", "odd"};

static tensor gpu_matrix_as(tensor host, layout how) {
    if (how == ODD) return gpu_matrix_gap(host, host.cols % 2 ? 2 : 3);
    return gpu_matrix_shifted(host, how == CLOSE ? 0 : 16 - host.cols % 8, how == SHIFTED);
}

// ------------------------------------------------------------------------------------------------
// A case: its values, and what products make of them

// INTEGERS: up to 8, so that sums are exact. ZEROS: signed zeros and numbers whose products vanish.
typedef enum { RANDOM, INTEGERS, ZEROS } values;

typedef struct product_case {
    formats f;
    shape s;
    tensor in, w, bias, dout, dw, dbias;
    const char* what;
} product_case;

typedef struct results {
    tensor out, plain, din, dw, dbias;  // plain: out without a bias
} results;

static void fill_as(tensor t, values kind) {
    static const float zeros[] = {0.0f, -0.0f, 1e-30f, -1e-30f};
    if (kind == RANDOM) fill(t);
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols && kind != RANDOM; c++)
            row_at(t, r)[c] = kind == ZEROS ? zeros[random_below(4)] : (float)random_between(-8, 8);
}

static tensor matrix_as(int rows, int cols, int gap, const format* f, values kind) {
    tensor t = array_new(rows, cols, gap, f);
    fill_as(t, kind);
    return t;
}

static product_case case_new(shape s, formats f, values kind) {
    product_case p = {.f = f, .s = s};
    p.in = matrix_as(s.m, s.k, ROW_GAP, f.in, kind);
    p.w = matrix_as(s.n, s.k, 0, &FORMAT_FP32, kind);
    p.bias = matrix_as(1, s.n, 0, f.out, kind);
    p.bias.format = &FORMAT_FP32;
    p.dout = matrix_as(s.m, s.n, ROW_GAP, f.in, kind);
    p.dw = matrix_as(s.n, s.k, 0, &FORMAT_FP32, kind);
    p.dbias = matrix_as(1, s.n, 0, &FORMAT_FP32, kind);
    p.what = text("m %d n %d k %d, %s, out %s", s.m, s.n, s.k, f.operand->name, f.out->name);
    return p;
}

static prepared* prepare(backend* b, const formats* f, shape s, const float* w) {
    linear_plan plan = {.gradient = f->gradient};
    prepared* p = f->gradient == f->backward ? NULL : b->weight_plan(b, &plan);
    return b->weight_prepare(b, p, w, s.n, s.k, f->operand, f->backward);
}

static void products(backend* b, const product_case* c, const results* to, tensor in, tensor dout,
                     const float* w, const float* bias) {
    prepared* p = prepare(b, &c->f, c->s, w);
    b->matmul_forward(b, to->out, in, p, bias);
    b->matmul_forward(b, to->plain, in, p, NULL);
    b->matmul_backward_input(b, to->din, dout, p);
    b->matmul_backward_weight(b, to->dw.data, to->dbias.data, dout, in, p);
    b->weight_release(b, p);
}

static results results_new(const product_case* c) {
    const format* f = c->f.out;
    results r = {matrix_new(c->s.m, c->s.n, f), matrix_new(c->s.m, c->s.n, f),
                 matrix_new(c->s.m, c->s.k, f), matrix_copy(c->dw), matrix_copy(c->dbias)};
    return r;
}

static results cpu_results(const product_case* c) {
    results r = results_new(c);
    products(cpu, c, &r, c->in, c->dout, c->w.data, c->bias.data);
    return r;
}

static results gpu_results(const product_case* c, layout how) {
    int mark = gpu_array_count;
    results host = results_new(c);
    results r = {gpu_matrix_as(host.out, how), gpu_matrix_as(host.plain, how),
                 gpu_matrix_as(host.din, how), gpu_matrix(host.dw), gpu_matrix(host.dbias)};
    tensor in = gpu_matrix_as(c->in, how), dout = gpu_matrix_as(c->dout, how);
    tensor bias = gpu_matrix_shifted(c->bias, 0, how == ALIGNED);
    products(gpu, c, &r, in, dout, gpu_matrix(c->w).data, bias.data);
    r = (results){gpu_read(r.out), gpu_read(r.plain), gpu_read(r.din), gpu_read(r.dw),
                  gpu_read(r.dbias)};
    gpu_arrays_free(mark);
    return r;
}

static void check_results_same(const results* a, const results* b, const char* what) {
    check_same(a->out, b->out, "out", what, gpu);
    check_same(a->plain, b->plain, "out without bias", what, gpu);
    check_same(a->din, b->din, "din", what, gpu);
    check_same(a->dw, b->dw, "dw", what, gpu);
    check_same(a->dbias, b->dbias, "dbias", what, gpu);
}

// ------------------------------------------------------------------------------------------------
// Against float64

// A matrix as a product reads it: element (i, j) is data[i * row + j * col].
typedef struct view {
    const float* data;
    int64_t row, col;
} view;
static view rows_view(tensor t) { return (view){t.data, t.stride, 1}; }
static view columns_view(tensor t) { return (view){t.data, 1, t.stride}; }

// exact = start + a b + bias for a of (rows, k); `start` and `bias` may have no data. Returns the
// size of the terms: the root mean square of the sums of their magnitudes.
static double exact_product(double* exact, tensor like, int k, view a, view b, view start,
                            const float* bias) {
    double square = 0;
    for (int i = 0; i < like.rows; i++)
        for (int j = 0; j < like.cols; j++) {
            double sum = start.data ? start.data[i * start.row + j * start.col] : 0;
            double size = fabs(sum);
            for (int l = 0; l < k; l++) {
                double term = (double)a.data[i * a.row + l * a.col] * b.data[l * b.row + j * b.col];
                sum += term;
                size += fabs(term);
            }
            exact[(size_t)i * like.cols + j] = sum + (bias ? bias[j] : 0);
            square += size * size;
        }
    return sqrt(square / ((double)like.rows * like.cols));
}

// What is always allowed: tensor cores may cut off what they add, by up to a unit in the last place
// of fp32 of the terms' size, once in 16 terms; where they add fp8's, a unit of 14 bits of the
// largest term, in either direction, so that the errors of a sum are less than one such unit of
// the sum of magnitudes; and the library's tf32 may cut operands where the
// CPU device rounds them (so they are not rounded here), each by up to 2^-10 of itself.
static void check_one(tensor got, tensor plain, const product_case* c, view a, view b, int k,
                      view start, const float* bias, int fp8, const char* name) {
    double* exact = xalloc((size_t)got.rows * got.cols, sizeof *exact, "exact values");
    double unit = c->f.operand == &FORMAT_TF32 ? 0x1p-9 : 0x1p-23 * (k / 16 + 1);
    if (fp8 && codes()) unit += 0x1p-13;
    double floor = exact_product(exact, got, k, a, b, start, bias) * unit;
    check_error(got, plain, exact, floor, name, c->what);
    free(exact);
}

static tensor transposed(tensor t) {
    tensor to = matrix_new(t.cols, t.rows, &FORMAT_FP32);
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) row_at(to, c)[r] = row_at(t, r)[c];
    return to;
}

// Operands with a scale for each row; for each column, transposed.
static const format* without_tf32(const format* f) { return f == &FORMAT_TF32 ? &FORMAT_FP32 : f; }
static tensor by_row(tensor t, const format* f) { return operands_of(t, without_tf32(f)); }
static tensor by_column(tensor t, const format* f) { return by_row(transposed(t), f); }

static void check_results_near(const results* got, const results* plain, const product_case* c) {
    const format *f = c->f.operand, *back = c->f.backward, *gradient = c->f.gradient;
    tensor in = by_row(c->in, f), w = by_row(c->w, f), ones = matrix_new(1, c->s.m, &FORMAT_FP32);
    tensor dout = by_row(c->dout, gradient), back_w = by_column(c->w, back);
    tensor dout_columns = by_column(c->dout, gradient), in_columns = by_column(c->in, back);
    view none = {NULL, 0, 0};
    int forward_fp8 = f->scaled, backward_fp8 = back->scaled && gradient->scaled;
    set_rows(ones, 0, 1, 1);
    check_one(got->out, plain->out, c, rows_view(in), columns_view(w), c->s.k, none, c->bias.data,
              forward_fp8, "out");
    check_one(got->plain, plain->plain, c, rows_view(in), columns_view(w), c->s.k, none, NULL,
              forward_fp8, "out without bias");
    check_one(got->din, plain->din, c, rows_view(dout), columns_view(back_w), c->s.n, none, NULL,
              backward_fp8, "din");
    check_one(got->dw, plain->dw, c, rows_view(dout_columns), columns_view(in_columns), c->s.m,
              rows_view(c->dw), NULL, backward_fp8, "dw");
    check_one(got->dbias, plain->dbias, c, rows_view(ones), rows_view(c->dout), c->s.m,
              rows_view(c->dbias), NULL, 0, "dbias");
}

// ------------------------------------------------------------------------------------------------
// Tests

static void check_case(shape s, formats f, values kind, layout how) {
    static int turn;
    int mark = array_count;
    product_case c = case_new(s, f, kind);
    c.what = text("%s, rows %s", c.what, LAYOUT_NAMES[how]);
    schedule_set(turn++ % schedules);
    results expected = cpu_results(&c), got = gpu_results(&c, how);
    int same_order = !library() && (f.operand == &FORMAT_FP32 || f.operand == &FORMAT_TF32);
    if (kind == INTEGERS || same_order)
        check_results_same(&got, &expected, c.what);
    else
        check_results_near(&got, &expected, &c);
    arrays_free(mark, c.what);
}

// Tiles of 32, 64 and 128, slabs of 16, 32, 64 and 128, blocks of 256, strips of 64 rows: around
// them.
static void check_shapes(void) {
    static const shape shapes[] = {
        {1, 1, 1},      {33, 70, 100},  {170, 130, 264}, {3, 16, 256},    {5, 17, 257},
        {1, 64, 600},   {2, 15, 255},   {16, 32, 48},    {64, 64, 32},    {65, 63, 33},
        {128, 256, 64}, {129, 136, 96}, {300, 5, 270},   {7, 300, 3},     {41, 97, 300},
        {257, 40, 513}, {100, 257, 20}, {300, 300, 300}, {31, 128, 1021}, {1, 300, 8},
    };
    int count = quick() ? 3 : (int)(sizeof shapes / sizeof *shapes);
    for (int i = 0; i < count; i++)
        for (int f = 0; f < FORMAT_ROW_COUNT; f++) {
            check_case(shapes[i], FORMAT_ROWS[f], RANDOM, (layout)((i + f) % LAYOUTS));
            if (f > 1 || library())
                check_case(shapes[i], FORMAT_ROWS[f], INTEGERS, (layout)((i + f + 1) % LAYOUTS));
        }
    // The chain of a weight's gradient has no blocks in fp32; in 16 bits it has one for 4,096 rows.
    check_case((shape){270, 5, 3}, FORMAT_ROWS[0], RANDOM, ODD);
    check_case((shape){8200, 8, 16}, FORMAT_ROWS[2], RANDOM, CLOSE);
    check_case((shape){4097, 3, 24}, FORMAT_ROWS[3], INTEGERS, ODD);
    check_case((shape){4130, 9, 20}, FORMAT_ROWS[FP8_GRADIENTS], INTEGERS, ODD);
    check_case((shape){8200, 24, 16}, FORMAT_ROWS[FP8_OTHERS], INTEGERS, ALIGNED);
    // The library takes only rows of whole 16 bytes: half of these shapes have them.
    for (int i = 0; i < (quick() ? 12 : 100); i++) {
        int step = i % 4 < 2 ? 8 : 1, most = 80 / step;
        shape s = {random_between(1, most) * step, random_between(1, most) * step,
                   random_between(1, most) * step};
        formats f = FORMAT_ROWS[random_below(FORMAT_ROW_COUNT)];
        check_case(s, f, i % 2 ? RANDOM : INTEGERS, (layout)random_below(LAYOUTS));
    }
}

// Chains that stay at -0 or come to it: padding must not turn them into +0.
static void check_zeros(void) {
    if (!library()) check_case((shape){70, 40, 5}, FORMAT_ROWS[0], ZEROS, CLOSE);
    if (!library()) check_case((shape){3, 5, 270}, FORMAT_ROWS[0], ZEROS, ODD);
}

// The same bits under every schedule; and, for the handwritten products, in every layout.
static void check_schedules(void) {
    static const shape shapes[] = {{140, 136, 72}, {40, 24, 136}};
    for (int i = 0; i < 2; i++)
        for (int f = 0; f < 5; f++) {
            int mark = array_count;
            product_case c = case_new(shapes[i], FORMAT_ROWS[f < 4 ? f : FP8_GRADIENTS], RANDOM);
            results first[LAYOUTS];
            for (int how = 0; how < LAYOUTS; how++) {
                schedule_set(0);
                first[how] = gpu_results(&c, (layout)how);
                if (!library()) check_results_same(&first[how], &first[0], c.what);
            }
            for (int s = 1; s < schedules; s++) {
                int inner = array_count, how = s % LAYOUTS;
                schedule_set(s);
                results again = gpu_results(&c, (layout)how);
                check_results_same(&again, &first[how], text("%s, schedule %d", c.what, s));
                arrays_free(inner, c.what);
            }
            arrays_free(mark, c.what);
        }
    schedule_set(0);
}

static tensor gpu_rows(tensor t, int first, int n) {
    t.data = (char*)t.data + first * t.stride * (int64_t)gpu->bytes_per(t.format);
    t.rows = n;
    return t;
}

// Rows of a batch alone, and in batches that other tiles compute, must keep their bits (N1).
static void check_rows(shape s, formats f) {
    static const int batches[] = {1, 17, 70, 150};
    int mark = array_count, gpu_mark = gpu_array_count;
    product_case c = case_new(s, f, RANDOM);
    results all = gpu_results(&c, ALIGNED);
    tensor in = gpu_matrix_as(c.in, ALIGNED), dout = gpu_matrix_as(c.dout, ALIGNED);
    prepared* w = prepare(gpu, &f, s, gpu_matrix(c.w).data);
    for (int i = 0; i < (quick() ? 2 : 4); i++) {
        int rows = batches[i], first = random_below(s.m - rows + 1);
        tensor out = gpu_matrix(matrix_new(rows, s.n, f.out));
        tensor din = gpu_matrix(matrix_new(rows, s.k, f.out));
        gpu->matmul_forward(gpu, out, gpu_rows(in, first, rows), w, NULL);
        gpu->matmul_backward_input(gpu, din, gpu_rows(dout, first, rows), w);
        const char* what = text("%d of %d rows, %s", rows, s.m, c.what);
        check_same(gpu_read(out), rows_of(all.plain, first, rows), "out", what, gpu);
        check_same(gpu_read(din), rows_of(all.din, first, rows), "din", what, gpu);
    }
    gpu->weight_release(gpu, w);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, c.what);
}

// Narrow results have the small tile where there are few rows.
static void check_rows_alone(void) {
    for (int f = 0; f < 4 && !library(); f++) {
        check_rows((shape){300, 56, 264}, FORMAT_ROWS[f]);
        check_rows((shape){300, 264, 56}, FORMAT_ROWS[f]);
    }
    if (!library()) check_rows((shape){300, 56, 72}, (formats)FP8_RUN);
    // Enough for a large GPU's largest tiles: all of its processors have one. (Minutes on the PTX
    // machine, where the cases above suffice.)
    for (int f = 1; f < 4 && !library() && !strstr(gpu->name, "PTX machine"); f++)
        check_rows((shape){4200, 1104, 1104}, FORMAT_ROWS[f]);
    for (int f = FP8_GRADIENTS; f <= FP8_OTHERS && codes(); f += 2) {
        check_rows((shape){300, 56, 264}, FORMAT_ROWS[f]);
        check_rows((shape){300, 300, 40}, FORMAT_ROWS[f]);
    }
}

// A gradient in micro-batches goes on from what is there: in fp32 without a trace (N5), elsewhere
// the sum of integers says so. Without dbias, dw is the same.
static void check_accumulation(void) {
    const int m = 200, n = 24, k = 40;
    for (int f = 0; f < 4; f++) {
        int mark = array_count, gpu_mark = gpu_array_count;
        values kind = f || library() ? INTEGERS : RANDOM;
        product_case c = case_new((shape){m, n, k}, FORMAT_ROWS[f], kind);
        results expected = cpu_results(&c);
        tensor in = gpu_matrix(c.in), dout = gpu_matrix(c.dout);
        tensor dw = gpu_matrix(c.dw), dbias = gpu_matrix(c.dbias), other = gpu_matrix(c.dw);
        prepared* w =
            gpu->weight_prepare(gpu, NULL, gpu_matrix(c.w).data, n, k, c.f.operand, c.f.operand);
        for (int first = 0, rows; first < m; first += rows) {
            rows = random_between(0, m - first < 90 ? m - first : 90);
            tensor part = gpu_rows(in, first, rows), dpart = gpu_rows(dout, first, rows);
            gpu->matmul_backward_weight(gpu, dw.data, dbias.data, dpart, part, w);
            gpu->matmul_backward_weight(gpu, other.data, NULL, dpart, part, w);
        }
        gpu->weight_release(gpu, w);
        check_same(gpu_read(dw), expected.dw, "dw", "micro-batches", gpu);
        check_same(gpu_read(other), expected.dw, "dw without dbias", "micro-batches", gpu);
        check_same(gpu_read(dbias), expected.dbias, "dbias", "micro-batches", gpu);
        gpu_arrays_free(gpu_mark);
        arrays_free(mark, c.what);
    }
}

// More strips of rows than a grid has blocks in its second dimension. All rows are one, at a stride
// of 0: the sums are counts, exact below 2^24. The library takes no such rows.
static void check_many_rows(void) {
    const int rows = 65535 * 64 + 1;
    int mark = array_count, gpu_mark = gpu_array_count;
    tensor one = matrix_new(1, 8, &FORMAT_BF16), counts = weight_random(8, 8);
    set_rows(one, 0, 1, 1);
    set_zero(counts);
    tensor same = gpu_matrix(one), dw = gpu_matrix(counts);
    tensor dbias = gpu_matrix(rows_of(counts, 0, 1)), weight = gpu_matrix(counts);
    prepared* w = gpu->weight_prepare(gpu, NULL, weight.data, 8, 8, &FORMAT_BF16, &FORMAT_BF16);
    same.rows = rows;
    same.stride = 0;
    gpu->matmul_backward_weight(gpu, dw.data, dbias.data, same, same, w);
    gpu->weight_release(gpu, w);
    set_rows(counts, 0, 8, (float)rows);
    check_same(gpu_read(dw), counts, "dw", "4,194,241 rows", gpu);
    check_same(gpu_read(dbias), rows_of(counts, 0, 1), "dbias", "4,194,241 rows", gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "many rows");
}

// What is not finite stays what it is when it is rounded to tf32. A GPU's NaN has all bits of the
// mantissa set: a carry would make it -0.
static void check_not_finite(void) {
    static const uint32_t bits[] = {0x7fffffff, 0xffffffff, 0x7f800000, 0xff800000};
    int mark = array_count, gpu_mark = gpu_array_count;
    tensor rows = matrix_new(4, 4, &FORMAT_FP32), units = matrix_new(4, 4, &FORMAT_FP32);
    set_zero(rows);
    set_zero(units);
    for (int i = 0; i < 4; i++) {
        row_at(rows, i)[0] = float_from_bits(bits[i]);
        row_at(units, i)[0] = 1;
    }
    for (int side = 0; side < 2; side++) {
        tensor in = gpu_matrix(side ? units : rows), weight = gpu_matrix(side ? rows : units);
        tensor out = gpu_matrix(rows);
        prepared* w = gpu->weight_prepare(gpu, NULL, weight.data, 4, 4, &FORMAT_TF32, &FORMAT_TF32);
        gpu->matmul_forward(gpu, out, in, w, NULL);
        gpu->weight_release(gpu, w);
        tensor got = gpu_read(out);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                float x = row_at(got, i)[j], from = float_from_bits(bits[side ? j : i]);
                CHECK(isnan(from) ? isnan(x) : x == from, "%g times 1 in tf32 is %g", (double)from,
                      (double)x);
            }
    }
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "not finite");
}

// A weight is rounded to tf32 before it is multiplied, whatever the product does with its operands.
static void check_tf32_weights(void) {
    const int n = 64;
    int mark = array_count, gpu_mark = gpu_array_count;
    tensor in = matrix_new(1, 4, &FORMAT_FP32), weight = weight_random(n, 4);
    tensor expected = matrix_new(1, n, &FORMAT_FP32);
    set_zero(in);
    row_at(in, 0)[0] = 1;
    for (int j = 0; j < n; j++)
        row_at(expected, 0)[j] = format_round(row_at(weight, j)[0], &FORMAT_TF32);
    tensor out = gpu_matrix(expected), w_there = gpu_matrix(weight);
    prepared* w = gpu->weight_prepare(gpu, NULL, w_there.data, n, 4, &FORMAT_TF32, &FORMAT_TF32);
    gpu->matmul_forward(gpu, out, gpu_matrix(in), w, NULL);
    gpu->weight_release(gpu, w);
    check_same(gpu_read(out), expected, "out", "tf32 weights", gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "tf32 weights");
}

// A product with a unit matrix gives the operand itself: it must have the CPU device's bits. Rows
// and columns of `t` have magnitudes of their own, so that each has subnormal values, and its own
// scale.
static void fill_for_scales(tensor t) {
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) {
            float x = ldexpf(random_float(), random_between(-20, 0) + 9 * (r % 5) - 7 * (c % 3));
            row_at(t, r)[c] = format_round(x, t.format);
        }
}

static tensor unit_matrix(int n, int gap, const format* f) {
    tensor t = array_new(n, n, gap, f);
    set_zero(t);
    for (int i = 0; i < n; i++) row_at(t, i)[i] = 1;
    return t;
}

static void check_same_operands(const product_case* c, const char* of) {
    results expected = cpu_results(c), got = gpu_results(c, (layout)(random_below(LAYOUTS)));
    const char* what = text("%s as operand, %s, gradient %s", of, c->what, c->f.gradient->name);
    check_same(got.plain, expected.plain, "out", what, gpu);
    check_same(got.din, expected.din, "din", what, gpu);
    check_same(got.dw, expected.dw, "dw", what, gpu);
}

static void check_scaled_operands(void) {
    static const char* const names[] = {"fp8_e4m3", "fp8_e5m2", "e4m3", "e6m1", "e2m5", "e2m1"};
    for (int i = 0; i < 6; i++)
        for (int which = 0; which < 3; which++) {
            const int n = 40 + i;
            int mark = array_count;
            formats f = {&FORMAT_BF16, format_find(names[i]), &FORMAT_FP32, &FORMAT_BF16, NULL};
            if (i % 2) f.backward = f.operand;
            f.gradient = format_find(names[(i + 1) % 6]);
            product_case c = case_new((shape){n, n, n}, f, RANDOM);
            tensor* of[] = {&c.w, &c.in, &c.dout};
            schedule_set((i + which) % schedules);
            set_zero(c.dw);
            c.w = unit_matrix(n, 0, &FORMAT_FP32);
            c.in = unit_matrix(n, ROW_GAP, f.in), c.dout = unit_matrix(n, ROW_GAP, f.in);
            fill_for_scales(*of[which]);
            set_rows(*of[which], 5, 1, 0);
            // Next to infinity there is no scale, and it becomes the largest value.
            if (f.backward->scaled) row_at(*of[which], 3)[7] = INFINITY;
            check_same_operands(&c, which == 0 ? "a weight" : which == 1 ? "rows" : "gradients");
            arrays_free(mark, "scaled operands");
        }
    schedule_set(0);
}

// Of weights so small that a scaled value is none of bf16, operands in bf16 have the nearest one;
// codes have the value, as the CPU device does. They are multiplied by 2^90.
static void check_tiny_weights(void) {
    const int n = 40;
    int mark = array_count, lost = 0;
    product_case c = case_new((shape){n, n, n}, (formats)FP8_RUN, RANDOM);
    c.f.out = &FORMAT_FP32;
    c.in = unit_matrix(n, ROW_GAP, &FORMAT_BF16);
    for (int i = 0; i < n; i++) row_at(c.in, i)[i] = 0x1p90f;
    for (int r = 0; r < n; r++)
        for (int k = 0; k < n; k++) row_at(c.w, r)[k] = ldexpf(random_float(), -125 - k % 9);
    tensor operand = operands_of(c.w, &FORMAT_E4M3), expected = matrix_new(n, n, &FORMAT_FP32);
    for (int r = 0; r < n; r++)
        for (int k = 0; k < n; k++) {
            float x = row_at(operand, r)[k], kept = format_round(x, &FORMAT_BF16);
            lost += x != kept;
            row_at(expected, k)[r] = (codes() ? x : kept) * 0x1p90f + 0.0f;  // sums begin with +0
        }
    CHECK(lost > 100, "%d weights are not of bf16", lost);
    check_same(gpu_results(&c, CLOSE).plain, expected, "out", "tiny weights", gpu);
    arrays_free(mark, "tiny weights");
}

// Each sum is one product, of rows and weights from tiny to huge: what fp32 holds of it must be
// there, wherever the scales, their product, or a sum times one of them, are none of fp32's. What
// has one magnitude is each row of the weight, or each column.
static void check_far_scales_of(formats f, int by_column) {
    static const int exponents[] = {-125, -100, -63, -30, -1, 0, 17, 64, 100, 119};
    const int n = 10;
    int mark = array_count, infinite = 0, usual = 0;
    f.out = &FORMAT_FP32;
    product_case c = case_new((shape){n, n, n}, f, RANDOM);
    set_zero(c.in), set_zero(c.dout);
    for (int i = 0; i < n; i++) {
        row_at(c.in, i)[i] = ldexpf(1.75f, exponents[i]);
        row_at(c.dout, i)[i] = ldexpf(1.25f, exponents[i]);
        for (int j = 0; j < n; j++)
            row_at(c.w, j)[i] = ldexpf(1 + (float)(i % 4) / 4, exponents[by_column ? i : j]);
    }
    results expected = cpu_results(&c), got = gpu_results(&c, CLOSE);
    tensor of = by_column ? expected.din : expected.plain;
    check_same(got.plain, expected.plain, "out", "far scales", gpu);
    check_same(got.din, expected.din, "din", "far scales", gpu);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            float x = fabsf(row_at(of, i)[j]);
            infinite += isinf(x) != 0, usual += x > 0x1p-126f && x < 0x1p126f;
        }
    CHECK(infinite > 5 && usual > 50, "%d infinite, %d usual results", infinite, usual);
    arrays_free(mark, "far scales");
}

static void check_far_scales(void) {
    for (int f = FP8_GRADIENTS; f <= FP8_OTHERS; f += 2)
        for (int by_column = 0; by_column < 2; by_column++)
            check_far_scales_of(FORMAT_ROWS[f], by_column);
}

// Tensor cores that keep 14 bits of a sum of fp8's products hold those of 128 times 81/64, and not
// of 256: the sums of larger steps would be cut.
static void check_steps(void) {
    int mark = array_count;
    formats f = FORMAT_ROWS[FP8_GRADIENTS];
    f.operand = f.backward, f.out = &FORMAT_FP32;
    product_case c = case_new((shape){3, 5, 1000}, f, INTEGERS);
    set_rows(c.in, 0, 3, 1.125f), set_rows(c.w, 0, 5, 1.125f);
    results expected = cpu_results(&c), got = gpu_results(&c, CLOSE);
    CHECK(row_at(expected.plain, 0)[0] == 1000 * 1.265625f, "%g",
          (double)row_at(expected.plain, 0)[0]);
    check_same(got.plain, expected.plain, "out", "1,000 times 81/64", gpu);
    arrays_free(mark, "steps");
}

// A NaN makes every sum NaN that it is in, and no other one.
static void check_scaled_nan(void) {
    for (int f = FP8_GRADIENTS; f <= FP8_OTHERS; f += 2) {
        int mark = array_count, wrong = 0, count = 0;
        product_case c = case_new((shape){35, 20, 150}, FORMAT_ROWS[f], INTEGERS);
        row_at(c.in, 33)[2] = NAN, row_at(c.w, 17)[149] = -NAN, row_at(c.dout, 2)[11] = NAN;
        results expected = cpu_results(&c), got = gpu_results(&c, CLOSE);
        const tensor pairs[][2] = {
            {got.plain, expected.plain}, {got.din, expected.din}, {got.dw, expected.dw}};
        for (int i = 0; i < 3; i++)
            for (int r = 0; r < pairs[i][0].rows; r++)
                for (int k = 0; k < pairs[i][0].cols; k++) {
                    float x = row_at(pairs[i][0], r)[k], y = row_at(pairs[i][1], r)[k];
                    count += isnan(y) != 0;
                    wrong += isnan(y) ? !isnan(x) : x != y;
                }
        CHECK(count > 3 * 20 && !wrong, "%d of %d NaN, %d elements wrong", count, 35 * 20, wrong);
        arrays_free(mark, "NaN");
    }
}

// A prepared weight takes a byte per element and a scale per row; in bf16 it takes two.
static void check_code_memory(void) {
    int mark = array_count, gpu_mark = gpu_array_count;
    tensor weight = gpu_matrix(weight_random(64, 96));
    const char* const names[] = {"fp8_e4m3", "fp8_e5m2", "e2m3", "e5m1", "e6m1", "e3m4"};
    for (int i = 0; i < 6; i++) {
        const format* f = format_find(names[i]);
        size_t before = gpu->allocated, each = 64 * 96;
        prepared* w = gpu->weight_prepare(gpu, NULL, weight.data, 64, 96, f, f);
        size_t taken = gpu->allocated - before;
        CHECK(taken == (codes() && i < 4 ? each + 64 * sizeof(float) : 2 * each),
              "a weight in %s takes %zu bytes", names[i], taken);
        gpu->weight_release(gpu, w);
    }
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "memory");
}

// Products that differ from others in one thing alone: what the library was told of one must not
// serve for another. In the square ones the three layouts are all that differs; the last but one
// was there before, with its bias elsewhere; of the last one the library would take all but the
// results.
static void check_plans(void) {
    static const formats bf16 = USUAL(BF16, BF16, BF16);
    static const formats fp16 = USUAL(FP16, FP16, FP16);
    static const formats sums = USUAL(BF16, BF16, FP32);
    static const struct {
        shape s;
        formats f;
        int in, out, dout, din;  // strides
    } of[] = {
        {{16, 24, 32}, bf16, 48, 48, 48, 48}, {{16, 24, 32}, fp16, 48, 48, 48, 48},
        {{16, 24, 32}, sums, 48, 48, 48, 48}, {{16, 24, 32}, bf16, 40, 48, 48, 48},
        {{16, 24, 32}, bf16, 48, 40, 48, 48}, {{16, 24, 32}, bf16, 48, 48, 40, 48},
        {{16, 24, 32}, bf16, 48, 48, 48, 40}, {{8, 24, 32}, bf16, 48, 48, 48, 48},
        {{16, 16, 32}, bf16, 48, 48, 48, 48}, {{16, 24, 24}, bf16, 48, 48, 48, 48},
        {{16, 16, 16}, bf16, 16, 16, 16, 16}, {{16, 16, 16}, sums, 16, 16, 16, 16},
        {{16, 24, 32}, sums, 48, 48, 48, 48}, {{16, 24, 32}, bf16, 48, 27, 48, 33},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        int mark = array_count, gpu_mark = gpu_array_count;
        product_case c = case_new(of[i].s, of[i].f, INTEGERS);
        c.what = text("%s, product %d of plans", c.what, (int)i);
        results expected = cpu_results(&c), host = results_new(&c);
        results r = {gpu_matrix_gap(host.out, of[i].out - c.s.n),
                     gpu_matrix_gap(host.plain, of[i].out - c.s.n),
                     gpu_matrix_gap(host.din, of[i].din - c.s.k), gpu_matrix(host.dw),
                     gpu_matrix(host.dbias)};
        products(gpu, &c, &r, gpu_matrix_gap(c.in, of[i].in - c.s.k),
                 gpu_matrix_gap(c.dout, of[i].dout - c.s.n), gpu_matrix(c.w).data,
                 gpu_matrix(c.bias).data);
        r = (results){gpu_read(r.out), gpu_read(r.plain), gpu_read(r.din), gpu_read(r.dw),
                      gpu_read(r.dbias)};
        check_results_same(&r, &expected, c.what);
        gpu_arrays_free(gpu_mark);
        arrays_free(mark, c.what);
    }
}

// More products than are kept plans for, then the first ones again. A row's stride is part of a
// plan, also where there is one row.
static void check_plans_dropped(void) {
    const int plans = 8192 + 100;
    int mark = array_count, gpu_mark = gpu_array_count;
    if (!library()) return;
    product_case c = case_new((shape){1, 8, 8}, FORMAT_ROWS[2], INTEGERS);
    results expected = cpu_results(&c);
    tensor out = gpu_matrix(expected.plain), in = gpu_matrix(c.in), weight = gpu_matrix(c.w);
    prepared* w = gpu->weight_prepare(gpu, NULL, weight.data, 8, 8, c.f.operand, c.f.operand);
    for (int i = 0; i < plans + 100; i++) {
        in.stride = 8 + 8 * (i % plans);
        gpu->matmul_forward(gpu, out, in, w, NULL);
        if (i % 1000 == 0) gpu->sync(gpu);
    }
    gpu->weight_release(gpu, w);
    check_same(gpu_read(out), expected.plain, "out", "after thousands of products", gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, c.what);
}

// Preparing again takes the new weight, in another format too; release gives back all memory.
static void check_prepare_again(void) {
    int mark = array_count, gpu_mark = gpu_array_count;
    const int n = 19, k = 40;
    product_case c = case_new((shape){3, n, k}, FORMAT_ROWS[2], INTEGERS);
    results expected = cpu_results(&c);
    tensor out = gpu_matrix(expected.plain), in = gpu_matrix(c.in), weight = gpu_matrix(c.w);
    tensor old = gpu_matrix(matrix_as(n, k, 0, &FORMAT_FP32, RANDOM));
    const format* const before_it[] = {&FORMAT_BF16, &FORMAT_FP32};
    for (int i = 0; i < 2; i++) {
        size_t before = gpu->allocated;
        prepared* w = gpu->weight_prepare(gpu, NULL, old.data, n, k, before_it[i], before_it[i]);
        prepared* again = gpu->weight_prepare(gpu, w, weight.data, n, k, c.f.operand, c.f.operand);
        CHECK(again == w, "prepared in a new place");
        gpu->matmul_forward(gpu, out, in, again, NULL);
        gpu->weight_release(gpu, again);
        CHECK(gpu->allocated == before, "%zu bytes held, %zu before", gpu->allocated, before);
        check_same(gpu_read(out), expected.plain, "out", "a weight prepared again", gpu);
    }
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, c.what);
}

// A bias that was prepared changes no bit; another one is added all the same, and so is one that
// changed before the weight was prepared once more. Outputs of another storage do not take it.
static void check_prepared_bias(formats f, int shift) {
    int mark = array_count, gpu_mark = gpu_array_count, m = 5, n = 24, k = 32;
    product_case c = case_new((shape){m, n, k}, f, INTEGERS);
    results expected = cpu_results(&c);
    tensor sums = matrix_new(m, n, &FORMAT_FP32), zeros = vector_new(n);
    prepared* p = cpu->weight_prepare(cpu, NULL, c.w.data, n, k, f.operand, f.operand);
    cpu->matmul_forward(cpu, sums, c.in, p, c.bias.data);
    cpu->weight_release(cpu, p);
    set_zero(zeros);

    tensor in = gpu_matrix(c.in), out = gpu_matrix(expected.out), wide = gpu_matrix(sums);
    tensor weight = gpu_matrix(c.w), bias = gpu_matrix_shifted(c.bias, 0, shift);
    tensor other = gpu_matrix(zeros);
    size_t before = gpu->allocated;
    p = gpu->weight_prepare(gpu, NULL, weight.data, n, k, f.operand, f.operand);
    gpu->bias_prepare(gpu, p, bias.data, f.out);
    gpu->matmul_forward(gpu, out, in, p, bias.data);
    check_same(gpu_read(out), expected.out, "out", "a prepared bias", gpu);
    gpu->matmul_forward(gpu, wide, in, p, bias.data);
    check_same(gpu_read(wide), sums, "out", "a bias that was prepared for others", gpu);
    gpu->matmul_forward(gpu, out, in, p, NULL);
    check_same(gpu_read(out), expected.plain, "out", "none, where one is prepared", gpu);
    gpu->matmul_forward(gpu, out, in, p, other.data);
    check_same(gpu_read(out), expected.plain, "out", "another bias than was prepared", gpu);
    gpu->clear(gpu, bias.data, n * sizeof(float));
    for (int told = 0; told < 2; told++) {
        gpu->weight_prepare(gpu, p, weight.data, n, k, f.operand, f.operand);
        if (told) gpu->bias_prepare(gpu, p, bias.data, f.out);
        gpu->matmul_forward(gpu, out, in, p, bias.data);
        check_same(gpu_read(out), expected.plain, "out", "a bias that changed", gpu);
    }
    // With fewer outputs, to which belongs less memory.
    gpu->weight_prepare(gpu, p, weight.data, n - 8, k, f.operand, f.operand);
    gpu->bias_prepare(gpu, p, bias.data, f.out);
    gpu->weight_release(gpu, p);
    CHECK(gpu->allocated == before, "%zu bytes held, %zu before", gpu->allocated, before);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, c.what);
}

static void check_prepared_biases(void) {
    static const formats of[] = {{&FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32, &FORMAT_FP32, NULL},
                                 {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16, &FORMAT_BF16, NULL},
                                 {&FORMAT_FP16, &FORMAT_FP16, &FORMAT_FP16, &FORMAT_FP16, NULL}};
    for (int i = 0; i < 6; i++) check_prepared_bias(of[i / 2], i % 2);
}

// A library that is asked for and not found would leave every test to the handwritten products.
static void check_library(void) {
    const char* products = library()               ? "cuBLASLt products)"
                           : products_are("wgmma") ? "wgmma products)"
                                                   : "handwritten products)";
    CHECK(strstr(gpu->name, products), "%s, not %s", gpu->name, products);
}

// A library that is found but cannot start leaves the products to the handwritten ones, and the
// device's name says why. Only the stand-in of tests/cublaslt.c can be told to fail; PTX_SUM is set
// where it may be used.
static void check_library_without_start(void) {
    const char* why;
    const char* expected = "handwritten products: cuBLASLt found but cublasLtCreate gave status 1";
    if (!library() || !getenv("PTX_SUM")) return;
    setenv("CUBLASLT_STATUS", "1", 1);
    backend* other = cuda_open(PRODUCTS_AUTO, &why);
    unsetenv("CUBLASLT_STATUS");
    CHECK(other, "the device does not open: %s", why);
    if (!other) return;
    CHECK(strstr(other->name, expected), "%s, not %s", other->name, expected);
    CHECK(other->allocated == 0, "%zu bytes held by what did not start", other->allocated);
    cuda_close(other);
}

typedef struct refused {
    const format *in, *operand, *backward;
} refused;

static void run_refused_plan(const void* argument) { gpu->weight_plan(gpu, argument); }

static void run_refused(const void* argument) {
    const refused* r = argument;
    prepared* w = gpu->weight_prepare(gpu, NULL, NULL, 4, 4, r->operand, r->backward);
    tensor t = {NULL, 1, 4, 4, r->in};
    gpu->matmul_forward(gpu, t, t, w, NULL);
}

// Ends before anything runs on the device.
static void check_refusals(void) {
    const format* wide = format_find("e5m6");
    const refused by_bits = {&FORMAT_BF16, wide, wide};
    const refused mixed = {&FORMAT_BF16, &FORMAT_BF16, &FORMAT_FP16};
    const linear_plan plans[] = {
        {.weight_per_tensor = 1}, {.activation_per_tensor = 1}, {.split_k = 2}};
    check_refusal(run_refused, &by_bits, "12 bits", (const char* [4]){"e5m6", "--device cpu"});
    check_refusal(run_refused, &mixed, "two formats", (const char* [4]){"bf16", "fp16"});
    for (int i = 0; i < 3; i++)
        check_refusal(run_refused_plan, &plans[i], "a plan",
                      (const char* [4]){"scales of tensors", "--device cpu"});
}

int main(void) {
    cuda_test_open();
    check_library();
    check_library_without_start();
    check_shapes();
    check_zeros();
    check_schedules();
    check_rows_alone();
    check_accumulation();
    if (!library() && !quick()) check_many_rows();
    check_tf32_weights();
    check_scaled_operands();
    check_tiny_weights();
    check_far_scales();
    check_steps();
    check_scaled_nan();
    check_code_memory();
    check_plans();
    check_plans_dropped();
    check_not_finite();
    check_prepare_again();
    check_prepared_biases();
    check_refusals();
    cuda_test_close();
    return test_report();
}
