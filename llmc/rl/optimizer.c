// AdamW: Loshchilov and Hutter, arXiv 1711.05101; weight decay on matrices alone. Loss scaling:
// Micikevicius et al., arXiv 1710.03740: the scale halves after a non-finite gradient and doubles
// after SCALE_INTERVAL clean steps.
//
// Ranks add their gradients of stripes in a tree of log2(size) rounds, each half as much as the
// one before (recursive halving): in round l ranks k and k ^ 2^l share the range that both have
// summed, and each keeps a half, to which the other's is added. So an element's sum is that of the
// tree of shards. New parameters go the way back, each round twice as much.
//
// Parameters of one layer are not neighbours. Stripes are small, so that most hold one layer's;
// those that backward finishes with one layer travel together. Where the host exchanges, and the
// device could not go on meanwhile, all is one stripe.
#include "optimizer.h"

#include <math.h>  // sqrt, INFINITY
#include <stdlib.h>

const char* const SCHEDULE_NAMES[] = {"constant", "linear", "cosine", NULL};

enum { SCALE_INTERVAL = 200, STRIPES = 128 };
static const double FIRST_SCALE = 65536, SMALLEST_SCALE = 1;

double schedule_lr(schedule_kind kind, double lr, double last, int step, int warmup, int total) {
    if (step < warmup) return lr * (step + 1) / warmup;
    if (kind == SCHEDULE_CONSTANT || total <= warmup) return lr;
    double done = step < total ? (double)(step - warmup) / (total - warmup) : 1;
    double left = kind == SCHEDULE_LINEAR ? 1 - done : 0.5 * (1 + num_cospi(done));
    return lr * (last + (1 - last) * left);
}

// Of a tied embedding's gradient as a lookup.
static size_t lookup_count(const optimizer* o) {
    return o->model.count[o->model.family->embedding];
}

static size_t stripes_of(const optimizer* o) { return (o->count + o->stripe - 1) / o->stripe; }

// The range of stripe s that rank k has summed after `rounds` rounds; 0: the stripe.
static void range_of(const optimizer* o, size_t s, int k, int rounds, size_t* first, size_t* n) {
    *first = s * o->stripe;
    *n = o->count - *first < o->stripe ? o->count - *first : o->stripe;
    for (int l = 0; l < rounds; l++) {
        size_t half = (*n / 2 + SUM_CHUNK - 1) / SUM_CHUNK * SUM_CHUNK;
        if (half > *n) half = *n;
        *first += k >> l & 1 ? half : 0;
        *n = k >> l & 1 ? *n - half : half;
    }
}

static int log2_of(int n) {
    int l = 0;
    while (1 << l < n) l++;
    return l;
}

// This rank's slice of stripe s; returns where its moments are.
static size_t own_slice(const optimizer* o, size_t s, size_t* first, size_t* n) {
    range_of(o, s, o->ranks->rank, log2_of(o->ranks->size), first, n);
    return s * (o->stripe / (size_t)o->ranks->size);
}

static size_t chunks_of(size_t n) { return (n + SUM_CHUNK - 1) / SUM_CHUNK; }

static void cut_stripes(optimizer* o) {
    size_t least = (size_t)o->ranks->size * SUM_CHUNK, first, n;
    size_t most = o->ranks->size > 1 && o->b->exchange ? STRIPES : 1;
    o->stripe = (o->count + most * least - 1) / (most * least) * least;
    o->done = xalloc(stripes_of(o), sizeof *o->done, "stripes");
    for (size_t s = 0; s < stripes_of(o); s++) {
        range_of(o, s, 0, 0, &first, &n);
        o->done[s] = model_done(&o->model, first, first + n);
        own_slice(o, s, &first, &n);
        o->own += n;
    }
}

// What another rank gives at most: of stripes that are final with the same layer, half.
static size_t most_incoming(const optimizer* o) {
    size_t most = 0, first, n;
    for (int layer = -1; layer <= o->model.shape.layers; layer++) {
        size_t sum = 0;
        for (size_t s = 0; s < stripes_of(o); s++) {
            range_of(o, s, 0, 1, &first, &n);
            if (o->done[s] == layer) sum += n;
        }
        if (sum > most) most = sum;
    }
    return most;
}

optimizer* optimizer_create(backend* b, const model* m, const optimizer_config* config) {
    optimizer* o = xalloc(1, sizeof *o, "the optimizer");
    o->b = b;
    o->model = *m;
    o->config = *config;
    o->count = m->parameters;
    o->ranks = config->ranks ? config->ranks : ranks_alone();
    o->shards = (config->shards ? config->shards : 1) / o->ranks->size;
    o->layer = m->shape.layers;
    cut_stripes(o);
    o->squares = xalloc(chunks_of(o->count), sizeof(double), "sums of squares");
    double first = config->first_scale ? config->first_scale : FIRST_SCALE;
    o->state.loss_scale = config->loss_scaling ? first : 1;
    size_t before = b->allocated, bytes = o->count * sizeof(float);
    o->m = b->alloc(b, o->own * sizeof(float),
                    "optimizer moments (choose a smaller model: --depth, --channels, --context)");
    o->v = b->alloc(b, o->own * sizeof(float),
                    "optimizer moments (choose a smaller model: --depth, --channels, --context)");
    o->gradients.all =
        b->alloc(b, bytes, "gradients (choose a smaller model: --depth, --channels, --context)");
    if (m->shape.tied)
        o->gradients.lookup =
            b->alloc(b, lookup_count(o) * sizeof(float),
                     "gradients (choose a smaller model: --depth, --channels, --context)");
    for (; 1 << o->levels < o->shards; o->levels++)
        o->pending[o->levels] = b->alloc(b, bytes, "gradients of earlier shards (lower --shards)");
    if (o->ranks->size > 1) {
        o->incoming_count = most_incoming(o);
        o->incoming = b->alloc(b, o->incoming_count * sizeof(float), "gradients of other ranks");
    }
    o->bytes = b->allocated - before;
    return o;
}

void optimizer_free(optimizer* o) {
    backend* b = o->b;
    size_t bytes = o->count * sizeof(float);
    b->release(b, o->m, o->own * sizeof(float));
    b->release(b, o->v, o->own * sizeof(float));
    if (o->incoming) b->release(b, o->incoming, o->incoming_count * sizeof(float));
    b->release(b, o->gradients.all, bytes);
    for (int l = 0; l < o->levels; l++) b->release(b, o->pending[l], bytes);
    if (o->gradients.lookup) b->release(b, o->gradients.lookup, lookup_count(o) * sizeof(float));
    free(o->squares);
    free(o->done);
    free(o);
}

// The same range of an array that has an element of `bytes` bytes for each `per` parameters.
static span range_in(const optimizer* o, size_t s, int k, int rounds, size_t bytes, size_t per) {
    size_t first, n;
    range_of(o, s, k, rounds, &first, &n);
    return (span){first / per * bytes, (n + per - 1) / per * bytes};
}

// Every rank's slices of such an array to all ranks. b: whose memory it is; NULL: the host's.
static void gather_slices(const optimizer* o, backend* b, void* data, size_t bytes, size_t per) {
    ranks* r = o->ranks;
    for (int l = log2_of(r->size) - 1; l >= 0; l--) {
        int other = r->rank ^ 1 << l;
        ranks_batch(b, 1);
        for (size_t s = 0; s < stripes_of(o); s++) {
            span out = range_in(o, s, r->rank, l + 1, bytes, per);
            span in = range_in(o, s, other, l + 1, bytes, per);
            ranks_exchange_on(r, b, other, (char*)data + out.at, out.bytes, other,
                              (char*)data + in.at, in.bytes);
        }
        ranks_batch(b, 0);
    }
}

void optimizer_put_moments(optimizer* o, const float* m, const float* v) {
    for (size_t s = 0; s < stripes_of(o); s++) {
        size_t first, n, at = own_slice(o, s, &first, &n);
        o->b->upload(o->b, o->m + at, m + first, n * sizeof(float));
        o->b->upload(o->b, o->v + at, v + first, n * sizeof(float));
    }
}

void optimizer_get_moments(const optimizer* o, float* m, float* v) {
    for (size_t s = 0; s < stripes_of(o); s++) {
        size_t first, n, at = own_slice(o, s, &first, &n);
        o->b->download(o->b, m + first, o->m + at, n * sizeof(float));
        o->b->download(o->b, v + first, o->v + at, n * sizeof(float));
    }
    gather_slices(o, NULL, m, sizeof(float), 1);
    gather_slices(o, NULL, v, sizeof(float), 1);
}

void optimizer_clear_gradients(optimizer* o) {
    o->b->clear(o->b, o->gradients.all, o->count * sizeof(float));
    if (o->gradients.lookup)
        o->b->clear(o->b, o->gradients.lookup, lookup_count(o) * sizeof(float));
}

// Round l of the tree, of the stripes that are final with `layer`.
static void add_round(optimizer* o, int layer, int l) {
    ranks* r = o->ranks;
    float *sum = o->gradients.all, *in = o->incoming;
    int other = r->rank ^ 1 << l;
    size_t first, n, given, given_n;
    ranks_batch(o->b, 1);
    for (size_t s = 0; s < stripes_of(o); s++) {
        if (o->done[s] != layer) continue;
        range_of(o, s, r->rank, l + 1, &first, &n);
        range_of(o, s, other, l + 1, &given, &given_n);
        ranks_exchange_on(r, o->b, other, sum + given, given_n * sizeof(float), other, in,
                          n * sizeof(float));
        in += n;
    }
    ranks_batch(o->b, 0);
    in = o->incoming;
    for (size_t s = 0; s < stripes_of(o); s++) {
        if (o->done[s] != layer) continue;
        range_of(o, s, r->rank, l + 1, &first, &n);
        o->b->add(o->b, sum + first, in, n);
        in += n;
    }
}

// The last shard's gradient becomes the sum over this rank's shards, then over ranks: of what
// model_gradients.done(layer) says to be final, and was not added before. All ranks add in the same
// order, whenever they do.
static void add_down_to(void* optimizer_, int layer) {
    optimizer* o = optimizer_;
    backend* b = o->b;
    size_t first, n;
    if (b->aside) b->aside(b, 1);
    for (; o->layer >= layer; o->layer--) {
        for (size_t s = 0; s < stripes_of(o); s++) {
            range_of(o, s, 0, 0, &first, &n);
            for (int l = 0; l < o->levels && o->done[s] == o->layer; l++)
                b->add(b, o->gradients.all + first, o->pending[l] + first, n);
        }
        for (int l = 0; 1 << l < o->ranks->size; l++) add_round(o, o->layer, l);
    }
    if (b->aside) b->aside(b, 0);
}

model_gradients optimizer_gradients(optimizer* o, int last) {
    model_gradients g = o->gradients;
    if (last && o->ranks->size > 1) g.done = add_down_to, g.listener = o;
    return g;
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
    if (shard == o->shards - 1) {  // the sum of all
        add_down_to(o, -1);
        if (b->join) b->join(b);
        o->layer = o->model.shape.layers;
        return;
    }
    for (; shard >> level & 1; level++) b->add(b, sum, o->pending[level], o->count);
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

// Of the gradient, its chunks in order.
static double sum_squares(optimizer* o) {
    double sum = 0;
    for (size_t s = 0; s < stripes_of(o); s++) {
        size_t first, n;
        own_slice(o, s, &first, &n);
        o->b->sum_squares(o->b, o->squares + first / SUM_CHUNK, o->gradients.all + first, n);
    }
    gather_slices(o, NULL, o->squares, sizeof(double), SUM_CHUNK);
    for (size_t c = 0; c < chunks_of(o->count); c++) sum += o->squares[c];
    return sum;
}

// AdamW on what this rank's slice of stripe s has of each weight.
static void step_slice(optimizer* o, size_t s, float* parameters, adamw_step how) {
    const model* m = &o->model;
    size_t first, n, moments = own_slice(o, s, &first, &n);
    for (int i = 0; i < WEIGHTS; i++) {
        size_t at = m->offset[i], end = at + m->count[i];
        if (at < first) at = first;
        if (end > first + n) end = first + n;
        if (at >= end) continue;
        size_t own = moments + (at - first);
        how.weight_decay = weight_decays(&m->family->weight[i]) ? (float)o->config.weight_decay : 0;
        o->b->adamw(o->b, parameters + at, o->m + own, o->v + own, o->gradients.all + at, end - at,
                    at, &how);
    }
}

optimizer_result optimizer_step(optimizer* o, float* parameters, double lr) {
    optimizer_state* s = &o->state;
    double scale = s->loss_scale;
    double norm = sqrt(sum_squares(o)) / scale;
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
    for (size_t i = 0; i < stripes_of(o); i++) step_slice(o, i, parameters, how);
    gather_slices(o, o->b, parameters, sizeof(float), 1);
    return (optimizer_result){norm, 0};
}
