// Tokens of a text, and back, by the tokenizer of a Hugging Face folder:
//
//     build/dev/text/tokenize FOLDER < TEXT                   the text's tokens, on one line
//     build/dev/text/tokenize --lines FOLDER < LINES          a line of tokens for each line, whose
//                                                             \n, \r, \0 and \\ stand for these
//                                                             characters
//     build/dev/text/tokenize --decode FOLDER < TOKENS        a line of text, in the same spelling,
//                                                             for each line of token numbers
//     build/dev/text/tokenize --chat FOLDER [SYSTEM] < PROMPT the conversation that it begins
//     build/dev/text/tokenize --speed FOLDER < TEXT           tokens and megabytes per second
#include <stdlib.h>
#include <string.h>

#include "base/common.h"
#include "text/bpe.h"
#include "text/chat.h"

static char* read_all(size_t* bytes) {
    char *text, part[1 << 16];
    FILE* to = open_memstream(&text, bytes);
    if (!to) fatal("no memory for a text");
    for (size_t n; (n = fread(part, 1, sizeof part, stdin)) > 0;) fwrite(part, 1, n, to);
    if (fclose(to)) fatal("no memory for a text");
    return text;
}

// The characters that a line spells, in place; returns their bytes.
static size_t unspell(char* line) {
    char* to = line;
    line[strcspn(line, "\n")] = 0;
    for (const char* p = line; *p; p++) {
        if (*p == '\\' && p[1]) {
            p++;
            *to++ = *p == 'n' ? '\n' : *p == 'r' ? '\r' : *p == '0' ? 0 : *p;
        } else {
            *to++ = *p;
        }
    }
    return (size_t)(to - line);
}

static void print_spelled(const char* text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        const char* spelled = text[i] == '\n'   ? "\\n"
                              : text[i] == '\r' ? "\\r"
                              : text[i] == '\\' ? "\\\\"
                              : text[i] == 0    ? "\\0"
                                                : NULL;
        if (spelled)
            fputs(spelled, stdout);
        else
            putchar(text[i]);
    }
    putchar('\n');
}

static void print_tokens(const token_list* t) {
    for (size_t i = 0; i < t->count; i++) printf(i ? " %d" : "%d", t->id[i]);
    putchar('\n');
}

static void encode_lines(bpe* t) {
    char* line = NULL;
    size_t room = 0;
    token_list tokens = {0};
    while (getline(&line, &room, stdin) >= 0) {
        size_t bytes = unspell(line);
        tokens.count = 0;
        bpe_encode(t, line, bytes, &tokens);
        print_tokens(&tokens);
    }
    token_list_free(&tokens);
    free(line);
}

static void decode_lines(const bpe* t) {
    char* line = NULL;
    size_t room = 0, bytes;
    token_list tokens = {0};
    while (getline(&line, &room, stdin) >= 0) {
        tokens.count = 0;
        for (char* p = strtok(line, " \n"); p; p = strtok(NULL, " \n"))
            token_list_add(&tokens, atoi(p));
        char* text = bpe_decode(t, tokens.id, tokens.count, 1, &bytes);
        print_spelled(text, bytes);
        free(text);
    }
    token_list_free(&tokens);
    free(line);
}

static void encode_all(bpe* t, int speed) {
    size_t bytes;
    token_list tokens = {0};
    char* text = read_all(&bytes);
    double start = clock_seconds();
    bpe_encode(t, text, bytes, &tokens);
    double seconds = clock_seconds() - start;
    if (speed)
        printf("%zu tokens, %.1f MB/s\n", tokens.count, (double)bytes / seconds / 1e6);
    else
        print_tokens(&tokens);
    token_list_free(&tokens);
    free(text);
}

static void print_chat(const char* folder, const char* system) {
    size_t bytes;
    char *prompt = read_all(&bytes), *text = chat_render(chat_match(folder), system, prompt);
    fputs(text, stdout);
    free(text);
    free(prompt);
}

static int is_way(const char* how, int argc) {
    if (argc == 4) return !strcmp(how, "--chat");
    return argc == 3 && (!strcmp(how, "--lines") || !strcmp(how, "--decode") ||
                         !strcmp(how, "--speed") || !strcmp(how, "--chat"));
}

int main(int argc, char** argv) {
    const char* how = argc > 2 ? argv[1] : "";
    if (argc != 2 && !is_way(how, argc)) {
        fprintf(stderr,
                "usage: tokenize [--lines | --decode | --speed] FOLDER < TEXT, or\n"
                "       tokenize --chat FOLDER [SYSTEM] < PROMPT\n");
        return 1;
    }
    if (!strcmp(how, "--chat")) {
        print_chat(argv[2], argc == 4 ? argv[3] : NULL);
        return 0;
    }
    bpe* t = bpe_open(argv[argc - 1]);
    if (!strcmp(how, "--lines"))
        encode_lines(t);
    else if (!strcmp(how, "--decode"))
        decode_lines(t);
    else
        encode_all(t, !strcmp(how, "--speed"));
    if (bpe_dropped(t))
        fprintf(stderr, "%lld bytes were left out: the vocabulary has no token for them\n",
                (long long)bpe_dropped(t));
    bpe_free(t);
    return 0;
}
