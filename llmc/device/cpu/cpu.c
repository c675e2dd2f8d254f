// The CPU device: memory, threads, and the choice of an instruction set. Compiled once; the ops are
// compiled for each instruction set and reached through the table that cpu_ops_* fills.
#include "cpu.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#if defined(HAVE_avx2) || defined(HAVE_avx512)
#include <cpuid.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct cpu {
    backend table;
    cpu_context context;
    char name[64];
} cpu;

// Large blocks come from the kernel, which clears a page when it is first used: what is never used
// takes no memory.
enum { LARGE = 1 << 23 };

static void* cpu_alloc(backend* b, size_t bytes, const char* what) {
    b->allocated += bytes;
    return bytes < LARGE ? xalloc(bytes, 1, what) : xmap(bytes, what);
}

static void cpu_release(backend* b, void* p, size_t bytes) {
    b->allocated -= bytes;
    if (bytes < LARGE)
        free(p);
    else
        munmap(p, bytes);
}

// Every format is simulated in fp32.
static size_t cpu_bytes_per(const format* f) {
    (void)f;
    return sizeof(float);
}

static void cpu_sync(backend* b) { (void)b; }

static void cpu_copy(backend* b, void* to, const void* from, size_t bytes) {
    (void)b;
    memmove(to, from, bytes);
}

static void cpu_clear(backend* b, void* p, size_t bytes) {
    (void)b;
    memset(p, 0, bytes);
}

void* cpu_scratch(backend* b, int which, size_t bytes) {
    struct cpu_buffer* s = &((cpu_context*)b->context)->scratch[which];
    if (s->bytes < bytes) {
        cpu_release(b, s->data, s->bytes);
        s->data = cpu_alloc(b, bytes, "scratch memory of the CPU device");
        s->bytes = bytes;
    }
    return s->data;
}

int cpu_threads(const backend* b) { return ((const cpu_context*)b->context)->threads; }

int cpu_active(const backend* b) { return ((const cpu_context*)b->context)->load.active; }

void cpu_load_decide(cpu_load* l, int threads, double share, double now) {
    enum { LONGEST = 8 };
    if (l->active < threads) {
        if (now >= l->retry_at) l->active = threads;
    } else if (share < 0.7) {
        l->active = (int)(share * threads + 0.3);
        if (l->active < 1) l->active = 1;
        l->retry_at = now + l->patience;
        l->patience = 2 * l->patience < LONGEST ? 2 * l->patience : LONGEST;
    } else {
        l->patience = 0.5;
    }
}

// Of all threads of the process.
static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

cpu_measure cpu_measure_begin(const backend* b) {
    enum { EVERY = 8 };  // the clock of processor time costs a system call
    cpu_load* l = &((cpu_context*)b->context)->load;
    cpu_measure none = {-1, -1};
    if (cpu_threads(b) == 1 || l->products-- > 0) return none;
    l->products = EVERY - 1;
    return (cpu_measure){clock_seconds(), processor_seconds()};
}

void cpu_measure_end(backend* b, cpu_measure start) {
    cpu_load* l = &((cpu_context*)b->context)->load;
    if (start.wall < 0) return;
    double now = clock_seconds();
    l->wall += now - start.wall;
    l->processor += processor_seconds() - start.processor;
    if (l->wall < 0.02) return;
    cpu_load_decide(l, cpu_threads(b), l->processor / (l->wall * l->active), now);
    l->wall = l->processor = 0;
}

int cpu_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int machine_has(const char* isa) {
#if defined(HAVE_avx2) || defined(HAVE_avx512)
    __builtin_cpu_init();
    unsigned a, b, c = 0, d;
    int f16c = __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;  // clang 14 has no name for it
    int avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(isa, "avx2")) return avx2;
    if (!strcmp(isa, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return !strcmp(isa, "c");
}

int cpu_quota(const char* text) {
    double quota, period;
    if (sscanf(text, "%lf %lf", &quota, &period) != 2 || quota <= 0 || period <= 0) return 0;
    return quota > period * 1e6 ? 0 : (int)((quota + period - 1) / period);
}

#ifdef _OPENMP
// The quota of the process's control group (version 2); 0 if it has none.
static int group_quota(void) {
    char text[64] = "";
    FILE* f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f && !fgets(text, sizeof text, f)) *text = 0;
    if (f) fclose(f);
    return cpu_quota(text);
}
#endif

int cpu_default_threads(void) {
#ifdef _OPENMP
    int threads = omp_get_num_procs(), quota = group_quota();
    if (omp_get_max_threads() < threads) threads = omp_get_max_threads();
    if (omp_get_thread_limit() < threads) threads = omp_get_thread_limit();
    return quota && quota < threads ? quota : threads;
#else
    return 1;
#endif
}

typedef struct instruction_set {
    const char* name;
    void (*ops)(backend* b);
} instruction_set;

static const instruction_set SETS[] = {
// best first
#ifdef HAVE_avx512
    {"avx512", cpu_ops_avx512},
#endif
#ifdef HAVE_avx2
    {"avx2", cpu_ops_avx2},
#endif
    {"c", cpu_ops_c},
};

// The best one that is there, for "auto"; NULL if there is none.
static const instruction_set* find_set(const char* isa) {
    for (size_t i = 0; i < sizeof SETS / sizeof *SETS; i++)
        if ((!strcmp(isa, "auto") || !strcmp(isa, SETS[i].name)) && machine_has(SETS[i].name))
            return &SETS[i];
    return NULL;
}

int cpu_has(const char* isa) { return strcmp(isa, "auto") && find_set(isa); }

backend* cpu_open(int threads, const char* isa) {
    const instruction_set* set = find_set(isa);
    if (!set)
        fatal("--isa %s: this machine or this build has no such instruction set; use auto", isa);
    if (threads == 0) threads = cpu_default_threads();
#ifndef _OPENMP
    if (threads > 1) fatal("--threads %d: this build has no OpenMP; use 1", threads);
#endif
    cpu* c = xalloc(1, sizeof *c, "the CPU device");
    c->context.threads = threads;
    c->context.logits_kept = 512 << 20;
    c->context.load = (cpu_load){.active = threads, .patience = 0.5};
    snprintf(c->name, sizeof c->name, "cpu (%s, %d thread%s)", set->name, threads,
             threads == 1 ? "" : "s");
    c->table.name = c->name;
    c->table.context = &c->context;
    c->table.prefill_rows = 256;
    c->table.bytes_per = cpu_bytes_per;
    c->table.sync = cpu_sync;
    c->table.alloc = cpu_alloc;
    c->table.release = cpu_release;
    c->table.upload = cpu_copy;
    c->table.download = cpu_copy;
    c->table.copy = cpu_copy;
    c->table.clear = cpu_clear;
    set->ops(&c->table);
    return &c->table;
}

void cpu_close(backend* b) {
    const struct cpu_buffer* s = ((cpu_context*)b->context)->scratch;
    for (int i = 0; i < SCRATCHES; i++) cpu_release(b, s[i].data, s[i].bytes);
    free(b);
}
