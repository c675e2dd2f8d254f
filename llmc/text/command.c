// The life of a worker:
//
//     stopped -- worker_start --> running -- worker_ask, serve, worker_judge --> running
//        ^                           |
//        +------ process_stop -------+   it ended, was late, or wrote too many lines
//
// A batch is one loop around poll(): it writes what a worker's pipe has room for and reads what is
// there, of all workers in turn, so that a full pipe on one side never blocks the other.
#include "command.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/json.h"
#include "../base/process.h"

enum { LINE_ROOM = 512, POLL_MS = 50 };

typedef enum { RUNNING, CRASHED, TIMED_OUT } worker_state;

typedef struct worker {
    struct process process;
    int first;             // it answers items first, first + workers, ... of the batch
    int asked, answered;   // lines of this batch, and numbers read for them
    char* text;            // the lines to write, allocated
    size_t bytes, sent;    // of them
    char line[LINE_ROOM];  // the first bytes of the line that is being read
    size_t length;         // of them; LINE_ROOM: it is too long for a number
    int extra;             // whether it wrote more lines than it was given
    worker_state state;
} worker;

struct command {
    command_config config;
    char* line;
    worker* worker;  // (config.workers)
};

static program program_of(const command* c) {
    return (program){"--reward-cmd", c->line, "one number for each line that it reads",
                     "use fewer --reward-workers"};
}

// The processes of all workers, to be freed.
static process** processes_of(command* c) {
    process** list = xalloc((size_t)c->config.workers, sizeof *list, "reward workers");
    for (int i = 0; i < c->config.workers; i++) list[i] = &c->worker[i].process;
    return list;
}

static void worker_start(worker* w, const program* of) {
    process_start(&w->process, of);
    w->length = 0;
}

command* command_open(const command_config* config) {
    command* c = xalloc(1, sizeof *c, "a reward program");
    c->config = *config;
    c->line = xprintf("%s", config->line);
    c->worker = xalloc((size_t)config->workers, sizeof *c->worker, "reward workers");
    program of = program_of(c);
    process** list = processes_of(c);
    for (int i = 0; i < config->workers; i++) worker_start(&c->worker[i], &of);
    process_watch_start(list, config->workers, &of);
    free(list);
    return c;
}

void command_free(command* c) {
    process** list = processes_of(c);
    process_end(list, c->config.workers);
    for (int i = 0; i < c->config.workers; i++) free(c->worker[i].text);
    free(list);
    free(c->worker);
    free(c->line);
    free(c);
}

// ---------------------------------------------------------------------------------------------
// Lines out

static char* put_text(char* to, const char* text) {
    return (char*)memcpy(to, text, strlen(text)) + strlen(text);
}

static size_t json_room(const graded* item) {
    const problem* p = item->problem;
    size_t bytes = strlen(p->prompt) + strlen(item->response) + (p->answer ? strlen(p->answer) : 0);
    return 6 * bytes + 64;
}

static char* put_line(char* to, const graded* item) {
    to = json_put_text(put_text(to, "{\"prompt\": "), item->problem->prompt);
    to = json_put_text(put_text(to, ", \"response\": "), item->response);
    to = json_put_text(put_text(to, ", \"answer\": "), item->problem->answer);
    return put_text(to, "}\n");
}

// Writes the lines of items first, first + workers, ... to memory.
static void worker_ask(worker* w, const graded* items, int n, int first, int workers) {
    size_t room = 0;
    w->first = first;
    w->asked = w->answered = w->extra = 0;
    w->state = RUNNING;
    w->sent = 0;
    for (int i = first; i < n; i += workers, w->asked++) room += json_room(&items[i]);
    free(w->text);
    w->text = xalloc(room, 1, "what a reward program reads");
    char* to = w->text;
    for (int i = first; i < n; i += workers) to = put_line(to, &items[i]);
    w->bytes = (size_t)(to - w->text);
}

// Writes what the pipe has room for. A worker that no longer reads may still write its numbers.
static void worker_write(worker* w) {
    ssize_t n = write(w->process.in, w->text + w->sent, w->bytes - w->sent);
    if (n >= 0) w->sent += (size_t)n;
    if (n < 0 && errno != EAGAIN && errno != EINTR) w->sent = w->bytes;
}

// ---------------------------------------------------------------------------------------------
// Numbers in

// The number of a line without its newline; NaN if it is none, or too large.
static double line_number(const char* line) {
    char* end;
    line += strspn(line, " \t");
    size_t length = strcspn(line, " \t\r");
    if (line[length + strspn(line + length, " \t\r")]) return NAN;
    if (!length || strspn(line, "0123456789+-.eE") != length) return NAN;
    double number = strtod(line, &end);
    return end == line + length && fabs(number) <= COMMAND_NUMBER_MOST ? number : NAN;
}

static void worker_line(worker* w, double* score, int workers, reward_counts* counts) {
    int whole = w->length < LINE_ROOM;
    if (whole) w->line[w->length] = 0;
    int zero = whole && strlen(w->line) != w->length;
    double number = whole && !zero ? line_number(w->line) : NAN;
    w->length = 0;
    if (w->answered == w->asked) {
        w->extra = 1;
        return;
    }
    score[w->first + w->answered++ * workers] = number;
    counts->malformed += isnan(number);
}

// Reads what is there. The first bytes of a line that is too long are kept, the others dropped.
static void worker_read(worker* w, double* score, int workers, reward_counts* counts) {
    char bytes[4096];
    ssize_t n = read(w->process.out, bytes, sizeof bytes);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) w->state = CRASHED;
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n')
            worker_line(w, score, workers, counts);
        else if (w->length < LINE_ROOM)
            w->line[w->length++] = bytes[i];
    }
    if (w->answered == w->asked && w->length) w->extra = 1;
}

static int worker_busy(const worker* w) { return w->state == RUNNING && w->answered < w->asked; }

// Before a batch nothing may wait to be read, and the process must be there.
static void worker_refresh(worker* w, const program* of, reward_counts* counts) {
    char byte;
    if (w->process.pid && read(w->process.out, &byte, 1) == 1) {
        counts->extra++;
        process_stop(&w->process);
    }
    if (w->process.pid && process_ended(&w->process)) process_stop(&w->process);
    if (!w->process.pid) worker_start(w, of);
}

// After a batch: counts what is missing, and stops a worker that cannot go on.
static void worker_judge(worker* w, double* score, int workers, reward_counts* counts) {
    int missing = w->asked - w->answered;
    counts->extra += w->extra;
    if (w->extra) {
        for (int k = 0; k < w->asked; k++) {
            double* s = &score[w->first + k * workers];
            counts->malformed += !isnan(*s);
            *s = NAN;
        }
    }
    if (w->state == CRASHED) counts->crashed += missing;
    if (w->state == TIMED_OUT) counts->timed_out += missing;
    if (w->extra || w->state != RUNNING) process_stop(&w->process);
}

// Serves all workers once; returns how many are busy.
static int serve(command* c, double* score, double seconds, reward_counts* counts) {
    int workers = c->config.workers, busy = 0;
    struct pollfd* polled = xalloc(2 * (size_t)workers, sizeof *polled, "reward workers");
    for (int i = 0; i < workers; i++) {
        worker* w = &c->worker[i];
        int on = worker_busy(w);
        busy += on;
        polled[2 * i] = (struct pollfd){on ? w->process.out : -1, POLLIN, 0};
        polled[2 * i + 1] =
            (struct pollfd){on && w->sent < w->bytes ? w->process.in : -1, POLLOUT, 0};
    }
    double ms = ceil(seconds * 1000);
    if (busy) poll(polled, 2 * (nfds_t)workers, ms < POLL_MS ? (int)ms : POLL_MS);
    for (int i = 0; i < workers && busy; i++) {
        worker* w = &c->worker[i];
        if (polled[2 * i + 1].revents) worker_write(w);
        if (polled[2 * i].revents)
            worker_read(w, score, workers, counts);
        else if (worker_busy(w) && process_ended(&w->process))
            kill(-w->process.pid, SIGKILL);  // what it started may hold its output open
    }
    free(polled);
    return busy;
}

void reward_counts_add(reward_counts* to, const reward_counts* more) {
    to->crashed += more->crashed;
    to->timed_out += more->timed_out;
    to->malformed += more->malformed;
    to->extra += more->extra;
}

char* reward_counts_text(const reward_counts* c) {
    long long lost = c->crashed + c->timed_out + c->malformed;
    if (!lost && !c->extra) return NULL;
    return xprintf(
        "the reward program gave no number for %lld responses (%lld crashed, %lld timed out, %lld "
        "malformed)%s",
        lost, (long long)c->crashed, (long long)c->timed_out, (long long)c->malformed,
        c->extra ? " and wrote more lines than it was given" : "");
}

reward_counts command_grade(command* c, const graded* items, int n, double* score) {
    reward_counts counts = {0};
    int workers = c->config.workers;
    program of = program_of(c);
    double end = clock_seconds() + c->config.timeout;
    for (int i = 0; i < n; i++) score[i] = NAN;
    for (int i = 0; i < workers; i++) {
        worker* w = &c->worker[i];
        worker_refresh(w, &of, &counts);
        worker_ask(w, items, n, i, workers);
    }
    for (;;) {
        double left = end - clock_seconds();
        if (!serve(c, score, left > 0 ? left : 0, &counts)) break;
        if (left > 0) continue;
        for (int i = 0; i < workers; i++)
            if (worker_busy(&c->worker[i])) c->worker[i].state = TIMED_OUT;
        break;
    }
    for (int i = 0; i < workers; i++) worker_judge(&c->worker[i], score, workers, &counts);
    return counts;
}
