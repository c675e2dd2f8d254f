// The same sampler as in training, on prompts that training never sees.
#include "evaluate.h"

#include <math.h>  // sqrt
#include <stdlib.h>

#include "tokenizer.h"

static void put_prompt(batch* d, int p, const char* text) {
    d->prompt_length[p] =
        tokenizer_encode(text, d->prompt + (size_t)p * d->max_prompt, d->max_prompt);
}

void evaluate_training_prompts(batch* d, const task* t, uint64_t seed, int step) {
    char text[TASK_TEXT_MAX];
    for (int p = 0; p < d->prompts; p++) {
        task_training_prompt(t, seed, (uint32_t)step, (uint32_t)p, text);
        put_prompt(d, p, text);
    }
}

void evaluate_held_out_prompts(batch* d, const task* t, uint64_t seed, int first) {
    char text[TASK_TEXT_MAX];
    for (int p = 0; p < d->prompts; p++) {
        task_held_out_prompt(t, seed, (uint32_t)(first + p), text);
        put_prompt(d, p, text);
    }
}

static char* text_of(const int* tokens, int n) {
    char* text = xalloc((size_t)n + 1, 1, "text");
    tokenizer_decode(tokens, n, text);
    return text;
}

char* evaluate_prompt_text(const batch* d, int sequence) {
    int p = sequence / d->group;
    return text_of(d->prompt + (size_t)p * d->max_prompt, d->prompt_length[p]);
}

char* evaluate_response_text(const batch* d, int sequence) {
    return text_of(d->token + (size_t)sequence * d->max_new, d->length[sequence]);
}

void evaluate_rewards(batch* d, const task* t) {
    for (int s = 0; s < d->sequences; s++) {
        char *prompt = evaluate_prompt_text(d, s), *response = evaluate_response_text(d, s);
        d->reward[s] = (float)t->verify(t, prompt, response);
        free(prompt);
        free(response);
    }
}

reward_summary evaluate_summary(const batch* d) {
    reward_summary r = {0};
    double n = d->sequences, squares = 0, tokens = 0;
    for (int s = 0; s < d->sequences; s++) {
        const float* entropy = d->entropy + (size_t)s * d->max_new;
        int last = d->token[(size_t)s * d->max_new + d->length[s] - 1];
        r.reward += d->reward[s] / n;
        r.truncated += (last != tokenizer_end()) / n;
        tokens += d->length[s];
        for (int i = 0; i < d->length[s]; i++) r.entropy += entropy[i];
    }
    for (int s = 0; s < d->sequences; s++)
        squares += (d->reward[s] - r.reward) * (d->reward[s] - r.reward);
    for (int p = 0; p < d->prompts; p++) {
        int equal = 1;
        for (int i = 1; i < d->group; i++)
            equal &= d->reward[p * d->group + i] == d->reward[p * d->group];
        r.zero_std_groups += (double)equal / d->prompts;
    }
    r.reward_std = sqrt(squares / n);
    r.response_length = tokens / n;
    r.entropy /= tokens;
    return r;
}

double evaluate_pass_at_k(int n, int right, int k) {
    double none = 1;
    for (int i = n - right + 1; i <= n; i++) none *= i > k ? 1.0 - (double)k / i : 0;
    return 1 - none;
}

static void sample_and_grade(rollout* r, batch* d, const task* t, const sampling* how) {
    rollout_begin(r, d, how);
    while (rollout_step(r)) {
    }
    rollout_end(r);
    evaluate_rewards(d, t);
}

// Sums over the prompts, each with `group` samples.
typedef struct sums {
    double right, passk;
    int64_t tokens;
} sums;

static sums solve(rollout* r, batch* d, const task* t, const evaluate_config* c, int group,
                  sampling how) {
    sums sum = {0};
    int at_once = d->capacity / group;
    d->group = group;
    for (int first = 0; first < c->prompts; first += at_once) {
        d->prompts = c->prompts - first < at_once ? c->prompts - first : at_once;
        evaluate_held_out_prompts(d, t, c->seed, first);
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

evaluation evaluate_run(rollout* r, batch* d, const task* t, const evaluate_config* c) {
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
