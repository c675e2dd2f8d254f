// The same sampler as in training, on prompts that training never sees.
#include "evaluate.h"

double evaluate_pass_at_k(int n, int right, int k) {
    double none = 1;
    for (int i = n - right + 1; i <= n; i++) none *= i > k ? 1.0 - (double)k / i : 0;
    return 1 - none;
}

static void sample_and_grade(sampler* r, rollout* d, const task* t, const sampling* how) {
    sampler_run(r, d, how);
    rollout_verify(d, t);
}

// Sums over the prompts, each with `group` samples.
typedef struct sums {
    double right, passk;
    int64_t tokens;
} sums;

static sums solve(sampler* r, rollout* d, const task* t, const evaluate_config* c, int group,
                  sampling how) {
    sums sum = {0};
    int at_once = d->capacity / group;
    d->group = group;
    for (int first = 0; first < c->prompts; first += at_once) {
        d->prompts = c->prompts - first < at_once ? c->prompts - first : at_once;
        if (c->list)
            rollout_listed_prompts(d, c->list, first);
        else
            rollout_held_out_prompts(d, t, c->seed, first);
        how.step = c->step * (uint32_t)c->prompts + (uint32_t)first;  // other draws each time
        sample_and_grade(r, d, t, &how);
        for (int p = 0; p < d->prompts; p++) {
            int right = 0;
            for (int i = 0; i < group; i++) right += d->reward[p * group + i] > 0;
            sum.right += right;
            sum.passk += evaluate_pass_at_k(group, right, c->k);
        }
        for (int s = 0; s < d->sequences; s++) sum.tokens += d->length[s];
    }
    return sum;
}

evaluation evaluate_run(sampler* r, rollout* d, const task* t, const evaluate_config* c) {
    sampling greedy = {.inverse_temperature = 1, .greedy = 1, .top_p = 1};
    sampling how = {.inverse_temperature = c->inverse_temperature,
                    .top_k = c->top_k,
                    .top_p = c->top_p,
                    .seed = c->seed,
                    .stream = STREAM_EVALUATE};
    sums best = solve(r, d, t, c, 1, greedy), drawn = solve(r, d, t, c, c->samples, how);
    double samples = (double)c->prompts * c->samples;
    return (evaluation){.greedy = best.right / c->prompts,
                        .pass1 = drawn.right / samples,
                        .passk = drawn.passk / c->prompts,
                        .response_length = (double)drawn.tokens / samples,
                        .k = c->k,
                        .prompts = c->prompts,
                        .tokens = best.tokens + drawn.tokens};
}
