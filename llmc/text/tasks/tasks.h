// What a file of this folder provides (one task_kind) and the few helpers that all of them use.
#ifndef LLMC_TASKS_H
#define LLMC_TASKS_H

#include "../task.h"

typedef struct task_option {
    const char* name;
    int initial, min, max;  // default and legal range, inclusive
    const char* help;       // a few words
} task_option;

typedef struct task_kind {
    const char* name;
    const char* help;                      // a prompt and an answer, in one line
    task_option option[TASK_OPTIONS_MAX];  // fewer end with a name of NULL
    // Fills the lengths and functions of a task whose name and options are set.
    void (*open)(task* t);
} task_kind;

extern const task_kind TASK_CHAIN, TASK_ADD, TASK_COUNTDOWN;

// 1 with a probability of `percent` in a hundred. At 0 nothing is drawn, and r may be NULL.
static inline int task_chance(rng* r, int percent) {
    return percent > 0 && (int)rng_below(r, 100) < percent;
}

// 1 if the response ended itself: one '\n', and nothing after it.
static inline int task_ended(const char* response) {
    const char* end = strchr(response, '\n');
    return end && !end[1];
}

// Reads an integer of at most max_digits (<= 18) digits that does not start with 0; returns what
// follows it, or NULL.
static inline const char* task_number(const char* p, int max_digits, int64_t* value) {
    if (*p < '1' || *p > '9') return NULL;
    *value = 0;
    for (int n = 0; *p >= '0' && *p <= '9'; n++) {
        if (n == max_digits) return NULL;
        *value = 10 * *value + (*p++ - '0');
    }
    return p;
}

#endif
