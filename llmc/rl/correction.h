// correction: what makes up for the difference between the sampler and the trainer. With
// --correct there are three policies: mu, which sampled; pi_old, the trainer before the first
// update of the step; pi, the trainer now. The objective's own ratio is pi / pi_old. Its part of
// the gradient is multiplied by a weight of rho = pi_old / mu, which stays fixed during the step.
// The formulas: the table at the head of correction.c, with sources.
#ifndef LLMC_CORRECTION_H
#define LLMC_CORRECTION_H

#include "../base/common.h"

LLMC_BEGIN

typedef enum {
    CORRECT_NONE,
    CORRECT_TIS,
    CORRECT_MIS,
    CORRECT_ICEPOP,
    CORRECT_SEQ_TIS,
    CORRECT_SEQ_MIS,
    CORRECT_GEO_MIS
} correction_kind;

extern const char* const CORRECTION_NAMES[];  // in the order of the enum, NULL at the end

typedef struct correction {
    correction_kind kind;
    double low, high;  // 0 <= low <= 1 <= high, which may be infinite
} correction;

// A kind with the bounds that it has where the user gives none.
correction correction_defaults(correction_kind kind);
// Fatal, with a sentence that names the flag, for bounds that 1 does not lie between.
void correction_check(const correction* c);

typedef struct correction_report {
    double weight_mean;  // over tokens
    double zeroed;       // share of tokens with the weight 0
    double truncated;    // share of tokens whose weight is a bound
    double ess;          // effective sample size of what is bounded, over tokens; in (0, 1]
} correction_report;

// The weights of the tokens of sequence s, start[s] .. start[s + 1] - 1, from log pi_old and log mu
// in nats. Where the two are equal every weight is exactly 1. NaN in, NaN out. Without tokens the
// report is NaN. Not for CORRECT_NONE.
correction_report correction_weights(const correction* c, const float* log_old, const float* log_mu,
                                     const size_t* start, int sequences, float* weight);

LLMC_END
#endif
