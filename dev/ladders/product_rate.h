// product_rate.h: the limit of ladders that are bound by products: mma_m16n8k16 on registers, 8
// sums in flight a warp.
#ifndef DEV_PRODUCT_RATE_H
#define DEV_PRODUCT_RATE_H

#include "ladder.h"

constexpr int RATE_LOOPS = 4096, RATE_SUMS = 8, RATE_THREADS = 256, RATE_BLOCKS = 1024;
constexpr double RATE_WORK =
    2.0 * 16 * 8 * 16 * RATE_SUMS * RATE_LOOPS * RATE_BLOCKS * (RATE_THREADS / WARP);

static __global__ void __launch_bounds__(RATE_THREADS) product_rate(float* result) {
    float d[RATE_SUMS][4], total = 0;
    uint32_t one = two<bf16>(1.0f, 1.0f), a[4] = {one, one, one, one};
    for (int j = 0; j < RATE_SUMS; j++)  // all different, or the compiler would make them one
        for (int e = 0; e < 4; e++) d[j][e] = (float)(threadIdx.x + j * 4 + e);
#pragma unroll 4
    for (int i = 0; i < RATE_LOOPS; i++)
        for (int j = 0; j < RATE_SUMS; j++) mma_m16n8k16<bf16>(d[j], a, {one, one});
    for (int j = 0; j < RATE_SUMS; j++) total += d[j][0] + d[j][1] + d[j][2] + d[j][3];
    result[blockIdx.x * RATE_THREADS + threadIdx.x] = total;
}

static void run_product_rate(backend* b) {
    static float* result;  // until the end
    if (!result)
        result = (float*)b->alloc(b, RATE_BLOCKS * RATE_THREADS * sizeof(float), "the limit");
    LAUNCH(product_rate, dim3(RATE_BLOCKS), dim3(RATE_THREADS), 0, stream_of(b), result);
}

static const ladder_limit PRODUCT_RATE = {"TFLOP/s", 1e12, RATE_WORK, run_product_rate};

#endif
