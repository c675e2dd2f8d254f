// train_gpt2_rl: reinforcement learning of language models. This file is main and the step, as a
// paper would print it:
//
//   sample      y ~ mu( . | x)           a group of completions for each prompt x; log mu is kept
//   verify      R(x, y)                  what a response is worth, 1 or 0 for a task
//   measure     log pi(y | x)            by the trainer: how far is it from the sampler?
//   anchor      r = pi / anchor          what the ratio is taken against
//   advantages  A = R - mean of R        over the group of the prompt
//   update      sum c(A, r) grad log pi  U mini-batches, E times; the objective gives c
//
// Everything it calls is one file away, in llmc/, in a file named after it. llmc/README.md lists
// them, llmc/run/run.c draws the life of a run, llmc/run/flags.def lists the flags.
//
// The common subset of C11 and C++20: the C compiler builds it (-x c) where there is no nvcc.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/run/answer.h"
#include "llmc/run/evaluate.h"
#include "llmc/run/report.h"
#include "llmc/run/run.h"
#include "llmc/run/warmup.h"

// ---------------------------------------------------------------------------------------------
// The step

// `count` prompts of this step: the source's, or the next ones of the sanity protocol's list; in a
// round of --resample others of these.
static void draw_prompts(run* r, rollout* d, int count, int round) {
    const settings* s = r->settings;
    uint64_t seed = settings_round_seed(s, round);
    d->prompts = count;
    d->group = s->group;
    if (r->sanity.count) {
        rng any = rng_at(seed, STREAM_PROMPT, (uint32_t)r->state.step, 0);
        int64_t next = (int64_t)r->state.step * s->prompts;
        rollout_ask(d, &r->tokenizer, &r->sanity,
                    round ? rng_below(&any, (uint32_t)r->sanity.count) : next);
    } else {
        problem_list_clear(&r->asked);
        source_training(&r->source, seed, r->state.step, count, &r->asked);
        rollout_ask(d, &r->tokenizer, &r->asked, 0);
    }
}

// Completions of d's prompts, by the sampler or by the user's (--sampler-cmd).
static sampler_stats complete(run* r, rollout* d, const sampling* how) {
    external* e = r->external;
    if (e)
        external_begin(e, d, how->seed, how->step);
    else
        sampler_begin(r->sampler, d, how);
    for (int left; (left = e ? external_step(e) : sampler_step(r->sampler)) > 0;)
        report_progress(r, "rollout", 1 - (double)left / d->sequences, &r->sampling);
    return e ? (sampler_stats){.tokens = (int64_t)d->start[d->sequences]} : sampler_end(r->sampler);
}

// A group of completions for each prompt, by the sampler with its own copy of the weights, which
// may be an older one (--lag, --sync-every).
static void sample(run* r, step_report* found) {
    rollout* d = r->data;
    sampling how = settings_sampling(r->settings, STREAM_SAMPLE, (uint32_t)r->state.step);
    const float* weights = stale_take(r->stale, r->trainer->parameters, r->state.step);
    double start = clock_seconds();
    draw_prompts(r, d, r->settings->prompts, 0);
    if (r->external)
        run_sync_external(r, weights);
    else
        sampler_sync(r->sampler, weights);
    found->sampled = complete(r, d, &how);
    stale_push(r->stale, r->trainer->parameters, r->state.step);
    found->sampling_seconds = clock_seconds() - start;
    r->sampling.seconds += found->sampling_seconds;
    r->sampling.tokens += found->sampled.tokens;
    r->sampling.steps++;
}

// --resample: groups of equal rewards teach nothing, so others are drawn in their places.
static void draw_again(run* r, step_report* found) {
    rollout *d = r->data, *again = r->again;
    int* group = (int*)xalloc(d->prompts, sizeof *group, "groups");
    double start = clock_seconds();
    int64_t tokens = found->sampled.tokens;
    for (int round = 1, count; round <= r->settings->resample; round++) {
        if ((count = rollout_equal_groups(d, group)) == 0) break;
        sampling how = settings_sampling(r->settings, STREAM_SAMPLE, (uint32_t)r->state.step);
        how.seed = settings_round_seed(r->settings, round);
        draw_prompts(r, again, count, round);
        sampler_stats more = complete(r, again, &how);
        rollout_judge(again, &r->source);
        rollout_replace(d, again, group);
        sampler_stats_add(&found->sampled, &more);
        found->resampled += count;
    }
    free(group);
    r->sampling.tokens += found->sampled.tokens - tokens;
    r->sampling.seconds += clock_seconds() - start;
    found->sampling_seconds += clock_seconds() - start;
}

static void verify(run* r, step_report* found) {
    rollout_judge(r->data, &r->source);
    if (run_is_first(r)) found->first_reward = rollout_summarize(r->data).reward;
    if (r->again) draw_again(r, found);
    if (run_is_first(r)) found->reward = rollout_summarize(r->data);
    found->sent = ranks_sent(r->ranks);
    report_rollout(r, found);
}

// The metrics of sequences first .. first + count - 1. Only the log reads them, so only the rank
// that writes it computes them.
static mismatch compare(run* r, int first, int count) {
    const rollout* d = r->data;
    mismatch m = {0};
    if (!run_is_first(r)) return m;
    m = mismatch_measure(d->log_pi, d->log_mu, d->entropy, d->start + first, count,
                         r->objective.delta);
    r->ranks->measured += (int64_t)(d->start[first + count] - d->start[first]);
    return m;
}

// The trainer's log pi of what was sampled, before any update: its difference from log mu is due to
// numerics only. With an older sampler it is due to numerics and drift, so the log has nulls.
static void measure(run* r, step_report* found) {
    rollout* d = r->data;
    trainer_logprobs(r->trainer, r->trainer->weights, d, 0, d->sequences,
                     settings_inverse_temperature(r->settings), d->log_pi);
    found->numerics = compare(r, 0, d->sequences);
    report_numerics(r, stale_is_older(r->stale, r->state.step) ? NULL : &found->numerics);
}

// What ratios are taken against: mu as the sampler recorded it, or pi as the trainer measured it,
// and then the weights that make up for the mismatch of the two; and what the KL term refers to,
// the model before RL.
static void anchor(run* r) {
    rollout* d = r->data;
    int recompute = settings_recomputes_anchor(r->settings);
    size_t tokens = d->start[d->sequences];
    memcpy(d->anchor, recompute ? d->log_pi : d->log_mu, tokens * sizeof(float));
    if (d->candidates)
        memcpy(d->candidate_anchor, recompute ? d->candidate_pi : d->candidate_mu,
               tokens * (size_t)d->candidates * sizeof(float));
    if (r->settings->correct) {
        correction_report c = correction_weights(&r->correction, d->log_pi, d->log_mu, d->start,
                                                 d->sequences, d->correction);
        report_correction(r, &c);
    }
    if (r->reference)
        trainer_logprobs(r->trainer, r->reference, d, 0, d->sequences,
                         settings_inverse_temperature(r->settings), d->log_ref);
}

// Rewards, compared within each group. The KL estimator k1 and --overlong-buffer are penalties on
// what is compared; the reward stays the verifier's.
static void advantages(run* r) {
    rollout* d = r->data;
    float* penalised = d->advantage;
    for (int i = 0; i < d->sequences; i++) {
        size_t at = d->start[i];
        double penalty = r->reference ? objective_kl_reward(&r->objective, d->log_mu + at,
                                                            d->log_ref + at, rollout_length(d, i))
                                      : 0;
        penalty +=
            objective_overlong(rollout_length(d, i), d->max_new, r->settings->overlong_buffer);
        penalised[i] = d->reward[i] + (float)penalty;
    }
    objective_advantages((advantage_kind)r->settings->advantage, r->settings->advantage_eps,
                         penalised, d->start, d->prompts, d->group, d->advantage);
    rollout_leave_out(d);
    report_samples(r);
}

// One optimizer step on mini-batch i % U.
static void update_once(run* r, int i, double lr, step_report* found) {
    const settings* s = r->settings;
    rollout* d = r->data;
    int size = d->sequences / s->updates, first = i % s->updates * size;
    double start = clock_seconds();
    trainer_update_result u =
        trainer_update(r->trainer, d, first, size, &r->objective, (aggregate_kind)s->aggregate,
                       settings_inverse_temperature(s), lr);
    mismatch m = compare(r, first, size);
    double seconds = clock_seconds() - start;
    found->tokens += u.tokens;
    found->update_seconds += seconds;
    if (!u.skipped) {
        found->updates++;
        found->grad_norms += u.grad_norm;
    }
    r->updating.seconds += seconds;
    r->updating.tokens += u.tokens;
    report_update(r, i, lr, &u, &m, seconds, ranks_sent(r->ranks));
}

// With --shuffle each epoch deals the groups to mini-batches anew.
static void deal(run* r, int epoch) {
    const settings* s = r->settings;
    rng draw = rng_at(s->seed, STREAM_DEAL, (uint32_t)r->state.step, (uint32_t)epoch);
    if (!s->shuffle) return;
    rng_permutation(&draw, (size_t)s->prompts, r->order);
    rollout_deal(r->data, r->order);
}

static void update(run* r, step_report* found) {
    const settings* s = r->settings;
    int count = s->updates * s->epochs;
    double lr =
        schedule_lr((schedule_kind)s->schedule, s->lr, s->lr_final, r->state.step,
                    settings_lr_warmup(s), s->lr_decay_steps ? s->lr_decay_steps : s->steps);
    for (int i = 0; i < count; i++) {
        if (i % s->updates == 0) deal(r, i / s->updates);
        update_once(r, i, lr, found);
        report_progress(r, "update", (double)(i + 1) / count, &r->updating);
    }
    r->updating.steps++;
}

static void step(run* r) {
    step_report found = {0};
    ranks_sent(r->ranks);  // what is sent between the steps is not a step's
    sample(r, &found);
    verify(r, &found);
    measure(r, &found);
    anchor(r);
    advantages(r);
    update(r, &found);
    report_step(r, &found);
    r->state.step++;
}

// ---------------------------------------------------------------------------------------------
// Between the steps

static void evaluate(run* r) {
    evaluation e = evaluate_policy(r);
    if (e.stopped) return;
    report_evaluation(r, &e);
    if (r->state.step > 0) return;
    evaluate_examples(r);
    report_examples(r, "before RL");
}

static void finish(run* r) {
    evaluate_examples(r);
    report_examples(r, "after RL");
    report_page(r);
    report_end(r);
    run_close(r);
}

int main(int argc, char** argv) {
    run* r = run_open(argc, argv);
    if (*r->settings->prompt) {
        answer_prompt(r);
        return 0;
    }
    report_plan(r);
    run_create(r);
    report_memory(r);
    while (r->state.phase == PHASE_WARMUP && r->state.warmup_step < r->settings->warmup_steps) {
        warmup_result w = warmup_step(r);
        report_warmup(r, &w);
        run_pause(r);
    }
    if (r->state.phase == PHASE_FRESH || r->state.phase == PHASE_WARMUP) run_start_rl(r);
    while (r->state.phase == PHASE_RL) {
        if (run_evaluation_due(r)) evaluate(r);
        run_pause(r);
        if (r->state.phase == PHASE_RL) step(r);
    }
    finish(r);
    return 0;
}
