// task: where prompts come from and what counts as a right answer. A task is text in, text out; it
// knows nothing of tokens, models or rewards beyond right and wrong. One file a task in tasks/.
#ifndef LLMC_TASK_H
#define LLMC_TASK_H

#include "common.h"
#include "numerics.h"

LLMC_BEGIN

#define TASK_TEXT_MAX 256  // bytes of a prompt or a worked answer, the ending 0 included

typedef struct task task;
struct task {
    const char* name;
    int max_prompt;    // characters of the longest prompt
    int max_response;  // characters of the longest worked answer, its end character included
    // Writes one random problem, e.g. "7+8+1-8-5:".
    void (*problem)(const task* t, rng* r, char prompt[TASK_TEXT_MAX]);
    // Writes an answer for supervised warm-up, bad habits included (shared/RECIPE.md of the chain).
    void (*example)(const task* t, rng* r, const char* prompt, char response[TASK_TEXT_MAX]);
    // Writes the right answer, worked out: what the verifier must accept.
    void (*solution)(const task* t, const char* prompt, char response[TASK_TEXT_MAX]);
    // 1 if `response` (its end character '\n' included if it ended itself) is right, else 0. Any
    // bytes are allowed; nothing crashes.
    int (*verify)(const task* t, const char* prompt, const char* response);
    int option[8];  // the task's own settings, in the order of its option table
};

// Opens "NAME" or "NAME:option=value,option=value". Refuses unknown names, unknown options and
// values out of range, and names the right ones.
task task_open(const char* spec);
// All tasks with their options, defaults and ranges, a line each, for --help.
void task_list(FILE* to);

// The prompt number `index` of a run's training step, or of the held-out set. The two sets never
// share a prompt: a hash of the text decides which set it belongs to.
void task_training_prompt(const task* t, uint64_t seed, uint32_t step, uint32_t index,
                          char prompt[TASK_TEXT_MAX]);
void task_held_out_prompt(const task* t, uint64_t seed, uint32_t index,
                          char prompt[TASK_TEXT_MAX]);
// The warm-up example number `index` of warm-up step `step`: a training prompt and a response.
void task_warmup_example(const task* t, uint64_t seed, uint32_t step, uint32_t index,
                         char prompt[TASK_TEXT_MAX], char response[TASK_TEXT_MAX]);

LLMC_END
#endif
