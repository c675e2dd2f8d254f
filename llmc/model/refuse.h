// refuse: the one place that says what a device cannot do in a precision.
#ifndef LLMC_REFUSE_H
#define LLMC_REFUSE_H

#include "../device/backend.h"
#include "precision.h"

LLMC_BEGIN

// What a run asks of a device.
typedef struct demand {
    precision train, rollout, eval;
    const format* kv;     // of cached keys and values
    int batch_invariant;  // no bit of a row may depend on its batch
    int entropy_bonus;    // --entropy-coef
    int changes;          // --log-changes
    int experts;          // of the model's layers
} demand;

// NULL if the device can do it; else why not, as the beginning of a sentence that names the flag.
// Free with free().
char* refuse(const capabilities* can, const demand* d);

LLMC_END
#endif
