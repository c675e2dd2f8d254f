// task: where prompts come from and what counts as a right answer. A task is text in, text out; it
// knows nothing of tokens, models or rewards beyond right and wrong. One file a task in tasks/.
//
// A task's options shape what is drawn, never what is right: verify() judges every prompt that the
// task could pose under any options.
#ifndef LLMC_TASK_H
#define LLMC_TASK_H

#include "../base/common.h"
#include "../base/numerics.h"

LLMC_BEGIN

#define TASK_TEXT_MAX 256   // bytes of a prompt or a worked answer, the ending 0 included
#define TASK_OPTIONS_MAX 8  // options a task may have

typedef struct task task;
struct task {
    const char* name;
    int max_prompt;    // characters of the longest prompt, without the ending 0
    int max_response;  // characters of the longest worked answer, its end character included
    // Writes one random problem, e.g. "7+8+1-8-5:".
    void (*problem)(const task* t, rng* r, char prompt[TASK_TEXT_MAX]);
    // Writes an answer for supervised warm-up, '\n' included. The answers have bad habits on
    // purpose, which each task's file describes: they are what reinforcement then removes.
    // `prompt` is one that problem() wrote, here and in solution().
    void (*example)(const task* t, rng* r, const char* prompt, char response[TASK_TEXT_MAX]);
    // Writes the right answer, worked out, '\n' included: what the verifier must accept.
    void (*solution)(const task* t, const char* prompt, char response[TASK_TEXT_MAX]);
    // 1 if `prompt` has the form of this task's prompts, else 0. Any bytes of any length.
    int (*is_prompt)(const task* t, const char* prompt);
    // 1 if `response` (its end character '\n' included if it ended itself) is right, else 0; 0 too
    // where is_prompt() is 0. Any bytes of any length are allowed; nothing crashes.
    int (*verify)(const task* t, const char* prompt, const char* response);
    int option[TASK_OPTIONS_MAX];  // the task's own settings, in the order of its option table
};

// Opens "NAME" or "NAME:option=value,option=value". An unknown name, an unknown, repeated or
// malformed option and a value out of range are fatal; the message names the right ones.
task task_open(const char* spec);
// All tasks with their options, defaults and ranges, a line each, for --help.
void task_list(FILE* to);

// 1 if `prompt` belongs to the held-out set, 0 if to the training set: an eighth of all texts,
// chosen by a hash of the text alone, is held out, whatever the task, its options and the seed.
int task_is_held_out(const char* prompt);
// The prompt number `index` of a run's training step, or of the held-out set: the same for the same
// arguments, and the two sets never share a prompt. A prompt may come up more than once. Fatal if
// the task is so small that none is found.
void task_training_prompt(const task* t, uint64_t seed, uint32_t step, uint32_t index,
                          char prompt[TASK_TEXT_MAX]);
void task_held_out_prompt(const task* t, uint64_t seed, uint32_t index, char prompt[TASK_TEXT_MAX]);

// The warm-up example number `index` of warm-up step `step`: a training prompt and a response.
void task_warmup_example(const task* t, uint64_t seed, uint32_t step, uint32_t index,
                         char prompt[TASK_TEXT_MAX], char response[TASK_TEXT_MAX]);

LLMC_END
#endif
