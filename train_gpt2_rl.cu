// train_gpt2_rl: reinforcement learning of a GPT-2-style model. This file is the run and its
// step: sample -> verify -> measure -> advantage -> update. Everything it calls is one file away, in
// llmc/, in a file named after it; the flags are in llmc/run/.
//
// The common subset of C11 and C++20: the C compiler builds it (-x c) where there is no nvcc.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/device/backend.h"
#include "llmc/rl/rollout.h"
#include "llmc/run/checkpoint.h"
#include "llmc/model/llmc_file.h"
#include "llmc/run/evaluate.h"
#include "llmc/model/model.h"
#include "llmc/run/log.h"
#include "llmc/rl/objective.h"
#include "llmc/rl/sampler.h"
#include "llmc/run/settings.h"
#include "llmc/run/sanity.h"
#include "llmc/rl/stale.h"
#include "llmc/text/task.h"
#include "llmc/text/tokenizer.h"
#include "llmc/rl/trainer.h"

static const settings* S;

// ---------------------------------------------------------------------------------------------
// The run: everything that lives from start to end.

typedef struct run {
    backend* device;
    const char* why_cpu;     // why --device auto came to the CPU, or NULL
    struct task task;
    struct model model;
    struct objective objective;
    size_t parameters;       // their number
    float *host, *base;      // parameters in host memory: scratch, and the model before RL
    sampler* sampler;
    struct trainer* warmup;         // the warm-up's own trainer, while it runs
    struct trainer* trainer;
    struct stale* stale;     // older weights, for --sync-every and --lag
    model_weights* reference; // NULL without --kl-coef
    rollout* data;             // the rollout of a step
    rollout* eval_data;
    prompt_list sanity;      // the prompts of --sanity-samples; none: the task's
    run_log* log;
    run_state state;
    double seconds[3];       // spent sampling, updating, evaluating
    int64_t tokens[3];
    double rl_start;         // clock_seconds() at the first step of this part of the run
    int first_step;
} run;
enum { SAMPLING, UPDATING, EVALUATING };

static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number) {
    interrupted = signal_number;
    signal(signal_number, SIG_DFL);  // a second one ends the program at once
}

static int maximum(int a, int b) { return a > b ? a : b; }
static int minimum(int a, int b) { return a < b ? a : b; }

static float inverse_temperature(void) { return settings_inverse_temperature(S); }

static void save_checkpoint(run* r) {
    if (!*S->out) return;
    trainer* t = r->warmup ? r->warmup : r->trainer;
    optimizer* o = t->optimizer;
    float* moments = (float*)xalloc(2 * r->parameters, sizeof(float), "a checkpoint");
    trainer_save(t, r->host);
    r->device->download(r->device, moments, o->m, r->parameters * sizeof(float));
    r->device->download(r->device, moments + r->parameters, o->v, r->parameters * sizeof(float));
    r->state.optimizer = o->state;
    r->state.elapsed = log_elapsed(r->log);
    log_position(r->log, &r->state.log_bytes, &r->state.sample_bytes);
    int copies = r->state.step > 0 ? r->stale->copies : 0;  // before RL nothing is older
    float* older = (float*)xalloc(copies * r->parameters, sizeof(float), "a checkpoint");
    if (copies) stale_save(r->stale, older);
    checkpoint_save(S->out, &r->state, &r->model, r->host, moments, moments + r->parameters, older,
                    copies, S->checkpoint_keep);
    free(older);
    free(moments);
}

static void stop_if_interrupted(run* r) {
    if (!interrupted) return;
    save_checkpoint(r);
    if (*S->out)
        log_print(r->log, "interrupted: saved; continue with --resume --out %s", S->out);
    else
        log_print(r->log, "interrupted: nothing was saved, since there is no --out");
    log_close(r->log);
    exit(130);
}

// ---------------------------------------------------------------------------------------------
// Warm-up: the same update with the objective `sft`, on the task's worked examples.

enum { WARMUP_LR_STEPS = 50, WARMUP_LOG_EVERY = 50 };

static optimizer_config warmup_optimizer(void) {
    optimizer_config c = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.01,
                          .clip = 1, .format = &FORMAT_FP32, .loss_scaling = 0, .seed = S->seed};
    return c;
}

static void warmup_examples(rollout* d, const task* t, int step) {
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX];
    d->prompts = d->sequences = S->warmup_batch;
    d->group = 1;
    for (int s = 0; s < d->sequences; s++) {
        task_warmup_example(t, S->seed, (uint32_t)step, (uint32_t)s, prompt, response);
        d->prompt_length[s] = tokenizer_encode(prompt, d->prompt + s * d->max_prompt, d->max_prompt);
        d->length[s] = tokenizer_encode(response, d->token + s * d->max_new, d->max_new);
    }
}

// What the result of the warm-up depends on, as text; its hash names the file in the cache.
static char* warmup_key(const run* r) {
    optimizer_config o = warmup_optimizer();
    // On a GPU the bits depend on what it is; on the CPU they do not.
    const char* device = S->device == DEVICE_CUDA ? r->device->name : "";
    return xprintf("arithmetic %d%s, model %d %d %d %d %d, task %s, seed %llu, steps %d %d, batch %d, "
                   "adamw %.17g %.17g %.17g %.17g %.17g, clip %.17g",
                   ARITHMETIC_VERSION, device, r->model.shape.layers, r->model.shape.heads, r->model.shape.channels,
                   r->model.shape.context, r->model.shape.vocab, S->task, (unsigned long long)S->seed,
                   S->warmup_steps, WARMUP_LR_STEPS, S->warmup_batch, S->warmup_lr, o.beta1, o.beta2,
                   o.eps, o.weight_decay, o.clip);
}

static char* warmup_cache_path(const run* r) {
    char* key = warmup_key(r);
    char* path = xprintf("%s/warmup-%016llx.bin", S->warmup_cache,
                         (unsigned long long)hash_text(key));
    free(key);
    return path;
}

static void warmup_train(run* r) {
    trainer* t = r->warmup;
    objective sft = objective_defaults(OBJECTIVE_SFT);
    rollout* d = rollout_create(S->warmup_batch, r->task.max_prompt, S->max_new_tokens, 0);
    double start = clock_seconds(), last = start;
    int64_t tokens = 0, first = r->state.warmup_step;
    while (r->state.warmup_step < S->warmup_steps) {
        stop_if_interrupted(r);  // not after the last step: then the state is RL's, not the warm-up's
        int step = r->state.warmup_step++;
        double lr = schedule_lr(SCHEDULE_COSINE, S->warmup_lr, step, WARMUP_LR_STEPS, S->warmup_steps);
        warmup_examples(d, &r->task, step);
        trainer_update_result u = trainer_update(t, d, 0, d->sequences, &sft,
                                                 AGGREGATE_TOKEN_MEAN, 1, lr);
        double now = clock_seconds();
        tokens += u.tokens;
        log_progress(r->log, "warm-up", (double)(step + 1) / S->warmup_steps, tokens / (now - start),
                     (now - start) / (double)(step + 1 - first) * (S->warmup_steps - step - 1));
        if ((step + 1) % WARMUP_LOG_EVERY == 0 || step + 1 == S->warmup_steps) {
            log_begin(r->log, "warmup", step + 1);
            log_number(r->log, "loss", u.loss);
            log_number(r->log, "lr", lr);
            log_number(r->log, "grad_norm", u.grad_norm);
            log_number(r->log, "tokens_per_s", tokens / (now - start));
            log_end(r->log);
        }
        if ((step + 1) % (8 * WARMUP_LOG_EVERY) == 0 || now - last > 30) {
            log_print(r->log, "warm-up  %5d/%d  loss %.4f  %.0f tokens/s", step + 1,
                      S->warmup_steps, u.loss, tokens / (now - start));
            last = now;
        }
    }
    log_print(r->log, "warm-up took %.1f s, %.0f tokens/s", clock_seconds() - start,
              tokens / (clock_seconds() - start));
    rollout_free(d);
}

static void warm_up(run* r) {
    if (S->warmup_steps == 0) return;
    char* cached = *S->warmup_cache ? warmup_cache_path(r) : NULL;
    if (cached && file_size(cached) >= 0) {
        float* parameters;
        model c = llmc_file_read(cached, &parameters);
        if (!model_equal(&c, &r->model))
            fatal("%s holds another model than its name says; delete it", cached);
        memcpy(r->base, parameters, r->parameters * sizeof(float));
        free(parameters);
        r->state.warmup_step = S->warmup_steps;
        log_print(r->log, "warm-up  taken from %s", cached);
    } else {
        warmup_train(r);
        trainer_save(r->warmup, r->base);
        if (cached) {
            dir_create(S->warmup_cache);
            llmc_file_write(cached, &r->model, r->base, &FORMAT_FP32);
        }
    }
    free(cached);
}

// ---------------------------------------------------------------------------------------------
// What the run says

static void print_plan(const run* r) {
    const objective* o = &r->objective;
    log_print(r->log, "device      %s%s%s", r->device->name, r->why_cpu ? ": " : "",
              r->why_cpu ? r->why_cpu : "");
    if (S->device == DEVICE_CUDA && (S->threads || S->isa))
        log_print(r->log, "            --threads and --isa are the CPU's: the GPU does not read them");
    log_print(r->log, "task        %s: prompts up to %d characters, worked answers up to %d", S->task,
              r->task.max_prompt, r->task.max_response);
    log_print(r->log, "model       %d layers, %d heads, %d channels, context %d, vocabulary %d",
              r->model.shape.layers, r->model.shape.heads, r->model.shape.channels, r->model.shape.context, r->model.shape.vocab);
    size_t* n = (size_t*)r->model.count;
    log_print(r->log, "            %zu parameters: embeddings %zu + %zu, attention %zu, MLP %zu, "
              "norms %zu", r->parameters, n[0], n[1], n[4] + n[5] + n[6] + n[7],
              n[10] + n[11] + n[12] + n[13], n[2] + n[3] + n[8] + n[9] + n[14] + n[15]);
    log_print(r->log, "objective   %s, delta %g, advantage %s, aggregate %s, anchor %s",
              OBJECTIVE_NAMES[S->objective], o->delta, ADVANTAGE_NAMES[S->advantage],
              AGGREGATE_NAMES[S->aggregate], ANCHOR_NAMES[S->anchor]);
    log_print(r->log, "step        %d prompts x %d samples, %d mini-batches x %d epochs, lr %g",
              S->prompts, S->group, S->updates, S->epochs, S->lr);
    if (S->sync_every > 1)
        log_print(r->log, "staleness   the sampler takes over the weights every %d steps",
                  S->sync_every);
    if (S->lag > 0)
        log_print(r->log, "staleness   the sampler's weights lag by %d", S->lag);
    log_print(r->log, "precision   trainer %s, gradients %s, sampler %s, KV cache %s, %s",
              S->train_dtype, S->grad_dtype, S->rollout_dtype, S->kv_dtype,
              S->master_weights ? "fp32 master weights" : "stochastic rounding");
    if (strcmp(S->logits_dtype, "fp32") || strcmp(S->rollout_logits_dtype, "same"))
        log_print(r->log, "            logits %s, the sampler's %s", S->logits_dtype,
                  S->rollout_logits_dtype);
    if (settings_any_scaled(S))
        log_print(r->log, "            fp8 scales: weights one a %s, activations one a %s",
                  WEIGHT_SCALE_NAMES[S->weight_scale], ACTIVATION_SCALE_NAMES[S->activation_scale]);
    if (S->rollout_split_k > 1)
        log_print(r->log, "            the sampler's products sum in %d parts: log pi and log mu may "
                  "differ", S->rollout_split_k);
    const char* dependence = settings_batch_dependence(S);
    if (dependence) log_print(r->log, "            %s", dependence);
}

static void print_memory_line(const run* r, const char* what, size_t bytes) {
    log_print(r->log, "%-28s %10.1f MB  %6.1f bytes a parameter", what, (double)bytes / 1e6,
              (double)bytes / (double)r->parameters);
}

static void print_memory(const run* r) {
    size_t each = r->parameters * sizeof(float);
    size_t cache = sampler_cache_bytes(r->sampler);
    print_memory_line(r, "parameters", each);
    print_memory_line(r, "gradients", r->trainer->optimizer->bytes - 2 * each);
    print_memory_line(r, "optimizer moments", 2 * each);
    print_memory_line(r, "trainer: packed weights", r->trainer->weights->bytes);
    print_memory_line(r, "trainer: activations", model_acts_bytes(r->trainer->acts));
    print_memory_line(r, "sampler: packed weights", sampler_weights(r->sampler)->bytes);
    print_memory_line(r, "sampler: KV cache", cache);
    if (r->stale->copies) print_memory_line(r, "older weights", r->stale->copies * each);
    if (r->reference) print_memory_line(r, "reference model", r->reference->bytes);
    print_memory_line(r, "all on the device", r->device->allocated);
}

static void log_mismatch(run* r, const mismatch* m) {
    double value[MISMATCH_METRICS];
    mismatch_values(m, value);
    for (int i = 0; i < MISMATCH_METRICS; i++) log_number(r->log, MISMATCH_NAMES[i], value[i]);
}

static void show_samples(run* r, const char* when) {
    rollout* d = r->eval_data;
    sampling how = {inverse_temperature(), 0, S->top_k, (float)S->top_p, S->seed, STREAM_EVALUATE,
                    UINT32_MAX};
    sampler_sync(r->sampler, r->trainer->parameters);
    d->prompts = 3;
    d->group = 1;
    rollout_held_out_prompts(d, &r->task, S->seed, 0);
    sampler_run(r->sampler, d, &how);
    rollout_verify(d, &r->task);
    log_print(r->log, "three completions %s:", when);
    for (int s = 0; s < d->sequences; s++) {
        char *prompt = rollout_prompt_text(d, s), *response = rollout_response_text(d, s);
        size_t n = strcspn(response, "\n");
        log_print(r->log, "  %s %s%.*s%s", d->reward[s] > 0 ? "right" : "wrong", prompt, (int)n,
                  response, response[n] ? "" : " (cut off)");
        free(prompt);
        free(response);
    }
}

static void evaluate(run* r) {
    const prompt_list* list = r->sanity.count ? &r->sanity : NULL;
    int prompts = list ? minimum(list->count, S->eval_prompts) : S->eval_prompts;
    evaluate_config c = {prompts, S->eval_samples, S->eval_k, S->seed, (uint32_t)r->state.step,
                         inverse_temperature(), S->top_k, (float)S->top_p, list};
    double start = clock_seconds();
    sampler_sync(r->sampler, r->trainer->parameters);
    evaluation e = evaluate_run(r->sampler, r->eval_data, &r->task, &c);
    r->seconds[EVALUATING] += clock_seconds() - start;
    r->tokens[EVALUATING] += e.tokens;
    log_begin(r->log, "eval", r->state.step);
    log_number(r->log, "greedy", e.greedy);
    log_number(r->log, "pass1", e.pass1);
    log_number(r->log, "passk", e.passk);
    log_number(r->log, "k", e.k);
    log_number(r->log, "prompts", e.prompts);
    log_number(r->log, "response_length", e.response_length);
    log_end(r->log);
    log_print(r->log, "eval after step %d on %d %s prompts: pass@1 %.3f  pass@%d %.3f  "
              "greedy %.3f  length %.1f", r->state.step, e.prompts, list ? "training" : "held-out",
              e.pass1, e.k, e.passk, e.greedy, e.response_length);
}

// ---------------------------------------------------------------------------------------------
// The step

// Seconds that the remaining steps will take, from those done; NAN before there is one.
static double seconds_left(const run* r) {
    int done = r->state.step - r->first_step;
    if (done == 0) return NAN;
    return (clock_seconds() - r->rl_start) / done * (S->steps - r->state.step);
}

// Sample: group completions of each prompt, with the sampler's own copy of the weights, which may be
// an older one.
static sampler_stats sample(run* r, double* seconds) {
    rollout* d = r->data;
    sampling how = {inverse_temperature(), 0, S->top_k, (float)S->top_p, S->seed, STREAM_SAMPLE,
                    (uint32_t)r->state.step};
    double start = clock_seconds();
    d->prompts = S->prompts;
    d->group = S->group;
    sampler_sync(r->sampler, stale_take(r->stale, r->trainer->parameters, r->state.step));
    if (r->sanity.count)
        rollout_listed_prompts(d, &r->sanity, (int64_t)r->state.step * S->prompts);
    else
        rollout_training_prompts(d, &r->task, S->seed, r->state.step);
    sampler_begin(r->sampler, d, &how);
    for (int left; (left = sampler_step(r->sampler)) > 0;)
        log_progress(r->log, "rollout", 1 - (double)left / d->sequences,
                     (double)r->tokens[SAMPLING] / r->seconds[SAMPLING], seconds_left(r));
    sampler_stats stats = sampler_end(r->sampler);
    stale_push(r->stale, r->trainer->parameters, r->state.step);
    *seconds = clock_seconds() - start;
    r->seconds[SAMPLING] += *seconds;
    r->tokens[SAMPLING] += stats.tokens;
    return stats;
}

static void log_rollout(run* r, const sampler_stats* stats, const rollout_summary* reward,
                        double seconds) {
    log_begin(r->log, "rollout", r->state.step);
    log_number(r->log, "reward", reward->reward);
    log_number(r->log, "reward_std", reward->reward_std);
    log_number(r->log, "response_length", reward->response_length);
    log_number(r->log, "truncated", reward->truncated);
    log_number(r->log, "zero_std_groups", reward->zero_std_groups);
    log_number(r->log, "entropy", reward->entropy);
    log_number(r->log, "tokens", (double)stats->tokens);
    log_number(r->log, "prefill_tokens", (double)stats->prefill_tokens);
    log_number(r->log, "occupancy", stats->occupancy);
    log_number(r->log, "tokens_per_s", (double)stats->tokens / seconds);
    log_end(r->log);
}

// Measure: the trainer's log pi of what was sampled, before any update: numerics alone. With an older
// sampler it is numerics and drift, so the log has nulls; each update's line has the two together.
static mismatch measure(run* r) {
    rollout* d = r->data;
    trainer_logprobs(r->trainer, r->trainer->weights, d, 0, d->sequences, inverse_temperature(),
                     d->log_pi);
    mismatch m = trainer_mismatch(d, 0, d->sequences, r->objective.delta);
    log_begin(r->log, "numerics", r->state.step);
    if (stale_is_older(r->stale, r->state.step))
        for (int i = 0; i < MISMATCH_METRICS; i++) log_number(r->log, MISMATCH_NAMES[i], NAN);
    else
        log_mismatch(r, &m);
    log_end(r->log);
    const float* anchor = S->anchor == ANCHOR_RECOMPUTE ? d->log_pi : d->log_mu;
    memcpy(d->anchor, anchor, (size_t)d->sequences * d->max_new * sizeof(float));
    if (d->candidates)
        memcpy(d->candidate_anchor,
               S->anchor == ANCHOR_RECOMPUTE ? d->candidate_pi : d->candidate_mu,
               (size_t)d->sequences * d->max_new * d->candidates * sizeof(float));
    if (r->reference)
        trainer_logprobs(r->trainer, r->reference, d, 0, d->sequences, inverse_temperature(),
                         d->log_ref);
    return m;
}

// Verify and compare within each group.
static void advantages(run* r) {
    rollout* d = r->data;
    if (r->reference)
        for (int s = 0; s < d->sequences; s++) {
            size_t at = (size_t)s * d->max_new;
            d->reward[s] += (float)objective_kl_reward(&r->objective, d->log_mu + at,
                                                       d->log_ref + at, d->length[s]);
        }
    objective_advantages((advantage_kind)S->advantage, d->reward, d->prompts, d->group, d->advantage);
    for (int s = 0; s < d->sequences && *S->out; s++) {
        char *prompt = rollout_prompt_text(d, s), *response = rollout_response_text(d, s);
        log_sample(r->log, r->state.step, s, prompt, response, d->reward[s], d->advantage[s]);
        free(prompt);
        free(response);
    }
}

// Update: U mini-batches a pass, E passes.
static trainer_update_result update(run* r, double lr, double* seconds) {
    rollout* d = r->data;
    trainer_update_result u = {0};
    int mini = d->sequences / S->updates;
    int64_t tokens = 0;
    double start = clock_seconds();
    for (int i = 0; i < S->updates * S->epochs; i++) {
        int first = i % S->updates * mini;
        double begin = clock_seconds();
        u = trainer_update(r->trainer, d, first, mini, &r->objective, (aggregate_kind)S->aggregate,
                           inverse_temperature(), lr);
        tokens += u.tokens;
        r->state.updates++;
        mismatch m = trainer_mismatch(d, first, mini, r->objective.delta);
        log_begin(r->log, "update", r->state.step);
        log_number(r->log, "index", i);
        log_number(r->log, "loss", u.loss);
        log_number(r->log, "lr", lr);
        log_number(r->log, "grad_norm", u.grad_norm);
        log_number(r->log, "skipped", u.skipped);
        log_number(r->log, "tokens_per_s", (double)u.tokens / (clock_seconds() - begin));
        log_mismatch(r, &m);
        log_number(r->log, "masked", u.masked);
        log_number(r->log, "masked_mu", u.masked_mu);
        log_number(r->log, "corrective", u.corrective);
        log_end(r->log);
        if (u.skipped)
            log_print(r->log, "step %d, update %d: the gradient was not finite; skipped",
                      r->state.step, i);
        log_progress(r->log, "update", (double)(i + 1) / (S->updates * S->epochs),
                     (double)tokens / (clock_seconds() - start), seconds_left(r));
    }
    *seconds = clock_seconds() - start;
    r->seconds[UPDATING] += *seconds;
    r->tokens[UPDATING] += tokens;
    return u;
}

static void step(run* r) {
    double sampling_seconds, update_seconds;
    double lr = schedule_lr((schedule_kind)S->schedule, S->lr, r->state.step, S->lr_warmup, S->steps);
    sampler_stats stats = sample(r, &sampling_seconds);
    rollout_verify(r->data, &r->task);
    rollout_summary reward = rollout_summarize(r->data);
    log_rollout(r, &stats, &reward, sampling_seconds);
    mismatch numerics = measure(r);
    advantages(r);
    trainer_update_result u = update(r, lr, &update_seconds);
    if (r->state.step % 20 == 0)
        log_print(r->log, "%5s %7s %7s %8s %9s %10s %10s %10s %8s", "step", "reward", "length",
                  "entropy", "grad norm", "|pi-mu|", "sample/s", "train/s", "time");
    log_print(r->log, "%5d %7.3f %7.2f %8.4f %9.4f %10.2e %10.0f %10.0f %7.1fs", r->state.step,
              reward.reward, reward.response_length, reward.entropy, u.grad_norm,
              numerics.prob_diff_mean, (double)stats.tokens / sampling_seconds,
              (double)u.tokens * S->updates * S->epochs / update_seconds, log_elapsed(r->log));
    r->state.step++;
}

// ---------------------------------------------------------------------------------------------
// Setting up

static void create(run* r) {
    precision train = settings_train_precision(S), roll = settings_rollout_precision(S);
    int prompt = r->task.max_prompt, longest = prompt + S->max_new_tokens;
    int sequences = S->prompts * S->group, eval = maximum(maximum(sequences, 512), S->eval_samples);
    int filtered = S->top_k > 0 || (float)S->top_p < 1;
    int nucleus_words = filtered ? (r->model.shape.vocab + 31) / 32 : 0;
    r->sampler = sampler_create(r->device, &r->model, roll, settings_kv_format(S), S->slots,
                                prompt, S->max_new_tokens, eval, nucleus_words, tokenizer_end());
    optimizer_config config = settings_optimizer(S);
    r->trainer = trainer_create(r->device, &r->model, train, &config,
                                minimum(S->micro_batch, sequences), longest,
                                (recompute_level)S->recompute);
    if (S->kl_coef > 0) r->reference = model_weights_create(r->device, &r->model, train);
    r->stale = stale_create(r->device, r->parameters, S->sync_every, S->lag);
    r->data = rollout_create(sequences, prompt, S->max_new_tokens, nucleus_words);
    r->eval_data = rollout_create(eval, prompt, S->max_new_tokens, nucleus_words);
    if (S->top_candidates) {
        int count = minimum(S->top_candidates, r->model.shape.vocab);
        sampler_record_candidates(r->sampler, count);
        rollout_add_candidates(r->data, count);
    }
    r->host = (float*)xalloc(r->parameters, sizeof(float), "parameters");
    r->base = (float*)xalloc(r->parameters, sizeof(float), "parameters");
    model_init(&r->model, r->base, S->seed);
    if (*S->init) {
        free(r->base);
        llmc_file_read(S->init, &r->base);
    }
    trainer_load(r->trainer, r->base);
    trainer_rehearse(r->trainer);
    sampler_sync(r->sampler, r->trainer->parameters);
}

static void load_reference(run* r) {
    backend* b = r->device;
    size_t bytes = r->parameters * sizeof(float);
    float* parameters = (float*)b->alloc(b, bytes, "the reference model (choose --kl-coef 0)");
    b->upload(b, parameters, r->base, bytes);
    model_weights_sync(r->reference, parameters);
    b->release(b, parameters, bytes);
}

// The model before RL chooses the prompts, in fp32: the same ones whatever the run's precision.
static void choose_prompts(run* r) {
    backend* b = r->device;
    rollout* d = r->eval_data;
    sanity_config c = {S->sanity_prompts, S->sanity_samples, S->sanity_low, S->sanity_high, S->seed,
                       inverse_temperature(), S->top_k, (float)S->top_p};
    size_t bytes = r->parameters * sizeof(float);
    float* parameters = (float*)b->alloc(b, bytes, "the model before RL (--sanity-samples 0)");
    sampler* in_fp32 = sampler_create(b, &r->model, precision_of(&FORMAT_FP32, &FORMAT_FP32),
                                      &FORMAT_FP32, S->slots, d->max_prompt, d->max_new, d->capacity,
                                      d->nucleus_words, tokenizer_end());
    b->upload(b, parameters, r->base, bytes);
    sampler_sync(in_fp32, parameters);
    sanity_result chosen = sanity_select(in_fp32, d, &r->task, &c);
    r->sanity = chosen.kept;
    sampler_free(in_fp32);
    b->release(b, parameters, bytes);
    log_begin(r->log, "sanity", 0);
    log_number(r->log, "prompts", chosen.tried);
    log_number(r->log, "kept", r->sanity.count);
    log_number(r->log, "solved", chosen.solved);
    log_end(r->log);
    log_print(r->log, "sanity      %d of %d prompts are solved %g to %g %% of the time: these are "
              "trained and evaluated on", r->sanity.count, chosen.tried, 100 * S->sanity_low,
              100 * S->sanity_high);
}

// A checkpoint's parameters (in r->host) and moments into a trainer.
static void restore(run* r, trainer* t, const float* m, const float* v) {
    trainer_load(t, r->host);
    r->device->upload(r->device, t->optimizer->m, m, r->parameters * sizeof(float));
    r->device->upload(r->device, t->optimizer->v, v, r->parameters * sizeof(float));
    t->optimizer->state = r->state.optimizer;
}

// Opens the log and leaves the model that RL starts or continues from in the trainer.
static void begin(run* r) {
    char *config_path = xprintf("%s/config", S->out), *base_path = xprintf("%s/base.bin", S->out);
    char* prompts_path = xprintf("%s/prompts", S->out);
    float* m = (float*)xalloc(2 * r->parameters, sizeof(float), "a checkpoint");
    float* v = m + r->parameters;
    int copies = r->stale->copies;
    float* older = (float*)xalloc(copies * r->parameters, sizeof(float), "a checkpoint");
    int found = S->resume && checkpoint_load(S->out, &r->state, &r->model, r->host, m, v, older,
                                            copies);
    if (S->resume) log_cut(S->out, r->state.log_bytes, r->state.sample_bytes);
    r->log = log_open(S->out, r->state.elapsed);
    if (*S->out) settings_write(config_path);
    print_plan(r);
    print_memory(r);
    if (found)
        log_print(r->log, "continuing after %s step %d", r->state.step ? "RL" : "warm-up",
                  r->state.step ? r->state.step : r->state.warmup_step);
    if (!*S->init && r->state.warmup_step < S->warmup_steps) {
        optimizer_config config = warmup_optimizer();
        precision fp32 = precision_of(&FORMAT_FP32, &FORMAT_FP32);
        r->warmup = trainer_create(r->device, &r->model, fp32, &config,
                                   minimum(S->micro_batch, S->warmup_batch),
                                   r->task.max_prompt + S->max_new_tokens,
                                   (recompute_level)S->recompute);
        if (found)
            restore(r, r->warmup, m, v);
        else
            trainer_load(r->warmup, r->base);
        trainer_rehearse(r->warmup);
        print_memory_line(r, "with the warm-up's trainer", r->device->allocated);
        warm_up(r);
        trainer_free(r->warmup);
        r->warmup = NULL;
        found = 0;
    }
    if (found) {
        restore(r, r->trainer, m, v);
        if (S->sanity_samples) r->sanity = sanity_read(&r->task, prompts_path);
        if (r->reference) {
            free(r->base);
            llmc_file_read(base_path, &r->base);
        }
    } else {
        trainer_load(r->trainer, r->base);
        if (r->reference && *S->out)
            llmc_file_write(base_path, &r->model, r->base, &FORMAT_FP32);
        if (S->sanity_samples) choose_prompts(r);
        if (S->sanity_samples && *S->out) sanity_write(&r->sanity, prompts_path);
        save_checkpoint(r);
    }
    if (r->reference) load_reference(r);
    if (r->state.step > 0)
        stale_load(r->stale, older);
    else
        stale_begin(r->stale, r->trainer->parameters);
    free(older);
    free(m);
    free(config_path);
    free(base_path);
    free(prompts_path);
}

static void end(run* r) {
    static const char* const PHASES[] = {"sampling", "updating", "evaluating"};
    show_samples(r, "after RL");
    for (int i = 0; i < 3; i++)
        if (r->seconds[i] > 0)
            log_print(r->log, "%-11s %7.1f s %10.0f tokens/s", PHASES[i], r->seconds[i],
                      (double)r->tokens[i] / r->seconds[i]);
    log_print(r->log, "the run took %.1f s%s%s", log_elapsed(r->log),
              *S->out ? "; log, samples and checkpoints are in "
                     : "; --out DIR keeps log, samples and checkpoints", S->out);
    log_close(r->log);
}

// Threads that wait for each other at the end of a loop spin for milliseconds by libgomp's default:
// where another program wants the processors too, that costs most of the speed (measured: a factor of
// 4 at a load of 5 on 2 cores, nothing on idle ones). libgomp reads the limit when it is loaded.
static void limit_spinning(char** argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "10000", 1);
    execv("/proc/self/exe", argv);  // if it fails, the program runs as it is
}

static int due(int every, int step) { return every > 0 && step % every == 0; }

int main(int argc, char** argv) {
    static run r;
    limit_spinning(argv);
    S = settings_read(argc, argv);
    r.task = task_open(S->task);
    settings_resolve(&r.task, &r.model, &r.objective);
    r.parameters = r.model.parameters;
    r.device = settings_open_device(&r.why_cpu);
    create(&r);
    signal(SIGINT, on_interrupt);
    signal(SIGXFSZ, SIG_IGN);  // a file over the size limit is a failed write, with a sentence

    begin(&r);
    stop_if_interrupted(&r);
    if (r.state.step >= S->steps && S->resume) log_print(r.log, "the run is complete");
    if (r.state.step == 0) {
        evaluate(&r);
        show_samples(&r, "before RL");
    }
    r.rl_start = clock_seconds();
    r.first_step = r.state.step;
    while (r.state.step < S->steps) {
        step(&r);
        int last = r.state.step == S->steps;
        if (last || due(S->eval_every, r.state.step)) evaluate(&r);
        if (last || due(S->checkpoint_every, r.state.step)) save_checkpoint(&r);
        stop_if_interrupted(&r);
    }
    end(&r);
    return 0;
}
