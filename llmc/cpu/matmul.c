// Products with a weight matrix: forward from packed panels, backward from the weight itself.
#include <stdlib.h>

#include "gemm.h"
#include "ops.h"

prepared* ISA(weight_prepare)(backend* b, prepared* p, const float* w, int outputs, int inputs,
                              const format* operand, const format* backward_operand) {
    if (!p) {
        p = xalloc(1, sizeof *p, "a prepared weight");
        p->packed_bytes = ISA(gemm_packed_size)(outputs, inputs) * sizeof(float);
        p->packed = b->alloc(b, p->packed_bytes, "packed weights");
    }
    p->outputs = outputs;
    p->inputs = inputs;
    p->w = w;
    p->operand = operand;
    p->backward_operand = backward_operand;
    ISA(gemm_pack)(b, p->packed, w, outputs, inputs, operand);
    return p;
}

void ISA(weight_release)(backend* b, prepared* p) {
    b->release(b, p->packed, p->packed_bytes);
    free(p);
}

// `in` as operands of a product: itself where rounding would change nothing, else a rounded copy.
static tensor operand_of(backend* b, tensor in, const format* how) {
    if (format_fits(in.format, how)) return in;
    tensor copy = {cpu_scratch(b, SCRATCH_OPERAND, (size_t)in.rows * in.cols * sizeof(float)),
                   in.rows, in.cols, in.cols, how};
    PARALLEL_FOR(b)
    for (int r = 0; r < in.rows; r++) operand_round(row_of(copy, r), row_of(in, r), in.cols, how);
    return copy;
}

void ISA(matmul_forward)(backend* b, tensor out, tensor in, const prepared* w, const float* bias) {
    tensor a = operand_of(b, in, w->operand);
    gemm g = {.m = out.rows,
              .n = w->outputs,
              .k = w->inputs,
              .a = a.data,
              .a_stride = a.stride,
              .packed = w->packed,
              .c = out.data,
              .c_stride = out.stride,
              .bias = bias,
              .round = out.format};
    ISA(gemm_run)(b, &g);
}

void ISA(matmul_backward_input)(backend* b, tensor din, tensor dout, const prepared* w) {
    tensor a = operand_of(b, dout, w->backward_operand);
    gemm g = {.m = din.rows,
              .n = w->inputs,
              .k = w->outputs,
              .a = a.data,
              .a_stride = a.stride,
              .b = w->w,
              .b_stride = w->inputs,
              .b_round = w->backward_operand,
              .c = din.data,
              .c_stride = din.stride,
              .round = din.format};
    ISA(gemm_run)(b, &g);
}

void ISA(matmul_backward_weight)(backend* b, float* dw, float* dbias, tensor dout, tensor in,
                                 const prepared* w) {
    tensor a = operand_of(b, dout, w->backward_operand);
    int fits = format_fits(in.format, w->backward_operand);
    gemm g = {.m = w->outputs,
              .n = w->inputs,
              .k = dout.rows,
              .a = a.data,
              .a_stride = a.stride,
              .a_transposed = 1,
              .b = in.data,
              .b_stride = in.stride,
              .b_round = fits ? &FORMAT_FP32 : w->backward_operand,
              .c = dw,
              .c_stride = w->inputs,
              .carry = 1,
              .round = &FORMAT_FP32};
    ISA(gemm_run)(b, &g);
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
