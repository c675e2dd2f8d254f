// All lines of a batch are made at once. external_step then writes what the pipe has room for and
// reads what is there, so that a full pipe on one side never blocks the other.
#include "external.h"

#include <errno.h>
#include <float.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/json.h"
#include "../base/process.h"
#include "../model/hf.h"

enum { POLL_MS = 50, TOKEN_ROOM = 64 };  // bytes of an id and its log mu in an answer, at most
static const char ADVICE[] =
    "correct the program; with --out and --resume the run goes on from its last checkpoint";

struct external {
    external_config config;
    const model* m;
    program program;
    struct process process;
    char* weights;        // the folder of the newest weights; NULL: none yet
    rollout* d;           // of the batch
    int64_t first, next;  // numbers of its first prompt and of the next batch's
    char* text;           // the lines to write
    size_t bytes, sent;   // of them
    char* line;           // what was read of the next answer
    size_t length, room;  // bytes of it, and its most
    int answered;         // sequences
    double end;           // when the time of the batch is over, by clock_seconds
};

external* external_open(const external_config* c, const model* m) {
    external* e = xalloc(1, sizeof *e, "the external sampler");
    e->config = *c;
    e->m = m;
    e->program = (program){"--sampler-cmd", c->line, "one line for each sequence that it samples",
                           "close other programs"};
    process* one = &e->process;
    dir_remove(c->folder);
    process_start(one, &e->program);
    process_watch_start(&one, 1, &e->program);
    return e;
}

void external_free(external* e) {
    process* one = &e->process;
    process_end(&one, 1);
    dir_remove(e->config.folder);
    free(e->weights);
    free(e->text);
    free(e->line);
    free(e);
}

// A folder gets its name when it is complete.
void external_sync(external* e, const float* parameters, int step) {
    char* aside = xprintf("%s/.tmp", e->config.folder);
    char* weights = xprintf("%s/step-%06d", e->config.folder, step);
    hf_write(aside, e->m, parameters, &FORMAT_FP32);
    file_rename(aside, weights);
    if (e->weights) dir_remove(e->weights);
    free(e->weights);
    free(aside);
    e->weights = weights;
}

// ---------------------------------------------------------------------------------------------
// Lines out

static void put_ids(FILE* f, const int* id, int count) {
    for (int i = 0; i < count; i++) fprintf(f, "%s%d", i ? ", " : "", id[i]);
}

static void put_prompt(const external* e, FILE* f, int p, uint32_t seed) {
    const external_config* c = &e->config;
    const rollout* d = e->d;
    char temperature[32], top_p[32];
    number_text(c->temperature, temperature);
    number_text(c->top_p, top_p);
    fprintf(f, "{\"id\": %lld, \"prompt\": [", (long long)e->first + p);
    put_ids(f, d->prompt + (size_t)p * d->max_prompt, d->prompt_length[p]);
    fprintf(f,
            "], \"samples\": %d, \"seed\": %u, \"max_new_tokens\": %d, \"temperature\": %s, "
            "\"top_p\": %s, \"top_k\": %d, \"ends\": [",
            d->group, seed, d->max_new, temperature, top_p, c->top_k);
    put_ids(f, c->ends.id, c->ends.count);
    fprintf(f, "]}\n");
}

static void put_batch(external* e, uint64_t seed, uint32_t step) {
    const rollout* d = e->d;
    char* name = xalloc(6 * strlen(e->weights) + 4, 1, "the name of a folder");
    free(e->text);
    FILE* f = open_memstream(&e->text, &e->bytes);
    if (!f) fatal("no memory for what --sampler-cmd reads");
    *json_put_text(name, e->weights) = 0;
    fprintf(f, "{\"weights\": %s, \"prompts\": %d}\n", name, d->prompts);
    for (int p = 0; p < d->prompts; p++) {
        rng draw = rng_at(seed, STREAM_SAMPLE, step, (uint32_t)p);
        put_prompt(e, f, p, rng_u32(&draw));
    }
    if (fclose(f)) fatal("no memory for what --sampler-cmd reads");
    free(name);
}

// ---------------------------------------------------------------------------------------------
// Answers

// What does not answer may not see that its input ends either.
static void refuse_answer(external* e, const char* what) __attribute__((noreturn));
static void refuse_answer(external* e, const char* what) {
    process_stop(&e->process);
    fatal("--sampler-cmd '%s' %s, with %d of %d sequences answered; %s",
          shown(e->config.line, strlen(e->config.line)), what, e->answered, e->d->sequences,
          ADVICE);
}

static void refuse_ended(external* e) __attribute__((noreturn));
static void refuse_ended(external* e) {
    poll(NULL, 0, 20);  // its output closes a little before it ends
    if (!process_ended(&e->process)) refuse_answer(e, "closed its output");
    char* status = process_status_text(process_stop(&e->process));
    refuse_answer(e, xprintf("ended (%s)", status));
}

static void take_tokens(const external* e, const json* tokens, const json* log_mu) {
    rollout* d = e->d;
    size_t at = d->start[e->answered], n = tokens->count;
    const end_set* ends = &e->config.ends;
    const json *id = tokens->first, *probability = log_mu->first;
    if (n < 1 || n > (size_t)d->max_new)
        json_refuse(tokens, "a response has 1 to %d tokens, and this one %zu", d->max_new, n);
    if (log_mu->count != n)
        json_refuse(log_mu, "there are %zu numbers for %zu tokens", log_mu->count, n);
    for (size_t i = 0; i < n; i++, id = id->next, probability = probability->next) {
        d->token[at + i] = (int)json_whole(id, 0, e->m->shape.vocab - 1);
        d->log_mu[at + i] = (float)json_number(probability, -FLT_MAX, 0);
        d->entropy[at + i] = -d->log_mu[at + i];
        int ended = end_set_has(ends, d->token[at + i]), last = i + 1 == n;
        if (ended && !last) json_refuse(id, "tokens follow the end token %d", d->token[at + i]);
        if (!ended && last && n < (size_t)d->max_new)
            json_refuse(id, "the response has %zu tokens of %d and no end token", n, d->max_new);
    }
    d->start[e->answered + 1] = at + n;
}

// An answer names its prompt: a line too many, which may come late, must not be taken for one of
// the next prompt's.
static void check_id(const external* e, const json* id) {
    int64_t expected = e->first + e->answered / e->d->group, given = json_whole(id, 0, INT64_MAX);
    if (given != expected)
        json_refuse(id, "an answer to prompt %lld was expected, and this one is to prompt %lld",
                    (long long)expected, (long long)given);
}

static void take_answer(external* e) {
    if (e->answered == e->d->sequences) refuse_answer(e, "wrote more lines than it was asked for");
    char* line = shown(e->config.line, strlen(e->config.line));
    char* name =
        xprintf("--sampler-cmd '%s', answer %d of %d", line, e->answered + 1, e->d->sequences);
    json* answer = json_parse(name, e->line, e->length, ADVICE);
    const json *tokens = json_get(answer, "tokens"), *log_mu = json_get(answer, "log_mu");
    check_id(e, json_get(answer, "id"));
    json_expect(tokens, JSON_ARRAY);
    json_expect(log_mu, JSON_ARRAY);
    take_tokens(e, tokens, log_mu);
    e->answered++;
    e->length = 0;
    free(answer);
    free(name);
    free(line);
}

static void read_answers(external* e) {
    char bytes[4096];
    ssize_t n = read(e->process.out, bytes, sizeof bytes);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) refuse_ended(e);
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n')
            take_answer(e);
        else if (e->length < e->room)
            e->line[e->length++] = bytes[i];
        else
            refuse_answer(e, "wrote a line that is too long for a response");
    }
    if (e->answered == e->d->sequences && e->length)
        refuse_answer(e, "wrote more than it was asked for");
}

// A program that no longer reads may still answer, or its output says that it ended.
static void write_lines(external* e) {
    ssize_t n = write(e->process.in, e->text + e->sent, e->bytes - e->sent);
    if (n >= 0) e->sent += (size_t)n;
    if (n < 0 && errno != EAGAIN && errno != EINTR) e->sent = e->bytes;
}

// ---------------------------------------------------------------------------------------------

void external_begin(external* e, rollout* d, uint64_t seed, uint32_t step) {
    char byte;
    e->d = d;
    e->first = e->next;
    e->next += d->prompts;
    d->sequences = d->prompts * d->group;
    e->answered = 0;
    if (read(e->process.out, &byte, 1) == 1) refuse_answer(e, "wrote before it was asked");
    put_batch(e, seed, step);
    e->sent = e->length = 0;
    e->room = 1024 + (size_t)d->max_new * TOKEN_ROOM;
    if (!e->line) e->line = xalloc(e->room, 1, "an answer of the sampler");
    e->end = clock_seconds() + e->config.timeout;
}

int external_step(external* e) {
    struct pollfd polled[2] = {{e->process.out, POLLIN, 0},
                               {e->sent < e->bytes ? e->process.in : -1, POLLOUT, 0}};
    if (clock_seconds() > e->end)
        refuse_answer(e, xprintf("was not ready within --sampler-timeout %g", e->config.timeout));
    poll(polled, 2, POLL_MS);
    if (polled[1].revents) write_lines(e);
    if (polled[0].revents)
        read_answers(e);
    else if (process_ended(&e->process))
        refuse_ended(e);  // what it started may hold its output open
    return e->d->sequences - e->answered;
}
