// A stand-in for cuBLASLt, so that llmc/device/cuda/cublaslt.cuh is tested without a GPU: how it
// opens the library, its plans and their keys, its calls. It is a shared library of the real one's
// name and binary interface, which the loader finds through LD_LIBRARY_PATH. The real header, where
// there is one, says whether cublaslt_abi.h has the real numbers, sizes and parameters.
//
// A product is summed in double and rounded once; twice, before and after the bias, where rows are
// not whole 16 bytes: there the real library does so too. It runs at its place in the stream
// (cudaLaunchHostFunc of the runtime that plays the GPU), where it asks that runtime for each
// column that it reads or writes (ptx_memory), so that an access outside an allocation ends the
// program. What the real library refuses is refused with LT_INVALID_VALUE. Where the real one would
// go on without a word, or its caller would go on without it, the program ends with one line.
//
// CUBLASLT_STATUS in the environment is what cublasLtCreate returns.
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../llmc/device/cuda/cublaslt_abi.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours " is not " #theirs)
SAME(LT_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(LT_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME(LT_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(LT_FP32, CUDA_R_32F);
SAME(LT_FP16, CUDA_R_16F);
SAME(LT_BF16, CUDA_R_16BF);
SAME(LT_COMPUTE_FP32, CUBLAS_COMPUTE_32F);
SAME(LT_COMPUTE_TF32, CUBLAS_COMPUTE_32F_FAST_TF32);
SAME(LT_AS_STORED, CUBLAS_OP_N);
SAME(LT_TRANSPOSED, CUBLAS_OP_T);
SAME(LT_EPILOGUE_NONE, CUBLASLT_EPILOGUE_DEFAULT);
SAME(LT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(LT_REDUCE_IN_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
SAME(LT_PRODUCT_TRANSPOSE_A, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(LT_PRODUCT_TRANSPOSE_B, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(LT_PRODUCT_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(LT_PRODUCT_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(LT_PRODUCT_BIAS_TYPE, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
SAME(LT_PREFER_WORKSPACE_MAX, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(LT_PREFER_REDUCTIONS, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(LT_PREFER_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(LT_PREFER_ALIGNMENT_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(LT_PREFER_ALIGNMENT_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(LT_PREFER_ALIGNMENT_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(sizeof(int), sizeof(cublasStatus_t));
SAME(sizeof(int), sizeof(cudaDataType_t));
SAME(sizeof(int), sizeof(cublasComputeType_t));
SAME(sizeof(int), sizeof(cublasLtMatmulDescAttributes_t));
SAME(sizeof(int), sizeof(cublasLtMatmulPreferenceAttributes_t));
SAME(sizeof(lt_algorithm), sizeof(cublasLtMatmulAlgo_t));
SAME(sizeof(lt_proposal), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(lt_proposal, algorithm), offsetof(cublasLtMatmulHeuristicResult_t, algo));
SAME(offsetof(lt_proposal, workspace), offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(lt_proposal, status), offsetof(cublasLtMatmulHeuristicResult_t, state));

// The real functions with the parameters of lt_functions. Nothing calls these; that they compile
// without a conversion says that numbers have the same sizes and signs and pointers the same
// places.
#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wconversion"
#pragma GCC diagnostic error "-Wint-conversion"
static int real_create(void** handle) { return (int)cublasLtCreate((void*)handle); }
static int real_destroy(void* handle) { return (int)cublasLtDestroy(handle); }
static int real_product_create(void** product, int compute, int scale) {
    return (int)cublasLtMatmulDescCreate((void*)product, (cublasComputeType_t)compute,
                                         (cudaDataType_t)scale);
}
static int real_product_destroy(void* product) { return (int)cublasLtMatmulDescDestroy(product); }
static int real_product_set(void* product, int attribute, const void* value, size_t bytes) {
    return (int)cublasLtMatmulDescSetAttribute(product, (cublasLtMatmulDescAttributes_t)attribute,
                                               value, bytes);
}
static int real_layout_create(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    return (int)cublasLtMatrixLayoutCreate((void*)layout, (cudaDataType)type, rows, cols, ld);
}
static int real_layout_destroy(void* layout) { return (int)cublasLtMatrixLayoutDestroy(layout); }
static int real_preference_create(void** preference) {
    return (int)cublasLtMatmulPreferenceCreate((void*)preference);
}
static int real_preference_destroy(void* preference) {
    return (int)cublasLtMatmulPreferenceDestroy(preference);
}
static int real_preference_set(void* preference, int attribute, const void* value, size_t bytes) {
    return (int)cublasLtMatmulPreferenceSetAttribute(
        preference, (cublasLtMatmulPreferenceAttributes_t)attribute, value, bytes);
}
static int real_propose(void* handle, void* product, void* a, void* b, void* c, void* d,
                        void* preference, int room, lt_proposal* proposals, int* count) {
    return (int)cublasLtMatmulAlgoGetHeuristic(handle, product, a, b, c, d, preference, room,
                                               (void*)proposals, count);
}
static int real_multiply(void* handle, void* product, const void* alpha, const void* a,
                         void* a_layout, const void* b, void* b_layout, const void* beta,
                         const void* c, void* c_layout, void* d, void* d_layout,
                         const lt_algorithm* algorithm, void* workspace, size_t workspace_bytes,
                         void* stream) {
    return (int)cublasLtMatmul(handle, product, alpha, a, a_layout, b, b_layout, beta, c, c_layout,
                               d, d_layout, (const void*)algorithm, workspace, workspace_bytes,
                               stream);
}
#pragma GCC diagnostic pop
#define REAL(ours, theirs) .ours = real_##ours,
__attribute__((unused)) static const lt_functions REAL_FUNCTIONS = {LT_FUNCTIONS(REAL)};

#endif

// Of the runtime that plays the GPU: runs a function at its place in a stream; and the host address
// of device memory, which ends the program where it is none.
int launch_host(void* stream, void (*run)(void*), void* data) __asm__("cudaLaunchHostFunc");
void* ptx_memory(const void* device, size_t bytes, int write);

// ------------------------------------------------------------------------------------------------
// Objects. They stay in memory until the last handle goes, so that a destroyed one is recognised.

typedef enum { GONE, HANDLE, PRODUCT, LAYOUT, PREFERENCE } kind;

typedef struct product {
    int compute, transpose_a, transpose_b, epilogue, bias_type;
    const void* bias;
} product;

typedef struct layout {
    int type;
    int64_t rows, cols, stride;
} layout;

typedef struct preference {
    uint64_t workspace;
    uint32_t reductions, alignment[4];  // of a, b, c, d
} preference;

typedef struct object {
    kind is;
    struct object* next;
    union {
        product product;
        layout layout;
        preference preference;
    };
} object;

static object* objects;
static int alive[PREFERENCE + 1];

static void mistake(const char* what) {
    fprintf(stderr, "cuBLASLt (the tests' stand-in): %s\n", what);
    abort();
}

static object* object_new(void** to, kind is) {
    object* o = calloc(1, sizeof *o);
    if (!o) mistake("no memory");
    o->is = is;
    o->next = objects;
    objects = o;
    alive[is]++;
    *to = o;
    return o;
}

static bool is(const void* o, kind k) { return o && ((const object*)o)->is == k; }

static int object_destroy(void* o, kind k) {
    if (!is(o, k)) return LT_INVALID_VALUE;
    ((object*)o)->is = GONE;
    alive[k]--;
    return LT_SUCCESS;
}

// Takes a value of an attribute that has `size` bytes.
static int take(void* to, size_t size, const void* value, size_t bytes) {
    if (!value || bytes != size) return LT_INVALID_VALUE;
    memcpy(to, value, size);
    return LT_SUCCESS;
}

// ------------------------------------------------------------------------------------------------
// Elements

static size_t bytes_of(int type) { return type == LT_FP32 ? 4 : 2; }

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static double element_read(const char* from, int type) {
    uint16_t half;
    float x;
    memcpy(&half, from, 2);
    if (type == LT_BF16) return float_of((uint32_t)half << 16);
    if (type == LT_FP16) {
        _Float16 h;
        memcpy(&h, from, 2);
        return (double)h;
    }
    memcpy(&x, from, 4);
    return x;
}

// x as a float, an inexact one made odd, so that rounding it again to fewer bits is one rounding.
static uint32_t odd_bits(double x) {
    float f = (float)x;
    uint32_t bits = bits_of(f);
    if (x != x || (double)f == x) return bits;
    if (__builtin_fabs((double)f) > __builtin_fabs(x)) bits--;
    return bits | 1;
}

static void element_write(char* to, int type, double x) {
    float single = (float)x;
    _Float16 half = (_Float16)x;
    uint32_t bits = odd_bits(x);
    uint16_t brief = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    if (x != x) brief = 0x7fff;
    if (type == LT_FP32) memcpy(to, &single, 4);
    if (type == LT_FP16) memcpy(to, &half, 2);
    if (type == LT_BF16) memcpy(to, &brief, 2);
}

// x of an operand in tf32, 10 mantissa bits: cut, as a tensor core does with what nobody rounded.
static double tf32_of(double x) { return x == x ? float_of(bits_of((float)x) & ~0x1fffu) : x; }

// ------------------------------------------------------------------------------------------------
// A product, all that it needs by value: the caller may change its descriptors before the stream
// comes to it. It lives as long as the library is in use: a graph may run it again.

enum { A, B, C, D, MATRICES };

typedef struct work {
    product how;
    layout layout[MATRICES];
    const char* data[MATRICES];
    float alpha, beta;
    void* workspace;
    size_t workspace_bytes;
    struct work* next;
} work;
static work* works;

// Column j of a matrix, on the host.
static char* column(const work* w, int which, int64_t j, int write) {
    const layout* l = &w->layout[which];
    size_t each = bytes_of(l->type);
    return ptx_memory(w->data[which] + (size_t)(j * l->stride) * each, (size_t)l->rows * each,
                      write);
}

// Operand `which` as (outer, k) rows: rows of op(A), columns of op(B).
static double* operand(const work* w, int which, bool along_columns) {
    const layout* l = &w->layout[which];
    int64_t depth = along_columns ? l->rows : l->cols;
    double* to = malloc((size_t)(l->rows * l->cols) * sizeof *to);
    if (!to) mistake("no memory");
    for (int64_t j = 0; j < l->cols; j++) {
        const char* from = column(w, which, j, 0);
        for (int64_t i = 0; i < l->rows; i++) {
            double x = element_read(from + (size_t)i * bytes_of(l->type), l->type);
            if (w->how.compute == LT_COMPUTE_TF32) x = tf32_of(x);
            to[along_columns ? j * depth + i : i * depth + j] = x;
        }
    }
    return to;
}

// Whether the real library would take a kernel that rounds to the output's type before it adds a
// bias, and once more after that.
static bool rounds_twice(const work* w) {
    for (int i = 0; i < MATRICES; i++)
        if (w->layout[i].stride * (int64_t)bytes_of(w->layout[i].type) % 16) return true;
    return false;
}

static double rounded(double x, int type) {
    char element[4] = {0};
    element_write(element, type, x);
    return element_read(element, type);
}

static void run(void* data) {
    work* w = data;
    const layout* d = &w->layout[D];
    bool a_along = w->how.transpose_a, b_along = !w->how.transpose_b;
    int64_t k = a_along ? w->layout[A].rows : w->layout[A].cols;
    size_t each = bytes_of(d->type);
    bool twice = rounds_twice(w);
    double *a = operand(w, A, a_along), *b = operand(w, B, b_along);
    const char* bias = w->how.epilogue == LT_EPILOGUE_BIAS
                           ? ptx_memory(w->how.bias, (size_t)d->rows * each, 0)
                           : NULL;
    for (int64_t j = 0; j < d->cols; j++) {
        const char* c = w->beta != 0 ? column(w, C, j, 0) : NULL;
        char* to = column(w, D, j, 1);
        for (int64_t i = 0; i < d->rows; i++) {
            const double *x = a + i * k, *y = b + j * k;
            double sum = 0;
            for (int64_t l = 0; l < k; l++) sum += x[l] * y[l];
            sum *= w->alpha;
            if (c) sum += w->beta * element_read(c + (size_t)i * each, d->type);
            if (bias && twice) sum = rounded(sum, d->type);
            if (bias) sum += element_read(bias + (size_t)i * each, d->type);
            element_write(to + (size_t)i * each, d->type, sum);
        }
    }
    // What was in the workspace is lost, as with the real library.
    if (w->workspace_bytes)
        memset(ptx_memory(w->workspace, w->workspace_bytes, 1), 0xff, w->workspace_bytes);
    free(a);
    free(b);
}

// ------------------------------------------------------------------------------------------------
// Algorithms. One holds the product that it was proposed for, so that it is not taken for another.

enum { MAGIC = 0x6c745f61 };
enum { ALGORITHM_MAGIC, ALGORITHM_FOR, ALGORITHM_WORKSPACE, ALGORITHM_ALIGNMENT };

static uint64_t mixed(uint64_t hash, int64_t x) {
    return (hash ^ (uint64_t)x) * 0x9e3779b97f4a7c15u + (hash >> 29);
}

static uint64_t fingerprint(const product* p, const layout* const l[MATRICES]) {
    uint64_t hash = 1;
    const int attributes[] = {p->compute, p->transpose_a, p->transpose_b, p->epilogue,
                              p->bias_type};
    for (int i = 0; i < 5; i++) hash = mixed(hash, attributes[i]);
    for (int i = 0; i < MATRICES; i++) {
        hash = mixed(hash, l[i]->type);
        hash = mixed(hash, l[i]->rows);
        hash = mixed(hash, l[i]->cols);
        hash = mixed(hash, l[i]->stride);
    }
    return hash;
}

// Whether the matrices belong together.
static bool shapes_fit(const product* p, const layout* const l[MATRICES]) {
    int64_t m = p->transpose_a ? l[A]->cols : l[A]->rows;
    int64_t k = p->transpose_a ? l[A]->rows : l[A]->cols;
    int64_t n = p->transpose_b ? l[B]->rows : l[B]->cols;
    if (k != (p->transpose_b ? l[B]->cols : l[B]->rows)) return false;
    for (int i = C; i <= D; i++)
        if (l[i]->rows != m || l[i]->cols != n) return false;
    return true;
}

// The combinations of types that the real library has, of those that are known here.
static bool types_supported(const product* p, const layout* const l[MATRICES]) {
    int in = l[A]->type, out = l[D]->type;
    if (l[B]->type != in || l[C]->type != out) return false;
    if (p->compute == LT_COMPUTE_TF32 && in != LT_FP32) return false;
    if (p->epilogue == LT_EPILOGUE_BIAS && p->bias_type != out) return false;
    return out == LT_FP32 || out == in;
}

static bool layouts(const layout* to[MATRICES], void* const from[MATRICES]) {
    for (int i = 0; i < MATRICES; i++) {
        if (!is(from[i], LAYOUT)) return false;
        to[i] = &((object*)from[i])->layout;
    }
    return true;
}

// ------------------------------------------------------------------------------------------------
// The library's functions

#define DECLARE(ours, theirs) __typeof__(*((lt_functions*)0)->ours) lt_##ours __asm__(#theirs);
LT_FUNCTIONS(DECLARE)

int lt_create(void** handle) {
    const char* status = getenv("CUBLASLT_STATUS");
    if (status && atoi(status) != LT_SUCCESS) return atoi(status);
    object_new(handle, HANDLE);
    return LT_SUCCESS;
}

int lt_destroy(void* handle) {
    int status = object_destroy(handle, HANDLE);
    if (status != LT_SUCCESS || alive[HANDLE]) return status;
    if (alive[PRODUCT]) mistake("a product's descriptor was not destroyed");
    if (alive[LAYOUT]) mistake("a layout was not destroyed");
    if (alive[PREFERENCE]) mistake("a preference was not destroyed");
    while (objects) {
        object* next = objects->next;
        free(objects);
        objects = next;
    }
    while (works) {
        work* next = works->next;
        free(works);
        works = next;
    }
    return LT_SUCCESS;
}

int lt_product_create(void** to, int compute, int scale_type) {
    if (compute != LT_COMPUTE_FP32 && compute != LT_COMPUTE_TF32) return LT_INVALID_VALUE;
    if (scale_type != LT_FP32) return LT_INVALID_VALUE;
    object_new(to, PRODUCT)->product =
        (product){.compute = compute, .epilogue = LT_EPILOGUE_NONE, .bias_type = -1};
    return LT_SUCCESS;
}

int lt_product_destroy(void* p) { return object_destroy(p, PRODUCT); }

int lt_product_set(void* o, int attribute, const void* value, size_t bytes) {
    if (!is(o, PRODUCT)) return LT_INVALID_VALUE;
    product* p = &((object*)o)->product;
    switch (attribute) {
        case LT_PRODUCT_TRANSPOSE_A:
            return take(&p->transpose_a, sizeof(int), value, bytes);
        case LT_PRODUCT_TRANSPOSE_B:
            return take(&p->transpose_b, sizeof(int), value, bytes);
        case LT_PRODUCT_EPILOGUE:
            return take(&p->epilogue, sizeof(int), value, bytes);
        case LT_PRODUCT_BIAS_POINTER:
            return take(&p->bias, sizeof(void*), value, bytes);
        case LT_PRODUCT_BIAS_TYPE:
            return take(&p->bias_type, sizeof(int), value, bytes);
        default:
            return LT_INVALID_VALUE;
    }
}

// The real library refuses a stride later, where its answer is also that it has no algorithm.
int lt_layout_create(void** to, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    if (type != LT_FP32 && type != LT_FP16 && type != LT_BF16) return LT_INVALID_VALUE;
    if (!rows || !cols || stride < (int64_t)rows) return LT_INVALID_VALUE;
    object_new(to, LAYOUT)->layout = (layout){type, (int64_t)rows, (int64_t)cols, stride};
    return LT_SUCCESS;
}

int lt_layout_destroy(void* l) { return object_destroy(l, LAYOUT); }

int lt_preference_create(void** to) {
    object_new(to, PREFERENCE)->preference =
        (preference){.reductions = ~0u, .alignment = {256, 256, 256, 256}};
    return LT_SUCCESS;
}

int lt_preference_destroy(void* p) { return object_destroy(p, PREFERENCE); }

int lt_preference_set(void* o, int attribute, const void* value, size_t bytes) {
    if (!is(o, PREFERENCE)) return LT_INVALID_VALUE;
    preference* p = &((object*)o)->preference;
    if (attribute == LT_PREFER_WORKSPACE_MAX) return take(&p->workspace, 8, value, bytes);
    if (attribute == LT_PREFER_REDUCTIONS) return take(&p->reductions, 4, value, bytes);
    if (attribute < LT_PREFER_ALIGNMENT_A || attribute > LT_PREFER_ALIGNMENT_D)
        return LT_INVALID_VALUE;
    return take(&p->alignment[attribute - LT_PREFER_ALIGNMENT_A], 4, value, bytes);
}

int lt_propose(void* handle, void* o, void* a, void* b, void* c, void* d, void* preferred, int room,
               lt_proposal* to, int* count) {
    const layout* l[MATRICES];
    if (!is(handle, HANDLE) || !is(o, PRODUCT) || !is(preferred, PREFERENCE) || room < 1 ||
        !layouts(l, (void* [MATRICES]){a, b, c, d}))
        mistake("the heuristic got something that is not what it should be");
    const product* how = &((object*)o)->product;
    const preference* p = &((object*)preferred)->preference;
    if (!shapes_fit(how, l)) mistake("the heuristic got matrices that do not fit each other");
    if (p->reductions & ~(uint32_t)LT_REDUCE_IN_COMPUTE_TYPE)
        mistake("sums may be split and rounded: two roundings, or an order that varies");
    *count = 0;
    if (!types_supported(how, l)) return LT_NOT_SUPPORTED;
    *to = (lt_proposal){.status = LT_SUCCESS, .waves = 1};
    to->workspace = p->workspace < 4096 ? p->workspace : 4096;
    uint64_t* data = to->algorithm.data;
    data[ALGORITHM_MAGIC] = MAGIC;
    data[ALGORITHM_FOR] = fingerprint(how, l);
    data[ALGORITHM_WORKSPACE] = to->workspace;
    for (int i = 0; i < MATRICES; i++) data[ALGORITHM_ALIGNMENT + i] = p->alignment[i];
    *count = 1;
    return LT_SUCCESS;
}

int lt_multiply(void* handle, void* o, const void* alpha, const void* a, void* a_layout,
                const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                void* d, void* d_layout, const lt_algorithm* algorithm, void* workspace,
                size_t workspace_bytes, void* stream) {
    const layout* l[MATRICES];
    const void* data[MATRICES] = {a, b, c, d};
    void* const from[MATRICES] = {a_layout, b_layout, c_layout, d_layout};
    if (!is(handle, HANDLE) || !is(o, PRODUCT) || !layouts(l, from)) return LT_INVALID_VALUE;
    const product* how = &((object*)o)->product;
    if (!alpha || !beta || !algorithm || !shapes_fit(how, l)) return LT_INVALID_VALUE;
    if (algorithm->data[ALGORITHM_MAGIC] != MAGIC) return LT_INVALID_VALUE;
    if (algorithm->data[ALGORITHM_FOR] != fingerprint(how, l)) return LT_INVALID_VALUE;
    if (workspace_bytes != algorithm->data[ALGORITHM_WORKSPACE]) return LT_INVALID_VALUE;
    if (workspace_bytes && !workspace) return LT_INVALID_VALUE;
    if (how->epilogue == LT_EPILOGUE_BIAS && !how->bias) return LT_INVALID_VALUE;
    // Kernels may read it in accesses as wide as those that write D.
    if (how->epilogue == LT_EPILOGUE_BIAS &&
        (uintptr_t)how->bias % algorithm->data[ALGORITHM_ALIGNMENT + D])
        mistake("a bias is less aligned than D");
    work* w = calloc(1, sizeof *w);
    if (!w) mistake("no memory");
    w->next = works;
    works = w;
    for (int i = 0; i < MATRICES; i++) {
        if (!data[i] || (uintptr_t)data[i] % algorithm->data[ALGORITHM_ALIGNMENT + i])
            mistake("a matrix does not lie where its preference said");
        w->layout[i] = *l[i];
        w->data[i] = data[i];
    }
    w->how = *how;
    memcpy(&w->alpha, alpha, 4);
    memcpy(&w->beta, beta, 4);
    w->workspace = workspace;
    w->workspace_bytes = workspace_bytes;
    if (launch_host(stream, run, w)) mistake("the runtime refused a host function");
    return LT_SUCCESS;
}
