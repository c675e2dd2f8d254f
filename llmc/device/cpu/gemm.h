// The product that all matrix ops share: C (m, n) = A (m, k) B (k, n), in the order of the numerics
// contract. See gemm.c.
#ifndef LLMC_CPU_GEMM_H
#define LLMC_CPU_GEMM_H

#include "isa.h"

// Columns of a packed panel.
#if defined(ISA_avx512)
enum { GEMM_NR = 32, GEMM_MR = 14 };
#elif defined(ISA_avx2)
enum { GEMM_NR = 16, GEMM_MR = 6 };
#else
enum { GEMM_NR = 16, GEMM_MR = 4 };
#endif
enum { GEMM_KC = 256 };  // the contract's k-block

typedef struct gemm {
    int m, n, k;
    const float* a;
    int64_t a_stride;
    int a_transposed;    // 0: A[i][k] = a[i * a_stride + k]; 1: A[i][k] = a[k * a_stride + i]
    const void* packed;  // B in panels (gemm_pack), or NULL: then b is packed on the fly
    storage kept;        // how these panels hold their numbers
    int packed_k;        // rows of each of the panels; 0 = k
    const float* b;
    int64_t b_stride;       // B[k][j] = b[k * b_stride + j]
    const format* b_round;  // applied while packing
    float* c;
    int64_t c_stride;
    int carry;            // 1: each chain starts from what C holds and has no k-blocks
    const float* bias;    // (n) or NULL
    const format* round;  // of the result
} gemm;

void ISA(gemm_run)(backend* b, const gemm* g);
// The same with the sum over k in `parts` equal parts, each in the usual order, added in order; for
// a packed B and an A that is not transposed. parts <= 1: gemm_run.
void ISA(gemm_run_split)(backend* b, const gemm* g, int parts);

// Bytes that gemm_pack needs for a (n, k) matrix.
size_t ISA(gemm_packed_size)(int n, int k, storage kept);
// Packs W (n, k) as B = W^T: panel p holds columns p * NR ..., [k][NR], zeros beyond n. Rows are
// rounded to `operand` first, where that is scaled with a scale each, or with one for all. 0: the
// storage does not hold them, which can be with scales of tiny numbers only; then nothing useful is
// there.
int ISA(gemm_pack)(backend* b, void* packed, storage kept, const float* w, int n, int k,
                   const format* operand, int per_tensor);

#endif
