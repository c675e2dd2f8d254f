// The chains of a family, forward and in reverse. The residual sum before a branch is formed by the
// branch's norm, so that it is written once.
#include "model.h"

#include <math.h>  // sqrt
#include <stdlib.h>

// ---------------------------------------------------------------------------------------------
// Shapes

static void check_shape(const family* f, const shape* s) {
    if (s->kv_heads == s->heads && s->head_dim * s->heads == s->channels) {
        if (s->head_dim > 256)
            fatal("--channels %d over --heads %d gives heads of %d; at most 256 are supported",
                  s->channels, s->heads, s->head_dim);
    } else if (s->heads % s->kv_heads) {
        fatal("--kv-heads %d does not divide --heads %d; choose a divisor", s->kv_heads, s->heads);
    } else if (s->head_dim > 256) {
        fatal("--head-dim %d: heads of at most 256 are supported", s->head_dim);
    }
    if (family_has(f, EXPERTS) && (s->experts > EXPERTS_MOST || s->experts_used > s->experts))
        fatal(
            "--experts %d, of which each token takes --experts-used %d: choose at most %d, and no "
            "more used than there are",
            s->experts, s->experts_used, EXPERTS_MOST);
    if (family_has(f, ROPE) && s->head_dim % 2)
        fatal(
            "heads of %d cannot be turned by rotary positions, which turn pairs; choose an even "
            "--head-dim",
            s->head_dim);
}

// Of a weight in each layer.
static int matrices(const shape* s, const family_weight* w) {
    return w->each_expert ? s->experts : 1;
}

model model_of(const family* f, shape s) {
    model m = {.family = f, .shape = s};
    check_shape(f, &s);
    for (int i = 0; i < WEIGHTS; i++) {
        const family_weight* w = &f->weight[i];
        if (!w->name || (i == f->head && s.tied)) continue;
        m.each[i] = (size_t)dim_of(&s, w->rows) * dim_of(&s, w->cols) * matrices(&s, w);
        m.count[i] = m.each[i] * (w->once ? 1 : s.layers);
        m.offset[i] = m.parameters;
        m.parameters += m.count[i];
    }
    return m;
}

model model_gpt2(int context, int vocab, int layers, int heads, int channels) {
    if (channels % heads)
        fatal("--heads %d does not divide --channels %d; choose a divisor", heads, channels);
    return model_of(&GPT2_FAMILY, (shape){.context = context,
                                          .vocab = vocab,
                                          .layers = layers,
                                          .channels = channels,
                                          .heads = heads,
                                          .kv_heads = heads,
                                          .head_dim = channels / heads,
                                          .hidden = 4 * channels,
                                          .tied = 1,
                                          .norm_eps = GPT2_FAMILY.norm_eps});
}

int model_equal(const model* a, const model* b) {
    return a->family == b->family && !memcmp(&a->shape, &b->shape, sizeof a->shape);
}

char* model_text(const model* m) {
    const shape* s = &m->shape;
    char* experts = s->experts ? xprintf(", experts %d of %d, normalised %d", s->experts_used,
                                         s->experts, s->norm_topk_prob)
                               : xprintf("%s", "");
    char* text = xprintf(
        "%s, context %d, vocab %d, depth %d, channels %d, heads %d of %d, kv %d, hidden %d, "
        "tied %d, eps %.9g, rope %.9g %s %.9g %.9g %.9g %d%s",
        m->family->name, s->context, s->vocab, s->layers, s->channels, s->heads, s->head_dim,
        s->kv_heads, s->hidden, s->tied, s->norm_eps, s->rope_theta, ROPE_SCALING_NAMES[s->scaling],
        s->rope_factor, s->rope_low, s->rope_high, s->rope_context, experts);
    free(experts);
    return text;
}

head_shape model_heads(const model* m) {
    return (head_shape){m->shape.heads, m->shape.kv_heads, m->shape.head_dim};
}

int model_head(const model* m) { return m->shape.tied ? m->family->embedding : m->family->head; }

int model_weight(const model* m, const char* name) {
    for (int i = 0; i < WEIGHTS; i++)
        if (m->family->weight[i].name && !strcmp(m->family->weight[i].name, name)) return i;
    fatal("a model of family %s has no weight %s", m->family->name, name);
}

const char* model_not_finite(const model* m, const float* parameters) {
    for (int i = 0; i < WEIGHTS; i++)
        for (size_t j = 0; j < m->count[i]; j++) {
            float x = parameters[m->offset[i] + j];
            if (x - x != 0) return m->family->weight[i].name;
        }
    return NULL;
}

void model_init(const model* m, float* parameters, uint64_t seed) {
    for (int i = 0; i < WEIGHTS; i++) {
        weight_role kind = m->family->weight[i].role;
        double spread = kind == PROJECTION ? 0.02 / sqrt(2.0 * m->shape.layers) : 0.02;
        float* to = parameters + m->offset[i];
        rng r = rng_at(seed, STREAM_INIT, 0, (uint32_t)i);
        for (size_t j = 0; j < m->count[i]; j++)
            to[j] = kind == GAIN ? 1 : kind == BIAS ? 0 : (float)(rng_normal(&r) * spread);
    }
}

// Llama 3's scaling: long wavelengths are stretched by rope_factor, short ones are not, and those
// in between partly (Grattafiori et al., arXiv 2407.21783; transformers' modeling_rope_utils).
static double llama3_frequency(const shape* s, double frequency) {
    double turns = s->rope_context * frequency / (2 * 3.14159265358979323846);
    if (turns < s->rope_low) return frequency / s->rope_factor;
    if (turns > s->rope_high) return frequency;
    double share = (turns - s->rope_low) / (s->rope_high - s->rope_low);
    return (1 - share) * frequency / s->rope_factor + share * frequency;
}

void model_turns(const shape* s, float* turn) {
    const double inverse_pi = 0.318309886183790671538;
    int half = s->head_dim / 2;
    for (int i = 0; i < half; i++) {
        double frequency = num_exp(-2.0 * i / s->head_dim * num_log(s->rope_theta));
        if (s->scaling == ROPE_LINEAR) frequency /= s->rope_factor;
        if (s->scaling == ROPE_LLAMA3) frequency = llama3_frequency(s, (float)frequency);
        for (int p = 0; p < s->context; p++) {
            float angle = (float)p * (float)frequency, *to = turn + ((size_t)p * half + i) * 2;
            to[0] = (float)num_cospi(angle * inverse_pi);
            to[1] = (float)num_sinpi(angle * inverse_pi);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Weights in a precision

static const char ADVICE[] = "(choose a smaller model: --depth, --channels, --context)";

// Whether weight i is kept rounded: it is there, and no product's operand.
static int is_other(const model* m, int i) {
    return m->count[i] && !weight_is_matrix(&m->family->weight[i]) &&
           (i != m->family->head || m->family->head == m->family->embedding);
}

// Where weight i of layer l begins.
static size_t weight_at(const model* m, int i, int l) {
    return m->family->weight[i].once ? 0 : l * m->each[i];
}

// The operands of products that weight i has, of all layers: for each expert one.
static int prepared_count(const model* m, int i) {
    return m->shape.layers * matrices(&m->shape, &m->family->weight[i]);
}

static int is_router(const model* m, int i) { return m->family->weight[i].role == ROUTER; }

// The weights' plans, where their products differ from the default.
static void plan_products(model_weights* w) {
    backend* b = w->b;
    precision p = w->precision;
    linear_plan block = {p.gradient_linear, p.weight_per_tensor, p.activation_per_tensor,
                         p.split_k};
    linear_plan head = {p.gradient_attention, 0, 0, p.split_k};
    int usual = p.gradient_linear == p.linear_backward && p.gradient_attention == p.attention;
    if (usual && !p.weight_per_tensor && !p.activation_per_tensor && p.split_k <= 1) return;
    for (int i = 0; i < WEIGHTS; i++)
        for (int k = 0; w->matrix[i] && k < prepared_count(&w->model, i); k++)
            w->matrix[i][k] = b->weight_plan(b, is_router(&w->model, i) ? &head : &block);
    w->head = b->weight_plan(b, &head);
}

model_weights* model_weights_create(backend* b, const model* m, precision p) {
    model_weights* w = xalloc(1, sizeof *w, "model weights");
    size_t before = b->allocated, turns = (size_t)m->shape.context * m->shape.head_dim;
    char* what = xprintf("rounded weights %s", ADVICE);
    w->b = b;
    w->model = *m;
    w->precision = p;
    for (int i = 0; i < WEIGHTS; i++) {
        if (is_other(m, i)) w->other[i] = b->alloc(b, m->count[i] * sizeof(float), what);
        if (!m->count[i] || !weight_is_matrix(&m->family->weight[i])) continue;
        w->matrix[i] = xalloc(prepared_count(m, i), sizeof(prepared*), "prepared weights");
        if (p.block && !is_router(m, i))
            w->block[i] = b->alloc(b, m->count[i] * sizeof(float), what);
    }
    if (family_has(m->family, ROPE)) {
        float* host = xalloc(turns, sizeof(float), "rotary positions");
        model_turns(&m->shape, host);
        w->turn = b->alloc(b, turns * sizeof(float), "rotary positions (lower --context)");
        b->upload(b, w->turn, host, turns * sizeof(float));
        free(host);
    }
    plan_products(w);
    w->bytes = b->allocated - before;
    free(what);
    return w;
}

// Those that link k adds to its products, in all layers.
static void prepare_biases(model_weights* w, const family_link* k) {
    if (k->kind != LINEAR || k->bias == NONE) return;
    for (int l = 0; l < w->model.shape.layers; l++)
        w->b->bias_prepare(w->b, w->matrix[k->weight][l],
                           w->other[k->bias] + weight_at(&w->model, k->bias, l),
                           w->precision.store);
}

void model_weights_sync(model_weights* w, const float* parameters) {
    backend* b = w->b;
    const model* m = &w->model;
    precision p = w->precision;
    size_t before = b->allocated;
    for (int i = 0; i < WEIGHTS; i++) {
        const float* from = parameters + m->offset[i];
        const family_weight* kind = &m->family->weight[i];
        int rows = dim_of(&m->shape, kind->rows), cols = dim_of(&m->shape, kind->cols);
        for (int k = 0; w->block[i] && k < prepared_count(m, i); k++)
            b->round_blocks(b, w->block[i] + (size_t)k * rows * cols,
                            from + (size_t)k * rows * cols, rows, cols, p.block);
        if (w->block[i]) from = w->block[i];
        if (w->other[i]) b->cast(b, w->other[i], from, m->count[i], p.store);
        int router = is_router(m, i), n = w->matrix[i] ? prepared_count(m, i) : 0;
        for (int k = 0; k < n; k++)
            w->matrix[i][k] = b->weight_prepare(b, w->matrix[i][k], from + (size_t)k * rows * cols,
                                                rows, cols, router ? p.attention : p.linear,
                                                router ? p.attention : p.linear_backward);
    }
    w->head = b->weight_prepare(b, w->head, parameters + m->offset[model_head(m)], m->shape.vocab,
                                m->shape.channels, p.attention, p.attention);
    for (int r = 0; r < BRANCHES && b->bias_prepare; r++)
        for (int i = 0; i < LINKS && m->family->branch[r][i].out != D_0; i++)
            prepare_biases(w, &m->family->branch[r][i]);
    w->bytes += b->allocated - before;
}

void model_weights_free(model_weights* w) {
    backend* b = w->b;
    const model* m = &w->model;
    for (int i = 0; i < WEIGHTS; i++) {
        for (int k = 0; w->head && w->matrix[i] && k < prepared_count(m, i); k++)
            b->weight_release(b, w->matrix[i][k]);
        if (w->other[i]) b->release(b, w->other[i], m->count[i] * sizeof(float));
        if (w->block[i]) b->release(b, w->block[i], m->count[i] * sizeof(float));
        free(w->matrix[i]);
    }
    if (w->head) b->weight_release(b, w->head);
    if (w->turn)
        b->release(b, w->turn, (size_t)m->shape.context * m->shape.head_dim * sizeof(float));
    free(w);
}

// ---------------------------------------------------------------------------------------------
// Activations: places in one block of memory. First come each layer's own, then those that layers
// share, then what is not a layer's.

enum { RESIDUAL, LINK_0, AUX_0 = LINK_0 + LINKS, BRANCH_PLACES = AUX_0 + LINKS };
enum {
    ADDED = BRANCHES * BRANCH_PLACES,  // (N, C) what a branch adds to the residual
    LAST,                              // (N, C) the residual after the last layer
    LAST_AUX,                          // (N, 2)
    NORMED,                            // (N, C) the last norm's output
    HEAD_AUX,                          // (targets, 2) what the head keeps for backward
    DRESIDUAL,                         // (N, C) gradient of the residual
    DNARROW,                           // gradients inside a branch, in turn
    DWIDE,
    DSUM,  // such a gradient that was not rounded yet, fp32
    PLACES
};

typedef struct place {
    size_t offset;
    int cols, fp32;
    int own;  // one per layer
} place;

struct model_acts {
    backend* b;
    struct model model;
    const format* store;
    recompute_level recompute;
    int capacity;        // tokens
    size_t layer_bytes;  // of each layer's own places
    size_t bytes;
    char* memory;
    uint8_t* experts;  // (capacity, layers, experts_used)
    place place[PLACES];
    int gradient[BRANCHES][LINKS];  // the place of the gradient of each link's input
};

static int links_of(const family_link* chain) {
    int n = 0;
    while (n < LINKS && chain[n].out != D_0) n++;
    return n;
}

// Whether a link takes the gradient of its output as an fp32 sum that was not rounded yet.
static int takes_sum(link_kind k) {
    return k == LAYER_NORM || k == RMS_NORM || k == GELU || k == SWIGLU || k == QK_NORM;
}

static void place_add(model_acts* a, int i, int cols, int fp32, int kept) {
    a->place[i] = (place){.cols = cols, .fp32 = fp32, .own = (int)a->recompute <= kept};
}

static void widen(place* p, int cols) {
    if (cols > p->cols) p->cols = cols;
}

// Places for the gradients inside a branch. A rounded one goes where the link's output gradient
// does not lie, and of two such places to the one that grows less.
static void plan_gradients(model_acts* a, int r) {
    const family_link* chain = a->model.family->branch[r];
    int from = DRESIDUAL;
    for (int i = links_of(chain) - 1; i > 0; i--) {
        int cols = dim_of(&a->model.shape, chain[i - 1].out), to = DSUM;
        if (chain[i].kind == KV_ROUND) continue;
        int narrow = cols - a->place[DNARROW].cols, wide = cols - a->place[DWIDE].cols;
        if (!takes_sum(chain[i - 1].kind))
            to = from == DNARROW || (from != DWIDE && wide < narrow) ? DWIDE : DNARROW;
        widen(&a->place[to], cols);
        a->gradient[r][i] = from = to;
    }
}

static size_t place_bytes(const model_acts* a, const place* p) {  // whole cache lines
    size_t each = p->fp32 ? sizeof(float) : a->b->bytes_per(a->store);
    return ((size_t)a->capacity * p->cols * each + 63) / 64 * 64;
}

model_acts* model_acts_create(backend* b, const model* m, const format* store, int tokens,
                              recompute_level recompute) {
    model_acts* a = xalloc(1, sizeof *a, "activations");
    const shape* s = &m->shape;
    *a = (model_acts){
        .b = b, .model = *m, .store = store, .recompute = recompute, .capacity = tokens};
    for (int r = 0; r < BRANCHES; r++) {
        const family_link* chain = m->family->branch[r];
        int base = r * BRANCH_PLACES;
        place_add(a, base + RESIDUAL, s->channels, 0, r ? RECOMPUTE_CHEAP : RECOMPUTE_BLOCKS);
        for (int i = 0; i < links_of(chain); i++) {
            if (chain[i].kept != NEVER)
                place_add(a, base + LINK_0 + i, dim_of(s, chain[i].out), 0, chain[i].kept);
            place_add(a, base + AUX_0 + i, dim_of(s, chain[i].aux), 1, chain[i].aux_kept);
        }
    }
    place_add(a, ADDED, s->channels, 0, NEVER);
    place_add(a, LAST, s->channels, 0, NEVER);
    place_add(a, LAST_AUX, 2, 1, NEVER);
    place_add(a, NORMED, s->channels, 0, NEVER);
    if (recompute != FORWARD_ONLY) {
        place_add(a, HEAD_AUX, 2, 1, NEVER);
        place_add(a, DRESIDUAL, s->channels, 0, NEVER);
        place_add(a, DSUM, s->channels, 1, NEVER);
        for (int r = 0; r < BRANCHES; r++) plan_gradients(a, r);
    }
    size_t shared = 0;
    for (int i = 0; i < PLACES; i++) {
        size_t* at = a->place[i].own ? &a->layer_bytes : &shared;
        a->place[i].offset = *at;
        *at += place_bytes(a, &a->place[i]);
    }
    a->bytes = a->layer_bytes * s->layers + shared;
    a->memory = b->alloc(b, a->bytes,
                         recompute == FORWARD_ONLY ? "the sampler's activations (lower --slots)"
                                                   : "activations (lower --micro-tokens or raise "
                                                     "--recompute)");
    if (s->experts)
        a->experts = b->alloc(b, tokens * model_experts_each(m), "experts (lower --micro-tokens)");
    return a;
}

void model_acts_free(model_acts* a) {
    size_t experts = (size_t)a->capacity * model_experts_each(&a->model);
    if (experts) a->b->release(a->b, a->experts, experts);
    a->b->release(a->b, a->memory, a->bytes);
    free(a);
}

size_t model_acts_bytes(const model_acts* a) {
    return a->bytes + (size_t)a->capacity * model_experts_each(&a->model);
}

size_t model_experts_each(const model* m) {
    return (size_t)m->shape.layers * m->shape.experts_used;
}

const uint8_t* model_experts(const model_acts* a) { return a->experts; }

static void* place_at(const model_acts* a, int l, int i) {
    const place* p = &a->place[i];
    return a->memory + (p->own ? l : a->model.shape.layers) * a->layer_bytes + p->offset;
}

const void* model_residual(const model_acts* a, int layer) {
    return layer < a->model.shape.layers ? place_at(a, layer, RESIDUAL) : place_at(a, 0, LAST);
}

// ---------------------------------------------------------------------------------------------
// One call: what all its ops need.

typedef struct call {
    const model_weights* w;
    model_acts* a;
    int rows;
    const int* position;
    const packed_batch* batch;  // training: the sequences
    const kv_cache* kv;         // decoding: keys and values, and the rows' slots
    const int* slot;
    const packing* pack;  // the sequences whose keys and values are in the rows; NULL: the cache's
    float* gradients;     // backward: of all parameters
} call;

static const tensor NOTHING = {NULL, 0, 0, 0, NULL};

static tensor matrix(void* data, int rows, int cols, const format* f) {
    return (tensor){data, rows, cols, cols, f};
}

static tensor tensor_at(const call* c, int l, int i) {
    return matrix(place_at(c->a, l, i), c->rows, c->a->place[i].cols, c->w->precision.store);
}

// The link whose place link i writes to: its own, but where it works in place.
static int writer(const family_link* chain, int i) { return chain[i].kind == KV_ROUND ? i - 1 : i; }

// What link i of branch r writes.
static tensor output_of(const call* c, int l, int r, int i) {
    const family_link* chain = c->w->model.family->branch[r];
    int w = writer(chain, i);
    return tensor_at(c, l, chain[w].kept == NEVER ? ADDED : r * BRANCH_PLACES + LINK_0 + w);
}

static float* aux_of(const call* c, int l, int r, int i) {
    return place_at(c->a, l, r * BRANCH_PLACES + AUX_0 + i);
}

static float* other_at(const call* c, int i, int l) {
    return i == NONE ? NULL : c->w->other[i] + weight_at(&c->w->model, i, l);
}

static float* gradient_at(const call* c, int i, int l) {
    const model* m = &c->w->model;
    return i == NONE ? NULL : c->gradients + m->offset[i] + weight_at(m, i, l);
}

// ---------------------------------------------------------------------------------------------
// Forward. Training and decoding differ in one place: where attention finds keys and values.

static void norm_forward(const call* c, tensor out, tensor sum, float* stats, tensor residual,
                         tensor add, const float* gain, const float* bias) {
    backend* b = c->w->b;
    float eps = c->w->model.shape.norm_eps;
    if (c->w->model.family->branch[0][0].kind == RMS_NORM)
        b->rms_forward(b, out, sum, stats, residual, add, gain, eps);
    else
        b->norm_forward(b, out, sum, stats, residual, add, gain, bias, eps);
}

static void attend_forward(const call* c, int l, tensor out, float* aux, tensor in) {
    backend* b = c->w->b;
    head_shape heads = model_heads(&c->w->model);
    if (c->kv) b->kv_write(b, c->kv, l, in, c->slot, c->position);
    if (c->pack)
        b->attention_forward(b, out, aux, in, c->pack, heads, c->w->precision.attention);
    else
        b->attention_cached(b, out, c->kv, l, in, c->slot, c->position);
}

static expert_layer experts_of(const call* c, const family_link* k, int l, float* aux) {
    const shape* s = &c->w->model.shape;
    prepared** const* matrix = c->w->matrix;
    const uint8_t* replay = c->batch ? c->batch->experts : NULL;
    return (expert_layer){.experts = s->experts,
                          .used = s->experts_used,
                          .normalise = s->norm_topk_prob,
                          .router = matrix[k->weight][l],
                          .gate_up = matrix[k->gate_up] + (size_t)l * s->experts,
                          .down = matrix[k->down] + (size_t)l * s->experts,
                          .routes = aux,
                          .taken = c->a->experts + (size_t)l * s->experts_used,
                          .replay = replay ? replay + (size_t)l * s->experts_used : NULL,
                          .stride = (int64_t)model_experts_each(&c->w->model),
                          .balance = c->batch ? c->batch->balance : NULL};
}

static void link_forward(const call* c, const family_link* k, int l, tensor out, float* aux,
                         tensor in) {
    backend* b = c->w->b;
    head_shape heads = model_heads(&c->w->model);
    float eps = c->w->model.shape.norm_eps;
    switch (k->kind) {
        case LINEAR:
            b->matmul_forward(b, out, in, c->w->matrix[k->weight][l], other_at(c, k->bias, l));
            return;
        case GELU:
            b->gelu_forward(b, out, in);
            return;
        case SWIGLU:
            b->swiglu_forward(b, out, in);
            return;
        case QK_NORM:
            b->qk_norm_forward(b, out, aux, in, other_at(c, k->weight, l), heads, eps);
            return;
        case ROPE:
            b->rope(b, out, in, c->w->turn, c->position, heads, 0);
            return;
        case KV_ROUND:  // while decoding, the cache has a format of its own
            if (c->w->precision.kv && !c->kv) b->kv_round(b, out, heads, c->w->precision.kv);
            return;
        case ATTEND:
            attend_forward(c, l, out, aux, in);
            return;
        case EXPERTS: {
            expert_layer e = experts_of(c, k, l, aux);
            b->experts_forward(b, out, in, &e);
            return;
        }
        case LAYER_NORM:
        case RMS_NORM:
            break;
    }
    fatal("a norm stands within a branch");
}

// Branch r of layer l over residual + add. `again`: in backward, for the links whose outputs
// forward did not keep. Returns what the branch adds to the residual.
static tensor branch_forward(const call* c, int l, int r, tensor residual, tensor add, int again) {
    const family_link* chain = c->w->model.family->branch[r];
    const place* own = c->a->place + r * BRANCH_PLACES;
    int n = links_of(chain);
    tensor x = output_of(c, l, r, 0), sum = tensor_at(c, l, r * BRANCH_PLACES + RESIDUAL);
    if (again && own[RESIDUAL].own) residual = sum, add = NOTHING;
    if (!again || !own[LINK_0].own)
        norm_forward(c, x, sum, aux_of(c, l, r, 0), residual, add, other_at(c, chain[0].weight, l),
                     other_at(c, chain[0].bias, l));
    for (int i = 1; i < n; i++) {
        tensor out = output_of(c, l, r, i);
        // Backward reads no branch's last output, but a residual that is not kept is made of it.
        int needed = !again || (i < n - 1 ? !own[LINK_0 + writer(chain, i)].own
                                          : r + 1 < BRANCHES && !own[BRANCH_PLACES + RESIDUAL].own);
        if (needed) link_forward(c, &chain[i], l, out, aux_of(c, l, r, i), x);
        x = out;
    }
    return x;
}

static void layer_forward(const call* c, int l, tensor* residual, tensor* add, int again) {
    for (int r = 0; r < BRANCHES; r++) {
        *add = branch_forward(c, l, r, *residual, *add, again);
        *residual = tensor_at(c, l, r * BRANCH_PLACES + RESIDUAL);
    }
}

// Everything but the head.
static tensor body_forward(const call* c, const int* token) {
    const family* f = c->w->model.family;
    backend* b = c->w->b;
    if (c->rows > c->a->capacity) fatal("%d tokens for activations of %d", c->rows, c->a->capacity);
    tensor residual = tensor_at(c, 0, RESIDUAL), add = NOTHING, out = tensor_at(c, 0, NORMED);
    b->embed_forward(b, residual, c->w->other[f->embedding], other_at(c, f->positions, 0), token,
                     c->position);
    for (int l = 0; l < c->w->model.shape.layers; l++) layer_forward(c, l, &residual, &add, 0);
    norm_forward(c, out, tensor_at(c, 0, LAST), place_at(c->a, 0, LAST_AUX), residual, add,
                 other_at(c, f->norm, 0), other_at(c, f->norm_bias, 0));
    return out;
}

void model_forward(const model_weights* w, model_acts* a, const packed_batch* batch,
                   float inverse_temperature, float* logp, float* entropy) {
    call c = {.w = w, .a = a, .rows = batch->tokens, .batch = batch, .position = batch->position};
    c.pack = &batch->pack;
    float* stats = a->recompute == FORWARD_ONLY ? NULL : place_at(a, 0, HEAD_AUX);
    if (stats && batch->targets > a->capacity)
        fatal("%d targets for activations of %d tokens", batch->targets, a->capacity);
    tensor x = body_forward(&c, batch->token);
    w->b->head_forward(w->b, logp, entropy, stats, x, batch->row, batch->target, batch->targets,
                       w->head, w->precision.logits, inverse_temperature, batch->nucleus,
                       batch->asked.count ? &batch->asked : NULL);
}

tensor model_forward_cached(const model_weights* w, model_acts* a, const kv_cache* kv,
                            const packing* whole, int rows, const int* token, const int* slot,
                            const int* position) {
    call c = {.w = w, .a = a, .rows = rows, .kv = kv, .slot = slot, .position = position};
    if (kv->format == w->precision.store) c.pack = whole;
    return body_forward(&c, token);
}

// ---------------------------------------------------------------------------------------------
// Backward, the chains in reverse.

static void norm_backward(const call* c, tensor dresidual, int gain, int bias, int l, tensor dout,
                          tensor residual, const float* stats) {
    backend* b = c->w->b;
    if (c->w->model.family->branch[0][0].kind == RMS_NORM)
        b->rms_backward(b, dresidual, gradient_at(c, gain, l), dout, residual, stats,
                        other_at(c, gain, l));
    else
        b->norm_backward(b, dresidual, gradient_at(c, gain, l), gradient_at(c, bias, l), dout,
                         residual, stats, other_at(c, gain, l));
}

static void link_backward(const call* c, const family_link* k, int l, tensor din, tensor dout,
                          tensor in, tensor out, float* aux) {
    backend* b = c->w->b;
    head_shape heads = model_heads(&c->w->model);
    const precision* p = &c->w->precision;
    switch (k->kind) {
        case LINEAR:
            b->matmul_backward_weight(b, gradient_at(c, k->weight, l), gradient_at(c, k->bias, l),
                                      dout, in, c->w->matrix[k->weight][l]);
            b->matmul_backward_input(b, din, dout, c->w->matrix[k->weight][l]);
            return;
        case GELU:
            b->gelu_backward(b, din, dout, in);
            return;
        case SWIGLU:
            b->swiglu_backward(b, din, dout, in);
            return;
        case QK_NORM:
            b->qk_norm_backward(b, din, gradient_at(c, k->weight, l), dout, in, aux,
                                other_at(c, k->weight, l), heads);
            return;
        case ROPE:
            b->rope(b, din, dout, c->w->turn, c->position, heads, 1);
            return;
        case ATTEND:
            b->attention_backward(b, din, dout, in, out, aux, &c->batch->pack, heads, p->attention,
                                  p->gradient_attention);
            return;
        case EXPERTS: {
            expert_layer e = experts_of(c, k, l, aux);
            b->experts_backward(b, din, gradient_at(c, k->weight, l), gradient_at(c, k->gate_up, l),
                                gradient_at(c, k->down, l), dout, in, &e);
            return;
        }
        case KV_ROUND:
        case LAYER_NORM:
        case RMS_NORM:
            break;
    }
    fatal("a link that has no backward of its own");
}

// The gradient of what branch r added is that of the residual: down the chain, then onto the
// residual.
static void branch_backward(const call* c, int l, int r, tensor dresidual) {
    const family_link* chain = c->w->model.family->branch[r];
    tensor d = dresidual;
    for (int i = links_of(chain) - 1; i > 0; i--) {
        if (chain[i].kind == KV_ROUND) continue;  // straight through
        tensor in = output_of(c, l, r, i - 1), out = output_of(c, l, r, i);
        int to = c->a->gradient[r][i];
        const format* how = to == DSUM ? &FORMAT_FP32 : c->w->precision.gradient;
        tensor din = matrix(place_at(c->a, 0, to), c->rows, in.cols, how);
        link_backward(c, &chain[i], l, din, d, in, out, aux_of(c, l, r, i));
        d = din;
    }
    norm_backward(c, dresidual, chain[0].weight, chain[0].bias, l, d,
                  tensor_at(c, l, r * BRANCH_PLACES + RESIDUAL), aux_of(c, l, r, 0));
}

int model_done(const model* m, size_t first, size_t end) {
    const family* f = m->family;
    int last = m->shape.layers;
    for (int i = 0; i < WEIGHTS; i++) {
        size_t at = m->offset[i];
        if (end <= at || first >= at + m->count[i]) continue;
        int layer = first > at ? (int)((first - at) / m->each[i]) : 0;
        if (f->weight[i].once) layer = m->shape.layers;
        if (i == f->embedding || i == f->positions) layer = -1;
        if (layer < last) last = layer;
    }
    return last;
}

void model_backward(const model_weights* w, model_acts* a, const packed_batch* batch,
                    float inverse_temperature, const float* coef, model_gradients g) {
    backend* b = w->b;
    const family* f = w->model.family;
    int N = batch->tokens, C = w->model.shape.channels, tied = w->model.shape.tied;
    call c = {
        .w = w, .a = a, .rows = N, .batch = batch, .position = batch->position, .gradients = g.all};
    c.pack = &batch->pack;
    tensor dresidual = matrix(place_at(a, 0, DRESIDUAL), N, C, w->precision.gradient);
    tensor dnorm = matrix(place_at(a, 0, DSUM), N, C, &FORMAT_FP32);
    b->clear(b, dresidual.data, (size_t)N * C * b->bytes_per(w->precision.gradient));
    b->clear(b, dnorm.data, (size_t)N * C * sizeof(float));
    b->head_backward(b, dnorm, gradient_at(&c, model_head(&w->model), 0), place_at(a, 0, HEAD_AUX),
                     tensor_at(&c, 0, NORMED), batch->row, batch->target, coef, batch->bonus,
                     batch->targets, w->head, w->precision.logits, inverse_temperature,
                     batch->nucleus);
    norm_backward(&c, dresidual, f->norm, f->norm_bias, 0, dnorm, tensor_at(&c, 0, LAST),
                  place_at(a, 0, LAST_AUX));
    if (g.done) g.done(g.listener, w->model.shape.layers);
    for (int l = w->model.shape.layers - 1; l >= 0; l--) {
        tensor residual = tensor_at(&c, l, RESIDUAL), add = NOTHING;
        if (a->recompute != RECOMPUTE_NOTHING) layer_forward(&c, l, &residual, &add, 1);
        for (int r = BRANCHES - 1; r >= 0; r--) branch_backward(&c, l, r, dresidual);
        if (g.done) g.done(g.listener, l);
    }
    b->embed_backward(b, tied ? g.lookup : gradient_at(&c, f->embedding, 0),
                      gradient_at(&c, f->positions, 0), dresidual, batch->token, batch->position);
}
