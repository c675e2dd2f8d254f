// command: rewards from a program of the user's own. It reads one JSON object a line from standard
// input, {"prompt": TEXT, "response": TEXT, "answer": TEXT or null}, and writes one number a line
// to standard output, in the same order. It runs on from the first batch to the last, so it must
// write (flush) each number before it waits for more input than it was given.
//
// The program is run by /bin/sh -c, in `workers` processes at once; response i of a batch goes to
// worker i % workers. A response has no number
// - if its worker ended before writing it (crashed),
// - if it was not written within the time of the batch (timed_out), or
// - if its line is not one decimal number of at most COMMAND_NUMBER_MOST in size (malformed).
// A worker that wrote more lines than it was given (extra) has lost count: all its lines of the
// batch are malformed if that shows in time; else it shows at the next batch, too late. Such a
// worker and one that crashed or timed out are killed with their process group, and started anew at
// the next batch.
//
// Nothing here waits longer than the time of a batch, whatever the program does. What a worker gets
// of this program's surroundings: base/process.h.
#ifndef LLMC_COMMAND_H
#define LLMC_COMMAND_H

#include "problem.h"

LLMC_BEGIN

// One response to grade. Any bytes but 0; what is no UTF-8 goes to the program as U+FFFD.
typedef struct graded {
    const problem* problem;
    const char* response;
    int ended;  // whether the model drew an end token
} graded;

// Responses without a number, by why; and how often a worker wrote too many lines.
typedef struct reward_counts {
    int64_t crashed, timed_out, malformed, extra;
} reward_counts;

void reward_counts_add(reward_counts* to, const reward_counts* more);
// What was lost, as the end of a sentence that begins with where; NULL if nothing was. To be freed.
char* reward_counts_text(const reward_counts* c);

typedef struct command_config {
    const char* line;  // for /bin/sh -c
    int workers;       // processes, at least 1 (0: see reward_open)
    double timeout;    // seconds that a batch may take, above 0
    int skip_missing;  // read by grader.h: a response without a number has the reward NaN, not 0
} command_config;

typedef struct command command;

// Starts the workers. Fatal for what process_watch_start refuses. On Linux the workers die with the
// thread that started them, so call this and command_grade from one that lives as long as they are
// needed.
#define COMMAND_NUMBER_MOST 1e30  // a weighted sum of such numbers is finite as a float
command* command_open(const command_config* config);
// Writes the numbers of n responses to score, (n); NaN where there is none.
reward_counts command_grade(command* c, const graded* items, int n, double* score);
// Closes the workers' standard input, gives them a moment to end, kills those that do not.
void command_free(command* c);

LLMC_END
#endif
