// evaluate: how well the sampler solves prompts, held-out ones as a rule: greedily, and by
// sampling.
#ifndef LLMC_EVALUATE_H
#define LLMC_EVALUATE_H

#include "run.h"

LLMC_BEGIN

enum { EVAL_KS = 24 };  // powers of two up to the most samples

typedef struct evaluation {
    double greedy;          // share of prompts solved by the most probable tokens
    double pass1;           // mean share of right samples
    double pass1_error;     // its standard error over prompts; NaN: there is only one
    int ks, k[EVAL_KS];     // how many k there are, rising; the k
    double passk[EVAL_KS];  // probability that one of k samples is right, unbiased estimate
    double response_length;
    int prompts;
    int64_t tokens;
    reward_counts lost;  // responses that the reward program did not judge
    int stopped;         // it was left early: nothing above holds
} evaluation;

typedef struct evaluate_config {
    int prompts, samples;
    int k;                     // of pass@k; 0: every power of two from 2 to `samples`
    sampling how;              // of the samples
    const problem_list* list;  // it begins again at its end
    const tokenizer* tokenizer;
    int (*stop)(void);  // asked between decode steps, 1 ends the evaluation; NULL: never
} evaluate_config;

// 1 - C(n - right, k) / C(n, k): Chen et al., arXiv 2107.03374. k <= n.
double evaluate_pass_at_k(int n, int right, int k);

// Uses `d` (its content is lost) as many times as the prompts need; how many fit changes nothing: a
// draw is keyed by seed, step, prompt * samples + sample, and position.
evaluation evaluate_run(sampler* r, rollout* d, const source* from, const evaluate_config* c);

// The newest weights of a run, as its settings ask for it. A signal stops it; then the step is not
// evaluated yet.
evaluation evaluate_policy(run* r);
// Three completions of the newest weights, in r->eval_data, for people to read.
void evaluate_examples(run* r);

LLMC_END
#endif
