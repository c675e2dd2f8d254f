#include "answer.h"

#include <stdlib.h>
#include <string.h>

#include "../model/model_file.h"

static sampler* sampler_of_model(const run* r, int prompt, int samples) {
    const settings* s = r->settings;
    backend* b = r->device;
    float *host, *parameters;
    size_t bytes = r->parameters * sizeof(float);
    sampler* q = sampler_create(b, &r->model, settings_eval_precision(s),
                                settings_eval_kv_format(s), s->slots, prompt, s->max_new_tokens,
                                samples, 0, r->tokenizer.ends, settings_kv_memory(s));
    model_file_read(s->init, &host);
    parameters = b->alloc(b, bytes, "parameters");
    b->upload(b, parameters, host, bytes);
    sampler_sync(q, parameters);
    b->release(b, parameters, bytes);
    free(host);
    return q;
}

static void print_completions(sampler* q, rollout* d, int group, const sampling* how,
                              const char* what) {
    d->group = group;
    sampler_run(q, d, how);
    for (int i = 0; i < d->sequences; i++) {
        char* text = rollout_response_text(d, i);
        text_mask(text, "\n\t");
        printf("%s%s%s\n", what, text, rollout_ended(d, i) ? "" : " (cut off)");
        free(text);
    }
}

void answer_prompt(run* r) {
    const settings* s = r->settings;
    token_list tokens = {0};
    problem asked = {.prompt = s->prompt};
    problem_list list = {&asked, 1, 1};
    tokenizer_prompt(&r->tokenizer, s->prompt, &tokens);
    if (!tokens.count) fatal("--prompt has no tokens; give a text");
    if (tokens.count > (size_t)(s->context - s->max_new_tokens))
        fatal(
            "--prompt has %zu tokens, and with --max-new-tokens %d the context of %s has room for "
            "%d",
            tokens.count, s->max_new_tokens, s->init, s->context - s->max_new_tokens);
    sampler* q = sampler_of_model(r, (int)tokens.count, s->eval_samples);
    rollout* d = rollout_create(s->eval_samples, (int)tokens.count, s->max_new_tokens, 0);
    d->prompts = 1;
    rollout_ask(d, &r->tokenizer, &list, 0);
    sampling best = {.inverse_temperature = 1, .greedy = 1, .top_p = 1};
    sampling how = settings_eval_sampling(s, 0);
    print_completions(q, d, 1, &best, "most probable: ");
    print_completions(q, d, s->eval_samples, &how, "drawn: ");
    rollout_free(d);
    sampler_free(q);
    token_list_free(&tokens);
}
