// Draws are keyed by the number of a prompt and of its sample.
#include "sanity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int within(int right, const sanity_config* c) {
    double slack = 1e-9;  // a share such as 0.3 has no exact double
    return right >= c->low * c->samples - slack && right <= c->high * c->samples + slack;
}

sanity_result sanity_select(sampler* r, rollout* d, const source* from, const tokenizer* t,
                            const sanity_config* c) {
    problem_list all = source_pool(from, c->how.seed, c->prompts);
    sanity_result result = {.tried = all.count};
    int at_once = SANITY_SAMPLES_MAX / c->samples;
    int64_t all_right = 0;
    d->group = c->samples;
    for (int first = 0; first < all.count; first += at_once) {
        d->prompts = all.count - first < at_once ? all.count - first : at_once;
        rollout_ask(d, t, &all, first);
        d->first = (uint32_t)(first * c->samples);
        sampler_run(r, d, &c->how);
        rollout_judge(d, from);
        reward_counts_add(&result.lost, &d->judged.lost);
        for (int p = 0; p < d->prompts; p++) {
            int right = 0;
            for (int i = 0; i < d->group; i++) right += d->right[p * d->group + i] > 0;
            all_right += right;
            if (within(right, c)) problem_add(&result.kept, &all.item[first + p]);
        }
    }
    problem_list_free(&all);
    result.solved = (double)all_right / ((double)result.tried * c->samples);
    if (result.kept.count == 0)
        fatal(
            "none of %d prompts was solved between --sanity-low %g and --sanity-high %g of the "
            "time; change these, or the warm-up",
            result.tried, c->low, c->high);
    return result;
}

uint64_t sanity_write(const problem_list* kept, const char* path) {
    char *aside = xprintf("%s.tmp", path), *text;
    size_t bytes;
    FILE *lines = open_memstream(&text, &bytes), *f = file_open(aside, "w");
    if (!lines) fatal("no memory for %s", path);
    for (int i = 0; i < kept->count; i++) {
        char* line = source_line(&kept->item[i]);
        fprintf(lines, "%s\n", line);
        free(line);
    }
    if (fclose(lines)) fatal("no memory for %s", path);
    file_write(f, text, bytes, aside);
    file_close_sync(f, aside);
    file_rename(aside, path);
    uint64_t checksum = hash_text(text);
    free(text);
    free(aside);
    return checksum;
}

problem_list sanity_read(const source* from, const char* path, uint64_t checksum) {
    int64_t bytes = file_size(path);
    if (bytes < 0) fatal("%s is missing; the run's prompts cannot be known without it", path);
    char* text = xalloc((size_t)bytes + 1, 1, path);
    FILE* f = file_open(path, "r");
    file_read(f, text, (size_t)bytes, path);
    file_close(f, path);
    problem_list kept = {0};
    int altered = strlen(text) != (size_t)bytes || hash_text(text) != checksum;
    for (char* line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        problem found;
        if (!source_recall(from, line, &found))
            fatal("%s:%d: \"%s\" is no prompt of %s; the file was altered", path, kept.count + 1,
                  shown(line, strlen(line)), from->data ? from->data : from->task.name);
        problem_add(&kept, &found);
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
    sampler* in_fp32 =
        sampler_create(b, &r->model, precision_of(&FORMAT_FP32, &FORMAT_FP32), &FORMAT_FP32,
                       s->slots, d->max_prompt, d->max_new, d->capacity, d->nucleus_words,
                       r->tokenizer.ends, settings_kv_memory(s));
    b->upload(b, parameters, r->base, bytes);
    sampler_sync(in_fp32, parameters);
    sanity_result chosen = sanity_select(in_fp32, d, &r->source, &r->tokenizer, &c);
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
    char *lost = reward_counts_text(&chosen.lost), *path = run_path(r, "prompts");
    if (lost) log_print(r->log, "sanity      %s; they get 0 from it", lost);
    free(lost);
    if (path && run_is_first(r)) r->state.prompts_checksum = sanity_write(&r->sanity, path);
    free(path);
}

void sanity_restore(run* r) {
    char* path = run_path(r, "prompts");
    r->sanity = sanity_read(&r->source, path, r->state.prompts_checksum);
    free(path);
}
