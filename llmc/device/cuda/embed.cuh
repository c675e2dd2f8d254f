// Token and position embeddings. Backward adds rows of the gradient to rows of a table, in row
// order and without atomics: the block of a row does nothing where an earlier row has the same
// entry; else it finds the later ones and adds them all up, one after another. Each element is the
// same chain of sums as on the CPU.
#ifndef LLMC_CUDA_EMBED_CUH
#define LLMC_CUDA_EMBED_CUH

#include "cuda.cuh"

constexpr int EMBED_THREADS = 256;
constexpr int EMBED_COLUMNS = 8;  // that a thread adds up at a time

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

// Adds to sum[k], of column first + k * EMBED_THREADS, the rows from blockIdx.x on whose entry is
// `entry`, in order. found: a bit a row for the rows that are looked at together.
template <class T>
static __device__ void add_matching_rows(float (&sum)[EMBED_COLUMNS], uint32_t* found,
                                         const T* rows, int64_t stride, int first, int cols,
                                         const int* index, int n, int entry) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int r0 = blockIdx.x; r0 < n; r0 += EMBED_THREADS) {
        int r = r0 + threadIdx.x;
        uint32_t mine = __ballot_sync(~0u, r < n && index[r] == entry);
        if (lane == 0) found[warp] = mine;
        __syncthreads();
        for (int w = 0; w < EMBED_THREADS / WARP; w++)
            for (uint32_t left = found[w]; left; left &= left - 1) {
                const T* row = rows + (r0 + w * WARP + __ffs(left) - 1) * stride;
                for (int k = 0; k < EMBED_COLUMNS; k++) {
                    int c = first + k * EMBED_THREADS;
                    if (c < cols) sum[k] += to_float(row[c]);
                }
            }
        __syncthreads();
    }
}

// table[index[r]] += rows[r]
template <class T>
static __global__ void __launch_bounds__(EMBED_THREADS)
    add_rows_kernel(float* table, const T* rows, int64_t stride, int cols, const int* index,
                    int n) {
    __shared__ uint32_t found[EMBED_THREADS / WARP];
    int own = blockIdx.x, entry = index[own];
    for (int r0 = 0; r0 < own; r0 += EMBED_THREADS) {
        int r = r0 + threadIdx.x;
        if (__syncthreads_or(r < own && index[r] == entry)) return;
    }
    for (int c0 = 0; c0 < cols; c0 += EMBED_THREADS * EMBED_COLUMNS) {
        float sum[EMBED_COLUMNS];
        int first = c0 + threadIdx.x;
        float* to = table + (int64_t)entry * cols;
        for (int k = 0; k < EMBED_COLUMNS; k++) {
            int c = first + k * EMBED_THREADS;
            sum[k] = c < cols ? to[c] : 0;
        }
        add_matching_rows(sum, found, rows, stride, first, cols, index, n, entry);
        for (int k = 0; k < EMBED_COLUMNS; k++) {
            int c = first + k * EMBED_THREADS;
            if (c < cols) to[c] = sum[k];
        }
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
    if (dout.rows == 0) return;
    WITH_STORAGE(dout.format, T, {
        LAUNCH((add_rows_kernel<T>), dout.rows, EMBED_THREADS, 0, stream_of(b), dwte,
               (const T*)dout.data, dout.stride, dout.cols, token, dout.rows);
        if (!dwpe) return;
        LAUNCH((add_rows_kernel<T>), dout.rows, EMBED_THREADS, 0, stream_of(b), dwpe,
               (const T*)dout.data, dout.stride, dout.cols, position, dout.rows);
    });
}

#endif
