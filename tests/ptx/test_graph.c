// Steps of decoding as CUDA graphs, on the PTX machine: what a capture refuses; that a rollout
// whose steps are replayed has the bits of one whose calls are made one by one, with biases that
// are converted for each product and prompts that are prefilled in parts; that a replayed step is
// one launch; that a look at the slots waits once; that biases are converted once; and that logits
// are computed once, where nothing comes between the head's forward and its backward pass.
#include <cuda_runtime_api.h>

#include "../cuda_device.h"
#include "../small_model.h"
#include "profile.h"
#include "rl/sampler.h"
#include "rl/trainer.h"

// ------------------------------------------------------------------------------------------------
// The runtime

static cudaStream_t stream;
static void* array;

static cudaError_t allocate(void) {
    void* p;
    return cudaMalloc(&p, 4);
}
static cudaError_t release(void) { return cudaFree(array); }
static cudaError_t wait(void) { return cudaStreamSynchronize(stream); }
static cudaError_t wait_for_all(void) { return cudaDeviceSynchronize(); }
static cudaError_t upload(void) {
    static const int x = 7;
    return cudaMemcpyAsync(array, &x, 4, cudaMemcpyHostToDevice, stream);
}
static cudaError_t download(void) {
    static int x;
    return cudaMemcpyAsync(&x, array, 4, cudaMemcpyDeviceToHost, stream);
}
static cudaError_t destroy(void) { return cudaStreamDestroy(stream); }

static unsigned char first_byte(void) {
    unsigned char x[4] = {0};
    cudaMemcpyAsync(x, array, 4, cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    return x[0];
}

static void check_refusals(void) {
    static const struct {
        const char* name;
        cudaError_t (*call)(void);
    } refused[] = {{"cudaMalloc", allocate},        {"cudaFree", release},
                   {"cudaStreamSynchronize", wait}, {"cudaDeviceSynchronize", wait_for_all},
                   {"an upload", upload},           {"a download", download},
                   {"cudaStreamDestroy", destroy}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        cudaGraph_t graph;
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
        CHECK(refused[i].call() == cudaErrorStreamCaptureUnsupported, "%s in a capture",
              refused[i].name);
        CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated,
              "%s spoils a capture", refused[i].name);
        CHECK(wait() == cudaSuccess, "%s leaves the stream usable", refused[i].name);
    }
    cudaGetLastError();
}

// What is captured does not run; a graph runs as often as it is launched, in its place.
static void check_capture(void) {
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cudaMemsetAsync(array, 1, 4, stream);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    cudaMemsetAsync(array, 2, 4, stream);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "%s", "the end of a capture");
    CHECK(first_byte() == 1, "what was captured ran: %d", first_byte());
    cudaGraphInstantiate(&ready, graph, 0);
    cudaGraphDestroy(graph);
    for (int i = 0; i < 2; i++) {
        cudaMemsetAsync(array, 3, 4, stream);
        uint64_t before = ptx_launches();
        cudaGraphLaunch(ready, stream);
        CHECK(ptx_launches() == before + 1, "launches: %d", (int)(ptx_launches() - before));
        CHECK(first_byte() == 2, "launch %d: %d", i, first_byte());
    }
    cudaGraphExecDestroy(ready);
}

static void check_runtime(void) {
    cudaStreamCreate(&stream);
    cudaMalloc(&array, 4);
    check_refusals();
    check_capture();
    cudaFree(array);
    cudaStreamDestroy(stream);
}

// ------------------------------------------------------------------------------------------------
// Decoding

enum { PROMPTS = 3, GROUP = 4, MAX_PROMPT = 18, MAX_NEW = 14, SLOTS = 10, BEST = 2, VOCAB = 40 };

typedef void repeat_function(backend*, recording**, int, void (*)(void*), void*);
static repeat_function* repeat_of_device;
static int steps, steps_of_one_launch;
static uint64_t repeat_waits;  // for records that are dropped, since scratch memory has moved

// Between graph launches of the same number of rows nothing else is launched.
static void count_repeat(backend* b, recording** all, int key, void (*calls)(void*),
                         void* argument) {
    uint64_t before = ptx_launches(), waits = ptx_waits();
    repeat_of_device(b, all, key, calls, argument);
    repeat_waits += ptx_waits() - waits;
    steps++;
    steps_of_one_launch += ptx_launches() - before == 1;
}

static rollout* sample(sampler* r, const sampling* how, int with_best) {
    rollout* d = rollout_create(PROMPTS * GROUP, MAX_PROMPT, MAX_NEW, (VOCAB + 31) / 32);
    if (with_best) rollout_add_candidates(d, BEST);
    d->prompts = PROMPTS;
    d->group = GROUP;
    for (int p = 0; p < PROMPTS; p++) {
        d->prompt_length[p] = MAX_PROMPT - 7 * p;
        for (int i = 0; i < d->prompt_length[p]; i++)
            d->prompt[p * MAX_PROMPT + i] = 1 + (5 * p + 3 * i) % (VOCAB - 1);
    }
    sampler_begin(r, d, how);
    for (int left = 1; left;) {
        uint64_t before = ptx_waits() - repeat_waits;
        left = sampler_step(r);
        // Of each look at the slots, only what comes from the GPU is waited for.
        int waits = (int)(ptx_waits() - repeat_waits - before);
        CHECK(waits == 1, "a look waits %d times", waits);
    }
    sampler_end(r);
    return d;
}

static void check_equal(rollout* a, rollout* b, const char* dtype, const char* what) {
    size_t n = a->start[a->sequences], sequences = (size_t)a->sequences;
    CHECK(!memcmp(a->start, b->start, (sequences + 1) * sizeof *a->start), "%s, %s: lengths", dtype,
          what);
    CHECK(!memcmp(a->token, b->token, n * sizeof *a->token), "%s, %s: tokens", dtype, what);
    CHECK(!memcmp(a->log_mu, b->log_mu, n * sizeof *a->log_mu), "%s, %s: log mu", dtype, what);
    CHECK(!memcmp(a->entropy, b->entropy, n * sizeof *a->entropy), "%s, %s: entropies", dtype,
          what);
    for (size_t t = 0; t < n; t++) {
        uint32_t x[2] = {0}, y[2] = {0};
        rollout_get_nucleus(a, t, x);
        rollout_get_nucleus(b, t, y);
        CHECK(!memcmp(x, y, sizeof x), "%s, %s: the kept set of token %d", dtype, what, (int)t);
    }
    if (a->candidates)
        CHECK(!memcmp(a->candidate, b->candidate, n * BEST * sizeof(int)) &&
                  !memcmp(a->candidate_mu, b->candidate_mu, n * BEST * sizeof(float)),
              "%s, %s: candidates", dtype, what);
    rollout_free(a);
    rollout_free(b);
}

// The device's scratch memory becomes larger, and so other memory.
static void grow_scratch(const format* f) {
    static int rows = 600;
    size_t bytes = (size_t)(rows += 100) * 32 * gpu->bytes_per(f), n = (size_t)rows;
    int* zeros = gpu->alloc(gpu, 2 * n * sizeof(int), "a test");
    float *logp = gpu->alloc(gpu, n * sizeof(float), "a test"),
          *w = gpu->alloc(gpu, VOCAB * 32 * sizeof(float), "a test");
    tensor x = {gpu->alloc(gpu, bytes, "a test"), rows, 32, 32, f};
    prepared* p = gpu->weight_prepare(gpu, NULL, w, VOCAB, 32, f, f);
    gpu->head_forward(gpu, logp, NULL, NULL, x, zeros, zeros + n, rows, p, &FORMAT_FP32, 1, NULL,
                      NULL);
    gpu->weight_release(gpu, p);
    gpu->release(gpu, x.data, bytes);
    gpu->release(gpu, w, VOCAB * 32 * sizeof(float));
    gpu->release(gpu, logp, n * sizeof(float));
    gpu->release(gpu, zeros, 2 * n * sizeof(int));
}

// One sampler for all rollouts, replayed or not: other ways to draw, weights and records between
// them, and scratch memory that moves.
static void sample_all(rollout* d[6], const format* f, const float* first, const float* second) {
    model m = model_gpt2(64, VOCAB, 1, 2, 32);
    precision p = precision_of(f, &FORMAT_FP32);
    sampling how = {1, 0, 0, 1, 5, STREAM_SAMPLE, 1, 0};
    size_t bytes = m.parameters * sizeof(float);
    float* parameters = to_device(gpu, first, bytes);
    sampler* r = sampler_create(gpu, &m, p, p.store, SLOTS, MAX_PROMPT, MAX_NEW, PROMPTS * GROUP,
                                (VOCAB + 31) / 32, (end_set){1, {0}}, 0);
    sampler_sync(r, parameters);
    d[0] = sample(r, &how, 0);
    how = (sampling){0.8f, 0, 5, 0.9f, 6, STREAM_EVALUATE, 2, 77};
    d[1] = sample(r, &how, 0);
    grow_scratch(f);
    how.greedy = 1;
    d[2] = sample(r, &how, 0);
    gpu->upload(gpu, parameters, second, bytes);
    sampler_sync(r, parameters);
    how.greedy = 0;
    d[3] = sample(r, &how, 0);
    gpu->upload(gpu, parameters, first, bytes);
    model_weights* shared = model_weights_create(gpu, &m, p);
    model_weights_sync(shared, parameters);
    sampler_share(r, shared);
    d[4] = sample(r, &how, 0);
    sampler_record_candidates(r, BEST);
    d[5] = sample(r, &how, 1);
    sampler_free(r);
    model_weights_free(shared);
    gpu->release(gpu, parameters, bytes);
}

// The launches of a forward pass of decoding with two rows.
static int launches(const format* f, const float* parameters) {
    model m = model_gpt2(64, VOCAB, 2, 2, 32);
    precision p = precision_of(f, &FORMAT_FP32);
    // Tokens, slots and positions; where the slots' pages lie.
    int list[8] = {1, 2, 0, 1, 3, 5, 0, 1}, *rows = gpu->alloc(gpu, sizeof list, "a test");
    float* there = to_device(gpu, parameters, m.parameters * sizeof(float));
    kv_cache kv = {.layers = 2, .heads = model_heads(&m), .pages = 2, .pages_per_slot = 1};
    kv.format = p.store, kv.operand = p.attention, kv.page_table = rows + 6;
    size_t bytes = gpu->kv_bytes(&kv);
    kv.data = gpu->alloc(gpu, bytes, "a test");
    gpu->upload(gpu, rows, list, sizeof list);
    model_weights* w = model_weights_create(gpu, &m, p);
    model_acts* a = model_acts_create(gpu, &m, p.store, 2, FORWARD_ONLY);
    model_weights_sync(w, there);
    uint64_t before = ptx_launches();
    model_forward_cached(w, a, &kv, NULL, 2, rows, rows + 2, rows + 4);
    int count = (int)(ptx_launches() - before);
    model_acts_free(a);
    model_weights_free(w);
    gpu->release(gpu, kv.data, bytes);
    gpu->release(gpu, rows, sizeof list);
    gpu->release(gpu, there, m.parameters * sizeof(float));
    return count;
}

enum { HEAD_CHANNELS = 8 };
typedef struct head_arrays {
    backend* b;
    int n, *row, *target;
    float *logp, *stats, *others, *coef, *w, *dw;
    tensor x, dx;
    prepared* p;
    recording* recordings;
    float* memory;
    size_t bytes;
} head_arrays;

static head_arrays head_arrays_new(backend* b, int n) {
    size_t rows = (size_t)n * HEAD_CHANNELS, weights = VOCAB * HEAD_CHANNELS, at = 0;
    head_arrays h = {.b = b, .n = n, .bytes = (8 * n + 2 * rows + 2 * weights) * sizeof(float)};
    float* host = xalloc(1, h.bytes, "a test");
    h.memory = b->alloc(b, h.bytes, "a test");
    float** const place[] = {&h.stats, &h.others, &h.logp, &h.coef, &h.w, &h.dw};
    const size_t length[] = {2 * n, 2 * n, n, n, weights, weights};
    for (int i = 0; i < 6; i++) *place[i] = h.memory + at, at += length[i];
    h.x = (tensor){h.memory + at, n, HEAD_CHANNELS, HEAD_CHANNELS, &FORMAT_FP32};
    h.dx = h.x, h.dx.data = h.memory + at + rows;
    h.row = (int*)h.memory + at + 2 * rows, h.target = h.row + n;
    // Other numbers than 0 in the coefficients, the weights and x.
    for (size_t i = h.coef - h.memory; i < at + rows; i++) host[i] = 0.5f * sinf((float)i);
    for (int i = 0, *row = (int*)host + (h.row - (int*)h.memory); i < n; i++)
        row[i] = i, row[n + i] = i % VOCAB;
    b->upload(b, h.memory, host, h.bytes);
    free(host);
    h.p = b->weight_prepare(b, NULL, h.w, VOCAB, HEAD_CHANNELS, &FORMAT_FP32, &FORMAT_FP32);
    return h;
}

static void head_arrays_free(head_arrays* h) {
    if (h->recordings) h->b->forget(h->b, &h->recordings);
    h->b->weight_release(h->b, h->p);
    h->b->release(h->b, h->memory, h->bytes);
}

static void head_forward(const head_arrays* h, float* stats) {
    h->b->head_forward(h->b, h->logp, NULL, stats, h->x, h->row, h->target, h->n, h->p,
                       &FORMAT_FP32, 1, NULL, NULL);
}
static void other_forward(void* h) { head_forward(h, ((head_arrays*)h)->others); }

// The launches of a backward pass.
static int head_backward(const head_arrays* h) {
    uint64_t before = ptx_launches();
    h->b->head_backward(h->b, h->dx, h->dw, h->stats, h->x, h->row, h->target, h->coef, NULL, h->n,
                        h->p, &FORMAT_FP32, 1, NULL);
    return (int)(ptx_launches() - before);
}

// The head's backward pass computes logits again after calls, replayed ones too, that have logits
// of their own.
static void check_other_logits(void) {
    head_arrays h = head_arrays_new(gpu, 5);
    for (int i = 0; i < 2; i++) gpu->repeat(gpu, &h.recordings, 0, other_forward, &h);
    head_forward(&h, h.stats);
    int left = head_backward(&h), none = head_backward(&h);
    head_forward(&h, h.stats);
    gpu->repeat(gpu, &h.recordings, 0, other_forward, &h);
    int replayed = head_backward(&h);
    CHECK(none == left + 1, "%d launches where forward left logits, %d where not", left, none);
    CHECK(replayed == none, "%d launches after a replay, not %d", replayed, none);
    head_arrays_free(&h);
}

// A twentieth of the GPU's memory holds the logits of so many of 3 chunks; it computes the others
// again, to the same gradients.
static void check_chunks(void) {
    static const struct {
        const char* memory;
        int kept;
    } gpus[] = {{"8000000000", 3}, {"48000000", 2}, {"32000000", 1}, {"12000000", 1}};
    float* first = NULL;
    int fewest = 0;
    for (int i = 0; i < 4; i++) {
        const char* why;
        setenv("PTX_MEMORY", gpus[i].memory, 1);
        backend* b = cuda_open(PRODUCTS_HANDWRITTEN, &why);
        unsetenv("PTX_MEMORY");
        head_arrays h = head_arrays_new(b, 2 * 4096 + 77);
        head_forward(&h, h.stats);
        int launches = head_backward(&h);
        float* memory = xalloc(1, h.bytes, "a test");
        b->download(b, memory, h.memory, h.bytes);
        if (i == 0) first = memory, fewest = launches;
        CHECK(!memcmp(memory, first, h.bytes), "the same gradients with %d chunks", gpus[i].kept);
        CHECK(launches == fewest + 3 - gpus[i].kept, "%d launches with %d chunks left, %d with 3",
              launches, gpus[i].kept, fewest);
        if (i) free(memory);
        head_arrays_free(&h);
        cuda_close(b);
    }
    free(first);
}

typedef void prepare_function(backend*, prepared*, const float*, const format*);

// Biases that the library wants in another format are converted when weights are prepared, and not
// for each product: 4 in each of 2 layers. fp32 biases it takes as they are.
static void check_biases(const format* f) {
    prepare_function* prepare = gpu->bias_prepare;
    model m = model_gpt2(64, VOCAB, 2, 2, 32);
    float* parameters = random_parameters(&m, 3, 0.2);
    int with = launches(f, parameters), converted = library() && f != &FORMAT_FP32 ? 8 : 0;
    gpu->bias_prepare = NULL;
    int without = launches(f, parameters);
    gpu->bias_prepare = prepare;
    CHECK(without - with == converted, "%s: %d launches, %d without prepared biases", f->name, with,
          without);
    free(parameters);
}

static void check_decoding(const format* f) {
    static const char* const WHAT[6] = {"as they are",   "top-k and top-p", "moved scratch",
                                        "other weights", "shared weights",  "candidates"};
    model m = model_gpt2(64, VOCAB, 1, 2, 32);
    float *first = random_parameters(&m, 1, 0.2), *second = random_parameters(&m, 2, 0.2);
    rollout *one_by_one[6], *replayed[6];
    prepare_function* prepare = gpu->bias_prepare;
    int prefill_rows = gpu->prefill_rows;
    gpu->repeat = NULL;
    gpu->bias_prepare = NULL;
    // Prompts in parts, whose attention reads the cache; the library's bits depend on the rows.
    if (!library()) gpu->prefill_rows = 1;
    sample_all(one_by_one, f, first, second);
    gpu->bias_prepare = prepare;
    gpu->prefill_rows = prefill_rows;
    gpu->repeat = count_repeat;
    steps = steps_of_one_launch = 0, repeat_waits = 0;
    schedule_set(3);
    sample_all(replayed, f, first, second);
    schedule_set(0);
    for (int i = 0; i < 6; i++) check_equal(replayed[i], one_by_one[i], f->name, WHAT[i]);
    CHECK(repeat_waits > 0 && repeat_waits < 4, "%s: %d waits for records", f->name,
          (int)repeat_waits);
    // The first step of each number of rows is not replayed, and it is one of four at least.
    CHECK(4 * steps_of_one_launch >= 2 * steps && steps > 100, "%s: %d of %d steps are one launch",
          f->name, steps_of_one_launch, steps);
    free(first);
    free(second);
}

int main(void) {
    check_runtime();
    cuda_test_open();
    repeat_of_device = gpu->repeat;
    if (!library()) check_other_logits(), check_chunks();
    check_biases(&FORMAT_BF16);
    check_biases(&FORMAT_FP32);
    check_decoding(&FORMAT_BF16);
    if (!quick()) check_decoding(&FORMAT_FP32);
    cuda_test_close();
    return test_report();
}
