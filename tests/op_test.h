// How ops are tested. The plain device (device/plain.c) computes every element by itself, in the
// order that ops.def states. Every other device must give the same bits for all shapes. It works on
// the rows in pieces of random size, which is then independence of other rows, of a row's place, of
// tiles, threads and vector width, and of the split into micro-batches. What keeps plain.c itself
// honest are PyTorch's results in float64 and finite differences: every op has one of these or
// both.
#ifndef OP_TEST_H
#define OP_TEST_H

#include "cpu_test.h"

// ------------------------------------------------------------------------------------------------
// Every device against the plain one

// An op, or an op and its backward, for rows first .. first+n-1 of its inputs. `results` are whole.
typedef void op_run(backend* b, const void* inputs, const tensor* results, int first, int n);

enum { RESULTS_MAX = 8 };
typedef struct op_case {
    const char* what;
    op_run* run;
    const void* inputs;
    int rows, whole;  // whole: pieces of the rows would give other bits
    int count;
    const char* const* names;     // of the results
    tensor results[RESULTS_MAX];  // as they are before: poison, or what is added to
} op_case;

static inline void results_copy(tensor to[RESULTS_MAX], const op_case* c) {
    for (int i = 0; i < c->count; i++) to[i] = matrix_copy(c->results[i]);
}

// Runs it on the rows in up to four pieces of random size; one in three is a row alone.
static inline void run_in_pieces(backend* b, const op_case* c, const tensor* results) {
    for (int first = 0, piece = 0, n; first < c->rows; first += n, piece++) {
        int left = c->rows - first;
        n = c->whole || piece == 3 ? left : random_below(3) ? random_between(1, left) : 1;
        c->run(b, c->inputs, results, first, n);
    }
}

// On all devices (a step of 1) the rows come in one piece: then threads run at the same time, and
// scratch memory that they shared would show.
static inline void check_on(const op_case* c, const tensor* expected, int first, int step) {
    op_case o = *c;
    o.whole |= step == 1;
    for (int d = first; d < device_count; d += step) {
        int mark = array_count;
        tensor got[RESULTS_MAX];
        results_copy(got, &o);
        run_in_pieces(devices[d], &o, got);
        for (int i = 0; i < o.count; i++)
            check_same(got[i], expected[i], o.names[i], o.what, devices[d]);
        arrays_free(mark, o.what);
    }
}

// On one device of each instruction set; on all devices.
static inline void check_case_on(const op_case* c, int first, int step) {
    int mark = array_count;
    tensor expected[RESULTS_MAX];
    results_copy(expected, c);
    c->run(plain_device, c->inputs, expected, 0, c->rows);
    check_on(c, expected, first, step);
    arrays_free(mark, c->what);
}
static inline void check_case(const op_case* c) { check_case_on(c, device_next(), device_step); }
static inline void check_case_everywhere(const op_case* c) { check_case_on(c, 0, 1); }

// A result's format shows in its bits: so the equalities above see its rounding.
static inline void check_formats_show(const op_case* c) {
    for (int i = 0; i < c->count; i++) {
        int mark = array_count;
        tensor rounded[RESULTS_MAX], exact[RESULTS_MAX];
        if (c->results[i].format == &FORMAT_FP32) continue;
        results_copy(rounded, c);
        results_copy(exact, c);
        exact[i].format = &FORMAT_FP32;
        c->run(plain_device, c->inputs, rounded, 0, c->rows);
        c->run(plain_device, c->inputs, exact, 0, c->rows);
        CHECK(first_difference(exact[i], rounded[i]) >= 0, "%s: the rounding of %s changes nothing",
              c->what, c->names[i]);
        arrays_drop(mark);
    }
}

// Finite differences of an op_case: its loss is that of up to two of its results.
typedef struct slope_case {
    backend* b;
    const op_case* op;
    const tensor* results;
    int out[2];        // numbers of the results; -1: none
    tensor weight[2];  // what the op has as their gradients
} slope_case;

static inline double result_loss(const void* context, double* size) {
    const slope_case* s = context;
    double sum = 0;
    s->op->run(s->b, s->op->inputs, s->results, 0, s->op->rows);
    for (int i = 0; i < 2; i++)
        if (s->out[i] >= 0) sum += weighted_sum(s->results[s->out[i]], s->weight[i], size);
    return sum;
}

#endif
