// ranks: the processes that share one run. Each samples its share of the prompts and computes the
// gradients of its share of the shards; all hold the whole rollout and the same weights. What they
// exchange is added in a fixed order (optimizer.c), so any number of them gives the same bits.
//
// A function over ranks is called by all of them, in the same order; one that returns a value
// returns the same one everywhere. With one rank each does nothing.
#ifndef LLMC_RANKS_H
#define LLMC_RANKS_H

#include "../device/backend.h"

LLMC_BEGIN

typedef struct ranks ranks;
struct ranks {
    int rank, size;            // 0 and 1 for a process alone
    int here, place;           // how many of them this machine has, and which of these this is
    int64_t sampled, trained;  // sequences that this rank has sampled, and run through an update
    int64_t measured;          // tokens whose metrics it has computed
    int64_t sent, told;        // bytes; of these, what ranks_sent has given
    // Sends `out` to a rank while it receives `in` from one; 0 bytes: nothing is sent, or received.
    // Both ends give the same number of bytes. Fatal, or the end of all ranks, if one is gone.
    void (*exchange)(ranks* r, int to, const void* out, size_t out_bytes, int from, void* in,
                     size_t in_bytes);
    void (*abort)(ranks* r);  // ends all ranks at once, with status 1
    void (*close)(ranks* r);
    void* context;
};

// The ranks that mpirun, mpiexec or srun started; a process alone where none of them did. Fatal if
// they did and there is no MPI library. From then on a refusal names its rank and ends all.
ranks* ranks_open(void);
void ranks_close(ranks* r);
ranks* ranks_alone(void);

// Bytes of an array: those that a rank has.
typedef struct span {
    size_t at, bytes;
} span;
// Rank k gives its part[k] of `data`; all get all parts, each in its place. part: (size)
void ranks_gather(ranks* r, void* data, const span* part);
// An exchange of a device's memory; b NULL: the host's.
void ranks_exchange_on(ranks* r, backend* b, int to, const void* out, size_t out_bytes, int from,
                       void* in, size_t in_bytes);
// Exchanges between ranks_batch(b, 1) and ranks_batch(b, 0) do not wait for each other, if the
// device can do so.
void ranks_batch(backend* b, int on);
// Makes devices with memory of their own able to do so, before they do.
void ranks_join_devices(ranks* r, backend* b);
void ranks_gather_rows(ranks* r, void* rows, size_t bytes);  // rank k gives row k, of `bytes` bytes
void ranks_broadcast(ranks* r, void* data, size_t bytes);    // rank 0's
int ranks_most(ranks* r, int value);                         // the largest of all ranks' values
// The first rank whose value is not rank 0's; 0: there is none.
int ranks_other(ranks* r, uint64_t value);

// Bytes that this rank has sent since it was asked last.
int64_t ranks_sent(ranks* r);

// Rank k's share of `count` things in order: those from first[0] to first[1] - 1; sizes differ by 1
// at most.
void ranks_share(const ranks* r, int k, int count, int first[2]);

// MPI (ranks_mpi.c): NULL where no launcher started several processes.
ranks* ranks_open_mpi(void);

LLMC_END
#endif
