// trainer: from the sequences of a rollout to gradients: packs micro-batches, runs them forward,
// asks the objective for one coefficient per token, runs them backward, and steps the optimizer.
//
// A micro-batch holds whole groups, each with its prompt once (Prefix Grouper, arXiv 2506.05433,
// shows that the gradients are those of sequences with a prompt each). Groups whose coefficients
// are 0 whatever the policy is (all their advantages are 0, and no other term is added) run forward
// only. How groups are dealt to micro-batches changes no bit of the result, except with fp8
// gradients (see matmul_backward_weight in device/ops.def).
//
// A mini-batch is cut by sequence into shards of one size, in order (optimizer_config.shards). A
// micro-batch never crosses a shard. The gradient of a shard is one chain over its tokens, from 0,
// with the weights that its sequences have in the whole mini-batch; the optimizer adds up the
// shards. So the bits depend on how many shards there are, and not on which rank computes which.
//
// trainer_logprobs and trainer_update are over ranks (ranks.h): each runs its share of the groups,
// or of the shards, and all get the results of all. With several ranks a call has whole groups.
#ifndef LLMC_TRAINER_H
#define LLMC_TRAINER_H

#include "changes.h"
#include "objective.h"
#include "optimizer.h"
#include "rollout.h"

LLMC_BEGIN

typedef struct trainer {
    backend* b;
    struct model model;
    float* parameters;  // device, fp32 (rounded to the store format without master weights)
    size_t count;
    model_weights* weights;  // the parameters in the trainer's precision
    model_acts* acts;
    optimizer* optimizer;
    struct changes* changes;  // NULL: updates do not count them
    struct trainer_buffers* buffers;
    double router_aux_coef;  // of the load-balancing loss
    int replay_routing;  // tokens take the experts that the rollout names (R3, arXiv 2510.11370)
} trainer;

// What micro-batches hold: at most `tokens` tokens, or one group if that is more. A group: a prompt
// and `group` samples, of at most max_prompt and max_new tokens each.
typedef struct trainer_room {
    int tokens, group, max_prompt, max_new;
} trainer_room;

// Room for groups of `group` sequences of `d` (max_prompt, max_new, capacity set), in micro-batches
// of `tokens` tokens, or of all that `d` can hold if that is less.
trainer_room trainer_room_for(const rollout* d, int group, int tokens);

trainer* trainer_create(backend* b, const model* m, precision p, const optimizer_config* optimizer,
                        const trainer_room* room, recompute_level recompute);
void trainer_free(trainer* t);

// From now on updates count the weights that they change, as the parameters, the trainer's
// precision and the sampler's hold them.
void trainer_count_changes(trainer* t, precision of_sampler);

// Host parameters (count) into the trainer, rounded to the optimizer's format; and out again.
void trainer_load(trainer* t, const float* parameters);
void trainer_save(const trainer* t, float* parameters);

// One forward and backward pass of one layer over the largest possible micro-batch with zero
// coefficients, so that all device memory is allocated before training. It changes no gradient.
void trainer_rehearse(trainer* t);

// log-probability of every response token of sequences first .. first+count-1 of `d` under weights
// `w` (the trainer's own, or a reference model's), into their places in `out` (tokens). The
// trainer's own write candidate_pi too, if there are candidates.
void trainer_logprobs(trainer* t, const model_weights* w, const rollout* d, int first, int count,
                      float inverse_temperature, float* out);

typedef struct trainer_update_result {
    double loss;  // the objective's loss form, aggregated like its gradient; summed shard by shard
    double grad_norm;
    int skipped;
    double loss_scale;          // that the gradient was computed with; 1 where none is needed
    double masked, corrective;  // fractions of response tokens
    double masked_mu;           // mean over the masked ones of the anchor's probability; NaN: none
    int64_t tokens;             // run through the model, a group's prompt counted once
    int64_t trained_tokens;     // of these, those that also ran backward
    changed_shares changed;     // 0 where the step was skipped; NaN where nothing is counted
    // Where the rollout has experts: of all tokens and layers, those for which the trainer's router
    // chooses other experts than the sampler took, as a fraction; and the tokens of the expert
    // with the most, over the mean of all experts, in the sampler: the mean over layers.
    double routing_differs, expert_load;
} trainer_update_result;

// One optimizer step on sequences first .. first+count-1, a mini-batch: reads start, token, anchor,
// log_ref, correction, advantage, nucleus, candidate, candidate_anchor; writes log_pi and
// candidate_pi.
trainer_update_result trainer_update(trainer* t, rollout* d, int first, int count,
                                     const objective* o, aggregate_kind aggregate,
                                     float inverse_temperature, double lr);

LLMC_END
#endif
