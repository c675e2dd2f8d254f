// GNUmakefile, by what it prints and would do (make -n): goals next to clean, folders elsewhere,
// compilers whose OpenMP does not start, makes that are not GNU's. What is not installed is passed
// over. `make test` runs this where the Makefile is.
#include <stdarg.h>
#include <unistd.h>

#include "base/common.h"
#include "test.h"

static char folder[] = "/tmp/test_make.XXXXXX";

typedef struct said {
    int status;  // as pclose gives it
    char text[16384];
} said;

// What a command of the shell writes. Flags and variables of a make around this test are not passed
// on.
static said shell(const char* format, ...) __attribute__((format(printf, 1, 2)));
static said shell(const char* format, ...) {
    said r = {0, ""};
    char command[1024];
    int n = snprintf(command, sizeof command,
                     "unset MAKEFLAGS MFLAGS MAKELEVEL SANITIZE BUILD CC CFLAGS CFLAGS_EXTRA "
                     "NO_OPENMP NO_CUDA; exec 2>&1; ");
    va_list args;
    va_start(args, format);
    vsnprintf(command + n, sizeof command - (size_t)n, format, args);
    va_end(args);
    fflush(stdout);
    FILE* f = popen(command, "r");
    if (!f) fatal("cannot run %s", command);
    r.text[fread(r.text, 1, sizeof r.text - 1, f)] = 0;
    while (fgetc(f) != EOF) continue;
    r.status = pclose(f);
    return r;
}

static int found(const char* program) { return shell("command -v %s", program).status == 0; }

static said make(const char* arguments) {
    return shell("make NO_CUDA=1 BUILD=%s/b %s", folder, arguments);
}

// In a copy of two sources: what is built after clean is there, many at a time or not.
static void test_clean_and_build(void) {
    static const char objects[] = "build/llmc/base/checked.o build/llmc/base/common.o";
    said r = shell("mkdir -p %s/llmc && cp GNUmakefile %s && cp -r llmc/base %s/llmc", folder,
                   folder, folder);
    CHECK(r.status == 0, "a copy: %s", r.text);
    for (int i = 0; i < 2; i++) {
        r = shell("cd %s && make NO_CUDA=1 -j8 clean %s && ls %s", folder, objects, objects);
        CHECK(r.status == 0, "clean, then objects: %x, %s", r.status, r.text);
    }
    r = shell("cd %s && make NO_CUDA=1 -j8 %s clean && ! ls build", folder, objects);
    CHECK(r.status == 0, "objects, then clean: %x, %s", r.status, r.text);
}

static void test_absolute_folder(void) {
    said r = make("-n uninstall DESTDIR=/d PREFIX=/p");
    CHECK(r.status == 0 && strstr(r.text, "rm -f /d/p/bin/train_gpt2_rl"), "uninstall: %s", r.text);
    char* program = xprintf(" %s/b/train_gpt2_rl /d/p/bin/train_gpt2_rl\n", folder);
    r = make("-n install DESTDIR=/d PREFIX=/p | tail -n 1");
    CHECK(strstr(r.text, program) && !strstr(r.text, ".//"), "install: %s", r.text);
    free(program);
}

// musl-gcc links glibc's OpenMP, and the program does not start.
static void test_openmp(void) {
    CHECK(strstr(make("-n NO_OPENMP=1 uninstall").text, "OpenMP ✗"), "NO_OPENMP=1");
    if (found("musl-gcc"))
        CHECK(strstr(make("-n CC=musl-gcc uninstall").text, "OpenMP ✗"), "musl-gcc");
}

static void test_other_makes(void) {
    static const char* const goals[] = {"", "all", "test", "llmc"};
    for (int i = 0; i < 4 && found("bmake"); i++) {
        said r = shell("bmake %s", goals[i]);
        CHECK(r.status != 0 && !strncmp(r.text, "train_gpt2_rl needs GNU make", 28),
              "bmake %s: %x, \"%s\"", goals[i], r.status, r.text);
    }
}

int main(void) {
    if (access("GNUmakefile", R_OK) || !found("make") || !mkdtemp(folder)) {
        printf("there is no GNUmakefile here: run this where it is\n");
        return 1;
    }
    test_clean_and_build();
    test_absolute_folder();
    test_openmp();
    test_other_makes();
    shell("rm -r %s", folder);
    return test_report();
}
