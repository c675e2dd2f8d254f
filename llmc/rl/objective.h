// objective: from (advantage, log pi, log mu) to the one coefficient a token that backward needs.
// The gradient of every objective is sum_t c_t * weight_t * grad log pi(y_t). All host code, double
// inside, fp32 at the edges. Formulas: see the table at the head of objective.c, with sources.
#ifndef LLMC_OBJECTIVE_H
#define LLMC_OBJECTIVE_H

#include "../base/common.h"

LLMC_BEGIN

typedef enum {
    OBJECTIVE_SFT,
    OBJECTIVE_REINFORCE,
    OBJECTIVE_PG_IS,
    OBJECTIVE_CISPO,
    OBJECTIVE_GRPO,
    OBJECTIVE_SPO,
    OBJECTIVE_DPPO_TV,
    OBJECTIVE_DPPO_KL,
    OBJECTIVE_DRPO,
    OBJECTIVE_DRPO_MASK,
    OBJECTIVE_DRPO_NOABS,
    OBJECTIVE_SEQ_TIS,
    OBJECTIVE_SEQ_MIS,
    OBJECTIVE_GSPO,
    OBJECTIVE_DPPO_TOPK_TV,
    OBJECTIVE_DPPO_TOPK_KL
} objective_kind;
typedef enum { REG_NONE, REG_KL, REG_K3, REG_TV } regularizer_kind;
typedef enum { KL_K1, KL_K2, KL_K3 } kl_kind;
typedef enum {
    ADVANTAGE_MEAN,
    ADVANTAGE_STD,
    ADVANTAGE_RLOO,
    ADVANTAGE_BATCH_STD,
    ADVANTAGE_REINFORCE_PP,
    ADVANTAGE_REINFORCE_PP_BASELINE
} advantage_kind;
typedef enum {
    AGGREGATE_TOKEN_MEAN,
    AGGREGATE_SEQ_MEAN_TOKEN_MEAN,
    AGGREGATE_SEQ_MEAN_TOKEN_SUM_NORM,
    AGGREGATE_SEQ_MEAN_TOKEN_SUM,
    AGGREGATE_TOKEN_SUM,
    AGGREGATE_ROLLOUT_TOKEN_MEAN
} aggregate_kind;

// Names as the command line spells them, in the order of the enums, NULL at the end.
extern const char *const OBJECTIVE_NAMES[],
    *const REG_NAMES[], *const KL_NAMES[], *const ADVANTAGE_NAMES[], *const AGGREGATE_NAMES[];

typedef struct objective {
    objective_kind kind;
    double delta;                // trust region of DPPO and DRPO; > 0, may be infinite
    double epsilon;              // SPO: its region is |r - 1| <= epsilon; > 0, may be infinite
    double clip_low, clip_high;  // GRPO, CISPO, GSPO: 1 - low (0 to 1) .. 1 + high (>= 0)
    double ratio_cap;            // C of pg-is, dppo-*, seq-*; of grpo's dual clip; infinite = none
    regularizer_kind reg;        // with pg-is only
    double reg_coef;             // >= 0
    kl_kind kl;                  // estimator against the reference; K1 is a reward, not a loss
    double kl_coef;              // >= 0; 0 = no reference
    double entropy_coef;  // >= 0; of the bonus on each token's entropy, which is no part of c
} objective;

// The objective with the values it has where the user gave none: delta 0.15 (0.05 for dppo-*kl),
// epsilon 0.2, clips 0.2 / 0.28 (3e-4 / 4e-4 for gspo), no cap (2 for seq-tis, seq-mis), no
// regularizer, no reference (k2 if there is one).
objective objective_defaults(objective_kind kind);

// Fatal, with a sentence that names the flag, unless the values make sense together: those out of
// range, a regularizer with another objective than pg-is, a coefficient of no regularizer, a cap
// for an objective that has none, a dual clip that would cut on-policy tokens. K1 passes: see
// objective_kl_reward. Call it once, before the first objective_token.
void objective_check(const objective* o);

// Whether the coefficient of this kind reads the flag ("delta", "epsilon", "clip-low", "clip-high",
// "ratio-cap", "reg", "reg-coef", "top-candidates"; 1 for every other name), so that no flag is
// taken and ignored.
int objective_reads(objective_kind kind, const char* flag);

typedef struct coefficient {
    double c;        // gradient coefficient, regularizer and KL term to the reference included
    double loss;     // the objective's own loss form at this token, same terms
    int masked;      // A != 0 and the objective's own c was zeroed (by a mask or a clip)
    int corrective;  // sign(c) differs from sign(A), both non-zero
} coefficient;

// One token; for the objectives that weigh whole sequences, a sequence of this token. log_pi,
// log_mu <= 0, -infinity allowed; `log_ref` is read only where kl_coef != 0 with K2 or K3. c is
// finite for every finite advantage; loss is -c's antiderivative in log pi, and infinite only where
// log_pi is and the form has log pi itself in it. NaN in, NaN out.
coefficient objective_token(const objective* o, double advantage, double log_pi, double log_mu,
                            double log_ref);

// The tokens that the sampler held most probable at each place of a sequence, for dppo-topk-*.
typedef struct objective_candidates {
    int count;                     // a place
    const int* token;              // (length) what was sampled
    const int* id;                 // (length, count); -1: no more
    const float *log_pi, *log_mu;  // (length, count)
} objective_candidates;

// The tokens of a whole sequence, all (length). Each is what objective_token gives, but that
// seq-tis, seq-mis and gspo weigh it by the ratio of the sequence, and that `correction` (NULL: 1)
// multiplies it, but for the term to the reference. `loss` sums to the sequence's loss, of which c
// are minus the derivatives in log pi. `top` may be NULL, which means no candidates: dppo-topk-*
// then fall back to the divergence of "this token or another".
void objective_sequence(const objective* o, double advantage, const float* log_pi,
                        const float* log_mu, const float* log_ref, const float* correction,
                        int length, const objective_candidates* top, coefficient* each);

// Whether there is a gradient where the advantage is 0 (then no backward pass may be skipped): sft,
// drpo-noabs, a regularizer, a reference term in the loss, an entropy bonus.
int objective_needs_zero_advantage(const objective* o);

// What the estimator K1 adds to the reward of a sequence: -kl_coef * sum_t (log mu_t - log ref_t),
// each term clamped to +-20; 0 for the other estimators. log_mu, log_ref: (length). The sampler's
// mu, since a reward belongs to the sample as it was drawn.
double objective_kl_reward(const objective* o, const float* log_mu, const float* log_ref,
                           int length);

// What is added to the reward of a response of `length` tokens, of at most `most`: 0, but for the
// last `buffer` tokens, over which it falls to -1.
double objective_overlong(int length, int most, int buffer);

// Advantages of `groups` groups of `size` rewards each, all (groups, size); the formulas: head of
// objective.c. Equal rewards (of a group, for the reinforce++ kinds of all) give exactly 0. eps is
// added to the standard deviation of the std kinds. start: (groups * size + 1) where the tokens of
// each sequence begin, read by the reinforce++ kinds. A group with a NaN has NaN and counts in no
// statistic. size < 2 is fatal. `advantage` may be `reward` itself.
void objective_advantages(advantage_kind kind, double eps, const float* reward, const size_t* start,
                          int groups, int size, float* advantage);

// The weight of each token of sequence s, for s < sequences, in a mini-batch of those sequences:
// weight[s] multiplies every token of s. start: (sequences + 1); s has start[s + 1] - start[s]
// response tokens, masked ones included; a sequence without tokens counts as a sequence and has
// weight 0. One with left_out[s] has weight 0 and counts nowhere, nor do its tokens; left_out may
// be NULL. max_new_tokens is read by AGGREGATE_SEQ_MEAN_TOKEN_SUM_NORM alone, mean_length (tokens
// of a sequence of the whole rollout, those that are left out having none) by
// AGGREGATE_ROLLOUT_TOKEN_MEAN.
void objective_weights(aggregate_kind kind, const size_t* start, int sequences, int max_new_tokens,
                       double mean_length, const char* left_out, double* weight);

LLMC_END
#endif
