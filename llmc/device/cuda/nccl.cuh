// NCCL, which moves bytes between the GPUs of several processes, behind one file. The library is
// opened when there are several ranks, and a program built with this file runs without it, and is
// built without its header. What is added, and in which order, is not the library's business: all
// it is asked for are sends and receives.
#ifndef LLMC_CUDA_NCCL_CUH
#define LLMC_CUDA_NCCL_CUH

#include <dlfcn.h>

#include "cuda.cuh"
#include "nccl_abi.h"

struct nccl {
    void* library;
    nccl_functions call;
    void* communicator;  // NULL: not joined yet
};

static nccl* nccl_open(void) {
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) library = dlopen("libnccl.so", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fatal("several ranks on GPUs need NCCL: %s; install it, or use --device cpu", dlerror());
    nccl* n = (nccl*)xalloc(1, sizeof *n, "NCCL");
    n->library = library;
#define NCCL_LOAD(ours, theirs)                                     \
    n->call.ours = (decltype(n->call.ours))dlsym(library, #theirs); \
    if (!n->call.ours) fatal("NCCL has no %s; install version 2.7 or newer", #theirs);
    NCCL_FUNCTIONS(NCCL_LOAD)
#undef NCCL_LOAD
    return n;
}

// Opened when it is first asked for.
static nccl* nccl_of(backend* b) {
    cuda_context* c = context_of(b);
    if (!c->group) c->group = nccl_open();
    return c->group;
}

static void nccl_check(const nccl* n, int result, const char* what) {
    if (result != NCCL_SUCCESS)
        fatal("NCCL: %s: %s; NCCL_DEBUG=WARN in the environment says more. Each rank needs a GPU",
              what, n->call.error_text(result));
}

static void nccl_close(nccl* n) {
    if (!n) return;
    if (n->communicator) nccl_check(n, n->call.leave(n->communicator), "leaving the GPUs");
    dlclose(n->library);
    free(n);
}

static void cuda_group_name(backend* b, char name[GROUP_NAME]) {
    nccl* n = nccl_of(b);
    nccl_id id;
    static_assert(sizeof id == GROUP_NAME, "a group's name is NCCL's unique id");
    nccl_check(n, n->call.unique_id(&id), "naming a group of GPUs");
    memcpy(name, &id, sizeof id);
}

static void cuda_group_join(backend* b, const char name[GROUP_NAME], int rank, int size) {
    nccl* n = nccl_of(b);
    nccl_id id;
    memcpy(&id, name, sizeof id);
    nccl_check(n, n->call.join(&n->communicator, size, id, rank), "joining the GPUs");
}

static void cuda_exchange(backend* b, int to, const void* out, size_t out_bytes, int from, void* in,
                          size_t in_bytes) {
    nccl* n = nccl_of(b);
    void* c = n->communicator;
    nccl_check(n, n->call.group_start(), "an exchange");
    if (out_bytes)
        nccl_check(n, n->call.send(out, out_bytes, NCCL_BYTE, to, c, stream_of(b)), "a send");
    if (in_bytes)
        nccl_check(n, n->call.receive(in, in_bytes, NCCL_BYTE, from, c, stream_of(b)), "a receive");
    nccl_check(n, n->call.group_end(), "an exchange");
}

// Groups may lie within each other; all begins when the outermost one ends.
static void cuda_batch(backend* b, int on) {
    nccl* n = nccl_of(b);
    nccl_check(n, on ? n->call.group_start() : n->call.group_end(), "exchanges");
}

#endif
