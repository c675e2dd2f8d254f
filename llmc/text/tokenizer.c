#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "alphabet.h"

tokenizer tokenizer_characters(void) { return (tokenizer){.ends = {1, {alphabet_end()}}}; }

tokenizer tokenizer_open(const char* folder, chat_kind chat, const char* system) {
    tokenizer t = {.bpe = bpe_open(folder), .folder = folder, .chat = chat, .system = system};
    if (chat == CHAT_AUTO) t.chat = chat_match(folder);
    if (system && chat == CHAT_NONE)
        fatal("--system means nothing to --chat none; leave one of them out");
    if (system && t.chat == CHAT_NONE)
        fatal("--system means nothing without a chat format, and %s has no template; give --chat",
              folder);
    chat_ends(folder, t.bpe, t.chat, &t.ends);
    t.checksum = bpe_checksum(t.bpe) * 31 + (uint64_t)t.chat * 7 + (system ? hash_text(system) : 1);
    for (int i = 0; i < t.ends.count; i++) t.checksum = t.checksum * 31 + (uint64_t)t.ends.id[i];
    return t;
}

static void write_ends(const tokenizer* t, const char* path) {
    char* aside = xprintf("%s.tmp", path);
    FILE* f = file_open(aside, "w");
    fprintf(f, "{\n  \"eos_token_id\": [");
    for (int i = 0; i < t->ends.count; i++) fprintf(f, "%s%d", i ? ", " : "", t->ends.id[i]);
    fprintf(f, "]\n}\n");
    file_close_sync(f, aside);
    file_rename(aside, path);
    free(aside);
}

void tokenizer_keep(const tokenizer* t, const char* folder) {
    static const char* const names[] = {"tokenizer.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "chat_template.jinja",
                                        "generation_config.json"};
    enum { COUNT = sizeof names / sizeof *names };
    if (!t->bpe) return;
    dir_create(folder);
    for (int i = 0; i < COUNT; i++) {
        char *from = xprintf("%s/%s", t->folder, names[i]),
             *to = xprintf("%s/%s", folder, names[i]);
        if (file_size(to) < 0 && file_size(from) >= 0) file_copy(from, to);
        if (i == COUNT - 1 && file_size(to) < 0) write_ends(t, to);
        free(from);
        free(to);
    }
    dir_sync(folder);
}

int tokenizer_size(const tokenizer* t) { return t->bpe ? bpe_size(t->bpe) : alphabet_size(); }
int64_t tokenizer_dropped(const tokenizer* t) { return t->bpe ? bpe_dropped(t->bpe) : 0; }

static void add_characters(const char* text, size_t bytes, token_list* to) {
    char* part = xprintf("%.*s", (int)bytes, text);
    int *token = xalloc(bytes + 1, sizeof *token, "tokens"),
        n = alphabet_encode(part, token, (int)bytes);
    for (int i = 0; i < n; i++) token_list_add(to, token[i]);
    free(token);
    free(part);
}

static void add_text(const tokenizer* t, const char* text, size_t bytes, token_list* to) {
    if (t->bpe)
        bpe_encode(t->bpe, text, bytes, to);
    else
        add_characters(text, bytes, to);
}

// Without a chat format a text begins as the tokenizer's file asks for; with one, as the format
// does.
void tokenizer_prompt(const tokenizer* t, const char* prompt, token_list* to) {
    char* text = chat_render(t->chat, t->system, prompt);
    if (t->bpe && t->chat == CHAT_NONE && bpe_begin(t->bpe) >= 0)
        token_list_add(to, bpe_begin(t->bpe));
    add_text(t, text, strlen(text), to);
    free(text);
}

void tokenizer_response(const tokenizer* t, const char* response, token_list* to) {
    size_t bytes = strlen(response);
    add_text(t, response, bytes - (bytes && response[bytes - 1] == '\n'), to);
    token_list_add(to, t->ends.id[0]);
}

char* tokenizer_text(const tokenizer* t, const int* token, size_t n, int specials) {
    size_t bytes = n;
    char* text = t->bpe ? bpe_decode(t->bpe, token, n, specials, &bytes) : xalloc(n + 1, 1, "text");
    if (!t->bpe) alphabet_decode(token, (int)n, text);
    for (size_t i = 0; i < bytes; i++)
        if (!text[i]) text[i] = '?';
    return text;
}
