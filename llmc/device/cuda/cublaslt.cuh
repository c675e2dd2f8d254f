// NVIDIA's matrix products, cuBLASLt, behind one file. The library is opened when the device is,
// and a program built with this file runs without it, and is built without its header.
//
// A product of rows is, to a library that counts by columns, C^T = B^T A^T: the first operand is B,
// and a row of bias values goes with a row of C^T. What cuBLASLt needs to know of a product
// (descriptors, the algorithm its heuristic proposes) is a plan; plans are kept by everything that
// they depend on. Where the heuristic proposes nothing, or would propose a kernel that rounds twice
// (cublaslt_takes), the caller takes the handwritten product.
//
// Sums are fp32 and split sums stay fp32 (no reduction in the output's type or in place): the same
// call gives the same bits, but not the bits of the handwritten product, nor row independence.
#ifndef LLMC_CUDA_CUBLASLT_CUH
#define LLMC_CUDA_CUBLASLT_CUH

#include <dlfcn.h>
#include <stdlib.h>

#include "cublaslt_abi.h"
#include "gemm.cuh"

enum {
    PLAN_BUCKETS = 1024,
    PLANS_MAX = 8192,      // then all are dropped: a run with ever new shapes stays small
    LT_ALIGNMENT = 16,     // bytes; see cublaslt_takes
    WORKSPACE = 32 << 20,  // bytes, what the library asks for on Hopper
    BIAS_THREADS = 256,
};

// Everything that a plan depends on; padding is 0, so that keys compare as bytes.
struct plan_key {
    int64_t a_stride, b_stride, c_stride;
    const format *operand, *c_format;
    int m, n, k;
    int a_transposed, b_transposed, bias;
};

struct plan {
    plan_key key;
    plan* next;  // of the same bucket
    void* operation;
    void *a, *b, *c;  // layouts
    lt_algorithm algorithm;
    size_t workspace;
    bool known;  // false: the library has no algorithm
};

struct cublaslt {
    void* library;
    lt_functions call;
    void* handle;
    void* workspace;
    plan* plans[PLAN_BUCKETS];
    int count;
};

#define CUBLASLT_CHECK(call) cublaslt_check(call, #call)
static void cublaslt_check(int status, const char* what) {
    if (status != LT_SUCCESS)
        fatal("cuBLASLt: %s failed with status %d; --device cpu does without it", what, status);
}

// ------------------------------------------------------------------------------------------------
// The library

// A library by its name, which the loader looks for, or in the toolkit's folder; NULL if it is
// nowhere.
static void* cublaslt_find_named(const char* name) {
    const char* home = getenv("CUDA_HOME");
    const char* const roots[] = {"", home ? home : "/usr/local/cuda", "/usr/local/cuda"};
    void* library = NULL;
    for (const char* root : roots) {
        char* path = xprintf("%s%s%s", root, *root ? "/lib64/" : "", name);
        if (!library) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        free(path);
    }
    return library;
}

// The release of this build's CUDA runtime comes first: another one's library may be newer than the
// driver, or bring a second copy of what both need.
static void* cublaslt_find(void) {
    int runtime = 0;  // CUDART_VERSION of the build, since the runtime is linked in
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    void* library = NULL;
    for (int release : {runtime / 1000, 13, 12}) {
        char* name = xprintf("libcublasLt.so.%d", release);
        if (!library) library = cublaslt_find_named(name);
        free(name);
    }
    return library ? library : cublaslt_find_named("libcublasLt.so");
}

// NULL where all functions are there, else the name of one that is not.
static const char* cublaslt_load(cublaslt* l) {
    const char* missing = NULL;
#define CUBLASLT_LOAD(ours, theirs)                                    \
    l->call.ours = (decltype(l->call.ours))dlsym(l->library, #theirs); \
    if (!l->call.ours) missing = #theirs;
    LT_FUNCTIONS(CUBLASLT_LOAD)
#undef CUBLASLT_LOAD
    return missing;
}

// NULL where the library is not found or cannot start, as one that is newer than the driver cannot;
// then *why is a new string that says so.
static cublaslt* cublaslt_open(backend* b, char** why) {
    void* library = cublaslt_find();
    if (!library) {
        *why = xprintf("cuBLASLt not found");
        return NULL;
    }
    cublaslt* l = (cublaslt*)xalloc(1, sizeof *l, "cuBLASLt");
    l->library = library;
    const char* missing = cublaslt_load(l);
    int status = missing ? LT_SUCCESS : l->call.create(&l->handle);
    if (missing || status != LT_SUCCESS) {
        *why = missing ? xprintf("cuBLASLt found but it has no %s", missing)
                       : xprintf("cuBLASLt found but cublasLtCreate gave status %d", status);
        dlclose(library);
        free(l);
        return NULL;
    }
    l->workspace = b->alloc(b, WORKSPACE, "cuBLASLt's workspace");
    return l;
}

static void plan_free(cublaslt* l, plan* p) {
    CUBLASLT_CHECK(l->call.product_destroy(p->operation));
    CUBLASLT_CHECK(l->call.layout_destroy(p->a));
    CUBLASLT_CHECK(l->call.layout_destroy(p->b));
    CUBLASLT_CHECK(l->call.layout_destroy(p->c));
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
    CUBLASLT_CHECK(l->call.destroy(l->handle));
    b->release(b, l->workspace, WORKSPACE);
    dlclose(l->library);
    free(l);
}

// ------------------------------------------------------------------------------------------------
// Plans

static plan_key plan_key_of(const product& p) {
    plan_key key;
    memset(&key, 0, sizeof key);
    key.a_stride = p.a_stride, key.b_stride = p.b_stride, key.c_stride = p.c_stride;
    key.operand = p.operand, key.c_format = p.c_format;
    key.m = p.m, key.n = p.n, key.k = p.k;
    key.a_transposed = p.a_transposed, key.b_transposed = p.b_transposed;
    key.bias = p.bias != NULL;
    return key;
}

static plan** plan_bucket(cublaslt* l, const plan_key& key) {
    uint64_t hash = 0;
    const int* words = (const int*)&key;
    for (size_t i = 0; i < sizeof key / sizeof *words; i++)
        hash = (hash ^ (uint32_t)words[i]) * 0x9e3779b97f4a7c15u;
    return &l->plans[hash >> 32 & (PLAN_BUCKETS - 1)];
}

static int cublaslt_type(const format* f) {
    switch (storage_of(f)) {
        case STORE_BF16:
            return LT_BF16;
        case STORE_FP16:
            return LT_FP16;
        default:
            return LT_FP32;
    }
}

// A matrix of `rows` rows as the library counts them: columns.
static void* plan_layout(cublaslt* l, const format* f, int rows, int cols, int64_t stride) {
    void* layout;
    CUBLASLT_CHECK(l->call.layout_create(&layout, cublaslt_type(f), cols, rows, stride));
    return layout;
}

template <class V>
static void plan_set(cublaslt* l, plan* p, int what, const V& value) {
    CUBLASLT_CHECK(l->call.product_set(p->operation, what, &value, sizeof value));
}

static void plan_describe(cublaslt* l, plan* p, const plan_key& k) {
    bool tf32 = k.operand == &FORMAT_TF32;
    int first = k.b_transposed ? LT_TRANSPOSED : LT_AS_STORED;
    int second = k.a_transposed ? LT_TRANSPOSED : LT_AS_STORED;
    CUBLASLT_CHECK(
        l->call.product_create(&p->operation, tf32 ? LT_COMPUTE_TF32 : LT_COMPUTE_FP32, LT_FP32));
    plan_set(l, p, LT_PRODUCT_TRANSPOSE_A, first);
    plan_set(l, p, LT_PRODUCT_TRANSPOSE_B, second);
    if (k.bias) {
        plan_set(l, p, LT_PRODUCT_EPILOGUE, (int)LT_EPILOGUE_BIAS);
        plan_set(l, p, LT_PRODUCT_BIAS_TYPE, cublaslt_type(k.c_format));
    }
    p->a = plan_layout(l, k.operand, k.a_transposed ? k.k : k.m, k.a_transposed ? k.m : k.k,
                       k.a_stride);
    p->b = plan_layout(l, k.operand, k.b_transposed ? k.n : k.k, k.b_transposed ? k.k : k.n,
                       k.b_stride);
    p->c = plan_layout(l, k.c_format, k.m, k.n, k.c_stride);
}

// The algorithm that the library's heuristic puts first.
static void plan_choose(cublaslt* l, plan* p) {
    void* preference;
    auto set = [&](int what, auto value) {
        CUBLASLT_CHECK(l->call.preference_set(preference, what, &value, sizeof value));
    };
    CUBLASLT_CHECK(l->call.preference_create(&preference));
    set(LT_PREFER_WORKSPACE_MAX, (uint64_t)WORKSPACE);
    set(LT_PREFER_REDUCTIONS, (uint32_t)LT_REDUCE_IN_COMPUTE_TYPE);
    for (int which : {LT_PREFER_ALIGNMENT_A, LT_PREFER_ALIGNMENT_B, LT_PREFER_ALIGNMENT_C,
                      LT_PREFER_ALIGNMENT_D})
        set(which, (uint32_t)LT_ALIGNMENT);
    lt_proposal best;
    int found = 0;
    int status = l->call.propose(l->handle, p->operation, p->b, p->a, p->c, p->c, preference, 1,
                                 &best, &found);
    CUBLASLT_CHECK(l->call.preference_destroy(preference));
    p->known = status == LT_SUCCESS && found && best.status == LT_SUCCESS;
    if (status != LT_NOT_SUPPORTED && status != LT_INVALID_VALUE)
        cublaslt_check(status, "choosing an algorithm");
    if (!p->known) return;
    p->algorithm = best.algorithm;
    p->workspace = best.workspace;
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
    if (bias) plan_set(l, p, LT_PRODUCT_BIAS_POINTER, bias);
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

// Whether the library takes a bias as it is: of the output's type, and aligned.
static bool lt_bias_fits(const float* bias, const format* out) {
    return storage_of(out) == STORE_FP32 && (uintptr_t)bias % LT_ALIGNMENT == 0;
}

// Writes it so that the library does (exact: its values are rounded to the format already).
static void bias_convert(backend* b, void* to, const float* bias, int n, const format* out) {
    WITH_STORAGE(out, T,
                 LAUNCH(bias_kernel<T>, dim3(blocks_for(n, BIAS_THREADS)), dim3(BIAS_THREADS), 0,
                        stream_of(b), (T*)to, bias, n));
}

static const void* cublaslt_bias(backend* b, const product& p) {
    if (lt_bias_fits(p.bias, p.c_format)) return p.bias;
    if (p.library_bias) return p.library_bias;
    void* copy = cuda_scratch(b, SCRATCH_BIAS, p.n * sizeof(float));
    bias_convert(b, copy, p.bias, p.n, p.c_format);
    return copy;
}

// Whether every row of a matrix starts at a multiple of 16 bytes.
static bool lt_rows_fit(const void* data, int64_t stride, const format* f) {
    size_t element = storage_of(f) == STORE_FP32 ? 4 : 2;
    return ((uintptr_t)data | stride * element) % LT_ALIGNMENT == 0;
}

// Whether the library may compute a product. For rows that start elsewhere than at multiples of 16
// bytes it has kernels that round a sum to the output's format, add the bias and round again: on an
// H200 an exact 394 became 392 in bf16. N3 of docs/contract.md allows one rounding.
static bool cublaslt_takes(const product& p) {
    return lt_rows_fit(p.a, p.a_stride, p.operand) && lt_rows_fit(p.b, p.b_stride, p.operand) &&
           lt_rows_fit(p.c, p.c_stride, p.c_format);
}

// Whether the library has done it.
static bool cublaslt_product(backend* b, cublaslt* l, const product& p) {
    if (!cublaslt_takes(p)) return false;
    const void* bias = p.bias ? cublaslt_bias(b, p) : NULL;
    plan* how = plan_for(l, p, bias);
    if (!how->known) return false;
    if (bias) plan_set(l, how, LT_PRODUCT_BIAS_POINTER, bias);
    float one = 1, beta = p.accumulate ? 1 : 0;
    CUBLASLT_CHECK(l->call.multiply(l->handle, how->operation, &one, p.b, how->b, p.a, how->a,
                                    &beta, p.c, how->c, p.c, how->c, &how->algorithm, l->workspace,
                                    how->workspace, stream_of(b)));
    return true;
}

#endif
