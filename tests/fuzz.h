// Fuzzing of readers: many cases in one process. A case ends by itself or by fatal(), which comes
// back here (on_fatal) after it has written its line. Children run a few hundred cases each,
// because a refusal leaves its memory and files behind. A refusal must be one line that names
// `word`.
#ifndef FUZZ_H
#define FUZZ_H

#include <setjmp.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/common.h"
#include "test.h"

enum { FUZZ_BATCH = 250, FUZZ_SECONDS = 60 };

typedef struct fuzz_counts {
    long at, accepted, refused, wrong;
    char line[1024];  // of the last wrong refusal
} fuzz_counts;

static jmp_buf fuzz_back;
static void fuzz_leave(void) { longjmp(fuzz_back, 1); }

static void fuzz_judge(fuzz_counts* c, const char* word) {
    char text[4096];
    ssize_t n = pread(STDERR_FILENO, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    const char* end = strchr(text, '\n');
    c->refused++;
    if (!strncmp(text, "train_gpt2_rl: ", 15) && end && !end[1] && strstr(text, word)) return;
    c->wrong++;
    snprintf(c->line, sizeof c->line, "case %ld: %.900s", c->at, text);
}

static void fuzz_batch(fuzz_counts* c, void (*run)(long), const char* word, long end) {
    for (; c->at < end; c->at++) {
        if (ftruncate(STDERR_FILENO, 0)) exit(3);
        lseek(STDERR_FILENO, 0, SEEK_SET);
        on_fatal = fuzz_leave;
        if (setjmp(fuzz_back)) {
            fuzz_judge(c, word);
        } else {
            run(c->at);
            c->accepted++;
        }
    }
}

// Cases 0 to count - 1 of run(case).
static fuzz_counts fuzz(const char* what, long count, void (*run)(long), const char* word) {
    fuzz_counts* c =
        mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    FILE* errors = tmpfile();
    int status = 0;
    if (c == MAP_FAILED || !errors) exit(2);
    for (long end = FUZZ_BATCH; c->at < count && !status; end += FUZZ_BATCH) {
        fflush(stdout);
        pid_t child = fork();
        if (child < 0) exit(2);
        if (child == 0) {
            alarm(FUZZ_SECONDS);
            dup2(fileno(errors), STDERR_FILENO);
            fuzz_batch(c, run, word, end < count ? end : count);
            _exit(0);
        }
        waitpid(child, &status, 0);
    }
    if (status) {
        char text[4096];
        ssize_t n = pread(fileno(errors), text, sizeof text - 1, 0);
        text[n > 0 ? n : 0] = 0;
        printf("%s\n", text);
    }
    fuzz_counts result = *c;
    CHECK(!status, "%s: case %ld ended with %x", what, c->at, status);
    CHECK(!c->wrong, "%s: %ld refusals are not one sentence, the last of %s", what, c->wrong,
          c->line);
    fclose(errors);
    munmap(c, sizeof *c);
    return result;
}

// How many cases: TEST_FUZZ, or the usual number.
static long fuzz_cases(long usual) {
    const char* given = getenv("TEST_FUZZ");
    return given ? atol(given) : usual;
}

#endif
