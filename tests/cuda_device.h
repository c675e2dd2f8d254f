// The devices that the tests of the CUDA device compare: the GPU, or the PTX machine
// (tests/ptx), and the CPU. Include it first: it asks for setenv.
//
// What runs on the GPU runs under several schedules: on the PTX machine
// PTX_SCHEDULE chooses the order in which threads and blocks run, on a GPU they are repetitions;
// the bits must be the same.
#ifndef CUDA_DEVICE_H
#define CUDA_DEVICE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/backend.h"

enum { SCHEDULES_MAX = 6 };
static int schedules;  // how many
static backend *cpu, *gpu;

static inline int quick(void) { return getenv("TEST_QUICK") != NULL; }

// Environment: CUDA_PRODUCTS=cublaslt tests with the library's matrix products, =wgmma with
// Hopper's.
static inline int products_are(const char* whose) {
    const char* products = getenv("CUDA_PRODUCTS");
    return products && !strcmp(products, whose);
}
// Then the bits of a row depend on the other rows too.
static inline int library(void) { return products_are("cublaslt"); }

static inline void cuda_test_open(void) {
    const char* why;
    schedules = quick() ? 3 : SCHEDULES_MAX;
    cpu = cpu_open(1, "auto");
    gpu = cuda_open(library()               ? PRODUCTS_AUTO
                    : products_are("wgmma") ? PRODUCTS_WGMMA_ALONE
                                            : PRODUCTS_HANDWRITTEN,
                    &why);
    if (!gpu) fatal("no CUDA device to test: %s", why);
}

static inline void cuda_test_close(void) {
    cuda_close(gpu);
    cpu_close(cpu);
}

static inline void schedule_set(int s) {
    char number[16];
    snprintf(number, sizeof number, "%d", s);
    setenv("PTX_SCHEDULE", number, 1);
}

#endif
