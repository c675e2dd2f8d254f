#include "warmup.h"

#include <stdlib.h>
#include <string.h>

#include "../model/llmc_file.h"
#include "../text/tokenizer.h"

enum { WARMUP_LR_STEPS = 50 };

static optimizer_config warmup_optimizer(const settings* s) {
    return (optimizer_config){.beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.01,
                              .clip = 1,
                              .format = &FORMAT_FP32,
                              .loss_scaling = 0,
                              .seed = s->seed};
}

void warmup_create(run* r) {
    const settings* s = r->settings;
    optimizer_config config = warmup_optimizer(s);
    int batch = s->warmup_batch;
    r->warmup =
        trainer_create(r->device, &r->model, precision_of(&FORMAT_FP32, &FORMAT_FP32), &config,
                       s->micro_batch < batch ? s->micro_batch : batch,
                       r->task.max_prompt + s->max_new_tokens, (recompute_level)s->recompute);
    r->warmup_data = rollout_create(batch, r->task.max_prompt, s->max_new_tokens, 0);
}

void warmup_free(run* r) {
    trainer_free(r->warmup);
    rollout_free(r->warmup_data);
    r->warmup = NULL;
    r->warmup_data = NULL;
}

static void draw_examples(rollout* d, const task* t, const settings* s, int step) {
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX];
    d->prompts = d->sequences = s->warmup_batch;
    d->group = 1;
    for (int i = 0; i < d->sequences; i++) {
        task_warmup_example(t, s->seed, (uint32_t)step, (uint32_t)i, prompt, response);
        d->prompt_length[i] =
            tokenizer_encode(prompt, d->prompt + i * d->max_prompt, d->max_prompt);
        d->length[i] = tokenizer_encode(response, d->token + i * d->max_new, d->max_new);
    }
}

warmup_result warmup_step(run* r) {
    const settings* s = r->settings;
    objective sft = objective_defaults(OBJECTIVE_SFT);
    rollout* d = r->warmup_data;
    double start = clock_seconds();
    int step = r->state.warmup_step;
    double lr = schedule_lr(SCHEDULE_COSINE, s->warmup_lr, step, WARMUP_LR_STEPS, s->warmup_steps);
    draw_examples(d, &r->task, s, step);
    warmup_result w = {.lr = lr};
    w.update = trainer_update(r->warmup, d, 0, d->sequences, &sft, AGGREGATE_TOKEN_MEAN, 1, lr);
    w.seconds = clock_seconds() - start;
    r->state.warmup_step++;
    r->warming.steps++;
    r->warming.tokens += w.update.tokens;
    r->warming.seconds += w.seconds;
    return w;
}

// ------------------------------------------------------------------------------------------------
// The cache

// What the result of the warm-up depends on, as text; its hash names the file in the cache.
static char* warmup_key(const run* r) {
    const settings* s = r->settings;
    optimizer_config o = warmup_optimizer(s);
    // On a GPU the bits depend on what it is; on the CPU they do not.
    const char* device = s->device == DEVICE_CUDA ? r->device->name : "";
    return xprintf(
        "arithmetic %d%s, model %d %d %d %d %d, task %s, seed %llu, steps %d %d, batch %d, "
        "adamw %.17g %.17g %.17g %.17g %.17g, clip %.17g",
        ARITHMETIC_VERSION, device, r->model.shape.layers, r->model.shape.heads, r->model.shape.channels,
        r->model.shape.context, r->model.shape.vocab, s->task, (unsigned long long)s->seed, s->warmup_steps,
        WARMUP_LR_STEPS, s->warmup_batch, s->warmup_lr, o.beta1, o.beta2, o.eps, o.weight_decay,
        o.clip);
}

// NULL without a cache.
static char* cache_path(const run* r) {
    const char* cache = r->settings->warmup_cache;
    if (!*cache) return NULL;
    char* key = warmup_key(r);
    char* path = xprintf("%s/warmup-%016llx.bin", cache, (unsigned long long)hash_text(key));
    free(key);
    return path;
}

int warmup_from_cache(run* r) {
    char* path = cache_path(r);
    int found = path && file_size(path) >= 0;
    if (found) {
        float* parameters;
        model c = llmc_file_read(path, &parameters);
        if (!model_equal(&c, &r->model))
            fatal("%s holds another model than its name says; delete it", path);
        memcpy(r->base, parameters, r->parameters * sizeof(float));
        free(parameters);
        r->state.warmup_step = r->settings->warmup_steps;
        log_print(r->log, "warm-up  taken from %s", path);
    }
    free(path);
    return found;
}

void warmup_to_cache(const run* r) {
    char* path = cache_path(r);
    if (path) {
        dir_create(r->settings->warmup_cache);
        llmc_file_write(path, &r->model, r->base, &FORMAT_FP32);
    }
    free(path);
}
