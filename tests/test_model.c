// The model as a whole: its parameter table and initialisation; forward and every element of the
// gradient against the same formulas in double precision; what sees what; memory. (Against PyTorch,
// and the formats of each op: test_gpt2.c.)
#include "refusal.h"
#include "small_model.h"

static int quick;

// ---------------------------------------------------------------------------------------------
// The table

static void test_table(void) {
    const model gpt2_124m = model_gpt2(1024, 50257, 12, 12, 768), c = model_gpt2(5, 3, 2, 2, 4);
    static const struct {
        const char* name;
        size_t count;
        int matrix;
    } expected[GPT2_WEIGHTS] = {
        {"wte", 3 * 4, 1},
        {"wpe", 5 * 4, 1},
        {"ln1w", 2 * 4, 0},
        {"ln1b", 2 * 4, 0},
        {"qkvw", 2 * 12 * 4, 1},
        {"qkvb", 2 * 12, 0},
        {"attprojw", 2 * 4 * 4, 1},
        {"attprojb", 2 * 4, 0},
        {"ln2w", 2 * 4, 0},
        {"ln2b", 2 * 4, 0},
        {"fcw", 2 * 16 * 4, 1},
        {"fcb", 2 * 16, 0},
        {"fcprojw", 2 * 4 * 16, 1},
        {"fcprojb", 2 * 4, 0},
        {"lnfw", 4, 0},
        {"lnfb", 4, 0},
    };
    CHECK(gpt2_124m.parameters == 124439808, "parameters of GPT-2 124M");
    size_t at = 0;
    for (int i = 0; i < GPT2_WEIGHTS; i++) {
        const char* name = expected[i].name;
        const family_weight* w = &c.family->weight[i];
        CHECK(!strcmp(w->name, name), "tensor %d is %s, not %s", i, w->name, name);
        CHECK(c.offset[i] == at, "%s begins at %zu, not %zu", name, c.offset[i], at);
        CHECK(c.count[i] == expected[i].count, "%s has %zu", name, c.count[i]);
        CHECK(weight_decays(w) == expected[i].matrix, "%s decays: %d", name, weight_decays(w));
        at += expected[i].count;
    }
    CHECK(c.parameters == at, "%zu parameters in all, not %zu", c.parameters, at);
}

static void refused_shape(const void* of) {
    const int* s = of;  // heads, channels
    model_gpt2(8, 8, 1, s[0], s[1]);
}

static void test_refusals(void) {
    const int odd[] = {3, 16}, wide[] = {1, 272};
    check_refusal(refused_shape, odd, "3 heads in 16 channels",
                  (const char* [REFUSAL_WORDS]){"--heads 3", "--channels 16"});
    check_refusal(refused_shape, wide, "a head of 272", (const char* [REFUSAL_WORDS]){"256"});
    CHECK(model_gpt2(8, 8, 1, 1, 256).shape.head_dim == 256, "a head of 256");
}

// Mean and deviation of a normal sample lie within five standard errors.
static void check_normal(const float* x, size_t n, double deviation, const char* name) {
    double sum = 0, squares = 0, root = sqrt((double)n);
    for (size_t i = 0; i < n; i++) sum += x[i], squares += (double)x[i] * x[i];
    CHECK_NEAR(sum / (double)n, 0, 5 * deviation / root, name);
    CHECK_NEAR(sqrt(squares / (double)n), deviation, 5 * deviation / sqrt(2.0) / root, name);
}

static void test_init(void) {
    const model c = model_gpt2(48, 40, 3, 2, 32);
    size_t n = c.parameters, bytes = n * sizeof(float);
    float *p = xalloc(n, 4, "a"), *again = xalloc(n, 4, "b"), *other = xalloc(n, 4, "c");
    model_init(&c, p, 7);
    model_init(&c, again, 7);
    model_init(&c, other, 8);
    CHECK(!memcmp(p, again, bytes), "the same seed, the same bits");
    for (int i = 0; i < GPT2_WEIGHTS; i++) {
        const family_weight* w = &c.family->weight[i];
        const float* x = p + c.offset[i];
        if (weight_decays(w)) {
            int residual = !strcmp(w->name, "attprojw") || !strcmp(w->name, "fcprojw");
            check_normal(x, c.count[i], residual ? 0.02 / sqrt(6.0) : 0.02, w->name);
            CHECK(x[0] != other[c.offset[i]], "%s is the same for another seed", w->name);
            CHECK(i == 0 || fabsf(x[0]) != fabsf(p[0]), "%s begins like wte", w->name);
            continue;
        }
        float constant = w->name[0] == 'l' && strchr(w->name, 'w') ? 1 : 0;
        for (size_t j = 0; j < c.count[i]; j++) CHECK_SAME(x[j], constant, w->name);
    }
    free(p);
    free(again);
    free(other);
}

// ---------------------------------------------------------------------------------------------
// A batch on a device

enum { SEQUENCES_MAX = 8 };

// Sequences of random tokens; every row but `skip` of each sequence's first ones is asked for the
// token after it (the last for a random one).
typedef struct text {
    int sequences, length[SEQUENCES_MAX], skip;
    int tokens, targets;
    int *token, *target;  // (tokens): of each row, the token after it
    uint32_t* nucleus;    // (tokens, words) or NULL: kept sets, the target among them
    float* coef;          // (tokens)
    int words;
} text;

static text random_text(const model* c, const int* length, int sequences, int skip,
                        int with_nucleus) {
    text t = {.sequences = sequences, .skip = skip, .words = (c->shape.vocab + 31) / 32};
    for (int s = 0; s < sequences; s++) t.tokens += t.length[s] = length[s];
    t.token = xalloc((size_t)t.tokens, sizeof(int), "text");
    t.target = xalloc((size_t)t.tokens, sizeof(int), "text");
    t.coef = xalloc((size_t)t.tokens, sizeof(float), "text");
    if (with_nucleus) t.nucleus = xalloc((size_t)t.tokens * t.words, 4, "text");
    rng r = rng_at(11, STREAM_PROMPT, 0, (uint32_t)t.tokens);
    for (int i = 0; i < t.tokens; i++) {
        // The last token of the vocabulary is never an input: its row of the embedding gets a
        // gradient as the head's weight alone.
        t.token[i] = (int)rng_below(&r, (uint32_t)c->shape.vocab - 1);
        t.coef[i] = (float)(rng_normal(&r) / 8);
        for (int w = 0; w < t.words && with_nucleus; w++) t.nucleus[i * t.words + w] = rng_u32(&r);
    }
    for (int i = 0; i < t.tokens; i++) {
        t.target[i] = i + 1 < t.tokens ? t.token[i + 1] : 0;
        if (with_nucleus) t.nucleus[i * t.words + t.target[i] / 32] |= 1u << t.target[i] % 32;
    }
    return t;
}

static void text_free(text* t) {
    free(t->token);
    free(t->target);
    free(t->coef);
    free(t->nucleus);
}

// Sequences first .. first+count-1 of a text, on a device.
typedef struct loaded {
    packed_batch g;
    float *coef, *logp, *entropy;  // device (targets)
    int *ints, ints_count;         // the memory behind g
} loaded;

static int rows_before(const text* t, int sequence) {
    int n = 0;
    for (int s = 0; s < sequence; s++) n += t->length[s];
    return n;
}

static loaded load(backend* b, const text* t, int first, int count) {
    int begin = rows_before(t, first), n = rows_before(t, first + count) - begin;
    int *host = xalloc((size_t)5 * n + count + 1, sizeof(int), "a batch"), *position = host + n;
    int *row = position + n, *target = row + n, *start = target + n, targets = 0, at = 0;
    float* coef = xalloc((size_t)n, sizeof(float), "a batch");
    uint32_t* nucleus = xalloc((size_t)n * t->words, 4, "a batch");
    for (int s = 0; s < count; s++) {
        start[s] = at;
        for (int i = 0; i < t->length[first + s]; i++, at++) {
            host[at] = t->token[begin + at];
            position[at] = i;
            if (i < t->skip) continue;
            row[targets] = at;
            target[targets] = t->target[begin + at];
            coef[targets] = t->coef[begin + at];
            if (t->nucleus)
                memcpy(nucleus + targets * t->words, t->nucleus + (begin + at) * t->words,
                       4 * t->words);
            targets++;
        }
    }
    start[count] = n;
    loaded l = {.g = {.tokens = n, .targets = targets}};
    l.ints_count = 5 * n + count + 1;
    l.ints = to_device(b, host, l.ints_count * sizeof(int));
    l.g.token = l.ints;
    l.g.position = l.ints + n;
    l.g.row = l.ints + 2 * n;
    l.g.target = l.ints + 3 * n;
    l.g.pack = (packing){count, l.ints + 4 * n, NULL};
    l.coef = to_device(b, coef, n * sizeof(float));
    if (t->nucleus) l.g.nucleus = to_device(b, nucleus, (size_t)n * t->words * 4);
    l.logp = b->alloc(b, 2 * n * sizeof(float), "a test");
    l.entropy = l.logp + n;
    free(host);
    free(coef);
    free(nucleus);
    return l;
}

static void unload(backend* b, loaded* l, int words) {
    b->release(b, l->ints, l->ints_count * sizeof(int));
    b->release(b, l->coef, l->g.tokens * sizeof(float));
    b->release(b, l->logp, 2 * l->g.tokens * sizeof(float));
    if (l->g.nucleus) b->release(b, l->g.nucleus, (size_t)l->g.tokens * words * 4);
}

// What a text gives: for each target log-probability and entropy, and the gradients.
typedef struct outcome {
    int targets;
    float *logp, *entropy;  // (tokens)
    float *all, *lookup;    // (parameters), (V, C)
    size_t parameters, embedding;
} outcome;

// Runs the text through the model, sequences cut into batches of `together` (1, 2, ...) at a time.
static outcome run_text(backend* b, const model* c, precision p, const float* parameters,
                        const text* t, float inverse_temperature, int together) {
    outcome o = {.parameters = c->parameters,
                 .embedding = (size_t)c->shape.vocab * c->shape.channels};
    o.logp = xalloc((size_t)t->tokens, 4, "log-probabilities");
    o.entropy = xalloc((size_t)t->tokens, 4, "entropies");
    o.all = xalloc(o.parameters, 4, "gradients");
    o.lookup = xalloc(o.embedding, 4, "gradients");
    float* weights = to_device(b, parameters, o.parameters * 4);
    model_gradients g = {.all = to_device(b, o.all, o.parameters * 4),
                         .lookup = to_device(b, o.lookup, o.embedding * 4)};
    model_weights* w = model_weights_create(b, c, p);
    model_weights_sync(w, weights);
    model_acts* a = model_acts_create(b, c, p.store, t->tokens, RECOMPUTE_NOTHING);
    for (int s = 0; s < t->sequences; s += together) {
        int count = t->sequences - s < together ? t->sequences - s : together;
        loaded l = load(b, t, s, count);
        model_forward(w, a, &l.g, inverse_temperature, l.logp, l.entropy);
        model_backward(w, a, &l.g, inverse_temperature, l.coef, g);
        b->download(b, o.logp + o.targets, l.logp, l.g.targets * 4);
        b->download(b, o.entropy + o.targets, l.entropy, l.g.targets * 4);
        o.targets += l.g.targets;
        unload(b, &l, t->words);
    }
    b->download(b, o.all, g.all, o.parameters * 4);
    b->download(b, o.lookup, g.lookup, o.embedding * 4);
    model_acts_free(a);
    model_weights_free(w);
    b->release(b, weights, o.parameters * 4);
    b->release(b, g.all, o.parameters * 4);
    b->release(b, g.lookup, o.embedding * 4);
    return o;
}

static void outcome_free(outcome* o) {
    free(o->logp);
    free(o->entropy);
    free(o->all);
    free(o->lookup);
}

// ---------------------------------------------------------------------------------------------
// The model in double precision, from the formulas: one sequence after another, no blocks, no
// backward pass (its gradients come from finite differences).

typedef struct reference {
    model c;
    double* p;
} reference;

static reference reference_of(const model* c, const float* parameters) {
    reference m = {.c = *c};
    size_t n = c->parameters;
    m.p = xalloc(n, sizeof(double), "reference parameters");
    for (size_t i = 0; i < n; i++) m.p[i] = parameters[i];
    return m;
}

// Row `index` of tensor `name`, whose rows have `width` values.
static const double* weights_at(const reference* m, const char* name, int index, int width) {
    return m->p + tensor_offset(&m->c, name) + index * width;
}

static void layernorm(double* out, const double* x, const double* w, const double* b, int n) {
    double mean = 0, variance = 0;
    for (int i = 0; i < n; i++) mean += x[i] / n;
    for (int i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / n;
    for (int i = 0; i < n; i++) out[i] = (x[i] - mean) / sqrt(variance + 1e-5) * w[i] + b[i];
}

static void linear(double* out, const double* x, const double* w, const double* b, int outputs,
                   int inputs) {
    for (int o = 0; o < outputs; o++) {
        out[o] = b ? b[o] : 0;
        for (int i = 0; i < inputs; i++) out[o] += w[o * inputs + i] * x[i];
    }
}

enum { REFERENCE_TOKENS = 24, REFERENCE_WIDTH = 32 };  // at most

// Adds proj(attention(qkv(norm(x)))) to the rows of x.
static void attention_block(const reference* m, int l, double (*x)[REFERENCE_WIDTH], int n) {
    int C = m->c.shape.channels, H = m->c.shape.heads, D = C / H;
    static double qkv[REFERENCE_TOKENS][3 * REFERENCE_WIDTH];
    double norm[REFERENCE_WIDTH], mixed[REFERENCE_WIDTH], branch[REFERENCE_WIDTH];
    for (int i = 0; i < n; i++) {
        layernorm(norm, x[i], weights_at(m, "ln1w", l, C), weights_at(m, "ln1b", l, C), C);
        linear(qkv[i], norm, weights_at(m, "qkvw", l, 3 * C * C), weights_at(m, "qkvb", l, 3 * C),
               3 * C, C);
    }
    for (int i = 0; i < n; i++) {
        for (int h = 0; h < H; h++) {
            double weight[REFERENCE_TOKENS], sum = 0;
            for (int j = 0; j <= i; j++) {
                double score = 0;
                for (int d = 0; d < D; d++) score += qkv[i][h * D + d] * qkv[j][C + h * D + d];
                sum += weight[j] = exp(score / sqrt(D));
            }
            for (int d = 0; d < D; d++) {
                mixed[h * D + d] = 0;
                for (int j = 0; j <= i; j++)
                    mixed[h * D + d] += weight[j] / sum * qkv[j][2 * C + h * D + d];
            }
        }
        linear(branch, mixed, weights_at(m, "attprojw", l, C * C), weights_at(m, "attprojb", l, C),
               C, C);
        for (int d = 0; d < C; d++) x[i][d] += branch[d];
    }
}

// Adds fcproj(gelu(fc(norm(x)))) to one row.
static void mlp_block(const reference* m, int l, double* x) {
    int C = m->c.shape.channels;
    double norm[REFERENCE_WIDTH], wide[4 * REFERENCE_WIDTH], branch[REFERENCE_WIDTH];
    layernorm(norm, x, weights_at(m, "ln2w", l, C), weights_at(m, "ln2b", l, C), C);
    linear(wide, norm, weights_at(m, "fcw", l, 4 * C * C), weights_at(m, "fcb", l, 4 * C), 4 * C,
           C);
    for (int i = 0; i < 4 * C; i++) {
        double v = wide[i];
        wide[i] =
            0.5 * v * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v)));
    }
    linear(branch, wide, weights_at(m, "fcprojw", l, 4 * C * C), weights_at(m, "fcprojb", l, C), C,
           4 * C);
    for (int d = 0; d < C; d++) x[d] += branch[d];
}

// log-probability of `target` after the row x, and the entropy.
static double head(const reference* m, const double* x, int target, const uint32_t* nucleus,
                   double temperature, double* entropy) {
    int C = m->c.shape.channels, V = m->c.shape.vocab;
    double norm[REFERENCE_WIDTH], logit[64], sum = 0;
    layernorm(norm, x, weights_at(m, "lnfw", 0, C), weights_at(m, "lnfb", 0, C), C);
    linear(logit, norm, weights_at(m, "wte", 0, C), NULL, V, C);
    *entropy = 0;
    for (int i = 0; i < V; i++)
        if (!nucleus || nucleus[i / 32] >> i % 32 & 1) sum += exp(logit[i] / temperature);
    for (int i = 0; i < V; i++) {
        double log_p = logit[i] / temperature - log(sum);
        if (!nucleus || nucleus[i / 32] >> i % 32 & 1) *entropy -= exp(log_p) * log_p;
    }
    return logit[target] / temperature - log(sum);
}

// Fills logp and entropy (targets) unless NULL; returns sum coef * (-logp).
static double reference_loss(const reference* m, const text* t, double temperature, double* logp,
                             double* entropy) {
    static double x[REFERENCE_TOKENS][REFERENCE_WIDTH];
    int C = m->c.shape.channels, at = 0, target = 0;
    double loss = 0;
    for (int s = 0; s < t->sequences; s++) {
        int n = t->length[s];
        for (int i = 0; i < n; i++)
            for (int d = 0; d < C; d++)
                x[i][d] =
                    weights_at(m, "wte", t->token[at + i], C)[d] + weights_at(m, "wpe", i, C)[d];
        for (int l = 0; l < m->c.shape.layers; l++) {
            attention_block(m, l, x, n);
            for (int i = 0; i < n; i++) mlp_block(m, l, x[i]);
        }
        for (int i = t->skip; i < n; i++, target++) {
            double h,
                lp = head(m, x[i], t->target[at + i],
                          t->nucleus ? t->nucleus + (at + i) * t->words : NULL, temperature, &h);
            if (logp) logp[target] = lp, entropy[target] = h;
            loss -= t->coef[at + i] * lp;
        }
        at += n;
    }
    return loss;
}

// ---------------------------------------------------------------------------------------------
// Forward and backward against it

typedef struct case_shape {
    model c;
    int sequences, length[SEQUENCES_MAX], skip, nucleus;
    float temperature;
} case_shape;

// Odd sizes: a head of 4 and one of 12 (blocks are of 16), sequences beyond one block of 16 keys.
enum { SHAPE_COUNT = 2 };
static case_shape shape_number(int k) {
    if (k == 0) return (case_shape){model_gpt2(9, 7, 2, 2, 8), 3, {9, 5, 1}, 0, 0, 1};
    return (case_shape){model_gpt2(20, 33, 1, 1, 12), 3, {20, 3, 17}, 2, 1, 0.7f};
}

// The forward pass in fp32 against double. A log-probability is the end of about 200 operations in
// a row, each with an error of up to 2^-24 on values around 1, which mostly cancel: seen are 19.
static const double FORWARD_TOLERANCE = 64 * 0x1p-24;

static void check_forward(const case_shape* s, const reference* m, const text* t,
                          const outcome* o) {
    double* logp = xalloc((size_t)2 * t->tokens, sizeof(double), "reference");
    reference_loss(m, t, s->temperature, logp, logp + t->tokens);
    for (int i = 0; i < o->targets; i++) {
        CHECK_NEAR(o->logp[i], logp[i], FORWARD_TOLERANCE, "log-probability");
        CHECK_NEAR(o->entropy[i], logp[t->tokens + i], FORWARD_TOLERANCE, "entropy");
    }
    free(logp);
}

// Every element of every gradient against a central difference in double, whose own error is below
// 1e-8. The chain is twice that of the forward pass, and norms magnify it: seen are 40 errors of
// 2^-24 of the tensor's largest gradient.
static void check_gradient(const case_shape* s, reference* m, const text* t, const outcome* o) {
    const double h = 1e-4;
    for (int i = 0; i < GPT2_WEIGHTS; i++) {
        const char* name = m->c.family->weight[i].name;
        size_t offset = m->c.offset[i];
        double largest = 0, worst = 0;
        for (size_t j = 0; j < m->c.count[i]; j += quick ? 16 : 1) {
            double* p = m->p + offset + j;
            double kept = *p;
            *p = kept + h;
            double up = reference_loss(m, t, s->temperature, NULL, NULL);
            *p = kept - h;
            double down = reference_loss(m, t, s->temperature, NULL, NULL);
            *p = kept;
            double expected = (up - down) / (2 * h), actual = o->all[offset + j];
            if (i == 0) actual += o->lookup[j];  // the tied embedding
            if (fabs(expected) > largest) largest = fabs(expected);
            if (fabs(actual - expected) > worst) worst = fabs(actual - expected);
        }
        CHECK(largest > 1e-3, "the gradient of %s is put to the test", name);
        CHECK_NEAR(worst, 0, 96 * 0x1p-24 * (largest + 0.1), name);
    }
}

static void test_against_double(void) {
    backend* b = cpu_open(1, "auto");
    for (int k = 0; k < SHAPE_COUNT; k++) {
        const case_shape shape_k = shape_number(k), *s = &shape_k;
        float* parameters = random_parameters(&s->c, 3, 0.3);
        reference m = reference_of(&s->c, parameters);
        text t = random_text(&s->c, s->length, s->sequences, s->skip, s->nucleus);
        outcome o = run_text(b, &s->c, precision_of(&FORMAT_FP32, &FORMAT_FP32), parameters, &t,
                             1 / s->temperature, t.sequences);
        check_forward(s, &m, &t, &o);
        check_gradient(s, &m, &t, &o);
        text_free(&t);
        outcome_free(&o);
        free(m.p);
        free(parameters);
    }
    cpu_close(b);
}

// The embedding's two gradients: a token that is no input has none as a lookup; every token that
// is, has one; and the head gives one to all.
static void test_tied_embedding(void) {
    const case_shape first = shape_number(0), *s = &first;
    backend* b = cpu_open(1, "auto");
    float* parameters = random_parameters(&s->c, 3, 0.3);
    text t = random_text(&s->c, s->length, s->sequences, 0, 0);
    outcome o = run_text(b, &s->c, precision_of(&FORMAT_FP32, &FORMAT_FP32), parameters, &t, 1, 8);
    int C = s->c.shape.channels;
    for (int v = 0; v < s->c.shape.vocab; v++) {
        int used = 0;
        double lookup = 0, as_head = 0;
        for (int i = 0; i < t.tokens; i++) used |= t.token[i] == v;
        for (int d = 0; d < C; d++) {
            lookup += fabsf(o.lookup[v * C + d]);
            as_head += fabsf(o.all[v * C + d]);
        }
        CHECK((lookup != 0) == used, "token %d, an input: %d, has %g as a lookup", v, used, lookup);
        CHECK(as_head > 0, "token %d has %g as a row of the head", v, as_head);
    }
    CHECK(t.token[0] != s->c.shape.vocab - 1, "the last token is no input");
    text_free(&t);
    outcome_free(&o);
    free(parameters);
    cpu_close(b);
}

static double distance(const float* a, const float* b, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(difference / size);
}

// The other formats: forward and gradient differ from fp32 by the format's roundoff times a modest
// factor, the same for all formats (seen: 0.5 and 3.6), and by no less than a hundredth of it.
static void test_formats(void) {
    const model c = model_gpt2(40, 33, 2, 2, 32);
    const int length[] = {40, 7, 23};
    backend* b = cpu_open(1, "auto");
    float* parameters = random_parameters(&c, 5, 0.15);
    text t = random_text(&c, length, 3, 1, 0);
    outcome exact = run_text(b, &c, precision_of(&FORMAT_FP32, &FORMAT_FP32), parameters, &t, 1, 3);
    double finer = 0;  // the error of the format before
    for (int i = 1; i < DTYPES; i++) {
        double roundoff = ldexp(1, -DTYPE[i]->mantissa_bits - 1);
        outcome o = run_text(b, &c, precision_of(DTYPE[i], &FORMAT_FP32), parameters, &t, 1, 3);
        double forward = distance(o.logp, exact.logp, (size_t)o.targets);
        double gradient = distance(o.all, exact.all, o.parameters);
        double lookup = distance(o.lookup, exact.lookup, o.embedding);
        const char* name = DTYPE[i]->name;
        CHECK(forward < 2 * roundoff && forward > roundoff / 100, "%s: %g", name, forward);
        CHECK(gradient < 8 * roundoff && gradient > roundoff / 100, "%s: %g", name, gradient);
        CHECK(lookup < 8 * roundoff && lookup > roundoff / 100, "%s: %g", name, lookup);
        // The coarser, the further; tf32 and fp16 have as many bits.
        CHECK(i == 2 || forward > 1.5 * finer, "%s: %g after %g", name, forward, finer);
        finer = forward;
        outcome_free(&o);
    }
    // Gradients alone in a format: forward keeps its bits, and they err as much as their format.
    double previous = 0;
    for (int i = 2; i < DTYPES; i++) {  // from fp16 on: tf32 has as many bits
        double roundoff = ldexp(1, -DTYPE[i]->mantissa_bits - 1);
        precision p = precision_of(&FORMAT_FP32, &FORMAT_FP32);
        outcome o = run_text(b, &c, precision_with_gradient(p, DTYPE[i]), parameters, &t, 1, 3);
        double gradient = distance(o.all, exact.all, o.parameters);
        CHECK(!memcmp(o.logp, exact.logp, 4 * o.targets), "gradients in %s", DTYPE[i]->name);
        CHECK(gradient < 8 * roundoff && gradient > 1.5 * previous, "gradients in %s: %g after %g",
              DTYPE[i]->name, gradient, previous);
        previous = gradient;
        outcome_free(&o);
    }
    text_free(&t);
    outcome_free(&exact);
    free(parameters);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// The contract

static void check_same_outcome(const outcome* a, const outcome* e, const char* what) {
    CHECK(a->targets == e->targets, "%s: targets", what);
    CHECK(!memcmp(a->logp, e->logp, 4 * e->targets), "%s: log-probabilities", what);
    CHECK(!memcmp(a->entropy, e->entropy, 4 * e->targets), "%s: entropies", what);
    CHECK(!memcmp(a->all, e->all, 4 * e->parameters), "%s: gradients", what);
    CHECK(!memcmp(a->lookup, e->lookup, 4 * e->embedding), "%s: lookup gradients", what);
}

// Sequences around the blocks of 16 and 256 keys, at odd sizes of head, channels and vocabulary.
static const int LONG_LENGTH[] = {1, 2, 15, 16, 300, 17, 33};
enum { LONG_SEQUENCES = 7 };

static void test_bits(void) {
    backend* device[DEVICES_MAX];
    int devices = open_devices(device);
    const model long_model = model_gpt2(320, 37, 2, 2, 24);
    float* parameters = random_parameters(&long_model, 6, 0.2);
    text t = random_text(&long_model, LONG_LENGTH, LONG_SEQUENCES, 0, 0);
    for (int i = 0; i < DTYPES; i++) {
        const format* logits = i % 2 ? &FORMAT_BF16 : &FORMAT_FP32;
        precision p = precision_of(DTYPE[i], logits);
        char what[96];
        outcome e = run_text(device[0], &long_model, p, parameters, &t, 1.25f, LONG_SEQUENCES);
        for (int together = 1; together <= 3; together += quick ? 3 : 2) {
            snprintf(what, sizeof what, "%s, %d sequences at a time", DTYPE[i]->name, together);
            outcome o = run_text(device[0], &long_model, p, parameters, &t, 1.25f, together);
            check_same_outcome(&o, &e, what);
            outcome_free(&o);
        }
        for (int d = 1; d < devices && !(quick && d != 1 + i % 3); d++) {
            snprintf(what, sizeof what, "%s on %s", DTYPE[i]->name, device[d]->name);
            outcome o = run_text(device[d], &long_model, p, parameters, &t, 1.25f, LONG_SEQUENCES);
            check_same_outcome(&o, &e, what);
            outcome_free(&o);
        }
        outcome_free(&e);
    }
    text_free(&t);
    free(parameters);
    for (int d = 0; d < devices; d++) cpu_close(device[d]);
}

// A token is seen by itself and by what follows it in its own sequence, by nothing else.
static void test_causality(void) {
    const model c = model_gpt2(40, 37, 2, 2, 24);
    const int length[] = {20, 40, 9}, changed = 20 + 18;  // a token in the middle of the second
    backend* b = cpu_open(1, "auto");
    precision p = precision_of(&FORMAT_FP32, &FORMAT_FP32);
    float* parameters = random_parameters(&c, 6, 0.2);
    text t = random_text(&c, length, 3, 0, 0);
    outcome before = run_text(b, &c, p, parameters, &t, 1, 3);
    t.token[changed] = (t.token[changed] + 1) % (c.shape.vocab - 1);
    outcome after = run_text(b, &c, p, parameters, &t, 1, 3);
    for (int i = 0; i < t.tokens; i++) {
        int sees = i >= changed && i < length[0] + length[1];
        int differs = float_bits(before.logp[i]) != float_bits(after.logp[i]);
        CHECK(sees == differs, "row %d sees the changed token %d: %d", i, changed, differs);
    }
    text_free(&t);
    outcome_free(&before);
    outcome_free(&after);
    free(parameters);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// Memory

// Forward of a batch with room for four tokens and targets.
static void forward_batch(const void* batch) {
    const model c = model_gpt2(8, 8, 1, 1, 16);
    backend* b = cpu_open(1, "auto");
    model_weights* w = model_weights_create(b, &c, precision_of(&FORMAT_FP32, &FORMAT_FP32));
    model_acts* a = model_acts_create(b, &c, &FORMAT_FP32, 4, RECOMPUTE_NOTHING);
    model_forward(w, a, batch, 1, NULL, NULL);
}

static void test_memory(void) {
    const model c = model_gpt2(16, 24, 3, 2, 32);
    backend* b = cpu_open(1, "auto");
    float* parameters = random_parameters(&c, 1, 0.1);
    float* on_device = to_device(b, parameters, c.parameters * 4);
    size_t before = b->allocated;
    model_weights* w = model_weights_create(b, &c, precision_of(&FORMAT_E4M3, &FORMAT_FP32));
    model_weights_sync(w, on_device);
    size_t held = w->bytes, bytes[FORWARD_ONLY + 1];
    for (int keep = 0; keep <= FORWARD_ONLY; keep++) {
        size_t already = b->allocated;
        model_acts* a = model_acts_create(b, &c, &FORMAT_FP32, 10, (recompute_level)keep);
        bytes[keep] = model_acts_bytes(a);
        CHECK(b->allocated - already == model_acts_bytes(a), "the activations' size as announced");
        model_acts_free(a);
        CHECK(b->allocated == already, "%zu bytes after they are freed", b->allocated);
    }
    // 10 tokens and 32 channels; three layers' own share as recompute_level says, plus one shared.
    size_t row = 10 * 32 * 4, norms = 2 * row + 4 * row;
    CHECK(bytes[0] - bytes[1] == 3 * norms - norms, "norms and GELU of two layers fewer");
    CHECK(bytes[1] > bytes[2] && bytes[2] > bytes[3], "each level keeps less");
    model_weights_sync(w, on_device);
    CHECK(w->bytes == held, "a second sync takes no more memory");
    model_weights_free(w);
    model_weights* never_synced =
        model_weights_create(b, &c, precision_of(&FORMAT_FP32, &FORMAT_FP32));
    model_weights_free(never_synced);
    b->release(b, on_device, c.parameters * 4);
    size_t scratch = b->allocated - (before - c.parameters * 4);
    CHECK(scratch < 1 << 20, "%zu bytes stay as scratch memory", scratch);
    free(parameters);
    cpu_close(b);
    check_refusal(forward_batch, &(packed_batch){.tokens = 5}, "five tokens in activations of four",
                  (const char* [REFUSAL_WORDS]){"5 tokens"});
    check_refusal(forward_batch, &(packed_batch){.targets = 5},
                  "five targets where there is room for four",
                  (const char* [REFUSAL_WORDS]){"5 targets"});
}

int main(int argc, char** argv) {
    quick = test_quick(argc, argv);
    test_table();
    test_refusals();
    test_init();
    test_against_double();
    test_tied_embedding();
    test_formats();
    test_bits();
    test_causality();
    test_memory();
    return test_report();
}
