// log: what a run says. To people: a table on the console, and on a terminal a progress line that is
// wiped again. To programs: log.jsonl, one JSON object a line (keys: DESIGN of the log at the head of
// log.c), and samples.jsonl. Non-finite numbers are written as null.
#ifndef LLMC_LOG_H
#define LLMC_LOG_H

#include "common.h"

LLMC_BEGIN

typedef struct run_log run_log;

// `directory` may be "" (nothing is written to files). Files are appended to.
// `elapsed`: seconds that earlier parts of a resumed run took.
run_log* log_open(const char* directory, double elapsed);
void log_close(run_log* l);
double log_elapsed(const run_log* l);  // seconds since the start of the run, earlier parts included

// One object of log.jsonl: begin writes phase, step and time, then fields, then end.
void log_begin(run_log* l, const char* phase, int step);
void log_number(run_log* l, const char* key, double value);  // shortest text with the same double
void log_end(run_log* l);
// One object of samples.jsonl.
void log_sample(run_log* l, int step, int index, const char* prompt, const char* completion,
                double reward, double advantage);

// Flushes both files and returns their sizes, so that a resumed run can cut them back to here.
void log_position(run_log* l, int64_t* log_bytes, int64_t* sample_bytes);
// Cuts the files of `directory` back; before log_open.
void log_cut(const char* directory, int64_t log_bytes, int64_t sample_bytes);

// Console. A line of text (printf), after wiping the progress line.
void log_print(run_log* l, const char* format, ...) __attribute__((format(printf, 2, 3)));
// "rollout  63 % · 41,200 tokens/s · 12 s left", only on a terminal, at most ten times a second.
void log_progress(run_log* l, const char* what, double fraction, double tokens_per_s,
                  double seconds_left);

LLMC_END
#endif
