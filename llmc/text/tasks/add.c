// add: sums of two numbers of several digits. The prompt "123+458=" asks for the sum; both numbers
// have as many digits as the option says, the first of them not 0. A guessed answer is the sum
// alone: "581\n". A worked one adds the digits from the right, each step with the carry that comes
// in, as two digits, and then writes the sum: "3+8+0=11,2+5+1=08,1+4+0=05=581\n".
//
// Right is what ends with '\n' (the only one) and has, after its last '=' (or from its start where
// there is none: the prompt ends with one), exactly the digits of the sum: no leading zeros, no
// sign, no spaces.
//
// Bad habits of the warm-up answers: many only guess, and most guesses have one wrong digit; a step
// of a worked answer is sometimes off by 1, or loses or invents a carry, and the error is carried
// on.
#include "tasks.h"

enum { DIGITS, GUESSED, GUESS_ERROR, STEP_ERROR };
#define DIGITS_MAX 18  // the sum of two such numbers fits an int64_t

static void add_problem(const task* t, rng* r, char prompt[TASK_TEXT_MAX]) {
    char* p = prompt;
    for (int number = 0; number < 2; number++) {
        *p++ = (char)('1' + rng_below(r, 9));
        for (int i = 1; i < t->option[DIGITS]; i++) *p++ = (char)('0' + rng_below(r, 10));
        *p++ = number == 0 ? '+' : '=';
    }
    *p = 0;
}

// The sum that a prompt asks for, or -1 if the text is no prompt.
static int64_t add_value(const char* p) {
    int64_t a, b;
    p = task_number(p, DIGITS_MAX, &a);
    if (!p || *p != '+') return -1;
    p = task_number(p + 1, DIGITS_MAX, &b);
    return p && p[0] == '=' && !p[1] ? a + b : -1;
}

// Writes a worked answer in which each step is wrong with a chance of error_percent.
static void add_work(const char* prompt, rng* r, int error_percent, char* out) {
    static const int off[3] = {1, 19, 10};  // modulo 20: one more, one less, the carry flipped
    int digits = (int)strcspn(prompt, "+"), sum = 0;
    char answer[DIGITS_MAX + 1];
    for (int i = digits - 1; i >= 0; i--) {
        int a = prompt[i] - '0', b = prompt[digits + 1 + i] - '0', carry = sum / 10;
        sum = a + b + carry;
        if (task_chance(r, error_percent)) sum = (sum + off[rng_below(r, 3)]) % 20;
        out += sprintf(out, "%d+%d+%d=%d%d%c", a, b, carry, sum / 10, sum % 10, i ? ',' : '=');
        answer[i] = (char)('0' + sum % 10);
    }
    answer[digits] = 0;
    sprintf(out, "%s%s\n", sum >= 10 ? "1" : "", answer);
}

static void add_example(const task* t, rng* r, const char* prompt, char response[TASK_TEXT_MAX]) {
    if (!task_chance(r, t->option[GUESSED])) {
        add_work(prompt, r, t->option[STEP_ERROR], response);
        return;
    }
    int n = sprintf(response, "%lld", (long long)add_value(prompt));
    if (task_chance(r, t->option[GUESS_ERROR])) {
        int place = (int)rng_below(r, (uint32_t)n), right = response[place] - '0', wrong;
        do wrong = (right + 1 + (int)rng_below(r, 9)) % 10;
        while (place == 0 && wrong == 0);
        response[place] = (char)('0' + wrong);
    }
    response[n] = '\n';
    response[n + 1] = 0;
}

static void add_solution(const task* t, const char* prompt, char response[TASK_TEXT_MAX]) {
    (void)t;
    add_work(prompt, NULL, 0, response);
}

static int add_is_prompt(const task* t, const char* prompt) {
    (void)t;
    return add_value(prompt) >= 0;
}

static int add_verify(const task* t, const char* prompt, const char* response) {
    (void)t;
    int64_t value = add_value(prompt);
    if (value < 0 || !task_ended(response)) return 0;
    char right[DIGITS_MAX + 4];
    snprintf(right, sizeof right, "%lld\n", (long long)value);
    const char* marker = strrchr(response, '=');
    return !strcmp(marker ? marker + 1 : response, right);
}

static void add_open(task* t) {
    int n = t->option[DIGITS];
    t->max_prompt = 2 * n + 2;
    t->max_response = 9 * n + (n + 1) + 1;
    t->problem = add_problem;
    t->example = add_example;
    t->solution = add_solution;
    t->is_prompt = add_is_prompt;
    t->verify = add_verify;
}

const task_kind TASK_ADD = {
    "add",
    "long addition: 123+458= is answered by 3+8+0=11,2+5+1=08,1+4+0=05=581",
    {{"digits", 3, 1, DIGITS_MAX, "digits of both numbers"},
     {"guessed", 50, 0, 100, "% of warm-up answers that give the sum alone"},
     {"guess-error", 90, 0, 100, "% of these that are wrong"},
     {"step-error", 15, 0, 100, "% of the steps of the other warm-up answers that are wrong"}},
    add_open};
