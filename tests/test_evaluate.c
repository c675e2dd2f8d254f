// Evaluation: pass@k against counting all subsets, the summary of a rollout against hand-computed
// values, and whole evaluations with verifiers whose verdict is known.
#include "run/evaluate.h"
#include "small_model.h"
#include "text/alphabet.h"

// ---------------------------------------------------------------------------------------------
// pass@k

// The share of the subsets of k of n samples that hold one of the `right` first ones.
static double count_subsets(int n, int right, int k) {
    int subsets = 0, solved = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        if (__builtin_popcount(set) != k) continue;
        subsets++;
        solved += (set & ((1u << right) - 1)) != 0;
    }
    return (double)solved / subsets;
}

static void test_pass_at_k(void) {
    for (int n = 1; n <= 9; n++)
        for (int right = 0; right <= n; right++)
            for (int k = 1; k <= n; k++) {
                char what[64];
                snprintf(what, sizeof what, "pass@%d, %d of %d right", k, right, n);
                CHECK_NEAR(evaluate_pass_at_k(n, right, k), count_subsets(n, right, k), 1e-14,
                           what);
            }
    CHECK(evaluate_pass_at_k(8, 0, 8) == 0 && evaluate_pass_at_k(8, 1, 8) == 1, "the ends");
    CHECK_NEAR(evaluate_pass_at_k(1000, 1, 10), 0.01, 1e-14, "one in a thousand");
    CHECK_NEAR(evaluate_pass_at_k(1000, 500, 1), 0.5, 1e-14, "a half");
}

// ---------------------------------------------------------------------------------------------
// Texts and summaries

static void put_response(rollout* d, int s, const char* text, float value) {
    d->start[s + 1] = d->start[s] + alphabet_encode(text, d->token + d->start[s], d->max_new);
    d->reward[s] = value;
}

static void test_summary(void) {
    rollout* d = rollout_create(8, 12, 10, 0);
    tokenizer characters = tokenizer_characters();
    d->tokenizer = &characters;
    d->prompts = 3;
    d->group = 2;
    d->sequences = 6;
    put_response(d, 0, "12\n", 1);        // a mixed group
    put_response(d, 1, "1234567890", 0);  // cut off
    put_response(d, 2, "\n", 0);          // an equal one
    put_response(d, 3, "3\n", 0);
    put_response(d, 4, "4\n", 1);  // another
    put_response(d, 5, "5", 1);
    for (int i = 0; i < 80; i++) d->entropy[i] = 100;  // of places that are not used
    for (int s = 0; s < 6; s++)
        for (size_t i = d->start[s]; i < d->start[s + 1]; i++) d->entropy[i] = (float)(s + 1);
    rollout_summary r = rollout_summarize(d);
    CHECK_NEAR(r.reward, 0.5, 1e-15, "reward");
    CHECK_NEAR(r.reward_std, 0.5, 1e-15, "its deviation");
    CHECK_NEAR(r.response_length, (3 + 10 + 1 + 2 + 2 + 1) / 6.0, 1e-14, "length");
    CHECK_NEAR(r.truncated, 2 / 6.0, 1e-15, "truncated");
    CHECK_NEAR(r.zero_std_groups, 2 / 3.0, 1e-15, "groups without deviation");
    CHECK_NEAR(r.entropy, (3 * 1 + 10 * 2 + 1 * 3 + 2 * 4 + 2 * 5 + 1 * 6) / 19.0, 1e-14,
               "entropy");
    d->reward[5] = 0;
    r = rollout_summarize(d);
    CHECK_NEAR(r.reward_std, sqrt(2 / 9.0), 1e-15, "deviation of two in six");
    CHECK_NEAR(r.zero_std_groups, 1 / 3.0, 1e-15, "one group without deviation");
    rollout_free(d);
}

// The text of a sequence's prompt tokens.
static char* asked_text(const rollout* d, int s) {
    int p = s / d->group;
    return tokenizer_text(d->tokenizer, d->prompt + p * d->max_prompt, (size_t)d->prompt_length[p],
                          1);
}

static void test_texts(void) {
    rollout* d = rollout_create(8, 12, 10, 0);
    source from = source_of_task("chain");
    tokenizer characters = tokenizer_characters();
    problem_list list = {0};
    char text[TASK_TEXT_MAX];
    d->prompts = 4;
    d->group = 2;
    d->sequences = 8;
    source_training(&from, 7, 3, 4, &list);
    rollout_ask(d, &characters, &list, 0);
    for (int s = 0; s < 8; s++) {
        char* prompt = asked_text(d, s);
        task_training_prompt(&from.task, 7, 3, (uint32_t)(s / 2), text);
        CHECK(!strcmp(prompt, text), "sequence %d has the prompt %s, not %s", s, prompt, text);
        free(prompt);
    }
    problem_list_free(&list);
    list = source_held_out(&from, 7, 3);
    rollout_ask(d, &characters, &list, 1);
    for (int s = 0; s < 8; s++) {
        char* prompt = asked_text(d, s);
        strcpy(text, list.item[(1 + s / 2) % 3].prompt);
        CHECK(!strcmp(prompt, text), "sequence %d has the prompt %s, not %s", s, prompt, text);
        CHECK(!strcmp(rollout_problem(d, s)->prompt, text), "sequence %d is asked something else",
              s);
        CHECK(task_is_held_out(prompt), "%s is a training prompt", prompt);
        from.task.solution(&from.task, prompt, text);
        put_response(d, s, strchr(text, '\n') - 2, 0);  // the value alone
        if (s == 5) d->start[s + 1]--;                  // without its end
        char* response = rollout_response_text(d, s);
        CHECK((int)strlen(response) == (s == 5 ? 2 : 3), "the response is \"%s\"", response);
        CHECK(rollout_ended(d, s) == (s != 5), "sequence %d and its end", s);
        free(response);
        free(prompt);
    }
    problem_list_free(&list);
    rollout_judge(d, &from);
    for (int s = 0; s < 8; s++) CHECK(d->reward[s] == (s != 5), "reward %d: %g", s, d->reward[s]);
    rollout_free(d);
}

// ---------------------------------------------------------------------------------------------
// Whole evaluations. The verifiers below judge prompts by a rule that no model is needed for, and
// note what they were shown.

static struct { int64_t asked, held_out, characters; } seen;

static void look(const char* prompt, const char* response) {
    seen.asked++;
    seen.held_out += task_is_held_out(prompt);
    seen.characters += (int64_t)strlen(response);
}

static int always(const task* t, const char* prompt, const char* response) {
    (void)t;
    look(prompt, response);
    return 1;
}

static int never(const task* t, const char* prompt, const char* response) {
    (void)t;
    look(prompt, response);
    return 0;
}

static int odd_prompts(const task* t, const char* prompt, const char* response) {
    (void)t;
    look(prompt, response);
    return (prompt[0] - '0') % 2;
}

static int odd_responses(const task* t, const char* prompt, const char* response) {
    (void)t;
    look(prompt, response);
    return strlen(response) % 2;
}

typedef struct bench {
    backend* b;
    sampler* sampler;
    rollout* d;
    source from;
    tokenizer tokenizer;
    problem_list list;
} bench;

enum { MAX_NEW = 12, CAPACITY = 64 };

static bench open_bench(int slots, int capacity) {
    const model c = model_gpt2(32, alphabet_size(), 1, 2, 16);
    bench e = {.b = cpu_open(1, "auto"),
               .from = source_of_task("chain"),
               .tokenizer = tokenizer_characters()};
    float* parameters = random_parameters(&c, 3, 0.3);
    size_t bytes = c.parameters * sizeof(float);
    float* weights = to_device(e.b, parameters, bytes);
    e.sampler = sampler_create(e.b, &c, precision_of(&FORMAT_FP32, &FORMAT_FP32), &FORMAT_FP32,
                               slots, e.from.max_prompt, MAX_NEW, capacity, 0, e.tokenizer.ends, 0);
    e.d = rollout_create(capacity, e.from.max_prompt, MAX_NEW, 0);
    e.list = source_held_out(&e.from, 7, 100);
    sampler_sync(e.sampler, weights);
    e.b->release(e.b, weights, bytes);
    free(parameters);
    return e;
}

static void close_bench(bench* e) {
    problem_list_free(&e->list);
    rollout_free(e->d);
    sampler_free(e->sampler);
    cpu_close(e->b);
}

static evaluate_config usual_config(void) {
    return (evaluate_config){
        .prompts = 100,
        .samples = 6,
        .k = 4,
        .how = {
            .inverse_temperature = 1, .top_p = 1, .seed = 7, .stream = STREAM_EVALUATE, .step = 2}};
}

static evaluation evaluated(int slots, int capacity, const evaluate_config* c,
                            int (*verify)(const task*, const char*, const char*)) {
    bench e = open_bench(slots, capacity);
    evaluate_config with = *c;
    with.list = &e.list;
    with.tokenizer = &e.tokenizer;
    e.from.task.verify = verify;
    memset(&seen, 0, sizeof seen);
    evaluation found = evaluate_run(e.sampler, e.d, &e.from, &with);
    close_bench(&e);
    return found;
}

static void test_known_verdicts(void) {
    evaluate_config c = usual_config();
    source chain = source_of_task("chain");
    problem_list list = source_held_out(&chain, c.how.seed, c.prompts);
    double odd = 0;
    for (int i = 0; i < c.prompts; i++)
        odd += (list.item[i].prompt[0] - '0') % 2 / (double)c.prompts;
    problem_list_free(&list);
    evaluation e = evaluated(16, CAPACITY, &c, always);
    CHECK(e.greedy == 1 && e.pass1 == 1 && e.passk[0] == 1, "all are right");
    CHECK(e.pass1_error == 0, "%g is the error of equal prompts", e.pass1_error);
    // Each prompt greedily, and each sample; 100 prompts do not divide by what fits at once.
    CHECK(seen.asked == 100 + 600 && seen.held_out == seen.asked, "%lld asked, %lld held out",
          (long long)seen.asked, (long long)seen.held_out);
    CHECK(e.ks == 1 && e.k[0] == 4 && e.prompts == 100, "k and prompts");
    CHECK(e.tokens == seen.characters, "%lld tokens, %lld seen", (long long)e.tokens,
          (long long)seen.characters);
    CHECK(e.response_length > 1 && e.response_length < MAX_NEW, "length %g", e.response_length);
    e = evaluated(16, CAPACITY, &c, never);
    CHECK(e.greedy == 0 && e.pass1 == 0 && e.passk[0] == 0, "none is right");
    e = evaluated(16, CAPACITY, &c, odd_prompts);
    CHECK(odd > 0.2 && odd < 0.8, "%g of the prompts are odd", odd);
    CHECK_NEAR(e.greedy, odd, 1e-12, "greedy, by prompt");
    CHECK_NEAR(e.pass1, odd, 1e-12, "pass@1, by prompt");
    CHECK_NEAR(e.pass1_error, sqrt(odd * (1 - odd) / 99), 1e-12, "its error, by prompt");
    CHECK_NEAR(e.passk[0], odd, 1e-12, "pass@k, by prompt");
}

// Where the verdict hangs on the sample: pass@1 and pass@k from the samples of the same keys.
static void test_samples(void) {
    evaluate_config c = usual_config();
    c.prompts = 10;  // 60 samples, that fit at once
    evaluation e = evaluated(16, CAPACITY, &c, odd_responses);
    bench again = open_bench(16, CAPACITY);
    sampling how = c.how;
    again.d->prompts = c.prompts;
    again.d->group = c.samples;
    rollout_ask(again.d, &again.tokenizer, &again.list, 0);
    sampler_begin(again.sampler, again.d, &how);
    while (sampler_step(again.sampler)) {
    }
    sampler_end(again.sampler);
    double pass1 = 0, passk = 0, powers[2] = {0}, length = 0, share[10], variance = 0;
    for (int p = 0; p < c.prompts; p++) {
        int right = 0;
        for (int i = 0; i < c.samples; i++) {
            right += rollout_length(again.d, p * c.samples + i) % 2;
            length += rollout_length(again.d, p * c.samples + i) / 60.0;
        }
        share[p] = right / 6.0;
        pass1 += share[p] / 10;
        passk += count_subsets(c.samples, right, c.k) / c.prompts;
        for (int i = 0; i < 2; i++)
            powers[i] += count_subsets(c.samples, right, 2 << i) / c.prompts;
    }
    for (int p = 0; p < 10; p++) variance += (share[p] - pass1) * (share[p] - pass1) / 9;
    CHECK_NEAR(e.pass1, pass1, 1e-12, "pass@1");
    CHECK_NEAR(e.pass1_error, sqrt(variance / 10), 1e-12, "its standard error over prompts");
    CHECK(variance > 0.001, "%g: the prompts differ", variance);
    CHECK_NEAR(e.passk[0], passk, 1e-12, "pass@k");
    CHECK_NEAR(e.response_length, length, 1e-12, "length of the samples, not of the greedy ones");
    CHECK(pass1 > 0.1 && pass1 < 0.9 && passk > pass1 && passk < 1, "%g, %g", pass1, passk);
    c.k = 0;  // 2 and 4 of six samples
    e = evaluated(16, CAPACITY, &c, odd_responses);
    CHECK(e.ks == 2 && e.k[0] == 2 && e.k[1] == 4, "%d powers of two", e.ks);
    for (int i = 0; i < 2; i++) CHECK_NEAR(e.passk[i], powers[i], 1e-12, "pass@2, pass@4");
    c.prompts = 1;
    e = evaluated(16, CAPACITY, &c, odd_responses);
    CHECK(isnan(e.pass1_error), "%g is the error of a single prompt", e.pass1_error);
    close_bench(&again);
}

static int same_evaluation(const evaluation* a, const evaluation* b) {
    return a->greedy == b->greedy && a->pass1 == b->pass1 && a->passk[0] == b->passk[0] &&
           a->pass1_error == b->pass1_error && a->tokens == b->tokens;
}

// Seed and step draw other samples; slots, and how many prompts are asked at once, do not.
static void test_keys(void) {
    evaluate_config c = usual_config(), other = c;
    evaluation e = evaluated(16, CAPACITY, &c, odd_responses);
    evaluation few = evaluated(3, CAPACITY, &c, odd_responses);
    CHECK(same_evaluation(&e, &few), "three slots: %g, not %g", few.pass1, e.pass1);
    evaluation at_once = evaluated(16, 600, &c, odd_responses);
    CHECK(same_evaluation(&e, &at_once), "all at once: %g, not %g", at_once.pass1, e.pass1);
    other.how.step++;
    evaluation step = evaluated(16, CAPACITY, &other, odd_responses);
    CHECK(step.greedy == e.greedy && step.tokens != e.tokens, "another step, other samples");
    other = c;
    other.how.seed++;
    evaluation seed = evaluated(16, CAPACITY, &other, odd_responses);
    CHECK(seed.greedy == e.greedy && seed.tokens != e.tokens, "another seed, other samples");
}

// One prompt again and again, few at a time: no batch may get the draws of another.
static int lengths[1000];

static int note_length(const task* t, const char* prompt, const char* response) {
    (void)t, (void)prompt;
    lengths[seen.asked++] = (int)strlen(response);
    return 0;
}

static void test_batches_differ(void) {
    enum { SAMPLES = 6, PROMPTS = 40 };
    bench e = open_bench(SAMPLES, SAMPLES);
    while (e.list.count > 1) free((void*)e.list.item[--e.list.count].prompt);
    e.from.task.verify = note_length;
    evaluate_config c = usual_config();
    c.prompts = PROMPTS;
    c.list = &e.list;
    c.tokenizer = &e.tokenizer;
    memset(&seen, 0, sizeof seen);
    evaluate_run(e.sampler, e.d, &e.from, &c);
    const int* samples = lengths + PROMPTS;  // the greedy answers come first
    int greedy = 0, repeated = 0;
    for (int p = 1; p < PROMPTS; p++) {
        greedy += lengths[p] == lengths[0];
        repeated += !memcmp(samples + p * SAMPLES, samples, SAMPLES * sizeof(int));
    }
    CHECK(greedy == PROMPTS - 1, "a prompt has one greedy answer");
    CHECK(repeated <= 1, "%d of %d batches repeat the first", repeated, PROMPTS - 1);
    close_bench(&e);
}

int main(void) {
    test_pass_at_k();
    test_summary();
    test_texts();
    test_known_verdicts();
    test_samples();
    test_keys();
    test_batches_differ();
    return test_report();
}
