// AdamW: Loshchilov and Hutter, arXiv 1711.05101; weight decay on matrices alone. Loss scaling:
// Micikevicius et al., arXiv 1710.03740: the scale halves after a non-finite gradient and doubles
// after SCALE_INTERVAL clean steps.
//
// Ranks add their gradients in a tree of log2(size) rounds, each half as much as the one before
// (recursive halving): in round l ranks k and k ^ 2^l share the range that both have summed, and
// each keeps a half, to which the other's is added. So an element's sum is that of the tree of
// shards.
#include "optimizer.h"

#include <math.h>  // sqrt, INFINITY
#include <stdlib.h>

const char* const SCHEDULE_NAMES[] = {"constant", "linear", "cosine", NULL};

enum { SCALE_INTERVAL = 200 };
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

// The range that rank k has summed after `rounds` rounds.
static void range_of(const optimizer* o, int k, int rounds, size_t* first, size_t* n) {
    *first = 0;
    *n = o->count;
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

static size_t chunks_of(size_t n) { return (n + SUM_CHUNK - 1) / SUM_CHUNK; }

optimizer* optimizer_create(backend* b, const model* m, const optimizer_config* config) {
    optimizer* o = xalloc(1, sizeof *o, "the optimizer");
    o->b = b;
    o->model = *m;
    o->config = *config;
    o->count = m->parameters;
    o->ranks = config->ranks ? config->ranks : ranks_alone();
    o->shards = (config->shards ? config->shards : 1) / o->ranks->size;
    range_of(o, o->ranks->rank, log2_of(o->ranks->size), &o->first, &o->own);
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
        size_t at;
        range_of(o, 0, 1, &at, &o->incoming_count);
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
    free(o);
}

// Every rank's slice of an array of `count` elements, or of one over their chunks, to all ranks. b:
// whose memory it is; NULL: the host's.
static void gather_slices(const optimizer* o, backend* b, void* data, size_t element, size_t each) {
    int size = o->ranks->size;
    span* part = xalloc((size_t)size, sizeof *part, "parts");
    for (int k = 0; k < size; k++) {
        size_t first, n;
        range_of(o, k, log2_of(size), &first, &n);
        part[k] = (span){first / each * element, (n + each - 1) / each * element};
    }
    ranks_gather_on(o->ranks, b, data, part);
    free(part);
}

void optimizer_put_moments(optimizer* o, const float* m, const float* v) {
    o->b->upload(o->b, o->m, m + o->first, o->own * sizeof(float));
    o->b->upload(o->b, o->v, v + o->first, o->own * sizeof(float));
}

void optimizer_get_moments(const optimizer* o, float* m, float* v) {
    o->b->download(o->b, m + o->first, o->m, o->own * sizeof(float));
    o->b->download(o->b, v + o->first, o->v, o->own * sizeof(float));
    gather_slices(o, NULL, m, sizeof(float), 1);
    gather_slices(o, NULL, v, sizeof(float), 1);
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

// The gradient's sum over ranks, of the own slice.
static void add_ranks(optimizer* o) {
    ranks* r = o->ranks;
    float* sum = o->gradients.all;
    for (int l = 0; 1 << l < r->size; l++) {
        int other = r->rank ^ 1 << l;
        size_t first, n, given, given_n;
        range_of(o, r->rank, l + 1, &first, &n);
        range_of(o, other, l + 1, &given, &given_n);
        ranks_exchange_on(r, o->b, other, sum + given, given_n * sizeof(float), other, o->incoming,
                          n * sizeof(float));
        o->b->add(o->b, sum + first, o->incoming, n);
    }
}

// Of the gradient, its chunks in order.
static double sum_squares(optimizer* o) {
    double sum = 0;
    o->b->sum_squares(o->b, o->squares + o->first / SUM_CHUNK, o->gradients.all + o->first, o->own);
    gather_slices(o, NULL, o->squares, sizeof(double), SUM_CHUNK);
    for (size_t c = 0; c < chunks_of(o->count); c++) sum += o->squares[c];
    return sum;
}

// AdamW on what the slice has of each weight.
static void step_slice(optimizer* o, float* parameters, adamw_step how) {
    const model* m = &o->model;
    for (int i = 0; i < WEIGHTS; i++) {
        size_t at = m->offset[i], end = at + m->count[i], own_end = o->first + o->own;
        if (at < o->first) at = o->first;
        if (end > own_end) end = own_end;
        if (at >= end) continue;
        how.weight_decay = weight_decays(&m->family->weight[i]) ? (float)o->config.weight_decay : 0;
        o->b->adamw(o->b, parameters + at, o->m + (at - o->first), o->v + (at - o->first),
                    o->gradients.all + at, end - at, at, &how);
    }
}

optimizer_result optimizer_step(optimizer* o, float* parameters, double lr) {
    optimizer_state* s = &o->state;
    double scale = s->loss_scale;
    add_ranks(o);
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
    step_slice(o, parameters, how);
    gather_slices(o, o->b, parameters, sizeof(float), 1);
    return (optimizer_result){norm, 0};
}
