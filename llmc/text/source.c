#include "source.h"

#include <stdlib.h>
#include <string.h>

source source_open(const char* task_spec) {
    task t = task_open(task_spec);
    return (source){.task = t, .max_prompt = t.max_prompt, .max_response = t.max_response};
}

void source_training(const source* s, uint64_t seed, int step, int count, problem_list* to) {
    char prompt[TASK_TEXT_MAX];
    for (int i = 0; i < count; i++) {
        task_training_prompt(&s->task, seed, (uint32_t)step, (uint32_t)i, prompt);
        problem_add(to, &(problem){.prompt = prompt});
    }
}

void source_examples(const source* s, uint64_t seed, int step, int count, problem_list* to) {
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX];
    for (int i = 0; i < count; i++) {
        task_warmup_example(&s->task, seed, (uint32_t)step, (uint32_t)i, prompt, response);
        problem_add(to, &(problem){.prompt = prompt, .response = response});
    }
}

// ------------------------------------------------------------------------------------------------
// Different problems

// A list, and a table of the numbers of its prompts by their hash; -1: none.
typedef struct prompt_set {
    problem_list list;
    int *table, places;  // at most half of them are taken
} prompt_set;

// The place of a prompt or, if it is not there, the one that it would take.
static int* find_place(const prompt_set* set, const char* prompt) {
    int* at = &set->table[hash_text(prompt) % (uint64_t)set->places];
    while (*at >= 0 && strcmp(set->list.item[*at].prompt, prompt))
        if (++at == set->table + set->places) at = set->table;
    return at;
}

static void widen(prompt_set* set) {
    free(set->table);
    set->places = set->places ? 2 * set->places : 256;
    set->table = xalloc((size_t)set->places, sizeof *set->table, "problems");
    for (int i = 0; i < set->places; i++) set->table[i] = -1;
    for (int i = 0; i < set->list.count; i++) *find_place(set, set->list.item[i].prompt) = i;
}

// Whether it is new.
static int add_new(prompt_set* set, const char* prompt) {
    if (2 * set->list.count >= set->places) widen(set);
    int* at = find_place(set, prompt);
    if (*at >= 0) return 0;
    *at = set->list.count;
    problem_add(&set->list, &(problem){.prompt = prompt});
    return 1;
}

problem_list source_held_out(const source* s, uint64_t seed, int most) {
    prompt_set set = {0};
    char prompt[TASK_TEXT_MAX];
    // If one prompt of n + 1 equally likely ones were missing, 20 n draws would miss it with e^-20.
    for (uint32_t i = 0, last = 0; set.list.count < most; i++) {
        if (i - last > 1000 + 20 * (uint32_t)set.list.count) break;
        task_held_out_prompt(&s->task, seed, i, prompt);
        if (add_new(&set, prompt)) last = i;
    }
    free(set.table);
    return set.list;
}

// A small task has fewer: it stops after having drawn four times as many.
problem_list source_pool(const source* s, uint64_t seed, int most) {
    const uint32_t no_step = UINT32_MAX;
    prompt_set set = {0};
    char prompt[TASK_TEXT_MAX];
    for (int i = 0; i < 4 * most && set.list.count < most; i++) {
        task_training_prompt(&s->task, seed, no_step, (uint32_t)i, prompt);
        add_new(&set, prompt);
    }
    free(set.table);
    return set.list;
}

// ------------------------------------------------------------------------------------------------

const char* source_line(const problem* p) { return p->prompt; }

int source_recall(const source* s, const char* line, problem* found) {
    *found = (problem){.prompt = line};
    return strlen(line) <= (size_t)s->task.max_prompt && s->task.is_prompt(&s->task, line);
}

void source_judge(const source* s, const answered* a, int n, float* reward) {
    for (int i = 0; i < n; i++)
        reward[i] = (float)s->task.verify(&s->task, a[i].problem->prompt, a[i].response);
}
