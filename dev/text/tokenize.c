// tokenize: shows what a folder's tokenizer does.
//
//   tokenize encode FOLDER [TEXT]   the tokens of TEXT, or of each line of standard input
//   tokenize decode FOLDER [ID...]  the text of ids, or of each line of ids
//   tokenize show FOLDER [TEXT]     a line for each token: its id and its text
//   tokenize time FOLDER FILE       how fast the folder is read and the file is encoded
//   tokenize records FOLDER         for test_bpe.py: answers binary records of standard input
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/common.h"
#include "text/bpe.h"

// Processor time: another program that runs does not change it much.
static double cpu_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static void print_ids(const token_list* t) {
    for (size_t i = 0; i < t->count; i++) printf(i ? " %d" : "%d", t->id[i]);
    putchar('\n');
}

static void encode(const bpe* b, const char* text, size_t bytes) {
    token_list t = {0};
    bpe_encode(b, text, bytes, &t);
    print_ids(&t);
    token_list_free(&t);
}

static void show(const bpe* b, const char* text, size_t bytes) {
    token_list t = {0};
    bpe_encode(b, text, bytes, &t);
    for (size_t i = 0; i < t.count; i++) {
        size_t n;
        char* piece = bpe_decode(b, &t.id[i], 1, 1, &n);
        printf("%7d  \"", t.id[i]);
        for (size_t k = 0; k < n; k++) {
            unsigned char c = (unsigned char)piece[k];
            printf(c < ' ' || c == 127 ? "\\x%02x" : "%c", c);
        }
        puts("\"");
        free(piece);
    }
    token_list_free(&t);
}

// A line of ids.
static void decode(const bpe* b, const char* text, size_t bytes) {
    token_list t = {0};
    char* end;
    (void)bytes;
    for (const char* s = text;; s = end) {
        long id = strtol(s, &end, 10);
        if (end == s) break;
        token_list_add(&t, id < 0 || id > INT32_MAX ? -1 : (int)id);
    }
    char* decoded = bpe_decode(b, t.id, t.count, 1, &bytes);
    fwrite(decoded, 1, bytes, stdout);
    putchar('\n');
    free(decoded);
    token_list_free(&t);
}

// A record is 'e' or 'd', a count of 4 bytes, then that many bytes or ids of 4 bytes; so are the
// answers, with ids for bytes and bytes for ids ('d': special tokens are left out, 'D': they stay).
static void records(const bpe* b) {
    int kind;
    while ((kind = getchar()) != EOF) {
        uint32_t n;
        file_read(stdin, &n, sizeof n, "standard input");
        size_t size = kind == 'e' ? 1 : sizeof(int), bytes;
        void* given = xalloc(n, size, "a record");
        file_read(stdin, given, n * size, "standard input");
        if (kind == 'e') {
            token_list t = {0};
            bpe_encode(b, given, n, &t);
            n = (uint32_t)t.count;
            fwrite(&n, sizeof n, 1, stdout);
            fwrite(t.id, sizeof *t.id, n, stdout);
            token_list_free(&t);
        } else {
            char* text = bpe_decode(b, given, n, kind == 'D', &bytes);
            n = (uint32_t)bytes;
            fwrite(&n, sizeof n, 1, stdout);
            fwrite(text, 1, n, stdout);
            free(text);
        }
        free(given);
        fflush(stdout);
    }
}

static void time_file(const bpe* b, double opened, const char* path) {
    int64_t bytes = file_size(path);
    if (bytes < 0) fatal("%s cannot be read", path);
    char* text = xalloc((size_t)bytes, 1, "a text");
    FILE* f = file_open(path, "rb");
    file_read(f, text, (size_t)bytes, path);
    file_close(f, path);
    printf("opened in %.3f s of one core, %d tokens\n", opened, bpe_size(b));
    for (int i = 0; i < 3; i++) {
        token_list t = {0};
        double start = cpu_seconds();
        bpe_encode(b, text, (size_t)bytes, &t);
        double seconds = cpu_seconds() - start;
        printf("%lld bytes, %zu tokens, %.3f s of one core, %.1f MB/s\n", (long long)bytes, t.count,
               seconds, (double)bytes / seconds / 1e6);
        token_list_free(&t);
    }
    free(text);
}

int main(int argc, char** argv) {
    static const char usage[] =
        "usage: tokenize encode|decode|show FOLDER [TEXT or IDS], tokenize time FOLDER FILE; see "
        "dev/README.md";
    if (argc < 3) fatal("%s", usage);
    const char* what = argv[1];
    double start = cpu_seconds();
    bpe* b = bpe_open(argv[2]);
    double opened = cpu_seconds() - start;
    void (*one)(const bpe*, const char*, size_t) = !strcmp(what, "encode")   ? encode
                                                   : !strcmp(what, "show")   ? show
                                                   : !strcmp(what, "decode") ? decode
                                                                             : NULL;
    if (!strcmp(what, "records")) {
        records(b);
    } else if (!strcmp(what, "time") && argc == 4) {
        time_file(b, opened, argv[3]);
    } else if (one && argc > 3) {
        for (int i = 3; i < argc; i++) one(b, argv[i], strlen(argv[i]));
    } else if (one) {
        char* line = NULL;
        size_t room = 0;
        for (ssize_t n; (n = getline(&line, &room, stdin)) >= 0;) {
            if (n && line[n - 1] == '\n') line[--n] = 0;
            one(b, line, (size_t)n);
        }
        free(line);
    } else {
        fatal("%s", usage);
    }
    if (bpe_dropped(b))
        fprintf(stderr, "%lld bytes have no token and were dropped\n", (long long)bpe_dropped(b));
    bpe_free(b);
    return 0;
}
