#include "grader.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "boxed.h"
#include "expression.h"
#include "number.h"

enum { NAME_SIZE = 32 };

typedef struct grader_kind {
    const char* name;
    // 1 if the response is right. `last` is the option of this name.
    int (*judge)(const char* response, const char* answer, int last);
    int (*fits)(const char* answer);  // whether it is a reference answer of this grader
    const char* needs;                // what it must be, for the refusal
    const char* help;
} grader_kind;

typedef struct term {
    char* name;               // as written, without the weight
    const grader_kind* kind;  // NULL: the command
    double weight;
    int ended, last;
    char tag[NAME_SIZE];  // empty: the whole response is judged
} term;

struct reward {
    term term[REWARD_TERMS_MAX];
    int terms;
    command* command;  // NULL if there is none
    int skip_missing;
};

// ---------------------------------------------------------------------------------------------
// The graders

#define SPACE " \t\n\v\f\r"

static char* copy(const char* text, size_t length) {
    char* c = xalloc(length + 1, 1, "a response");
    memcpy(c, text, length);
    return c;
}

// The length of a text without the spaces at its end.
static size_t trimmed(const char* text) {
    size_t length = strlen(text);
    while (length && strchr(SPACE, text[length - 1])) length--;
    return length;
}

static int any_answer(const char* answer) {
    (void)answer;
    return 1;
}

static int exact_judge(const char* response, const char* answer, int last) {
    (void)last;
    response += strspn(response, SPACE);
    answer += strspn(answer, SPACE);
    size_t length = trimmed(response);
    return length == trimmed(answer) && !memcmp(response, answer, length);
}

static const char* after_mark(const char* text) {
    const char* last = NULL;
    for (const char* p = strstr(text, "####"); p; p = strstr(p + 1, "####")) last = p + 4;
    return last ? last + strspn(last, " \t") : NULL;
}

// The number of a reference: after its "####", or the whole text.
static int answer_number(const char* answer, number* n) {
    const char* marked = after_mark(answer);
    if (marked) answer = marked;
    answer += strspn(answer, SPACE);
    return number_read(answer, n) && !n->end[strspn(n->end, SPACE)];
}

static int number_judge(const char* response, const char* answer, int last) {
    number right, given;
    const char* marked = after_mark(response);
    if (!answer_number(answer, &right)) return 0;
    int found = marked ? number_read(marked, &given) : last && number_last(response, &given);
    return found && number_equal(&given, &right);
}

static int number_fits(const char* answer) {
    number n;
    return answer_number(answer, &n);
}

// The answer of a reference: its last box, or the whole text.
static char* answer_box(const char* answer) {
    return strstr(answer, "\\boxed") ? boxed_find(answer) : copy(answer, strlen(answer));
}

static int boxed_judge(const char* response, const char* answer, int last) {
    (void)last;
    char *right = answer_box(answer), *given = boxed_find(response);
    int equal = right && given && boxed_equal(given, right);
    free(right);
    free(given);
    return equal;
}

static int boxed_fits(const char* answer) {
    char* box = answer_box(answer);
    free(box);
    return box != NULL;
}

static int read_answer(const char* answer, puzzle* q) {
    return puzzle_read(answer, "", q) || puzzle_read(answer, "=", q);
}

static int expression_judge(const char* response, const char* answer, int last) {
    (void)last;
    puzzle q;
    response += strspn(response, SPACE);
    char* text = copy(response, trimmed(response));
    int solved = read_answer(answer, &q) && puzzle_solved(&q, text, 1, "");
    free(text);
    return solved;
}

static int expression_fits(const char* answer) {
    puzzle q;
    return read_answer(answer, &q);
}

static const grader_kind KINDS[] = {
    {"exact", exact_judge, any_answer, "", "the response is the answer, but for spaces around"},
    {"number", number_judge, number_fits, "a number such as 18 or 1,234.5",
     "the number after the last \"####\" has the answer's value"},
    {"boxed", boxed_judge, boxed_fits, "LaTeX, or a text with a \\boxed{...} that is closed",
     "the last \\boxed{...} is the answer by MATH's rule"},
    {"expression", expression_judge, expression_fits,
     "numbers and a target such as 3,5,7:26 (2 to 6 numbers)",
     "an expression with the value and the numbers of the answer, 3,5,7:26"}};
enum { KIND_COUNT = sizeof KINDS / sizeof *KINDS, NAME_COUNT = KIND_COUNT + 1 };
static const char COMMAND_NAME[] = "cmd";

void reward_list(FILE* to) {
    for (int i = 0; i < KIND_COUNT; i++) fprintf(to, "  %-18s %s\n", KINDS[i].name, KINDS[i].help);
    fprintf(to, "  %-18s what the program of --reward-cmd writes\n", COMMAND_NAME);
    fprintf(to, "    ended             0 unless the model ended its response; for all of them\n");
    fprintf(to,
            "    tag=NAME          judges what is inside the last <NAME>...</NAME>; not for cmd\n");
    fprintf(to, "    last              for number: the last number where there is no \"####\"\n");
}

// ---------------------------------------------------------------------------------------------
// Opening

typedef struct word {
    const char* from;
    size_t length;
} word;

static int is_word(word w, const char* name) {
    return strlen(name) == w.length && !memcmp(w.from, name, w.length);
}

// "--reward SPEC: no WHAT is called "given"; did you mean NEAREST (there are A, B)?"
static void refuse_name(const char* spec, const char* what, word given, const char* const names[],
                        int count) __attribute__((noreturn));
static void refuse_name(const char* spec, const char* what, word given, const char* const names[],
                        int count) {
    char list[256] = "";
    int nearest = 0, distance = INT_MAX;
    for (int i = 0; i < count; i++) {
        int d = name_distance(given.from, given.length, names[i]);
        if (d < distance) distance = d, nearest = i;
        strcat(strcat(list, i ? ", " : ""), names[i]);
    }
    fatal("--reward %s: no %s is called \"%s\"; did you mean %s (there are %s)?",
          shown(spec, strlen(spec)), what, shown(given.from, given.length), names[nearest], list);
}

static const grader_kind* find_kind(const char* spec, word name) {
    const char* names[NAME_COUNT];
    for (int i = 0; i < KIND_COUNT; i++) {
        if (is_word(name, KINDS[i].name)) return &KINDS[i];
        names[i] = KINDS[i].name;
    }
    if (is_word(name, COMMAND_NAME)) return NULL;
    names[KIND_COUNT] = COMMAND_NAME;
    refuse_name(spec, "grader", name, names, NAME_COUNT);
}

static void read_option(term* t, const char* spec, word option) {
    static const char* const names[] = {"ended", "tag=NAME", "last"};
    const char* name = t->kind ? t->kind->name : COMMAND_NAME;
    int takes_last = t->kind && t->kind->judge == number_judge;
    int* flag = is_word(option, "ended")                ? &t->ended
                : takes_last && is_word(option, "last") ? &t->last
                                                        : NULL;
    int tag = t->kind && option.length > 4 && !memcmp(option.from, "tag=", 4);
    if (!flag && !tag)
        refuse_name(spec, xprintf("option of %s", name), option, names,
                    !t->kind ? 1 : 2 + takes_last);
    if (flag ? *flag : *t->tag)
        fatal("--reward %s: %.*s is given twice for %s; keep one", spec, flag ? 5 : 3, option.from,
              name);
    if (flag) {
        *flag = 1;
        return;
    }
    if (option.length - 4 >= NAME_SIZE)
        fatal("--reward %s: the tag's name has more than %d bytes; choose a shorter one", spec,
              NAME_SIZE - 1);
    memcpy(t->tag, option.from + 4, option.length - 4);
}

// Reads a weight and its '*', if there is one; returns what follows.
static const char* read_weight(term* t, const char* spec, const char* at) {
    size_t length = strspn(at, "0123456789.eE-");
    t->weight = 1;
    if (!length || at[length] != '*') return at;
    char* end;
    t->weight = strtod(at, &end);
    double size = fabs(t->weight);
    if (end != at + length || size < 1e-6 || size > 1e6)
        fatal(
            "--reward %s: %s is no weight; write a number whose size is 1e-6 to 1e6, as in "
            "0.5*exact",
            spec, shown(at, length));
    return at + length + 1;
}

// Reads a term; returns what follows it.
static const char* read_term(reward* r, const char* spec, const char* at) {
    if (r->terms == REWARD_TERMS_MAX)
        fatal("--reward %s has more than %d graders; name fewer", spec, REWARD_TERMS_MAX);
    term* t = &r->term[r->terms++];
    at = read_weight(t, spec, at);
    const char *from = at, *end = at + strcspn(at, "+");
    size_t length = strcspn(at, ":+");
    t->kind = find_kind(spec, (word){at, length});
    for (at += length; at < end; at += length) {
        at++;
        length = strcspn(at, ",+");
        read_option(t, spec, (word){at, length});
    }
    t->name = copy(from, (size_t)(end - from));
    for (int i = 0; i < r->terms - 1; i++)
        if (!strcmp(r->term[i].name, t->name) || (!t->kind && !r->term[i].kind))
            fatal("--reward %s: %s stands there twice; give it once, with a weight", spec,
                  t->kind ? t->name : COMMAND_NAME);
    return end;
}

static int has_command(const reward* r) {
    for (int i = 0; i < r->terms; i++)
        if (!r->term[i].kind) return 1;
    return 0;
}

reward* reward_open(const char* spec, const command_config* config) {
    reward* r = xalloc(1, sizeof *r, "a reward");
    if (!spec) spec = COMMAND_NAME;
    const char* at = read_term(r, spec, spec);
    while (*at) at = read_term(r, spec, at + 1);
    if (has_command(r) && !config)
        fatal("--reward %s needs a program; give it with --reward-cmd", spec);
    if (config && !has_command(r))
        fatal("--reward %s does not use the program of --reward-cmd; add +cmd, or leave one out",
              spec);
    if (config && config->workers) {
        r->command = command_open(config);
        r->skip_missing = config->skip_missing;
    }
    return r;
}

void reward_free(reward* r) {
    for (int i = 0; i < r->terms; i++) free(r->term[i].name);
    if (r->command) command_free(r->command);
    free(r);
}

int reward_terms(const reward* r) { return r->terms; }

char* reward_term_key(const reward* r, int k) {
    const grader_kind* kind = r->term[k].kind;
    int same = 1;
    for (int i = 0; i < k; i++) same += r->term[i].kind == kind;
    const char* name = kind ? kind->name : COMMAND_NAME;
    return same > 1 ? xprintf("%s_%d", name, same) : xprintf("%s", name);
}

char* reward_refusal(const reward* r, const problem* p) {
    for (int i = 0; i < r->terms; i++) {
        const grader_kind* kind = r->term[i].kind;
        if (!kind) continue;
        if (!p->answer) return xprintf("it has no answer, which the grader %s needs", kind->name);
        if (kind->fits(p->answer)) continue;
        char* given = shown(p->answer, strlen(p->answer));
        char* refusal = xprintf("its answer \"%s\" is not what the grader %s needs: %s", given,
                                kind->name, kind->needs);
        free(given);
        return refusal;
    }
    return NULL;
}

// ---------------------------------------------------------------------------------------------
// Grading

// What stands inside the last <tag>...</tag>, to be freed; NULL if nothing does.
static char* inside_tag(const char* text, const char* tag) {
    char open[NAME_SIZE + 2], close[NAME_SIZE + 3];
    snprintf(open, sizeof open, "<%s>", tag);
    snprintf(close, sizeof close, "</%s>", tag);
    const char *from = NULL, *end = NULL;
    for (const char* p = strstr(text, close); p; p = strstr(p + 1, close)) end = p;
    if (!end) return NULL;
    for (const char* p = strstr(text, open); p && p < end; p = strstr(p + 1, open))
        from = p + strlen(open);
    return from ? copy(from, (size_t)(end - from)) : NULL;
}

static double judge(const term* t, const graded* item) {
    const char* answer = item->problem->answer;
    if (!answer || (t->ended && !item->ended)) return 0;
    if (!*t->tag) return t->kind->judge(item->response, answer, t->last);
    char* inside = inside_tag(item->response, t->tag);
    double value = inside ? t->kind->judge(inside, answer, t->last) : 0;
    free(inside);
    return value;
}

// The command's numbers of n responses, (n).
static reward_counts ask_command(reward* r, const graded* items, int n, double* from_command) {
    reward_counts counts = command_grade(r->command, items, n, from_command);
    for (int i = 0; i < n; i++)
        if (isnan(from_command[i]) && !r->skip_missing) from_command[i] = 0;
    return counts;
}

reward_counts reward_grade(reward* r, const graded* items, int n, double* total, double* terms) {
    reward_counts counts = {0};
    double* from_command = xalloc((size_t)n, sizeof *from_command, "rewards");
    if (r->command) counts = ask_command(r, items, n, from_command);
    for (int i = 0; i < n; i++) {
        total[i] = 0;
        for (int k = 0; k < r->terms; k++) {
            const term* t = &r->term[k];
            double value = t->kind ? judge(t, &items[i]) : from_command[i];
            if (!t->kind && t->ended && !items[i].ended) value = 0;
            total[i] += t->weight * value;
            if (terms) terms[(size_t)i * (size_t)r->terms + (size_t)k] = value;
        }
    }
    free(from_command);
    return counts;
}
