#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>  // fabs, rint
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void fatal(const char* format, ...) {
    fflush(stdout);
    // On a terminal a progress line may stand there: return to its start and clear it.
    fputs(isatty(STDERR_FILENO) ? "\r\033[Ktrain_gpt2_rl: " : "train_gpt2_rl: ", stderr);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

void* xalloc(size_t count, size_t size, const char* what) {
    if (size && count > (SIZE_MAX - 63) / size)
        fatal("%s: %zu elements of %zu bytes do not fit in memory", what, count, size);
    size_t bytes = (count * size + 63) / 64 * 64;
    void* p = aligned_alloc(64, bytes ? bytes : 64);
    if (!p)
        fatal("%s: no memory for %.1f MB; lower the model size, --slots or --micro-batch", what,
              bytes / 1e6);
    memset(p, 0, bytes);
    return p;
}

char* xprintf(const char* format, ...) {
    char* text;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&text, format, args);
    va_end(args);
    if (n < 0) fatal("no memory for a string");
    return text;
}

void number_text(double x, char text[32]) {
    if (fabs(x) <= 0x1p53 && x == rint(x)) {
        snprintf(text, 32, "%.0f", x);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, x);
        if (strtod(text, NULL) == x) return;
    }
}

FILE* file_open(const char* path, const char* mode) {
    FILE* f = fopen(path, mode);
    if (!f)
        fatal("cannot open %s for %s: %s", path, mode[0] == 'r' ? "reading" : "writing",
              strerror(errno));
    return f;
}

void file_read(FILE* f, void* to, size_t bytes, const char* path) {
    size_t got = fread(to, 1, bytes, f);
    if (got == bytes) return;
    if (ferror(f)) fatal("cannot read %s: %s", path, strerror(errno));
    fatal("%s is cut short: %zu more bytes were expected; use another copy", path, bytes - got);
}

static void write_failed(const char* path) __attribute__((noreturn));
static void write_failed(const char* path) {
    fatal("cannot write %s: %s; free some space or choose another place", path, strerror(errno));
}

void file_write(FILE* f, const void* from, size_t bytes, const char* path) {
    if (fwrite(from, 1, bytes, f) != bytes) write_failed(path);
}

void file_close(FILE* f, const char* path) {
    int failed = ferror(f);  // of an earlier fprintf, say
    if (fclose(f) || failed) write_failed(path);
}

void file_close_sync(FILE* f, const char* path) {
    if (fflush(f) || fsync(fileno(f))) write_failed(path);
    file_close(f, path);
}

int64_t file_size(const char* path) {
    struct stat s;
    return stat(path, &s) ? -1 : (int64_t)s.st_size;
}

void dir_create(const char* path) {
    if (!*path) fatal("a directory needs a name, and it is empty");
    char* part = xprintf("%s", path);
    for (char* p = part + 1;; p++) {
        char c = *p;
        if (c && c != '/') continue;
        *p = 0;
        struct stat s;
        if (mkdir(part, 0777) && (errno != EEXIST || stat(part, &s) || !S_ISDIR(s.st_mode)))
            fatal("cannot make the directory %s: %s; choose another place", part, strerror(errno));
        *p = c;
        if (!c) break;
    }
    free(part);
}

void dir_sync(const char* path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0 || fsync(fd)) write_failed(path);
    close(fd);
}

double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
