// The ladder of layer normalisation: residual_out = residual + add, then out = (x - mean) rstd gain
// + bias of each row x of residual_out. bf16 rows, fp32 in between. See ladder.h.
//
// The op does a few operations on each number that it reads, far fewer than a GPU could in the time
// that the reading takes: so memory is the limit, and a rung is better if it asks memory for less
// or asks better. What must move is two rows in and two rows out: 8 bytes an element. Rungs 1 to 4
// first run a kernel that adds, and then one that normalises, which makes it 10.
#include "ladder.h"

struct norm_case : ladder_case {
    bf16 *residual, *add;  // (rows, cols); `sum` is the residual_out
    float *gain, *bias;    // (cols)
    float* stats;          // (rows, 2), which backward needs: the op in use alone writes it
};

constexpr float EPSILON = 1e-5f;

// ------------------------------------------------------------------------------------------------
// The sum of rungs 1 to 4: a thread for N elements (1, or SPAN at a time, 16 bytes).

constexpr int ADD_THREADS = 256;

template <int N>
static __global__ void add_kernel(bf16* sum, const bf16* residual, const bf16* add, int64_t n) {
    int64_t i = ((int64_t)blockIdx.x * ADD_THREADS + threadIdx.x) * N;
    if (i >= n) return;
    float x[N], y[N];
    load_span<N>(x, residual + i);
    load_span<N>(y, add + i);
    for (int k = 0; k < N; k++) x[k] += y[k];
    store_span<N>(sum + i, x);
}

template <int N>
static void add_rows(backend* b, const norm_case& c) {
    int64_t n = (int64_t)c.rows * c.cols;
    LAUNCH((add_kernel<N>), dim3(blocks_for(n, ADD_THREADS * N)), dim3(ADD_THREADS), 0,
           stream_of(b), c.sum, c.residual, c.add, n);
}

// ------------------------------------------------------------------------------------------------
// 1. A thread a row: the CPU's loops, with a thread for each row. A warp's 32 threads read 32 rows
// at once, so each load touches 32 lines of memory for 2 bytes of each; and there are only as many
// threads as rows, too few to hide how long memory takes.

constexpr int ROW_THREADS = 64;

static __global__ void thread_a_row(bf16* out, const bf16* in, const float* gain, const float* bias,
                                    int rows, int cols) {
    int64_t r = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (r >= rows) return;
    const bf16* x = in + r * cols;
    float sum = 0, squares = 0;
    for (int c = 0; c < cols; c++) sum += to_float(x[c]);
    float mean = sum / cols;
    for (int c = 0; c < cols; c++) {
        float d = to_float(x[c]) - mean;
        squares = num_fma(d, d, squares);
    }
    float rstd = 1.0f / sqrtf(squares / cols + EPSILON);
    for (int c = 0; c < cols; c++)
        out[r * cols + c] = to<bf16>(num_fma((to_float(x[c]) - mean) * rstd, gain[c], bias[c]));
}

static void run_thread_a_row(backend* b, const norm_case& c) {
    add_rows<1>(b, c);
    LAUNCH(thread_a_row, dim3(blocks_for(c.rows, ROW_THREADS)), dim3(ROW_THREADS), 0, stream_of(b),
           c.out, c.sum, c.gain, c.bias, c.rows, c.cols);
}

// ------------------------------------------------------------------------------------------------
// 2. A block a row. Neighbouring threads read neighbouring elements, so that a warp's load is two
// whole lines, and there are plenty of threads. Their sums meet in shared memory, in a tree.

constexpr int BLOCK_THREADS = 256;

static __device__ float block_sum(float* shared, float x) {
    __syncthreads();  // the sum before this one has been read
    shared[threadIdx.x] = x;
    for (int n = BLOCK_THREADS / 2; n; n /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < n) shared[threadIdx.x] += shared[threadIdx.x + n];
    }
    __syncthreads();
    return shared[0];
}

static __global__ void block_a_row(bf16* out, const bf16* in, const float* gain, const float* bias,
                                   int cols) {
    __shared__ float shared[BLOCK_THREADS];
    int64_t row = (int64_t)blockIdx.x * cols;
    float sum = 0, squares = 0;
    for (int c = threadIdx.x; c < cols; c += BLOCK_THREADS) sum += to_float(in[row + c]);
    float mean = block_sum(shared, sum) / cols;
    for (int c = threadIdx.x; c < cols; c += BLOCK_THREADS) {
        float d = to_float(in[row + c]) - mean;
        squares = num_fma(d, d, squares);
    }
    float rstd = 1.0f / sqrtf(block_sum(shared, squares) / cols + EPSILON);
    for (int c = threadIdx.x; c < cols; c += BLOCK_THREADS)
        out[row + c] = to<bf16>(num_fma((to_float(in[row + c]) - mean) * rstd, gain[c], bias[c]));
}

static void run_block_a_row(backend* b, const norm_case& c) {
    add_rows<1>(b, c);
    LAUNCH(block_a_row, dim3(c.rows), dim3(BLOCK_THREADS), 0, stream_of(b), c.out, c.sum, c.gain,
           c.bias, c.cols);
}

// ------------------------------------------------------------------------------------------------
// 3. A warp a row. Its lanes exchange their sums in registers (shuffles), so that there are no
// barriers, where all of a block waits for its slowest thread; rows go ahead independently.
// 4. The same kernel with N = SPAN: a lane takes 8 elements by one load of 16 bytes. An eighth of
// the load instructions for the same bytes, and more bytes under way at a time.

constexpr int WARPS = 4;

template <int N>
static __global__ void warp_a_row(bf16* out, const bf16* in, const float* gain, const float* bias,
                                  int rows, int cols) {
    int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (r >= rows) return;
    int lane = threadIdx.x % WARP;
    float x[N], g[N], y[N], sum = 0, squares = 0;
    in += r * cols;
    out += r * cols;
    for (int c = lane * N; c < cols; c += WARP * N) {
        load_span<N>(x, in + c);
        for (int k = 0; k < N; k++) sum += x[k];
    }
    float mean = warp_sum(sum) / cols;
    for (int c = lane * N; c < cols; c += WARP * N) {
        load_span<N>(x, in + c);
        for (int k = 0; k < N; k++) squares = num_fma(x[k] - mean, x[k] - mean, squares);
    }
    float rstd = 1.0f / sqrtf(warp_sum(squares) / cols + EPSILON);
    for (int c = lane * N; c < cols; c += WARP * N) {
        load_span<N>(x, in + c);
        load_span<N>(g, gain + c);
        load_span<N>(y, bias + c);
        for (int k = 0; k < N; k++) y[k] = num_fma((x[k] - mean) * rstd, g[k], y[k]);
        store_span<N>(out + c, y);
    }
}

template <int N>
static void run_warp_a_row(backend* b, const norm_case& c) {
    add_rows<N>(b, c);
    LAUNCH((warp_a_row<N>), dim3(blocks_for(c.rows, WARPS)), dim3(WARPS * WARP), 0, stream_of(b),
           c.out, c.sum, c.gain, c.bias, c.rows, c.cols);
}

// Rows that are not whole spans are not aligned to 16 bytes either.
static void run_vector_loads(backend* b, const norm_case& c) {
    c.cols % SPAN ? run_warp_a_row<1>(b, c) : run_warp_a_row<SPAN>(b, c);
}

// ------------------------------------------------------------------------------------------------
// 5. The one in use (llmc/device/cuda/norm.cuh): adds and normalises in one kernel. Lanes keep the
// sum in shared memory, so memory is read once and the sum is not read back: 8 bytes an element,
// not 10.

static void run_in_use(backend* b, const norm_case& c) {
    auto matrix = [&](bf16* p) { return tensor{p, c.rows, c.cols, c.cols, &FORMAT_BF16}; };
    b->norm_forward(b, matrix(c.out), matrix(c.sum), c.stats, matrix(c.residual), matrix(c.add),
                    c.gain, c.bias, 1e-5f);
}

// ------------------------------------------------------------------------------------------------
// The limit: a copy inside the device's memory, far larger than its caches.

constexpr size_t COPY_BYTES = (size_t)1 << 28;

static void run_copy(backend* b) {
    static char* memory;  // until the end
    if (!memory) memory = (char*)b->alloc(b, 2 * COPY_BYTES, "the copy that is the limit");
    b->copy(b, memory, memory + COPY_BYTES, COPY_BYTES);
}

// ------------------------------------------------------------------------------------------------
// Cases

// Timed shapes, of GPT-2's two ends, do not fit in the caches either: what a run wrote is gone when
// the next one reads.
static const int SHAPES[][2] = {{3, 8}, {7, 33}, {37, 768}, {5, 1600}, {65536, 768}, {32768, 1600}};
enum { SMALL = 4, CASES = sizeof SHAPES / sizeof SHAPES[0] };

static void compute_exact(norm_case* c, const bf16* gain, const bf16* bias) {
    double* to = c->exact;
    for (int r = 0; r < c->rows; r += c->step) {
        const bf16* x = c->sum_bits + (size_t)r * c->cols;
        double sum = 0, squares = 0;
        for (int i = 0; i < c->cols; i++) sum += __bfloat162float(x[i]);
        double mean = sum / c->cols;
        for (int i = 0; i < c->cols; i++) squares += pow(__bfloat162float(x[i]) - mean, 2);
        double rstd = 1 / sqrt(squares / c->cols + 1e-5);
        for (int i = 0; i < c->cols; i++)
            *to++ = (__bfloat162float(x[i]) - mean) * rstd * __bfloat162float(gain[i]) +
                    __bfloat162float(bias[i]);
    }
}

static float* device_floats(backend* b, const bf16* from, int n) {
    float* x = host_array<float>(n);
    for (int i = 0; i < n; i++) x[i] = __bfloat162float(from[i]);
    return device_array(b, n, x);
}

static norm_case make_case(backend* b, int number) {
    norm_case c = {};
    int rows = SHAPES[number][0], cols = SHAPES[number][1];
    size_t n = (size_t)rows * cols;
    snprintf(c.shape, sizeof c.shape, "%d x %d", rows, cols);
    c.work = 8.0 * n;
    c.rows = rows;
    c.cols = cols;
    c.step = check_step(rows);
    bf16 *residual = random_array(n, 0, 0.5f, 2), *add = random_array(n, 1, 0, 1);
    bf16 *gain = random_array(cols, 2, 1, 0.5f), *bias = random_array(cols, 3, 0, 0.5f);
    c.sum_bits = host_array<bf16>(n);
    for (size_t i = 0; i < n; i++)
        c.sum_bits[i] =
            __float2bfloat16_rn(__bfloat162float(residual[i]) + __bfloat162float(add[i]));
    c.exact = host_array<double>((size_t)blocks_for(rows, c.step) * cols);
    compute_exact(&c, gain, bias);
    c.residual = device_array(b, n, residual);
    c.add = device_array(b, n, add);
    c.sum = device_array<bf16>(b, n, NULL);
    c.out = device_array<bf16>(b, n, NULL);
    c.gain = device_floats(b, gain, cols);
    c.bias = device_floats(b, bias, cols);
    c.stats = device_array<float>(b, 2 * (size_t)rows, NULL);
    return c;
}

int main(int argc, char** argv) {
    static const rung<norm_case> rungs[] = {
        {"a thread a row", run_thread_a_row},
        {"a block a row, trees in shared memory", run_block_a_row},
        {"a warp a row, shuffles", run_warp_a_row<1>},
        {"16-byte loads", run_vector_loads},
        {"in use: one kernel, row in shared memory", run_in_use},
    };
    ladder_limit limit = {"GB/s", 1e9, 2.0 * COPY_BYTES, run_copy};
    return climb(argc, argv, "layernorm", rungs, 5, make_case, SMALL, CASES, limit);
}
