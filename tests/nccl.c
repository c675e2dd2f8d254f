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
// NCCL_RESULT in the environment is what ncclCommInitRank returns.
#include <errno.h>
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

enum { RANKS_MOST = 16, SECONDS = 60 };

typedef struct communicator {
    int rank, size;
    int peer[RANKS_MOST];  // sockets
    int joined;
} communicator;

// Of one direction: NULL where there is none.
typedef struct half {
    const char* data;
    size_t bytes;
    int peer;
} half;

typedef struct group {
    communicator* c;
    void* stream;
    half out, in;
} group;

static group open_group;
static int is_open;

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
    if (is_open) mistake("a group in a group");
    open_group = (group){0};
    is_open = 1;
    return NCCL_SUCCESS;
}

// Notes a send or a receive.
static int note(half* h, const void* data, size_t count, int type, int peer, void* c_,
                void* stream) {
    communicator* c = c_;
    if (!is_open) mistake("a send or a receive outside a group: both ends may wait for ever");
    if (!c || !c->joined || type != NCCL_BYTE || peer < 0 || peer >= c->size)
        return NCCL_INVALID_ARGUMENT;
    if (peer == c->rank) mistake("a rank sends to itself");
    if (!count) mistake("nothing is sent");
    if (h->data) mistake("two of a kind in one group");
    if (open_group.c && (open_group.c != c || open_group.stream != stream))
        mistake("a group of two streams or communicators");
    open_group.c = c;
    open_group.stream = stream;
    *h = (half){data, count, peer};
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

// Both ways at once. Each way begins with its size: the real library hangs where the ends disagree.
static void move(void* data) {
    group* g = data;
    size_t out_done = 0, in_done = 0, said = g->out.bytes, heard = 0;
    const char* out = g->out.bytes ? ptx_memory(g->out.data, g->out.bytes, 0) : NULL;
    char* in = g->in.bytes ? ptx_memory(g->in.data, g->in.bytes, 1) : NULL;
    if (out && write(g->c->peer[g->out.peer], &said, sizeof said) != sizeof said)
        mistake("a peer is gone");
    if (in && recv(g->c->peer[g->in.peer], &heard, sizeof heard, MSG_WAITALL) != sizeof heard)
        mistake("a peer is gone");
    if (heard != g->in.bytes) mistake("sender and receiver do not agree on the number of bytes");
    while (out_done < g->out.bytes || in_done < g->in.bytes) {
        struct pollfd way[2] = {
            {out_done < g->out.bytes ? g->c->peer[g->out.peer] : -1, POLLOUT, 0},
            {in_done < g->in.bytes ? g->c->peer[g->in.peer] : -1, POLLIN, 0}};
        if (poll(way, 2, SECONDS * 1000) <= 0) mistake("a peer does not take or give its bytes");
        if (way[0].revents) {
            ssize_t n = send(way[0].fd, out + out_done, g->out.bytes - out_done,
                             MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n < 0 && errno != EAGAIN) mistake("a peer is gone");
            if (n > 0) out_done += (size_t)n;
        }
        if (way[1].revents) {
            ssize_t n = recv(way[1].fd, in + in_done, g->in.bytes - in_done, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN)) mistake("a peer is gone");
            if (n > 0) in_done += (size_t)n;
        }
    }
    free(g);
}

int group_end(void) __asm__("ncclGroupEnd");
int group_end(void) {
    if (!is_open) return NCCL_INVALID_USAGE;
    is_open = 0;
    if (!open_group.c) return NCCL_SUCCESS;
    group* g = malloc(sizeof *g);
    if (!g) mistake("no memory");
    *g = open_group;
    return launch_host(g->stream, move, g) ? NCCL_INVALID_USAGE : NCCL_SUCCESS;
}

const char* get_error_string(int result) __asm__("ncclGetErrorString");
const char* get_error_string(int result) {
    return result == NCCL_INVALID_USAGE ? "invalid usage" : "an error of the stand-in";
}
