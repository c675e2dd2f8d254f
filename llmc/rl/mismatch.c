// Metrics of the mismatch between the policy that sampled (mu) and the one that is trained (pi).
//
// x = log pi - log mu (0 where the two are equal, infinities included), r = exp(clamp(x, +-20));
// means are over response tokens unless they say sequences. The metrics of the ratio use the
// clamped r, which is what an objective sees; those written in x do not clamp, so that a token
// beyond the clamp shows in full.
//
//   logp_diff_max, logp_diff_mean   max, mean of |x|
//   prob_diff_max, prob_diff_min    max, min of pi - mu
//   prob_diff_mean                  mean of |pi - mu|: the total variation of "this token or not"
//   kl, kl_k3                       mean of -x; of e^x - x - 1: both estimate KL(mu || pi)
//   ratio_mean, ratio_min, ratio_max  of r
//   ess                             1 / mean((r / mean r)^2) = (sum r)^2 / (n sum r^2)
//   chi2                            mean(e^2x) - 1 = mean(expm1(2x))
//   seq_logratio_max                max over sequences of |sum x|
//   ppl_ratio                       mean over sequences of exp(-mean x)
//   token_mult_prob_error           mean of e^|x|: the factor by which a probability is off
//   outside                         fraction of tokens with |pi - mu| > delta
//   entropy                         mean of the sampler's entropy
//
// Invariant: with pi = mu bit for bit every difference is exactly 0 and ratio_mean, ess, ppl_ratio
// and token_mult_prob_error are exactly 1, for any number of tokens; near equality kl_k3 and chi2,
// which are of second and first order in x, keep their relative accuracy.
//
// Sources: the estimators kl and kl_k3, J. Schulman, "Approximating KL divergence" (2020); ess,
// chi2, ppl_ratio as in verl's rollout-correction metrics; prob_diff as in arXiv 2510.26788;
// token_mult_prob_error from NeMo-RL, docs/guides/grpo.md.
#include "mismatch.h"

#include <assert.h>
#include <math.h>  // exact operations alone: fabs, NAN
#include <string.h>

#include "../base/numerics.h"

const char* const MISMATCH_NAMES[MISMATCH_METRICS] = {"logp_diff_max",
                                                      "logp_diff_mean",
                                                      "prob_diff_max",
                                                      "prob_diff_min",
                                                      "prob_diff_mean",
                                                      "kl",
                                                      "kl_k3",
                                                      "ratio_mean",
                                                      "ratio_min",
                                                      "ratio_max",
                                                      "ess",
                                                      "chi2",
                                                      "seq_logratio_max",
                                                      "ppl_ratio",
                                                      "token_mult_prob_error",
                                                      "outside",
                                                      "entropy"};

static_assert(sizeof(mismatch) == MISMATCH_METRICS * sizeof(double),
              "the struct and the names list the same metrics");

void mismatch_values(const mismatch* m, double value[MISMATCH_METRICS]) {
    memcpy(value, m, sizeof *m);
}

// A NaN stays, which fmax and fmin would drop.
static double larger(double a, double b) { return a >= b || a != a ? a : b; }
static double smaller(double a, double b) { return a <= b || a != a ? a : b; }

// e^x - x - 1 of n numbers. Near 0, where the difference would cancel, it is the series
// x^2/2 (1 + x/3 (1 + x/4 ...)), of all numbers at once, so that their divisions overlap.
static void k3_of(double* restrict k3, const double* restrict x, int n) {
    for (int i = 0; i < n; i++) k3[i] = 1;
    for (int k = 17; k >= 3; k--)
        for (int i = 0; i < n; i++) k3[i] = 1 + k3[i] * x[i] / k;
    for (int i = 0; i < n; i++)
        k3[i] = fabs(x[i]) < 0.5 ? x[i] * x[i] / 2 * k3[i] : num_expm1(x[i]) - x[i];
}

enum { BLOCK = 128 };  // tokens

typedef struct sums {
    double x, abs_x, exp_abs_x, k3, chi2, r, r2, abs_gap, outside, entropy;  // over tokens
    double seq_x, ppl;  // one sequence; over sequences
} sums;

static double log_ratio(double log_pi, double log_mu) {
    return log_pi == log_mu ? 0.0 : log_pi - log_mu;
}

// k3: its value where log pi and log mu differ.
static void add_token(mismatch* m, sums* s, double log_pi, double log_mu, double k3, double delta) {
    double x = log_ratio(log_pi, log_mu), r = 1, gap = 0, error = 1;
    if (x != 0) {  // these take nearly all of the time
        r = num_exp(x < -20 ? -20 : x > 20 ? 20 : x);
        gap = num_exp(log_pi) - num_exp(log_mu);
        error = num_exp(fabs(x));
        s->k3 += k3;
        s->chi2 += num_expm1(2 * x);
    }
    m->logp_diff_max = larger(m->logp_diff_max, fabs(x));
    m->prob_diff_max = larger(m->prob_diff_max, gap);
    m->prob_diff_min = smaller(m->prob_diff_min, gap);
    m->ratio_max = larger(m->ratio_max, r);
    m->ratio_min = smaller(m->ratio_min, r);
    s->x += x;
    s->seq_x += x;
    s->abs_x += fabs(x);
    s->exp_abs_x += error;
    s->r += r;
    s->r2 += r * r;
    s->abs_gap += fabs(gap);
    s->outside += !(fabs(gap) <= delta);
}

// At most BLOCK tokens.
static void add_block(mismatch* m, sums* s, const float* log_pi, const float* log_mu, int n,
                      double delta) {
    double x[BLOCK], k3[BLOCK + 1] = {0};
    int differ = 0;
    for (int i = 0; i < n; i++) {
        x[differ] = log_ratio(log_pi[i], log_mu[i]);
        differ += x[differ] != 0;
    }
    k3_of(k3, x, differ);
    for (int i = 0, at = 0; i < n; i++) {
        add_token(m, s, log_pi[i], log_mu[i], k3[at], delta);
        at += log_ratio(log_pi[i], log_mu[i]) != 0;
    }
}

static mismatch nothing(void) {
    mismatch m;
    double value[MISMATCH_METRICS];
    for (int i = 0; i < MISMATCH_METRICS; i++) value[i] = NAN;
    memcpy(&m, value, sizeof m);
    return m;
}

mismatch mismatch_measure(const float* log_pi, const float* log_mu, const float* entropy,
                          const size_t* start, int sequences, double delta) {
    mismatch m = {.prob_diff_max = -INFINITY, .prob_diff_min = INFINITY, .ratio_min = INFINITY};
    sums s = {0};
    int used = 0;
    for (int q = 0; q < sequences; q++) {
        if (start[q] == start[q + 1]) continue;
        s.seq_x = 0;
        for (size_t t = start[q]; t < start[q + 1]; t += BLOCK) {
            size_t left = start[q + 1] - t;
            add_block(&m, &s, log_pi + t, log_mu + t, left < BLOCK ? (int)left : BLOCK, delta);
        }
        for (size_t t = start[q]; t < start[q + 1]; t++) s.entropy += entropy[t];
        m.seq_logratio_max = larger(m.seq_logratio_max, fabs(s.seq_x));
        s.ppl += num_exp(-s.seq_x / (double)(start[q + 1] - start[q]));
        used++;
    }
    if (!used) return nothing();
    double n = (double)(start[sequences] - start[0]);
    m.logp_diff_mean = s.abs_x / n;
    m.prob_diff_mean = s.abs_gap / n;
    m.kl = (0 - s.x) / n;  // 0, not -0, at equality
    m.kl_k3 = s.k3 / n;
    m.ratio_mean = s.r / n;
    // r is clamped, so nothing overflows; rounding alone could lift equal ratios above 1.
    m.ess = smaller(1, s.r * s.r / (n * s.r2));
    m.chi2 = s.chi2 / n;
    m.ppl_ratio = s.ppl / used;
    m.token_mult_prob_error = s.exp_abs_x / n;
    m.outside = s.outside / n;
    m.entropy = s.entropy / n;
    return m;
}
