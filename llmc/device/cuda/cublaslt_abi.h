// The part of cuBLASLt's binary interface that cublaslt.cuh calls, so that the program is built
// without the library's header. The names are ours, because the library's would clash with that
// header where both are included: tests/cublaslt.c does so and compares every number and size.
//
// Enumerations are int, handles and descriptors are pointers to what only the library knows. The
// numbers are the same in cuBLASLt 12 and 13.
#ifndef LLMC_CUDA_CUBLASLT_ABI_H
#define LLMC_CUDA_CUBLASLT_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { LT_SUCCESS = 0, LT_INVALID_VALUE = 7, LT_NOT_SUPPORTED = 15 };  // what functions return
enum { LT_FP32 = 0, LT_FP16 = 2, LT_BF16 = 14 };                       // types of elements
enum { LT_COMPUTE_FP32 = 68, LT_COMPUTE_TF32 = 77 };                   // how a product computes
enum { LT_AS_STORED = 0, LT_TRANSPOSED = 1 };
enum { LT_EPILOGUE_NONE = 1, LT_EPILOGUE_BIAS = 4 };
enum { LT_REDUCE_IN_COMPUTE_TYPE = 2 };  // a bit of the mask of allowed reductions

// Attributes of a product.
enum {
    LT_PRODUCT_TRANSPOSE_A = 3,   // int32_t
    LT_PRODUCT_TRANSPOSE_B = 4,   // int32_t
    LT_PRODUCT_EPILOGUE = 7,      // int32_t
    LT_PRODUCT_BIAS_POINTER = 8,  // device pointer
    LT_PRODUCT_BIAS_TYPE = 26,    // int32_t
};

// Attributes of a preference, which says what algorithms the heuristic may propose.
enum {
    LT_PREFER_WORKSPACE_MAX = 1,  // uint64_t, bytes
    LT_PREFER_REDUCTIONS = 3,     // uint32_t, a mask
    LT_PREFER_ALIGNMENT_A = 5,    // uint32_t, bytes: pointers are multiples of this
    LT_PREFER_ALIGNMENT_B = 6,
    LT_PREFER_ALIGNMENT_C = 7,
    LT_PREFER_ALIGNMENT_D = 8,
};

typedef struct lt_algorithm {
    uint64_t data[8];
} lt_algorithm;

// What the heuristic proposes.
typedef struct lt_proposal {
    lt_algorithm algorithm;
    size_t workspace;  // bytes
    int status;        // LT_SUCCESS, or the rest means nothing
    float waves;
    int reserved[4];
} lt_proposal;

// Matrices lie by columns: element (i, j) is data[i + j * stride].
typedef struct lt_functions {
    int (*create)(void** handle);
    int (*destroy)(void* handle);
    int (*product_create)(void** product, int compute, int scale_type);
    int (*product_destroy)(void* product);
    int (*product_set)(void* product, int attribute, const void* value, size_t bytes);
    int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride);
    int (*layout_destroy)(void* layout);
    int (*preference_create)(void** preference);
    int (*preference_destroy)(void* preference);
    int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
    int (*propose)(void* handle, void* product, void* a, void* b, void* c, void* d,
                   void* preference, int room, lt_proposal* proposals, int* count);
    // D = alpha A B + beta C, where alpha and beta are on the host; the stream is CUDA's.
    int (*multiply)(void* handle, void* product, const void* alpha, const void* a, void* a_layout,
                    const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                    void* d, void* d_layout, const lt_algorithm* algorithm, void* workspace,
                    size_t workspace_bytes, void* stream);
} lt_functions;

// X(our name, the library's name)
#define LT_FUNCTIONS(X)                                     \
    X(create, cublasLtCreate)                               \
    X(destroy, cublasLtDestroy)                             \
    X(product_create, cublasLtMatmulDescCreate)             \
    X(product_destroy, cublasLtMatmulDescDestroy)           \
    X(product_set, cublasLtMatmulDescSetAttribute)          \
    X(layout_create, cublasLtMatrixLayoutCreate)            \
    X(layout_destroy, cublasLtMatrixLayoutDestroy)          \
    X(preference_create, cublasLtMatmulPreferenceCreate)    \
    X(preference_destroy, cublasLtMatmulPreferenceDestroy)  \
    X(preference_set, cublasLtMatmulPreferenceSetAttribute) \
    X(propose, cublasLtMatmulAlgoGetHeuristic)              \
    X(multiply, cublasLtMatmul)

#endif
