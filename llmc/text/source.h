// source: the problems of a run, and what judges responses to them: a task's, which are drawn.
//
// An eighth of all problems, chosen by a hash of the prompt (task_is_held_out), is held out:
// training and evaluation never share a prompt.
#ifndef LLMC_SOURCE_H
#define LLMC_SOURCE_H

#include "problem.h"
#include "task.h"

LLMC_BEGIN

typedef struct source {
    struct task task;
    int max_prompt, max_response;  // tokens of the longest prompt, and response to imitate
} source;

source source_open(const char* task_spec);

// Appends the `count` problems of a training step: the same for the same arguments. A problem may
// come up more than once.
void source_training(const source* s, uint64_t seed, int step, int count, problem_list* to);
// Different problems; at most `most`, fewer where there are fewer, as far as draws can tell. Held
// out, and for training (those of no step). Free with problem_list_free.
problem_list source_held_out(const source* s, uint64_t seed, int most);
problem_list source_pool(const source* s, uint64_t seed, int most);
// The line of text that names a problem, and the problem that a line names (its texts may be the
// line's): 0 if there is none.
const char* source_line(const problem* p);
int source_recall(const source* s, const char* line, problem* found);
// Appends the `count` problems of a warm-up step, each with a response.
void source_examples(const source* s, uint64_t seed, int step, int count, problem_list* to);

// A response to a problem. `ended`: it ended by itself, not at the limit of its length.
typedef struct answered {
    const problem* problem;
    const char* response;
    int ended;
} answered;

// reward[i] of n responses: 1 for a right answer, else 0. A response that was cut off is judged as
// it stands.
void source_judge(const source* s, const answered* a, int n, float* reward);

LLMC_END
#endif
