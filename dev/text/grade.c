// grade: the graders on their own. Reads JSON lines {"prompt", "response", "answer"} from standard
// input and prints the reward of each, so it speaks as a program of --reward-cmd does:
//     echo '{"prompt": "7+8=", "response": "#### 15.0", "answer": "15"}' | grade number
// Every response counts as ended.
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/grader.h"

static double grade_line(reward* r, const char* text, size_t length, long number) {
    char* name = xprintf("line %ld", number);
    json* line = json_parse(name, text, length, "write {\"prompt\": ..., \"response\": ...}");
    const json* answer = json_find(line, "answer");
    problem p = {.prompt = json_text(json_get(line, "prompt"))};
    if (json_given(answer)) p.answer = json_text(answer);
    graded item = {&p, json_text(json_get(line, "response")), 1};
    double total;
    reward_grade(r, &item, 1, &total, NULL);
    free(line);
    free(name);
    return total;
}

static void help(void) {
    printf(
        "grade SPEC reads JSON lines {\"prompt\", \"response\", \"answer\"} from standard input "
        "and\n"
        "prints one reward a line. SPEC is a sum of graders, such as number:last+0.1*exact:\n");
    reward_list(stdout);
}

int main(int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "--help")) {
        help();
        return 0;
    }
    if (argc != 2) fatal("usage: grade SPEC < lines; see grade --help");
    reward* r = reward_open(argv[1], NULL);
    char *line = NULL, text[32];
    size_t room = 0;
    ssize_t length;
    for (long number = 1; (length = getline(&line, &room, stdin)) >= 0; number++) {
        number_text(grade_line(r, line, (size_t)length, number), text);
        printf("%s\n", text);
        fflush(stdout);
    }
    free(line);
    reward_free(r);
}
