// Token and position embeddings. Backward adds rows of the gradient to rows of a table (rows.cuh).
#ifndef LLMC_CUDA_EMBED_CUH
#define LLMC_CUDA_EMBED_CUH

#include "rows.cuh"

constexpr int EMBED_THREADS = 256;

template <class T>
static __global__ void embed_forward_kernel(T* out, int64_t stride, int cols, const float* wte,
                                            const float* wpe, const int* token,
                                            const int* position) {
    int r = blockIdx.x, p = position[r];
    const float *of_token = wte + (int64_t)token[r] * cols, *of_position = wpe + (int64_t)p * cols;
    bool adds = wpe != NULL;
    for (int c = threadIdx.x; c < cols; c += EMBED_THREADS) {
        float x = 0;
        if (p >= 0) x = adds ? of_token[c] + of_position[c] : of_token[c];
        out[r * stride + c] = to<T>(x);
    }
}

static void cuda_embed_forward(backend* b, tensor out, const float* wte, const float* wpe,
                               const int* token, const int* position) {
    if (out.rows == 0) return;
    WITH_STORAGE(out.format, T,
                 LAUNCH((embed_forward_kernel<T>), out.rows, EMBED_THREADS, 0, stream_of(b),
                        (T*)out.data, out.stride, out.cols, wte, wpe, token, position));
}

static void cuda_embed_backward(backend* b, float* dwte, float* dwpe, tensor dout, const int* token,
                                const int* position) {
    add_rows(b, dwte, dout.cols, dout, token);
    if (dwpe) add_rows(b, dwpe, dout.cols, dout, position);
}

#endif
