// command: whatever the user's program does, every batch ends in time, each number goes to its own
// response, what is missing is counted, and no process, zombie or descriptor stays behind.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/numerics.h"
#include "refusal.h"
#include "text/command.h"

#define WORDS (const char* [REFUSAL_WORDS])
enum { MOST = 600 };

static const problem QUESTION = {.prompt = "1+1=", .answer = "2"};
static graded items[MOST];
static double score[MOST];
static double seconds;  // of the last batch

static void set_items(const char* response) {
    for (int i = 0; i < MOST; i++) items[i] = (graded){&QUESTION, response, 1};
}

static command* open_with(const char* line, int workers, double timeout) {
    return command_open(&(command_config){line, workers, timeout, 0});
}

static reward_counts grade(command* c, int n) {
    double start = clock_seconds();
    for (int i = 0; i < MOST; i++) score[i] = -77;
    reward_counts counts = command_grade(c, items, n, score);
    seconds = clock_seconds() - start;
    for (int i = n; i < MOST; i++) CHECK(score[i] == -77, "number %d of %d was written", i, n);
    int none = 0;
    for (int i = 0; i < n; i++) none += isnan(score[i]);
    CHECK(none == counts.crashed + counts.timed_out + counts.malformed,
          "%d numbers are missing, counted are %d + %d + %d", none, (int)counts.crashed,
          (int)counts.timed_out, (int)counts.malformed);
    return counts;
}

static void check_counts(const char* what, reward_counts c, int crashed, int timed_out,
                         int malformed, int extra) {
    CHECK(c.crashed == crashed && c.timed_out == timed_out && c.malformed == malformed &&
              c.extra == extra,
          "%s: crashed %d, timed out %d, malformed %d, extra %d", what, (int)c.crashed,
          (int)c.timed_out, (int)c.malformed, (int)c.extra);
}

static void check_score(const char* what, int i, double expected) {
    CHECK(score[i] == expected || (isnan(expected) && isnan(score[i])),
          "%s: number %d is %g, expected %g", what, i, score[i], expected);
}

static void wait_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static int is_alive(pid_t pid) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE* f = fopen(path, "r");
    if (!f) return 0;
    const char* end = fgets(text, sizeof text, f) ? strrchr(text, ')') : NULL;
    fclose(f);
    return end && end[1] == ' ' && end[2] != 'Z' && end[2] != 'X';
}

static int dies(pid_t pid) {
    for (int i = 0; i < 200 && is_alive(pid); i++) wait_ms(10);
    return !is_alive(pid);
}

// ---------------------------------------------------------------------------------------------

static void test_numbers(void) {
    // A program sees each line, and its number goes to the response of that line.
    static const char* const responses[] = {"a", "bbbb", "", "cc"};
    command* c = open_with("while IFS= read -r l; do echo ${#l}; done", 2, 20);
    set_items("x");
    int bare = (int)strlen("{\"prompt\": \"1+1=\", \"response\": \"\", \"answer\": \"2\"}");
    for (int batch = 0; batch < 3; batch++) {
        for (int i = 0; i < 40; i++) items[i].response = responses[(i * 7 + batch) % 4];
        check_counts("lengths", grade(c, 40), 0, 0, 0, 0);
        for (int i = 0; i < 40; i++)
            check_score("lengths", i, bare + (int)strlen(items[i].response));
    }
    check_counts("an empty batch", grade(c, 0), 0, 0, 0, 0);
    check_counts("one response, two workers", grade(c, 1), 0, 0, 0, 0);
    command_free(c);
}

static void test_json(void) {
    static const struct {
        const char *prompt, *response, *answer, *expected;
    } rows[] = {
        {"p", "r", "a", "{\"prompt\": \"p\", \"response\": \"r\", \"answer\": \"a\"}"},
        {"p", "", NULL, "{\"prompt\": \"p\", \"response\": \"\", \"answer\": null}"},
        {"\"\\/", "\n\t\x01\x7f", "\xc3\xa9\xf0\x9f\x98\x80",
         "{\"prompt\": \"\\\"\\\\/\", \"response\": \"\\u000a\\u0009\\u0001\\u007f\", \"answer\": "
         "\"\xc3\xa9\xf0\x9f\x98\x80\"}"},
        {"p", "\xff\xc3(\xed\xa0\x80", "",
         "{\"prompt\": \"p\", \"response\": \"\\ufffd\\ufffd(\\ufffd\\ufffd\\ufffd\", \"answer\": "
         "\"\"}"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        setenv("EXPECTED", rows[i].expected, 1);
        problem p = {.prompt = rows[i].prompt, .answer = rows[i].answer};
        items[0] = (graded){&p, rows[i].response, 1};
        command* c = open_with(
            "while IFS= read -r l; do if [ \"$l\" = \"$EXPECTED\" ]; then echo 1; else echo 0; "
            "fi; done",
            1, 20);
        grade(c, 1);
        CHECK(score[0] == 1, "%s was not what the program read", rows[i].expected);
        command_free(c);
    }
}

static void test_malformed(void) {
    static const struct {
        const char* line;
        double number;
    } rows[] = {{"1", 1},         {"-0.25", -0.25}, {"+2", 2},          {"1e-3", 1e-3},
                {".5", .5},       {"  7\t ", 7},    {"8\r", 8},         {"1e30", 1e30},
                {"1e-400", 0},    {"", NAN},        {" ", NAN},         {"nan", NAN},
                {"NaN", NAN},     {"inf", NAN},     {"-Infinity", NAN}, {"1.1e30", NAN},
                {"0x10", NAN},    {"1 2", NAN},     {"1,5", NAN},       {"one", NAN},
                {"1x", NAN},      {"--1", NAN},     {"1e", NAN},        {"{\"score\": 1}", NAN},
                {"\xff\xfe", NAN}};
    enum { ROWS = sizeof rows / sizeof *rows };
    char path[64];
    snprintf(path, sizeof path, "/tmp/test_command.%d", (int)getpid());
    FILE* f = file_open(path, "w");
    int malformed = 3;
    for (int i = 0; i < ROWS; i++) {
        fprintf(f, "%s\n", rows[i].line);
        malformed += isnan(rows[i].number);
    }
    fprintf(f, "1%c2\n1%c\n%0600d1\n9\n", 0, 0, 0);  // zeros, a line that is too long, a good one
    file_close(f, path);
    char* line = xprintf("read -r l; cat %s; while read -r l; do :; done", path);
    command* c = open_with(line, 1, 20);
    set_items("x");
    check_counts("malformed", grade(c, ROWS + 4), 0, 0, malformed, 0);
    for (int i = 0; i < ROWS; i++) check_score(rows[i].line, i, rows[i].number);
    check_score("after them", ROWS + 3, 9);
    command_free(c);
    free(line);
    unlink(path);
}

static void test_crash(void) {
    static const char* const ways[] = {
        "exit 3",           "exit 0", "kill -9 $$", "exec 1>&-; sleep 60", "printf 0.5; exit 1",
        "sleep 60 & exit 1"};
    set_items("x");
    for (int i = 0; i < 6; i++) {
        char* line = xprintf(
            "n=0; while read -r l; do n=$((n+1)); if [ $n = 4 ]; then %s; fi; echo $n; done",
            ways[i]);
        command* c = open_with(line, 2, 20);
        for (int batch = 0; batch < 2; batch++) {  // the second one has new workers
            check_counts(ways[i], grade(c, 12), 6, 0, 0, 0);
            for (int k = 0; k < 12; k++) check_score(ways[i], k, k < 6 ? 1 + k / 2 : NAN);
            CHECK(seconds < 5, "%s took %g s", ways[i], seconds);
        }
        command_free(c);
        free(line);
    }
    // One worker crashes, the others are not concerned.
    command* c =
        open_with("while read -r l; do case $l in *bad*) exit 1;; esac; echo 1; done", 3, 20);
    set_items("good");
    items[4].response = "bad";
    check_counts("one of three", grade(c, 12), 3, 0, 0, 0);
    for (int k = 0; k < 12; k++) check_score("one of three", k, k % 3 == 1 && k > 1 ? NAN : 1);
    items[4].response = "good";
    check_counts("and then none", grade(c, 12), 0, 0, 0, 0);
    // A program that ends between two batches is started anew.
    command_free(c);
    c = open_with("read -r l; echo 5", 1, 20);
    for (int batch = 0; batch < 3; batch++) {
        check_counts("one line", grade(c, 1), 0, 0, 0, 0);
        check_score("one line", 0, 5);
        wait_ms(200);
    }
    command_free(c);
}

static void test_timeout(void) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/test_command.%d", (int)getpid());
    char* line = xprintf("while read -r l; do echo 1; sleep 60 & echo $! >%s; wait; done", path);
    command* c = open_with(line, 1, 0.3);
    set_items("x");
    for (int batch = 0; batch < 2; batch++) {
        check_counts("sleep", grade(c, 5), 0, 4, 0, 0);
        check_score("sleep", 0, 1);
        CHECK(seconds >= 0.3 && seconds < 3, "a batch of 0.3 s took %g s", seconds);
        int pid = 0;
        FILE* f = fopen(path, "r");
        CHECK(f && fscanf(f, "%d", &pid) == 1, "the number of the sleeping process");
        if (f) fclose(f);
        CHECK(pid && dies(pid), "process %d, which a late worker started, goes on", pid);
    }
    command_free(c);
    free(line);
    unlink(path);
    c = open_with("while :; do sleep 60; done", 2, 0.2);  // neither reads nor writes
    set_items("x");
    check_counts("deaf", grade(c, 100), 0, 100, 0, 0);
    command_free(c);
    c = open_with("trap '' TERM INT HUP PIPE; while read -r l; do :; done; sleep 60", 1, 0.2);
    check_counts("mute", grade(c, 10), 0, 10, 0, 0);
    double start = clock_seconds();
    command_free(c);
    CHECK(clock_seconds() - start < 5, "closing took %g s", clock_seconds() - start);
    c = open_with("read -r l; exec cat /dev/zero", 1, 0.3);  // writes without end, and no line
    check_counts("without end", grade(c, 3), 0, 3, 0, 0);
    command_free(c);
    c = open_with("while read -r l; do echo 1; done", 2, 0.4);  // fast, and given more time later
    for (int batch = 0; batch < 3; batch++) {
        check_counts("fast", grade(c, 20), 0, 0, 0, 0);
        wait_ms(300);
    }
    command_free(c);
}

static void test_extra(void) {
    set_items("x");
    command* c = open_with("while read -r l; do printf '1\\n1\\n'; done", 1, 20);
    check_counts("two numbers a line", grade(c, 1), 0, 0, 1, 1);
    command_free(c);
    c = open_with("while read -r l; do echo 1; sleep 0.1; echo 2; done", 1, 20);
    check_counts("one later", grade(c, 1), 0, 0, 0, 0);
    wait_ms(300);
    check_counts("it shows", grade(c, 1), 0, 0, 0, 1);
    check_score("a new worker", 0, 1);
    command_free(c);
}

// Much more than a pipe holds, in both directions.
static void test_full_pipes(void) {
    enum { BYTES = 10000 };
    char* text = xalloc(BYTES + 1, 1, "a test");
    memset(text, 'x', BYTES);
    set_items(text);
    command* c = open_with("sed -u 's/.*/1/'", 2, 60);
    check_counts("6 MB in", grade(c, MOST), 0, 0, 0, 0);
    for (int i = 0; i < MOST; i++) check_score("6 MB in", i, 1);
    command_free(c);
    c = open_with("cat", 2, 60);
    check_counts("6 MB in and out", grade(c, MOST), 0, 0, MOST, 0);
    CHECK(seconds < 30, "6 MB took %g s", seconds);
    command_free(c);
    // It writes all its numbers first and reads later, or never.
    c = open_with(
        "read -r l; i=0; while [ $i -lt 600 ]; do echo $i; i=$((i+1)); done; exec cat >/dev/null",
        1, 60);
    check_counts("numbers first", grade(c, MOST), 0, 0, 0, 0);
    check_score("numbers first", 599, 599);
    command_free(c);
    c = open_with(
        "read -r l; exec <&-; i=0; while [ $i -lt 600 ]; do echo $i; i=$((i+1)); done; sleep 9", 1,
        60);
    check_counts("input closed", grade(c, MOST), 0, 0, 0, 0);
    command_free(c);
    free(text);
}

static int inherited(void) {
    int count = 0;
    DIR* d = opendir("/proc/self/fd");
    if (!d) return -1;
    for (struct dirent* e; (e = readdir(d));) {
        int fd = atoi(e->d_name), flags = e->d_name[0] == '.' ? -1 : fcntl(fd, F_GETFD);
        count += flags >= 0 && !(flags & FD_CLOEXEC);
    }
    closedir(d);
    return count;
}

static int descriptors(void) {
    int count = 0;
    DIR* d = opendir("/proc/self/fd");
    if (!d) return -1;
    while (readdir(d)) count++;
    closedir(d);
    return count;
}

static void test_processes(void) {
    int before = descriptors(), expected = inherited();
    set_items("x");
    // The workers are processes of their own and stay; each is in a group of its own.
    command* c = open_with("while read -r l; do echo $$; done", 3, 20);
    double pid[3];
    for (int batch = 0; batch < 2; batch++) {
        check_counts("numbers of processes", grade(c, 9), 0, 0, 0, 0);
        for (int i = 0; i < 9; i++) {
            if (batch == 0 && i < 3) pid[i] = score[i];
            check_score("the worker of a response", i, pid[i % 3]);
        }
    }
    for (int i = 0; i < 3; i++) {
        CHECK(pid[i] != pid[(i + 1) % 3], "two workers are one");
        CHECK(getpgid((pid_t)pid[i]) == (pid_t)pid[i], "worker %g is in group %d", pid[i],
              (int)getpgid((pid_t)pid[i]));
    }
    command_free(c);
    for (int i = 0; i < 3; i++) CHECK(!is_alive((pid_t)pid[i]), "worker %g is alive", pid[i]);
    // They have no descriptors but those of this process that go to any child.
    c = open_with("while read -r l; do set -- /proc/$$/fd/*; echo $#; done", 3, 20);
    grade(c, 3);
    for (int i = 0; i < 3; i++) check_score("descriptors of a worker", i, expected + 1);  // and *
    command_free(c);
    c = open_with("while read -r l; do echo ${PYTHONUNBUFFERED}; done", 1, 20);
    grade(c, 1);
    check_score("PYTHONUNBUFFERED", 0, 1);
    command_free(c);
    // SIGPIPE is ignored here and not there: a loop that writes ends when its reader does.
    c = open_with(
        "while read -r l; do while :; do echo y; done 2>/dev/null | head -n 1 >/dev/null; echo 1; "
        "done",
        1, 5);
    grade(c, 1);
    check_score("a pipe in the program", 0, 1);
    command_free(c);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a process is left behind");
    CHECK(descriptors() == before, "%d descriptors, and %d before", descriptors(), before);
}

static void refused_child(const void* line) { command_free(open_with(line, 2, 20)); }

static void test_refusals(void) {
    static const char* const rows[][2] = {
        {"/no/such/program --x", "cannot be started (status 127)"},
        {"/etc/passwd", "cannot be started (status 126)"},
        {"exec /dev/null", "cannot be started (status 126)"},
        {"exit 0", "ended (status 0) before it was given a line"},
        {"exit 5", "ended (status 5)"},
        {"kill -9 $$", "ended (signal 9)"},
        {"echo ready; cat", "wrote before it was given a line"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char* quiet = xprintf("exec 2>/dev/null; %s", rows[i][0]);
        check_refusal(refused_child, quiet, rows[i][0], WORDS{"--reward-cmd", rows[i][1], "; "});
        free(quiet);
    }
}

static void stderr_child(const void* unused) {
    (void)unused;
    set_items("x");
    command* c = open_with("while read -r l; do echo heard >&2; echo 1; done", 1, 20);
    grade(c, 1);
    command_free(c);
}

static void test_stderr(void) {
    child_result r = child_run(STDERR_FILENO, stderr_child, NULL);
    CHECK(!strcmp(r.text, "heard\n"), "standard error is \"%s\"", r.text);
}

// A program without standard input and output has pipes above them all the same.
static void test_closed(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(STDIN_FILENO);
        close(STDOUT_FILENO);
        set_items("x");
        command* c = open_with("while read -r l; do echo 1; done", 2, 20);
        command_grade(c, items, 4, score);
        command_free(c);
        _exit(score[0] == 1 && score[3] == 1 ? 0 : 3);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "without standard input and output: %x", status);
}

// Workers end with a parent that is killed, even one that does not read.
static void test_orphans(void) {
#ifdef __linux__
    int ends[2];
    CHECK(!pipe(ends), "a pipe");
    pid_t child = fork();
    if (child == 0) {
        set_items("x");
        command* c = open_with("read -r l; echo $$; exec sleep 60", 1, 20);
        grade(c, 1);
        if (write(ends[1], score, sizeof *score) < 0) _exit(1);
        kill(getpid(), SIGKILL);
    }
    double pid = 0;
    CHECK(read(ends[0], &pid, sizeof pid) == sizeof pid && pid > 1, "the worker's number");
    waitpid(child, NULL, 0);
    CHECK(dies((pid_t)pid), "worker %g outlives its parent", pid);
    close(ends[0]);
    close(ends[1]);
#endif
}

// Programs that do one of ten things for each line, by chance: the sums of grade() hold.
static void test_any(void) {
    static const char* const acts[] = {"echo 1",     "echo 1",  "echo 1",   "echo 1",
                                       "echo x",     "exit 1",  "sleep 60", "echo 1; echo 2",
                                       "kill -9 $$", "printf 1"};
    rng r = rng_at(3, STREAM_INIT, 0, 0);
    for (int i = 0; i < 12; i++) {
        const char* a[4];
        for (int k = 0; k < 4; k++) a[k] = acts[rng_below(&r, 10)];
        char* line = xprintf(
            "n=0; while read -r l; do n=$((n+1)); case $n in 1) %s;; 2) %s;; 3) %s;; *) %s;; esac; "
            "done",
            a[0], a[1], a[2], a[3]);
        command* c = open_with(line, 1 + (int)rng_below(&r, 3), 0.2);
        set_items("x");
        for (int batch = 0; batch < 3; batch++) {
            grade(c, (int)rng_below(&r, 20));
            CHECK(seconds < 3, "%s: %g s", line, seconds);
        }
        command_free(c);
        free(line);
    }
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a process is left behind");
}

int main(void) {
    unsetenv("PYTHONUNBUFFERED");
    alarm(300);  // a hang is a failure
    test_processes();
    test_numbers();
    test_json();
    test_malformed();
    test_crash();
    test_timeout();
    test_extra();
    test_full_pipes();
    test_refusals();
    test_stderr();
    test_closed();
    test_orphans();
    test_any();
    return test_report();
}
