// checkpoint: the state of a run on disk. A checkpoint is complete or absent: it
// is written aside, synced and renamed; a failed write leaves the previous ones as they were.
// Layouts: the tables at the head of checkpoint.c.
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "../model/model.h"
#include "../rl/optimizer.h"

LLMC_BEGIN

// What a run needs, besides parameters and moments, to continue with the same bits.
typedef struct run_state {
    int32_t warmup_step;  // warm-up steps done
    int32_t step;         // RL steps done
    int64_t updates;      // optimizer steps asked for in RL, skipped ones included
    optimizer_state optimizer;
    double elapsed;                   // seconds
    int64_t log_bytes, sample_bytes;  // sizes of log.jsonl and samples.jsonl
} run_state;

// Writes DIRECTORY/checkpoints/NAME/{model.bin,state.bin} and, unless `copy_count` is 0, stale.bin:
// that many `copies` of older parameters that the sampler is still to use. NAME is "step-NNNNNN" of
// s->step, or "warmup-NNNNNN" of s->warmup_step before the first RL step is done. It is on the disk
// when this returns. An earlier checkpoint of this name is replaced; then the oldest beyond `keep`
// (0 = all are kept) are removed, never the new one. parameters, m, v: host arrays of
// c->parameters floats. A failed write ends the program with a sentence. For a full disk's sake
// the program must ignore SIGXFSZ, and no other process may save to the same directory.
void checkpoint_save(const char* directory, const run_state* s, const model* c,
                     const float* parameters, const float* m, const float* v, const float* copies,
                     int copy_count, int keep);
// The newest complete checkpoint: fills `s` and the host arrays and returns 1; returns 0 if there
// is none. The copies are read from one with RL steps; before there is nothing older. A
// damaged one, or one of another shape than `c`, ends the program with a sentence.
int checkpoint_load(const char* directory, run_state* s, const model* c, float* parameters,
                    float* m, float* v, float* copies, int copy_count);

LLMC_END
#endif
