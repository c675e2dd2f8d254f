// Attention over the KV cache, and what moves rows about.
//
// The cache is (layers, pages, heads, 2, KV_PAGE, head_dim) in the storage of its own format: the
// keys of a page and head lie together, and so do the values. What is written is rounded to the
// cache's format; what is read, to the operands' format. A block serves one row and head, and its
// warps take the pages in turn; so a row's bits depend on its position and what it sees, and on
// nothing else in the call. Positions beyond the row's own are not read.
#ifndef LLMC_CUDA_CACHE_CUH
#define LLMC_CUDA_CACHE_CUH

#include "attention.cuh"
#include "cuda.cuh"

constexpr int CACHED_WARPS = 4, CACHED_THREADS = CACHED_WARPS * WARP;

// The cache as kernels see it: kv_cache in device terms, one layer of it.
template <class C>
struct cache_pages {
    C* data;  // of the layer
    const int *page_table, *row_slot, *row_position;
    int pages_per_slot, heads, head_dim;
    rounding format, operand;
    bool packed;  // keys and values can be read 16 bytes at a time
};

template <class C>
static cache_pages<C> cache_pages_of(const kv_cache* kv, int layer, const int* row_slot,
                                     const int* row_position) {
    int64_t elements = (int64_t)kv->pages * kv->heads.kv * 2 * KV_PAGE * kv->heads.dim;
    return {(C*)kv->data + layer * elements,
            kv->page_table,
            row_slot,
            row_position,
            kv->pages_per_slot,
            kv->heads.query,
            kv->heads.dim,
            rounding_of(kv->format),
            kv->operand == kv->format ? ROUND_NONE : rounding_of(kv->operand),
            kv->heads.dim % packet<C>::N == 0};
}

// The keys of a row's page `i` and a head; the values lie KV_PAGE * head_dim further on.
template <class C>
static __device__ inline C* page_of(const cache_pages<C>& x, int row, int i, int head) {
    int page = x.page_table[(int64_t)x.row_slot[row] * x.pages_per_slot + i];
    return x.data + ((int64_t)page * x.heads + head) * 2 * KV_PAGE * x.head_dim;
}

static size_t cuda_kv_bytes(const kv_cache* kv) {
    size_t element = storage_of(kv->format) == STORE_FP32 ? 4 : 2;
    return element * kv->layers * kv->pages * kv->heads.kv * 2 * KV_PAGE * kv->heads.dim;
}

// ------------------------------------------------------------------------------------------------
// Writing

// A block a row: its keys, then its values.
template <class T, class C>
static __global__ void kv_write_kernel(cache_pages<C> x, matrix<T> qkv) {
    int row = blockIdx.x, position = x.row_position[row], channels = x.heads * x.head_dim;
    if (position < 0) return;
    const T* from = qkv.data + row * qkv.stride + channels;
    for (int i = threadIdx.x; i < 2 * channels; i += blockDim.x) {
        int which = i / channels, head = i % channels / x.head_dim, d = i % x.head_dim;
        C* page = page_of(x, row, position / KV_PAGE, head);
        C* to_row = page + (which * KV_PAGE + position % KV_PAGE) * x.head_dim;
        to_row[d] = to<C>(rounded(to_float(from[i]), x.format));
    }
}

static void cuda_kv_write(backend* b, const kv_cache* kv, int layer, tensor qkv,
                          const int* row_slot, const int* row_position) {
    if (!qkv.rows) return;
    WITH_STORAGE(qkv.format, T, WITH_STORAGE(kv->format, C, {
                     LAUNCH((kv_write_kernel<T, C>), dim3(qkv.rows), dim3(256), 0, stream_of(b),
                            cache_pages_of<C>(kv, layer, row_slot, row_position),
                            matrix_of<T>(qkv));
                 }));
}

// `count` times 16 bytes from one page of each layer to another.
static __global__ void copy_page_kernel(int4* data, int64_t layer_count, int64_t count, int to_page,
                                        int from_page) {
    int4* layer = data + blockIdx.y * layer_count;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) layer[to_page * count + i] = layer[from_page * count + i];
}

static void cuda_kv_copy_page(backend* b, const kv_cache* kv, int to_page, int from_page) {
    size_t layer = cuda_kv_bytes(kv) / kv->layers / sizeof(int4), page = layer / kv->pages;
    LAUNCH(copy_page_kernel, dim3(blocks_for(page, 256), kv->layers), dim3(256), 0, stream_of(b),
           (int4*)kv->data, layer, page, to_page, from_page);
}

// ------------------------------------------------------------------------------------------------
// Reading

// How a warp reads a page. LANES lanes share a key: each takes, of every LANES * N columns, N in a
// row, N being a packet's elements. The others take the next KEYS keys, and ROUNDS times that is a
// page.
template <class C, int D>
struct page_shape {
    static constexpr int LANES = D > 128 ? 16 : 8, KEYS = WARP / LANES, ROUNDS = KV_PAGE / KEYS;
    static constexpr int N = packet<C>::N, COLUMNS = D / LANES, PACKETS = COLUMNS / N;
};

// The column that is a lane's column i.
template <class C, int D>
static __device__ inline int column_of(int lane, int i) {
    constexpr int N = page_shape<C, D>::N, LANES = page_shape<C, D>::LANES;
    return (i / N * LANES + lane % LANES) * N + i % N;
}

// A lane's columns of a row; zeros beyond head_dim, and everywhere where not `visible`.
template <class C, int D>
static __device__ inline void load_columns(packet<C> (&part)[page_shape<C, D>::PACKETS],
                                           const C* row, const cache_pages<C>& x, bool visible) {
    constexpr int N = page_shape<C, D>::N;
#pragma unroll
    for (int i = 0; i < page_shape<C, D>::PACKETS; i++) {
        int d = column_of<C, D>(threadIdx.x % WARP, i * N);
        if (x.packed && visible && d < x.head_dim) {
            part[i] = packet_load(row + d);
        } else {
            for (int k = 0; k < N; k++)
                part[i].v[k] = visible && d + k < x.head_dim ? row[d + k] : to<C>(0.0f);
        }
    }
}

template <class C>
static __device__ inline float operand_of(C kept, const cache_pages<C>& x) {
    return rounded(to_float(kept), x.operand);
}

// Of one warp. sum and weighted are relative to exp(max).
template <int D>
struct partial_result {
    float max, sum, weighted[D];
};

// The softmax-weighted values of a warp's pages: those with the numbers warp, warp + CACHED_WARPS,
// ... Each lane goes through the keys of its group of LANES, and through its columns.
template <class C, int D>
static __device__ inline void attend_pages(partial_result<D>* result, const cache_pages<C>& x,
                                           const float (&q)[page_shape<C, D>::COLUMNS], int row,
                                           int position, float scale) {
    typedef page_shape<C, D> shape;
    constexpr int N = shape::N, COLUMNS = shape::COLUMNS, LANES = shape::LANES;
    constexpr int KEYS = shape::KEYS, ROUNDS = shape::ROUNDS;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / LANES;
    float o[COLUMNS] = {}, max = minus_infinity(), sum = 0;
    for (int i = warp; i <= position / KV_PAGE; i += CACHED_WARPS) {
        const C* keys = page_of(x, row, i, blockIdx.y);
        const C* values = keys + KV_PAGE * x.head_dim;
        packet<C> part[ROUNDS][shape::PACKETS];
        bool visible[ROUNDS];
        float s[ROUNDS], top = max;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            int key = r * KEYS + group;
            visible[r] = i * KV_PAGE + key <= position;
            load_columns<C, D>(part[r], keys + key * x.head_dim, x, visible[r]);
        }
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            float product = 0;
            for (int c = 0; c < COLUMNS; c++)
                product = num_fma(q[c], operand_of(part[r][c / N].v[c % N], x), product);
            for (int m = LANES / 2; m; m /= 2) product += __shfl_xor_sync(~0u, product, m);
            s[r] = visible[r] ? product * scale : minus_infinity();
            top = fmaxf(top, s[r]);
            // The values take the place of the keys.
            int key = r * KEYS + group;
            load_columns<C, D>(part[r], values + key * x.head_dim, x, visible[r]);
        }
        for (int m = LANES; m < WARP; m *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
        float shrink = num_expf(max - top);
        max = top;
        sum *= shrink;
        for (int c = 0; c < COLUMNS; c++) o[c] *= shrink;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            float p = num_expf(s[r] - top);
            sum += p;
            p = rounded(p, x.operand);
            for (int c = 0; c < COLUMNS; c++)
                o[c] = num_fma(p, operand_of(part[r][c / N].v[c % N], x), o[c]);
        }
    }
    // The groups' sums; within a group all lanes have the same.
    for (int m = LANES; m < WARP; m *= 2) {
        sum += __shfl_xor_sync(~0u, sum, m);
        for (int c = 0; c < COLUMNS; c++) o[c] += __shfl_xor_sync(~0u, o[c], m);
    }
    if (lane == 0) {
        result->max = max;
        result->sum = sum;
    }
    if (group) return;
    for (int c = 0; c < COLUMNS; c++) result->weighted[column_of<C, D>(lane, c)] = o[c];
}

// One element of a matrix whose storage is known at run time: queries and outputs are a small part
// of what is moved, and the kernels are many enough.
static __device__ inline float load_as(const void* p, int64_t i, storage s) {
    if (s == STORE_BF16) return to_float(((const bf16*)p)[i]);
    if (s == STORE_FP16) return to_float(((const fp16*)p)[i]);
    return ((const float*)p)[i];
}
static __device__ inline void store_as(void* p, int64_t i, storage s, float x) {
    if (s == STORE_BF16)
        ((bf16*)p)[i] = to<bf16>(x);
    else if (s == STORE_FP16)
        ((fp16*)p)[i] = to<fp16>(x);
    else
        ((float*)p)[i] = x;
}

struct stored_rows {
    void* data;
    int64_t stride;
    storage element;
};
static inline stored_rows stored_rows_of(const tensor& t) {
    return {t.data, t.stride, storage_of(t.format)};
}

// The warps' results as one: each weighed by what its maximum is to the largest of them.
template <int D>
static __device__ inline float combined(const partial_result<D>* results, int d) {
    float max = results[0].max, sum = 0, weighted = 0;
    for (int w = 1; w < CACHED_WARPS; w++) max = fmaxf(max, results[w].max);
    for (int w = 0; w < CACHED_WARPS; w++) {
        float weight = num_expf(results[w].max - max);
        sum += results[w].sum * weight;
        weighted += results[w].weighted[d] * weight;
    }
    return weighted / sum;
}

template <class C, int D>
static __global__ void __launch_bounds__(CACHED_THREADS)
    attention_cached_kernel(cache_pages<C> x, stored_rows out, stored_rows qkv, rounding query,
                            float scale) {
    __shared__ partial_result<D> results[CACHED_WARPS];
    int row = blockIdx.x, position = x.row_position[row], first = blockIdx.y * x.head_dim;
    int64_t out_at = row * out.stride + first, q_at = row * qkv.stride + first;
    if (position < 0) {
        for (int d = threadIdx.x; d < x.head_dim; d += CACHED_THREADS)
            store_as(out.data, out_at + d, out.element, 0.0f);
        return;
    }
    float q[page_shape<C, D>::COLUMNS];
#pragma unroll
    for (int c = 0; c < page_shape<C, D>::COLUMNS; c++) {
        int d = column_of<C, D>(threadIdx.x % WARP, c);
        float value = d < x.head_dim ? load_as(qkv.data, q_at + d, qkv.element) : 0.0f;
        q[c] = rounded(value, query);
    }
    attend_pages<C, D>(results + threadIdx.x / WARP, x, q, row, position, scale);
    __syncthreads();
    for (int d = threadIdx.x; d < x.head_dim; d += CACHED_THREADS)
        store_as(out.data, out_at + d, out.element, combined(results, d));
}

static void cuda_attention_cached(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                                  const int* row_slot, const int* row_position) {
    if (!out.rows) return;
    int head_dim = kv->heads.dim;
    if (head_dim > 256)
        fatal("the CUDA device has attention heads of at most 256 channels, not %d", head_dim);
    dim3 grid(out.rows, kv->heads.query), block(CACHED_THREADS);
    stored_rows to_rows = stored_rows_of(out), from = stored_rows_of(qkv);
    rounding query = rounding_of(kv->operand);
    float scale = 1.0f / sqrtf((float)head_dim);
    WITH_STORAGE(kv->format, C, {
        cache_pages<C> x = cache_pages_of<C>(kv, layer, row_slot, row_position);
        if (head_dim <= 64)
            LAUNCH((attention_cached_kernel<C, 64>), grid, block, 0, stream_of(b), x, to_rows, from,
                   query, scale);
        else if (head_dim <= 128)
            LAUNCH((attention_cached_kernel<C, 128>), grid, block, 0, stream_of(b), x, to_rows,
                   from, query, scale);
        else
            LAUNCH((attention_cached_kernel<C, 256>), grid, block, 0, stream_of(b), x, to_rows,
                   from, query, scale);
    });
}

// ------------------------------------------------------------------------------------------------
// Rows

// A block a row of `count` units: packets, or elements of either size.
template <class U>
static __global__ void gather_kernel(matrix<U> to_rows, matrix<U> from, const int* row, int count) {
    U* target = to_rows.data + blockIdx.x * to_rows.stride;
    const U* source = from.data + row[blockIdx.x] * from.stride;
    for (int i = threadIdx.x; i < count; i += blockDim.x) target[i] = source[i];
}

template <class U>
static void gather_units(backend* b, tensor to_rows, tensor from, const int* row, int elements) {
    matrix<U> target = {(U*)to_rows.data, to_rows.stride / elements};
    matrix<U> source = {(U*)from.data, from.stride / elements};
    LAUNCH((gather_kernel<U>), dim3(to_rows.rows), dim3(128), 0, stream_of(b), target, source, row,
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

#endif
