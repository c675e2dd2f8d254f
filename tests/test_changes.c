// The share of weights that an update changed: known changes in each format, and on any device,
// counted again with the rules of each format written out here.
#include "cpu_test.h"
#include "rl/changes.h"

static const format* const FP32 = &FORMAT_FP32;

static changed_shares shares_on(backend* b, const model* m, precision train, precision rollout,
                                const float* before, const float* after) {
    size_t allocated = b->allocated;
    changes* c = changes_create(b, m, train, rollout);
    CHECK(b->allocated - allocated == changes_bytes(c), "%zu bytes held, %zu said",
          b->allocated - allocated, changes_bytes(c));
    changes_before(c, before);
    changed_shares s = changes_after(c, after);
    allocated = b->allocated - changes_bytes(c);
    changes_free(c);
    CHECK(b->allocated == allocated, "memory is left");
    return s;
}

// ------------------------------------------------------------------------------------------------
// Counted again

static int is_router(const model* m, int i) { return m->family->weight[i].role == ROUTER; }

// Of a product in the blocks' format, which the router's is not.
static int is_matrix(const model* m, int i) {
    return weight_is_matrix(&m->family->weight[i]) && !is_router(m, i);
}

// `linear`'s values of a matrix, or elements under scales of fp32.
static void stored_matrix(float* to, const float* w, int rows, int cols, const precision* p) {
    block_format elements;
    if (p->block) {
        elements = *p->block;
        elements.bare = !strncmp(p->block->name, "int", 3) || !strcmp(p->block->name, "nvfp4") ||
                        !strcmp(p->block->name, "deepseek");
        plain_device->round_blocks(plain_device, to, w, rows, cols, &elements);
    }
    float whole = blocks_amax(w, (size_t)rows * cols);
    for (int r = 0; r < rows; r++) {
        float amax = p->weight_per_tensor ? whole : blocks_amax(w + r * cols, (size_t)cols);
        float scale = p->linear->scaled ? format_scale(amax, p->linear) : 1;
        for (int c = r * cols; c < (r + 1) * cols; c++) {
            float x = p->block ? to[c] : w[c];
            to[c] = format_round(x / scale, p->linear) * scale;
        }
    }
}

static double count_again(const model* m, precision p, const float* before, const float* after) {
    const float* side[2] = {before, after};
    float* values[2];
    size_t changed = 0;
    for (int s = 0; s < 2; s++) {
        values[s] = xalloc(m->parameters, sizeof(float), "a test");
        for (int i = 0; i < WEIGHTS; i++) {
            const float* from = side[s] + m->offset[i];
            float* to = values[s] + m->offset[i];
            int rows = dim_of(&m->shape, m->family->weight[i].rows);
            int cols = dim_of(&m->shape, m->family->weight[i].cols);
            const format* other = i == m->family->head || is_router(m, i) ? p.attention : p.store;
            for (size_t j = 0; j < m->count[i] && !is_matrix(m, i); j++)
                to[j] = format_round(from[j], other);
            for (size_t j = 0; j < m->count[i] && is_matrix(m, i); j += (size_t)rows * cols)
                stored_matrix(to + j, from + j, rows, cols, &p);
        }
    }
    for (size_t i = 0; i < m->parameters; i++) changed += values[0][i] != values[1][i];
    free(values[0]);
    free(values[1]);
    return (double)changed / (double)m->parameters;
}

// Steps of many sizes next to their weights: in no format are all changed, or none.
static void check_against_count(const model* m) {
    static const char* const dtypes[] = {"fp32", "tf32",     "bf16",     "fp16",
                                         "e5m6", "fp8_e4m3", "fp8_e5m2", "e3m2"};
    size_t n = m->parameters;
    float *before = xalloc(2 * n, sizeof(float), "a test"), *after = before + n;
    rng r = rng_at(1, STREAM_INIT, 2, 0);
    for (size_t i = 0; i < n; i++) {
        before[i] = (float)(0.1 * rng_normal(&r));
        after[i] = before[i] * (1 + ldexpf((float)rng_normal(&r), -(int)rng_below(&r, 30)));
    }
    precision masters = precision_of(FP32, FP32);
    for (int k = 0; k < 16; k++) {
        precision p = precision_of(format_find(dtypes[k % 8]), FP32);
        p.weight_per_tensor = k >= 8;
        if (k >= 8 && !p.linear->scaled) p.block = block_format_find(BLOCK_NAMES[k - 7]);
        double stored = count_again(m, masters, before, after);
        double expected = count_again(m, p, before, after);
        CHECK(expected > 0.01 && expected < 0.99 && stored > 0.5, "case %d has %g", k, expected);
        for (int turned = 0; turned < 2; turned++) {  // each side has its precision
            backend* b = devices[device_next()];
            changed_shares s =
                shares_on(b, m, turned ? p : masters, turned ? masters : p, before, after);
            double found = turned ? s.train : s.rollout, other = turned ? s.rollout : s.train;
            CHECK(s.stored == stored && other == stored, "%g are stored anew, not %g", s.stored,
                  stored);
            CHECK(found == expected, "%s%s%s, %s: %.9g, not %.9g", p.linear->name,
                  p.block ? " in " : "", p.block ? p.block->name : "", b->name, found, expected);
        }
    }
    precision blocks = masters;
    for (int i = 1; BLOCK_NAMES[i]; i++) {
        blocks.block = block_format_find(BLOCK_NAMES[i]);
        changed_shares s = shares_on(devices[device_next()], m, masters, blocks, before, after);
        CHECK(s.rollout == count_again(m, blocks, before, after), "%s: %g", BLOCK_NAMES[i],
              s.rollout);
    }
    free(before);
}

// ------------------------------------------------------------------------------------------------
// Known changes. All weights are 1.5 and grow by 2^-9 of 1: between the spacings of fp16 (2^-10)
// and of bf16 (2^-7).

static void check_known(const model* m) {
    static const struct {
        const char *dtype, *block;
        float step;
        int changed;
    } cases[] = {{"fp32", NULL, 0x1p-9f, 1},    {"fp32", NULL, 0x1p-25f, 0},
                 {"fp16", NULL, 0x1p-9f, 1},    {"bf16", NULL, 0x1p-9f, 0},
                 {"bf16", NULL, 0x1p-7f, 1},    {"tf32", NULL, 0x1p-9f, 1},
                 {"fp32", "int8", 0x1p-7f, 0},  // the scale follows the largest
                 {"fp32", "mxfp8", 0x1p-9f, 0}, {"fp32", "mxfp4", 0.5f, 1},
                 {"fp32", "deepseek", 0.5f, 0}, {"fp32", "nvfp4", 0.5f, 0}};
    size_t n = m->parameters, matrices = 0;
    float *before = xalloc(2 * n, sizeof(float), "a test"), *after = before + n;
    for (int i = 0; i < WEIGHTS; i++) matrices += is_matrix(m, i) ? m->count[i] : 0;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        precision p = precision_of(format_find(cases[c].dtype), FP32);
        p.block = cases[c].block ? block_format_find(cases[c].block) : NULL;
        for (size_t i = 0; i < n; i++) before[i] = 1.5f, after[i] = 1.5f + cases[c].step;
        changed_shares s = shares_on(plain_device, m, p, p, before, after);
        // Blocks are of matrices; the rest is fp32 here and changes.
        double rest = p.block ? 1 - (double)matrices / (double)n : 0;
        double expected = cases[c].changed ? 1 : rest;
        CHECK_NEAR(s.train, expected, 1e-15, cases[c].dtype);
        CHECK(s.rollout == s.train, "%s: the sides differ", cases[c].dtype);
        CHECK(s.stored == (cases[c].step > 0x1p-24f), "stored %g", s.stored);
    }
    // One weight of all, the first and the last.
    for (int last = 0; last < 2; last++) {
        memcpy(after, before, n * sizeof(float));
        after[last ? n - 1 : 0] += 1;
        precision p = precision_of(&FORMAT_BF16, FP32);
        changed_shares s = shares_on(devices[0], m, p, p, before, after);
        CHECK(s.stored == 1 / (double)n && s.train == s.stored && s.rollout == s.stored,
              "one of %zu: %g", n, s.stored);
    }
    changed_shares none = changes_after(NULL, after);
    CHECK(isnan(none.stored) && isnan(none.train) && isnan(none.rollout) && !changes_bytes(NULL),
          "nobody counts");
    free(before);
}

int main(void) {
    shape llama = {.context = 16,
                   .vocab = 11,
                   .layers = 2,
                   .channels = 40,
                   .heads = 2,
                   .kv_heads = 1,
                   .head_dim = 20,
                   .hidden = 72,
                   .norm_eps = 1e-5f,
                   .rope_theta = 1e4f};
    const model gpt2 = model_gpt2(16, 11, 2, 2, 40), untied = model_of(&LLAMA_FAMILY, llama);
    shape mixture = llama;
    mixture.experts = 3, mixture.experts_used = 2;
    const model experts = model_of(&QWEN3_MOE_FAMILY, mixture);
    devices_open();
    check_against_count(&gpt2);
    check_against_count(&untied);
    check_against_count(&experts);
    check_known(&gpt2);
    check_known(&untied);
    devices_close();
    return test_report();
}
