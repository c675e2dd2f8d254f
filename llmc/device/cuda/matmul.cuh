// Products with a weight matrix: forward, and backward to the input and to the weight. All are one
// product (gemm.cuh) in three layouts, of the weight's rounded copy:
//
//   forward          out = in W^T + bias    rows of a and of b lie along k
//   backward, input  din = dout W           b has k rows
//   backward, weight dw += dout^T in        a and b have k rows
//
// Operands of up to 8 bits are rounded into scratch memory first (operand.cuh). A scale must not
// vary along k: rows that lie along k have one scale each, and of k rows each column has one. Of
// such a weight only the copy for forward products is kept; backward products round W again. They
// are codes where the product is handwritten and both operands have these (fp8.cuh: all rows lie
// along k there, since the columns of k rows become rows), else bf16.
#ifndef LLMC_CUDA_MATMUL_CUH
#define LLMC_CUDA_MATMUL_CUH

#include <stdlib.h>

#include "columns.cuh"
#include "cublaslt.cuh"
#include "fp8.cuh"
#include "gemm.cuh"
#include "operand.cuh"

// The library that a product goes to, or NULL.
static cublaslt* library_of(backend* b, bool forward) {
    cuda_context* c = context_of(b);
    return forward && c->forward_handwritten ? NULL : c->products;
}

// Whether a product of these operands takes codes.
static bool takes_codes(backend* b, bool forward, const format* f, const format* g) {
    return !library_of(b, forward) && code_format(f) && code_format(g);
}

// The product by the library where there is one and it knows the shape, else by the device's own
// kernels.
static void cuda_product(backend* b, const product& p) {
    if (p.m == 0 || p.n == 0 || p.k == 0) return;
    cublaslt* library = library_of(b, p.forward);
    if (!library || !cublaslt_product(b, library, p)) product_handwritten(b, p);
}

// ------------------------------------------------------------------------------------------------
// Weights

enum { PREPARE_THREADS = 256, PREPARE_EACH = 4 };

// to[i] = w[i] rounded to an operand.
template <class T>
static __global__ void weight_prepare_kernel(T* operand, const float* w, size_t n, bool tf32) {
    size_t first = (size_t)blockIdx.x * (PREPARE_THREADS * PREPARE_EACH) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < PREPARE_EACH; e++) {
        size_t i = first + e * PREPARE_THREADS;
        if (i < n) operand[i] = to<T>(tf32 ? round_tf32(w[i]) : w[i]);
    }
}

static prepared* cuda_weight_plan(backend*, const linear_plan* plan) {
    if (plan->weight_per_tensor || plan->activation_per_tensor || plan->split_k > 1)
        fatal("the CUDA device has no scales of tensors and no split sums; use --device cpu");
    prepared* p = (prepared*)xalloc(1, sizeof *p, "a prepared weight");
    p->gradient = plan->gradient;
    return p;
}

static void release_bias(backend* b, prepared* p) {
    if (p->library_bias) b->release(b, p->library_bias, p->outputs * sizeof(float));
    p->library_bias = NULL;
}

static prepared* cuda_weight_prepare(backend* b, prepared* p, const float* w, int outputs,
                                     int inputs, const format* operand,
                                     const format* backward_operand) {
    size_t n = (size_t)outputs * inputs;
    bool codes = takes_codes(b, true, operand, operand);
    size_t bytes = (size_t)padded_outputs(outputs) * inputs *
                   (storage_of(held_in(operand)) == STORE_FP32 ? 4 : 2);
    if (codes) bytes = coded_bytes(outputs, inputs);
    if (held_in(backward_operand) != held_in(operand))
        fatal(
            "the CUDA device has one format for the products of both directions, not %s forward "
            "and %s backward; use --device cpu",
            operand->name, backward_operand->name);
    if (!p) p = (prepared*)xalloc(1, sizeof *p, "a prepared weight");
    if (p->bytes != bytes || p->outputs != outputs) {
        if (p->w) b->release(b, p->w, p->bytes);
        release_bias(b, p);
        p->w = b->alloc(
            b, bytes, "prepared weights (choose a smaller model: --depth, --channels, --context)");
    }
    *p = prepared{outputs, inputs, operand, backward_operand, p->gradient, w, p->w, bytes,
                  codes,   NULL,   NULL,    p->library_bias};
    tensor from = {(void*)w, outputs, inputs, inputs, &FORMAT_FP32};
    if (codes) {
        code_into(b, p->w, from, operand, false);
        return p;
    }
    if (operand->scaled) {
        tensor rounded = {p->w, outputs, inputs, inputs, &FORMAT_BF16};
        round_into(b, rounded, from, operand, false);
        return p;
    }
    dim3 grid(blocks_for(n, PREPARE_THREADS * PREPARE_EACH));
    WITH_STORAGE(operand, T,
                 LAUNCH(weight_prepare_kernel<T>, grid, dim3(PREPARE_THREADS), 0, stream_of(b),
                        (T*)p->w, w, n, operand == &FORMAT_TF32));
    return p;
}

static void cuda_bias_prepare(backend* b, prepared* w, const float* bias, const format* out) {
    if (!library_of(b, true) || lt_bias_fits(bias, out)) return;
    if (!w->library_bias)
        w->library_bias = b->alloc(b, w->outputs * sizeof(float), "prepared biases");
    w->bias = bias, w->bias_format = out;
    bias_convert(b, w->library_bias, bias, w->outputs, out);
}

static void cuda_weight_release(backend* b, prepared* p) {
    release_bias(b, p);
    b->release(b, p->w, p->bytes);
    free(p);
}

// ------------------------------------------------------------------------------------------------
// Products

// Rows as operands of f: a rounded copy where f has scales; else they must be such operands as they
// come.
static tensor operand_of(backend* b, const tensor& t, const format* f, bool by_column,
                         int scratch) {
    if (f->scaled) return rounded_copy(b, t, f, by_column, scratch);
    if (storage_of(t.format) != storage_of(f))
        fatal("the CUDA device has no product of %s with a weight in %s; use --device cpu",
              t.format->name, f->name);
    return t;
}

static const format* gradient_operand(const prepared* w) {
    return w->gradient ? w->gradient : w->backward_operand;
}

static tensor master_of(const prepared* w) {
    return {(void*)w->master, w->outputs, w->inputs, w->inputs, &FORMAT_FP32};
}

// W (outputs, inputs) as backward products read it.
static tensor backward_weight(backend* b, const prepared* w) {
    const format* f = w->backward_operand;
    tensor kept = {w->w, w->outputs, w->inputs, w->inputs, held_in(w->operand)};
    bool as_kept = f == w->operand && !f->scaled;
    return as_kept ? kept : rounded_copy(b, master_of(w), f, f->scaled, SCRATCH_SECOND);
}

static void cuda_matmul_forward(backend* b, tensor out, tensor in, const prepared* w,
                                const float* bias) {
    product p = {};
    p.forward = true;
    p.m = out.rows, p.n = w->outputs, p.k = w->inputs;
    p.c = out.data, p.c_stride = out.stride, p.c_format = out.format;
    p.bias = bias;
    if (bias && bias == w->bias && storage_of(out.format) == storage_of(w->bias_format))
        p.library_bias = w->library_bias;
    p.operand = held_in(w->operand);
    if (w->codes)
        return product_fp8(b, p, coded_copy(b, in, w->operand, false, SCRATCH_OPERAND),
                           coded_at(w->w, w->outputs, w->inputs, code_format(w->operand)));
    tensor a = operand_of(b, in, w->operand, false, SCRATCH_OPERAND);
    p.a = a.data, p.a_stride = a.stride;
    p.b = w->w, p.b_stride = w->inputs, p.b_transposed = true;
    cuda_product(b, p);
}

static void cuda_matmul_backward_input(backend* b, tensor din, tensor dout, const prepared* w) {
    const format *f = gradient_operand(w), *of_w = w->backward_operand;
    product p = {};
    p.m = din.rows, p.n = w->inputs, p.k = w->outputs;
    p.c = din.data, p.c_stride = din.stride, p.c_format = din.format;
    p.operand = held_in(w->operand);
    if (takes_codes(b, false, f, of_w))
        return product_fp8(b, p, coded_copy(b, dout, f, false, SCRATCH_OPERAND),
                           coded_copy(b, master_of(w), of_w, true, SCRATCH_SECOND));
    tensor a = operand_of(b, dout, f, false, SCRATCH_OPERAND), x = backward_weight(b, w);
    p.a = a.data, p.a_stride = a.stride;
    p.b = x.data, p.b_stride = x.stride;
    cuda_product(b, p);
}

static void cuda_matmul_backward_weight(backend* b, float* dw, float* dbias, tensor dout, tensor in,
                                        const prepared* w) {
    const format *f = gradient_operand(w), *of_in = w->backward_operand;
    product p = {};
    p.m = w->outputs, p.n = w->inputs, p.k = dout.rows;
    p.c = dw, p.c_stride = w->inputs, p.c_format = &FORMAT_FP32;
    p.accumulate = true;
    p.operand = held_in(w->operand);
    if (takes_codes(b, false, f, of_in)) {
        product_fp8(b, p, coded_copy(b, dout, f, true, SCRATCH_OPERAND),
                    coded_copy(b, in, of_in, true, SCRATCH_SECOND));
    } else {
        tensor a = operand_of(b, dout, f, true, SCRATCH_OPERAND);
        tensor x = operand_of(b, in, of_in, true, SCRATCH_SECOND);
        p.a = a.data, p.a_stride = a.stride, p.a_transposed = true;
        p.b = x.data, p.b_stride = x.stride;
        cuda_product(b, p);
    }
    // The bias has the CPU device's bits where the weight has.
    bool cpu_order = storage_of(held_in(w->operand)) == STORE_FP32 && !context_of(b)->products;
    if (dbias) cuda_sum_columns(b, dbias, dout, cpu_order);
}

#endif
