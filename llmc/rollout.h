// rollout: the sampler. A KV cache in pages, continuous batching over slots, one prefill a prompt
// shared by its group. It has weights, a precision and a cache format of its own; at equal formats
// its log mu of a token equals the trainer's log pi bit for bit.
#ifndef LLMC_ROLLOUT_H
#define LLMC_ROLLOUT_H

#include "batch.h"
#include "gpt2.h"

LLMC_BEGIN

typedef struct rollout_stats {
    int64_t tokens;          // response tokens
    int64_t prefill_tokens;  // prompt tokens run through the model
    int64_t decode_steps;    // passes over the slots
    double occupancy;        // mean share of busy slots over the decode steps
} rollout_stats;

typedef struct rollout rollout;

// kv: format of cached keys and values. slots: sequences at a time. Sequences of at most max_prompt
// + max_new tokens, at most `capacity` of them in one run.
rollout* rollout_create(backend* b, const gpt2_config* c, precision p, const format* kv, int slots,
                        int max_prompt, int max_new, int capacity, int keep_words, int end_token);
void rollout_free(rollout* r);
// From now on the `count` most probable tokens at each place are recorded; a batch that has room
// for candidates has room for as many.
void rollout_record_candidates(rollout* r, int count);
// Takes over the trainer's parameters (device, fp32), rounded to nearest.
void rollout_sync(rollout* r, const float* parameters);
const gpt2_weights* rollout_weights(const rollout* r);
size_t rollout_cache_bytes(const rollout* r);

// Samples group completions of each prompt of `d`: begin, then step until it returns 0 (sequences
// not yet finished), then end, which fills in token, length, log_mu, entropy, keep and
// candidates.
void rollout_begin(rollout* r, batch* d, const sampling* how);
int rollout_step(rollout* r);
rollout_stats rollout_end(rollout* r);
// All three.
rollout_stats rollout_run(rollout* r, batch* d, const sampling* how);

LLMC_END
#endif
