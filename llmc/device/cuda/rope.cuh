// Rotary positions (Su et al., arXiv 2104.09864), the half-split form of Llama and Qwen: elements i
// and i + head_dim / 2 of a head of queries or keys turn by the angle of the row's position. Two
// products, then their sum, as in cpu/rope.c: equal inputs give equal bits. Bound by memory.
#ifndef LLMC_CUDA_ROPE_CUH
#define LLMC_CUDA_ROPE_CUH

#include "cuda.cuh"

constexpr int ROPE_THREADS = 128;

// A block a row. A thread takes a span of the lower half of a head, and the same of the upper half.
// Values, and rows with position -1, are copied.
template <class T, class O, int N>
static __global__ void __launch_bounds__(ROPE_THREADS)
    rope_kernel(O* out, const T* qkv, int64_t out_stride, int64_t qkv_stride, const float* turn,
                const int* position, head_shape heads, bool backward) {
    int half = heads.dim / 2, spans = half / N, at = position[blockIdx.x];
    int all = heads.query + 2 * heads.kv, turned = at < 0 ? 0 : heads.query + heads.kv;
    const float* angles = turn + (int64_t)at * heads.dim;
    for (int i = threadIdx.x; i < all * spans; i += ROPE_THREADS) {
        int h = i / spans, c = i % spans * N;
        const T* from = qkv + blockIdx.x * qkv_stride + h * heads.dim + c;
        O* target = out + blockIdx.x * out_stride + h * heads.dim + c;
        float a[N], b[N], t[2][N];  // t: {cos, sin} of N angles, in two spans
        load_span<N>(a, from);
        load_span<N>(b, from + half);
        if (h < turned) {
            load_span<N>(t[0], angles + 2 * c);
            load_span<N>(t[1], angles + 2 * c + N);
            for (int k = 0; k < N; k++) {
                float cosine = t[2 * k / N][2 * k % N], sine = t[(2 * k + 1) / N][(2 * k + 1) % N];
                float x = a[k], y = b[k];
                if (backward) sine = -sine;
                a[k] = x * cosine - y * sine;
                b[k] = y * cosine + x * sine;
            }
        }
        store_span<N>(target, a);
        store_span<N>(target + half, b);
    }
}

template <class T, class O>
static void rope_launch(backend* b, const tensor& out, const tensor& qkv, const float* turn,
                        const int* position, const head_shape& heads, bool backward) {
    bool fits = heads.dim / 2 % SPAN == 0 && spans_fit(out) && spans_fit(qkv) && spans_fit(turn);
    WITH_SPAN(fits, N, {
        LAUNCH((rope_kernel<T, O, N>), out.rows, ROPE_THREADS, 0, stream_of(b), (O*)out.data,
               (const T*)qkv.data, out.stride, qkv.stride, turn, position, heads, backward);
    });
}

// Backward into an RMS norm of heads leaves fp32; else both have one format.
static void cuda_rope(backend* b, tensor out, tensor qkv, const float* turn, const int* position,
                      head_shape heads, int backward) {
    if (out.rows == 0) return;
    WITH_STORAGE(qkv.format, T, {
        if (storage_of(out.format) == STORE_FP32)
            rope_launch<T, float>(b, out, qkv, turn, position, heads, backward);
        else if (storage_of(out.format) == storage_of(qkv.format))
            rope_launch<T, T>(b, out, qkv, turn, position, heads, backward);
        else
            fatal("the CUDA device turns no heads of %s into %s", qkv.format->name,
                  out.format->name);
    });
}

#endif
