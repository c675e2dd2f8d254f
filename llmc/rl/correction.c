// With x = log pi_old - log mu of a token (0 where the two are equal), n the tokens of its
// sequence:
//
//   name     what is bounded                    weight                       low    high
//   tis      rho = exp(x)                       rho, brought into the bounds 0      2
//   mis      rho                                rho; 0 outside of the bounds 0.5    2
//   icepop   rho                                as mis                       0.5    5
//   seq-tis  R = exp(sum of x), the sequence's  R, brought into the bounds   0      2
//   seq-mis  R                                  R; 0 outside of the bounds   0      2
//   geo-mis  G = exp(mean of x)                 1; 0 outside of the bounds   0.999  1.001
//
// Exponents are kept within +-20. A weight of 0 leaves the token (or sequence) in every
// denominator: the loss is smaller, not renormalized. The term to the reference model is not
// weighted, as in TRL and verl.
//
// Sources: tis, token-level truncated importance sampling: F. Yao et al., "Your efficient RL
// framework secretly brings you off-policy RL training" (2025), whose C is 2; slime's --use-tis.
// mis and icepop are one rule under two names: IcePop is arXiv 2510.18855, its bounds 0.5 and 5;
// those of mis are the ones of verl's rollout correction. seq-tis and seq-mis: arXiv 2510.26788;
// TRL's default is seq-mis with an upper bound of 3. geo-mis is verl's seq_mean_k1, a mask alone,
// since a geometric mean is no importance weight; verl also takes what it masks out of the
// denominators.
#include "correction.h"

#include <math.h>  // exact operations alone: INFINITY, NAN

#include "../base/numerics.h"

const char* const CORRECTION_NAMES[] = {"none",    "tis",     "mis",     "icepop",
                                        "seq-tis", "seq-mis", "geo-mis", NULL};

correction correction_defaults(correction_kind kind) {
    static const double bounds[][2] = {{0, INFINITY}, {0, 2}, {0.5, 2},      {0.5, 5},
                                       {0, 2},        {0, 2}, {0.999, 1.001}};
    return (correction){kind, bounds[kind][0], bounds[kind][1]};
}

void correction_check(const correction* c) {
    if (!(c->low >= 0 && c->low <= 1))
        fatal("--correct-low is %g; it must be from 0 to 1, which equal policies have", c->low);
    if (!(c->high >= 1))
        fatal(
            "--correct-high is %g; it must be at least 1, which equal policies have (inf is none)",
            c->high);
}

static double log_ratio(double log_old, double log_mu) {
    return log_old == log_mu ? 0.0 : log_old - log_mu;
}

static double ratio_of(double x) { return num_exp(x < -20 ? -20 : x > 20 ? 20 : x); }

static double bounded(const correction* c, double ratio) {
    int truncates = c->kind == CORRECT_TIS || c->kind == CORRECT_SEQ_TIS;
    if (ratio < c->low) return truncates ? c->low : 0;
    if (ratio > c->high) return truncates ? c->high : 0;
    return c->kind == CORRECT_GEO_MIS && ratio == ratio ? 1 : ratio;
}

// What a sequence's tokens share; of no meaning where each token has its own.
static double sequence_ratio(const correction* c, const float* log_old, const float* log_mu,
                             size_t length) {
    double sum = 0;
    for (size_t t = 0; t < length; t++) sum += log_ratio(log_old[t], log_mu[t]);
    return ratio_of(c->kind == CORRECT_GEO_MIS ? sum / (double)length : sum);
}

correction_report correction_weights(const correction* c, const float* log_old, const float* log_mu,
                                     const size_t* start, int sequences, float* weight) {
    correction_report r = {0};
    double sum = 0, squares = 0, n = (double)(start[sequences] - start[0]);
    int by_token = c->kind <= CORRECT_ICEPOP;
    for (int s = 0; s < sequences; s++) {
        size_t first = start[s], length = start[s + 1] - first;
        double shared = sequence_ratio(c, log_old + first, log_mu + first, length);
        for (size_t t = first; t < first + length; t++) {
            double ratio = by_token ? ratio_of(log_ratio(log_old[t], log_mu[t])) : shared;
            double w = bounded(c, ratio);
            weight[t] = (float)w;
            r.weight_mean += w;
            r.zeroed += w == 0;
            r.truncated += w != 0 && (ratio < c->low || ratio > c->high);
            sum += ratio;
            squares += ratio * ratio;
        }
    }
    r.weight_mean /= n;
    r.zeroed /= n;
    r.truncated /= n;
    // Rounding alone could lift that of equal ratios above 1.
    r.ess = sum * sum / (n * squares);
    if (r.ess > 1) r.ess = 1;
    return r;
}
