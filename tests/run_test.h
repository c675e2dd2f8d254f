// Whole runs of the program, for tests: starts it with flags, waits, reads what it left behind and
// compares runs. The program is ./train_gpt2_rl, or the one that the environment variable
// TRAIN_GPT2_RL names. The runs are tiny, and write to a folder that is removed at the end.
#ifndef RUN_TEST_H
#define RUN_TEST_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/common.h"
#include "test.h"

static const char* program = "./train_gpt2_rl";
static char home[] = "/tmp/run_test.XXXXXX";

// What every run here starts from; flags on the command line win over it. Big enough that rewards
// differ within groups of every mini-batch, so that no gradient is 0; two passes, so that ratios
// leave 1.
static const char BASE[] =
    "task = add:digits=1,guessed=100,guess-error=0\n"
    "depth = 1\nchannels = 32\nheads = 2\ncontext = 32\nmax-new-tokens = 12\nthreads = 1\n"
    "warmup-steps = 80\nwarmup-batch = 32\nsteps = 3\nprompts = 8\ngroup = 8\nslots = 16\n"
    "updates = 2\nepochs = 2\nlr = 1e-3\nlr-warmup = 0\ncheckpoint-every = 1\n"
    "eval-every = 2\neval-prompts = 12\neval-samples = 2\neval-k = 2\ndevice = cpu\n";

// ---------------------------------------------------------------------------------------------
// Files

static char* at_home(const char* text, ...) __attribute__((format(printf, 1, 2)));
static char* at_home(const char* text, ...) {  // valid for the next 32 calls
    static char path[32][512];
    static int next;
    char* p = path[next++ % 32];
    int n = sprintf(p, "%s/", home);
    va_list args;
    va_start(args, text);
    vsnprintf(p + n, sizeof path[0] - (size_t)n, text, args);
    va_end(args);
    return p;
}

static char* read_whole(const char* path, size_t* bytes) {
    FILE* f = fopen(path, "rb");
    *bytes = 0;
    if (!f) return xprintf("%s", "");
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    char* text = xalloc(*bytes + 1, 1, path);
    *bytes = fread(text, 1, *bytes, f);
    fclose(f);
    return text;
}

static inline void write_whole(const char* path, const void* data, size_t bytes) {
    FILE* f = file_open(path, "wb");
    file_write(f, data, bytes, path);
    file_close(f, path);
}

// Equal, and not empty.
static inline int same_file(const char* a, const char* b) {
    size_t bytes_a, bytes_b;
    char *x = read_whole(a, &bytes_a), *y = read_whole(b, &bytes_b);
    int same = bytes_a > 0 && bytes_a == bytes_b && !memcmp(x, y, bytes_a);
    free(x);
    free(y);
    return same;
}

static inline int remove_one(const char* path, const struct stat* s, int type, struct FTW* place) {
    (void)s, (void)type, (void)place;
    return remove(path);
}

static inline void remove_tree(const char* path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

// The checkpoints of a run, complete ones: how many, and the newest of its steps (-1: none).
static inline int count_checkpoints(const char* out, int* newest) {
    char* path = at_home("%s/checkpoints", out);
    DIR* d = opendir(path);
    int n = 0, step;
    *newest = -1;
    for (struct dirent* e; d && (e = readdir(d));) {
        n += e->d_name[0] != '.';
        if (sscanf(e->d_name, "step-%d", &step) == 1 && step > *newest) *newest = step;
    }
    if (d) closedir(d);
    return n;
}

// ---------------------------------------------------------------------------------------------
// Starting the program. Flags are one text, split at blanks. --config BASE comes before them, but
// not for a run that is resumed: that has a config of its own.

typedef struct ended {
    int status;      // as waitpid gives it
    char err[2048];  // what it wrote to stderr
} ended;

static size_t file_limit;       // bytes a file of the next program may have; 0 = no limit
static void (*in_child)(void);  // called in the next program's process before it is started

static inline pid_t start(const char* flags) {
    char copy[4096], *argument[256] = {(char*)program, (char*)"--config", at_home("base")};
    int n = strstr(flags, "--resume --out") ? 1 : 3;
    snprintf(copy, sizeof copy, "%s", flags);
    for (char* p = strtok(copy, " "); p; p = strtok(NULL, " ")) argument[n++] = p;
    char *out = at_home("stdout"), *err = at_home("stderr");
    remove(out);
    fflush(stdout);
    pid_t child = fork();
    if (child) return child;
    // Started in the background, the test itself may have them ignored, and the program heeds that.
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGPIPE};
    for (int i = 0; i < 5; i++) signal(numbers[i], SIG_DFL);
    // Threads that spin while they wait would slow a busy machine down many times.
    setenv("OMP_WAIT_POLICY", "passive", 1);
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // what a refusal leaves behind is no leak
    struct rlimit limit = {file_limit, file_limit};
    if (file_limit) setrlimit(RLIMIT_FSIZE, &limit);
    int to = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int also = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(to, STDOUT_FILENO);
    dup2(also, STDERR_FILENO);
    if (in_child) in_child();
    execv(program, argument);
    _exit(127);
}

static inline void sleep_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

// Waits for it to end, for at most `ms`; 0 if it has not.
static inline int wait_at_most(pid_t child, int ms, ended* e) {
    double end = clock_seconds() + ms * 1e-3;
    pid_t found;
    while (!(found = waitpid(child, &e->status, WNOHANG)) && clock_seconds() < end) sleep_ms(1);
    size_t bytes;
    char* text = read_whole(at_home("stderr"), &bytes);
    snprintf(e->err, sizeof e->err, "%s", text);
    free(text);
    return found == child;
}

static inline ended wait_for(pid_t child) {
    ended e = {0};
    if (!wait_at_most(child, 120000, &e)) {
        kill(child, SIGKILL);
        waitpid(child, &e.status, 0);
        CHECK(0, "the program did not end");
    }
    return e;
}

static inline ended run(const char* text, ...) __attribute__((format(printf, 1, 2)));
static inline ended run(const char* text, ...) {
    char flags[4096];
    va_list args;
    va_start(args, text);
    vsnprintf(flags, sizeof flags, text, args);
    va_end(args);
    return wait_for(start(flags));
}

static inline int exit_code(const ended* e) {
    return WIFEXITED(e->status) ? WEXITSTATUS(e->status) : -1;
}

// A run with --out home/`out` that must end well.
static inline void good_run(const char* out, const char* flags) {
    ended e = run("--out %s %s", at_home("%s", out), flags);
    CHECK(exit_code(&e) == 0 && !*e.err, "%s: ended with %x, said \"%s\"", flags, e.status, e.err);
}

// It ended with status 1 and one sentence that holds `words`.
static inline void check_refused(const ended* e, const char* what, const char* words) {
    const char* line_end = strchr(e->err, '\n');
    CHECK(exit_code(e) == 1, "%s: ended with %x", what, e->status);
    CHECK(!strncmp(e->err, "train_gpt2_rl: ", 15), "%s: said \"%s\"", what, e->err);
    CHECK(line_end && !line_end[1], "%s: one line expected, got \"%s\"", what, e->err);
    CHECK(strstr(e->err, words), "%s: \"%s\" expected in \"%s\"", what, words, e->err);
}

// ---------------------------------------------------------------------------------------------
// log.jsonl

enum { FIELDS_MAX = 40 };

typedef struct line {
    char phase[16];
    int fields;
    char key[FIELDS_MAX][32];
    double value[FIELDS_MAX];  // NAN: null
} line;

typedef struct run_lines {
    line* line;
    int count;
} run_lines;

// One flat object: a string for `phase`, numbers and nulls for everything else. Returns what
// follows it, or NULL.
static inline const char* read_line(const char* p, line* l) {
    memset(l, 0, sizeof *l);
    if (*p++ != '{') return NULL;
    do {
        int i = l->fields, n = 0;
        if (i == FIELDS_MAX || sscanf(p, "\"%31[a-z0-9_]\":%n", l->key[i], &n) != 1 || !n)
            return NULL;
        p += n;
        n = 0;
        if (!strcmp(l->key[i], "phase")) {
            if (sscanf(p, "\"%15[a-z]\"%n", l->phase, &n) != 1 || !n) return NULL;
            p += n;
            continue;
        }
        char* end = (char*)p + 4;
        l->value[i] = strncmp(p, "null", 4) ? strtod(p, &end) : NAN;
        if (end == p || (*p != '-' && *p != 'n' && (*p < '0' || *p > '9'))) return NULL;
        p = end;
        l->fields++;
    } while (*p++ == ',');
    return p[-1] == '}' && *p == '\n' ? p + 1 : NULL;
}

static inline run_lines read_log(const char* out) {
    size_t bytes;
    char* text = read_whole(at_home("%s/log.jsonl", out), &bytes);
    run_lines log = {NULL, 0};
    log.line = xalloc(bytes / 40 + 1, sizeof *log.line, "a log");
    for (const char* p = text; p && *p;) {
        const char* next = read_line(p, &log.line[log.count]);
        CHECK(next, "%s: line %d of the log: %.80s", out, log.count + 1, p);
        log.count += next != NULL;
        p = next;
    }
    free(text);
    return log;
}

static inline double value_of(const line* l, const char* key) {
    for (int i = 0; i < l->fields; i++)
        if (!strcmp(l->key[i], key)) return l->value[i];
    CHECK(0, "a line of phase %s has no %s", l->phase, key);
    return NAN;
}

// Line number n (from 0; -1: the last) of a phase.
static inline const line* nth(const run_lines* log, const char* phase, int n) {
    const line* found = NULL;
    for (int i = 0; i < log->count; i++)
        if (!strcmp(log->line[i].phase, phase)) {
            found = &log->line[i];
            if (n-- == 0) return found;
        }
    CHECK(found && n < 0, "the log has no line %d of phase %s", n, phase);
    static const line nothing;
    return found ? found : &nothing;
}

static inline int count_lines(const run_lines* log, const char* phase) {
    int n = 0;
    for (int i = 0; i < log->count; i++) n += !strcmp(log->line[i].phase, phase);
    return n;
}

// The first field from `i` on that depends neither on the clock nor on the number of ranks, nor on
// slots and pages if `slots`.
static inline int field_from(const line* l, int i, int slots) {
    static const char* const keys[] = {"time",      "tokens_per_s",   "sent",
                                       "occupancy", "prefill_tokens", "preemptions"};
    for (int k = 0; i < l->fields && k < (slots ? 6 : 3); k++)
        if (!strcmp(l->key[i], keys[k])) i++, k = -1;
    return i;
}

// Equal but for these fields.
static inline int same_line(const line* a, const line* b, int slots) {
    int i = field_from(a, 0, slots), j = field_from(b, 0, slots);
    if (strcmp(a->phase, b->phase)) return 0;
    while (i < a->fields && j < b->fields) {
        if (strcmp(a->key[i], b->key[j])) return 0;
        if (memcmp(&a->value[i], &b->value[j], sizeof(double))) return 0;
        i = field_from(a, i + 1, slots), j = field_from(b, j + 1, slots);
    }
    return i == a->fields && j == b->fields;
}

// Without what the ranks did, which the last lines say.
static inline run_lines read_log_of_all(const char* out) {
    run_lines log = read_log(out);
    while (log.count && !strcmp(log.line[log.count - 1].phase, "rank")) log.count--;
    return log;
}

static inline int same_log(const char* a, const char* b, int slots) {
    run_lines x = read_log_of_all(a), y = read_log_of_all(b);
    int same = x.count == y.count && x.count > 0;
    for (int i = 0; same && i < x.count; i++) same = same_line(&x.line[i], &y.line[i], slots);
    free(x.line);
    free(y.line);
    return same;
}

// ---------------------------------------------------------------------------------------------
// Comparing runs

// Launchers of ranks, and whether one is there and starts two processes.
static const char OPEN_MPI[] = "mpirun.openmpi --allow-run-as-root --oversubscribe";
static const char MPICH[] = "mpirun.mpich";
static inline int launches(const char* launcher) {
    char* shell = xprintf("%s -np 2 true >%s 2>&1", launcher, at_home("said"));
    int status = system(shell);
    free(shell);
    if (status) printf("%s does not start: its ranks are not tested\n", launcher);
    return status == 0;
}

// From now on `program` is `one_process` started as so many ranks (1: as one process), each of
// which leaves its process number in home/pid.RANK.
static inline void use_ranks(const char* one_process, const char* launcher, int size) {
    static char script[512];
    program = one_process;
    if (size == 1) return;
    snprintf(script, sizeof script, "%s", at_home("ranks"));
    char* text = xprintf(
        "#!/bin/sh\nrm -f %s/pid.*\n"
        "exec %s -np %d /bin/sh -c '"
        "echo $$ >%s/pid.$OMPI_COMM_WORLD_RANK$PMI_RANK; exec %s \"$@\"' sh \"$@\"\n",
        home, launcher, size, home, one_process);
    write_whole(script, text, strlen(text));
    chmod(script, 0755);
    free(text);
    program = script;
}

static char* checkpoint_file(const char* out, const char* name) {
    int newest;
    count_checkpoints(out, &newest);
    return at_home("%s/checkpoints/step-%06d/%s", out, newest, name);
}

// The weights of a model file, or of a model's folder.
static inline char* checkpoint_weights(const char* out) {
    char* file = checkpoint_file(out, "model.bin");
    return file_size(file) >= 0 ? file : checkpoint_file(out, "model/model.safetensors");
}

static inline int same_model(const char* a, const char* b) {
    return same_file(checkpoint_weights(a), checkpoint_weights(b));
}

static inline void check_same_run(const char* a, const char* b, const char* what, int slots) {
    CHECK(same_model(a, b), "%s: the model", what);
    CHECK(same_file(checkpoint_file(a, "state.bin"), checkpoint_file(b, "state.bin")),
          "%s: the state", what);
    CHECK(same_log(a, b, slots), "%s: the log", what);
    CHECK(same_file(at_home("%s/samples.jsonl", a), at_home("%s/samples.jsonl", b)),
          "%s: the samples", what);
}

// The run that others are compared with.
static inline void make_base_run(void) { good_run("base_run", ""); }

// ---------------------------------------------------------------------------------------------
// Stopping and resuming

static inline int has_ended(pid_t child) {
    siginfo_t s = {0};
    return waitid(P_PID, (id_t)child, &s, WEXITED | WNOHANG | WNOWAIT) || s.si_pid == child;
}

// Waits until the log of a run holds so many lines of `phase` and this step; 0 if it ended before.
static inline int wait_for_lines(pid_t child, const char* out, const char* phase, int step,
                                 int count) {
    char *path = at_home("%s/log.jsonl", out), start[64];
    snprintf(start, sizeof start, "{\"phase\":\"%s\",\"step\":%d,", phase, step);
    for (int i = 0; i < 60000; i++) {
        size_t bytes;
        int over = has_ended(child), found = 0;
        char* text = read_whole(path, &bytes);
        for (char* p = text; (p = strstr(p, start)); p++) found++;
        free(text);
        if (found >= count || over) return found >= count;
        sleep_ms(1);
    }
    return 0;
}

static inline int wait_for_line(pid_t child, const char* out, const char* phase, int step) {
    return wait_for_lines(child, out, phase, step, 1);
}

// Waits until a file is there; 0 if the program ended before.
static inline int wait_for_file(pid_t child, const char* path) {
    for (int i = 0; i < 60000; i++) {
        int over = has_ended(child), there = access(path, F_OK) == 0;
        if (there || over) return there;
        sleep_ms(1);
    }
    return 0;
}

// Starts a run and sends a signal as soon as its log holds that line. On a machine that is busy
// enough it may end before the signal comes: then once more.
static inline void signal_at(const char* out, const char* flags, const char* phase, int step,
                             int number) {
    ended e = {0};
    for (int attempt = 0; attempt < 30; attempt++) {
        char all[1024];
        remove_tree(at_home("%s", out));
        snprintf(all, sizeof all, "--out %s %s", at_home("%s", out), flags);
        pid_t child = start(all);
        wait_for_line(child, out, phase, step);
        kill(child, number);
        e = wait_for(child);
        if (exit_code(&e) != 0) break;
    }
    CHECK(exit_code(&e) == 128 + number && !*e.err, "signal %d: %x, \"%s\"", number, e.status,
          e.err);
}

static inline void interrupt_at(const char* out, const char* flags, const char* phase, int step) {
    signal_at(out, flags, phase, step, SIGINT);
}

static inline void resume(const char* out, const char* flags) {
    ended e = run("--resume --out %s %s", at_home("%s", out), flags);
    CHECK(exit_code(&e) == 0 && !*e.err, "%s, resumed: ended with %x, said \"%s\"", out, e.status,
          e.err);
}

static inline void check_resumed(const char* out, const char* expected, const char* flags) {
    resume(out, flags);
    check_same_run(out, expected, out, strstr(flags, "slots") != NULL);
}

// ---------------------------------------------------------------------------------------------

// 0 if there is no program to run.
static inline int begin_runs(void) {
    if (getenv("TRAIN_GPT2_RL")) program = getenv("TRAIN_GPT2_RL");
    if (access(program, X_OK) || !mkdtemp(home)) {
        printf("%s cannot be run: make it first, or name it with TRAIN_GPT2_RL\n", program);
        return 0;
    }
    write_whole(at_home("base"), BASE, strlen(BASE));
    return 1;
}

static inline void end_runs(void) { remove_tree(home); }

#endif
