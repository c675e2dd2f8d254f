// Packing: a sequence's tokens but its last are inputs; the rows from the prompt's last token on
// are asked for the token that follows.
#include "trainer.h"

#include <math.h>  // isfinite
#include <stdlib.h>

typedef struct trainer_buffers {
    int max_length, nucleus_words, capacity;  // capacity: tokens of a micro-batch
    int* host;  // (4 * capacity + micro_batch + 1) in the order of `device`
    int* device;
    float* host_coef;    // (capacity)
    float *logp, *coef;  // device (capacity)
    uint32_t* nucleus;   // device (capacity, nucleus_words) masks, made when first needed
    candidates asked;    // device (capacity), likewise
} trainer_buffers;

trainer* trainer_create(backend* b, const model* m, precision p, const optimizer_config* config,
                        int micro_batch, int max_length, recompute_level recompute) {
    trainer* t = xalloc(1, sizeof *t, "the trainer");
    trainer_buffers* u = xalloc(1, sizeof *u, "the trainer");
    t->b = b;
    t->model = *m;
    t->count = m->parameters;
    t->parameters = b->alloc(b, t->count * sizeof(float),
                             "parameters (choose a smaller model: --depth, --channels, --context)");
    t->weights = model_weights_create(b, m, p);
    t->acts = model_acts_create(b, m, p.store, micro_batch * max_length, recompute);
    t->optimizer = optimizer_create(b, m, config);
    t->micro_batch = micro_batch;
    t->buffers = u;
    u->max_length = max_length;
    u->capacity = micro_batch * max_length;
    size_t ints = 4 * (size_t)u->capacity + micro_batch + 1;
    u->host = xalloc(ints, sizeof(int), "a packed batch");
    u->device = b->alloc(b, ints * sizeof(int), "a packed batch");
    u->host_coef = xalloc(u->capacity, sizeof(float), "coefficients");
    u->logp = b->alloc(b, 2 * (size_t)u->capacity * sizeof(float), "log-probabilities");
    u->coef = u->logp + u->capacity;
    return t;
}

void trainer_free(trainer* t) {
    trainer_buffers* u = t->buffers;
    backend* b = t->b;
    b->release(b, t->parameters, t->count * sizeof(float));
    b->release(b, u->device, (4 * (size_t)u->capacity + t->micro_batch + 1) * sizeof(int));
    b->release(b, u->logp, 2 * (size_t)u->capacity * sizeof(float));
    if (u->nucleus)
        b->release(b, u->nucleus, (size_t)u->capacity * u->nucleus_words * sizeof(uint32_t));
    size_t asked = (size_t)u->capacity * u->asked.count;
    if (asked) {
        b->release(b, u->asked.id, asked * sizeof(int));
        b->release(b, u->asked.logp, asked * sizeof(float));
    }
    model_weights_free(t->weights);
    model_acts_free(t->acts);
    optimizer_free(t->optimizer);
    free(u->host);
    free(u->host_coef);
    free(u);
    free(t);
}

void trainer_load(trainer* t, const float* parameters) {
    t->b->upload(t->b, t->parameters, parameters, t->count * sizeof(float));
    const format* f = t->optimizer->config.format;
    if (f != &FORMAT_FP32) t->b->cast(t->b, t->parameters, t->parameters, t->count, f);
    model_weights_sync(t->weights, t->parameters);
}

void trainer_save(const trainer* t, float* parameters) {
    t->b->download(t->b, parameters, t->parameters, t->count * sizeof(float));
}

// The packed batch whose arrays lie in `device`.
static packed_batch packed(const trainer_buffers* u, int tokens, int sequences, int targets) {
    int n = u->capacity;
    packed_batch g = {
        .tokens = tokens, .sequences = sequences, .targets = targets, .token = u->device};
    g.position = g.token + n;
    g.row = g.position + n;
    g.target = g.row + n;
    g.seq_start = g.target + n;
    return g;
}

void trainer_rehearse(trainer* t) {
    trainer_buffers* u = t->buffers;
    int n = u->capacity, *host = u->host;
    for (int i = 0; i < n; i++) {
        host[i] = 0;                      // token
        host[n + i] = i % u->max_length;  // position
        host[2 * n + i] = i;              // row
        host[3 * n + i] = 0;              // target
        u->host_coef[i] = 0;
    }
    for (int s = 0; s <= t->micro_batch; s++) host[4 * n + s] = s * u->max_length;
    t->b->upload(t->b, u->device, host, (4 * (size_t)n + t->micro_batch + 1) * sizeof(int));
    t->b->upload(t->b, u->coef, u->host_coef, n * sizeof(float));
    packed_batch g = packed(u, n, t->micro_batch, n);
    model_forward(t->weights, t->acts, &g, 1, u->logp, NULL);
    model_backward(t->weights, t->acts, &g, 1, u->coef, t->optimizer->gradients);
    t->b->sync(t->b);
}

static void pack_nucleus(trainer* t, const rollout* d, int first, packed_batch* g) {
    trainer_buffers* u = t->buffers;
    size_t words = d->nucleus_words, each = words * sizeof(uint32_t);
    uint32_t* mask = xalloc(g->targets, each, "kept sets");
    if (!u->nucleus) {
        u->nucleus_words = d->nucleus_words;
        u->nucleus = t->b->alloc(t->b, u->capacity * each, "kept sets (lower --micro-batch)");
    }
    for (int i = 0; i < g->targets; i++)
        rollout_get_nucleus(d, d->start[first] + i, mask + i * words);
    t->b->upload(t->b, u->nucleus, mask, g->targets * each);
    free(mask);
    g->nucleus = u->nucleus;
}

static void pack_candidates(trainer* t, const rollout* d, int first, packed_batch* g) {
    trainer_buffers* u = t->buffers;
    size_t most = (size_t)u->capacity * d->candidates;
    if (!u->asked.count) {
        u->asked.count = d->candidates;
        u->asked.id = t->b->alloc(t->b, most * sizeof(int), "candidates (lower --micro-batch)");
        u->asked.logp = t->b->alloc(t->b, most * sizeof(float), "candidates (lower --micro-batch)");
    }
    t->b->upload(t->b, u->asked.id, d->candidate + d->start[first] * d->candidates,
                 (size_t)g->targets * d->candidates * sizeof(int));
    g->asked = u->asked;
}

// Sequences first .. first+count-1 as a packed batch on the device.
static packed_batch pack(trainer* t, const rollout* d, int first, int count) {
    trainer_buffers* u = t->buffers;
    int n = u->capacity, tokens = 0, targets = 0;
    int *token = u->host, *position = token + n, *row = position + n, *target = row + n;
    int* start = target + n;
    for (int s = first; s < first + count; s++) {
        int p = s / d->group, prompt = d->prompt_length[p], length = rollout_length(d, s);
        const int* in = d->prompt + (size_t)p * d->max_prompt;
        const int* out = d->token + d->start[s];
        start[s - first] = tokens;
        for (int i = 0; i < prompt + length - 1; i++, tokens++) {
            token[tokens] = i < prompt ? in[i] : out[i - prompt];
            position[tokens] = i;
            if (i < prompt - 1) continue;
            row[targets] = tokens;
            target[targets++] = out[i - prompt + 1];
        }
    }
    start[count] = tokens;
    t->b->upload(t->b, u->device, u->host, (4 * (size_t)n + count + 1) * sizeof(int));
    packed_batch g = packed(u, tokens, count, targets);
    if (d->nucleus_words) pack_nucleus(t, d, first, &g);
    return g;
}

// One micro-batch forward; the log-probabilities of its targets go where they belong in `out`.
static packed_batch forward(trainer* t, const model_weights* w, const rollout* d, int first,
                            int count, float inverse_temperature, float* out) {
    trainer_buffers* u = t->buffers;
    packed_batch g = pack(t, d, first, count);
    int own = d->candidates && w == t->weights;
    if (own) pack_candidates(t, d, first, &g);
    model_forward(w, t->acts, &g, inverse_temperature, u->logp, NULL);
    t->b->download(t->b, out + d->start[first], u->logp, g.targets * sizeof(float));
    if (own)
        t->b->download(t->b, d->candidate_pi + d->start[first] * d->candidates, u->asked.logp,
                       (size_t)g.targets * d->candidates * sizeof(float));
    return g;
}

void trainer_logprobs(trainer* t, const model_weights* w, const rollout* d, int first, int count,
                      float inverse_temperature, float* out) {
    for (int done = 0; done < count; done += t->micro_batch) {
        int n = count - done < t->micro_batch ? count - done : t->micro_batch;
        forward(t, w, d, first + done, n, inverse_temperature, out);
    }
}

// Those of the sequence whose tokens begin at `at`.
static objective_candidates candidates_at(const rollout* d, size_t at) {
    size_t first = at * d->candidates;
    return (objective_candidates){d->candidates, d->token + at, d->candidate + first,
                                  d->candidate_pi + first, d->candidate_anchor + first};
}

// The coefficients of one micro-batch, times their weight and the loss scale; sums the statistics.
// `each` (max_new) is scratch.
static void coefficients(trainer* t, const rollout* d, int first, int count, const objective* o,
                         const double* weight, double loss_scale, coefficient* each,
                         trainer_update_result* sum) {
    float* coef = t->buffers->host_coef;
    for (int s = first; s < first + count; s++) {
        size_t at = d->start[s];
        int length = rollout_length(d, s);
        objective_candidates top = {0};
        if (d->candidates) top = candidates_at(d, at);
        objective_sequence(o, d->advantage[s], d->log_pi + at, d->anchor + at, d->log_ref + at,
                           length, &top, each);
        for (int i = 0; i < length; i++) {
            *coef++ = (float)(each[i].c * weight[s - first] * loss_scale);
            sum->loss += each[i].loss * weight[s - first];
            sum->masked += each[i].masked;
            if (each[i].masked) sum->masked_mu += num_exp(d->anchor[at + i]);
            sum->corrective += each[i].corrective;
        }
    }
}

trainer_update_result trainer_update(trainer* t, rollout* d, int first, int count,
                                     const objective* o, aggregate_kind aggregate,
                                     float inverse_temperature, double lr) {
    trainer_buffers* u = t->buffers;
    trainer_update_result r = {0};
    int64_t targets = 0;
    double scale = t->optimizer->state.loss_scale;
    double* weight = xalloc(count, sizeof *weight, "sequence weights");
    coefficient* each = xalloc(d->max_new, sizeof *each, "coefficients");
    objective_weights(aggregate, d->start + first, count, d->max_new, weight);
    optimizer_clear_gradients(t->optimizer);
    for (int done = 0; done < count; done += t->micro_batch) {
        int at = first + done, n = count - done < t->micro_batch ? count - done : t->micro_batch;
        packed_batch g = forward(t, t->weights, d, at, n, inverse_temperature, d->log_pi);
        coefficients(t, d, at, n, o, weight + done, scale, each, &r);
        t->b->upload(t->b, u->coef, u->host_coef, g.targets * sizeof(float));
        model_backward(t->weights, t->acts, &g, inverse_temperature, u->coef,
                       t->optimizer->gradients);
        r.tokens += g.tokens;
        targets += g.targets;
    }
    free(weight);
    free(each);
    optimizer_result step = optimizer_step(t->optimizer, t->parameters, lr);
    if (!step.skipped) model_weights_sync(t->weights, t->parameters);
    r.grad_norm = step.grad_norm;
    r.skipped = step.skipped;
    r.masked_mu /= r.masked;
    r.masked /= (double)targets;
    r.corrective /= (double)targets;
    return r;
}
