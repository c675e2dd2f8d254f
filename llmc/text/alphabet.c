// A token is a character's place in the alphabet. The order is part of every model file that has
// been trained with it: append, never reorder.
#include "alphabet.h"

#include <string.h>

// The tasks use all but the last four, which are there for tasks to come.
static const char ALPHABET[] = "\n0123456789+-=:*/(),;<> ";
enum { SIZE = sizeof ALPHABET - 1 };
_Static_assert(SIZE == 24, "models have a row of the embedding for each of 24 tokens");

int alphabet_size(void) { return SIZE; }

int alphabet_end(void) { return 0; }

int alphabet_encode(const char* text, int* tokens, int capacity) {
    int n = 0;
    for (const char* p = text; *p; p++) {
        const char* place = strchr(ALPHABET, *p);
        if (!place)
            fatal(
                "byte 0x%02x at place %d of the text \"%s\" has no token: without a --tokenizer, a "
                "text is made of newline and %s",
                (unsigned char)*p, n, shown(text, strlen(text)), ALPHABET + 1);
        if (n == capacity) fatal("a text is longer than the %d tokens there is room for", capacity);
        tokens[n++] = (int)(place - ALPHABET);
    }
    return n;
}

void alphabet_decode(const int* tokens, int n, char* text) {
    for (int i = 0; i < n; i++) {
        int token = tokens[i];
        text[i] = token >= 0 && token < SIZE ? ALPHABET[token] : '?';
    }
    text[n] = 0;
}
