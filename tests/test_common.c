// common: what is asked for is delivered whole, or the program says why not and stops.
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/common.h"
#include "folder.h"
#include "refusal.h"

static char path[64];

#define WORDS (const char* [REFUSAL_WORDS])

static void fatal_child(const void* text) { fatal("%s %d", (const char*)text, 7); }

static void print_then_fatal(const void* unused) {
    (void)unused;
    printf("printed before\n");
    if (!freopen("/dev/null", "w", stderr)) exit(2);
    fatal("unseen");
}

static void test_fatal(void) {
    check_refusal(fatal_child, "a reason", "fatal", WORDS{"train_gpt2_rl: a reason 7\n"});
    child_result r = child_run(STDOUT_FILENO, print_then_fatal, NULL);
    CHECK(!strcmp(r.text, "printed before\n"), "stdout is flushed first: \"%s\"", r.text);
}

static void huge_count(const void* unused) {
    (void)unused;
    xalloc(SIZE_MAX / 4 + 2, 4, "the weights");  // wraps to 4 bytes if multiplied carelessly
}

static void huge_round_up(const void* unused) {
    (void)unused;
    xalloc(SIZE_MAX - 10, 1, "the cache");  // wraps when rounded up to 64
}

static void no_memory(const void* unused) {
    (void)unused;
    xalloc(SIZE_MAX / 1024, 512, "the logits");  // legal, but no machine has it
}

static void test_memory(void) {
    for (size_t n = 0; n < 300; n += 7) {
        unsigned char* p = xalloc(n, 1, "a test");
        int zero = 1;
        for (size_t i = 0; i < n; i++) zero &= p[i] == 0;
        CHECK((uintptr_t)p % 64 == 0 && zero, "%zu bytes: aligned to 64, zero", n);
        memset(p, 255, n);  // so that the next allocation would show it
        free(p);
    }
    check_refusal(huge_count, NULL, "count * size wraps", WORDS{"the weights", "do not fit"});
    check_refusal(huge_round_up, NULL, "rounding wraps", WORDS{"the cache", "do not fit"});
#if !defined(__SANITIZE_ADDRESS__)  // which ends the program itself where malloc would return NULL
    check_refusal(no_memory, NULL, "no memory", WORDS{"the logits", "no memory for"});
#else
    (void)no_memory;
#endif
    char* text = xprintf("%s-%d", "a", 5);
    CHECK(!strcmp(text, "a-5"), "xprintf gives %s", text);
    free(text);
}

static void read_too_much(const void* unused) {
    (void)unused;
    char bytes[100];
    FILE* f = file_open(path, "rb");
    file_read(f, bytes, 10, path);
    file_read(f, bytes, 10, path);
}

static void read_folder(const void* unused) {
    (void)unused;
    char byte;
    file_read(file_open(folder, "rb"), &byte, 1, folder);
}

static void open_missing(const void* mode) { file_open("/no/such/file", mode); }

static void test_reading(void) {
    FILE* f = file_open(path, "wb");
    file_write(f, "0123456789abcde", 15, path);
    file_close_sync(f, path);
    CHECK(file_size(path) == 15, "size is %lld", (long long)file_size(path));
    char bytes[16] = "";
    f = file_open(path, "rb");
    file_read(f, bytes, 15, path);
    file_read(f, bytes, 0, path);
    file_close(f, path);
    CHECK(!strcmp(bytes, "0123456789abcde"), "read back %s", bytes);
    check_refusal(read_too_much, NULL, "a short file",
                  WORDS{path, "cut short: 5 more bytes were expected"});
    check_refusal(read_folder, NULL, "a folder", WORDS{"cannot read", folder, "Is a directory"});
    check_refusal(open_missing, "rb", "no file",
                  WORDS{"cannot open /no/such/file for reading", "No such file"});
    check_refusal(open_missing, "wb", "no folder", WORDS{"cannot open /no/such/file for writing"});
    CHECK(file_size("/no/such/file") == -1, "the size of a missing file is -1");
    unlink(path);
}

// A small write stays in the buffer: the failure shows when the file is closed.
static void fill_and_close(const void* unused) {
    (void)unused;
    FILE* f = file_open("/dev/full", "wb");
    file_write(f, "x", 1, "/dev/full");
    file_close(f, "/dev/full");
    _exit(0);
}

static void fill_and_sync(const void* unused) {
    (void)unused;
    FILE* f = file_open("/dev/full", "wb");
    file_write(f, "x", 1, "/dev/full");
    file_close_sync(f, "/dev/full");
    _exit(0);
}

static void fill(const void* unused) {
    (void)unused;
    static const char bytes[1 << 20];
    file_write(file_open("/dev/full", "wb"), bytes, sizeof bytes, "/dev/full");
    _exit(0);
}

// Part of one write fits.
static void fill_to_limit(const void* unused) {
    (void)unused;
    static const char bytes[1 << 20];
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){100, 100});
    file_write(file_open(path, "wb"), bytes, sizeof bytes, path);
    _exit(0);
}

// fprintf's failure was not looked at when it happened; nothing is left in the buffer to fail
// again.
static void fill_and_forget(const void* unused) {
    (void)unused;
    FILE* f = file_open("/dev/full", "wb");
    setvbuf(f, NULL, _IONBF, 0);
    fprintf(f, "x");
    file_close(f, "/dev/full");
    _exit(0);
}

static void test_writing(void) {
    if (file_size("/dev/full") < 0) return;
    const char* const* words = WORDS{"cannot write /dev/full", "No space left", "free some space"};
    check_refusal(fill_and_close, NULL, "a full disk, close", words);
    check_refusal(fill_and_sync, NULL, "a full disk, sync", words);
    check_refusal(fill, NULL, "a full disk, write", words);
    check_refusal(fill_and_forget, NULL, "a full disk, earlier", words);
    check_refusal(fill_to_limit, NULL, "a full disk, in part", WORDS{"cannot write", path});
    unlink(path);
}

static void make_folder(const void* name) { dir_create(name); }
static void sync_folder(const void* name) { dir_sync(name); }

static int is_folder(const char* name) {
    struct stat s;
    return stat(name, &s) == 0 && S_ISDIR(s.st_mode);
}

static void test_folders(void) {
    char name[100];
    snprintf(name, sizeof name, "%s/a/b//c/", folder);
    dir_create(name);
    CHECK(is_folder(name), "%s was made", name);
    dir_create(name);  // again
    dir_create("/");
    dir_create(".");
    dir_sync(name);
    for (const char* part = "a/b/c\0a/b\0a\0"; *part; part += strlen(part) + 1) {
        snprintf(name, sizeof name, "%s/%s", folder, part);
        CHECK(rmdir(name) == 0, "%s was there and empty", name);
    }
    file_close(file_open(path, "wb"), path);
    check_refusal(make_folder, path, "over a file",
                  WORDS{"cannot make the directory", path, "exists"});
    snprintf(name, sizeof name, "%s/x/y", path);
    check_refusal(make_folder, name, "below a file", WORDS{"cannot make the directory", path});
    check_refusal(make_folder, "", "no name", WORDS{"a directory needs a name"});
    check_refusal(sync_folder, "/no/such/folder", "sync", WORDS{"/no/such/folder", "No such file"});
    unlink(path);
}

static void test_clock(void) {
    double before = clock_seconds();
    usleep(2000);
    double after = clock_seconds();
    CHECK(after - before >= 0.002 && after - before < 1, "2 ms took %g s", after - before);
}

// What a user wrote, as a message shows it; and how near a name is.
static void test_shown(void) {
    static const char digits[] =
        "123456789.123456789.123456789.123456789.123456789.123456789."
        "123456789.123456789.1";
    static const struct {
        const char* given;
        size_t length;
        const char* expected;
    } cases[] = {{"abc", 3, "abc"},
                 {"abc", 2, "ab"},
                 {"a\tb\x7f\n", 5, "a?b??"},
                 {"\xce\xbc", 2, "\xce\xbc"},
                 {"\xce\xbc", 1, "?"},
                 {"a\xff\xc0\x80\xed\xa0\x80z", 8, "a??????z"},
                 {"\xf0\x9f\x98\x80\xf4\x90\x80\x80", 8, "\xf0\x9f\x98\x80????"},
                 {"a\xc2\x9b\xc2\xa0", 5, "a??\xc2\xa0"},
                 {"", 0, ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char* text = shown(cases[i].given, cases[i].length);
        CHECK(!strcmp(text, cases[i].expected), "case %d is shown as %s", (int)i, text);
        free(text);
    }
    char lines[] = "a\n\tb\x1b[2Jc\xff";
    text_mask(lines, "\n\t");
    CHECK(!strcmp(lines, "a\n\tb?[2Jc?"), "several lines are shown as %s", lines);
    for (size_t length = 79; length <= 81; length++) {
        char* text = shown(digits, length);
        size_t kept = length > 80 ? 80 : length;
        CHECK(!strncmp(text, digits, kept) && !strcmp(text + kept, length > 80 ? "..." : ""),
              "%zu characters are shown as %s", length, text);
        free(text);
    }
    char longest[65];
    memset(longest, 'a', 64);
    longest[64] = 0;
    CHECK(name_distance("b", 1, longest) == INT_MAX, "a name of 64 characters has no distance");
    CHECK(name_distance(longest, 64, "b") == INT_MAX, "nor has one that is given");
    CHECK(name_distance("b", 1, longest + 1) == 63, "63 characters are compared");
}

int main(void) {
    folder_make(__FILE__);
    snprintf(path, sizeof path, "%s/file", folder);
    test_fatal();
    test_memory();
    test_reading();
    test_writing();
    test_folders();
    test_clock();
    test_shown();
    folder_remove();
    return test_report();
}
