// Must-refuse tests: runs a function in a child process and judges how it ended. A refusal is exit
// status 1 and exactly one line on stderr, "train_gpt2_rl: ...", that holds the expected words.
#ifndef REFUSAL_H
#define REFUSAL_H

#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

typedef struct child_result {
    int status;       // as waitpid gives it
    char text[8192];  // what it wrote to stdout or stderr
} child_result;

// `stream`: STDOUT_FILENO or STDERR_FILENO, the one to catch; the other goes where it went.
static child_result child_run(int stream, void (*run)(const void*), const void* argument) {
    child_result result = {0, ""};
    int ends[2];
    fflush(stdout);
    pid_t child = pipe(ends) ? -1 : fork();
    if (child < 0) {
        perror("child_run");
        exit(1);
    }
    if (child == 0) {
        dup2(ends[1], stream);
        run(argument);
        exit(0);
    }
    close(ends[1]);
    FILE* caught = fdopen(ends[0], "r");
    if (caught) result.text[fread(result.text, 1, sizeof result.text - 1, caught)] = 0;
    if (caught) fclose(caught);
    waitpid(child, &result.status, 0);
    return result;
}

// `words`: substrings that the message must hold, up to REFUSAL_WORDS of them.
#define REFUSAL_WORDS 4
static void check_refusal(void (*run)(const void*), const void* argument, const char* what,
                          const char* const words[REFUSAL_WORDS]) {
    child_result r = child_run(STDERR_FILENO, run, argument);
    const char* line_end = strchr(r.text, '\n');
    CHECK(WIFEXITED(r.status) && WEXITSTATUS(r.status) == 1, "%s: ended with %x", what, r.status);
    CHECK(!strncmp(r.text, "train_gpt2_rl: ", 15), "%s: said \"%s\"", what, r.text);
    CHECK(line_end && !line_end[1], "%s: one line expected, got \"%s\"", what, r.text);
    for (int i = 0; i < REFUSAL_WORDS && words[i]; i++)
        CHECK(strstr(r.text, words[i]), "%s: \"%s\" expected in \"%s\"", what, words[i], r.text);
}

#endif
