// Fills the table of backend.h with one instruction set's functions.
#include "ops.h"

void ISA(cpu_ops)(backend* b) {
    b->weight_plan = ISA(weight_plan);
    b->weight_prepare = ISA(weight_prepare);
    b->weight_release = ISA(weight_release);
    b->cast = ISA(cast);
    b->add = ISA(add);
    b->embed_forward = ISA(embed_forward);
    b->embed_backward = ISA(embed_backward);
    b->norm_forward = ISA(norm_forward);
    b->norm_backward = ISA(norm_backward);
    b->matmul_forward = ISA(matmul_forward);
    b->matmul_backward_input = ISA(matmul_backward_input);
    b->matmul_backward_weight = ISA(matmul_backward_weight);
    b->gelu_forward = ISA(gelu_forward);
    b->gelu_backward = ISA(gelu_backward);
    b->attention_forward = ISA(attention_forward);
    b->attention_backward = ISA(attention_backward);
    b->kv_bytes = ISA(kv_bytes);
    b->kv_write = ISA(kv_write);
    b->kv_copy_page = ISA(kv_copy_page);
    b->attention_cached = ISA(attention_cached);
    b->gather_rows = ISA(gather_rows);
    b->head_forward = ISA(head_forward);
    b->head_backward = ISA(head_backward);
    b->sample = ISA(sample);
    b->sum_squares = ISA(sum_squares);
    b->adamw = ISA(adamw);
}
