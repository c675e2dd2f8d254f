// AdamW: Loshchilov and Hutter, arXiv 1711.05101; weight decay on matrices alone. Loss scaling:
// Micikevicius et al., arXiv 1710.03740: the scale halves after a non-finite gradient and doubles
// after SCALE_INTERVAL clean steps.
#include "optimizer.h"

#include <math.h>  // sqrt, INFINITY
#include <stdlib.h>

const char* const SCHEDULE_NAMES[] = {"constant", "linear", "cosine", NULL};

enum { SCALE_INTERVAL = 200 };
static const double FIRST_SCALE = 65536, SMALLEST_SCALE = 1;

double schedule_lr(schedule_kind kind, double lr, int step, int warmup, int total) {
    if (step < warmup) return lr * (step + 1) / warmup;
    if (kind == SCHEDULE_CONSTANT || total <= warmup) return lr;
    double done = (double)(step - warmup) / (total - warmup);
    if (kind == SCHEDULE_LINEAR) return lr * (1 - done);
    return lr * 0.5 * (1 + num_cospi(done));
}

// Of a tied embedding's gradient as a lookup.
static size_t lookup_count(const optimizer* o) {
    return o->model.count[o->model.family->embedding];
}

optimizer* optimizer_create(backend* b, const model* m, const optimizer_config* config) {
    optimizer* o = xalloc(1, sizeof *o, "the optimizer");
    o->b = b;
    o->model = *m;
    o->config = *config;
    o->count = m->parameters;
    o->shards = config->shards ? config->shards : 1;
    double first = config->first_scale ? config->first_scale : FIRST_SCALE;
    o->state.loss_scale = config->loss_scaling ? first : 1;
    size_t before = b->allocated, bytes = o->count * sizeof(float);
    o->m = b->alloc(b, bytes,
                    "optimizer moments (choose a smaller model: --depth, --channels, --context)");
    o->v = b->alloc(b, bytes,
                    "optimizer moments (choose a smaller model: --depth, --channels, --context)");
    o->gradients.all =
        b->alloc(b, bytes, "gradients (choose a smaller model: --depth, --channels, --context)");
    if (m->shape.tied)
        o->gradients.lookup =
            b->alloc(b, lookup_count(o) * sizeof(float),
                     "gradients (choose a smaller model: --depth, --channels, --context)");
    for (; 1 << o->levels < o->shards; o->levels++)
        o->pending[o->levels] = b->alloc(b, bytes, "gradients of earlier shards (lower --shards)");
    o->bytes = b->allocated - before;
    return o;
}

void optimizer_free(optimizer* o) {
    backend* b = o->b;
    size_t bytes = o->count * sizeof(float);
    b->release(b, o->m, bytes);
    b->release(b, o->v, bytes);
    b->release(b, o->gradients.all, bytes);
    for (int l = 0; l < o->levels; l++) b->release(b, o->pending[l], bytes);
    if (o->gradients.lookup) b->release(b, o->gradients.lookup, lookup_count(o) * sizeof(float));
    free(o);
}

void optimizer_clear_gradients(optimizer* o) {
    o->b->clear(o->b, o->gradients.all, o->count * sizeof(float));
    if (o->gradients.lookup)
        o->b->clear(o->b, o->gradients.lookup, lookup_count(o) * sizeof(float));
}

// A binary counter: where bit l of `shard` is set, pending[l] waits for what has been added so far.
// The sum takes the first free place, and the buffer there becomes that of the next shard.
void optimizer_add_shard(optimizer* o, int shard) {
    backend* b = o->b;
    float* sum = o->gradients.all;
    int level = 0;
    // A tied embedding: its gradient as the head's weight and as a lookup meet here, once a shard.
    if (o->gradients.lookup)
        b->add(b, sum + o->model.offset[o->model.family->embedding], o->gradients.lookup,
               lookup_count(o));
    for (; shard >> level & 1; level++) b->add(b, sum, o->pending[level], o->count);
    if (shard == o->shards - 1) return;  // the sum of all
    o->gradients.all = o->pending[level];
    o->pending[level] = sum;
}

// The scale of the next step, from whether this one was finite.
static void update_scale(optimizer* o, int finite) {
    optimizer_state* s = &o->state;
    s->skipped_in_row = finite ? 0 : s->skipped_in_row + 1;
    s->clean = finite ? s->clean + 1 : 0;
    if (!o->config.loss_scaling) return;
    if (!finite && s->loss_scale > SMALLEST_SCALE) s->loss_scale /= 2;
    if (s->clean == SCALE_INTERVAL) {
        if (s->loss_scale < LOSS_SCALE_MOST) s->loss_scale *= 2;
        s->clean = 0;
    }
}

optimizer_result optimizer_step(optimizer* o, float* parameters, double lr) {
    backend* b = o->b;
    optimizer_state* s = &o->state;
    const model* m = &o->model;
    double scale = s->loss_scale;
    double norm = sqrt(b->sum_squares(b, o->gradients.all, o->count)) / scale;
    int finite = norm - norm == 0;
    s->attempts++;
    update_scale(o, finite);
    if (!finite) {
        if (s->skipped_in_row >= OPTIMIZER_PATIENCE)
            fatal(
                "the gradient was not finite %d steps in a row: the run has diverged; lower --lr "
                "or choose a wider --train-dtype",
                s->skipped_in_row);
        return (optimizer_result){INFINITY, 1};
    }
    s->updates++;
    adamw_step how = {
        .lr = (float)lr,
        .beta1 = (float)o->config.beta1,
        .beta2 = (float)o->config.beta2,
        .eps = (float)o->config.eps,
        // Of the betas as the devices hold them: 1 - beta must be the same number in both.
        .correction1 = (float)(1 - num_powi((float)o->config.beta1, s->updates)),
        .correction2 = (float)(1 - num_powi((float)o->config.beta2, s->updates)),
        .gradient_scale = (float)((norm > o->config.clip ? o->config.clip / norm : 1) / scale),
        .format = o->config.format,
        .seed = o->config.seed,
        .step = (uint32_t)s->attempts};
    for (int i = 0; i < WEIGHTS; i++) {
        size_t at = m->offset[i];
        how.weight_decay = weight_decays(&m->family->weight[i]) ? (float)o->config.weight_decay : 0;
        if (m->count[i])
            b->adamw(b, parameters + at, o->m + at, o->v + at, o->gradients.all + at, m->count[i],
                     at, &how);
    }
    return (optimizer_result){norm, 0};
}
