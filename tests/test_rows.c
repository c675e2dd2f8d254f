// The ops whose rows stand alone: embedding, gathering, the norms with the residual sum, the norm
// and the rotation of heads, the activations. See op_test.h for the method.
#include "op_test.h"

static const format* const STORES[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16};
enum { STORE_COUNT = 3 };
#define EPS 1e-5f

typedef struct shape {
    int rows, cols;
} shape;

static const shape SHAPES[] = {{1, 1},  {2, 7},   {3, 15},  {5, 16},  {7, 17}, {4, 31},  {9, 32},
                               {6, 33}, {40, 48}, {13, 70}, {3, 129}, {64, 5}, {2, 768}, {200, 20}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

static const char* shape_text(const char* op, shape s, const format* f) {
    return text("%s, %d rows of %d, %s", op, s.rows, s.cols, f->name);
}

// Random values of another format than the tensor's: its op rounds them.
static tensor to_round(int rows, int cols, const format* f) {
    tensor t = matrix_random(rows, cols, &FORMAT_FP32);
    t.format = f;
    return t;
}

// ------------------------------------------------------------------------------------------------
// Embedding and gathering

typedef struct embed_inputs {
    tensor wte, wpe, dout;         // wpe.data: NULL for none
    int *token, *position, *idle;  // idle: the positions, with some rows at -1
} embed_inputs;

enum { EMBED_OUT, DWTE, DWPE, GATHERED, EMBED_RESULTS };
static const char* const EMBED_NAMES[] = {"out", "dwte", "dwpe", "gathered rows"};

static void run_embed(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const embed_inputs* c = inputs;
    float* dwpe = c->wpe.data ? r[DWPE].data : NULL;
    b->embed_forward(b, rows_of(r[EMBED_OUT], first, n), c->wte.data, c->wpe.data, c->token + first,
                     c->idle + first);
    b->embed_backward(b, r[DWTE].data, dwpe, rows_of(c->dout, first, n), c->token + first,
                      c->position + first);
    b->gather_rows(b, rows_of(r[GATHERED], first, n), c->wte, c->token + first);
}

static op_case embed_case(const embed_inputs* c, const format* f) {
    int rows = c->dout.rows, cols = c->wte.cols;
    op_case o = {"embedding", run_embed, c, rows, 0, EMBED_RESULTS, EMBED_NAMES, {{0}}};
    o.results[EMBED_OUT] = matrix_new(rows, cols, f);
    o.results[DWTE] = weight_random(c->wte.rows, cols);
    o.results[DWPE] = weight_random(c->wpe.rows, cols);
    o.results[GATHERED] = matrix_new(rows, cols, &FORMAT_FP32);
    return o;
}

static void check_embed(void) {
    enum { TOKENS = 5, POSITIONS = 4 };
    for (int i = 0; i < SHAPE_COUNT * STORE_COUNT; i++) {
        int mark = array_count;
        shape s = SHAPES[i / STORE_COUNT];
        const format* f = STORES[i % STORE_COUNT];
        embed_inputs c = {weight_random(TOKENS, s.cols),
                          weight_random(POSITIONS, s.cols),
                          matrix_random(s.rows, s.cols, f),
                          ints_new(s.rows),
                          ints_new(s.rows),
                          ints_new(s.rows)};
        for (int r = 0; r < s.rows; r++) {
            c.token[r] = random_below(TOKENS);
            c.position[r] = random_below(POSITIONS);
            c.idle[r] = random_below(5) ? c.position[r] : -1;
        }
        if (i % 4 == 3) c.wpe.data = NULL;
        op_case o = embed_case(&c, f);
        o.what = shape_text("embedding", s, f);
        check_case(&o);
        arrays_free(mark, o.what);
    }
}

static void check_embed_known(backend* b) {
    int mark = array_count;
    embed_inputs c = {fixture_matrix("embed", "wte", 7, 0),  fixture_matrix("embed", "wpe", 6, 0),
                      fixture_matrix("embed", "dout", 9, 3), fixture_ints("embed", "token"),
                      fixture_ints("embed", "position"),     fixture_ints("embed", "position")};
    op_case o = embed_case(&c, &FORMAT_FP32);
    const tensor* r = o.results;
    set_zero(r[DWTE]);
    set_zero(r[DWPE]);
    run_embed(b, &c, r, 0, 9);
    check_fixture(r[EMBED_OUT], "embed", "out", b);
    check_fixture(r[DWTE], "embed", "dwte", b);
    check_fixture(r[DWPE], "embed", "dwpe", b);
    for (int i = 0; i < 9; i++)
        check_same(rows_of(r[GATHERED], i, 1), rows_of(c.wte, c.token[i], 1), "row", "gathering",
                   b);
    fill_grid(c.wte);
    fill_grid(c.wpe);
    tensor dwte = matrix_copy(r[DWTE]), dwpe = matrix_copy(r[DWPE]);
    slope_case s = {b, &o, r, {EMBED_OUT, -1}, {c.dout}};
    check_slopes(c.wte, dwte, result_loss, &s, 1, "slope of the embedding by token");
    check_slopes(c.wpe, dwpe, result_loss, &s, 1, "slope of the embedding by position");
    arrays_free(mark, "embedding");
}

// ------------------------------------------------------------------------------------------------
// Layer norm and RMS norm

typedef struct norm_inputs {
    int rms;
    tensor residual, add, gain, bias, dout;
} norm_inputs;

enum { NORM_OUT, SUM, STATS, AGAIN, STATS_AGAIN, DX, DGAIN, DBIAS };
static const char* const NORM_NAMES[] = {"out",       "residual_out", "stats", "out of no sum",
                                         "its stats", "dresidual",    "dgain", "dbias"};

// The second time there is nothing to add, and the residual stays where it is.
static void run_norm(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const norm_inputs* c = inputs;
    const tensor nothing = {NULL, 0, 0, 0, NULL};
    const float *gain = c->gain.data, *bias = c->bias.data;
    float *stats = row_at(r[STATS], first), *again = row_at(r[STATS_AGAIN], first);
    float *dgain = r[DGAIN].data, *dbias = r[DBIAS].data;
    tensor x = rows_of(c->residual, first, n), add = rows_of(c->add, first, n);
    tensor out = rows_of(r[NORM_OUT], first, n), out_again = rows_of(r[AGAIN], first, n);
    tensor sum = rows_of(r[SUM], first, n), dx = rows_of(r[DX], first, n);
    tensor dout = rows_of(c->dout, first, n);
    if (c->rms) {
        b->rms_forward(b, out, sum, stats, x, add, gain, EPS);
        b->rms_forward(b, out_again, sum, again, sum, nothing, gain, EPS);
        b->rms_backward(b, dx, dgain, dout, sum, stats, gain);
    } else {
        b->norm_forward(b, out, sum, stats, x, add, gain, bias, EPS);
        b->norm_forward(b, out_again, sum, again, sum, nothing, gain, bias, EPS);
        b->norm_backward(b, dx, dgain, dbias, dout, sum, stats, gain);
    }
}

static op_case norm_case(const norm_inputs* c, const format* store) {
    int rows = c->dout.rows, cols = c->dout.cols;
    op_case o = {c->rms ? "RMS norm" : "layer norm",
                 run_norm,
                 c,
                 rows,
                 0,
                 DBIAS + !c->rms,
                 NORM_NAMES,
                 {{0}}};
    for (int i = 0; i <= AGAIN; i++) o.results[i] = matrix_new(rows, cols, store);
    o.results[STATS] = array_new(rows, 2, 0, &FORMAT_FP32);
    o.results[STATS_AGAIN] = array_new(rows, 2, 0, &FORMAT_FP32);
    o.results[DX] = to_round(rows, cols, store);
    o.results[DGAIN] = vector_random(cols);
    o.results[DBIAS] = vector_random(cols);
    return o;
}

// `own`: format of what comes in; another than `store` leaves each rounding work to do.
static void check_norm_case(int rms, shape s, const format* store, const format* own,
                            int everywhere) {
    int mark = array_count;
    norm_inputs c = {rms,
                     matrix_random(s.rows, s.cols, own),
                     matrix_random(s.rows, s.cols, own),
                     vector_random(s.cols),
                     vector_random(s.cols),
                     matrix_random(s.rows, s.cols, &FORMAT_FP32)};
    op_case o = norm_case(&c, store);
    o.what = shape_text(o.what, s, store);
    check_case_on(&o, everywhere ? 0 : device_next(), everywhere ? 1 : device_step);
    if (s.rows > 10) check_formats_show(&o);
    arrays_free(mark, o.what);
}

static void check_norms(void) {
    for (int rms = 0; rms < 2; rms++) {
        for (int i = 0; i < SHAPE_COUNT * STORE_COUNT; i++) {
            const format* store = STORES[i % STORE_COUNT];
            check_norm_case(rms, SHAPES[i / STORE_COUNT], store, store, 0);
            if (i % STORE_COUNT)
                check_norm_case(rms, SHAPES[i / STORE_COUNT], store, &FORMAT_FP32, 0);
        }
        check_norm_case(rms, (shape){64, 5000}, STORES[0], STORES[0], 1);
    }
}

static void check_norm_known(backend* b, int rms) {
    int mark = array_count;
    const char* op = rms ? "rms" : "norm";
    norm_inputs c = {rms,
                     fixture_matrix(op, "residual", 6, 3),
                     fixture_matrix(op, "add", 6, 1),
                     fixture_matrix(op, "gain", 1, 0),
                     vector_new(20),
                     fixture_matrix(op, "dout", 6, 2)};
    if (!rms) c.bias = fixture_matrix(op, "bias", 1, 0);
    tensor later = fixture_matrix(op, "dlater", 6, 3);  // what the sum's other readers give
    op_case o = norm_case(&c, &FORMAT_FP32);
    const tensor* r = o.results;
    for (int i = DX; i <= DBIAS; i++) set_zero(r[i]);
    copy_values(r[DX], later);
    run_norm(b, &c, r, 0, 6);
    check_fixture(r[SUM], op, "total", b);
    check_fixture(r[NORM_OUT], op, "out", b);
    check_fixture(r[DX], op, "dresidual", b);
    check_fixture(r[DGAIN], op, "dgain", b);
    if (!rms) check_fixture(r[DBIAS], op, "dbias", b);

    tensor moved[] = {c.residual, c.add, c.gain, c.bias};
    for (int i = 0; i < 4 - rms; i++) fill_grid(moved[i]);
    for (int i = DX; i <= DBIAS; i++) set_zero(r[i]);
    copy_values(r[DX], later);
    run_norm(b, &c, r, 0, 6);
    tensor gradient[] = {matrix_copy(r[DX]), matrix_copy(r[DX]), matrix_copy(r[DGAIN]),
                         matrix_copy(r[DBIAS])};
    slope_case s = {b, &o, r, {NORM_OUT, SUM}, {c.dout, later}};
    // 20 roundings of h, about: the sums' four, the root, the quotient.
    for (int i = 0; i < 4 - rms; i++)
        check_slopes(moved[i], gradient[i], result_loss, &s, 20,
                     text("slope of %s by its %s", o.what,
                          (const char*[]){"residual", "sum", "gain", "bias"}[i]));
    arrays_free(mark, o.what);
}

// ------------------------------------------------------------------------------------------------
// Ops on the heads of queries and keys: their RMS norm, and rotary positions

typedef struct head_inputs {
    head_shape heads;
    tensor qkv, dout, gain, turn;
    int* position;
} head_inputs;

enum { NORMED, HEAD_STATS, DQKV, HEAD_DGAIN, TURNED, TURNED_BACK, HEAD_RESULTS };
static const char* const HEAD_NAMES[] = {"normed", "stats", "dqkv", "dgain", "turned", "dqkv"};

static void run_heads(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const head_inputs* c = inputs;
    tensor qkv = rows_of(c->qkv, first, n), dout = rows_of(c->dout, first, n);
    float* stats = row_at(r[HEAD_STATS], first);
    const float *gain = c->gain.data, *turn = c->turn.data;
    const int* position = c->position + first;
    b->qk_norm_forward(b, rows_of(r[NORMED], first, n), stats, qkv, gain, c->heads, EPS);
    b->qk_norm_backward(b, rows_of(r[DQKV], first, n), r[HEAD_DGAIN].data, dout, qkv, stats, gain,
                        c->heads);
    b->rope(b, rows_of(r[TURNED], first, n), qkv, turn, position, c->heads, 0);
    b->rope(b, rows_of(r[TURNED_BACK], first, n), dout, turn, position, c->heads, 1);
}

static op_case heads_case(const head_inputs* c, const format* f) {
    int rows = c->qkv.rows, cols = c->qkv.cols;
    op_case o = {"heads", run_heads, c, rows, 0, HEAD_RESULTS, HEAD_NAMES, {{0}}};
    for (int i = 0; i < HEAD_RESULTS; i++) o.results[i] = matrix_new(rows, cols, f);
    o.results[HEAD_STATS] = array_new(rows, c->heads.query + c->heads.kv, 0, &FORMAT_FP32);
    o.results[HEAD_DGAIN] = weight_random(2, c->heads.dim);
    return o;
}

// Some rows are at position -1: they are copied.
static void check_heads_case(head_shape heads, int rows, const format* f, const format* own,
                             int everywhere) {
    enum { POSITIONS = 11 };
    int mark = array_count, cols = (heads.query + 2 * heads.kv) * heads.dim;
    head_inputs c = {heads,
                     matrix_random(rows, cols, own),
                     matrix_random(rows, cols, &FORMAT_FP32),
                     weight_random(2, heads.dim),
                     weight_random(POSITIONS, heads.dim),
                     ints_new(rows)};
    for (int r = 0; r < rows; r++) c.position[r] = random_between(-1, POSITIONS - 1);
    op_case o = heads_case(&c, f);
    o.what = text("%d rows of %d and %d heads of %d, %s", rows, heads.query, heads.kv, heads.dim,
                  f->name);
    check_case_on(&o, everywhere ? 0 : device_next(), everywhere ? 1 : device_step);
    if (own != f && rows > 5) check_formats_show(&o);
    arrays_free(mark, o.what);
}

static void check_heads(void) {
    static const head_shape shapes[] = {{1, 1, 2},  {2, 1, 6},  {4, 2, 16}, {3, 3, 18}, {8, 2, 32},
                                        {6, 1, 34}, {2, 2, 66}, {1, 1, 80}, {9, 3, 4}};
    static const int rows[] = {1, 2, 5, 17, 40};
    for (int i = 0; i < 9 * STORE_COUNT; i++) {
        const format* f = STORES[i % STORE_COUNT];
        check_heads_case(shapes[i / STORE_COUNT], rows[i % 5], f, f, 0);
        if (f != &FORMAT_FP32)
            check_heads_case(shapes[i / STORE_COUNT], rows[i % 5], f, &FORMAT_FP32, 0);
    }
    check_heads_case((head_shape){12, 4, 64}, 300, STORES[1], STORES[0], 1);
}

static void check_heads_known(backend* b) {
    int mark = array_count;
    for (int i = 0; i < 2; i++) {
        const char* op = i ? "rope" : "qk_norm";
        int rows = i ? 6 : 7, *count = fixture_ints(op, "heads");
        head_inputs c = {.qkv = fixture_matrix(op, "qkv", rows, 3),
                         .dout = fixture_matrix(op, "dout", rows, 1)};
        c.heads = (head_shape){count[0], count[1], c.qkv.cols / (count[0] + 2 * count[1])};
        c.gain = i ? weight_grid(2, c.heads.dim) : fixture_matrix(op, "gain", 2, 0);
        c.turn = i ? fixture_matrix(op, "turn", 9, 0) : weight_grid(9, c.heads.dim);
        c.position = i ? fixture_ints(op, "position") : ints_new(rows);
        for (int r = 0; r < rows && !i; r++) c.position[r] = r;
        op_case o = heads_case(&c, &FORMAT_FP32);
        const tensor* r = o.results;
        set_zero(r[HEAD_DGAIN]);
        run_heads(b, &c, r, 0, rows);
        check_fixture(r[i ? TURNED : NORMED], op, "out", b);
        check_fixture(r[i ? TURNED_BACK : DQKV], op, "dqkv", b);
        if (!i) check_fixture(r[HEAD_DGAIN], op, "dgain", b);

        fill_grid(c.qkv);
        fill_grid(c.gain);
        set_zero(r[HEAD_DGAIN]);
        run_heads(b, &c, r, 0, rows);
        tensor dqkv = matrix_copy(r[i ? TURNED_BACK : DQKV]), dgain = matrix_copy(r[HEAD_DGAIN]);
        slope_case s = {b, &o, r, {i ? TURNED : NORMED, -1}, {c.dout}};
        check_slopes(c.qkv, dqkv, result_loss, &s, i ? 3 : 20, text("slope of %s by qkv", op));
        if (!i) check_slopes(c.gain, dgain, result_loss, &s, 20, "slope of qk_norm by its gain");
    }
    arrays_free(mark, "heads");
}

// ------------------------------------------------------------------------------------------------
// GELU and SwiGLU

typedef struct activation_inputs {
    tensor pre, both, dout;  // both: SwiGLU's input
} activation_inputs;

enum { GELU_OUT, DPRE, DPRE_IN_PLACE, SWIGLU_OUT, DBOTH, ACTIVATION_RESULTS };
static const char* const ACTIVATION_NAMES[] = {"GELU", "dpre", "dpre in place", "SwiGLU", "dpre"};

static void run_activations(backend* b, const void* inputs, const tensor* r, int first, int n) {
    const activation_inputs* c = inputs;
    tensor pre = rows_of(c->pre, first, n), both = rows_of(c->both, first, n);
    tensor dout = rows_of(c->dout, first, n), to = rows_of(r[DPRE_IN_PLACE], first, n);
    tensor in_place = to;
    in_place.format = &FORMAT_FP32;
    copy_values(in_place, dout);
    b->gelu_forward(b, rows_of(r[GELU_OUT], first, n), pre);
    b->gelu_backward(b, rows_of(r[DPRE], first, n), dout, pre);
    b->gelu_backward(b, to, in_place, pre);
    b->swiglu_forward(b, rows_of(r[SWIGLU_OUT], first, n), both);
    b->swiglu_backward(b, rows_of(r[DBOTH], first, n), dout, both);
}

static op_case activation_case(const activation_inputs* c, const format* f) {
    int rows = c->pre.rows, cols = c->pre.cols;
    op_case o = {"activations",      run_activations,  c,    rows, 0,
                 ACTIVATION_RESULTS, ACTIVATION_NAMES, {{0}}};
    for (int i = 0; i < DBOTH; i++) o.results[i] = matrix_new(rows, cols, f);
    o.results[DBOTH] = matrix_new(rows, 2 * cols, f);
    return o;
}

static void check_activations(void) {
    for (int i = 0; i < SHAPE_COUNT * STORE_COUNT; i++) {
        int mark = array_count;
        shape s = SHAPES[i / STORE_COUNT];
        const format* f = STORES[i % STORE_COUNT];
        activation_inputs c = {matrix_random(s.rows, s.cols, f),
                               matrix_random(s.rows, 2 * s.cols, f),
                               matrix_random(s.rows, s.cols, &FORMAT_FP32)};
        op_case o = activation_case(&c, f);
        o.what = shape_text("activations", s, f);
        check_case(&o);
        if (s.rows > 10) check_formats_show(&o);
        arrays_free(mark, o.what);
    }
}

static void check_activations_known(backend* b) {
    int mark = array_count;
    activation_inputs c = {fixture_matrix("gelu", "pre", 4, 3),
                           fixture_matrix("swiglu", "pre", 4, 1),
                           fixture_matrix("gelu", "dout", 4, 0)};
    op_case o = activation_case(&c, &FORMAT_FP32);
    const tensor* r = o.results;
    run_activations(b, &c, r, 0, 4);
    check_fixture(r[GELU_OUT], "gelu", "out", b);
    check_fixture(r[DPRE], "gelu", "dpre", b);
    copy_values(c.dout, fixture_matrix("swiglu", "dout", 4, 0));
    run_activations(b, &c, r, 0, 4);
    check_fixture(r[SWIGLU_OUT], "swiglu", "out", b);
    check_fixture(r[DBOTH], "swiglu", "dpre", b);

    fill_grid(c.pre);
    fill_grid(c.both);
    run_activations(b, &c, r, 0, 4);
    tensor dpre = matrix_copy(r[DPRE]), dboth = matrix_copy(r[DBOTH]);
    slope_case s = {b, &o, r, {GELU_OUT, SWIGLU_OUT}, {c.dout, c.dout}};
    check_slopes(c.pre, dpre, result_loss, &s, 8, "slope of GELU");
    check_slopes(c.both, dboth, result_loss, &s, 8, "slope of SwiGLU");
    arrays_free(mark, "activations");
}

int main(void) {
    devices_open();
    check_embed();
    check_norms();
    check_heads();
    check_activations();
    for (int d = 0; d <= device_count; d += device_step) {
        check_embed_known(devices[d]);
        check_norm_known(devices[d], 0);
        check_norm_known(devices[d], 1);
        check_heads_known(devices[d]);
        check_activations_known(devices[d]);
    }
    fixtures_close();
    devices_close();
    return test_report();
}
