// What the optimizer does with whole parameter arrays.
#include "ops.h"

void ISA(cast)(backend* b, float* to, const float* from, size_t n, const format* how) {
    const format f = *how;
    PARALLEL_SIMD(b)
    for (size_t i = 0; i < n; i++) to[i] = format_round(from[i], &f);
}

void ISA(round_blocks)(backend* b, float* to, const float* from, int rows, int cols,
                       const block_format* how) {
    float amax = how->scale == SCALE_E4M3 ? blocks_amax(from, (size_t)rows * cols) : 0;
    PARALLEL_FOR(b)
    for (int r = 0; r < rows; r += how->rows) {
        int64_t at = (int64_t)r * cols;
        int high = rows - r < how->rows ? rows - r : how->rows;
        blocks_round(to + at, from + at, high, cols, how, amax);
    }
}

size_t ISA(count_changed)(backend* b, const float* before, const float* after, size_t n,
                          const format* how) {
    enum { PIECE = 1 << 14 };  // elements; each is counted in 32 bits
    const format f = *how;
    size_t pieces = (n + PIECE - 1) / PIECE, count = 0;
    uint32_t* of_piece = cpu_scratch(b, SCRATCH_ROWS, pieces * sizeof *of_piece);
    PARALLEL_FOR(b)
    for (size_t p = 0; p < pieces; p++) {
        size_t first = p * PIECE, end = first + PIECE < n ? first + PIECE : n;
        uint32_t changed = 0;
        PRAGMA(omp simd reduction(+ : changed))
        for (size_t i = first; i < end; i++)
            changed += format_round(before[i], &f) != format_round(after[i], &f);
        of_piece[p] = changed;
    }
    for (size_t p = 0; p < pieces; p++) count += of_piece[p];
    return count;
}

void ISA(add)(backend* b, float* to, const float* from, size_t n) {
    PARALLEL_SIMD(b)
    for (size_t i = 0; i < n; i++) to[i] += from[i];
}

enum { LANES = 16 };

void ISA(sum_squares)(backend* b, double* sum, const float* x, size_t n) {
    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;
    PARALLEL_FOR(b)
    for (size_t c = 0; c < chunks; c++) {
        size_t i = c * SUM_CHUNK, end = i + SUM_CHUNK < n ? i + SUM_CHUNK : n;
        double lane[LANES] = {0};
        for (; i + LANES <= end; i += LANES) SIMD
        for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l] * x[i + l];
        for (int l = 0; i + l < end; l++) lane[l] += (double)x[i + l] * x[i + l];
        for (int half = LANES / 2; half; half /= 2)
            for (int l = 0; l < half; l++) lane[l] += lane[l + half];
        sum[c] = lane[0];
    }
}

void ISA(adamw)(backend* b, float* w, float* m, float* v, const float* g, size_t n, size_t first,
                const adamw_step* how) {
    const adamw_step h = *how;
    const float keep1 = 1.0f - h.beta1, keep2 = 1.0f - h.beta2;
    PARALLEL_SIMD(b)
    for (size_t i = 0; i < n; i++) {
        float d = g[i] * h.gradient_scale;
        m[i] = num_fma(h.beta1, m[i], keep1 * d);
        v[i] = num_fma(h.beta2, v[i], keep2 * d * d);
        float step = (m[i] / h.correction1) / (__builtin_sqrtf(v[i] / h.correction2) + h.eps);
        w[i] = num_fma(-h.lr, num_fma(h.weight_decay, w[i], step), w[i]);
    }
    if (h.format == &FORMAT_FP32) return;
    PARALLEL_FOR(b)
    for (size_t i = 0; i < n; i++) {
        uint32_t random[4];
        random_at(random, h.seed, STREAM_ROUND, h.step, (uint32_t)((first + i) >> 32),
                  (uint32_t)(first + i));
        w[i] = format_round_stochastic(w[i], h.format, random[0]);
    }
}
