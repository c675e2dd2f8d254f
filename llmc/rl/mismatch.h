// mismatch: the metrics that compare the sampler's mu with the trainer's pi over response tokens.
// At equal formats and weights every difference is exactly 0 and ratio_mean, ess, ppl_ratio,
// token_mult_prob_error are exactly 1. Formulas and names: the table at the head of mismatch.c.
#ifndef LLMC_MISMATCH_H
#define LLMC_MISMATCH_H

#include "../base/common.h"

LLMC_BEGIN

typedef struct mismatch {
    double logp_diff_max, logp_diff_mean;                 // nats
    double prob_diff_max, prob_diff_min, prob_diff_mean;  // max, min of pi - mu; mean |pi - mu|
    double kl, kl_k3;                                     // nats
    double ratio_mean, ratio_min, ratio_max;              // of the clamped ratio
    double ess, chi2;                                     // in (0, 1]; >= -1
    double seq_logratio_max, ppl_ratio;                   // over sequences
    double token_mult_prob_error;                         // >= 1
    double outside;                                       // fraction with |pi - mu| > delta
    double entropy;                                       // mean of the sampler's, nats
} mismatch;

// Of sequence s the tokens start[s] .. start[s + 1] - 1 of log_pi, log_mu and entropy, in nats (a
// sequence without tokens is left out). delta > 0, infinity allowed. Sums run in token order, in
// double. With no tokens at all every metric is NaN; a NaN among the inputs makes NaN of every
// metric that reads it, maxima and minima included (`outside` counts it as outside).
mismatch mismatch_measure(const float* log_pi, const float* log_mu, const float* entropy,
                          const size_t* start, int sequences, double delta);

// For logs: names and values in one order. MISMATCH_METRICS of them.
#define MISMATCH_METRICS 17
extern const char* const MISMATCH_NAMES[MISMATCH_METRICS];
void mismatch_values(const mismatch* m, double value[MISMATCH_METRICS]);

LLMC_END
#endif
