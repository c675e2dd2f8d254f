// The test of the exercise that adds a task: sort. What is right is counted here, digit by digit.
#include "text/task.h"

#include "../../tests/test.h"
#include "text/alphabet.h"

static const struct {
    const char *prompt, *response;
    int right;
} TRAPS[] = {
    {"50314>", "01345\n", 1},   {"11111>", "11111\n", 1},
    {"90000>", "00009\n", 1},   {"50314>", "01345", 0},  // it did not end
    {"50314>", "01345\n\n", 0}, {"50314>", "01354\n", 0},
    {"50314>", "0135\n", 0},    {"50314>", "001345\n", 0},
    {"11111>", "1\n", 0},  // a digit for each, not one for all
    {"50314>", "54310\n", 0},   {"50314>", " 01345\n", 0},
    {"50314>", "", 0},          {"50314>", "\xff\n", 0},
    {"5031>", "0135\n", 0},  // too short to be a prompt
    {"50314", "01345\n", 0},    {"50314>>", "01345\n", 0},
    {"5031a>", "01345\n", 0},   {"", "\n", 0},
};

// Rising, and each digit as often as in the prompt.
static int is_sorted(const char* prompt, const char* response) {
    int left[128] = {0};
    for (const char* p = prompt; *p != '>'; p++) left[(int)*p]++;
    for (const char* p = response; *p != '\n'; p++) {
        if (p > response && p[-1] > *p) return 0;
        left[(int)*p]--;
    }
    for (int c = 0; c < 128; c++)
        if (left[c]) return 0;
    return 1;
}

int main(void) {
    task t = task_open("sort:digits=12,swapped=40");
    char prompt[TASK_TEXT_MAX], response[TASK_TEXT_MAX];
    int tokens[TASK_TEXT_MAX], right = 0, digits[10] = {0};
    enum { COUNT = 4000 };
    for (size_t i = 0; i < sizeof TRAPS / sizeof *TRAPS; i++)
        CHECK(t.verify(&t, TRAPS[i].prompt, TRAPS[i].response) == TRAPS[i].right, "\"%s\" to %s",
              TRAPS[i].response, TRAPS[i].prompt);
    for (int i = 0; i < COUNT; i++) {
        task_warmup_example(&t, 1, 0, (uint32_t)i, prompt, response);
        CHECK(t.is_prompt(&t, prompt) && strlen(prompt) == 13, "the prompt %s", prompt);
        CHECK(alphabet_encode(response, tokens, t.max_response) == t.max_response, "%s", response);
        CHECK(t.verify(&t, prompt, response) == is_sorted(prompt, response), "%s to %s", response,
              prompt);
        right += is_sorted(prompt, response);
        for (char* p = prompt; *p != '>'; p++) digits[*p - '0']++;
        t.solution(&t, prompt, response);
        CHECK(t.verify(&t, prompt, response) && is_sorted(prompt, response), "the solution %s",
              response);
    }
    // Within five standard deviations of the binomial distribution. A swap of equal digits leaves
    // an answer right.
    double p = 1. / 10, n = 12. * COUNT;
    for (int d = 0; d < 10; d++) CHECK_NEAR(digits[d], n * p, 5 * sqrt(n * p * (1 - p)), "a digit");
    CHECK(right > .6 * COUNT && right < .95 * COUNT, "%d of %d warm-up answers are right", right,
          COUNT);
    return test_report();
}
