// checkpoint: model files, and the state of a run on disk. A checkpoint is complete or absent: it is
// written aside, synced and renamed; a failed write leaves the previous ones as they were. Layouts:
// the tables at the head of checkpoint.c.
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "gpt2.h"
#include "optimizer.h"

LLMC_BEGIN

// Model files, llm.c's format (magic 20240326): version 3 holds fp32, version 5 bf16; both are read.
// Parameters are host arrays in llm.c's order, the vocabulary without its padding.
void checkpoint_write_model(const char* path, const gpt2_config* c, const float* parameters,
                            const format* how);  // FP32 or BF16
// Fatal with a sentence for a file that is missing, cut short, foreign, or has impossible sizes.
gpt2_config checkpoint_read_config(const char* path);
// *parameters is allocated; free with free().
gpt2_config checkpoint_read_model(const char* path, float** parameters);

// What a run needs, besides parameters and moments, to continue with the same bits.
typedef struct run_state {
    int32_t warmup_step;  // warm-up steps done
    int32_t step;         // RL steps done
    int64_t updates;      // optimizer steps asked for in RL, skipped ones included
    optimizer_state optimizer;
    double elapsed;       // seconds
    int64_t log_bytes, sample_bytes;  // sizes of log.jsonl and samples.jsonl
} run_state;

// DIRECTORY/checkpoints/NAME/, NAME = "warmup-NNNNNN" or "step-NNNNNN": model.bin and state.bin.
// Removes the oldest beyond `keep` (0 = all are kept) once the new one is complete.
void checkpoint_save(const char* directory, const run_state* s, const gpt2_config* c,
                     const float* parameters, const float* m, const float* v, int keep);
// The newest complete checkpoint: fills `s` and the host arrays (parameters, m, v; all of
// gpt2_tensors() floats) and returns 1; returns 0 if there is none. Refuses a model of another shape
// than `c`, and damaged files.
int checkpoint_load(const char* directory, run_state* s, const gpt2_config* c, float* parameters,
                    float* m, float* v);

LLMC_END
#endif
