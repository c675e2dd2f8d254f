#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <math.h>  // fabs, rint
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void (*on_fatal)(void);
int fatal_rank;

int is_terminal(int fd) {
    const char* term = getenv("TERM");
    return isatty(fd) && !(term && !strcmp(term, "dumb"));
}

// One write: lines of several processes must not mix.
void fatal(const char* format, ...) {
    static char text[8192];
    char rank[32] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (fatal_rank) snprintf(rank, sizeof rank, "rank %d: ", fatal_rank);
    fflush(stdout);
    // On a terminal a progress line may stand there: return to its start and clear it.
    fprintf(stderr, "%strain_gpt2_rl: %s%s\n", is_terminal(STDERR_FILENO) ? "\r\033[K" : "", rank,
            text);
    void (*hook)(void) = on_fatal;
    on_fatal = NULL;  // a hook that fails itself must not be called again
    if (hook) hook();
    exit(1);
}

static void refuse_memory(size_t bytes, const char* what) __attribute__((noreturn));
static void refuse_memory(size_t bytes, const char* what) {
    fatal("%s: no memory for %.1f MB%s", what, bytes / 1e6,
          strchr(what, '(') ? "" : "; lower the model size, --slots or --micro-tokens");
}

void* xalloc(size_t count, size_t size, const char* what) {
    if (size && count > (SIZE_MAX - 63) / size)
        fatal("%s: %zu elements of %zu bytes do not fit in memory", what, count, size);
    size_t bytes = (count * size + 63) / 64 * 64;
    void* p = aligned_alloc(64, bytes ? bytes : 64);
    if (!p) refuse_memory(bytes, what);
    memset(p, 0, bytes);
    return p;
}

void* xmap(size_t bytes, const char* what) {
    void* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) refuse_memory(bytes, what);
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
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

void text_mask(char* text, const char* keep) {
    for (char* p = text; *p;) {
        int bytes = utf8_length(p);
        int control = (unsigned char)*p < ' ' || *p == 127;
        if (!bytes || (control && !strchr(keep, *p))) *p = '?';
        if (bytes == 2 && !memcmp(p, "\xc2", 1) && (unsigned char)p[1] < 0xa0) p[0] = p[1] = '?';
        p += bytes ? bytes : 1;
    }
}

char* shown(const char* given, size_t length) {
    const char* more = length > 80 ? "..." : "";
    if (length > 80)
        for (length = 80; ((unsigned char)given[length] & 0xc0) == 0x80 && length > 77;) length--;
    char* copy = xprintf("%.*s%s", (int)length, given, more);
    text_mask(copy, "");
    return copy;
}

int utf8_length(const char* s) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char* u = (const unsigned char*)s;
    if (u[0] < 0x80) return 1;
    if (u[0] < 0xc0 || u[0] > 0xf7) return 0;
    int n = u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    uint32_t code = u[0] & (0x7fu >> n);
    for (int i = 1; i < n; i++) {  // the 0 at the end continues nothing
        if ((u[i] & 0xc0) != 0x80) return 0;
        code = code << 6 | (u[i] & 0x3fu);
    }
    int surrogate = code >= 0xd800 && code <= 0xdfff;
    return code < least[n] || code > 0x10ffff || surrogate ? 0 : n;
}

static int least(int a, int b) { return a < b ? a : b; }

int name_distance(const char* a, size_t length, const char* b) {
    enum { LONGEST = 63 };
    if (length > LONGEST || strlen(b) > LONGEST) return INT_MAX;
    if (length > 1 && !strncmp(a, b, length)) return strlen(b) > length;
    int na = (int)length, nb = (int)strlen(b), d[LONGEST + 1][LONGEST + 1];
    for (int i = 0; i <= na; i++) d[i][0] = i;
    for (int j = 0; j <= nb; j++) d[0][j] = j;
    for (int i = 1; i <= na; i++)
        for (int j = 1; j <= nb; j++) {
            int replace = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            d[i][j] = least(replace, 1 + least(d[i - 1][j], d[i][j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = least(d[i][j], 1 + d[i - 2][j - 2]);
        }
    return d[na][nb];
}

static const uint64_t FNV_START = 0xcbf29ce484222325ull, FNV_PRIME = 0x100000001b3ull;

static uint64_t hash_end(uint64_t h) {
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ h >> 27) * 0x94d049bb133111ebull;
    return h ^ h >> 31;
}

uint64_t hash_text(const char* text) {
    uint64_t h = FNV_START;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * FNV_PRIME;
    return hash_end(h);
}

uint64_t hash_words(const void* words, size_t count) {
    uint64_t h = FNV_START;
    for (size_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, (const char*)words + i * sizeof word, sizeof word);
        h = (h ^ word) * FNV_PRIME;
    }
    return hash_end(h);
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

void file_rename(const char* from, const char* to) {
    if (rename(from, to))
        fatal("cannot rename %s to %s: %s; remove what is in its way", from, to, strerror(errno));
}

void file_copy(const char* from, const char* to) {
    int64_t bytes = file_size(from);
    char *aside = xprintf("%s.tmp", to), *data = xalloc((size_t)(bytes > 0 ? bytes : 0), 1, from);
    FILE *in = file_open(from, "r"), *out = file_open(aside, "w");
    if (bytes > 0) file_read(in, data, (size_t)bytes, from);
    file_close(in, from);
    if (bytes > 0) file_write(out, data, (size_t)bytes, aside);
    file_close_sync(out, aside);
    file_rename(aside, to);
    free(data);
    free(aside);
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

// Some file systems, mostly a network's, have no such call for directories.
void dir_sync(const char* path) {
    static int said;
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    int failed = fd < 0 || fsync(fd), unknown = fd >= 0 && (errno == EINVAL || errno == ENOTSUP);
    if (failed && !unknown) write_failed(path);
    if (failed && !said++)
        fprintf(stderr,
                "train_gpt2_rl: the directory %s cannot be synced: %s; what is written here may be "
                "lost if the machine loses power\n",
                path, strerror(errno));
    close(fd);
}

static int remove_one(const char* path, const struct stat* s, int type, struct FTW* place) {
    (void)s, (void)type, (void)place;
    return remove(path);
}

void dir_remove(const char* path) { nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
