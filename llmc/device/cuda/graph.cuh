// Calls that come again and again, as a CUDA graph: one launch for all of their kernels.
//
// What is recorded is what the host says: kernels, their grids, and parameters by value. Whatever
// changes from one time to the next lies in device memory. Recording forbids what waits for the
// GPU or takes memory from it, so the calls run once as they are: that makes the scratch memory and
// the plans of products that they need. The second time they are recorded, from then on the record
// is launched. Where scratch memory has moved since (other calls wanted more of it), the record
// names memory that is gone: it is dropped, and all begins anew.
#ifndef LLMC_CUDA_GRAPH_CUH
#define LLMC_CUDA_GRAPH_CUH

#include <stdlib.h>

#include "cuda.cuh"

struct recording {
    int key;
    recording* next;
    uint64_t moves;         // cuda_context.moves when the calls last ran; NEVER: they have not
    cudaGraphExec_t graph;  // NULL: not recorded yet
};
constexpr uint64_t NEVER = ~0ull;

static recording* recording_of(recording** all, int key) {
    for (recording* r = *all; r; r = r->next)
        if (r->key == key) return r;
    recording* r = (recording*)xalloc(1, sizeof *r, "a recording");
    *r = recording{key, *all, NEVER, NULL};
    return *all = r;
}

// The stream may still be at the record: it is waited for.
static void recording_drop(recording* r, backend* b) {
    if (!r->graph) return;
    CUDA_CHECK(cudaStreamSynchronize(stream_of(b)));
    CUDA_CHECK(cudaGraphExecDestroy(r->graph));
    r->graph = NULL;
}

static void recording_make(recording* r, backend* b, void (*calls)(void*), void* argument) {
    cudaGraph_t graph;
    CUDA_CHECK(cudaStreamBeginCapture(stream_of(b), cudaStreamCaptureModeThreadLocal));
    calls(argument);
    CUDA_CHECK(cudaStreamEndCapture(stream_of(b), &graph));
    CUDA_CHECK(cudaGraphInstantiate(&r->graph, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
}

static void cuda_repeat(backend* b, recording** all, int key, void (*calls)(void*),
                        void* argument) {
    const uint64_t& moves = context_of(b)->moves;
    context_of(b)->logits_of = NULL;  // the calls may have logits of their own
    recording* r = recording_of(all, key);
    if (r->moves != moves) {
        recording_drop(r, b);
        calls(argument);
        r->moves = moves;
        return;
    }
    if (!r->graph) recording_make(r, b, calls, argument);
    CUDA_CHECK(cudaGraphLaunch(r->graph, stream_of(b)));
}

static void cuda_forget(backend* b, recording** all) {
    while (*all) {
        recording* r = *all;
        *all = r->next;
        recording_drop(r, b);
        free(r);
    }
}

#endif
