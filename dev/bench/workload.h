// workload.h: what the programs that measure give a model to do.
#ifndef DEV_WORKLOAD_H
#define DEV_WORKLOAD_H

#include <limits.h>

#include "rl/trainer.h"

// `sequences` prompts of `prompt` tokens, one full response of `response` tokens each; tokens are
// uniform below `vocab`, advantages 1 and -1 in turn. Free with rollout_free.
static inline rollout* workload_batch(int vocab, int sequences, int prompt, int response) {
    rollout* d = rollout_create(sequences, prompt, response, 0);
    rng r = rng_at(1, STREAM_SAMPLE, 0, 0);
    d->prompts = d->sequences = sequences;
    d->group = 1;
    for (int s = 0; s < sequences; s++) {
        d->prompt_length[s] = prompt;
        d->start[s + 1] = d->start[s] + response;
        d->advantage[s] = s % 2 ? 1 : -1;
        for (int i = 0; i < prompt; i++) d->prompt[s * prompt + i] = (int)rng_below(&r, vocab);
        for (int i = 0; i < response; i++) d->token[d->start[s] + i] = (int)rng_below(&r, vocab);
    }
    return d;
}

// AdamW with fp32 weights.
static inline optimizer_config workload_adamw(void) {
    return (optimizer_config){.beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.01,
                              .clip = 1,
                              .format = &FORMAT_FP32,
                              .seed = 1};
}

// A trainer whose micro-batches hold the whole of `d`.
static inline trainer* workload_trainer(backend* b, const model* m, precision p,
                                        const optimizer_config* config, const rollout* d,
                                        recompute_level keep) {
    trainer_room room = trainer_room_for(d, d->group, INT_MAX);
    return trainer_create(b, m, p, config, &room, keep);
}

#endif
