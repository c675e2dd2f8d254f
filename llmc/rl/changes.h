// changes: the share of all weights that an update changed, by who holds them. A step that is small
// next to a weight is lost where the weight is rounded: a bf16 weight moves by at least 1/256 of
// itself, or not at all. So at small learning rates masters change, and the weights that products
// read do not.
//
// A weight counts as changed where its value in a format differs from the one before the update.
// Blocks whose scale is no power of two are the exception: there the scale follows the block's
// largest weight with each update and moves every value a little, so elements count, without
// scales. Counts are integers, and each rank counts all weights: no number of ranks or threads
// changes a share.
#ifndef LLMC_CHANGES_H
#define LLMC_CHANGES_H

#include "../model/model.h"

LLMC_BEGIN

typedef struct changed_shares {
    double stored;          // of the parameters that the optimizer steps: fp32 masters, or what
                            // --master-weights 0 stores
    double train, rollout;  // as the trainer's and the sampler's precision hold them
} changed_shares;

typedef struct changes changes;

// Holds a copy of the parameters, and of its largest
// matrix twice where a precision has scales.
changes* changes_create(backend* b, const model* m, precision of_trainer, precision of_sampler);
void changes_free(changes* c);
size_t changes_bytes(const changes* c);  // device memory held; 0 of NULL
// Around an update of `parameters` (device).
void changes_before(changes* c, const float* parameters);
changed_shares changes_after(changes* c, const float* parameters);  // NaN of NULL

LLMC_END
#endif
