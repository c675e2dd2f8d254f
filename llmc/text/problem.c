#include "problem.h"

#include <stdlib.h>
#include <string.h>

static size_t bytes_of(const char* text) { return text ? strlen(text) + 1 : 0; }

static const char* put(char** at, const char* text) {
    char* start = *at;
    if (!text) return NULL;
    memcpy(start, text, bytes_of(text));
    *at += bytes_of(text);
    return start;
}

static void make_room(problem_list* list) {
    if (list->count < list->room) return;
    int room = list->room ? 2 * list->room : 64;
    problem* wider = xalloc((size_t)room, sizeof *wider, "problems");
    if (list->count) memcpy(wider, list->item, (size_t)list->count * sizeof *wider);
    free(list->item);
    list->item = wider;
    list->room = room;
}

// The texts of a problem are one allocation, which begins with the prompt.
void problem_add(problem_list* list, const problem* p) {
    make_room(list);
    char* at = xalloc(bytes_of(p->prompt) + bytes_of(p->answer) + bytes_of(p->response), 1, "text");
    problem* copy = &list->item[list->count++];
    copy->prompt = put(&at, p->prompt);
    copy->answer = put(&at, p->answer);
    copy->response = put(&at, p->response);
    copy->line = p->line;
}

void problem_list_clear(problem_list* list) {
    for (int i = 0; i < list->count; i++) free((void*)list->item[i].prompt);
    list->count = 0;
}

void problem_list_free(problem_list* list) {
    problem_list_clear(list);
    free(list->item);
    *list = (problem_list){0};
}
