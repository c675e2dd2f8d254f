// ladder.h: how a ladder is verified and timed. A ladder is one op as several kernels ("rungs"),
// from the plainest to the one in use; dev/ladders/README.md says what for.
//
// Verified first, on every shape, those too that are timed afterwards: a rung's output is compared
// with float64, computed on the host from the same bf16 inputs. Its root mean square error may be
// at most twice that of the float64 result rounded to bf16, which no kernel can avoid: twice,
// because a kernel may round once more on the way, to the bf16 operands of tensor cores, and an
// error that is a matter of chance needs some room. What was there before is NaN, so nothing can be
// left out. A rung runs twice and must give the same bits.
//
// Timed then, with cudaEvents: clocks drift, so the rungs and the limit run in turn, round after
// round, and a time is the median of the rounds. The limit is what the device did in those rounds
// at a task that is nothing but the bottleneck, so a share of slightly over 1 is possible.
//
// A program without arguments verifies small shapes. With --time stdout has one JSON object a line:
//   op, rung (from 1), name, shape, us (microseconds), rate, limit, unit (of both), share
// The exit status is 1 where a rung failed; it is then not timed.
#ifndef DEV_LADDER_H
#define DEV_LADDER_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cuda/cuda.cuh"

// ------------------------------------------------------------------------------------------------
// Memory. A case, an op on one shape, allocates as it likes; all of it goes when the case is done.

enum { HELD_MAX = 32 };
static struct {
    void* data;
    size_t bytes;  // 0: on the host
} held[HELD_MAX];
static int held_count;

static inline void* hold(void* data, size_t bytes) {
    if (held_count == HELD_MAX) fatal("a case needs more than %d arrays", HELD_MAX);
    held[held_count++] = {data, bytes};
    return data;
}

template <class T>
static T* host_array(size_t n) {
    return (T*)hold(xalloc(n, sizeof(T), "a case"), 0);
}
// On the device, with a copy of from[0 .. n-1] unless that is NULL.
template <class T>
static T* device_array(backend* b, size_t n, const T* from) {
    T* p = (T*)hold(b->alloc(b, n * sizeof(T), "a case"), n * sizeof(T));
    if (from) b->upload(b, p, from, n * sizeof(T));
    return p;
}

static void release_arrays(backend* b, int down_to) {
    while (held_count > down_to) {
        auto* h = &held[--held_count];
        if (h->bytes)
            b->release(b, h->data, h->bytes);
        else
            free(h->data);
    }
}

// n values on the host, uniform in middle +- width and rounded to bf16. `number` tells arrays
// apart.
static bf16* random_array(size_t n, uint32_t number, float middle, float width) {
    bf16* x = host_array<bf16>(n);
    uint32_t word[4];
    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0) random_at(word, 1, STREAM_INIT, 0, number, (uint32_t)(i / 4));
        float uniform = (float)(int32_t)word[i % 4] * 0x1p-31f;
        x[i] = __float2bfloat16_rn(middle + width * uniform);
    }
    return x;
}

// ------------------------------------------------------------------------------------------------
// Verification

enum { ROWS_CHECKED = 256, RUNGS_MAX = 8 };

// What every op's case begins with.
struct ladder_case {
    char shape[48];
    double work;  // bytes that the op must move, or floating-point operations that it needs
    int rows, cols;
    bf16* out;      // (rows, cols), on the device
    double* exact;  // of row 0, step, 2 step, ...: in float64, on the host
    int step;
    int outputs;           // that lie side by side in a row, as wide as each other; 0: one
    bf16 *sum, *sum_bits;  // a second output, and its exact bits on the host; NULL: none
};

static inline int check_step(int rows) { return rows > ROWS_CHECKED ? rows / ROWS_CHECKED : 1; }

// {error, allowed}: root mean squares over the checked rows of `out`, on the host; of the output
// whose error is the largest share of what is allowed.
struct error_pair {
    double error, allowed;
};
static error_pair error_of(const ladder_case& c, const bf16* out) {
    error_pair worst = {};
    int outputs = c.outputs ? c.outputs : 1, width = c.cols / outputs;
    for (int o = 0; o < outputs; o++) {
        double error = 0, rounding = 0;
        size_t n = 0;
        for (int r = 0; r < c.rows; r += c.step)
            for (int i = o * width; i < (o + 1) * width; i++, n++) {
                double exact = c.exact[(size_t)(r / c.step) * c.cols + i];
                double e = __bfloat162float(out[(size_t)r * c.cols + i]) - exact;
                double unavoidable = __bfloat162float(__float2bfloat16_rn((float)exact)) - exact;
                error += e * e;
                rounding += unavoidable * unavoidable;
            }
        error_pair e = {sqrt(error / n), 2 * sqrt(rounding / n)};
        if (o == 0 || !(e.error * worst.allowed <= worst.error * e.allowed)) worst = e;
    }
    return worst;
}

template <class Case>
struct rung {
    const char* name;
    void (*run)(backend* b, const Case& c);
    bool same;  // it must give the bits of the rung before it
};

// `last`: the output of the rung before, which this one's replaces.
template <class Case>
static bool verify(backend* b, const char* op, int number, const rung<Case>& r, const Case& c,
                   bf16* last, FILE* report) {
    size_t n = (size_t)c.rows * c.cols, bytes = n * sizeof(bf16);
    int before = held_count;
    bf16* host = host_array<bf16>(n);
    auto run = [&](bf16* to) {
        CUDA_CHECK(cudaMemsetAsync(c.out, 0xff, bytes, stream_of(b)));
        if (c.sum) CUDA_CHECK(cudaMemsetAsync(c.sum, 0xff, bytes, stream_of(b)));
        r.run(b, c);
        b->download(b, to, c.out, bytes);
    };
    const char* but = "";
    run(host);
    if (r.same && memcmp(host, last, bytes))
        but = ", but its bits are not those of the rung before";
    run(last);
    if (memcmp(host, last, bytes)) but = ", but it gives other bits when it runs again";
    error_pair e = error_of(c, host);
    if (c.sum) {
        b->download(b, host, c.sum, bytes);
        if (memcmp(host, c.sum_bits, bytes)) but = ", but its sum is wrong";
    }
    bool right = e.error <= e.allowed && !*but;  // not so for NaN
    fprintf(report, "%s %-10s rung %d, %-42s %-24s error %.2e, allowed %.2e%s\n",
            right ? "ok    " : "WRONG ", op, number, r.name, c.shape, e.error, e.allowed, but);
    release_arrays(b, before);
    return right;
}

// ------------------------------------------------------------------------------------------------
// Times

// A task that is nothing but the bottleneck: `work` bytes or operations.
struct ladder_limit {
    const char* unit;  // of a rate
    double per_unit;   // bytes or operations a second that make 1 of it
    double work;
    void (*run)(backend* b);
};

enum { ROUNDS = 21 };

// Of one run, averaged over `repeats`.
template <class Run>
static double microseconds(backend* b, int repeats, Run run) {
    static cudaEvent_t begin, end;
    float milliseconds;
    if (!begin) {
        CUDA_CHECK(cudaEventCreate(&begin));
        CUDA_CHECK(cudaEventCreate(&end));
    }
    CUDA_CHECK(cudaEventRecord(begin, stream_of(b)));
    for (int i = 0; i < repeats; i++) run();
    CUDA_CHECK(cudaEventRecord(end, stream_of(b)));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds * 1e3 / repeats;
}

static int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// Contender 0 is the limit, i is rung i; those that are not right do not run.
template <class Case>
static void time_rungs(backend* b, const char* op, const rung<Case>* rungs, int count,
                       const bool* right, const ladder_limit& limit, const Case& c) {
    double us[RUNGS_MAX + 1][ROUNDS];
    int repeats[RUNGS_MAX + 1];
    auto run = [&](int i) { i ? rungs[i - 1].run(b, c) : limit.run(b); };
    auto runs = [&](int i) { return i == 0 || right[i - 1]; };
    for (int i = 0; i <= count; i++)
        if (runs(i)) {  // for about 2 ms; the first run warms up
            run(i);
            double once = microseconds(b, 1, [&] { run(i); });
            repeats[i] = once > 2000 ? 1 : once < 20 ? 100 : (int)(2000 / once);
        }
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i <= count; i++)
            if (runs(i)) us[i][round] = microseconds(b, repeats[i], [&] { run(i); });
    double most = 0;
    for (int i = 0; i <= count; i++) {
        if (!runs(i)) continue;
        qsort(us[i], ROUNDS, sizeof(double), compare_doubles);
        double time = us[i][ROUNDS / 2];
        double rate = (i ? c.work : limit.work) / (time * 1e-6) / limit.per_unit;
        if (i == 0)
            most = rate;
        else
            printf(
                "{\"op\": \"%s\", \"rung\": %d, \"name\": \"%s\", \"shape\": \"%s\", "
                "\"us\": %.2f, \"rate\": %.4g, \"unit\": \"%s\", \"limit\": %.4g, "
                "\"share\": %.4f}\n",
                op, i, rungs[i - 1].name, c.shape, time, rate, limit.unit, most, rate / most);
    }
    fflush(stdout);
}

// ------------------------------------------------------------------------------------------------
// The program. make(b, i) makes case i; the first `small` of them are only verified, the rest of
// `cases` only with --time.
template <class Case>
static int climb(int argc, char** argv, const char* op, const rung<Case>* rungs, int count,
                 Case (*make)(backend*, int), int small, int cases, const ladder_limit& limit) {
    bool timed = argc == 2 && strcmp(argv[1], "--time") == 0, all_right = true;
    const char* why;
    if (argc > 1 && !timed) fatal("%s takes no argument but --time", argv[0]);
    if (count > RUNGS_MAX) fatal("a ladder has at most %d rungs", RUNGS_MAX);
    backend* b = cuda_open(PRODUCTS_HANDWRITTEN, &why);
    if (!b) fatal("%s", why);
    if (timed && strstr(b->name, "PTX machine"))
        fatal("the PTX machine interprets kernels: their time says nothing about a GPU");
    for (int i = 0; i < (timed ? cases : small); i++) {
        Case c = make(b, i);
        bf16* last = host_array<bf16>((size_t)c.rows * c.cols);
        bool right[RUNGS_MAX] = {};
        for (int k = 0; k < count; k++) {
            right[k] = verify(b, op, k + 1, rungs[k], c, last, timed ? stderr : stdout);
            all_right = all_right && right[k];
        }
        if (i >= small) time_rungs(b, op, rungs, count, right, limit, c);
        release_arrays(b, 0);
    }
    cuda_close(b);
    return !all_right;
}

#endif
