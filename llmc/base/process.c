#include "process.h"

#include <errno.h>
#include <fcntl.h>
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
static void pipe_open(int ends[2], const program* of) {
    int low[2], failed = pipe2(low, O_CLOEXEC);
    for (int i = 0; i < 2 && !failed; i++) {
        ends[i] = fcntl(low[i], F_DUPFD_CLOEXEC, 3);
        failed = ends[i] < 0;
    }
    if (failed) fatal("%s: no pipe can be made: %s; %s", of->flag, strerror(errno), of->fewer);
    close(low[0]);
    close(low[1]);
}

void process_start(process* p, const program* of) {
    int in[2], out[2];
    pid_t parent = getpid();
    signal(SIGPIPE, SIG_IGN);
    setenv("PYTHONUNBUFFERED", "1", 0);
    pipe_open(in, of);
    pipe_open(out, of);
    pid_t pid = fork();
    if (pid < 0) fatal("%s: no process can be made: %s; %s", of->flag, strerror(errno), of->fewer);
    if (pid == 0) child_run(of->line, in[0], out[1], parent);
    setpgid(pid, pid);  // whichever of the two comes first
    close(in[0]);
    close(out[1]);
    fcntl(in[1], F_SETFL, O_NONBLOCK);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    *p = (process){pid, in[1], out[0]};
}

static void close_once(int* fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

int process_stop(process* p) {
    int status = 0;
    if (!p->pid) return 0;
    if (kill(-p->pid, SIGKILL)) kill(p->pid, SIGKILL);
    while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
        ;
    close_once(&p->in);
    close_once(&p->out);
    p->pid = 0;
    return status;
}

int process_ended(const process* p) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == p->pid;
}

static void sleep_ms(long ms) { nanosleep(&(struct timespec){0, ms * 1000000}, NULL); }

void process_end(process* const* list, int count) {
    for (int i = 0; i < count; i++) close_once(&list[i]->in);
    double end = clock_seconds() + PROCESS_START_SECONDS;
    for (int i = 0; i < count; i++) {
        while (list[i]->pid && !process_ended(list[i]) && clock_seconds() < end) sleep_ms(1);
        process_stop(list[i]);
    }
}

// ---------------------------------------------------------------------------------------------
// The start

char* process_status_text(int status) {
    return WIFEXITED(status) ? xprintf("status %d", WEXITSTATUS(status))
                             : xprintf("signal %d", WTERMSIG(status));
}

static void refuse_start(const program* of, int status) __attribute__((noreturn));
static void refuse_start(const program* of, int status) {
    const char* line = shown(of->line, strlen(of->line));
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (code == 126 || code == 127)
        fatal("%s '%s' cannot be started (status %d); run it by hand to see why", of->flag, line,
              code);
    fatal("%s '%s' ended (%s) before it was given a line; it must read lines until its input ends",
          of->flag, line, process_status_text(status));
}

static void refuse_greeting(const program* of) __attribute__((noreturn));
static void refuse_greeting(const program* of) {
    fatal("%s '%s' wrote before it was given a line; it must write nothing but %s", of->flag,
          shown(of->line, strlen(of->line)), of->writes);
}

// Whether its output can be read: it wrote, or it closed it.
static int is_readable(const process* p) {
    return poll(&(struct pollfd){p->out, POLLIN, 0}, 1, 0) == 1;
}

void process_watch_start(process* const* list, int count, const program* of) {
    double end = clock_seconds() + PROCESS_START_SECONDS;
    for (; clock_seconds() < end; sleep_ms(5)) {
        for (int i = 0; i < count; i++) {
            process* p = list[i];
            char byte;
            if (!process_ended(p) && !is_readable(p)) continue;
            sleep_ms(20);  // its output closes a little before it ends
            int ended = process_ended(p), wrote = !ended && read(p->out, &byte, 1) == 1;
            if (!ended && !wrote) continue;
            int status = process_stop(p);
            for (int k = 0; k < count; k++) process_stop(list[k]);
            if (ended) refuse_start(of, status);
            refuse_greeting(of);
        }
    }
}
