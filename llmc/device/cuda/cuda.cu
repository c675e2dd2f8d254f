// The CUDA device: memory, scratch, and the table of ops. The one file that includes the kernels.
#include <stdio.h>
#include <stdlib.h>

#include "activation.cuh"
#include "attention.cuh"
#include "cache.cuh"
#include "cuda.cuh"
#include "embed.cuh"
#include "graph.cuh"
#include "head.cuh"
#include "matmul.cuh"
#include "nccl.cuh"
#include "norm.cuh"
#include "operand.cuh"
#include "rope.cuh"
#include "rows.cuh"
#include "sample.cuh"
#include "update.cuh"

struct cuda_device {
    backend table;
    cuda_context context;
};

// ------------------------------------------------------------------------------------------------
// Memory

static void* memory_take(backend* b, size_t bytes, const char* what) {
    void* p = NULL;
    size_t left = 0, total = 0;
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        CUDA_CHECK(cudaMemGetInfo(&left, &total));
        fatal("%s: no GPU memory for %.1f MB; %.1f of %.1f MB are free", what, bytes / 1e6,
              left / 1e6, total / 1e6);
    }
    b->allocated += bytes;
    return p;
}

static void* cuda_alloc(backend* b, size_t bytes, const char* what) {
    void* p = memory_take(b, bytes, what);
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, stream_of(b)));
    return p;
}

// What was issued may still use it, and nothing promises that cudaFree waits.
static void cuda_release(backend* b, void* p, size_t bytes) {
    CUDA_CHECK(cudaStreamSynchronize(context_of(b)->stream));
    CUDA_CHECK(cudaStreamSynchronize(context_of(b)->other));
    CUDA_CHECK(cudaFree(p));
    b->allocated -= bytes;
}

static void cuda_move(backend* b, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_of(b)));
}

static void cuda_sync(backend* b) {
    CUDA_CHECK(cudaStreamSynchronize(stream_of(b)));
    context_of(b)->staged = 0;
}

// The caller may reuse its memory at once. So what is small is copied to memory of the device's own
// first, and goes on from there when the GPU comes to it; the host waits where there is no more of
// that memory.
static void cuda_upload(backend* b, void* to, const void* from, size_t bytes) {
    cuda_context* c = context_of(b);
    if (bytes > STAGED_MOST) {
        cuda_move(b, to, from, bytes, cudaMemcpyHostToDevice);
        cuda_sync(b);
        return;
    }
    if (c->staged + bytes > STAGING) cuda_sync(b);
    char* copy = c->staging + c->staged;
    c->staged += (bytes + 15) / 16 * 16;
    if (bytes) memcpy(copy, from, bytes);
    cuda_move(b, to, copy, bytes, cudaMemcpyHostToDevice);
}

static void cuda_download(backend* b, void* to, const void* from, size_t bytes) {
    cuda_move(b, to, from, bytes, cudaMemcpyDeviceToHost);
    cuda_sync(b);
}

static void cuda_copy(backend* b, void* to, const void* from, size_t bytes) {
    cuda_move(b, to, from, bytes, cudaMemcpyDeviceToDevice);
}

static void cuda_clear(backend* b, void* p, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, stream_of(b)));
}

// What is issued from now on waits for what was issued to the other stream.
static void cuda_join(backend* b) {
    cuda_context* c = context_of(b);
    CUDA_CHECK(cudaEventRecord(c->event, c->other));
    CUDA_CHECK(cudaStreamWaitEvent(c->stream, c->event, 0));
}

static void cuda_aside(backend* b, int on) {
    cuda_context* c = context_of(b);
    cudaStream_t other = c->other;
    c->other = c->stream;
    c->stream = other;
    if (on) cuda_join(b);
}

static size_t cuda_bytes_per(const format* f) { return storage_of(f) == STORE_FP32 ? 4 : 2; }

void* cuda_scratch(backend* b, int which, size_t bytes) {
    auto* s = &context_of(b)->scratch[which];
    if (s->bytes < bytes) {
        if (s->data) cuda_release(b, s->data, s->bytes);
        // It is not cleared, so that reads of what was never written show on the PTX machine.
        s->data = memory_take(b, bytes, "scratch (lower --micro-tokens or --slots)");
        s->bytes = bytes;
        context_of(b)->moves++;
    }
    return s->data;
}

// ------------------------------------------------------------------------------------------------
// Opening

// What this device does not have; refuse() in model/ keeps runs away that need it.
#define cuda_round_blocks NULL
#define cuda_count_changed NULL
#define cuda_experts_forward NULL
#define cuda_experts_backward NULL
#define cuda_record_rows NULL

static void fill_table(backend* b) {
    b->prefill_rows = 4096;  // enough tiles of products for every processor; no GPU has timed it
    b->bytes_per = cuda_bytes_per;
    b->alloc = cuda_alloc;
    b->release = cuda_release;
    b->upload = cuda_upload;
    b->download = cuda_download;
    b->copy = cuda_copy;
    b->clear = cuda_clear;
    b->sync = cuda_sync;
    b->repeat = cuda_repeat;
    b->forget = cuda_forget;
    b->bias_prepare = cuda_bias_prepare;
    b->group_name = cuda_group_name;
    b->group_join = cuda_group_join;
    b->exchange = cuda_exchange;
    b->batch = cuda_batch;
    b->aside = cuda_aside;
    b->join = cuda_join;
#define OP(result, name, parameters) b->name = cuda_##name;
#include "../ops.def"
}

enum { CAPABILITY_MIN = 8 };  // Ampere: bf16 tensor cores and asynchronous copies

// NULL where the GPU can be used, else why not.
static const char* unusable(int number, cudaDeviceProp* gpu) {
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaErrorInsufficientDriver) return "there is no NVIDIA driver, or it is too old";
    if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0)) return "there is no NVIDIA GPU";
    if (e == cudaSuccess) e = cudaSetDevice(number % count);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(gpu, number % count);
    if (e != cudaSuccess) return cudaGetErrorString(e);
    if (gpu->major < CAPABILITY_MIN) return "the GPU is older than Ampere (compute capability 8.0)";
    return NULL;
}

// Whether the GPU has wgmma, and the kernels were compiled for it.
static bool has_wgmma(backend* b, const cudaDeviceProp* gpu) {
    if (gpu->major != 9) return false;
    int yes, *there = (int*)b->alloc(b, sizeof yes, "a question");
    LAUNCH(wgmma_exists, dim3(1), dim3(1), 0, stream_of(b), there);
    cuda_download(b, &yes, there, sizeof yes);
    b->release(b, there, sizeof yes);
    return yes;
}

backend* cuda_open(product_source whose, const char** why) {
    return cuda_open_number(0, whose, why);
}

backend* cuda_open_number(int number, product_source whose, const char** why) {
    cudaDeviceProp gpu;
    *why = unusable(number, &gpu);
    if (*why) return NULL;
    cuda_device* d = (cuda_device*)xalloc(1, sizeof *d, "the CUDA device");
    cuda_context* c = &d->context;
    backend* b = &d->table;
    b->context = c;
    fill_table(b);
    CUDA_CHECK(cudaStreamCreate(&c->stream));
    CUDA_CHECK(cudaStreamCreate(&c->other));
    CUDA_CHECK(cudaEventCreateWithFlags(&c->event, cudaEventDisableTiming));
    CUDA_CHECK(cudaMallocHost((void**)&c->staging, STAGING));
    c->processors = gpu.multiProcessorCount;
    c->logits_kept = gpu.totalGlobalMem / 20;
    char* reason = NULL;  // why the library is not used, where that was not asked for
    c->wgmma = whose == PRODUCTS_WGMMA || whose == PRODUCTS_WGMMA_ALONE;
    if (c->wgmma && !has_wgmma(b, &gpu))
        fatal(
            "--products wgmma: %s has no wgmma, or GPU_ARCH did not name 90a when the program was "
            "built; use --products handwritten",
            gpu.name);
    if (whose != PRODUCTS_HANDWRITTEN && whose != PRODUCTS_WGMMA_ALONE)
        c->products = cublaslt_open(b, &reason);
    if (whose == PRODUCTS_CUBLASLT && !c->products)
        fatal("--products cublaslt: %s; install the library, or use --products handwritten",
              reason ? reason : "libcublasLt.so is not found");
    c->forward_handwritten = whose == PRODUCTS_INVARIANT || whose == PRODUCTS_WGMMA;
    const char* own = c->wgmma ? "wgmma" : "handwritten";
    char* products = !c->products             ? xprintf("%s", own)
                     : c->forward_handwritten ? xprintf("%s forward, cuBLASLt backward", own)
                                              : xprintf("cuBLASLt");
    c->name = xprintf("cuda (%s, %.0f GB, %s products%s%s)", gpu.name, gpu.totalGlobalMem / 1e9,
                      products, reason ? ": " : "", reason ? reason : "");
    free(products);
    free(reason);
    b->name = c->name;
    return b;
}

void cuda_close(backend* b) {
    cuda_context* c = context_of(b);
    cuda_sync(b);  // copies may still read the staging memory
    nccl_close(c->group);
    if (c->products) cublaslt_close(b, c->products);
    for (int i = 0; i < SCRATCHES; i++)
        if (c->scratch[i].data) cuda_release(b, c->scratch[i].data, c->scratch[i].bytes);
    CUDA_CHECK(cudaEventDestroy(c->event));
    CUDA_CHECK(cudaStreamDestroy(c->other));
    CUDA_CHECK(cudaStreamDestroy(c->stream));
    CUDA_CHECK(cudaFreeHost(c->staging));
    free(c->name);
    free(b);
}
