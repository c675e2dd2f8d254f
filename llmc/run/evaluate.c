// The same sampler as in training, or with --eval-dtype one of its own, on prompts that training
// never sees, and with a temperature and a top-p of its own.
#include "evaluate.h"

#include <math.h>

double evaluate_pass_at_k(int n, int right, int k) {
    double none = 1;
    for (int i = n - right + 1; i <= n; i++) none *= i > k ? 1.0 - (double)k / i : 0;
    return 1 - none;
}

// 0: it was stopped, and nothing is graded. Ranks stop together, at the end of a batch.
static int sample_and_judge(sampler* r, rollout* d, const source* from, const sampling* how,
                            int (*stop)(void)) {
    sampler_begin(r, d, how);
    while (sampler_step(r) > 0)
        if (!d->own && stop && stop()) return 0;
    sampler_end(r);
    if (d->own && stop && ranks_most(d->ranks, stop())) return 0;
    rollout_judge(d, from);
    return 1;
}

// The k of pass@k, (EVAL_KS); returns how many.
static int list_ks(const evaluate_config* c, int* k) {
    int n = 0;
    *k = c->k ? c->k : 1;
    for (int power = 2; !c->k && power <= c->samples; power *= 2) k[n++] = power;
    return n ? n : 1;
}

// Sums over the prompts, each with `group` samples.
typedef struct sums {
    double right, right_squared, passk[EVAL_KS];
    int64_t tokens;
    reward_counts lost;
    int stopped;
} sums;

static sums solve(sampler* r, rollout* d, const source* from, const evaluate_config* c, int group,
                  sampling how) {
    sums sum = {0};
    int k[EVAL_KS], ks = list_ks(c, k);
    int at_once = d->capacity / group;
    d->group = group;
    for (int first = 0; first < c->prompts; first += at_once) {
        d->prompts = c->prompts - first < at_once ? c->prompts - first : at_once;
        rollout_ask(d, c->tokenizer, c->list, first);
        d->first = (uint32_t)first * (uint32_t)group;
        if (!sample_and_judge(r, d, from, &how, c->stop)) return (sums){.stopped = 1};
        for (int p = 0; p < d->prompts; p++) {
            int right = 0;
            for (int i = 0; i < group; i++) right += d->right[p * group + i] > 0;
            sum.right += right;
            sum.right_squared += (double)right * right;
            for (int i = 0; i < ks; i++) sum.passk[i] += evaluate_pass_at_k(group, right, k[i]);
        }
        sum.tokens += (int64_t)d->start[d->sequences];
        reward_counts_add(&sum.lost, &d->judged.lost);
    }
    return sum;
}

// Of the mean of n counts. The samples of a prompt are alike: they count as one observation.
static double standard_error(double sum, double squared, int n) {
    double spread = n * squared - sum * sum;  // n (n - 1) times the variance
    return sqrt((spread > 0 ? spread : 0) / (n - 1)) / n;
}

evaluation evaluate_run(sampler* r, rollout* d, const source* from, const evaluate_config* c) {
    sampling greedy = {.inverse_temperature = 1, .greedy = 1, .top_p = 1};
    sums best = solve(r, d, from, c, 1, greedy);
    sums drawn = best.stopped ? best : solve(r, d, from, c, c->samples, c->how);
    if (drawn.stopped) return (evaluation){.stopped = 1};
    double samples = (double)c->prompts * c->samples;
    reward_counts_add(&drawn.lost, &best.lost);
    evaluation e = {
        .greedy = best.right / c->prompts,
        .pass1 = drawn.right / samples,
        .pass1_error = standard_error(drawn.right, drawn.right_squared, c->prompts) / c->samples,
        .response_length = (double)drawn.tokens / samples,
        .prompts = c->prompts,
        .tokens = best.tokens + drawn.tokens,
        .lost = drawn.lost};
    e.ks = list_ks(c, e.k);
    for (int i = 0; i < e.ks; i++) e.passk[i] = drawn.passk[i] / c->prompts;
    return e;
}

evaluation evaluate_policy(run* r) {
    const settings* s = r->settings;
    const problem_list* list = r->sanity.count ? &r->sanity : &r->held_out;
    int prompts = list->count < s->eval_prompts ? list->count : s->eval_prompts;
    sampling how = settings_eval_sampling(s, (uint32_t)r->state.step);
    evaluate_config c = {prompts, s->eval_samples, s->eval_k,      how,
                         list,    &r->tokenizer,   run_interrupted};
    double start = clock_seconds();
    sampler_sync(r->evaluator, r->trainer->parameters);
    evaluation e = evaluate_run(r->evaluator, r->eval_data, &r->source, &c);
    if (e.stopped) return e;
    r->state.evaluated = r->state.step;
    if (s->checkpoint_best && e.pass1 > r->best) {
        r->best = e.pass1;
        r->best_step = r->state.step;
    }
    r->evaluating.seconds += clock_seconds() - start;
    r->evaluating.tokens += e.tokens;
    r->evaluating.steps++;
    return e;
}

void evaluate_examples(run* r) {
    const settings* s = r->settings;
    rollout* d = r->eval_data;
    sampling how = settings_eval_sampling(s, UINT32_MAX);
    sampler_sync(r->evaluator, r->trainer->parameters);
    d->prompts = 3;
    d->group = 1;
    d->first = 0;
    rollout_ask(d, &r->tokenizer, &r->held_out, 0);
    sampler_run(r->evaluator, d, &how);
    rollout_judge(d, &r->source);
}
