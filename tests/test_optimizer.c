// The optimizer: AdamW against the same formulas in double precision, clipping, the tied embedding,
// schedules at hand-computed points, stochastic rounding, and a restored state that goes on as if
// never stopped; skipped steps, and the loss scale (with a trainer around it: test_trainer.c).
#include "rl/optimizer.h"
#include "small_model.h"

static model MODEL;

static optimizer_config adamw(void) {
    return (optimizer_config){.beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .clip = 1,
                              .format = &FORMAT_FP32,
                              .seed = 9};
}

// ---------------------------------------------------------------------------------------------
// Schedules

static void test_schedules(void) {
    static const struct {
        schedule_kind kind;
        int step, warmup, total;
        double expected;  // of a rate of 8
    } cases[] = {
        {SCHEDULE_CONSTANT, 0, 4, 10, 2},
        {SCHEDULE_CONSTANT, 2, 4, 10, 6},
        {SCHEDULE_CONSTANT, 3, 4, 10, 8},
        {SCHEDULE_CONSTANT, 9, 4, 10, 8},
        {SCHEDULE_CONSTANT, 0, 0, 10, 8},
        {SCHEDULE_LINEAR, 0, 4, 12, 2},
        {SCHEDULE_LINEAR, 3, 4, 12, 8},
        {SCHEDULE_LINEAR, 4, 4, 12, 8},
        {SCHEDULE_LINEAR, 5, 4, 12, 7},
        {SCHEDULE_LINEAR, 8, 4, 12, 4},
        {SCHEDULE_LINEAR, 11, 4, 12, 1},
        {SCHEDULE_LINEAR, 12, 4, 12, 0},
        {SCHEDULE_LINEAR, 0, 0, 8, 8},
        {SCHEDULE_COSINE, 0, 4, 12, 2},
        {SCHEDULE_COSINE, 4, 4, 12, 8},
        {SCHEDULE_COSINE, 8, 4, 12, 4},
        {SCHEDULE_COSINE, 12, 4, 12, 0},
        {SCHEDULE_COSINE, 6, 4, 12, 6.82842712474619},
        {SCHEDULE_COSINE, 10, 4, 12, 1.1715728752538097},
        // A run shorter than its warm-up only rises, one as long ends at the top.
        {SCHEDULE_LINEAR, 1, 4, 2, 4},
        {SCHEDULE_LINEAR, 4, 4, 4, 8},
        {SCHEDULE_COSINE, 4, 4, 4, 8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char what[96];
        snprintf(what, sizeof what, "%s, step %d, %d of warm-up, of %d",
                 SCHEDULE_NAMES[cases[i].kind], cases[i].step, cases[i].warmup, cases[i].total);
        double lr =
            schedule_lr(cases[i].kind, 8, 0, cases[i].step, cases[i].warmup, cases[i].total);
        CHECK_NEAR(lr, cases[i].expected, 1e-14, what);
    }
}

// Down to a share of the rate, and no further.
static void test_last_rate(void) {
    static const struct {
        schedule_kind kind;
        double last;
        int step;
        double expected;  // of a rate of 8, 4 steps of warm-up, 12 in all
    } cases[] = {{SCHEDULE_LINEAR, 0.25, 1, 4},  {SCHEDULE_LINEAR, 0.25, 4, 8},
                 {SCHEDULE_LINEAR, 0.25, 8, 5},  {SCHEDULE_LINEAR, 0.25, 12, 2},
                 {SCHEDULE_LINEAR, 0.25, 20, 2}, {SCHEDULE_LINEAR, 0, 20, 0},
                 {SCHEDULE_COSINE, 0.25, 8, 5},  {SCHEDULE_COSINE, 0.25, 30, 2},
                 {SCHEDULE_COSINE, 0, 30, 0},    {SCHEDULE_CONSTANT, 0.25, 20, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_NEAR(schedule_lr(cases[i].kind, 8, cases[i].last, cases[i].step, 4, 12),
                   cases[i].expected, 1e-14, SCHEDULE_NAMES[cases[i].kind]);
}

// ---------------------------------------------------------------------------------------------
// AdamW

// Parameters and gradients of one test: the gradient of a step is drawn anew, its size set by
// `size`; rows of the embedding get a second part, as a lookup.
typedef struct fixture {
    backend* b;
    optimizer* o;
    float* parameters;  // device
    float *host, *gradient, *lookup;
    size_t count, embedding;
} fixture;

static fixture make_fixture(backend* b, const optimizer_config* config) {
    fixture f = {.b = b, .count = MODEL.parameters};
    f.embedding = (size_t)MODEL.shape.vocab * MODEL.shape.channels;
    f.o = optimizer_create(b, &MODEL, config);
    f.host = random_parameters(&MODEL, 2, 0.2);
    f.gradient = xalloc(f.count, sizeof(float), "gradients");
    f.lookup = xalloc(f.embedding, sizeof(float), "gradients");
    f.parameters = to_device(b, f.host, f.count * sizeof(float));
    return f;
}

static void fixture_free(fixture* f) {
    optimizer_free(f->o);
    f->b->release(f->b, f->parameters, f->count * sizeof(float));
    free(f->host);
    free(f->gradient);
    free(f->lookup);
}

// The gradient reaches the optimizer times the loss scale, a power of two.
static optimizer_result step(fixture* f, int t, double size, double lr) {
    float scale = (float)f->o->state.loss_scale;
    rng r = rng_at(4, STREAM_PROMPT, (uint32_t)t, 0);
    for (size_t i = 0; i < f->count; i++)
        f->gradient[i] = (float)(size * (rng_normal(&r) + (double)(i % 3) - 1));
    for (size_t i = 0; i < f->embedding; i++) f->lookup[i] = (float)(size * rng_normal(&r));
    for (size_t i = 0; i < f->count; i++) f->gradient[i] *= scale;
    for (size_t i = 0; i < f->embedding; i++) f->lookup[i] *= scale;
    f->b->upload(f->b, f->o->gradients.all, f->gradient, f->count * sizeof(float));
    f->b->upload(f->b, f->o->gradients.lookup, f->lookup, f->embedding * sizeof(float));
    for (size_t i = 0; i < f->count; i++) f->gradient[i] /= scale;
    for (size_t i = 0; i < f->embedding; i++) f->lookup[i] /= scale;
    optimizer_add_shard(f->o, 0);
    return optimizer_step(f->o, f->parameters, lr);
}

// A step that is skipped: one element of its gradient is not a number.
static void skip(fixture* f) {
    f->gradient[0] = NAN;
    f->b->upload(f->b, f->o->gradients.all, f->gradient, f->count * sizeof(float));
    CHECK(optimizer_step(f->o, f->parameters, 0.01).skipped, "a NaN is taken for a gradient");
}

// The same step in double, with the betas as floats: g clipped, m, v, bias corrections, decoupled
// decay of matrices.
static double reference_step(const fixture* f, const optimizer_config* c, int t, double lr,
                             double* w, double* m, double* v) {
    double squares = 0, beta1 = (float)c->beta1, beta2 = (float)c->beta2;
    for (size_t i = 0; i < f->count; i++) {
        double g = f->gradient[i] + (i < f->embedding ? f->lookup[i] : 0.0);
        squares += g * g;
    }
    double norm = sqrt(squares), scale = norm > c->clip ? c->clip / norm : 1;
    for (int k = 0; k < GPT2_WEIGHTS; k++)
        for (size_t i = MODEL.offset[k]; i < MODEL.offset[k] + MODEL.count[k]; i++) {
            double g = (f->gradient[i] + (i < f->embedding ? f->lookup[i] : 0.0)) * scale;
            m[i] = beta1 * m[i] + (1 - beta1) * g;
            v[i] = beta2 * v[i] + (1 - beta2) * g * g;
            double mean = m[i] / (1 - pow(beta1, t)), square = v[i] / (1 - pow(beta2, t));
            double decay = weight_decays(&MODEL.family->weight[k]) ? c->weight_decay * w[i] : 0;
            w[i] -= lr * (mean / (sqrt(square) + c->eps) + decay);
        }
    return norm;
}

// 100 steps whose gradients lie now above, now below the clip. Every third is asked for again after
// a skipped one, which must change nothing but the loss scale; that scale, where there is one, also
// doubles in one of the steps. Each step rounds w, m and v a few times, to 2^-24 of themselves; the
// errors of w add up, those of m and v fade.
static void check_adamw(const optimizer_config* c, const char* what) {
    enum { STEPS = 100 };
    backend* b = cpu_open(1, "auto");
    fixture f = make_fixture(b, c);
    double* w = xalloc(3 * f.count, sizeof *w, "reference");
    double *m = w + f.count, *v = m + f.count, worst = 0;
    for (size_t i = 0; i < f.count; i++) w[i] = f.host[i];
    int clipped = 0;
    for (int t = 1; t <= STEPS; t++) {
        double lr = 0.01 * (t % 7 + 1), size = t % 2 ? 0.002 : 0.05;
        if (t % 3 == 0) skip(&f);
        if (t % 10 == 0) f.o->state.clean = 199;  // the scale doubles in this step
        optimizer_result r = step(&f, t, size, lr);
        double norm = reference_step(&f, c, t, (float)lr, w, m, v);
        clipped += norm > c->clip;
        CHECK_NEAR(r.grad_norm, norm, 1e-6 * norm, what);
        CHECK(!r.skipped && f.o->state.updates == t && f.o->state.attempts == t + t / 3, "step %d",
              t);
    }
    f.b->download(b, f.host, f.parameters, f.count * sizeof(float));
    for (size_t i = 0; i < f.count; i++) worst = fmax(worst, fabs(f.host[i] - w[i]));
    // w takes steps of up to 0.08, each known to some 10 roundings.
    CHECK_NEAR(worst, 0, STEPS * 0.08 * 10 * 0x1p-24, what);
    CHECK(isinf(c->clip) ? clipped == 0 : clipped > 30 && clipped < 70, "%s: %d steps clipped",
          what, clipped);
    free(w);
    fixture_free(&f);
    cpu_close(b);
}

static void test_adamw(void) {
    optimizer_config c = adamw();
    check_adamw(&c, "AdamW");
    c.clip = INFINITY;
    check_adamw(&c, "AdamW without clipping");
    c.weight_decay = 0;
    c.beta1 = 0;
    c.beta2 = 0.999;
    c.eps = 1e-3;
    check_adamw(&c, "other betas, no decay");
    c.beta2 = 0.999999;  // as a float 1.3 % further from 1
    c.eps = 1e-8;
    check_adamw(&c, "a beta near 1");
    c = adamw();
    c.loss_scaling = 1;
    check_adamw(&c, "AdamW with loss scaling");
}

// The scale of the next step, from that of this one and the number of clean steps before it.
static void test_scale(void) {
    static const struct {
        double scale;
        int clean, finite;
        double next_scale;
        int next_clean;
    } cases[] = {
        {0x1p16, 0, 1, 0x1p16, 1},
        {0x1p16, 198, 1, 0x1p16, 199},
        {0x1p16, 199, 1, 0x1p17, 0},
        {0x1p23, 199, 1, 0x1p24, 0},
        {0x1p24, 199, 1, 0x1p24, 0},
        {0x1p16, 150, 0, 0x1p15, 0},
        {0x1p16, 199, 0, 0x1p15, 0},
        {2, 7, 0, 1, 0},
        {1, 7, 0, 1, 0},
        {1, 199, 1, 2, 0},
    };
    backend* b = cpu_open(1, "auto");
    optimizer_config c = adamw();
    for (int scaling = 0; scaling < 2; scaling++) {
        c.loss_scaling = scaling;
        fixture f = make_fixture(b, &c);
        optimizer_state* s = &f.o->state;
        CHECK(s->loss_scale == (scaling ? 65536 : 1), "the first scale is %g", s->loss_scale);
        c.first_scale = 8;
        optimizer* o = optimizer_create(b, &f.o->model, &c);
        CHECK(o->state.loss_scale == (scaling ? 8 : 1), "a chosen one is %g", o->state.loss_scale);
        optimizer_free(o);
        c.first_scale = 0;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            s->loss_scale = scaling ? cases[i].scale : 1;
            s->clean = cases[i].clean;
            if (cases[i].finite)
                step(&f, 1, 0.01, 0);
            else
                skip(&f);
            double scale = scaling ? cases[i].next_scale : 1;
            CHECK(s->loss_scale == scale, "case %d: %g, not %g", (int)i, s->loss_scale, scale);
            CHECK(!scaling || s->clean == cases[i].next_clean, "case %d: %d clean steps", (int)i,
                  s->clean);
        }
        fixture_free(&f);
    }
    cpu_close(b);
}

// The first step: lr times the sign of the gradient, but for eps; and the decay, of matrices alone.
static void test_first_step(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config c = adamw();
    fixture f = make_fixture(b, &c);
    float* after = xalloc(f.count, sizeof *after, "parameters");
    double norm = step(&f, 1, 1, 0.01).grad_norm;
    b->download(b, after, f.parameters, f.count * sizeof(float));
    for (int k = 0; k < GPT2_WEIGHTS; k++) {
        double worst = 0;
        for (size_t i = MODEL.offset[k]; i < MODEL.offset[k] + MODEL.count[k]; i++) {
            double g = (f.gradient[i] + (i < f.embedding ? f.lookup[i] : 0.0)) / norm;
            double decay = weight_decays(&MODEL.family->weight[k]) ? 0.1 * f.host[i] : 0;
            double expected = f.host[i] - 0.01 * (g / (fabs(g) + 1e-8) + decay);
            worst = fmax(worst, fabs(after[i] - expected));
        }
        // The rounding of w, which is around 1; ten roundings of the step are a tenth of it.
        CHECK_NEAR(worst, 0, 3 * 0x1p-24, MODEL.family->weight[k].name);
    }
    free(after);
    fixture_free(&f);
    cpu_close(b);
}

static void test_clear(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config c = adamw();
    fixture f = make_fixture(b, &c);
    step(&f, 1, 1, 0.01);
    optimizer_clear_gradients(f.o);
    b->download(b, f.gradient, f.o->gradients.all, f.count * sizeof(float));
    b->download(b, f.lookup, f.o->gradients.lookup, f.embedding * sizeof(float));
    size_t left = 0;
    for (size_t i = 0; i < f.count; i++) left += f.gradient[i] != 0;
    for (size_t i = 0; i < f.embedding; i++) left += f.lookup[i] != 0;
    CHECK(left == 0, "%zu gradients are left", left);
    fixture_free(&f);
    CHECK(b->allocated <= 1 << 16, "%zu bytes stay", b->allocated);
    cpu_close(b);
}

// The sum of shards first .. first + count - 1, by halves, of element i.
static float tree(float* const* shard, int first, int count, size_t i) {
    if (count == 1) return shard[first][i];
    return tree(shard, first, count / 2, i) + tree(shard, first + count / 2, count / 2, i);
}

// Gradients of shards, each cleared before it, end as their tree, twice in a row; a tied
// embedding's two parts meet in each shard. Two sums in another order differ.
static void test_shards(void) {
    enum { MOST = 16 };
    backend* b = cpu_open(1, "auto");
    size_t n = MODEL.parameters, rows = (size_t)MODEL.shape.vocab * MODEL.shape.channels;
    float *g[MOST], *lookup = xalloc(rows, 4, "gradients"), *found = xalloc(n, 4, "gradients");
    for (int i = 0; i < MOST; i++) g[i] = xalloc(n, 4, "gradients");
    for (int shards = 1, levels = 0; shards <= MOST; shards *= 2, levels++) {
        optimizer_config c = adamw();
        c.shards = shards;
        optimizer* o = optimizer_create(b, &MODEL, &c);
        CHECK(o->shards == shards && o->bytes == ((3 + (size_t)levels) * n + rows) * 4,
              "%d shards take %zu bytes", shards, o->bytes);
        for (int pass = 0; pass < 2; pass++) {
            size_t wrong = 0, ordered = 0;
            for (int s = 0; s < shards; s++) {
                rng r = rng_at(5, STREAM_PROMPT, (uint32_t)s, (uint32_t)pass);
                for (size_t i = 0; i < n; i++) g[s][i] = (float)rng_normal(&r);
                for (size_t i = 0; i < rows; i++) lookup[i] = (float)rng_normal(&r);
                optimizer_clear_gradients(o);
                b->add(b, o->gradients.all, g[s], n);
                b->add(b, o->gradients.lookup, lookup, rows);
                optimizer_add_shard(o, s);
                for (size_t i = 0; i < rows; i++) g[s][i] += lookup[i];
            }
            b->download(b, found, o->gradients.all, n * 4);
            for (size_t i = 0; i < n; i++) {
                float chain = 0;
                for (int s = 0; s < shards; s++) chain += g[s][i];
                wrong += found[i] != tree(g, 0, shards, i);
                ordered += found[i] != chain;
            }
            CHECK(wrong == 0, "%d shards, pass %d: %zu gradients are no tree", shards, pass, wrong);
            CHECK((ordered > n / 10) == (shards > 2), "%d shards: a chain differs in %zu of %zu",
                  shards, ordered, n);
        }
        optimizer_free(o);
    }
    CHECK(b->allocated <= 1 << 16, "%zu bytes stay", b->allocated);
    for (int i = 0; i < MOST; i++) free(g[i]);
    free(lookup);
    free(found);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// Bits

// Parameters after ten steps, five of them after the state moved to another optimizer.
static float* ten_steps(backend* b, const optimizer_config* c, int move) {
    fixture f = make_fixture(b, c);
    size_t bytes = f.count * sizeof(float);
    for (int t = 1; t <= 10; t++) {
        step(&f, t, 0.01, 1e-3);
        if (t != 5 || !move) continue;
        optimizer* fresh = optimizer_create(b, &MODEL, c);
        b->copy(b, fresh->m, f.o->m, bytes);
        b->copy(b, fresh->v, f.o->v, bytes);
        fresh->state = f.o->state;
        optimizer_free(f.o);
        f.o = fresh;
    }
    float* parameters = xalloc(f.count, sizeof(float), "parameters");
    b->download(b, parameters, f.parameters, bytes);
    fixture_free(&f);
    return parameters;
}

static void test_bits(void) {
    static const format* const formats[] = {&FORMAT_FP32, &FORMAT_BF16, &FORMAT_FP16};
    backend* device[DEVICES_MAX];
    int devices = open_devices(device);
    size_t n = MODEL.parameters;
    for (int k = 0; k < 3; k++) {
        optimizer_config c = adamw();
        c.format = formats[k];
        float* expected = ten_steps(device[0], &c, 0);
        for (int d = 1; d < devices; d++) {
            float* found = ten_steps(device[d], &c, 0);
            CHECK(!memcmp(found, expected, n * 4), "%s on %s", c.format->name, device[d]->name);
            free(found);
        }
        float* moved = ten_steps(device[0], &c, 1);
        CHECK(!memcmp(moved, expected, n * 4), "%s: a restored state", c.format->name);
        size_t outside = 0;
        for (size_t i = 0; i < n; i++)
            outside += format_round(expected[i], c.format) != expected[i];
        CHECK(outside == 0, "%zu parameters are not %s", outside, c.format->name);
        c.seed++;
        float* other = ten_steps(device[0], &c, 0);
        int same = !memcmp(other, expected, n * 4);
        CHECK(same == (k == 0), "%s: another seed gives the same bits: %d", c.format->name, same);
        free(other);
        free(moved);
        free(expected);
    }
    for (int d = 0; d < devices; d++) cpu_close(device[d]);
}

// Stochastic rounding without bias: many parameters at one value that take the same step end on
// its two neighbours, in proportion; and two steps in a row draw differently.
static void test_stochastic_rounding(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config c = adamw();
    c.format = &FORMAT_BF16;
    c.weight_decay = 0;
    fixture f = make_fixture(b, &c);
    float* after[2] = {xalloc(f.count, 4, "parameters"), xalloc(f.count, 4, "parameters")};
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < f.count; i++) f.host[i] = 1, f.gradient[i] = -1;
        memset(f.lookup, 0, f.embedding * 4);
        b->upload(b, f.parameters, f.host, f.count * 4);
        b->upload(b, f.o->gradients.all, f.gradient, f.count * 4);
        b->upload(b, f.o->gradients.lookup, f.lookup, f.embedding * 4);
        optimizer_step(f.o, f.parameters, 0x1p-9);  // a quarter of the step from 1 to 1 + 2^-7
        b->download(b, after[t], f.parameters, f.count * 4);
    }
    size_t up = 0, wrong = 0, both = 0;
    for (size_t i = 0; i < f.count; i++) {
        up += after[0][i] > 1;
        both += after[0][i] > 1 && after[1][i] > 1;
        wrong += after[0][i] != 1 && after[0][i] != 1 + 0x1p-7f;
    }
    double n = (double)f.count;
    CHECK(wrong == 0, "%zu parameters are on neither neighbour", wrong);
    CHECK_NEAR((double)up, n / 4, 5 * sqrt(n * 3 / 16), "parameters rounded up");
    CHECK_NEAR((double)both, n / 16, 5 * sqrt(n * 15 / 256), "rounded up twice");
    free(after[0]);
    free(after[1]);
    fixture_free(&f);
    cpu_close(b);
}

// A skipped step has a draw of its own: the step after it does not take the draw that it had.
static void test_rounding_keys(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config c = adamw();
    c.format = &FORMAT_BF16;
    float* after[2];
    size_t bytes = 0, differing = 0, n = 0;
    for (int skipped = 0; skipped < 2; skipped++) {
        fixture f = make_fixture(b, &c);
        if (skipped) skip(&f);
        step(&f, 1, 0.01, 1e-3);
        n = f.count, bytes = n * sizeof(float);
        after[skipped] = xalloc(n, sizeof(float), "parameters");
        b->download(b, after[skipped], f.parameters, bytes);
        fixture_free(&f);
    }
    for (size_t i = 0; i < n; i++) differing += after[0][i] != after[1][i];
    // Each parameter lands on one of two neighbours, twice by chance.
    CHECK(differing > n / 10, "%zu of %zu parameters differ", differing, n);
    free(after[0]);
    free(after[1]);
    cpu_close(b);
}

int main(void) {
    MODEL = model_gpt2(10, 19, 2, 2, 12);
    test_schedules();
    test_last_rate();
    test_adamw();
    test_scale();
    test_first_step();
    test_clear();
    test_shards();
    test_bits();
    test_stochastic_rounding();
    test_rounding_keys();
    return test_report();
}
