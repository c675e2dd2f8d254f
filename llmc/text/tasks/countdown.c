// countdown: reach a target with given numbers. The prompt "3,5,7:26=" asks for an expression over
// + - * / ( ) that uses each of 3, 5 and 7 exactly once and has the value 26: "7*3+5\n".
//
// Right is an expression by the grammar of expression.h, without blanks, then '\n', and nothing
// else.
//
// Problems are made from a random expression, so they have a solution. Problems and solutions keep
// to the rules of the game show: every intermediate value is a positive integer. The verifier does
// not insist on that: 8/(3-8/3) is a fine 24.
//
// Bad habit of the warm-up answers: many are a random expression over the numbers, whatever its
// value.
#include "../expression.h"
#include "tasks.h"

enum { NUMBERS, LARGEST, TARGET, GUESSED };
#define NUMBERS_MAX PUZZLE_NUMBERS

static int read_puzzle(const char* prompt, puzzle* q) { return puzzle_read(prompt, "=", q); }

// ---------------------------------------------------------------------------------------------
// Making expressions: a forest whose trees are joined two at a time until one is left.

typedef struct node {
    int64_t value;    // a positive integer
    char op;          // 0: a number
    int left, right;  // indices of nodes
} node;

typedef struct forest {
    node nodes[2 * NUMBERS_MAX - 1];
    int node_count;
    int root[NUMBERS_MAX];  // indices of the trees' roots
    int root_count;
} forest;

static forest forest_plant(const puzzle* q) {
    forest f = {.node_count = q->count, .root_count = q->count};
    for (int i = 0; i < q->count; i++) {
        f.nodes[i].value = q->number[i];
        f.root[i] = i;
    }
    return f;
}

// Joins trees i and j, the larger value first; 0 (and no change) if the value of the new tree would
// not be a positive integer. Overflow cannot happen to the numbers that problem() draws.
static int forest_join(forest* f, int i, int j, char op) {
    int a = f->root[i], b = f->root[j];
    if (f->nodes[a].value < f->nodes[b].value) a = f->root[j], b = f->root[i];
    int64_t x = f->nodes[a].value, y = f->nodes[b].value, value = 0;
    if (op == '+') value = x + y;
    if (op == '-') value = x - y;
    if (op == '*') value = x * y;
    if (op == '/' && x % y == 0) value = x / y;
    if (value == 0) return 0;
    f->nodes[f->node_count] = (node){value, op, a, b};
    f->root[i] = f->node_count++;
    f->root[j] = f->root[--f->root_count];
    return 1;
}

// Joins at random until one tree is left; returns its value.
static int64_t forest_join_random(forest* f, rng* r) {
    while (f->root_count > 1) {
        int i = (int)rng_below(r, (uint32_t)f->root_count);
        int j = (int)rng_below(r, (uint32_t)f->root_count - 1);
        j += j >= i;
        while (!forest_join(f, i, j, "+-*/"[rng_below(r, 4)]))
            ;
    }
    return f->nodes[f->root[0]].value;
}

// Finds the first way to join f into one tree of this value and leaves it in `solved`. Six numbers
// have up to 2.8 million ways; the mean search takes less than a millisecond.
static int forest_search(const forest* f, int64_t target, forest* solved) {
    if (f->root_count == 1) {
        if (f->nodes[f->root[0]].value != target) return 0;
        *solved = *f;
        return 1;
    }
    for (int j = 1; j < f->root_count; j++)
        for (int i = 0; i < j; i++)
            for (int op = 0; op < 4; op++) {
                forest g = *f;
                if (forest_join(&g, i, j, "+-*/"[op]) && forest_search(&g, target, solved))
                    return 1;
            }
    return 0;
}

// Writes a tree with as few parentheses as it needs where operators that bind less than `binding`
// need them (1: + and -, 2: * and /, 3: numbers); returns the end.
static char* tree_write(const forest* f, int root, int binding, char* out) {
    const node* n = &f->nodes[root];
    if (!n->op) return out + sprintf(out, "%lld", (long long)n->value);
    int own = n->op == '+' || n->op == '-' ? 1 : 2;
    if (own < binding) *out++ = '(';
    out = tree_write(f, n->left, own, out);
    *out++ = n->op;
    out = tree_write(f, n->right, own + (n->op == '-' || n->op == '/'), out);
    if (own < binding) *out++ = ')';
    return out;
}

static void forest_write(const forest* f, char* out) {
    out = tree_write(f, f->root[0], 0, out);
    *out++ = '\n';
    *out = 0;
}

// ---------------------------------------------------------------------------------------------
// The task.

static void countdown_problem(const task* t, rng* r, char prompt[TASK_TEXT_MAX]) {
    // One expression in 4 fits at the defaults, one in 100 at the hardest options.
    for (int attempt = 0; attempt < 10000; attempt++) {
        puzzle q = {.count = t->option[NUMBERS]};
        for (int i = 0; i < q.count; i++)
            q.number[i] = 1 + rng_below(r, (uint32_t)t->option[LARGEST]);
        forest f = forest_plant(&q);
        q.target = forest_join_random(&f, r);
        if (q.target > t->option[TARGET]) continue;
        for (int i = 0; i < q.count; i++)
            prompt +=
                sprintf(prompt, "%lld%c", (long long)q.number[i], i < q.count - 1 ? ',' : ':');
        sprintf(prompt, "%lld=", (long long)q.target);
        return;
    }
    fatal("task countdown: no expression came out at %d or less; raise its option target",
          t->option[TARGET]);
}

static void countdown_solution(const task* t, const char* prompt, char response[TASK_TEXT_MAX]) {
    (void)t;
    puzzle q;
    forest solved;
    if (!read_puzzle(prompt, &q)) fatal("task countdown: \"%s\" is not one of its prompts", prompt);
    forest f = forest_plant(&q);
    if (!forest_search(&f, q.target, &solved)) fatal("task countdown: %s has no solution", prompt);
    forest_write(&solved, response);
}

static void countdown_example(const task* t, rng* r, const char* prompt,
                              char response[TASK_TEXT_MAX]) {
    puzzle q;
    if (!task_chance(r, t->option[GUESSED]) || !read_puzzle(prompt, &q)) {
        countdown_solution(t, prompt, response);
        return;
    }
    forest f = forest_plant(&q);
    forest_join_random(&f, r);
    forest_write(&f, response);
}

static int countdown_is_prompt(const task* t, const char* prompt) {
    (void)t;
    puzzle q;
    return read_puzzle(prompt, &q);
}

static int countdown_verify(const task* t, const char* prompt, const char* response) {
    (void)t;
    puzzle q;
    return read_puzzle(prompt, &q) && puzzle_solved(&q, response, 0, "\n");
}

static int decimal_digits(int value) { return snprintf(NULL, 0, "%d", value); }

static void countdown_open(task* t) {
    int n = t->option[NUMBERS], width = decimal_digits(t->option[LARGEST]);
    t->max_prompt = n * (width + 1) + decimal_digits(t->option[TARGET]) + 1;
    // n numbers, n - 1 operators, and all but the outermost of the operators in parentheses
    t->max_response = n * width + (n - 1) + 2 * (n - 2) + 1;
    t->problem = countdown_problem;
    t->example = countdown_example;
    t->solution = countdown_solution;
    t->is_prompt = countdown_is_prompt;
    t->verify = countdown_verify;
}

const task_kind TASK_COUNTDOWN = {
    "countdown",
    "reach a target with given numbers: 3,5,7:26= is answered by 7*3+5",
    {{"numbers", 3, 2, NUMBERS_MAX, "numbers of a prompt"},
     {"largest", 9, 2, 99, "the numbers are drawn from 1 to this"},
     {"target", 99, 10, 999, "the largest target"},
     {"guessed", 60, 0, 100, "% of warm-up answers that are a random expression"}},
    countdown_open};
