#include "data.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/json.h"
#include "../base/numerics.h"
#include "task.h"

static const char ADVICE[] =
    "a line must be one JSON object such as {\"prompt\": \"1+1=\", \"answer\": \"2\"}";

typedef struct reader {
    const char* path;
    int line;
    const char* text;  // of the line, without a byte order mark
    const json* root;
    const data_names* names;
} reader;

static const json* find_prompt(const reader* r) {
    if (r->names->prompt) return json_get(r->root, r->names->prompt);
    const json *prompt = json_find(r->root, "prompt"), *question = json_find(r->root, "question");
    if (prompt && question)
        fatal(
            "%s:%d: both \"prompt\" and \"question\" stand there; name the one to read with "
            "--data-keys prompt=NAME",
            r->path, r->line);
    if (!prompt && !question)
        fatal(
            "%s:%d: neither \"prompt\" nor \"question\" stands there; name the key to read with "
            "--data-keys prompt=NAME",
            r->path, r->line);
    return prompt ? prompt : question;
}

// The member of a name that the user gave, or of the usual one; NULL if it is not there.
static const json* find_other(const reader* r, const char* given, const char* usual) {
    const json* found = given ? json_get(r->root, given) : json_find(r->root, usual);
    return json_given(found) ? found : NULL;
}

// A string, or a number as it is written; to be freed.
static char* read_answer(const reader* r, const json* at) {
    if (at->kind != JSON_NUMBER && at->kind != JSON_STRING)
        json_refuse(at, "\"%s\" must be a string or a number", at->key);
    if (at->kind == JSON_STRING) return xprintf("%s", json_text(at));
    const char* from = r->text + at->column - 1;
    return xprintf("%.*s", (int)strspn(from, "0123456789+-.eE"), from);
}

static void read_line(const reader* r, problem_list* list) {
    const json* prompt = find_prompt(r);
    const json* answer = find_other(r, r->names->answer, "answer");
    const json* response = find_other(r, r->names->response, "response");
    problem p = {.prompt = json_text(prompt), .line = r->line};
    if (!*p.prompt) json_refuse(prompt, "\"%s\" is empty", prompt->key);
    if (response) p.response = json_text(response);
    char* text = answer ? read_answer(r, answer) : NULL;
    p.answer = text;
    problem_add(list, &p);
    free(text);
}

data_names data_names_of(char* keys) {
    data_names names = {0};
    for (char* key = strtok(keys, ","); key; key = strtok(NULL, ",")) {
        char* name = strchr(key, '=');
        if (name) *name++ = 0;
        const char** place = !strcmp(key, "prompt")     ? &names.prompt
                             : !strcmp(key, "answer")   ? &names.answer
                             : !strcmp(key, "response") ? &names.response
                                                        : NULL;
        if (!place || !name || !*name)
            fatal(
                "--data-keys: \"%s\" is none of prompt=NAME, answer=NAME and response=NAME, where "
                "NAME is a key of the file; separate them by commas",
                shown(key, strlen(key)));
        if (*place) fatal("--data-keys: %s is given twice; keep one", key);
        *place = name;
    }
    if (*keys && !names.prompt && !names.answer && !names.response)
        fatal("--data-keys %s names no key; write prompt=NAME, or leave it out", keys);
    return names;
}

problem_list data_read(const char* path, const data_names* names) {
    static const data_names usual;
    problem_list list = {0};
    char* line = NULL;
    size_t room = 0;
    ssize_t bytes;
    FILE* f = file_open(path, "r");
    for (int number = 1; (bytes = getline(&line, &room, f)) >= 0; number++) {
        const char* text = line;
        size_t length = (size_t)bytes;
        if (number == 1 && length >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) text += 3, length -= 3;
        while (length && strchr(" \t\r\n", text[length - 1]) && text[length - 1]) length--;
        if (!length) continue;
        char* name = xprintf("%s:%d: its JSON", path, number);
        json* root = json_parse(name, text, length, ADVICE);
        json_expect(root, JSON_OBJECT);
        read_line(&(reader){path, number, text, root, names ? names : &usual}, &list);
        free(root);
        free(name);
    }
    if (ferror(f)) fatal("cannot read %s: %s", path, strerror(errno));
    file_close(f, path);
    free(line);
    if (!list.count) fatal("%s holds no problems; %s", path, ADVICE);
    return list;
}

int data_is_held_out(const problem* p) { return task_is_held_out(p->prompt); }

void data_order(size_t n, uint64_t seed, uint32_t pass, uint32_t* order) {
    rng r = rng_at(seed, STREAM_PROMPT, pass, 0);
    rng_permutation(&r, n, order);
}
