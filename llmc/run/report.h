// report: what a run tells people (the console) and programs (log.jsonl, samples.jsonl), line by
// line. It reads the run and changes nothing; log.h writes. Only the program calls it.
#ifndef LLMC_REPORT_H
#define LLMC_REPORT_H

#include "../rl/mismatch.h"
#include "evaluate.h"
#include "run.h"
#include "warmup.h"

LLMC_BEGIN

// What one RL step found.
typedef struct step_report {
    sampler_stats sampled;
    double sampling_seconds;
    int64_t sent;         // bytes, by this rank, until all ranks had the rollout and its rewards
    int resampled;        // groups that were drawn again, in all rounds
    double first_reward;  // the mean before these took their places
    rollout_summary reward;
    mismatch numerics;  // before the first update
    int updates;        // optimizer steps that were applied
    double grad_norms;  // the sum of their gradients' norms before clipping
    int64_t tokens;     // run through the model by all updates, skipped ones included
    double update_seconds;
} step_report;

void report_plan(const run* r);
void report_page(const run* r);  // makes the page of --report
void report_memory(const run* r);
void report_warmup(const run* r, const warmup_result* w);
void report_evaluation(const run* r, const evaluation* e);
void report_examples(const run* r, const char* when);  // what evaluate_examples left

// log.jsonl and samples.jsonl
void report_rollout(const run* r, const step_report* s);
void report_correction(const run* r, const correction_report* c);
void report_numerics(const run* r, const mismatch* m);  // NULL: they mean nothing in this step
void report_samples(const run* r);
// Optimizer step `index` of the RL step. `m`: the rollout under the weights before it. `sent`:
// bytes, by this rank, since the rollout or the update before.
void report_update(const run* r, int index, double lr, const trainer_update_result* u,
                   const mismatch* m, double seconds, int64_t sent);
// The console
void report_step(const run* r, const step_report* s);
void report_end(const run* r);
// On a terminal, how far the sampling or the updates of a step have come. fraction: 0 to 1.
void report_progress(const run* r, const char* what, double fraction, const meter* m);

LLMC_END
#endif
