// The life of a worker:
//
//     stopped -- worker_start --> running -- worker_ask, serve, worker_judge --> running
//        ^                           |
//        +------- worker_stop -------+   it ended, was late, or wrote too many lines
//
// A batch is one loop around poll(): it writes what a worker's pipe has room for and reads what is
// there, of all workers in turn, so that a full pipe on one side never blocks the other.
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

enum { LINE_ROOM = 512, POLL_MS = 50 };

typedef enum { RUNNING, CRASHED, TIMED_OUT } worker_state;

typedef struct worker {
    pid_t pid;             // 0: stopped
    int in, out;           // our ends of its standard input and output
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

// ---------------------------------------------------------------------------------------------
// Processes

static void child_run(const char* line, int in, int out, pid_t parent) __attribute__((noreturn));
static void child_run(const char* line, int in, int out, pid_t parent) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != parent) _exit(127);  // it died before prctl
    dup2(in, STDIN_FILENO);               // the copies are not closed on exec, the originals are
    dup2(out, STDOUT_FILENO);
    execl("/bin/sh", "sh", "-c", line, (char*)NULL);
    _exit(127);
}

// Both ends are above 2, also where this program was started without standard input or output.
static void pipe_open(int ends[2]) {
    int low[2], failed = pipe2(low, O_CLOEXEC);
    for (int i = 0; i < 2 && !failed; i++) {
        ends[i] = fcntl(low[i], F_DUPFD_CLOEXEC, 3);
        failed = ends[i] < 0;
    }
    if (failed)
        fatal("--reward-cmd: no pipe can be made: %s; use fewer --reward-workers", strerror(errno));
    close(low[0]);
    close(low[1]);
}

static void worker_start(worker* w, const char* line) {
    int in[2], out[2];
    pid_t parent = getpid();
    pipe_open(in);
    pipe_open(out);
    pid_t pid = fork();
    if (pid < 0)
        fatal("--reward-cmd: no process can be made: %s; use fewer --reward-workers",
              strerror(errno));
    if (pid == 0) child_run(line, in[0], out[1], parent);
    setpgid(pid, pid);  // whichever of the two comes first
    close(in[0]);
    close(out[1]);
    fcntl(in[1], F_SETFL, O_NONBLOCK);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    w->pid = pid;
    w->in = in[1];
    w->out = out[0];
    w->length = 0;
}

static void close_once(int* fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

// Kills a worker with what it started, and forgets it; returns the status of waitpid.
static int worker_stop(worker* w) {
    int status = 0;
    if (!w->pid) return 0;
    if (kill(-w->pid, SIGKILL)) kill(w->pid, SIGKILL);
    while (waitpid(w->pid, &status, 0) < 0 && errno == EINTR)
        ;
    close_once(&w->in);
    close_once(&w->out);
    w->pid = 0;
    return status;
}

// Whether the process has ended. It stays a zombie, so that its number is not given to another.
static int worker_ended(const worker* w) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)w->pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == w->pid;
}

static void sleep_ms(long ms) { nanosleep(&(struct timespec){0, ms * 1000000}, NULL); }

static void refuse_start(const command* c, int status) __attribute__((noreturn));
static void refuse_start(const command* c, int status) {
    const char* line = shown(c->line, strlen(c->line));
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (code == 126 || code == 127)
        fatal("--reward-cmd '%s' cannot be started (status %d); run it by hand to see why", line,
              code);
    fatal(
        "--reward-cmd '%s' ended (%s %d) before it was given a line; it must read lines until "
        "its input ends",
        line, WIFEXITED(status) ? "status" : "signal", WIFEXITED(status) ? code : WTERMSIG(status));
}

static void refuse_greeting(const command* c) __attribute__((noreturn));
static void refuse_greeting(const command* c) {
    fatal(
        "--reward-cmd '%s' wrote before it was given a line; it must write nothing but one number "
        "for each line that it reads",
        shown(c->line, strlen(c->line)));
}

// Whether the worker's output can be read: it wrote, or it closed it.
static int worker_readable(const worker* w) {
    return poll(&(struct pollfd){w->out, POLLIN, 0}, 1, 0) == 1;
}

// Watches the workers for COMMAND_START_SECONDS and refuses a program that ends or writes.
static void watch_start(command* c) {
    double end = clock_seconds() + COMMAND_START_SECONDS;
    for (; clock_seconds() < end; sleep_ms(5)) {
        for (int i = 0; i < c->config.workers; i++) {
            worker* w = &c->worker[i];
            char byte;
            if (!worker_ended(w) && !worker_readable(w)) continue;
            sleep_ms(20);  // its output closes a little before it ends
            int ended = worker_ended(w), wrote = !ended && read(w->out, &byte, 1) == 1;
            if (!ended && !wrote) continue;
            int status = worker_stop(w);
            for (int k = 0; k < c->config.workers; k++) worker_stop(&c->worker[k]);
            if (ended) refuse_start(c, status);
            refuse_greeting(c);
        }
    }
}

command* command_open(const command_config* config) {
    command* c = xalloc(1, sizeof *c, "a reward program");
    c->config = *config;
    c->line = xprintf("%s", config->line);
    c->worker = xalloc((size_t)config->workers, sizeof *c->worker, "reward workers");
    signal(SIGPIPE, SIG_IGN);
    setenv("PYTHONUNBUFFERED", "1", 0);
    for (int i = 0; i < config->workers; i++) worker_start(&c->worker[i], c->line);
    watch_start(c);
    return c;
}

void command_free(command* c) {
    for (int i = 0; i < c->config.workers; i++) close_once(&c->worker[i].in);
    double end = clock_seconds() + COMMAND_START_SECONDS;
    for (int i = 0; i < c->config.workers; i++) {
        worker* w = &c->worker[i];
        while (w->pid && !worker_ended(w) && clock_seconds() < end) sleep_ms(1);
        worker_stop(w);
        free(w->text);
    }
    free(c->worker);
    free(c->line);
    free(c);
}

// ---------------------------------------------------------------------------------------------
// Lines out

static char* put_text(char* to, const char* text) {
    return (char*)memcpy(to, text, strlen(text)) + strlen(text);
}

// A JSON string, or null; at most 6 bytes for each of the text, and 2 more.
static char* put_json(char* to, const char* text) {
    if (!text) return put_text(to, "null");
    *to++ = '"';
    while (*text) {
        int length = utf8_length(text);
        if (!length || (unsigned char)*text < ' ' || *text == 127) {
            to += sprintf(to, "\\u%04x", length ? (unsigned char)*text : 0xfffd);
            text++;
            continue;
        }
        if (*text == '"' || *text == '\\') *to++ = '\\';
        while (length--) *to++ = *text++;
    }
    *to++ = '"';
    return to;
}

static size_t json_room(const graded* item) {
    const problem* p = item->problem;
    size_t bytes = strlen(p->prompt) + strlen(item->response) + (p->answer ? strlen(p->answer) : 0);
    return 6 * bytes + 64;
}

static char* put_line(char* to, const graded* item) {
    to = put_json(put_text(to, "{\"prompt\": "), item->problem->prompt);
    to = put_json(put_text(to, ", \"response\": "), item->response);
    to = put_json(put_text(to, ", \"answer\": "), item->problem->answer);
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
    ssize_t n = write(w->in, w->text + w->sent, w->bytes - w->sent);
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
    ssize_t n = read(w->out, bytes, sizeof bytes);
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
static void worker_refresh(worker* w, const char* line, reward_counts* counts) {
    char byte;
    if (w->pid && read(w->out, &byte, 1) == 1) {
        counts->extra++;
        worker_stop(w);
    }
    if (w->pid && worker_ended(w)) worker_stop(w);
    if (!w->pid) worker_start(w, line);
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
    if (w->extra || w->state != RUNNING) worker_stop(w);
}

// Serves all workers once; returns how many are busy.
static int serve(command* c, double* score, double seconds, reward_counts* counts) {
    int workers = c->config.workers, busy = 0;
    struct pollfd* polled = xalloc(2 * (size_t)workers, sizeof *polled, "reward workers");
    for (int i = 0; i < workers; i++) {
        worker* w = &c->worker[i];
        int on = worker_busy(w);
        busy += on;
        polled[2 * i] = (struct pollfd){on ? w->out : -1, POLLIN, 0};
        polled[2 * i + 1] = (struct pollfd){on && w->sent < w->bytes ? w->in : -1, POLLOUT, 0};
    }
    double ms = ceil(seconds * 1000);
    if (busy) poll(polled, 2 * (nfds_t)workers, ms < POLL_MS ? (int)ms : POLL_MS);
    for (int i = 0; i < workers && busy; i++) {
        worker* w = &c->worker[i];
        if (polled[2 * i + 1].revents) worker_write(w);
        if (polled[2 * i].revents)
            worker_read(w, score, workers, counts);
        else if (worker_busy(w) && worker_ended(w))
            kill(-w->pid, SIGKILL);  // what it started may hold its output open
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
    double end = clock_seconds() + c->config.timeout;
    for (int i = 0; i < n; i++) score[i] = NAN;
    for (int i = 0; i < workers; i++) {
        worker* w = &c->worker[i];
        worker_refresh(w, c->line, &counts);
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
