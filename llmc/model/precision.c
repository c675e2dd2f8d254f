#include "precision.h"

precision precision_of(const format* dtype, const format* logits) {
    precision p = {.linear = dtype, .attention = dtype, .store = dtype, .logits = logits};
    if (dtype == &FORMAT_TF32) p.store = &FORMAT_FP32;
    if (dtype->scaled) p.attention = p.store = &FORMAT_BF16;
    return precision_with_gradient(p, p.attention);
}

precision precision_with_gradient(precision p, const format* gradient) {
    p.linear_backward = p.linear->scaled && !gradient->scaled ? &FORMAT_BF16 : p.linear;
    p.gradient_linear = p.gradient_attention = p.gradient = gradient;
    if (gradient == &FORMAT_TF32) p.gradient = &FORMAT_FP32;
    if (gradient->scaled) p.gradient_attention = p.gradient = &FORMAT_BF16;
    return p;
}

int precision_same_forward(const precision* a, const precision* b) {
    int parts = a->split_k > 1 || b->split_k > 1;  // 0 and 1 both mean a sum in one part
    return a->linear == b->linear && a->attention == b->attention && a->store == b->store &&
           a->logits == b->logits && a->block == b->block &&
           a->weight_per_tensor == b->weight_per_tensor &&
           a->activation_per_tensor == b->activation_per_tensor &&
           (!parts || a->split_k == b->split_k);
}
