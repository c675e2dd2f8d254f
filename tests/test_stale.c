// Older weights: which step samples with which, by a table of all steps; that what is saved midway
// goes on alike; that the newest weights cost nothing; what is refused.
#include "refusal.h"
#include "rl/stale.h"

enum { COUNT = 37, STEPS = 23 };

// Parameters of step s: s + i / 64.
static void set_step(backend* b, float* parameters, int step) {
    float host[COUNT];
    for (int i = 0; i < COUNT; i++) host[i] = (float)step + (float)i / 64;
    b->upload(b, parameters, host, sizeof host);
}

// The step that these parameters are of; -1: a mixture.
static int step_of(backend* b, const float* parameters) {
    float host[COUNT];
    b->download(b, host, parameters, sizeof host);
    for (int i = 0; i < COUNT; i++)
        if (host[i] != host[0] + (float)i / 64) return -1;
    return (int)host[0];
}

// Written out from the definition, with other words than stale.c.
static int expected_step(int sync_every, int lag, int step) {
    int last_sync = 0;
    for (int s = 0; s <= step; s += sync_every) last_sync = s;
    return lag ? step > lag ? step - lag : 0 : last_sync;
}

// A run of which step `moved` is done by another object, from what the first one saved.
static void check_run(backend* b, int sync_every, int lag, int moved) {
    float* parameters = b->alloc(b, COUNT * sizeof *parameters, "parameters");
    stale* s = stale_create(b, COUNT, sync_every, lag);
    CHECK(s->copies == (lag ? lag : sync_every > 1), "%d, %d: %d copies", sync_every, lag,
          s->copies);
    set_step(b, parameters, 0);
    stale_begin(s, parameters);
    for (int step = 0; step < STEPS; step++) {
        if (step == moved) {
            float* host = xalloc((size_t)s->copies * COUNT, sizeof *host, "copies");
            stale_save(s, host);
            stale_free(s);
            s = stale_create(b, COUNT, sync_every, lag);
            stale_load(s, host);
            free(host);
        }
        set_step(b, parameters, step);
        int expected = expected_step(sync_every, lag, step);
        int found = step_of(b, stale_take(s, parameters, step));
        CHECK(found == expected, "sync-every %d, lag %d, step %d: weights of step %d, not %d",
              sync_every, lag, step, found, expected);
        CHECK(stale_is_older(s, step) == (expected < step), "%d, %d, step %d", sync_every, lag,
              step);
        stale_push(s, parameters, step);
        CHECK(step_of(b, parameters) == step, "the trainer's own are left alone");
    }
    stale_free(s);
    b->release(b, parameters, COUNT * sizeof *parameters);
}

static void create_both(const void* b) { stale_create((backend*)b, COUNT, 2, 1); }

int main(void) {
    static const int ways[][2] = {{1, 0}, {2, 0}, {3, 0}, {50, 0}, {1, 1}, {1, 2}, {1, 5}, {1, 50}};
    backend* b = cpu_open(1, "auto");
    size_t before = b->allocated;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        for (int moved = 0; moved < STEPS; moved++) check_run(b, ways[i][0], ways[i][1], moved);
    CHECK(b->allocated == before, "%zu bytes stay", b->allocated - before);
    stale* newest = stale_create(b, COUNT, 1, 0);
    CHECK(b->allocated == before, "the newest weights take memory");
    float* own = b->alloc(b, COUNT * sizeof *own, "parameters");
    CHECK(stale_take(newest, own, 7) == own, "the newest are the trainer's own");
    b->release(b, own, COUNT * sizeof *own);
    stale_free(newest);
    check_refusal(create_both, b, "both",
                  (const char* [REFUSAL_WORDS]){"--sync-every 2", "--lag 1"});
    cpu_close(b);
    return test_report();
}
