// checkpoint: the state of a run on disk. A checkpoint is complete or absent: it
// is written aside, synced and renamed; a failed write leaves the previous ones as they were.
// Layouts: the tables at the head of checkpoint.c.
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "../model/model.h"
#include "../rl/optimizer.h"

LLMC_BEGIN

// The phases of a run; run.c draws how one leads to the next. No checkpoint is FRESH.
typedef enum { PHASE_FRESH, PHASE_WARMUP, PHASE_RL, PHASE_DONE } run_phase;

// What a run needs, besides parameters and moments, to continue with the same bits. It holds no
// times: equal runs have equal checkpoints.
typedef struct run_state {
    int32_t phase;              // run_phase
    int32_t warmup_step;        // warm-up steps done
    int32_t step;               // RL steps done
    int32_t evaluated;          // RL steps done at the last evaluation; -1: there was none
    optimizer_state optimizer;  // of the warm-up's trainer in WARMUP, else of RL's
    int64_t log_lines;          // of log.jsonl
    int64_t sample_bytes;       // of samples.jsonl
    uint64_t base_checksum;     // of base.bin or base/, the model before RL; 0: there is none
    uint64_t prompts_checksum;  // of prompts, the sanity protocol's; 0: there are none
    uint64_t texts_checksum;    // of the data's texts and the tokenizer; 0: a task's characters
} run_state;

// Writes DIRECTORY/checkpoints/NAME/ with model.bin or model/ (model_file.h), state.bin and, unless
// `copy_count` is 0, stale.bin: that many `copies` of older parameters that the sampler is still to
// use. NAME is "step-NNNNNN" of s->step, or "warmup-NNNNNN" of s->warmup_step before the first RL
// step is done. It is on the disk when this returns. An earlier checkpoint of this name is
// replaced; then the oldest beyond `keep` (0 = all are kept) are removed, never the new one, nor
// the one after RL step `best` (-1: none), which does not count. Where the model is a folder, the
// files of DIRECTORY/tokenizer/ are linked or copied into it. parameters, m, v: host arrays of
// c->parameters floats. A failed write ends the program with a sentence. For a full disk's sake the
// program must ignore SIGXFSZ, and no other process may save to the same directory.
void checkpoint_save(const char* directory, const run_state* s, const model* c,
                     const float* parameters, const float* m, const float* v, const float* copies,
                     int copy_count, int keep, int best);
// The folder of the checkpoint after an RL step (0: after the warm-up's last step); to be freed.
char* checkpoint_path(const char* directory, int step, int warmup_step);
// Removes what a save that was killed left behind.
void checkpoint_sweep(const char* directory);
// The state of the newest complete checkpoint and, unless `m` is NULL, the model that its model
// file's header describes; returns 0 and leaves both alone if there is none.
int checkpoint_find(const char* directory, run_state* s, model* m);
// The newest complete checkpoint: fills `s` and the host arrays and returns 1; returns 0 if there
// is none. The copies are read from one with RL steps; before there is nothing older. A
// damaged one, one of another shape than `c` or of another arithmetic, and one whose name is not
// that of its state end the program with a sentence.
int checkpoint_load(const char* directory, run_state* s, const model* c, float* parameters,
                    float* m, float* v, float* copies, int copy_count);

LLMC_END
#endif
