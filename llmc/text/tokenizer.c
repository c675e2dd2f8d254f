#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "alphabet.h"

tokenizer tokenizer_characters(void) { return (tokenizer){.ends = {1, {alphabet_end()}}}; }

int tokenizer_size(const tokenizer* t) {
    (void)t;
    return alphabet_size();
}

static void add_characters(const char* text, token_list* to) {
    int most = (int)strlen(text), *token = xalloc((size_t)most + 1, sizeof *token, "tokens");
    int n = alphabet_encode(text, token, most);
    for (int i = 0; i < n; i++) token_list_add(to, token[i]);
    free(token);
}

void tokenizer_prompt(const tokenizer* t, const char* prompt, token_list* to) {
    (void)t;
    add_characters(prompt, to);
}

void tokenizer_response(const tokenizer* t, const char* response, token_list* to) {
    add_characters(response, to);
    if (!to->count || !end_set_has(&t->ends, to->id[to->count - 1]))
        token_list_add(to, t->ends.id[0]);
}

char* tokenizer_text(const tokenizer* t, const int* token, size_t n) {
    (void)t;
    char* text = xalloc(n + 1, 1, "text");
    alphabet_decode(token, (int)n, text);
    return text;
}
