// source: the problems of a run, and what judges responses to them. Either a task draws the
// problems and judges (task.h), or they come from a file (data.h) and graders judge (grader.h).
//
// An eighth of all problems, chosen by a hash of the prompt, is held out (task_is_held_out):
// training and evaluation never share a prompt. Where a file of its own holds the held-out ones, it
// may share some; they are counted.
#ifndef LLMC_SOURCE_H
#define LLMC_SOURCE_H

#include "data.h"
#include "grader.h"
#include "task.h"
#include "tokenizer.h"

LLMC_BEGIN

// Empty texts and NULL: not given.
typedef struct source_config {
    const char* task;
    const char *data, *held_out;  // files; without `data` the task is asked
    const char* keys;    // of the files: "prompt=NAME,answer=NAME,response=NAME", any of them
    const char* reward;  // grader.h
    const command_config* command;
} source_config;

typedef struct source {
    struct task task;                 // where there is no data
    problem_list training, held_out;  // of the data
    const char* data;                 // the file's path; NULL: the task is asked
    const char* held_out_data;        // the file of `held_out`, which may be the same one
    struct reward* reward;            // NULL: the task judges
    int max_prompt, max_response;     // tokens of the longest prompt, and response to imitate
    int has_responses;                // to imitate
    int bare_line, longest_line;      // of the first problem without one, and of the longest one
    int skipped;                      // problems that were too long
    int shared;                       // held-out problems whose prompts are training prompts too
    uint64_t checksum;                // of the data's texts
    uint32_t *order, pass;            // (training.count) of this pass
    uint64_t order_seed;
} source;

// Fatal for what task.h, data.h and grader.h refuse, for a set without problems, and for a problem
// that cannot be graded.
source source_open(const source_config* c);
source source_of_task(const char* spec);
// Measures prompts and responses in tokens, of which a prompt may have at most `most`. Longer ones
// are skipped if that is wished, else fatal.
void source_fit(source* s, const tokenizer* t, int most, int skip_long);

// Appends the `count` problems of a training step: the same for the same arguments. A task's may
// come up more than once; a file's come up once in each pass over it, in an order that seed and
// pass fix.
void source_training(source* s, uint64_t seed, int step, int count, problem_list* to);
// Different problems; at most `most`, fewer where there are fewer, as far as draws can tell. Held
// out, and for training (those of no step). Free with problem_list_free.
problem_list source_held_out(const source* s, uint64_t seed, int most);
problem_list source_pool(const source* s, uint64_t seed, int most);
// The line of text that names a problem, to be freed, and the problem that a line names: 0 if there
// is none. Its texts are the line's or the source's.
char* source_line(const problem* p);
int source_recall(const source* s, const char* line, problem* found);
// Appends the `count` problems of a warm-up step, each with a response.
void source_examples(source* s, uint64_t seed, int step, int count, problem_list* to);

typedef struct judgement {
    reward_counts lost;             // responses that the reward program did not judge
    int terms;                      // 0 where the task judges
    double term[REWARD_TERMS_MAX];  // the mean of each grader, without its weight
} judgement;

// score[i], the reward of each of n responses: a task's is 1 for a right answer, else 0; NaN where
// a reward program gave none and that is to be left out. right[i]: whether the first grader gives
// more than 0.5. A response that was cut off is judged as it stands.
judgement source_judge(const source* s, const graded* a, int n, float* score, float* right);
char* source_term_key(const source* s, int term);  // reward_term_key

void source_close(source* s);  // ends the reward program, which may finish what it does

LLMC_END
#endif
