#include "changes.h"

#include <math.h>
#include <stdlib.h>

struct changes {
    backend* b;
    struct model model;
    precision train, rollout;
    float* before;      // (parameters)
    float* rounded[2];  // (largest) a matrix before and after, or NULL
    size_t largest;
};

static int has_scales(const precision* p) { return p->block || p->linear->scaled; }

// Elements of one matrix of weight i: of one layer, of one expert.
static size_t matrix_size(const model* m, int i) {
    const family_weight* w = &m->family->weight[i];
    return (size_t)dim_of(&m->shape, w->rows) * dim_of(&m->shape, w->cols);
}

// Whether a product reads weight i in `linear`. The router's does not.
static int is_linear(const model* m, int i) {
    const family_weight* w = &m->family->weight[i];
    return m->count[i] && weight_is_matrix(w) && w->role != ROUTER;
}

static size_t largest_matrix(const model* m) {
    size_t most = 0;
    for (int i = 0; i < WEIGHTS; i++)
        if (is_linear(m, i) && matrix_size(m, i) > most) most = matrix_size(m, i);
    return most;
}

changes* changes_create(backend* b, const model* m, precision of_trainer, precision of_sampler) {
    changes* c = xalloc(1, sizeof *c, "changes");
    *c = (changes){.b = b, .model = *m, .train = of_trainer, .rollout = of_sampler};
    c->before = b->alloc(b, m->parameters * sizeof(float), "the weights before an update");
    c->largest = has_scales(&of_trainer) || has_scales(&of_sampler) ? largest_matrix(m) : 0;
    for (int i = 0; i < 2 && c->largest; i++)
        c->rounded[i] = b->alloc(b, c->largest * sizeof(float), "rounded weights");
    return c;
}

size_t changes_bytes(const changes* c) {
    return c ? (c->model.parameters + 2 * c->largest) * sizeof(float) : 0;
}

void changes_free(changes* c) {
    if (!c) return;
    c->b->release(c->b, c->before, c->model.parameters * sizeof(float));
    for (int i = 0; i < 2 && c->largest; i++)
        c->b->release(c->b, c->rounded[i], c->largest * sizeof(float));
    free(c);
}

void changes_before(changes* c, const float* parameters) {
    if (c) c->b->copy(c->b, c->before, parameters, c->model.parameters * sizeof(float));
}

// Of a product's matrix. An fp8 format is one of blocks: a row, or all, with the least scale that
// fits.
static size_t matrix_changed(changes* c, const precision* p, int i, const float* after,
                             const float* before) {
    const family_weight* w = &c->model.family->weight[i];
    int rows = dim_of(&c->model.shape, w->rows), cols = dim_of(&c->model.shape, w->cols);
    const block_format fp8 = {p->linear->name, p->linear, p->weight_per_tensor ? rows : 1, 0,
                              SCALE_LEAST,     0};
    block_format how = p->block ? *p->block : fp8;
    how.bare = how.scale == SCALE_FP32 || how.scale == SCALE_E4M3;
    const float* side[2] = {before, after};
    for (int s = 0; s < 2 && has_scales(p); s++) {
        c->b->round_blocks(c->b, c->rounded[s], side[s], rows, cols, &how);
        side[s] = c->rounded[s];
    }
    const format* then = p->linear->scaled || how.bare ? &FORMAT_FP32 : p->linear;
    return c->b->count_changed(c->b, side[0], side[1], (size_t)rows * cols, then);
}

static double share_changed(changes* c, const precision* p, const float* parameters) {
    const model* m = &c->model;
    size_t changed = 0;
    for (int i = 0; i < WEIGHTS; i++) {
        const float *before = c->before + m->offset[i], *after = parameters + m->offset[i];
        size_t each = matrix_size(m, i);
        for (size_t at = 0; is_linear(m, i) && at < m->count[i]; at += each)
            changed += matrix_changed(c, p, i, after + at, before + at);
        int head = i == m->family->head && i != m->family->embedding;
        int router = m->family->weight[i].role == ROUTER;
        if (!is_linear(m, i))
            changed += c->b->count_changed(c->b, before, after, m->count[i],
                                           head || router ? p->attention : p->store);
    }
    return (double)changed / (double)m->parameters;
}

changed_shares changes_after(changes* c, const float* parameters) {
    if (!c) return (changed_shares){NAN, NAN, NAN};
    size_t stored =
        c->b->count_changed(c->b, c->before, parameters, c->model.parameters, &FORMAT_FP32);
    return (changed_shares){(double)stored / (double)c->model.parameters,
                            share_changed(c, &c->train, parameters),
                            share_changed(c, &c->rollout, parameters)};
}
