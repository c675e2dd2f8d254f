// The families: the invariants of their tables; log-probabilities and the gradients of all
// parameters against transformers in float64, by finite differences, and with the same bits on all
// devices, in any micro-batches and packing, and through the cache. See cpu_test.h.
#include "cpu_test.h"
#include "model/model.h"

enum { SEQUENCES_MAX = 8 };

// A batch and the parameters that it meets. Device arrays, which the CPU device's user may write.
typedef struct model_case {
    model config;
    packed_batch batch;
    int length[SEQUENCES_MAX];
    int target_start[SEQUENCES_MAX + 1];  // where each sequence's rows of the head begin
    tensor parameters;
    float* coef;  // (targets)
    float inverse_temperature;
} model_case;

typedef struct model_result {
    tensor logp, entropy, all, lookup;
} model_result;

static model_result result_new(const model_case* c) {
    model_result r = {vector_new(c->batch.targets), vector_new(c->batch.targets),
                      vector_new(c->parameters.cols),
                      vector_new(c->config.shape.vocab * c->config.shape.channels)};
    set_zero(r.all);
    set_zero(r.lookup);
    return r;
}

// Sequences first .. first+n-1 of the batch as a batch of their own.
static packed_batch part_of(const model_case* c, int first, int n, int* start, int* row) {
    int at = c->batch.pack.start[first], target = c->target_start[first];
    packed_batch g = c->batch;
    g.pack.sequences = n;
    g.tokens = c->batch.pack.start[first + n] - at;
    g.targets = c->target_start[first + n] - target;
    g.token += at;
    g.position += at;
    g.target += target;
    if (g.experts) g.experts += (size_t)at * model_experts_each(&c->config);
    if (g.nucleus) g.nucleus += target * ((c->config.shape.vocab + 31) / 32);
    for (int s = 0; s <= n; s++) start[s] = c->batch.pack.start[first + s] - at;
    for (int i = 0; i < g.targets; i++) row[i] = c->batch.row[target + i] - at;
    g.pack.start = start;
    g.row = row;
    return g;
}

// What backward calls done keeps its bits: they are copied, then compared.
typedef struct listener {
    const model* m;
    const float* gradient;
    float* kept;   // (parameters)
    size_t count;  // of them
    int layer;     // the next
} listener;

static void keep_done(void* listener_, int layer) {
    listener* k = listener_;
    CHECK(layer == k->layer, "layer %d is done, not %d", layer, k->layer);
    k->layer--;
    for (size_t at = 0, n = 7; at < k->m->parameters; at += n) {
        if (k->m->parameters - at < n) n = k->m->parameters - at;
        if (model_done(k->m, at, at + n) != layer) continue;
        memcpy(k->kept + at, k->gradient + at, n * sizeof(float));
        k->count += n;
    }
}

static void check_done(listener* k) {
    size_t n = k->m->parameters;
    keep_done(k, -1);
    CHECK(k->count == n, "%s: %zu of %zu gradients are done", k->m->family->name, k->count, n);
    CHECK(!memcmp(k->kept, k->gradient, n * sizeof(float)), "%s: what is done changes",
          k->m->family->name);
    free(k->kept);
}

// Forward, `micro` sequences at a time, and backward unless `forward_only`. What is recomputed
// differs from call to call: it must leave no trace.
static model_result run_model(backend* b, const model_case* c, precision p, int micro,
                              int forward_only) {
    model_result r = result_new(c);
    model_gradients gradients = {.all = r.all.data, .lookup = r.lookup.data};
    listener listening = {&c->config, r.all.data, NULL, 0, c->config.shape.layers};
    model_weights* w = model_weights_create(b, &c->config, p);
    static int calls;
    recompute_level keep = forward_only ? FORWARD_ONLY : (recompute_level)(calls++ % FORWARD_ONLY);
    model_acts* a = model_acts_create(b, &c->config, p.store, c->batch.tokens, keep);
    int start[SEQUENCES_MAX + 1], *row = xalloc(c->batch.targets, sizeof *row, "rows");
    model_weights_sync(w, c->parameters.data);
    for (int s = 0; s < c->batch.pack.sequences; s += micro) {
        int n = c->batch.pack.sequences - s < micro ? c->batch.pack.sequences - s : micro;
        int at = c->target_start[s];
        packed_batch g = part_of(c, s, n, start, row);
        model_forward(w, a, &g, c->inverse_temperature, row_at(r.logp, 0) + at,
                      row_at(r.entropy, 0) + at);
        if (forward_only) continue;
        if (s + n == c->batch.pack.sequences) {
            listening.kept = xalloc(c->config.parameters, sizeof(float), "a test");
            gradients.done = keep_done, gradients.listener = &listening;
        }
        model_backward(w, a, &g, c->inverse_temperature, c->coef + at, gradients);
    }
    if (!forward_only) check_done(&listening);
    free(row);
    model_acts_free(a);
    model_weights_free(w);
    return r;
}

// The packing that the lengths ask for; the head is asked at each row from the second on.
static void pack_sequences(model_case* c) {
    packed_batch* g = &c->batch;
    int *start = ints_new(SEQUENCES_MAX + 1), n = 0, target = 0;
    for (; c->length[n]; n++) {
        start[n] = g->tokens;
        c->target_start[n] = g->targets;
        g->tokens += c->length[n];
        g->targets += c->length[n] - 1;
    }
    start[n] = g->tokens;
    c->target_start[n] = g->targets;
    g->pack = (packing){n, start, NULL};
    g->position = ints_new(g->tokens);
    g->row = ints_new(g->targets);
    for (int s = 0; s < n; s++)
        for (int i = 0; i < c->length[s]; i++) {
            g->position[start[s] + i] = i;
            if (i > 0) g->row[target++] = start[s] + i;
        }
}

static model_case case_random(model config, const int* length) {
    model_case c = {.config = config, .inverse_temperature = 1.25f};
    memcpy(c.length, length, sizeof c.length);
    pack_sequences(&c);
    c.parameters = vector_random((int)config.parameters);
    for (int i = 0; i < c.parameters.cols; i++) row_at(c.parameters, 0)[i] *= 0.25f;
    c.batch.token = ints_new(c.batch.tokens);
    c.batch.target = ints_new(c.batch.targets);
    for (int i = 0; i < c.batch.tokens; i++) c.batch.token[i] = random_below(config.shape.vocab);
    for (int i = 0; i < c.batch.targets; i++) c.batch.target[i] = random_below(config.shape.vocab);
    c.coef = floats_random(c.batch.targets);
    return c;
}

static int family_count(void) {
    int n = 0;
    while (FAMILIES[n]) n++;
    return n;
}

// Heads of one block of 16 and more, groups of one, two and three query heads, and no two sizes
// alike. Two kinds of GPT-2 and two of Llama, then one of each other family, and a second mixture
// of experts.
enum { HIDDEN = 28 };
static int kind_count(void) { return family_count() + 3; }
static model kind_number(int k) {
    const shape of_llama = {.context = 40,
                            .vocab = 37,
                            .layers = 2,
                            .channels = 20,
                            .heads = 4,
                            .kv_heads = 2,
                            .head_dim = 6,
                            .hidden = HIDDEN,
                            .tied = 1,
                            .norm_eps = 1e-5f,
                            .rope_theta = 100};
    shape s = of_llama;
    switch (k) {
        case 0:
            return model_gpt2(40, 37, 2, 2, 20);
        case 1:
            s = model_gpt2(40, 37, 2, 2, 20).shape;
            s.tied = 0;
            return model_of(&GPT2_FAMILY, s);
        case 2:
            return model_of(&LLAMA_FAMILY, s);
        case 3:
            s.heads = 3, s.kv_heads = 1, s.head_dim = 18, s.tied = 0;
            s.scaling = ROPE_LLAMA3, s.rope_factor = 4, s.rope_low = 1, s.rope_high = 4;
            s.rope_context = 16;
            return model_of(&LLAMA_FAMILY, s);
        case 4:
            s.kv_heads = 4, s.tied = 0;
            return model_of(&QWEN2_FAMILY, s);
        default: {
            int last = k == family_count() + 2;
            const family* f = last ? &QWEN3_MOE_FAMILY : FAMILIES[k - 2];
            if (!family_has(f, EXPERTS)) return model_of(f, s);
            // 40 experts: some take no row. Then all are taken by all rows.
            s.hidden = 10, s.experts = 40, s.experts_used = 3, s.norm_topk_prob = 1;
            if (last) s.experts = s.experts_used = 4, s.norm_topk_prob = s.tied = 0;
            return model_of(f, s);
        }
    }
}

static model CONFIG;  // the kind that is tested
static const int LENGTHS[SEQUENCES_MAX] = {5, 40, 2, 17, 33, 9};

// The trainer's precisions, with the logits' two in turn: the table's formats, then some by their
// bits, gradients of their own format (NULL: the same), fp8 scales per tensor, and keys and values
// of their own format (NULL: the same).
static const struct {
    const char *dtype, *gradient;
    int weight_per_tensor;
    const char* kv;
} PRECISIONS[] = {
    {"fp32", NULL, 0, NULL},   {"tf32", NULL, 0, NULL},       {"bf16", NULL, 0, NULL},
    {"fp16", NULL, 0, NULL},   {"fp8_e4m3", NULL, 0, NULL},   {"fp8_e5m2", NULL, 0, NULL},
    {"e5m6", NULL, 0, NULL},   {"e3m4", NULL, 1, NULL},       {"fp8_e4m3", "fp8_e5m2", 0, NULL},
    {"e4m3", "e5m2", 1, NULL}, {"bf16", "fp32", 0, NULL},     {"tf32", "bf16", 0, NULL},
    {"fp32", "tf32", 0, NULL}, {"bf16", "fp8_e5m2", 0, NULL}, {"fp32", NULL, 0, "fp8_e4m3"},
    {"tf32", NULL, 0, "e5m1"}, {"bf16", NULL, 0, "fp16"},     {"fp8_e4m3", NULL, 0, "fp8_e5m2"}};
enum { PRECISION_COUNT = sizeof PRECISIONS / sizeof *PRECISIONS };

static precision precision_number(int i) {
    precision p =
        precision_of(format_find(PRECISIONS[i].dtype), i % 2 ? &FORMAT_FP32 : &FORMAT_BF16);
    if (PRECISIONS[i].gradient) p = precision_with_gradient(p, format_find(PRECISIONS[i].gradient));
    p.weight_per_tensor = PRECISIONS[i].weight_per_tensor;
    if (PRECISIONS[i].kv) p.kv = format_find(PRECISIONS[i].kv);
    return p;
}

static const char* precision_name(int i) {
    return text("%s, %s, gradients %s, keys and values %s", CONFIG.family->name,
                PRECISIONS[i].dtype, PRECISIONS[i].gradient ? PRECISIONS[i].gradient : "the same",
                PRECISIONS[i].kv ? PRECISIONS[i].kv : "the same");
}

static void check_same_result(const model_result* got, const model_result* expected,
                              const char* what, const backend* b) {
    check_same(got->logp, expected->logp, "logp", what, b);
    check_same(got->entropy, expected->entropy, "entropy", what, b);
    check_same(got->all, expected->all, "gradient", what, b);
    check_same(got->lookup, expected->lookup, "lookup gradient", what, b);
}

// Every device against the plain one, in micro-batches of 1, 2, ... sequences.
static void check_devices(void) {
    for (int i = 0; i < PRECISION_COUNT; i++) {
        int mark = array_count;
        model_case c = case_random(CONFIG, LENGTHS);
        model_result expected =
            run_model(plain_device, &c, precision_number(i), c.batch.pack.sequences, 0);
        for (int d = device_next(); d < device_count; d += device_step) {
            int inner = array_count, micro = random_between(1, c.batch.pack.sequences);
            // fp8 gradients have scales over the tokens of a micro-batch.
            if (precision_number(i).gradient_linear->scaled) micro = c.batch.pack.sequences;
            const char* what =
                text("a model in %s, %d sequences at a time", precision_name(i), micro);
            model_result got = run_model(devices[d], &c, precision_number(i), micro, 0);
            check_same_result(&got, &expected, what, devices[d]);
            arrays_free(inner, what);
        }
        arrays_free(mark, "models on all devices");
    }
}

// ------------------------------------------------------------------------------------------------
// Rounding points: table N3 of the contract, and which op gets which format.

static void check_precisions(void) {
    const format *fp32 = &FORMAT_FP32, *tf32 = &FORMAT_TF32, *bf16 = &FORMAT_BF16;
    const format *fp16 = &FORMAT_FP16, *e4m3 = &FORMAT_E4M3, *e5m2 = &FORMAT_E5M2;
    const format *e5m6 = format_find("e5m6"), *e3m4 = format_find("e3m4");
    static const struct {
        const char *dtype, *gradient;
    } cases[] = {{"fp32", NULL},           {"tf32", NULL},       {"bf16", NULL},   {"fp16", NULL},
                 {"fp8_e4m3", NULL},       {"fp8_e5m2", NULL},   {"e5m6", NULL},   {"e3m4", NULL},
                 {"fp8_e4m3", "fp8_e5m2"}, {"bf16", "fp8_e5m2"}, {"tf32", "fp32"}, {"fp32", "tf32"},
                 {"fp8_e4m3", "fp16"},     {"fp8_e4m3", "tf32"}, {"bf16", "e5m6"}};
    // linear, linear_backward, product, store, logits, and of gradients: linear, product, store
    const precision expected[] = {
        {fp32, fp32, fp32, fp32, fp16, fp32, fp32, fp32, 0, 0, 0, NULL, NULL},
        {tf32, tf32, tf32, fp32, fp16, tf32, tf32, fp32, 0, 0, 0, NULL, NULL},
        {bf16, bf16, bf16, bf16, fp16, bf16, bf16, bf16, 0, 0, 0, NULL, NULL},
        {fp16, fp16, fp16, fp16, fp16, fp16, fp16, fp16, 0, 0, 0, NULL, NULL},
        {e4m3, bf16, bf16, bf16, fp16, bf16, bf16, bf16, 0, 0, 0, NULL, NULL},
        {e5m2, bf16, bf16, bf16, fp16, bf16, bf16, bf16, 0, 0, 0, NULL, NULL},
        {e5m6, e5m6, e5m6, e5m6, fp16, e5m6, e5m6, e5m6, 0, 0, 0, NULL, NULL},
        {e3m4, bf16, bf16, bf16, fp16, bf16, bf16, bf16, 0, 0, 0, NULL, NULL},
        {e4m3, e4m3, bf16, bf16, fp16, e5m2, bf16, bf16, 0, 0, 0, NULL, NULL},
        {bf16, bf16, bf16, bf16, fp16, e5m2, bf16, bf16, 0, 0, 0, NULL, NULL},
        {tf32, tf32, tf32, fp32, fp16, fp32, fp32, fp32, 0, 0, 0, NULL, NULL},
        {fp32, fp32, fp32, fp32, fp16, tf32, tf32, fp32, 0, 0, 0, NULL, NULL},
        {e4m3, bf16, bf16, bf16, fp16, fp16, fp16, fp16, 0, 0, 0, NULL, NULL},
        {e4m3, bf16, bf16, bf16, fp16, tf32, tf32, fp32, 0, 0, 0, NULL, NULL},
        {bf16, bf16, bf16, bf16, fp16, e5m6, e5m6, e5m6, 0, 0, 0, NULL, NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        precision p = precision_of(format_find(cases[i].dtype), fp16);
        if (cases[i].gradient) p = precision_with_gradient(p, format_find(cases[i].gradient));
        CHECK(!memcmp(&p, &expected[i], offsetof(precision, split_k)), "the precision of %s, %s",
              cases[i].dtype, cases[i].gradient ? cases[i].gradient : "gradients the same");
    }
}

// A device that looks at the formats of each call and passes it on.
static backend* watched;
static precision watched_precision;
static int watched_calls, roundings;  // roundings: of keys and values

static void expect(int right, const char* what) {
    watched_calls++;
    CHECK(right, "%s in another format than a precision of %s asks for", what,
          watched_precision.linear->name);
}

static int stored(tensor t) { return t.format == watched_precision.store; }
static int gradient(tensor t) { return t.format == watched_precision.gradient; }
static int plain(tensor t) { return t.format == &FORMAT_FP32; }

// Four weights a layer, or two, the experts' and the router, then the head.
static int planned;
static int layer_plans(void) { return CONFIG.shape.experts ? 3 + 2 * CONFIG.shape.experts : 4; }
// Whether plan i is of the head, or of a router: those follow all layers' other weights.
static int plan_of_head(int i) {
    int routers = CONFIG.shape.experts ? CONFIG.shape.layers : 0;
    return i >= layer_plans() * CONFIG.shape.layers - routers;
}

static prepared* watch_plan(backend* b, const linear_plan* plan) {
    precision p = watched_precision;
    int head = plan_of_head(planned++);
    expect(plan->gradient == (head ? p.gradient_attention : p.gradient_linear),
           "a plan's gradient");
    expect(plan->weight_per_tensor == (head ? 0 : p.weight_per_tensor), "a plan's scale");
    expect(plan->activation_per_tensor == 0 && plan->split_k == p.split_k, "a plan");
    return watched->weight_plan(b, plan);
}

static prepared* watch_prepare(backend* b, prepared* reuse, const float* w, int outputs, int inputs,
                               const format* operand, const format* backward) {
    precision p = watched_precision;
    int head = outputs == CONFIG.shape.vocab || outputs == CONFIG.shape.experts;
    expect(operand == (head ? p.attention : p.linear), "a weight");
    expect(backward == (head ? p.attention : p.linear_backward), "a weight's backward");
    return watched->weight_prepare(b, reuse, w, outputs, inputs, operand, backward);
}

static void watch_cast(backend* b, float* to, const float* from, size_t n, const format* f) {
    expect(f == watched_precision.store, "another weight");
    watched->cast(b, to, from, n, f);
}

static void watch_embed(backend* b, tensor out, const float* wte, const float* wpe,
                        const int* token, const int* position) {
    expect(stored(out), "the embedding sum");
    watched->embed_forward(b, out, wte, wpe, token, position);
}

static void watch_norm(backend* b, tensor out, tensor sum, float* stats, tensor residual,
                       tensor add, const float* gain, const float* bias, float eps) {
    expect(stored(out) && stored(sum), "a norm or residual sum");
    watched->norm_forward(b, out, sum, stats, residual, add, gain, bias, eps);
}

static void watch_norm_backward(backend* b, tensor dresidual, float* dgain, float* dbias,
                                tensor dout, tensor residual, const float* stats,
                                const float* gain) {
    expect(gradient(dresidual) && plain(dout), "a residual-gradient sum");
    watched->norm_backward(b, dresidual, dgain, dbias, dout, residual, stats, gain);
}

static void watch_rms(backend* b, tensor out, tensor sum, float* stats, tensor residual, tensor add,
                      const float* gain, float eps) {
    expect(stored(out) && stored(sum), "a norm or residual sum");
    watched->rms_forward(b, out, sum, stats, residual, add, gain, eps);
}

static void watch_rms_backward(backend* b, tensor dresidual, float* dgain, tensor dout,
                               tensor residual, const float* stats, const float* gain) {
    expect(gradient(dresidual) && plain(dout), "a residual-gradient sum");
    watched->rms_backward(b, dresidual, dgain, dout, residual, stats, gain);
}

static void watch_qk_norm(backend* b, tensor out, float* stats, tensor qkv, const float* gain,
                          head_shape heads, float eps) {
    expect(stored(out) && stored(qkv), "the norm of heads");
    watched->qk_norm_forward(b, out, stats, qkv, gain, heads, eps);
}

static void watch_qk_norm_backward(backend* b, tensor dqkv, float* dgain, tensor dout, tensor qkv,
                                   const float* stats, const float* gain, head_shape heads) {
    expect(gradient(dqkv) && plain(dout), "the gradient of the norm of heads");
    watched->qk_norm_backward(b, dqkv, dgain, dout, qkv, stats, gain, heads);
}

static void watch_rope(backend* b, tensor out, tensor qkv, const float* turn, const int* position,
                       head_shape heads, int backward) {
    int sum = family_has(CONFIG.family, QK_NORM);
    if (backward)
        expect(gradient(qkv) && (sum ? plain(out) : gradient(out)), "the gradient of a rotation");
    else
        expect(stored(out) && stored(qkv), "a rotation");
    watched->rope(b, out, qkv, turn, position, heads, backward);
}

static void watch_matmul(backend* b, tensor out, tensor in, const prepared* w, const float* bias) {
    expect(stored(out) && stored(in), "a product");
    watched->matmul_forward(b, out, in, w, bias);
}

// What a product reads of `dout` backward to its input: the same as of a copy that holds nothing
// but values of the gradients' format times a power of two for each row.
static void see_gradient_rows(backend* b, tensor din, tensor dout, const prepared* w) {
    int mark = array_count;
    tensor rounded = operands_of(dout, watched_precision.gradient_linear);
    tensor expected = matrix_new(din.rows, din.cols, din.format);
    rounded.format = dout.format;
    watched->matmul_backward_input(b, expected, rounded, w);
    watched->matmul_backward_input(b, din, dout, w);
    expect(first_difference(dout, rounded) >= 0 && first_difference(din, expected) < 0,
           "what a product reads of a gradient is");
    arrays_free(mark, "what a product reads of a gradient's rows");
}

// The gradient of the attention output is the only one that no op rounds after the product.
static void watch_matmul_input(backend* b, tensor din, tensor dout, const prepared* w) {
    if (watched_precision.gradient_linear->scaled) see_gradient_rows(b, din, dout, w);
    int attention = din.cols == dim_of(&CONFIG.shape, D_Q) && dout.cols == CONFIG.shape.channels;
    expect(attention ? gradient(din) : plain(din), "a gradient of a product's input");
    expect(gradient(dout), "a gradient that a product reads");
    watched->matmul_backward_input(b, din, dout, w);
}

// What the backward product of weight w reads of `dout`, seen through a product with a unit matrix
// instead of its input: values of the gradients' format times a power of two for each column.
static void see_gradient(backend* b, tensor dout, tensor in, const prepared* w) {
    const format* f = watched_precision.gradient_linear;
    int mark = array_count, strange = 0;
    tensor seen = matrix_new(dout.cols, dout.rows, &FORMAT_FP32), bias = vector_new(dout.cols);
    tensor unit = matrix_new(in.rows, in.cols, in.format);
    tensor part = array_new(dout.cols, in.cols, 0, &FORMAT_FP32);
    set_zero(bias);
    for (int first = 0; first < dout.rows; first += in.cols) {
        set_zero(unit);
        set_zero(part);
        for (int i = 0; i < in.cols && first + i < dout.rows; i++) row_at(unit, first + i)[i] = 1;
        watched->matmul_backward_weight(b, part.data, bias.data, dout, unit, w);
        for (int j = 0; j < dout.cols; j++)
            for (int i = 0; i < in.cols && first + i < dout.rows; i++)
                row_at(seen, j)[first + i] = row_at(part, j)[i];
    }
    for (int j = 0; j < seen.rows; j++) {
        float amax = 0;
        for (int r = 0; r < seen.cols; r++) amax = fmaxf(amax, fabsf(row_at(dout, r)[j]));
        float scale = format_scale(amax, f);
        for (int r = 0; r < seen.cols; r++) {
            float x = row_at(seen, j)[r] / scale;
            strange += !same_bits(x + 0.0f, format_round(row_at(dout, r)[j] / scale, f) + 0.0f);
        }
    }
    expect(strange == 0, "the values of a gradient are");
    arrays_free(mark, "what a product reads of a gradient");
}

static void watch_matmul_weight(backend* b, float* dw, float* dbias, tensor dout, tensor in,
                                const prepared* w) {
    expect(gradient(dout) && stored(in), "an operand of a weight's gradient");
    if (watched_precision.gradient_linear->scaled) see_gradient(b, dout, in, w);
    watched->matmul_backward_weight(b, dw, dbias, dout, in, w);
}

static void watch_gelu(backend* b, tensor out, tensor pre) {
    expect(stored(out), "the GELU");
    watched->gelu_forward(b, out, pre);
}

static void watch_gelu_backward(backend* b, tensor dpre, tensor dout, tensor pre) {
    expect(gradient(dpre), "the gradient of the pre-GELU");
    watched->gelu_backward(b, dpre, dout, pre);
}

static void watch_swiglu(backend* b, tensor out, tensor pre) {
    expect(stored(out), "the SwiGLU");
    watched->swiglu_forward(b, out, pre);
}

static void watch_swiglu_backward(backend* b, tensor dpre, tensor dout, tensor pre) {
    expect(gradient(dpre) && plain(dout), "the gradient of gate and up");
    watched->swiglu_backward(b, dpre, dout, pre);
}

static void watch_experts(backend* b, tensor out, tensor in, const expert_layer* e) {
    expect(stored(out) && stored(in), "a mixture of experts");
    watched->experts_forward(b, out, in, e);
}

static void watch_experts_backward(backend* b, tensor din, float* drouter, float* dgate_up,
                                   float* ddown, tensor dout, tensor in, const expert_layer* e) {
    expect(plain(din) && gradient(dout) && stored(in), "the gradient of a mixture of experts");
    watched->experts_backward(b, din, drouter, dgate_up, ddown, dout, in, e);
}

static void watch_kv_round(backend* b, tensor qkv, head_shape heads, const format* f) {
    expect(stored(qkv) && f == watched_precision.kv, "keys and values");
    roundings++;
    watched->kv_round(b, qkv, heads, f);
}

static void watch_attention(backend* b, tensor out, float* stats, tensor qkv, const packing* pack,
                            head_shape heads, const format* operand) {
    expect(stored(out) && operand == watched_precision.attention, "attention");
    watched->attention_forward(b, out, stats, qkv, pack, heads, operand);
}

static void watch_attention_backward(backend* b, tensor dqkv, tensor dout, tensor qkv, tensor out,
                                     const float* stats, const packing* pack, head_shape heads,
                                     const format* operand, const format* operand_gradient) {
    expect(gradient(dqkv) && gradient(dout), "the gradient of QKV");
    expect(operand == watched_precision.attention, "an operand of attention");
    expect(operand_gradient == watched_precision.gradient_attention, "attention's gradients");
    watched->attention_backward(b, dqkv, dout, qkv, out, stats, pack, heads, operand,
                                operand_gradient);
}

static void watch_head(backend* b, float* logp, float* entropy, float* stats, tensor x,
                       const int* row, const int* target, int n, const prepared* w,
                       const format* logits, float inverse_temperature, const uint32_t* nucleus,
                       const candidates* asked) {
    expect(logits == watched_precision.logits, "logits");
    watched->head_forward(b, logp, entropy, stats, x, row, target, n, w, logits,
                          inverse_temperature, nucleus, asked);
}

static void watch_head_backward(backend* b, tensor dx, float* dw, const float* stats, tensor x,
                                const int* row, const int* target, const float* coef,
                                const float* bonus, int n, const prepared* w, const format* logits,
                                float inverse_temperature, const uint32_t* nucleus) {
    expect(plain(dx) && logits == watched_precision.logits, "the gradient of logits");
    watched->head_backward(b, dx, dw, stats, x, row, target, coef, bonus, n, w, logits,
                           inverse_temperature, nucleus);
}

static void check_formats(void) {
    int mark = array_count;
    model_case c = case_random(CONFIG, LENGTHS);
    watched = devices[device_count - device_step];
    backend b = *watched;
    b.weight_plan = watch_plan, b.weight_prepare = watch_prepare, b.cast = watch_cast,
    b.embed_forward = watch_embed;
    b.norm_forward = watch_norm, b.norm_backward = watch_norm_backward;
    b.rms_forward = watch_rms, b.rms_backward = watch_rms_backward;
    b.qk_norm_forward = watch_qk_norm, b.qk_norm_backward = watch_qk_norm_backward;
    b.rope = watch_rope, b.swiglu_forward = watch_swiglu;
    b.swiglu_backward = watch_swiglu_backward;
    b.matmul_forward = watch_matmul, b.matmul_backward_input = watch_matmul_input;
    b.matmul_backward_weight = watch_matmul_weight, b.gelu_forward = watch_gelu;
    b.gelu_backward = watch_gelu_backward, b.attention_forward = watch_attention;
    b.attention_backward = watch_attention_backward, b.head_forward = watch_head;
    b.head_backward = watch_head_backward, b.kv_round = watch_kv_round;
    b.experts_forward = watch_experts, b.experts_backward = watch_experts_backward;
    for (int i = 0; i < PRECISION_COUNT; i++) {
        watched_precision = precision_number(i);
        watched_calls = planned = roundings = 0;
        run_model(&b, &c, watched_precision, c.batch.pack.sequences, 0);
        CHECK(planned == 0 || planned == layer_plans() * CONFIG.shape.layers + 1, "%d plans",
              planned);
        CHECK((roundings > 0) == (PRECISIONS[i].kv != NULL),
              "%d roundings of keys and values for %s", roundings, precision_name(i));
        CHECK(!PRECISIONS[i].gradient || planned, "no plans for %s", precision_name(i));
        CHECK(watched_calls > 50, "only %d calls of 2 layers were watched", watched_calls);
    }
    arrays_free(mark, "formats");
}

// ------------------------------------------------------------------------------------------------
// Through the cache

// Position by position, all sequences at once, each its own slot; -1 for those that have ended.
static void decode(tensor logp, model_weights* w, model_acts* a, const kv_cache* kv,
                   const model_case* c) {
    backend* b = w->b;
    int n = c->batch.pack.sequences, token[SEQUENCES_MAX], slot[SEQUENCES_MAX], at[SEQUENCES_MAX];
    for (int i = 0; i < c->config.shape.context; i++) {
        int rows[SEQUENCES_MAX], target[SEQUENCES_MAX], place[SEQUENCES_MAX], asked = 0;
        float result[SEQUENCES_MAX];
        for (int s = 0; s < n; s++) {
            int here = i < c->length[s], from = c->batch.pack.start[s] + i;
            token[s] = here ? c->batch.token[from] : 0;
            slot[s] = s;
            at[s] = here ? i : -1;
            if (!here || i == 0) continue;
            rows[asked] = s;
            place[asked] = c->target_start[s] + i - 1;
            target[asked] = c->batch.target[place[asked]];
            asked++;
        }
        tensor x = model_forward_cached(w, a, kv, NULL, n, token, slot, at);
        b->head_forward(b, result, NULL, NULL, x, rows, target, asked, w->head, w->precision.logits,
                        c->inverse_temperature, NULL, NULL);
        for (int k = 0; k < asked; k++) row_at(logp, 0)[place[k]] = result[k];
    }
}

static void check_cache_of(const int* lengths, int i) {
    int mark = array_count, pages = (CONFIG.shape.context + KV_PAGE - 1) / KV_PAGE;
    model_case c = case_random(CONFIG, lengths);
    precision p = precision_number(i);
    backend* b = devices[(i + 1) * device_step % device_count];
    model_result expected = run_model(devices[0], &c, p, 2, 1);
    tensor logp = vector_new(c.batch.targets);
    int n = c.batch.pack.sequences, *table = ints_new(n * pages);
    for (int k = 0; k < n * pages; k++) table[k] = n * pages - 1 - k;
    kv_cache kv = {.layers = CONFIG.shape.layers,
                   .pages = n * pages,
                   .heads = model_heads(&CONFIG),
                   .page_table = table,
                   .pages_per_slot = pages,
                   .format = p.kv ? p.kv : p.store,
                   .operand = p.attention};
    kv.data = floats_new((int)(b->kv_bytes(&kv) / sizeof(float)));
    model_weights* w = model_weights_create(b, &c.config, p);
    model_acts* a = model_acts_create(b, &c.config, p.store, n, FORWARD_ONLY);
    model_weights_sync(w, c.parameters.data);
    decode(logp, w, a, &kv, &c);
    model_acts_free(a);
    model_weights_free(w);
    check_same(logp, expected.logp, "logp", text("decoding in %s", precision_name(i)), b);
    arrays_free(mark, "decoding");
}

static void check_cache(void) {
    static const int HUNDREDS[SEQUENCES_MAX] = {300, 17};
    for (int i = 0; i < PRECISION_COUNT; i++) check_cache_of(LENGTHS, i);
    model kept = CONFIG;
    shape s = CONFIG.shape;
    s.context = 300;
    CONFIG = model_of(CONFIG.family, s);
    for (int i = 0; i < 6; i++) check_cache_of(HUNDREDS, i);
    CONFIG = kept;
}

// ------------------------------------------------------------------------------------------------
// Against float64, and finite differences

// The models of dev/reference/families.py: two of each family, then one of each whose keys and
// values are rounded.
static int fixture_count(void) { return 3 * family_count(); }
static int is_rounded(int k) { return k >= 2 * family_count(); }

static const char* fixture_name(int k) {
    if (is_rounded(k)) return text("%s_rounded", FAMILIES[k - 2 * family_count()]->name);
    return text("%s_%s", FAMILIES[k / 2]->name, k % 2 ? "untied" : "tied");
}

static model fixture_model(int k) {
    if (is_rounded(k)) k = 2 * (k - 2 * family_count());
    shape s = {.context = 16,
               .vocab = 13,
               .layers = 2,
               .channels = 8,
               .heads = 4,
               .kv_heads = 2,
               .head_dim = 4,
               .hidden = 12,
               .norm_eps = 1e-5f};
    if (k / 2 == 0) s = model_gpt2(16, 13, 2, 3, 12).shape;
    if (family_has(FAMILIES[k / 2], EXPERTS))
        s.hidden = 6, s.experts = 5, s.experts_used = 2, s.norm_topk_prob = k % 2;
    s.tied = k % 2 == 0;
    static const float thetas[] = {0, 0, 100, 500, 100, 50, 100, 500};
    s.rope_theta = thetas[k < 8 ? k : 6 + k % 2];  // families without a line here are like qwen3
    if (s.rope_theta == 500)
        s.scaling = ROPE_LLAMA3, s.rope_factor = 4, s.rope_low = 1, s.rope_high = 4,
        s.rope_context = 8;
    if (k == 4) s.scaling = ROPE_LINEAR, s.rope_factor = 2;
    return model_of(FAMILIES[k / 2], s);
}

static model_case case_of(model config, const char* name) {
    model_case c = {.config = config, .length = {9, 1, 6}};
    char of[40];  // a text does not last
    snprintf(of, sizeof of, "%s", name);
    c.parameters = vector_new((int)c.config.parameters);
    for (int i = 0; i < WEIGHTS; i++)
        if (c.config.count[i])
            memcpy(row_at(c.parameters, 0) + c.config.offset[i],
                   fixture_floats(of, c.config.family->weight[i].name),
                   c.config.count[i] * sizeof(float));
    c.coef = fixture_floats("batch", "coef");
    c.inverse_temperature = *fixture_floats("batch", "inverse_temperature");
    packed_batch g = {.tokens = 16, .targets = fixture_find("batch", "row").count};
    g.token = fixture_ints("batch", "token");
    g.position = fixture_ints("batch", "position");
    g.pack = (packing){3, fixture_ints("batch", "seq_start"), NULL};
    g.row = fixture_ints("batch", "row");
    g.target = fixture_ints("batch", "target");
    for (int i = 0; i < g.targets; i++)
        for (int s = 0; s < 3; s++) c.target_start[s + 1] += g.row[i] < g.pack.start[s + 1];
    c.batch = g;
    return c;
}

static model_case case_fixture(int k) { return case_of(fixture_model(k), fixture_name(k)); }

// A tied embedding's gradient: as the head's weight and as a lookup.
static void add_lookup(const model_case* c, model_result* r) {
    float* to = row_at(r->all, 0) + c->config.offset[c->config.family->embedding];
    for (int i = 0; c->config.shape.tied && i < r->lookup.cols; i++)
        to[i] += row_at(r->lookup, 0)[i];
}

static void check_float64(int k) {
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count;
        model_case c = case_fixture(k);
        precision p = precision_of(&FORMAT_FP32, &FORMAT_FP32);
        if (is_rounded(k)) p.kv = &FORMAT_E4M3;
        model_result r = run_model(devices[d], &c, p, 2, 0);
        add_lookup(&c, &r);
        check_fixture(r.logp, fixture_name(k), "logp", devices[d]);
        for (int i = 0; i < WEIGHTS; i++)
            if (c.config.count[i])
                check_fixture(columns_of(r.all, (int)c.config.offset[i], (int)c.config.count[i]),
                              fixture_name(k), text("d%s", c.config.family->weight[i].name),
                              devices[d]);
        arrays_free(mark, "a model against float64");
    }
}

// The experts that the routers choose for the rows of a batch: (tokens, layers, used).
static void choices_of(backend* b, const model_case* c, uint8_t* experts) {
    precision p = precision_of(&FORMAT_FP32, &FORMAT_FP32);
    model_weights* w = model_weights_create(b, &c->config, p);
    model_acts* a = model_acts_create(b, &c->config, p.store, c->batch.tokens, FORWARD_ONLY);
    tensor logp = vector_new(c->batch.targets);
    model_weights_sync(w, c->parameters.data);
    model_forward(w, a, &c->batch, c->inverse_temperature, logp.data, NULL);
    memcpy(experts, model_experts(a), c->batch.tokens * model_experts_each(&c->config));
    model_acts_free(a);
    model_weights_free(w);
}

static double model_loss(const void* context, double* size) {
    const model_case* c = context;
    int mark = array_count;
    model_result r = run_model(devices[device_count - device_step], c,
                               precision_of(&FORMAT_FP32, &FORMAT_FP32), 3, 1);
    double loss = -weighted_sum(r.logp, as_vector(c->coef, r.logp.cols), size);
    arrays_drop(mark);
    return loss;
}

static void check_differences(int k) {
    int mark = array_count;
    model_case c = case_fixture(k);
    for (int i = 0; i < c.parameters.cols; i++) {  // on the grid that makes steps exact
        float* x = row_at(c.parameters, 0) + i;
        *x = rintf(*x * 1024) / 1024;
    }
    uint8_t* own = NULL;  // a step must not change a row's experts, where the loss has a jump
    if (c.config.shape.experts) {
        own = xalloc(c.batch.tokens * model_experts_each(&c.config), 1, "experts");
        choices_of(plain_device, &c, own);
        c.batch.experts = own;
    }
    model_result r = run_model(devices[device_count - device_step], &c,
                               precision_of(&FORMAT_FP32, &FORMAT_FP32), 3, 0);
    add_lookup(&c, &r);
    for (int i = 0; i < WEIGHTS; i++) {
        int at = (int)c.config.offset[i], n = (int)c.config.count[i];
        // Some 30 ops one after another, each with a few roundings of numbers near its own size.
        if (n)
            check_slopes(columns_of(c.parameters, at, n), columns_of(r.all, at, n), model_loss, &c,
                         100,
                         text("slope of the loss by %s of %s", c.config.family->weight[i].name,
                              fixture_name(k)));
    }
    free(own);
    arrays_free(mark, "differences of a model");
}

// ------------------------------------------------------------------------------------------------
// Replayed routing

// What the routers choose, replayed, changes no bit. Other experts, the last ones for each row, do;
// then all devices agree, slopes are those of finite differences, and the routers of the first
// layer, which read the same, choose the same as before.
static void check_replay(int k) {
    int mark = array_count;
    model_case c = case_fixture(k);
    size_t each = model_experts_each(&c.config), n = c.batch.tokens * each;
    int used = c.config.shape.experts_used, experts = c.config.shape.experts;
    uint8_t *own = xalloc(3 * n, 1, "experts"), *other = own + n, *again = own + 2 * n;
    precision p = precision_of(&FORMAT_FP32, &FORMAT_FP32);
    for (int i = 0; i < c.parameters.cols; i++) {  // on the grid that makes steps exact
        float* x = row_at(c.parameters, 0) + i;
        *x = rintf(*x * 1024) / 1024;
    }
    choices_of(plain_device, &c, own);
    for (size_t i = 0; i < n; i++) {
        CHECK(own[i] < experts && (i % used == 0 || own[i - 1] < own[i]), "expert %d", own[i]);
        other[i] = (uint8_t)(experts - used + i % used);
    }
    model_result free_run = run_model(plain_device, &c, p, 2, 0);
    c.batch.experts = own;
    for (int d = 0; d <= device_count; d += device_step) {
        model_result r = run_model(devices[d], &c, p, 1, 0);
        check_same_result(&r, &free_run, "the routers' own choices, replayed", devices[d]);
    }
    c.batch.experts = other;
    model_result r = run_model(plain_device, &c, p, 3, 0);
    CHECK(first_difference(r.logp, free_run.logp) >= 0, "other experts change nothing");
    for (int d = 0; d < device_count; d += device_step) {
        model_result got = run_model(devices[d], &c, p, 2, 0);
        check_same_result(&got, &r, "other experts", devices[d]);
        choices_of(devices[d], &c, again);
        for (size_t i = 0; i < n; i++)
            if (i % each < (size_t)used)
                CHECK(again[i] == own[i], "a router of layer 0 chooses %d", again[i]);
    }
    add_lookup(&c, &r);
    for (int i = 0; i < WEIGHTS; i++) {
        int at = (int)c.config.offset[i], count = (int)c.config.count[i];
        if (count)
            check_slopes(columns_of(c.parameters, at, count), columns_of(r.all, at, count),
                         model_loss, &c, 100,
                         text("slope by %s of replayed %s", c.config.family->weight[i].name,
                              fixture_name(k)));
    }
    free(own);
    arrays_free(mark, "replayed routing");
}

// Equal rows of the router: the experts of the lowest numbers.
static void check_ties(int k) {
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count;
        model_case c = case_fixture(k);
        size_t n = c.batch.tokens * model_experts_each(&c.config);
        uint8_t* own = xalloc(n, 1, "experts");
        int router = model_weight(&c.config, "router"), used = c.config.shape.experts_used;
        set_zero(
            columns_of(c.parameters, (int)c.config.offset[router], (int)c.config.count[router]));
        choices_of(devices[d], &c, own);
        for (size_t i = 0; i < n; i++)
            CHECK(own[i] == i % used, "of equal experts number %d is taken", own[i]);
        free(own);
        arrays_free(mark, "equal experts");
    }
}

// The load-balancing loss, times 5, of transformers: experts times the sum of f P. Its choices are
// counted here by hand.
static void check_balance(void) {
    enum { EXPERT_COUNT = 5, COEFFICIENT = 5 };
    int k = 0;
    while (strcmp(fixture_name(k), "qwen3_moe_tied")) k++;
    for (int d = 0; d <= device_count; d += device_step) {
        int mark = array_count;
        model_case c = case_of(fixture_model(k), "qwen3_moe_balanced");
        size_t n = c.batch.tokens * model_experts_each(&c.config);
        double all = c.batch.tokens * c.config.shape.layers;
        uint8_t* own = xalloc(n, 1, "experts");
        float* balance = floats_new(EXPERT_COUNT);
        for (int e = 0; e < EXPERT_COUNT; e++) balance[e] = 0;
        choices_of(plain_device, &c, own);
        for (size_t i = 0; i < n; i++)
            balance[own[i]] += (float)(COEFFICIENT * EXPERT_COUNT / all / all);
        c.batch.balance = balance;
        model_result r = run_model(devices[d], &c, precision_of(&FORMAT_FP32, &FORMAT_FP32), 2, 0);
        add_lookup(&c, &r);
        for (int i = 0; i < WEIGHTS; i++)
            if (c.config.count[i])
                check_fixture(columns_of(r.all, (int)c.config.offset[i], (int)c.config.count[i]),
                              "qwen3_moe_balanced", text("d%s", c.config.family->weight[i].name),
                              devices[d]);
        free(own);
        arrays_free(mark, "the load-balancing loss");
    }
}

// The residual stream begins with the embeddings, and is kept whatever else is recomputed.
static void check_residual(void) {
    int mark = array_count;
    model_case c = case_random(CONFIG, LENGTHS);
    backend* b = devices[0];
    int C = c.config.shape.channels, L = c.config.shape.layers, N = c.batch.tokens;
    const family* f = CONFIG.family;
    const float* wte = row_at(c.parameters, 0) + c.config.offset[f->embedding];
    const float* wpe =
        f->positions == NONE ? NULL : row_at(c.parameters, 0) + c.config.offset[f->positions];
    model_weights* w = model_weights_create(b, &c.config, precision_of(&FORMAT_FP32, &FORMAT_FP32));
    model_weights_sync(w, c.parameters.data);
    tensor first = matrix_new(N, C, &FORMAT_FP32),
           kept = array_new((L + 1) * N, C, 0, &FORMAT_FP32);
    for (int r = 0; r < N; r++)
        for (int i = 0; i < C; i++)
            row_at(first, r)[i] =
                wte[c.batch.token[r] * C + i] + (wpe ? wpe[c.batch.position[r] * C + i] : 0);
    for (int keep = RECOMPUTE_NOTHING; keep < FORWARD_ONLY; keep++) {
        model_acts* a = model_acts_create(b, &c.config, &FORMAT_FP32, N, (recompute_level)keep);
        tensor logp = vector_new(c.batch.targets);
        model_forward(w, a, &c.batch, 1, logp.data, NULL);
        for (int l = 0; l <= L; l++) {
            tensor of_layer = {(void*)model_residual(a, l), N, C, C, &FORMAT_FP32};
            if (l == 0) check_same(of_layer, first, "the embeddings", "residual", b);
            if (keep == RECOMPUTE_NOTHING) copy_values(rows_of(kept, l * N, N), of_layer);
            check_same(of_layer, rows_of(kept, l * N, N), text("layer %d", l), "residual", b);
        }
        model_acts_free(a);
    }
    model_weights_free(w);
    arrays_free(mark, "residual");
}

// ------------------------------------------------------------------------------------------------
// The tables

static int used_by_links(const family* f, int weight) {
    int n = 0;
    for (int r = 0; r < BRANCHES; r++)
        for (int i = 0; i < LINKS && f->branch[r][i].out != D_0; i++) {
            const family_link* k = &f->branch[r][i];
            n += (k->weight == weight) + (k->bias == weight);
            n += k->kind == EXPERTS && (k->gate_up == weight || k->down == weight);
        }
    return n;
}

static int is_norm(link_kind k) { return k == LAYER_NORM || k == RMS_NORM; }
static int wants_sum(link_kind k) { return is_norm(k) || k == GELU || k == SWIGLU || k == QK_NORM; }

static void check_chain(const family* f, int r) {
    const family_link* chain = f->branch[r];
    int n = 0;
    while (n < LINKS && chain[n].out != D_0) n++;
    CHECK(n >= 2 && n < LINKS, "%s has %d links in branch %d", f->name, n, r);
    CHECK(is_norm(chain[0].kind) && chain[0].kind == f->branch[0][0].kind,
          "%s: branch %d begins with link %d", f->name, r, chain[0].kind);
    CHECK(chain[n - 1].out == D_C && chain[n - 1].kept == NEVER, "%s: the end of branch %d",
          f->name, r);
    for (int i = 0; i < n; i++) {
        CHECK(i == 0 || !is_norm(chain[i].kind), "%s: a norm within branch %d", f->name, r);
        CHECK(chain[i].kind != KV_ROUND ||
                  (chain[i + 1].kind == ATTEND && chain[i].out == chain[i - 1].out &&
                   (chain[i - 1].kind == LINEAR || chain[i - 1].kind == ROPE)),
              "%s: the link %d of %d that rounds in place", f->name, i, r);
        CHECK(i == n - 1 || (chain[i].kept == NEVER) == (chain[i].kind == KV_ROUND),
              "%s: link %d of %d is not kept", f->name, i, r);
        CHECK(chain[i].aux == D_0 || chain[i].aux_kept >= chain[i].kept,
              "%s: the aux of link %d of %d goes before its output", f->name, i, r);
        CHECK(i == 0 || !wants_sum(chain[i].kind) || !wants_sum(chain[i - 1].kind),
              "%s: links %d and %d of branch %d both take sums", f->name, i - 1, i, r);
        CHECK((chain[i].weight != NONE) == (is_norm(chain[i].kind) || chain[i].kind == LINEAR ||
                                            chain[i].kind == QK_NORM || chain[i].kind == EXPERTS),
              "%s: the weight of link %d of %d", f->name, i, r);
        CHECK(chain[i].kind != EXPERTS || (i == n - 1 && chain[i].aux_kept == RECOMPUTE_BLOCKS),
              "%s: experts are link %d of %d, which forward may not repeat", f->name, i, r);
        if (chain[i].kind == LINEAR)
            CHECK(f->weight[chain[i].weight].rows == chain[i].out &&
                      (i == 0 || f->weight[chain[i].weight].cols == chain[i - 1].out),
                  "%s: the sizes of link %d of %d", f->name, i, r);
    }
}

static void check_tables(void) {
    for (int k = 0; FAMILIES[k]; k++) {
        const family* f = FAMILIES[k];
        const char* name = FAMILY_NAMES[k] ? FAMILY_NAMES[k] : "nothing: FAMILY_NAMES is shorter";
        CHECK(!strcmp(f->name, name), "%s is called %s", f->name, name);
        if (!FAMILY_NAMES[k]) return;
        for (int r = 0; r < BRANCHES; r++) check_chain(f, r);
        for (int i = 0; i < WEIGHTS; i++) {
            const family_weight* w = &f->weight[i];
            if (!w->name) continue;
            int apart = i == f->embedding || i == f->positions || i == f->norm ||
                        i == f->norm_bias || i == f->head;
            CHECK(used_by_links(f, i) == !apart, "%s: %s is named by %d links", f->name, w->name,
                  used_by_links(f, i));
            CHECK(w->once == apart, "%s: %s is there once: %d", f->name, w->name, w->once);
            CHECK(w->hf[0] && (strstr(w->hf[0], "%d") == NULL) == w->once, "%s: %s in a file",
                  f->name, w->name);
        }
    }
    const char* extra = FAMILY_NAMES[family_count()];
    CHECK(!extra, "%s is a name without a family", extra);
}

int main(void) {
    fixture_path = "tests/fixtures/families.bin";
    devices_open();
    check_tables();
    check_precisions();
    for (int k = 0; k < kind_count(); k++) {
        CONFIG = kind_number(k);
        check_residual();
        check_devices();
        check_formats();
        check_cache();
    }
    for (int k = 0; k < fixture_count(); k++) {
        check_float64(k);
        if (!is_rounded(k)) check_differences(k);  // a step has no slope
        if (fixture_model(k).shape.experts && !is_rounded(k)) check_replay(k), check_ties(k);
    }
    check_balance();
    fixtures_close();
    devices_close();
    return test_report();
}
