// Sums of columns over many rows, without atomics: first each strip of rows by itself, then the
// strips' sums in a fixed order. The strips depend on the number of rows alone, so the bits of the
// result depend on nothing but the values. Used by bias gradients, and by the layer norm's gain and
// bias.
#ifndef LLMC_CUDA_COLUMNS_CUH
#define LLMC_CUDA_COLUMNS_CUH

#include "cuda.cuh"

constexpr int COLUMN_STRIP = 64, COLUMN_THREADS = 64;
constexpr int PART_LANES = 8;  // threads that share the strips' sums of a column

// Lane l of a column adds up parts l, l + PART_LANES, ..., then one thread adds up the lanes.
static __global__ void __launch_bounds__(WARP* PART_LANES)
    add_columns_kernel(float* sum, const float* partial, int parts, int cols) {
    __shared__ float of_lane[PART_LANES * WARP];
    int column = threadIdx.x % WARP, lane = threadIdx.x / WARP, j = blockIdx.x * WARP + column;
    float s = 0;
    if (j < cols)
#pragma unroll 8
        for (int p = lane; p < parts; p += PART_LANES) s += partial[(int64_t)p * cols + j];
    of_lane[threadIdx.x] = s;
    __syncthreads();
    if (lane != 0 || j >= cols) return;
    s = sum[j];
    for (int l = 0; l < PART_LANES; l++) s += of_lane[l * WARP + column];
    sum[j] = s;
}

// sum[j] += partial[0][j] + partial[1][j] + ... partial is (parts, cols).
static void cuda_add_columns(backend* b, float* sum, const float* partial, int parts, int cols) {
    LAUNCH(add_columns_kernel, blocks_for(cols, WARP), WARP * PART_LANES, 0, stream_of(b), sum,
           partial, parts, cols);
}

// The sum of each column of a strip of `strip` rows, from 0, or (`carry`: one strip of all rows) on
// from what `sum` holds. sum is (strips, cols).
template <class T>
static __global__ void strip_columns_kernel(float* sum, tensor x, int strip, bool carry) {
    int j = blockIdx.y * COLUMN_THREADS + threadIdx.x;
    if (j >= x.cols) return;
    int64_t at = (int64_t)blockIdx.x * x.cols + j;
    int first = blockIdx.x * strip, end = first + strip < x.rows ? first + strip : x.rows;
    float s = carry ? sum[at] : 0;
    const T* from = row_of<T>(x, first) + j;
#pragma unroll 8
    for (int r = first; r < end; r++, from += x.stride) s += to_float(*from);
    sum[at] = s;
}

template <class T>
static void strip_columns(backend* b, float* sum, const tensor& x, int strip, bool carry) {
    // Strips along x: along y there may be 65,535 blocks.
    dim3 grid(blocks_for(x.rows, strip), blocks_for(x.cols, COLUMN_THREADS));
    LAUNCH(strip_columns_kernel<T>, grid, dim3(COLUMN_THREADS), 0, stream_of(b), sum, x, strip,
           carry);
}

// sum[j] += the sum of column j of x. `one_chain`: row by row, the order of the CPU device; slower,
// and with its bits.
static void cuda_sum_columns(backend* b, float* sum, const tensor& x, bool one_chain) {
    if (x.rows == 0) return;
    int parts = blocks_for(x.rows, COLUMN_STRIP);
    if (one_chain) {
        WITH_STORAGE(x.format, T, strip_columns<T>(b, sum, x, x.rows, true));
        return;
    }
    float* partial =
        (float*)cuda_scratch(b, SCRATCH_PARTIAL, (size_t)parts * x.cols * sizeof(float));
    WITH_STORAGE(x.format, T, strip_columns<T>(b, partial, x, COLUMN_STRIP, false));
    cuda_add_columns(b, sum, partial, parts, x.cols);
}

#endif
