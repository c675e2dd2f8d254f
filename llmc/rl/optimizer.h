// optimizer: AdamW over all parameters, clipping, learning-rate schedules, dynamic loss scaling;
// and the gradient that it steps along, the sum of the gradients of a mini-batch's shards.
//
// Several ranks compute as many shards each. The parameters are cut into stripes, and of each
// stripe a rank owns a slice: it alone adds up the slice's gradient, holds its moments, and steps
// it (ZeRO stage 1, arXiv 1910.02054); then all get the new parameters. A stripe's gradients are
// exchanged as soon as backward has finished them, while it goes on if the device can. The bits are
// those of one rank.
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "../model/model.h"
#include "ranks.h"

LLMC_BEGIN

typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE } schedule_kind;
extern const char* const SCHEDULE_NAMES[];

// Learning rate of step `step` (from 0): rises linearly over `warmup` steps, then stays, or falls
// to `last` times lr, which it has from step `total` on, linearly or along a half cosine.
double schedule_lr(schedule_kind kind, double lr, double last, int step, int warmup, int total);

enum { LOSS_SCALE_MOST = 1 << 24, SHARD_LEVELS = 24, SHARDS_MOST = 1 << SHARD_LEVELS };

typedef struct optimizer_config {
    double beta1, beta2, eps, weight_decay;
    double clip;           // gradient norms above it are scaled down to it; infinite = off
    const format* format;  // of the weights: FP32 = masters, else stochastic rounding
    int loss_scaling;      // dynamic, for formats of few exponents (fp16)
    int first_scale;       // its first value, from 1 to LOSS_SCALE_MOST; 0 = 65536
    uint64_t seed;         // of stochastic rounding
    int shards;            // of a mini-batch, a power of two up to SHARDS_MOST; 0 = 1
    ranks* ranks;          // who computes them: as many as divide `shards`; NULL = one alone
} optimizer_config;

// What a checkpoint must hold besides weights and moments.
typedef struct optimizer_state {
    int64_t updates;     // steps applied: Adam's t
    int64_t attempts;    // steps asked for; keys the stochastic rounding
    double loss_scale;   // 1 without loss scaling
    int clean;           // steps since the scale last changed
    int skipped_in_row;  // steps skipped for a non-finite gradient
} optimizer_state;

typedef struct optimizer {
    backend* b;
    struct model model;
    optimizer_config config;
    optimizer_state state;
    size_t count;  // parameters
    ranks* ranks;
    size_t stripe;  // parameters of each stripe but the last: a multiple of ranks * SUM_CHUNK
    int* done;      // (stripes): model_done
    size_t own;     // in this rank's slices
    float *m, *v;   // moments (own), stripe by stripe
    model_gradients gradients;
    int shards, levels;            // of a mini-batch, this rank's; log2 of `shards`
    float* pending[SHARD_LEVELS];  // (levels) of (count): pending[l] holds the sum of 2^l shards
                                   // that waits for the sum of the next 2^l
    int layer;                     // of the last shard: the next whose stripes are added over ranks
    float* incoming;  // (incoming_count) another rank's part of these; NULL with one rank
    size_t incoming_count;
    double* squares;  // host (chunks of the parameters): sums of squares
    size_t bytes;     // device memory held
} optimizer;

optimizer* optimizer_create(backend* b, const model* m, const optimizer_config* config);
void optimizer_free(optimizer* o);

// Moments of all parameters, host arrays (count), into the optimizer, and out of it: over ranks.
void optimizer_put_moments(optimizer* o, const float* m, const float* v);
void optimizer_get_moments(const optimizer* o, float* m, float* v);

// The gradient of a mini-batch: for each of this rank's shards, in order, clear the gradients, let
// the model add to them, then add_shard. After the last one this rank's slices of gradients.all
// hold the sum of all shards' gradients g0, g1, ..., element by element in fp32:
// ((g0 + g1) + (g2 + g3)) + ... .
void optimizer_clear_gradients(optimizer* o);
void optimizer_add_shard(optimizer* o, int shard);
// What model_backward adds to. `last`: no other call adds to the gradients of this rank's last
// shard, so stripes are exchanged as they become final; what is left then add_shard exchanges.
model_gradients optimizer_gradients(optimizer* o, int last);

typedef struct optimizer_result {
    double grad_norm;  // before clipping, loss scale removed; not finite where the step was skipped
    int skipped;
} optimizer_result;

// One step of `parameters` (device), over ranks. A non-finite gradient skips it (and halves the
// loss scale); after OPTIMIZER_PATIENCE skips in a row the run ends with a sentence.
enum { OPTIMIZER_PATIENCE = 20 };
optimizer_result optimizer_step(optimizer* o, float* parameters, double lr);

LLMC_END
#endif
