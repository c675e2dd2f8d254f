// Products with a weight matrix: forward from packed panels, backward from the weight itself, or
// from a copy where its operands are scaled.
#include <stdlib.h>

#include "gemm.h"
#include "ops.h"

// A scaled operand of a product carries scales that do not vary along what the product sums over:
// PER_ROW where that is a row's columns, PER_COLUMN where it is the rows; PER_TENSOR serves both.
typedef enum { PER_ROW, PER_COLUMN, PER_TENSOR } scales;

static float tensor_amax(tensor t) {
    float amax = 0;
    for (int r = 0; r < t.rows; r++) amax = row_amax(amax, row_of(t, r), t.cols);
    return amax;
}

// Columns in groups, so that rows are read in pieces that a vector fills.
static void round_columns(backend* b, tensor to, tensor from, const format* how) {
    enum { COLUMNS = 32 };
    const format f = *how;
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < from.cols; j0 += COLUMNS) {
        int cols = from.cols - j0 < COLUMNS ? from.cols - j0 : COLUMNS;
        float scale[COLUMNS] = {0}, inverse[COLUMNS];
        for (int r = 0; r < from.rows; r++) {
            const float* x = row_of(from, r) + j0;
            for (int j = 0; j < cols; j++) {
                float a = float_from_bits(float_bits(x[j]) & 0x7fffffffu);
                scale[j] = a > scale[j] ? a : scale[j];
            }
        }
        for (int j = 0; j < cols; j++) {
            scale[j] = format_scale(scale[j], how);
            inverse[j] = 1 / scale[j];
        }
        for (int r = 0; r < from.rows; r++) {
            const float* x = row_of(from, r) + j0;
            float* y = row_of(to, r) + j0;
            SIMD
            for (int j = 0; j < cols; j++) y[j] = format_round(x[j] * inverse[j], &f) * scale[j];
        }
    }
}

static void round_operand(backend* b, tensor to, tensor from, const format* how, scales s) {
    float amax = how->scaled && s == PER_TENSOR ? tensor_amax(from) : 0;
    if (how->scaled && s == PER_COLUMN) {
        round_columns(b, to, from, how);
        return;
    }
    PARALLEL_FOR(b)
    for (int r = 0; r < from.rows; r++)
        if (how->scaled && s == PER_TENSOR)
            operand_round_to(row_of(to, r), row_of(from, r), from.cols, how, amax);
        else
            operand_round(row_of(to, r), row_of(from, r), from.cols, how);
}

// `in` as operands of a product: itself where rounding would change nothing, else a rounded copy in
// scratch memory.
static tensor operand_of(backend* b, tensor in, const format* how, scales s, int scratch) {
    if (format_fits(in.format, how)) return in;
    tensor copy = {cpu_scratch(b, scratch, (size_t)in.rows * in.cols * sizeof(float)), in.rows,
                   in.cols, in.cols, how};
    round_operand(b, copy, in, how, s);
    return copy;
}

prepared* ISA(weight_plan)(backend* b, const linear_plan* plan) {
    prepared* p = xalloc(1, sizeof *p, "a prepared weight");
    (void)b;
    p->plan = *plan;
    return p;
}

// The weight into panels, in memory that may be there already. 0: the storage does not hold it.
static int pack(backend* b, prepared* p, storage kept) {
    size_t bytes = ISA(gemm_packed_size)(p->outputs, p->inputs, kept);
    if (p->packed && p->packed_bytes != bytes) {
        b->release(b, p->packed, p->packed_bytes);
        p->packed = NULL;
    }
    if (!p->packed) p->packed = b->alloc(b, bytes, "packed weights");
    p->packed_bytes = bytes;
    p->kept = kept;
    return ISA(gemm_pack)(b, p->packed, kept, p->w, p->outputs, p->inputs, p->operand,
                          p->plan.weight_per_tensor);
}

prepared* ISA(weight_prepare)(backend* b, prepared* p, const float* w, int outputs, int inputs,
                              const format* operand, const format* backward_operand) {
    if (!p) p = xalloc(1, sizeof *p, "a prepared weight");
    if (backward_operand->scaled && !p->backward) {
        p->backward_bytes = (size_t)outputs * inputs * sizeof(float);
        p->backward = b->alloc(b, p->backward_bytes, "weights of backward products");
    }
    p->outputs = outputs;
    p->inputs = inputs;
    p->w = w;
    p->operand = operand;
    p->backward_operand = backward_operand;
    if (!pack(b, p, storage_of(operand))) pack(b, p, KEPT_FP32);
    if (backward_operand->scaled) {
        tensor from = {(float*)w, outputs, inputs, inputs, &FORMAT_FP32}, to = from;
        to.data = p->backward;
        round_operand(b, to, from, backward_operand,
                      p->plan.weight_per_tensor ? PER_TENSOR : PER_COLUMN);
    }
    return p;
}

void ISA(weight_release)(backend* b, prepared* p) {
    if (p->packed) b->release(b, p->packed, p->packed_bytes);
    if (p->backward) b->release(b, p->backward, p->backward_bytes);
    free(p);
}

static const format* gradient_operand(const prepared* w) {
    return w->plan.gradient ? w->plan.gradient : w->backward_operand;
}

void ISA(matmul_forward)(backend* b, tensor out, tensor in, const prepared* w, const float* bias) {
    tensor a = operand_of(b, in, w->operand, w->plan.activation_per_tensor ? PER_TENSOR : PER_ROW,
                          SCRATCH_OPERAND);
    gemm g = {.m = out.rows,
              .n = w->outputs,
              .k = w->inputs,
              .a = a.data,
              .a_stride = a.stride,
              .packed = w->packed,
              .kept = w->kept,
              .c = out.data,
              .c_stride = out.stride,
              .bias = bias,
              .round = out.format};
    ISA(gemm_run_split)(b, &g, w->plan.split_k);
}

void ISA(matmul_backward_input)(backend* b, tensor din, tensor dout, const prepared* w) {
    tensor a = operand_of(b, dout, gradient_operand(w),
                          w->plan.activation_per_tensor ? PER_TENSOR : PER_ROW, SCRATCH_OPERAND);
    int scaled = w->backward_operand->scaled;
    gemm g = {.m = din.rows,
              .n = w->inputs,
              .k = w->outputs,
              .a = a.data,
              .a_stride = a.stride,
              .b = scaled ? w->backward : w->w,
              .b_stride = w->inputs,
              .b_round = scaled ? &FORMAT_FP32 : w->backward_operand,
              .c = din.data,
              .c_stride = din.stride,
              .round = din.format};
    ISA(gemm_run)(b, &g);
}

void ISA(matmul_backward_weight)(backend* b, float* dw, float* dbias, tensor dout, tensor in,
                                 const prepared* w) {
    scales s = w->plan.activation_per_tensor ? PER_TENSOR : PER_COLUMN;
    tensor a = operand_of(b, dout, gradient_operand(w), s, SCRATCH_OPERAND), x = in;
    if (w->backward_operand->scaled) x = operand_of(b, in, w->backward_operand, s, SCRATCH_INPUT);
    int fits = x.data != in.data || format_fits(in.format, w->backward_operand);
    gemm g = {.m = w->outputs,
              .n = w->inputs,
              .k = dout.rows,
              .a = a.data,
              .a_stride = a.stride,
              .a_transposed = 1,
              .b = x.data,
              .b_stride = x.stride,
              .b_round = fits ? &FORMAT_FP32 : w->backward_operand,
              .c = dw,
              .c_stride = w->inputs,
              .carry = 1,
              .round = &FORMAT_FP32};
    ISA(gemm_run)(b, &g);
    if (!dbias) return;
    enum { COLUMNS = 32 };
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < dout.cols; j0 += COLUMNS) {
        int cols = dout.cols - j0 < COLUMNS ? dout.cols - j0 : COLUMNS;
        float sum[COLUMNS];
        memcpy(sum, dbias + j0, cols * sizeof(float));
        for (int r = 0; r < dout.rows; r++) {
            const float* d = row_of(dout, r) + j0;
            SIMD
            for (int j = 0; j < cols; j++) sum[j] += d[j];
        }
        memcpy(dbias + j0, sum, cols * sizeof(float));
    }
}
