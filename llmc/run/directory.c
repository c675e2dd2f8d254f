// The lock is fcntl's, on the file `lock`, which says in words who holds it. The words are for
// people: a file without a lock on it means nothing. It is never removed, since another process may
// be about to lock it.
#include "directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint.h"

// "process 1234 on venus, since 2026-11-26 12:53:51"
static char* holder_text(void) {
    char host[256] = "this machine", when[32];
    time_t now = time(NULL);
    struct tm local;
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", localtime_r(&now, &local));
    return xprintf("process %ld on %s, since %s\n", (long)getpid(), host, when);
}

static void refuse_locked(int lock, const char* path) __attribute__((noreturn));
static void refuse_locked(int lock, const char* path) {
    char text[512];
    ssize_t bytes = pread(lock, text, sizeof text, 0);
    size_t length = bytes > 0 ? (size_t)bytes : 0;
    if (length) length = strcspn(text, "\n") < length ? strcspn(text, "\n") : length - 1;
    fatal("--out %s is in use by %s; wait until it ends, or stop it", path,
          length ? shown(text, length) : "another process");
}

static void lock_directory(const char* path) {
    char *name = xprintf("%s/lock", path), *holder = holder_text();
    int lock = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (lock < 0) fatal("cannot write %s: %s; choose another --out", name, strerror(errno));
    int refused = fcntl(lock, F_SETLK, &whole);
    if (refused && (errno == EACCES || errno == EAGAIN)) refuse_locked(lock, path);
    if (refused)  // a network's file system, say: the run goes on without
        fprintf(stderr,
                "train_gpt2_rl: %s cannot be locked: %s; start no second run in this directory\n",
                name, strerror(errno));
    // The descriptor stays open: closing it would release the lock.
    size_t bytes = strlen(holder);
    if (ftruncate(lock, 0) || pwrite(lock, holder, bytes, 0) != (ssize_t)bytes)
        fatal("cannot write %s: %s; free some space", name, strerror(errno));
    free(holder);
    free(name);
}

// Whether it is the name of a file that the program writes aside and then renames:
// base.bin.123.tmp.
static int is_aside(const char* name) {
    static const char* const files[] = {"config", "prompts", "base.bin"};
    size_t length = strlen(name);
    if (length < 4 || strcmp(name + length - 4, ".tmp")) return 0;
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(files[i]);
        if (strncmp(name, files[i], n)) continue;
        const char* middle = name + n;
        if (*middle == '.') middle += 1 + strspn(middle + 1, "0123456789");
        if (middle == name + length - 3 || middle == name + length - 4) return 1;
    }
    return 0;
}

static void sweep(const char* path) {
    DIR* d = opendir(path);
    for (struct dirent* e; d && (e = readdir(d));) {
        char* name = xprintf("%s/%s", path, e->d_name);
        if (is_aside(e->d_name)) remove(name);
        free(name);
    }
    if (d) closedir(d);
    checkpoint_sweep(path);
}

void directory_open(const char* path) {
    dir_create(path);
    lock_directory(path);
    sweep(path);
}
