// evaluate: how well the sampler solves held-out prompts: greedily, and by sampling.
#ifndef LLMC_EVALUATE_H
#define LLMC_EVALUATE_H

#include "rollout.h"
#include "task.h"

LLMC_BEGIN

// Fills the prompts of `d` (prompts, group set) with training prompts of a step, or held-out ones
// from number `first` on.
void evaluate_training_prompts(batch* d, const task* t, uint64_t seed, int step);
void evaluate_held_out_prompts(batch* d, const task* t, uint64_t seed, int first);

// The text of a sequence, up to and including its end token; free with free().
char* evaluate_prompt_text(const batch* d, int sequence);
char* evaluate_response_text(const batch* d, int sequence);
// reward[s] = 1 for a right answer, else 0. A response cut off by the length limit is graded as it
// stands.
void evaluate_rewards(batch* d, const task* t);

typedef struct reward_summary {
    double reward, reward_std;  // mean and population deviation over the sequences
    double response_length;
    double truncated;        // share of sequences without their end token
    double zero_std_groups;  // share of groups whose rewards are all equal
    double entropy;          // mean over tokens, nats
} reward_summary;

reward_summary evaluate_summary(const batch* d);

typedef struct evaluation {
    double greedy;  // share of prompts solved by the most probable tokens
    double pass1;   // mean share of right samples
    double passk;   // probability that one of k samples is right, unbiased estimate
    double response_length;
    int k, prompts;
    int64_t tokens;
} evaluation;

typedef struct evaluate_config {
    int prompts, samples, k;
    uint64_t seed;
    uint32_t step;  // keys the samples
    float inverse_temperature;
    int top_k;
    float top_p;
} evaluate_config;

// 1 - C(n - right, k) / C(n, k): Chen et al., arXiv 2107.03374. k <= n.
double evaluate_pass_at_k(int n, int right, int k);

// Uses `d` (its content is lost) as many times as the prompts need.
evaluation evaluate_run(rollout* r, batch* d, const task* t, const evaluate_config* c);

LLMC_END
#endif
