// The ops whose rows stand alone: embedding, gathering, layer norm with the residual sum, GELU. See
// cpu_test.h for the method.
#include "cpu_test.h"

static const format* const STORES[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16};
enum { STORE_COUNT = 3 };

typedef struct shape {
    int rows, cols;
} shape;

static const shape SHAPES[] = {{1, 1},  {2, 7},   {3, 15},  {5, 16},  {7, 17}, {4, 31},  {9, 32},
                               {6, 33}, {40, 48}, {13, 70}, {3, 129}, {64, 5}, {2, 768}, {200, 20}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

static const char* shape_text(const char* op, shape s, const format* f) {
    return text("%s, %d rows of %d, %s", op, s.rows, s.cols, f->name);
}

// ------------------------------------------------------------------------------------------------
// Embedding and gathering

static void naive_embed(tensor out, tensor wte, tensor wpe, const int* token, const int* position,
                        const format* f) {
    for (int r = 0; r < out.rows; r++)
        for (int c = 0; c < out.cols; c++)
            row_at(out, r)[c] =
                position[r] < 0
                    ? 0
                    : format_round(row_at(wte, token[r])[c] + row_at(wpe, position[r])[c], f);
}

static void naive_embed_backward(tensor dwte, tensor dwpe, tensor dout, const int* token,
                                 const int* position) {
    for (int r = 0; r < dout.rows; r++)
        for (int c = 0; c < dout.cols; c++) {
            row_at(dwte, token[r])[c] += row_at(dout, r)[c];
            row_at(dwpe, position[r])[c] += row_at(dout, r)[c];
        }
}

static void check_embed_case(shape s, const format* f) {
    enum { TOKENS = 5, POSITIONS = 4 };
    int mark = array_count, *token = ints_new(s.rows), *position = ints_new(s.rows);
    const char* what = shape_text("embedding", s, f);
    tensor wte = weight_random(TOKENS, s.cols), wpe = weight_random(POSITIONS, s.cols);
    tensor dwte = weight_random(TOKENS, s.cols), dwpe = weight_random(POSITIONS, s.cols);
    tensor expected_te = matrix_copy(dwte), expected_pe = matrix_copy(dwpe);
    tensor dout = matrix_random(s.rows, s.cols, f), expected = matrix_new(s.rows, s.cols, f);
    for (int r = 0; r < s.rows; r++) {
        token[r] = random_below(TOKENS);
        position[r] = random_below(POSITIONS);
    }
    naive_embed_backward(expected_te, expected_pe, dout, token, position);
    int idle = random_below(s.rows), kept = position[idle];
    for (int d = device_next(); d < device_count; d += device_step) {
        backend* b = devices[d];
        int inner = array_count;
        tensor out = matrix_new(s.rows, s.cols, f), got_te = matrix_copy(dwte);
        tensor got_pe = matrix_copy(dwpe);
        position[idle] = random_below(2) ? -1 : kept;
        naive_embed(expected, wte, wpe, token, position, f);
        b->embed_forward(b, out, wte.data, wpe.data, token, position);
        position[idle] = kept;
        int split = random_below(s.rows);  // two micro-batches
        b->embed_backward(b, got_te.data, got_pe.data, rows_of(dout, 0, split), token, position);
        b->embed_backward(b, got_te.data, got_pe.data, rows_of(dout, split, s.rows - split),
                          token + split, position + split);
        check_same(out, expected, "out", what, b);
        check_same(got_te, expected_te, "dwte", what, b);
        check_same(got_pe, expected_pe, "dwpe", what, b);
        arrays_free(inner, what);
    }
    arrays_free(mark, what);
}

static void check_embed(void) {
    for (int i = 0; i < SHAPE_COUNT; i++)
        for (int f = 0; f < STORE_COUNT; f++) check_embed_case(SHAPES[i], STORES[f]);
}

static void check_gather(void) {
    int mark = array_count, row[9];
    tensor from = matrix_random(5, 19, &FORMAT_FP32), expected = matrix_new(9, 19, &FORMAT_FP32);
    for (int i = 0; i < 9; i++) {
        row[i] = random_below(5);
        copy_values(rows_of(expected, i, 1), rows_of(from, row[i], 1));
    }
    for (int d = 0; d < device_count; d++) {
        tensor to = matrix_new(9, 19, &FORMAT_FP32);
        devices[d]->gather_rows(devices[d], to, from, row);
        check_same(to, expected, "to", "gathered rows", devices[d]);
    }
    arrays_free(mark, "gathered rows");
}

// ------------------------------------------------------------------------------------------------
// Layer norm

// `store` rounds the residual sum, `round` the result.
static void naive_norm(tensor out, tensor sum, float* stats, tensor residual, tensor add,
                       const float* gain, const float* bias, const format* store,
                       const format* round) {
    int n = out.cols;
    float* square = xalloc(n, sizeof *square, "squares");
    for (int r = 0; r < out.rows; r++) {
        float* x = row_at(sum, r);
        for (int c = 0; c < n; c++)
            x[c] = add.data ? format_round(row_at(residual, r)[c] + row_at(add, r)[c], store)
                            : row_at(residual, r)[c];
        float mean = tree_sum(x, n) / (float)n;
        for (int c = 0; c < n; c++) square[c] = (x[c] - mean) * (x[c] - mean);
        float rstd = 1.0f / sqrtf(tree_sum(square, n) / (float)n + 1e-5f);
        for (int c = 0; c < n; c++)
            row_at(out, r)[c] =
                format_round(num_fma((x[c] - mean) * rstd, gain[c], bias[c]), round);
        stats[2 * r] = mean;
        stats[2 * r + 1] = rstd;
    }
    free(square);
}

// With h = (x - mean) rstd and dn = dout gain: dx += (dn - mean(dn) - h mean(dn h)) rstd.
static void naive_norm_dx(tensor dx, tensor dout, tensor x, const float* stats, const float* gain,
                          const format* round) {
    int n = dx.cols;
    float *dn = xalloc(3 * n, sizeof *dn, "a row"), *h = dn + n, *product = h + n;
    for (int r = 0; r < dx.rows; r++) {
        float rstd = stats[2 * r + 1];
        for (int c = 0; c < n; c++) {
            dn[c] = row_at(dout, r)[c] * gain[c];
            h[c] = (row_at(x, r)[c] - stats[2 * r]) * rstd;
            product[c] = dn[c] * h[c];
        }
        float mean_dn = tree_sum(dn, n) / (float)n, mean_product = tree_sum(product, n) / (float)n;
        for (int c = 0; c < n; c++) {
            float change = num_fma(-h[c], mean_product, dn[c] - mean_dn) * rstd;
            row_at(dx, r)[c] = format_round(row_at(dx, r)[c] + change, round);
        }
    }
    free(dn);
}

static void naive_norm_dparameters(float* dgain, float* dbias, tensor dout, tensor x,
                                   const float* stats) {
    for (int r = 0; r < dout.rows; r++)
        for (int c = 0; c < dout.cols; c++) {
            float h = (row_at(x, r)[c] - stats[2 * r]) * stats[2 * r + 1];
            dgain[c] = num_fma(row_at(dout, r)[c], h, dgain[c]);
            dbias[c] += row_at(dout, r)[c];
        }
}

typedef struct norm_case {
    shape s;
    const format* store;
    tensor residual, add, gain, bias, dout, dx, dgain, dbias;
    tensor sum, out, stats;  // expected
} norm_case;

// `own`: format of what comes in; another than `store` leaves each rounding work to do.
static norm_case norm_case_new(shape s, const format* store, const format* own) {
    norm_case c = {.s = s, .store = store};
    c.residual = matrix_random(s.rows, s.cols, own);
    c.add = matrix_random(s.rows, s.cols, own);
    c.gain = vector_random(s.cols);
    c.bias = vector_random(s.cols);
    c.dout = matrix_random(s.rows, s.cols, &FORMAT_FP32);
    c.dx = matrix_random(s.rows, s.cols, own);
    c.dgain = vector_random(s.cols);
    c.dbias = vector_random(s.cols);
    c.sum = matrix_new(s.rows, s.cols, store);
    c.out = matrix_new(s.rows, s.cols, store);
    c.stats = vector_new(2 * s.rows);
    naive_norm(c.out, c.sum, c.stats.data, c.residual, c.add, c.gain.data, c.bias.data, store,
               store);
    return c;
}

static void check_norm_on(backend* b, const norm_case* c, tensor dx, tensor dgain, tensor dbias) {
    int mark = array_count, rows = c->s.rows, cols = c->s.cols, split = random_below(rows);
    const char* what = shape_text("norm", c->s, c->store);
    const tensor nothing = {NULL, 0, 0, 0, NULL};
    tensor out = matrix_new(rows, cols, c->store), sum = matrix_new(rows, cols, c->store);
    tensor stats = vector_new(2 * rows), got_dx = matrix_copy(c->dx);
    tensor got_dgain = matrix_copy(c->dgain), got_dbias = matrix_copy(c->dbias);
    const float* gain = c->gain.data;
    b->norm_forward(b, out, sum, stats.data, c->residual, c->add, gain, c->bias.data, 1e-5f);
    check_same(out, c->out, "out", what, b);
    check_same(sum, c->sum, "residual_out", what, b);
    check_same(stats, c->stats, "stats", what, b);
    // Nothing to add: the sum as the residual that stays.
    poison(out);
    poison(stats);
    b->norm_forward(b, out, sum, stats.data, sum, nothing, gain, c->bias.data, 1e-5f);
    check_same(out, c->out, "out of no sum", what, b);
    check_same(sum, c->sum, "a residual in place", what, b);
    check_same(stats, c->stats, "stats of no sum", what, b);
    for (int part = 0; part < 2; part++) {  // two micro-batches
        int first = part ? split : 0, n = part ? rows - split : split;
        tensor dpart = rows_of(got_dx, first, n);
        dpart.format = c->store;
        b->norm_backward(b, dpart, got_dgain.data, got_dbias.data, rows_of(c->dout, first, n),
                         rows_of(c->sum, first, n), (float*)c->stats.data + 2 * first, gain);
    }
    got_dx.format = c->store;
    check_same(got_dx, dx, "dresidual", what, b);
    check_same(got_dgain, dgain, "dgain", what, b);
    check_same(got_dbias, dbias, "dbias", what, b);
    arrays_free(mark, what);
}

static void check_norm_case(shape s, const format* store, const format* own, int first, int step) {
    int mark = array_count;
    norm_case c = norm_case_new(s, store, own);
    tensor dx = matrix_copy(c.dx), dgain = matrix_copy(c.dgain), dbias = matrix_copy(c.dbias);
    naive_norm_dx(dx, c.dout, c.sum, c.stats.data, c.gain.data, store);
    naive_norm_dparameters(dgain.data, dbias.data, c.dout, c.sum, c.stats.data);
    for (int d = first; d < device_count; d += step)
        check_norm_on(devices[d], &c, dx, dgain, dbias);
    arrays_free(mark, shape_text("norm", s, store));
}

static void check_norm(void) {
    for (int i = 0; i < SHAPE_COUNT; i++)
        for (int f = 0; f < STORE_COUNT; f++) {
            check_norm_case(SHAPES[i], STORES[f], STORES[f], device_next(), device_step);
            if (f) check_norm_case(SHAPES[i], STORES[f], &FORMAT_FP32, device_next(), device_step);
        }
    // So much that threads run at the same time: scratch memory that they shared would show.
    check_norm_case((shape){64, 5000}, STORES[0], STORES[0], 0, 1);
}

// Leaving out one rounding point changes bits: of the sum, of the result, of the gradient.
static void check_norm_rounding_points(void) {
    int mark = array_count;
    const format *on = &FORMAT_BF16, *off = &FORMAT_FP32;
    norm_case c = norm_case_new((shape){5, 20}, on, off);
    tensor sum = matrix_copy(c.sum), out = matrix_copy(c.out);
    float* stats = floats_new(2 * 5);
    naive_norm(out, sum, stats, c.residual, c.add, c.gain.data, c.bias.data, off, on);
    CHECK(first_difference(sum, c.sum) >= 0 && first_difference(out, c.out) >= 0,
          "the residual sum's rounding");
    naive_norm(out, sum, stats, c.residual, c.add, c.gain.data, c.bias.data, on, off);
    CHECK(first_difference(sum, c.sum) < 0 && first_difference(out, c.out) >= 0,
          "the result's rounding");
    tensor dx = matrix_copy(c.dx), plain = matrix_copy(c.dx);
    naive_norm_dx(dx, c.dout, c.sum, c.stats.data, c.gain.data, on);
    naive_norm_dx(plain, c.dout, c.sum, c.stats.data, c.gain.data, off);
    CHECK(first_difference(dx, plain) >= 0, "the gradient's rounding");
    arrays_free(mark, "rounding points of norm");
}

// ------------------------------------------------------------------------------------------------
// GELU

static float naive_gelu(float x) {
    float t = num_tanhf(0.7978845608f * num_fma(0.044715f * x * x, x, x));
    return 0.5f * x * (1.0f + t);
}

static float naive_gelu_slope(float x) {
    float t = num_tanhf(0.7978845608f * num_fma(0.044715f * (x * x), x, x));
    float inner = 0.7978845608f * num_fma(3.0f * 0.044715f, x * x, 1.0f);
    return num_fma(0.5f * x * num_fma(-t, t, 1.0f), inner, 0.5f + 0.5f * t);
}

static void check_gelu_case(shape s, const format* f) {
    int mark = array_count;
    const char* what = shape_text("GELU", s, f);
    tensor pre = matrix_random(s.rows, s.cols, f),
           dout = matrix_random(s.rows, s.cols, &FORMAT_FP32);
    tensor out = matrix_new(s.rows, s.cols, f), dpre = matrix_new(s.rows, s.cols, f);
    for (int r = 0; r < s.rows; r++)
        for (int c = 0; c < s.cols; c++) {
            float x = row_at(pre, r)[c];
            row_at(out, r)[c] = format_round(naive_gelu(x), f);
            row_at(dpre, r)[c] = format_round(row_at(dout, r)[c] * naive_gelu_slope(x), f);
        }
    for (int d = device_next(); d < device_count; d += device_step) {
        backend* b = devices[d];
        tensor got = matrix_new(s.rows, s.cols, f), dgot = matrix_new(s.rows, s.cols, f);
        b->gelu_forward(b, got, pre);
        check_same(got, out, "out", what, b);
        b->gelu_backward(b, dgot, dout, pre);
        check_same(dgot, dpre, "dpre", what, b);
        tensor same = matrix_copy(dout);  // in place
        tensor to = same;
        to.format = f;
        b->gelu_backward(b, to, same, pre);
        check_same(to, dpre, "dpre in place", what, b);
    }
    arrays_free(mark, what);
}

static void check_gelu(void) {
    for (int i = 0; i < SHAPE_COUNT; i++)
        for (int f = 0; f < STORE_COUNT; f++) check_gelu_case(SHAPES[i], STORES[f]);
}

// ------------------------------------------------------------------------------------------------
// Against float64

static void check_float64_embed(backend* b) {
    int mark = array_count, *token = fixture_ints("embed", "token");
    int* position = fixture_ints("embed", "position");
    tensor wte = fixture_matrix("embed", "wte", 7, 0), wpe = fixture_matrix("embed", "wpe", 6, 0);
    tensor dout = fixture_matrix("embed", "dout", 9, 3), out = matrix_new(9, 20, &FORMAT_FP32);
    tensor dwte = array_new(7, 20, 0, &FORMAT_FP32), dwpe = array_new(6, 20, 0, &FORMAT_FP32);
    set_zero(dwte);
    set_zero(dwpe);
    b->embed_forward(b, out, wte.data, wpe.data, token, position);
    b->embed_backward(b, dwte.data, dwpe.data, dout, token, position);
    check_fixture(out, "embed", "out", b);
    check_fixture(dwte, "embed", "dwte", b);
    check_fixture(dwpe, "embed", "dwpe", b);
    arrays_free(mark, "embedding against float64");
}

static void check_float64_norm(backend* b) {
    int mark = array_count;
    tensor residual = fixture_matrix("norm", "residual", 6, 3);
    tensor add = fixture_matrix("norm", "add", 6, 1), dout = fixture_matrix("norm", "dout", 6, 2);
    tensor dx = fixture_matrix("norm", "dlater", 6, 3), sum = matrix_new(6, 20, &FORMAT_FP32);
    tensor out = matrix_new(6, 20, &FORMAT_FP32), dgain = vector_new(20), dbias = vector_new(20);
    float *gain = fixture_floats("norm", "gain"), *stats = floats_new(12);
    set_zero(dgain);
    set_zero(dbias);
    b->norm_forward(b, out, sum, stats, residual, add, gain, fixture_floats("norm", "bias"), 1e-5f);
    b->norm_backward(b, dx, dgain.data, dbias.data, dout, sum, stats, gain);
    check_fixture(sum, "norm", "total", b);
    check_fixture(out, "norm", "out", b);
    check_fixture(dx, "norm", "dresidual", b);
    check_fixture(dgain, "norm", "dgain", b);
    check_fixture(dbias, "norm", "dbias", b);
    arrays_free(mark, "norm against float64");
}

static void check_float64_gelu(backend* b) {
    int mark = array_count;
    tensor pre = fixture_matrix("gelu", "pre", 4, 3), dout = fixture_matrix("gelu", "dout", 4, 0);
    tensor out = matrix_new(4, 40, &FORMAT_FP32), dpre = matrix_new(4, 40, &FORMAT_FP32);
    b->gelu_forward(b, out, pre);
    b->gelu_backward(b, dpre, dout, pre);
    check_fixture(out, "gelu", "out", b);
    check_fixture(dpre, "gelu", "dpre", b);
    arrays_free(mark, "GELU against float64");
}

// ------------------------------------------------------------------------------------------------
// Finite differences

typedef struct slope_case {
    backend* b;
    tensor x, add, gain, bias, weight, sum_weight, out, sum;
    float* stats;
} slope_case;

static double norm_loss(const void* context, double* size) {
    const slope_case* s = context;
    s->b->norm_forward(s->b, s->out, s->sum, s->stats, s->x, s->add, s->gain.data, s->bias.data,
                       1e-5f);
    return weighted_sum(s->out, s->weight, size) + weighted_sum(s->sum, s->sum_weight, size);
}

static void check_norm_differences(void) {
    int mark = array_count, m = 4, n = 18;
    backend* b = devices[device_count - device_step];
    slope_case s = {b,
                    matrix_grid(m, n),
                    matrix_grid(m, n),
                    weight_grid(1, n),
                    weight_grid(1, n),
                    matrix_grid(m, n),
                    matrix_grid(m, n),
                    matrix_new(m, n, &FORMAT_FP32),
                    matrix_new(m, n, &FORMAT_FP32),
                    floats_new(2 * m)};
    tensor dx = matrix_copy(s.sum_weight), dgain = vector_new(n), dbias = vector_new(n);
    double size = 0, roundings = 20;  // of h, about: the sums' four, the root, the quotient
    set_zero(dgain);
    set_zero(dbias);
    norm_loss(&s, &size);
    b->norm_backward(b, dx, dgain.data, dbias.data, s.weight, s.sum, s.stats, s.gain.data);
    check_slopes(s.x, dx, norm_loss, &s, roundings, "slope of norm by the residual");
    check_slopes(s.add, dx, norm_loss, &s, roundings, "slope of norm by what is added");
    check_slopes(s.gain, dgain, norm_loss, &s, roundings, "slope of norm by its gain");
    check_slopes(s.bias, dbias, norm_loss, &s, roundings, "slope of norm by its bias");
    arrays_free(mark, "differences of norm");
}

static double gelu_loss(const void* context, double* size) {
    const slope_case* s = context;
    s->b->gelu_forward(s->b, s->out, s->x);
    return weighted_sum(s->out, s->weight, size);
}

static void check_gelu_differences(void) {
    int mark = array_count;
    backend* b = devices[device_count - device_step];
    slope_case s = {.b = b, .x = matrix_grid(6, 20), .weight = matrix_grid(6, 20)};
    s.out = matrix_new(6, 20, &FORMAT_FP32);
    tensor dpre = matrix_new(6, 20, &FORMAT_FP32);
    b->gelu_backward(b, dpre, s.weight, s.x);
    check_slopes(s.x, dpre, gelu_loss, &s, 8, "slope of GELU");
    arrays_free(mark, "differences of GELU");
}

static const int SLOPE_TOKEN[] = {2, 0, 2, 1, 2}, SLOPE_POSITION[] = {0, 1, 2, 0, 1};

static double embed_loss(const void* context, double* size) {
    const slope_case* s = context;
    s->b->embed_forward(s->b, s->out, s->x.data, s->add.data, SLOPE_TOKEN, SLOPE_POSITION);
    return weighted_sum(s->out, s->weight, size);
}

static void check_embed_differences(void) {
    int mark = array_count;
    backend* b = devices[device_count - device_step];
    slope_case s = {.b = b, .x = weight_grid(3, 6), .add = weight_grid(3, 6)};
    s.weight = matrix_grid(5, 6);
    s.out = matrix_new(5, 6, &FORMAT_FP32);
    tensor dwte = array_new(3, 6, 0, &FORMAT_FP32), dwpe = array_new(3, 6, 0, &FORMAT_FP32);
    set_zero(dwte);
    set_zero(dwpe);
    b->embed_backward(b, dwte.data, dwpe.data, s.weight, SLOPE_TOKEN, SLOPE_POSITION);
    check_slopes(s.x, dwte, embed_loss, &s, 1, "slope of the embedding by token");
    check_slopes(s.add, dwpe, embed_loss, &s, 1, "slope of the embedding by position");
    arrays_free(mark, "differences of the embedding");
}

int main(void) {
    devices_open();
    check_embed();
    check_gather();
    check_norm();
    check_norm_rounding_points();
    check_gelu();
    for (int d = 0; d < device_count; d += device_step) {
        check_float64_embed(devices[d]);
        check_float64_norm(devices[d]);
        check_float64_gelu(devices[d]);
    }
    check_norm_differences();
    check_gelu_differences();
    check_embed_differences();
    fixtures_close();
    devices_close();
    return test_report();
}
