// rollout: the sequences of a step, in host memory: prompts, what the sampler wrote, what the
// trainer makes of it, rewards and advantages; and the ways between them and a task's text.
#ifndef LLMC_ROLLOUT_H
#define LLMC_ROLLOUT_H

#include "../base/common.h"
#include "../text/source.h"
#include "../text/tokenizer.h"
#include "ranks.h"

LLMC_BEGIN

// Sequence s is number s % group of prompt s / group. The arrays over tokens hold the response
// tokens of all sequences one after another; sequence s has numbers start[s] .. start[s + 1] - 1.
typedef struct rollout {
    int capacity;                // sequences that fit
    int prompts, group;          // set by the user: prompts * group sequences
    int sequences;               // = prompts * group
    int leave_cut;               // sequences that were cut off are not trained on, nor counted
    uint32_t first;              // what the draws of sequence 0 are keyed by; the others' follow
    const tokenizer* tokenizer;  // of the texts
    problem_list asked;          // (prompts)
    int max_prompt, max_new;     // tokens of the longest prompt and response that fit
    int* prompt;                 // (prompts, max_prompt) tokens
    int* prompt_length;          // (prompts)
    size_t* start;               // (sequences + 1) first token; start[0] = 0
    int* token;                  // (tokens) what was sampled, end tokens included
    float* log_mu;               // (tokens) what the sampler gave the token
    float* entropy;              // (tokens) of the sampler's distribution, nats
    float* log_pi;               // (tokens) what the trainer gives it now
    float* anchor;          // (tokens) what the ratio is taken against: log_mu or an earlier log_pi
    float* log_ref;         // (tokens) what the reference model gives it
    float* correction;      // (tokens) weight of the mismatch (correction.h); NULL: 1
    int nucleus_words;      // of a kept set (of top-k, top-p) as a bit mask; 0: there are none
    size_t* nucleus_start;  // (tokens + 1) first word of a token's kept set
    uint32_t* nucleus;      // the sets, each as token ids, or as a mask where that is not larger
    size_t nucleus_room;    // words that fit
    int candidates;         // per token; 0: none
    int* candidate;         // (tokens, candidates) the sampler's best, -1: no more
    float* candidate_mu;    // as log_mu, log_pi and anchor, of these; the same shape
    float *candidate_pi, *candidate_anchor;
    size_t expert_bytes;  // of a sequence's experts; 0: there are none
    uint8_t* expert;  // (sequences, max_prompt + max_new, layers, experts_used) what the sampler
                      // took where a token was read, but for the last one; a prompt's are those
                      // of its first sequence
    float *reward, *advantage;  // (sequences); the reward is NaN where a program gave none
    float* right;               // (sequences) 1 or 0
    judgement judged;           // of all sequences
    ranks* ranks;               // who samples it
    struct rollout* own;        // the prompts that this rank samples; NULL where it samples all
} rollout;

rollout* rollout_create(int capacity, int max_prompt, int max_new, int nucleus_words);
void rollout_free(rollout* d);
// From now on the ranks share the sampling: each its share of the prompts. Called when all other
// room has been made.
void rollout_split(rollout* d, ranks* r);
// What this rank is to sample, with its prompts; `d` itself where nobody shares it.
rollout* rollout_own(rollout* d);
// What each rank has sampled, into `d` on all ranks.
void rollout_gather(rollout* d);
// Makes room for `count` candidates per token.
void rollout_add_candidates(rollout* d, int count);
void rollout_add_experts(rollout* d, size_t each);  // makes room for `each` bytes a token
void rollout_add_correction(rollout* d);            // makes room for the weights of the mismatch
// Stores the kept set of a token, a mask of nucleus_words, after the sets of the tokens before it;
// and gives it back.
void rollout_put_nucleus(rollout* d, size_t token, const uint32_t* mask);
void rollout_get_nucleus(const rollout* d, size_t token, uint32_t* mask);
// Response tokens of a sequence.
int rollout_length(const rollout* d, int sequence);

// Fills the prompts of `d` (prompts, group set) with those of a list, from number `first` on; it
// begins again at its end.
void rollout_ask(rollout* d, const tokenizer* t, const problem_list* list, int64_t first);

// What a sequence answers, and the text of its response with its end token; free with free().
const problem* rollout_problem(const rollout* d, int sequence);
char* rollout_response_text(const rollout* d, int sequence);
// Whether a sequence ended by itself, not at the limit of its length.
int rollout_ended(const rollout* d, int sequence);
// Fills in reward, right and judged. Of several ranks the first one judges.
void rollout_judge(rollout* d, const source* s);

// Deals the groups anew: place p gets group order[p], with all that stands above of it.
void rollout_deal(rollout* d, const uint32_t* order);

// Advantages of 0 for groups in which a response has no reward: they are not trained on.
void rollout_leave_out(rollout* d);

// The numbers of the groups whose rewards are all equal, in order; returns how many. group:
// (prompts).
int rollout_equal_groups(const rollout* d, int* group);
// Group i of `from`, which was sampled and judged, takes the place of group[i] of d, for all of its
// prompts; group[i] ascends. Of `judged` only what was lost adds up: the means stay those of d.
void rollout_replace(rollout* d, const rollout* from, const int* group);

typedef struct rollout_summary {
    double reward, reward_std;  // mean and population deviation over the sequences that have one
    double response_length;
    double truncated;        // share of sequences without their end token
    double zero_std_groups;  // share of groups whose rewards are all equal
    double entropy;          // mean over tokens, nats
} rollout_summary;

rollout_summary rollout_summarize(const rollout* d);

LLMC_END
#endif
