// Rows by number: gathered, and added to rows of a table. Adding is in row order and without
// atomics: the block of a row does nothing where an earlier row has the same number; else it finds
// the later ones and adds them all up, one after another. Each element is the same chain of sums as
// on the CPU.
#ifndef LLMC_CUDA_ROWS_CUH
#define LLMC_CUDA_ROWS_CUH

#include "cuda.cuh"

// A block a row of `count` units: packets, or elements of either size.
template <class U>
static __global__ void gather_kernel(U* to_rows, int64_t to_stride, const U* from,
                                     int64_t from_stride, const int* row, int count) {
    to_rows += blockIdx.x * to_stride;
    from += row[blockIdx.x] * from_stride;
    for (int i = threadIdx.x; i < count; i += blockDim.x) to_rows[i] = from[i];
}

template <class U>
static void gather_units(backend* b, tensor to_rows, tensor from, const int* row, int elements) {
    LAUNCH((gather_kernel<U>), to_rows.rows, 128, 0, stream_of(b), (U*)to_rows.data,
           to_rows.stride / elements, (const U*)from.data, from.stride / elements, row,
           to_rows.cols / elements);
}

static void cuda_gather_rows(backend* b, tensor to_rows, tensor from, const int* row) {
    if (!to_rows.rows) return;
    bool wide = storage_of(to_rows.format) == STORE_FP32;
    if (spans_fit(to_rows) && spans_fit(from))
        gather_units<int4>(b, to_rows, from, row, wide ? 4 : 8);
    else if (wide)
        gather_units<uint32_t>(b, to_rows, from, row, 1);
    else
        gather_units<uint16_t>(b, to_rows, from, row, 1);
}

constexpr int ADD_THREADS = 256, ADD_WARPS = ADD_THREADS / WARP;
constexpr int ADD_COLUMNS = 8;  // that a thread adds up at a time
// Numbers of rows that a block looks at together, as many by each thread: so few waits for memory
// and for other warps stand between it and the end of the rows.
constexpr int ADD_LOOKS = 8, ADD_ROWS = ADD_LOOKS * ADD_THREADS;

// Which of the calling thread's rows of r0 .. r0 + ADD_ROWS - 1 exist, of n, and have this number.
static __device__ inline void look(bool (&mine)[ADD_LOOKS], const int* index, int r0, int n,
                                   int number) {
#pragma unroll
    for (int k = 0; k < ADD_LOOKS; k++) {
        int r = r0 + k * ADD_THREADS + threadIdx.x;
        mine[k] = r < n && index[r] == number;
    }
}

// Whether one of the first n rows has this number; the same for all threads of the block.
static __device__ bool any_row(const int* index, int n, int number) {
    for (int r0 = 0; r0 < n; r0 += ADD_ROWS) {
        bool mine[ADD_LOOKS], any = false;
        look(mine, index, r0, n, number);
#pragma unroll
        for (int k = 0; k < ADD_LOOKS; k++) any |= mine[k];
        if (__syncthreads_or(any)) return true;
    }
    return false;
}

// Adds to sum[k], of column first + k * ADD_THREADS, the rows from blockIdx.x on that have this
// number, in order. found: a bit a row for the rows that are looked at together.
template <class T>
static __device__ void add_matching_rows(float (&sum)[ADD_COLUMNS], uint32_t* found, const T* rows,
                                         int64_t stride, int first, int cols, const int* index,
                                         int n, int number) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int r0 = blockIdx.x; r0 < n; r0 += ADD_ROWS) {
        bool mine[ADD_LOOKS];
        look(mine, index, r0, n, number);
#pragma unroll
        for (int k = 0; k < ADD_LOOKS; k++) {
            uint32_t of_warp = __ballot_sync(~0u, mine[k]);
            if (lane == 0) found[k * ADD_WARPS + warp] = of_warp;
        }
        __syncthreads();
        for (int w0 = 0; w0 < ADD_ROWS / WARP; w0 += WARP)
            for (uint32_t some = __ballot_sync(~0u, found[w0 + lane]); some; some &= some - 1) {
                int w = w0 + __ffs(some) - 1;
                for (uint32_t left = found[w]; left; left &= left - 1) {
                    const T* row = rows + (r0 + w * WARP + __ffs(left) - 1) * stride;
                    for (int k = 0; k < ADD_COLUMNS; k++) {
                        int c = first + k * ADD_THREADS;
                        if (c < cols) sum[k] += to_float(row[c]);
                    }
                }
            }
        __syncthreads();
    }
}

// table[index[r]] += rows[r]
template <class T>
static __global__ void __launch_bounds__(ADD_THREADS)
    add_rows_kernel(float* table, int64_t table_stride, const T* rows, int64_t stride, int cols,
                    const int* index, int n) {
    __shared__ uint32_t found[ADD_ROWS / WARP];
    int own = blockIdx.x, number = index[own];
    if (any_row(index, own, number)) return;
    for (int c0 = 0; c0 < cols; c0 += ADD_THREADS * ADD_COLUMNS) {
        float sum[ADD_COLUMNS];
        int first = c0 + threadIdx.x;
        float* to = table + number * table_stride;
        for (int k = 0; k < ADD_COLUMNS; k++) {
            int c = first + k * ADD_THREADS;
            sum[k] = c < cols ? to[c] : 0;
        }
        add_matching_rows(sum, found, rows, stride, first, cols, index, n, number);
        for (int k = 0; k < ADD_COLUMNS; k++) {
            int c = first + k * ADD_THREADS;
            if (c < cols) to[c] = sum[k];
        }
    }
}

static void add_rows(backend* b, float* table, int64_t table_stride, const tensor& rows,
                     const int* index) {
    if (!rows.rows) return;
    WITH_STORAGE(
        rows.format, T,
        LAUNCH((add_rows_kernel<T>), rows.rows, ADD_THREADS, 0, stream_of(b), table, table_stride,
               (const T*)rows.data, rows.stride, rows.cols, index, rows.rows));
}

#endif
