// The model as a sequence of the backend's ops. A block is
//   x = x + proj(attention(qkv(norm(x)))),  x = x + fcproj(gelu(fc(norm(x))))
// where each norm op also forms the residual sum before it, so that the sum is written once.
#include "model.h"

#include <math.h>  // sqrt
#include <stdlib.h>

void model_check(const gpt2_config* c) {
    if (c->channels % c->heads)
        fatal("--heads %d does not divide --channels %d; choose a divisor", c->heads, c->channels);
    if (c->channels / c->heads > 256)
        fatal("--channels %d over --heads %d gives heads of %d; at most 256 are supported",
              c->channels, c->heads, c->channels / c->heads);
}

size_t gpt2_tensors(const gpt2_config* c, gpt2_tensor table[GPT2_TENSORS]) {
    size_t V = c->vocab, T = c->context, L = c->layers, C = c->channels, offset = 0;
    const gpt2_tensor shapes[] = {
        {"wte", V * C, 0, 1},
        {"wpe", T * C, 0, 1},
        {"ln1w", L * C, 0, 0},
        {"ln1b", L * C, 0, 0},
        {"qkvw", L * 3 * C * C, 0, 1},
        {"qkvb", L * 3 * C, 0, 0},
        {"attprojw", L * C * C, 0, 1},
        {"attprojb", L * C, 0, 0},
        {"ln2w", L * C, 0, 0},
        {"ln2b", L * C, 0, 0},
        {"fcw", L * 4 * C * C, 0, 1},
        {"fcb", L * 4 * C, 0, 0},
        {"fcprojw", L * C * 4 * C, 0, 1},
        {"fcprojb", L * C, 0, 0},
        {"lnfw", C, 0, 0},
        {"lnfb", C, 0, 0},
    };
    _Static_assert(sizeof shapes / sizeof *shapes == GPT2_TENSORS, "one entry a tensor");
    _Static_assert(sizeof(gpt2_params) == GPT2_TENSORS * sizeof(float*), "one pointer a tensor");
    for (int i = 0; i < GPT2_TENSORS; i++) {
        table[i] = shapes[i];
        table[i].offset = offset;
        offset += shapes[i].count;
    }
    return offset;
}

gpt2_params gpt2_params_at(const gpt2_config* c, float* memory) {
    gpt2_tensor table[GPT2_TENSORS];
    float* pointer[GPT2_TENSORS];
    gpt2_params p;
    gpt2_tensors(c, table);
    for (int i = 0; i < GPT2_TENSORS; i++) pointer[i] = memory + table[i].offset;
    memcpy(&p, pointer, sizeof p);
    return p;
}

void model_init(const gpt2_config* c, float* parameters, uint64_t seed) {
    gpt2_tensor table[GPT2_TENSORS];
    gpt2_tensors(c, table);
    double residual = 0.02 / sqrt(2.0 * c->layers);
    for (int i = 0; i < GPT2_TENSORS; i++) {
        const gpt2_tensor* t = &table[i];
        int gain = !t->matrix && t->name[strlen(t->name) - 1] == 'w';
        int projection = strstr(t->name, "proj") != NULL;
        rng r = rng_at(seed, STREAM_INIT, 0, (uint32_t)i);
        for (size_t j = 0; j < t->count; j++)
            parameters[t->offset + j] =
                t->matrix ? (float)(rng_normal(&r) * (projection ? residual : 0.02)) : (float)gain;
    }
}

// ---------------------------------------------------------------------------------------------
// Weights in a precision

// Embeddings, norms and biases: everything that is not an operand of a block's product.
static int is_other(const gpt2_tensor* t) {
    return !t->matrix || !strcmp(t->name, "wte") || !strcmp(t->name, "wpe");
}

// The weights' plans, where their products are not the usual ones.
static void plan_products(model_weights* w) {
    backend* b = w->b;
    precision p = w->precision;
    linear_plan block = {p.gradient_linear, p.weight_per_tensor, p.activation_per_tensor,
                         p.split_k};
    linear_plan head = {p.gradient_attention, 0, 0, p.split_k};
    int usual = p.gradient_linear == p.linear_backward && p.gradient_attention == p.attention;
    if (usual && !p.weight_per_tensor && !p.activation_per_tensor && p.split_k <= 1) return;
    if (!b->weight_plan)
        fatal("%s has products in their usual formats and order alone; use --device cpu", b->name);
    for (int l = 0; l < 4 * w->config.layers; l++) w->qkv[l] = b->weight_plan(b, &block);
    w->head = b->weight_plan(b, &head);
}

model_weights* model_weights_create(backend* b, const gpt2_config* c, precision p) {
    model_weights* w = xalloc(1, sizeof *w, "model weights");
    size_t before = b->allocated;
    gpt2_tensor table[GPT2_TENSORS];
    float* pointer[GPT2_TENSORS] = {NULL};
    w->b = b;
    w->config = *c;
    w->precision = p;
    gpt2_tensors(c, table);
    for (int i = 0; i < GPT2_TENSORS; i++)
        if (is_other(&table[i])) w->rounded_bytes += table[i].count * sizeof(float);
    w->rounded =
        b->alloc(b, w->rounded_bytes,
                 "rounded weights (choose a smaller model: --depth, --channels, --context)");
    float* at = w->rounded;
    for (int i = 0; i < GPT2_TENSORS; i++)
        if (is_other(&table[i])) {
            pointer[i] = at;
            at += table[i].count;
        }
    memcpy(&w->p, pointer, sizeof w->p);
    prepared** all = xalloc(4 * (size_t)c->layers, sizeof *all, "prepared weights");
    w->qkv = all;
    w->attproj = all + c->layers;
    w->fc = all + 2 * c->layers;
    w->fcproj = all + 3 * c->layers;
    plan_products(w);
    w->bytes = b->allocated - before;
    return w;
}

void model_weights_sync(model_weights* w, const float* parameters) {
    backend* b = w->b;
    precision f = w->precision;
    size_t before = b->allocated, C = w->config.channels;
    gpt2_tensor table[GPT2_TENSORS];
    float* to = w->rounded;
    gpt2_tensors(&w->config, table);
    for (int i = 0; i < GPT2_TENSORS; i++)
        if (is_other(&table[i])) {
            b->cast(b, to, parameters + table[i].offset, table[i].count, f.store);
            to += table[i].count;
        }
    gpt2_params p = gpt2_params_at(&w->config, (float*)parameters);
    for (int l = 0; l < w->config.layers; l++) {
        w->qkv[l] = b->weight_prepare(b, w->qkv[l], p.qkvw + l * 3 * C * C, 3 * (int)C, (int)C,
                                      f.linear, f.linear_backward);
        w->attproj[l] = b->weight_prepare(b, w->attproj[l], p.attprojw + l * C * C, (int)C, (int)C,
                                          f.linear, f.linear_backward);
        w->fc[l] = b->weight_prepare(b, w->fc[l], p.fcw + l * 4 * C * C, 4 * (int)C, (int)C,
                                     f.linear, f.linear_backward);
        w->fcproj[l] = b->weight_prepare(b, w->fcproj[l], p.fcprojw + l * 4 * C * C, (int)C,
                                         4 * (int)C, f.linear, f.linear_backward);
    }
    w->head =
        b->weight_prepare(b, w->head, p.wte, w->config.vocab, (int)C, f.attention, f.attention);
    w->bytes += b->allocated - before;
}

void model_weights_free(model_weights* w) {
    backend* b = w->b;
    if (w->head)
        for (int l = 0; l < 4 * w->config.layers; l++) b->weight_release(b, w->qkv[l]);
    if (w->head) b->weight_release(b, w->head);
    b->release(b, w->rounded, w->rounded_bytes);
    free(w->qkv);
    free(w);
}

// ---------------------------------------------------------------------------------------------
// Activations: for each layer what backward reads again, then what is used and forgotten.

typedef struct layer_acts {
    void* residual;   // (N, C) the block's input
    float* stats1;    // (N, 2)
    void* norm1;      // (N, C)
    void* qkv;        // (N, 3C)
    void* attention;  // (N, C)
    float* softmax;   // (N, heads, 2)
    void* middle;     // (N, C) residual after attention
    float* stats2;    // (N, 2)
    void* norm2;      // (N, C)
    void* pre;        // (N, 4C)
    void* gelu;       // (N, 4C)
} layer_acts;
enum { LAYER_ACTS = 11 };

typedef struct shared_acts {
    void* branch;    // (N, C) a block's two additions, in turn
    void* residual;  // (N, C) the last block's output
    float* stats;    // (N, 2)
    void* norm;      // (N, C)
    // backward:
    void* dresidual;  // (N, C)
    void* dbranch;    // (N, C)
    void* dwide;      // (N, 4C) gradient of pre-GELU, then of QKV
    float* dsum;      // (N, 4C) gradient of a norm's or the GELU's output: fp32, not yet rounded
} shared_acts;
enum { SHARED_ACTS = 8 };

// A buffer: elements a token; whether they are statistics or sums, fp32 whatever the format; and
// for a layer's buffers the last recompute_level at which each layer has its own.
typedef struct buffer {
    int elements, fp32;
    recompute_level own;
} buffer;

static void layer_buffers(const gpt2_config* c, buffer table[LAYER_ACTS]) {
    int C = c->channels;
    const buffer of_a_layer[] = {
        {C, 0, RECOMPUTE_BLOCKS},            // residual
        {2, 1, RECOMPUTE_CHEAP},             // stats1
        {C, 0, RECOMPUTE_NOTHING},           // norm1
        {3 * C, 0, RECOMPUTE_CHEAP},         // qkv
        {C, 0, RECOMPUTE_CHEAP},             // attention
        {2 * c->heads, 1, RECOMPUTE_CHEAP},  // softmax
        {C, 0, RECOMPUTE_CHEAP},             // middle
        {2, 1, RECOMPUTE_CHEAP},             // stats2
        {C, 0, RECOMPUTE_NOTHING},           // norm2
        {4 * C, 0, RECOMPUTE_CHEAP},         // pre
        {4 * C, 0, RECOMPUTE_NOTHING},       // gelu
    };
    _Static_assert(sizeof of_a_layer / sizeof *of_a_layer == LAYER_ACTS, "one entry a buffer");
    _Static_assert(sizeof(layer_acts) == LAYER_ACTS * sizeof(void*), "one pointer a buffer");
    memcpy(table, of_a_layer, sizeof of_a_layer);
}

static void shared_buffers(const gpt2_config* c, recompute_level keep, buffer table[SHARED_ACTS]) {
    int C = c->channels, backward = keep != FORWARD_ONLY;
    const buffer of_all[] = {
        {C, 0, FORWARD_ONLY},                 // branch
        {C, 0, FORWARD_ONLY},                 // residual
        {2, 1, FORWARD_ONLY},                 // stats
        {C, 0, FORWARD_ONLY},                 // norm
        {backward * C, 0, FORWARD_ONLY},      // dresidual
        {backward * C, 0, FORWARD_ONLY},      // dbranch
        {backward * 4 * C, 0, FORWARD_ONLY},  // dwide
        {backward * 4 * C, 1, FORWARD_ONLY},  // dsum
    };
    _Static_assert(sizeof of_all / sizeof *of_all == SHARED_ACTS, "one entry a buffer");
    _Static_assert(sizeof(shared_acts) == SHARED_ACTS * sizeof(void*), "one pointer a buffer");
    memcpy(table, of_all, sizeof of_all);
}

// Whole cache lines, so that every buffer begins on one.
static size_t buffer_bytes(const model_acts* a, const buffer* f) {
    size_t each = f->fp32 ? sizeof(float) : a->b->bytes_per(a->store);
    return ((size_t)a->capacity * f->elements * each + 63) / 64 * 64;
}

// Where each buffer of `layer` begins; the memory holds every layer's own buffers, those that the
// layers share, and at the end what is not a layer's. Returns the size of it all.
static size_t place_buffers(const model_acts* a, int layer, char* at[LAYER_ACTS],
                            char* at_shared[SHARED_ACTS]) {
    buffer table[LAYER_ACTS], all[SHARED_ACTS];
    size_t own = 0, offset = 0, bytes;
    layer_buffers(&a->config, table);
    shared_buffers(&a->config, a->keep, all);
    for (int i = 0; i < LAYER_ACTS; i++) {
        if (a->keep > table[i].own) continue;
        at[i] = a->memory + own;
        own += buffer_bytes(a, &table[i]);
    }
    for (int i = 0; i < LAYER_ACTS; i++)
        if (a->keep <= table[i].own) at[i] += layer * own;
    offset = own * a->config.layers;
    for (int i = 0; i < LAYER_ACTS; i++) {
        if (a->keep <= table[i].own) continue;
        at[i] = a->memory + offset;
        offset += buffer_bytes(a, &table[i]);
    }
    for (int i = 0; i < SHARED_ACTS; i++, offset += bytes) {
        at_shared[i] = a->memory + offset;
        bytes = buffer_bytes(a, &all[i]);
    }
    return offset;
}

model_acts* model_acts_create(backend* b, const gpt2_config* c, const format* store, int tokens,
                              recompute_level keep) {
    model_acts* a = xalloc(1, sizeof *a, "activations");
    char *layer[LAYER_ACTS], *shared[SHARED_ACTS];
    a->b = b;
    a->config = *c;
    a->store = store;
    a->capacity = tokens;
    a->keep = keep;
    a->bytes = place_buffers(a, 0, layer, shared);
    a->memory = b->alloc(b, a->bytes,
                         keep == FORWARD_ONLY ? "the sampler's activations (lower --slots)"
                                              : "activations (lower --micro-batch or raise "
                                                "--recompute)");
    return a;
}

void model_acts_free(model_acts* a) {
    a->b->release(a->b, a->memory, a->bytes);
    free(a);
}

static layer_acts layer_at(const model_acts* a, int layer) {
    char *at[LAYER_ACTS], *shared[SHARED_ACTS];
    layer_acts l;
    place_buffers(a, layer, at, shared);
    memcpy(&l, at, sizeof l);
    return l;
}

static shared_acts shared_at(const model_acts* a) {
    char *at[LAYER_ACTS], *shared[SHARED_ACTS];
    shared_acts s;
    place_buffers(a, 0, at, shared);
    memcpy(&s, shared, sizeof s);
    return s;
}

const void* model_residual(const model_acts* a, int layer) {
    return layer < a->config.layers ? layer_at(a, layer).residual : shared_at(a).residual;
}

static tensor matrix(void* data, int rows, int cols, const format* f) {
    tensor t = {data, rows, cols, cols, f};
    return t;
}

static const tensor NOTHING = {NULL, 0, 0, 0, NULL};

// The parameters of layer l that are not products' operands.
typedef struct layer_params {
    float *ln1w, *ln1b, *qkvb, *attprojb, *ln2w, *ln2b, *fcb, *fcprojb;
} layer_params;

static layer_params layer_params_at(const gpt2_params* p, size_t C, size_t l) {
    layer_params q = {p->ln1w + l * C, p->ln1b + l * C, p->qkvb + l * 3 * C, p->attprojb + l * C,
                      p->ln2w + l * C, p->ln2b + l * C, p->fcb + l * 4 * C,  p->fcprojb + l * C};
    return q;
}

// ---------------------------------------------------------------------------------------------
// Forward. Training and decoding differ in one place: where attention finds keys and values.

typedef struct cached_rows {  // decoding; NULL in training
    const kv_cache* kv;
    const int *slot, *position;
} cached_rows;

// From norm1 to the activations of the MLP: all of a block but its last product.
static void block_forward(const model_weights* w, const layer_acts* a, const shared_acts* s, int l,
                          int N, const packed_batch* batch, const cached_rows* cached) {
    backend* b = w->b;
    int C = w->config.channels;
    head_shape heads = {w->config.heads, w->config.heads, C / w->config.heads};
    const format *f = w->precision.store, *product = w->precision.attention;
    layer_params p = layer_params_at(&w->p, C, l);
    tensor residual = matrix(a->residual, N, C, f), norm1 = matrix(a->norm1, N, C, f);
    tensor qkv = matrix(a->qkv, N, 3 * C, f), attention = matrix(a->attention, N, C, f);
    tensor branch = matrix(s->branch, N, C, f), middle = matrix(a->middle, N, C, f);
    tensor norm2 = matrix(a->norm2, N, C, f);
    tensor pre = matrix(a->pre, N, 4 * C, f), gelu = matrix(a->gelu, N, 4 * C, f);

    b->matmul_forward(b, qkv, norm1, w->qkv[l], p.qkvb);
    if (cached) {
        b->kv_write(b, cached->kv, l, qkv, cached->slot, cached->position);
        b->attention_cached(b, attention, cached->kv, l, qkv, cached->slot, cached->position);
    } else {
        b->attention_forward(b, attention, a->softmax, qkv, batch->seq_start, batch->sequences,
                             heads, product);
    }
    b->matmul_forward(b, branch, attention, w->attproj[l], p.attprojb);
    b->norm_forward(b, norm2, middle, a->stats2, residual, branch, p.ln2w, p.ln2b, 1e-5f);
    b->matmul_forward(b, pre, norm2, w->fc[l], p.fcb);
    b->gelu_forward(b, gelu, pre);
}

// Everything but the head: `norm` of the shared activations is the result.
static tensor body_forward(const model_weights* w, model_acts* acts, int N, const int* token,
                           const int* position, const packed_batch* batch,
                           const cached_rows* cached) {
    backend* b = w->b;
    int C = w->config.channels, L = w->config.layers;
    const format* f = w->precision.store;
    if (N > acts->capacity) fatal("%d tokens for activations of %d", N, acts->capacity);
    shared_acts s = shared_at(acts);
    layer_acts a = layer_at(acts, 0);
    layer_params first = layer_params_at(&w->p, C, 0);
    tensor residual = matrix(a.residual, N, C, f);
    b->embed_forward(b, residual, w->p.wte, w->p.wpe, token, position);
    b->norm_forward(b, matrix(a.norm1, N, C, f), residual, a.stats1, residual, NOTHING, first.ln1w,
                    first.ln1b, 1e-5f);
    for (int l = 0; l < L; l++) {
        tensor middle = matrix(a.middle, N, C, f), branch = matrix(s.branch, N, C, f);
        block_forward(w, &a, &s, l, N, batch, cached);
        b->matmul_forward(b, branch, matrix(a.gelu, N, 4 * C, f), w->fcproj[l],
                          layer_params_at(&w->p, C, l).fcprojb);
        // The sum after the block, and the norm of what comes next.
        if (l + 1 < L) {
            a = layer_at(acts, l + 1);
            layer_params next = layer_params_at(&w->p, C, l + 1);
            b->norm_forward(b, matrix(a.norm1, N, C, f), matrix(a.residual, N, C, f), a.stats1,
                            middle, branch, next.ln1w, next.ln1b, 1e-5f);
        } else {
            b->norm_forward(b, matrix(s.norm, N, C, f), matrix(s.residual, N, C, f), s.stats,
                            middle, branch, w->p.lnfw, w->p.lnfb, 1e-5f);
        }
    }
    return matrix(s.norm, N, C, f);
}

void model_forward(const model_weights* w, model_acts* a, const packed_batch* batch,
                   float inverse_temperature, float* logp, float* entropy) {
    tensor x = body_forward(w, a, batch->tokens, batch->token, batch->position, batch, NULL);
    w->b->head_forward(w->b, logp, entropy, x, batch->row, batch->target, batch->targets, w->head,
                       w->precision.logits, inverse_temperature, batch->nucleus,
                       batch->asked.count ? &batch->asked : NULL);
}

tensor model_forward_cached(const model_weights* w, model_acts* a, const kv_cache* kv, int rows,
                            const int* token, const int* slot, const int* position) {
    cached_rows cached = {kv, slot, position};
    return body_forward(w, a, rows, token, position, NULL, &cached);
}

// ---------------------------------------------------------------------------------------------
// Backward, the ops of forward in reverse.

// What forward did not keep of layer l. A norm over its own input gives the same statistics again.
static void recompute(const model_weights* w, const model_acts* acts, const layer_acts* a,
                      const shared_acts* s, int l, const packed_batch* batch) {
    backend* b = w->b;
    int N = batch->tokens, C = w->config.channels;
    const format* f = w->precision.store;
    layer_params p = layer_params_at(&w->p, C, l);
    tensor residual = matrix(a->residual, N, C, f), middle = matrix(a->middle, N, C, f);
    if (acts->keep == RECOMPUTE_NOTHING) return;
    b->norm_forward(b, matrix(a->norm1, N, C, f), residual, a->stats1, residual, NOTHING, p.ln1w,
                    p.ln1b, 1e-5f);
    if (acts->keep == RECOMPUTE_BLOCKS) {
        block_forward(w, a, s, l, N, batch, NULL);
        return;
    }
    b->norm_forward(b, matrix(a->norm2, N, C, f), middle, a->stats2, middle, NOTHING, p.ln2w,
                    p.ln2b, 1e-5f);
    b->gelu_forward(b, matrix(a->gelu, N, 4 * C, f), matrix(a->pre, N, 4 * C, f));
}

static void block_backward(const model_weights* w, const layer_acts* a, const shared_acts* s, int l,
                           const packed_batch* batch, const gpt2_params* g) {
    backend* b = w->b;
    int N = batch->tokens, H = w->config.heads;
    size_t C = w->config.channels;
    head_shape heads = {H, H, (int)C / H};
    const format *f = w->precision.store, *d = w->precision.gradient;
    layer_params p = layer_params_at(&w->p, C, l), dp = layer_params_at(g, C, l);
    tensor norm1 = matrix(a->norm1, N, C, f), qkv = matrix(a->qkv, N, 3 * C, f);
    tensor attention = matrix(a->attention, N, C, f), norm2 = matrix(a->norm2, N, C, f);
    tensor pre = matrix(a->pre, N, 4 * C, f), gelu = matrix(a->gelu, N, 4 * C, f);
    tensor dresidual = matrix(s->dresidual, N, C, d), dbranch = matrix(s->dbranch, N, C, d);
    tensor dgelu = matrix(s->dwide, N, 4 * C, d), dqkv = matrix(s->dwide, N, 3 * C, d);
    tensor dnorm = matrix(s->dsum, N, C, &FORMAT_FP32);
    tensor dgelu_sum = matrix(s->dsum, N, 4 * C, &FORMAT_FP32);

    b->matmul_backward_weight(b, g->fcprojw + l * 4 * C * C, dp.fcprojb, dresidual, gelu,
                              w->fcproj[l]);
    b->matmul_backward_input(b, dgelu_sum, dresidual, w->fcproj[l]);
    b->gelu_backward(b, dgelu, dgelu_sum, pre);
    b->matmul_backward_weight(b, g->fcw + l * 4 * C * C, dp.fcb, dgelu, norm2, w->fc[l]);
    b->matmul_backward_input(b, dnorm, dgelu, w->fc[l]);
    b->norm_backward(b, dresidual, dp.ln2w, dp.ln2b, dnorm, matrix(a->middle, N, C, f), a->stats2,
                     p.ln2w);
    b->matmul_backward_weight(b, g->attprojw + l * C * C, dp.attprojb, dresidual, attention,
                              w->attproj[l]);
    b->matmul_backward_input(b, dbranch, dresidual, w->attproj[l]);
    b->attention_backward(b, dqkv, dbranch, qkv, attention, a->softmax, batch->seq_start,
                          batch->sequences, heads, w->precision.attention,
                          w->precision.gradient_attention);
    b->matmul_backward_weight(b, g->qkvw + l * 3 * C * C, dp.qkvb, dqkv, norm1, w->qkv[l]);
    b->matmul_backward_input(b, dnorm, dqkv, w->qkv[l]);
    b->norm_backward(b, dresidual, dp.ln1w, dp.ln1b, dnorm, matrix(a->residual, N, C, f), a->stats1,
                     p.ln1w);
}

void model_backward(const model_weights* w, model_acts* acts, const packed_batch* batch,
                    float inverse_temperature, const float* coef, model_gradients gradients) {
    backend* b = w->b;
    int N = batch->tokens, C = w->config.channels;
    const format* f = w->precision.store;
    gpt2_params g = gpt2_params_at(&w->config, gradients.all);
    shared_acts s = shared_at(acts);
    tensor dresidual = matrix(s.dresidual, N, C, w->precision.gradient);
    tensor dnorm = matrix(s.dsum, N, C, &FORMAT_FP32);
    b->clear(b, s.dresidual, (size_t)N * C * b->bytes_per(w->precision.gradient));
    b->clear(b, s.dsum, (size_t)N * C * sizeof(float));
    b->head_backward(b, dnorm, g.wte, matrix(s.norm, N, C, f), batch->row, batch->target, coef,
                     batch->targets, w->head, w->precision.logits, inverse_temperature,
                     batch->nucleus);
    b->norm_backward(b, dresidual, g.lnfw, g.lnfb, dnorm, matrix(s.residual, N, C, f), s.stats,
                     w->p.lnfw);
    for (int l = w->config.layers - 1; l >= 0; l--) {
        layer_acts a = layer_at(acts, l);
        recompute(w, acts, &a, &s, l, batch);
        block_backward(w, &a, &s, l, batch, &g);
    }
    b->embed_backward(b, gradients.lookup, g.wpe, dresidual, batch->token, batch->position);
}
