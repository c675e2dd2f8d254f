// bench: how fast this machine runs the trainer, as shares of what the machine can do and beside
// the programs that others would use. It measures the limits first (FMA peak, read bandwidth), then
// matrix products, a training step, sampling, decoding, an update, memory, and the smaller kernels.
// How it measures: bench.h. How to read it: dev/README.md.
//     build/dev/bench/bench [--quick] [--only SECTION] [--json FILE]   from the root of the tree
// Peers: OpenBLAS and oneDNN (opened when they are installed), PyTorch and transformers (bench.py).
// It is no test: a missed goal is printed, and the exit status stays 0.
#include "bench.h"

#include <dlfcn.h>
#include <limits.h>
#include <signal.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "base/options.h"
#include "device/backend.h"
#include "rl/sampler.h"
#include "rl/trainer.h"
#include "workload.h"

static int quick, only, isa, threads_wanted;
static const char *json_option = "", *peers_option = "python3 dev/bench/bench.py";
static const char* const ISAS[] = {"auto", "avx512", "avx2", "c", NULL};
enum { ALL, PRODUCTS, STEP, SAMPLING, DECODING, UPDATE, MEMORY, KERNELS };
static const char* const SECTIONS[] = {"all",    "products", "step",    "sampling", "decoding",
                                       "update", "memory",   "kernels", NULL};

static option OPTIONS[] = {
    {.kind = OPTION_GROUP, .help = "Options"},
    {"quick", OPTION_SWITCH, &quick, "a smoke test: few rounds, small models, no Python peers", 0,
     1, NULL, 0, 0, 0, NULL},
    {"only", OPTION_CHOICE, &only, "one section of the benchmark", 0, 0, SECTIONS, 0, 0, 0, NULL},
    {"threads", OPTION_INT, &threads_wanted, "threads to compare with one; 0 = two, if there are",
     0, 1024, NULL, 0, 0, 0, NULL},
    {"isa", OPTION_CHOICE, &isa, "the CPU's instruction set", 0, 0, ISAS, 0, 0, 0, NULL},
    {"json", OPTION_TEXT, &json_option, "also write the results to this file", 0, 0, NULL, 0, 0, 0,
     NULL},
    {"peers", OPTION_TEXT, &peers_option, "command that runs the Python peers (dev/bench/bench.py)",
     0, 0, NULL, 0, 0, 0, NULL},
    {.kind = OPTION_GROUP},
};

// The devices under test, with one thread and with all of them (the same if there is one), and the
// limits measured for each.
enum { ONE, FULL, DEVICES };
static backend* device[DEVICES];
static int threads[DEVICES] = {1, 1};
static double bandwidth[DEVICES];  // bytes a second

static const char* device_isa(void) {
    return strstr(device[ONE]->name, "avx512") ? "avx512"
           : strstr(device[ONE]->name, "avx2") ? "avx2"
                                               : "c";
}

// ---------------------------------------------------------------------------------------------
// Limits. The FMA peak comes from chains that live in registers, enough of them to hide an FMA's
// latency; the bandwidth from reading more memory than a cache holds.

enum { CHAINS = 12, PEAK_STEPS = 200000 };

#ifdef HAVE_avx512
__attribute__((target("avx512f"))) static float fma_avx512(float start, float x, float y) {
    __m512 acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_ps(start + (float)i);
    for (int k = 0; k < PEAK_STEPS; k++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_fmadd_ps(acc[i], _mm512_set1_ps(x), _mm512_set1_ps(y));
    for (int i = 1; i < CHAINS; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    return _mm512_cvtss_f32(acc[0]);
}
#endif
#ifdef HAVE_avx2
__attribute__((target("avx2,fma"))) static float fma_avx2(float start, float x, float y) {
    __m256 acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm256_set1_ps(start + (float)i);
    for (int k = 0; k < PEAK_STEPS; k++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm256_fmadd_ps(acc[i], _mm256_set1_ps(x), _mm256_set1_ps(y));
    for (int i = 1; i < CHAINS; i++) acc[0] = _mm256_add_ps(acc[0], acc[i]);
    return _mm256_cvtss_f32(acc[0]);
}
#endif
// Without vector instructions; where there is no FMA instruction either, this is its emulation.
static float fma_c(float start, float x, float y) {
    float acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = start + (float)i;
    for (int k = 0; k < PEAK_STEPS / 20; k++)
        for (int i = 0; i < CHAINS; i++) acc[i] = num_fma(acc[i], x, y);
    for (int i = 1; i < CHAINS; i++) acc[0] += acc[i];
    return acc[0];
}

// Floating-point operations of one call of `fma_work`, an FMA counted as two.
static double peak_flops(void) {
    if (!strcmp(device_isa(), "avx512")) return 2.0 * 16 * CHAINS * PEAK_STEPS;
    if (!strcmp(device_isa(), "avx2")) return 2.0 * 8 * CHAINS * PEAK_STEPS;
    return 2.0 * CHAINS * (PEAK_STEPS / 20);
}

static volatile float sink;
static void fma_work(void) {
    float x = 0.999f, y = 0.5f;  // the chains tend to 500: no subnormals, no infinities
#ifdef HAVE_avx512
    if (!strcmp(device_isa(), "avx512")) {
        sink = fma_avx512(sink, x, y);
        return;
    }
#endif
#ifdef HAVE_avx2
    if (!strcmp(device_isa(), "avx2")) {
        sink = fma_avx2(sink, x, y);
        return;
    }
#endif
    sink = fma_c(sink, x, y);
}

// Seconds that a thread takes for peak_flops(), with as many threads as arg says (an int) at it.
static double peak_run(void* arg) {
    int n = *(int*)arg;
    double start = n == 1 ? thread_seconds() : clock_seconds();
    if (n == 1) {
        fma_work();
        return thread_seconds() - start;
    }
#pragma omp parallel num_threads(n)
    fma_work();
    return clock_seconds() - start;
}

// A contender's speed as a share of the peak that ran beside it, from its FLOPs.
static double peak_share(const contender* c, double flops, const contender* peak, int n) {
    return speed_ratio(c, peak) * flops / (peak_flops() * n);
}

typedef struct reader {
    const uint64_t* memory;
    int64_t words;
    int threads;
} reader;

static double read_run(void* arg) {
    const reader* r = arg;
    const uint64_t* p = r->memory;
    uint64_t all = 0;
    double start = clock_seconds();
#pragma omp parallel for simd schedule(static) num_threads(r->threads) reduction(^ : all)
    for (int64_t i = 0; i < r->words; i++) all ^= p[i];
    sink = (float)(all & 1);
    return clock_seconds() - start;
}

static void limits(void) {
    contender c[] = {{.run = peak_run, .arg = &threads[ONE]},
                     {.run = peak_run, .arg = &threads[FULL]},
                     {.run = read_run},
                     {.run = read_run}};
    size_t bytes = (size_t)(quick ? 128 : 512) << 20;
    uint64_t* memory = xalloc(bytes, 1, "the bandwidth measurement");
    memset(memory, 1, bytes);
    reader r[DEVICES];
    for (int d = 0; d < DEVICES; d++) {
        r[d] = (reader){memory, (int64_t)(bytes / 8), threads[d]};
        c[2 + d].arg = &r[d];
    }
    compete(c, 4, quick ? 4 : 12, 10);
    free(memory);
    printf("\n%-34s %10s %10s\n", "limits (best)", "1 thread",
           xprintf("%d threads", threads[FULL]));
    double peak[DEVICES];
    for (int d = 0; d < DEVICES; d++) {
        peak[d] = peak_flops() * threads[d] / best_seconds(&c[d]);
        bandwidth[d] = (double)bytes / best_seconds(&c[2 + d]);
        record(peak[d] / 1e9, "limits: FMA peak, %d threads, GFLOP/s", threads[d]);
        record(bandwidth[d] / 1e9, "limits: read bandwidth, %d threads, GB/s", threads[d]);
    }
    printf("  %-32s %10.1f %10.1f\n", "FMA peak, GFLOP/s", peak[ONE] / 1e9, peak[FULL] / 1e9);
    printf("  %-32s %10.1f %10.1f\n", "memory read bandwidth, GB/s", bandwidth[ONE] / 1e9,
           bandwidth[FULL] / 1e9);
}

// ---------------------------------------------------------------------------------------------
// Matrix products at GPT-2 124M's shapes, one thread, with the operands wherever the caches have
// them, as for every peer.

typedef enum { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT } product_op;

typedef struct product {
    int rows, inputs, outputs;
    product_op op;
    float *in, *out;        // (rows, inputs), (rows, outputs): activations or their gradients
    float *w, *dw, *dbias;  // (outputs, inputs) twice, (outputs)
    prepared* weight;
    int repeats;  // calls a run
} product;

static void (*blas_sgemm)(int, int, int, int, int, int, float, const float*, int, const float*, int,
                          float, float*, int);
static int (*dnn_sgemm)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t,
                        const float*, int64_t, float, float*, int64_t);

static void* library_function(const char* const* names, const char* function, void** library) {
    *library = NULL;
    for (; *names && !*library; names++) *library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
    return *library ? dlsym(*library, function) : NULL;
}

static void open_libraries(void) {
    static const char* const BLAS[] = {"libopenblas.so.0", "libopenblas.so", NULL};
    static const char* const DNN[] = {"libdnnl.so.3", "libdnnl.so.2", "libdnnl.so", NULL};
    void *library, *function = library_function(BLAS, "cblas_sgemm", &library);
    memcpy(&blas_sgemm, &function, sizeof function);
    if (library) {
        void (*set_threads)(int);
        function = dlsym(library, "openblas_set_num_threads");
        memcpy(&set_threads, &function, sizeof function);
        if (set_threads) set_threads(1);
    }
    setenv("OMP_NUM_THREADS", "1", 1);  // oneDNN; the project's own products name their threads
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    function = library_function(DNN, "dnnl_sgemm", &library);
    memcpy(&dnn_sgemm, &function, sizeof function);
    printf("  OpenBLAS %s, oneDNN %s\n", blas_sgemm ? "installed" : "not installed",
           dnn_sgemm ? "installed" : "not installed");
}

static void product_ours(const product* p) {
    backend* b = device[ONE];
    tensor in = {p->in, p->rows, p->inputs, p->inputs, &FORMAT_FP32};
    tensor out = {p->out, p->rows, p->outputs, p->outputs, &FORMAT_FP32};
    if (p->op == FORWARD) b->matmul_forward(b, out, in, p->weight, NULL);
    if (p->op == INPUT_GRADIENT) b->matmul_backward_input(b, in, out, p->weight);
    if (p->op == WEIGHT_GRADIENT) b->matmul_backward_weight(b, p->dw, p->dbias, out, in, p->weight);
}

static void product_blas(const product* p) {
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    int m = p->rows, k = p->inputs, n = p->outputs;
    if (p->op == FORWARD)
        blas_sgemm(ROW_MAJOR, PLAIN, TRANSPOSED, m, n, k, 1, p->in, k, p->w, k, 0, p->out, n);
    if (p->op == INPUT_GRADIENT)
        blas_sgemm(ROW_MAJOR, PLAIN, PLAIN, m, k, n, 1, p->out, n, p->w, k, 0, p->in, k);
    if (p->op == WEIGHT_GRADIENT)
        blas_sgemm(ROW_MAJOR, TRANSPOSED, PLAIN, n, k, m, 1, p->out, n, p->in, k, 1, p->dw, k);
}

static void product_dnn(const product* p) {
    int m = p->rows, k = p->inputs, n = p->outputs;
    if (p->op == FORWARD) dnn_sgemm('N', 'T', m, n, k, 1, p->in, k, p->w, k, 0, p->out, n);
    if (p->op == INPUT_GRADIENT) dnn_sgemm('N', 'N', m, k, n, 1, p->out, n, p->w, k, 0, p->in, k);
    if (p->op == WEIGHT_GRADIENT) dnn_sgemm('T', 'N', n, k, m, 1, p->out, n, p->in, k, 1, p->dw, k);
}

static double ours_run(void* arg) {
    const product* p = arg;
    double start = thread_seconds();
    for (int i = 0; i < p->repeats; i++) product_ours(p);
    return (thread_seconds() - start) / p->repeats;
}

static double blas_run(void* arg) {
    const product* p = arg;
    double start = thread_seconds();
    for (int i = 0; i < p->repeats; i++) product_blas(p);
    return (thread_seconds() - start) / p->repeats;
}

static double dnn_run(void* arg) {
    const product* p = arg;
    double start = thread_seconds();
    for (int i = 0; i < p->repeats; i++) product_dnn(p);
    return (thread_seconds() - start) / p->repeats;
}

static void fill(float* x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (float)((uint32_t)i * 2654435761u >> 8) * 0x1p-23f - 1;
}

static product product_create(int rows, int inputs, int outputs) {
    backend* b = device[ONE];
    size_t weights = (size_t)inputs * outputs;
    product p = {.rows = rows, .inputs = inputs, .outputs = outputs};
    p.in = xalloc((size_t)rows * inputs, sizeof(float), "a product");
    p.out = xalloc((size_t)rows * outputs, sizeof(float), "a product");
    p.w = xalloc(2 * weights + outputs, sizeof(float), "a product");
    p.dw = p.w + weights;
    p.dbias = p.dw + weights;
    fill(p.w, weights);
    p.weight = b->weight_prepare(b, NULL, p.w, outputs, inputs, &FORMAT_FP32, &FORMAT_FP32);
    return p;
}

static void product_free(product* p) {
    device[ONE]->weight_release(device[ONE], p->weight);
    free(p->in);
    free(p->out);
    free(p->w);
}

// A peer that computes something else must not be compared with.
static void product_check(product* p, void (*peer)(const product*), const char* name) {
    float* result = p->op == FORWARD ? p->out : p->op == INPUT_GRADIENT ? p->in : p->dw;
    int n = p->op == FORWARD ? p->outputs : p->inputs;
    float ours[64];
    if (p->op == WEIGHT_GRADIENT) memset(p->dw, 0, (size_t)p->outputs * p->inputs * sizeof(float));
    product_ours(p);
    for (int i = 0; i < 64; i++) ours[i] = result[n + i * 11];  // of the second row
    if (p->op == WEIGHT_GRADIENT) memset(p->dw, 0, (size_t)p->outputs * p->inputs * sizeof(float));
    peer(p);
    for (int i = 0; i < 64; i++)
        if (fabsf(ours[i] - result[n + i * 11]) > 1e-3f * (1 + fabsf(ours[i])))
            fatal("%s gives %g where we give %g: it computes another product", name,
                  result[n + i * 11], ours[i]);
}

typedef struct product_result {
    double gflops, share, over_blas, over_dnn;
} product_result;

static product_result product_measure(product* p) {
    double flops = 2.0 * p->rows * p->inputs * p->outputs;
    fill(p->in, (size_t)p->rows * p->inputs);
    fill(p->out, (size_t)p->rows * p->outputs);
    if (blas_sgemm) product_check(p, product_blas, "OpenBLAS");
    if (dnn_sgemm) product_check(p, product_dnn, "oneDNN");
    p->repeats = 1 + (int)(2e8 / flops);  // some milliseconds a run
    int peak_threads = 1;
    contender c[] = {{.run = peak_run, .arg = &peak_threads},
                     {.run = ours_run, .arg = p},
                     {.run = blas_sgemm ? blas_run : NULL, .arg = p},
                     {.run = dnn_sgemm ? dnn_run : NULL, .arg = p}};
    compete(c, 4, quick ? 3 : 15, quick ? 0.1 : 1.2);
    return (product_result){flops / median_seconds(&c[1]) / 1e9, peak_share(&c[1], flops, &c[0], 1),
                            speed_ratio(&c[1], &c[2]), speed_ratio(&c[1], &c[3])};
}

typedef struct product_shape {
    const char* name;
    int inputs, outputs;
} product_shape;
static const product_shape SHAPES[] = {{"qkv", 768, 2304},
                                       {"attproj", 768, 768},
                                       {"fc", 768, 3072},
                                       {"fcproj", 3072, 768},
                                       {"head", 768, 50257}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

// Three columns of results for each shape: the three ops at 256 rows, or forward at 8, 16, 32.
static void products_table(const char* title, const char* const column[3], const int rows[3],
                           int backward, double share[], double over_blas[]) {
    printf("\n%-22s", title);
    for (int i = 0; i < 3; i++) printf(" | %-23s", column[i]);
    printf("\n%-22s", "GFLOP/s, % of peak");
    for (int i = 0; i < 3; i++) printf(" | GFLOP/s peak  OBLAS 1DNN");
    printf("\n");
    for (int s = 0; s < SHAPE_COUNT - (quick ? 1 : 0); s++) {
        const product_shape* f = &SHAPES[s];
        printf("  %-8s%5d -> %-5d", f->name, f->inputs, f->outputs);
        for (int i = 0; i < 3; i++) {
            product p = product_create(rows[i], f->inputs, f->outputs);
            p.op = backward ? (product_op)i : FORWARD;
            product_result r = product_measure(&p);
            product_free(&p);
            printf(" | %s %s %s %s", cell(r.gflops, 6, 1, ""), cell(100 * r.share, 5, 0, "%"),
                   cell(r.over_blas, 5, 2, "x"), cell(r.over_dnn, 5, 2, "x"));
            fflush(stdout);
            share[3 * s + i] = 100 * r.share;
            over_blas[3 * s + i] = r.over_blas;
            record(r.gflops, "products: %s, %s, GFLOP/s", f->name, column[i]);
            record(r.share, "products: %s, %s, share of peak", f->name, column[i]);
            record(r.over_blas, "products: %s, %s, over OpenBLAS", f->name, column[i]);
            record(r.over_dnn, "products: %s, %s, over oneDNN", f->name, column[i]);
        }
        printf("\n");
    }
}

static void products(void) {
    static const char* const OPS[] = {"forward", "input gradient", "weight gradient"};
    static const char* const FEW[] = {"8 rows", "16 rows", "32 rows"};
    static const int MANY_ROWS[] = {256, 256, 256}, FEW_ROWS[] = {8, 16, 32};
    int n = 3 * (SHAPE_COUNT - (quick ? 1 : 0));
    double share[3 * SHAPE_COUNT], over_blas[3 * SHAPE_COUNT];
    printf(
        "\nMatrix products of GPT-2 124M, one thread (CPU time); ratios: how many times as fast\n");
    open_libraries();
    products_table("256 rows", OPS, MANY_ROWS, 1, share, over_blas);
    goal_add("products, 256 rows: median share of the FMA peak", median(share, n), AT_LEAST, 85, 0,
             "%");
    goal_add("products, 256 rows: median over OpenBLAS", median(over_blas, n), AT_LEAST, 1, 2, "x");
    products_table("forward", FEW, FEW_ROWS, 0, share, over_blas);
    goal_add("products, 8 to 32 rows: median share of the FMA peak", median(share, n), AT_LEAST, 75,
             0, "%");
    goal_add("products, 8 to 32 rows: median over OpenBLAS", median(over_blas, n), AT_LEAST, 1.8, 2,
             "x");
}

// ---------------------------------------------------------------------------------------------
// The Python peers: a process that answers a line with a line; see bench.py.

static FILE *peer_in, *peer_out;
static int peer_started;

// Starts the peers when they are first needed; they are left alone if they do not start.
static void peer_start(void) {
    int to[2], from[2];
    char line[256];
    if (peer_started || quick || !*peers_option) return;
    peer_started = 1;
    signal(SIGPIPE, SIG_IGN);  // a peer that died is a peer that answers nothing
    if (pipe(to) || pipe(from)) fatal("cannot make a pipe to the Python peers; try --peers=");
    pid_t child = fork();
    if (child < 0) fatal("cannot start the Python peers; try --peers=");
    if (child == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        close(to[1]);
        close(from[0]);
        execl("/bin/sh", "sh", "-c", peers_option, (char*)NULL);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    peer_in = fdopen(to[1], "w");
    peer_out = fdopen(from[0], "r");
    if (!fgets(line, sizeof line, peer_out)) strcpy(line, "Python peers: not installed\n");
    printf("  peers: %s", line);
}

typedef struct peer_request {
    const char* verb;
    int threads, size;
} peer_request;

static double peer_run(void* arg) {
    const peer_request* r = arg;
    char line[64];
    if (!peer_in) return NAN;
    fprintf(peer_in, "%s %d %d\n", r->verb, r->threads, r->size);
    fflush(peer_in);
    return fgets(line, sizeof line, peer_out) ? strtod(line, NULL) : NAN;
}

// ---------------------------------------------------------------------------------------------
// The models, and batches of random tokens for them

static model gpt2_124m(void) { return model_gpt2(1024, 50257, quick ? 2 : 12, 12, 768); }

// SmolLM2-135M's shape.
static model llama_135m(void) {
    shape s = {.context = 2048,
               .vocab = 49152,
               .layers = quick ? 2 : 30,
               .heads = 9,
               .kv_heads = 3,
               .head_dim = 64,
               .channels = 576,
               .hidden = 1536,
               .tied = 1,
               .norm_eps = 1e-5f,
               .rope_theta = 1e5f};
    return model_of(&LLAMA_FAMILY, s);
}

static model default_model(void) { return model_gpt2(64, 24, 3, 4, 64); }

static const char* gpt2_name(void) { return quick ? "GPT-2 cut to 2 layers" : "GPT-2 124M"; }

static const char* llama_name(void) { return quick ? "SmolLM2 cut to 2 layers" : "SmolLM2-135M"; }

static float* initial_parameters(const model* c) {
    float* parameters = xalloc(c->parameters, sizeof(float), "parameters");
    model_init(c, parameters, 1);
    return parameters;
}

static precision fp32(void) { return precision_of(&FORMAT_FP32, &FORMAT_FP32); }

static const sampling PLAIN_SAMPLING = {
    .inverse_temperature = 1, .top_p = 1, .seed = 1, .stream = STREAM_SAMPLE};

typedef struct training {
    trainer* t;
    rollout* d;
    objective objective;
    int64_t tokens;  // of the last run
} training;

static double training_run(void* arg) {
    training* w = arg;
    double start = clock_seconds();
    w->tokens =
        trainer_update(w->t, w->d, 0, w->d->sequences, &w->objective, AGGREGATE_TOKEN_MEAN, 1, 1e-4)
            .tokens;
    return clock_seconds() - start;
}

// ---------------------------------------------------------------------------------------------
// A training step of GPT-2 124M and of SmolLM2-135M's shape: 4 sequences of 64 tokens, fp32,
// everything from the tokens to the weights ready for the next step.

enum { STEP_SEQUENCES = 4, STEP_TOKENS = 64 };

// Weights that products read.
static double product_weights(const model* m) {
    double sum = m->shape.tied ? (double)m->shape.vocab * m->shape.channels : 0;
    for (int i = 0; i < WEIGHTS; i++)
        if (weight_is_matrix(&m->family->weight[i])) sum += (double)m->count[i];
    return sum;
}

// Useful FLOPs: 6 a token and weight (forward 2, backward 4), and causal attention's 4 Q a pair of
// query and key, three times. What is recomputed does not count.
static double step_flops(const model* m) {
    double L = m->shape.layers, Q = (double)m->shape.heads * m->shape.head_dim, T = STEP_TOKENS;
    return STEP_SEQUENCES * (6 * product_weights(m) * T + 3 * L * 4 * Q * T * (T + 1) / 2);
}

static void training_step_of(const model* m, const char* name, const char* peer_verb) {
    optimizer_config config = workload_adamw();
    float* parameters = initial_parameters(m);
    training work[DEVICES];
    peer_request torch[DEVICES];
    contender c[3 * DEVICES] = {{0}};
    printf("\nTraining step of %s, %d x %d tokens\n", name, STEP_SEQUENCES, STEP_TOKENS);
    peer_start();
    for (int d = 0; d < DEVICES; d++) {
        work[d].d = workload_batch(m->shape.vocab, STEP_SEQUENCES, 1, STEP_TOKENS);
        work[d].t = workload_trainer(device[d], m, fp32(), &config, work[d].d, RECOMPUTE_NOTHING);
        trainer_load(work[d].t, parameters);
        work[d].objective = objective_defaults(OBJECTIVE_SFT);
        torch[d] = (peer_request){peer_verb, threads[d], m->shape.layers};
        c[d] = (contender){.run = training_run, .arg = &work[d]};
        c[DEVICES + d] = (contender){.run = peer_run, .arg = &torch[d]};
        c[2 * DEVICES + d] = (contender){.run = peak_run, .arg = &threads[d]};
    }
    free(parameters);
    compete(c, 3 * DEVICES, quick ? 1 : 7, quick ? 0 : 50);
    double tokens = (double)work[0].tokens, flops = step_flops(m);
    printf("  %-10s %10s %10s %10s %10s %12s\n", "", "tokens/s", "best", "% of peak", "PyTorch",
           "over PyTorch");
    for (int d = 0; d < DEVICES; d++) {
        const contender *ours = &c[d], *peer = &c[DEVICES + d];
        double share = peak_share(ours, flops, &c[2 * DEVICES + d], threads[d]);
        double ratio = speed_ratio(ours, peer);
        printf("  %2d thread%c %s %s %s %s %s\n", threads[d], threads[d] > 1 ? 's' : ' ',
               cell(tokens / median_seconds(ours), 10, 1, ""),
               cell(tokens / best_seconds(ours), 10, 1, ""), cell(100 * share, 10, 0, "%"),
               cell(tokens / median_seconds(peer), 10, 1, ""), cell(ratio, 12, 2, "x"));
        const char* kind = m->family->name;
        record(tokens / median_seconds(ours), "step: %s, %d threads, tokens/s", kind, threads[d]);
        record(share, "step: %s, %d threads, share of peak", kind, threads[d]);
        record(ratio, "step: %s, %d threads, over PyTorch", kind, threads[d]);
        goal_add(
            xprintf("training step, %s, %s: over PyTorch", name, d ? "all threads" : "one thread"),
            ratio, AT_LEAST, 1.2, 2, "x");
        trainer_free(work[d].t);
        rollout_free(work[d].d);
    }
    double speed_up = speed_ratio(&c[FULL], &c[ONE]);
    printf("  %d threads over one: %.2fx; %.1f GFLOP a step\n", threads[FULL], speed_up,
           flops / 1e9);
    goal_add(xprintf("training step, %s: all threads over one", name), speed_up, AT_LEAST,
             0.9 * threads[FULL], 2, "x");
}

static void training_step(void) {
    model gpt = gpt2_124m(), llama = llama_135m();
    training_step_of(&gpt, gpt2_name(), "train");
    training_step_of(&llama, llama_name(), "train_llama");
}

// ---------------------------------------------------------------------------------------------
// Sampling with the default model. No token ends a sequence, neither here nor in the peer, so all
// have 24 new tokens. Ours also records log mu and entropy of each; the prefill counts in both.

enum { PROMPT = 10, NEW = 24 };

typedef struct sampling_work {
    sampler* r;
    rollout* d;
    int repeats;
} sampling_work;

static double sampling_run(void* arg) {
    sampling_work* w = arg;
    double start = clock_seconds();
    for (int i = 0; i < w->repeats; i++) {
        sampler_begin(w->r, w->d, &PLAIN_SAMPLING);
        while (sampler_step(w->r)) {
        }
        sampler_end(w->r);
    }
    return (clock_seconds() - start) / w->repeats;
}

static sampling_work sampling_create(backend* b, const model* m, float* parameters, int sequences) {
    sampling_work w = {.d = workload_batch(m->shape.vocab, sequences, PROMPT, NEW)};
    size_t bytes = m->parameters * sizeof(float);
    w.r = sampler_create(b, m, fp32(), &FORMAT_FP32, sequences, PROMPT, NEW, sequences, 0,
                         (end_set){0}, 0);
    float* on_device = b->alloc(b, bytes, "parameters");
    b->upload(b, on_device, parameters, bytes);
    sampler_sync(w.r, on_device);
    b->release(b, on_device, bytes);
    w.repeats = 1 + 512 / sequences;
    return w;
}

static void sampling_row(const model* m, float* parameters, int sequences, int d) {
    sampling_work w = sampling_create(device[d], m, parameters, sequences);
    peer_request generate = {"sample", threads[d], sequences};
    contender c[] = {{.run = sampling_run, .arg = &w}, {.run = peer_run, .arg = &generate}};
    compete(c, 2, quick ? 3 : 11, quick ? 1 : 8);
    double tokens = (double)sequences * NEW, ratio = speed_ratio(&c[0], &c[1]);
    double per_second = tokens / median_seconds(&c[0]);
    printf("  %9d %9d %s %s %s %s\n", sequences, threads[d], cell(per_second, 12, 0, ""),
           cell(tokens / best_seconds(&c[0]), 12, 0, ""),
           cell(tokens / median_seconds(&c[1]), 12, 0, ""), cell(ratio, 15, 1, "x"));
    record(per_second, "sampling: %d sequences, %d threads, tokens/s", sequences, threads[d]);
    record(ratio, "sampling: %d sequences, %d threads, over generate", sequences, threads[d]);
    if (d == FULL && sequences > 8) {
        goal_add("sampling, default model, 256 slots, all threads: tokens/s", per_second, AT_LEAST,
                 100000, 0, "");
        goal_add("sampling, 256 sequences, all threads: over generate", ratio, AT_LEAST, 3, 1, "x");
    } else if (d == FULL) {
        goal_add("sampling, 8 sequences, all threads: over generate", ratio, AT_LEAST, 15, 1, "x");
    }
    sampler_free(w.r);
    rollout_free(w.d);
}

static void sampling_section(void) {
    model gpt = default_model();
    float* parameters = initial_parameters(&gpt);
    printf("\nSampling, default model (3 layers, 64 channels), prompts of %d, %d new tokens each\n",
           PROMPT, NEW);
    peer_start();
    printf("  %9s %9s %12s %12s %12s %15s\n", "sequences", "threads", "tokens/s", "best",
           "generate", "over generate");
    for (int d = 0; d < DEVICES; d++) sampling_row(&gpt, parameters, 256, d);
    for (int d = 0; d < DEVICES; d++) sampling_row(&gpt, parameters, 8, d);
    free(parameters);
}

// ---------------------------------------------------------------------------------------------
// Decoding with GPT-2 124M and a Llama in SmolLM2-135M's shape: every step reads every weight, so
// with few slots memory is the limit. The peers choose no token: they only compute the logits.

enum { DECODE_STEPS = 16 };

static double decode_run(void* arg) {
    sampling_work* w = arg;
    sampler_begin(w->r, w->d, &PLAIN_SAMPLING);  // the prefill and each first token
    double start = clock_seconds();
    while (sampler_step(w->r)) {
    }
    double seconds = clock_seconds() - start;
    sampler_end(w->r);
    return seconds;
}

// How many times faster than a peer, over the numbers of slots; NAN without one.
typedef struct decode_ratios {
    double llama_cpp, generate;
} decode_ratios;

static decode_ratios decode_row(sampler* r, const model* m, const format* f, int slots) {
    char llama_cpp[48], generate[48];
    snprintf(llama_cpp, sizeof llama_cpp, "llama.cpp-%s-%s", m->family->name, f->name);
    snprintf(generate, sizeof generate, "generate-%s-%s", m->family->name, f->name);
    sampling_work w = {.r = r, .d = workload_batch(m->shape.vocab, slots, 1, DECODE_STEPS + 1)};
    peer_request peer[] = {{llama_cpp, threads[FULL], slots}, {generate, threads[FULL], slots}};
    contender c[] = {{.run = decode_run, .arg = &w},
                     {.run = peak_run, .arg = &threads[FULL]},
                     {.run = peer_run, .arg = &peer[0]},
                     {.run = peer_run, .arg = &peer[1]}};
    compete(c, 4, quick ? 1 : 5, quick ? 0 : 10);
    double weights = product_weights(m), bytes = weights * (f == &FORMAT_BF16 ? 2 : 4);
    double tokens = (double)slots * DECODE_STEPS, seconds = median_seconds(&c[0]);
    double rate = bytes * DECODE_STEPS / seconds / bandwidth[FULL];
    double share = peak_share(&c[0], 2 * weights * tokens, &c[1], threads[FULL]);
    decode_ratios over = {speed_ratio(&c[0], &c[2]), speed_ratio(&c[0], &c[3])};
    printf("  %-6s %5d %10.1f %11.0f%% %9.0f%% %s %s %s %s\n", f->name, slots, tokens / seconds,
           100 * rate, 100 * share, cell(tokens / median_seconds(&c[2]), 10, 1, ""),
           cell(over.llama_cpp, 7, 2, "x"), cell(tokens / median_seconds(&c[3]), 10, 1, ""),
           cell(over.generate, 7, 2, "x"));
    const char* kind = m->family->name;
    record(tokens / seconds, "decoding: %s, %s, %d slots, tokens/s", kind, f->name, slots);
    record(rate, "decoding: %s, %s, %d slots, share of bandwidth", kind, f->name, slots);
    record(share, "decoding: %s, %s, %d slots, share of peak", kind, f->name, slots);
    record(over.llama_cpp, "decoding: %s, %s, %d slots, over llama.cpp", kind, f->name, slots);
    record(over.generate, "decoding: %s, %s, %d slots, over generate", kind, f->name, slots);
    rollout_free(w.d);
    return over;
}

static void decode_format(const model* m, const float* parameters, const char* name,
                          const format* f, double wanted) {
    static const int slots[] = {1, 8, 32};
    decode_ratios least = {INFINITY, INFINITY};
    sampler* r = sampler_create(device[FULL], m, precision_of(f, f), f, 32, 1, DECODE_STEPS + 1, 32,
                                0, (end_set){0}, 0);
    sampler_sync(r, parameters);
    for (int i = 0; i < 3; i++) {
        decode_ratios over = decode_row(r, m, f, slots[i]);
        if (!(over.llama_cpp >= least.llama_cpp)) least.llama_cpp = over.llama_cpp;
        if (!(over.generate >= least.generate)) least.generate = over.generate;
    }
    goal_add(xprintf("decoding, %s, %s: least over llama.cpp", name, f->name), least.llama_cpp,
             AT_LEAST, wanted, 2, "x");
    goal_add(xprintf("decoding, %s, %s: least over generate", name, f->name), least.generate,
             AT_LEAST, 4, 2, "x");
    sampler_free(r);
}

static void decode_model(const model* m, const char* name, double wanted) {
    backend* b = device[FULL];
    size_t bytes = m->parameters * sizeof(float);
    float* parameters = b->alloc(b, bytes, "parameters");
    model_init(m, parameters, 1);
    printf("\nDecoding, %s, %d threads; each step reads %.0f MB of weights in fp32\n", name,
           threads[FULL], product_weights(m) * 4e-6);
    peer_start();
    printf("  %-6s %5s %10s %12s %10s %10s %7s %10s %7s\n", "format", "slots", "tokens/s",
           "% bandwidth", "% of peak", "llama.cpp", "over", "generate", "over");
    decode_format(m, parameters, name, &FORMAT_FP32, wanted);
    decode_format(m, parameters, name, &FORMAT_BF16, wanted);
    b->release(b, parameters, bytes);
}

static void decoding(void) {
    model gpt = gpt2_124m(), llama = llama_135m();
    decode_model(&gpt, gpt2_name(), 1.3);
    decode_model(&llama, llama_name(), 1);
}

// ---------------------------------------------------------------------------------------------
// The default run's update: 8 groups of 16 sequences of 10 + 24 tokens, DRPO.

enum { UPDATE_SEQUENCES = 128, UPDATE_GROUP = 16, UPDATE_MICRO_TOKENS = 2048 };

static void update(void) {
    model gpt = default_model();
    optimizer_config config = workload_adamw();
    float* parameters = initial_parameters(&gpt);
    training work[DEVICES];
    contender c[DEVICES] = {{0}};
    printf("\nUpdate, default model, %d sequences of %d + %d tokens, DRPO\n", UPDATE_SEQUENCES,
           PROMPT, NEW);
    for (int d = 0; d < DEVICES; d++) {
        trainer_room room = {UPDATE_MICRO_TOKENS, UPDATE_GROUP, PROMPT, NEW};
        work[d].t = trainer_create(device[d], &gpt, fp32(), &config, &room, RECOMPUTE_NOTHING);
        trainer_load(work[d].t, parameters);
        work[d].d = workload_batch(gpt.shape.vocab, UPDATE_SEQUENCES, PROMPT, NEW);
        work[d].d->prompts = UPDATE_SEQUENCES / UPDATE_GROUP;
        work[d].d->group = UPDATE_GROUP;
        work[d].objective = objective_defaults(OBJECTIVE_DRPO);
        trainer_logprobs(work[d].t, work[d].t->weights, work[d].d, 0, UPDATE_SEQUENCES, 1,
                         work[d].d->anchor);
        c[d] = (contender){.run = training_run, .arg = &work[d]};
    }
    compete(c, DEVICES, quick ? 3 : 15, quick ? 1 : 6);
    for (int d = 0; d < DEVICES; d++) {
        double tokens = (double)work[d].tokens;
        printf("  %2d thread%c %12.0f tokens/s, best %.0f\n", threads[d],
               threads[d] > 1 ? 's' : ' ', tokens / median_seconds(&c[d]),
               tokens / best_seconds(&c[d]));
        record(tokens / median_seconds(&c[d]), "update: %d threads, tokens/s", threads[d]);
        trainer_free(work[d].t);
        rollout_free(work[d].d);
    }
    free(parameters);
    printf("  %d threads over one: %.2fx\n", threads[FULL], speed_ratio(&c[FULL], &c[ONE]));
}

// ---------------------------------------------------------------------------------------------
// Memory of a training run of GPT-2 124M in fp32: what the device gives out around each creation.

static size_t memory_line(const char* what, size_t bytes, size_t parameters) {
    printf("  %-44s %10.1f MB %8.2f\n", what, (double)bytes / 1e6,
           (double)bytes / (double)parameters);
    record((double)bytes / (double)parameters, "memory: %s, bytes a parameter", what);
    return bytes;
}

static void memory(void) {
    model gpt = gpt2_124m();
    optimizer_config config = workload_adamw();
    backend* b = device[FULL];
    size_t n = gpt.parameters, each = n * sizeof(float), before = b->allocated;
    printf("\nMemory, %s in fp32, %zu parameters %29s\n", gpt2_name(), n, "bytes a parameter");
    float* parameters = xalloc(n, sizeof(float), "parameters");
    training w = {.objective = objective_defaults(OBJECTIVE_SFT)};
    w.d = workload_batch(gpt.shape.vocab, STEP_SEQUENCES, 1, STEP_TOKENS);
    w.t = workload_trainer(b, &gpt, fp32(), &config, w.d, RECOMPUTE_NOTHING);
    trainer_load(w.t, parameters);
    free(parameters);
    size_t trainer_only = b->allocated - before;
    training_run(&w);
    size_t scratch = b->allocated - before - trainer_only, at = b->allocated;
    sampler* r =
        sampler_create(b, &gpt, fp32(), &FORMAT_FP32, 32, PROMPT, NEW, 32, 0, (end_set){0}, 0);
    sampler_share(r, w.t->weights);
    size_t sampler_bytes = b->allocated - at;
    size_t gradients = w.t->optimizer->bytes - 2 * each, lookup = gpt.count[0] * sizeof(float);

    size_t sum = memory_line("parameters", each, n);
    sum += memory_line("gradients", gradients - lookup, n);
    sum += memory_line("AdamW's moments", 2 * each, n);
    goal_add("memory: parameters, gradients and moments, bytes a parameter",
             (double)sum / (double)n, AT_MOST, 16, 2, "");
    sum += memory_line("gradient of the embedding as a lookup", lookup, n);
    sum += memory_line("trainer: packed weights, rounded others", w.t->weights->bytes, n);
    sum += memory_line("trainer: activations of 256 tokens", model_acts_bytes(w.t->acts), n);
    memory_line("trainer: packed batch, log-probabilities", trainer_only - sum, n);
    memory_line("scratch memory of the device", scratch, n);
    memory_line("sampler: KV cache, 32 slots of 34 tokens", sampler_cache_bytes(r), n);
    memory_line("sampler: activations, slots", sampler_bytes - sampler_cache_bytes(r), n);
    memory_line("all", b->allocated - before, n);
    size_t rest = b->allocated - before - model_acts_bytes(w.t->acts);
    goal_add("memory: all but the trainer's activations, bytes a parameter",
             (double)rest / (double)n, AT_MOST, 20, 2, "");
    sampler_free(r);
    trainer_free(w.t);
    rollout_free(w.d);
}

// ---------------------------------------------------------------------------------------------
// The other kernels, on arrays larger than most caches, and attention. Bytes are those that must
// move: each array read once, written once.

typedef struct kernel_memory {
    backend* b;
    float *x, *y, *z, *w;  // (KERNEL_ELEMENTS) each
    float *stats, *logp;
    int *row, *target, *start;
    prepared *matrix, *column;
} kernel_memory;

enum { KERNEL_ELEMENTS = 16384 * 768, WIDE = 3072, CHANNELS = 768, HEADS = 12, VOCABULARY = 50257 };
enum { HEAD_ROWS = 64, LONG = 1024 };

static tensor matrix_of(float* data, int rows, int cols) {
    return (tensor){data, rows, cols, cols, &FORMAT_FP32};
}

static tensor wide(float* data) { return matrix_of(data, KERNEL_ELEMENTS / WIDE, WIDE); }
static tensor narrow(float* data) { return matrix_of(data, KERNEL_ELEMENTS / CHANNELS, CHANNELS); }

static void do_gelu(kernel_memory* m) { m->b->gelu_forward(m->b, wide(m->y), wide(m->x)); }
static void do_gelu_backward(kernel_memory* m) {
    m->b->gelu_backward(m->b, wide(m->z), wide(m->y), wide(m->x));
}
static void do_norm(kernel_memory* m) {
    m->b->norm_forward(m->b, narrow(m->w), narrow(m->z), m->stats, narrow(m->x), narrow(m->y), m->x,
                       m->y, 1e-5f);
}
static void do_norm_backward(kernel_memory* m) {
    m->b->norm_backward(m->b, narrow(m->z), m->w, m->w + CHANNELS, narrow(m->y), narrow(m->x),
                        m->stats, m->x);
}
static void do_softmax(kernel_memory* m) {
    m->b->head_forward(m->b, m->logp, m->logp + HEAD_ROWS, NULL, matrix_of(m->x, HEAD_ROWS, 1),
                       m->row, m->target, HEAD_ROWS, m->column, &FORMAT_FP32, 1, NULL, NULL);
}
static void do_prepare(kernel_memory* m) {
    m->b->weight_prepare(m->b, m->matrix, m->x, KERNEL_ELEMENTS / CHANNELS, CHANNELS, &FORMAT_FP32,
                         &FORMAT_FP32);
}
static void do_sum_squares(kernel_memory* m) {
    static double sum[(KERNEL_ELEMENTS + SUM_CHUNK - 1) / SUM_CHUNK];
    m->b->sum_squares(m->b, sum, m->x, KERNEL_ELEMENTS);
    sink = (float)sum[0];
}
static void do_adamw(kernel_memory* m) {
    static const adamw_step HOW = {.lr = 1e-4f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .eps = 1e-8f,
                                   .correction1 = 1,
                                   .correction2 = 1,
                                   .gradient_scale = 1,
                                   .format = &FORMAT_FP32};
    m->b->adamw(m->b, m->y, m->z, m->w, m->x, KERNEL_ELEMENTS, 0, &HOW);
}

// Attention over `sequences` sequences of `length` tokens, GPT-2 124M's heads.
static void attend(kernel_memory* m, int sequences, int length, int backward) {
    int n = sequences * length;
    head_shape heads = {HEADS, HEADS, CHANNELS / HEADS};
    tensor qkv = matrix_of(m->x, n, 3 * CHANNELS), out = matrix_of(m->y, n, CHANNELS);
    packing pack = {sequences, m->start, NULL};
    for (int s = 0; s <= sequences; s++) m->start[s] = s * length;
    if (!backward)
        m->b->attention_forward(m->b, out, m->stats, qkv, &pack, heads, &FORMAT_FP32);
    else
        m->b->attention_backward(m->b, matrix_of(m->z, n, 3 * CHANNELS),
                                 matrix_of(m->w, n, CHANNELS), qkv, out, m->stats, &pack, heads,
                                 &FORMAT_FP32, &FORMAT_FP32);
}
static void do_attention(kernel_memory* m) { attend(m, 4, 64, 0); }
static void do_attention_backward(kernel_memory* m) { attend(m, 4, 64, 1); }
static void do_long_attention(kernel_memory* m) { attend(m, 1, LONG, 0); }
static void do_long_attention_backward(kernel_memory* m) { attend(m, 1, LONG, 1); }

typedef struct kernel {
    const char* name;
    void (*work)(kernel_memory* m);
    double elements, bytes, flops;  // bytes and flops of an element; 0 = not of interest
} kernel;

// Attention's element is a pair of query and key of one head: 4 (forward) or 10 FLOPs a channel,
// where backward's products are scores, d(probability), dq, dk and dv.
#define PAIRS(n) (HEADS * (n) * ((n) + 1.0) / 2)
static const kernel KERNEL[] = {
    {"gelu forward", do_gelu, KERNEL_ELEMENTS, 8, 0},
    {"gelu backward", do_gelu_backward, KERNEL_ELEMENTS, 12, 0},
    {"norm forward with residual sum", do_norm, KERNEL_ELEMENTS, 16, 0},
    {"norm backward", do_norm_backward, KERNEL_ELEMENTS, 16, 0},
    {"head: log-probability, entropy", do_softmax, HEAD_ROWS*(double)VOCABULARY, 0, 0},
    {"weight preparation", do_prepare, KERNEL_ELEMENTS, 8, 0},
    {"sum of squares", do_sum_squares, KERNEL_ELEMENTS, 4, 0},
    {"AdamW", do_adamw, KERNEL_ELEMENTS, 28, 0},
    {"attention forward, 4 x 64", do_attention, 4 * PAIRS(64), 0, 4 * CHANNELS / HEADS},
    {"attention backward, 4 x 64", do_attention_backward, 4 * PAIRS(64), 0, 10 * CHANNELS / HEADS},
    {"attention forward, 1 x 1024", do_long_attention, PAIRS(LONG), 0, 4 * CHANNELS / HEADS},
    {"attention backward, 1 x 1024", do_long_attention_backward, PAIRS(LONG), 0,
     10 * CHANNELS / HEADS},
};

typedef struct kernel_work {
    const kernel* k;
    kernel_memory m;
} kernel_work;

static double kernel_run(void* arg) {
    kernel_work* w = arg;
    double start = clock_seconds();
    w->k->work(&w->m);
    return clock_seconds() - start;
}

static kernel_memory kernel_memory_create(void) {
    kernel_memory m = {0};
    size_t n = KERNEL_ELEMENTS;
    m.x = xalloc(4 * n, sizeof(float), "kernels");
    m.y = m.x + n;
    m.z = m.y + n;
    m.w = m.z + n;
    fill(m.x, 2 * n);
    m.stats = xalloc(2 * (size_t)(KERNEL_ELEMENTS / CHANNELS) * HEADS, sizeof(float), "kernels");
    m.logp = xalloc(2 * HEAD_ROWS, sizeof(float), "kernels");
    m.row = xalloc(3 * HEAD_ROWS, sizeof(int), "kernels");
    m.target = m.row + HEAD_ROWS;
    m.start = m.target + HEAD_ROWS;
    for (int i = 0; i < HEAD_ROWS; i++) m.row[i] = i;
    backend* b = device[FULL];
    m.matrix = b->weight_prepare(b, NULL, m.x, KERNEL_ELEMENTS / CHANNELS, CHANNELS, &FORMAT_FP32,
                                 &FORMAT_FP32);
    m.column = b->weight_prepare(b, NULL, m.x, VOCABULARY, 1, &FORMAT_FP32, &FORMAT_FP32);
    return m;
}

static void kernel_row(const kernel* k, kernel_memory m) {
    kernel_work work[DEVICES] = {{k, m}, {k, m}};
    contender c[2 * DEVICES] = {{0}};
    double ns[DEVICES];
    for (int d = 0; d < DEVICES; d++) {
        work[d].m.b = device[d];
        c[d] = (contender){.run = kernel_run, .arg = &work[d]};
        c[DEVICES + d] = (contender){.run = peak_run, .arg = &threads[d]};
    }
    compete(c, 2 * DEVICES, quick ? 3 : 9, quick ? 0.1 : 1);
    for (int d = 0; d < DEVICES; d++) {
        ns[d] = median_seconds(&c[d]) / k->elements * 1e9;
        record(ns[d], "kernels: %s, %d threads, ns an element", k->name, threads[d]);
    }
    double rate = k->bytes ? k->bytes / ns[FULL] : NAN;
    double share =
        k->flops ? peak_share(&c[FULL], k->flops * k->elements, &c[DEVICES + FULL], threads[FULL])
                 : NAN;
    printf("  %-32s %s %s %s %s %s\n", k->name, cell(ns[ONE], 10, 3, ""), cell(ns[FULL], 10, 3, ""),
           cell(rate, 9, 1, ""), cell(100 * rate * 1e9 / bandwidth[FULL], 11, 0, "%"),
           cell(100 * share, 9, 0, "%"));
}

static void kernels(void) {
    kernel_memory m = kernel_memory_create();
    printf("\n%-34s %10s %10s %9s %11s %9s\n", "Kernels, ns an element", "1 thread",
           xprintf("%d threads", threads[FULL]), "GB/s", "% bandwidth", "% of peak");
    for (size_t i = 0; i < sizeof KERNEL / sizeof *KERNEL; i++) kernel_row(&KERNEL[i], m);
    device[FULL]->weight_release(device[FULL], m.matrix);
    device[FULL]->weight_release(device[FULL], m.column);
    free(m.x);
    free(m.stats);
    free(m.logp);
    free(m.row);
}

// ---------------------------------------------------------------------------------------------

static const char* machine_name(char* line, size_t size) {
    FILE* f = fopen("/proc/cpuinfo", "r");
    char* name = NULL;
    while (f && !name && fgets(line, (int)size, f))
        if (!strncmp(line, "model name", 10) && (name = strchr(line, ':'))) name += 2;
    if (f) fclose(f);
    if (!name) return "unknown processor";
    name[strcspn(name, "\n")] = 0;
    return name;
}

static void open_devices(void) {
    device[ONE] = cpu_open(1, ISAS[isa]);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = threads_wanted ? threads_wanted : cores > 1 ? 2 : 1;
#ifndef _OPENMP
    n = 1;
#endif
    threads[FULL] = n;
    device[FULL] = cpu_open(n, ISAS[isa]);
}

static void heading(void) {
    char line[256], date[32];
    time_t now = time(NULL);
#ifdef __clang__
    const char* compiler = "clang " __clang_version__;
#else
    const char* compiler = "gcc " __VERSION__;
#endif
    const char* machine = machine_name(line, sizeof line);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M", localtime(&now));
    printf("%s, %ld cores; %s, %d and %d threads; %s; %s\n", machine, sysconf(_SC_NPROCESSORS_ONLN),
           device_isa(), threads[ONE], threads[FULL], compiler, date);
    if (!*json_option) return;
    json_path = json_option;
    json = file_open(json_path, "w");
    fprintf(json,
            "{\n  \"machine\": \"%s\",\n  \"isa\": \"%s\",\n  \"compiler\": \"%s\",\n"
            "  \"date\": \"%s\"",
            machine, device_isa(), compiler, date);
}

int main(int argc, char** argv) {
    static void (*const SECTION[])(void) = {NULL,     products, training_step, sampling_section,
                                            decoding, update,   memory,        kernels};
    options_parse(OPTIONS, argc, argv,
                  "bench: the trainer's speed on this machine; see dev/README.md");
    setvbuf(stdout, NULL, _IOLBF, 0);
    double start = clock_seconds();
    open_devices();
    heading();
    limits();
    for (int i = PRODUCTS; i <= KERNELS; i++)
        if (only == ALL || only == i) SECTION[i]();
    goals_print();
    printf("\n%.0f s\n", clock_seconds() - start);
    if (json) {
        fprintf(json, "\n}\n");
        file_close(json, json_path);
    }
    if (peer_in) fclose(peer_in);
    cpu_close(device[ONE]);
    cpu_close(device[FULL]);
    return 0;
}
