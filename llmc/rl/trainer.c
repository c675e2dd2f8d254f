// Packing: the tokens of a group's prompt stand once, then those of each of its samples but the
// last one. The rows of a sample continue its prompt's (packing.prefix; a single sample's are of
// the same sequence). The prompt's last row is asked for the first token of each sample, each row
// of a sample for the token that follows.
#include "trainer.h"

#include <stdlib.h>

// Sequences first .. last - 1, of one group.
typedef struct part {
    int first, last;
} part;

typedef struct trainer_buffers {
    trainer_room room;
    int capacity;  // rows, targets and sequences of a micro-batch
    int parts;     // of the micro-batch
    part* part;    // (capacity)
    int* host;     // (6 * capacity + 1) in the order of `device`
    int* device;
    float* host_row;     // (capacity) coefficients, or log-probabilities
    float *logp, *coef;  // device (capacity)
    int nucleus_words;
    uint32_t* nucleus;        // device (capacity, nucleus_words) masks, made when first needed
    candidates asked;         // device (capacity), likewise
    float* asked_logp;        // host (capacity, asked.count)
    uint8_t *taken, *chosen;  // host (capacity, each) what the rows took in the sampler; what the
                              // trainer's router chooses
    float* balance;           // device (experts)
    uint8_t* replay;          // device, the first of these
    float *entropy,
        *bonus;           // device (capacity), likewise: entropies, the weight of each in the loss
    float* host_entropy;  // (capacity) the one, then the other
} trainer_buffers;

trainer_room trainer_room_for(const rollout* d, int group, int tokens) {
    int64_t all = (int64_t)d->capacity * (d->max_prompt + d->max_new);
    return (trainer_room){all < tokens ? (int)all : tokens, group, d->max_prompt, d->max_new};
}

// Rows, targets and sequences that a micro-batch has room for: those of a group at least.
static int room_for(const trainer_room* r) {
    int64_t group = r->max_prompt + (int64_t)r->group * r->max_new + 1;
    if (group > 1 << 30)
        fatal(
            "a group of %d samples of up to %d tokens is too large for one pass; lower --group or "
            "--max-new-tokens",
            r->group, r->max_new);
    return group > r->tokens ? (int)group : r->tokens;
}

static size_t ints_of(const trainer_buffers* u) { return 6 * (size_t)u->capacity + 1; }

trainer* trainer_create(backend* b, const model* m, precision p, const optimizer_config* config,
                        const trainer_room* room, recompute_level recompute) {
    trainer* t = xalloc(1, sizeof *t, "the trainer");
    trainer_buffers* u = xalloc(1, sizeof *u, "the trainer");
    t->b = b;
    t->model = *m;
    t->count = m->parameters;
    u->room = *room;
    u->capacity = room_for(room);
    t->parameters = b->alloc(b, t->count * sizeof(float),
                             "parameters (choose a smaller model: --depth, --channels, --context)");
    t->weights = model_weights_create(b, m, p);
    t->acts = model_acts_create(b, m, p.store, u->capacity, recompute);
    t->optimizer = optimizer_create(b, m, config);
    t->buffers = u;
    u->part = xalloc(u->capacity, sizeof *u->part, "a packed batch");
    u->host = xalloc(ints_of(u), sizeof(int), "a packed batch");
    u->device = b->alloc(b, ints_of(u) * sizeof(int), "a packed batch");
    u->host_row = xalloc(u->capacity, sizeof(float), "coefficients");
    u->logp = b->alloc(b, 2 * (size_t)u->capacity * sizeof(float), "log-probabilities");
    u->coef = u->logp + u->capacity;
    return t;
}

void trainer_count_changes(trainer* t, precision of_sampler) {
    t->changes = changes_create(t->b, &t->model, t->weights->precision, of_sampler);
}

void trainer_free(trainer* t) {
    trainer_buffers* u = t->buffers;
    backend* b = t->b;
    changes_free(t->changes);
    b->release(b, t->parameters, t->count * sizeof(float));
    b->release(b, u->device, ints_of(u) * sizeof(int));
    b->release(b, u->logp, 2 * (size_t)u->capacity * sizeof(float));
    if (u->nucleus)
        b->release(b, u->nucleus, (size_t)u->capacity * u->nucleus_words * sizeof(uint32_t));
    if (u->entropy) b->release(b, u->entropy, 2 * (size_t)u->capacity * sizeof(float));
    size_t asked = (size_t)u->capacity * u->asked.count;
    if (asked) {
        b->release(b, u->asked.id, asked * sizeof(int));
        b->release(b, u->asked.logp, asked * sizeof(float));
    }
    model_weights_free(t->weights);
    model_acts_free(t->acts);
    optimizer_free(t->optimizer);
    free(u->part);
    free(u->host);
    free(u->host_row);
    size_t experts = (size_t)u->capacity * model_experts_each(&t->model);
    if (u->replay) b->release(b, u->replay, experts);
    if (u->balance) b->release(b, u->balance, t->model.shape.experts * sizeof(float));
    free(u->taken);
    free(u->asked_logp);
    free(u->host_entropy);
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

// ---------------------------------------------------------------------------------------------
// Packing

// The arrays of a packed batch, on the host or on the device, one after another.
static packed_batch arrays_in(const trainer_buffers* u, int* memory) {
    int n = u->capacity;
    packed_batch g = {.token = memory,
                      .position = memory + n,
                      .row = memory + 2 * n,
                      .target = memory + 3 * n,
                      .pack = {.prefix = memory + 4 * n, .start = memory + 5 * n}};
    return g;
}

// A batch that is being packed on the host.
typedef struct packer {
    packed_batch g;
    int *prefix, *start;
} packer;

static packer pack_begin(const trainer_buffers* u) {
    packed_batch g = arrays_in(u, u->host);
    packer p = {g, u->host + (g.pack.prefix - u->host), u->host + (g.pack.start - u->host)};
    p.start[0] = 0;
    return p;
}

// The rows that follow belong to a new sequence.
static int pack_sequence(packer* p, int prefix) {
    int s = p->g.pack.sequences++;
    p->prefix[s] = prefix;
    p->start[s + 1] = p->g.tokens;
    return s;
}

static void pack_row(packer* p, int token, int position) {
    p->g.token[p->g.tokens] = token;
    p->g.position[p->g.tokens] = position;
    p->start[p->g.pack.sequences] = ++p->g.tokens;
}

static void pack_target(packer* p, int row, int target) {
    p->g.row[p->g.targets] = row;
    p->g.target[p->g.targets++] = target;
}

static packed_batch pack_end(trainer* t, const packer* p) {
    trainer_buffers* u = t->buffers;
    t->b->upload(t->b, u->device, u->host, ints_of(u) * sizeof(int));
    packed_batch g = arrays_in(u, u->device);
    g.tokens = p->g.tokens;
    g.targets = p->g.targets;
    g.pack.sequences = p->g.pack.sequences;
    return g;
}

static void pack_part(packer* k, const rollout* d, part p) {
    int number = p.first / d->group, length = d->prompt_length[number];
    const int* prompt = d->prompt + (size_t)number * d->max_prompt;
    int prefix = pack_sequence(k, -1), alone = p.last - p.first == 1;
    for (int i = 0; i < length; i++) pack_row(k, prompt[i], i);
    int last_row = k->g.tokens - 1;
    for (int s = p.first; s < p.last; s++) {
        const int* token = d->token + d->start[s];
        int n = rollout_length(d, s);
        if (!alone) pack_sequence(k, prefix);
        pack_target(k, last_row, token[0]);
        for (int i = 0; i < n - 1; i++) {
            pack_target(k, k->g.tokens, token[i + 1]);
            pack_row(k, token[i], length + i);
        }
    }
}

// The masks of the batch's kept sets, and the ids of its candidates, onto the device.
static void pack_nucleus(trainer* t, const rollout* d, packed_batch* g) {
    trainer_buffers* u = t->buffers;
    size_t words = d->nucleus_words, each = words * sizeof(uint32_t);
    uint32_t *masks = xalloc(g->targets, each, "kept sets"), *mask = masks;
    if (!u->nucleus) {
        u->nucleus_words = d->nucleus_words;
        u->nucleus = t->b->alloc(t->b, u->capacity * each, "kept sets (lower --micro-tokens)");
    }
    for (int p = 0; p < u->parts; p++)
        for (size_t i = d->start[u->part[p].first]; i < d->start[u->part[p].last]; i++) {
            rollout_get_nucleus(d, i, mask);
            mask += words;
        }
    t->b->upload(t->b, u->nucleus, masks, g->targets * each);
    free(masks);
    g->nucleus = u->nucleus;
}

static void pack_candidates(trainer* t, const rollout* d, packed_batch* g) {
    trainer_buffers* u = t->buffers;
    size_t most = (size_t)u->capacity * d->candidates;
    int count = d->candidates;
    if (!u->asked.count) {
        const char* what = "candidates (lower --micro-tokens)";
        u->asked.count = count;
        u->asked.id = t->b->alloc(t->b, most * sizeof(int), what);
        u->asked.logp = t->b->alloc(t->b, most * sizeof(float), what);
        u->asked_logp = xalloc(most, sizeof(float), what);
    }
    int* id = u->asked.id;
    for (int p = 0; p < u->parts; p++) {
        size_t from = d->start[u->part[p].first], n = d->start[u->part[p].last] - from;
        t->b->upload(t->b, id, d->candidate + from * count, n * count * sizeof(int));
        id += n * count;
    }
    g->asked = u->asked;
}

// What the batch's rows took in the sampler, in their order.
static void pack_experts(trainer* t, const rollout* d, packed_batch* g) {
    trainer_buffers* u = t->buffers;
    size_t each = model_experts_each(&t->model), most = u->capacity * each;
    if (!u->taken) {
        u->taken = xalloc(2 * most, 1, "experts");
        u->chosen = u->taken + most;
    }
    uint8_t* to = u->taken;
    for (int p = 0; p < u->parts; p++) {
        int first = u->part[p].first, number = first / d->group;
        size_t length = (size_t)d->prompt_length[number] * each;
        memcpy(to, d->expert + (size_t)number * d->group * d->expert_bytes, length);
        to += length;
        for (int s = first; s < u->part[p].last; s++) {
            size_t n = (size_t)(rollout_length(d, s) - 1) * each;
            memcpy(to, d->expert + s * d->expert_bytes + length, n);
            to += n;
        }
    }
    if (!t->replay_routing) return;
    if (!u->replay) u->replay = t->b->alloc(t->b, most, "experts (lower --micro-tokens)");
    t->b->upload(t->b, u->replay, u->taken, g->tokens * each);
    g->experts = u->replay;
}

// Counts the rows and layers whose experts differ between the sampler and the trainer's router.
static int64_t count_other_routes(trainer* t, int tokens) {
    trainer_buffers* u = t->buffers;
    size_t each = model_experts_each(&t->model), used = (size_t)t->model.shape.experts_used;
    int64_t n = 0;
    t->b->download(t->b, u->chosen, model_experts(t->acts), tokens * each);
    for (size_t at = 0; at < tokens * each; at += used)
        n += memcmp(u->chosen + at, u->taken + at, used) != 0;
    return n;
}

// `each` values for each target of the micro-batch, to the places of its tokens.
static void spread(const trainer_buffers* u, const rollout* d, float* to, const float* from,
                   int each) {
    for (int p = 0; p < u->parts; p++) {
        size_t at = d->start[u->part[p].first] * each;
        size_t n = d->start[u->part[p].last] * each - at;
        memcpy(to + at, from, n * sizeof(float));
        from += n;
    }
}

// ---------------------------------------------------------------------------------------------
// Micro-batches

// A walk over the parts of sequences at .. end - 1: those that `idle` names, those that it does
// not, or (NULL) all.
typedef struct walk {
    int at, end;
    const char* idle;  // (sequences), or NULL
    char wanted;
} walk;

// The next micro-batch: as many parts as fit. 0: there are no more.
static int next_micro_batch(trainer* t, const rollout* d, walk* w) {
    trainer_buffers* u = t->buffers;
    size_t rows = 0, targets = 0, sequences = 0, most = u->capacity;
    u->parts = 0;
    while (w->at < w->end) {
        part p = {w->at, (w->at / d->group + 1) * d->group};
        if (p.last > w->end) p.last = w->end;
        size_t n = p.last - p.first, tokens = d->start[p.last] - d->start[p.first];
        if (!w->idle || w->idle[p.first] == w->wanted) {
            rows += d->prompt_length[p.first / d->group] + tokens - n;
            targets += tokens;
            sequences += n + 1;
            if (rows > most || targets > most || sequences > most) break;
            u->part[u->parts++] = p;
        }
        w->at = p.last;
    }
    if (!u->parts && w->at < w->end)
        fatal("a group of %d sequences does not fit a trainer of groups of %d", d->group,
              u->room.group);
    return u->parts > 0;
}

// The micro-batch forward; its log-probabilities go where they belong in `out`.
static packed_batch forward(trainer* t, const model_weights* w, const rollout* d,
                            float inverse_temperature, float* out) {
    trainer_buffers* u = t->buffers;
    packer k = pack_begin(u);
    for (int p = 0; p < u->parts; p++) pack_part(&k, d, u->part[p]);
    packed_batch g = pack_end(t, &k);
    int own = d->candidates && w == t->weights;
    if (d->nucleus_words) pack_nucleus(t, d, &g);
    if (own) pack_candidates(t, d, &g);
    if (d->expert && w == t->weights) pack_experts(t, d, &g);
    model_forward(w, t->acts, &g, inverse_temperature, u->logp, u->entropy);
    t->b->download(t->b, u->host_row, u->logp, g.targets * sizeof(float));
    if (u->entropy) t->b->download(t->b, u->host_entropy, u->entropy, g.targets * sizeof(float));
    spread(u, d, out, u->host_row, 1);
    if (own) {
        size_t n = (size_t)g.targets * d->candidates;
        t->b->download(t->b, u->asked_logp, u->asked.logp, n * sizeof(float));
        spread(u, d, d->candidate_pi, u->asked_logp, d->candidates);
    }
    return g;
}

void trainer_rehearse(trainer* t) {
    trainer_buffers* u = t->buffers;
    packer k = pack_begin(u);
    for (int s = 0, prefix = -1; k.g.tokens < u->capacity && s < u->capacity; s++) {
        int shared = s % (u->room.group + 1) == 0;
        int length = shared ? u->room.max_prompt : u->room.max_new;
        int at = pack_sequence(&k, shared ? -1 : prefix);
        if (shared) prefix = at;
        for (int i = 0; i < length && k.g.tokens < u->capacity; i++) {
            pack_target(&k, k.g.tokens, 0);
            pack_row(&k, 0, shared ? i : u->room.max_prompt - 1 + i);
        }
    }
    memset(u->host_row, 0, u->capacity * sizeof(float));
    t->b->upload(t->b, u->coef, u->host_row, u->capacity * sizeof(float));
    packed_batch g = pack_end(t, &k);
    model_weights first_layer = *t->weights;  // the others need the same scratch memory
    first_layer.model.shape.layers = 1;
    model_forward(&first_layer, t->acts, &g, 1, u->logp, NULL);
    model_backward(&first_layer, t->acts, &g, 1, u->coef, t->optimizer->gradients);
    t->b->sync(t->b);
}

// Of an array over tokens, `each` a token, what rank k has: that of sequences first +
// share[k] * unit and on, `unit` at a time, `units` in all; to all ranks.
static void gather_tokens(ranks* r, const rollout* d, float* data, int each, int first, int units,
                          int unit) {
    span* spans = xalloc((size_t)r->size, sizeof *spans, "parts");
    for (int k = 0, share[2]; k < r->size; k++) {
        ranks_share(r, k, units, share);
        size_t at = d->start[first + share[0] * unit], end = d->start[first + share[1] * unit];
        spans[k] = (span){at * each * sizeof *data, (end - at) * each * sizeof *data};
    }
    ranks_gather(r, data, spans);
    free(spans);
}

void trainer_logprobs(trainer* t, const model_weights* w, const rollout* d, int first, int count,
                      float inverse_temperature, float* out) {
    ranks* r = t->optimizer->ranks;
    // One rank takes what there is, groups that are cut too.
    int unit = r->size > 1 ? d->group : count, units = count / unit, share[2];
    ranks_share(r, r->rank, units, share);
    walk own = {first + share[0] * unit, first + share[1] * unit, NULL, 0};
    while (next_micro_batch(t, d, &own)) forward(t, w, d, inverse_temperature, out);
    gather_tokens(r, d, out, 1, first, units, unit);
    if (d->candidates && w == t->weights)
        gather_tokens(r, d, d->candidate_pi, d->candidates, first, units, unit);
}

// ---------------------------------------------------------------------------------------------
// An update

// Those of the sequence whose tokens begin at `at`.
static objective_candidates candidates_at(const rollout* d, size_t at) {
    size_t first = at * d->candidates;
    return (objective_candidates){d->candidates, d->token + at, d->candidate + first,
                                  d->candidate_pi + first, d->candidate_anchor + first};
}

// What an update knows beside the trainer and the sequences.
typedef struct update {
    const objective* o;
    int first;             // sequence
    const double* weight;  // of sequence first + i
    double loss_scale;
    coefficient* each;          // (max_new) scratch
    int last_shard;             // whether it is this rank's last one
    trainer_update_result sum;  // of the shard
} update;

// The coefficients of the micro-batch, times their weight and the loss scale, into host_row, those
// of a bonus in the place of the entropies; sums the statistics.
static void coefficients(trainer* t, const rollout* d, update* x) {
    trainer_buffers* u = t->buffers;
    float *coef = u->host_row, *entropy = u->host_entropy;
    for (int p = 0; p < u->parts; p++)
        for (int s = u->part[p].first; s < u->part[p].last; s++) {
            size_t at = d->start[s];
            int length = rollout_length(d, s);
            double weight = x->weight[s - x->first];
            objective_candidates top = {0};
            if (d->candidates) top = candidates_at(d, at);
            objective_sequence(x->o, d->advantage[s], d->log_pi + at, d->anchor + at,
                               d->log_ref + at, d->correction ? d->correction + at : NULL, length,
                               &top, x->each);
            for (int i = 0; i < length; i++) {
                coefficient* c = &x->each[i];
                *coef++ = (float)(c->c * weight * x->loss_scale);
                if (weight != 0) x->sum.loss += c->loss * weight;
                if (entropy) {
                    double bonus = x->o->entropy_coef * weight;
                    if (weight != 0) x->sum.loss -= bonus * *entropy;
                    *entropy++ = (float)(bonus * x->loss_scale);
                }
                x->sum.masked += c->masked;
                if (c->masked) x->sum.masked_mu += num_exp(d->anchor[at + i]);
                x->sum.corrective += c->corrective;
            }
        }
}

static int all_zero(const float* x, int n) {
    for (int i = 0; i < n; i++)
        if (x[i] != 0) return 0;  // NaN, too: a log-probability that is none must not pass unseen
    return 1;
}

static void make_entropy_room(trainer* t) {
    trainer_buffers* u = t->buffers;
    if (u->entropy) return;
    u->entropy = t->b->alloc(t->b, 2 * (size_t)u->capacity * sizeof(float),
                             "entropies (lower --micro-tokens)");
    u->bonus = u->entropy + u->capacity;
    u->host_entropy = xalloc((size_t)u->capacity, sizeof(float), "entropies");
}

// The micro-batches of a walk, backward only where coefficients differ from 0. A walk of idle
// groups keeps them apart from the others, so that none of those runs backward for one of these.
static void run_micro_batches(trainer* t, rollout* d, walk w, float inverse_temperature,
                              update* x) {
    trainer_buffers* u = t->buffers;
    while (next_micro_batch(t, d, &w)) {
        packed_batch g = forward(t, t->weights, d, inverse_temperature, d->log_pi);
        coefficients(t, d, x);
        x->sum.tokens += g.tokens;
        if (d->expert) x->sum.routing_differs += (double)count_other_routes(t, g.tokens);
        if (u->entropy && !all_zero(u->host_entropy, g.targets)) g.bonus = u->bonus;
        if (d->expert && t->router_aux_coef > 0) g.balance = u->balance;
        if (all_zero(u->host_row, g.targets) && !g.bonus && !g.balance) continue;
        if (g.bonus) t->b->upload(t->b, g.bonus, u->host_entropy, g.targets * sizeof(float));
        t->b->upload(t->b, u->coef, u->host_row, g.targets * sizeof(float));
        int last = x->last_shard && !w.wanted && w.at == w.end;
        model_backward(t->weights, t->acts, &g, inverse_temperature, u->coef,
                       optimizer_gradients(t->optimizer, last));
        x->sum.trained_tokens += g.tokens;
    }
}

static int is_left_out(const rollout* d, int s) { return d->leave_cut && !rollout_ended(d, s); }

// Of the rollout's sequences; those that are left out have no length.
static double mean_length(const rollout* d) {
    double tokens = 0;
    for (int s = 0; s < d->sequences; s++) tokens += is_left_out(d, s) ? 0 : rollout_length(d, s);
    return tokens / d->sequences;
}

// Adds what is summed of a shard.
static void add_shard(trainer_update_result* to, const trainer_update_result* shard) {
    to->loss += shard->loss;
    to->masked += shard->masked;
    to->masked_mu += shard->masked_mu;
    to->corrective += shard->corrective;
    to->tokens += shard->tokens;
    to->trained_tokens += shard->trained_tokens;
    to->routing_differs += shard->routing_differs;
}

// Whether all coefficients of sequence s's group among first .. end - 1 are 0, whatever pi is.
// weight: of sequence first + i.
static int is_idle(const rollout* d, int s, int first, int end, const objective* o,
                   const double* weight) {
    int needs_zero = objective_needs_zero_advantage(o);
    int from = s / d->group * d->group, to = from + d->group;
    for (int i = from > first ? from : first; i < to && i < end; i++) {
        const float* w = d->correction ? d->correction + d->start[i] : NULL;
        if (weight[i - first] == 0) continue;
        if (needs_zero) return 0;
        if (d->advantage[i] != 0 && !(w && all_zero(w, rollout_length(d, i)))) return 0;
    }
    return 1;
}

// How many rows of sequences first .. end - 1 took each expert in the sampler, a prompt's rows
// once: count (layers, experts). Returns the number of rows.
static double count_routes(const model* m, const rollout* d, int first, int end, double* count) {
    const shape* s = &m->shape;
    size_t each = model_experts_each(m);
    double rows = 0;
    for (int i = first; i < end; i++) {
        int number = i / d->group, length = d->prompt_length[number];
        int with_prompt = i == first || i % d->group == 0;
        for (int p = with_prompt ? 0 : length; p < length + rollout_length(d, i) - 1; p++, rows++) {
            int from = p < length ? number * d->group : i;
            const uint8_t* of = d->expert + from * d->expert_bytes + p * each;
            for (size_t k = 0; k < each; k++) count[k / s->experts_used * s->experts + of[k]]++;
        }
    }
    return rows;
}

// The tokens of the busiest expert over the mean of all, the mean over layers.
static double expert_load(const shape* s, double rows, const double* count) {
    double load = 0, mean = rows * s->experts_used / s->experts;
    for (int l = 0; l < s->layers; l++) {
        double most = 0;
        for (int e = 0; e < s->experts; e++)
            if (count[l * s->experts + e] > most) most = count[l * s->experts + e];
        load += most / mean / s->layers;
    }
    return load;
}

// The gradient of router_aux_coef times the load-balancing loss (Fedus et al., arXiv 2101.03961; as
// in transformers' load_balancing_loss_func) by each probability of the router: the loss is experts
// times the sum over experts of f P, where f is the share of rows and layers that took the expert
// in the sampler, a constant, and P the mean probability over rows and layers.
static void make_balance(trainer* t, double rows, const double* count, double loss_scale) {
    const shape* s = &t->model.shape;
    trainer_buffers* u = t->buffers;
    double all = rows * s->layers;
    float balance[EXPERTS_MOST];
    for (int e = 0; e < s->experts; e++) {
        double taken = 0;
        for (int l = 0; l < s->layers; l++) taken += count[l * s->experts + e];
        balance[e] = (float)(t->router_aux_coef * loss_scale * s->experts * (taken / all) / all);
    }
    if (!u->balance) u->balance = t->b->alloc(t->b, s->experts * sizeof(float), "experts");
    t->b->upload(t->b, u->balance, balance, s->experts * sizeof(float));
}

trainer_update_result trainer_update(trainer* t, rollout* d, int first, int count,
                                     const objective* o, aggregate_kind aggregate,
                                     float inverse_temperature, double lr) {
    ranks* r = t->optimizer->ranks;
    int end = first + count, own = t->optimizer->shards, shards = own * r->size;
    int size = count / shards;
    if (count % shards)
        fatal("a mini-batch of %d sequences has no %d shards of one size", count, shards);
    double targets = (double)(d->start[end] - d->start[first]);
    double* weight = xalloc(count, sizeof *weight, "sequence weights");
    char* idle = xalloc(end, 1, "sequences without a gradient");
    char* left_out = xalloc(count, 1, "sequences that are left out");
    coefficient* each = xalloc(d->max_new, sizeof *each, "coefficients");
    update x = {.o = o,
                .first = first,
                .weight = weight,
                .loss_scale = t->optimizer->state.loss_scale,
                .each = each};
    if (o->entropy_coef != 0) make_entropy_room(t);
    const shape* s = &t->model.shape;
    double *routes = xalloc((size_t)s->layers * s->experts, sizeof *routes, "experts"), rows = 0;
    if (d->expert) rows = count_routes(&t->model, d, first, end, routes);
    if (d->expert && t->router_aux_coef > 0) make_balance(t, rows, routes, x.loss_scale);
    trainer_update_result sum = {0}, *each_sum = xalloc(shards, sizeof *each_sum, "sums of shards");
    for (int i = 0; i < count; i++) left_out[i] = (char)is_left_out(d, first + i);
    objective_weights(aggregate, d->start + first, count, d->max_new, mean_length(d), left_out,
                      weight);
    for (int i = first; i < end; i++) idle[i] = (char)is_idle(d, i, first, end, o, weight);
    for (int i = 0; i < own; i++) {
        int shard = r->rank * own + i, from = first + shard * size, to = from + size;
        x.sum = (trainer_update_result){0};
        x.last_shard = i == own - 1;
        optimizer_clear_gradients(t->optimizer);
        run_micro_batches(t, d, (walk){from, to, idle, 1}, inverse_temperature, &x);
        run_micro_batches(t, d, (walk){from, to, idle, 0}, inverse_temperature, &x);
        optimizer_add_shard(t->optimizer, i);
        each_sum[shard] = x.sum;
        r->trained += size;
    }
    ranks_gather_rows(r, each_sum, (size_t)own * sizeof *each_sum);
    for (int i = 0; i < shards; i++) add_shard(&sum, &each_sum[i]);
    gather_tokens(r, d, d->log_pi, 1, first, shards, size);
    if (d->candidates) gather_tokens(r, d, d->candidate_pi, d->candidates, first, shards, size);
    free(each_sum);
    free(weight);
    free(idle);
    free(left_out);
    free(each);
    changes_before(t->changes, t->parameters);
    optimizer_result step = optimizer_step(t->optimizer, t->parameters, lr);
    sum.changed = changes_after(t->changes, t->parameters);
    if (!step.skipped) model_weights_sync(t->weights, t->parameters);
    if (d->expert) {
        sum.routing_differs /= (double)sum.tokens * t->model.shape.layers;
        sum.expert_load = expert_load(&t->model.shape, rows, routes);
    }
    free(routes);
    sum.grad_norm = step.grad_norm;
    sum.skipped = step.skipped;
    sum.loss_scale = x.loss_scale;
    sum.masked_mu /= sum.masked;
    sum.masked /= targets;
    sum.corrective /= targets;
    return sum;
}
