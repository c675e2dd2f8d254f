// The whole trainer and the sampler on the CUDA device, beside the CPU device. At each of several
// steps, supervised and RL, both start from the same state and the same recorded rollout; what they
// make of it is compared.
//
// How far apart may they be? e, the error of the dtype: the distance between the CPU device's
// result and its fp32 result. The GPU's distance from the fp32 result may be at most twice e; with
// the library's tf32, which may cut operands instead of rounding them, four times, since the root
// mean square of what is cut is twice that of a rounding. For fp32 itself e is that of tf32 / 2^13,
// since tf32 rounds the operands of products with 13 bits less; and FP32_FACTOR stands instead of
// 2, for the roundings of sums, norms and softmax, which tf32 leaves in fp32 (they made 5 of it,
// measured with TEST_VERBOSE=1).
//
// New weights: AdamW makes a step of the size of lr from a gradient however small, so where the
// true gradient is 0 (the keys' bias) they differ by what rounding says. In fp32 they are therefore
// checked otherwise, and in every dtype: from the GPU's gradients the CPU's optimizer must make the
// very bits of the GPU's new state.
#include "cuda_device.h"
#include "rl/sampler.h"
#include "rl/trainer.h"
#include "small_model.h"

static model MODEL;
static const format* const TRAINED[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16, &FORMAT_TF32};
// What precisions have besides their dtype; NULL: that of the dtype.
static const format *GRADIENT, *CACHE;
enum { PROMPTS = 3, GROUP = 4, MAX_PROMPT = 7, MAX_NEW = 9, STEPS = 3, FP32_FACTOR = 8 };

static optimizer_config adamw(const format* dtype, uint64_t seed) {
    return (optimizer_config){.beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.01,
                              .clip = 1,
                              .format = &FORMAT_FP32,
                              .loss_scaling = dtype == &FORMAT_FP16,
                              .seed = seed};
}

// ------------------------------------------------------------------------------------------------
// A trainer's state in host memory, and what a step makes of it

typedef struct state {
    float *parameters, *m, *v;  // (parameters)
    optimizer_state optimizer;
} state;

static state state_new(void) {
    size_t n = MODEL.parameters;
    state s = {.parameters = xalloc(3 * n, sizeof(float), "a state")};
    s.m = s.parameters + n;
    s.v = s.m + n;
    return s;
}

static void put_state(trainer* t, const state* s) {
    size_t bytes = t->count * sizeof(float);
    trainer_load(t, s->parameters);
    t->b->upload(t->b, t->optimizer->m, s->m, bytes);
    t->b->upload(t->b, t->optimizer->v, s->v, bytes);
    t->optimizer->state = s->optimizer;
}

static void get_state(const trainer* t, state* s) {
    size_t bytes = t->count * sizeof(float);
    trainer_save(t, s->parameters);
    t->b->download(t->b, s->m, t->optimizer->m, bytes);
    t->b->download(t->b, s->v, t->optimizer->v, bytes);
    s->optimizer = t->optimizer->state;
}

typedef struct result {
    float *log_pi, *gradients;  // (PROMPTS * GROUP * MAX_NEW), (parameters)
    state after;
    trainer_update_result update;
} result;

static result result_new(void) {
    result r = {.after = state_new()};
    r.log_pi = xalloc(PROMPTS * GROUP * MAX_NEW, sizeof(float), "a result");
    r.gradients = xalloc(MODEL.parameters, sizeof(float), "a result");
    return r;
}

static void result_free(result* r) {
    free(r->log_pi);
    free(r->gradients);
    free(r->after.parameters);
}

static trainer* make_trainer(backend* b, const format* dtype, int tokens, recompute_level keep) {
    optimizer_config o = adamw(dtype, 3);
    trainer_room room = {tokens, GROUP, MAX_PROMPT, MAX_NEW};
    precision p = precision_of(dtype, &FORMAT_FP32);
    if (GRADIENT && dtype->scaled) p = precision_with_gradient(p, GRADIENT);
    p.kv = CACHE;
    return trainer_create(b, &MODEL, p, &o, &room, keep);
}

static const double LR = 1e-3;

static void run_step(trainer* t, const state* from, rollout* d, const objective* o, result* r) {
    put_state(t, from);
    memset(d->log_pi, 0, (size_t)PROMPTS * GROUP * MAX_NEW * sizeof(float));
    r->update = trainer_update(t, d, 0, d->sequences, o, AGGREGATE_TOKEN_MEAN, 1 / 0.9f, LR);
    memcpy(r->log_pi, d->log_pi, (size_t)PROMPTS * GROUP * MAX_NEW * sizeof(float));
    t->b->download(t->b, r->gradients, t->optimizer->gradients.all, t->count * sizeof(float));
    get_state(t, &r->after);
}

// ------------------------------------------------------------------------------------------------
// A recorded rollout: the CPU's sampler, with rewards and advantages that mean nothing.

static sampler* make_sampler(backend* b, const format* dtype, int slots) {
    precision p = precision_of(dtype, &FORMAT_FP32);
    return sampler_create(b, &MODEL, p, CACHE ? CACHE : p.store, slots, MAX_PROMPT, MAX_NEW,
                          PROMPTS * GROUP, 0, (end_set){1, {0}}, 0);
}

static rollout* make_prompts(int step) {
    rollout* d = rollout_create(PROMPTS * GROUP, MAX_PROMPT, MAX_NEW, 0);
    d->prompts = PROMPTS;
    d->group = GROUP;
    for (int p = 0; p < PROMPTS; p++) {
        rng r = rng_at(21, STREAM_PROMPT, (uint32_t)step, (uint32_t)p);
        d->prompt_length[p] = p == 0 ? 1 : MAX_PROMPT - p;
        for (int i = 0; i < d->prompt_length[p]; i++)
            d->prompt[p * MAX_PROMPT + i] = 1 + (int)rng_below(&r, (uint32_t)MODEL.shape.vocab - 1);
    }
    return d;
}

static rollout* sample_on(backend* b, const format* dtype, int slots, const state* s, int step,
                          int greedy) {
    sampling how = {1 / 0.9f, greedy, 0, 1, 5, STREAM_SAMPLE, (uint32_t)step, 0};
    rollout* d = make_prompts(step);
    sampler* r = make_sampler(b, dtype, slots);
    size_t bytes = MODEL.parameters * sizeof(float);
    float* parameters = to_device(b, s->parameters, bytes);
    sampler_sync(r, parameters);
    sampler_run(r, d, &how);
    b->release(b, parameters, bytes);
    sampler_free(r);
    return d;
}

static rollout* recorded(const format* dtype, const state* s, int step) {
    rollout* d = sample_on(cpu, dtype, 5, s, step, 0);
    memcpy(d->anchor, d->log_mu, (size_t)PROMPTS * GROUP * MAX_NEW * sizeof(float));
    for (int i = 0; i < d->sequences; i++) {
        rng r = rng_at(22, STREAM_PROMPT, (uint32_t)step, (uint32_t)i);
        d->advantage[i] = (float)rng_normal(&r);
        for (size_t k = d->start[i]; k < d->start[i + 1];
             k++)  // a stale policy: ratios away from 1
            d->anchor[k] += 0.1f * (float)rng_normal(&r);
    }
    return d;
}

// ------------------------------------------------------------------------------------------------
// Comparison

// Root mean square of a - b, over that of b - from (NULL: of b).
static double distance(const float* a, const float* b, const float* from, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - b[i], s = (double)b[i] - (from ? from[i] : 0);
        difference += d * d;
        size += s * s;
    }
    return sqrt(difference / size);
}

typedef struct run_pair {
    const format* dtype;
    result exact, plain, of_gpu;  // the CPU in fp32, the CPU in the dtype (fp32: tf32), the GPU
    double worst[3];              // the largest share of what is allowed
} run_pair;

static void compare(run_pair* p, const state* from, int step, const char* what) {
    size_t n = MODEL.parameters, places = PROMPTS * GROUP * MAX_NEW;
    int fp32 = p->dtype == &FORMAT_FP32;
    int cuts = library() && p->dtype == &FORMAT_TF32;
    double factor = fp32 ? FP32_FACTOR * 0x1p-13 : cuts ? 4 : 2;
    const struct {
        const char* name;
        const float *exact, *plain, *of_gpu, *from;
        size_t count;
    } of[] = {
        {"log pi", p->exact.log_pi, p->plain.log_pi, p->of_gpu.log_pi, NULL, places},
        {"gradients", p->exact.gradients, p->plain.gradients, p->of_gpu.gradients, NULL, n},
        {"the weights' change", p->exact.after.parameters, p->plain.after.parameters,
         p->of_gpu.after.parameters, from->parameters, n},
    };
    for (int i = 0; i < 3 - fp32; i++) {
        double allowed = factor * distance(of[i].plain, of[i].exact, of[i].from, of[i].count);
        double is = distance(of[i].of_gpu, of[i].exact, of[i].from, of[i].count);
        CHECK(is <= allowed, "%s, %s, %s, step %d: %s is off by %.3g, allowed %.3g",
              MODEL.family->name, p->dtype->name, what, step, of[i].name, is, allowed);
        if (is / allowed > p->worst[i]) p->worst[i] = is / allowed;
    }
}

static void check_optimizer(const state* from, const result* r, const format* dtype) {
    trainer* t = make_trainer(cpu, dtype, 1, RECOMPUTE_NOTHING);
    state after = state_new();
    size_t bytes = t->count * sizeof(float);
    put_state(t, from);
    cpu->upload(cpu, t->optimizer->gradients.all, r->gradients, bytes);
    if (MODEL.shape.tied)
        cpu->clear(cpu, t->optimizer->gradients.lookup,
                   (size_t)MODEL.shape.vocab * MODEL.shape.channels * 4);
    optimizer_result o = optimizer_step(t->optimizer, t->parameters, LR);
    get_state(t, &after);
    CHECK(o.grad_norm == r->update.grad_norm, "gradient norm %.17g, on the CPU %.17g",
          r->update.grad_norm, o.grad_norm);
    CHECK(!memcmp(after.parameters, r->after.parameters, bytes), "%s: new weights", dtype->name);
    CHECK(!memcmp(after.m, r->after.m, bytes), "%s: first moments", dtype->name);
    CHECK(!memcmp(after.v, r->after.v, bytes), "%s: second moments", dtype->name);
    free(after.parameters);
    trainer_free(t);
}

// The same step under another schedule and with more recomputed: the same bits.
static void check_repeats(const state* from, rollout* d, const objective* o, const result* r,
                          const format* dtype) {
    result again = result_new();
    size_t bytes = MODEL.parameters * sizeof(float);
    for (int keep = RECOMPUTE_NOTHING; keep <= RECOMPUTE_BLOCKS; keep++) {
        trainer* t = make_trainer(gpu, dtype, 150, (recompute_level)keep);
        schedule_set(1 + keep);
        run_step(t, from, d, o, &again);
        CHECK(!memcmp(again.log_pi, r->log_pi, PROMPTS * GROUP * MAX_NEW * sizeof(float)),
              "%s, recompute %d: log pi", dtype->name, keep);
        CHECK(!memcmp(again.gradients, r->gradients, bytes), "%s, recompute %d: gradients",
              dtype->name, keep);
        trainer_free(t);
    }
    schedule_set(0);
    result_free(&again);
}

static void compare_steps(const format* dtype, objective_kind kind, const char* what) {
    int fp32 = dtype == &FORMAT_FP32;
    run_pair p = {.dtype = dtype, .exact = result_new(), .plain = result_new()};
    p.of_gpu = result_new();
    trainer* exact = make_trainer(cpu, &FORMAT_FP32, 150, RECOMPUTE_NOTHING);
    trainer* plain = make_trainer(cpu, fp32 ? &FORMAT_TF32 : dtype, 150, RECOMPUTE_NOTHING);
    trainer* of_gpu = make_trainer(gpu, dtype, 150, RECOMPUTE_NOTHING);
    objective o = objective_defaults(kind);
    state s = state_new();
    float* parameters = random_parameters(&MODEL, 1, 0.2);
    memcpy(s.parameters, parameters, MODEL.parameters * sizeof(float));
    free(parameters);
    s.optimizer = of_gpu->optimizer->state;
    for (int step = 0; step < (quick() ? 1 : STEPS); step++) {
        rollout* d = recorded(dtype, &s, step);
        state unscaled = s;
        unscaled.optimizer.loss_scale = 1;
        run_step(exact, &unscaled, d, &o, &p.exact);
        run_step(plain, fp32 ? &unscaled : &s, d, &o, &p.plain);
        run_step(of_gpu, &s, d, &o, &p.of_gpu);
        // Gradients carry the loss scale; it is a power of two.
        for (size_t i = 0; i < MODEL.parameters; i++)
            p.exact.gradients[i] *= (float)s.optimizer.loss_scale;
        compare(&p, &s, step, what);
        check_optimizer(&s, &p.of_gpu, dtype);
        if (step == 0) check_repeats(&s, d, &o, &p.of_gpu, dtype);
        memcpy(s.parameters, p.of_gpu.after.parameters, 3 * MODEL.parameters * sizeof(float));
        s.optimizer = p.of_gpu.after.optimizer;
        rollout_free(d);
    }
    if (getenv("TEST_VERBOSE"))
        printf(
            "%-5s %-5s %-8s share of what is allowed: log pi %.2f, gradients %.2f, weights %.2f\n",
            MODEL.family->name, dtype->name, what, p.worst[0], p.worst[1], p.worst[2]);
    trainer_free(exact);
    trainer_free(plain);
    trainer_free(of_gpu);
    result_free(&p.exact);
    result_free(&p.plain);
    result_free(&p.of_gpu);
    free(s.parameters);
}

// Two shards of a group each: the gradient is, bit for bit, the sum of those that were computed
// apart, each where the other group has no advantage.
static void check_shards(const format* dtype) {
    enum { SIZE = 2 * GROUP };
    state s = state_new();
    float *parameters = random_parameters(&MODEL, 1, 0.2), *found[3];
    size_t wrong = 0, bytes = MODEL.parameters * sizeof(float);
    memcpy(s.parameters, parameters, bytes);
    rollout* d = recorded(dtype, &s, 0);
    objective o = objective_defaults(OBJECTIVE_DRPO);
    float advantage[SIZE];
    memcpy(advantage, d->advantage, sizeof advantage);
    for (int i = 0; i < 3; i++) {  // apart, apart, in shards
        optimizer_config config = adamw(dtype, 3);
        trainer_room room = {150, GROUP, MAX_PROMPT, MAX_NEW};
        config.shards = i < 2 ? 1 : 2;
        trainer* t = trainer_create(gpu, &MODEL, precision_of(dtype, &FORMAT_FP32), &config, &room,
                                    RECOMPUTE_NOTHING);
        trainer_load(t, parameters);
        for (int k = 0; k < SIZE; k++)
            d->advantage[k] = i == 2 || k / GROUP == i ? advantage[k] : 0;
        trainer_update(t, d, 0, SIZE, &o, AGGREGATE_TOKEN_MEAN, 1 / 0.9f, LR);
        found[i] = xalloc(MODEL.parameters, sizeof(float), "gradients");
        gpu->download(gpu, found[i], t->optimizer->gradients.all, bytes);
        trainer_free(t);
    }
    for (size_t i = 0; i < MODEL.parameters; i++) wrong += found[2][i] != found[0][i] + found[1][i];
    CHECK(wrong == 0, "%s: %zu gradients are not the sum of two shards", dtype->name, wrong);
    for (int i = 0; i < 3; i++) free(found[i]);
    rollout_free(d);
    free(parameters);
    free(s.parameters);
}

// ------------------------------------------------------------------------------------------------
// The sampler on the GPU: no schedule changes what it says of its tokens. With handwritten
// products, whose rows do not depend on one another, no number of slots does, and it is what the
// trainer says, bit for bit; with the library's, up to the dtype's error.

static double largest_difference(const rollout* a, const float* x, const float* y) {
    double largest = 0;
    for (size_t t = 0; t < a->start[a->sequences]; t++)
        largest = fmax(largest, fabs((double)x[t] - y[t]));
    return largest;
}

static void check_sampler(const format* dtype, int exact) {
    state s = state_new();
    float* parameters = random_parameters(&MODEL, 2, 0.2);
    memcpy(s.parameters, parameters, MODEL.parameters * sizeof(float));
    trainer* t = make_trainer(gpu, dtype, 100, RECOMPUTE_NOTHING);
    trainer_load(t, parameters);
    schedule_set(0);
    rollout* d = sample_on(gpu, dtype, PROMPTS * GROUP, &s, 0, 0);
    rollout* on_cpu = sample_on(cpu, dtype, PROMPTS * GROUP, &s, 0, 0);
    trainer_logprobs(t, t->weights, d, 0, d->sequences, 1 / 0.9f, d->log_pi);
    // A log-probability of about -3 after some 40 roundings of values of about 1: 64 units of
    // roundoff are generous for their sum and little against an error in any of them.
    double roundoff = ldexp(1, -dtype->mantissa_bits - 1);
    double off = largest_difference(d, d->log_mu, d->log_pi);
    CHECK(off <= (exact ? 0 : 64 * roundoff), "%s, %s: log mu and log pi differ by %g",
          MODEL.family->name, dtype->name, off);
    schedule_set(3);
    rollout* again = sample_on(gpu, dtype, exact ? 5 : PROMPTS * GROUP, &s, 0, 0);
    schedule_set(0);
    size_t tokens = d->start[d->sequences];
    CHECK(!memcmp(d->start, again->start, (PROMPTS * GROUP + 1) * sizeof *d->start),
          "lengths, again");
    CHECK(!memcmp(d->token, again->token, tokens * sizeof(int)), "tokens, again");
    CHECK(!memcmp(d->log_mu, again->log_mu, tokens * sizeof(float)), "log mu, again");
    if (dtype == &FORMAT_FP32) {
        // The same uniform numbers and, but for rounding, the same probabilities: a token differs
        // only where a number falls within rounding of a boundary, once in 10^5 draws.
        CHECK(!memcmp(d->token, on_cpu->token, tokens * sizeof(int)), "tokens as on the CPU");
        off = largest_difference(d, d->log_mu, on_cpu->log_mu);
        CHECK(off <= 64 * roundoff, "log mu differs from the CPU's by %g", off);
        off = largest_difference(d, d->entropy, on_cpu->entropy);
        CHECK(off <= 64 * roundoff, "entropy differs from the CPU's by %g", off);
    }
    rollout_free(d);
    rollout_free(on_cpu);
    rollout_free(again);
    trainer_free(t);
    free(parameters);
    free(s.parameters);
}

// Handwritten products forward, the library's backward: it is all as with handwritten ones alone.
static void check_invariant(const format* dtype) {
    backend* const usual = gpu;
    const char* why;
    backend* handwritten = cuda_open(PRODUCTS_HANDWRITTEN, &why);
    gpu = cuda_open(PRODUCTS_INVARIANT, &why);
    CHECK(strstr(gpu->name, "handwritten forward") != NULL, "the device's name: %s", gpu->name);
    check_sampler(dtype, 1);
    state s = state_new();
    float* parameters = random_parameters(&MODEL, 2, 0.2);
    memcpy(s.parameters, parameters, MODEL.parameters * sizeof(float));
    rollout* d = sample_on(gpu, dtype, PROMPTS * GROUP, &s, 0, 0);
    rollout* expected = sample_on(handwritten, dtype, PROMPTS * GROUP, &s, 0, 0);
    size_t tokens = expected->start[expected->sequences];
    CHECK(d->start[d->sequences] == tokens, "as many tokens");
    CHECK(!memcmp(d->log_mu, expected->log_mu, tokens * sizeof(float)), "%s: log mu", dtype->name);
    rollout_free(d);
    rollout_free(expected);
    free(parameters);
    free(s.parameters);
    cuda_close(gpu);
    cuda_close(handwritten);
    gpu = usual;
}

// Operands, gradients and caches in fp8. The exact result has none of them.
static void check_fp8(void) {
    CACHE = &FORMAT_E5M2;
    check_sampler(&FORMAT_E4M3, !library());
    if (library()) check_invariant(&FORMAT_E4M3);
    CACHE = NULL;
    compare_steps(&FORMAT_E4M3, OBJECTIVE_DRPO, "RL");
    GRADIENT = &FORMAT_E5M2;
    compare_steps(&FORMAT_E4M3, OBJECTIVE_DRPO, "RL, gradients in fp8_e5m2");
    GRADIENT = NULL;
}

// A model of each other family. Their groups of heads, and whether 16-byte accesses fit, differ.
static void check_families(void) {
    static const struct {
        const family* family;
        int heads, kv_heads, head_dim, tied;
    } models[] = {
        {&LLAMA_FAMILY, 4, 2, 16, 1}, {&QWEN2_FAMILY, 3, 1, 8, 0}, {&QWEN3_FAMILY, 2, 1, 20, 1}};
    for (int i = 0; i < 3; i++) {
        MODEL = model_of(models[i].family, (shape){.context = 24,
                                                   .vocab = 24,
                                                   .layers = quick() ? 1 : 2,
                                                   .channels = 32,
                                                   .heads = models[i].heads,
                                                   .kv_heads = models[i].kv_heads,
                                                   .head_dim = models[i].head_dim,
                                                   .hidden = 40,
                                                   .tied = models[i].tied,
                                                   .norm_eps = 1e-5f,
                                                   .rope_theta = 100});
        for (int f = 0; f < 2; f++) {
            compare_steps(TRAINED[f], OBJECTIVE_DRPO, "RL");
            check_sampler(TRAINED[f], !library());
            if (library()) check_invariant(TRAINED[f]);
        }
    }
}

int main(void) {
    MODEL = model_gpt2(24, 24, 2, 2, 32);
    cuda_test_open();
    for (int i = 0; i < (quick() ? 2 : 4); i++) {
        compare_steps(TRAINED[i], OBJECTIVE_SFT, "warm-up");
        compare_steps(TRAINED[i], OBJECTIVE_DRPO, "RL");
        check_shards(TRAINED[i]);
        check_sampler(TRAINED[i], !library());
        if (library()) check_invariant(TRAINED[i]);
    }
    check_fp8();
    check_families();
    cuda_test_close();
    return test_report();
}
