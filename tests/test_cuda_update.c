// What the optimizer does with whole arrays, on the GPU: the same bits as on the CPU device. See
// cuda_test.h for the method.
#include "cuda_test.h"

static const int COUNTS[] = {0, 1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 10000};
enum { COUNT_COUNT = sizeof COUNTS / sizeof *COUNTS };

// Random numbers for an op on n of them: one more, which must stay as it is.
static tensor numbers_new(int n) { return vector_random(n + 1); }

static void check_read(tensor on_gpu, tensor expected, const char* name, const char* what) {
    check_same(gpu_read(on_gpu), expected, name, what, gpu);
}

static void drop(int mark, int gpu_mark, const char* what) {
    gpu_arrays_free(gpu_mark);
    arrays_free(mark, what);
}

// ------------------------------------------------------------------------------------------------

// Numbers at the edges of formats: rounding up to infinity, ties, subnormals, infinities and NaN.
static void put_edges(tensor t, int n) {
    static const uint32_t edges[] = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x7f7fffff,
                                     0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xff812345,
                                     0x477fefff, 0x477ff000, 0x33000000, 0x33000001, 0x3f808000,
                                     0x3f818000, 0x43e00000, 0x43e80001, 0x3a800000, 0x37800000};
    for (int i = 0; i < n && i < (int)(sizeof edges / sizeof *edges); i++)
        row_at(t, 0)[n - 1 - i] = float_from_bits(edges[i]);
}

static void check_cast_case(int n, const format* f, int in_place) {
    int mark = array_count, gpu_mark = gpu_array_count;
    const char* what = text("cast of %d to %s", n, f->name);
    tensor from = numbers_new(n), expected = in_place ? matrix_copy(from) : numbers_new(n);
    put_edges(from, n);
    tensor start = matrix_copy(expected);
    cpu->cast(cpu, expected.data, from.data, n, f);
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        tensor source = gpu_matrix(from), to = in_place ? source : gpu_matrix(start);
        gpu->cast(gpu, to.data, source.data, n, f);
        check_read(to, expected, "to", what);
    }
    drop(mark, gpu_mark, what);
}

static void check_cast(void) {
    for (const format* const* f = FORMATS; *f; f++)
        for (int i = 0; i < COUNT_COUNT; i++) check_cast_case(COUNTS[i], *f, i % 2);
}

static void check_add(void) {
    for (int i = 0; i < COUNT_COUNT; i++) {
        int mark = array_count, gpu_mark = gpu_array_count, n = COUNTS[i];
        const char* what = text("sum of %d", n);
        tensor from = numbers_new(n), start = numbers_new(n);
        for (int j = 0; j < n && i % 2; j++) {  // subnormal: they may not be flushed
            row_at(start, 0)[j] *= 0x1p-130f;
            row_at(from, 0)[j] *= 0x1p-130f;
        }
        tensor expected = matrix_copy(start);
        cpu->add(cpu, expected.data, from.data, n);
        for (int s = 0; s < schedules; s++) {
            schedule_set(s);
            tensor to = gpu_matrix(start);
            gpu->add(gpu, to.data, gpu_matrix(from).data, n);
            check_read(to, expected, "to", what);
        }
        drop(mark, gpu_mark, what);
    }
}

// ------------------------------------------------------------------------------------------------

static void check_squares_of(tensor x, int n, const char* what) {
    int gpu_mark = gpu_array_count;
    double expected = square_sum(cpu, x.data, n);
    for (int s = 0; s < schedules; s++) {
        schedule_set(s);
        double sum = square_sum(gpu, gpu_matrix(x).data, n);
        CHECK(sum == expected || (isnan(sum) && isnan(expected)), "%s is %a, expected %a", what,
              sum, expected);
    }
    gpu_arrays_free(gpu_mark);
}

static void check_sum_squares(void) {
    for (int i = 0; i < COUNT_COUNT + 1; i++) {
        int mark = array_count, n = i < COUNT_COUNT ? COUNTS[i] : 70001;
        tensor x = numbers_new(n);
        for (int j = 0; j < n; j++) row_at(x, 0)[j] *= (float)(1 << random_below(20));
        check_squares_of(x, n, text("sum of %d squares", n));
        arrays_free(mark, "sum of squares");
    }
}

// Scratch memory that grows gives back what it was; a device of its own, where none has grown yet.
static void check_scratch(void) {
    const char* why;
    int mark = array_count;
    tensor x = numbers_new(3 * 4096);
    backend* other = cuda_open(PRODUCTS_HANDWRITTEN, &why);
    if (!other) fatal("no second device: %s", why);
    size_t bytes = x.cols * sizeof(float);
    float* there = other->alloc(other, bytes, "a test");
    other->upload(other, there, x.data, bytes);
    for (size_t chunks = 1; chunks <= 3; chunks++) {
        double sum = square_sum(other, there, chunks * 4096);
        CHECK(sum == square_sum(cpu, x.data, chunks * 4096), "sum of squares: %g", sum);
        CHECK(other->allocated == bytes + chunks * sizeof(double), "%zu bytes are held",
              other->allocated);
    }
    other->release(other, there, bytes);
    cuda_close(other);
    arrays_free(mark, "scratch memory");
}

// Elements that are not finite show, wherever they are; large finite ones do not overflow.
static void check_not_finite(void) {
    static const int places[] = {0, 17, 4095, 4096, 9999};
    static const float bad[] = {0x1.fffffep127f, INFINITY, -INFINITY, NAN};
    int mark = array_count, n = 10000;
    tensor x = numbers_new(n);
    for (int p = 0; p < 5; p++)
        for (int k = 0; k < 4; k++) {
            float* at = row_at(x, 0) + places[p];
            float was = *at;
            *at = bad[k];
            double sum = square_sum(gpu, gpu_matrix(x).data, n);
            int right = k == 0 ? isfinite(sum) : k < 3 ? isinf(sum) : isnan(sum);
            CHECK(right, "the sum of squares with %g at %d is %g", (double)bad[k], places[p], sum);
            check_squares_of(x, n, text("sum of squares with %g at %d", (double)bad[k], places[p]));
            gpu_arrays_free(0);
            *at = was;
        }
    arrays_free(mark, "sum of squares");
}

// ------------------------------------------------------------------------------------------------

// On the GPU the array is cut in two anywhere: an element's place among all parameters counts, not
// its place in the call.
static void check_adamw_case(int n, size_t first, const format* f) {
    enum { W, M, V, G, ARRAYS };
    static const char* const names[] = {"w", "m", "v", "g"};
    int mark = array_count, gpu_mark = gpu_array_count;
    const char* what = text("AdamW of %d from %zu on, %s", n, first, f->name);
    adamw_step how = adamw_step_to(f);
    tensor start[ARRAYS], expected[ARRAYS], on_gpu[ARRAYS];
    for (int a = 0; a < ARRAYS; a++) start[a] = numbers_new(n);
    for (int i = 0; i <= n; i++) {
        row_at(start[W], 0)[i] = format_round(row_at(start[W], 0)[i], f);
        row_at(start[V], 0)[i] *= i % 5 == 3 ? 0 : row_at(start[V], 0)[i];
        row_at(start[G], 0)[i] *= i % 7 == 5 ? 0x1p-130f : 1;
    }
    start[W].format = f;
    for (int a = 0; a < ARRAYS; a++) expected[a] = matrix_copy(start[a]);
    cpu->adamw(cpu, expected[W].data, expected[M].data, expected[V].data, expected[G].data, n,
               first, &how);
    for (int s = 0; s < schedules; s++) {
        int cut = random_below(n + 1);
        schedule_set(s);
        for (int a = 0; a < ARRAYS; a++) {
            tensor bits = start[a];
            bits.format = &FORMAT_FP32;
            on_gpu[a] = gpu_matrix(bits);
        }
        float *w = on_gpu[W].data, *m = on_gpu[M].data, *v = on_gpu[V].data, *g = on_gpu[G].data;
        gpu->adamw(gpu, w, m, v, g, cut, first, &how);
        gpu->adamw(gpu, w + cut, m + cut, v + cut, g + cut, n - cut, first + cut, &how);
        for (int a = 0; a < ARRAYS; a++) check_read(on_gpu[a], expected[a], names[a], what);
    }
    drop(mark, gpu_mark, what);
}

static void check_adamw(void) {
    for (const format* const* f = FORMATS; *f; f++) {
        for (int i = 0; i < COUNT_COUNT; i++)
            if (!quick() || i % 3 == 0) check_adamw_case(COUNTS[i], 1000 * i, *f);
        check_adamw_case(50, (1ull << 32) - 20, *f);
    }
}

int main(void) {
    cuda_test_open();
    check_cast();
    check_add();
    check_sum_squares();
    check_scratch();
    check_not_finite();
    check_adamw();
    cuda_test_close();
    return test_report();
}
