// The activations of the MLP: GELU in its tanh form, as GPT-2 has it, and SwiGLU.
#include "ops.h"

#define SQRT_2_OVER_PI 0.7978845608f
#define CUBIC 0.044715f

void ISA(gelu_forward)(backend* b, tensor out, tensor pre) {
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float* o = row_of(out, r);
        const float* x = row_of(pre, r);
        SIMD
        for (int i = 0; i < out.cols; i++) {
            float t = num_tanhf(SQRT_2_OVER_PI * num_fma(CUBIC * x[i] * x[i], x[i], x[i]));
            o[i] = 0.5f * x[i] * (1.0f + t);
        }
        row_round(o, out.cols, out.format);
    }
}

void ISA(gelu_backward)(backend* b, tensor dpre, tensor dout, tensor pre) {
    PARALLEL_FOR(b)
    for (int r = 0; r < dpre.rows; r++) {
        float* dx = row_of(dpre, r);
        const float *x = row_of(pre, r), *d = row_of(dout, r);
        SIMD
        for (int i = 0; i < dpre.cols; i++) {
            float square = x[i] * x[i];
            float t = num_tanhf(SQRT_2_OVER_PI * num_fma(CUBIC * square, x[i], x[i]));
            float slope = SQRT_2_OVER_PI * num_fma(3.0f * CUBIC, square, 1.0f);
            float derivative = num_fma(0.5f * x[i] * num_fma(-t, t, 1.0f), slope, 0.5f + 0.5f * t);
            dx[i] = d[i] * derivative;
        }
        row_round(dx, dpre.cols, dpre.format);
    }
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + num_expf(-x)); }

void ISA(swiglu_forward)(backend* b, tensor out, tensor pre) {
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        float* o = row_of(out, r);
        const float *gate = row_of(pre, r), *up = gate + out.cols;
        SIMD
        for (int i = 0; i < out.cols; i++) o[i] = gate[i] * sigmoid(gate[i]) * up[i];
        row_round(o, out.cols, out.format);
    }
}

// With s = sigmoid(gate): d gate = dout up s (1 + gate (1 - s)), d up = dout gate s.
void ISA(swiglu_backward)(backend* b, tensor dpre, tensor dout, tensor pre) {
    PARALLEL_FOR(b)
    for (int r = 0; r < dout.rows; r++) {
        const float *gate = row_of(pre, r), *up = gate + dout.cols, *d = row_of(dout, r);
        float *dgate = row_of(dpre, r), *dup = dgate + dout.cols;
        SIMD
        for (int i = 0; i < dout.cols; i++) {
            float s = sigmoid(gate[i]);
            dgate[i] = d[i] * up[i] * (s * num_fma(gate[i], 1.0f - s, 1.0f));
            dup[i] = d[i] * (gate[i] * s);
        }
        row_round(dgate, 2 * dout.cols, dpre.format);
    }
}
