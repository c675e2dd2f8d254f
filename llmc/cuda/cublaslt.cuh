// NVIDIA's matrix products, cuBLASLt, behind one file. The library is opened when the device is,
// and a program built with this file runs without it; without its header none is opened.
//
// A product of rows is, to a library that counts by columns, C^T = B^T A^T: the first operand is B,
// and a row of bias values goes with a row of C^T. What cuBLASLt needs to know of a product
// (descriptors, the algorithm its heuristic proposes) is a plan; plans are kept by everything that
// they depend on. Where the heuristic proposes nothing, the caller takes the handwritten product.
//
// Sums are fp32 and split sums stay fp32 (no reduction in the output's type or in place): the same
// call gives the same bits, but not the bits of the handwritten product, nor row independence.
#ifndef LLMC_CUDA_CUBLASLT_CUH
#define LLMC_CUDA_CUBLASLT_CUH

#include "gemm.cuh"

#if defined(CUDA_SHIM) || !__has_include(<cublasLt.h>)

static inline cublaslt* cublaslt_open(backend*) { return NULL; }
static inline void cublaslt_close(backend*, cublaslt*) {}
static inline bool cublaslt_product(backend*, cublaslt*, const product&) { return false; }

#else

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>

enum {
    PLAN_BUCKETS = 1024,
    PLANS_MAX = 8192,      // then all are dropped: a run with ever new shapes stays small
    PLAN_ALIGNMENT = 16,   // bytes; more makes no faster kernel
    WORKSPACE = 32 << 20,  // bytes, what the library asks for on Hopper
    BIAS_THREADS = 256,
};

// Everything that a plan depends on; padding is 0, so that keys compare as bytes.
struct plan_key {
    int64_t a_stride, b_stride, c_stride;
    const format *operand, *c_format;
    int m, n, k;
    int a_alignment, b_alignment, c_alignment;
    int a_transposed, b_transposed, accumulate, bias;
};

struct plan {
    plan_key key;
    plan* next;  // of the same bucket
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
    bool known;  // false: the library has no algorithm
};

// The library's functions, by their names.
#define CUBLASLT_FUNCTIONS(X)               \
    X(cublasLtCreate)                       \
    X(cublasLtDestroy)                      \
    X(cublasLtMatmul)                       \
    X(cublasLtMatmulAlgoGetHeuristic)       \
    X(cublasLtMatmulDescCreate)             \
    X(cublasLtMatmulDescDestroy)            \
    X(cublasLtMatmulDescSetAttribute)       \
    X(cublasLtMatmulPreferenceCreate)       \
    X(cublasLtMatmulPreferenceDestroy)      \
    X(cublasLtMatmulPreferenceSetAttribute) \
    X(cublasLtMatrixLayoutCreate)           \
    X(cublasLtMatrixLayoutDestroy)

struct cublaslt {
    void* library;
    cublasLtHandle_t handle;
    void* workspace;
    plan* plans[PLAN_BUCKETS];
    int count;
#define CUBLASLT_MEMBER(name) decltype(&::name) name;
    CUBLASLT_FUNCTIONS(CUBLASLT_MEMBER)
#undef CUBLASLT_MEMBER
};

#define CUBLASLT_CHECK(call) cublaslt_check(call, #call)
static void cublaslt_check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fatal("cuBLASLt: %s failed with status %d; --device cpu does without it", what,
              (int)status);
}

// ------------------------------------------------------------------------------------------------
// The library

// By its name, which the loader looks for, or in the toolkit's folder; NULL if it is nowhere.
static void* cublaslt_find(void) {
    static const char* const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    const char* home = getenv("CUDA_HOME");
    const char* const roots[] = {"", home ? home : "/usr/local/cuda", "/usr/local/cuda"};
    void* library = NULL;
    for (const char* root : roots)
        for (const char* name : names) {
            char* path = xprintf("%s%s%s", root, *root ? "/lib64/" : "", name);
            if (!library) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            free(path);
        }
    return library;
}

// Whether all functions are there.
static bool cublaslt_load(cublaslt* l) {
    bool all = true;
#define CUBLASLT_LOAD(name)                                \
    l->name = (decltype(l->name))dlsym(l->library, #name); \
    all = all && l->name;
    CUBLASLT_FUNCTIONS(CUBLASLT_LOAD)
#undef CUBLASLT_LOAD
    return all;
}

// NULL where the library is not found.
static cublaslt* cublaslt_open(backend* b) {
    void* library = cublaslt_find();
    if (!library) return NULL;
    cublaslt* l = (cublaslt*)xalloc(1, sizeof *l, "cuBLASLt");
    l->library = library;
    if (!cublaslt_load(l)) {
        dlclose(library);
        free(l);
        return NULL;
    }
    CUBLASLT_CHECK(l->cublasLtCreate(&l->handle));
    l->workspace = b->alloc(b, WORKSPACE, "cuBLASLt's workspace");
    return l;
}

static void plan_free(cublaslt* l, plan* p) {
    CUBLASLT_CHECK(l->cublasLtMatmulDescDestroy(p->operation));
    CUBLASLT_CHECK(l->cublasLtMatrixLayoutDestroy(p->a));
    CUBLASLT_CHECK(l->cublasLtMatrixLayoutDestroy(p->b));
    CUBLASLT_CHECK(l->cublasLtMatrixLayoutDestroy(p->c));
    free(p);
}

static void plans_free(cublaslt* l) {
    for (plan*& bucket : l->plans)
        while (bucket) {
            plan* next = bucket->next;
            plan_free(l, bucket);
            bucket = next;
        }
    l->count = 0;
}

static void cublaslt_close(backend* b, cublaslt* l) {
    if (!l) return;
    plans_free(l);
    CUBLASLT_CHECK(l->cublasLtDestroy(l->handle));
    b->release(b, l->workspace, WORKSPACE);
    dlclose(l->library);
    free(l);
}

// ------------------------------------------------------------------------------------------------
// Plans

static int alignment_of(const void* p) {
    uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low && low < PLAN_ALIGNMENT ? (int)low : PLAN_ALIGNMENT;
}

static plan_key plan_key_of(const product& p) {
    plan_key key;
    memset(&key, 0, sizeof key);
    key.a_stride = p.a_stride, key.b_stride = p.b_stride, key.c_stride = p.c_stride;
    key.operand = p.operand, key.c_format = p.c_format;
    key.m = p.m, key.n = p.n, key.k = p.k;
    key.a_alignment = alignment_of(p.a);
    key.b_alignment = alignment_of(p.b);
    key.c_alignment = alignment_of(p.c);
    key.a_transposed = p.a_transposed, key.b_transposed = p.b_transposed;
    key.accumulate = p.accumulate, key.bias = p.bias != NULL;
    return key;
}

static plan** plan_bucket(cublaslt* l, const plan_key& key) {
    uint64_t hash = 0;
    const int* words = (const int*)&key;
    for (size_t i = 0; i < sizeof key / sizeof *words; i++)
        hash = (hash ^ (uint32_t)words[i]) * 0x9e3779b97f4a7c15u;
    return &l->plans[hash >> 32 & (PLAN_BUCKETS - 1)];
}

static cudaDataType_t cublaslt_type(const format* f) {
    switch (storage_of(f)) {
        case STORE_BF16:
            return CUDA_R_16BF;
        case STORE_FP16:
            return CUDA_R_16F;
        default:
            return CUDA_R_32F;
    }
}

// A matrix of `rows` rows as the library counts them: columns.
static cublasLtMatrixLayout_t plan_layout(cublaslt* l, const format* f, int rows, int cols,
                                          int64_t stride) {
    cublasLtMatrixLayout_t layout;
    CUBLASLT_CHECK(l->cublasLtMatrixLayoutCreate(&layout, cublaslt_type(f), cols, rows, stride));
    return layout;
}

template <class V>
static void plan_set(cublaslt* l, plan* p, cublasLtMatmulDescAttributes_t what, const V& value) {
    CUBLASLT_CHECK(l->cublasLtMatmulDescSetAttribute(p->operation, what, &value, sizeof value));
}

static void plan_describe(cublaslt* l, plan* p, const plan_key& k) {
    bool tf32 = k.operand == &FORMAT_TF32;
    cublasOperation_t first = k.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = k.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLASLT_CHECK(l->cublasLtMatmulDescCreate(
        &p->operation, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    plan_set(l, p, CUBLASLT_MATMUL_DESC_TRANSA, first);
    plan_set(l, p, CUBLASLT_MATMUL_DESC_TRANSB, second);
    if (k.bias) {
        plan_set(l, p, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        plan_set(l, p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cublaslt_type(k.c_format));
    }
    p->a = plan_layout(l, k.operand, k.a_transposed ? k.k : k.m, k.a_transposed ? k.m : k.k,
                       k.a_stride);
    p->b = plan_layout(l, k.operand, k.b_transposed ? k.n : k.k, k.b_transposed ? k.k : k.n,
                       k.b_stride);
    p->c = plan_layout(l, k.c_format, k.m, k.n, k.c_stride);
}

// The algorithm that the library's heuristic puts first.
static void plan_choose(cublaslt* l, plan* p) {
    cublasLtMatmulPreference_t preference;
    auto set = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
        CUBLASLT_CHECK(
            l->cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value));
    };
    CUBLASLT_CHECK(l->cublasLtMatmulPreferenceCreate(&preference));
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)WORKSPACE);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)p->key.b_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)p->key.a_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)p->key.c_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)p->key.c_alignment);
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    cublasStatus_t status = l->cublasLtMatmulAlgoGetHeuristic(
        l->handle, p->operation, p->b, p->a, p->c, p->c, preference, 1, &best, &found);
    CUBLASLT_CHECK(l->cublasLtMatmulPreferenceDestroy(preference));
    p->known = status == CUBLAS_STATUS_SUCCESS && found && best.state == CUBLAS_STATUS_SUCCESS;
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
        cublaslt_check(status, "choosing an algorithm");
    if (!p->known) return;
    p->algorithm = best.algo;
    p->workspace = best.workspaceSize;
}

// `bias` as the library takes it, or NULL.
static plan* plan_for(cublaslt* l, const product& product, const void* bias) {
    plan_key key = plan_key_of(product);
    for (plan* p = *plan_bucket(l, key); p; p = p->next)
        if (!memcmp(&p->key, &key, sizeof key)) return p;
    if (l->count == PLANS_MAX) plans_free(l);
    plan* p = (plan*)xalloc(1, sizeof *p, "a plan of a matrix product");
    p->key = key;
    plan_describe(l, p, key);
    if (bias) plan_set(l, p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    plan_choose(l, p);
    plan** bucket = plan_bucket(l, key);
    p->next = *bucket;
    *bucket = p;
    l->count++;
    return p;
}

// ------------------------------------------------------------------------------------------------
// Products

template <class T>
static __global__ void bias_kernel(T* to_type, const float* bias, int n) {
    int i = blockIdx.x * BIAS_THREADS + threadIdx.x;
    if (i < n) to_type[i] = to<T>(bias[i]);
}

// The bias as the library takes it: of the output's type (exact: its values are rounded to the
// format already) and aligned.
static const void* cublaslt_bias(backend* b, const product& p) {
    if (storage_of(p.c_format) == STORE_FP32 && alignment_of(p.bias) == PLAN_ALIGNMENT)
        return p.bias;
    void* copy = cuda_scratch(b, SCRATCH_OPERAND, p.n * sizeof(float));
    WITH_STORAGE(p.c_format, T,
                 LAUNCH(bias_kernel<T>, dim3(blocks_for(p.n, BIAS_THREADS)), dim3(BIAS_THREADS), 0,
                        stream_of(b), (T*)copy, p.bias, p.n));
    return copy;
}

// Whether the library has done it.
static bool cublaslt_product(backend* b, cublaslt* l, const product& p) {
    const void* bias = p.bias ? cublaslt_bias(b, p) : NULL;
    plan* how = plan_for(l, p, bias);
    if (!how->known) return false;
    if (bias) plan_set(l, how, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    float one = 1, beta = p.accumulate ? 1 : 0;
    CUBLASLT_CHECK(l->cublasLtMatmul(l->handle, how->operation, &one, p.b, how->b, p.a, how->a,
                                     &beta, p.c, how->c, p.c, how->c, &how->algorithm, l->workspace,
                                     how->workspace, stream_of(b)));
    return true;
}

#endif
#endif
