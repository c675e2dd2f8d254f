// Attention over the KV cache.
//
// The cache is (layers, pages, key heads, 2, KV_PAGE, head_dim) in the storage of its own format,
// which is one byte per element for formats of up to 8 bits: the keys of a page and head lie
// together, and so do the values. What is written is rounded to the cache's format; what is read,
// to the operands' format. A row's bits depend on its position and what it sees, and on nothing
// else in the call. Positions beyond the row's own are not read.
#ifndef LLMC_CUDA_CACHE_CUH
#define LLMC_CUDA_CACHE_CUH

#include <type_traits>

#include "attention.cuh"
#include "cuda.cuh"

// The cache as kernels see it: kv_cache in device terms, one layer of it.
template <class C>
struct cache_pages {
    C* data;  // of the layer
    const int *page_table, *row_slot, *row_position;
    int pages_per_slot, heads, key_heads, head_dim;
    format kept;  // the cache's
    rounding operand;
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
            kv->heads.kv,
            kv->heads.dim,
            *kv->format,
            rounding_of(kv->operand),
            kv->heads.dim % packet<C>::N == 0};
}

// The keys of a row's page `i` and a key head; the values lie KV_PAGE * head_dim further on.
template <class C>
static __device__ inline C* page_of(const cache_pages<C>& x, int row, int i, int key_head) {
    int page = x.page_table[(int64_t)x.row_slot[row] * x.pages_per_slot + i];
    return x.data + ((int64_t)page * x.key_heads + key_head) * 2 * KV_PAGE * x.head_dim;
}

// Runs the statements with C the storage of a cache.
#define WITH_CACHE(format, C, ...)                \
    do {                                          \
        if ((format)->scaled) {                   \
            using C = code;                       \
            __VA_ARGS__;                          \
        } else {                                  \
            WITH_STORAGE(format, C, __VA_ARGS__); \
        }                                         \
    } while (0)

// An element of the cache for x, and what an element is.
template <class C>
static __device__ inline C to_kept(float x, const cache_pages<C>& cache) {
    if constexpr (sizeof(C) == 1)
        return to_code(format_round(x, &cache.kept), cache.kept);
    else if constexpr (sizeof(C) == 4)
        return format_round(x, &cache.kept);  // tf32
    else
        return to<C>(x);
}
template <class C>
static __device__ inline float from_kept(C x, const cache_pages<C>& cache) {
    if constexpr (sizeof(C) == 1)
        return from_code(x, cache.kept);
    else
        return to_float(x);
}

static size_t cuda_kv_bytes(const kv_cache* kv) {
    size_t element = 0;
    WITH_CACHE(kv->format, C, element = sizeof(C));
    return element * kv->layers * kv->pages * kv->heads.kv * 2 * KV_PAGE * kv->heads.dim;
}

// ------------------------------------------------------------------------------------------------
// Writing

// A block a row: its keys, then its values.
template <class T, class C>
static __global__ void kv_write_kernel(cache_pages<C> x, matrix<T> qkv) {
    int row = blockIdx.x, position = x.row_position[row], channels = x.key_heads * x.head_dim;
    if (position < 0) return;
    const T* from = qkv.data + row * qkv.stride + x.heads * x.head_dim;
    for (int i = threadIdx.x; i < 2 * channels; i += blockDim.x) {
        int which = i / channels, head = i % channels / x.head_dim, d = i % x.head_dim;
        C* page = page_of(x, row, position / KV_PAGE, head);
        C* to_row = page + (which * KV_PAGE + position % KV_PAGE) * x.head_dim;
        to_row[d] = to_kept(to_float(from[i]), x);
    }
}

static void cuda_kv_write(backend* b, const kv_cache* kv, int layer, tensor qkv,
                          const int* row_slot, const int* row_position) {
    if (!qkv.rows) return;
    WITH_STORAGE(qkv.format, T, WITH_CACHE(kv->format, C, {
                     LAUNCH((kv_write_kernel<T, C>), dim3(qkv.rows), dim3(256), 0, stream_of(b),
                            cache_pages_of<C>(kv, layer, row_slot, row_position),
                            matrix_of<T>(qkv));
                 }));
}

// In place, columns from `first` on: keys and values. One block per row.
template <class T>
static __global__ void kv_round_kernel(tensor qkv, int first, const format f) {
    T* row = row_of<T>(qkv, blockIdx.x);
    for (int i = first + threadIdx.x; i < qkv.cols; i += blockDim.x)
        row[i] = to<T>(format_round(to_float(row[i]), &f));
}

static void cuda_kv_round(backend* b, tensor qkv, head_shape heads, const format* f) {
    if (!qkv.rows) return;
    WITH_STORAGE(qkv.format, T,
                 LAUNCH(kv_round_kernel<T>, dim3(qkv.rows), dim3(256), 0, stream_of(b), qkv,
                        heads.query * heads.dim, *f));
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

// A row attends in the order of training's attention (attention.cuh): the same steps of keys from
// position 0 on, the same lanes for each step's keys, the same rescaling. So where the cache, the
// operands and the rows have one format, a row has the bits that training gives it (N2). What
// training does beyond a query's own step changes nothing: those keys weigh 0.

// On tensor cores: a warp for each row and up to CACHED_HEADS query heads of a key head. These are
// the first of the 16 rows of a tile, the others zeros.
constexpr int CACHED_HEADS = 8;

// Positions first .. first + N - 1 of the block's row, keys (0) or values (1), into shared memory
// as operands, as mma_load leaves them; `end` is the first position that the row does not see.
template <int D, int N, class T, class C>
static __device__ inline void load_pages(T* shared, const cache_pages<C>& x, int key_head,
                                         int which, int first, int end) {
    constexpr int STRIDE = mma_shape<D>::STRIDE, EACH = packet<C>::N;
    for (int p = 0; p < N; p += KV_PAGE) {
        const C* page = NULL;
        if (first + p < end)
            page = page_of(x, blockIdx.x, (first + p) / KV_PAGE, key_head) +
                   which * KV_PAGE * x.head_dim;
        for (int i = threadIdx.x; x.packed && i < KV_PAGE * D / EACH; i += WARP) {
            int r = i / (D / EACH), c = i % (D / EACH) * EACH;
            bool valid = first + p + r < end && c < x.head_dim;
            T* target = shared + (p + r) * STRIDE + c;
            if constexpr (std::is_same_v<C, T>) {
                cp_async_16(target, valid ? page + r * x.head_dim + c : x.data, valid);
            } else {
                packet<C> part = {};
                if (valid) part = packet_load(page + r * x.head_dim + c);
                for (int e = 0; e < EACH; e += 4) {
                    four<T> values;
                    for (int k = 0; k < 4; k++) values.v[k] = to<T>(from_kept(part.v[e + k], x));
                    *(four<T>*)(target + e) = values;
                }
            }
        }
        for (int i = threadIdx.x; !x.packed && i < KV_PAGE * D; i += WARP) {
            int r = i / D, c = i % D;
            bool valid = first + p + r < end && c < x.head_dim;
            shared[(p + r) * STRIDE + c] =
                to<T>(valid ? from_kept(page[r * x.head_dim + c], x) : 0.0f);
        }
    }
}

template <class T, class C, int D>
static __global__ void __launch_bounds__(WARP)
    cached_mma(cache_pages<C> x, matrix<T> out, matrix<T> qkv, float scale) {
    constexpr int STEP = mma_shape<D>::FORWARD_STEP, STRIDE = mma_shape<D>::STRIDE;
    constexpr int BUFFER = STEP * STRIDE;
    DYN_SHARED(packet<T>, memory);
    T *q = (T*)memory, *k = q + 16 * STRIDE, *v = k + 2 * BUFFER;
    int position = x.row_position[blockIdx.x], lane = threadIdx.x;
    int group = x.heads / x.key_heads, parts = (group + CACHED_HEADS - 1) / CACHED_HEADS;
    int key_head = blockIdx.y / parts, first_head = blockIdx.y % parts * CACHED_HEADS;
    int heads = min(group - first_head, CACHED_HEADS), columns = heads * x.head_dim;
    int first_column = (key_head * group + first_head) * x.head_dim;
    T* to_row = out.data + blockIdx.x * out.stride + first_column;
    if (position < 0) {
        for (int d = lane; d < columns; d += WARP) to_row[d] = to<T>(0.0f);
        return;
    }
    auto load_step = [&](int step) {
        int buffer = step % 2 * BUFFER, first = step * STEP;
        load_pages<D, STEP>(k + buffer, x, key_head, 0, first, position + 1);
        load_pages<D, STEP>(v + buffer, x, key_head, 1, first, position + 1);
        cp_async_commit();
    };
    load_step(0);
    const T* from = qkv.data + blockIdx.x * qkv.stride + first_column;
    for (int i = lane; i < 16 * D; i += WARP) {
        int h = i / D, d = i % D;
        bool valid = h < heads && d < x.head_dim;
        q[h * STRIDE + d] = valid ? from[h * x.head_dim + d] : to<T>(0.0f);
    }

    int query[2] = {position}, steps = position / STEP + 1;
    float o[D / 8][4] = {}, max[2] = {minus_infinity(), minus_infinity()}, sum[2] = {};
    for (int step = 0; step < steps; step++) {
        int buffer = step % 2 * BUFFER;
        float s[STEP / 8][4];
        cp_async_wait<0>();
        __syncwarp();  // the step has arrived, and the other buffer is no longer read
        if (step + 1 < steps) load_step(step + 1);
        mma_scores<T, D, STEP>(s, q, k + buffer);
        mma_softmax<D, STEP, 1>(s, o, max, sum, query, step * STEP, scale);
        mma_weighted<T, D, STEP>(o, s, v + buffer);
    }
    mma_sums(sum);
    float inverse = 1.0f / sum[0];
    to_row += lane / 4 * x.head_dim;
    for (int i = 0; lane / 4 < heads && i < D / 4; i++) {
        int d = i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (d < x.head_dim) to_row[d] = to<T>(o[i / 2][i % 2] * inverse);
    }
}

// Without tensor cores: FMA_SIDE threads for each row and head, as for a row of forward_fma's tile,
// and so two heads a warp. Rows, cache and operands may differ in format.

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

// Four elements of a row of the cache, from a multiple of 4 on, as operands; zeros beyond head_dim.
template <class C>
static __device__ inline void load_operands(float (&x4)[4], const C* row, int d,
                                            const cache_pages<C>& x) {
    four<C> part = {};
    if (x.packed && d < x.head_dim)
        part = *(const four<C>*)(row + d);
    else
        for (int e = 0; e < 4 && d + e < x.head_dim; e++) part.v[e] = row[d + e];
    for (int e = 0; e < 4; e++) x4[e] = rounded(from_kept(part.v[e], x), x.operand);
}

template <class C, int D>
static __global__ void __launch_bounds__(WARP)
    cached_fma(cache_pages<C> x, stored_rows out, stored_rows qkv, float scale) {
    constexpr int TILE = fma_shape<D>::TILE, ROWS = fma_shape<D>::ROWS;
    constexpr int COLUMNS = fma_shape<D>::COLUMNS;
    __shared__ float queries[WARP / FMA_SIDE][D];
    int row = blockIdx.x, position = x.row_position[row], column = threadIdx.x % FMA_SIDE;
    int own = blockIdx.y * (WARP / FMA_SIDE) + threadIdx.x / FMA_SIDE;  // one too many may be
    int head = min(own, x.heads - 1), key_head = head / (x.heads / x.key_heads);
    int64_t first = (int64_t)head * x.head_dim;
    float* q = queries[threadIdx.x / FMA_SIDE];
    for (int d = column; d < D; d += FMA_SIDE) {
        float value =
            d < x.head_dim ? load_as(qkv.data, row * qkv.stride + first + d, qkv.element) : 0.0f;
        q[d] = rounded(value, x.operand);
    }
    __syncwarp();

    float o[COLUMNS] = {}, max = minus_infinity(), sum = 0;
    for (int tile = 0; tile <= position; tile += TILE) {
        // Positions column, column + 16, ... of the tile: one in each of its pages.
        const C* keys[ROWS];
        float s[ROWS] = {}, top = max;
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            int page = tile / KV_PAGE + j;
            keys[j] = page * KV_PAGE <= position ? page_of(x, row, page, key_head) : NULL;
            bool visible = tile + j * FMA_SIDE + column <= position;
            for (int d = 0; visible && d < x.head_dim; d += 4) {
                float k[4];
                load_operands(k, keys[j] + column * x.head_dim, d, x);
                for (int e = 0; e < 4; e++) s[j] = num_fma(q[d + e], k[e], s[j]);
            }
            s[j] = visible ? s[j] * scale : minus_infinity();
            top = fmaxf(top, s[j]);
        }
        top = side_max(top);
        float shrink = num_expf(max - top);
        max = top;
        sum *= shrink;
        for (int j = 0; j < ROWS; j++) {
            s[j] = num_expf(s[j] - top);
            sum += s[j];
            s[j] = rounded(s[j], x.operand);
        }
        for (int c = 0; c < COLUMNS; c++) o[c] *= shrink;
#pragma unroll
        for (int j = 0; j < ROWS; j++)
            for (int i = 0; i < KV_PAGE; i++) {
                float p = __shfl_sync(~0u, s[j], i, FMA_SIDE);
                if (tile + j * KV_PAGE + i > position) continue;
                const C* value = keys[j] + (KV_PAGE + i) * x.head_dim;
#pragma unroll
                for (int c = 0; c < COLUMNS; c += 4) {
                    float v[4];
                    load_operands(v, value, c * FMA_SIDE + column * 4, x);
                    for (int e = 0; e < 4; e++) o[c + e] = num_fma(p, v[e], o[c + e]);
                }
            }
    }
    sum = side_sum(sum);
    for (int c = 0; c < COLUMNS; c++) {
        int d = c / 4 * 64 + column * 4 + c % 4;
        if (own < x.heads && d < x.head_dim)
            store_as(out.data, row * out.stride + first + d, out.element,
                     position < 0 ? 0.0f : o[c] / sum);
    }
}

template <class T, class C, int D>
static void cached_mma_launch(backend* b, const tensor& out, const cache_pages<C>& x,
                              const tensor& qkv, float scale) {
    constexpr size_t shared =
        (16 + 4 * mma_shape<D>::FORWARD_STEP) * mma_shape<D>::STRIDE * sizeof(T);
    dim3 grid(out.rows, x.key_heads * blocks_for(x.heads / x.key_heads, CACHED_HEADS));
    LAUNCH((cached_mma<T, C, D>), grid, dim3(WARP), shared, stream_of(b), x, matrix_of<T>(out),
           matrix_of<T>(qkv), scale);
}

template <class C, int D>
static void cached_fma_launch(backend* b, const tensor& out, const cache_pages<C>& x,
                              const tensor& qkv, float scale) {
    LAUNCH((cached_fma<C, D>), dim3(out.rows, blocks_for(x.heads, WARP / FMA_SIDE)), dim3(WARP), 0,
           stream_of(b), x, stored_rows_of(out), stored_rows_of(qkv), scale);
}

// Which kernel: the choices of attention_launch, whatever the cache's format.
template <class T, class C>
static void cached_launch(backend* b, const tensor& out, const cache_pages<C>& x, const tensor& qkv,
                          bool stored_operands) {
    int d = x.head_dim;
    float scale = 1.0f / sqrtf((float)d);
    if (d > 256) fatal("the CUDA device has attention heads of at most 256 channels, not %d", d);
    if constexpr (sizeof(T) == 2) {
        if (!stored_operands || d > 128) return cached_fma_launch<C, 256>(b, out, x, qkv, scale);
        if (d <= 16) return cached_mma_launch<T, C, 16>(b, out, x, qkv, scale);
        if (d <= 32) return cached_mma_launch<T, C, 32>(b, out, x, qkv, scale);
        if (d <= 64) return cached_mma_launch<T, C, 64>(b, out, x, qkv, scale);
        return cached_mma_launch<T, C, 128>(b, out, x, qkv, scale);
    } else {
        if (d <= 64) return cached_fma_launch<C, 64>(b, out, x, qkv, scale);
        if (d <= 128) return cached_fma_launch<C, 128>(b, out, x, qkv, scale);
        return cached_fma_launch<C, 256>(b, out, x, qkv, scale);
    }
}

static void cuda_attention_cached(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                                  const int* row_slot, const int* row_position) {
    if (!out.rows) return;
    WITH_STORAGE(qkv.format, T, WITH_CACHE(kv->format, C, {
                     cached_launch<T>(b, out, cache_pages_of<C>(kv, layer, row_slot, row_position),
                                      qkv, kv->operand == qkv.format && out.format == qkv.format);
                 }));
}

// ------------------------------------------------------------------------------------------------
// Rows

#endif
