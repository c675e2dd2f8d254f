// process: a program of the user's own that runs next to this one and is talked to in lines, over
// its standard input and output. /bin/sh -c runs it, in a process group of its own. It gets no
// signals from the terminal, has the same standard error, sees PYTHONUNBUFFERED=1, so that Python
// writes each line at once, and dies with the thread that started it (on Linux).
#ifndef LLMC_PROCESS_H
#define LLMC_PROCESS_H

#include <sys/types.h>

#include "common.h"

LLMC_BEGIN

// What refusals say.
typedef struct program {
    const char* flag;    // that names it: "--reward-cmd"
    const char* line;    // for the shell
    const char* writes;  // what it must write: "one number for each line that it reads"
    const char* fewer;   // what to do where the system has no room for it
} program;

typedef struct process {
    pid_t pid;    // 0: there is none
    int in, out;  // our ends of its standard input and output; they do not block
} process;

// Fatal if the system has no room. Ignores SIGPIPE from here on.
void process_start(process* p, const program* of);
// Fatal if one of them ends or writes within PROCESS_START_SECONDS, before it was given a line, as
// they do if the program does not exist. Then all are stopped.
#define PROCESS_START_SECONDS 0.25
void process_watch_start(process* const* list, int count, const program* of);
// Whether it has ended. It stays a zombie, so that its number is not given to another.
int process_ended(const process* p);
// Kills it with what it started, and forgets it; returns the status of waitpid.
int process_stop(process* p);
// Closes the standard input of all, gives them PROCESS_START_SECONDS to end, kills those that do
// not.
void process_end(process* const* list, int count);
// "status 1" or "signal 9", of a status of waitpid; to be freed.
char* process_status_text(int status);

LLMC_END
#endif
