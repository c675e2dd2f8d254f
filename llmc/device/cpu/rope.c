// Rotary positions, the half-split form of Llama and Qwen.
#include "ops.h"

void ISA(rope)(backend* b, tensor out, tensor qkv, const float* turn, const int* position,
               head_shape heads, int backward) {
    int half = heads.dim / 2, turned = heads.query + heads.kv;
    float way = backward ? -1 : 1;
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        const float *in = row_of(qkv, r), *t = turn + (int64_t)position[r] * heads.dim;
        float* o = row_of(out, r);
        for (int h = 0; h < turned && position[r] >= 0; h++) {
            const float* x = in + h * heads.dim;
            float* y = o + h * heads.dim;
            SIMD
            for (int i = 0; i < half; i++) {
                float cosine = t[2 * i], sine = way * t[2 * i + 1];
                y[i] = x[i] * cosine - x[i + half] * sine;
                y[i + half] = x[i + half] * cosine + x[i] * sine;
            }
        }
        int copied = position[r] < 0 ? 0 : turned * heads.dim;
        memcpy(o + copied, in + copied, (out.cols - copied) * sizeof(float));
        row_round(o, out.cols, out.format);
    }
}
