// log.jsonl: one object a line. `phase` says what it is about. Every line has `step` and `time`
// (seconds since the start of the run, to the millisecond); a number that is not finite is null.
//
//   phase     the other keys
//   warmup    loss, lr, grad_norm, tokens_per_s
//   sanity    once, with --sanity-samples: prompts (tried), kept, solved (mean share of right
//             completions, over all that were tried)
//   rollout   reward, reward_std, of --data the mean of each grader (reward_NAME; reward_NAME_2 if
//             it stands in --reward again), of --reward-cmd responses without a reward
//             (reward_crashed, reward_timed_out, reward_malformed) and lines too many
//             (reward_extra), response_length (mean, tokens), truncated (fraction of completions),
//             zero_std_groups (fraction of groups), with --overlong-buffer overlong_penalty (mean
//             that it adds to a reward, which `reward` leaves out), with --resample resampled
//             (groups drawn again) and first_reward (the mean before; what is drawn anew is not
//             in reward_NAME either), entropy (nats a token; with --sampler-cmd the mean of
//             -log mu, which estimates it), tokens, unless --sampler-cmd is given
//             prefill_tokens, with --kv-memory preemptions (of sequences that had to wait for
//             pages), occupancy (mean share of busy slots), tokens_per_s, of several ranks sent
//             (bytes that rank 0 sent until all had the rollout and its rewards)
//   numerics  the metrics of mismatch.c before the first update of the step; null where the
//             sampler's weights are older
//   correct   of --correct, over the rollout (correction.h): weight_mean, zeroed, truncated, ess
//   update    one line an optimizer step: index (within the step), loss (with its KL term and
//             entropy bonus), lr, grad_norm (before clipping), skipped (1: not finite, no update),
//             loss_scale (of this gradient; 1 where the formats need none), tokens (run forward, a
//             prompt once a group), trained_tokens (of these, those that also ran backward),
//             with --log-changes changed, changed_train, changed_rollout (shares of all weights
//             that the update changed, as the masters, the trainer's and the sampler's formats
//             hold them), tokens_per_s, of several ranks sent (bytes that rank 0 sent since the
//             line before that says so: with the rollout's they are those of the step), the metrics
//             of mismatch.c, masked and corrective (fractions of tokens), masked_mu (mean
//             probability of the masked tokens under the anchor; null if there are none), of a
//             mixture of experts unless --sampler-cmd is given routing_differs (fraction of tokens
//             and layers for which the trainer's router chooses other experts than the sampler
//             took) and expert_load (tokens of the sampler's busiest expert over the mean, mean
//             over layers)
//   eval      greedy, pass1, passk (fractions of prompts), pass1_error (standard error of pass1
//             over prompts; null if there is only one), k (with --eval-k 0 the largest power of
//             two, and pass2, pass4, ... of each), prompts, response_length, and of
//             --reward-cmd the four counts of a rollout line, over all its samples
//   rank      at the end, of several ranks, a line each: rank, sampled and trained (sequences, by
//             this process, evaluations and warm-up included), measured (tokens whose metrics it
//             computed: of all ranks only 0), sent (bytes), held (bytes of the device's memory)
//
// samples.jsonl, of the steps that --samples-every asks for: one object a line: step, index (of the
// completion within the step), prompt, completion (text), reward (the verifier's, as in log.jsonl),
// advantage (with k1 and with --overlong-buffer: of the reward less these penalties). With
// --log-tokens also three lists, an
// entry for each token of the completion, its end token included: token (ids), log_mu (the
// sampler's), log_pi (the trainer's, before the first update of the step); they read back to the
// same floats.
//
// The idea: a line grows in memory and goes to the file in one unbuffered write. Nothing that ends
// the program halfway through a line, fatal() included, can leave a part of it.
#include "log.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct line {
    char* text;  // not ended by a 0
    size_t bytes, capacity;
} line;

struct run_log {
    FILE *log, *samples;  // NULL: no files
    char *log_path, *sample_path;
    int64_t log_lines;  // of log.jsonl
    line entry;         // the object between log_begin and log_end
    FILE* copy;         // of the console's lines; NULL: none
    char* copy_path;
    double start;          // clock_seconds() when the run began, had it never been interrupted
    int silent;            // nothing is printed
    int terminal;          // stdout is one
    int progress;          // a progress line stands on it
    double progress_time;  // clock_seconds() of the last one
};

// ------------------------------------------------------------------------------------------------
// JSON

static void line_add(line* s, const char* text, size_t bytes) {
    if (s->bytes + bytes > s->capacity) {
        size_t capacity = 2 * (s->bytes + bytes) + 512;
        char* larger = xalloc(capacity, 1, "a line of the log");
        if (s->bytes) memcpy(larger, s->text, s->bytes);
        free(s->text);
        s->text = larger;
        s->capacity = capacity;
    }
    memcpy(s->text + s->bytes, text, bytes);
    s->bytes += bytes;
}

static void line_text(line* s, const char* text) { line_add(s, text, strlen(text)); }

static void line_number(line* s, double x) {
    char text[32] = "null";
    if (isfinite(x)) number_text(x, text);
    line_text(s, text);
}

static void line_string(line* s, const char* text) {
    line_text(s, "\"");
    while (*text) {
        int bytes = utf8_length(text);
        unsigned char c = (unsigned char)*text;
        char escape[8];
        if (!bytes) {
            line_text(s, "\\ufffd");
            bytes = 1;
        } else if (c == '"' || c == '\\') {
            line_add(s, (char[]){'\\', (char)c}, 2);
        } else if (c == '\n') {
            line_text(s, "\\n");
        } else if (c < ' ') {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            line_text(s, escape);
        } else {
            line_add(s, text, bytes);
        }
        text += bytes;
    }
    line_text(s, "\"");
}

// The shortest text that reads back to the same float.
static void line_float(line* s, float x) {
    char text[32] = "null";
    for (int digits = 6; isfinite(x) && digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    line_text(s, text);
}

// ,"key":
static void line_key(line* s, const char* key) {
    line_text(s, s->bytes > 1 ? "," : "");
    line_string(s, key);
    line_text(s, ":");
}

static void line_field(line* s, const char* key, double x) {
    line_key(s, key);
    line_number(s, x);
}

static void line_floats(line* s, const char* key, const float* x, int count) {
    line_key(s, key);
    line_text(s, "[");
    for (int i = 0; i < count; i++) {
        if (i) line_text(s, ",");
        line_float(s, x[i]);
    }
    line_text(s, "]");
}

static void line_tokens(line* s, const sample_tokens* t) {
    line_key(s, "token");
    line_text(s, "[");
    for (int i = 0; i < t->count; i++) {
        if (i) line_text(s, ",");
        line_number(s, t->id[i]);
    }
    line_text(s, "]");
    line_floats(s, "log_mu", t->log_mu, t->count);
    line_floats(s, "log_pi", t->log_pi, t->count);
}

static void line_begin(line* s) {
    s->bytes = 0;
    line_text(s, "{");
}

static void line_end(line* s, FILE* f, const char* path) {
    line_text(s, "}\n");
    if (f) file_write(f, s->text, s->bytes, path);
}

// ------------------------------------------------------------------------------------------------
// The files

static char* log_path(const char* directory) { return xprintf("%s/log.jsonl", directory); }
static char* sample_path(const char* directory) { return xprintf("%s/samples.jsonl", directory); }

// The whole lines at the start of a log, at most `most` of them.
typedef struct lines {
    int64_t count, bytes;
    double time;  // of the last one; 0 without one
} lines;

static lines read_lines(const char* path, int64_t most) {
    lines found = {0, 0, 0};
    struct stat s;
    if (stat(path, &s) || !S_ISREG(s.st_mode)) return found;
    FILE* f = file_open(path, "r");
    char *text = NULL, *last = NULL;
    size_t capacity = 0, last_capacity = 0;
    for (ssize_t bytes; found.count < most && (bytes = getline(&text, &capacity, f)) > 0;) {
        if (text[bytes - 1] != '\n') break;
        found.count++;
        found.bytes += bytes;
        char* swap = last;
        size_t swap_capacity = last_capacity;
        last = text, last_capacity = capacity;
        text = swap, capacity = swap_capacity;
    }
    const char* time = last ? strstr(last, "\"time\":") : NULL;
    if (time) found.time = strtod(time + strlen("\"time\":"), NULL);
    if (!(found.time > 0 && found.time < 1e12)) found.time = 0;
    free(text);
    free(last);
    file_close(f, path);
    return found;
}

static FILE* open_unbuffered(const char* path) {
    FILE* f = file_open(path, "a");
    setvbuf(f, NULL, _IONBF, 0);
    return f;
}

run_log* log_open(const char* directory, double elapsed) {
    run_log* l = xalloc(1, sizeof *l, "the log");
    l->start = clock_seconds() - elapsed;
    l->terminal = is_terminal(STDOUT_FILENO);
    l->progress_time = -1;
    if (!*directory) return l;
    dir_create(directory);
    l->log_path = log_path(directory);
    l->sample_path = sample_path(directory);
    l->log_lines = read_lines(l->log_path, INT64_MAX).count;
    l->log = open_unbuffered(l->log_path);
    l->samples = open_unbuffered(l->sample_path);
    return l;
}

run_log* log_open_silent(void) {
    run_log* l = log_open("", 0);
    l->silent = 1;
    l->terminal = 0;
    return l;
}

double log_elapsed(const run_log* l) { return clock_seconds() - l->start; }

void log_begin(run_log* l, const char* phase, int step) {
    line_begin(&l->entry);
    line_key(&l->entry, "phase");
    line_string(&l->entry, phase);
    log_number(l, "step", step);
    char time[32];
    snprintf(time, sizeof time, "%.3f", log_elapsed(l));
    line_key(&l->entry, "time");
    line_text(&l->entry, time);
}

void log_number(run_log* l, const char* key, double value) { line_field(&l->entry, key, value); }

void log_end(run_log* l) {
    line_end(&l->entry, l->log, l->log_path);
    l->log_lines++;
}

void log_sample(run_log* l, int step, int index, const char* prompt, const char* completion,
                double reward, double advantage, const sample_tokens* tokens) {
    line s = {NULL, 0, 0};
    line_begin(&s);
    line_field(&s, "step", step);
    line_field(&s, "index", index);
    line_key(&s, "prompt");
    line_string(&s, prompt);
    line_key(&s, "completion");
    line_string(&s, completion);
    line_field(&s, "reward", reward);
    line_field(&s, "advantage", advantage);
    if (tokens) line_tokens(&s, tokens);
    line_end(&s, l->samples, l->sample_path);
    free(s.text);
}

// A file that was removed or replaced takes what is written with it.
static void check_there(FILE* f, const char* path) {
    struct stat open, named;
    if (fstat(fileno(f), &open)) fatal("cannot read the state of %s: %s", path, strerror(errno));
    if (stat(path, &named) || open.st_ino != named.st_ino || open.st_dev != named.st_dev)
        fatal("%s was removed or replaced while the run wrote to it; nothing more is kept", path);
}

static int64_t durable_size(FILE* f, const char* path) {
    if (!f) return 0;
    check_there(f, path);
    if (fsync(fileno(f))) fatal("cannot write %s: %s; free some space", path, strerror(errno));
    return file_size(path);
}

void log_position(run_log* l, int64_t* log_lines, int64_t* sample_bytes) {
    durable_size(l->log, l->log_path);
    *log_lines = l->log ? l->log_lines : 0;
    *sample_bytes = durable_size(l->samples, l->sample_path);
}

static void refuse_shorter(const char* path, int64_t has, int64_t expected, const char* unit) {
    if (has < expected)
        fatal("%s has %lld %s where the checkpoint expects %lld; it was altered or removed", path,
              (long long)has, unit, (long long)expected);
}

static void cut_file(const char* path, int64_t bytes) {
    if (file_size(path) > bytes && truncate(path, bytes))
        fatal("cannot cut %s back: %s", path, strerror(errno));
}

double log_cut(const char* directory, int64_t log_lines, int64_t sample_bytes) {
    char *log = log_path(directory), *samples = sample_path(directory);
    lines kept = read_lines(log, log_lines);
    int64_t size = file_size(samples);
    refuse_shorter(log, kept.count, log_lines, "lines");  // both are judged before one is touched
    refuse_shorter(samples, size < 0 ? 0 : size, sample_bytes, "bytes");
    cut_file(log, kept.bytes);
    cut_file(samples, sample_bytes);
    free(log);
    free(samples);
    return kept.time;
}

int log_best(const char* directory, double* pass1) {
    static const char start[] = "{\"phase\":\"eval\",\"step\":", key[] = "\"pass1\":";
    char *path = log_path(directory), *text = NULL;
    size_t capacity = 0;
    int step = -1;
    FILE* f = file_size(path) < 0 ? NULL : file_open(path, "r");
    while (f && getline(&text, &capacity, f) > 0) {
        const char* at = strncmp(text, start, strlen(start)) ? NULL : strstr(text, key);
        double value = at ? strtod(at + strlen(key), NULL) : -1;
        if (!(value > *pass1)) continue;
        *pass1 = value;
        step = atoi(text + strlen(start));
    }
    if (f) file_close(f, path);
    free(text);
    free(path);
    return step;
}

// ------------------------------------------------------------------------------------------------
// The console

static void console_flush(run_log* l) {
    if (!fflush(stdout) && !ferror(stdout)) return;
    if (errno != EPIPE && errno != EIO)
        fatal("cannot write to standard output: %s; send it to another place", strerror(errno));
    if (!freopen("/dev/null", "w", stdout)) fatal("cannot open /dev/null: %s", strerror(errno));
    l->terminal = 0;
}

static void progress_wipe(run_log* l) {
    if (l->progress) printf("\r\033[K");
    l->progress = 0;
}

void log_copy(run_log* l, const char* path) {
    if (l->silent) return;
    if (l->copy) file_close(l->copy, l->copy_path);
    free(l->copy_path);
    l->copy_path = path ? xprintf("%s", path) : NULL;
    l->copy = path ? file_open(path, "w") : NULL;
}

void log_print(run_log* l, const char* format, ...) {
    if (l->silent) return;
    progress_wipe(l);
    va_list args;
    if (l->copy) {
        va_start(args, format);
        vfprintf(l->copy, format, args);
        va_end(args);
        fprintf(l->copy, "\n");
    }
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    console_flush(l);
}

// " · 41,200 tokens/s", or "".
static char* speed_text(double tokens_per_s) {
    if (!(tokens_per_s >= 0 && tokens_per_s < 1e15)) return xprintf("%s", "");
    char digits[32], grouped[48];
    int n = snprintf(digits, sizeof digits, "%.0f", tokens_per_s), out = 0;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) grouped[out++] = ',';
        grouped[out++] = digits[i];
    }
    return xprintf(" · %.*s tokens/s", out, grouped);
}

// " · 12 s left", " · 1:23 left", " · 2:01:23 left", or "".
static char* left_text(double seconds) {
    if (!(seconds >= 0 && seconds < 1e9)) return xprintf("%s", "");
    int s = (int)ceil(seconds);
    if (s < 60) return xprintf(" · %d s left", s);
    if (s < 3600) return xprintf(" · %d:%02d left", s / 60, s % 60);
    return xprintf(" · %d:%02d:%02d left", s / 3600, s / 60 % 60, s % 60);
}

// Bytes of the longest part of `text` that takes at most `columns` columns.
static size_t fitting_bytes(const char* text, int columns) {
    size_t i = 0;
    for (; text[i]; i++)
        if (((unsigned char)text[i] & 0xc0) != 0x80 && columns-- == 0) break;
    return i;
}

void log_progress(run_log* l, const char* what, double fraction, double tokens_per_s,
                  double seconds_left) {
    double now = clock_seconds();
    if (!l->terminal || now - l->progress_time < 0.1) return;
    l->progress_time = now;
    l->progress = 1;
    struct winsize window = {0, 0, 0, 0};
    int columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) || !window.ws_col ? 80 : window.ws_col;
    char *speed = speed_text(tokens_per_s), *left = left_text(seconds_left);
    char* text = xprintf("%s  %.0f %%%s%s", what, 100 * fraction, speed, left);
    // The last column stays free: a cursor beyond it would wrap.
    printf("\r\033[K%.*s", (int)fitting_bytes(text, columns - 1), text);
    console_flush(l);
    free(text);
    free(speed);
    free(left);
}

void log_close(run_log* l) {
    progress_wipe(l);
    console_flush(l);
    if (l->log) check_there(l->log, l->log_path), file_close(l->log, l->log_path);
    if (l->samples) check_there(l->samples, l->sample_path), file_close(l->samples, l->sample_path);
    free(l->log_path);
    free(l->sample_path);
    free(l->entry.text);
    free(l);
}
