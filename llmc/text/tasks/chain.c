// chain: running sums. The prompt "7+8+1-8-5:" asks for its value; the operands are 1 to 9 and
// every partial sum lies in 0 to 99. A worked answer goes step by step, and copies each operand:
// "7+8=15+1=16-8=08-5=03\n". A guessed one is the value alone: "03\n".
//
// Right is what ends with '\n' (the only one), preceded by the value in two digits, preceded by
// anything but a digit. How the model got there is its own affair.
//
// Bad habits of the warm-up answers: many only guess, and most guesses are off by 1 to 9; a step of
// a worked answer is sometimes off by 1, 2 or 10, and the error is carried on. A model trained on
// them knows the arithmetic, since the errors average out, but is often wrong. Reinforcement
// teaches it to show its work, and to work with care.
#include "tasks.h"

enum { OPERANDS, GUESSED, GUESS_ERROR, STEP_ERROR };

static char* write_two_digits(char* p, int value) {
    *p++ = (char)('0' + value / 10);
    *p++ = (char)('0' + value % 10);
    return p;
}

static void chain_problem(const task* t, rng* r, char prompt[TASK_TEXT_MAX]) {
    char* p = prompt;
    int total = 0;
    for (int i = 0; i < t->option[OPERANDS]; i++) {
        int digit = 1 + (int)rng_below(r, 9);
        int sign = i == 0 || rng_below(r, 2) ? 1 : -1;
        // One sign always keeps the sum in range: the range is wider than two operands.
        if (total + sign * digit < 0 || total + sign * digit > 99) sign = -sign;
        total += sign * digit;
        if (i > 0) *p++ = sign > 0 ? '+' : '-';
        *p++ = (char)('0' + digit);
    }
    *p++ = ':';
    *p = 0;
}

// The value of a prompt, or -1 if the text is none.
static int chain_value(const char* p) {
    int total = 0, operands = 0;
    for (char sign = '+';; sign = *p++) {
        if (*p < '1' || *p > '9') return -1;
        int digit = *p++ - '0';
        total += sign == '+' ? digit : -digit;
        operands++;
        if (total < 0 || total > 99) return -1;
        if (*p == ':') return operands >= 2 && !p[1] ? total : -1;
        if (*p != '+' && *p != '-') return -1;
    }
}

// Writes a worked answer in which each step is wrong with a chance of error_percent.
static void chain_work(const char* prompt, rng* r, int error_percent, char* out) {
    static const int off[6] = {1, -1, 2, -2, 10, -10};
    int total = prompt[0] - '0';
    *out++ = prompt[0];
    for (const char* p = prompt + 1; *p != ':'; p += 2) {
        int digit = p[1] - '0';
        total += p[0] == '+' ? digit : -digit;
        if (task_chance(r, error_percent)) total += off[rng_below(r, 6)];
        total = (total + 100) % 100;
        *out++ = p[0];
        *out++ = p[1];
        *out++ = '=';
        out = write_two_digits(out, total);
    }
    *out++ = '\n';
    *out = 0;
}

static void chain_example(const task* t, rng* r, const char* prompt, char response[TASK_TEXT_MAX]) {
    if (!task_chance(r, t->option[GUESSED])) {
        chain_work(prompt, r, t->option[STEP_ERROR], response);
        return;
    }
    int guess = chain_value(prompt);
    if (task_chance(r, t->option[GUESS_ERROR])) {
        int off = 1 + (int)rng_below(r, 9);
        guess += rng_below(r, 2) ? off : 100 - off;
    }
    char* end = write_two_digits(response, guess % 100);
    *end++ = '\n';
    *end = 0;
}

static void chain_solution(const task* t, const char* prompt, char response[TASK_TEXT_MAX]) {
    (void)t;
    chain_work(prompt, NULL, 0, response);
}

static int chain_is_prompt(const task* t, const char* prompt) {
    (void)t;
    return chain_value(prompt) >= 0;
}

static int chain_verify(const task* t, const char* prompt, const char* response) {
    (void)t;
    int value = chain_value(prompt);
    if (value < 0 || !task_ended(response)) return 0;
    size_t n = strlen(response) - 1;  // without the '\n'
    if (n < 2 || (n > 2 && response[n - 3] >= '0' && response[n - 3] <= '9')) return 0;
    return response[n - 2] == '0' + value / 10 && response[n - 1] == '0' + value % 10;
}

static void chain_open(task* t) {
    int n = t->option[OPERANDS];
    t->max_prompt = 2 * n;
    t->max_response = 1 + 5 * (n - 1) + 1;
    t->problem = chain_problem;
    t->example = chain_example;
    t->solution = chain_solution;
    t->is_prompt = chain_is_prompt;
    t->verify = chain_verify;
}

const task_kind TASK_CHAIN = {
    "chain",
    "running sums: 7+8+1-8-5: is answered by 7+8=15+1=16-8=08-5=03",
    {{"operands", 5, 2, 32, "one-digit operands of a prompt"},
     {"guessed", 50, 0, 100, "% of warm-up answers that give the value alone"},
     {"guess-error", 90, 0, 100, "% of these that are wrong"},
     {"step-error", 15, 0, 100, "% of the steps of the other warm-up answers that are wrong"}},
    chain_open};
