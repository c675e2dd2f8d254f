// stale: weights as they were before: copies of the trainer's parameters for a sampler that runs on
// older ones. Real systems have them for speed's sake; here they are an experiment.
//
//   sync_every N  the sampler takes the weights over every N steps: step s samples with those of
//                 step s - s % N
//   lag N         the sampler is N steps behind, as in an asynchronous pipeline: step s samples
//                 with the weights of step s - N, or of step 0 where there is no such step
//
// The weights "of step s" are those that the trainer has when the step begins. One of the two: what
// both together would be is not obvious, so they are refused.
#ifndef LLMC_STALE_H
#define LLMC_STALE_H

#include "../device/backend.h"

LLMC_BEGIN

typedef struct stale {
    backend* b;
    size_t count;         // parameters
    int sync_every, lag;  // 1, 0: always the newest
    int copies;           // lag; or 1 where only sync_every asks for one; or 0
    float* copied;        // device (copies, count)
} stale;

// sync_every >= 1, lag >= 0; fatal if the one is above 1 and the other above 0.
stale* stale_create(backend* b, size_t count, int sync_every, int lag);
void stale_free(stale* s);

// Before step 0: every copy becomes `parameters` (device, count).
void stale_begin(stale* s, const float* parameters);
// What step `step` samples with, where the trainer has `parameters`; valid until stale_push.
const float* stale_take(const stale* s, const float* parameters, int step);
// After sampling: keeps the step's own parameters for later ones. Once a step, in order.
void stale_push(stale* s, const float* parameters, int step);
// Whether the step samples with older weights than the trainer's.
int stale_is_older(const stale* s, int step);

// The copies, to and from host memory (copies, count).
void stale_save(const stale* s, float* host);
void stale_load(stale* s, const float* host);

LLMC_END
#endif
