// The Makefile, by what it prints and would do (make -n): goals next to clean, folders elsewhere,
// compilers whose OpenMP does not start. What is not installed is passed over.
#include "base/common.h"
#include "refusal.h"

static char folder[] = "/tmp/test_make.XXXXXX";

// What a command of the shell writes, and its status. Flags of a make around this test are not
// passed on.
static child_result shell(const char* command) {
    child_result r = {0, ""};
    char* all = xprintf("unset MAKEFLAGS MFLAGS MAKELEVEL CC; exec 2>&1; %s", command);
    fflush(stdout);
    FILE* f = popen(all, "r");
    if (!f) fatal("cannot run %s", command);
    r.text[fread(r.text, 1, sizeof r.text - 1, f)] = 0;
    while (fgetc(f) != EOF) continue;
    r.status = pclose(f);
    free(all);
    return r;
}

static int found(const char* program) {
    char* command = xprintf("command -v %s", program);
    int status = shell(command).status;
    free(command);
    return status == 0;
}

static child_result make(const char* arguments) {
    char* command = xprintf("make NO_CUDA=1 BUILD=%s/b %s", folder, arguments);
    child_result r = shell(command);
    free(command);
    return r;
}

static void test_clean_and_build(void) {
    child_result r = make("-n -j8 clean install");
    const char *removed = strstr(r.text, "rm -rf"), *built = strstr(r.text, " -c ");
    CHECK(r.status == 0 && removed && built && removed < built, "clean install: %x, %.300s",
          r.status, r.text);
}

static void test_absolute_folder(void) {
    child_result r = make("-n uninstall DESTDIR=/d PREFIX=/p");
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

int main(void) {
    if (!mkdtemp(folder) || !found("make")) return 1;
    test_clean_and_build();
    test_absolute_folder();
    test_openmp();
    char* command = xprintf("rm -r %s", folder);
    shell(command);
    free(command);
    return test_report();
}
