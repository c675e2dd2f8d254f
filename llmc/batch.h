// batch: the sequences of one rollout, in host memory: prompts, what the sampler wrote, what the
// trainer gives it, rewards and advantages; and the ways between them and a task's text.
#ifndef LLMC_BATCH_H
#define LLMC_BATCH_H

#include "common.h"
#include "task.h"

LLMC_BEGIN

// Sequence s is number s % group of prompt s / group. Token arrays hold max_new places a sequence,
// of which length[s] are used.
typedef struct batch {
    int capacity;        // sequences that fit
    int prompts, group;  // set by the user: prompts * group sequences
    int sequences;       // = prompts * group
    int max_prompt, max_new;
    int* prompt;         // (prompts, max_prompt) tokens
    int* prompt_length;  // (prompts)
    int* token;          // (sequences, max_new) response tokens, the end token included
    int* length;         // (sequences) response tokens
    float* log_mu;       // (sequences, max_new) what the sampler gave the token
    float* entropy;      // (sequences, max_new) of the sampler's distribution, nats
    float* log_pi;       // (sequences, max_new) what the trainer gives it now
    float* anchor;       // (sequences, max_new) what objectives take for log mu
    float* log_ref;      // (sequences, max_new) what the reference model gives it
    uint32_t* keep;      // (sequences, max_new, keep_words): top-k / top-p sets, or NULL
    int keep_words;
    int candidates;       // a token; 0: none
    int* candidate;       // (sequences, max_new, candidates) the sampler's best, -1: no more
    float* candidate_mu;  // as log_mu, log_pi and anchor, of these; the same shape
    float *candidate_pi, *candidate_anchor;
    float *reward, *advantage;  // (sequences)
} batch;

batch* batch_create(int capacity, int max_prompt, int max_new, int keep_words);
void batch_free(batch* d);
// Makes room for `count` candidates a token.
void batch_add_candidates(batch* d, int count);
// Copies values of the used places of (count, max_new) `from`, sequences first .. first+count-1,
// one sequence after another into `to`; returns how many.
int batch_flatten(const batch* d, const float* from, int first, int count, float* to);

// Fills the prompts of `d` (prompts, group set) with training prompts of a step, or held-out ones
// from number `first` on.
void batch_training_prompts(batch* d, const task* t, uint64_t seed, int step);
void batch_held_out_prompts(batch* d, const task* t, uint64_t seed, int first);

typedef struct prompt_list {
    int count;
    char (*text)[TASK_TEXT_MAX];
} prompt_list;

// ... or with those of a list, from number `first` on; it begins again at its end.
void batch_listed_prompts(batch* d, const prompt_list* list, int64_t first);

// The text of a sequence, up to and including its end token; free with free().
char* batch_prompt_text(const batch* d, int sequence);
char* batch_response_text(const batch* d, int sequence);
// reward[s] = 1 for a right answer, else 0. A response cut off by the length limit is graded as it
// stands.
void batch_verify(batch* d, const task* t);

typedef struct batch_summary {
    double reward, reward_std;  // mean and population deviation over the sequences
    double response_length;
    double truncated;        // share of sequences without their end token
    double zero_std_groups;  // share of groups whose rewards are all equal
    double entropy;          // mean over tokens, nats
} batch_summary;

batch_summary batch_summarize(const batch* d);

LLMC_END
#endif
