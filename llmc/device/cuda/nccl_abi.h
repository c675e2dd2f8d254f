// The part of NCCL's binary interface that nccl.cuh calls, so that the program is built without the
// library's header. The names are ours: tests/nccl.c includes that header where there is one, and
// compares every number and size.
//
// Enumerations are int, a communicator is a pointer to what only the library knows.
#ifndef LLMC_CUDA_NCCL_ABI_H
#define LLMC_CUDA_NCCL_ABI_H

#include <stddef.h>

enum { NCCL_SUCCESS = 0, NCCL_INVALID_ARGUMENT = 4, NCCL_INVALID_USAGE = 5 };  // what calls return
enum { NCCL_BYTE = 0 };  // a type of elements (ncclInt8)

typedef struct nccl_id {
    char bytes[128];
} nccl_id;

// Sends and receives of a group happen at the same time, at its place in the stream, which is
// CUDA's.
typedef struct nccl_functions {
    int (*unique_id)(nccl_id* id);
    int (*join)(void** communicator, int size, nccl_id id, int rank);
    int (*leave)(void* communicator);
    int (*send)(const void* data, size_t count, int type, int to, void* communicator, void* stream);
    int (*receive)(void* data, size_t count, int type, int from, void* communicator, void* stream);
    int (*group_start)(void);
    int (*group_end)(void);
    const char* (*error_text)(int result);
} nccl_functions;

// X(our name, the library's name)
#define NCCL_FUNCTIONS(X)          \
    X(unique_id, ncclGetUniqueId)  \
    X(join, ncclCommInitRank)      \
    X(leave, ncclCommDestroy)      \
    X(send, ncclSend)              \
    X(receive, ncclRecv)           \
    X(group_start, ncclGroupStart) \
    X(group_end, ncclGroupEnd)     \
    X(error_text, ncclGetErrorString)

#endif
