// Token and position embeddings, and the gathering of rows.
#include "ops.h"

void ISA(embed_forward)(backend* b, tensor out, const float* wte, const float* wpe,
                        const int* token, const int* position) {
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float* o = row_of(out, r);
        if (position[r] < 0) {
            memset(o, 0, out.cols * sizeof(float));
            continue;
        }
        const float* t = wte + (int64_t)token[r] * out.cols;
        const float* p = wpe ? wpe + (int64_t)position[r] * out.cols : NULL;
        SIMD
        for (int i = 0; i < out.cols; i++) o[i] = p ? t[i] + p[i] : t[i];
        row_round(o, out.cols, out.format);
    }
}

// Threads share the columns, so that each element sums its rows in order.
void ISA(embed_backward)(backend* b, float* dwte, float* dwpe, tensor dout, const int* token,
                         const int* position) {
    enum { COLUMNS = 32 };
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < dout.cols; j0 += COLUMNS) {
        int cols = dout.cols - j0 < COLUMNS ? dout.cols - j0 : COLUMNS;
        for (int r = 0; r < dout.rows; r++) {
            const float* d = row_of(dout, r) + j0;
            float* t = dwte + (int64_t)token[r] * dout.cols + j0;
            SIMD
            for (int j = 0; j < cols; j++) t[j] += d[j];
            if (!dwpe) continue;
            float* p = dwpe + (int64_t)position[r] * dout.cols + j0;
            SIMD
            for (int j = 0; j < cols; j++) p[j] += d[j];
        }
    }
}

void ISA(gather_rows)(backend* b, tensor to, tensor from, const int* row) {
    PARALLEL_FOR(b)
    for (int i = 0; i < to.rows; i++)
        memcpy(row_of(to, i), row_of(from, row[i]), to.cols * sizeof(float));
}
