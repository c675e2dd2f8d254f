// Layer normalisation (Ba et al., arXiv 1607.06450), with the residual sum before it. A warp takes
// a row; each lane keeps what it read in shared memory of its own, so that memory is read once.
// Sums: a chain a lane over its elements, then a butterfly over the lanes.
//
// Backward sums the gradients of gain and bias over the rows in two stages: a block takes a strip
// of rows, each of its warps adds up its rows in order, then the warps' sums are added in order;
// and cuda_add_columns adds the strips' sums in order. The strips depend on the number of rows
// alone.
#ifndef LLMC_CUDA_NORM_CUH
#define LLMC_CUDA_NORM_CUH

#include "columns.cuh"
#include "cuda.cuh"

constexpr int NORM_WARPS = 4, NORM_THREADS = NORM_WARPS * WARP;

// A lane's own place for element k of its span i, in an array of spans * N * WARP floats: lanes
// side by side, so that no two meet in a bank.
template <int N>
static __device__ inline int own_place(int i, int k, int lane) {
    return (i * N + k) * WARP + lane;
}
// Floats that the spans of a row take so.
template <int N>
static __host__ __device__ inline int own_floats(int cols) {
    return (cols + N * WARP - 1) / (N * WARP) * (N * WARP);
}

template <class T, int N>
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_forward_kernel(T* out, T* residual_out, float* stats, const T* residual, const T* add,
                        int64_t out_stride, int64_t residual_out_stride, int64_t residual_stride,
                        int64_t add_stride, const float* gain, const float* bias, float eps,
                        int rows, int cols) {
    DYN_SHARED(float, memory);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int64_t r = (int64_t)blockIdx.x * NORM_WARPS + warp;
    float *row = memory + warp * own_floats<N>(cols), x[N], y[N];
    if (r >= rows) return;

    float sum = 0;
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++) {
        load_span<N>(x, residual + r * residual_stride + c);
        if (add) {
            load_span<N>(y, add + r * add_stride + c);
            for (int k = 0; k < N; k++) x[k] = to_float(to<T>(x[k] + y[k]));
            store_span<N>(residual_out + r * residual_out_stride + c, x);
        }
        for (int k = 0; k < N; k++) {
            row[own_place<N>(i, k, lane)] = x[k];
            sum += x[k];
        }
    }
    float mean = warp_sum(sum) / cols, squares = 0;
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++)
        for (int k = 0; k < N; k++) {
            float d = row[own_place<N>(i, k, lane)] - mean;
            squares = num_fma(d, d, squares);
        }
    float rstd = 1.0f / sqrtf(warp_sum(squares) / cols + eps);
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++) {
        float g[N];
        load_span<N>(g, gain + c);
        load_span<N>(y, bias + c);
        for (int k = 0; k < N; k++)
            y[k] = num_fma((row[own_place<N>(i, k, lane)] - mean) * rstd, g[k], y[k]);
        store_span<N>(out + r * out_stride + c, y);
    }
    if (lane == 0) {
        stats[2 * r] = mean;
        stats[2 * r + 1] = rstd;
    }
}

static void cuda_norm_forward(backend* b, tensor out, tensor residual_out, float* stats,
                              tensor residual, tensor add, const float* gain, const float* bias,
                              float eps) {
    bool fits = spans_fit(out) && spans_fit(residual) && spans_fit(gain) && spans_fit(bias) &&
                (!add.data || (spans_fit(add) && spans_fit(residual_out)));
    if (out.rows == 0) return;
    WITH_STORAGE(out.format, T, WITH_SPAN(fits, N, {
                     size_t shared = NORM_WARPS * own_floats<N>(out.cols) * sizeof(float);
                     LAUNCH((norm_forward_kernel<T, N>), blocks_for(out.rows, NORM_WARPS),
                            NORM_THREADS, shared, stream_of(b), (T*)out.data, (T*)residual_out.data,
                            stats, (const T*)residual.data, (const T*)add.data, out.stride,
                            residual_out.stride, residual.stride, add.stride, gain, bias, eps,
                            out.rows, out.cols);
                 }));
}

// One row of backward: with h = (x - mean) rstd and d = dout gain,
// dresidual += (d - mean(d) - h mean(d h)) rstd. Adds dout h and dout to the warp's sums.
template <class T, int N>
static __device__ void norm_backward_row(T* dresidual, float* dgain, float* dbias,
                                         const float* dout, const T* residual, float mean,
                                         float rstd, const float* gain, int cols, int lane) {
    float sum_d = 0, sum_dh = 0, x[N], d[N], g[N];
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++) {
        load_span<N>(x, residual + c);
        load_span<N>(d, dout + c);
        load_span<N>(g, gain + c);
        for (int k = 0; k < N; k++) {
            float h = (x[k] - mean) * rstd, dn = d[k] * g[k];
            int at = own_place<N>(i, k, lane);
            dgain[at] = num_fma(d[k], h, dgain[at]);
            dbias[at] += d[k];
            sum_d += dn;
            sum_dh = num_fma(dn, h, sum_dh);
        }
    }
    float mean_d = warp_sum(sum_d) / cols, mean_dh = warp_sum(sum_dh) / cols;
    for (int c = lane * N; c < cols; c += WARP * N) {
        float dx[N];
        load_span<N>(x, residual + c);
        load_span<N>(d, dout + c);
        load_span<N>(g, gain + c);
        load_span<N>(dx, dresidual + c);
        for (int k = 0; k < N; k++) {
            float h = (x[k] - mean) * rstd, dn = d[k] * g[k];
            dx[k] += num_fma(-h, mean_dh, dn - mean_d) * rstd;
        }
        store_span<N>(dresidual + c, dx);
    }
}

// Block s: rows s * strip and on. partial: (2, strips, cols), of gain and of bias.
template <class T, int N>
static __global__ void __launch_bounds__(NORM_THREADS, 8)
    norm_backward_kernel(T* dresidual, float* partial, const float* dout, const T* residual,
                         int64_t dresidual_stride, int64_t dout_stride, int64_t residual_stride,
                         const float* stats, const float* gain, int rows, int cols, int strip) {
    DYN_SHARED(float, memory);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, each = own_floats<N>(cols);
    float *dgain = memory + 2 * warp * each, *dbias = dgain + each;
    for (int i = lane; i < 2 * each; i += WARP) dgain[i] = 0;
    int64_t first = (int64_t)blockIdx.x * strip, end = first + strip < rows ? first + strip : rows;
    for (int64_t r = first + warp; r < end; r += NORM_WARPS)
        norm_backward_row<T, N>(dresidual + r * dresidual_stride, dgain, dbias,
                                dout + r * dout_stride, residual + r * residual_stride,
                                stats[2 * r], stats[2 * r + 1], gain, cols, lane);
    __syncthreads();
    for (int c = threadIdx.x; c < 2 * cols; c += NORM_THREADS) {
        int of_bias = c >= cols, column = c - of_bias * cols, span = column / N;
        const float* from =
            memory + of_bias * each + own_place<N>(span / WARP, column % N, span % WARP);
        float sum = 0;
        for (int w = 0; w < NORM_WARPS; w++) sum += from[2 * w * each];
        partial[((int64_t)of_bias * gridDim.x + blockIdx.x) * cols + column] = sum;
    }
}

// dout is fp32, as the product behind it left it.
static void cuda_norm_backward(backend* b, tensor dresidual, float* dgain, float* dbias,
                               tensor dout, tensor residual, const float* stats,
                               const float* gain) {
    constexpr int STRIPS = 512, STRIP_MIN = 16;
    bool fits = spans_fit(dresidual) && spans_fit(dout) && spans_fit(residual) && spans_fit(gain);
    int rows = dout.rows, cols = dout.cols, strip = blocks_for(rows, STRIPS);
    if (rows == 0) return;
    if (strip < STRIP_MIN) strip = STRIP_MIN;
    int strips = blocks_for(rows, strip);
    float* partial =
        (float*)cuda_scratch(b, SCRATCH_PARTIAL, (size_t)2 * strips * cols * sizeof(float));
    WITH_STORAGE(dresidual.format, T, WITH_SPAN(fits, N, {
                     size_t shared = 2 * NORM_WARPS * own_floats<N>(cols) * sizeof(float);
                     LAUNCH((norm_backward_kernel<T, N>), strips, NORM_THREADS, shared,
                            stream_of(b), (T*)dresidual.data, partial, (const float*)dout.data,
                            (const T*)residual.data, dresidual.stride, dout.stride, residual.stride,
                            stats, gain, rows, cols, strip);
                 }));
    cuda_add_columns(b, dgain, partial, strips, cols);
    cuda_add_columns(b, dbias, partial + (size_t)strips * cols, strips, cols);
}

#endif
