// log: every line is valid JSON with the values that went in, whatever bytes they hold; killed and
// full-disk runs; the cut of a resumed run; the progress line on a pseudo-terminal.
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <signal.h>
#include <sys/ioctl.h>

#include "folder.h"
#include "refusal.h"
#include "run/log.h"

static char log_file[64], sample_file[64];

// ------------------------------------------------------------------------------------------------
// A JSON reader of its own (RFC 8259), for flat objects. Returns what follows the thing read, or
// NULL if there is none.

typedef struct field {
    char key[40];
    char text[512];  // of a string, decoded to UTF-8
    size_t text_bytes;
    double number;  // NaN for null
    int is_text;
} field;

static const char* read_string(const char* p, char* out, size_t* out_bytes) {
    size_t n = 0;
    if (*p++ != '"') return NULL;
    while (*p != '"') {
        unsigned char c = (unsigned char)*p++;
        if (c < 0x20) return NULL;
        if (c != '\\') {
            out[n++] = (char)c;
            continue;
        }
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char* known = *p ? strchr(from, *p) : NULL;
        if (known) {
            out[n++] = to[known - from];
            p++;
            continue;
        }
        unsigned code;
        int used = 0;
        if (*p++ != 'u' || strspn(p, "0123456789abcdefABCDEF") < 4) return NULL;
        if (sscanf(p, "%4x%n", &code, &used) != 1 || used != 4) return NULL;
        p += 4;
        if (code < 0x80) {
            out[n++] = (char)code;
        } else {  // the log writes one such escape, U+FFFD
            out[n++] = (char)(0xe0 | code >> 12);
            out[n++] = (char)(0x80 | (code >> 6 & 0x3f));
            out[n++] = (char)(0x80 | (code & 0x3f));
        }
    }
    out[n] = 0;
    *out_bytes = n;
    return p + 1;
}

// JSON's numbers are fewer than strtod's: no "inf", no hexadecimal, no leading zero or bare dot.
static const char* read_number(const char* p, double* out) {
    char* end;
    const char* q = p + (*p == '-');
    if (*q < '0' || *q > '9' || (*q == '0' && q[1] >= '0' && q[1] <= '9')) return NULL;
    size_t n = strspn(p, "+-0123456789.eE");
    const char* dot = memchr(p, '.', n);
    if (dot && (dot[1] < '0' || dot[1] > '9')) return NULL;
    *out = strtod(p, &end);
    return end == p + n ? end : NULL;
}

// One line, its newline included. Returns the number of fields, or -1 if it is not valid.
static int read_object(const char* p, field* fields, int capacity) {
    int n = 0;
    if (*p++ != '{') return -1;
    for (;; p++) {
        size_t key_bytes;
        if (n == capacity) return -1;
        field* f = &fields[n++];
        memset(f, 0, sizeof *f);
        p = read_string(p, f->key, &key_bytes);
        if (!p || *p++ != ':') return -1;
        f->is_text = *p == '"';
        if (f->is_text) {
            p = read_string(p, f->text, &f->text_bytes);
        } else if (!strncmp(p, "null", 4)) {
            f->number = NAN;
            p += 4;
        } else {
            p = read_number(p, &f->number);
        }
        if (!p) return -1;
        if (*p != ',') break;
    }
    return !strcmp(p, "}\n") ? n : -1;
}

static const field* find_field(const field* fields, int n, const char* key) {
    static const field none = {.text = "(no such field)", .number = -12345};
    for (int i = 0; i < n; i++)
        if (!strcmp(fields[i].key, key)) return &fields[i];
    return &none;
}

static const char* read_file(const char* path) {
    static char text[1 << 16];
    FILE* f = file_open(path, "r");
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    file_close(f, path);
    return text;
}

static void remove_files(void) {
    unlink(log_file);
    unlink(sample_file);
}

// ------------------------------------------------------------------------------------------------

static void test_lines(void) {
    static const double values[] = {0,    -0.0,      1.0 / 3, 5e-324,   DBL_MAX,
                                    1e15, 0x1p53,    1e22,    0.1,      -2.5,
                                    1e-6, 123456789, NAN,     INFINITY, -INFINITY};
    enum { VALUES = sizeof values / sizeof *values };
    run_log* l = log_open(folder, 100);
    log_begin(l, "update", 3);
    char key[16];
    for (int i = 0; i < VALUES; i++) {
        snprintf(key, sizeof key, "v%d", i);
        log_number(l, key, values[i]);
    }
    CHECK(file_size(log_file) == 0, "nothing is written before the line is complete");
    log_end(l);
    const char* text = read_file(log_file);  // the log is still open
    static field f[VALUES + 3];
    CHECK(read_object(text, f, VALUES + 3) == VALUES + 3, "not a JSON line: %s", text);
    CHECK(!strncmp(text, "{\"phase\":\"update\",\"step\":3,\"time\":100.0", 38), "it opens: %s",
          text);
    CHECK(strspn(strstr(text, "\"time\":") + 7, "0123456789.") == 7, "milliseconds in %s", text);
    for (int i = 0; i < VALUES; i++) {
        double expected = isfinite(values[i]) ? values[i] : NAN, got = f[i + 3].number;
        snprintf(key, sizeof key, "v%d", i);
        CHECK(!strcmp(f[i + 3].key, key), "field %d is %s", i, f[i + 3].key);
        CHECK(isnan(expected) ? isnan(got) : !memcmp(&got, &expected, 8), "v%d is %.17g not %.17g",
              i, got, expected);
    }
    CHECK(strstr(text, "\"v5\":1000000000000000,"), "whole numbers have no exponent: %s", text);
    CHECK(strstr(text, "\"v8\":0.1,"), "0.1 is written so: %s", text);
    CHECK(strstr(text, "\"v12\":null,"), "NaN is null: %s", text);
    log_close(l);

    l = log_open(folder, 0);  // appends
    log_begin(l, "eval", -1);
    log_end(l);
    log_close(l);
    const char* second = strchr(read_file(log_file), '\n') + 1;
    CHECK(read_object(second, f, 3) == 3, "not a JSON line: %s", second);
    CHECK(!strcmp(f[0].text, "eval") && f[1].number == -1, "phase and step of %s", second);
    remove_files();
}

static void test_long_lines(void) {
    run_log* l = log_open(folder, 0);
    static field f[1003];
    log_begin(l, "rollout", 1);
    for (int i = 0; i < 1000; i++) {
        char key[40];
        snprintf(key, sizeof key, "a_rather_long_key_number_%d", i);
        log_number(l, key, i / 7.0);
    }
    log_end(l);
    log_close(l);
    CHECK(read_object(read_file(log_file), f, 1003) == 1003, "a line of a thousand fields");
    CHECK(f[1002].number == 999 / 7.0, "the last field is %.17g", f[1002].number);
    remove_files();
}

static void check_sample(const char* text, const char* expected) {
    run_log* l = log_open(folder, 0);
    log_sample(l, 7, 2, "a\"b\\c\n", text, 1, -0.25, NULL);
    log_close(l);
    static field f[6];
    const char* line = read_file(sample_file);
    CHECK(read_object(line, f, 6) == 6, "not a JSON line: %s", line);
    CHECK(find_field(f, 6, "step")->number == 7 && find_field(f, 6, "index")->number == 2, "%s",
          line);
    CHECK(find_field(f, 6, "reward")->number == 1 && find_field(f, 6, "advantage")->number == -0.25,
          "%s", line);
    CHECK(!strcmp(find_field(f, 6, "prompt")->text, "a\"b\\c\n"), "prompt of %s", line);
    CHECK(!strcmp(find_field(f, 6, "completion")->text, expected), "%s, expected %s", line,
          expected);
    remove_files();
}

#define BAD "\xef\xbf\xbd"  // U+FFFD

static void test_samples(void) {
    static const char* const same[] = {"",
                                       "7+8=15\n",
                                       "tab\tquote\"back\\slash/",
                                       "\x7f",
                                       "\xce\xbc \xe2\x82\xac \xf0\x9f\x98\x80",
                                       "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf",
                                       "\xc2\x80"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) check_sample(same[i], same[i]);
    char control[32];
    for (int i = 1; i < 32; i++) control[i - 1] = (char)i;
    control[31] = 0;
    check_sample(control, control);
    static const char* const broken[][2] = {
        {"a\xff"
         "b",
         "a" BAD "b"},                                   // no such byte
        {"\x80", BAD},                                   // continuation alone
        {"\xc3", BAD},                                   // cut off at the end
        {"\xe2\x82", BAD BAD},                           // the same, three bytes
        {"\xe2\x82x", BAD BAD "x"},                      // cut off by a letter
        {"\xc0\xaf", BAD BAD},                           // overlong '/'
        {"\xe0\x80\xaf", BAD BAD BAD},                   // overlong, three bytes
        {"\xf0\x80\x80\xaf", BAD BAD BAD BAD},           // overlong, four bytes
        {"\xed\xa0\x80", BAD BAD BAD},                   // a surrogate
        {"\xf4\x90\x80\x80", BAD BAD BAD BAD},           // beyond U+10FFFF
        {"\xf5\x80\x80\x80", BAD BAD BAD BAD},           // the same
        {"\xf8\x90\x80\x80", BAD BAD BAD BAD},           // a byte that opens nothing
        {"\xf8\x88\x80\x80\x80", BAD BAD BAD BAD BAD}};  // five bytes
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        check_sample(broken[i][0], broken[i][1]);
}

static void test_no_files(void) {
    run_log* l = log_open("", 12.5);
    log_begin(l, "update", 1);
    log_number(l, "loss", 1);
    log_end(l);
    log_sample(l, 1, 1, "p", "c", 1, 1, NULL);
    int64_t a = -1, b = -1;
    log_position(l, &a, &b);
    CHECK(a == 0 && b == 0, "positions without files");
    CHECK(log_elapsed(l) >= 12.5 && log_elapsed(l) < 60, "elapsed is %g", log_elapsed(l));
    log_close(l);
}

// Ends in the middle of a line, by fatal() or by a signal.
static void write_and_die(const void* how) {
    run_log* l = log_open(folder, 0);
    for (int i = 0; i < 100; i++) {
        log_begin(l, "update", i);
        log_number(l, "loss", i / 3.0);
        log_end(l);
        log_sample(l, i, 0, "prompt", "completion", 0, 0, NULL);
    }
    log_begin(l, "update", 100);
    log_number(l, "loss", 1);
    if (how) raise(SIGKILL);
    fatal("the end");
}

static void test_killed(void) {
    for (int kill = 0; kill < 2; kill++) {
        child_result r = child_run(STDERR_FILENO, write_and_die, kill ? "kill" : NULL);
        CHECK(kill ? WIFSIGNALED(r.status) : WEXITSTATUS(r.status) == 1, "ended %x", r.status);
        static field f[6];
        const char* files[] = {log_file, sample_file};
        for (int i = 0; i < 2; i++) {
            int lines = 0, bad = 0;
            char line[400];
            FILE* file = file_open(files[i], "r");
            for (; fgets(line, sizeof line, file); lines++) bad += read_object(line, f, 6) < 4;
            file_close(file, files[i]);
            CHECK(lines == 100 && !bad, "%s: %d lines, %d bad", files[i], lines, bad);
        }
        remove_files();
    }
}

static void write_line(const void* unused) {
    (void)unused;
    run_log* l = log_open(folder, 0);
    log_begin(l, "update", 1);
    log_end(l);
    _exit(0);  // without log_close: the failure must have shown by now
}

static void write_sample(const void* unused) {
    (void)unused;
    run_log* l = log_open(folder, 0);
    log_sample(l, 1, 1, "p", "c", 1, 1, NULL);
    _exit(0);
}

static void open_in_file(const void* unused) {
    (void)unused;
    log_open("/dev/null/run", 0);
}

static void test_write_failures(void) {
    if (file_size("/dev/full") < 0) return;
    CHECK(symlink("/dev/full", log_file) == 0, "symlink");
    check_refusal(write_line, NULL, "a full disk, log",
                  (const char* [REFUSAL_WORDS]){"cannot write", log_file, "No space left"});
    remove_files();
    CHECK(symlink("/dev/full", sample_file) == 0, "symlink");
    check_refusal(write_sample, NULL, "a full disk, samples",
                  (const char* [REFUSAL_WORDS]){"cannot write", sample_file, "No space left"});
    check_refusal(open_in_file, NULL, "a folder in a file",
                  (const char* [REFUSAL_WORDS]){"/dev/null"});
    remove_files();
}

static void cut_to(const void* sizes) {
    log_cut(folder, ((const int64_t*)sizes)[0], ((const int64_t*)sizes)[1]);
}

static void test_cut(void) {
    CHECK(log_cut(folder, 0, 0) == 0, "no files yet");
    CHECK(file_size(log_file) == -1, "a cut makes no file");
    int64_t at[4][2];
    run_log* l = log_open(folder, 100);
    for (int step = 0; step < 4; step++) {
        log_position(l, &at[step][0], &at[step][1]);
        log_begin(l, "update", step);
        log_end(l);
        log_sample(l, step, 0, "p", "c", 0, 0, NULL);
    }
    log_close(l);
    for (int i = 0; i < 4; i++) CHECK(at[i][0] == i, "%d lines", i);
    CHECK(at[3][1] > at[2][1], "samples grow");

    const int64_t too_long[2][2] = {{at[1][0], 100000}, {100000, at[1][1]}};
    int64_t before[2] = {file_size(log_file), file_size(sample_file)};
    for (int i = 0; i < 2; i++)
        check_refusal(cut_to, too_long[i], "a file that is too short",
                      (const char* [REFUSAL_WORDS]){i ? log_file : sample_file, "100000"});
    CHECK(file_size(log_file) == before[0] && file_size(sample_file) == before[1],
          "a refused cut touches neither file");

    FILE* f = file_open(log_file, "a");
    fprintf(f, "{\"phase\":\"update\",\"ste");  // a killed program leaves no such half, a disk may
    file_close(f, log_file);
    int64_t line = before[0] / 4;
    double time = log_cut(folder, at[2][0], at[2][1]);
    CHECK(file_size(log_file) / line == 2 && file_size(sample_file) == at[2][1], "sizes after");
    CHECK(time >= 100 && time < 160, "the last line's time is %g", time);
    log_cut(folder, at[2][0], at[2][1]);  // nothing to do
    l = log_open(folder, time);
    log_begin(l, "update", 2);
    log_end(l);
    int64_t log_lines, sample_bytes;
    log_position(l, &log_lines, &sample_bytes);
    CHECK(log_lines == 3 && sample_bytes == at[2][1], "the log goes on from the cut");
    log_close(l);
    remove_files();
    check_refusal(cut_to, at[1], "missing files",
                  (const char* [REFUSAL_WORDS]){log_file, "altered or removed"});
}

// ------------------------------------------------------------------------------------------------
// The console

static void print_and_progress(const void* unused) {
    (void)unused;
    run_log* l = log_open("", 0);
    log_print(l, "first %d", 1);
    for (int i = 0; i < 20; i++) log_progress(l, "rollout", 0.63, 41200.4, 12);
    log_print(l, "second");
    log_print(l, "third");
    log_close(l);
}

static void fail_in_progress(const void* unused) {
    (void)unused;
    dup2(STDOUT_FILENO, STDERR_FILENO);
    log_progress(log_open("", 0), "rollout", 0.5, NAN, NAN);
    fatal("the disk is full");
}

static void long_progress(const void* unused) {
    (void)unused;
    run_log* l = log_open("", 0);
    log_progress(l,
                 "a text that is longer than a line of eighty columns can hold, whatever follows",
                 0.5, 1000, 10);
    log_close(l);
}

static void progress_forms(const void* unused) {
    (void)unused;
    static const double forms[][3] = {{0, 7, 83},      {0.5, 999, 59.5}, {0.999, 1e6, 3683},
                                      {1, 1234567, 0}, {0.25, NAN, NAN}, {0.1, 12345, INFINITY},
                                      {0.2, -1, -1}};
    run_log* l = log_open("", 0);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        log_progress(l, "μ-phase", forms[i][0], forms[i][1], forms[i][2]);
        usleep(101000);
    }
    log_close(l);
}

// What `run` writes to a terminal of `columns` columns (0: one that does not say).
static const char* on_terminal(void (*run)(const void*), int columns) {
    static char text[8192];
    int master = posix_openpt(O_RDWR | O_NOCTTY), slave;
    if (master < 0 || grantpt(master) || unlockpt(master)) return NULL;
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    if (slave < 0) return NULL;
    struct winsize window = {.ws_col = (unsigned short)columns};
    ioctl(slave, TIOCSWINSZ, &window);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(master);
        dup2(slave, STDOUT_FILENO);
        close(slave);
        run(NULL);
        exit(0);
    }
    close(slave);
    size_t bytes = 0;
    ssize_t got;
    while ((got = read(master, text + bytes, sizeof text - 1 - bytes)) > 0) bytes += (size_t)got;
    text[bytes] = 0;
    waitpid(child, NULL, 0);
    close(master);
    return text;
}

static void test_pipe(void) {
    child_result r = child_run(STDOUT_FILENO, print_and_progress, NULL);
    CHECK(!strcmp(r.text, "first 1\nsecond\nthird\n"), "a pipe gets lines alone, not \"%s\"",
          r.text);
}

// The terminal driver turns \n into \r\n.
static void test_terminal(void) {
    unsetenv("TERM");
    const char* text = on_terminal(print_and_progress, 80);
    if (!text) {
        printf("no pseudo-terminal here: progress line not tested\n");
        return;
    }
    const char* line = "\r\033[Krollout  63 % · 41,200 tokens/s · 12 s left";
    const char* expected = "first 1\r\n%s\r\033[Ksecond\r\nthird\r\n";
    char whole[200];
    snprintf(whole, sizeof whole, expected, line);
    CHECK(!strcmp(text, whole), "one progress line, wiped by the next line, not \"%s\"", text);
    setenv("TERM", "dumb", 1);
    text = on_terminal(print_and_progress, 80);
    CHECK(!strcmp(text, "first 1\r\nsecond\r\nthird\r\n"), "a dumb terminal got \"%s\"", text);
    text = on_terminal(fail_in_progress, 80);
    CHECK(!strcmp(text, "train_gpt2_rl: the disk is full\r\n"), "a dumb terminal got \"%s\"", text);
    unsetenv("TERM");
    text = on_terminal(fail_in_progress, 80);
    CHECK(!strcmp(text, "\r\033[Krollout  50 %\r\033[Ktrain_gpt2_rl: the disk is full\r\n"),
          "an error wipes the progress line, not \"%s\"", text);
    text = on_terminal(long_progress, 0);
    CHECK(strlen(text) == 4 + 79 + 4, "80 columns if the terminal does not say, not \"%s\"", text);
    text = on_terminal(print_and_progress, 20);
    CHECK(!strcmp(text, "first 1\r\n\r\033[Krollout  63 % · 41,\r\033[Ksecond\r\nthird\r\n"),
          "19 of 20 columns, not \"%s\"", text);
    text = on_terminal(print_and_progress, 17);
    CHECK(strstr(text, "rollout  63 % · \r"), "a whole character at the cut, not \"%s\"", text);
}

static void test_progress_forms(void) {
    const char* text = on_terminal(progress_forms, 80);
    if (!text) return;
    static const char expected[] =
        "\r\033[Kμ-phase  0 % · 7 tokens/s · 1:23 left"
        "\r\033[Kμ-phase  50 % · 999 tokens/s · 1:00 left"
        "\r\033[Kμ-phase  100 % · 1,000,000 tokens/s · 1:01:23 left"
        "\r\033[Kμ-phase  100 % · 1,234,567 tokens/s · 0 s left"
        "\r\033[Kμ-phase  25 %"
        "\r\033[Kμ-phase  10 % · 12,345 tokens/s"
        "\r\033[Kμ-phase  20 %"
        "\r\033[K";
    CHECK(!strcmp(text, expected), "got \"%s\"", text);
}

// The highest pass@1 among the evaluations of a log, the first of equal ones.
static void test_best(void) {
    static const double pass1[] = {0.25, 0.5, 0.125, 0.5, 0.4375};
    double best = -1;
    remove(log_file);
    CHECK(log_best(folder, &best) == -1 && best == -1, "there is no log");
    run_log* l = log_open(folder, 0);
    for (int i = 0; i < 5; i++) {
        log_begin(l, "eval", 10 * i);
        log_number(l, "greedy", 0.9);
        log_number(l, "pass1", pass1[i]);
        log_number(l, "pass1_error", 0.75);
        log_end(l);
        log_begin(l, "update", 10 * i);
        log_number(l, "pass1", 0.875);
        log_end(l);
    }
    log_close(l);
    CHECK(log_best(folder, &best) == 10 && best == 0.5, "%g is the best", best);
    CHECK(log_best(folder, &best) == -1 && best == 0.5, "nothing is above it");
    remove(log_file);
    remove(sample_file);
}

int main(void) {
    folder_make(__FILE__);
    snprintf(log_file, sizeof log_file, "%s/log.jsonl", folder);
    snprintf(sample_file, sizeof sample_file, "%s/samples.jsonl", folder);
    test_lines();
    test_long_lines();
    test_samples();
    test_no_files();
    test_killed();
    test_write_failures();
    test_cut();
    test_best();
    test_pipe();
    test_terminal();
    test_progress_forms();
    folder_remove();
    return test_report();
}
