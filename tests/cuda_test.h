// What the tests of the CUDA device share. They run on the PTX machine (tests/ptx) in
// `make test`, and on a GPU in `make gpu-check`: the same programs, linked with one or the other.
//
// The method: a host matrix, a tensor of fp32 numbers that fit its format, is copied to the GPU in
// native storage; the op runs there and on the CPU device, and the result comes back. Ops that are
// the same arithmetic in the same order must give the same bits. Where the order differs, the root
// mean square error against float64 may be at most twice that of the CPU device, which is the plain
// version in the same formats: equal would be right on average; twice, because the error of few
// elements is itself a matter of chance.
#ifndef CUDA_TEST_H
#define CUDA_TEST_H

#include "cpu_test.h"
#include "cuda_device.h"

// ------------------------------------------------------------------------------------------------
// Values in native storage

static inline uint16_t to_half_bits(float x, const format* f) {
    if (f == &FORMAT_BF16) return (uint16_t)(float_bits(x) >> 16);
    _Float16 h = (_Float16)x;
    uint16_t u;
    memcpy(&u, &h, 2);
    return u;
}

static inline float from_half_bits(uint16_t u, const format* f) {
    if (f == &FORMAT_BF16) return float_from_bits((uint32_t)u << 16);
    _Float16 h;
    memcpy(&h, &u, 2);
    return (float)h;
}

// ------------------------------------------------------------------------------------------------
// Device arrays: matrices with gaps between rows, all of them between guard bands of GUARD
// elements. Gaps and guards are filled with GAP, bytes that are a NaN in every format: what is read
// from there and counts for nothing, times 0, shows too.
#define GAP 0xff

typedef struct gpu_array {
    void* memory;
    size_t bytes;
    tensor t;
} gpu_array;
static gpu_array gpu_arrays[ARRAYS_MAX];
static int gpu_array_count;

// A copy of a host matrix, with `gap` elements between rows, that begins `shift` elements behind a
// multiple of 16 bytes.
static inline tensor gpu_matrix_shifted(tensor host, int gap, int shift) {
    size_t each = gpu->bytes_per(host.format), stride = (size_t)host.cols + gap;
    size_t n = host.rows * stride + 2 * GUARD + (size_t)shift, bytes = n * each;
    char* staging = xalloc(n, each, "a test's array");
    memset(staging, GAP, bytes);
    for (int r = 0; r < host.rows; r++)
        for (int c = 0; c < host.cols; c++) {
            char* to = staging + (GUARD + shift + r * stride + c) * each;
            float x = row_at(host, r)[c];
            uint16_t h = each == 2 ? to_half_bits(x, host.format) : 0;
            memcpy(to, each == 2 ? (void*)&h : (void*)&x, each);
        }
    gpu_array a = {.memory = gpu->alloc(gpu, bytes, "a test"), .bytes = bytes, .t = host};
    gpu->upload(gpu, a.memory, staging, bytes);
    free(staging);
    a.t.data = (char*)a.memory + (GUARD + shift) * each;
    a.t.stride = (int64_t)stride;
    if (gpu_array_count == ARRAYS_MAX) fatal("a test needs more than %d arrays", ARRAYS_MAX);
    gpu_arrays[gpu_array_count++] = a;
    return a.t;
}

static inline tensor gpu_matrix_gap(tensor host, int gap) {
    return gpu_matrix_shifted(host, gap, 0);
}

// Rows start 16-byte aligned where cols allows it, as the model's do.
static inline tensor gpu_matrix(tensor host) { return gpu_matrix_gap(host, 0); }
// Rows that no 16-byte access fits.
static inline tensor gpu_matrix_odd(tensor host) { return gpu_matrix_gap(host, ROW_GAP); }

// A device matrix as a new host matrix; checks that guards and gaps are as they were.
static inline tensor gpu_read(tensor t) {
    size_t each = gpu->bytes_per(t.format), n = (size_t)t.rows * t.stride + 2 * GUARD;
    char* staging = xalloc(n, each, "a test's array");
    gpu->download(gpu, staging, (char*)t.data - GUARD * each, n * each);
    tensor host = matrix_new(t.rows, t.cols, t.format);
    int intact = 1;
    for (size_t i = 0; i < n; i++) {
        int64_t at = (int64_t)i - GUARD, r = at / t.stride, c = at % t.stride;
        const char* from = staging + i * each;
        if (at < 0 || r >= t.rows || c >= t.cols) {
            for (size_t k = 0; k < each; k++) intact &= (unsigned char)from[k] == GAP;
            continue;
        }
        uint16_t h;
        memcpy(&h, from, 2);
        memcpy(row_at(host, (int)r) + c, from, each == 4 ? 4 : 0);
        if (each == 2) row_at(host, (int)r)[c] = from_half_bits(h, t.format);
    }
    free(staging);
    CHECK(intact, "wrote outside a matrix of %d x %d %s", t.rows, t.cols, t.format->name);
    return host;
}

// Bytes without guards.
static inline void* gpu_copy(const void* host, size_t bytes) {
    gpu_array a = {.memory = gpu->alloc(gpu, bytes, "a test"), .bytes = bytes};
    gpu->upload(gpu, a.memory, host, bytes);
    if (gpu_array_count == ARRAYS_MAX) fatal("a test needs more than %d arrays", ARRAYS_MAX);
    gpu_arrays[gpu_array_count++] = a;
    return a.memory;
}

// Frees the device arrays made since there were `count` of them.
static inline void gpu_arrays_free(int count) {
    while (gpu_array_count > count) {
        gpu_array* a = &gpu_arrays[--gpu_array_count];
        gpu->release(gpu, a->memory, a->bytes);
    }
}

// ------------------------------------------------------------------------------------------------
// Checks

static inline double rms_error(tensor t, const double* exact) {
    double square = 0;
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) {
            double e = row_at(t, r)[c] - exact[(size_t)r * t.cols + c];
            square += e * e;
        }
    return sqrt(square / ((double)t.rows * t.cols));
}

// The rule at the head of this file. `exact`: (rows, cols) in float64; `plain`: the CPU device's.
// `floor`: an error that is always allowed, for results whose plain version happens to be exact.
static inline void check_error(tensor actual, tensor plain, const double* exact, double floor,
                               const char* name, const char* what) {
    double error = rms_error(actual, exact), allowed = 2 * rms_error(plain, exact) + floor;
    CHECK(error <= allowed, "%s: %s has an error of %.3g, allowed %.3g", what, name, error,
          allowed);
}

#endif
