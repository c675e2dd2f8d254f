// The sanity protocol: which prompts are kept, with verifiers whose verdict is known; that the
// choice depends on neither the slots nor what else fits; its file.
#include "refusal.h"
#include "run/sanity.h"
#include "small_model.h"
#include "text/alphabet.h"

enum { MAX_NEW = 8, TRIED = 60 };

static struct { int asked, held_out; } seen;

// By the prompt: 7 samples of 8 are right if its first digit is odd, 2 of 8 if not.
static int by_prompt(const task* t, const char* prompt, const char* response) {
    (void)t, (void)response;
    int sample = seen.asked++ % 8;
    seen.held_out += task_is_held_out(prompt);
    return (prompt[0] - '0') % 2 ? sample != 3 : sample < 2;
}

static int by_response(const task* t, const char* prompt, const char* response) {
    (void)t, (void)prompt;
    seen.asked++;
    return strlen(response) % 2;
}

static int never(const task* t, const char* prompt, const char* response) {
    (void)t, (void)prompt, (void)response;
    return 0;
}

// Every second response is right; what was drawn is recorded.
enum { DRAWN_MAX = 4 * SANITY_SAMPLES_MAX };
static struct {
    char first[DRAWN_MAX];  // characters of the responses
    char prompt[DRAWN_MAX][TASK_TEXT_MAX];
} drawn;

static int recorded(const task* t, const char* prompt, const char* response) {
    (void)t;
    drawn.first[seen.asked] = response[0];
    snprintf(drawn.prompt[seen.asked], TASK_TEXT_MAX, "%s", prompt);
    return seen.asked++ % 2;
}

// A task of ten prompts, some of them held out.
static void one_of_ten(const task* t, rng* r, char prompt[TASK_TEXT_MAX]) {
    (void)t;
    snprintf(prompt, TASK_TEXT_MAX, "%u+1+1+1+1:", (unsigned)rng_below(r, 10));
}

static void (*drawn_problem)(const task*, rng*, char[TASK_TEXT_MAX]);  // NULL: the task's own

typedef int (*verifier)(const task*, const char*, const char*);

static sanity_config usual_config(void) {
    return (sanity_config){TRIED, 8, 0.2, 0.8, {1, 0, 0, 1, 7, STREAM_SANITY, 0, 0}};
}

static sanity_result selected(verifier verify, const sanity_config* c, int slots, int capacity) {
    const model small = model_gpt2(32, alphabet_size(), 1, 2, 16);
    backend* b = cpu_open(1, "auto");
    source from = source_of_task("chain");
    tokenizer characters = tokenizer_characters();
    from.task.verify = verify;
    if (drawn_problem) from.task.problem = drawn_problem;
    float* parameters = random_parameters(&small, 3, 0.3);
    size_t bytes = small.parameters * sizeof(float);
    float* weights = to_device(b, parameters, bytes);
    sampler* s = sampler_create(b, &small, precision_of(&FORMAT_FP32, &FORMAT_FP32), &FORMAT_FP32,
                                slots, from.max_prompt, MAX_NEW, capacity, 0, characters.ends, 0);
    rollout* d = rollout_create(capacity, from.max_prompt, MAX_NEW, 0);
    sampler_sync(s, weights);
    memset(&seen, 0, sizeof seen);
    sanity_result result = sanity_select(s, d, &from, &characters, c);
    b->release(b, weights, bytes);
    free(parameters);
    rollout_free(d);
    sampler_free(s);
    cpu_close(b);
    return result;
}

static int same_list(const problem_list* a, const problem_list* b) {
    int same = a->count == b->count;
    for (int i = 0; same && i < a->count; i++) same = !strcmp(a->item[i].prompt, b->item[i].prompt);
    return same;
}

static void test_shares(void) {
    sanity_config c = usual_config();
    sanity_result even = selected(by_prompt, &c, 64, SANITY_SAMPLES_MAX);
    CHECK(seen.asked == TRIED * 8 && seen.held_out == 0, "%d asked, %d of them held out",
          seen.asked, seen.held_out);
    CHECK(even.tried == TRIED && even.kept.count > 10 && even.kept.count < 50, "%d of %d kept",
          even.kept.count, even.tried);
    for (int i = 0; i < even.kept.count; i++)
        CHECK((even.kept.item[i].prompt[0] - '0') % 2 == 0, "%s was solved 7 of 8 times",
              even.kept.item[i].prompt);
    CHECK_NEAR(even.solved, (even.kept.count * 2 + (TRIED - even.kept.count) * 7) / 8.0 / TRIED,
               1e-15, "mean share");
    c.low = 0.25, c.high = 0.875;  // both ends are in
    sanity_result all = selected(by_prompt, &c, 64, SANITY_SAMPLES_MAX);
    CHECK(all.kept.count == TRIED, "%d kept", all.kept.count);
    for (int i = 0; i < TRIED; i++)
        for (int j = 0; j < i; j++)
            CHECK(strcmp(all.kept.item[i].prompt, all.kept.item[j].prompt), "%s twice",
                  all.kept.item[i].prompt);
    c.low = 0.26;
    sanity_result odd = selected(by_prompt, &c, 64, SANITY_SAMPLES_MAX);
    CHECK(odd.kept.count + even.kept.count == TRIED, "every prompt is on one side");
    problem_list_free(&even.kept);
    problem_list_free(&all.kept);
    problem_list_free(&odd.kept);
}

static void test_independence(void) {
    sanity_config c = usual_config(), other = c;
    sanity_result a = selected(by_response, &c, 64, SANITY_SAMPLES_MAX);
    sanity_result b = selected(by_response, &c, 5, SANITY_SAMPLES_MAX + 100);
    CHECK(a.kept.count > 0 && a.kept.count < TRIED, "%d kept", a.kept.count);
    CHECK(same_list(&a.kept, &b.kept) && a.solved == b.solved, "slots and capacity");
    other.how.seed = 8;
    sanity_result d = selected(by_response, &other, 64, SANITY_SAMPLES_MAX);
    CHECK(!same_list(&a.kept, &d.kept), "another seed, other prompts");
    problem_list_free(&a.kept);
    problem_list_free(&b.kept);
    problem_list_free(&d.kept);
}

// Of a small task every training prompt is tried, once, even where as many draws do not find all.
static void test_small_task(void) {
    sanity_config c = usual_config();
    char prompt[TASK_TEXT_MAX];
    int training = 0;
    for (int i = 0; i < 10; i++) {
        snprintf(prompt, sizeof prompt, "%d+1+1+1+1:", i);
        training += !task_is_held_out(prompt);
    }
    drawn_problem = one_of_ten;
    sanity_result all = selected(recorded, &c, 64, SANITY_SAMPLES_MAX);
    drawn_problem = NULL;
    CHECK(all.tried == training && all.kept.count == training, "%d tried, %d kept, of %d",
          all.tried, all.kept.count, training);
    for (int i = 0; i < all.kept.count; i++)
        for (int j = 0; j < i; j++)
            CHECK(strcmp(all.kept.item[i].prompt, all.kept.item[j].prompt), "%s twice",
                  all.kept.item[i].prompt);
    c.prompts = training;
    drawn_problem = one_of_ten;
    sanity_result few = selected(recorded, &c, 64, SANITY_SAMPLES_MAX);
    drawn_problem = NULL;
    CHECK(few.tried == training, "%d of %d prompts were found", few.tried, training);
    problem_list_free(&few.kept);
    problem_list_free(&all.kept);
}

// The prompts are those of a step that no run reaches. The draws have a stream of their own, and
// each sample has a number of its own: at an infinite temperature the first token of a response is
// the one in whose equal share of 2^64 the draw falls.
static void test_keys(void) {
    enum { SAMPLES = 128, PROMPTS = 7 };
    sanity_config c = usual_config();
    c.prompts = PROMPTS;
    c.samples = SAMPLES;
    c.low = 0, c.high = 1;
    c.how.inverse_temperature = 0;
    sanity_result all = selected(recorded, &c, 64, SANITY_SAMPLES_MAX);
    task t = task_open("chain");
    int wrong = 0, training = 0;
    for (int i = 0; i < PROMPTS * SAMPLES; i++) {
        uint32_t random[4];
        random_at(random, c.how.seed, STREAM_SANITY, 0, (uint32_t)i,
                  (uint32_t)strlen(drawn.prompt[i]));
        uint64_t u = (uint64_t)random[0] << 32 | random[1];
        int token = (int)((unsigned __int128)u * (unsigned)alphabet_size() >> 64);
        char expected[2];
        alphabet_decode(&token, 1, expected);
        wrong += drawn.first[i] != expected[0];
    }
    CHECK(seen.asked == PROMPTS * SAMPLES && wrong == 0, "%d of %d first tokens are others", wrong,
          seen.asked);
    for (int p = 0; p < PROMPTS; p++) {
        char prompt[TASK_TEXT_MAX];
        task_training_prompt(&t, c.how.seed, UINT32_MAX, (uint32_t)p, prompt);
        CHECK(!strcmp(drawn.prompt[p * SAMPLES], prompt), "prompt %d is %s, not %s", p,
              drawn.prompt[p * SAMPLES], prompt);
        task_training_prompt(&t, c.how.seed, 0, (uint32_t)p, prompt);
        training += !strcmp(drawn.prompt[p * SAMPLES], prompt);
    }
    CHECK(training < 2, "%d of %d prompts are those of the first step", training, PROMPTS);
    problem_list_free(&all.kept);
}

static void test_list(void) {
    problem three[] = {
        {.prompt = "7+8+1-8-5:"}, {.prompt = "1+1+1+1+1:"}, {.prompt = "2+2+2+2+2:"}};
    problem_list list = {three, 3, 3};
    tokenizer characters = tokenizer_characters();
    rollout* d = rollout_create(5, 10, MAX_NEW, 0);
    d->prompts = 5;
    d->group = 1;
    rollout_ask(d, &characters, &list, 3000000001);  // 3000000001 = 1 modulo 3
    for (int p = 0; p < 5; p++) {
        char* prompt = tokenizer_text(&characters, d->prompt + p * 10, 10, 1);
        CHECK(!strcmp(prompt, three[(p + 1) % 3].prompt), "prompt %d is %s", p, prompt);
        free(prompt);
    }
    rollout_free(d);
}

static char path[] = "/tmp/test_sanity.XXXXXX";

static void test_file(void) {
    source t = source_of_task("chain");
    problem two[] = {{.prompt = "7+8+1-8-5:"}, {.prompt = "1+1+1+1+1:"}};
    problem_list list = {two, 2, 2};
    uint64_t checksum = sanity_write(&list, path);
    problem_list back = sanity_read(&t, path, checksum);
    CHECK(same_list(&list, &back), "what was written is read");
    problem_list_free(&back);
}

static void refuse_read(const void* contents) {
    source t = source_of_task("chain");
    FILE* f = fopen(path, "w");
    if (!f || fputs(contents, f) < 0 || fclose(f)) exit(3);
    sanity_read(&t, path, hash_text(contents));
}

// Lines that are prompts, but not all that were written; or a zero byte after them.
static void refuse_altered(const void* bytes) {
    source t = source_of_task("chain");
    const char contents[] = "7+8+1-8-5:\n\0nothing";
    FILE* f = fopen(path, "w");
    if (!f || !fwrite(contents, *(const size_t*)bytes, 1, f) || fclose(f)) exit(3);
    sanity_read(&t, path, hash_text(contents) + (*(const size_t*)bytes == 11));
}

static void refuse_missing(const void* unused) {
    (void)unused;
    source t = source_of_task("chain");
    sanity_read(&t, "/nowhere/prompts", 0);
}

static void refuse_nothing_kept(const void* unused) {
    (void)unused;
    sanity_config c = usual_config();
    selected(never, &c, 64, SANITY_SAMPLES_MAX);
}

static void test_refusals(void) {
    check_refusal(refuse_read, "", "an empty file", (const char* [4]){path, "no prompts"});
    check_refusal(refuse_read, "7+8+1-8-5:\n1+1:\x01\n", "no prompt",
                  (const char* [4]){path, ":2: \"1+1:?\"", "chain"});
    char too_long[1000];
    memset(too_long, '1', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = 0;
    check_refusal(refuse_read, too_long, "a long line", (const char* [4]){path, ":1:"});
    static const size_t bytes[] = {11, 19};
    for (int i = 0; i < 2; i++)
        check_refusal(refuse_altered, &bytes[i], "altered", (const char* [4]){path, "was altered"});
    check_refusal(refuse_missing, NULL, "no file",
                  (const char* [4]){"/nowhere/prompts", "missing"});
    check_refusal(refuse_nothing_kept, NULL, "none in between",
                  (const char* [4]){"none of 60 prompts", "--sanity-low 0.2", "--sanity-high 0.8"});
}

int main(void) {
    int file = mkstemp(path);
    if (file < 0) return 1;
    close(file);
    test_shares();
    test_independence();
    test_small_task();
    test_keys();
    test_list();
    test_file();
    test_refusals();
    remove(path);
    return test_report();
}
