// precision: which format each value of a model is rounded to.
#ifndef LLMC_PRECISION_H
#define LLMC_PRECISION_H

#include "../base/blocks.h"
#include "../base/numerics.h"

LLMC_BEGIN

// What is rounded to what: a row of the numerics contract's table N3.
typedef struct precision {
    const format* linear;           // operands of the blocks' matrix products
    const format* linear_backward;  // operands of their backward products
    const format* attention;        // operands of attention's and the head's products
    const format* store;            // whatever else an op writes, and all other weights
    const format* logits;
    // Gradients of activations, but for those of the logits: operands of the blocks' backward
    // products, of attention's, and what an op writes.
    const format *gradient_linear, *gradient_attention, *gradient;
    int weight_per_tensor, activation_per_tensor;  // scales: see linear_plan
    int split_k;                                   // of the forward products
    const block_format* block;  // of the blocks' matrices, before `linear`; NULL: no block scales
    const format* kv;  // that a trainer rounds keys and values to; NULL: no further than store
} precision;

// Whether forward passes in both have the same bits.
int precision_same_forward(const precision* a, const precision* b);
// Gradients follow dtype; fp8's backward products read bf16.
precision precision_of(const format* dtype, const format* logits);
// The same with gradients of a format of their own. A scaled one makes the backward products of an
// fp8 dtype fp8 too, with copies of weight, input and gradient that are scaled for them.
precision precision_with_gradient(precision p, const format* gradient);

LLMC_END
#endif
