// sampler: draws completions. It keeps keys and values in pages, batches continuously over its
// slots, and runs a prompt only once for its whole group. It has its own weights, precision and
// cache format; where the formats equal the trainer's, log mu of a token equals log pi bit for bit.
#ifndef LLMC_SAMPLER_H
#define LLMC_SAMPLER_H

#include "../model/model.h"
#include "rollout.h"

LLMC_BEGIN

typedef struct sampler_stats {
    int64_t tokens;          // response tokens
    int64_t prefill_tokens;  // of prompts, and of sequences that had waited
    int64_t decode_steps;    // passes over the slots
    int64_t preemptions;     // of sequences that had to give their pages back and wait
    double occupancy;        // mean share of busy slots over the decode steps
} sampler_stats;

typedef struct sampler sampler;

// kv: format of cached keys and values. slots: sequences at a time. Sequences of at most max_prompt
// + max_new tokens, at most `capacity` of them in one run. kv_memory: most bytes of the cache; 0:
// as many as the longest sequences in all slots take. Fewer let sequences wait, and change no bit.
sampler* sampler_create(backend* b, const model* m, precision p, const format* kv, int slots,
                        int max_prompt, int max_new, int capacity, int nucleus_words, end_set ends,
                        size_t kv_memory);
void sampler_free(sampler* r);
// From now on the experts that each token took are recorded. Every rollout with experts that is
// passed later must have the sampler's max_prompt.
void sampler_record_experts(sampler* r);
size_t sampler_record_bytes(const sampler* r);  // device memory that this takes
// From now on the `count` most probable tokens at each place are recorded. Every rollout with
// candidates that is passed later must have been given the same count by rollout_add_candidates.
void sampler_record_candidates(sampler* r, int count);
// From now on the sampler reads weights that are not its own, of the same model and of a precision
// that is the same forward (precision_same_forward), and drops its own: sampler_sync then does
// nothing, because their owner keeps them new.
void sampler_share(sampler* r, model_weights* w);
// Takes over the trainer's parameters (device, fp32), rounded to nearest.
void sampler_sync(sampler* r, const float* parameters);
const model_weights* sampler_weights(const sampler* r);
int sampler_shares(const sampler* r);
size_t sampler_cache_bytes(const sampler* r);

// Samples group completions of each prompt of `d`: begin, then step until it returns 0 (sequences
// not yet finished), then end, which fills in start, token, log_mu, entropy, nucleus, candidate
// and candidate_mu. Where ranks share `d`, begin and step are for the rank's own prompts, and end
// is over ranks: it brings together what all have sampled, and the stats are those of all.
void sampler_begin(sampler* r, rollout* d, const sampling* how);
int sampler_step(sampler* r);
sampler_stats sampler_end(sampler* r);
// Adds the stats of another run; the occupancy is the mean over the steps of both.
void sampler_stats_add(sampler_stats* to, const sampler_stats* more);
// All three.
sampler_stats sampler_run(sampler* r, rollout* d, const sampling* how);

LLMC_END
#endif
