// warmup: supervised training before RL, on a task's worked examples or the responses of --data:
// the same update with the objective `sft`, in fp32. A cache keeps warmed-up models for other runs.
#ifndef LLMC_WARMUP_H
#define LLMC_WARMUP_H

#include "run.h"

LLMC_BEGIN

typedef struct warmup_result {
    trainer_update_result update;
    double lr, seconds;
} warmup_result;

void warmup_create(run* r);  // the warm-up's trainer and rollout
void warmup_free(run* r);
// One optimizer step.
warmup_result warmup_step(run* r);

// Refuses a --warmup-cache that cannot be written, before anything else is made.
void warmup_check_cache(const settings* s);
// Whether --warmup-cache holds this warm-up; then r->base is its model and nothing is to be
// trained. A damaged entry is said, and made anew.
int warmup_from_cache(run* r);
void warmup_to_cache(const run* r);  // r->base, if there is a cache

LLMC_END
#endif
