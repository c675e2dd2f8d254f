// What the optimizer does with whole parameter arrays. The same arithmetic in the same order as the
// CPU device, so the same bits: division and square root are correctly rounded, and an FMA stands
// where one is meant. All of it waits for memory; neighbouring threads take neighbouring elements.
#ifndef LLMC_CUDA_UPDATE_CUH
#define LLMC_CUDA_UPDATE_CUH

#include "cuda.cuh"

enum { UPDATE_THREADS = 256 };

static __device__ inline size_t element_of_thread() {
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __global__ void cast_elements(float* to, const float* from, size_t n, const format f) {
    size_t i = element_of_thread();
    if (i < n) to[i] = format_round(from[i], &f);
}

static void cuda_cast(backend* b, float* to, const float* from, size_t n, const format* how) {
    if (n)
        LAUNCH(cast_elements, blocks_for(n, UPDATE_THREADS), UPDATE_THREADS, 0, stream_of(b), to,
               from, n, *how);
}

static __global__ void add_elements(float* to, const float* from, size_t n) {
    size_t i = element_of_thread();
    if (i < n) to[i] += from[i];
}

static void cuda_add(backend* b, float* to, const float* from, size_t n) {
    if (n)
        LAUNCH(add_elements, blocks_for(n, UPDATE_THREADS), UPDATE_THREADS, 0, stream_of(b), to,
               from, n);
}

// ------------------------------------------------------------------------------------------------
// Sums of squares: a chunk has 16 lanes and a tree of their sums, half a warp.

enum { SQUARES_LANES = 16 };

static __global__ void sum_squares_chunks(double* sum, const float* x, size_t n) {
    size_t chunk = element_of_thread() / SQUARES_LANES, i = chunk * SUM_CHUNK;
    size_t end = i + SUM_CHUNK < n ? i + SUM_CHUNK : n;
    int lane = threadIdx.x % SQUARES_LANES;
    double s = 0;
    for (i += lane; i < end; i += SQUARES_LANES) s += (double)x[i] * x[i];
    for (int half = SQUARES_LANES / 2; half; half /= 2)
        s += __shfl_down_sync(~0u, s, half, SQUARES_LANES);
    if (lane == 0 && chunk * SUM_CHUNK < n) sum[chunk] = s;
}

static void cuda_sum_squares(backend* b, double* sum, const float* x, size_t n) {
    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;
    if (!n) return;
    double* sums = (double*)cuda_scratch(b, SCRATCH_ROWS, chunks * sizeof(double));
    LAUNCH(sum_squares_chunks, blocks_for(chunks * SQUARES_LANES, UPDATE_THREADS), UPDATE_THREADS,
           0, stream_of(b), sums, x, n);
    b->download(b, sum, sums, chunks * sizeof(double));
}

// ------------------------------------------------------------------------------------------------

static __global__ void adamw_elements(float* w, float* m, float* v, const float* g, size_t n,
                                      size_t first, const adamw_step h, const format f) {
    size_t i = element_of_thread(), index = first + i;
    if (i >= n) return;
    float d = g[i] * h.gradient_scale;
    float mean = num_fma(h.beta1, m[i], (1.0f - h.beta1) * d);
    float square = num_fma(h.beta2, v[i], (1.0f - h.beta2) * d * d);
    float step = (mean / h.correction1) / (sqrtf(square / h.correction2) + h.eps);
    float x = num_fma(-h.lr, num_fma(h.weight_decay, w[i], step), w[i]);
    if (f.drop) {
        uint32_t random[4];
        random_at(random, h.seed, STREAM_ROUND, h.step, (uint32_t)(index >> 32), (uint32_t)index);
        x = format_round_stochastic(x, &f, random[0]);
    }
    m[i] = mean;
    v[i] = square;
    w[i] = x;
}

static void cuda_adamw(backend* b, float* w, float* m, float* v, const float* g, size_t n,
                       size_t first, const adamw_step* how) {
    if (n)
        LAUNCH(adamw_elements, blocks_for(n, UPDATE_THREADS), UPDATE_THREADS, 0, stream_of(b), w, m,
               v, g, n, first, *how, *how->format);
}

#endif
