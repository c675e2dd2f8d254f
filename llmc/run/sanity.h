// sanity: a check that a way of training is sound (arXiv 2510.26788). The model before RL answers
// some prompts many times; those that it solves at times, but not nearly always, are kept. It has
// what it takes to solve them, so training on these alone should end at about 100 %.
#ifndef LLMC_SANITY_H
#define LLMC_SANITY_H

#include "run.h"

LLMC_BEGIN

typedef struct sanity_config {
    int prompts;       // training prompts that are tried; none twice
    int samples;       // completions of each, at most SANITY_SAMPLES_MAX
    double low, high;  // share of right ones with which a prompt is kept, ends included
    sampling how;      // of the completions; `step` is not read
} sanity_config;

enum { SANITY_SAMPLES_MAX = 512, SANITY_PROMPTS_MAX = 16384 };

typedef struct sanity_result {
    problem_list kept;
    int tried;           // fewer than asked for where the source has not as many
    double solved;       // mean share of right completions over the prompts that were tried
    reward_counts lost;  // completions that the reward program did not judge
} sanity_result;

// The choice depends on the sampler's weights and formats and on `c` alone. Uses `d` (its content
// is lost; it holds at least SANITY_SAMPLES_MAX sequences). Fatal if no prompt is kept.
sanity_result sanity_select(sampler* r, rollout* d, const source* from, const tokenizer* t,
                            const sanity_config* c);
// The kept prompts as a file, one per line, for a run that is resumed. `path` is whole or
// untouched. Returns its checksum, which the file must still have when it is read.
uint64_t sanity_write(const problem_list* kept, const char* path);
problem_list sanity_read(const source* from, const char* path, uint64_t checksum);

// The prompts of a run, before its first RL step: the model before RL chooses them in fp32, so that
// runs of every precision share them. Logs the choice and keeps it in the run's directory.
void sanity_choose(run* r);
void sanity_restore(run* r);  // of a run that is resumed

LLMC_END
#endif
