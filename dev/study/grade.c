// grade: the verifiers on their own. Reads lines of "prompt TAB completion" from standard input and
// prints the reward of each, 0 or 1. In both fields \n, \t and \\ stand for a newline, a tab and a
// backslash, so that a completion which ended itself ends with \n:
//     printf '7+8+1-8-5:\\t03\\\\n\\n' | grade chain
#include <stdlib.h>

#include "text/task.h"

// Undoes the escapes in place; 0 if there is one that is not \n, \t or \\.
static int unescape(char* text) {
    char* out = text;
    for (const char* p = text; *p; p++) {
        if (*p != '\\') {
            *out++ = *p;
            continue;
        }
        p++;
        if (*p != 'n' && *p != 't' && *p != '\\') return 0;
        *out++ = *p == 'n' ? '\n' : *p == 't' ? '\t' : '\\';
    }
    *out = 0;
    return 1;
}

// The reward of one line of `length` bytes, its newline already cut off.
static int grade_line(const task* t, char* line, size_t length, long number) {
    char* tab = strchr(line, '\t');
    if (strlen(line) != length) fatal("line %ld holds a zero byte; remove it", number);
    if (!tab || strchr(tab + 1, '\t'))
        fatal("line %ld is malformed; write prompt, one tab, completion", number);
    *tab = 0;
    char *prompt = line, *completion = tab + 1;
    if (!unescape(prompt) || !unescape(completion))
        fatal("line %ld has a backslash that is not part of \\n, \\t or \\\\", number);
    if (!t->is_prompt(t, prompt))
        fatal("line %ld does not start with a prompt of task %s", number, t->name);
    return t->verify(t, prompt, completion);
}

static void help(void) {
    printf(
        "grade TASK[:option=value,...] reads lines of \"prompt TAB completion\" from standard\n"
        "input, with \\n, \\t and \\\\ escaped, and prints one reward a line: 1 if the completion\n"
        "is right, else 0. A malformed line is refused with its number.\n\nTasks:\n");
    task_list(stdout);
}

int main(int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "--help")) {
        help();
    } else {
        if (argc != 2) fatal("usage: grade TASK[:option=value,...] < lines; see grade --help");
        task t = task_open(argv[1]);
        char* line = NULL;
        size_t room = 0;
        ssize_t length;
        for (long number = 1; (length = getline(&line, &room, stdin)) >= 0; number++) {
            if (line[length - 1] == '\n') line[--length] = 0;
            printf("%d\n", grade_line(&t, line, (size_t)length, number));
        }
        free(line);
        if (ferror(stdin)) fatal("cannot read standard input; give it a file or a pipe");
    }
    file_close(stdout, "standard output");
    return 0;
}
