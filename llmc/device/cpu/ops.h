// The ops that each instruction set provides, one file a group; signatures as in backend.h.
#ifndef LLMC_CPU_OPS_H
#define LLMC_CPU_OPS_H

#include "isa.h"

prepared* ISA(weight_plan)(backend*, const linear_plan*);
prepared* ISA(weight_prepare)(backend*, prepared*, const float*, int, int, const format*,
                              const format*);
void ISA(weight_release)(backend*, prepared*);
void ISA(cast)(backend*, float*, const float*, size_t, const format*);
void ISA(add)(backend*, float*, const float*, size_t);
void ISA(embed_forward)(backend*, tensor, const float*, const float*, const int*, const int*);
void ISA(embed_backward)(backend*, float*, float*, tensor, const int*, const int*);
void ISA(norm_forward)(backend*, tensor, tensor, float*, tensor, tensor, const float*,
                       const float*);
void ISA(norm_backward)(backend*, tensor, float*, float*, tensor, tensor, const float*,
                        const float*);
void ISA(matmul_forward)(backend*, tensor, tensor, const prepared*, const float*);
void ISA(matmul_backward_input)(backend*, tensor, tensor, const prepared*);
void ISA(matmul_backward_weight)(backend*, float*, float*, tensor, tensor, const prepared*);
void ISA(gelu_forward)(backend*, tensor, tensor);
void ISA(gelu_backward)(backend*, tensor, tensor, tensor);
void ISA(attention_forward)(backend*, tensor, float*, tensor, const int*, int, int, const format*);
void ISA(attention_backward)(backend*, tensor, tensor, tensor, tensor, const float*, const int*,
                             int, int, const format*, const format*);
size_t ISA(kv_bytes)(const kv_cache*);
void ISA(kv_write)(backend*, const kv_cache*, int, tensor, const int*, const int*);
void ISA(kv_copy_page)(backend*, const kv_cache*, int, int);
void ISA(attention_cached)(backend*, tensor, const kv_cache*, int, tensor, const int*, const int*);
void ISA(gather_rows)(backend*, tensor, tensor, const int*);
void ISA(head_forward)(backend*, float*, float*, tensor, const int*, const int*, int,
                       const prepared*, const format*, float, const uint32_t*, const candidates*);
void ISA(head_backward)(backend*, tensor, float*, tensor, const int*, const int*, const float*, int,
                        const prepared*, const format*, float, const uint32_t*);
void ISA(sample)(backend*, const slot_state*, tensor, const int*, int, const prepared*,
                 const format*, const sampling*);
double ISA(sum_squares)(backend*, const float*, size_t);
void ISA(adamw)(backend*, float*, float*, float*, const float*, size_t, size_t, const adamw_step*);

#endif
