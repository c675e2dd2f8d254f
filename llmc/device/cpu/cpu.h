// The CPU device's own state, and its table of ops, one for each instruction set.
#ifndef LLMC_CPU_CPU_H
#define LLMC_CPU_CPU_H

#include "../backend.h"

enum {
    SCRATCH_PACK,
    SCRATCH_OPERAND,
    SCRATCH_INPUT,
    SCRATCH_SPLIT,
    SCRATCH_LOGITS,
    SCRATCH_ROWS,
    SCRATCHES
};

typedef struct cpu_context {
    int threads;
    struct cpu_buffer {
        void* data;
        size_t bytes;
    } scratch[SCRATCHES];  // grows to the largest request; see cpu_scratch
} cpu_context;

// At least `bytes` bytes of scratch memory number `which`, undefined content, valid until the next
// request of the same number. Not to be called from inside a parallel region.
void* cpu_scratch(backend* b, int which, size_t bytes);
int cpu_threads(const backend* b);
// The processors that the text of a control group's cpu.max allows, "QUOTA PERIOD", rounded up; 0:
// no limit.
int cpu_quota(const char* text);
int cpu_thread(void);  // the calling thread's number within a parallel region

struct prepared {
    int outputs, inputs;
    const float* w;  // (outputs, inputs), the caller's
    const format *operand, *backward_operand;
    linear_plan plan;
    float* packed;  // see cpu/gemm.c
    size_t packed_bytes;
    float* backward;  // (outputs, inputs) as scaled backward operands, or NULL: see cpu/matmul.c
    size_t backward_bytes;
};

void cpu_ops_c(backend* b);
void cpu_ops_avx2(backend* b);
void cpu_ops_avx512(backend* b);

#endif
