// cuda_race.cc: finds data races, accesses out of bounds and host pointers in kernels that run on
// the shim. The kernels are compiled with -fsanitize=thread, which calls __tsan_read4(p) and the
// like before each access; linked without that option, the calls arrive here.
//
// Two accesses to the same bytes race if one of them writes, they are not both atomic, and nothing
// orders them: other blocks of a launch are never ordered, threads of a block by a barrier between,
// lanes of a warp by a warp operation between. So each pair of bytes (a cell) remembers its last
// write or atomic and its last read, with the phase and the clock (cuda_shim.h) of that moment.
// What is ordered before a later access of the same kind may be forgotten: whoever conflicts with
// the earlier one conflicts with the later one. Of accesses that are not ordered, a record keeps
// what they have in common: several lanes of a warp, or several warps.
//
// Clocks order lanes as Lamport's do: no order is missed, so nothing harmless is reported; lanes
// that synchronise in separate groups may look ordered though they are not.
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <vector>

#include "cuda_shim.h"

namespace {

enum { CELL_BYTES = 2, MOST_REPORTS = 8 };
enum { SEVERAL_LANES = 1, SEVERAL_WARPS = 2, ATOMIC = 4 };

struct record {
    uint32_t phase;  // 0: none
    uint32_t clock;  // of several lanes: the highest
    uint32_t code;   // where, from the program's start
    uint32_t other;  // the same for another block of this launch that did the like; 0: none
    uint16_t thread;
    uint8_t bytes;  // one bit each
    uint8_t flags;
};
struct cell {
    record write, read;
};
struct cells {
    cell* at;
    size_t bytes;  // of the mapping
};

std::map<const char*, cells> shadows;  // by the start of the memory that they describe
int reports, suspended;
struct {
    uint32_t code, other;
} reported[MOST_REPORTS];

cell* cells_of(const char* start, size_t bytes) {
    cells& s = shadows[start];
    if (s.at) return s.at;
    s.bytes = (bytes / CELL_BYTES + 1) * sizeof(cell);
    void* p = mmap(nullptr, s.bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fatal("race checker: no memory for %zu bytes", s.bytes);
    return s.at = (cell*)p;
}

// ------------------------------------------------------------------------------------------------
// Places in the program

struct program {
    char* base;  // what was added to the addresses in its file
    char *start, *end;
};

int look_at_program(dl_phdr_info* info, size_t, void* result) {
    program* p = (program*)result;
    p->base = (char*)info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        char* start = p->base + info->dlpi_phdr[i].p_vaddr;
        if (!p->start || start < p->start) p->start = start;
        if (start + info->dlpi_phdr[i].p_memsz > p->end)
            p->end = start + info->dlpi_phdr[i].p_memsz;
    }
    return 1;  // the program itself comes first: enough
}

const program& this_program() {
    static program p;
    if (!p.start) dl_iterate_phdr(look_at_program, &p);
    return p;
}

uint32_t code_offset(const void* code) { return (uint32_t)((char*)code - this_program().base); }

// file:line, then where that was inlined.
void print_code(uint32_t offset) {
    char exe[512], command[640], line[512];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n < 0 ? 0 : n] = 0;
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%x 2>/dev/null", exe, offset - 1);
    FILE* pipe = popen(command, "r");
    int shown = 0;
    while (pipe && fgets(line, sizeof line, pipe)) {
        char* name = strrchr(line, '/') ? strrchr(line, '/') + 1 : line;
        name[strcspn(name, " \n")] = 0;
        if (shown++ < 4) fprintf(stderr, "%s%s", shown > 1 ? " < " : "", name);
    }
    if (pipe) pclose(pipe);
    if (!shown) fprintf(stderr, "code 0x%x", offset);
}

const char* kind_name(shim_access kind) {
    return kind == SHIM_READ ? "read" : kind == SHIM_WRITE ? "write" : "atomic";
}

// ------------------------------------------------------------------------------------------------
// Reports

struct access {
    const char* p;
    size_t bytes;
    shim_access kind;
    uint32_t code;
    bool global;
    shim_memory memory;  // the allocation or array it lies in
};

void print_access(const access& a) {
    const uint3 &b = shim_block_index, &t = shim_self->index;
    fprintf(stderr, "%s of %zu bytes by block (%u,%u,%u) thread (%u,%u,%u) at ", kind_name(a.kind),
            a.bytes, b.x, b.y, b.z, t.x, t.y, t.z);
    print_code(a.code);
}

void print_memory(const access& a) {
    fprintf(stderr, " (offset %td in ", a.p - a.memory.data);
    if (a.global)
        fprintf(stderr, "an allocation of %zu bytes)", a.memory.bytes);
    else
        fprintf(stderr, "%s, %zu bytes of shared memory)", a.memory.name, a.memory.bytes);
}

[[noreturn]] void wrong_address(const access& a, const char* what) {
    fflush(stdout);
    fprintf(stderr, "CUDA shim: %s: ", what);
    print_access(a);
    if (a.memory.data) print_memory(a);
    fprintf(stderr, "; kernel %s\n", shim_kernel_name());
    abort();
}

[[noreturn]] void end_after_races() {
    fprintf(stderr, "CUDA shim: kernel %s has races\n", shim_kernel_name());
    abort();
}

void report_race(const access& a, const record& r, shim_access kind, bool other_block) {
    uint32_t code = other_block && r.other ? r.other : r.code;
    for (int i = 0; i < reports; i++)
        if (reported[i].code == a.code && reported[i].other == code) return;
    reported[reports].code = a.code;
    reported[reports].other = code;
    fflush(stdout);
    fprintf(stderr, "CUDA shim: race on %s memory: ", a.global ? "global" : "shared");
    print_access(a);
    fprintf(stderr, " and %s by ", kind_name(kind));
    if (other_block)
        fprintf(stderr, "another block");
    else
        fprintf(stderr, "thread %d%s", r.thread,
                r.flags & (SEVERAL_LANES | SEVERAL_WARPS) ? " and others" : "");
    fprintf(stderr, " at ");
    print_code(code);
    print_memory(a);
    fprintf(stderr, "; kernel %s\n", shim_kernel_name());
    if (++reports == MOST_REPORTS) end_after_races();
}

// ------------------------------------------------------------------------------------------------
// Order

bool same_warp(const record& r) { return r.thread / SHIM_LANES == shim_self->number / SHIM_LANES; }

// Everything that r stands for comes before what this thread does now.
bool ordered(const record& r) {
    if (r.phase < shim_block_phase) return false;  // in a launch: by another block
    if (r.phase < shim_phase) return true;
    if (r.flags & SEVERAL_WARPS || !same_warp(r)) return false;
    if (!(r.flags & SEVERAL_LANES) && r.thread == shim_self->number) return true;
    return r.clock < shim_self->clock;
}

// Reports a race of this access with the one in r, which was of this kind.
void check(const access& a, const record& r, shim_access kind, uint8_t bytes) {
    if (r.phase < shim_launch_phase || !(r.bytes & bytes)) return;
    bool other_block = a.global && (r.other || r.phase < shim_block_phase);
    if (!other_block && (r.phase < shim_block_phase || ordered(r))) return;
    report_race(a, r, kind, other_block);
}

// This access joins or replaces those in r, with which it does not conflict.
void remember(const access& a, record* r, uint8_t bytes, bool joins) {
    const shim_thread* self = shim_self;
    record now = {shim_phase, self->clock, a.code, 0, (uint16_t)self->number, bytes, 0};
    if (a.kind == SHIM_ATOMIC) now.flags = ATOMIC;
    // Records of single bytes do not mix: a race may go unseen then, but none is made up.
    if (joins && r->phase >= shim_launch_phase && r->bytes == bytes) {
        now.other = r->phase < shim_block_phase ? r->code : r->other;
        if (r->phase == shim_phase && !ordered(*r)) {
            now.flags |= r->flags | (same_warp(*r) ? SEVERAL_LANES : SEVERAL_WARPS);
            if (r->clock > now.clock) now.clock = r->clock;
        }
    }
    *r = now;
}

// r stands for this access too: what conflicts with one conflicts with the other, and has been
// seen.
bool known(const access& a, const record& r, uint8_t bytes) {
    if (r.phase != shim_phase || r.bytes != bytes) return false;
    if (r.flags & SEVERAL_WARPS) return a.kind == SHIM_READ;
    return r.thread == shim_self->number && r.clock == shim_self->clock &&
           r.flags == (a.kind == SHIM_ATOMIC ? ATOMIC : 0);
}

void check_cell(const access& a, cell* c, uint8_t bytes) {
    if (known(a, a.kind == SHIM_READ ? c->read : c->write, bytes)) return;
    bool written_by_atomic = c->write.flags & ATOMIC;
    shim_access written = written_by_atomic ? SHIM_ATOMIC : SHIM_WRITE;
    bool joins = a.kind == SHIM_ATOMIC && written_by_atomic;
    if (!joins) check(a, c->write, written, bytes);
    if (a.kind == SHIM_READ) {
        remember(a, &c->read, bytes, true);
    } else {
        check(a, c->read, SHIM_READ, bytes);
        remember(a, &c->write, bytes, joins);
    }
}

void check_cells(const access& a, cell* first, size_t offset) {
    for (size_t i = offset / CELL_BYTES, end = offset + a.bytes; i * CELL_BYTES < end; i++) {
        uint8_t bytes = 3;
        if (i * CELL_BYTES < offset) bytes = 2;
        if ((i + 1) * CELL_BYTES > end) bytes &= 1;
        check_cell(a, &first[i], bytes);
    }
}

// ------------------------------------------------------------------------------------------------
// Accesses

bool within(const void* p, const shim_memory& m) {
    return (const char*)p >= m.data && (const char*)p < m.data + m.bytes;
}

// Device memory used last: most accesses go there again.
struct {
    shim_memory memory;
    cell* first;
} recent;

// Not within device memory. Arguments and the program's constant tables are no fault.
void check_elsewhere(access a) {
    enum { NEAR = 256 };  // as far as the gap between two allocations goes for sure
    const program& own = this_program();
    if (within(a.p, shim_arguments()) || (a.p >= own.start && a.p < own.end)) return;
    a.memory = shim_find_device(a.p + NEAR);
    if (a.memory.data && a.p < a.memory.data + a.memory.bytes + NEAR)
        wrong_address(a, "out of bounds of device memory");
    a.memory = {};
    wrong_address(a, "neither device nor shared memory (a host pointer?)");
}

void check_global(access a) {
    a.global = true;
    if (!within(a.p, recent.memory)) {
        a.memory = shim_find_device(a.p);
        if (!within(a.p, a.memory)) return check_elsewhere(a);
        recent.memory = a.memory;
        recent.first = cells_of(a.memory.data, a.memory.bytes);
    }
    a.memory = recent.memory;
    size_t offset = (size_t)(a.p - a.memory.data);
    if (offset + a.bytes > a.memory.bytes) wrong_address(a, "out of bounds of device memory");
    check_cells(a, recent.first, offset);
}

void check_shared(access a) {
    static cell* first;
    shim_memory region = shim_shared_region();
    if (!first) first = cells_of(region.data, region.bytes);
    a.memory = shim_find_shared(a.p);
    if (!a.memory.data || a.p + a.bytes > a.memory.data + a.memory.bytes)
        wrong_address(a, "out of bounds of shared memory");
    check_cells(a, first, (size_t)(a.p - region.data));
}

void check_host(const void* p) {
    if (within(p, shim_find_device(p))) {
        shim_memory m = shim_find_device(p);
        shim_die("host code touches device memory, offset %td of an allocation of %zu bytes",
                 (const char*)p - m.data, m.bytes);
    }
}

void check_access(const void* p, size_t bytes, shim_access kind, const void* code) {
    if (suspended || !bytes) return;
    if (shim_self && within(p, shim_stack())) return;
    suspended = 1;  // library code that this calls may be instrumented
    access a = {(const char*)p, bytes, kind, code_offset(code), false, {}};
    if (!shim_self)
        check_host(p);
    else if (within(p, shim_shared_region()))
        check_shared(a);
    else
        check_global(a);
    suspended = 0;
}

void check_aligned(const void* p, size_t bytes, shim_access kind, const void* code) {
    if (shim_self && (uintptr_t)p % bytes) {
        access a = {(const char*)p, bytes, kind, code_offset(code), false, {}};
        wrong_address(a, "misaligned access");
    }
    check_access(p, bytes, kind, code);
}

void launch_done() {
    if (reports) end_after_races();
}

void forget_allocation(const void* p) {
    recent.memory = {};
    auto found = shadows.find((const char*)p);
    if (found == shadows.end()) return;
    munmap(found->second.at, found->second.bytes);
    shadows.erase(found);
}

const shim_checker checker = {check_access, launch_done, forget_allocation};
[[maybe_unused]] const bool registered = (shim_race = &checker, true);

}  // namespace

// ------------------------------------------------------------------------------------------------
// What instrumented code calls

#define CODE __builtin_return_address(0)

void shim_race_atomic(void* p, size_t bytes) { check_aligned(p, bytes, SHIM_ATOMIC, CODE); }
void* shim_memcpy(void* to, const void* from, size_t bytes) {
    check_access(from, bytes, SHIM_READ, CODE);
    check_access(to, bytes, SHIM_WRITE, CODE);
    return memcpy(to, from, bytes);
}
void* shim_memset(void* p, int byte, size_t bytes) {
    check_access(p, bytes, SHIM_WRITE, CODE);
    return memset(p, byte, bytes);
}

#define ACCESSES(n)                                                                          \
    void __tsan_read##n(void* p) { check_aligned(p, n, SHIM_READ, CODE); }                   \
    void __tsan_write##n(void* p) { check_aligned(p, n, SHIM_WRITE, CODE); }                 \
    void __tsan_volatile_read##n(void* p) { check_aligned(p, n, SHIM_READ, CODE); }          \
    void __tsan_volatile_write##n(void* p) { check_aligned(p, n, SHIM_WRITE, CODE); }        \
    void __tsan_unaligned_read##n(void* p) { check_access(p, n, SHIM_READ, CODE); }          \
    void __tsan_unaligned_write##n(void* p) { check_access(p, n, SHIM_WRITE, CODE); }        \
    void __tsan_unaligned_volatile_read##n(void* p) { check_access(p, n, SHIM_READ, CODE); } \
    void __tsan_unaligned_volatile_write##n(void* p) { check_access(p, n, SHIM_WRITE, CODE); }

// Atomics of host code (guards of static variables, reference counts); kernels use the shim's.
#define ATOMICS(n, T)                                                                         \
    T __tsan_atomic##n##_load(const volatile T* p, int) { return *p; }                        \
    void __tsan_atomic##n##_store(volatile T* p, T x, int) { *p = x; }                        \
    T __tsan_atomic##n##_exchange(volatile T* p, T x, int) {                                  \
        return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);                                   \
    }                                                                                         \
    T __tsan_atomic##n##_fetch_add(volatile T* p, T x, int) {                                 \
        return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);                                    \
    }                                                                                         \
    T __tsan_atomic##n##_fetch_sub(volatile T* p, T x, int) {                                 \
        return __atomic_fetch_sub(p, x, __ATOMIC_SEQ_CST);                                    \
    }                                                                                         \
    bool __tsan_atomic##n##_compare_exchange_strong(volatile T* p, T* old, T x, int, int) {   \
        return __atomic_compare_exchange_n(p, old, x, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { check_access(p, n, SHIM_READ, CODE); }
void __tsan_write_range(void* p, size_t n) { check_access(p, n, SHIM_WRITE, CODE); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
    check_access(from, n, SHIM_READ, CODE);
    check_access(to, n, SHIM_WRITE, CODE);
    return memcpy(to, from, n);
}
void* __tsan_memset(void* p, int byte, size_t n) {
    check_access(p, n, SHIM_WRITE, CODE);
    return memset(p, byte, n);
}
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
}
