// Operands in a format of up to 8 bits, with one power-of-two scale per row or column, are kept in
// one of two ways.
//
// As codes, for the products of fp8.cuh: one byte per element, that of the rounded value before it
// is scaled, and the scales in fp32. There each row has one scale, since a product applies it
// behind a sum; a scale per column makes a transposed copy. A format has codes if its values are
// all values of fp8_e4m3 or of fp8_e5m2.
//
// In bf16, for other formats and for the library: such a value times its scale is a bf16 value, so
// that bf16 products multiply it: each product of two values is exact, sums are fp32. bf16 ends at
// multiples of 2^-133. Rounding a bf16 value gives no finer one, since it keeps the leading bits.
// Rounding an fp32 weight may, in a row whose largest element is below 2^-116 (fp8_e4m3; fp8_e5m2:
// 2^-102; e6m1: 2^-71): there values below 2^-126 are rounded once more.
#ifndef LLMC_CUDA_OPERAND_CUH
#define LLMC_CUDA_OPERAND_CUH

#include "cuda.cuh"

enum { ROUND_THREADS = 128, ROUND_LANES = 16 };

// The largest magnitude of a row of `cols` elements; all lanes of a warp get it.
template <int N, class T>
static __device__ inline float row_largest(const T* x, int cols) {
    float largest = 0, v[N];
    for (int c = threadIdx.x % WARP * N; c < cols; c += WARP * N) {
        load_span(v, x + c);
        for (int k = 0; k < N; k++) largest = fmaxf(largest, fabsf(v[k]));
    }
    for (int m = WARP / 2; m; m /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, m));
    return largest;
}

// The same of column j over `end` rows, by a block of WARP columns: a thread takes every
// ROUND_LANES-th row of one column.
template <class T>
static __device__ inline float column_largest(const tensor& from, int j, int end) {
    __shared__ float of_lane[ROUND_LANES][WARP];
    int column = threadIdx.x % WARP, lane = threadIdx.x / WARP;
    float largest = 0;
#pragma unroll 4
    for (int r = lane; r < end; r += ROUND_LANES)
        largest = fmaxf(largest, fabsf(to_float(row_of<T>(from, r)[j])));
    of_lane[lane][column] = largest;
    __syncthreads();
    for (int l = 0; l < ROUND_LANES; l++) largest = fmaxf(largest, of_lane[l][column]);
    return largest;
}

// ------------------------------------------------------------------------------------------------
// In bf16

// to = round(from / scale) scale, with the scale of a row's largest element. One warp per row.
template <int N, class T>
static __global__ void __launch_bounds__(ROUND_THREADS)
    round_rows_kernel(tensor to_bf16, tensor from, const format f) {
    int row = blockIdx.x * (ROUND_THREADS / WARP) + threadIdx.x / WARP;
    if (row >= from.rows) return;
    const T* x = row_of<T>(from, row);
    bf16* y = row_of<bf16>(to_bf16, row);
    float scale = format_scale(row_largest<N>(x, from.cols), &f), inverse = 1.0f / scale, v[N];
    for (int c = threadIdx.x % WARP * N; c < from.cols; c += WARP * N) {
        load_span(v, x + c);
        for (int k = 0; k < N; k++) v[k] = format_round(v[k] * inverse, &f) * scale;
        store_span(y + c, v);
    }
}

// The same with the scale of a column's largest element. One block rounds WARP columns.
template <class T>
static __global__ void __launch_bounds__(WARP* ROUND_LANES)
    round_columns_kernel(tensor to_bf16, tensor from, const format f) {
    int lane = threadIdx.x / WARP, j = blockIdx.x * WARP + threadIdx.x % WARP;
    int end = j < from.cols ? from.rows : 0;
    float scale = format_scale(column_largest<T>(from, j, end), &f), inverse = 1.0f / scale;
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

// What is rounded: masters, in fp32, or what a run with such operands writes, in bf16.
static void refuse_fp16(const tensor& from, const format* f) {
    if (storage_of(from.format) == STORE_FP16)
        fatal("the CUDA device has no operands in %s of values in %s; use --device cpu", f->name,
              from.format->name);
}

// to_bf16 = from as operands of f, with one scale per row or, by_column, per column.
static void round_into(backend* b, const tensor& to_bf16, const tensor& from, const format* f,
                       bool by_column) {
    if (!from.rows) return;
    refuse_fp16(from, f);
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

// ------------------------------------------------------------------------------------------------
// As codes

// Rows of codes, each with a scale. Behind a row's codes are zeros up to its stride.
struct coded {
    code* codes;           // (rows, stride)
    float* scale;          // (rows), powers of two
    int64_t stride;        // a multiple of 16 bytes
    const format* format;  // FORMAT_E4M3 or FORMAT_E5M2: what the codes mean
};

static inline int64_t coded_stride(int cols) { return (int64_t)blocks_for(cols, 16) * 16; }
static inline size_t coded_bytes(int rows, int cols) {
    return rows * (coded_stride(cols) + sizeof(float));
}
static inline coded coded_at(void* memory, int rows, int cols, const format* f) {
    int64_t stride = coded_stride(cols);
    return {(code*)memory, (float*)((code*)memory + rows * stride), stride, f};
}

// Which codes values of f have; NULL: none.
static inline const format* code_format(const format* f) {
    if (!f->scaled) return NULL;
    if (f->exponent_bits <= 4 && f->mantissa_bits <= 3) return &FORMAT_E4M3;
    if (f->exponent_bits <= 5 && f->mantissa_bits <= 2) return &FORMAT_E5M2;
    return NULL;
}

// Four codes as a word, the first in the lowest byte.
static __device__ inline uint32_t codes_word(const code (&x)[4]) {
    return x[0].bits | x[1].bits << 8 | x[2].bits << 16 | (uint32_t)x[3].bits << 24;
}
static __device__ inline void store_codes(code* p, const code (&x)[1]) { *p = x[0]; }
static __device__ inline void store_codes(code* p, const code (&x)[8]) {
    const code low[4] = {x[0], x[1], x[2], x[3]}, high[4] = {x[4], x[5], x[6], x[7]};
    *(uint2*)p = make_uint2(codes_word(low), codes_word(high));
}

// The codes of `from` rounded to f, with the scale of a row's largest element. One warp per row.
template <int N, class T>
static __global__ void __launch_bounds__(ROUND_THREADS)
    code_rows_kernel(coded to, tensor from, const format f, const format as) {
    int row = blockIdx.x * (ROUND_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= from.rows) return;
    const T* x = row_of<T>(from, row);
    float scale = format_scale(row_largest<N>(x, from.cols), &f), inverse = 1.0f / scale, v[N];
    if (lane == 0) to.scale[row] = scale;
    for (int c = lane * N; c < to.stride; c += WARP * N) {
        code part[N] = {};
        if (c < from.cols) {
            load_span(v, x + c);
            for (int k = 0; k < N; k++) part[k] = to_code(format_round(v[k] * inverse, &f), as);
        }
        store_codes(to.codes + row * to.stride + c, part);
    }
}

// The same of each column, as a row of `to`. One block takes WARP columns: they are turned in
// shared memory, where a word has four codes that follow each other in a column.
template <class T>
static __global__ void __launch_bounds__(WARP* ROUND_LANES)
    code_columns_kernel(coded to, tensor from, const format f, const format as) {
    __shared__ uint32_t turned[WARP][ROUND_LANES + 1];
    int column = threadIdx.x % WARP, lane = threadIdx.x / WARP, j0 = blockIdx.x * WARP;
    int row = threadIdx.x / ROUND_LANES, word = threadIdx.x % ROUND_LANES;  // that it writes
    int j = j0 + column, end = j < from.cols ? from.rows : 0;
    float scale = format_scale(column_largest<T>(from, j, end), &f), inverse = 1.0f / scale;
    if (lane == 0 && j < from.cols) to.scale[j] = scale;
    for (int r0 = 0; r0 < to.stride; r0 += 4 * ROUND_LANES) {
        code part[4] = {};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = r0 + 4 * lane + e;
            if (r >= end) continue;
            float x = to_float(row_of<T>(from, r)[j]);
            part[e] = to_code(format_round(x * inverse, &f), as);
        }
        turned[column][lane] = codes_word(part);
        __syncthreads();
        int at = r0 + 4 * word;
        if (j0 + row < from.cols && at < to.stride)
            *(uint32_t*)(to.codes + (j0 + row) * to.stride + at) = turned[row][word];
        __syncthreads();
    }
}

template <class T>
static void code_launch(backend* b, const coded& to, const tensor& from, const format* f,
                        bool by_column) {
    if (by_column) {
        LAUNCH(code_columns_kernel<T>, dim3(blocks_for(from.cols, WARP)), dim3(WARP * ROUND_LANES),
               0, stream_of(b), to, from, *f, *to.format);
        return;
    }
    dim3 grid(blocks_for(from.rows, ROUND_THREADS / WARP));
    WITH_SPAN(spans_fit(from), N,
              LAUNCH((code_rows_kernel<N, T>), grid, dim3(ROUND_THREADS), 0, stream_of(b), to, from,
                     *f, *to.format));
}

// `from` as operands of f with one scale per row or, by_column, transposed, per column, in `memory`
// of coded_bytes.
static coded code_into(backend* b, void* memory, const tensor& from, const format* f,
                       bool by_column) {
    int rows = by_column ? from.cols : from.rows, cols = by_column ? from.rows : from.cols;
    coded to = coded_at(memory, rows, cols, code_format(f));
    if (!from.rows) return to;
    refuse_fp16(from, f);
    if (storage_of(from.format) == STORE_FP32)
        code_launch<float>(b, to, from, f, by_column);
    else
        code_launch<bf16>(b, to, from, f, by_column);
    return to;
}

static coded coded_copy(backend* b, const tensor& from, const format* f, bool by_column,
                        int scratch) {
    size_t bytes =
        by_column ? coded_bytes(from.cols, from.rows) : coded_bytes(from.rows, from.cols);
    return code_into(b, cuda_scratch(b, scratch, bytes), from, f, by_column);
}

#endif
