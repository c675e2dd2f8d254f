// Objectives, advantages and aggregation.
//
// Notation: mu, pi = probability that the sampler gave / the trainer gives the sampled token,
// x = clamp(log pi - log mu, +-20), r = e^x, g = pi - mu, A = advantage, sg = stop-gradient.
// An objective is a loss L of log pi; what backward needs of it is c = -dL / dlog pi. Every loss
// here has exactly that derivative wherever it has one, with whatever stands in sg(..) held fixed
// and masks (which are steps) fixed too. Beyond the clamp c keeps the clamped r.
//
//   name        c                                         L
//   sft         1                                         -log pi
//   reinforce   A                                         -A log pi
//   pg-is       A min(r, C)                               C = inf: -A r
//                                                         else: -A sg(min(r, C)) log pi
//   cispo       A clamp(r, 1 - low, 1 + high)             -A sg(clamp(r, ..)) log pi
//   grpo        A r; 0 if (A > 0 and r > 1 + high) or     -min(A r, A clamp(r, ..)); A < 0:
//               (A < 0 and (r < 1 - low or r > C))        -max(min(A r, A clamp(r, ..)), A C)
//   spo         r (A - |A| (r - 1) / epsilon)             -A r + |A| (r - 1)^2 / (2 epsilon)
//   dppo-tv     as pg-is; 0 if sign(A) g > delta          as pg-is; 0 where masked
//   dppo-kl     as pg-is; 0 if D > delta, sign(A) x > 0   as pg-is; 0 where masked
//   drpo        r (A - |A| g / delta)                     -A r + |A| mu (r - 1)^2 / (2 delta)
//   drpo-mask   as drpo where dppo-tv masks, else A r     the same cases
//   drpo-noabs  r (A - g / delta)                         -A r + mu (r - 1)^2 / (2 delta)
//   seq-tis     A min(R, C)                               C = inf: -A R / n
//                                                         else: -A sg(min(R, C)) log pi
//   seq-mis     A R; 0 if R > C                           -A R / n; 0 where masked
//   gspo        A S; 0 as in grpo, S for r                -min(A S, A clamp(S, ..))
//   dppo-topk-* as pg-is; 0 if D > delta, sign(A) x > 0   as pg-is; 0 where masked
//   reg kl      - b r (1 + x)                             + b r x
//   reg k3      - b (r - 1)                               + b (r - 1 - x)
//   reg tv      - (b / 2) r sign(x)                       + (b / 2) |r - 1|
//   reference   k2: - beta r y                            + beta sg(r) y^2 / 2
//               k3: - beta r (1 - e^-y)                   + beta sg(r) (e^-y - 1 + y)
//   entropy     (head_backward in device/ops.def)         - b H
//
// H is the entropy of the distribution over tokens that pi is a part of. It is no function of
// log pi, so its gradient has no c, and a correction does not multiply it.
// D = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)) is the KL divergence of "this token or
// another"; g is its total variation. y = clamp(log pi - log ref, +-20). drpo in the form
// A r w has w = 1 - sign(A) g / delta: 0 at pi = mu + sign(A) delta, negative (corrective) beyond.
// For dppo-topk-* D is the divergence, KL from mu to pi or total variation, of "one of these tokens
// or another": the K that the sampler held most probable, and the sampled one. It is exactly 0
// where both sides give these tokens equal log-probabilities.
// seq-tis, seq-mis and gspo weigh whole sequences: of n tokens, R = exp(clamp(sum x, +-20)) and S =
// exp(mean x). Their L is the token's share of the sequence's: the sum of the shares is what c
// differentiates. As for every objective the aggregation multiplies c and L by one weight a
// sequence. GSPO as published, a mean over sequences of -min(A S, ..), is seq-mean-token-mean,
// whose weight has the 1/n of S's own gradient; with token-mean a sequence counts as often as it
// has tokens. seq-tis with C = inf and seq-mean-token-sum-norm is the unbiased gradient of the mean
// reward, times a constant.
//
// A capped weight is held fixed (sg) because a loss whose ratio is cut has no gradient beyond the
// cut, which is what grpo wants and pg-is does not. k1 is a reward (objective_kl_reward): as a loss
// its gradient has zero mean.
//
// Advantages of rewards R, where mean and std are a group's (std over one less than there are):
//
//   mean                  R - mean
//   std                   (R - mean) / (std + 1e-6)
//   rloo                  R - mean of the others
//   batch-std             (R - mean) / (std of all rewards + 1e-6)
//   reinforce++           (R - M) / sqrt(V + 1e-8), of the mean M and variance V over all tokens
//   reinforce++-baseline  the same of R - mean for R
//
// The weight of a token, in a mini-batch of T tokens in S sequences, n of them in its own; what
// --overlong-filter leaves out counts in neither:
//
//   token-mean            1 / T                    seq-mean-token-sum       1 / S
//   seq-mean-token-mean   1 / (S n)                token-sum                1
//   seq-mean-token-sum-norm  1 / (S max-new-tokens)
//   rollout-token-mean    U / (tokens of the rollout), of U mini-batches
//
// Sources: pg-is with cap (V-trace) arXiv 1802.01561; cispo 2506.13585; ppo clip 1707.06347, for
// groups 2402.03300, wider above 2503.14476, dual 1912.09729; spo 2401.16025; dppo 2602.04879; drpo
// and its regularized relatives 2606.09821; seq-tis and seq-mis 2510.26788 (their cap 2 is what
// verl and ms-swift default to); gspo and its clips 2507.18071, section 5.1; reference estimators
// and their weight r 2510.01555; the punishment of long responses 2503.14476, equation 13.
// Advantages: std 2402.03300, mean and the token-sum norm 2503.20783, rloo 2402.14740, reinforce++
// 2501.03262, over tokens as in verl; batch-std is TRL's scale_rewards batch. Aggregation: verl's
// agg_loss; seq-mean-token-sum is TRL's luspo, rollout-token-mean its dapo. The entropy is added as
// verl's entropy_coeff adds it.
#include "objective.h"

#include <math.h>  // exact operations alone: sqrt, fabs, INFINITY
#include <stdlib.h>

#include "../base/numerics.h"

const char* const OBJECTIVE_NAMES[] = {
    "sft",     "reinforce", "pg-is",        "cispo",        "grpo",       "spo",
    "dppo-tv", "dppo-kl",   "drpo",         "drpo-mask",    "drpo-noabs", "seq-tis",
    "seq-mis", "gspo",      "dppo-topk-tv", "dppo-topk-kl", NULL};
const char* const REG_NAMES[] = {"none", "kl", "k3", "tv", NULL};
const char* const KL_NAMES[] = {"k1", "k2", "k3", NULL};
const char* const ADVANTAGE_NAMES[] = {
    "mean", "std", "rloo", "batch-std", "reinforce++", "reinforce++-baseline", NULL};
const char* const AGGREGATE_NAMES[] = {"token-mean",
                                       "seq-mean-token-mean",
                                       "seq-mean-token-sum-norm",
                                       "seq-mean-token-sum",
                                       "token-sum",
                                       "rollout-token-mean",
                                       NULL};

objective objective_defaults(objective_kind kind) {
    int gspo = kind == OBJECTIVE_GSPO;
    int kl = kind == OBJECTIVE_DPPO_KL || kind == OBJECTIVE_DPPO_TOPK_KL;
    int capped = kind == OBJECTIVE_SEQ_TIS || kind == OBJECTIVE_SEQ_MIS;
    objective o = {.kind = kind,
                   .delta = kl ? 0.05 : 0.15,
                   .epsilon = 0.2,
                   .clip_low = gspo ? 3e-4 : 0.2,
                   .clip_high = gspo ? 4e-4 : 0.28,
                   .ratio_cap = capped ? 2 : INFINITY,
                   .reg = REG_NONE,
                   .kl = KL_K2};
    return o;
}

int objective_reads(objective_kind kind, const char* flag) {
    enum { TOPK = 1u << OBJECTIVE_DPPO_TOPK_TV | 1u << OBJECTIVE_DPPO_TOPK_KL };
    static const struct {
        const char* flag;
        unsigned kinds;  // bit k: the objective of number k reads it
    } table[] = {
        {"delta", 1u << OBJECTIVE_DPPO_TV | 1u << OBJECTIVE_DPPO_KL | 1u << OBJECTIVE_DRPO |
                      1u << OBJECTIVE_DRPO_MASK | 1u << OBJECTIVE_DRPO_NOABS | TOPK},
        {"epsilon", 1u << OBJECTIVE_SPO},
        {"clip-low", 1u << OBJECTIVE_CISPO | 1u << OBJECTIVE_GRPO | 1u << OBJECTIVE_GSPO},
        {"clip-high", 1u << OBJECTIVE_CISPO | 1u << OBJECTIVE_GRPO | 1u << OBJECTIVE_GSPO},
        {"ratio-cap", 1u << OBJECTIVE_PG_IS | 1u << OBJECTIVE_GRPO | 1u << OBJECTIVE_DPPO_TV |
                          1u << OBJECTIVE_DPPO_KL | 1u << OBJECTIVE_SEQ_TIS |
                          1u << OBJECTIVE_SEQ_MIS | TOPK},
        {"top-candidates", TOPK},
        {"reg", 1u << OBJECTIVE_PG_IS},
        {"reg-coef", 1u << OBJECTIVE_PG_IS},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].flag, flag)) return table[i].kinds >> kind & 1;
    return 1;
}

// The comparisons are written so that NaN fails them.
void objective_check(const objective* o) {
    const char* name = OBJECTIVE_NAMES[o->kind];
    if (!(o->delta > 0)) fatal("--delta is %g; it must be above 0 (inf is allowed)", o->delta);
    if (!(o->epsilon > 0))
        fatal("--epsilon is %g; it must be above 0 (inf is allowed)", o->epsilon);
    if (!(o->clip_low >= 0)) fatal("--clip-low is %g; it must be 0 or more", o->clip_low);
    if (!(o->clip_high >= 0)) fatal("--clip-high is %g; it must be 0 or more", o->clip_high);
    if (!(o->ratio_cap > 0))
        fatal("--ratio-cap is %g; it must be above 0 (inf is none)", o->ratio_cap);
    if (o->ratio_cap < INFINITY && !objective_reads(o->kind, "ratio-cap"))
        fatal("--ratio-cap goes with pg-is, dppo-*, seq-tis, seq-mis and grpo, not with %s", name);
    if (o->kind == OBJECTIVE_GRPO && o->ratio_cap <= 1)
        fatal("--ratio-cap is %g; the dual clip of grpo must be above 1, such as 3", o->ratio_cap);
    if (o->reg != REG_NONE && o->kind != OBJECTIVE_PG_IS)
        fatal("--reg %s goes with --objective pg-is alone, not with %s", REG_NAMES[o->reg], name);
    if (!(o->reg_coef >= 0 && o->reg_coef < INFINITY))
        fatal("--reg-coef is %g; it must be 0 or more, and finite", o->reg_coef);
    if (o->reg == REG_NONE && o->reg_coef > 0)
        fatal("--reg-coef is %g, but no regularizer is chosen; add --reg kl, k3 or tv",
              o->reg_coef);
    if (!(o->entropy_coef >= 0 && o->entropy_coef < INFINITY))
        fatal("--entropy-coef is %g; it must be 0 or more, and finite", o->entropy_coef);
    if (!(o->kl_coef >= 0 && o->kl_coef < INFINITY))
        fatal("--kl-coef is %g; it must be 0 or more, and finite", o->kl_coef);
}

// NaN passes through, which fmin and fmax would hide.
static double clamp(double v, double low, double high) {
    return v < low ? low : v > high ? high : v;
}

// log a - log b within +-20; 0 for equal ones, two infinities included.
static double log_ratio(double log_a, double log_b) {
    return log_a == log_b ? 0.0 : clamp(log_a - log_b, -20.0, 20.0);
}

static int sign(double v) { return (v > 0) - (v < 0); }

// What the formulas above are written in.
typedef struct token {
    double a, log_pi, log_mu;
    double x, r;
    double mu, gap;  // gap = pi - mu
    double weight;   // of the objectives for whole sequences: R or S
    int length;      // of the token's sequence
    const objective_candidates* top;
    int place;  // the token's among them
} token;

// -weight log pi: the loss of a constant weight. 0 * -inf would be NaN; it is defined as 0.
static coefficient weighted(double weight, const token* t) {
    coefficient k = {.c = weight, .loss = weight == 0 ? 0.0 : -weight * t->log_pi};
    return k;
}

// `ratio` is r, or R, which the tokens of a sequence share as they share its loss.
static coefficient importance(const token* t, double ratio, double cap, int shares) {
    if (cap < INFINITY) return weighted(t->a * (ratio > cap ? cap : ratio), t);
    coefficient k = {.c = t->a * ratio, .loss = -t->a * ratio / shares};
    return k;
}

static coefficient zeroed(void) {
    coefficient k = {.masked = 1};
    return k;
}

static coefficient ppo_clip(const token* t, double ratio, const objective* o, double cap) {
    double low = 1.0 - o->clip_low, high = 1.0 + o->clip_high;
    int masked = t->a > 0 ? ratio > high : t->a < 0 && (ratio < low || ratio > cap);
    double plain = t->a * ratio, clipped = t->a * clamp(ratio, low, high);
    double surrogate = clipped < plain ? clipped : plain;
    if (t->a < 0 && surrogate < t->a * cap) surrogate = t->a * cap;
    coefficient k = {.c = masked ? 0.0 : plain, .loss = -surrogate, .masked = masked};
    return k;
}

static coefficient spo(const token* t, double epsilon) {
    double step = t->r - 1.0, size = fabs(t->a);
    coefficient k = {.c = t->r * (t->a - size * step / epsilon),
                     .loss = -t->a * t->r + size * step * step / (2.0 * epsilon)};
    return k;
}

// The quadratic of DRPO, `weight` times.
static coefficient drpo(const token* t, double weight, double delta) {
    double step = t->r - 1.0;
    coefficient k = {.c = t->r * (t->a - weight * t->gap / delta),
                     .loss = -t->a * t->r + weight * t->mu * step * step / (2.0 * delta)};
    return k;
}

static int tv_masks(const token* t, double delta) { return sign(t->a) * t->gap > delta; }

// 1 - p, kept from 0 so that its logarithm is finite.
static double complement(double log_p) {
    double q = -num_expm1(log_p);
    return q < 1e-8 ? 1e-8 : q;
}

// KL divergence of "this token or another". kl_masks asks only where pi and mu differ: otherwise
// the floor on 1 - p would report a divergence between equal distributions.
static double binary_kl(double log_mu, double log_pi) {
    double mu = num_exp(log_mu), rest_mu = complement(log_mu), rest_pi = complement(log_pi);
    double this_token = mu > 0 ? mu * (log_mu - log_pi) : 0.0;
    return this_token + rest_mu * (num_log(rest_mu) - num_log(rest_pi));
}

static int kl_masks(const token* t, double delta) {
    return sign(t->a) * sign(t->x) > 0 && binary_kl(t->log_mu, t->log_pi) > delta;
}

// What two distributions over a few tokens and "another" differ by, token by token.
typedef struct divergence {
    double tv, kl;            // of the tokens so far; tv twice
    double rest_mu, rest_pi;  // of the others
} divergence;

static void diverge(divergence* d, double log_mu, double log_pi) {
    double mu = num_exp(log_mu), pi = num_exp(log_pi);
    d->tv += fabs(pi - mu);
    if (mu > 0) d->kl += mu * (log_mu - log_pi);
    d->rest_mu -= mu;
    d->rest_pi -= pi;
}

static double topk_divergence(const token* t, int kl) {
    divergence d = {.rest_mu = 1, .rest_pi = 1};
    diverge(&d, t->log_mu, t->log_pi);
    const objective_candidates* c = t->top;
    for (int i = 0; c && i < c->count; i++) {
        int at = t->place * c->count + i, id = c->id[at];
        if (id >= 0 && id != c->token[t->place]) diverge(&d, c->log_mu[at], c->log_pi[at]);
    }
    // Kept from 0 as complement() is.
    double mu = d.rest_mu < 1e-8 ? 1e-8 : d.rest_mu, pi = d.rest_pi < 1e-8 ? 1e-8 : d.rest_pi;
    return kl ? d.kl + mu * (num_log(mu) - num_log(pi)) : 0.5 * (d.tv + fabs(pi - mu));
}

static int topk_masks(const token* t, const objective* o) {
    return sign(t->a) * sign(t->x) > 0 &&
           topk_divergence(t, o->kind == OBJECTIVE_DPPO_TOPK_KL) > o->delta;
}

static coefficient own_term(const objective* o, const token* t) {
    switch (o->kind) {
        case OBJECTIVE_SFT:
            return weighted(1.0, t);
        case OBJECTIVE_REINFORCE:
            return weighted(t->a, t);
        case OBJECTIVE_PG_IS:
            return importance(t, t->r, o->ratio_cap, 1);
        case OBJECTIVE_CISPO:
            return weighted(t->a * clamp(t->r, 1.0 - o->clip_low, 1.0 + o->clip_high), t);
        case OBJECTIVE_GRPO:
            return ppo_clip(t, t->r, o, o->ratio_cap);
        case OBJECTIVE_SPO:
            return spo(t, o->epsilon);
        case OBJECTIVE_DPPO_TV:
            return tv_masks(t, o->delta) ? zeroed() : importance(t, t->r, o->ratio_cap, 1);
        case OBJECTIVE_DPPO_KL:
            return kl_masks(t, o->delta) ? zeroed() : importance(t, t->r, o->ratio_cap, 1);
        case OBJECTIVE_DRPO:
            return drpo(t, fabs(t->a), o->delta);
        case OBJECTIVE_DRPO_MASK:
            return drpo(t, tv_masks(t, o->delta) ? fabs(t->a) : 0.0, o->delta);
        case OBJECTIVE_DRPO_NOABS:
            return drpo(t, 1.0, o->delta);
        case OBJECTIVE_SEQ_TIS:
            return importance(t, t->weight, o->ratio_cap, t->length);
        case OBJECTIVE_SEQ_MIS:
            return sign(t->a) != 0 && t->weight > o->ratio_cap
                       ? zeroed()
                       : importance(t, t->weight, INFINITY, t->length);
        case OBJECTIVE_GSPO:
            return ppo_clip(t, t->weight, o, INFINITY);
        case OBJECTIVE_DPPO_TOPK_TV:
        case OBJECTIVE_DPPO_TOPK_KL:
            return topk_masks(t, o) ? zeroed() : importance(t, t->r, o->ratio_cap, 1);
    }
    fatal("there is no objective number %d", (int)o->kind);
}

static coefficient regularizer_term(const objective* o, const token* t) {
    double b = o->reg_coef, x = t->x, r = t->r;
    coefficient k = {0};
    switch (o->reg) {
        case REG_NONE:
            break;
        case REG_KL:
            k.c = -b * r * (1.0 + x), k.loss = b * r * x;
            break;
        case REG_K3:
            k.c = -b * num_expm1(x), k.loss = b * (num_expm1(x) - x);
            break;
        case REG_TV:
            k.c = -0.5 * b * r * sign(x), k.loss = 0.5 * b * fabs(r - 1.0);
            break;
    }
    return k;
}

static coefficient reference_term(const objective* o, const token* t, double log_ref) {
    coefficient k = {0};
    if (o->kl_coef == 0 || o->kl == KL_K1) return k;
    double y = log_ratio(t->log_pi, log_ref), weight = o->kl_coef * t->r;
    double slope = o->kl == KL_K2 ? y : -num_expm1(-y);
    double value = o->kl == KL_K2 ? 0.5 * y * y : num_expm1(-y) + y;
    k.c = -weight * slope;
    k.loss = weight * value;
    return k;
}

// 0 times an infinite loss is 0, too.
static void scale(coefficient* k, double by) {
    k->c *= by;
    k->loss = by == 0 ? 0 : k->loss * by;
}

// Token `place` of a sequence of `length` tokens and this ratio.
static coefficient token_of(const objective* o, double advantage, double log_pi, double log_mu,
                            double log_ref, double weight, double correction, int length,
                            const objective_candidates* top, int place) {
    double x = log_ratio(log_pi, log_mu), mu = num_exp(log_mu);
    token t = {.a = advantage,
               .log_pi = log_pi,
               .log_mu = log_mu,
               .x = x,
               .r = num_exp(x),
               .mu = mu,
               .gap = num_exp(log_pi) - mu,
               .weight = weight,
               .length = length,
               .top = top,
               .place = place};
    coefficient k = own_term(o, &t);
    coefficient reg = regularizer_term(o, &t), ref = reference_term(o, &t, log_ref);
    scale(&k, correction);
    scale(&reg, correction);
    k.c += reg.c + ref.c;
    k.loss += reg.loss + ref.loss;
    k.corrective = sign(k.c) * sign(advantage) < 0;
    return k;
}

// R, or S for gspo, from the sum of x over a sequence.
static double sequence_ratio(const objective* o, double sum, int length) {
    return num_exp(clamp(o->kind == OBJECTIVE_GSPO ? sum / length : sum, -20.0, 20.0));
}

coefficient objective_token(const objective* o, double advantage, double log_pi, double log_mu,
                            double log_ref) {
    double weight = sequence_ratio(o, log_ratio(log_pi, log_mu), 1);
    return token_of(o, advantage, log_pi, log_mu, log_ref, weight, 1, 1, NULL, 0);
}

void objective_sequence(const objective* o, double advantage, const float* log_pi,
                        const float* log_mu, const float* log_ref, const float* correction,
                        int length, const objective_candidates* top, coefficient* each) {
    double sum = 0;
    for (int t = 0; t < length; t++) sum += log_ratio(log_pi[t], log_mu[t]);
    double weight = sequence_ratio(o, sum, length);
    for (int t = 0; t < length; t++)
        each[t] = token_of(o, advantage, log_pi[t], log_mu[t], log_ref[t], weight,
                           correction ? correction[t] : 1, length, top, t);
}

int objective_needs_zero_advantage(const objective* o) {
    return o->kind == OBJECTIVE_SFT || o->kind == OBJECTIVE_DRPO_NOABS ||
           (o->reg != REG_NONE && o->reg_coef != 0) || (o->kl != KL_K1 && o->kl_coef != 0) ||
           o->entropy_coef != 0;
}

double objective_kl_reward(const objective* o, const float* log_mu, const float* log_ref,
                           int length) {
    if (o->kl != KL_K1 || o->kl_coef == 0) return 0.0;
    double sum = 0;
    for (int t = 0; t < length; t++) sum += log_ratio(log_mu[t], log_ref[t]);
    return -o->kl_coef * sum;
}

double objective_overlong(int length, int most, int buffer) {
    int beyond = length - (most - buffer);
    return beyond > 0 ? -(double)beyond / buffer : 0;
}

static void group_advantages(advantage_kind kind, double eps, const float* reward, int n,
                             float* advantage) {
    int equal = 1;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        equal &= reward[i] == reward[0];
        sum += reward[i];
    }
    double mean = sum / n;
    for (int i = 0; i < n; i++) squares += (reward[i] - mean) * (reward[i] - mean);
    double std = sqrt(squares / (n - 1));
    for (int i = 0; i < n; i++) {
        // Compared, not subtracted: an exact 0 must not hang on how sums round.
        double a = equal                    ? 0.0
                   : kind == ADVANTAGE_RLOO ? reward[i] - (sum - reward[i]) / (n - 1)
                   : kind == ADVANTAGE_STD  ? (reward[i] - mean) / (std + eps)
                                            : reward[i] - mean;
        advantage[i] = (float)a;
    }
}

// What the scale of a batch is of: n values, each counted `weight` times. 0 where all that count
// are equal.
static double batch_spread(const double* x, const double* weight, int n, double* mean) {
    double total = 0, sum = 0, squares = 0, first = NAN;
    int equal = 1;
    for (int i = 0; i < n; i++) {
        if (weight[i] == 0) continue;
        if (first != first) first = x[i];
        equal &= x[i] == first;
        total += weight[i];
        sum += weight[i] * x[i];
    }
    *mean = equal ? first : sum / total;
    for (int i = 0; i < n && !equal; i++)
        if (weight[i] != 0) squares += weight[i] * (x[i] - *mean) * (x[i] - *mean);
    return equal ? 0 : squares / (total - 1);
}

// The kinds whose scale is that of all rewards.
static void batch_advantages(advantage_kind kind, double eps, const float* reward,
                             const size_t* start, int groups, int size, float* advantage) {
    int n = groups * size, by_std = kind == ADVANTAGE_BATCH_STD;
    double *x = xalloc(3 * (size_t)n, sizeof *x, "advantages"), *centred = x + n,
           *weight = x + 2 * n;
    for (int i = 0; i < n; i++) {
        const float* group = reward + i / size * size;
        int equal = 1;
        double mean = 0;
        for (int k = 0; k < size; k++) {
            equal &= group[k] == group[0];
            mean += group[k] / (double)size;
        }
        centred[i] = kind == ADVANTAGE_REINFORCE_PP ? reward[i] : equal ? 0 : reward[i] - mean;
        x[i] = by_std ? reward[i] : centred[i];
        weight[i] = mean != mean ? 0 : by_std ? 1 : (double)(start[i + 1] - start[i]);
        if (mean != mean) centred[i] = NAN;
    }
    double mean, variance = batch_spread(x, weight, n, &mean);
    for (int i = 0; i < n; i++)
        advantage[i] = (float)(by_std ? centred[i] / (sqrt(variance) + eps)
                                      : (centred[i] - mean) / sqrt(variance + 1e-8));
    free(x);
}

void objective_advantages(advantage_kind kind, double eps, const float* reward, const size_t* start,
                          int groups, int size, float* advantage) {
    if (size < 2)
        fatal("an advantage compares the samples of a prompt, and there is %d; raise --group",
              size);
    if (kind >= ADVANTAGE_BATCH_STD) {
        batch_advantages(kind, eps, reward, start, groups, size, advantage);
        return;
    }
    for (int g = 0; g < groups; g++)
        group_advantages(kind, eps, reward + (size_t)g * size, size, advantage + (size_t)g * size);
}

void objective_weights(aggregate_kind kind, const size_t* start, int sequences, int max_new_tokens,
                       double mean_length, const char* left_out, double* weight) {
    double tokens = 0, counted = 0;
    for (int s = 0; s < sequences; s++) {
        if (left_out && left_out[s]) continue;
        tokens += (double)(start[s + 1] - start[s]);
        counted++;
    }
    const double divisor[] = {[AGGREGATE_TOKEN_MEAN] = tokens,
                              [AGGREGATE_SEQ_MEAN_TOKEN_MEAN] = counted,
                              [AGGREGATE_SEQ_MEAN_TOKEN_SUM_NORM] = counted * max_new_tokens,
                              [AGGREGATE_SEQ_MEAN_TOKEN_SUM] = counted,
                              [AGGREGATE_TOKEN_SUM] = 1,
                              [AGGREGATE_ROLLOUT_TOKEN_MEAN] = sequences * mean_length};
    for (int s = 0; s < sequences; s++) {
        double length = (double)(start[s + 1] - start[s]);
        double each = kind == AGGREGATE_SEQ_MEAN_TOKEN_MEAN ? length : 1;
        weight[s] = length > 0 && !(left_out && left_out[s]) ? 1.0 / (divisor[kind] * each) : 0.0;
    }
}
