#include "checked.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files are little-endian");

uint64_t checksum_words(uint64_t h, const void* words, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t w;
        memcpy(&w, (const char*)words + 4 * i, 4);
        h = (h ^ w) * 0x100000001b3u;
    }
    return h;
}

void checked_refuse(const checked_file* f, const char* problem, ...) {
    char text[256];
    va_list args;
    va_start(args, problem);
    vsnprintf(text, sizeof text, problem, args);
    va_end(args);
    fatal("%s %s; %s", f->path, text, f->advice);
}

checked_file checked_open(const char* path, const char* advice) {
    checked_file f = {.path = path, .advice = advice, .checksum = CHECKSUM_START};
    struct stat s;
    if (stat(path, &s)) checked_refuse(&f, "cannot be read: %s", strerror(errno));
    if (!S_ISREG(s.st_mode)) checked_refuse(&f, "is not a regular file");
    f.f = file_open(path, "rb");
    f.bytes = (int64_t)s.st_size;
    return f;
}

checked_file checked_create(const char* path) {
    return (checked_file){.f = file_open(path, "wb"), .path = path, .checksum = CHECKSUM_START};
}

void checked_get(checked_file* f, void* words, size_t count) {
    file_read(f->f, words, 4 * count, f->path);
    f->checksum = checksum_words(f->checksum, words, count);
}

void checked_put(checked_file* f, const void* words, size_t count) {
    file_write(f->f, words, 4 * count, f->path);
    f->checksum = checksum_words(f->checksum, words, count);
}

int checked_file_checksum(const char* path, uint64_t* checksum) {
    uint32_t words[4096];
    FILE* f = fopen(path, "rb");
    if (!f) return 0;
    *checksum = CHECKSUM_START;
    size_t bytes;
    int whole = 1;
    while ((bytes = fread(words, 1, sizeof words, f)) > 0) {
        *checksum = checksum_words(*checksum, words, bytes / 4);
        whole &= bytes % 4 == 0;
    }
    whole &= !ferror(f);
    fclose(f);
    return whole;
}
