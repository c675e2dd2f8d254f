#include "ranks.h"

#include <stdlib.h>
#include <string.h>

static ranks* all;  // what a refusal ends

static void abort_all(void) { all->abort(all); }

ranks* ranks_alone(void) {
    static ranks alone = {.size = 1, .here = 1};
    return &alone;
}

ranks* ranks_open(void) {
    all = ranks_open_mpi();
    if (!all) return ranks_alone();
    fatal_rank = all->rank;
    on_fatal = abort_all;
    return all;
}

void ranks_close(ranks* r) {
    if (r->close) r->close(r);
}

void ranks_exchange_on(ranks* r, backend* b, int to, const void* out, size_t out_bytes, int from,
                       void* in, size_t in_bytes) {
    if (b && b->exchange)
        b->exchange(b, to, out, out_bytes, from, in, in_bytes);
    else
        r->exchange(r, to, out, out_bytes, from, in, in_bytes);
    r->sent += (int64_t)out_bytes;
}

void ranks_batch(backend* b, int on) {
    if (b && b->batch) b->batch(b, on);
}

void ranks_join_devices(ranks* r, backend* b) {
    char name[GROUP_NAME] = "";
    if (r->size == 1 || !b->exchange) return;
    if (r->rank == 0) b->group_name(b, name);
    ranks_broadcast(r, name, sizeof name);
    b->group_join(b, name, r->rank, r->size);
}

// A ring: in each round a rank passes on what it got in the one before.
void ranks_gather(ranks* r, void* data, const span* part) {
    int next = (r->rank + 1) % r->size, before = (r->rank + r->size - 1) % r->size;
    for (int i = 0; i < r->size - 1; i++) {
        const span* out = &part[(r->rank + r->size - i) % r->size];
        const span* in = &part[(before + r->size - i) % r->size];
        ranks_exchange_on(r, NULL, next, (char*)data + out->at, out->bytes, before,
                          (char*)data + in->at, in->bytes);
    }
}

void ranks_gather_rows(ranks* r, void* rows, size_t bytes) {
    span* part = xalloc((size_t)r->size, sizeof *part, "parts");
    for (int k = 0; k < r->size; k++) part[k] = (span){(size_t)k * bytes, bytes};
    ranks_gather(r, rows, part);
    free(part);
}

void ranks_broadcast(ranks* r, void* data, size_t bytes) {
    span* part = xalloc((size_t)r->size, sizeof *part, "parts");
    part[0].bytes = bytes;
    ranks_gather(r, data, part);
    free(part);
}

// One value a rank, of all ranks.
static uint64_t* gather_values(ranks* r, uint64_t value) {
    uint64_t* values = xalloc((size_t)r->size, sizeof *values, "values");
    values[r->rank] = value;
    ranks_gather_rows(r, values, sizeof *values);
    return values;
}

int ranks_most(ranks* r, int value) {
    uint64_t* values = gather_values(r, (uint64_t)(int64_t)value);
    for (int k = 0; k < r->size; k++)
        if ((int64_t)values[k] > value) value = (int)(int64_t)values[k];
    free(values);
    return value;
}

int ranks_other(ranks* r, uint64_t value) {
    uint64_t* values = gather_values(r, value);
    int other = 0;
    for (int k = r->size - 1; k > 0; k--)
        if (values[k] != values[0]) other = k;
    free(values);
    return other;
}

int64_t ranks_sent(ranks* r) {
    int64_t sent = r->sent - r->told;
    r->told = r->sent;
    return sent;
}

void ranks_share(const ranks* r, int k, int count, int first[2]) {
    for (int i = 0; i < 2; i++) first[i] = (int)((int64_t)count * (k + i) / r->size);
}
