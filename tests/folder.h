// A test's own folder, and small files in it.
#ifndef LLMC_TESTS_FOLDER_H
#define LLMC_TESTS_FOLDER_H

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/common.h"
#include "test.h"

static char folder[32];

// tests/test_NAME.c works in /tmp/test_NAME.xxxxxx.
static void folder_make(const char* source) {
    const char* name = strrchr(source, '/');
    name = name ? name + 1 : source;
    snprintf(folder, sizeof folder, "/tmp/%.*s.XXXXXX", (int)strcspn(name, "."), name);
    if (!mkdtemp(folder)) fatal("cannot make %s: %s", folder, strerror(errno));
}

static inline void folder_remove(void) { CHECK(!rmdir(folder), "%s is not empty", folder); }

// NULL: no such file.
static inline void write_text(const char* name, const char* text) {
    char* path = xprintf("%s/%s", folder, name);
    unlink(path);
    if (text) {
        FILE* f = file_open(path, "wb");
        file_write(f, text, strlen(text), path);
        file_close(f, path);
    }
    free(path);
}

#endif
