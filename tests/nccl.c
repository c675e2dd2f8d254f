// A stand-in for NCCL, so that llmc/device/cuda/nccl.cuh is tested without GPUs: a shared library
// of the real one's name and binary interface, which the loader finds through LD_LIBRARY_PATH. The
// real header, where there is one, says whether nccl_abi.h has the real numbers, sizes and
// parameters.
//
// Ranks are processes of one machine, joined by sockets whose names follow from the unique id. What
// a group sends and receives moves at the group's place in the stream (cudaLaunchHostFunc of the
// runtime that plays the GPU), where the runtime is asked for the memory (ptx_memory), so that an
// access outside an allocation ends the program. What the real library refuses is refused; where it
// would go on without a word, hang, or its caller would go on without it, the program ends with one
// line.
//
// NCCL_RESULT in the environment is what ncclCommInitRank returns. With NCCL_TRACE=FILE each rank
// writes a line for each group when it ends, into FILE.RANK: the stream, how many kernels have been
// launched by then, the bytes it sends, those it receives.
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../llmc/device/cuda/nccl_abi.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours " is not " #theirs)
SAME(NCCL_SUCCESS, ncclSuccess);
SAME(NCCL_INVALID_ARGUMENT, ncclInvalidArgument);
SAME(NCCL_INVALID_USAGE, ncclInvalidUsage);
SAME(NCCL_BYTE, ncclInt8);
SAME(sizeof(int), sizeof(ncclResult_t));
SAME(sizeof(int), sizeof(ncclDataType_t));
SAME(sizeof(nccl_id), sizeof(ncclUniqueId));
#endif

int launch_host(void* stream, void (*run)(void*), void* data) __asm__("cudaLaunchHostFunc");
void* ptx_memory(const void* device, size_t bytes, int write);
uint64_t ptx_launches(void);

enum { RANKS_MOST = 16, GROUP_MOST = 256, SECONDS = 60 };

typedef struct communicator {
    int rank, size;
    int peer[RANKS_MOST];  // sockets
    int joined;
} communicator;

typedef struct message {
    const char* data;
    size_t bytes;
    int peer;
} message;

// Messages of one direction, in order.
typedef struct way {
    message all[GROUP_MOST];
    int count, current;
    size_t said, done;  // of the current one: bytes of its size, and its own
    size_t size;        // what a sender says
} way;

typedef struct group {
    communicator* c;
    void* stream;
    way out, in;
} group;

static group open_group;
static int depth;  // of groups within each other

static void mistake(const char* what) {
    fprintf(stderr, "nccl: %s\n", what);
    exit(3);
}

static struct sockaddr_un address_of(const nccl_id* id, int rank) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%.90s.%d", id->bytes, rank);
    return a;
}

int get_unique_id(nccl_id* id) __asm__("ncclGetUniqueId");
int get_unique_id(nccl_id* id) {
    static int count;
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "/tmp/nccl-%ld-%d", (long)getpid(), count++);
    return NCCL_SUCCESS;
}

static int connect_to(const nccl_id* id, int rank, int own) {
    struct sockaddr_un a = address_of(id, rank);
    for (int i = 0; i < SECONDS * 100; i++) {
        int s = socket(AF_UNIX, SOCK_STREAM, 0);
        if (!connect(s, (struct sockaddr*)&a, sizeof a)) {
            if (write(s, &own, sizeof own) != sizeof own) mistake("a peer is gone");
            return s;
        }
        close(s);
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    mistake("a rank did not join in a minute: the real library would wait for ever");
    return -1;
}

int comm_init_rank(void** to, int size, nccl_id id, int rank) __asm__("ncclCommInitRank");
int comm_init_rank(void** to, int size, nccl_id id, int rank) {
    const char* result = getenv("NCCL_RESULT");
    if (result) return atoi(result);
    if (rank < 0 || rank >= size || size > RANKS_MOST) return NCCL_INVALID_ARGUMENT;
    communicator* c = calloc(1, sizeof *c);
    struct sockaddr_un a = address_of(&id, rank);
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(a.sun_path);
    if (!c || bind(door, (struct sockaddr*)&a, sizeof a) || listen(door, RANKS_MOST))
        mistake("no socket: two ranks of one number, or ids that were not copied whole");
    c->rank = rank, c->size = size, c->joined = 1;
    for (int k = 0; k < rank; k++) c->peer[k] = connect_to(&id, k, rank);
    for (int k = rank + 1, from; k < size; k++) {
        struct pollfd wait = {door, POLLIN, 0};
        if (poll(&wait, 1, SECONDS * 1000) <= 0) mistake("a rank did not join in a minute");
        int s = accept(door, NULL, NULL);
        if (read(s, &from, sizeof from) != sizeof from || from <= rank || from >= size)
            mistake("a rank that is none joins");
        c->peer[from] = s;
    }
    close(door);
    unlink(a.sun_path);
    *to = c;
    return NCCL_SUCCESS;
}

int comm_destroy(void* communicator_) __asm__("ncclCommDestroy");
int comm_destroy(void* communicator_) {
    communicator* c = communicator_;
    if (!c || !c->joined) return NCCL_INVALID_ARGUMENT;
    c->joined = 0;
    for (int k = 0; k < c->size; k++)
        if (k != c->rank) close(c->peer[k]);
    return NCCL_SUCCESS;
}

int group_start(void) __asm__("ncclGroupStart");
int group_start(void) {
    if (!depth++) open_group = (group){0};
    return NCCL_SUCCESS;
}

// Notes a send or a receive.
static int note(way* w, const void* data, size_t count, int type, int peer, void* c_,
                void* stream) {
    communicator* c = c_;
    if (!depth) mistake("a send or a receive outside a group: both ends may wait for ever");
    if (!c || !c->joined || type != NCCL_BYTE || peer < 0 || peer >= c->size)
        return NCCL_INVALID_ARGUMENT;
    if (peer == c->rank) mistake("a rank sends to itself");
    if (!count) mistake("nothing is sent");
    if (w->count == GROUP_MOST) mistake("more messages than the stand-in has room for");
    if (open_group.c && (open_group.c != c || open_group.stream != stream))
        mistake("a group of two streams or communicators");
    open_group.c = c;
    open_group.stream = stream;
    w->all[w->count++] = (message){data, count, peer};
    return NCCL_SUCCESS;
}

int send_bytes(const void*, size_t, int, int, void*, void*) __asm__("ncclSend");
int send_bytes(const void* data, size_t count, int type, int to, void* c, void* stream) {
    return note(&open_group.out, data, count, type, to, c, stream);
}

int receive_bytes(void*, size_t, int, int, void*, void*) __asm__("ncclRecv");
int receive_bytes(void* data, size_t count, int type, int from, void* c, void* stream) {
    return note(&open_group.in, data, count, type, from, c, stream);
}

// The current message's socket, or -1 after the last one.
static int socket_of(const group* g, const way* w) {
    return w->current < w->count ? g->c->peer[w->all[w->current].peer] : -1;
}

// The part of the current message, its size or its own bytes, that comes next.
static char* next_part(way* w, int write, size_t* bytes) {
    const message* m = &w->all[w->current];
    char* data = ptx_memory(m->data, m->bytes, write);
    int begins = w->said < sizeof w->size;
    *bytes = begins ? sizeof w->size - w->said : m->bytes - w->done;
    return begins ? (char*)&w->size + w->said : data + w->done;
}

static void advance(way* w, ssize_t n) {
    const message* m = &w->all[w->current];
    if (n == 0 || (n < 0 && errno != EAGAIN)) mistake("a peer is gone");
    if (n < 0) return;
    if (w->said < sizeof w->size)
        w->said += (size_t)n;
    else
        w->done += (size_t)n;
    if (w->said == sizeof w->size && w->size != m->bytes)
        mistake("sender and receiver do not agree on the number of bytes");
    if (w->done == m->bytes) w->current++, w->said = w->done = 0;
}

// Both ways at once. Each message begins with its size: the real library hangs where the ends
// disagree.
static void move(void* data) {
    group* g = data;
    size_t bytes;
    while (socket_of(g, &g->out) >= 0 || socket_of(g, &g->in) >= 0) {
        struct pollfd ready[2] = {{socket_of(g, &g->out), POLLOUT, 0},
                                  {socket_of(g, &g->in), POLLIN, 0}};
        if (poll(ready, 2, SECONDS * 1000) <= 0) mistake("a peer does not take or give its bytes");
        if (ready[0].revents) {
            g->out.size = g->out.all[g->out.current].bytes;
            char* part = next_part(&g->out, 0, &bytes);
            advance(&g->out, send(ready[0].fd, part, bytes, MSG_DONTWAIT | MSG_NOSIGNAL));
        }
        if (ready[1].revents) {
            char* part = next_part(&g->in, 1, &bytes);
            advance(&g->in, recv(ready[1].fd, part, bytes, MSG_DONTWAIT));
        }
    }
    free(g);
}

static size_t bytes_of(const way* w) {
    size_t bytes = 0;
    for (int i = 0; i < w->count; i++) bytes += w->all[i].bytes;
    return bytes;
}

static void trace(const group* g) {
    static FILE* to;
    char path[256];
    if (!getenv("NCCL_TRACE")) return;
    snprintf(path, sizeof path, "%s.%d", getenv("NCCL_TRACE"), g->c->rank);
    if (!to) to = fopen(path, "w");
    if (!to) mistake("no file for the trace");
    fprintf(to, "%p %" PRIu64 " %zu %zu\n", g->stream, ptx_launches(), bytes_of(&g->out),
            bytes_of(&g->in));
    fflush(to);
}

int group_end(void) __asm__("ncclGroupEnd");
int group_end(void) {
    if (!depth) return NCCL_INVALID_USAGE;
    if (--depth || !open_group.c) return NCCL_SUCCESS;
    group* g = malloc(sizeof *g);
    if (!g) mistake("no memory");
    *g = open_group;
    trace(g);
    return launch_host(g->stream, move, g) ? NCCL_INVALID_USAGE : NCCL_SUCCESS;
}

const char* get_error_string(int result) __asm__("ncclGetErrorString");
const char* get_error_string(int result) {
    return result == NCCL_INVALID_USAGE ? "invalid usage" : "an error of the stand-in";
}
