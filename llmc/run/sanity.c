// Draws are keyed by the number of a prompt and of its sample.
#include "sanity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../text/tokenizer.h"

static const uint32_t SANITY_STEP = UINT32_MAX;  // training prompts of a step that no run reaches

static int list_has(const prompt_list* list, const char* text) {
    for (int i = 0; i < list->count; i++)
        if (!strcmp(list->text[i], text)) return 1;
    return 0;
}

// The first `count` training prompts that differ. A small task has fewer: it stops after having
// drawn four times as many.
static prompt_list pool_of(const task* t, uint64_t seed, int count) {
    prompt_list list = {0};
    char text[TASK_TEXT_MAX];
    for (int i = 0; i < 4 * count && list.count < count; i++) {
        task_training_prompt(t, seed, SANITY_STEP, (uint32_t)i, text);
        if (!list_has(&list, text)) prompt_list_add(&list, text);
    }
    return list;
}

static int within(int right, const sanity_config* c) {
    double slack = 1e-9;  // a share such as 0.3 has no exact double
    return right >= c->low * c->samples - slack && right <= c->high * c->samples + slack;
}

sanity_result sanity_select(sampler* r, rollout* d, const task* t, const sanity_config* c) {
    prompt_list all = pool_of(t, c->how.seed, c->prompts);
    sanity_result result = {.tried = all.count};
    int at_once = SANITY_SAMPLES_MAX / c->samples;
    int64_t all_right = 0;
    d->group = c->samples;
    for (int first = 0; first < all.count; first += at_once) {
        d->prompts = all.count - first < at_once ? all.count - first : at_once;
        rollout_listed_prompts(d, &all, first);
        d->first = (uint32_t)(first * c->samples);
        sampler_run(r, d, &c->how);
        rollout_verify(d, t);
        for (int p = 0; p < d->prompts; p++) {
            int right = 0;
            for (int i = 0; i < d->group; i++) right += d->reward[p * d->group + i] > 0;
            all_right += right;
            if (within(right, c)) prompt_list_add(&result.kept, all.text[first + p]);
        }
    }
    prompt_list_free(&all);
    result.solved = (double)all_right / ((double)result.tried * c->samples);
    if (result.kept.count == 0)
        fatal(
            "none of %d prompts was solved between --sanity-low %g and --sanity-high %g of the "
            "time; change these, or the warm-up",
            result.tried, c->low, c->high);
    return result;
}

uint64_t sanity_write(const prompt_list* kept, const char* path) {
    char *aside = xprintf("%s.tmp", path),
         *text = xalloc((size_t)kept->count + 1, TASK_TEXT_MAX, path);
    size_t bytes = 0;
    for (int i = 0; i < kept->count; i++)
        bytes += (size_t)sprintf(text + bytes, "%s\n", kept->text[i]);
    FILE* f = file_open(aside, "w");
    file_write(f, text, bytes, aside);
    file_close_sync(f, aside);
    file_rename(aside, path);
    uint64_t checksum = hash_text(text);
    free(text);
    free(aside);
    return checksum;
}

prompt_list sanity_read(const task* t, const char* path, uint64_t checksum) {
    int64_t bytes = file_size(path);
    if (bytes < 0) fatal("%s is missing; the run's prompts cannot be known without it", path);
    char* text = xalloc((size_t)bytes + 1, 1, path);
    FILE* f = file_open(path, "r");
    file_read(f, text, (size_t)bytes, path);
    file_close(f, path);
    prompt_list kept = {0};
    int altered = strlen(text) != (size_t)bytes || hash_text(text) != checksum;
    for (char* line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strlen(line) > (size_t)t->max_prompt || !t->is_prompt(t, line))
            fatal("%s:%d: \"%s\" is no prompt of the task %s; the file was altered", path,
                  kept.count + 1, shown(line, strlen(line)), t->name);
        prompt_list_add(&kept, line);
    }
    if (altered) fatal("%s was altered since the run wrote it; put the file back", path);
    if (kept.count == 0) fatal("%s holds no prompts; it was altered", path);
    free(text);
    return kept;
}

static sanity_result choose_in_fp32(run* r) {
    const settings* s = r->settings;
    backend* b = r->device;
    rollout* d = r->eval_data;
    sanity_config c = {s->sanity_prompts, s->sanity_samples, s->sanity_low, s->sanity_high,
                       settings_sampling(s, STREAM_SANITY, 0)};
    size_t bytes = r->parameters * sizeof(float);
    float* parameters = b->alloc(b, bytes, "the model before RL (--sanity-samples 0)");
    sampler* in_fp32 = sampler_create(b, &r->model, precision_of(&FORMAT_FP32, &FORMAT_FP32),
                                      &FORMAT_FP32, s->slots, d->max_prompt, d->max_new,
                                      d->capacity, d->nucleus_words, tokenizer_end());
    b->upload(b, parameters, r->base, bytes);
    sampler_sync(in_fp32, parameters);
    sanity_result chosen = sanity_select(in_fp32, d, &r->task, &c);
    sampler_free(in_fp32);
    b->release(b, parameters, bytes);
    return chosen;
}

void sanity_choose(run* r) {
    const settings* s = r->settings;
    sanity_result chosen = choose_in_fp32(r);
    r->sanity = chosen.kept;
    log_begin(r->log, "sanity", 0);
    log_number(r->log, "prompts", chosen.tried);
    log_number(r->log, "kept", r->sanity.count);
    log_number(r->log, "solved", chosen.solved);
    log_end(r->log);
    log_print(r->log,
              "sanity      %d of %d prompts are solved %g to %g %% of the time: these are trained "
              "and evaluated on",
              r->sanity.count, chosen.tried, 100 * s->sanity_low, 100 * s->sanity_high);
    char* path = run_path(r, "prompts");
    if (path) r->state.prompts_checksum = sanity_write(&r->sanity, path);
    free(path);
}

void sanity_restore(run* r) {
    char* path = run_path(r, "prompts");
    r->sanity = sanity_read(&r->task, path, r->state.prompts_checksum);
    free(path);
}
