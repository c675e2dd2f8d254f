// cuda_shim.cc: plays the CUDA execution model on the CPU; cuda_shim.h says what and why.
//
// Every thread of a block runs on a fiber: a stack of its own, entered and left by a switch of the
// stack pointer. A thread gives up the processor only where it waits, and then the scheduler picks
// the next: of the warps that have runnable threads the first in the order of the schedule, and of
// its lanes the first, the last, or any. A thread that ends leaves its fiber to the next thread
// that has not begun yet, so that threads which never wait cost no switch.
#include "cuda_shim.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <vector>

#if !defined(__x86_64__) || defined(CUDA_SHIM_UCONTEXT)
#define USE_UCONTEXT 1
#include <ucontext.h>
#endif

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define HAVE_ASAN 1
#endif
#ifdef HAVE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Memory that no code may touch now, as far as the address sanitizer can tell.
static void forbid([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef HAVE_ASAN
    __asan_poison_memory_region(p, bytes);
#endif
}
static void allow([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef HAVE_ASAN
    __asan_unpoison_memory_region(p, bytes);
#endif
}

// What nobody wrote: NaN as a float of any width, -1 as an index.
static void fill_undefined(void* p, size_t bytes) { memset(p, 0xff, bytes); }

// For the shim's own inner loops.
#define UNCHECKED __attribute__((no_sanitize("address", "undefined")))

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// ------------------------------------------------------------------------------------------------
// State

enum { WARPS = SHIM_THREADS / SHIM_LANES };

// A warp operation: run(mask, lanes) computes for all lanes of the mask once they have arrived.
struct operation {
    const char* name;
    void (*run)(uint32_t mask, shim_thread* lanes);
};
// Lanes that meet in one.
struct meeting {
    uint32_t mask, arrived;
    const operation* what;
    const char* file;
    int line;
};
// Sets of lanes, one bit each.
struct warp {
    uint32_t exist, alive, ready;
    meeting meetings[SHIM_LANES];
    int meetings_open;
};

namespace {
struct copy {  // a cp.async under way
    void* to;
    unsigned char data[16];
    int group;
};
struct copy_queue {
    std::vector<copy> copies;
    int group;  // the one that collects now
};
}  // namespace

static struct {
    const char* kernel;  // NULL: none
    void (*run)(const void*);
    const void* arguments;
    size_t argument_bytes, dynamic_bytes;
    int threads;  // a block
    int schedule;
    uint64_t random;
} launch;

static struct {
    uint64_t number;  // counts all blocks ever run
    int alive;
    // Warps in the order of the schedule: rank and warp are inverse permutations; bit r of `ready`
    // says that the warp of rank r has runnable lanes.
    int rank[WARPS], warp[WARPS];
    uint32_t ready;
    int at_barrier, site;  // how many threads wait at the barrier, and at which call
    const char* file;
    int line;
    shim_votes votes, result;  // being collected, and of the last barrier
} block;

static shim_thread threads[SHIM_THREADS];
static copy_queue copying[SHIM_THREADS];
static warp warps[WARPS];

shim_thread* shim_self;
uint3 shim_block_index;
dim3 shim_block_dim, shim_grid_dim;
uint32_t shim_phase, shim_block_phase, shim_launch_phase;
const shim_checker* shim_race;

static uint32_t random_bits() {  // xorshift64*
    launch.random ^= launch.random >> 12;
    launch.random ^= launch.random << 25;
    launch.random ^= launch.random >> 27;
    return (uint32_t)(launch.random * 0x2545F4914F6CDD1Dull >> 32);
}

// ------------------------------------------------------------------------------------------------
// Faults

static void print_place(const shim_thread* t) {
    fprintf(stderr, ", block (%u,%u,%u), thread (%u,%u,%u)", shim_block_index.x, shim_block_index.y,
            shim_block_index.z, t->index.x, t->index.y, t->index.z);
    if (t->file) fprintf(stderr, ", %s:%d", t->file, t->line);
}

const char* shim_kernel_name() {
    static char name[256];
    if (!launch.kernel) return "none";
    snprintf(name, sizeof name, "%s", launch.kernel);
    size_t n = strlen(name);
    if (name[0] != '(' || name[n - 1] != ')') return name;
    name[n - 1] = 0;
    return name + 1;
}

void shim_die(const char* format, ...) {
    fflush(stdout);
    fputs("CUDA shim: ", stderr);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (launch.kernel) fprintf(stderr, "; kernel %s", shim_kernel_name());
    if (shim_self) print_place(shim_self);
    fputc('\n', stderr);
    abort();
}

// Nobody can run, but some wait.
[[noreturn]] static void die_of_deadlock() {
    char list[1024] = "";
    int n = 0, shown = 0, waiting = 0, ended = launch.threads - block.alive;
    for (int i = 0; i < launch.threads; i++) {
        const shim_thread* t = &threads[i];
        if (!t->waits) continue;
        shim_self = &threads[i];
        if (++waiting > 1 && (t[-1].waits == t->waits && t[-1].line == t->line)) continue;
        if (shown++ < 4)
            n += snprintf(list + n, sizeof list - (size_t)n, "%s thread %d in %s at %.100s:%d",
                          shown > 1 ? "," : "", i, t->waits, t->file, t->line);
    }
    shim_die("deadlock: %d threads wait, %d have ended:%s%s", waiting, ended, list,
             shown > 4 ? " ..." : "");
}

// Without sanitizers: a fault of the processor inside a kernel gets the kernel's name.
[[maybe_unused]] static void on_signal(int number) {
    signal(number, SIG_DFL);
    if (!shim_self) return;  // the instruction runs again, and ends the program
    if (number == SIGFPE) shim_die("integer division by zero");
    shim_die(
        "invalid memory access: a wild pointer, a vector that is not aligned to its size, or too "
        "much on the stack (the place named is the last operation before)");
}

static void catch_signals() {
#ifndef HAVE_ASAN
    static char stack[64 << 10];
    stack_t other = {};
    other.ss_sp = stack;
    other.ss_size = sizeof stack;
    sigaltstack(&other, nullptr);
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    for (int number : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(number, &action, nullptr);
#endif
}

// ------------------------------------------------------------------------------------------------
// Fibers. A fiber that has no thread is parked inside fiber_main, and a switch to it begins the
// thread that shim_self then names. Fiber HOST is the program's own stack.

enum {
#ifdef HAVE_ASAN
    STACK_BYTES = 256 << 10,
#else
    STACK_BYTES = 128 << 10,
#endif
    GUARD_BYTES = 4096,
    HOST = SHIM_THREADS
};

static struct {
#ifdef USE_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
    const char* bottom;
    [[maybe_unused]] size_t bytes;
    [[maybe_unused]] void* fake_stack;  // of the address sanitizer
} fibers[SHIM_THREADS + 1];
static int parked[SHIM_THREADS], parked_count;

static void fiber_main();

#ifdef USE_UCONTEXT
static void fiber_prepare(int i, char* bottom) {
    ucontext_t* context = &fibers[i].context;
    getcontext(context);
    context->uc_stack.ss_sp = bottom;
    context->uc_stack.ss_size = STACK_BYTES;
    context->uc_link = nullptr;
    makecontext(context, fiber_main, 0);
}
#else
// Saves what a function must preserve on the stack that it leaves, and restores it from the other.
extern "C" void shim_switch(void** save, void* load);
asm(R"(
    .text
    .globl shim_switch
    .type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size shim_switch, .-shim_switch
)");

static void fiber_prepare(int i, char* bottom) {
    // Stacks begin at different cache sets, or their hot ends would evict each other.
    void** top = (void**)(bottom + STACK_BYTES - i % 32 * 128);
    *--top = nullptr;  // where fiber_main would return to
    *--top = (void*)fiber_main;
    for (int r = 0; r < 6; r++) *--top = nullptr;
    fibers[i].stack_pointer = top;
}
#endif

static void fiber_switch(int from, int to) {
#ifdef HAVE_ASAN
    __sanitizer_start_switch_fiber(&fibers[from].fake_stack, fibers[to].bottom, fibers[to].bytes);
#endif
#ifdef USE_UCONTEXT
    swapcontext(&fibers[from].context, &fibers[to].context);
#else
    shim_switch(&fibers[from].stack_pointer, fibers[to].stack_pointer);
#endif
#ifdef HAVE_ASAN
    __sanitizer_finish_switch_fiber(fibers[from].fake_stack, nullptr, nullptr);
#endif
}

static void fibers_prepare() {
    if (fibers[0].bottom) return;
    size_t each = STACK_BYTES + GUARD_BYTES;
    char* p = (char*)mmap(nullptr, each * SHIM_THREADS, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fatal("CUDA shim: no memory for stacks");
    for (int i = 0; i < SHIM_THREADS; i++, p += each) {
        mprotect(p, GUARD_BYTES, PROT_NONE);
        fibers[i].bottom = p + GUARD_BYTES;
        fibers[i].bytes = STACK_BYTES;
        fiber_prepare(i, p + GUARD_BYTES);
        parked[SHIM_THREADS - 1 - i] = i;
    }
    parked_count = SHIM_THREADS;
    catch_signals();
}

shim_memory shim_stack() { return {fibers[shim_self->stack].bottom, STACK_BYTES, nullptr}; }

// ------------------------------------------------------------------------------------------------
// Scheduler

static void draw_priorities() {
    int n = (launch.threads + SHIM_LANES - 1) / SHIM_LANES;
    for (int r = 0; r < n; r++) block.warp[r] = launch.schedule == 1 ? n - 1 - r : r;
    if (launch.schedule > 1)
        for (int r = n - 1; r > 0; r--)
            std::swap(block.warp[r], block.warp[random_bits() % (unsigned)(r + 1)]);
    for (int r = 0; r < n; r++) block.rank[block.warp[r]] = r;
}

static void make_ready(int w, uint32_t lanes) {
    warps[w].ready |= lanes;
    if (lanes) block.ready |= 1u << block.rank[w];
}

static int pick_lane(uint32_t lanes) {
    if (launch.schedule == 0) return __builtin_ctz(lanes);
    if (launch.schedule == 1) return 31 - __builtin_clz(lanes);
    unsigned turn = random_bits() % 32;
    uint32_t turned = lanes >> turn | lanes << (32 - turn) % 32;
    return (int)((unsigned)__builtin_ctz(turned) + turn) % 32;
}

static shim_thread* next_thread() {
    if (!block.ready) die_of_deadlock();
    int rank = __builtin_ctz(block.ready), w = block.warp[rank], lane = pick_lane(warps[w].ready);
    warps[w].ready &= ~(1u << lane);
    if (!warps[w].ready) block.ready &= ~(1u << rank);
    return &threads[w * SHIM_LANES + lane];
}

// Another thread runs until this one is picked again.
static void suspend() {
    shim_thread *self = shim_self, *next = next_thread();
    if (next != self) {
        if (next->stack < 0) next->stack = parked[--parked_count];
        shim_self = next;
        fiber_switch(self->stack, next->stack);
    }
    self->waits = nullptr;
}

// All threads of the block wait here: they go on, in a new phase and a new order.
static void barrier_release() {
    block.at_barrier = 0;
    block.result = block.votes;
    shim_phase++;
    draw_priorities();
    for (int w = 0; w * SHIM_LANES < launch.threads; w++) make_ready(w, warps[w].alive);
}

// This thread has ended: as on a GPU, the others' barriers no longer count on it. Returns which
// thread is next, NULL after the last one.
static shim_thread* end_thread() {
    shim_thread* self = shim_self;
    warps[self->number / SHIM_LANES].alive &= ~(1u << self->number % SHIM_LANES);
    copying[self->number].copies.clear();  // nobody waited for them: they never arrive
    block.alive--;
    if (block.at_barrier && block.at_barrier == block.alive) barrier_release();
    return block.alive ? next_thread() : nullptr;
}

static void fiber_main() {
#ifdef HAVE_ASAN
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!fibers[HOST].bottom) {  // the first fiber ever is entered from the host's stack
        fibers[HOST].bottom = (const char*)bottom;
        fibers[HOST].bytes = bytes;
    }
#endif
    for (;;) {
        launch.run(launch.arguments);
        int fiber = shim_self->stack;
        shim_self->stack = -1;
        shim_thread* next = end_thread();
        if (next && next->stack < 0) {
            next->stack = fiber;
            shim_self = next;
            continue;
        }
        parked[parked_count++] = fiber;
        shim_self = next;
        fiber_switch(fiber, next ? next->stack : HOST);
    }
}

// ------------------------------------------------------------------------------------------------
// Barriers

shim_votes shim_barrier_vote(int condition, const char* file, int line, int site) {
    shim_thread* self = shim_self;
    self->file = file;
    self->line = line;
    if (!block.at_barrier) {
        block.site = site;
        block.file = file;
        block.line = line;
        block.votes = {0, 0, 1};
    } else if (site != block.site) {
        shim_die("divergent barrier: %d threads wait at another __syncthreads, %s:%d",
                 block.at_barrier, block.file, block.line);
    }
    block.votes.count += condition != 0;
    block.votes.any |= condition != 0;
    block.votes.all &= condition != 0;
    self->waits = "__syncthreads";
    if (++block.at_barrier == block.alive) barrier_release();
    suspend();
    return block.result;
}

void shim_barrier(const char* file, int line, int site) { shim_barrier_vote(0, file, line, site); }

// ------------------------------------------------------------------------------------------------
// Warp operations

// Lanes that met are ordered: what each did before has smaller clocks than what any does now.
static void order_lanes(uint32_t mask, shim_thread* lanes) {
    uint32_t latest = 0;
    for (int l = 0; l < SHIM_LANES; l++)
        if (mask >> l & 1 && lanes[l].clock > latest) latest = lanes[l].clock;
    for (int l = 0; l < SHIM_LANES; l++)
        if (mask >> l & 1) lanes[l].clock = latest + 1;
}

// The meeting of the lanes of `mask`; opens it where this lane is the first.
static meeting* find_meeting(warp* w, uint32_t mask, const operation* what) {
    const shim_thread* self = shim_self;
    for (int i = 0; i < w->meetings_open; i++) {
        meeting* m = &w->meetings[i];
        if (m->mask != mask) continue;
        if (m->what != what)
            shim_die(
                "divergent warp operation: %s here, but other lanes of mask 0x%08x wait in %s "
                "at %s:%d",
                what->name, mask, m->what->name, m->file, m->line);
        return m;
    }
    meeting* m = &w->meetings[w->meetings_open++];
    *m = {mask, 0, what, self->file, self->line};
    return m;
}

// Waits for all lanes of the mask; the last to arrive does the work for all.
static void meet(const operation* what, uint32_t mask, const char* file, int line) {
    shim_thread* self = shim_self;
    int number = self->number / SHIM_LANES, lane = self->number % SHIM_LANES;
    warp* w = &warps[number];
    self->file = file;
    self->line = line;
    self->waits = what->name;
    if (!(mask >> lane & 1))
        shim_die("%s: lane %d is not in its own mask 0x%08x", what->name, lane, mask);
    mask &= w->exist;
    if (mask & ~w->alive)
        shim_die("%s: mask 0x%08x names lane %d, which has ended", what->name, mask,
                 __builtin_ctz(mask & ~w->alive));
    meeting* m = find_meeting(w, mask, what);
    m->arrived |= 1u << lane;
    if (m->arrived == mask) {
        *m = w->meetings[--w->meetings_open];
        shim_thread* lanes = &threads[number * SHIM_LANES];
        if (what->run) what->run(mask, lanes);
        order_lanes(mask, lanes);
        make_ready(number, mask);
    }
    suspend();
}

void shim_syncwarp(unsigned mask, const char* file, int line) {
    static const operation what = {"__syncwarp", nullptr};
    meet(&what, mask, file, line);
}

// A lane's new value is that of its source; undefined if the source does not take part.
static void run_shuffle(uint32_t mask, shim_thread* lanes) {
    uint64_t value[SHIM_LANES];
    for (int l = 0; l < SHIM_LANES; l++) value[l] = mask >> l & 1 ? lanes[l].value : ~0ull;
    for (int l = 0; l < SHIM_LANES; l++)
        if (mask >> l & 1) lanes[l].value = value[lanes[l].source];
}
uint64_t shim_shuffle(unsigned mask, uint64_t value, int source, const char* file, int line) {
    static const operation what = {"a shuffle", run_shuffle};
    shim_thread* self = shim_self;
    self->value = value;
    self->source = source;
    meet(&what, mask, file, line);
    return self->value;
}

static void run_ballot(uint32_t mask, shim_thread* lanes) {
    uint32_t votes = 0;
    for (int l = 0; l < SHIM_LANES; l++)
        if (mask >> l & 1 && lanes[l].value) votes |= 1u << l;
    for (int l = 0; l < SHIM_LANES; l++)
        if (mask >> l & 1) lanes[l].value = votes;
}
unsigned shim_ballot(unsigned mask, int condition, const char* file, int line) {
    static const operation what = {"a vote", run_ballot};
    shim_thread* self = shim_self;
    self->value = condition != 0;
    meet(&what, mask, file, line);
    return (unsigned)self->value;
}

static void need_full_warp(uint32_t mask, const char* name) {
    if (mask != ~0u) shim_die("%s needs all 32 lanes, and the warp has 0x%08x", name, mask);
}

UNCHECKED static float element(uint32_t pair, int high, bool half) {
    uint16_t bits = (uint16_t)(high ? pair >> 16 : pair);
    return half ? __half2float({bits}) : __bfloat162float({bits});
}

// Fragments as in the PTX ISA, m16n8k16. Of lane 4 g + t, register i holds
//   of A the row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next;
//   of B the column g, rows 2 t + 8 i and the next;
//   of D the row g + 8 (i / 2), column 2 t + i % 2.
// Sums 16 exact products in order, then adds d; a GPU's order and rounding are its own.
UNCHECKED static void run_mma(uint32_t mask, shim_thread* lanes, bool half) {
    need_full_warp(mask, "mma");
    float a[16][16], b[16][8];
    for (int l = 0; l < SHIM_LANES; l++) {
        const uint32_t *pa = (const uint32_t*)lanes[l].operand[1],
                       *pb = (const uint32_t*)lanes[l].operand[2];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++)
            a[g + 8 * (i / 2 % 2)][2 * t + 8 * (i / 4) + i % 2] = element(pa[i / 2], i % 2, half);
        for (int i = 0; i < 4; i++)
            b[2 * t + 8 * (i / 2) + i % 2][g] = element(pb[i / 2], i % 2, half);
    }
    float sum[16][8] = {};
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < 8; c++) sum[r][c] += a[r][k] * b[k][c];
    for (int l = 0; l < SHIM_LANES; l++) {
        float* d = (float*)lanes[l].operand[0];
        for (int i = 0; i < 4; i++) d[i] += sum[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    }
}
static void run_mma_bf16(uint32_t mask, shim_thread* lanes) { run_mma(mask, lanes, false); }
static void run_mma_half(uint32_t mask, shim_thread* lanes) { run_mma(mask, lanes, true); }

void shim_mma(float* d, const uint32_t* a, const uint32_t* b, bool half, const char* file,
              int line) {
    static const operation what[2] = {{"mma of bf16", run_mma_bf16}, {"mma of fp16", run_mma_half}};
    shim_self->operand[0] = d;
    shim_self->operand[1] = a;
    shim_self->operand[2] = b;
    meet(&what[half], ~0u, file, line);
}

// Of matrix i, lane l gets from row l / 4 the elements 2 (l % 4) and the next.
static void run_ldmatrix(uint32_t mask, shim_thread* lanes, bool transposed) {
    need_full_warp(mask, "ldmatrix");
    for (int l = 0; l < SHIM_LANES; l++)
        for (int i = 0; i < 4; i++) {
            uint16_t pair[2];
            for (int e = 0; e < 2; e++) {
                int row = l / 4, column = 2 * (l % 4) + e;
                if (transposed) std::swap(row, column);
                pair[e] = ((const uint16_t*)lanes[8 * i + row].operand[1])[column];
            }
            memcpy((uint32_t*)lanes[l].operand[0] + i, pair, 4);
        }
}
static void run_ldmatrix_plain(uint32_t mask, shim_thread* lanes) {
    run_ldmatrix(mask, lanes, false);
}
static void run_ldmatrix_transposed(uint32_t mask, shim_thread* lanes) {
    run_ldmatrix(mask, lanes, true);
}

static void need_shared(const void* p, const char* what) {
    shim_memory m = shim_find_shared(p);
    if (!m.data) shim_die("%s: %p is not shared memory", what, p);
    if ((const char*)p + 16 > m.data + m.bytes)
        shim_die("%s: 16 bytes at offset %td exceed the %zu bytes of %s", what,
                 (const char*)p - m.data, m.bytes, m.name);
    if ((uintptr_t)p % 16)
        shim_die(
            "%s: offset %td in %s is not 16-byte aligned; SHARED aligns an array for its "
            "element type alone",
            what, (const char*)p - m.data, m.name);
}

void shim_ldmatrix(uint32_t* r, const void* row, bool transposed, const char* file, int line) {
    static const operation what[2] = {{"ldmatrix", run_ldmatrix_plain},
                                      {"ldmatrix.trans", run_ldmatrix_transposed}};
    shim_self->file = file;
    shim_self->line = line;
    need_shared(row, "ldmatrix");
    if (shim_race) shim_race->access(row, 16, SHIM_READ, __builtin_return_address(0));
    shim_self->operand[0] = r;
    shim_self->operand[1] = row;
    meet(&what[transposed], ~0u, file, line);
}

// ------------------------------------------------------------------------------------------------
// Asynchronous copies: from their issue to the wait, the target is undefined.

void cp_async_16(void* to_shared, const void* from, bool valid, const char* file, int line) {
    copy_queue* q = &copying[shim_self->number];
    shim_self->file = file;
    shim_self->line = line;
    need_shared(to_shared, "cp.async");
    if ((uintptr_t)from % 16) shim_die("cp.async: the source %p is not 16-byte aligned", from);
    if (shim_race) {
        const void* code = __builtin_return_address(0);
        if (valid) shim_race->access(from, 16, SHIM_READ, code);
        shim_race->access(to_shared, 16, SHIM_WRITE, code);
    }
    copy c = {to_shared, {}, q->group};
    if (valid) memcpy(c.data, from, 16);
    fill_undefined(to_shared, 16);
    q->copies.push_back(c);
}

void cp_async_commit() { copying[shim_self->number].group++; }

void shim_cp_async_wait(int groups) {
    copy_queue* q = &copying[shim_self->number];
    size_t n = 0;  // groups are queued in order
    for (; n < q->copies.size() && q->copies[n].group < q->group - groups; n++) {
        if (shim_race)
            shim_race->access(q->copies[n].to, 16, SHIM_WRITE, __builtin_return_address(0));
        memcpy(q->copies[n].to, q->copies[n].data, 16);
    }
    q->copies.erase(q->copies.begin(), q->copies.begin() + (ptrdiff_t)n);
}

// ------------------------------------------------------------------------------------------------
// Shared memory: one region. The dynamic array comes first; the others follow in the order in which
// a block comes across them. Gaps between them belong to nobody.

enum {
    STATIC_LIMIT = 48 << 10,
    SHARED_LIMIT = 227 << 10,
    SHARED_GAP = 256,
    STATIC_START = 256 << 10,
    REGION_BYTES = 512 << 10
};
alignas(1024) static char region[REGION_BYTES];
static char* const dynamic_start = region + SHARED_GAP + 16;  // aligned to 16 and no more
static std::vector<shim_memory> arrays;                       // of the block that runs
static size_t static_bytes, static_end;

static void shared_begin_block() {
    forbid(region + STATIC_START, static_end > STATIC_START ? static_end - STATIC_START : 0);
    arrays.clear();
    static_bytes = 0;
    static_end = STATIC_START;
    fill_undefined(dynamic_start, launch.dynamic_bytes);
}

void* shim_shared(shim_array* array, size_t bytes, size_t alignment, const char* file, int line) {
    if (array->block == block.number) return array->data;
    size_t start = round_up(static_end + SHARED_GAP, alignment < 16 ? 16 : alignment);
    if (alignment < 16) start += alignment;  // an address that is aligned no better than promised
    static_bytes = round_up(static_bytes, alignment) + bytes;
    shim_self->file = file;
    shim_self->line = line;
    if (static_bytes > STATIC_LIMIT)
        shim_die("more than 48 KiB of static shared memory, with %s; use DYN_SHARED", array->name);
    if (static_bytes + launch.dynamic_bytes > SHARED_LIMIT)
        shim_die("more than 227 KiB of shared memory: %zu static with %s, %zu dynamic",
                 static_bytes, array->name, launch.dynamic_bytes);
    static_end = start + bytes;
    if (static_end + SHARED_GAP > REGION_BYTES) shim_die("too many shared arrays");
    array->block = block.number;
    array->data = region + start;
    arrays.push_back({region + start, bytes, array->name});
    allow(array->data, bytes);
    fill_undefined(array->data, bytes);
    return array->data;
}

void* shim_dynamic(size_t alignment, const char* file, int line) {
    shim_self->file = file;
    shim_self->line = line;
    if (alignment > 16)
        shim_die("dynamic shared memory is aligned to 16 bytes, not %zu", alignment);
    return dynamic_start;
}

shim_memory shim_shared_region() { return {region, REGION_BYTES, nullptr}; }

shim_memory shim_find_shared(const void* p) {
    const char* at = (const char*)p;
    shim_memory found = {};
    if (at < dynamic_start || at >= region + REGION_BYTES) return found;
    found = {dynamic_start, launch.dynamic_bytes, "the dynamic array"};
    for (const shim_memory& m : arrays)
        if (m.data <= at) found = m;
    return found;
}

// ------------------------------------------------------------------------------------------------
// Launch

shim_memory shim_arguments() {
    return {(const char*)launch.arguments, launch.argument_bytes, nullptr};
}

static void run_block(size_t b) {
    shim_block_index = {(unsigned)(b % shim_grid_dim.x),
                        (unsigned)(b / shim_grid_dim.x % shim_grid_dim.y),
                        (unsigned)(b / shim_grid_dim.x / shim_grid_dim.y)};
    block.number++;
    block.alive = launch.threads;
    block.at_barrier = 0;
    block.ready = 0;
    shim_block_phase = ++shim_phase;
    shared_begin_block();
    draw_priorities();
    for (int i = 0; i < launch.threads; i++) {
        threads[i].clock = 0;
        threads[i].file = nullptr;
        copying[i].group = 0;
    }
    for (int w = 0; w * SHIM_LANES < launch.threads; w++) {
        int lanes = launch.threads - w * SHIM_LANES;
        warps[w].exist = warps[w].alive = lanes < SHIM_LANES ? (1u << lanes) - 1 : ~0u;
        warps[w].ready = 0;
        warps[w].meetings_open = 0;
        make_ready(w, warps[w].exist);
    }
    shim_self = next_thread();
    shim_self->stack = parked[--parked_count];
    fiber_switch(HOST, shim_self->stack);
}

static const std::vector<size_t>& order_of_blocks() {
    static std::vector<size_t> order;
    size_t n = (size_t)shim_grid_dim.x * shim_grid_dim.y * shim_grid_dim.z;
    order.resize(n);
    for (size_t b = 0; b < n; b++) order[b] = launch.schedule == 1 ? n - 1 - b : b;
    if (launch.schedule > 1)
        for (size_t b = n - 1; b > 0; b--) std::swap(order[b], order[random_bits() % (b + 1)]);
    return order;
}

static void check_launch(dim3 grid, dim3 each) {
    if (shim_self) shim_die("a launch inside a kernel");
    if (!each.x || !each.y || !each.z || (size_t)each.x * each.y * each.z > SHIM_THREADS ||
        each.z > 64)
        shim_die("blocks of %u x %u x %u threads: 1 to 1024 are possible", each.x, each.y, each.z);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        shim_die("a grid of %u x %u x %u blocks: 1 to 2147483647 x 65535 x 65535 are possible",
                 grid.x, grid.y, grid.z);
    if (launch.dynamic_bytes > SHARED_LIMIT)
        shim_die("%zu bytes of dynamic shared memory; 227 KiB are possible", launch.dynamic_bytes);
}

static void device_access(bool allowed);

void shim_run_grid(const char* kernel, dim3 grid, dim3 each, size_t shared_bytes,
                   void (*run)(const void*), const void* arguments, size_t argument_bytes) {
    const char* schedule = getenv("CUDA_SHIM_SCHEDULE");
    launch.kernel = kernel;
    launch.dynamic_bytes = shared_bytes;
    check_launch(grid, each);
    fibers_prepare();
    launch.run = run;
    launch.arguments = arguments;
    launch.argument_bytes = argument_bytes;
    launch.threads = (int)(each.x * each.y * each.z);
    launch.schedule = schedule ? atoi(schedule) : 0;
    launch.random = 0x9E3779B97F4A7C15ull * (uint64_t)(launch.schedule + 1);
    shim_grid_dim = grid;
    shim_block_dim = each;
    for (int i = 0; i < launch.threads; i++) {
        unsigned n = (unsigned)i;
        threads[i].index = {n % each.x, n / each.x % each.y, n / each.x / each.y};
        threads[i].number = i;
        threads[i].stack = -1;
    }
    shim_launch_phase = shim_phase + 1;
    forbid(region, REGION_BYTES);
    allow(dynamic_start, launch.dynamic_bytes);
    device_access(true);

    for (size_t b : order_of_blocks()) run_block(b);

    device_access(false);
    if (shim_race) shim_race->launch_done();
    launch.kernel = nullptr;
}

// ------------------------------------------------------------------------------------------------
// Device memory. Around each allocation lies memory that belongs to nobody. Host code may not touch
// it; the address sanitizer sees to that.

enum { DEVICE_GAP = 512 };
static std::map<const char*, size_t> allocations;  // start, bytes
static size_t allocated;

static void device_access(bool allowed) {
    for (const auto& [start, bytes] : allocations)
        allowed ? allow(start, bytes) : forbid(start, bytes);
}

static size_t device_memory() {
    const char* limit = getenv("CUDA_SHIM_MEMORY");
    return limit ? strtoull(limit, nullptr, 10) : (size_t)4 << 30;
}

cudaError_t shim_malloc(void** p, size_t bytes) {
    *p = nullptr;
    if (!bytes) return cudaSuccess;
    size_t limit = device_memory(), whole = round_up(bytes, DEVICE_GAP) + 2 * DEVICE_GAP;
    if (bytes > limit || allocated > limit - bytes) return cudaErrorMemoryAllocation;
    char* start = (char*)aligned_alloc(DEVICE_GAP, whole);
    if (!start) return cudaErrorMemoryAllocation;
    fill_undefined(start, whole);
    forbid(start, whole);
    *p = start + DEVICE_GAP;
    allocations[start + DEVICE_GAP] = bytes;
    allocated += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void* p) {
    if (!p) return cudaSuccess;
    auto found = allocations.find((const char*)p);
    if (found == allocations.end()) shim_die("cudaFree of %p, which cudaMalloc did not return", p);
    char* start = (char*)p - DEVICE_GAP;
    size_t whole = round_up(found->second, DEVICE_GAP) + 2 * DEVICE_GAP;
    if (shim_race) shim_race->freed(p);
    allow(start, whole);
    fill_undefined(start, whole);
    allocated -= found->second;
    allocations.erase(found);
    free(start);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    *total_bytes = device_memory();
    *free_bytes = *total_bytes > allocated ? *total_bytes - allocated : 0;
    return cudaSuccess;
}

cudaError_t shim_malloc_host(void** p, size_t bytes) {
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* p) {
    free(p);
    return cudaSuccess;
}

shim_memory shim_find_device(const void* p) {
    if (!allocated) return {};  // also before the table's constructor has run
    auto next = allocations.upper_bound((const char*)p);
    if (next == allocations.begin()) return {};
    --next;
    return {next->first, next->second, nullptr};
}

// The range must lie in one allocation, or, for the host's side, in none.
static void check_range(const void* p, size_t bytes, bool device, const char* what) {
    shim_memory m = shim_find_device(p);
    size_t offset = (size_t)((const char*)p - m.data);
    bool inside = m.data && offset < m.bytes;
    if (device && !inside) shim_die("%s: %p is not device memory", what, p);
    if (!device && inside) shim_die("%s: %p is device memory, not the host's", what, p);
    if (device && bytes > m.bytes - offset)
        shim_die("%s: %zu bytes at offset %zu exceed an allocation of %zu bytes", what, bytes,
                 offset, m.bytes);
    if (device) allow(p, bytes);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
    if (!bytes) return cudaSuccess;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) shim_die("cudaMemcpy: say which way to copy");
    check_range(from, bytes, from_device, "cudaMemcpy's source");
    check_range(to, bytes, to_device, "cudaMemcpy's target");
    memcpy(to, from, bytes);
    if (from_device) forbid(from, bytes);
    if (to_device) forbid(to, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t) {
    if (!bytes) return cudaSuccess;
    check_range(p, bytes, true, "cudaMemset");
    memset(p, byte, bytes);
    forbid(p, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int byte, size_t bytes) {
    return cudaMemsetAsync(p, byte, bytes, nullptr);
}

// ------------------------------------------------------------------------------------------------
// Devices, streams, events

static bool device_present() {
    const char* devices = getenv("CUDA_SHIM_DEVICES");
    return !devices || atoi(devices) > 0;
}

const char* cudaGetErrorString(cudaError_t e) {
    static const struct {
        cudaError_t e;
        const char* text;
    } texts[] = {
        {cudaSuccess, "no error"},
        {cudaErrorMemoryAllocation, "out of memory"},
        {cudaErrorInsufficientDriver,
         "CUDA driver version is insufficient for CUDA runtime version"},
        {cudaErrorNoDevice, "no CUDA-capable device is detected"},
        {cudaErrorInvalidDevice, "invalid device ordinal"},
    };
    for (const auto& known : texts)
        if (known.e == e) return known.text;
    return "unrecognized error code";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
    *count = device_present();
    return *count ? cudaSuccess : cudaErrorInsufficientDriver;
}
cudaError_t cudaSetDevice(int device) {
    if (!device_present()) return cudaErrorInsufficientDriver;
    return device ? cudaErrorInvalidDevice : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return device_present() ? cudaSuccess : cudaErrorInsufficientDriver;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    cudaError_t e = cudaSetDevice(device);
    if (e != cudaSuccess) return e;
    *properties = {};
    strcpy(properties->name, "CUDA shim");
    properties->totalGlobalMem = device_memory();
    properties->sharedMemPerBlock = STATIC_LIMIT;
    properties->sharedMemPerBlockOptin = SHARED_LIMIT;
    properties->major = 9;
    properties->multiProcessorCount = 2;
    properties->warpSize = SHIM_LANES;
    properties->l2CacheSize = 1 << 20;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = device_present() ? 13000 : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// Streams and events are small objects, so that a leak or a second destroy is seen.
struct shim_stream {
    unsigned flags;
};
struct shim_event {
    double seconds;
};
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = new shim_stream{flags};
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new shim_event{0};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    event->seconds = clock_seconds();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = (float)(1e3 * (end->seconds - start->seconds));
    return cudaSuccess;
}
