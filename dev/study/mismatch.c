// mismatch: the numerics of a model without training. For each pair SAMPLER:TRAINER of formats
// the sampler completes the task's held-out prompts and the trainer gives each token its own
// log-probability. The weights are the same, or the sampler's are those of --sampler: older ones,
// as in training on stale data. With --tokens the completions are those of a third model, in the
// sampler's format, and the sampler gives each of their tokens its log-probability too: so several
// models can be compared on the same tokens. FORMAT/N is a format whose products sum in N parts.
// Prints CSV, of three kinds of lines:
//
//   token,PAIR,sequence,position,token,log_mu,log_pi      a sampled token
//   layer,PAIR,layer,difference    the residual stream that enters layer l (l = layers: that leaves
//                                  the last), root mean square of the difference over that of the
//                                  trainer's, over all tokens
//   metric,PAIR,name,value         the metrics of llmc/rl/mismatch.h; entropy is that of the model
//                                  which drew the tokens
//
//     build/dev/study/mismatch MODEL.bin chain 64 4 bf16:fp32 fp16:fp32 fp32/2:fp32
//     build/dev/study/mismatch MODEL.bin chain 64 4 bf16+nvfp4:bf16
//     build/dev/study/mismatch --sampler OLDER.bin MODEL.bin chain 64 4 fp32:fp32
//     build/dev/study/mismatch --max-new-tokens 200 FOLDER problems.jsonl 8 1 bf16:fp32
//
// A model is a file or a folder; a folder's tokenizer and chat format are used. TASK may be a file
// of problems, whose path ends with .jsonl or holds a slash: the first ones are asked. Five flags
// mean what they mean to train_gpt2_rl: --tokenizer, --chat, --system, --data-keys, and
// --data-skip-long with 0 or 1 behind it. --held-out 1 leaves out the file's problems that a run
// would train on.
//
// mismatch.py runs it and draws what it says.
#include "rl/mismatch.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "model/model_file.h"
#include "rl/sampler.h"
#include "rl/trainer.h"
#include "text/source.h"

static const char USAGE[] =
    "usage: mismatch [--sampler OLDER] [--tokens OTHER] [--max-new-tokens N] [--tokenizer FOLDER] "
    "[--chat NAME] [--system TEXT] [--data-keys KEYS] [--data-skip-long 1] [--held-out 1] MODEL "
    "TASK PROMPTS GROUP SAMPLER:TRAINER ...";
static const double DELTA = 0.15;  // of the metric `outside`
enum { SEED = 1 };

// Texts as they were given; NULL: not given.
typedef struct flags {
    const char *sampler, *tokens, *max_new_tokens, *tokenizer, *chat, *system;
    const char *data_keys, *data_skip_long, *held_out;
} flags;

typedef struct setup {
    flags given;
    backend* b;
    model model;
    float *drawer, *sampler, *trainer;  // parameters; one array where they are the same model's
    tokenizer tokenizer;
    problem_list asked;
    int prompts, group, max_prompt, max_new;
} setup;

static int number(const char* text, const char* what) {
    char* end;
    long n = strtol(text, &end, 10);
    if (*end || n < 1 || n > 1 << 16) fatal("%s %s: give a number from 1 to 65536", what, text);
    return (int)n;
}

// FORMAT, FORMAT/N, FORMAT+BLOCK or FORMAT+BLOCK/N.
static precision precision_named(const char* name, size_t length, const char* pair) {
    char* copy = xprintf("%.*s", (int)length, name);
    char* slash = strchr(copy, '/');
    if (slash) *slash = 0;
    char* plus = strchr(copy, '+');
    if (plus) *plus = 0;
    const format* f = format_find(copy);
    if (!f) fatal("%s: there is no format %s; see train_gpt2_rl --help", pair, copy);
    precision p = precision_of(f, &FORMAT_FP32);
    p.block = plus ? block_format_find(plus + 1) : NULL;
    if (plus && !p.block)
        fatal("%s: there are no blocks %s; see --rollout-block in train_gpt2_rl --help", pair,
              plus + 1);
    if (p.block && f->scaled)
        fatal("%s: weights in blocks need a format of more than 8 bits, such as bf16", pair);
    if (slash) p.split_k = number(slash + 1, pair);
    free(copy);
    return p;
}

static rollout* sample(const setup* s, precision p) {
    sampling how = {.inverse_temperature = 1, .top_p = 1, .seed = SEED, .stream = STREAM_EVALUATE};
    int capacity = s->prompts * s->group;
    rollout* d = rollout_create(capacity, s->max_prompt, s->max_new, 0);
    sampler* r = sampler_create(s->b, &s->model, p, p.store, capacity < 256 ? capacity : 256,
                                s->max_prompt, s->max_new, capacity, 0, s->tokenizer.ends, 0);
    size_t bytes = sizeof(float);
    bytes *= s->model.parameters;
    float* parameters = s->b->alloc(s->b, bytes, "parameters");
    s->b->upload(s->b, parameters, s->drawer, bytes);
    sampler_sync(r, parameters);
    s->b->release(s->b, parameters, bytes);
    d->prompts = s->prompts;
    d->group = s->group;
    rollout_ask(d, &s->tokenizer, &s->asked, 0);
    sampler_run(r, d, &how);
    sampler_free(r);
    return d;
}

// A trainer whose activations hold all of `d`, with log pi of every token in `out`.
static trainer* forward(const setup* s, precision p, const float* parameters, const rollout* d,
                        float* out) {
    optimizer_config none = {.format = &FORMAT_FP32};
    trainer_room room = trainer_room_for(d, d->group, INT_MAX);
    trainer* t = trainer_create(s->b, &s->model, p, &none, &room, RECOMPUTE_NOTHING);
    trainer_load(t, parameters);
    trainer_logprobs(t, t->weights, d, 0, d->sequences, 1, out);
    return t;
}

static void print_tokens(const rollout* d, const char* pair) {
    for (int q = 0; q < d->sequences; q++)
        for (size_t t = d->start[q]; t < d->start[q + 1]; t++)
            printf("token,%s,%d,%d,%d,%.9g,%.9g\n", pair, q, (int)(t - d->start[q]), d->token[t],
                   (double)d->log_mu[t], (double)d->log_pi[t]);
}

static void print_metrics(const rollout* d, const char* pair) {
    double value[MISMATCH_METRICS];
    mismatch m = mismatch_measure(d->log_pi, d->log_mu, d->entropy, d->start, d->sequences, DELTA);
    mismatch_values(&m, value);
    for (int i = 0; i < MISMATCH_METRICS; i++)
        printf("metric,%s,%s,%.9g\n", pair, MISMATCH_NAMES[i], value[i]);
}

static int tokens_of(const rollout* d) {
    int n = (int)d->start[d->sequences] - d->sequences;
    for (int q = 0; q < d->prompts; q++) n += d->prompt_length[q];
    return n;
}

static void print_layers(const setup* s, const trainer* as_sampler, const trainer* t, int tokens,
                         const char* pair) {
    size_t count = (size_t)tokens * s->model.shape.channels, bytes = count * sizeof(float);
    float *a = xalloc(2 * count, sizeof(float), "activations"), *c = a + count;
    for (int l = 0; l <= s->model.shape.layers; l++) {
        double difference = 0, size = 0;
        s->b->download(s->b, a, model_residual(as_sampler->acts, l), bytes);
        s->b->download(s->b, c, model_residual(t->acts, l), bytes);
        for (size_t i = 0; i < count; i++) {
            difference += ((double)a[i] - c[i]) * ((double)a[i] - c[i]);
            size += (double)c[i] * c[i];
        }
        printf("layer,%s,%d,%.9g\n", pair, l, sqrt(difference / size));
    }
    free(a);
}

static void run_pair(const setup* s, const char* pair) {
    const char* colon = strchr(pair, ':');
    if (!colon) fatal("%s: write a pair SAMPLER:TRAINER, such as bf16:fp32", pair);
    precision mu = precision_named(pair, (size_t)(colon - pair), pair);
    precision pi = precision_named(colon + 1, strlen(colon + 1), pair);
    rollout* d = sample(s, mu);
    trainer* t = forward(s, pi, s->trainer, d, d->log_pi);
    // A forward pass of training gives the sampler's log mu, bit for bit (numerics contract, N2).
    trainer* as_sampler = forward(s, mu, s->sampler, d, d->log_ref);
    if (s->drawer != s->sampler)
        memcpy(d->log_mu, d->log_ref, d->start[d->sequences] * sizeof(float));
    print_tokens(d, pair);
    print_metrics(d, pair);
    print_layers(s, as_sampler, t, tokens_of(d), pair);
    trainer_free(as_sampler);
    trainer_free(t);
    rollout_free(d);
}

// Another model of the same shape.
static float* read_other(const setup* s, const char* file, const char* other) {
    float* parameters;
    model c = model_file_read(other, &parameters);
    if (!model_equal(&c, &s->model))
        fatal("%s and %s differ in shape; they have to be one model at two times", other, file);
    return parameters;
}

static void read_models(setup* s, const char* file) {
    const flags* f = &s->given;
    s->model = model_file_read(file, &s->trainer);
    if (s->model.shape.vocab < tokenizer_size(&s->tokenizer))
        fatal("%s has a vocabulary of %d, less than the tokenizer's %d; give another model", file,
              s->model.shape.vocab, tokenizer_size(&s->tokenizer));
    s->sampler = f->sampler ? read_other(s, file, f->sampler) : s->trainer;
    s->drawer = f->tokens ? read_other(s, file, f->tokens) : s->sampler;
}

static void free_models(setup* s) {
    if (s->drawer != s->sampler) free(s->drawer);
    if (s->sampler != s->trainer) free(s->sampler);
    free(s->trainer);
}

static int is_file_of_problems(const char* name) {
    size_t n = strlen(name), m = strlen(".jsonl");
    return strchr(name, '/') || (n > m && !strcmp(name + n - m, ".jsonl"));
}

static int prompt_tokens(const setup* s, const problem* p) {
    token_list tokens = {0};
    tokenizer_prompt(&s->tokenizer, p->prompt, &tokens);
    int count = (int)tokens.count;
    token_list_free(&tokens);
    return count;
}

static int is_on(const char* given) { return given && strcmp(given, "0"); }

static problem_list problems_of_file(const setup* s, const char* path) {
    char* keys = xprintf("%s", s->given.data_keys ? s->given.data_keys : "");
    data_names names = data_names_of(keys);
    problem_list all = data_read(path, &names), kept = {0};
    int most = is_on(s->given.data_skip_long) ? s->model.shape.context - s->max_new : INT_MAX;
    for (int i = 0; i < all.count; i++) {
        const problem* p = &all.item[i];
        if (is_on(s->given.held_out) && !data_is_held_out(p)) continue;
        if (prompt_tokens(s, p) <= most) problem_add(&kept, p);
    }
    if (!kept.count) fatal("%s: none of its %d problems can be asked", path, all.count);
    problem_list_free(&all);
    free(keys);
    return kept;
}

// The first problems of a file, or a task's held-out ones, and how long prompts and answers may be.
static void ask(setup* s, const char* name) {
    if (s->given.max_new_tokens) s->max_new = number(s->given.max_new_tokens, "--max-new-tokens");
    if (is_file_of_problems(name)) {
        if (!s->max_new) fatal("with %s give --max-new-tokens", name);
        s->asked = problems_of_file(s, name);
    } else {
        source from = source_of_task(name);
        s->asked = source_held_out(&from, SEED, s->prompts);
        if (!s->max_new) s->max_new = from.max_response + 2;
    }
    for (int i = 0; i < s->prompts; i++) {
        int tokens = prompt_tokens(s, &s->asked.item[i % s->asked.count]);
        if (tokens > s->max_prompt) s->max_prompt = tokens;
    }
}

static chat_kind chat_named(const char* name) {
    for (int i = 0; CHAT_NAMES[i]; i++)
        if (!strcmp(CHAT_NAMES[i], name)) return (chat_kind)i;
    fatal("--chat: there is no %s; see train_gpt2_rl --help", name);
}

static tokenizer tokenizer_for(const flags* f, const char* model_path) {
    const char* folder = f->tokenizer ? f->tokenizer : model_path;
    if (!f->tokenizer && !bpe_is_there(model_path)) return tokenizer_characters();
    return tokenizer_open(folder, f->chat ? chat_named(f->chat) : CHAT_AUTO, f->system);
}

// Returns the arguments behind the flags.
static char** read_flags(flags* f, char** arg) {
    const struct {
        const char *name, **value;
    } known[] = {{"--sampler", &f->sampler},
                 {"--tokens", &f->tokens},
                 {"--max-new-tokens", &f->max_new_tokens},
                 {"--tokenizer", &f->tokenizer},
                 {"--chat", &f->chat},
                 {"--system", &f->system},
                 {"--data-keys", &f->data_keys},
                 {"--data-skip-long", &f->data_skip_long},
                 {"--held-out", &f->held_out}};
    for (; arg[0] && arg[1] && arg[0][0] == '-'; arg += 2) {
        size_t i = 0, n = sizeof known / sizeof *known;
        while (i < n && strcmp(known[i].name, arg[0])) i++;
        if (i == n) fatal("there is no %s; %s", arg[0], USAGE);
        *known[i].value = arg[1];
    }
    return arg;
}

int main(int argc, char** argv) {
    setup s = {0};
    char** arg = read_flags(&s.given, argv + 1);
    if (argv + argc - arg < 5) {
        fprintf(stderr, "%s\n", USAGE);
        return 1;
    }
    s.b = cpu_open(0, "auto");
    s.tokenizer = tokenizer_for(&s.given, arg[0]);
    read_models(&s, arg[0]);
    s.prompts = number(arg[2], "PROMPTS");
    s.group = number(arg[3], "GROUP");
    ask(&s, arg[1]);
    if (s.max_prompt + s.max_new > s.model.shape.context)
        fatal("prompts of %d and answers of %d tokens do not fit the model's context of %d",
              s.max_prompt, s.max_new, s.model.shape.context);
    for (char** pair = arg + 4; *pair; pair++) run_pair(&s, *pair);
    problem_list_free(&s.asked);
    free_models(&s);
    cpu_close(s.b);
    return 0;
}
