// A problem of a file is known again by its line's number, a task's by its prompt.
#include "source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ------------------------------------------------------------------------------------------------
// Sets of prompts

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
static int add_new(prompt_set* set, const problem* p) {
    if (2 * set->list.count >= set->places) widen(set);
    int* at = find_place(set, p->prompt);
    if (*at >= 0) return 0;
    *at = set->list.count;
    problem_add(&set->list, p);
    return 1;
}

// ------------------------------------------------------------------------------------------------
// Opening

static void refuse_ungradable(const source* s, const char* path, const problem_list* list) {
    for (int i = 0; i < list->count; i++) {
        char* why = reward_refusal(s->reward, &list->item[i]);
        if (why)
            fatal(
                "%s:%d: the problem cannot be graded: %s; mend the line or choose another --reward",
                path, list->item[i].line, why);
    }
}

// Held-out problems whose prompts are training prompts too.
static int count_shared(const problem_list* training, const problem_list* held_out) {
    prompt_set set = {0};
    int shared = 0;
    for (int i = 0; i < training->count; i++) add_new(&set, &training->item[i]);
    for (int i = 0; i < held_out->count; i++)
        shared += *find_place(&set, held_out->item[i].prompt) >= 0;
    problem_list_free(&set.list);
    free(set.table);
    return shared;
}

static uint64_t add_checksum(uint64_t sum, const problem_list* list) {
    for (int i = 0; i < list->count; i++) {
        const problem* p = &list->item[i];
        const char* text[] = {p->prompt, p->answer, p->response};
        for (int k = 0; k < 3; k++) sum = sum * 31 + (text[k] ? hash_text(text[k]) : 1);
    }
    return sum;
}

static void split(source* s, problem_list all) {
    for (int i = 0; i < all.count; i++)
        problem_add(data_is_held_out(&all.item[i]) ? &s->held_out : &s->training, &all.item[i]);
    problem_list_free(&all);
}

static source open_data(const source_config* c) {
    source s = {.data = c->data, .held_out_data = *c->held_out ? c->held_out : c->data};
    char* keys = xprintf("%s", c->keys ? c->keys : "");
    data_names names = data_names_of(keys);
    problem_list all = data_read(c->data, &names);
    if (*c->held_out) {
        s.training = all;
        s.held_out = data_read(c->held_out, &names);
        s.shared = count_shared(&s.training, &s.held_out);
    } else {
        split(&s, all);
    }
    free(keys);
    if (!s.training.count || !s.held_out.count)
        fatal(
            "%s: of its %d problems, all are %s, by the hash of their prompts that holds out an "
            "eighth; give more problems, or a file of its own with --data-held-out",
            c->data, s.training.count + s.held_out.count,
            s.training.count ? "for training" : "held out");
    s.reward = reward_open(*c->reward ? c->reward : NULL, c->command);
    refuse_ungradable(&s, c->data, &s.training);
    refuse_ungradable(&s, s.held_out_data, &s.held_out);
    s.checksum = add_checksum(add_checksum(1, &s.training), &s.held_out);
    s.has_responses = 1;
    for (int i = s.training.count - 1; i >= 0; i--)
        if (!s.training.item[i].response) {
            s.has_responses = 0;
            s.bare_line = s.training.item[i].line;
        }
    return s;
}

source source_of_task(const char* spec) {
    task t = task_open(spec);
    return (source){
        .task = t, .max_prompt = t.max_prompt, .max_response = t.max_response, .has_responses = 1};
}

source source_open(const source_config* c) {
    return *c->data ? open_data(c) : source_of_task(c->task);
}

static void refuse_long(const char* path, const problem* p, size_t tokens, int most)
    __attribute__((noreturn));
static void refuse_long(const char* path, const problem* p, size_t tokens, int most) {
    fatal(
        "%s: the prompt of line %d has %zu tokens, and with --max-new-tokens the context has room "
        "for %d; lower --max-new-tokens, or leave such problems out with --data-skip-long",
        path, p->line, tokens, most);
}

// `path` is the file that the list comes from.
static void fit(source* s, problem_list* list, const char* path, const tokenizer* t, int most,
                int skip_long) {
    token_list tokens = {0};
    problem_list kept = {0};
    for (int i = 0; i < list->count; i++) {
        const problem* p = &list->item[i];
        tokens.count = 0;
        tokenizer_prompt(t, p->prompt, &tokens);
        if (!tokens.count)
            fatal("%s: the prompt of line %d has no tokens: the tokenizer lacks its bytes; mend it",
                  path, p->line);
        if (tokens.count > (size_t)most && !skip_long) refuse_long(path, p, tokens.count, most);
        s->skipped += tokens.count > (size_t)most;
        if (tokens.count > (size_t)most) continue;
        if ((int)tokens.count > s->max_prompt) s->max_prompt = (int)tokens.count;
        problem_add(&kept, p);
        if (!s->has_responses || list != &s->training) continue;
        tokens.count = 0;
        if (p->response) tokenizer_response(t, p->response, &tokens);
        if ((int)tokens.count <= s->max_response) continue;
        s->max_response = (int)tokens.count;
        s->longest_line = p->line;
    }
    if (!kept.count)
        fatal(
            "%s: all %s prompts are longer than the %d tokens that the context has room for; lower "
            "--max-new-tokens",
            path, list == &s->held_out ? "held-out" : "training", most);
    token_list_free(&tokens);
    problem_list_free(list);
    *list = kept;
}

// A character is one token at most, and what surrounds a prompt comes on top. Where a prompt meets
// it tokens may merge, which makes them fewer.
static void fit_task(source* s, const tokenizer* t) {
    token_list around = {0};
    if (!t->bpe) return;
    tokenizer_prompt(t, "", &around);
    s->max_prompt = s->task.max_prompt + (int)around.count;
    token_list_free(&around);
}

void source_fit(source* s, const tokenizer* t, int most, int skip_long) {
    if (!s->data) {
        fit_task(s, t);
        return;
    }
    fit(s, &s->training, s->data, t, most, skip_long);
    fit(s, &s->held_out, s->held_out_data, t, most, skip_long);
    s->order = xalloc((size_t)s->training.count, sizeof *s->order, "the order of the problems");
    s->pass = UINT32_MAX;
}

// ------------------------------------------------------------------------------------------------
// The problems of a step

static const problem* problem_number(source* s, uint64_t seed, uint64_t number) {
    uint64_t n = (uint64_t)s->training.count;
    uint32_t pass = (uint32_t)(number / n);
    if (pass != s->pass || seed != s->order_seed) data_order(n, seed, pass, s->order);
    s->pass = pass;
    s->order_seed = seed;
    return &s->training.item[s->order[number % n]];
}

static void add_in_order(source* s, uint64_t seed, int step, int count, problem_list* to) {
    for (int i = 0; i < count; i++)
        problem_add(to, problem_number(s, seed, (uint64_t)step * (uint64_t)count + (uint64_t)i));
}

void source_training(source* s, uint64_t seed, int step, int count, problem_list* to) {
    char prompt[TASK_TEXT_MAX];
    if (s->data) {
        add_in_order(s, seed, step, count, to);
        return;
    }
    for (int i = 0; i < count; i++) {
        task_training_prompt(&s->task, seed, (uint32_t)step, (uint32_t)i, prompt);
        problem_add(to, &(problem){.prompt = prompt});
    }
}

void source_examples(source* s, uint64_t seed, int step, int count, problem_list* to) {
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX];
    if (s->data) {
        add_in_order(s, seed, step, count, to);
        return;
    }
    for (int i = 0; i < count; i++) {
        task_warmup_example(&s->task, seed, (uint32_t)step, (uint32_t)i, prompt, response);
        problem_add(to, &(problem){.prompt = prompt, .response = response});
    }
}

// ------------------------------------------------------------------------------------------------
// Different problems

// The first different ones of a file's problems, in the order of this seed and pass.
static problem_list different_of(const problem_list* all, uint64_t seed, uint32_t pass, int most) {
    prompt_set set = {0};
    uint32_t* order = xalloc((size_t)all->count, sizeof *order, "the order of the problems");
    data_order((size_t)all->count, seed, pass, order);
    for (int i = 0; i < all->count && set.list.count < most; i++)
        add_new(&set, &all->item[order[i]]);
    free(order);
    free(set.table);
    return set.list;
}

static const uint32_t NO_STEP = UINT32_MAX;  // a step, and a pass, that no run reaches

problem_list source_held_out(const source* s, uint64_t seed, int most) {
    prompt_set set = {0};
    char prompt[TASK_TEXT_MAX];
    if (s->data) return different_of(&s->held_out, 0, NO_STEP, most);  // whatever the seed
    // If one prompt of n + 1 equally likely ones were missing, 20 n draws would miss it with e^-20.
    for (uint32_t i = 0, last = 0; set.list.count < most; i++) {
        if (i - last > 1000 + 20 * (uint32_t)set.list.count) break;
        task_held_out_prompt(&s->task, seed, i, prompt);
        if (add_new(&set, &(problem){.prompt = prompt})) last = i;
    }
    free(set.table);
    return set.list;
}

// A small task has fewer: it stops after having drawn four times as many.
problem_list source_pool(const source* s, uint64_t seed, int most) {
    prompt_set set = {0};
    char prompt[TASK_TEXT_MAX];
    if (s->data) return different_of(&s->training, seed, NO_STEP, most);
    for (int i = 0; i < 4 * most && set.list.count < most; i++) {
        task_training_prompt(&s->task, seed, NO_STEP, (uint32_t)i, prompt);
        add_new(&set, &(problem){.prompt = prompt});
    }
    free(set.table);
    return set.list;
}

char* source_line(const problem* p) {
    return p->line ? xprintf("line %d", p->line) : xprintf("%s", p->prompt);
}

int source_recall(const source* s, const char* line, problem* found) {
    int number = 0, end = 0;
    *found = (problem){.prompt = line};
    if (!s->data)
        return strlen(line) <= (size_t)s->task.max_prompt && s->task.is_prompt(&s->task, line);
    sscanf(line, "line %d%n", &number, &end);
    for (int i = 0; end && !line[end] && i < s->training.count; i++)
        if (s->training.item[i].line == number) {
            *found = s->training.item[i];
            return 1;
        }
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Judging

// A task's response ends with '\n', whatever the end token is.
static void judge_by_task(const source* s, const graded* a, int n, float* score, float* right) {
    for (int i = 0; i < n; i++) {
        size_t bytes = strlen(a[i].response);
        int lacks_end = a[i].ended && (!bytes || a[i].response[bytes - 1] != '\n');
        char* text = xprintf("%s%s", a[i].response, lacks_end ? "\n" : "");
        score[i] = right[i] = (float)s->task.verify(&s->task, a[i].problem->prompt, text);
        free(text);
    }
}

judgement source_judge(const source* s, const graded* a, int n, float* score, float* right) {
    judgement j = {0};
    if (!s->reward) {
        judge_by_task(s, a, n, score, right);
        return j;
    }
    j.terms = reward_terms(s->reward);
    double* total = xalloc((size_t)n, sizeof *total, "rewards");
    double* term = xalloc((size_t)n * (size_t)j.terms, sizeof *term, "rewards");
    int seen[REWARD_TERMS_MAX] = {0};
    j.lost = reward_grade(s->reward, a, n, total, term);
    for (int i = 0; i < n; i++) {
        score[i] = (float)total[i];
        right[i] = term[i * j.terms] > 0.5;
        for (int k = 0; k < j.terms; k++)
            if (!isnan(term[i * j.terms + k])) {
                j.term[k] += term[i * j.terms + k];
                seen[k]++;
            }
    }
    for (int k = 0; k < j.terms; k++) j.term[k] /= seen[k];
    free(total);
    free(term);
    return j;
}

char* source_term_key(const source* s, int term) { return reward_term_key(s->reward, term); }

void source_close(source* s) {
    if (s->reward) reward_free(s->reward);
    s->reward = NULL;
}
