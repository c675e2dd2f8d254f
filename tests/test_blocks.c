// Weights with block scales: the values of each format as ml_dtypes and PyTorch cast them (fixture:
// dev/reference/blocks.py), the same bits on every device, and a model whose products read them.
#include "cpu_test.h"
#include "model/model.h"

static int block_count(void) {
    int n = 0;
    while (BLOCK_NAMES[n]) n++;
    return n;
}

static void check_names(void) {
    CHECK(!strcmp(BLOCK_NAMES[0], "none") && !block_format_find("none"), "none is no format");
    for (int i = 1; BLOCK_NAMES[i]; i++) {
        const block_format* f = block_format_find(BLOCK_NAMES[i]);
        CHECK(f && !strcmp(f->name, BLOCK_NAMES[i]), "%s is not found", BLOCK_NAMES[i]);
    }
    CHECK(block_count() == 9 && !block_format_find("mxfp"), "other names");
}

// ------------------------------------------------------------------------------------------------
// Values

static void round_on(backend* b, tensor to, tensor from, const block_format* f) {
    b->round_blocks(b, to.data, from.data, from.rows, from.cols, f);
}

static void check_fixture_file(void) {
    const char* path = "tests/fixtures/blocks.txt";
    FILE* file = file_open(path, "r");
    char name[16];
    int rows, cols, cases = 0, seen[16] = {0};
    for (; fscanf(file, "%15s %d %d", name, &rows, &cols) == 3; cases++) {
        int mark = array_count;
        const block_format* f = block_format_find(name);
        CHECK(f && rows > 0 && cols > 0 && rows * cols < 10000, "%s: %s %d %d", path, name, rows,
              cols);
        if (!f) break;
        tensor from = array_new(rows, cols, 0, &FORMAT_FP32);
        tensor expected = array_new(rows, cols, 0, &FORMAT_FP32);
        for (int i = 0; i < rows * cols; i++) {
            unsigned x, y;
            CHECK(fscanf(file, "%x %x", &x, &y) == 2, "%s ends early", path);
            row_at(from, 0)[i] = float_from_bits(x);
            row_at(expected, 0)[i] = float_from_bits(y);
        }
        for (int d = 0; d <= device_count; d += device_step) {
            tensor to = array_new(rows, cols, 0, &FORMAT_FP32);
            round_on(devices[d], to, from, f);
            check_same(to, expected, name, "a fixture", devices[d]);
        }
        for (int i = 0; BLOCK_NAMES[i]; i++) seen[i] += !strcmp(BLOCK_NAMES[i], name);
        arrays_free(mark, name);
    }
    for (int i = 1; BLOCK_NAMES[i]; i++)
        CHECK(seen[i] >= 14, "%d cases of %s in %s", seen[i], BLOCK_NAMES[i], path);
    file_close(file, path);
}

// Many bands of blocks, so that threads share them; and in place.
static void check_devices(void) {
    static const int shapes[][2] = {{300, 257}, {1, 1}, {129, 31}, {5, 500}};
    for (int i = 1; BLOCK_NAMES[i]; i++)
        for (int s = 0; s < 4; s++) {
            int mark = array_count, rows = shapes[s][0], cols = shapes[s][1];
            const block_format* f = block_format_find(BLOCK_NAMES[i]);
            tensor from = array_new(rows, cols, 0, &FORMAT_FP32);
            tensor expected = array_new(rows, cols, 0, &FORMAT_FP32);
            fill(from);
            round_on(plain_device, expected, from, f);
            for (int d = 0; d < device_count; d++) {
                tensor to = array_new(rows, cols, 0, &FORMAT_FP32);
                round_on(devices[d], to, from, f);
                check_same(to, expected, f->name, "random values", devices[d]);
            }
            for (int d = 0; d <= device_count; d += device_step) {
                tensor to = matrix_copy(from);
                round_on(devices[d], to, to, f);
                check_same(to, expected, f->name, "in place", devices[d]);
            }
            arrays_free(mark, f->name);
        }
}

// What is not finite never becomes a number: an infinity makes its block NaN, as far as its scale
// goes, and no more.
static void check_not_finite(void) {
    for (int i = 1; BLOCK_NAMES[i]; i++) {
        int mark = array_count, cols = 300;
        const block_format* f = block_format_find(BLOCK_NAMES[i]);
        int end = f->scale == SCALE_E4M3 || !f->cols ? cols : f->cols;  // of the first block
        tensor from = array_new(1, cols, 0, &FORMAT_FP32), to = matrix_copy(from);
        fill(from);
        row_at(from, 0)[3] = i % 2 ? INFINITY : -INFINITY;
        round_on(plain_device, to, from, f);
        int numbers = 0;
        for (int c = 0; c < end; c++) numbers += !isnan(row_at(to, 0)[c]);
        CHECK(numbers == 0, "%s: %d numbers in a block with an infinity", f->name, numbers);
        CHECK(end == cols || isfinite(row_at(to, 0)[end]), "%s: beyond the block", f->name);
        row_at(from, 0)[3] = NAN;
        round_on(plain_device, to, from, f);
        CHECK(isnan(row_at(to, 0)[3]) && isfinite(row_at(to, 0)[4]), "%s: NaN", f->name);
        arrays_free(mark, f->name);
    }
}

// ------------------------------------------------------------------------------------------------
// A model. Its products read the rounded weights, forward and backward, and everything else is as
// without blocks: so a model with blocks gives the bits of one without, of weights that were
// rounded before.

enum { TOKENS = 9 };

static void pass(backend* b, const model* m, precision p, const float* parameters, float* logp,
                 float* gradients) {
    static int token[TOKENS], position[TOKENS], row[TOKENS], target[TOKENS];
    static const int start[] = {0, TOKENS};
    float coef[TOKENS], *lookup = xalloc(m->parameters, sizeof(float), "a gradient");
    for (int i = 0; i < TOKENS; i++) {
        token[i] = 5 * i % 7, target[i] = 3 * i % 7, row[i] = position[i] = i;
        coef[i] = (float)i - 2.5f;
    }
    packed_batch batch = {.tokens = TOKENS, .targets = TOKENS, .token = token};
    batch.position = position;
    batch.pack = (packing){1, start, NULL};
    batch.row = row;
    batch.target = target;
    model_weights* w = model_weights_create(b, m, p);
    model_acts* a = model_acts_create(b, m, p.store, TOKENS, RECOMPUTE_NOTHING);
    model_weights_sync(w, parameters);
    model_weights_sync(w, parameters);  // again: into the memory that is there
    model_forward(w, a, &batch, 1, logp, NULL);
    memset(gradients, 0, m->parameters * sizeof(float));
    model_backward(w, a, &batch, 1, coef, (model_gradients){.all = gradients, .lookup = lookup});
    model_acts_free(a);
    model_weights_free(w);
    free(lookup);
}

static void round_matrices(const model* m, const block_format* f, float* parameters) {
    for (int i = 0; i < WEIGHTS; i++)
        for (int l = 0; weight_is_matrix(&m->family->weight[i]) && l < m->shape.layers; l++) {
            float* w = parameters + m->offset[i] + l * m->each[i];
            if (m->count[i])
                plain_device->round_blocks(plain_device, w, w,
                                           dim_of(&m->shape, m->family->weight[i].rows),
                                           dim_of(&m->shape, m->family->weight[i].cols), f);
        }
}

static void check_model(const model* m, const format* dtype, const block_format* f) {
    backend* b = devices[device_next()];
    size_t n = m->parameters, allocated;
    float *parameters = xalloc(4 * n, sizeof(float), "a test"), *rounded = parameters + n;
    float *expected = parameters + 2 * n, *got = parameters + 3 * n;
    float logp[TOKENS], expected_logp[TOKENS], unrounded[TOKENS];
    precision p = precision_of(dtype, &FORMAT_FP32);
    rng r = rng_at(1, STREAM_INIT, 1, 0);
    for (size_t i = 0; i < n; i++) parameters[i] = (float)(0.3 * rng_normal(&r));
    memcpy(rounded, parameters, n * sizeof(float));
    round_matrices(m, f, rounded);
    pass(b, m, p, parameters, unrounded, expected);
    pass(b, m, p, rounded, expected_logp, expected);
    allocated = b->allocated;  // scratch memory is there now
    p.block = f;
    pass(b, m, p, parameters, logp, got);
    CHECK(!memcmp(logp, expected_logp, sizeof logp), "log pi with %s, %s", f->name, dtype->name);
    CHECK(memcmp(logp, unrounded, sizeof logp), "%s, %s is without effect", f->name, dtype->name);
    CHECK(!memcmp(got, expected, n * sizeof(float)), "gradients with %s, %s", f->name, dtype->name);
    CHECK(b->allocated == allocated, "%s: %zu bytes are left", f->name, b->allocated - allocated);
    free(parameters);
}

static void check_models(void) {
    const model m = model_gpt2(16, 7, 2, 2, 40);
    for (int i = 1; BLOCK_NAMES[i]; i++)
        for (int d = 0; d < 2; d++)
            check_model(&m, d ? &FORMAT_BF16 : &FORMAT_FP32, block_format_find(BLOCK_NAMES[i]));
    precision p = precision_of(&FORMAT_BF16, &FORMAT_FP32), other = p;
    other.block = block_format_find("mxfp4");
    CHECK(!precision_same_forward(&p, &other) && precision_same_forward(&other, &other),
          "blocks are a part of a precision");
}

int main(void) {
    devices_open();
    check_names();
    check_fixture_file();
    check_devices();
    check_not_finite();
    check_models();
    devices_close();
    return test_report();
}
