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
    SCRATCH_EXPERTS,
    SCRATCH_LISTS,
    SCRATCHES
};

// How many threads take part: all, or fewer while other programs keep some of them from running. A
// loop ends with its last thread, so that one which has to share its processor makes all wait, far
// longer than its work is worth. No bit depends on it.
//
// It shows in the processor time that products get: `share` of what their threads could have had.
// Below 70 % as many threads are left as got time. After `patience` seconds all are tried again;
// the patience doubles each time that this fails, up to 8 seconds.
typedef struct cpu_load {
    int active;
    int products;               // until the next one that is measured
    double wall, processor;     // of the products measured, seconds
    double patience, retry_at;  // seconds; by clock_seconds
} cpu_load;

typedef struct cpu_context {
    int threads;
    cpu_load load;
    struct cpu_buffer {
        void* data;
        size_t bytes;
    } scratch[SCRATCHES];    // grows to the largest request; see cpu_scratch
    size_t logits_kept;      // bytes of logits that forward may leave for backward
    const float* logits_of;  // what lies in SCRATCH_LOGITS: the logits of the head_forward that
                             // wrote these stats, from the first on; NULL: other things
} cpu_context;

// At least `bytes` bytes of scratch memory number `which`, undefined content, valid until the next
// request of the same number. Not to be called from inside a parallel region.
void* cpu_scratch(backend* b, int which, size_t bytes);
int cpu_threads(const backend* b);  // at most: what memory is for
int cpu_active(const backend* b);   // in the next loop
// Around a product: now and then they measure it, and may change cpu_active.
typedef struct cpu_measure {
    double wall, processor;  // at the start; -1: not measured
} cpu_measure;
cpu_measure cpu_measure_begin(const backend* b);
void cpu_measure_end(backend* b, cpu_measure start);
// The rule: the threads that take part after products whose threads had this share of their time.
void cpu_load_decide(cpu_load* l, int threads, double share, double now);
// The processors that the text of a control group's cpu.max allows, "QUOTA PERIOD", rounded up; 0:
// no limit.
int cpu_quota(const char* text);
int cpu_thread(void);  // the calling thread's number within a parallel region

// How numbers are kept: in 32 bits, or as bf16 or fp16 where every value of a format is one.
typedef enum { KEPT_FP32, KEPT_BF16, KEPT_FP16 } storage;
static inline storage storage_of(const format* f) {
    if (f->mantissa_bits <= 7) return KEPT_BF16;
    return f->mantissa_bits <= 10 && f->exponent_bits <= 5 ? KEPT_FP16 : KEPT_FP32;
}
static inline int64_t storage_bytes(storage s) { return s == KEPT_FP32 ? 4 : 2; }

struct prepared {
    int outputs, inputs;
    const float* w;  // (outputs, inputs), the caller's
    const format *operand, *backward_operand;
    linear_plan plan;
    void* packed;  // see cpu/gemm.c
    storage kept;
    size_t packed_bytes;
    float* backward;  // (outputs, inputs) as scaled backward operands, or NULL: see cpu/matmul.c
    size_t backward_bytes;
};

void cpu_ops_c(backend* b);
void cpu_ops_avx2(backend* b);
void cpu_ops_avx512(backend* b);

#endif
