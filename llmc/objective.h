// objective: from (advantage, log pi, log mu) to the one coefficient a token that backward needs.
// The gradient of every objective is sum_t c_t * weight_t * grad log pi(y_t). All host code, double
// inside, fp32 at the edges. Formulas: see the table at the head of objective.c, with sources.
#ifndef LLMC_OBJECTIVE_H
#define LLMC_OBJECTIVE_H

#include "common.h"

LLMC_BEGIN

typedef enum {
    OBJECTIVE_SFT, OBJECTIVE_REINFORCE, OBJECTIVE_PG_IS, OBJECTIVE_CISPO, OBJECTIVE_GRPO,
    OBJECTIVE_SPO, OBJECTIVE_DPPO_TV, OBJECTIVE_DPPO_KL, OBJECTIVE_DRPO, OBJECTIVE_DRPO_MASK,
    OBJECTIVE_DRPO_NOABS
} objective_kind;
typedef enum { REG_NONE, REG_KL, REG_K3, REG_TV } regularizer_kind;
typedef enum { KL_K1, KL_K2, KL_K3 } kl_kind;
typedef enum { ADVANTAGE_MEAN, ADVANTAGE_STD, ADVANTAGE_RLOO } advantage_kind;
typedef enum { AGGREGATE_TOKEN_MEAN, AGGREGATE_SEQ_MEAN_TOKEN_MEAN,
               AGGREGATE_SEQ_MEAN_TOKEN_SUM_NORM } aggregate_kind;

// Names as the command line spells them, in the order of the enums, NULL at the end.
extern const char *const OBJECTIVE_NAMES[], *const REG_NAMES[], *const KL_NAMES[],
    *const ADVANTAGE_NAMES[], *const AGGREGATE_NAMES[];

typedef struct objective {
    objective_kind kind;
    double delta;                // trust region of DPPO and DRPO; > 0, may be infinite
    double epsilon;              // SPO
    double clip_low, clip_high;  // GRPO and CISPO: 1 - clip_low, 1 + clip_high
    double ratio_cap;            // C of pg-is, dppo-*; of grpo's dual clip; infinite = none
    regularizer_kind reg;        // with pg-is only
    double reg_coef;
    kl_kind kl;                  // estimator against the reference model (K2 or K3; K1 is a reward)
    double kl_coef;              // 0 = no reference
} objective;

// delta, epsilon and clips that the objective uses where the user gave none (shared table).
objective objective_defaults(objective_kind kind);

typedef struct coefficient {
    double c;     // gradient coefficient, the KL term to the reference included
    double loss;  // the objective's own loss form at this token, same terms
    int masked;      // A != 0 and the objective's own c was zeroed
    int corrective;  // sign(c) differs from sign(A), both non-zero
} coefficient;

// One token. `log_ref` is read only if kl_coef != 0.
coefficient objective_token(const objective* o, double advantage, double log_pi, double log_mu,
                            double log_ref);
// Whether c can differ from 0 where the advantage is 0 (then no backward pass may be skipped).
int objective_needs_zero_advantage(const objective* o);

// Advantages of `groups` groups of `size` rewards each, all (groups, size). A group of equal rewards
// gives exactly 0. size >= 2.
void objective_advantages(advantage_kind kind, const float* reward, int groups, int size,
                          float* advantage);

// The weight of each token of sequence s, for s < sequences, in a mini-batch of those sequences:
// weight[s] multiplies every token of s. length[s] = response tokens.
void objective_weights(aggregate_kind kind, const int* length, int sequences, int max_new_tokens,
                       double* weight);

LLMC_END
#endif
