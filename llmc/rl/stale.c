// Lag: a ring. The weights of step s lie in copy s % lag, where step s + lag finds them; it puts
// its own in their place once it has sampled.
#include "stale.h"

#include <stdlib.h>

stale* stale_create(backend* b, size_t count, int sync_every, int lag) {
    if (sync_every > 1 && lag > 0)
        fatal("--sync-every %d and --lag %d are two ways to be stale; choose one", sync_every, lag);
    stale* s = xalloc(1, sizeof *s, "older weights");
    s->b = b;
    s->count = count;
    s->sync_every = sync_every;
    s->lag = lag;
    s->copies = lag > 0 ? lag : sync_every > 1;
    if (s->copies)
        s->copied = b->alloc(b, s->copies * count * sizeof(float), "older weights (lower --lag)");
    return s;
}

void stale_free(stale* s) {
    if (s->copies) s->b->release(s->b, s->copied, s->copies * s->count * sizeof(float));
    free(s);
}

static void copy_to(stale* s, int copy, const float* parameters) {
    s->b->copy(s->b, s->copied + copy * s->count, parameters, s->count * sizeof(float));
}

void stale_begin(stale* s, const float* parameters) {
    for (int i = 0; i < s->copies; i++) copy_to(s, i, parameters);
}

const float* stale_take(const stale* s, const float* parameters, int step) {
    if (!stale_is_older(s, step)) return parameters;
    return s->lag > 0 ? s->copied + step % s->lag * s->count : s->copied;
}

void stale_push(stale* s, const float* parameters, int step) {
    if (s->lag > 0)
        copy_to(s, step % s->lag, parameters);
    else if (s->copies && step % s->sync_every == 0)
        copy_to(s, 0, parameters);
}

int stale_is_older(const stale* s, int step) {
    return s->lag > 0 ? step > 0 : step % s->sync_every != 0;
}

void stale_save(const stale* s, float* host) {
    if (s->copies) s->b->download(s->b, host, s->copied, s->copies * s->count * sizeof(float));
}

void stale_load(stale* s, const float* host) {
    if (s->copies) s->b->upload(s->b, s->copied, host, s->copies * s->count * sizeof(float));
}
