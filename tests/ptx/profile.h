// profile.h: what the PTX machine counted of the kernels that ran, for programs linked with it.
// Nothing is counted unless PTX_PROFILE is set before the first launch.
#ifndef PTX_PROFILE_H
#define PTX_PROFILE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum ptx_kind {
    KIND_FLOAT,    // fp32 and fp64 arithmetic
    KIND_INTEGER,  // integer arithmetic, bits, addresses
    KIND_COMPARE,  // predicates and selections
    KIND_BRANCH,
    KIND_MOVE,  // moves, conversions, loads of parameters
    KIND_MEMORY,
    KIND_SHUFFLE,
    KIND_MMA,
    KIND_WAIT,  // barriers, waits for asynchronous copies
    KINDS
};

typedef struct ptx_counts {
    uint64_t launches;
    uint64_t instructions;  // of warps; one that the predicates of all lanes switch off counts too
    uint64_t of_kind[KINDS];
    uint64_t mma, by_wgmma;  // products of mma.m16n8k16's size; those that wgmma does
    // 32-byte sectors of global memory that warps asked for, and how many these would be if the
    // bytes lay side by side; passes over shared memory, and how many without bank conflicts.
    uint64_t sectors, sectors_least, passes, passes_least;
    uint64_t touched;  // sectors read and sectors written, each once a launch
} ptx_counts;

// The short name and the counts of kernel i of those that ran, from 0; NULL behind the last.
const char* ptx_profile_kernel(int i, ptx_counts* counts);
// Launches that the host made, of kernels or of graphs; counted without PTX_PROFILE too.
uint64_t ptx_launches(void);
// How often the host waited for a stream.
uint64_t ptx_waits(void);
// "9.0, sm_90": the version of the PTX that nvcc wrote, and for which architecture.
const char* ptx_profile_version(void);

#ifdef __cplusplus
}
#endif
#endif
