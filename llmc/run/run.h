// run: everything that lives from the start of the program to its end, and the phases that it goes
// through: FRESH, WARMUP, RL, DONE. The head of run.c draws them. The program alone decides when a
// step is taken; what stands here is what happens before, between and after the steps.
#ifndef LLMC_RUN_H
#define LLMC_RUN_H

#include "../device/backend.h"
#include "../rl/correction.h"
#include "../rl/external.h"
#include "../rl/objective.h"
#include "../rl/ranks.h"
#include "../rl/rollout.h"
#include "../rl/sampler.h"
#include "../rl/stale.h"
#include "../rl/trainer.h"
#include "checkpoint.h"
#include "log.h"
#include "settings.h"

LLMC_BEGIN

// What this process has done of one kind of work; earlier parts of a resumed run are not counted.
typedef struct meter {
    double seconds;
    int64_t tokens;
    int steps;
} meter;

typedef struct run {
    const struct settings* settings;
    ranks* ranks;  // who share the run; the first one keeps its files and says what is said
    backend* device;
    const char* why_cpu;  // why --device auto came to the CPU, or NULL
    struct source source;
    struct tokenizer tokenizer;
    struct model model;
    struct objective objective;
    struct correction correction;
    size_t parameters;   // their number
    float *host, *base;  // all parameters in host memory, or NULL: scratch; the model before RL
    sampler* sampler;
    struct sampler* evaluator;  // the sampler, or with --eval-dtype one of its own
    struct external* external;  // samples in the sampler's place, with --sampler-cmd; or NULL
    struct trainer* trainer;
    struct trainer* warmup;    // the warm-up's own, in that phase only
    struct stale* stale;       // older weights, for --sync-every and --lag
    model_weights* reference;  // NULL without --kl-coef
    rollout* data;             // the rollout of a step
    rollout* again;            // of --resample: the groups of a round; NULL without
    rollout *eval_data, *warmup_data;
    problem_list held_out;  // of evaluation, all different
    problem_list sanity;    // those that --sanity-samples kept; none: the source's
    problem_list asked;     // of a step; scratch
    uint32_t* order;        // (prompts) of the groups in an epoch; scratch
    double best;            // highest pass@1 of an evaluation, with --checkpoint-best
    int best_step;          // after which it was; -1: none yet
    run_log* log;
    run_state state;
    run_state saved;  // of the newest checkpoint
    meter warming, sampling, updating, evaluating;
} run;

// Reads the flags, opens task, log and device, and finds the phase: FRESH, or that of the newest
// checkpoint. Refuses what makes no sense before it makes anything.
run* run_open(int argc, char** argv);
// Allocates what the run needs and puts the weights where its phase needs them. A FRESH run that
// wants a warm-up enters WARMUP.
void run_create(run* r);
// FRESH or WARMUP -> RL: the model before RL is complete.
void run_start_rl(run* r);
// Between two steps: saves where that is due, and ends the program if a signal asked for it. After
// the last RL step the phase becomes DONE.
void run_pause(run* r);
// Hands the external sampler the weights (device) that this step samples with.
void run_sync_external(run* r, const float* parameters);
void run_close(run* r);

int run_is_first(const run* r);         // whether this rank says and writes what the run finds
int run_evaluation_due(const run* r);   // whether an evaluation comes before the next RL step
int run_interrupted(void);              // whether a signal asked the run to stop
double run_seconds_left(const run* r);  // of the RL steps that remain; NAN before the first is done
// The path of a file of the run, or NULL without --out; free with free().
char* run_path(const run* r, const char* name);

LLMC_END
#endif
