// external: a program of the user's own gets the weights and the prompts as docs/sampler.md says,
// its answers go to their places, and whatever it does wrong ends in time with a sentence.
#include <errno.h>
#include <sys/stat.h>

#include "folder.h"
#include "model/hf.h"
#include "refusal.h"
#include "rl/external.h"
#include "small_model.h"

#define ANSWER(rest) "echo '{\"id\": '$k', " rest "}'"
#define WORDS (const char* [REFUSAL_WORDS])
enum { PROMPTS = 2, GROUP = 2, MAX_NEW = 3, VOCAB = 10, END = 9, LONG = 30000 };

static int quick;
static model m;
static float *before, *after;
static char* handed;  // the folder of the weights

// What the shell does with each line of a prompt, $l; $asked holds all lines that were read.
static char* program_of(const char* each) {
    return xprintf(
        "exec 2>/dev/null; k=-1; while IFS= read -r l; do printf '%%s\\n' \"$l\" >>%s/asked; "
        "case $l in *weights*) cp -r %s/sampler %s/seen;; *) k=$((k+1)); %s;; esac; done",
        folder, folder, folder, each);
}

static const char GOOD[] =
    "echo '{\"id\": '$k', \"tokens\": [1, 9], \"log_mu\": [-0.5, -1], \"more\": 0}'; " ANSWER(
        "\"log_mu\": [-0.25, 0, -1e-3], \"tokens\": [2, 0, 3]");

static external* open_with(const char* line, double timeout) {
    external_config c = {.line = line,
                         .timeout = timeout,
                         .folder = handed,
                         .temperature = 0.7,
                         .top_p = 0.9,
                         .top_k = 5,
                         .ends = {2, {END, 8}}};
    return external_open(&c, &m);
}

static rollout* make_rollout(int max_prompt) {
    rollout* d = rollout_create(PROMPTS * GROUP, max_prompt, MAX_NEW, 0);
    d->prompts = PROMPTS;
    d->group = GROUP;
    for (int p = 0; p < PROMPTS; p++) {
        d->prompt_length[p] = max_prompt - p;
        for (int i = 0; i < max_prompt - p; i++) d->prompt[p * max_prompt + i] = (p + i) % VOCAB;
    }
    return d;
}

static void sample(external* e, rollout* d, int step) {
    external_begin(e, d, 7, (uint32_t)step);
    while (external_step(e)) continue;
}

static void check_answers(const rollout* d) {
    static const int tokens[] = {1, 9, 2, 0, 3};
    static const float log_mu[] = {-0.5f, -1, -0.25f, 0, -1e-3f};
    for (int s = 0; s <= PROMPTS * GROUP; s++)
        CHECK(d->start[s] == (size_t)(s / 2 * 5 + s % 2 * 2), "sequence %d starts at %zu", s,
              d->start[s]);
    for (int t = 0; t < 10; t++)
        CHECK(d->token[t] == tokens[t % 5] && d->log_mu[t] == log_mu[t % 5] &&
                  d->entropy[t] == -log_mu[t % 5],
              "token %d is %d, log mu %g", t, d->token[t], d->log_mu[t]);
}

// The lines of the protocol's page, letter by letter.
static void check_asked(int step, int batch, const char* asked) {
    uint32_t seed[PROMPTS];
    for (int p = 0; p < PROMPTS; p++) {
        rng r = rng_at(7, STREAM_SAMPLE, (uint32_t)step, (uint32_t)p);
        seed[p] = rng_u32(&r);
    }
    char* expected = xprintf(
        "{\"weights\": \"%s/sampler/step-%06d\", \"prompts\": 2}\n"
        "{\"id\": %d, \"prompt\": [0, 1, 2], \"samples\": 2, \"seed\": %u, \"max_new_tokens\": 3, "
        "\"temperature\": 0.7, \"top_p\": 0.9, \"top_k\": 5, \"ends\": [9, 8]}\n"
        "{\"id\": %d, \"prompt\": [1, 2], \"samples\": 2, \"seed\": %u, \"max_new_tokens\": 3, "
        "\"temperature\": 0.7, \"top_p\": 0.9, \"top_k\": 5, \"ends\": [9, 8]}\n",
        folder, step, 2 * batch, seed[0], 2 * batch + 1, seed[1]);
    CHECK(!strcmp(asked, expected), "\"%s\" was asked, expected \"%s\"", asked, expected);
    free(expected);
}

static char* take_file(const char* name) {
    char* path = xprintf("%s/%s", folder, name);
    int64_t bytes = file_size(path);
    char* text = xalloc((size_t)bytes + 1, 1, name);
    FILE* f = file_open(path, "rb");
    file_read(f, text, (size_t)bytes, path);
    file_close(f, path);
    remove(path);
    free(path);
    return text;
}

// What lay in the folder when the program was told of it: these weights and no others.
static void check_weights(int step, const float* parameters) {
    char *seen = xprintf("%s/seen", folder), *name = xprintf("%s/step-%06d", seen, step);
    float* read = xalloc(m.parameters, sizeof *read, "weights");
    struct stat s;
    model there = hf_read_config(name);
    CHECK(there.parameters == m.parameters, "%zu parameters", there.parameters);
    hf_read_weights(name, &there, read);
    CHECK(!memcmp(read, parameters, m.parameters * sizeof *read), "step %d: other weights", step);
    CHECK(!stat(seen, &s) && s.st_nlink == 3, "%d folders are there", (int)s.st_nlink - 2);
    dir_remove(seen);
    free(read);
    free(name);
    free(seen);
}

static void test_protocol(void) {
    char *line = program_of(GOOD), *left = xprintf("%s/sampler/step-000001", folder);
    dir_create(left);  // of a run that was killed
    external* e = open_with(line, 20);
    rollout* d = make_rollout(3);
    for (int step = 3; step < 6; step++) {
        const float* weights = step == 4 ? after : before;
        external_sync(e, weights, step);
        sample(e, d, step);
        check_answers(d);
        char* asked = take_file("asked");
        check_asked(step, step - 3, asked);
        check_weights(step, weights);
        free(asked);
    }
    external_free(e);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a process is left behind");
    rollout_free(d);
    free(left);
    free(line);
}

// Lines that no pipe holds at once.
static void test_long_lines(void) {
    char* line = program_of(GOOD);
    external* e = open_with(line, 60);
    rollout* d = make_rollout(LONG);
    external_sync(e, before, 0);
    sample(e, d, 0);
    check_answers(d);
    char* asked = take_file("asked");
    CHECK(strlen(asked) > 2 * 3 * (LONG - 1), "%zu bytes were read", strlen(asked));
    free(asked);
    external_free(e);
    rollout_free(d);
    free(line);
}

typedef struct fault {
    const char *each, *words;
    double timeout;
} fault;

static void fault_child(const void* argument) {
    const fault* f = argument;
    external* e = open_with(program_of(f->each), f->timeout > 0 ? f->timeout : 20);
    rollout* d = make_rollout(3);
    external_sync(e, before, 0);
    sample(e, d, 0);
    sample(e, d, 1);
}

static void test_faults(void) {
    static const fault faults[] = {
        {"echo hello", "answer 1 of 4, line 1, column 1", 0},
        {"echo '[]'", "answer 1 of 4", 0},
        {"k=1; " ANSWER("\"tokens\": [9], \"log_mu\": [0]"),
         "an answer to prompt 0 was expected, and this one is to prompt 1", 0},
        {ANSWER("\"tokens\": [1, 9]"), "\"log_mu\"", 0},
        {ANSWER("\"tokens\": 9, \"log_mu\": [-1]"), "\"tokens\"", 0},
        {ANSWER("\"tokens\": [], \"log_mu\": []"), "a response has 1 to 3 tokens", 0},
        {ANSWER("\"tokens\": [1, 1, 1, 9], \"log_mu\": [-1, -1, -1, -1]"), "this one 4", 0},
        {ANSWER("\"tokens\": [1, 9], \"log_mu\": [-1]"), "1 numbers for 2 tokens", 0},
        {ANSWER("\"tokens\": [10, 9], \"log_mu\": [-1, -1]"), "from 0 to 9 and is 10", 0},
        {ANSWER("\"tokens\": [-1, 9], \"log_mu\": [-1, -1]"), "from 0 to 9 and is -1", 0},
        {ANSWER("\"tokens\": [1.5, 9], \"log_mu\": [-1, -1]"), "not written as one", 0},
        {ANSWER("\"tokens\": [1, 9], \"log_mu\": [NaN, -1]"), "column", 0},
        {ANSWER("\"tokens\": [1, 9], \"log_mu\": [-1e39, -1]"), "and is -1e+39", 0},
        {ANSWER("\"tokens\": [1, 9], \"log_mu\": [null, -1]"), "a number", 0},
        {ANSWER("\"tokens\": [1, 9], \"log_mu\": [0.5, -1]"), "to 0 and is 0.5", 0},
        {ANSWER("\"tokens\": [1, 2], \"log_mu\": [-1, -1]"), "2 tokens of 3 and no end", 0},
        {ANSWER("\"tokens\": [8, 1, 9], \"log_mu\": [-1, -1, -1]"), "follow the end token 8", 0},
        {"printf '%09999d'", "too long for a response", 0},
        {"exit 3", "ended (status 3), with 0 of 4 sequences answered", 0},
        {"kill -9 $$", "ended (signal 9)", 0},
        {"exec >&-", "closed its output", 0},
        {"sleep 100", "was not ready within --sampler-timeout 0.5", 0.5},
        {"sleep 100 & exit 4", "ended (status 4)", 0},
        {"printf '{\"tokens\": [1'; sleep 100", "was not ready within --sampler-timeout 0.5", 0.5},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i += quick ? 3 : 1)
        check_refusal(fault_child, &faults[i], faults[i].each,
                      WORDS{"--sampler-cmd", faults[i].words, "; correct the program"});
    // A line too many is found before it is taken for an answer to another prompt.
    static const char* const when[] = {"0) ", "1) ", "1) sleep 0.1; "};
    for (int i = 0; i < 3; i++) {
        char* more =
            xprintf("%s; case $k in %s" ANSWER("\"tokens\": [9], \"log_mu\": [0]") ";; esac", GOOD,
                    when[i]);
        check_refusal(fault_child, &(fault){more, "", 0}, when[i], WORDS{"--sampler-cmd"});
        free(more);
    }
}

static void start_child(const void* line) { external_free(open_with(line, 20)); }

static void test_start(void) {
    check_refusal(start_child, "exec 2>/dev/null; /no/such/program", "no program",
                  WORDS{"--sampler-cmd", "cannot be started (status 127)"});
    check_refusal(start_child, "echo ready; cat", "a greeting",
                  WORDS{"wrote before it was given a line", "one line for each sequence"});
}

int main(int argc, char** argv) {
    quick = test_quick(argc, argv);
    folder_make(__FILE__);
    handed = xprintf("%s/sampler", folder);
    m = model_of(&GPT2_FAMILY, (shape){.context = 16,
                                       .vocab = VOCAB,
                                       .layers = 1,
                                       .channels = 8,
                                       .heads = 2,
                                       .kv_heads = 2,
                                       .head_dim = 4,
                                       .hidden = 32,
                                       .tied = 1,
                                       .norm_eps = 1e-5f});
    before = random_parameters(&m, 1, 0.5);
    after = random_parameters(&m, 2, 0.5);
    test_protocol();
    test_long_lines();
    test_faults();
    test_start();
    dir_remove(folder);
    free(handed);
    free(before);
    free(after);
    return test_report();
}
