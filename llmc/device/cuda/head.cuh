// The vocabulary head: log-probabilities, entropies, and their gradient.
//
// Logits exist for a chunk of rows at a time: a product writes them in fp32, then a block a row
// reads them, and rounds them to the logits' format as it reads. One pass gives the maximum, the
// sum of exponentials and the entropy: each thread takes a batch of logits at a time, holds its
// sums relative to the greatest that it has met, and they are combined in a fixed order, which
// depends on the vocabulary alone. row_distribution and log_probability serve the sampler
// (sample.cuh) too: from equal logits log mu and log pi have equal bits. log p = (l - max) -
// log(sum exp(l - max)), never log of a quotient: that underflows.
//
// Backward turns a chunk's logits into their gradient in the same memory, with forward's maxima and
// sums. Forward takes the last chunk first, and the first chunks' logits are still there, as many
// as there is memory for; others are computed again. The gradient is rounded to the logits' format
// (fp8 with one scale per row), then to that of the products' operands, in whose storage it lies:
// tensor cores read it as it is. (The CPU device leaves it in the logits' format.)
#ifndef LLMC_CUDA_HEAD_CUH
#define LLMC_CUDA_HEAD_CUH

#include "matmul.cuh"
#include "rows.cuh"

// ------------------------------------------------------------------------------------------------
// A row of logits, on the device. A block owns a row.

// Threads for a row: 16 tokens each, whole warps.
enum { ROW_THREADS_MAX = 512, ROW_TOKENS = 16 };
static inline int row_threads(int vocabulary) {
    int threads = (vocabulary / ROW_TOKENS + WARP - 1) / WARP * WARP;
    return threads < WARP ? WARP : threads > ROW_THREADS_MAX ? ROW_THREADS_MAX : threads;
}

struct logits_row {
    float* l;  // as the product wrote them; 16-byte aligned, readable up to a whole packet
    int vocabulary;
    float inverse_temperature;
    format rounding;
    const uint32_t* nucleus;  // the tokens that count, a bit each; NULL: all
};

static __device__ inline float logit(const logits_row& r, float x) {
    return (r.rounding.drop ? format_round(x, &r.rounding) : x) * r.inverse_temperature;
}

static __device__ inline bool kept(const logits_row& r, int i) {
    return !r.nucleus || (r.nucleus[i / 32] >> (i % 32) & 1);
}

// f(i, logit i) for the calling thread's share of tokens first .. end - 1, where `threads` threads,
// of which it is number `thread`, read packets side by side. first is a multiple of the packet.
template <class F>
static __device__ inline void row_each(const logits_row& r, int first, int end, int thread,
                                       int threads, F f) {
    constexpr int N = packet<float>::N;
    for (int i = first + N * thread; i < end; i += N * threads) {
        packet<float> x = packet_load(r.l + i);
        for (int k = 0; k < N; k++)
            if (i + k < end) f(i + k, logit(r, x.v[k]));
    }
}
template <class F>
static __device__ inline void row_each(const logits_row& r, F f) {
    row_each(r, 0, r.vocabulary, threadIdx.x, blockDim.x, f);
}

// A batch of a row: the block's logits from `first` on. The calling thread's packet u is number
// threadIdx.x + u * blockDim.x of them. What does not count is -infinity.
constexpr int ROW_PACKETS = 2, ROW_BATCH = ROW_PACKETS * packet<float>::N;
static __device__ inline int packet_first(int first, int u) {
    return first + packet<float>::N * (threadIdx.x + u * blockDim.x);
}
static __device__ inline void row_batch(float (&l)[ROW_BATCH], const logits_row& r, int first) {
    constexpr int N = packet<float>::N;
    packet<float> x[ROW_PACKETS];
#pragma unroll
    for (int u = 0; u < ROW_PACKETS; u++) {
        int i = packet_first(first, u);
        if (i < r.vocabulary) x[u] = packet_load(r.l + i);
        for (int k = 0; k < N; k++)
            if (i + k >= r.vocabulary) x[u].v[k] = minus_infinity();
    }
#pragma unroll
    for (int j = 0; j < ROW_BATCH; j++) l[j] = x[j / N].v[j % N];
    if (r.rounding.drop) {
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++)  // fp8 would make a number of -infinity
            if (packet_first(first, j / N) + j % N < r.vocabulary)
                l[j] = format_round(l[j], &r.rounding);
    }
#pragma unroll
    for (int j = 0; j < ROW_BATCH; j++) l[j] *= r.inverse_temperature;
    if (!r.nucleus) return;
#pragma unroll
    for (int j = 0; j < ROW_BATCH; j++) {
        int i = packet_first(first, j / N) + j % N;
        if (i < r.vocabulary && !kept(r, i)) l[j] = minus_infinity();
    }
}

template <class T>
static __device__ inline T lane_xor(T x, int mask) {
    uint32_t word[sizeof(T) / 4];
    memcpy(word, &x, sizeof x);
    for (size_t i = 0; i < sizeof(T) / 4; i++) word[i] = __shfl_xor_sync(~0u, word[i], mask);
    memcpy(&x, word, sizeof x);
    return x;
}

// The x of all threads of the block, combined; each thread gets the same bits, provided that
// combine(a, b) and combine(b, a) do. `nothing` changes nothing.
template <class T, class F>
static __device__ inline T block_combine(T x, T nothing, F combine) {
    __shared__ T part[WARP];
    int lane = threadIdx.x % WARP;
    for (int m = WARP / 2; m; m /= 2) x = combine(x, lane_xor(x, m));
    __syncthreads();  // what the last call left has been read
    if (lane == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    x = lane < (int)blockDim.x / WARP ? part[lane] : nothing;
    for (int m = WARP / 2; m; m /= 2) x = combine(x, lane_xor(x, m));
    return x;
}

// Of some tokens: max l, sum exp(l - max), sum exp(l - max) (l - max).
struct partial_softmax {
    float max, sum, moment;
};

// The same relative to another maximum, which is no less.
static __device__ inline partial_softmax relative_to(partial_softmax s, float max) {
    if (s.sum == 0) return {max, 0, 0};  // nothing yet: s.max is -infinity
    float by = s.max - max, factor = num_expf(by);
    return {max, s.sum * factor, (s.moment + s.sum * by) * factor};
}

struct distribution {
    float max, sum, log_sum, entropy;
};

// H = log sum - (sum of e (l - max)) / sum.
static __device__ inline distribution row_distribution(const logits_row& r) {
    partial_softmax s = {minus_infinity(), 0, 0};
    for (int first = 0; first < r.vocabulary; first += ROW_BATCH * blockDim.x) {
        float l[ROW_BATCH], top = s.max;
        row_batch(l, r, first);
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++) top = fmaxf(top, l[j]);
        if (top == minus_infinity()) continue;
        if (top > s.max) s = relative_to(s, top);
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++) {
            float x = l[j] - top, e = num_expf(x);
            s.sum += e;
            s.moment = num_fma(e, fmaxf(x, -0x1p7f), s.moment);  // 0, where x is -infinity
        }
    }
    float max = block_combine(s.max, minus_infinity(), fmaxf);
    s = block_combine(relative_to(s, max), {max, 0, 0}, [](partial_softmax a, partial_softmax b) {
        return partial_softmax{a.max, a.sum + b.sum, a.moment + b.moment};
    });
    float log_sum = num_logf(s.sum);
    return {max, s.sum, log_sum, log_sum - s.moment / s.sum};
}

static __device__ inline float log_probability(const distribution& d, float l) {
    return (l - d.max) - d.log_sum;
}

// Of a candidate, which may be none.
static __device__ inline float log_probability_of(const distribution& d, const logits_row& r,
                                                  int id) {
    return id < 0 ? minus_infinity() : log_probability(d, logit(r, r.l[id]));
}

// ------------------------------------------------------------------------------------------------
// Kernels

// A chunk of logits as kernels see it; block i takes row i.
struct logits_block {
    float* l;
    int64_t stride;
    int vocabulary;
    float inverse_temperature;
    format rounding;
    const uint32_t* nucleus;  // (rows, words of a set), or NULL
};

static __host__ __device__ inline int words_of_set(int vocabulary) {
    return (vocabulary + 31) / 32;
}

static __device__ inline logits_row row_of_block(const logits_block& b) {
    int64_t i = blockIdx.x;
    return {b.l + i * b.stride, b.vocabulary, b.inverse_temperature, b.rounding,
            b.nucleus ? b.nucleus + i * words_of_set(b.vocabulary) : NULL};
}

static __global__ void __launch_bounds__(ROW_THREADS_MAX, 3)
    head_forward_rows(float* logp, float* entropy, float2* stats, const int* target,
                      const candidates asked, const logits_block b) {
    logits_row r = row_of_block(b);
    distribution d = row_distribution(r);
    int i = blockIdx.x;
    for (int j = threadIdx.x; j < asked.count; j += blockDim.x) {
        int64_t at = (int64_t)i * asked.count + j;
        asked.logp[at] = log_probability_of(d, r, asked.id[at]);
    }
    if (threadIdx.x) return;
    logp[i] = log_probability(d, logit(r, r.l[target[i]]));
    if (entropy) entropy[i] = d.entropy;
    if (stats) stats[i] = {d.max, d.sum};
}

// Logits become their gradient, as T, from the row's start on; those that do not count, 0. Narrower
// values land on logits that were read before: the block reads a stretch, waits for all its
// threads, writes the stretch.
template <class T>
static __global__ void __launch_bounds__(ROW_THREADS_MAX, 2)
    head_backward_rows(const int* target, const float* coef, const float2* stats,
                       const logits_block b) {
    logits_row r = row_of_block(b);
    int y = target[blockIdx.x];
    float max = stats[blockIdx.x].x, inverse_sum = 1.0f / stats[blockIdx.x].y;
    float scale = coef[blockIdx.x] * r.inverse_temperature;
    // fp8: in units of a power of two, for the target's gradient, read before any is written. None
    // is larger, since the others sum to minus it. In shared memory, since registers are short.
    __shared__ float unit;
    if (threadIdx.x == 0) {
        float own = kept(r, y) ? num_expf(logit(r, r.l[y]) - max) * inverse_sum : 0;
        unit = format_scale(fabsf(scale * (own - 1.0f)), &r.rounding);
    }
    __syncthreads();
    scale /= unit;
    for (int first = 0; first < r.vocabulary; first += ROW_BATCH * blockDim.x) {
        float l[ROW_BATCH];
        row_batch(l, r, first);
        __syncthreads();
#pragma unroll
        for (int u = 0; u < ROW_PACKETS; u++) {
            int i = packet_first(first, u);
            float p[4];
            for (int k = 0; k < 4; k++) p[k] = num_expf(l[4 * u + k] - max) * inverse_sum;
            for (int k = 0; k < 4 && i <= y && y < i + 4; k++) p[k] -= i + k == y ? 1.0f : 0.0f;
            four<T> g;
            for (int k = 0; k < 4; k++) {
                float dlogit = scale * p[k];
                if (r.rounding.drop) dlogit = format_round(dlogit, &r.rounding) * unit;
                g.v[k] = to<T>(dlogit);
            }
            if (i < b.stride) *(four<T>*)((T*)r.l + i) = g;
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Chunks, on the host

// A row of logits begins a cache line, and has a logit, which does not count, for each of the
// weight's rows of zeros (prepared): the library is several times slower at odd sizes.
static inline int64_t logits_stride(int vocabulary) { return padded_outputs(vocabulary); }

// Rows whose logits exist at one time: 1 GB of them, but 64 at least; the products are large then.
// At most 4096, since the rows of x and of its gradient take memory too.
static inline int rows_at_once(int vocabulary) {
    int64_t rows = (256 << 20) / logits_stride(vocabulary);
    return rows < 64 ? 64 : rows > 4096 ? 4096 : (int)rows;
}

// The logits of n rows go through this memory: those of a chunk of `most` rows, or of `kept`
// chunks, where forward leaves them for backward.
struct logits_memory {
    logits_block block;
    int most, kept;
};

static inline logits_memory logits_memory_for(backend* b, int n, const prepared* w,
                                              const format* rounding, float inverse_temperature,
                                              bool keep) {
    context_of(b)->logits_of = NULL;
    int most = rows_at_once(w->outputs), kept = 1;
    int64_t stride = logits_stride(w->outputs);
    if (most > n) most = n;
    if (keep) {
        size_t fit = context_of(b)->logits_kept / (most * stride * sizeof(float));
        int chunks = blocks_for(n, most);
        kept = fit < 1 ? 1 : fit < (size_t)chunks ? (int)fit : chunks;
    }
    int64_t rows = (int64_t)kept * most;
    if (rows > n) rows = n;
    float* l = (float*)cuda_scratch(b, SCRATCH_LOGITS, rows * stride * sizeof(float));
    return {{l, stride, w->outputs, inverse_temperature, *rounding, NULL}, most, kept};
}

// The chunk whose first row is `first`; nucleus: of row 0, or NULL.
static inline logits_block chunk_at(const logits_memory& m, int first, const uint32_t* nucleus) {
    logits_block l = m.block;
    l.l += first / m.most % m.kept * (m.most * l.stride);
    if (nucleus) l.nucleus = nucleus + (int64_t)first * words_of_set(l.vocabulary);
    return l;
}

// Logits of x, whose storage is that of the weight's format.
static inline void logits_product(backend* b, const logits_block& l, const tensor& x,
                                  const prepared* w) {
    product p = {};
    p.forward = true;
    p.m = x.rows, p.n = (int)l.stride, p.k = w->inputs;
    p.a = x.data, p.a_stride = x.stride;
    p.b = w->w, p.b_stride = w->inputs, p.b_transposed = true;
    p.c = l.l, p.c_stride = l.stride, p.c_format = &FORMAT_FP32;
    p.operand = w->operand;
    cuda_product(b, p);
}

static inline void same_storage(const tensor& x, const prepared* w) {
    if (storage_of(x.format) != storage_of(w->operand))
        fatal("the head's input is %s, its weight %s: the CUDA device stores them differently",
              x.format->name, w->operand->name);
}

static void cuda_head_forward(backend* b, float* logp, float* entropy, float* stats, tensor x,
                              const int* row, const int* target, int n, const prepared* w,
                              const format* logits, float inverse_temperature,
                              const uint32_t* nucleus, const candidates* asked) {
    if (n <= 0) return;
    same_storage(x, w);
    logits_memory m = logits_memory_for(b, n, w, logits, inverse_temperature, stats != NULL);
    int most = m.most;
    void* memory = cuda_scratch(b, SCRATCH_ROWS, most * (size_t)x.cols * b->bytes_per(x.format));
    for (int first = (n - 1) / most * most; first >= 0; first -= most) {
        int rows = n - first < most ? n - first : most;
        tensor named = {memory, rows, x.cols, x.cols, x.format};
        logits_block l = chunk_at(m, first, nucleus);
        cuda_gather_rows(b, named, x, row + first);
        logits_product(b, l, named, w);
        candidates part = {};
        if (asked) {
            int64_t at = (int64_t)first * asked->count;
            part = {asked->count, asked->id + at, asked->logp + at};
        }
        LAUNCH(head_forward_rows, rows, row_threads(l.vocabulary), 0, stream_of(b), logp + first,
               entropy ? entropy + first : NULL, stats ? (float2*)stats + first : NULL,
               target + first, part, l);
    }
    context_of(b)->logits_of = stats;
}

// dx of a chunk's rows, by way of `rows_dx`, and its share of dw; `named` are the rows of x.
static inline void head_backward_products(backend* b, tensor dx, float* dw, tensor rows_dx,
                                          const tensor& named, const int* row,
                                          const logits_block& dlogits, const prepared* w) {
    int channels = w->inputs, rows = named.rows;
    product p = {};
    p.m = rows, p.n = channels, p.k = (int)dlogits.stride;
    p.a = dlogits.l;
    p.a_stride = dlogits.stride * (int64_t)(sizeof(float) / b->bytes_per(w->operand));
    p.b = w->w, p.b_stride = channels;
    p.c = rows_dx.data, p.c_stride = channels, p.c_format = dx.format;
    p.operand = w->operand;
    cuda_product(b, p);
    add_rows(b, (float*)dx.data, dx.stride, rows_dx, row);
    p.m = w->outputs, p.n = channels, p.k = rows;
    p.a_transposed = true;
    p.b = named.data;
    p.c = dw, p.c_format = &FORMAT_FP32, p.accumulate = true;
    cuda_product(b, p);
}

static void cuda_head_backward(backend* b, tensor dx, float* dw, const float* stats, tensor x,
                               const int* row, const int* target, const float* coef,
                               const float* bonus, int n, const prepared* w, const format* logits,
                               float inverse_temperature, const uint32_t* nucleus) {
    if (bonus) fatal("the CUDA device has no gradient of entropies");  // refuse() says so before
    if (n <= 0) return;
    same_storage(x, w);
    if (storage_of(dx.format) != STORE_FP32)
        fatal("the gradient of the head's input is %s; the CUDA device has fp32", dx.format->name);
    bool there = context_of(b)->logits_of == stats;
    logits_memory m = logits_memory_for(b, n, w, logits, inverse_temperature, true);
    int most = m.most, left = there ? m.kept * most : 0;  // rows whose logits forward left
    // Rows of the gradient first: both parts then begin where 16-byte accesses fit.
    size_t part = ((size_t)most * x.cols * sizeof(float) + 15) / 16 * 16;
    char* memory = (char*)cuda_scratch(b, SCRATCH_ROWS, 2 * part);
    for (int first = 0; first < n; first += most) {
        int rows = n - first < most ? n - first : most;
        tensor rows_dx = {memory, rows, x.cols, x.cols, dx.format};
        tensor named = {memory + part, rows, x.cols, x.cols, x.format};
        logits_block l = chunk_at(m, first, nucleus);
        cuda_gather_rows(b, named, x, row + first);
        if (first >= left) logits_product(b, l, named, w);
        WITH_STORAGE(
            w->operand, T,
            LAUNCH((head_backward_rows<T>), rows, row_threads(l.vocabulary), 0, stream_of(b),
                   target + first, coef + first, (const float2*)stats + first, l));
        head_backward_products(b, dx, dw, rows_dx, named, row + first, l, w);
    }
}

#endif
