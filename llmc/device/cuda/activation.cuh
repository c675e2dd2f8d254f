// The activations of the MLP: GELU in its tanh form, as GPT-2 has it (Hendrycks and Gimpel, arXiv
// 1606.08415), and SwiGLU (Shazeer, arXiv 2002.05202). The formulas are those of cpu/activation.c,
// operation by operation, so that equal inputs give equal bits. Bound by memory.
#ifndef LLMC_CUDA_ACTIVATION_CUH
#define LLMC_CUDA_ACTIVATION_CUH

#include "cuda.cuh"

#define SQRT_2_OVER_PI 0.7978845608f
#define CUBIC 0.044715f

static __device__ inline float gelu(float x) {
    float t = num_tanhf(SQRT_2_OVER_PI * num_fma(CUBIC * x * x, x, x));
    return 0.5f * x * (1.0f + t);
}

static __device__ inline float gelu_slope(float x) {
    float square = x * x;
    float t = num_tanhf(SQRT_2_OVER_PI * num_fma(CUBIC * square, x, x));
    float slope = SQRT_2_OVER_PI * num_fma(3.0f * CUBIC, square, 1.0f);
    return num_fma(0.5f * x * num_fma(-t, t, 1.0f), slope, 0.5f + 0.5f * t);
}

// Thread i takes span i % spans of row i / spans.
template <class T, int N>
static __global__ void gelu_forward_kernel(T* out, const T* pre, int64_t out_stride,
                                           int64_t pre_stride, int spans, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int64_t r = i / spans, c = i % spans * N;
    float x[N];
    load_span<N>(x, pre + r * pre_stride + c);
    for (int k = 0; k < N; k++) x[k] = gelu(x[k]);
    store_span<N>(out + r * out_stride + c, x);
}

template <class T, int N>
static __global__ void gelu_backward_kernel(T* dpre, const float* dout, const T* pre,
                                            int64_t dpre_stride, int64_t dout_stride,
                                            int64_t pre_stride, int spans, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int64_t r = i / spans, c = i % spans * N;
    float x[N], d[N];
    load_span<N>(x, pre + r * pre_stride + c);
    load_span<N>(d, dout + r * dout_stride + c);
    for (int k = 0; k < N; k++) d[k] *= gelu_slope(x[k]);
    store_span<N>(dpre + r * dpre_stride + c, d);
}

constexpr int ACTIVATION_THREADS = 256;

static void cuda_gelu_forward(backend* b, tensor out, tensor pre) {
    bool fits = spans_fit(out) && spans_fit(pre);
    if (out.rows == 0) return;
    WITH_STORAGE(out.format, T, WITH_SPAN(fits, N, {
                     int64_t count = (int64_t)out.rows * (out.cols / N);
                     LAUNCH((gelu_forward_kernel<T, N>), blocks_for(count, ACTIVATION_THREADS),
                            ACTIVATION_THREADS, 0, stream_of(b), (T*)out.data, (const T*)pre.data,
                            out.stride, pre.stride, out.cols / N, count);
                 }));
}

// dout is fp32, as the product behind it left it.
static void cuda_gelu_backward(backend* b, tensor dpre, tensor dout, tensor pre) {
    bool fits = spans_fit(dpre) && spans_fit(dout) && spans_fit(pre);
    if (dpre.rows == 0) return;
    WITH_STORAGE(dpre.format, T, WITH_SPAN(fits, N, {
                     int64_t count = (int64_t)dpre.rows * (dpre.cols / N);
                     LAUNCH((gelu_backward_kernel<T, N>), blocks_for(count, ACTIVATION_THREADS),
                            ACTIVATION_THREADS, 0, stream_of(b), (T*)dpre.data,
                            (const float*)dout.data, (const T*)pre.data, dpre.stride, dout.stride,
                            pre.stride, dpre.cols / N, count);
                 }));
}

// ------------------------------------------------------------------------------------------------
// SwiGLU: a row of `pre` holds the gate g of every column, then u.

static __device__ inline float sigmoid(float x) { return 1.0f / (1.0f + num_expf(-x)); }

// out = g sigmoid(g) u
template <class T, int N>
static __global__ void swiglu_forward_kernel(T* out, const T* pre, int64_t out_stride,
                                             int64_t pre_stride, int cols, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int64_t r = i / (cols / N), c = i % (cols / N) * N;
    float g[N], u[N];
    load_span<N>(g, pre + r * pre_stride + c);
    load_span<N>(u, pre + r * pre_stride + cols + c);
    for (int k = 0; k < N; k++) u[k] = g[k] * sigmoid(g[k]) * u[k];
    store_span<N>(out + r * out_stride + c, u);
}

// With s = sigmoid(g): dg = dout u s (1 + g (1 - s)), du = dout g s.
template <class T, int N>
static __global__ void swiglu_backward_kernel(T* dpre, const float* dout, const T* pre,
                                              int64_t dpre_stride, int64_t dout_stride,
                                              int64_t pre_stride, int cols, int64_t count) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int64_t r = i / (cols / N), c = i % (cols / N) * N;
    float g[N], u[N], d[N];
    load_span<N>(g, pre + r * pre_stride + c);
    load_span<N>(u, pre + r * pre_stride + cols + c);
    load_span<N>(d, dout + r * dout_stride + c);
    for (int k = 0; k < N; k++) {
        float s = sigmoid(g[k]), slope = s * num_fma(g[k], 1.0f - s, 1.0f);
        float dg = d[k] * u[k] * slope;
        u[k] = d[k] * (g[k] * s);
        g[k] = dg;
    }
    store_span<N>(dpre + r * dpre_stride + c, g);
    store_span<N>(dpre + r * dpre_stride + cols + c, u);
}

static void cuda_swiglu_forward(backend* b, tensor out, tensor pre) {
    bool fits = spans_fit(out) && spans_fit(pre);
    if (out.rows == 0) return;
    WITH_STORAGE(out.format, T, WITH_SPAN(fits, N, {
                     int64_t count = (int64_t)out.rows * (out.cols / N);
                     LAUNCH((swiglu_forward_kernel<T, N>), blocks_for(count, ACTIVATION_THREADS),
                            ACTIVATION_THREADS, 0, stream_of(b), (T*)out.data, (const T*)pre.data,
                            out.stride, pre.stride, out.cols, count);
                 }));
}

// dout is fp32, as the product behind it left it.
static void cuda_swiglu_backward(backend* b, tensor dpre, tensor dout, tensor pre) {
    bool fits = spans_fit(dpre) && spans_fit(dout) && spans_fit(pre);
    if (dout.rows == 0) return;
    WITH_STORAGE(dpre.format, T, WITH_SPAN(fits, N, {
                     int64_t count = (int64_t)dout.rows * (dout.cols / N);
                     LAUNCH((swiglu_backward_kernel<T, N>), blocks_for(count, ACTIVATION_THREADS),
                            ACTIVATION_THREADS, 0, stream_of(b), (T*)dpre.data,
                            (const float*)dout.data, (const T*)pre.data, dpre.stride, dout.stride,
                            pre.stride, dout.cols, count);
                 }));
}

#endif
