// Operands in a format of up to 8 bits, with one power-of-two scale per row or column. Such a value
// times its scale is a bf16 value. So the rounded copy is stored in bf16, and bf16 products
// multiply it: each product of two values is exact, sums are fp32.
//
// bf16 ends at multiples of 2^-133. Rounding a bf16 value gives no finer one, since it keeps the
// leading bits. Rounding an fp32 weight may, in a row whose largest element is below 2^-116
// (fp8_e4m3; fp8_e5m2: 2^-102; e6m1: 2^-71): there values below 2^-126 are rounded once more.
#ifndef LLMC_CUDA_OPERAND_CUH
#define LLMC_CUDA_OPERAND_CUH

#include "cuda.cuh"

enum { ROUND_THREADS = 128, ROUND_LANES = 16 };

// to = round(from / scale) scale, with the scale of a row's largest element. One warp per row.
template <int N, class T>
static __global__ void __launch_bounds__(ROUND_THREADS)
    round_rows_kernel(tensor to_bf16, tensor from, const format f) {
    int row = blockIdx.x * (ROUND_THREADS / WARP) + threadIdx.x / WARP;
    if (row >= from.rows) return;
    const T* x = row_of<T>(from, row);
    bf16* y = row_of<bf16>(to_bf16, row);
    int first = threadIdx.x % WARP * N;
    float largest = 0, v[N];
    for (int c = first; c < from.cols; c += WARP * N) {
        load_span(v, x + c);
        for (int k = 0; k < N; k++) largest = fmaxf(largest, fabsf(v[k]));
    }
    for (int m = WARP / 2; m; m /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, m));
    float scale = format_scale(largest, &f), inverse = 1.0f / scale;
    for (int c = first; c < from.cols; c += WARP * N) {
        load_span(v, x + c);
        for (int k = 0; k < N; k++) v[k] = format_round(v[k] * inverse, &f) * scale;
        store_span(y + c, v);
    }
}

// The same with the scale of a column's largest element. One block rounds WARP columns; a thread
// takes every ROUND_LANES-th row of one column.
template <class T>
static __global__ void __launch_bounds__(WARP* ROUND_LANES)
    round_columns_kernel(tensor to_bf16, tensor from, const format f) {
    __shared__ float of_lane[ROUND_LANES][WARP];
    int column = threadIdx.x % WARP, lane = threadIdx.x / WARP, j = blockIdx.x * WARP + column;
    int end = j < from.cols ? from.rows : 0;
    float largest = 0;
#pragma unroll 4
    for (int r = lane; r < end; r += ROUND_LANES)
        largest = fmaxf(largest, fabsf(to_float(row_of<T>(from, r)[j])));
    of_lane[lane][column] = largest;
    __syncthreads();
    for (int l = 0; l < ROUND_LANES; l++) largest = fmaxf(largest, of_lane[l][column]);
    float scale = format_scale(largest, &f), inverse = 1.0f / scale;
#pragma unroll 4
    for (int r = lane; r < end; r += ROUND_LANES) {
        float x = to_float(row_of<T>(from, r)[j]);
        row_of<bf16>(to_bf16, r)[j] = to<bf16>(format_round(x * inverse, &f) * scale);
    }
}

template <class T>
static void round_launch(backend* b, const tensor& to_bf16, const tensor& from, const format* f,
                         bool by_column) {
    if (by_column) {
        LAUNCH(round_columns_kernel<T>, dim3(blocks_for(from.cols, WARP)), dim3(WARP * ROUND_LANES),
               0, stream_of(b), to_bf16, from, *f);
        return;
    }
    dim3 grid(blocks_for(from.rows, ROUND_THREADS / WARP));
    WITH_SPAN(spans_fit(from) && spans_fit(to_bf16), N,
              LAUNCH((round_rows_kernel<N, T>), grid, dim3(ROUND_THREADS), 0, stream_of(b), to_bf16,
                     from, *f));
}

// to_bf16 = from as operands of f, with one scale per row or, by_column, per column. `from` holds
// masters, in fp32, or what a run with such operands writes, in bf16.
static void round_into(backend* b, const tensor& to_bf16, const tensor& from, const format* f,
                       bool by_column) {
    if (!from.rows) return;
    if (storage_of(from.format) == STORE_FP16)
        fatal("the CUDA device has no operands in %s of values in %s; use --device cpu", f->name,
              from.format->name);
    if (storage_of(from.format) == STORE_FP32)
        round_launch<float>(b, to_bf16, from, f, by_column);
    else
        round_launch<bf16>(b, to_bf16, from, f, by_column);
}

// The same into scratch memory, whose rows begin where 16-byte accesses fit.
static tensor rounded_copy(backend* b, const tensor& from, const format* f, bool by_column,
                           int scratch) {
    int64_t stride = (int64_t)blocks_for(from.cols, SPAN) * SPAN;
    void* data = cuda_scratch(b, scratch, from.rows * stride * sizeof(bf16));
    tensor to_bf16 = {data, from.rows, from.cols, stride, &FORMAT_BF16};
    round_into(b, to_bf16, from, f, by_column);
    return to_bf16;
}

#endif
