// Layer normalisation (Ba et al., arXiv 1607.06450), with the residual sum before it.
#include "ops.h"

void ISA(norm_forward)(backend* b, tensor out, tensor residual_out, float* stats, tensor residual,
                       tensor add, const float* gain, const float* bias) {
    int n = out.cols;
    float* squares = cpu_scratch(b, SCRATCH_ROWS, (size_t)cpu_threads(b) * n * sizeof(float));
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float *o = row_of(out, r), *x = row_of(residual_out, r);
        float* square = squares + (size_t)cpu_thread() * n;
        if (add.data) {
            const float *from = row_of(residual, r), *plus = row_of(add, r);
            SIMD
            for (int i = 0; i < n; i++) x[i] = from[i] + plus[i];
            row_round(x, n, residual_out.format);
        }
        float mean = row_sum(x, n) / n;
        SIMD
        for (int i = 0; i < n; i++) square[i] = (x[i] - mean) * (x[i] - mean);
        float rstd = 1.0f / __builtin_sqrtf(row_sum(square, n) / n + 1e-5f);
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
    enum { COLUMNS = 32 };  // threads share the columns: each sums its rows in order
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
