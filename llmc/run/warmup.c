#include "warmup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/checked.h"
#include "../model/model_file.h"

static optimizer_config warmup_optimizer(const settings* s) {
    return (optimizer_config){.beta1 = s->warmup_beta1,
                              .beta2 = s->warmup_beta2,
                              .eps = 1e-8,
                              .weight_decay = s->warmup_weight_decay,
                              .clip = 1,
                              .format = &FORMAT_FP32,
                              .loss_scaling = 0,
                              .seed = s->seed,
                              .shards = s->shards};
}

void warmup_create(run* r) {
    const settings* s = r->settings;
    optimizer_config config = warmup_optimizer(s);
    r->warmup_data = rollout_create(s->warmup_batch, r->source.max_prompt, s->max_new_tokens, 0);
    config.ranks = r->ranks;
    trainer_room room = trainer_room_for(r->warmup_data, 1, s->micro_tokens);
    r->warmup = trainer_create(r->device, &r->model, precision_of(&FORMAT_FP32, &FORMAT_FP32),
                               &config, &room, (recompute_level)s->recompute);
}

void warmup_free(run* r) {
    trainer_free(r->warmup);
    rollout_free(r->warmup_data);
    r->warmup = NULL;
    r->warmup_data = NULL;
}

static int decay_steps(const settings* s) {
    return s->warmup_lr_decay_steps ? s->warmup_lr_decay_steps : s->warmup_steps;
}

static void put_response(rollout* d, int i, const token_list* response) {
    if (response->count > (size_t)d->max_new)
        fatal("a response to imitate has %zu tokens, more than --max-new-tokens %d; raise it",
              response->count, d->max_new);
    memcpy(d->token + d->start[i], response->id, response->count * sizeof(int));
    d->start[i + 1] = d->start[i] + response->count;
}

static void draw_examples(run* r) {
    const settings* s = r->settings;
    rollout* d = r->warmup_data;
    token_list response = {0};
    d->prompts = d->sequences = s->warmup_batch;
    d->group = 1;
    problem_list_clear(&r->asked);
    source_examples(&r->source, s->seed, r->state.warmup_step, d->prompts, &r->asked);
    rollout_ask(d, &r->tokenizer, &r->asked, 0);
    for (int i = 0; i < d->sequences; i++) {
        response.count = 0;
        tokenizer_response(&r->tokenizer, r->asked.item[i].response, &response);
        put_response(d, i, &response);
    }
    token_list_free(&response);
}

warmup_result warmup_step(run* r) {
    const settings* s = r->settings;
    objective sft = objective_defaults(OBJECTIVE_SFT);
    rollout* d = r->warmup_data;
    double start = clock_seconds();
    int step = r->state.warmup_step;
    double lr = schedule_lr(SCHEDULE_COSINE, s->warmup_lr, s->warmup_lr_final, step,
                            s->warmup_lr_rise, decay_steps(s));
    draw_examples(r);
    warmup_result w = {.lr = lr};
    w.update = trainer_update(r->warmup, d, 0, d->sequences, &sft, AGGREGATE_TOKEN_MEAN, 1, lr);
    w.seconds = clock_seconds() - start;
    r->state.warmup_step++;
    r->warming.steps++;
    r->warming.tokens += w.update.tokens;
    r->warming.seconds += w.seconds;
    return w;
}

// ------------------------------------------------------------------------------------------------
// The cache. An entry is two: warmup-HASH.bin or warmup-HASH/ is the model (model_file.h);
// warmup-HASH.txt says in its first line what the model depends on and in its second the checksum
// of the first (checked.h). The text is written last: without it there is no entry.

static int wanted(const settings* s) {
    return *s->warmup_cache && !*settings_start(s) && s->warmup_steps > 0;
}

void warmup_check_cache(const settings* s) {
    if (!wanted(s)) return;
    dir_create(s->warmup_cache);
    char* path = xprintf("%s/.%ld.tmp", s->warmup_cache, (long)getpid());
    FILE* f = fopen(path, "w");
    if (!f)
        fatal("--warmup-cache %s cannot be written: %s; choose another directory", s->warmup_cache,
              strerror(errno));
    file_close(f, path);
    remove(path);
    free(path);
}

// What the result of the warm-up depends on, as text; its hash names the entry.
static char* warmup_key(const run* r) {
    const settings* s = r->settings;
    optimizer_config o = warmup_optimizer(s);
    // On a GPU the bits depend on what it is; on the CPU they do not.
    const char* device = s->device == DEVICE_CUDA ? r->device->name : "";
    char* of_model = model_text(&r->model);
    // Of one file, the number of problems that were too long says which ones.
    int count = r->source.skipped;
    char* skipped = count ? xprintf(", without %d long problems", count) : xprintf("%s", "");
    int falls = s->warmup_lr_final > 0 || s->warmup_lr_decay_steps;
    char* fall = falls ? xprintf(", lr to %.17g at %d", s->warmup_lr_final, decay_steps(s))
                       : xprintf("%s", "");
    char* key = xprintf(
        "arithmetic %d%s, model %s, task %s, texts %llx, seed %llu, steps %d %d, batch %d, "
        "shards %d, adamw %.17g %.17g %.17g %.17g %.17g, clip %.17g%s%s",
        ARITHMETIC_VERSION, device, of_model, s->task, (unsigned long long)r->state.texts_checksum,
        (unsigned long long)s->seed, s->warmup_steps, s->warmup_lr_rise, s->warmup_batch, s->shards,
        s->warmup_lr, o.beta1, o.beta2, o.eps, o.weight_decay, o.clip, skipped, fall);
    free(fall);
    free(of_model);
    free(skipped);
    return key;
}

typedef struct cache_entry {
    char *key, *model, *text;  // paths of the two files
} cache_entry;

static cache_entry entry_open(const run* r) {
    char* key = warmup_key(r);
    char* stem =
        xprintf("%s/warmup-%016llx", r->settings->warmup_cache, (unsigned long long)hash_text(key));
    cache_entry e = {key, model_file_path(stem, &r->model), xprintf("%s.txt", stem)};
    free(stem);
    return e;
}

static void entry_close(cache_entry* e) {
    free(e->key);
    free(e->model);
    free(e->text);
}

static char* entry_text(const cache_entry* e, uint64_t checksum) {
    return xprintf("%s\nchecksum %016llx\n", e->key, (unsigned long long)checksum);
}

// Whether the text beside the model is the one that belongs to it.
static int entry_is_whole(const cache_entry* e, const model* m) {
    uint64_t checksum;
    char* weights = model_file_weights(e->model, m);
    int there = checked_file_checksum(weights, &checksum);
    free(weights);
    if (!there) return 0;
    char *expected = entry_text(e, checksum), *found = xalloc(strlen(expected) + 2, 1, e->text);
    FILE* f = fopen(e->text, "r");
    size_t bytes = f ? fread(found, 1, strlen(expected) + 1, f) : 0;
    int whole = bytes == strlen(expected) && !memcmp(found, expected, bytes);
    if (f) fclose(f);
    free(expected);
    free(found);
    return whole;
}

static int read_cache(run* r) {
    cache_entry e = entry_open(r);
    int there = file_size(e.text) >= 0, whole = there && entry_is_whole(&e, &r->model);
    if (there && !whole) log_print(r->log, "warm-up  %s is damaged; it is made anew", e.model);
    if (whole) {
        free(r->base);
        model_file_read(e.model, &r->base);
        log_print(r->log, "warm-up  taken from %s", e.model);
    }
    entry_close(&e);
    return whole;
}

int warmup_from_cache(run* r) {
    if (!wanted(r->settings)) return 0;
    int found = ranks_most(r->ranks, r->ranks->rank == 0 && read_cache(r));
    if (!found) return 0;
    ranks_broadcast(r->ranks, r->base, r->parameters * sizeof *r->base);
    r->state.warmup_step = r->settings->warmup_steps;
    return 1;
}

void warmup_to_cache(const run* r) {
    if (!wanted(r->settings)) return;
    cache_entry e = entry_open(r);
    char* text = entry_text(&e, model_file_write(e.model, &r->model, r->base, &FORMAT_FP32));
    char* aside = xprintf("%s.%ld.tmp", e.text, (long)getpid());
    FILE* f = file_open(aside, "w");
    file_write(f, text, strlen(text), aside);
    file_close_sync(f, aside);
    file_rename(aside, e.text);
    free(aside);
    free(text);
    entry_close(&e);
}
