// mismatch: the metrics that compare the sampler's mu with the trainer's pi over response tokens.
// At equal formats and weights every difference is exactly 0 and ratio_mean, ess, ppl_ratio are
// exactly 1. Formulas and names: the table at the head of mismatch.c.
#ifndef LLMC_MISMATCH_H
#define LLMC_MISMATCH_H

#include "common.h"

LLMC_BEGIN

typedef struct mismatch {
    double logp_diff_max, logp_diff_mean;
    double prob_diff_max, prob_diff_min, prob_diff_mean;
    double kl, kl_k3;
    double ratio_mean, ratio_min, ratio_max;
    double ess, chi2;
    double seq_logratio_max, ppl_ratio;
    double outside;  // fraction of tokens with |pi - mu| > delta
    double entropy;  // mean of the sampler's entropy, nats
} mismatch;

// The tokens of all sequences one after another; sequence s has length[s] of them (0 is allowed).
// log_pi, log_mu, entropy: (sum of length). With no tokens at all every metric is NaN.
mismatch mismatch_measure(const float* log_pi, const float* log_mu, const float* entropy,
                          const int* length, int sequences, double delta);

// For logs: names and values in one order. MISMATCH_METRICS of them.
#define MISMATCH_METRICS 16
extern const char* const MISMATCH_NAMES[MISMATCH_METRICS];
void mismatch_values(const mismatch* m, double value[MISMATCH_METRICS]);

LLMC_END
#endif
