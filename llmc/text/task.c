// The table of tasks, the reading of "NAME:option=value", and the draw of prompts. Which set a
// prompt belongs to follows from its text, so the sets stay apart without anyone keeping a list:
// draws are repeated until one falls into the set that was asked for.
#include "task.h"

#include <errno.h>
#include <stdlib.h>

#include "tasks/tasks.h"

static const task_kind* const KINDS[] = {&TASK_CHAIN, &TASK_ADD, &TASK_COUNTDOWN};
enum { KIND_COUNT = sizeof KINDS / sizeof KINDS[0], NAME_MAX_LENGTH = 31 };
_Static_assert((int)KIND_COUNT <= TASK_OPTIONS_MAX, "refuse_name lists tasks and options alike");

// ---------------------------------------------------------------------------------------------
// Opening.

// "WHERE no WHAT is called "given"; did you mean NEAREST (there are A, B, C)?"
static void refuse_name(const char* where, const char* what, const char* given, int length,
                        const char* const names[], int count) __attribute__((noreturn));
static void refuse_name(const char* where, const char* what, const char* given, int length,
                        const char* const names[], int count) {
    char list[TASK_OPTIONS_MAX * (NAME_MAX_LENGTH + 2) + 1] = "";
    int nearest = 0, distance = -1;
    for (int i = 0; i < count; i++) {
        int d = name_distance(given, (size_t)length, names[i]);
        if (distance < 0 || d < distance) distance = d, nearest = i;
        strcat(strcat(list, i ? ", " : ""), names[i]);
    }
    fatal("%sno %s is called \"%s\"; did you mean %s (there are %s)?", where, what,
          shown(given, (size_t)length), names[nearest], list);
}

static int is_name(const char* text, int length, const char* name) {
    return (int)strlen(name) == length && !memcmp(text, name, (size_t)length);
}

static const task_kind* find_kind(const char* text, int length) {
    const char* names[KIND_COUNT];
    for (int i = 0; i < KIND_COUNT; i++) {
        if (is_name(text, length, KINDS[i]->name)) return KINDS[i];
        names[i] = KINDS[i]->name;
    }
    refuse_name("--task: ", "task", text, length, names, KIND_COUNT);
}

static int find_option(const task_kind* kind, const char* text, int length) {
    const char* names[TASK_OPTIONS_MAX];
    int count = 0;
    for (; count < TASK_OPTIONS_MAX && kind->option[count].name; count++) {
        if (is_name(text, length, kind->option[count].name)) return count;
        names[count] = kind->option[count].name;
    }
    char where[NAME_MAX_LENGTH + 16];
    snprintf(where, sizeof where, "--task %s: ", kind->name);
    refuse_name(where, "option", text, length, names, count);
}

// Reads one "option=value" at `text`, stores it, and returns what follows it: a comma or the end.
static const char* read_option(const task_kind* kind, const char* text, task* t, unsigned* given) {
    int length = (int)strcspn(text, ","), name_length = (int)strcspn(text, "=,");
    if (length == 0)
        fatal("--task %s: an option is missing after \":\" or \",\"; write it as %s=%d", kind->name,
              kind->option[0].name, kind->option[0].initial);
    int k = find_option(kind, text, name_length);
    const task_option* o = &kind->option[k];
    if (*given >> k & 1) fatal("--task %s: %s is given twice; keep one", kind->name, o->name);
    *given |= 1u << k;
    const char* value = text + name_length + (text[name_length] == '=');
    char* end;
    errno = 0;
    long number = strtol(value, &end, 10);
    // strtol would also take spaces and a plus
    int malformed = end == value || end != text + length || !strchr("-0123456789", *value);
    if (malformed || errno || number < o->min || number > o->max)
        fatal("--task %s: %s is refused; %s takes a whole number from %d to %d, as in %s=%d",
              kind->name, shown(text, (size_t)length), o->name, o->min, o->max, o->name,
              o->initial);
    t->option[k] = (int)number;
    return text + length;
}

task task_open(const char* spec) {
    int length = (int)strcspn(spec, ":");
    const task_kind* kind = find_kind(spec, length);
    task t = {.name = kind->name};
    for (int k = 0; k < TASK_OPTIONS_MAX; k++) t.option[k] = kind->option[k].initial;
    unsigned given = 0;
    for (const char* p = spec + length; *p;) p = read_option(kind, p + 1, &t, &given);
    kind->open(&t);
    return t;
}

void task_list(FILE* to) {
    for (int i = 0; i < KIND_COUNT; i++) {
        fprintf(to, "  %-18s %s\n", KINDS[i]->name, KINDS[i]->help);
        for (int k = 0; k < TASK_OPTIONS_MAX && KINDS[i]->option[k].name; k++) {
            const task_option* o = &KINDS[i]->option[k];
            int n = fprintf(to, "    %s=%d", o->name, o->initial);
            fprintf(to, "%*s%s (%d to %d)\n", n < 20 ? 21 - n : 1, "", o->help, o->min, o->max);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Drawing.

int task_is_held_out(const char* prompt) { return hash_text(prompt) % 8 == 0; }

static void draw(const task* t, rng* r, int held_out, char prompt[TASK_TEXT_MAX]) {
    // Where one prompt in a thousand belongs to the set, the chance to miss it is e^-10.
    for (int attempt = 0; attempt < 10000; attempt++) {
        t->problem(t, r, prompt);
        if (task_is_held_out(prompt) == held_out) return;
    }
    fatal(
        "task %s is too small: none of its prompts is in the %s set; choose options that make "
        "it larger",
        t->name, held_out ? "held-out" : "training");
}

void task_training_prompt(const task* t, uint64_t seed, uint32_t step, uint32_t index,
                          char prompt[TASK_TEXT_MAX]) {
    rng r = rng_at(seed, STREAM_PROMPT, step, index);
    draw(t, &r, 0, prompt);
}

void task_held_out_prompt(const task* t, uint64_t seed, uint32_t index,
                          char prompt[TASK_TEXT_MAX]) {
    rng r = rng_at(seed, STREAM_HELD_OUT, 0, index);
    draw(t, &r, 1, prompt);
}

void task_warmup_example(const task* t, uint64_t seed, uint32_t step, uint32_t index,
                         char prompt[TASK_TEXT_MAX], char response[TASK_TEXT_MAX]) {
    rng r = rng_at(seed, STREAM_WARMUP, step, index);
    draw(t, &r, 0, prompt);
    t->example(t, &r, prompt, response);
}
