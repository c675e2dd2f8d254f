// The calls of cudart that the CUDA device and its tests make, under their names. Kernels come from
// the fat binary that nvcc put into the object.
//
// Work is asynchronous, and as late as it may be: a stream is a queue that runs when somebody waits
// for it. A wait that is missing shows as data that have not arrived. Two streams are as far apart
// as they may be: with PTX_SCHEDULE 0 the others run only as far as the one that is waited for
// waits for them; else all that they may do comes first.
//
// A stream that is captured (cudaStreamBeginCapture) runs nothing: its work becomes a graph, which
// holds what kernels were given by value. What waits for a captured stream, takes or gives back
// memory, or copies from or to the host's is refused meanwhile and spoils the capture. (CUDA lets
// copies from page-locked memory be captured: nothing here wants that.)
//
// Environment: PTX_MEMORY, bytes of the device's memory; PTX_DEVICES=0 takes the device away;
// PTX_RUNTIME, the version of CUDA that it claims to be; PTX_SCHEDULE, the order of threads and
// blocks, read at each launch (of a graph too); PTX_SUM (tensor.cc).
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <utility>

#include "ptx.h"

using namespace ptx;

using work = std::function<void(u32 schedule)>;
struct CUgraph_st {
    std::vector<work> all;
};
struct CUgraphExec_st {
    std::vector<work> all;
};
// A place in a stream, which a stream may wait for.
struct place {
    CUstream_st* stream;
    bool reached;
};
struct entry {
    work run;
    u32 order;
    std::shared_ptr<place> awaited;  // before it runs; or NULL
};
struct CUstream_st {
    std::deque<entry> queue;
    CUgraph_st* captured = NULL;  // what there is of it so far; NULL: it is not captured
};
struct CUevent_st {
    std::shared_ptr<place> last;  // recorded; NULL: none
};

struct runtime {
    CUstream_st null_stream;
    std::vector<CUstream_st*> streams;
    cudaError_t last_error = cudaSuccess;
    bool spoiled = false;  // the capture under way
    u64 launches = 0, waits = 0;
    std::map<const void*, kernel*> kernel_of;  // by the host's function
    std::vector<std::unique_ptr<module>> modules;
};
// Objects register their kernels before main, in no certain order.
static runtime& state() {
    static runtime& s = *new runtime();
    static int once = atexit([] { coverage_write(s.modules); });
    (void)once;
    return s;
}

static cudaError_t failed(cudaError_t e) { return state().last_error = e; }

static kernel* kernel_find(const void* function) {
    auto found = state().kernel_of.find(function);
    return found == state().kernel_of.end() ? NULL : found->second;
}

static u32 schedule_now() { return (u32)environment_number("PTX_SCHEDULE", 0); }

static bool may_run(const CUstream_st* s) {
    return !s->queue.empty() && (!s->queue.front().awaited || s->queue.front().awaited->reached);
}
static void run_first(CUstream_st* s) {
    while (s->queue.front().awaited && !s->queue.front().awaited->reached)
        run_first(s->queue.front().awaited->stream);
    entry next = std::move(s->queue.front());
    s->queue.pop_front();
    next.run(next.order);
}
static void run_queue(CUstream_st* s) {
    while (!s->queue.empty()) {
        if (schedule_now())
            for (CUstream_st* other : state().streams)
                while (other != s && may_run(other)) run_first(other);
        run_first(s);
    }
}
static void run_all() {
    run_queue(&state().null_stream);
    for (CUstream_st* s : state().streams) run_queue(s);
}
static CUstream_st* stream_or_null(cudaStream_t s) { return s ? s : &state().null_stream; }

static bool capturing() {
    for (CUstream_st* s : state().streams)
        if (s->captured) return true;
    return false;
}

// For a call that no capture allows: whether one is under way, which is then spoiled.
static bool spoils() {
    if (!capturing()) return false;
    return state().spoiled = true;
}

static void enqueue(cudaStream_t stream, work w) {
    CUstream_st* s = stream_or_null(stream);
    if (s->captured)
        s->captured->all.push_back(std::move(w));
    else
        s->queue.push_back({std::move(w), schedule_now(), NULL});
}

// ------------------------------------------------------------------------------------------------
// Modules

// A fat binary: a header of 16 bytes {magic, version, header's bytes, bytes}, then entries {kind,
// version, header's bytes, payload's bytes, ...}; kind 1 is PTX.
struct fat_header {
    u32 magic;
    u16 version, header_bytes;
    u64 bytes;
};
struct fat_entry {
    u16 kind, version;
    u32 header_bytes;
    u64 bytes;
};
constexpr u32 FAT_MAGIC = 0xba55ed50, FAT_WRAPPER_MAGIC = 0x466243b1;
struct fat_wrapper {
    u32 magic, version;
    const fat_header* data;
    void* unused;
};

[[noreturn]] static void no_ptx(const char* why) {
    fprintf(stderr,
            "ptx: %s; build the object with -gencode arch=compute_N,code=compute_N "
            "--no-compress\n",
            why);
    abort();
}

extern "C" void** __cudaRegisterFatBinary(void* wrapper) {
    const fat_header* h = ((fat_wrapper*)wrapper)->data;
    if (((fat_wrapper*)wrapper)->magic != FAT_WRAPPER_MAGIC || h->magic != FAT_MAGIC)
        no_ptx("the object's fat binary has another format");
    const char* at = (const char*)h + h->header_bytes;
    const fat_entry* e = (const fat_entry*)at;
    if (e->kind != 1) no_ptx("the object's fat binary begins with machine code");
    std::string text(at + e->header_bytes, e->bytes);
    if (text.find(".version") == text.npos) no_ptx("the object's PTX is compressed");
    text.resize(strnlen(text.data(), text.size()));
    state().modules.push_back(module_read(std::move(text)));
    return (void**)state().modules.back().get();
}
extern "C" void __cudaRegisterFatBinaryEnd(void**) {}
extern "C" void __cudaUnregisterFatBinary(void**) {}

extern "C" void __cudaRegisterFunction(void** handle, const char* function, char*, const char* name,
                                       int, uint3*, uint3*, dim3*, dim3*, int*) {
    module* m = (module*)handle;
    auto k = m->kernels.find(name);
    if (k == m->kernels.end()) no_ptx("a kernel of the host has no PTX");
    state().kernel_of[function] = &k->second;
}

extern "C" cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void* text, cudaJitOption*,
                                           void**, unsigned, cudaLibraryOption*, void**, unsigned) {
    state().modules.push_back(module_read((const char*)text));
    *library = (cudaLibrary_t)state().modules.back().get();
    return cudaSuccess;
}
extern "C" cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
extern "C" cudaError_t cudaLibraryGetKernel(cudaKernel_t* k, cudaLibrary_t library,
                                            const char* name) {
    module* m = (module*)library;
    auto found = m->kernels.find(name);
    if (found == m->kernels.end()) return failed(cudaErrorSymbolNotFound);
    *k = (cudaKernel_t)&found->second;
    return cudaSuccess;
}
extern "C" cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* function) {
    *k = (cudaKernel_t)kernel_find(function);
    return *k ? cudaSuccess : failed(cudaErrorInvalidDeviceFunction);
}

// ------------------------------------------------------------------------------------------------
// Launches

static struct {
    dim3 grid, size;
    size_t shared;
    void* stream;
} configuration;

extern "C" unsigned __cudaPushCallConfiguration(dim3 grid, dim3 size, size_t shared,
                                                struct CUstream_st* stream) {
    configuration = {grid, size, shared, stream};
    return 0;
}
extern "C" cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* size, size_t* shared,
                                                  void* stream) {
    *grid = configuration.grid, *size = configuration.size, *shared = configuration.shared;
    *(void**)stream = configuration.stream;
    return cudaSuccess;
}

// What the kernel and the card allow (compute capability 8.0 and later).
static cudaError_t launch_check(kernel& k, dim3 grid, dim3 size, size_t shared) {
    if (!k.parsed) kernel_parse(k);
    u64 threads = (u64)size.x * size.y * size.z;
    bool fits = grid.x && grid.y && grid.z && grid.x <= 0x7fffffff && grid.y <= 65535 &&
                grid.z <= 65535 && threads && threads <= k.threads_limit && size.z <= 64;
    if (!fits) return cudaErrorInvalidConfiguration;
    // The gaps between variables are the machine's own.
    return shared > k.dynamic_limit || shared + k.shared_declared > SHARED_MAX
               ? cudaErrorInvalidValue
               : cudaSuccess;
}

static cudaError_t enqueue_launch(kernel& k, dim3 grid, dim3 size, void** arguments, size_t shared,
                                  cudaStream_t stream) {
    cudaError_t e = launch_check(k, grid, size, shared);
    if (e != cudaSuccess) return failed(e);
    launch l = {&k, {grid.x, grid.y, grid.z}, {size.x, size.y, size.z}, (u32)shared, {}};
    for (size_t p = 0; p < k.parameters.size(); p++) {
        const parameter& to = k.parameters[p];
        l.arguments.resize(to.offset + to.bytes);
        memcpy(l.arguments.data() + to.offset, arguments[p], to.bytes);
    }
    state().launches += !stream_or_null(stream)->captured;
    enqueue(stream, [l](u32 order) {
        if (order != schedule) schedule_set(order);
        coverage_enter();
        launch_run(l);
        coverage_leave();
        profile_launched(l);
    });
    return cudaSuccess;
}
extern "C" cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 size, void** arguments,
                                          size_t shared, cudaStream_t stream) {
    return enqueue_launch(*(kernel*)k, grid, size, arguments, shared, stream);
}
extern "C" cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 size,
                                        void** arguments, size_t shared, cudaStream_t stream) {
    kernel* k = kernel_find(function);  // or a kernel of a library, by itself
    return enqueue_launch(k ? *k : *(kernel*)function, grid, size, arguments, shared, stream);
}
extern "C" cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f, void* data) {
    enqueue(stream, [f, data](u32) { f(data); });
    return cudaSuccess;
}
extern "C" cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute what,
                                            int value) {
    kernel* k = kernel_find(function);
    if (!k) return failed(cudaErrorInvalidDeviceFunction);
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || (u32)value > SHARED_MAX)
        return failed(cudaErrorInvalidValue);
    k->dynamic_limit = (u32)value;
    return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------
// Memory

extern "C" cudaError_t cudaMalloc(void** p, size_t bytes) {
    if (spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    *p = (void*)memory_alloc(bytes);
    return *p ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
extern "C" cudaError_t cudaFree(void* p) {
    if (spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    run_all();
    return !p || memory_free((u64)p) ? cudaSuccess : failed(cudaErrorInvalidValue);
}
extern "C" cudaError_t cudaMallocHost(void** p, size_t bytes) {
    if (spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    *p = malloc(bytes);
    return *p ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
extern "C" cudaError_t cudaFreeHost(void* p) {
    if (spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    run_all();
    free(p);
    return cudaSuccess;
}
extern "C" cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
    *left = memory_left(), *total = memory_total();
    return cudaSuccess;
}
extern "C" cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                                       cudaMemcpyKind kind, cudaStream_t stream) {
    bool up = kind == cudaMemcpyHostToDevice, down = kind == cudaMemcpyDeviceToHost;
    if ((up || down) && stream_or_null(stream)->captured && spoils())
        return failed(cudaErrorStreamCaptureUnsupported);
    enqueue(stream, [=](u32) {
        const void* source = up ? from : memory_host((u64)from, bytes, READ, "a copy");
        void* target = down ? to : memory_host((u64)to, bytes, WRITE, "a copy");
        memmove(target, source, bytes);
    });
    return cudaSuccess;
}
extern "C" cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
    enqueue(stream,
            [=](u32) { memset(memory_host((u64)p, bytes, WRITE, "a memset"), value, bytes); });
    return cudaSuccess;
}
extern "C" void* ptx_memory(const void* p, size_t bytes, int write) {
    return memory_host((u64)p, bytes, write ? WRITE : READ, "a library");
}

// ------------------------------------------------------------------------------------------------
// Streams, and the events by which one waits for another. Nothing here takes a time.

extern "C" cudaError_t cudaEventCreate(cudaEvent_t*) { return failed(cudaErrorNotSupported); }
extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
    if (flags != cudaEventDisableTiming) return failed(cudaErrorNotSupported);
    *e = new CUevent_st();
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    if (stream_or_null(s)->captured && spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    std::shared_ptr<place> here(new place{stream_or_null(s), false});
    e->last = here;
    enqueue(s, [here](u32) { here->reached = true; });
    return cudaSuccess;
}
// For what has been recorded by now; an event that was never recorded is no wait.
extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    if (stream_or_null(s)->captured && spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    enqueue(s, [](u32) {});
    stream_or_null(s)->queue.back().awaited = e->last;
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t) { return failed(cudaErrorNotSupported); }
extern "C" cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) {
    return failed(cudaErrorNotSupported);
}

extern "C" cudaError_t cudaStreamCreate(cudaStream_t* s) {
    state().streams.push_back(*s = new CUstream_st());
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamDestroy(cudaStream_t s) {
    if (s->captured && spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    run_queue(s);
    std::erase(state().streams, s);
    delete s;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (stream_or_null(s)->captured && spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    state().waits++;
    run_queue(stream_or_null(s));
    return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceSynchronize() {
    if (spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    run_all();
    return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------
// Graphs

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s || s->captured) return failed(cudaErrorIllegalState);
    s->captured = new CUgraph_st();
    state().spoiled = false;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
    *graph = NULL;
    if (!s || !s->captured) return failed(cudaErrorIllegalState);
    *graph = std::exchange(s->captured, (CUgraph_st*)NULL);
    if (!state().spoiled) return cudaSuccess;
    delete std::exchange(*graph, (CUgraph_st*)NULL);
    return failed(cudaErrorStreamCaptureInvalidated);
}
extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t graph,
                                            unsigned long long) {
    *e = new CUgraphExec_st{graph->all};
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
    delete e;
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    if (stream_or_null(s)->captured && spoils()) return failed(cudaErrorStreamCaptureUnsupported);
    state().launches++;
    for (const work& w : e->all) enqueue(s, w);
    return cudaSuccess;
}
extern "C" uint64_t ptx_launches(void) { return state().launches; }
extern "C" uint64_t ptx_waits(void) { return state().waits; }

// ------------------------------------------------------------------------------------------------
// Devices, errors

static int devices() { return (int)environment_number("PTX_DEVICES", 1); }
extern "C" cudaError_t cudaGetDeviceCount(int* count) {
    *count = devices();
    return *count ? cudaSuccess : failed(cudaErrorNoDevice);
}
extern "C" cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = (int)environment_number("PTX_RUNTIME", CUDART_VERSION);
    return cudaSuccess;
}
extern "C" cudaError_t cudaSetDevice(int d) {
    return d < devices() ? cudaSuccess : failed(cudaErrorInvalidDevice);
}
extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "PTX machine");
    p->totalGlobalMem = memory_total();
    u64 capability = environment_number("PTX_CAPABILITY", 90);
    p->major = (int)capability / 10, p->minor = (int)capability % 10;
    p->multiProcessorCount = (int)environment_number("PTX_PROCESSORS", 4);
    return cudaSuccess;
}
extern "C" const char* cudaGetErrorString(cudaError_t e) {
    switch (e) {
        case cudaSuccess:
            return "no error";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        case cudaErrorInvalidValue:
            return "invalid argument";
        default:
            return "an error of the PTX machine";
    }
}
extern "C" cudaError_t cudaGetLastError() { return std::exchange(state().last_error, cudaSuccess); }
