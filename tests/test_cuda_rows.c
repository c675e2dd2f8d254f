// The CUDA device's memory, and its ops on rows: embeddings, layer norm, GELU. See cuda_test.h for
// the method.
#include "cuda_test.h"
#include "refusal.h"

static const format* const STORES[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16};
enum { STORE_COUNT = 3 };

typedef tensor on_gpu(tensor host);  // gpu_matrix or gpu_matrix_odd

// As `put`, with another stride: matrices of one op have strides of their own. 16-byte accesses fit
// where they do with put.
static tensor put_wider(on_gpu* put, tensor host, int packets) {
    return gpu_matrix_gap(host, packets * 8 + (put == gpu_matrix ? 0 : ROW_GAP));
}

// ------------------------------------------------------------------------------------------------
// Opening, in processes of their own: a CUDA context does not survive a fork.

static void open_without_gpu(const void* unused) {
    const char* why = NULL;
    (void)unused;
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    setenv("PTX_DEVICES", "0", 1);
    backend* b = cuda_open(PRODUCTS_HANDWRITTEN, &why);
    fatal("%s, because %s", b ? "opened" : "not opened", why);
}

static void ask_for_too_much(const void* unused) {
    const char* why;
    (void)unused;
    backend* b = cuda_open(PRODUCTS_HANDWRITTEN, &why);
    b->alloc(b, (size_t)1 << 50, "the KV cache (lower --slots)");
}

static void test_opening(void) {
    check_refusal(open_without_gpu, NULL, "no GPU",
                  (const char* [REFUSAL_WORDS]){"not opened, because there is no NVIDIA"});
    check_refusal(ask_for_too_much, NULL, "a petabyte",
                  (const char* [REFUSAL_WORDS]){"the KV cache (lower --slots): no GPU memory for "
                                                "1125899906.8 MB",
                                                "MB are free"});
}

// ------------------------------------------------------------------------------------------------
// Memory

static void test_memory(void) {
    size_t before = gpu->allocated;
    char out[100], *p = gpu->alloc(gpu, 100, "a test"), *q = gpu->alloc(gpu, 100, "a test");
    CHECK(gpu->allocated == before + 200, "%zu bytes are held", gpu->allocated);
    gpu->download(gpu, out, p, 100);
    for (int i = 0; i < 100; i++) CHECK(out[i] == 0, "fresh memory holds %d at %d", out[i], i);
    for (int i = 0; i < 100; i++) out[i] = (char)i;
    gpu->upload(gpu, p, out, 100);
    gpu->copy(gpu, q + 1, p, 50);
    gpu->clear(gpu, p + 10, 5);
    gpu->download(gpu, out, q, 100);
    for (int i = 0; i < 100; i++)
        CHECK(out[i] == (i >= 1 && i < 51 ? i - 1 : 0), "copied: %d at %d", out[i], i);
    gpu->download(gpu, out, p, 100);
    for (int i = 0; i < 100; i++)
        CHECK(out[i] == (i >= 10 && i < 15 ? 0 : i), "cleared: %d at %d", out[i], i);
    gpu->sync(gpu);
    gpu->release(gpu, p, 100);
    gpu->release(gpu, q, 100);
    CHECK(gpu->allocated == before, "%zu bytes are held after release", gpu->allocated);
}

// ------------------------------------------------------------------------------------------------
// Embeddings: the same bits as on the CPU.

static void check_embed(int rows, int cols, int tokens, int positions, const format* f,
                        on_gpu* put) {
    int mark = array_count, gpu_mark = gpu_array_count;
    const char* what = text("embed %d x %d, %d tokens, %s", rows, cols, tokens, f->name);
    tensor wte = weight_random(tokens, cols), wpe = weight_random(positions, cols);
    tensor dwte = weight_random(tokens, cols), dwpe = weight_random(positions, cols);
    tensor out = matrix_new(rows, cols, f), dout = matrix_random(rows, cols, f);
    int *token = ints_new(rows), *position = ints_new(rows);
    for (int r = 0; r < rows; r++) {
        token[r] = random_below(tokens);
        position[r] = random_below(positions);
    }
    tensor gwte = gpu_matrix(wte), gwpe = gpu_matrix(wpe), gdout = put(dout);
    int *gtoken = gpu_copy(token, rows * sizeof(int)), *at = position;
    int* gposition = gpu_copy(position, rows * sizeof(int));
    tensor edwte = matrix_copy(dwte), edwpe = matrix_copy(dwpe);
    cpu->embed_backward(cpu, edwte.data, edwpe.data, dout, token, position);
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        tensor gdwte = gpu_matrix(dwte), gdwpe = gpu_matrix(dwpe);
        gpu->embed_backward(gpu, gdwte.data, gdwpe.data, gdout, gtoken, gposition);
        check_same(gpu_read(gdwte), edwte, "dwte", what, gpu);
        check_same(gpu_read(gdwpe), edwpe, "dwpe", what, gpu);
    }
    tensor gdwte = gpu_matrix(dwte);
    gpu->embed_backward(gpu, gdwte.data, NULL, gdout, gtoken, gposition);
    check_same(gpu_read(gdwte), edwte, "dwte without positions", what, gpu);
    at[rows / 2] = -1;  // an idle row, as decoding has them
    gpu->upload(gpu, gposition, position, rows * sizeof(int));
    tensor gout = put(out), gbare = put(out), bare = matrix_copy(out);
    cpu->embed_forward(cpu, out, wte.data, wpe.data, token, position);
    cpu->embed_forward(cpu, bare, wte.data, NULL, token, position);
    gpu->embed_forward(gpu, gout, gwte.data, gwpe.data, gtoken, gposition);
    gpu->embed_forward(gpu, gbare, gwte.data, NULL, gtoken, gposition);
    check_same(gpu_read(gout), out, "out", what, gpu);
    check_same(gpu_read(gbare), bare, "out without positions", what, gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void test_embed(void) {
    for (int i = 0; i < STORE_COUNT; i++) {
        check_embed(1, 1, 1, 1, STORES[i], gpu_matrix);
        check_embed(70, 24, 5, 9, STORES[i], gpu_matrix_odd);
        check_embed(300, 40, 1000, 64, STORES[i], gpu_matrix);
        // More columns than a block adds at once.
        check_embed(3, 2100, 2, 3, STORES[i], gpu_matrix);
        if (!quick()) check_embed(600, 2100, 3, 300, STORES[i], gpu_matrix);
    }
}

// ------------------------------------------------------------------------------------------------
// Layer norm. float64 from the same rounded inputs.

typedef struct norm_exact {
    double *out, *stats, *dresidual, *dgain, *dbias;  // (rows, cols), (rows, 2), ..., (cols)
} norm_exact;

static norm_exact norm_exact_new(int rows, int cols) {
    size_t n = (size_t)rows * cols;
    double* p = xalloc(2 * n + 2 * rows + 2 * cols, sizeof *p, "exact values");
    norm_exact e = {p, p + n, p + n + 2 * rows, p + 2 * n + 2 * rows, p + 2 * n + 2 * rows + cols};
    return e;
}

// total: the rounded residual sum, which is exact by construction.
static norm_exact norm_in_double(tensor total, const float* gain, const float* bias, tensor dout,
                                 tensor dlater, const float* dgain, const float* dbias) {
    int n = total.cols;
    norm_exact e = norm_exact_new(total.rows, n);
    for (int c = 0; c < n; c++) e.dgain[c] = dgain[c], e.dbias[c] = dbias[c];
    for (int r = 0; r < total.rows; r++) {
        const float *x = row_at(total, r), *d = row_at(dout, r);
        double mean = 0, variance = 0, mean_d = 0, mean_dh = 0;
        for (int c = 0; c < n; c++) mean += (double)x[c] / n;
        for (int c = 0; c < n; c++) variance += (x[c] - mean) * (x[c] - mean) / n;
        double rstd = 1 / sqrt(variance + 1e-5);
        e.stats[2 * r] = mean;
        e.stats[2 * r + 1] = rstd;
        for (int c = 0; c < n; c++) {
            double h = (x[c] - mean) * rstd, dn = (double)d[c] * gain[c];
            e.out[(size_t)r * n + c] = h * gain[c] + bias[c];
            e.dgain[c] += d[c] * h;
            e.dbias[c] += d[c];
            mean_d += dn / n;
            mean_dh += dn * h / n;
        }
        for (int c = 0; c < n; c++) {
            double h = (x[c] - mean) * rstd, dn = (double)d[c] * gain[c];
            e.dresidual[(size_t)r * n + c] =
                row_at(dlater, r)[c] + (dn - mean_d - h * mean_dh) * rstd;
        }
    }
    return e;
}

// The schedule's results must be those of the first one; then they may be looked at.
static void same_as_first(tensor now, tensor* first, int s, const char* name, const char* what) {
    if (s == 0)
        *first = now;
    else
        check_same(now, *first, name, what, gpu);
}

static void check_norm(int rows, int cols, const format* f, int with_add, on_gpu* put) {
    int mark = array_count, gpu_mark = gpu_array_count;
    const char* what = text("norm %d x %d, %s%s", rows, cols, f->name, with_add ? " + add" : "");
    tensor residual = matrix_random(rows, cols, f), add = matrix_random(rows, cols, f);
    tensor gain = vector_random(cols), bias = vector_random(cols);
    tensor dout = matrix_random(rows, cols, &FORMAT_FP32), dlater = matrix_random(rows, cols, f);
    tensor dgain = vector_random(cols), dbias = vector_random(cols);
    tensor none = {NULL, 0, 0, 0, NULL};

    // The CPU device
    tensor total = matrix_copy(residual), out = matrix_new(rows, cols, f);
    tensor stats = vector_new(2 * rows), dres = matrix_copy(dlater);
    tensor dg = matrix_copy(dgain), db = matrix_copy(dbias);
    cpu->norm_forward(cpu, out, total, stats.data, residual, with_add ? add : none, gain.data,
                      bias.data, 1e-5f);
    cpu->norm_backward(cpu, dres, dg.data, db.data, dout, total, stats.data, gain.data);
    norm_exact e =
        norm_in_double(total, gain.data, bias.data, dout, dlater, dgain.data, dbias.data);

    tensor ggain = gpu_matrix(gain), gbias = gpu_matrix(bias), gdout = put_wider(put, dout, 1);
    tensor gadd = put_wider(put, add, 2);
    tensor first[6] = {{0}};
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        tensor gresidual = put_wider(put, residual, 3), gtotal = with_add ? put(out) : gresidual;
        tensor gout = put_wider(put, out, 4), gstats = gpu_matrix(stats), gdres = put(dlater);
        tensor gdg = gpu_matrix(dgain), gdb = gpu_matrix(dbias);
        gpu->norm_forward(gpu, gout, gtotal, gstats.data, gresidual, with_add ? gadd : none,
                          ggain.data, gbias.data, 1e-5f);
        gpu->norm_backward(gpu, gdres, gdg.data, gdb.data, gdout, gtotal, gstats.data, ggain.data);
        same_as_first(gpu_read(gtotal), &first[0], s, "total", what);
        same_as_first(gpu_read(gout), &first[1], s, "out", what);
        same_as_first(gpu_read(gstats), &first[2], s, "stats", what);
        same_as_first(gpu_read(gdres), &first[3], s, "dresidual", what);
        same_as_first(gpu_read(gdg), &first[4], s, "dgain", what);
        same_as_first(gpu_read(gdb), &first[5], s, "dbias", what);
    }
    check_same(first[0], total, "total", what, gpu);
    // A row of one element is its own mean: its results are exactly bias and 0, on both devices.
    check_error(first[1], out, e.out, 0, "out", what);
    // 1 / root is rounded twice, and mostly between 1 and 2.
    check_error(first[2], stats, e.stats, 0x1p-23, "stats", what);
    check_error(first[3], dres, e.dresidual, 0x1p-24, "dresidual", what);
    check_error(first[4], dg, e.dgain, 0x1p-22, "dgain", what);
    check_error(first[5], db, e.dbias, 0x1p-22, "dbias", what);
    free(e.out);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void test_norm(void) {
    static const int SHAPES[][2] = {{1, 1},   {3, 7},   {5, 8},    {40, 64},
                                    {65, 72}, {9, 257}, {130, 768}};
    int shapes = quick() ? 5 : 7;
    for (int i = 0; i < STORE_COUNT; i++)
        for (int j = 0; j < shapes; j++) {
            on_gpu* put = (i + j) % 3 ? gpu_matrix : gpu_matrix_odd;
            check_norm(SHAPES[j][0], SHAPES[j][1], STORES[i], 1, put);
            if (j % 2) check_norm(SHAPES[j][0], SHAPES[j][1], STORES[i], 0, put);
        }
    if (!quick()) check_norm(520 * 16 + 3, 8, &FORMAT_BF16, 1, gpu_matrix);  // the longer strips
}

// ------------------------------------------------------------------------------------------------
// GELU: the same bits as on the CPU.

static void check_gelu(int rows, int cols, const format* f, on_gpu* put) {
    int mark = array_count, gpu_mark = gpu_array_count;
    const char* what = text("gelu %d x %d, %s", rows, cols, f->name);
    tensor pre = matrix_random(rows, cols, f), dout = matrix_random(rows, cols, &FORMAT_FP32);
    tensor out = matrix_new(rows, cols, f), dpre = matrix_new(rows, cols, f);
    cpu->gelu_forward(cpu, out, pre);
    cpu->gelu_backward(cpu, dpre, dout, pre);
    tensor gpre = put_wider(put, pre, 1), gdout = put_wider(put, dout, 2);
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        tensor gout = put(dpre), gdpre = put(out);  // to be overwritten
        gpu->gelu_forward(gpu, gout, gpre);
        gpu->gelu_backward(gpu, gdpre, gdout, gpre);
        check_same(gpu_read(gout), out, "out", what, gpu);
        check_same(gpu_read(gdpre), dpre, "dpre", what, gpu);
    }
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void test_gelu(void) {
    for (int i = 0; i < STORE_COUNT; i++) {
        check_gelu(1, 1, STORES[i], gpu_matrix);
        check_gelu(5, 24, STORES[i], gpu_matrix);
        check_gelu(5, 24, STORES[i], gpu_matrix_odd);
        check_gelu(33, 65, STORES[i], gpu_matrix);
    }
}

int main(void) {
    test_opening();
    cuda_test_open();
    test_memory();
    test_embed();
    test_norm();
    test_gelu();
    cuda_test_close();
    return test_report();
}
