#include "token_list.h"

#include <stdlib.h>
#include <string.h>

void token_list_add(token_list* t, int id) {
    if (t->count == t->room) {
        size_t room = t->room ? 2 * t->room : 256;
        int* wider = xalloc(room, sizeof *wider, "tokens");
        if (t->count) memcpy(wider, t->id, t->count * sizeof *wider);
        free(t->id);
        t->id = wider;
        t->room = room;
    }
    t->id[t->count++] = id;
}

void token_list_free(token_list* t) {
    free(t->id);
    *t = (token_list){0};
}
