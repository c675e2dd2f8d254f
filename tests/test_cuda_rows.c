// The CUDA device's memory, and its ops on rows: embeddings, the norms, the norm and the rotation
// of heads, the activations. See cuda_test.h for the method.
#include <dlfcn.h>

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

// In libc's place: notes who asks for NCCL and, in order, which versions of cuBLASLt, of which it
// finds none if it is told so.
static int nccl_asked_for, cublaslt_hidden;
static char cublaslt_asked_for[256];
void* dlopen(const char* name, int flags) {
    void* (*next)(const char*, int) = (void* (*)(const char*, int))dlsym(RTLD_NEXT, "dlopen");
    const char* version = name ? strstr(name, "libcublasLt.so") : NULL;
    nccl_asked_for |= name && strstr(name, "libnccl");
    if (!version || !cublaslt_hidden) return next(name, flags);
    size_t n = strlen(cublaslt_asked_for);
    if (version == name)  // not in a folder: each version once
        snprintf(cublaslt_asked_for + n, sizeof cublaslt_asked_for - n, " %s", version + 11);
    return NULL;
}

// Of the runtime: that of the PTX machine is as new as it is told, a GPU's is the build's.
int runtime_version(int* version) __asm__("cudaRuntimeGetVersion");

static void open_library(const void* release) {
    const char* why;
    setenv("PTX_RUNTIME", release, 1);
    cublaslt_hidden = 1;
    backend* b = cuda_open(PRODUCTS_AUTO, &why);
    fatal("asked for%s; %s", cublaslt_asked_for, b->name);
}

// The library of the runtime's release is tried before another one's.
static void check_library_order(const char* release) {
    int version;
    setenv("PTX_RUNTIME", release, 1);
    runtime_version(&version);
    unsetenv("PTX_RUNTIME");
    const char* order = version / 1000 == 12 ? "asked for .so.12 .so.13 .so.12 .so; cuda"
                                             : "asked for .so.13 .so.13 .so.12 .so; cuda";
    check_refusal(open_library, release, "cuBLASLt's versions",
                  (const char* [REFUSAL_WORDS]){order, "cuBLASLt not found"});
}

// A device that exchanges nothing does without NCCL.
static void open_and_close(const void* unused) {
    const char* why;
    (void)unused;
    cuda_close(cuda_open(PRODUCTS_HANDWRITTEN, &why));
    fatal("opened and closed %s NCCL", nccl_asked_for ? "with" : "without");
}

static void open_of_capability(const void* capability) {
    const char* why = NULL;
    setenv("PTX_CAPABILITY", capability, 1);
    backend* b = cuda_open(PRODUCTS_WGMMA, &why);
    fatal("%s, because %s", b ? "opened" : "not opened", why);
}

// Other GPUs than Hopper have no wgmma. Only the PTX machine can be another GPU; PTX_SUM is set
// where it may be used.
static void check_capabilities(void) {
    static const char* const without[] = {"80", "89", "100", "120"};
    if (!getenv("PTX_SUM")) return;
    for (int i = 0; i < 4; i++)
        check_refusal(open_of_capability, without[i], "wgmma on another GPU",
                      (const char* [REFUSAL_WORDS]){"--products wgmma: PTX machine has no wgmma",
                                                    "use --products handwritten"});
    check_refusal(
        open_of_capability, "75", "an old GPU",
        (const char* [REFUSAL_WORDS]){"not opened, because the GPU is older than Ampere"});
}

static void test_opening(void) {
    check_capabilities();
    check_refusal(open_and_close, NULL, "a device alone",
                  (const char* [REFUSAL_WORDS]){"opened and closed without NCCL"});
    check_library_order("13000");
    check_library_order("12080");
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

// What is put aside begins after what was issued before it, and join waits for it.
static void test_aside(void) {
    enum { N = 100000, TIMES = 40 };
    float *x = gpu->alloc(gpu, N * 4, "a test"), *y = gpu->alloc(gpu, N * 4, "a test");
    float *one = gpu->alloc(gpu, N * 4, "a test"), *host = xalloc(N, 4, "a test");
    for (int i = 0; i < N; i++) host[i] = 1;
    gpu->upload(gpu, one, host, N * 4);
    for (int s = 0; s < schedules; s++) {
        int wrong = 0;
        schedule_set(s);
        gpu->clear(gpu, x, N * 4);
        gpu->clear(gpu, y, N * 4);
        for (int i = 0; i < TIMES; i++) gpu->add(gpu, x, one, N);
        gpu->aside(gpu, 1);
        for (int i = 0; i < TIMES; i++) gpu->add(gpu, y, x, N);
        gpu->aside(gpu, 0);
        gpu->join(gpu);
        gpu->add(gpu, x, y, N);
        gpu->download(gpu, host, x, N * 4);
        for (int i = 0; i < N; i++) wrong += host[i] != TIMES + TIMES * TIMES;
        CHECK(wrong == 0, "schedule %d: %d of %d sums are wrong", s, wrong, N);
    }
    schedule_set(0);
    gpu->release(gpu, x, N * 4);
    gpu->release(gpu, y, N * 4);
    gpu->release(gpu, one, N * 4);
    free(host);
}

// An upload has what its source held when it was called, however small or large it is and however
// many there are before anybody waits.
static void test_uploads(void) {
    static const size_t sizes[] = {0, 1, 100, 65535, 65536, 65537, 70000, 1 << 20};
    enum { SIZES = 8, TURNS = 5, MOST = 1 << 20 };
    size_t n = SIZES * TURNS, before = gpu->allocated;
    char *there = gpu->alloc(gpu, n * MOST, "a test"), *host = xalloc(MOST, 1, "a test");
    for (size_t i = 0; i < n; i++) {
        memset(host, (int)i + 1, MOST);
        gpu->upload(gpu, there + i * MOST, host, sizes[i % SIZES]);
    }
    for (int i = 0; i < 40; i++) {  // 2.6 MB, of which none waits by itself
        memset(host, 100 + i, MOST);
        gpu->upload(gpu, there + i * MOST + (1 << 19), host, 65536);
    }
    for (size_t i = 0; i < n; i++) {
        size_t size = sizes[i % SIZES], wrong = 0;
        gpu->download(gpu, host, there + i * MOST, MOST);
        for (size_t j = 0; j < MOST; j++) {
            int second = i < 40 && j >= 1 << 19 && j < (1 << 19) + 65536;
            char expected = (char)(second ? 100 + i : j < size ? i + 1 : 0);
            wrong += host[j] != expected;
        }
        CHECK(wrong == 0, "upload %d, of %zu bytes: %zu are wrong", (int)i, size, wrong);
    }
    gpu->release(gpu, there, n * MOST);
    free(host);
    CHECK(gpu->allocated == before, "%zu bytes are held after uploads", gpu->allocated);
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
// Layer norm and RMS norm. float64 from the same rounded inputs.

#define EPS 1e-5f

typedef struct norm_exact {
    double *out, *stats, *dresidual, *dgain, *dbias;  // (rows, cols), (rows, 2), ..., (cols)
    double dgain_floor, dbias_floor;                  // errors that are always allowed
} norm_exact;

static norm_exact norm_exact_new(int rows, int cols) {
    size_t n = (size_t)rows * cols;
    double* p = xalloc(2 * n + 2 * rows + 2 * cols, sizeof *p, "exact values");
    norm_exact e = {.out = p,
                    .stats = p + n,
                    .dresidual = p + n + 2 * rows,
                    .dgain = p + 2 * n + 2 * rows,
                    .dbias = p + 2 * n + 2 * rows + cols};
    return e;
}

// A gradient of gain or bias is what was there, and a term of each row. A term meets up to six
// roundings (the root, its inverse, h, the product, two sums), each of at most 2^-24 of it and
// mostly of less: 4 are allowed for. Those of rows are independent, so their squares add up.
// `squares`: of all terms.
static double sum_floor(double squares, int cols) { return 0x1p-22 * sqrt(squares / cols); }

// total: the rounded residual sum, which is exact by construction. bias: NULL for RMS norm, which
// takes 0 for the means of x and of the gradient.
static norm_exact norm_in_double(tensor total, const float* gain, const float* bias, tensor dout,
                                 tensor dlater, const float* dgain, const float* dbias) {
    int n = total.cols;
    norm_exact e = norm_exact_new(total.rows, n);
    double gain_squares = 0, bias_squares = 0;
    for (int c = 0; c < n; c++) {
        e.dgain[c] = dgain[c], e.dbias[c] = bias ? dbias[c] : 0;
        gain_squares += e.dgain[c] * e.dgain[c];
        bias_squares += e.dbias[c] * e.dbias[c];
    }
    for (int r = 0; r < total.rows; r++) {
        const float *x = row_at(total, r), *d = row_at(dout, r);
        double mean = 0, variance = 0, mean_d = 0, mean_dh = 0;
        for (int c = 0; c < n && bias; c++) mean += (double)x[c] / n;
        for (int c = 0; c < n; c++) variance += (x[c] - mean) * (x[c] - mean) / n;
        double rstd = 1 / sqrt(variance + (double)EPS);
        e.stats[2 * r] = mean;
        e.stats[2 * r + 1] = rstd;
        for (int c = 0; c < n; c++) {
            double h = (x[c] - mean) * rstd, dn = (double)d[c] * gain[c];
            e.out[(size_t)r * n + c] = h * gain[c] + (bias ? bias[c] : 0);
            e.dgain[c] += d[c] * h;
            e.dbias[c] += d[c];
            gain_squares += d[c] * h * d[c] * h;
            bias_squares += (double)d[c] * d[c];
            mean_d += bias ? dn / n : 0;
            mean_dh += dn * h / n;
        }
        for (int c = 0; c < n; c++) {
            double h = (x[c] - mean) * rstd, dn = (double)d[c] * gain[c];
            e.dresidual[(size_t)r * n + c] =
                row_at(dlater, r)[c] + (dn - mean_d - h * mean_dh) * rstd;
        }
    }
    e.dgain_floor = sum_floor(gain_squares, n), e.dbias_floor = sum_floor(bias_squares, n);
    return e;
}

// The schedule's results must be those of the first one; then they may be looked at.
static void same_as_first(tensor now, tensor* first, int s, const char* name, const char* what) {
    if (s == 0)
        *first = now;
    else
        check_same(now, *first, name, what, gpu);
}

// Forward and backward of either norm. RMS norm has no bias and leaves dbias as it is.
typedef struct norm_results {
    tensor out, total, stats, dresidual, dgain, dbias;
} norm_results;

static void run_norm(backend* b, int rms, const norm_results* r, tensor residual, tensor add,
                     const float* gain, const float* bias, tensor dout) {
    float *stats = r->stats.data, *dgain = r->dgain.data;
    if (rms) {
        b->rms_forward(b, r->out, r->total, stats, residual, add, gain, EPS);
        b->rms_backward(b, r->dresidual, dgain, dout, r->total, stats, gain);
    } else {
        b->norm_forward(b, r->out, r->total, stats, residual, add, gain, bias, EPS);
        b->norm_backward(b, r->dresidual, dgain, r->dbias.data, dout, r->total, stats, gain);
    }
}

static void check_norm(int rms, int rows, int cols, const format* f, int with_add, on_gpu* put) {
    int mark = array_count, gpu_mark = gpu_array_count;
    const char* what = text("%s %d x %d, %s%s", rms ? "RMS norm" : "norm", rows, cols, f->name,
                            with_add ? " + add" : "");
    tensor residual = matrix_random(rows, cols, f), add = matrix_random(rows, cols, f);
    tensor gain = vector_random(cols), bias = vector_random(cols);
    tensor dout = matrix_random(rows, cols, &FORMAT_FP32), dlater = matrix_random(rows, cols, f);
    tensor dgain = vector_random(cols), dbias = vector_random(cols);
    tensor none = {NULL, 0, 0, 0, NULL};

    // The CPU device
    norm_results plain = {matrix_new(rows, cols, f), matrix_copy(residual), vector_new(2 * rows),
                          matrix_copy(dlater),       matrix_copy(dgain),    matrix_copy(dbias)};
    run_norm(cpu, rms, &plain, residual, with_add ? add : none, gain.data, bias.data, dout);
    norm_exact e = norm_in_double(plain.total, gain.data, rms ? NULL : bias.data, dout, dlater,
                                  dgain.data, dbias.data);

    tensor ggain = gpu_matrix(gain), gbias = gpu_matrix(bias), gdout = put_wider(put, dout, 1);
    tensor gadd = put_wider(put, add, 2);
    tensor first[6] = {{0}};
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        tensor gresidual = put_wider(put, residual, 3);
        norm_results r = {put_wider(put, plain.out, 4),
                          with_add ? put(plain.out) : gresidual,
                          gpu_matrix(plain.stats),
                          put(dlater),
                          gpu_matrix(dgain),
                          gpu_matrix(dbias)};
        run_norm(gpu, rms, &r, gresidual, with_add ? gadd : none, ggain.data, gbias.data, gdout);
        same_as_first(gpu_read(r.total), &first[0], s, "total", what);
        same_as_first(gpu_read(r.out), &first[1], s, "out", what);
        same_as_first(gpu_read(r.stats), &first[2], s, "stats", what);
        same_as_first(gpu_read(r.dresidual), &first[3], s, "dresidual", what);
        same_as_first(gpu_read(r.dgain), &first[4], s, "dgain", what);
        same_as_first(gpu_read(r.dbias), &first[5], s, "dbias", what);
    }
    check_same(first[0], plain.total, "total", what, gpu);
    // A row of one element is its own mean: its results are exactly bias and 0, on both devices.
    check_error(first[1], plain.out, e.out, 0, "out", what);
    // 1 / root is rounded twice, and mostly between 1 and 2.
    check_error(first[2], plain.stats, e.stats, 0x1p-23, "stats", what);
    check_error(first[3], plain.dresidual, e.dresidual, 0x1p-24, "dresidual", what);
    check_error(first[4], plain.dgain, e.dgain, e.dgain_floor, "dgain", what);
    if (rms)
        check_same(first[5], dbias, "dbias", what, gpu);
    else
        check_error(first[5], plain.dbias, e.dbias, e.dbias_floor, "dbias", what);
    free(e.out);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void norm_of_too_many(const void* unused) {
    enum { COLS = 30000 };
    (void)unused;
    const char* why;
    backend* b = cuda_open(PRODUCTS_HANDWRITTEN, &why);
    float* row = b->alloc(b, 6 * COLS * sizeof(float), "a test");
    tensor t = {row, 1, COLS, COLS, &FORMAT_FP32}, none = {0};
    b->norm_forward(b, t, none, row + COLS, t, none, row + 2 * COLS, row + 3 * COLS, 1e-5f);
}

static void test_norm(void) {
    check_refusal(norm_of_too_many, NULL, "a norm of 30,000 channels",
                  (const char* [REFUSAL_WORDS]){"a norm of 30000 channels", "--device cpu"});
    static const int SHAPES[][2] = {{1, 1},   {3, 7},   {5, 8},    {40, 64},
                                    {65, 72}, {9, 257}, {130, 768}};
    int shapes = quick() ? 5 : 7;
    for (int i = 0; i < 2 * STORE_COUNT; i++)
        for (int j = 0; j < shapes; j++) {
            on_gpu* put = (i + j) % 3 ? gpu_matrix : gpu_matrix_odd;
            int rms = i / STORE_COUNT, with_add = !rms || j % 2 == 0;
            const format* f = STORES[i % STORE_COUNT];
            check_norm(rms, SHAPES[j][0], SHAPES[j][1], f, with_add, put);
            if (!rms && j % 2) check_norm(rms, SHAPES[j][0], SHAPES[j][1], f, 0, put);
        }
    for (int rms = 0; rms < 2 && !quick(); rms++)  // the longer strips
        check_norm(rms, 520 * 16 + 3, 8, &FORMAT_BF16, 1, gpu_matrix);
    // Blocks of fewer warps: backward two and one of layer norm, one also forward.
    static const int LONG[] = {3200, 6400, 12500};
    for (int j = 0; j < (quick() ? 2 : 3); j++) {
        check_norm(0, 21, LONG[j], &FORMAT_BF16, 1, j % 2 ? gpu_matrix : gpu_matrix_odd);
        if (!quick()) check_norm(1, 21, 2 * LONG[j], &FORMAT_FP16, 1, gpu_matrix);
    }
}

// ------------------------------------------------------------------------------------------------
// The norm of the heads of queries and keys, against float64 as above: with the queries' heads, and
// then the keys', as rows of a matrix. The values pass with the bits that the CPU gives them.

static const head_shape HEADS[] = {{1, 1, 2}, {4, 2, 8}, {3, 1, 18}, {2, 2, 64}, {5, 1, 136}};
enum { HEADS_COUNT = sizeof HEADS / sizeof *HEADS };

static int columns_in(head_shape h) { return (h.query + 2 * h.kv) * h.dim; }

// Heads first .. first + n - 1 of each row, one below the other.
static tensor heads_as_rows(tensor t, int first, int n, int dim) {
    tensor to = matrix_new(t.rows * n, dim, t.format);
    for (int r = 0; r < to.rows; r++)
        memcpy(row_at(to, r), row_at(t, r / n) + (first + r % n) * dim, dim * sizeof(float));
    return to;
}

// Statistics as columns of norm_exact's: 0 stands for the mean.
static tensor heads_stats(tensor stats, int first, int n) {
    tensor to = matrix_new(stats.rows * n, 2, &FORMAT_FP32);
    for (int r = 0; r < to.rows; r++) {
        row_at(to, r)[0] = 0;
        row_at(to, r)[1] = row_at(stats, r / n)[first + r % n];
    }
    return to;
}

typedef struct qk_results {
    tensor out, stats, dqkv, dgain;
} qk_results;

static void run_qk_norm(backend* b, const qk_results* r, tensor qkv, const float* gain, tensor dout,
                        head_shape heads) {
    b->qk_norm_forward(b, r->out, r->stats.data, qkv, gain, heads, EPS);
    b->qk_norm_backward(b, r->dqkv, r->dgain.data, dout, qkv, r->stats.data, gain, heads);
}

static void check_qk_part(const qk_results* is, const qk_results* plain, tensor qkv, tensor gain,
                          tensor dout, tensor dgain, head_shape heads, int keys, const char* what) {
    int first = keys ? heads.query : 0, n = keys ? heads.kv : heads.query, dim = heads.dim;
    tensor x = heads_as_rows(qkv, first, n, dim), d = heads_as_rows(dout, first, n, dim);
    tensor nothing = matrix_new(x.rows, dim, &FORMAT_FP32);
    set_zero(nothing);
    norm_exact e =
        norm_in_double(x, row_at(gain, keys), NULL, d, nothing, row_at(dgain, keys), NULL);
    check_error(heads_as_rows(is->out, first, n, dim), heads_as_rows(plain->out, first, n, dim),
                e.out, 0, "out", what);
    check_error(heads_stats(is->stats, first, n), heads_stats(plain->stats, first, n), e.stats,
                0x1p-23, "stats", what);
    check_error(heads_as_rows(is->dqkv, first, n, dim), heads_as_rows(plain->dqkv, first, n, dim),
                e.dresidual, 0x1p-24, "dqkv", what);
    check_error(rows_of(is->dgain, keys, 1), rows_of(plain->dgain, keys, 1), e.dgain, e.dgain_floor,
                "dgain", what);
    free(e.out);
}

static void check_qk_norm(int rows, head_shape heads, const format* f, on_gpu* put) {
    int mark = array_count, gpu_mark = gpu_array_count, cols = columns_in(heads);
    int normed = heads.query + heads.kv;
    const char* what = text("qk_norm, %d rows, %d and %d heads of %d, %s", rows, heads.query,
                            heads.kv, heads.dim, f->name);
    tensor qkv = matrix_random(rows, cols, f), dout = matrix_random(rows, cols, &FORMAT_FP32);
    tensor gain = weight_random(2, heads.dim), dgain = weight_random(2, heads.dim);
    qk_results plain = {matrix_new(rows, cols, f), array_new(rows, normed, 0, &FORMAT_FP32),
                        matrix_new(rows, cols, f), matrix_copy(dgain)};
    tensor stats = plain.stats, gqkv = put_wider(put, qkv, 1), gdout = put_wider(put, dout, 2);
    tensor ggain = gpu_matrix(gain);
    qk_results first = {0};
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        qk_results r = {put(plain.out), gpu_matrix(stats), put_wider(put, plain.out, 3),
                        gpu_matrix(dgain)};
        run_qk_norm(gpu, &r, gqkv, ggain.data, gdout, heads);
        same_as_first(gpu_read(r.out), &first.out, s, "out", what);
        same_as_first(gpu_read(r.stats), &first.stats, s, "stats", what);
        same_as_first(gpu_read(r.dqkv), &first.dqkv, s, "dqkv", what);
        same_as_first(gpu_read(r.dgain), &first.dgain, s, "dgain", what);
    }
    run_qk_norm(cpu, &plain, qkv, gain.data, dout, heads);
    for (int keys = 0; keys < 2; keys++)
        check_qk_part(&first, &plain, qkv, gain, dout, dgain, heads, keys, what);
    int values = normed * heads.dim, n = heads.kv * heads.dim;
    check_same(columns_of(first.out, values, n), columns_of(plain.out, values, n), "v", what, gpu);
    check_same(columns_of(first.dqkv, values, n), columns_of(plain.dqkv, values, n), "dv", what,
               gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void test_qk_norm(void) {
    static const int rows[] = {1, 5, 37};
    for (int i = 0; i < STORE_COUNT; i++)
        for (int j = 0; j < HEADS_COUNT; j++)
            check_qk_norm(rows[(i + j) % 3], HEADS[j], STORES[i],
                          (i + j) % 2 ? gpu_matrix : gpu_matrix_odd);
    if (!quick()) check_qk_norm(520 * 16 + 3, HEADS[1], &FORMAT_BF16, gpu_matrix);
}

// ------------------------------------------------------------------------------------------------
// Rotary positions: the same bits as on the CPU. Backward also leaves fp32.

static void check_rope(int rows, head_shape heads, const format* f, on_gpu* put) {
    enum { POSITIONS = 9 };
    int mark = array_count, gpu_mark = gpu_array_count, cols = columns_in(heads);
    const char* what = text("rope, %d rows, %d and %d heads of %d, %s", rows, heads.query, heads.kv,
                            heads.dim, f->name);
    tensor qkv = matrix_random(rows, cols, f), turn = weight_random(POSITIONS, heads.dim);
    tensor gqkv = put_wider(put, qkv, 1), gturn = gpu_matrix(turn);
    int* position = ints_new(rows);
    for (int r = 0; r < rows; r++) position[r] = r % 4 == 1 ? -1 : random_below(POSITIONS);
    int* gposition = gpu_copy(position, rows * sizeof(int));
    for (int s = 0; s < 3; s++) {
        int backward = s > 0;
        tensor out = matrix_new(rows, cols, s == 2 ? &FORMAT_FP32 : f);
        schedule_set(s);
        tensor gout = put(out);
        gpu->rope(gpu, gout, gqkv, gturn.data, gposition, heads, backward);
        cpu->rope(cpu, out, qkv, turn.data, position, heads, backward);
        check_same(gpu_read(gout), out, backward ? "turned back" : "turned", what, gpu);
    }
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void test_rope(void) {
    static const head_shape wide = {3, 1, 32};  // halves of whole spans, and more than one
    for (int i = 0; i < STORE_COUNT; i++) {
        for (int j = 0; j < HEADS_COUNT; j++)
            check_rope(1 + 7 * j, HEADS[j], STORES[i], j % 2 ? gpu_matrix : gpu_matrix_odd);
        check_rope(33, wide, STORES[i], gpu_matrix);
        check_rope(6, wide, STORES[i], gpu_matrix_odd);
    }
}

// ------------------------------------------------------------------------------------------------
// GELU and SwiGLU: the same bits as on the CPU.

typedef struct activation {
    const char* name;
    void (*forward)(backend* b, tensor out, tensor pre);
    void (*backward)(backend* b, tensor dpre, tensor dout, tensor pre);
    int parts;  // columns of pre for each of out
} activation;

static activation activation_of(const backend* b, int swiglu) {
    return swiglu ? (activation){"swiglu", b->swiglu_forward, b->swiglu_backward, 2}
                  : (activation){"gelu", b->gelu_forward, b->gelu_backward, 1};
}

static void check_activation(int swiglu, int rows, int cols, const format* f, on_gpu* put) {
    int mark = array_count, gpu_mark = gpu_array_count;
    activation plain = activation_of(cpu, swiglu), of_gpu = activation_of(gpu, swiglu);
    int parts = plain.parts;
    const char* what = text("%s %d x %d, %s", plain.name, rows, cols, f->name);
    tensor pre = matrix_random(rows, parts * cols, f);
    tensor dout = matrix_random(rows, cols, &FORMAT_FP32);
    tensor out = matrix_new(rows, cols, f), dpre = matrix_new(rows, parts * cols, f);
    tensor gout = put(out), gdpre = put(dpre), gpre = put_wider(put, pre, 1);
    tensor gdout = put_wider(put, dout, 2);
    plain.forward(cpu, out, pre);
    plain.backward(cpu, dpre, dout, pre);
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        of_gpu.forward(gpu, gout, gpre);
        of_gpu.backward(gpu, gdpre, gdout, gpre);
        check_same(gpu_read(gout), out, "out", what, gpu);
        check_same(gpu_read(gdpre), dpre, "dpre", what, gpu);
    }
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

static void test_activations(void) {
    for (int i = 0; i < 2 * STORE_COUNT; i++) {
        int swiglu = i / STORE_COUNT;
        const format* f = STORES[i % STORE_COUNT];
        check_activation(swiglu, 1, 1, f, gpu_matrix);
        check_activation(swiglu, 5, 24, f, gpu_matrix);
        check_activation(swiglu, 5, 24, f, gpu_matrix_odd);
        check_activation(swiglu, 33, 65, f, gpu_matrix);
    }
}

// ------------------------------------------------------------------------------------------------
// No rows: nothing is written, and gradients of weights stay as they are.

static void test_no_rows(void) {
    int mark = array_count, gpu_mark = gpu_array_count;
    head_shape heads = {2, 1, 8};
    tensor none = gpu_matrix(matrix_new(0, 32, &FORMAT_FP32));
    tensor kept = vector_random(32), gkept = gpu_matrix(kept), gain = gpu_matrix(vector_random(32));
    norm_results r = {none, none, none, none, gkept, gkept};
    for (int rms = 0; rms < 2; rms++)
        run_norm(gpu, rms, &r, none, none, gain.data, gain.data, none);
    run_qk_norm(gpu, &(qk_results){none, none, none, gkept}, none, gain.data, none, heads);
    gpu->rope(gpu, none, none, gain.data, NULL, heads, 0);
    for (int swiglu = 0; swiglu < 2; swiglu++) {
        activation a = activation_of(gpu, swiglu);
        a.forward(gpu, none, none);
        a.backward(gpu, none, none, none);
    }
    gpu->sync(gpu);
    check_same(gpu_read(gkept), kept, "a gradient", "no rows", gpu);
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, "no rows");
}

int main(void) {
    test_opening();
    cuda_test_open();
    test_memory();
    test_aside();
    test_uploads();
    test_embed();
    test_norm();
    test_qk_norm();
    test_rope();
    test_activations();
    test_no_rows();
    cuda_test_close();
    return test_report();
}
