// time: how fast a GPU runs the trainer's ops, a training step and the sampler, as shares of what
// the GPU can do. dev/gpu/check.py runs it; dev/gpu/README.md describes the lines that it prints,
// one JSON object each.
//     build/native/gpu/time [--only SECTION] [--model SIZE] [--short] [--memory GB] [--toy]
//
// The limits are measured first, by the same program: a large copy in device memory, and a large
// product of bf16 matrices. A time is the median of several rounds after a warm-up; a round is one
// or more calls and the wait for them. A kernel takes sets of arrays in turn, so that what it reads
// is in no cache. Kernels shorter than a launch are timed as CUDA graphs. Bytes are those that must
// move: each array read once, written once.
//
// --toy runs the same code at sizes that a CPU can play. It measures nothing: every figure that
// would depend on time is null. The PTX machine (tests/ptx) allows nothing else.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../bench/workload.h"
#include "base/numerics.h"
#include "base/options.h"
#include "device/backend.h"
#include "rl/sampler.h"
#include "rl/trainer.h"

enum { ALL, DEVICE, KERNELS, PRODUCTS, STEP, SAMPLING };
static const char* const SECTIONS[] = {"all",  "device",   "kernels", "products",
                                       "step", "sampling", NULL};
static const char* const SIZES[] = {"124M", "355M", "774M", "1558M", NULL};
static const int GPT2_SIZES[][3] = {  // layers, heads, channels
    {12, 12, 768},
    {24, 16, 1024},
    {36, 20, 1280},
    {48, 25, 1600}};

static int only, size, short_sequences, invariant, wgmma, toy;
static double memory_gb = 70;

static option OPTIONS[] = {
    {.kind = OPTION_GROUP, .help = "Options"},
    {"only", OPTION_CHOICE, &only, "one section", 0, 0, SECTIONS, 0, 0, 0, NULL},
    {"model", OPTION_CHOICE, &size, "of the training step: GPT-2's sizes", 0, 0, SIZES, 0, 0, 0,
     NULL},
    {"short", OPTION_SWITCH, &short_sequences, "the step's sequences: packed, a quarter at most", 0,
     1, NULL, 0, 0, 0, NULL},
    {"batch-invariant", OPTION_SWITCH, &invariant,
     "steps and sampling with the products of --batch-invariant", 0, 1, NULL, 0, 0, 0, NULL},
    {"wgmma", OPTION_SWITCH, &wgmma, "the same by wgmma, and products by it for handwritten ones",
     0, 1, NULL, 0, 0, 0, NULL},
    {"memory", OPTION_DOUBLE, &memory_gb, "what a training step may take of the GPU's, in GB", 0,
     1e6, NULL, 1, 0, 0, NULL},
    {"toy", OPTION_SWITCH, &toy, "tiny sizes, no times", 0, 1, NULL, 0, 0, 0, NULL},
    {.kind = OPTION_GROUP},
};

// Two tables of one GPU: products by cuBLASLt where it is found, and by the device's own kernels.
static backend *gpu, *own;
// The one that trains and samples, and what its lines are called.
static backend* device(void) {
    static backend* of_invariance;
    const char* why;
    if (!invariant && !wgmma) return gpu;
    if (!of_invariance)
        of_invariance = cuda_open(wgmma ? PRODUCTS_WGMMA : PRODUCTS_INVARIANT, &why);
    return of_invariance;
}
static const char* suffix(void) { return wgmma ? ", wgmma" : invariant ? ", batch-invariant" : ""; }
static double bandwidth, product_rate;  // limits: bytes and FLOPs a second

static int pick(int full, int small) { return toy ? small : full; }

// ---------------------------------------------------------------------------------------------
// Lines of output

static void line_begin(const char* kind, const char* name) {
    printf("{\"kind\":\"%s\",\"name\":\"%s\"", kind, name);
}
static void line_number(const char* key, double value) {
    char text[32] = "null";
    if (isfinite(value)) number_text(value, text);
    printf(",\"%s\":%s", key, text);
}
static void line_text(const char* key, const char* value) { printf(",\"%s\":\"%s\"", key, value); }
static void line_end(void) {
    printf("}\n");
    fflush(stdout);
}

// ---------------------------------------------------------------------------------------------
// Measuring

enum { ROUNDS = 9, REPEATS_MAX = 400, SETS = 4 };
static const double ROUND_SECONDS = 2e-3, BUDGET_SECONDS = 6;

typedef void work(void* arg, int call);

static int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static double timed_calls(work* w, void* arg, int first, int calls) {
    double start = clock_seconds();
    for (int i = 0; i < calls; i++) w(arg, first + i);
    gpu->sync(gpu);
    own->sync(own);
    return clock_seconds() - start;
}

// Median seconds of a call, after one call for each set of arrays.
static double measure(work* w, void* arg) {
    double seconds[ROUNDS], start = clock_seconds();
    int n = 0, call = SETS;
    timed_calls(w, arg, 0, SETS);
    if (toy) return NAN;
    double one = timed_calls(w, arg, call++, 1);
    int repeats = one * REPEATS_MAX < ROUND_SECONDS ? REPEATS_MAX : 1 + (int)(ROUND_SECONDS / one);
    for (; n < ROUNDS && (n < 3 || clock_seconds() - start < BUDGET_SECONDS); n++, call += repeats)
        seconds[n] = timed_calls(w, arg, call, repeats) / repeats;
    qsort(seconds, n, sizeof *seconds, compare_doubles);
    return (seconds[n / 2] + seconds[(n - 1) / 2]) / 2;
}

// The same of a kernel that takes less time than its launch by the host (4 to 5 microseconds): many
// calls are one CUDA graph, whose kernels start without the host. A call may not wait for the GPU.
enum { GRAPH_CALLS = 64 };
typedef struct short_work {
    backend* b;
    work* run;
    void* arg;
    recording* graph;
} short_work;

static void graph_calls(void* argument) {
    short_work* s = argument;
    for (int i = 0; i < GRAPH_CALLS; i++) s->run(s->arg, i);
}

static void graph_work(void* arg, int call) {
    short_work* s = arg;
    (void)call;
    s->b->repeat(s->b, &s->graph, 0, graph_calls, s);
}

static double measure_short(backend* b, work* w, void* arg) {
    short_work s = {b, w, arg, NULL};
    double seconds = measure(graph_work, &s) / GRAPH_CALLS;
    b->forget(b, &s.graph);
    return seconds;
}

// ---------------------------------------------------------------------------------------------
// Device arrays. They live until the section ends.

enum { ARRAYS_MAX = 64 };
typedef struct array {
    void* data;
    size_t bytes;
} array;
static array arrays[ARRAYS_MAX];
static int array_count;

static void* array_new(size_t bytes) {
    if (array_count == ARRAYS_MAX) fatal("a section needs more than %d arrays", ARRAYS_MAX);
    array a = {gpu->alloc(gpu, bytes, "a measurement"), bytes};
    arrays[array_count++] = a;
    return a.data;
}

static void arrays_free(void) {
    gpu->sync(gpu);
    own->sync(own);
    while (array_count) {
        array a = arrays[--array_count];
        gpu->release(gpu, a.data, a.bytes);
    }
}

// Values spread evenly over -scale .. scale: a GPU's clock, and so its speed, depends on them.
static float value_at(size_t i, float scale) {
    uint32_t h = (uint32_t)i * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return ((float)(h >> 8) * 0x1p-23f - 1) * scale;
}

enum { CHUNK = 1 << 22 };  // elements that the host makes; longer arrays repeat them

// n elements of a format, from a chunk of the host's.
static void fill(void* to, size_t n, const format* f, float scale) {
    size_t each = gpu->bytes_per(f), chunk = n < CHUNK ? n : CHUNK;
    char* host = xalloc(chunk, each, "a measurement");
    for (size_t i = 0; i < chunk; i++) {
        float x = value_at(i, scale);
        uint16_t half = (uint16_t)(float_bits(x) >> 16);  // bf16, cut off
        memcpy(host + i * each, each == 2 ? (void*)&half : (void*)&x, each);
    }
    for (size_t i = 0; i < n; i += chunk)
        gpu->upload(gpu, (char*)to + i * each, host, (n - i < chunk ? n - i : chunk) * each);
    free(host);
}

static int* ints_new(const int* host, int n) {
    int* data = array_new(n * sizeof(int));
    gpu->upload(gpu, data, host, n * sizeof(int));
    return data;
}

// first, first + step, first + 2 step, ... modulo `modulus`
static int* progression_new(int n, int first, int step, int modulus) {
    int* host = xalloc(n, sizeof(int), "a measurement");
    for (int i = 0; i < n; i++) host[i] = (int)((first + (int64_t)i * step) % modulus);
    int* data = ints_new(host, n);
    free(host);
    return data;
}

static model model_number(int i) {
    if (toy) return model_gpt2(32, 61, 2, 2, 32);
    return model_gpt2(1024, 50257, GPT2_SIZES[i][0], GPT2_SIZES[i][1], GPT2_SIZES[i][2]);
}

// GPT-2's initial values, near enough for the time they take.
static void fill_parameters(const model* m, float* parameters) {
    for (int i = 0; i < WEIGHTS; i++) {
        const family_weight* w = &m->family->weight[i];
        int gain = w->role == GAIN && m->count[i], matrix = weight_decays(w) && m->count[i];
        float *to = parameters + m->offset[i], *ones = NULL;
        if (gain) ones = xalloc(m->count[i], sizeof(float), "gains");
        for (size_t j = 0; gain && j < m->count[i]; j++) ones[j] = 1;
        if (matrix) fill(to, m->count[i], &FORMAT_FP32, 0.035f);
        if (gain) gpu->upload(gpu, to, ones, m->count[i] * sizeof(float));
        free(ones);
    }
}

static tensor matrix(void* data, int rows, int cols, const format* f) {
    return (tensor){data, rows, cols, cols, f};
}

// ---------------------------------------------------------------------------------------------
// Limits

typedef struct copying {
    char *from, *to;
    size_t bytes;
} copying;

static void copy_work(void* arg, int call) {
    copying* c = arg;
    gpu->copy(gpu, call % 2 ? c->to : c->from, call % 2 ? c->from : c->to, c->bytes);
}

typedef struct product {
    backend* b;
    tensor in[SETS], out[SETS], din[SETS];
    prepared* w;
    float *bias, *dw, *dbias;
} product;

static void forward_work(void* arg, int call) {
    product* p = arg;
    p->b->matmul_forward(p->b, p->out[call % SETS], p->in[call % SETS], p->w, p->bias);
}

static double limit_line(const char* name, const char* unit, double rate, double of_unit) {
    line_begin("limit", name);
    line_number("value", rate / of_unit);
    line_text("unit", unit);
    line_end();
    return rate;
}

static void limits(void) {
    copying c = {.bytes = toy ? 1 << 12 : (size_t)1 << 30};
    c.from = array_new(c.bytes);
    c.to = array_new(c.bytes);
    double moved = 2.0 * (double)c.bytes;
    bandwidth = limit_line("copy", "GB/s", moved / measure(copy_work, &c), 1e9);
    arrays_free();

    int n = pick(8192, 64);
    size_t all = (size_t)n * n;
    product p = {.b = gpu};
    uint16_t *in = array_new(all * 2), *out = array_new(all * 2);
    float* w = array_new(all * sizeof(float));
    fill(in, all, &FORMAT_BF16, 1);
    fill(w, all, &FORMAT_FP32, 0.1f);
    p.w = gpu->weight_prepare(gpu, NULL, w, n, n, &FORMAT_BF16, &FORMAT_BF16);
    for (int s = 0; s < SETS; s++) {
        p.in[s] = matrix(in, n, n, &FORMAT_BF16);
        p.out[s] = matrix(out, n, n, &FORMAT_BF16);
    }
    double flops = 2.0 * n * n * n;
    product_rate = limit_line("product", "TFLOP/s", flops / measure(forward_work, &p), 1e12);
    gpu->weight_release(gpu, p.w);
    arrays_free();
}

// A kernel's limit is memory where bytes are given, arithmetic where FLOPs are.
static void kernel_line_of(const char* name, double seconds, double bytes, double flops) {
    line_begin("kernel", name);
    line_number("us", seconds * 1e6);
    line_text("limit", bytes > 0 ? "copy" : "product");
    line_number(bytes > 0 ? "bytes" : "flops", bytes > 0 ? bytes : flops);
    line_number("share", bytes > 0 ? bytes / seconds / bandwidth : flops / seconds / product_rate);
    line_end();
}

// ---------------------------------------------------------------------------------------------
// Products with the weights of GPT-2 124M, as in its training step, and in a step of decoding

typedef struct product_shape {
    const char* name;
    int inputs, outputs;       // in units of the channels
    const format* input_grad;  // what the step takes it in
} product_shape;
static const product_shape SHAPES[] = {{"qkv", 1, 3, &FORMAT_FP32},
                                       {"attproj", 1, 1, &FORMAT_BF16},
                                       {"fc", 1, 4, &FORMAT_FP32},
                                       {"fcproj", 4, 1, &FORMAT_FP32}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

static void input_gradient_work(void* arg, int call) {
    product* p = arg;
    p->b->matmul_backward_input(p->b, p->din[call % SETS], p->out[call % SETS], p->w);
}
static void weight_gradient_work(void* arg, int call) {
    product* p = arg;
    int s = call % SETS;
    p->b->matmul_backward_weight(p->b, p->dw, p->dbias, p->out[s], p->in[s], p->w);
}

static const struct {
    const char* name;
    work* run;
} PRODUCT_OPS[] = {{"forward", forward_work},
                   {"input gradient", input_gradient_work},
                   {"weight gradient", weight_gradient_work}};

// By the library, by the device's own kernels, and by these in fp8 with gradients in fp8_e5m2; that
// one's time is with the rounding of what is not prepared.
enum { LIBRARY, HANDWRITTEN, HANDWRITTEN_FP8, WAYS };

static prepared* prepare_as(backend* b, int way, const float* w, int n, int k) {
    linear_plan plan = {.gradient = &FORMAT_E5M2};
    const format* operand = way == HANDWRITTEN_FP8 ? &FORMAT_E4M3 : &FORMAT_BF16;
    prepared* p = way == HANDWRITTEN_FP8 ? b->weight_plan(b, &plan) : NULL;
    return b->weight_prepare(b, p, w, n, k, operand, operand);
}

static void product_lines(const product_shape* f, int rows, int channels) {
    int k = f->inputs * channels, n = f->outputs * channels;
    backend* device[WAYS] = {gpu, own, own};
    product p = {0};
    float* w = array_new((size_t)k * n * sizeof(float));
    fill(w, (size_t)k * n, &FORMAT_FP32, 0.035f);
    p.bias = array_new(n * sizeof(float));
    p.dbias = array_new(n * sizeof(float));
    p.dw = array_new((size_t)k * n * sizeof(float));
    for (int s = 0; s < SETS; s++) {
        size_t in = (size_t)rows * k, out = (size_t)rows * n;
        p.in[s] = matrix(array_new(in * 2), rows, k, &FORMAT_BF16);
        p.out[s] = matrix(array_new(out * 2), rows, n, &FORMAT_BF16);
        p.din[s] = matrix(array_new(in * sizeof(float)), rows, k, f->input_grad);
        fill(p.in[s].data, in, &FORMAT_BF16, 1);
    }
    prepared* weight[WAYS];
    gpu->sync(gpu);  // the arrays are gpu's; the other table does not wait for it
    for (int d = 0; d < WAYS; d++) weight[d] = prepare_as(device[d], d, w, n, k);
    for (int op = 0; op < 3; op++) {
        double flops = 2.0 * rows * k * n, rate[WAYS];
        for (int d = 0; d < WAYS; d++) {
            p.b = device[d];
            p.w = weight[d];
            rate[d] = flops / measure(PRODUCT_OPS[op].run, &p);
        }
        char* name = xprintf("%s %s%s", f->name, PRODUCT_OPS[op].name, suffix());
        line_begin("product", name);
        line_number("rows", rows);
        line_number("inputs", k);
        line_number("outputs", n);
        line_number("tflops", rate[LIBRARY] / 1e12);
        line_number("share", rate[LIBRARY] / product_rate);
        line_number("handwritten_tflops", rate[HANDWRITTEN] / 1e12);
        line_number("handwritten_share", rate[HANDWRITTEN] / product_rate);
        line_number("handwritten_fp8_tflops", rate[HANDWRITTEN_FP8] / 1e12);
        line_end();
        free(name);
    }
    for (int d = 0; d < WAYS; d++) device[d]->weight_release(device[d], weight[d]);
    arrays_free();
}

// A step of decoding reads each layer's weights from memory. So each call of a graph has weights of
// its own, and caches hold none until its next turn: the smallest are 75 MB together.
enum { LAYERS = GRAPH_CALLS };
typedef struct layers_product {
    product p;
    prepared* w[LAYERS];
} layers_product;

static void layers_work(void* arg, int call) {
    layers_product* x = arg;
    const product* p = &x->p;
    p->b->matmul_forward(p->b, p->out[0], p->in[0], x->w[call % LAYERS], p->bias);
}

static void decoding_line(const product_shape* f, backend* b, const char* whose) {
    int rows = pick(256, 5), channels = pick(768, 32);
    int k = f->inputs * channels, n = f->outputs * channels;
    size_t in = (size_t)rows * k, out = (size_t)rows * n, weights = (size_t)k * n;
    layers_product x = {.p = {.b = b}};
    float* w = array_new(weights * sizeof(float));
    fill(w, weights, &FORMAT_FP32, 0.035f);
    x.p.bias = array_new(n * sizeof(float));
    x.p.in[0] = matrix(array_new(in * 2), rows, k, &FORMAT_BF16);
    x.p.out[0] = matrix(array_new(out * 2), rows, n, &FORMAT_BF16);
    fill(x.p.in[0].data, in, &FORMAT_BF16, 1);
    gpu->sync(gpu);
    for (int l = 0; l < LAYERS; l++) {
        x.w[l] = b->weight_prepare(b, NULL, w, n, k, &FORMAT_BF16, &FORMAT_BF16);
        b->bias_prepare(b, x.w[l], x.p.bias, &FORMAT_BF16);
    }
    char* name = xprintf("%s, decoding%s", f->name, whose);
    double bytes = 2.0 * (double)(in + weights + out);
    kernel_line_of(name, measure_short(b, layers_work, &x), bytes, 0);
    for (int l = 0; l < LAYERS; l++) b->weight_release(b, x.w[l]);
    arrays_free();
    free(name);
}

static void products(void) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        product_lines(&SHAPES[i], pick(16384, 48), pick(768, 32));
        if (!wgmma) decoding_line(&SHAPES[i], gpu, "");
        decoding_line(&SHAPES[i], own, wgmma ? suffix() : ", handwritten");
    }
}

// ---------------------------------------------------------------------------------------------
// The other kernels, at the sizes of GPT-2 124M: 16384 rows, as 16 sequences of 1024 or 64 of 256.

enum { POSITION = 159 };  // of decoding: what 32 + 128 tokens come to

// Arrays of a set: x, y of four times the channels; the same in fp32.
typedef struct array_set {
    uint16_t *x, *y;
    float *wide, *stats;
} array_set;

typedef struct bench {
    int rows, channels, heads, vocab, long_tokens, short_tokens, slots, new_max;
    size_t parameters;
    array_set set[SETS];
    float *table, *dtable, *dpositions;         // (V, C), (V, C), (context, C)
    float *w, *m, *v, *g;                       // (parameters)
    double* sums;                               // host (chunks of the parameters)
    float *gain, *bias, *dgain, *dbias;         // (C)
    float *logp, *entropy, *coef;               // (rows)
    int *token, *position, *identity, *target;  // (rows)
    int *long_start, *short_start, *slot_position;
    prepared* head;
    kv_cache kv;
    slot_state slot;
    sampling* how;  // of sample
} bench;

static array_set* set_of(bench* d, int call) { return &d->set[call % SETS]; }

// Slice i of four of x or y: (rows, C).
static tensor slice(const bench* d, uint16_t* x, int i) {
    return matrix(x + (size_t)i * d->rows * d->channels, d->rows, d->channels, &FORMAT_BF16);
}
static tensor wide(const bench* d, uint16_t* x) {
    return matrix(x, d->rows, 4 * d->channels, &FORMAT_BF16);
}
static tensor qkv_of(const bench* d, void* x, int rows) {
    return matrix(x, rows, 3 * d->channels, &FORMAT_BF16);
}

static void do_embed_forward(void* arg, int call) {
    bench* d = arg;
    gpu->embed_forward(gpu, slice(d, set_of(d, call)->y, 0), d->table, d->dpositions, d->token,
                       d->position);
}
static void do_embed_backward(void* arg, int call) {
    bench* d = arg;
    gpu->embed_backward(gpu, d->dtable, d->dpositions, slice(d, set_of(d, call)->x, 0), d->token,
                        d->position);
}
static void do_norm_forward(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    gpu->norm_forward(gpu, slice(d, s->y, 0), slice(d, s->y, 1), s->stats, slice(d, s->x, 0),
                      slice(d, s->x, 1), d->gain, d->bias, 1e-5f);
}
static void do_norm_backward(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    gpu->norm_backward(gpu, slice(d, s->y, 2), d->dgain, d->dbias,
                       matrix(s->wide, d->rows, d->channels, &FORMAT_FP32), slice(d, s->y, 1),
                       s->stats, d->gain);
}
static void do_gelu_forward(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    gpu->gelu_forward(gpu, wide(d, s->y), wide(d, s->x));
}
static void do_gelu_backward(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    gpu->gelu_backward(gpu, wide(d, s->y), matrix(s->wide, d->rows, 4 * d->channels, &FORMAT_FP32),
                       wide(d, s->x));
}
static void do_gather(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    gpu->gather_rows(gpu, slice(d, s->y, 0), slice(d, s->x, 0), d->identity);
}
static void do_prepare(void* arg, int call) {
    bench* d = arg;
    (void)call;
    gpu->weight_prepare(gpu, d->head, d->table, d->vocab, d->channels, &FORMAT_BF16, &FORMAT_BF16);
}
static void do_cast(void* arg, int call) {
    bench* d = arg;
    (void)call;
    gpu->cast(gpu, d->m, d->w, d->parameters, &FORMAT_BF16);
}
static void do_add(void* arg, int call) {
    bench* d = arg;
    (void)call;
    gpu->add(gpu, d->m, d->w, d->parameters);
}
static void do_sum_squares(void* arg, int call) {
    bench* d = arg;
    (void)call;
    gpu->sum_squares(gpu, d->sums, d->g, d->parameters);
}
static void do_adamw(void* arg, int call) {
    bench* d = arg;
    adamw_step how = {.lr = 1e-4f,
                      .beta1 = 0.9f,
                      .beta2 = 0.95f,
                      .eps = 1e-8f,
                      .correction1 = 1,
                      .correction2 = 1,
                      .gradient_scale = 1,
                      .format = &FORMAT_FP32,
                      .step = (uint32_t)call};
    gpu->adamw(gpu, d->w, d->m, d->v, d->g, d->parameters, 0, &how);
}

static head_shape heads_of(const bench* d) {
    return (head_shape){d->heads, d->heads, d->channels / d->heads};
}

static void attend(bench* d, int call, const int* start, int sequences) {
    array_set* s = set_of(d, call);
    packing pack = {sequences, start, NULL};
    gpu->attention_forward(gpu, slice(d, s->y, 0), s->stats, qkv_of(d, s->x, d->rows), &pack,
                           heads_of(d), &FORMAT_BF16);
}
static void attend_backward(bench* d, int call, const int* start, int sequences) {
    array_set* s = set_of(d, call);
    packing pack = {sequences, start, NULL};
    gpu->attention_backward(gpu, qkv_of(d, s->wide, d->rows), slice(d, s->x, 3),
                            qkv_of(d, s->x, d->rows), slice(d, s->y, 0), s->stats, &pack,
                            heads_of(d), &FORMAT_BF16, &FORMAT_BF16);
}
static void do_long_attention(void* arg, int call) {
    bench* d = arg;
    attend(d, call, d->long_start, d->rows / d->long_tokens);
}
static void do_long_attention_backward(void* arg, int call) {
    bench* d = arg;
    attend_backward(d, call, d->long_start, d->rows / d->long_tokens);
}
static void do_short_attention(void* arg, int call) {
    bench* d = arg;
    attend(d, call, d->short_start, d->rows / d->short_tokens);
}
static void do_short_attention_backward(void* arg, int call) {
    bench* d = arg;
    attend_backward(d, call, d->short_start, d->rows / d->short_tokens);
}
static void do_head_forward(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    gpu->head_forward(gpu, d->logp, d->entropy, s->stats, slice(d, s->x, 0), d->identity, d->target,
                      d->rows, d->head, &FORMAT_FP32, 1, NULL, NULL);
}
// As in training: what forward leaves, backward finds.
static void do_head_both(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    do_head_forward(d, call);
    tensor dx = matrix(s->wide, d->rows, d->channels, &FORMAT_FP32);
    gpu->head_backward(gpu, dx, d->dtable, s->stats, slice(d, s->x, 0), d->identity, d->target,
                       d->coef, NULL, d->rows, d->head, &FORMAT_FP32, 1, NULL);
}
static void do_kv_write(void* arg, int call) {
    bench* d = arg;
    gpu->kv_write(gpu, &d->kv, 0, qkv_of(d, set_of(d, call)->x, d->slots), d->identity,
                  d->slot_position);
}
static void do_attention_cached(void* arg, int call) {
    bench* d = arg;
    array_set* s = set_of(d, call);
    tensor out = matrix(s->y, d->slots, d->channels, &FORMAT_BF16);
    gpu->attention_cached(gpu, out, &d->kv, 0, qkv_of(d, s->x, d->slots), d->identity,
                          d->slot_position);
}
static void do_sample(void* arg, int call) {
    bench* d = arg;
    tensor x = matrix(set_of(d, call)->x, d->slots, d->channels, &FORMAT_BF16);
    gpu->sample(gpu, &d->slot, x, d->identity, d->slots, d->head, &FORMAT_FP32, d->how);
}

static int* starts_new(int rows, int length) {
    return progression_new(rows / length + 1, 0, length, rows + 1);
}

static void bench_caches(bench* d) {
    int pages = (POSITION + KV_PAGE) / KV_PAGE;
    d->kv = (kv_cache){.layers = 1,
                       .pages = d->slots * pages,
                       .heads = heads_of(d),
                       .pages_per_slot = pages,
                       .operand = &FORMAT_BF16,
                       .format = &FORMAT_BF16};
    size_t bytes = gpu->kv_bytes(&d->kv);
    d->kv.data = array_new(bytes);
    fill(d->kv.data, bytes / 2, &FORMAT_BF16, 1);
    d->kv.page_table = progression_new(d->kv.pages, 0, 1, d->kv.pages);
    d->slot_position = progression_new(d->slots, POSITION, 0, POSITION + 1);
    const sampling how = {.inverse_temperature = 1, .top_p = 1, .seed = 1, .stream = STREAM_SAMPLE};
    d->how = array_new(sizeof how);
    gpu->upload(gpu, d->how, &how, sizeof how);
    size_t places = (size_t)d->slots * d->new_max;
    d->slot = (slot_state){.token = progression_new(d->slots, 0, 1, d->vocab),
                           .position = progression_new(d->slots, POSITION, 0, POSITION + 1),
                           .sequence = d->identity,
                           .left = progression_new(d->slots, d->new_max, 0, d->new_max + 1),
                           .length = array_new(d->slots * sizeof(int)),
                           .out_token = array_new(places * sizeof(int)),
                           .out_logp = array_new(places * sizeof(float)),
                           .out_entropy = array_new(places * sizeof(float)),
                           .max_new = d->new_max};
}

static float* floats_new(size_t n, float scale) {
    float* x = array_new(n * sizeof(float));
    if (scale > 0) fill(x, n, &FORMAT_FP32, scale);
    return x;
}

static void bench_create(bench* d) {
    model m = model_number(0);
    *d = (bench){.rows = pick(16384, 48),
                 .channels = m.shape.channels,
                 .heads = m.shape.heads,
                 .vocab = m.shape.vocab,
                 .long_tokens = pick(1024, 24),
                 .short_tokens = pick(256, 6),
                 .slots = pick(256, 5),
                 .new_max = SETS + 1 + ROUNDS * REPEATS_MAX};
    d->parameters = m.parameters;
    int n = d->rows, c = d->channels;
    size_t all = (size_t)n * 4 * c, embedding = (size_t)d->vocab * c;
    for (int s = 0; s < SETS; s++) {
        d->set[s].x = array_new(all * 2);
        d->set[s].y = array_new(all * 2);
        d->set[s].wide = floats_new(all, 1);
        d->set[s].stats = array_new((size_t)n * 2 * d->heads * sizeof(float));
        fill(d->set[s].x, all, &FORMAT_BF16, 1);
    }
    d->table = floats_new(embedding, 0.035f);
    d->dtable = floats_new(embedding, 0);
    d->dpositions = floats_new((size_t)d->long_tokens * c, 0.035f);
    d->sums = xalloc(d->parameters / SUM_CHUNK + 1, sizeof *d->sums, "sums");
    d->w = floats_new(d->parameters, 0.035f);
    d->m = floats_new(d->parameters, 0);
    d->v = floats_new(d->parameters, 0);
    d->g = floats_new(d->parameters, 0.01f);
    d->gain = floats_new(c, 1);
    d->bias = floats_new(c, 1);
    d->dgain = floats_new(c, 0);
    d->dbias = floats_new(c, 0);
    d->logp = floats_new(n, 0);
    d->entropy = floats_new(n, 0);
    d->coef = floats_new(n, 1e-4f);
    d->token = progression_new(n, 1, 1237, d->vocab);  // a prime vocabulary: no token twice
    d->position = progression_new(n, 0, 1, d->long_tokens);
    d->identity = progression_new(n, 0, 1, n);
    d->target = progression_new(n, 5, 1237, d->vocab);
    d->long_start = starts_new(n, d->long_tokens);
    d->short_start = starts_new(n, d->short_tokens);
    d->head = gpu->weight_prepare(gpu, NULL, d->table, d->vocab, c, &FORMAT_BF16, &FORMAT_BF16);
    bench_caches(d);
}

static void kernel_line(bench* d, const char* name, work* w, double bytes, double flops) {
    kernel_line_of(name, measure(w, d), bytes, flops);
}

// Attention counts the pairs of query and key that the mask lets pass: forward has two products of
// them, backward five.
static double attention_flops(const bench* d, int length, int products_count) {
    double pairs = (double)(d->rows / length) * length * (length + 1) / 2;
    return products_count * 2.0 * d->channels * pairs;
}

static void kernels(void) {
    bench d;
    bench_create(&d);
    double n = d.rows, c = d.channels, nc = n * c, vc = (double)d.vocab * c;
    double all = (double)d.parameters, positions = (double)d.long_tokens * c;
    double slots = d.slots, named = n < d.vocab ? n : d.vocab;
    kernel_line(&d, "embed forward", do_embed_forward, 4 * (named * c + positions) + 2 * nc, 0);
    kernel_line(&d, "embed backward", do_embed_backward, 2 * nc + 8 * (named * c + positions), 0);
    kernel_line(&d, "norm forward with residual sum", do_norm_forward, 8 * nc, 0);
    kernel_line(&d, "norm backward", do_norm_backward, 10 * nc, 0);
    kernel_line(&d, "gelu forward", do_gelu_forward, 4 * 4 * nc, 0);
    kernel_line(&d, "gelu backward", do_gelu_backward, 8 * 4 * nc, 0);
    kernel_line(&d, "gather rows", do_gather, 4 * nc, 0);
    kernel_line(&d, "weight preparation", do_prepare, 6 * vc, 0);
    kernel_line(&d, "cast", do_cast, 8 * all, 0);
    kernel_line(&d, "add", do_add, 12 * all, 0);
    kernel_line(&d, "sum of squares", do_sum_squares, 4 * all, 0);
    kernel_line(&d, "AdamW", do_adamw, 28 * all, 0);
    kernel_line(&d, "attention forward, long", do_long_attention, 0,
                attention_flops(&d, d.long_tokens, 2));
    kernel_line(&d, "attention backward, long", do_long_attention_backward, 0,
                attention_flops(&d, d.long_tokens, 5));
    kernel_line(&d, "attention forward, short", do_short_attention, 0,
                attention_flops(&d, d.short_tokens, 2));
    kernel_line(&d, "attention backward, short", do_short_attention_backward, 0,
                attention_flops(&d, d.short_tokens, 5));
    kernel_line(&d, "head forward", do_head_forward, 0, 2 * n * vc);
    kernel_line(&d, "head forward and backward", do_head_both, 0, 6 * n * vc);
    bench step = d;  // of decoding: a row a slot
    step.rows = d.slots;
    kernel_line_of("norm forward, decoding", measure_short(gpu, do_norm_forward, &step),
                   8 * slots * c, 0);
    kernel_line_of("gelu forward, decoding", measure_short(gpu, do_gelu_forward, &step),
                   16 * slots * c, 0);
    kernel_line_of("kv write", measure_short(gpu, do_kv_write, &d), 8 * slots * c, 0);
    kernel_line(&d, "attention cached", do_attention_cached, 4 * slots * c * (POSITION + 1), 0);
    kernel_line(&d, "sample", do_sample, 2 * vc + 2 * slots * c, 0);
    gpu->weight_release(gpu, d.head);
    arrays_free();
}

// ---------------------------------------------------------------------------------------------
// A training step: from the tokens to the weights ready for the next step, bf16 with fp32 masters.

// `sequences` sequences that a token begins; random tokens.
typedef struct step {
    struct model model;
    int sequences, length;  // length: of the longest
    recompute_level keep;
    trainer* t;
    rollout* d;
    objective objective;
} step;

static void step_work(void* arg, int call) {
    step* s = arg;
    (void)call;
    trainer_update(s->t, s->d, 0, s->d->sequences, &s->objective, AGGREGATE_TOKEN_MEAN, 1, 1e-5);
}

// Useful FLOPs: 6 a token and parameter of a product (forward 2, backward 4), and causal
// attention's 4 C a pair of query and key, three times. What is recomputed does not count.
static double step_flops(const step* s) {
    double L = s->model.shape.layers, C = s->model.shape.channels, flops = 0;
    double matrices = 12 * L * C * C + (double)s->model.shape.vocab * C;
    for (int i = 0; i < s->sequences; i++) {
        double T = rollout_length(s->d, i);
        flops += 6 * matrices * T + 3 * L * 4 * C * T * (T + 1) / 2;
    }
    return flops;
}

// An estimate in bytes, on the safe side: 18 a parameter, the lookup's gradient, activations
// (see recompute_level), and logits: a block of rows, or what head.cuh keeps of them.
static double step_bytes(const model* c, double capacity, recompute_level keep) {
    static const double KEPT[] = {16, 10, 1};
    double elements = (KEPT[keep] * c->shape.layers + 32) * c->shape.channels,
           logits = (1 + memory_gb / 16) * 1e9;
    double parameters = (double)c->parameters, lookup = 4.0 * c->shape.vocab * c->shape.channels;
    return 1.05 * (18 * parameters + lookup + 2 * elements * capacity + (toy ? 0 : logits));
}

// How many sequences and what is kept of their activations: all of `tokens`, if the memory allows.
static int step_fit(step* s, int tokens, int mean_length) {
    for (; tokens >= s->length; tokens /= 2) {
        s->sequences = tokens / mean_length;
        double capacity = (double)s->sequences * s->length;
        for (s->keep = RECOMPUTE_NOTHING; s->keep <= RECOMPUTE_BLOCKS; s->keep++)
            if (step_bytes(&s->model, capacity, s->keep) < memory_gb * 1e9) return 1;
    }
    return 0;
}

// Lengths spread evenly from a quarter of the longest to it.
static void make_ragged(rollout* d, int longest) {
    rng r = rng_at(2, STREAM_SAMPLE, 0, 0);
    for (int s = 0; s < d->sequences; s++)
        d->start[s + 1] = d->start[s] + longest / 4 + rng_below(&r, longest - longest / 4 + 1);
}

static void step_line(const step* s, double seconds, double memory) {
    char* name = xprintf("%s %s%s", SIZES[size], short_sequences ? "short" : "long", suffix());
    double tokens = (double)s->d->start[s->sequences];
    line_begin("step", name);
    line_number("sequences", s->sequences);
    line_number("length", s->length);
    line_number("tokens", tokens);
    line_number("recompute", s->keep);
    line_number("memory_gb", memory / 1e9);
    line_number("flops", step_flops(s));
    line_number("tokens_per_s", tokens / seconds);
    line_number("mfu", step_flops(s) / seconds / product_rate);
    line_end();
    free(name);
}

static void training_step(void) {
    optimizer_config config = workload_adamw();
    step s = {.model = model_number(size), .objective = objective_defaults(OBJECTIVE_SFT)};
    int context = s.model.shape.context;
    s.length = short_sequences ? context / 4 : context;
    int mean_length = short_sequences ? s.length * 5 / 8 : s.length;
    if (!step_fit(&s, (size < 2 ? 16 : 8) * context, mean_length)) {
        line_begin("skipped", SIZES[size]);
        line_text("reason", "a training step does not fit in the memory it may take");
        line_end();
        return;
    }
    s.d = workload_batch(s.model.shape.vocab, s.sequences, 1, s.length);
    if (short_sequences) make_ragged(s.d, s.length);
    s.t = workload_trainer(device(), &s.model, precision_of(&FORMAT_BF16, &FORMAT_FP32), &config,
                           s.d, s.keep);
    fill_parameters(&s.model, s.t->parameters);
    gpu->sync(gpu);
    model_weights_sync(s.t->weights, s.t->parameters);
    double seconds = measure(step_work, &s);
    step_line(&s, seconds, (double)device()->allocated);
    trainer_free(s.t);
    rollout_free(s.d);
}

// ---------------------------------------------------------------------------------------------
// Sampling with GPT-2 124M: prompts of their own, no token ends a sequence, prefill included.

typedef struct sampling_run {
    sampler* r;
    rollout* d;
} sampling_run;

static void sampling_work(void* arg, int call) {
    sampling_run* s = arg;
    sampling how = {
        .inverse_temperature = 1, .top_p = 1, .seed = 1, .stream = STREAM_SAMPLE, .step = call};
    sampler_run(s->r, s->d, &how);
}

// Bytes that the decode steps must read: all weights of products, and every sequence's cache.
static double sampling_bytes(const model* c, int sequences, int prompt, int new_tokens) {
    double L = c->shape.layers, C = c->shape.channels,
           weights = 12 * L * C * C + (double)c->shape.vocab * C;
    double bytes = 0;
    for (int t = prompt + 1; t < prompt + new_tokens; t++)
        bytes += 2 * weights + (double)sequences * t * 4 * L * C;
    return bytes;
}

static void sampling_line(const model* c, const float* parameters, int sequences) {
    int prompt = pick(32, 5), new_tokens = pick(128, 6);
    sampling_run s = {.d = workload_batch(c->shape.vocab, sequences, prompt, new_tokens)};
    s.r = sampler_create(device(), c, precision_of(&FORMAT_BF16, &FORMAT_FP32), &FORMAT_BF16,
                         sequences, prompt, new_tokens, sequences, 0, (end_set){0}, 0);
    sampler_sync(s.r, parameters);
    double seconds = measure(sampling_work, &s), tokens = (double)sequences * new_tokens;
    char* name = xprintf("%d sequences%s", sequences, suffix());
    line_begin("sampling", name);
    line_number("sequences", sequences);
    line_number("prompt", prompt);
    line_number("new", new_tokens);
    line_number("memory_gb", (double)device()->allocated / 1e9);
    line_number("tokens_per_s", tokens / seconds);
    line_number("share", sampling_bytes(c, sequences, prompt, new_tokens) / seconds / bandwidth);
    line_end();
    free(name);
    sampler_free(s.r);
    rollout_free(s.d);
}

static void sampling_section(void) {
    static const int SEQUENCES[] = {64, 256, 1024}, TOY_SEQUENCES[] = {1, 2, 4};
    model m = model_number(0);
    float* parameters = array_new(m.parameters * sizeof(float));
    fill_parameters(&m, parameters);
    gpu->sync(gpu);
    for (int i = 0; i < 3; i++) sampling_line(&m, parameters, (toy ? TOY_SEQUENCES : SEQUENCES)[i]);
    arrays_free();
}

// ---------------------------------------------------------------------------------------------

int main(int argc, char** argv) {
    static void (*const SECTION[])(void) = {[KERNELS] = kernels,
                                            [PRODUCTS] = products,
                                            [STEP] = training_step,
                                            [SAMPLING] = sampling_section};
    const char* why;
    options_parse(OPTIONS, argc, argv, "time: the GPU's speed; see dev/gpu/README.md");
    gpu = cuda_open(PRODUCTS_AUTO, &why);
    if (!gpu) fatal("no CUDA device: %s", why);
    own = cuda_open(wgmma ? PRODUCTS_WGMMA_ALONE : PRODUCTS_HANDWRITTEN, &why);
    if (strstr(gpu->name, "PTX machine") && !toy)
        fatal("this is no GPU and has no speed worth printing; use --toy");
    line_begin("device", gpu->name);
    line_number("library", strstr(gpu->name, "cuBLASLt products") != NULL);
    line_end();
    if (only != DEVICE) limits();
    for (int i = KERNELS; i <= SAMPLING; i++)
        if (only == ALL || only == i) SECTION[i]();
    cuda_close(gpu);
    cuda_close(own);
    return 0;
}
