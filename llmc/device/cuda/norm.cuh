// Layer normalisation (Ba et al., arXiv 1607.06450) and RMS norm (Zhang and Sennrich, arXiv
// 1910.07467), with the residual sum before them, and the RMS norm of each head of queries and keys
// (Qwen3, arXiv 2505.09388). A warp takes a row, or a head; each lane keeps what it read in shared
// memory of its own, so that memory is read once. Sums: a chain a lane over its elements, then a
// butterfly over the lanes.
//
// Backward sums the gradients of gain and bias over the rows in two stages: a block takes a strip
// of rows, each of NORM_WARPS warps adds up its rows in order, and in a row its heads, then the
// warps' sums are added in order; and cuda_add_columns adds the strips' sums in order. The strips
// depend on the number of rows alone. Where rows are so long that the warps' sums do not fit in a
// block's shared memory, it has fewer warps, which take the work of all in turns: the same bits.
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

// RMS norm has no mean and no bias. OF_HEADS: RMS norm whose gradient is written, not added.
enum norm_kind { LAYER, RMS, OF_HEADS };

// Warps of a block, of which each needs `bytes` of shared memory.
static inline int norm_warps(size_t bytes, int cols) {
    constexpr size_t BLOCK_SHARED = 99 << 10;  // what the smallest of the GPUs, 8.6, gives a block
    int warps = NORM_WARPS;
    while (warps > 1 && warps * bytes > BLOCK_SHARED) warps /= 2;
    if (bytes > BLOCK_SHARED)
        fatal("a norm of %d channels does not fit in a GPU's shared memory; use --device cpu",
              cols);
    return warps;
}

struct norm_stats {
    float mean, rstd;
};

// A warp's row: residual_out = residual + add where there is something to add (NULL: nothing), and
// out. `row`: its own_floats<N>(cols) of shared memory.
template <class T, int N, norm_kind KIND>
static __device__ inline norm_stats norm_forward_row(T* out, T* residual_out, const T* residual,
                                                     const T* add, const float* gain,
                                                     const float* bias, float eps, int cols,
                                                     float* row) {
    int lane = threadIdx.x % WARP;
    float x[N], y[N], sum = 0;
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++) {
        load_span<N>(x, residual + c);
        if (add) {
            load_span<N>(y, add + c);
            for (int k = 0; k < N; k++) x[k] = to_float(to<T>(x[k] + y[k]));
            store_span<N>(residual_out + c, x);
        }
        for (int k = 0; k < N; k++) {
            row[own_place<N>(i, k, lane)] = x[k];
            sum += x[k];
        }
    }
    float mean = KIND == LAYER ? warp_sum(sum) / cols : 0.0f, squares = 0;
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++)
        for (int k = 0; k < N; k++) {
            float d = row[own_place<N>(i, k, lane)] - mean;
            squares = num_fma(d, d, squares);
        }
    float rstd = 1.0f / sqrtf(warp_sum(squares) / cols + eps);
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++) {
        float g[N];
        load_span<N>(g, gain + c);
        if constexpr (KIND == LAYER) load_span<N>(y, bias + c);
        for (int k = 0; k < N; k++) {
            float h = (row[own_place<N>(i, k, lane)] - mean) * rstd;
            y[k] = KIND == LAYER ? num_fma(h, g[k], y[k]) : h * g[k];
        }
        store_span<N>(out + c, y);
    }
    return {mean, rstd};
}

template <class T, int N, norm_kind KIND>
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_forward_kernel(T* out, T* residual_out, float* stats, const T* residual, const T* add,
                        int64_t out_stride, int64_t residual_out_stride, int64_t residual_stride,
                        int64_t add_stride, const float* gain, const float* bias, float eps,
                        int rows, int cols) {
    DYN_SHARED(float, memory);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int64_t r = (int64_t)blockIdx.x * (blockDim.x / WARP) + warp;
    if (r >= rows) return;
    norm_stats s = norm_forward_row<T, N, KIND>(
        out + r * out_stride, residual_out + r * residual_out_stride,
        residual + r * residual_stride, add ? add + r * add_stride : NULL, gain, bias, eps, cols,
        memory + warp * own_floats<N>(cols));
    if (lane == 0) {
        stats[2 * r] = s.mean;
        stats[2 * r + 1] = s.rstd;
    }
}

template <norm_kind KIND>
static void norm_forward(backend* b, const tensor& out, const tensor& residual_out, float* stats,
                         const tensor& residual, const tensor& add, const float* gain,
                         const float* bias, float eps) {
    bool fits = spans_fit(out) && spans_fit(residual) && spans_fit(gain) && spans_fit(bias) &&
                (!add.data || (spans_fit(add) && spans_fit(residual_out)));
    if (out.rows == 0) return;
    WITH_STORAGE(out.format, T, WITH_SPAN(fits, N, {
                     size_t shared = own_floats<N>(out.cols) * sizeof(float);
                     int warps = norm_warps(shared, out.cols);
                     LAUNCH((norm_forward_kernel<T, N, KIND>), blocks_for(out.rows, warps),
                            warps * WARP, warps * shared, stream_of(b), (T*)out.data,
                            (T*)residual_out.data, stats, (const T*)residual.data,
                            (const T*)add.data, out.stride, residual_out.stride, residual.stride,
                            add.stride, gain, bias, eps, out.rows, out.cols);
                 }));
}

static void cuda_norm_forward(backend* b, tensor out, tensor residual_out, float* stats,
                              tensor residual, tensor add, const float* gain, const float* bias,
                              float eps) {
    norm_forward<LAYER>(b, out, residual_out, stats, residual, add, gain, bias, eps);
}

static void cuda_rms_forward(backend* b, tensor out, tensor residual_out, float* stats,
                             tensor residual, tensor add, const float* gain, float eps) {
    norm_forward<RMS>(b, out, residual_out, stats, residual, add, gain, NULL, eps);
}

// One row of backward: with h = (x - mean) rstd and d = dout gain, to = (d - mean(d) - h mean(d h))
// rstd, added to what `to` holds but for heads; RMS norm has neither mean. Adds dout h and dout to
// the warp's sums.
template <class T, int N, norm_kind KIND>
static __device__ void norm_backward_row(T* to, float* dgain, float* dbias, const float* dout,
                                         const T* residual, norm_stats s, const float* gain,
                                         int cols, int lane) {
    float sum_d = 0, sum_dh = 0, x[N], d[N], g[N];
    for (int c = lane * N, i = 0; c < cols; c += WARP * N, i++) {
        load_span<N>(x, residual + c);
        load_span<N>(d, dout + c);
        load_span<N>(g, gain + c);
        for (int k = 0; k < N; k++) {
            float h = (x[k] - s.mean) * s.rstd, dn = d[k] * g[k];
            int at = own_place<N>(i, k, lane);
            dgain[at] = num_fma(d[k], h, dgain[at]);
            if constexpr (KIND == LAYER) dbias[at] += d[k];
            sum_d += dn;
            sum_dh = num_fma(dn, h, sum_dh);
        }
    }
    float mean_d = KIND == LAYER ? warp_sum(sum_d) / cols : 0.0f, mean_dh = warp_sum(sum_dh) / cols;
    for (int c = lane * N; c < cols; c += WARP * N) {
        float dx[N] = {};
        load_span<N>(x, residual + c);
        load_span<N>(d, dout + c);
        load_span<N>(g, gain + c);
        if constexpr (KIND != OF_HEADS) load_span<N>(dx, to + c);
        for (int k = 0; k < N; k++) {
            float h = (x[k] - s.mean) * s.rstd, dn = d[k] * g[k];
            dx[k] += num_fma(-h, mean_dh, dn - mean_d) * s.rstd;
        }
        store_span<N>(to + c, dx);
    }
}

// `sum` and the warps' sums of a column, added in order. `sums`: floats that each warp has.
template <int N>
static __device__ inline float add_warps(float sum, const float* memory, int warps, int sums,
                                         int column) {
    int span = column / N;
    const float* from = memory + own_place<N>(span / WARP, column % N, span % WARP);
    for (int w = 0; w < NORM_WARPS; w++)
        if (w < warps) sum += from[w * sums];
    return sum;
}

// Block s: rows s * strip and on. partial: (2, strips, cols), of gain and of bias; (strips, cols)
// of RMS norm.
template <class T, int N, norm_kind KIND>
static __global__ void __launch_bounds__(NORM_THREADS, 8)
    norm_backward_kernel(T* dresidual, float* partial, const float* dout, const T* residual,
                         int64_t dresidual_stride, int64_t dout_stride, int64_t residual_stride,
                         const float* stats, const float* gain, int rows, int cols, int strip) {
    constexpr int SUMS = KIND == LAYER ? 2 : 1;
    DYN_SHARED(float, memory);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, each = own_floats<N>(cols);
    int warps = blockDim.x / WARP;
    float *dgain = memory + SUMS * warp * each, *dbias = dgain + each;
    int64_t first = (int64_t)blockIdx.x * strip, end = first + strip < rows ? first + strip : rows;
    for (int turn = 0; turn < NORM_WARPS; turn += warps) {
        for (int i = lane; i < SUMS * each; i += WARP) dgain[i] = 0;
        for (int64_t r = first + turn + warp; r < end; r += NORM_WARPS)
            norm_backward_row<T, N, KIND>(dresidual + r * dresidual_stride, dgain, dbias,
                                          dout + r * dout_stride, residual + r * residual_stride,
                                          {KIND == LAYER ? stats[2 * r] : 0.0f, stats[2 * r + 1]},
                                          gain, cols, lane);
        __syncthreads();
        for (int c = threadIdx.x; c < SUMS * cols; c += blockDim.x) {
            int of_bias = c >= cols, column = c - of_bias * cols;
            float* to = partial + ((int64_t)of_bias * gridDim.x + blockIdx.x) * cols + column;
            *to = add_warps<N>(turn ? *to : 0.0f, memory + of_bias * each, warps, SUMS * each,
                               column);
        }
        __syncthreads();
    }
}

// Rows of a strip.
static inline int strip_of(int rows) {
    constexpr int STRIPS = 512, STRIP_MIN = 16;
    int strip = blocks_for(rows, STRIPS);
    return strip < STRIP_MIN ? STRIP_MIN : strip;
}

// dout is fp32, as the product behind it left it.
template <norm_kind KIND>
static void norm_backward(backend* b, const tensor& dresidual, float* dgain, float* dbias,
                          const tensor& dout, const tensor& residual, const float* stats,
                          const float* gain) {
    constexpr int SUMS = KIND == LAYER ? 2 : 1;
    bool fits = spans_fit(dresidual) && spans_fit(dout) && spans_fit(residual) && spans_fit(gain);
    int rows = dout.rows, cols = dout.cols, strip = strip_of(rows);
    if (rows == 0) return;
    int strips = blocks_for(rows, strip);
    float* partial =
        (float*)cuda_scratch(b, SCRATCH_PARTIAL, (size_t)SUMS * strips * cols * sizeof(float));
    WITH_STORAGE(dresidual.format, T, WITH_SPAN(fits, N, {
                     size_t shared = SUMS * own_floats<N>(cols) * sizeof(float);
                     int warps = norm_warps(shared, cols);
                     LAUNCH((norm_backward_kernel<T, N, KIND>), strips, warps * WARP,
                            warps * shared, stream_of(b), (T*)dresidual.data, partial,
                            (const float*)dout.data, (const T*)residual.data, dresidual.stride,
                            dout.stride, residual.stride, stats, gain, rows, cols, strip);
                 }));
    cuda_add_columns(b, dgain, partial, strips, cols);
    if (dbias) cuda_add_columns(b, dbias, partial + (size_t)strips * cols, strips, cols);
}

static void cuda_norm_backward(backend* b, tensor dresidual, float* dgain, float* dbias,
                               tensor dout, tensor residual, const float* stats,
                               const float* gain) {
    norm_backward<LAYER>(b, dresidual, dgain, dbias, dout, residual, stats, gain);
}

static void cuda_rms_backward(backend* b, tensor dresidual, float* dgain, tensor dout,
                              tensor residual, const float* stats, const float* gain) {
    norm_backward<RMS>(b, dresidual, dgain, NULL, dout, residual, stats, gain);
}

// ------------------------------------------------------------------------------------------------
// The heads of queries and keys. The queries' share one gain, the keys' the other.

// Block (r, j): row r, a warp for each of NORM_WARPS heads. The values are copied.
template <class T, int N>
static __global__ void __launch_bounds__(NORM_THREADS, 8)
    qk_norm_forward_kernel(T* out, const T* qkv, float* stats, int64_t out_stride,
                           int64_t qkv_stride, const float* gain, head_shape heads, float eps) {
    DYN_SHARED(float, memory);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = heads.dim;
    int h = blockIdx.y * NORM_WARPS + warp, normed = heads.query + heads.kv;
    if (h >= normed + heads.kv) return;
    const T* from = qkv + blockIdx.x * qkv_stride + h * dim;
    T* target = out + blockIdx.x * out_stride + h * dim;
    if (h >= normed) {
        for (int c = lane * N; c < dim; c += WARP * N) {
            float x[N];
            load_span<N>(x, from + c);
            store_span<N>(target + c, x);
        }
        return;
    }
    norm_stats s = norm_forward_row<T, N, OF_HEADS>(target, (T*)NULL, from, (const T*)NULL,
                                                    gain + (h < heads.query ? 0 : dim), NULL, eps,
                                                    dim, memory + warp * own_floats<N>(dim));
    if (lane == 0) stats[(int64_t)blockIdx.x * normed + h] = s.rstd;
}

// Whether heads of rows of t can be read in spans.
static inline bool head_spans_fit(const tensor& t, const head_shape& heads) {
    return heads.dim % SPAN == 0 && spans_fit(t);
}

static void cuda_qk_norm_forward(backend* b, tensor out, float* stats, tensor qkv,
                                 const float* gain, head_shape heads, float eps) {
    bool fits = head_spans_fit(out, heads) && head_spans_fit(qkv, heads) && spans_fit(gain);
    dim3 grid(out.rows, blocks_for(heads.query + 2 * heads.kv, NORM_WARPS));
    if (out.rows == 0) return;
    WITH_STORAGE(out.format, T, WITH_SPAN(fits, N, {
                     size_t shared = NORM_WARPS * own_floats<N>(heads.dim) * sizeof(float);
                     LAUNCH((qk_norm_forward_kernel<T, N>), grid, NORM_THREADS, shared,
                            stream_of(b), (T*)out.data, (const T*)qkv.data, stats, out.stride,
                            qkv.stride, gain, heads, eps);
                 }));
}

// Block s: rows s * strip and on, a warp for each. partial: (strips, 2 head_dim).
template <class T, int N>
static __global__ void __launch_bounds__(NORM_THREADS, 8)
    qk_norm_backward_kernel(T* dqkv, float* partial, const float* dout, const T* qkv,
                            int64_t dqkv_stride, int64_t dout_stride, int64_t qkv_stride,
                            const float* stats, const float* gain, head_shape heads, int rows,
                            int strip) {
    DYN_SHARED(float, memory);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = heads.dim;
    int normed = heads.query + heads.kv, each = own_floats<N>(dim);
    float* dgain = memory + 2 * warp * each;
    for (int i = lane; i < 2 * each; i += WARP) dgain[i] = 0;
    int64_t first = (int64_t)blockIdx.x * strip, end = first + strip < rows ? first + strip : rows;
    for (int64_t r = first + warp; r < end; r += NORM_WARPS) {
        T* target = dqkv + r * dqkv_stride;
        const float* d = dout + r * dout_stride;
        for (int h = 0; h < normed; h++) {
            int of_keys = h >= heads.query;
            norm_backward_row<T, N, OF_HEADS>(target + h * dim, dgain + of_keys * each, NULL,
                                              d + h * dim, qkv + r * qkv_stride + h * dim,
                                              {0, stats[r * normed + h]}, gain + of_keys * dim, dim,
                                              lane);
        }
        for (int c = normed * dim + lane * N; c < (normed + heads.kv) * dim; c += WARP * N) {
            float x[N];
            load_span<N>(x, d + c);
            store_span<N>(target + c, x);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < 2 * dim; c += NORM_THREADS)
        partial[(int64_t)blockIdx.x * 2 * dim + c] =
            add_warps<N>(0, memory + c / dim * each, NORM_WARPS, 2 * each, c % dim);
}

// dout is fp32, as the rotation behind it left it.
static void cuda_qk_norm_backward(backend* b, tensor dqkv, float* dgain, tensor dout, tensor qkv,
                                  const float* stats, const float* gain, head_shape heads) {
    bool fits = head_spans_fit(dqkv, heads) && head_spans_fit(dout, heads) &&
                head_spans_fit(qkv, heads) && spans_fit(gain);
    int rows = dout.rows, strip = strip_of(rows), cols = 2 * heads.dim;
    if (rows == 0) return;
    int strips = blocks_for(rows, strip);
    float* partial =
        (float*)cuda_scratch(b, SCRATCH_PARTIAL, (size_t)strips * cols * sizeof(float));
    WITH_STORAGE(dqkv.format, T, WITH_SPAN(fits, N, {
                     size_t shared = 2 * NORM_WARPS * own_floats<N>(heads.dim) * sizeof(float);
                     LAUNCH((qk_norm_backward_kernel<T, N>), strips, NORM_THREADS, shared,
                            stream_of(b), (T*)dqkv.data, partial, (const float*)dout.data,
                            (const T*)qkv.data, dqkv.stride, dout.stride, qkv.stride, stats, gain,
                            heads, rows, strip);
                 }));
    cuda_add_columns(b, dgain, partial, strips, cols);
}

#endif
