// What the tests of the CPU device share: the devices under test, guarded arrays, exact comparison,
// PyTorch's results, finite differences. op_test.h says how ops are tested.
#ifndef CPU_TEST_H
#define CPU_TEST_H

#include <stdarg.h>

#include "device/backend.h"
#include "test.h"

// The sum of squares of n elements on the device, as the optimizer adds it up: the chunks in order.
static inline double square_sum(backend* b, const float* x, size_t n) {
    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;
    double sum = 0, *of_chunk = xalloc(chunks, sizeof *of_chunk, "a test");
    b->sum_squares(b, of_chunk, x, n);
    for (size_t c = 0; c < chunks; c++) sum += of_chunk[c];
    free(of_chunk);
    return sum;
}

// ------------------------------------------------------------------------------------------------
// Devices: every instruction set of this machine and build, with several numbers of threads; with
// the first two of them where TEST_QUICK is set, as under the sanitizers.

static const char* const ISAS[] = {"c", "avx2", "avx512"};
static const int THREADS[] = {1, 3, 2, 5};
enum { DEVICES_MAX = 13 };
static backend* devices[DEVICES_MAX];
static int device_count, device_step;  // devices of one instruction set lie together: device_step
static backend*
    plain_device;  // also devices[device_count]: loops with d <= device_count include it

static inline void devices_open(void) {
    device_step = getenv("TEST_QUICK") ? 2 : 4;
#ifndef _OPENMP
    device_step = 1;
#endif
    for (int i = 0; i < 3; i++)
        for (int t = 0; cpu_has(ISAS[i]) && t < device_step; t++)
            devices[device_count++] = cpu_open(THREADS[t], ISAS[i]);
    plain_device = devices[device_count] = plain_open();
}

// The first device of a case that runs on one device of each instruction set: the next cases take
// other numbers of threads.
static inline int device_next(void) {
    static int turn;
    return turn++ % device_step;
}

static inline void devices_close(void) {
    for (int i = 0; i < device_count; i++) cpu_close(devices[i]);
    plain_close(plain_device);
}

// ------------------------------------------------------------------------------------------------
// Arrays lie between guard bands, and the rows of matrices apart; all of it is filled with POISON
// (a NaN), so that an element left unwritten shows, and arrays_free sees a write outside.

#define POISON 0x7fa5a5a5u
enum { GUARD = 32, ROW_GAP = 3, ARRAYS_MAX = 256 };

static tensor arrays[ARRAYS_MAX];
static int array_count;

static inline float* row_at(tensor t, int r) { return (float*)t.data + r * t.stride; }

static inline tensor array_new(int rows, int cols, int gap, const format* f) {
    int64_t stride = cols + gap;
    size_t n = (size_t)rows * stride + 2 * GUARD;
    float* memory = xalloc(n, sizeof(float), "a test's array");
    for (size_t i = 0; i < n; i++) memory[i] = float_from_bits(POISON);
    tensor t = {memory + GUARD, rows, cols, stride, f};
    if (array_count == ARRAYS_MAX) fatal("a test needs more than %d arrays", ARRAYS_MAX);
    return arrays[array_count++] = t;
}

static inline tensor matrix_new(int rows, int cols, const format* f) {
    return array_new(rows, cols, ROW_GAP, f);
}

// n numbers without gaps: as a matrix of one row, or bare.
static inline tensor vector_new(int n) { return array_new(1, n, 0, &FORMAT_FP32); }
static inline float* floats_new(int n) { return vector_new(n).data; }

static inline int* ints_new(int n) { return vector_new(n).data; }

static inline void poison(tensor t) {
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) row_at(t, r)[c] = float_from_bits(POISON);
}

static inline int poisoned(const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (float_bits(x[i]) != POISON) return 0;
    return 1;
}

// Frees the arrays made since there were `count` of them; whether the poison around them is intact.
static inline int arrays_drop(int count) {
    int intact = 1;
    while (array_count > count) {
        tensor t = arrays[--array_count];
        float* memory = (float*)t.data - GUARD;
        intact &= poisoned(memory, GUARD) && poisoned(row_at(t, t.rows), GUARD);
        for (int r = 0; r < t.rows; r++)
            intact &= poisoned(row_at(t, r) + t.cols, t.stride - t.cols);
        free(memory);
    }
    return intact;
}

// The same as a check. `what`: who may have written outside.
static inline void arrays_free(int count, const char* what) {
    int intact = arrays_drop(count);
    CHECK(intact, "%s: wrote outside its arrays", what);
}

// ------------------------------------------------------------------------------------------------
// Values

static rng random_values;

static inline int random_below(int n) { return (int)rng_below(&random_values, (uint32_t)n); }

// Uniform in [-2, 2) with full mantissas; one in eight is small, by up to 2^-31, so that formats of
// few exponents meet their subnormals.
static inline float random_float(void) {
    float x = (float)(int32_t)rng_u32(&random_values) * 0x1p-30f;
    return random_below(8) ? x : ldexpf(x, -random_below(32));
}

static inline int random_between(int low, int high) { return low + random_below(high - low + 1); }

// Random values of t's format; rows differ in magnitude by up to 2^6, so that scales do.
static inline void fill(tensor t) {
    for (int r = 0; r < t.rows; r++) {
        float magnitude = t.rows > 1 ? (float)(1 << random_below(7)) * 0.125f : 1;
        for (int c = 0; c < t.cols; c++)
            row_at(t, r)[c] = format_round(random_float() * magnitude, t.format);
    }
}

static inline tensor matrix_random(int rows, int cols, const format* f) {
    tensor t = matrix_new(rows, cols, f);
    fill(t);
    return t;
}

static inline tensor vector_random(int n) {
    tensor t = vector_new(n);
    fill(t);
    return t;
}

static inline float* floats_random(int n) { return vector_random(n).data; }

// A weight as ops take it: rows without gaps.
static inline tensor weight_random(int outputs, int inputs) {
    tensor t = array_new(outputs, inputs, 0, &FORMAT_FP32);
    fill(t);
    return t;
}

static inline void copy_values(tensor to, tensor from) {
    for (int r = 0; r < to.rows; r++)
        memcpy(row_at(to, r), row_at(from, r), to.cols * sizeof(float));
}

static inline void set_rows(tensor t, int first, int n, float x) {
    for (int r = first; r < first + n; r++)
        for (int c = 0; c < t.cols; c++) row_at(t, r)[c] = x;
}

static inline void set_zero(tensor t) { set_rows(t, 0, t.rows, 0); }

static inline tensor matrix_copy(tensor from) {
    tensor t = array_new(from.rows, from.cols, (int)from.stride - from.cols, from.format);
    copy_values(t, from);
    return t;
}

// Rows first .. first+n-1.
static inline tensor rows_of(tensor t, int first, int n) {
    tensor part = {row_at(t, first), n, t.cols, t.stride, t.format};
    return part;
}

// Columns first .. first+n-1.
static inline tensor columns_of(tensor t, int first, int n) {
    tensor part = {(float*)t.data + first, t.rows, n, t.stride, t.format};
    return part;
}

// n numbers at x as a matrix of one row.
static inline tensor as_vector(float* x, int n) {
    tensor t = {x, 1, n, n, &FORMAT_FP32};
    return t;
}

// Ways of drawing: plain, greedy, top-k, top-p, both; hot and cold; and keys of 64 bits.
static const sampling SAMPLINGS[] = {
    {1, 0, 0, 1, 11, STREAM_SAMPLE, 3, 4000000000u},
    {0.7f, 0, 0, 1, 12, STREAM_SAMPLE, 4, 4000000000u},
    {1, 1, 0, 1, 13, STREAM_EVALUATE, 5, 4000000000u},
    {1, 0, 1, 1, 14, STREAM_SAMPLE, 0, 4000000000u},
    {1.5f, 0, 3, 1, 1ull << 40, STREAM_SAMPLE, 1, 4000000000u},
    {1, 0, 100, 1, 16, STREAM_SAMPLE, 2, 4000000000u},
    {1, 0, 0, 0.9f, 17, STREAM_SAMPLE, 3, 4000000000u},
    {1, 0, 0, 0.25f, 18, STREAM_EVALUATE, 3, 4000000000u},
    {1, 0, 0, 0, 19, STREAM_SAMPLE, 3, 4000000000u},
    {0.5f, 0, 10, 0.8f, 20, STREAM_SAMPLE, 3, 4000000000u},
    {1, 1, 4, 0.8f, 21, STREAM_SAMPLE, 3, 4000000000u},
};
enum { SAMPLING_COUNT = sizeof SAMPLINGS / sizeof *SAMPLINGS };

// A step of AdamW in which every number counts.
static inline adamw_step adamw_step_to(const format* f) {
    adamw_step h = {.lr = 1e-2f,
                    .beta1 = 0.9f,
                    .beta2 = 0.99f,
                    .eps = 1e-3f,
                    .weight_decay = 0.1f,
                    .correction1 = 0.271f,
                    .correction2 = 0.0297f,
                    .gradient_scale = 0.3f,
                    .format = f,
                    .seed = 0x123456789abcull,
                    .step = 3};
    return h;
}

// ------------------------------------------------------------------------------------------------
// Checks

// Text for a failure; eight live at a time.
__attribute__((format(printf, 1, 2))) static inline const char* text(const char* how, ...) {
    static char ring[8][256];
    static int next;
    char* to = ring[next++ % 8];
    va_list arguments;
    va_start(arguments, how);
    vsnprintf(to, sizeof ring[0], how, arguments);
    va_end(arguments);
    return to;
}

static inline int same_bits(float a, float b) { return float_bits(a) == float_bits(b); }

// The place of the first element whose bits differ, or -1.
static inline int64_t first_difference(tensor a, tensor b) {
    for (int r = 0; r < a.rows; r++)
        for (int c = 0; c < a.cols; c++)
            if (!same_bits(row_at(a, r)[c], row_at(b, r)[c])) return (int64_t)r * a.cols + c;
    return -1;
}

// One check: equal bits everywhere, and the values are of the format that they are said to be.
static inline void check_same(tensor actual, tensor expected, const char* name, const char* what,
                              const backend* b) {
    int64_t at = first_difference(actual, expected);
    int r = at < 0 ? 0 : (int)(at / actual.cols), c = at < 0 ? 0 : (int)(at % actual.cols);
    CHECK(at < 0, "%s: %s[%d][%d] is %.9g, expected %.9g (%s)", what, name, r, c,
          (double)row_at(actual, r)[c], (double)row_at(expected, r)[c], b->name);
    int fits = 1;
    for (r = 0; r < actual.rows; r++)
        for (c = 0; c < actual.cols; c++)
            fits &=
                same_bits(row_at(actual, r)[c], format_round(row_at(actual, r)[c], actual.format));
    CHECK(fits, "%s: %s is not in %s (%s)", what, name, actual.format->name, b->name);
}

// Values of `from` as operands of a product; fp8 has a power-of-two scale a row.
static inline tensor operands_of(tensor from, const format* f) {
    tensor to = matrix_new(from.rows, from.cols, f->scaled ? &FORMAT_FP32 : f);
    for (int r = 0; r < from.rows; r++) {
        float amax = 0;
        for (int c = 0; c < from.cols; c++) amax = fmaxf(amax, fabsf(row_at(from, r)[c]));
        float scale = format_scale(amax, f);
        for (int c = 0; c < from.cols; c++)
            row_at(to, r)[c] = format_round(row_at(from, r)[c] / scale, f) * scale;
    }
    return to;
}

// ------------------------------------------------------------------------------------------------
// PyTorch's results, in files whose layout dev/reference/ops.py describes.
static const char* fixture_path = "tests/fixtures/ops.bin";

typedef struct fixture {
    char name[40];
    int32_t type, count;  // 0 int32, 1 float32, 2 float64
    double error;         // root mean square error of float32 arithmetic
    const void* data;
} fixture;
enum { FIXTURE_HEAD = offsetof(fixture, data) };

static char* fixture_file;  // all of it

// The array "op.name".
static inline fixture fixture_find(const char* op, const char* name) {
    const char* path = fixture_path;
    static const int width[] = {4, 4, 8};
    int64_t size = file_size(path);
    if (!fixture_file) {
        FILE* f = file_open(path, "rb");
        fixture_file = xalloc((size_t)size, 1, "the fixtures");
        file_read(f, fixture_file, (size_t)size, path);
        file_close(f, path);
    }
    const char* wanted = text("%s.%s", op, name);
    fixture x;
    for (int64_t at = 0; at < size; at += FIXTURE_HEAD + (int64_t)x.count * width[x.type]) {
        memcpy(&x, fixture_file + at, FIXTURE_HEAD);
        x.data = fixture_file + at + FIXTURE_HEAD;
        if (!strcmp(x.name, wanted)) return x;
    }
    fatal("%s: no array %s; run the script in dev/ that writes it", path, wanted);
}

static inline void fixtures_close(void) { free(fixture_file); }

static inline tensor fixture_matrix(const char* op, const char* name, int rows, int gap) {
    fixture x = fixture_find(op, name);
    tensor t = array_new(rows, x.count / rows, gap, &FORMAT_FP32);
    for (int r = 0; r < rows; r++)
        memcpy(row_at(t, r), (const char*)x.data + (size_t)r * t.cols * 4, t.cols * 4);
    return t;
}

static inline float* fixture_floats(const char* op, const char* name) {
    return fixture_matrix(op, name, 1, 0).data;
}

static inline int* fixture_ints(const char* op, const char* name) {
    return fixture_matrix(op, name, 1, 0).data;
}

// Against float64: the root mean square error may be at most twice that of ordinary fp32
// arithmetic, measured on the same values by PyTorch in float32. Equal would be right on average;
// twice, because the error of few elements is itself a matter of chance.
static inline void check_fixture(tensor actual, const char* op, const char* name,
                                 const backend* b) {
    fixture x = fixture_find(op, name);
    double square = 0, *expected = xalloc(x.count, sizeof *expected, "expected values");
    memcpy(expected, x.data, x.count * sizeof *expected);  // they lie unaligned
    CHECK(x.count == actual.rows * actual.cols, "%s.%s has %d elements", op, name, x.count);
    for (int i = 0; i < x.count; i++) {
        double error = row_at(actual, i / actual.cols)[i % actual.cols] - expected[i];
        square += error * error;
    }
    free(expected);
    double error = sqrt(square / x.count);
    CHECK(error <= 2 * x.error, "%s.%s: error %.3g, that of ordinary fp32 %.3g (%s)", op, name,
          error, x.error, b->name);
}

// ------------------------------------------------------------------------------------------------
// Finite differences. A loss is sum_i weight_i out_i of an op's outputs; with the weights as the
// outputs' gradients, the op's backward gives its slopes.

// Returns the loss and adds up the magnitudes of its terms in *size.
typedef double loss_function(const void* context, double* size);

static inline double weighted_sum(tensor out, tensor weight, double* size) {
    double sum = 0;
    for (int r = 0; r < out.rows; r++)
        for (int c = 0; c < out.cols; c++) {
            double term = (double)row_at(out, r)[c] * row_at(weight, r)[c];
            sum += term;
            *size += fabs(term);
        }
    return sum;
}

// Values on a grid of 2^-10, so that a step of DIFFERENCE_STEP is exact.
static inline void fill_grid(tensor t) {
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++)
            row_at(t, r)[c] = (float)random_between(-1023, 1023) * 0x1p-10f;
}

static inline tensor matrix_grid(int rows, int cols) {
    tensor t = matrix_new(rows, cols, &FORMAT_FP32);
    fill_grid(t);
    return t;
}

static inline tensor weight_grid(int rows, int cols) {
    tensor t = array_new(rows, cols, 0, &FORMAT_FP32);
    fill_grid(t);
    return t;
}

enum { DIFFERENCE_DIRECTIONS = 12, DIFFERENCE_COORDINATES = 4 };
#define DIFFERENCE_STEP 0x1p-6f

// Compares the gradient of the loss by x with central differences of fourth order, in directions
// that move a few elements by one step h each way. The differences err by h^4 / 30 times a fifth
// derivative, below 1e-8 of it; and by the rounding of the outputs: `roundings` of 2^-24 of the
// terms' size, times 1.5 / h for the formula.
static inline void check_slopes(tensor x, tensor gradient, loss_function* loss, const void* context,
                                double roundings, const char* what) {
    static const int steps[] = {1, -1, 2, -2};
    static const double factors[] = {8, -8, -1, 1};
    double h = DIFFERENCE_STEP;
    for (int d = 0; d < DIFFERENCE_DIRECTIONS; d++) {
        float* at[DIFFERENCE_COORDINATES];
        float saved[DIFFERENCE_COORDINATES], sign[DIFFERENCE_COORDINATES];
        int n = d % DIFFERENCE_COORDINATES + 1;
        double slope = 0, expected = 0, size = 0;
        for (int i = 0; i < n; i++) {
            int r = random_below(x.rows), c = random_below(x.cols);
            at[i] = row_at(x, r) + c;
            saved[i] = *at[i];
            sign[i] = random_below(2) ? 1.0f : -1.0f;
            expected += (double)sign[i] * row_at(gradient, r)[c];
        }
        for (int k = 0; k < 4; k++) {
            for (int i = 0; i < n; i++) *at[i] += (float)steps[k] * DIFFERENCE_STEP * sign[i];
            size = 0;
            slope += factors[k] * loss(context, &size) / (12 * h);
            for (int i = n - 1; i >= 0; i--) *at[i] = saved[i];
        }
        CHECK_NEAR(expected, slope, roundings * 0x1p-24 * size * 1.5 / h, what);
    }
}

// The arrays of n slots and as many sequences in one piece of memory, (5 n + n max_new (3 + words))
// ints.
static inline slot_state slot_state_at(int* at, int n, int max_new, int words) {
    slot_state s = {.token = at,
                    .position = at + n,
                    .sequence = at + 2 * n,
                    .left = at + 3 * n,
                    .length = at + 4 * n,
                    .out_token = at + 5 * n,
                    .max_new = max_new,
                    .nucleus_words = words};
    s.out_logp = (float*)s.out_token + n * max_new;
    s.out_entropy = s.out_logp + n * max_new;
    s.out_nucleus = (uint32_t*)(s.out_entropy + n * max_new);
    return s;
}

#endif
