// What the tests of the model, the sampler and the trainer share: the devices at hand, and models
// small enough to run thousands of times but without symmetries (no weight is 0, no gain is 1).
#ifndef SMALL_MODEL_H
#define SMALL_MODEL_H

#include "model/model.h"
#include "test.h"

// A run of a test program is "quick" under the sanitizers, which are an order of magnitude slower:
// the first argument is `quick`, or TEST_QUICK is set.
static inline int test_quick(int argc, char** argv) {
    return getenv("TEST_QUICK") != NULL || (argc > 1 && !strcmp(argv[1], "quick"));
}

// Devices that must all give the same bits: the best instruction set that is there, the others, and
// more threads than most work divides by. Returns how many; close each with cpu_close.
enum { DEVICES_MAX = 4 };
static inline int open_devices(backend* device[DEVICES_MAX]) {
    static const struct {
        const char* isa;
        int threads;
    } kinds[DEVICES_MAX] = {{"auto", 1}, {"avx2", 1}, {"auto", 3}, {"c", 1}};
    int n = 0, threads_max = 1;
#ifdef _OPENMP
    threads_max = 3;
#endif
    for (int i = 0; i < DEVICES_MAX; i++) {
        int there = !strcmp(kinds[i].isa, "auto") || cpu_has(kinds[i].isa);
        if (there && kinds[i].threads <= threads_max)
            device[n++] = cpu_open(kinds[i].threads, kinds[i].isa);
    }
    return n;
}

// The number formats, in the order of their unit roundoff.
enum { DTYPES = 6 };
static const format* const DTYPE[DTYPES] = {&FORMAT_FP32, &FORMAT_TF32, &FORMAT_FP16,
                                            &FORMAT_BF16, &FORMAT_E4M3, &FORMAT_E5M2};

enum { GPT2_WEIGHTS = 16 };  // weights of a tied GPT-2, which stand first in its table

// All parameters in host memory: matrices normal with deviation `spread`, biases 0.1, gains around
// 1. Free with free().
static inline float* random_parameters(const model* m, uint64_t seed, double spread) {
    float* p = xalloc(m->parameters, sizeof *p, "test parameters");
    for (int i = 0; i < WEIGHTS; i++) {
        const family_weight* w = &m->family->weight[i];
        double around = w->role == GAIN, deviation = weight_decays(w) ? spread : 0.1;
        rng r = rng_at(seed, STREAM_INIT, 1, (uint32_t)i);
        for (size_t j = 0; j < m->count[i]; j++)
            p[m->offset[i] + j] = (float)(around + deviation * rng_normal(&r));
    }
    return p;
}

static inline size_t tensor_offset(const model* m, const char* name) {
    return m->offset[model_weight(m, name)];
}

// A copy of host memory on the device.
static inline void* to_device(backend* b, const void* host, size_t bytes) {
    void* p = b->alloc(b, bytes, "a test");
    b->upload(b, p, host, bytes);
    return p;
}

#endif
