// log: what a run says. To people: lines on the console, and on a terminal a progress line that is
// wiped again. To programs: log.jsonl and samples.jsonl, one JSON object a line; their phases and
// keys stand at the head of log.c. A line is written whole when it is complete, so that a run that
// is killed leaves whole lines. A failed write ends the program with one sentence.
#ifndef LLMC_LOG_H
#define LLMC_LOG_H

#include "../base/common.h"

LLMC_BEGIN

typedef struct run_log run_log;

// `directory` is made if it is missing; "" writes no files. Files are appended to.
// `elapsed`: seconds that earlier parts of a resumed run took.
run_log* log_open(const char* directory, double elapsed);
void log_close(run_log* l);
double log_elapsed(const run_log* l);  // seconds since the start of the run, earlier parts included

// One object of log.jsonl: begin starts it with phase, step and time, each log_number adds a field,
// end writes the line.
void log_begin(run_log* l, const char* phase, int step);
// The shortest text that reads back to the same double; null if not finite.
void log_number(run_log* l, const char* key, double value);
void log_end(run_log* l);
typedef struct sample_tokens {
    int count;
    const int* id;
    const float *log_mu, *log_pi;
} sample_tokens;

// One object of samples.jsonl, written at once. The texts may hold any bytes; what is not UTF-8
// becomes U+FFFD. `tokens`: NULL leaves their keys out.
void log_sample(run_log* l, int step, int index, const char* prompt, const char* completion,
                double reward, double advantage, const sample_tokens* tokens);

// Makes both files durable and gives the lines of log.jsonl and the bytes of samples.jsonl (0
// without files), so that a resumed run can cut them back to here. Both are the same for equal
// runs: the log's bytes are not, since it holds times. A log that was removed meanwhile is refused.
void log_position(run_log* l, int64_t* log_lines, int64_t* sample_bytes);
// Cuts the files of `directory` back to there; before log_open. Returns the `time` of the last line
// that stays, 0 without one. A file that is shorter was altered and is refused; a missing one is
// fine where nothing is expected.
double log_cut(const char* directory, int64_t log_lines, int64_t sample_bytes);

// The step of the evaluation with the highest pass@1 in a log, the first of equal ones, and its
// value. -1, and `pass1` as it was: there is none above it.
int log_best(const char* directory, double* pass1);

// The log of a rank that says nothing: it keeps no files, and prints nothing.
run_log* log_open_silent(void);

// One line on the console (printf, without the newline), after wiping the progress line. Where
// nobody reads the console any more (a closed pipe or terminal) the run goes on without it; a
// console that cannot be written otherwise ends the program.
void log_print(run_log* l, const char* format, ...) __attribute__((format(printf, 2, 3)));
// From now on such lines are written to this file too; NULL: no longer.
void log_copy(run_log* l, const char* path);
// "rollout  63 % · 41,200 tokens/s · 12 s left", only if stdout is a terminal and at most ten
// times a second. fraction: 0 to 1. A speed or a time that is not finite or below 0 is left out.
void log_progress(run_log* l, const char* what, double fraction, double tokens_per_s,
                  double seconds_left);

LLMC_END
#endif
