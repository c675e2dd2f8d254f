#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "page.h"

enum {
    WARMUP_LOG_EVERY = 50,   // warm-up steps between two lines of log.jsonl
    WARMUP_SHOW_EVERY = 400  // and of the console, where they do not take long
};
static const double WARMUP_SHOW_SECONDS = 30;
// Tokens of a chain of sums from which on fp32 loses too much: 1e5 roundings of 2^-24 each come to
// 0.6 % of the sum of absolute values at worst.
static const int64_t CHAIN_TOKENS = 100000;
static const double ESTIMATE_SECONDS = 3;  // work after which the time that is left can be told

static double rate(const meter* m) { return (double)m->tokens / m->seconds; }

// ------------------------------------------------------------------------------------------------
// The plan

static void report_device(const run* r) {
    const settings* s = r->settings;
    if (r->ranks->size > 1)
        log_print(r->log,
                  "ranks       %d, %d of them on this machine; each samples %d prompts a step",
                  r->ranks->size, r->ranks->here, s->prompts / r->ranks->size);
    log_print(r->log, "device      %s%s%s", r->device->name, r->why_cpu ? ": " : "",
              r->why_cpu ? r->why_cpu : "");
    if (s->device == DEVICE_CPU && s->threads > cpu_default_threads())
        log_print(r->log,
                  "            %d threads on %d cores wait for each other: fewer are faster",
                  s->threads, cpu_default_threads());
    if (s->device != DEVICE_CPU && (s->threads || s->isa))
        log_print(r->log, "            --threads and --isa are the CPU's: %s does not read them",
                  s->device == DEVICE_CUDA ? "the GPU" : "the plain device");
    if (s->device != DEVICE_CUDA && s->products)
        log_print(r->log, "            --products is a GPU's: it is not read");
}

// Parameters by the branch whose products they are; the rest of a layer's are norms'.
static void count_layers(const model* m, size_t branch[BRANCHES], size_t* norms) {
    for (int r = 0; r < BRANCHES; r++)
        for (int i = 0; i < LINKS && m->family->branch[r][i].out != D_0; i++) {
            const family_link* k = &m->family->branch[r][i];
            size_t n = k->weight == NONE ? 0 : m->count[k->weight];
            if (k->bias != NONE) n += m->count[k->bias];
            if (k->kind == EXPERTS) n += m->count[k->gate_up] + m->count[k->down];
            *(k->kind == LINEAR || k->kind == EXPERTS ? &branch[r] : norms) += n;
        }
}

static void report_model(const run* r) {
    const shape* s = &r->model.shape;
    const family* f = r->model.family;
    const size_t* n = r->model.count;
    size_t branch[BRANCHES] = {0}, norms = n[f->norm];
    if (f->norm_bias != NONE) norms += n[f->norm_bias];
    count_layers(&r->model, branch, &norms);
    log_print(r->log, "model       %s: %d layers, %d heads, %d channels, context %d, vocabulary %d",
              f->name, s->layers, s->heads, s->channels, s->context, s->vocab);
    if (f != &GPT2_FAMILY)
        log_print(
            r->log,
            "            heads of %d, %d of keys and values, MLP of %d, %s head, rope theta %g",
            s->head_dim, s->kv_heads, s->hidden, s->tied ? "tied" : "untied", s->rope_theta);
    if (s->experts)
        log_print(r->log, "            a mixture of experts: each token takes %d of %d such MLPs",
                  s->experts_used, s->experts);
    log_print(r->log,
              "            %zu parameters: embeddings %zu, attention %zu, MLP %zu, norms %zu%s",
              r->parameters, n[f->embedding] + (f->positions == NONE ? 0 : n[f->positions]),
              branch[0], branch[1], norms, s->tied ? "" : ", the rest the head");
}

// The options that the objective reads, and no others: ", delta 0.15". Free with free().
static char* objective_options(const run* r) {
    const objective* o = &r->objective;
    const struct {
        const char* name;
        double value;
    } options[] = {{"delta", o->delta},         {"epsilon", o->epsilon},
                   {"clip-low", o->clip_low},   {"clip-high", o->clip_high},
                   {"ratio-cap", o->ratio_cap}, {"top-candidates", r->settings->top_candidates}};
    char* text = xprintf("%s", "");
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (!objective_reads(o->kind, options[i].name)) continue;
        char* longer = xprintf("%s, %s %g", text, options[i].name, options[i].value);
        free(text);
        text = longer;
    }
    return text;
}

static void report_objective(const run* r) {
    const settings* s = r->settings;
    const objective* o = &r->objective;
    char* options = objective_options(r);
    if (o->kind == OBJECTIVE_SFT)
        log_print(r->log,
                  "objective   sft, aggregate %s: it reads no reward, and trains on every sample, "
                  "right or wrong",
                  AGGREGATE_NAMES[s->aggregate]);
    else
        log_print(r->log, "objective   %s%s, advantage %s, aggregate %s, anchor %s",
                  OBJECTIVE_NAMES[o->kind], options, ADVANTAGE_NAMES[s->advantage],
                  AGGREGATE_NAMES[s->aggregate],
                  ANCHOR_NAMES[settings_recomputes_anchor(s) ? ANCHOR_RECOMPUTE : ANCHOR_ROLLOUT]);
    if (s->overlong_filter)
        log_print(r->log, "            responses that were cut off are left out of the loss");
    if (s->overlong_buffer)
        log_print(r->log, "            rewards fall by up to 1 over the last %d of %d tokens",
                  s->overlong_buffer, s->max_new_tokens);
    if (s->correct)
        log_print(r->log, "            correct %s, rho from %g to %g",
                  CORRECTION_NAMES[r->correction.kind], r->correction.low, r->correction.high);
    if (o->reg != REG_NONE)
        log_print(r->log, "            regularizer %s, reg-coef %g", REG_NAMES[o->reg],
                  o->reg_coef);
    if (o->kl_coef > 0)
        log_print(r->log, "            KL to the model before RL: estimator %s, kl-coef %g",
                  KL_NAMES[o->kl], o->kl_coef);
    if (o->entropy_coef > 0)
        log_print(r->log, "            bonus on entropies: entropy-coef %g", o->entropy_coef);
    if (o->kl_coef > 0 && o->kl == KL_K1 && s->advantage == ADVANTAGE_STD)
        log_print(
            r->log,
            "            k1 with advantage std: a group of equal rewards trains at full size, "
            "on its KL penalties alone");
    free(options);
}

static void report_precision(const run* r) {
    const settings* s = r->settings;
    log_print(r->log, "precision   trainer %s, gradients %s, sampler %s, KV cache %s, %s",
              s->train_dtype, s->grad_dtype, s->rollout_dtype, s->kv_dtype,
              s->master_weights ? "fp32 master weights" : "stochastic rounding");
    if (strcmp(s->logits_dtype, "fp32") || strcmp(s->rollout_logits_dtype, "same"))
        log_print(r->log, "            logits %s, the sampler's %s", s->logits_dtype,
                  s->rollout_logits_dtype);
    if (strcmp(s->train_kv_dtype, "same"))
        log_print(r->log, "            the trainer attends to keys and values in %s",
                  s->train_kv_dtype);
    if (settings_any_scaled(s))
        log_print(r->log,
                  "            fp8 scales: one per %s of a weight, one per %s of an activation",
                  WEIGHT_SCALE_NAMES[s->weight_scale], ACTIVATION_SCALE_NAMES[s->activation_scale]);
    if (s->train_block || s->rollout_block)
        log_print(r->log,
                  "            block scales of the products' weights: trainer %s, sampler %s",
                  BLOCK_NAMES[s->train_block], BLOCK_NAMES[s->rollout_block]);
    if (s->rollout_split_k > 1)
        log_print(
            r->log,
            "            the sampler's products sum in %d parts: log pi and log mu may differ",
            s->rollout_split_k);
    if (strcmp(s->eval_dtype, "same"))
        log_print(r->log,
                  "            evaluations in %s, logits fp32, whatever the sampler's formats are",
                  s->eval_dtype);
    const char* dependence = settings_batch_dependence(s);
    if (dependence) log_print(r->log, "            %s", dependence);
}

static int steps_are_passes(const settings* s, const source* from) {
    return (double)s->steps * s->prompts <= s->passes * from->training.count * (1 + 1e-12);
}

static void report_problems(const run* r) {
    const settings* s = r->settings;
    const source* from = &r->source;
    if (!from->data) {
        log_print(r->log, "task        %s: prompts up to %d %s, worked answers up to %d", s->task,
                  from->max_prompt, r->tokenizer.bpe ? "tokens" : "characters", from->max_response);
    } else {
        log_print(r->log,
                  "data        %s: %d problems for training, %d held out, prompts up to %d tokens",
                  from->data, from->training.count, from->held_out.count, from->max_prompt);
        if (from->skipped)
            log_print(r->log, "            %d problems with longer prompts are left out",
                      from->skipped);
        if (from->shared)
            log_print(r->log, "            %d of the held-out prompts are training prompts too",
                      from->shared);
        if (s->passes > 0)
            log_print(r->log, "            %d steps of %d problems are %g passes%s", s->steps,
                      s->prompts, s->passes,
                      steps_are_passes(s, from) ? "" : ", and the begin of another");
        log_print(r->log, "reward      %s", *s->reward ? s->reward : "cmd");
        if (settings_task_unread(s)) log_print(r->log, "task        none: --data takes its place");
    }
    if (!r->tokenizer.bpe) return;
    log_print(r->log, "tokenizer   %s: %d tokens, chat format %s",
              *s->tokenizer ? s->tokenizer : s->init, tokenizer_size(&r->tokenizer),
              CHAT_NAMES[r->tokenizer.chat]);
    int64_t dropped = tokenizer_dropped(&r->tokenizer);
    if (dropped)
        log_print(r->log, "            has no token for %lld bytes of the problems: left out",
                  (long long)dropped);
}

// What a shard of a mini-batch, or of the warm-up, has at most.
static void report_shards(const run* r) {
    const settings* s = r->settings;
    int64_t prompt = r->source.max_prompt, response = s->max_new_tokens;
    int64_t sequences = (int64_t)s->prompts * s->group / s->updates / s->shards;
    int64_t groups = (sequences + s->group - 1) / s->group;
    int64_t tokens = groups * prompt + sequences * response;
    int64_t warmup = s->warmup_steps ? s->warmup_batch / s->shards * (prompt + response) : 0;
    if (s->shards > 1)
        log_print(
            r->log,
            "            %d shards per mini-batch (prompts in each: %lld), whose gradients are "
            "added in pairs",
            s->shards, (long long)groups);
    if (tokens < warmup) tokens = warmup;
    if (tokens > CHAIN_TOKENS)
        log_print(
            r->log,
            "            a gradient sums up to %lld tokens one by one, which loses precision: "
            "raise --shards",
            (long long)tokens);
}

static void report_sampler(const run* r) {
    const settings* s = r->settings;
    if (!*s->sampler_cmd) return;
    char* line = shown(s->sampler_cmd, strlen(s->sampler_cmd));
    log_print(r->log, "sampler     %s, %g s a step at most", line, s->sampler_timeout);
    log_print(r->log,
              "            of rollouts only: evaluations%s are by this program's sampler, whose "
              "formats are those below",
              s->sanity_samples ? " and the choice of prompts" : "");
    free(line);
}

static void report_page_planned(const run* r) {
    if (!r->settings->report) return;
    const char* why = page_missing();
    log_print(r->log, why ? "page        none: %s" : "page        %s/report.html, at the end",
              why ? why : r->settings->out);
}

// The file `plan` holds the lines up to the last one of report_memory.
void report_plan(const run* r) {
    const settings* s = r->settings;
    char* plan = run_path(r, "plan");
    if (plan) log_copy(r->log, plan);
    free(plan);
    report_device(r);
    report_problems(r);
    report_model(r);
    report_objective(r);
    log_print(r->log, "step        %d prompts x %d samples, %d mini-batches%s x %d epochs, lr %g",
              s->prompts, s->group, s->updates, s->shuffle ? " dealt anew" : "", s->epochs, s->lr);
    report_shards(r);
    if (s->resample)
        log_print(r->log,
                  "            groups of equal rewards are drawn again, in up to %d rounds a step",
                  s->resample);
    report_sampler(r);
    if (s->sync_every > 1)
        log_print(r->log, "staleness   the sampler takes over the weights every %d steps",
                  s->sync_every);
    if (s->lag > 0) log_print(r->log, "staleness   the sampler's weights lag by %d", s->lag);
    report_precision(r);
    if (settings_warmup_unread(s))
        log_print(r->log, "warm-up     none: %s, so its flags do nothing",
                  *s->init   ? "--init takes its place"
                  : *s->from ? "--from takes its place"
                             : "--warmup-steps is 0");
    if (settings_checkpoints_unread(s))
        log_print(r->log, "checkpoints none: nothing is kept without --out");
    report_page_planned(r);
    log_print(r->log, "memory      taking all that the run needs, and trying the largest batch");
}

// ------------------------------------------------------------------------------------------------
// Memory

static void memory_line(const run* r, const char* what, size_t bytes) {
    log_print(r->log, "%-28s %10.1f MB  %6.1f bytes per parameter", what, (double)bytes / 1e6,
              (double)bytes / (double)r->parameters);
}

void report_memory(const run* r) {
    size_t each = r->parameters * sizeof(float);
    memory_line(r, "parameters", each);
    const optimizer* o = r->trainer->optimizer;
    size_t pending = o->levels * each, moments = 2 * o->own * sizeof(float);
    size_t incoming = o->incoming_count * sizeof(float);
    memory_line(r, "gradients", o->bytes - moments - pending - incoming);
    if (pending) memory_line(r, "gradients: earlier shards", pending);
    if (incoming) memory_line(r, "gradients: of other ranks", incoming);
    memory_line(r, "optimizer moments", moments);
    if (r->trainer->changes)
        memory_line(r, "trainer: before an update", changes_bytes(r->trainer->changes));
    memory_line(r, "trainer: packed weights", r->trainer->weights->bytes);
    memory_line(r, "trainer: activations", model_acts_bytes(r->trainer->acts));
    if (sampler_shares(r->sampler))
        memory_line(r, "sampler: the trainer's", 0);
    else
        memory_line(r, "sampler: packed weights", sampler_weights(r->sampler)->bytes);
    memory_line(r, "sampler: KV cache", sampler_cache_bytes(r->sampler));
    if (sampler_record_bytes(r->sampler))
        memory_line(r, "sampler: experts of tokens", sampler_record_bytes(r->sampler));
    if (r->evaluator != r->sampler) {
        size_t own = sampler_shares(r->evaluator) ? 0 : sampler_weights(r->evaluator)->bytes;
        memory_line(r, "evaluations: packed weights", own);
        memory_line(r, "evaluations: KV cache", sampler_cache_bytes(r->evaluator));
    }
    if (r->stale->copies) memory_line(r, "older weights", (size_t)r->stale->copies * each);
    if (r->reference) memory_line(r, "reference model", r->reference->bytes);
    memory_line(r, r->warmup ? "all, with the warm-up" : "all on the device", r->device->allocated);
    log_copy(r->log, NULL);
}

// ------------------------------------------------------------------------------------------------
// The warm-up

static void log_warmup(const run* r, const warmup_result* w) {
    log_begin(r->log, "warmup", r->state.warmup_step);
    log_number(r->log, "loss", w->update.loss);
    log_number(r->log, "lr", w->lr);
    log_number(r->log, "grad_norm", w->update.grad_norm);
    log_number(r->log, "tokens_per_s", rate(&r->warming));
    log_end(r->log);
}

// Whether the step passed a multiple of WARMUP_SHOW_SECONDS.
static int takes_long(const meter* m, double step_seconds) {
    double now = floor(m->seconds / WARMUP_SHOW_SECONDS);
    return now > floor((m->seconds - step_seconds) / WARMUP_SHOW_SECONDS);
}

// Once in each phase, for those who see no progress line.
static void report_estimate(const run* r, const char* what, double seconds, double step_seconds,
                            double left) {
    if (seconds < ESTIMATE_SECONDS || seconds - step_seconds >= ESTIMATE_SECONDS) return;
    long whole = left < 1e9 ? lround(left) : 0;
    if (whole >= 10)
        log_print(r->log, "%s  about %ld:%02ld minutes to go", what, whole / 60, whole % 60);
}

void report_warmup(const run* r, const warmup_result* w) {
    const meter* m = &r->warming;
    int step = r->state.warmup_step, steps = r->settings->warmup_steps, last = step == steps;
    double left = m->seconds / m->steps * (steps - step);
    log_progress(r->log, "warm-up", (double)step / steps, rate(m), left);
    report_estimate(r, "warm-up", m->seconds, w->seconds, left);
    if (last || step % WARMUP_LOG_EVERY == 0) log_warmup(r, w);
    if (step % WARMUP_SHOW_EVERY == 0 || takes_long(m, w->seconds))
        log_print(r->log, "warm-up  %5d/%d  loss %.4f  %.0f tokens/s", step, steps, w->update.loss,
                  rate(m));
    if (last) log_print(r->log, "warm-up took %.1f s, %.0f tokens/s", m->seconds, rate(m));
}

// ------------------------------------------------------------------------------------------------
// Evaluations

// What a reward program did not judge, and what becomes of that.
static void log_lost(const run* r, const reward_counts* lost) {
    if (!*r->settings->reward_cmd) return;
    log_number(r->log, "reward_crashed", (double)lost->crashed);
    log_number(r->log, "reward_timed_out", (double)lost->timed_out);
    log_number(r->log, "reward_malformed", (double)lost->malformed);
    log_number(r->log, "reward_extra", (double)lost->extra);
}

static void report_lost(const run* r, const char* where, const reward_counts* lost,
                        const char* fate) {
    char* text = reward_counts_text(lost);
    if (text) log_print(r->log, "%s %d: %s; %s", where, r->state.step, text, fate);
    free(text);
}

// Four of pass@2, pass@4, ... a line, which has at most 60 columns.
static void report_passk(const run* r, const evaluation* e) {
    char line[128] = "";
    for (int i = 0; i < e->ks; i++) {
        sprintf(line + strlen(line), "  pass@%d %.3f", e->k[i], e->passk[i]);
        if (i % 4 < 3 && i < e->ks - 1) continue;
        log_print(r->log, "%s", line);
        *line = 0;
    }
}

void report_evaluation(const run* r, const evaluation* e) {
    log_begin(r->log, "eval", r->state.step);
    log_number(r->log, "greedy", e->greedy);
    log_number(r->log, "pass1", e->pass1);
    log_number(r->log, "pass1_error", e->pass1_error);
    for (int i = 0; i < e->ks && !r->settings->eval_k; i++) {
        char* key = xprintf("pass%d", e->k[i]);
        log_number(r->log, key, e->passk[i]);
        free(key);
    }
    log_number(r->log, "passk", e->passk[e->ks - 1]);
    log_number(r->log, "k", e->k[e->ks - 1]);
    log_number(r->log, "prompts", e->prompts);
    log_number(r->log, "response_length", e->response_length);
    log_lost(r, &e->lost);
    log_end(r->log);
    report_lost(r, "eval after step", &e->lost, "they get 0 from it");
    char* error = e->prompts > 1 ? xprintf(" ± %.3f", e->pass1_error) : xprintf("%s", "");
    char* passk =
        r->settings->eval_k ? xprintf("  pass@%d %.3f", *e->k, *e->passk) : xprintf("%s", "");
    log_print(r->log,
              "eval after step %d on %d %s prompts: pass@1 %.3f%s%s  greedy %.3f  length %.1f",
              r->state.step, e->prompts, r->sanity.count ? "training" : "held-out", e->pass1, error,
              passk, e->greedy, e->response_length);
    if (!r->settings->eval_k) report_passk(r, e);
    free(passk);
    free(error);
}

void report_examples(const run* r, const char* when) {
    const rollout* d = r->eval_data;
    log_print(r->log, "three completions %s:", when);
    for (int i = 0; i < d->sequences; i++) {
        // A model may write anything, also what a terminal takes for a command.
        char* whole = rollout_response_text(d, i);
        const char* asked = rollout_problem(d, i)->prompt;
        size_t length = r->tokenizer.bpe ? strlen(whole) : strcspn(whole, "\n");
        char *prompt = shown(asked, strlen(asked)), *response = shown(whole, length);
        log_print(r->log, "  %s %s%s%s%s", d->right[i] > 0 ? "right" : "wrong", prompt,
                  r->tokenizer.bpe ? " | " : "", response, rollout_ended(d, i) ? "" : " (cut off)");
        free(whole);
        free(prompt);
        free(response);
    }
}

// ------------------------------------------------------------------------------------------------
// The step

// The graders of a reward, by their names.
static void log_judgement(const run* r) {
    const judgement* j = &r->data->judged;
    for (int k = 0; k < j->terms; k++) {
        char *grader = source_term_key(&r->source, k), *key = xprintf("reward_%s", grader);
        log_number(r->log, key, j->term[k]);
        free(grader);
        free(key);
    }
    log_lost(r, &j->lost);
}

static void log_sent(const run* r, int64_t bytes) {
    if (r->ranks->size > 1) log_number(r->log, "sent", (double)bytes);
}

// The mean that --overlong-buffer adds to the rewards.
static double overlong_penalty(const run* r) {
    const rollout* d = r->data;
    double sum = 0;
    for (int i = 0; i < d->sequences; i++)
        sum += objective_overlong(rollout_length(d, i), d->max_new, r->settings->overlong_buffer);
    return sum / d->sequences;
}

static void log_slots(const run* r, const sampler_stats* s) {
    log_number(r->log, "prefill_tokens", (double)s->prefill_tokens);
    if (r->settings->kv_memory > 0) log_number(r->log, "preemptions", (double)s->preemptions);
    log_number(r->log, "occupancy", s->occupancy);
}

void report_rollout(const run* r, const step_report* s) {
    log_begin(r->log, "rollout", r->state.step);
    log_number(r->log, "reward", s->reward.reward);
    log_number(r->log, "reward_std", s->reward.reward_std);
    log_judgement(r);
    log_number(r->log, "response_length", s->reward.response_length);
    log_number(r->log, "truncated", s->reward.truncated);
    log_number(r->log, "zero_std_groups", s->reward.zero_std_groups);
    if (r->settings->overlong_buffer) log_number(r->log, "overlong_penalty", overlong_penalty(r));
    if (r->settings->resample) {
        log_number(r->log, "resampled", s->resampled);
        log_number(r->log, "first_reward", s->first_reward);
    }
    log_number(r->log, "entropy", s->reward.entropy);
    log_number(r->log, "tokens", (double)s->sampled.tokens);
    if (!r->external) log_slots(r, &s->sampled);
    log_number(r->log, "tokens_per_s", (double)s->sampled.tokens / s->sampling_seconds);
    log_sent(r, s->sent);
    log_end(r->log);
    report_lost(r, "step", &r->data->judged.lost,
                r->settings->reward_missing ? "their groups are left out" : "they get 0 from it");
}

static void log_mismatch(const run* r, const mismatch* m) {
    double value[MISMATCH_METRICS];
    if (m) mismatch_values(m, value);
    for (int i = 0; i < MISMATCH_METRICS; i++)
        log_number(r->log, MISMATCH_NAMES[i], m ? value[i] : NAN);
}

void report_numerics(const run* r, const mismatch* m) {
    log_begin(r->log, "numerics", r->state.step);
    log_mismatch(r, m);
    log_end(r->log);
}

void report_correction(const run* r, const correction_report* c) {
    log_begin(r->log, "correct", r->state.step);
    log_number(r->log, "weight_mean", c->weight_mean);
    log_number(r->log, "zeroed", c->zeroed);
    log_number(r->log, "truncated", c->truncated);
    log_number(r->log, "ess", c->ess);
    log_end(r->log);
}

void report_samples(const run* r) {
    const rollout* d = r->data;
    int every = r->settings->samples_every;
    if (!*r->settings->out || !run_is_first(r) || !every || r->state.step % every) return;
    for (int i = 0; i < d->sequences; i++) {
        char* response = rollout_response_text(d, i);
        size_t at = d->start[i];
        sample_tokens t = {rollout_length(d, i), d->token + at, d->log_mu + at, d->log_pi + at};
        log_sample(r->log, r->state.step, i, rollout_problem(d, i)->prompt, response, d->reward[i],
                   d->advantage[i], r->settings->log_tokens ? &t : NULL);
        free(response);
    }
}

static void log_changed(const run* r, const changed_shares* c) {
    log_number(r->log, "changed", c->stored);
    log_number(r->log, "changed_train", c->train);
    log_number(r->log, "changed_rollout", c->rollout);
}

void report_update(const run* r, int index, double lr, const trainer_update_result* u,
                   const mismatch* m, double seconds, int64_t sent) {
    log_begin(r->log, "update", r->state.step);
    log_number(r->log, "index", index);
    log_number(r->log, "loss", u->loss);
    log_number(r->log, "lr", lr);
    log_number(r->log, "grad_norm", u->grad_norm);
    log_number(r->log, "skipped", u->skipped);
    log_number(r->log, "loss_scale", u->loss_scale);
    log_number(r->log, "tokens", (double)u->tokens);
    log_number(r->log, "trained_tokens", (double)u->trained_tokens);
    if (r->trainer->changes) log_changed(r, &u->changed);
    log_number(r->log, "tokens_per_s", (double)u->tokens / seconds);
    log_sent(r, sent);
    log_mismatch(r, m);
    log_number(r->log, "masked", u->masked);
    log_number(r->log, "masked_mu", u->masked_mu);
    log_number(r->log, "corrective", u->corrective);
    if (r->data->expert) {
        log_number(r->log, "routing_differs", u->routing_differs);
        log_number(r->log, "expert_load", u->expert_load);
    }
    log_end(r->log);
    if (u->skipped)
        log_print(r->log, "step %d, update %d: the gradient was not finite; skipped", r->state.step,
                  index);
}

void report_step(const run* r, const step_report* s) {
    if (r->state.step % 20 == 0)
        log_print(r->log, "%5s %7s %7s %8s %9s %10s %10s %10s %8s", "step", "reward", "length",
                  "entropy", "grad norm", "|pi-mu|", "sample/s", "train/s", "time");
    log_print(r->log, "%5d %7.3f %7.2f %8.4f %9.4f %10.2e %10.0f %10.0f %7.1fs", r->state.step,
              s->reward.reward, s->reward.response_length, s->reward.entropy,
              s->updates ? s->grad_norms / s->updates : INFINITY, s->numerics.prob_diff_mean,
              (double)s->sampled.tokens / s->sampling_seconds,
              (double)s->tokens / s->update_seconds, log_elapsed(r->log));
    report_estimate(r, "RL", r->sampling.seconds + r->updating.seconds,
                    s->sampling_seconds + s->update_seconds, run_seconds_left(r));
}

void report_progress(const run* r, const char* what, double fraction, const meter* m) {
    log_progress(r->log, what, fraction, rate(m), run_seconds_left(r));
}

static void report_meter(const run* r, const char* what, const meter* m) {
    if (m->seconds > 0)
        log_print(r->log, "%-11s %7.1f s %10.0f tokens/s", what, m->seconds, rate(m));
}

// What each rank did since the program started.
static void report_ranks(const run* r) {
    typedef struct work {
        int64_t sampled, trained, measured, sent, held;
    } work;
    ranks* all = r->ranks;
    if (all->size == 1) return;
    work* each = xalloc((size_t)all->size, sizeof *each, "counts");
    each[all->rank] =
        (work){all->sampled, all->trained, all->measured, all->sent, (int64_t)r->device->allocated};
    ranks_gather_rows(all, each, sizeof *each);
    for (int k = 0; k < all->size; k++) {
        const work* w = &each[k];
        log_begin(r->log, "rank", r->state.step);
        log_number(r->log, "rank", k);
        log_number(r->log, "sampled", (double)w->sampled);
        log_number(r->log, "trained", (double)w->trained);
        log_number(r->log, "measured", (double)w->measured);
        log_number(r->log, "sent", (double)w->sent);
        log_number(r->log, "held", (double)w->held);
        log_end(r->log);
        log_print(r->log,
                  "rank %-6d %lld sequences sampled, %lld trained, %.1f MB sent, %.1f MB held", k,
                  (long long)w->sampled, (long long)w->trained, (double)w->sent / 1e6,
                  (double)w->held / 1e6);
    }
    free(each);
}

void report_page(const run* r) {
    const char* out = r->settings->out;
    if (!r->settings->report || !run_is_first(r) || page_missing()) return;
    log_print(r->log,
              page_make(out)
                  ? "page        %s/report.html"
                  : "page        none: dev/report.py failed on %s; the run itself is complete",
              out);
}

void report_end(const run* r) {
    const char* out = r->settings->out;
    report_meter(r, "sampling", &r->sampling);
    report_meter(r, "updating", &r->updating);
    report_meter(r, "evaluating", &r->evaluating);
    report_ranks(r);
    if (r->best_step >= 0 && *out) {
        char* best = checkpoint_path(out, r->best_step, r->state.warmup_step);
        if (!access(best, F_OK))
            log_print(r->log, "the best evaluation, pass@1 %.3f, is that of %s", r->best, best);
        free(best);
    }
    log_print(r->log, "the run took %.1f s%s%s", log_elapsed(r->log),
              *out ? "; log, samples and checkpoints are in "
                   : "; --out DIR keeps log, samples and checkpoints",
              out);
}
