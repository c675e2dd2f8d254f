// derivations: what the pages of docs/derivations/ are checked against. Draws the inputs of a page,
// calls the plain device's ops (plain.c) or the objectives on them, and prints both, an array a
// line:
//     given NAME TYPE ROWS COLS VALUES      an input
//     gives NAME TYPE ROWS COLS VALUES      what the program computes from the inputs
// TYPE is float or int; values are in the shortest text with the same bits.
// docs/derivations/check.py runs the PyTorch of the page on the inputs and compares.
//     derivations PAGE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/backend.h"
#include "model/model.h"
#include "rl/objective.h"

static backend* plain;
static rng draw;

static void print_head(const char* which, const char* name, const char* type, int rows, int cols) {
    printf("%s %s %s %d %d", which, name, type, rows, cols);
}

static void print_floats(const char* which, const char* name, const float* x, int rows, int cols) {
    print_head(which, name, "float", rows, cols);
    for (int i = 0; i < rows * cols; i++) printf(" %.9g", x[i]);
    puts("");
}

static void given_ints(const char* name, const int* x, int n) {
    print_head("given", name, "int", 1, n);
    for (int i = 0; i < n; i++) printf(" %d", x[i]);
    puts("");
}

static void gives(const char* name, tensor t) {
    print_floats("gives", name, t.data, t.rows, t.cols);
}

static tensor zeros(int rows, int cols) {
    return (tensor){xalloc((size_t)rows * cols, sizeof(float), "a page's array"), rows, cols, cols,
                    &FORMAT_FP32};
}

// Normal numbers, which the page is given by this name.
static tensor given(const char* name, int rows, int cols) {
    tensor t = zeros(rows, cols);
    for (int i = 0; i < rows * cols; i++) ((float*)t.data)[i] = (float)rng_normal(&draw);
    print_floats("given", name, t.data, rows, cols);
    return t;
}

static prepared* weight(tensor w, const format* operand) {
    return plain->weight_prepare(plain, NULL, w.data, w.rows, w.cols, operand, operand);
}

// ------------------------------------------------------------------------------------------------
// Pages

// Sequences of 3 tokens, one a row, through every objective.
static void policy_gradient(void) {
    enum { SEQUENCES = 12, TOKENS = 3, KINDS = OBJECTIVE_DPPO_TOPK_KL + 1 };
    tensor a = given("A", SEQUENCES, 1), pi = zeros(SEQUENCES, TOKENS),
           mu = zeros(SEQUENCES, TOKENS);
    float *log_pi = pi.data, *log_mu = mu.data;
    for (int i = 0; i < SEQUENCES * TOKENS; i++) {
        log_mu[i] = (float)(-0.1 - 2 * rng_uniform(&draw));
        log_pi[i] = log_mu[i] * (float)(0.4 + 1.2 * rng_uniform(&draw));
    }
    print_floats("given", "log_pi", log_pi, SEQUENCES, TOKENS);
    print_floats("given", "log_mu", log_mu, SEQUENCES, TOKENS);
    for (int kind = 0; kind < KINDS; kind++) {
        objective o = objective_defaults(kind);
        tensor c = zeros(SEQUENCES, TOKENS);
        for (int s = 0; s < SEQUENCES; s++) {
            coefficient each[TOKENS];
            const float *p = log_pi + s * TOKENS, *m = log_mu + s * TOKENS;
            objective_sequence(&o, ((float*)a.data)[s], p, m, p, NULL, TOKENS, NULL, each);
            for (int t = 0; t < TOKENS; t++) ((float*)c.data)[s * TOKENS + t] = (float)each[t].c;
        }
        char name[64];
        snprintf(name, sizeof name, "c[\"%s\"]", OBJECTIVE_NAMES[kind]);
        gives(name, c);
    }
}

// The head with a temperature, an entropy bonus and kept sets, of which the targets are members.
static void log_softmax(void) {
    enum { N = 5, C = 8, V = 40, WORDS = (V + 31) / 32 };
    tensor x = given("x", N, C), w = given("w", V, C), coef = given("c", 1, N);
    tensor spread = given("bonus", 1, N), logp = zeros(1, N), entropy = zeros(1, N);
    tensor stats = zeros(N, 2), dx = zeros(N, C), dw = zeros(V, C);
    int row[N], y[N], keep[N * V] = {0};
    uint32_t nucleus[N * WORDS] = {0};
    for (int i = 0; i < N; i++) {
        row[i] = i;
        y[i] = (int)rng_below(&draw, V);
        for (int j = 0; j < V; j++) {
            if (j != y[i] && rng_below(&draw, 2)) continue;
            keep[i * V + j] = 1;
            nucleus[i * WORDS + j / 32] |= 1u << (j % 32);
        }
    }
    given_ints("y", y, N);
    given_ints("keep", keep, N * V);
    const float temperature = 0.8f;
    prepared* head = weight(w, &FORMAT_FP32);
    plain->head_forward(plain, logp.data, entropy.data, stats.data, x, row, y, N, head,
                        &FORMAT_FP32, 1 / temperature, nucleus, NULL);
    plain->head_backward(plain, dx, dw.data, stats.data, x, row, y, coef.data, spread.data, N, head,
                         &FORMAT_FP32, 1 / temperature, nucleus);
    gives("log_pi", logp), gives("H", entropy), gives("dx", dx), gives("dw", dw);
}

static void norms(void) {
    enum { N = 3, C = 40 };
    tensor x = given("x", N, C), gain = given("gain", 1, C), bias = given("bias", 1, C);
    tensor dout = given("dout", N, C), none = {0}, out = zeros(N, C), dx = zeros(N, C);
    tensor stats = zeros(N, 2), dgain = zeros(1, C), dbias = zeros(1, C);
    plain->norm_forward(plain, out, x, stats.data, x, none, gain.data, bias.data, 1e-5f);
    plain->norm_backward(plain, dx, dgain.data, dbias.data, dout, x, stats.data, gain.data);
    gives("layer", out), gives("dx_layer", dx), gives("dgain_layer", dgain);
    gives("dbias_layer", dbias);
    plain->clear(plain, dx.data, N * C * sizeof(float));
    plain->clear(plain, dgain.data, C * sizeof(float));
    plain->rms_forward(plain, out, x, stats.data, x, none, gain.data, 1e-5f);
    plain->rms_backward(plain, dx, dgain.data, dout, x, stats.data, gain.data);
    gives("rms", out), gives("dx_rms", dx), gives("dgain_rms", dgain);
}

// A prompt of 4 tokens and 3 samples of it, of 3, 1 and 5 tokens: each prompt row stands once.
static void attention(void) {
    enum { SEQUENCES = 4, ROWS = 13, HEADS = 2, DIM = 8 };
    const int start[] = {0, 4, 7, 8, 13}, prefix[] = {-1, 0, 0, 0}, lengths[] = {4, 3, 1, 5};
    const packing pack = {SEQUENCES, start, prefix};
    const head_shape heads = {HEADS, HEADS, DIM};
    tensor qkv = given("qkv", ROWS, 3 * HEADS * DIM), dout = given("dout", ROWS, HEADS * DIM);
    tensor out = zeros(ROWS, HEADS * DIM), dqkv = zeros(ROWS, 3 * HEADS * DIM);
    tensor stats = zeros(ROWS, HEADS * 2);
    given_ints("lengths", lengths, SEQUENCES);
    plain->attention_forward(plain, out, stats.data, qkv, &pack, heads, &FORMAT_FP32);
    plain->attention_backward(plain, dqkv, dout, qkv, out, stats.data, &pack, heads, &FORMAT_FP32,
                              &FORMAT_FP32);
    gives("out", out), gives("dqkv", dqkv);
}

static void rope(void) {
    enum { ROWS = 6, HEADS = 2, DIM = 8, CONTEXT = 64 };
    const int position[ROWS] = {0, 1, 2, 7, 31, 63};
    const head_shape heads = {HEADS, HEADS, DIM};
    const shape s = {.context = CONTEXT, .head_dim = DIM, .rope_theta = 10000};
    tensor qkv = given("qkv", ROWS, 3 * HEADS * DIM), dout = given("dout", ROWS, 3 * HEADS * DIM);
    tensor out = zeros(ROWS, 3 * HEADS * DIM), dqkv = zeros(ROWS, 3 * HEADS * DIM);
    tensor turn = zeros(CONTEXT, DIM);
    given_ints("position", position, ROWS);
    model_turns(&s, turn.data);
    plain->rope(plain, out, qkv, turn.data, position, heads, 0);
    plain->rope(plain, dqkv, dout, turn.data, position, heads, 1);
    gives("out", out), gives("dqkv", dqkv);
}

static void swiglu(void) {
    enum { N = 3, F = 10 };
    tensor pre = given("pre", N, 2 * F), dout = given("dout", N, F);
    tensor out = zeros(N, F), dpre = zeros(N, 2 * F);
    plain->swiglu_forward(plain, out, pre);
    plain->swiglu_backward(plain, dpre, dout, pre);
    gives("out", out), gives("dpre", dpre);
}

// Three steps, the gradients scaled down as clipping does.
static void adamw(void) {
    enum { STEPS = 3, N = 6 };
    tensor w = given("w", 1, N), g = given("g", STEPS, N), m = zeros(1, N), v = zeros(1, N);
    for (int t = 1; t <= STEPS; t++) {
        double norm = 0;
        float* gradient = (float*)g.data + (t - 1) * N;
        plain->sum_squares(plain, &norm, gradient, N);
        norm = sqrt(norm);
        const adamw_step how = {.lr = 0.01f,
                                .beta1 = 0.9f,
                                .beta2 = 0.95f,
                                .eps = 1e-8f,
                                .weight_decay = 0.1f,
                                .correction1 = (float)(1 - pow(0.9, t)),
                                .correction2 = (float)(1 - pow(0.95, t)),
                                .gradient_scale = norm > 1 ? (float)(1 / norm) : 1,
                                .format = &FORMAT_FP32};
        plain->adamw(plain, w.data, m.data, v.data, gradient, N, 0, &how);
    }
    gives("w_new", w);
}

// A product of two operands in fp8, and the operands themselves: what is multiplied by the identity
// stays as it is. The weight's rows differ in size by powers of ten.
static void fp8(void) {
    enum { N = 3, K = 24, OUTPUTS = 5 };
    tensor x = given("x", N, K), w = zeros(OUTPUTS, K), one = zeros(K, K), out = zeros(N, OUTPUTS);
    tensor x8 = zeros(N, K), w8 = zeros(K, OUTPUTS);
    for (int j = 0; j < OUTPUTS; j++)
        for (int k = 0; k < K; k++)
            ((float*)w.data)[j * K + k] = (float)(rng_normal(&draw) * pow(10, j - 2));
    for (int k = 0; k < K; k++) ((float*)one.data)[k * K + k] = 1;
    print_floats("given", "w", w.data, OUTPUTS, K);
    plain->matmul_forward(plain, x8, x, weight(one, &FORMAT_E4M3), NULL);
    plain->matmul_forward(plain, w8, one, weight(w, &FORMAT_E4M3), NULL);
    plain->matmul_forward(plain, out, x, weight(w, &FORMAT_E4M3), NULL);
    gives("x8", x8), gives("w8.T", w8), gives("out", out);
}

// One row of a product: on its own, as the last of three rows, and with its sum in two parts.
// Operands are bf16 numbers, whose products are exact.
static void equal_bits(void) {
    enum { K = 600, N = 3 };
    tensor rows = zeros(N, K), w = zeros(1, K), alone = zeros(1, 1), among = zeros(N, 1);
    float *x = rows.data, *weights = w.data;
    for (int i = 0; i < N * K; i++) x[i] = format_round((float)rng_normal(&draw), &FORMAT_BF16);
    for (int k = 0; k < K; k++) weights[k] = format_round((float)rng_normal(&draw), &FORMAT_BF16);
    print_floats("given", "x", x + (N - 1) * K, 1, K);
    print_floats("given", "w", weights, 1, K);
    tensor last = {x + (N - 1) * K, 1, K, K, &FORMAT_FP32};
    plain->matmul_forward(plain, alone, last, weight(w, &FORMAT_BF16), NULL);
    plain->matmul_forward(plain, among, rows, weight(w, &FORMAT_BF16), NULL);
    print_floats("gives", "ours", alone.data, 1, 1);
    print_floats("gives", "ours", (float*)among.data + N - 1, 1, 1);
    prepared* halves = plain->weight_plan(plain, &(linear_plan){.split_k = 2});
    plain->weight_prepare(plain, halves, weights, 1, K, &FORMAT_BF16, &FORMAT_BF16);
    plain->matmul_forward(plain, alone, last, halves, NULL);
    gives("split", alone);
}

int main(int argc, char** argv) {
    static const struct {
        const char* name;
        void (*print)(void);
    } pages[] = {{"policy-gradient", policy_gradient},
                 {"log-softmax", log_softmax},
                 {"norms", norms},
                 {"attention", attention},
                 {"rope", rope},
                 {"swiglu", swiglu},
                 {"adamw", adamw},
                 {"fp8", fp8},
                 {"equal-bits", equal_bits}};
    plain = plain_open();
    draw = rng_at(1, STREAM_INIT, 0, 0);
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
        if (argc == 2 && !strcmp(argv[1], pages[i].name)) {
            pages[i].print();
            file_close(stdout, "standard output");
            return 0;
        }
    fprintf(stderr, "usage: derivations PAGE, where PAGE is one of");
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) fprintf(stderr, " %s", pages[i].name);
    fprintf(stderr, "\n");
    return 1;
}
