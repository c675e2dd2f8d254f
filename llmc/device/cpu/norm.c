// Layer norm and RMS norm, with the residual sum before them, and the RMS norm of each head of
// queries and keys.
#include "ops.h"

enum { COLUMNS = 32 };  // threads share the columns of a gradient: each sums its rows in order

// x = residual + add, or what is there.
INLINE const float* residual_sum(tensor residual_out, tensor residual, tensor add, int r) {
    float* x = row_of(residual_out, r);
    if (!add.data) return x;
    const float *from = row_of(residual, r), *plus = row_of(add, r);
    SIMD
    for (int i = 0; i < residual_out.cols; i++) x[i] = from[i] + plus[i];
    row_round(x, residual_out.cols, residual_out.format);
    return x;
}

void ISA(norm_forward)(backend* b, tensor out, tensor residual_out, float* stats, tensor residual,
                       tensor add, const float* gain, const float* bias, float eps) {
    int n = out.cols;
    float* squares = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float *o = row_of(out, r), *square = squares + (size_t)cpu_thread() * n;
        const float* x = residual_sum(residual_out, residual, add, r);
        float mean = row_sum(x, n) / n;
        SIMD
        for (int i = 0; i < n; i++) square[i] = (x[i] - mean) * (x[i] - mean);
        float rstd = 1.0f / __builtin_sqrtf(row_sum(square, n) / n + eps);
        SIMD
        for (int i = 0; i < n; i++) o[i] = num_fma((x[i] - mean) * rstd, gain[i], bias[i]);
        row_round(o, n, out.format);
        stats[2 * r] = mean;
        stats[2 * r + 1] = rstd;
    }
}

// With h = (x - mean) rstd and d = dout gain: dx = (d - mean(d) - h mean(d h)) rstd.
void ISA(norm_backward)(backend* b, tensor dresidual, float* dgain, float* dbias, tensor dout,
                        tensor residual, const float* stats, const float* gain) {
    int n = dout.cols;
    float* scratch = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * 2 * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < dout.rows; r++) {
        const float *d = row_of(dout, r), *x = row_of(residual, r);
        float* dx = row_of(dresidual, r);
        float mean = stats[2 * r], rstd = stats[2 * r + 1];
        float *dn = scratch + (size_t)cpu_thread() * 2 * n, *product = dn + n;
        SIMD
        for (int i = 0; i < n; i++) {
            dn[i] = d[i] * gain[i];
            product[i] = dn[i] * ((x[i] - mean) * rstd);
        }
        float mean_d = row_sum(dn, n) / n, mean_product = row_sum(product, n) / n;
        SIMD
        for (int i = 0; i < n; i++) {
            float h = (x[i] - mean) * rstd;
            dx[i] += num_fma(-h, mean_product, dn[i] - mean_d) * rstd;
        }
        row_round(dx, n, dresidual.format);
    }
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < n; j0 += COLUMNS) {
        int j1 = j0 + COLUMNS < n ? j0 + COLUMNS : n;
        for (int r = 0; r < dout.rows; r++) {
            const float *d = row_of(dout, r), *x = row_of(residual, r);
            float mean = stats[2 * r], rstd = stats[2 * r + 1];
            SIMD
            for (int j = j0; j < j1; j++) {
                dgain[j] = num_fma(d[j], (x[j] - mean) * rstd, dgain[j]);
                dbias[j] += d[j];
            }
        }
    }
}

void ISA(rms_forward)(backend* b, tensor out, tensor residual_out, float* stats, tensor residual,
                      tensor add, const float* gain, float eps) {
    int n = out.cols;
    float* squares = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float *o = row_of(out, r), *square = squares + (size_t)cpu_thread() * n;
        const float* x = residual_sum(residual_out, residual, add, r);
        SIMD
        for (int i = 0; i < n; i++) square[i] = x[i] * x[i];
        float rstd = 1.0f / __builtin_sqrtf(row_sum(square, n) / n + eps);
        SIMD
        for (int i = 0; i < n; i++) o[i] = x[i] * rstd * gain[i];
        row_round(o, n, out.format);
        stats[2 * r] = 0;
        stats[2 * r + 1] = rstd;
    }
}

// With h = x rstd and d = dout gain: to[i] = (d - h mean(d h)) rstd. `product` (n) is scratch.
INLINE void rms_input_gradient(float* to, float* product, const float* x, const float* dout,
                               const float* gain, float rstd, int n) {
    SIMD
    for (int i = 0; i < n; i++) product[i] = dout[i] * gain[i] * (x[i] * rstd);
    float mean = row_sum(product, n) / n;
    SIMD
    for (int i = 0; i < n; i++) to[i] = num_fma(-(x[i] * rstd), mean, dout[i] * gain[i]) * rstd;
}

void ISA(rms_backward)(backend* b, tensor dresidual, float* dgain, tensor dout, tensor residual,
                       const float* stats, const float* gain) {
    int n = dout.cols;
    float* scratch = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * 2 * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < dout.rows; r++) {
        float *to = scratch + (size_t)cpu_thread() * 2 * n, *dx = row_of(dresidual, r);
        rms_input_gradient(to, to + n, row_of(residual, r), row_of(dout, r), gain, stats[2 * r + 1],
                           n);
        SIMD
        for (int i = 0; i < n; i++) dx[i] += to[i];
        row_round(dx, n, dresidual.format);
    }
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < n; j0 += COLUMNS) {
        int j1 = j0 + COLUMNS < n ? j0 + COLUMNS : n;
        for (int r = 0; r < dout.rows; r++) {
            const float *d = row_of(dout, r), *x = row_of(residual, r);
            float rstd = stats[2 * r + 1];
            SIMD
            for (int j = j0; j < j1; j++) dgain[j] = num_fma(d[j], x[j] * rstd, dgain[j]);
        }
    }
}

void ISA(qk_norm_forward)(backend* b, tensor out, float* stats, tensor qkv, const float* gain,
                          head_shape heads, float eps) {
    int n = heads.dim, normed = heads.query + heads.kv;
    float* squares = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float* square = squares + (size_t)cpu_thread() * n;
        for (int h = 0; h < normed; h++) {
            const float *x = row_of(qkv, r) + h * n, *g = gain + (h < heads.query ? 0 : n);
            float* o = row_of(out, r) + h * n;
            SIMD
            for (int i = 0; i < n; i++) square[i] = x[i] * x[i];
            float rstd = 1.0f / __builtin_sqrtf(row_sum(square, n) / n + eps);
            SIMD
            for (int i = 0; i < n; i++) o[i] = x[i] * rstd * g[i];
            stats[(int64_t)r * normed + h] = rstd;
        }
        memcpy(row_of(out, r) + normed * n, row_of(qkv, r) + normed * n,
               (size_t)heads.kv * n * sizeof(float));
        row_round(row_of(out, r), out.cols, out.format);
    }
}

void ISA(qk_norm_backward)(backend* b, tensor dqkv, float* dgain, tensor dout, tensor qkv,
                           const float* stats, const float* gain, head_shape heads) {
    int n = heads.dim, normed = heads.query + heads.kv;
    float* products = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < dout.rows; r++) {
        for (int h = 0; h < normed; h++)
            rms_input_gradient(row_of(dqkv, r) + h * n, products + (size_t)cpu_thread() * n,
                               row_of(qkv, r) + h * n, row_of(dout, r) + h * n,
                               gain + (h < heads.query ? 0 : n), stats[(int64_t)r * normed + h], n);
        memcpy(row_of(dqkv, r) + normed * n, row_of(dout, r) + normed * n,
               (size_t)heads.kv * n * sizeof(float));
        row_round(row_of(dqkv, r), dqkv.cols, dqkv.format);
    }
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < n; j0 += COLUMNS) {
        int j1 = j0 + COLUMNS < n ? j0 + COLUMNS : n;
        for (int r = 0; r < dout.rows; r++)
            for (int h = 0; h < normed; h++) {
                const float *d = row_of(dout, r) + h * n, *x = row_of(qkv, r) + h * n;
                float* to = dgain + (h < heads.query ? 0 : n);
                float rstd = stats[(int64_t)r * normed + h];
                SIMD
                for (int j = j0; j < j1; j++) to[j] = num_fma(d[j], x[j] * rstd, to[j]);
            }
    }
}
