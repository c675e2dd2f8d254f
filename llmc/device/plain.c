// The plain device: every op of ops.def in its plainest form. This file is the textbook of the
// project: each op opens with its formula, one loop computes one element, and the order of every
// sum can be seen. There are no threads, no vectors and no tricks. The other devices do the same
// work faster. The CPU device must give the same bits as this file, and the tests compare the two.
//
// Three rules hold everywhere:
// - A value is held as fp32. Where an op writes a result, `store` rounds it to the tensor's format.
// - A product adds in blocks of 256 terms (`block_chain`); the sum of a row is a tree (`tree`).
// - What sums over rows (the gradients of weights) goes on from what is there, in row order.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"  // few ops need to know their device

// ------------------------------------------------------------------------------------------------
// Rows, sums, rounding

static float* row(tensor t, int r) { return (float*)t.data + r * t.stride; }

static void store(tensor t, int r, int c, float x) { row(t, r)[c] = format_round(x, t.format); }

// Zeros, until free().
static float* floats(size_t n) { return xalloc(n, sizeof(float), "the plain device's memory"); }

static tensor matrix(int rows, int cols) {
    return (tensor){floats((size_t)rows * cols), rows, cols, cols, &FORMAT_FP32};
}

// Chain: sum + a[0] b[0] + a[1] b[1] + ..., one FMA after another. Elements of a lie a_step apart.
static float chain(float sum, const float* a, int64_t a_step, const float* b, int64_t b_step,
                   int n) {
    for (int i = 0; i < n; i++) sum = num_fma(a[i * a_step], b[i * b_step], sum);
    return sum;
}

// An element of a product: one chain for each 256 terms; the chains' sums are added in order.
static float block_chain(const float* a, int64_t a_step, const float* b, int64_t b_step, int n) {
    float sum = chain(0, a, a_step, b, b_step, n < 256 ? n : 256);
    for (int i = 256; i < n; i += 256)
        sum += chain(0, a + i * a_step, a_step, b + i * b_step, b_step, n - i < 256 ? n - i : 256);
    return sum;
}

// Tree: lane l of 16 adds x[l], x[l + 16], ...; then the upper half of the lanes is added to the
// lower half, until one is left.
static float tree(const float* x, int n) {
    float lane[16] = {0};
    for (int i = 0; i < n; i++) lane[i % 16] += x[i];
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

// Which values of an operand share a scale. Only fp8 has scales; they are powers of two.
typedef enum { BY_ROW, BY_COLUMN, BY_TENSOR } scales;

static int scale_number(scales s, int r, int c) { return s == BY_ROW ? r : s == BY_COLUMN ? c : 0; }

// The operand of a product that `from` becomes: to = round(from / scale) scale, where the largest
// value that has this scale just fits into the format.
static void round_operands(tensor to, tensor from, const format* f, scales s) {
    float* largest = floats((size_t)from.rows + from.cols);
    for (int r = 0; r < from.rows; r++)
        for (int c = 0; c < from.cols; c++) {
            float* max = &largest[scale_number(s, r, c)];
            *max = fmaxf(*max, fabsf(row(from, r)[c]));
        }
    for (int r = 0; r < from.rows; r++)
        for (int c = 0; c < from.cols; c++) {
            float scale = format_scale(largest[scale_number(s, r, c)], f);
            row(to, r)[c] = format_round(row(from, r)[c] / scale, f) * scale;
        }
    free(largest);
}

static tensor operands(tensor from, const format* f, scales s) {
    tensor to = matrix(from.rows, from.cols);
    round_operands(to, from, f, s);
    return to;
}

// ------------------------------------------------------------------------------------------------
// Whole arrays

// to = from, rounded
static void cast(backend* b, float* to, const float* from, size_t n, const format* how) {
    for (size_t i = 0; i < n; i++) to[i] = format_round(from[i], how);
}

// to = from, element(x / s) s with a scale s for each block
static void round_blocks(backend* b, float* to, const float* from, int rows, int cols,
                         const block_format* how) {
    float amax = blocks_amax(from, (size_t)rows * cols);
    for (int r = 0; r < rows; r += how->rows) {
        int64_t at = (int64_t)r * cols;
        int high = rows - r < how->rows ? rows - r : how->rows;
        blocks_round(to + at, from + at, high, cols, how, amax);
    }
}

static size_t count_changed(backend* b, const float* before, const float* after, size_t n,
                            const format* how) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += format_round(before[i], how) != format_round(after[i], how);
    return count;
}

// to = to + from
static void add(backend* b, float* to, const float* from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += from[i];
}

// to_i = from_row(i)
static void gather_rows(backend* b, tensor to, tensor from, const int* index) {
    for (int i = 0; i < to.rows; i++)
        memcpy(row(to, i), row(from, index[i]), (size_t)to.cols * sizeof(float));
}

// ------------------------------------------------------------------------------------------------
// Embedding: out = wte[token] + wpe[position]

static void embed_forward(backend* b, tensor out, const float* wte, const float* wpe,
                          const int* token, const int* position) {
    for (int r = 0; r < out.rows; r++)
        for (int c = 0; c < out.cols; c++) {
            float x = 0;  // of a row that is idle
            if (position[r] >= 0) x = wte[(int64_t)token[r] * out.cols + c];
            if (position[r] >= 0 && wpe) x += wpe[(int64_t)position[r] * out.cols + c];
            store(out, r, c, x);
        }
}

// A row of a table gets the sum of the gradients of all tokens that read it.
static void embed_backward(backend* b, float* dwte, float* dwpe, tensor dout, const int* token,
                           const int* position) {
    for (int r = 0; r < dout.rows; r++)
        for (int c = 0; c < dout.cols; c++) {
            dwte[(int64_t)token[r] * dout.cols + c] += row(dout, r)[c];
            if (dwpe) dwpe[(int64_t)position[r] * dout.cols + c] += row(dout, r)[c];
        }
}

// ------------------------------------------------------------------------------------------------
// Layer norm: x = residual + add, h = (x - mean(x)) rstd, out = h gain + bias,
// with rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)

static float* residual_sum(tensor residual_out, tensor residual, tensor add, int r) {
    float *x = row(residual_out, r), *from = row(residual, r);
    for (int i = 0; i < residual_out.cols; i++)
        x[i] = add.data ? format_round(from[i] + row(add, r)[i], residual_out.format) : from[i];
    return x;
}

static void norm_forward(backend* b, tensor out, tensor residual_out, float* stats, tensor residual,
                         tensor add, const float* gain, const float* bias, float eps) {
    int n = out.cols;
    float* square = floats(n);
    for (int r = 0; r < out.rows; r++) {
        float* x = residual_sum(residual_out, residual, add, r);
        float mean = tree(x, n) / n;
        for (int i = 0; i < n; i++) square[i] = (x[i] - mean) * (x[i] - mean);
        float rstd = 1 / sqrtf(tree(square, n) / n + eps);
        for (int i = 0; i < n; i++)
            store(out, r, i, num_fma((x[i] - mean) * rstd, gain[i], bias[i]));
        stats[2 * r] = mean;
        stats[2 * r + 1] = rstd;
    }
    free(square);
}

// dgain += dout h, dbias += dout; with d = dout gain:
// dresidual += (d - mean(d) - h mean(d h)) rstd
static void norm_backward(backend* b, tensor dresidual, float* dgain, float* dbias, tensor dout,
                          tensor residual, const float* stats, const float* gain) {
    int n = dout.cols;
    float *d = floats(3 * (size_t)n), *h = d + n, *dh = h + n;
    for (int r = 0; r < dout.rows; r++) {
        float mean = stats[2 * r], rstd = stats[2 * r + 1];
        for (int i = 0; i < n; i++) {
            h[i] = (row(residual, r)[i] - mean) * rstd;
            d[i] = row(dout, r)[i] * gain[i];
            dh[i] = d[i] * h[i];
            dgain[i] = num_fma(row(dout, r)[i], h[i], dgain[i]);
            dbias[i] += row(dout, r)[i];
        }
        float mean_d = tree(d, n) / n, mean_dh = tree(dh, n) / n;
        for (int i = 0; i < n; i++) {
            float dx = num_fma(-h[i], mean_dh, d[i] - mean_d) * rstd;
            store(dresidual, r, i, row(dresidual, r)[i] + dx);
        }
    }
    free(d);
}

// ------------------------------------------------------------------------------------------------
// RMS norm: h = x rstd, out = h gain, with rstd = 1 / sqrt(mean(x^2) + eps)

static float rms_rstd(const float* x, int n, float eps) {
    float* square = floats(n);
    for (int i = 0; i < n; i++) square[i] = x[i] * x[i];
    float rstd = 1 / sqrtf(tree(square, n) / n + eps);
    free(square);
    return rstd;
}

// With d = dout gain: dx = (d - h mean(d h)) rstd, and dgain += dout h.
static void rms_row_backward(float* dx, float* dgain, const float* dout, const float* x,
                             const float* gain, float rstd, int n) {
    float* dh = floats(n);
    for (int i = 0; i < n; i++) dh[i] = dout[i] * gain[i] * (x[i] * rstd);
    float mean_dh = tree(dh, n) / n;
    for (int i = 0; i < n; i++) {
        float h = x[i] * rstd;
        dgain[i] = num_fma(dout[i], h, dgain[i]);
        dx[i] = num_fma(-h, mean_dh, dout[i] * gain[i]) * rstd;
    }
    free(dh);
}

static void rms_forward(backend* b, tensor out, tensor residual_out, float* stats, tensor residual,
                        tensor add, const float* gain, float eps) {
    for (int r = 0; r < out.rows; r++) {
        float* x = residual_sum(residual_out, residual, add, r);
        float rstd = rms_rstd(x, out.cols, eps);
        for (int i = 0; i < out.cols; i++) store(out, r, i, x[i] * rstd * gain[i]);
        stats[2 * r] = 0;
        stats[2 * r + 1] = rstd;
    }
}

static void rms_backward(backend* b, tensor dresidual, float* dgain, tensor dout, tensor residual,
                         const float* stats, const float* gain) {
    float* dx = floats(dout.cols);
    for (int r = 0; r < dout.rows; r++) {
        rms_row_backward(dx, dgain, row(dout, r), row(residual, r), gain, stats[2 * r + 1],
                         dout.cols);
        for (int i = 0; i < dout.cols; i++) store(dresidual, r, i, row(dresidual, r)[i] + dx[i]);
    }
    free(dx);
}

// QK norm: RMS norm of each head of the queries and of the keys. The queries' heads share one gain,
// the keys' heads the other. The values pass unchanged.
static void qk_norm_forward(backend* b, tensor out, float* stats, tensor qkv, const float* gain,
                            head_shape heads, float eps) {
    int normed = heads.query + heads.kv;
    for (int r = 0; r < out.rows; r++) {
        for (int h = 0; h < normed; h++)
            stats[(int64_t)r * normed + h] = rms_rstd(row(qkv, r) + h * heads.dim, heads.dim, eps);
        for (int c = 0; c < out.cols; c++) {
            int h = c / heads.dim, i = c % heads.dim;
            const float* g = h < heads.query ? gain : gain + heads.dim;
            float x = row(qkv, r)[c];
            store(out, r, c, h < normed ? x * stats[(int64_t)r * normed + h] * g[i] : x);
        }
    }
}

static void qk_norm_backward(backend* b, tensor dqkv, float* dgain, tensor dout, tensor qkv,
                             const float* stats, const float* gain, head_shape heads) {
    int normed = heads.query + heads.kv;
    float* dx = floats(dqkv.cols);
    for (int r = 0; r < dqkv.rows; r++) {
        memcpy(dx, row(dout, r), (size_t)dqkv.cols * sizeof(float));  // of the values, at the end
        for (int h = 0; h < normed; h++) {
            int first = h * heads.dim, k = h < heads.query ? 0 : heads.dim;
            rms_row_backward(dx + first, dgain + k, row(dout, r) + first, row(qkv, r) + first,
                             gain + k, stats[(int64_t)r * normed + h], heads.dim);
        }
        for (int c = 0; c < dqkv.cols; c++) store(dqkv, r, c, dx[c]);
    }
    free(dx);
}

// ------------------------------------------------------------------------------------------------
// Rotary positions: elements i and i + dim / 2 of a head are the two coordinates of a point, which
// turns by the angle of its position: (a, b) becomes (a cos - b sin, b cos + a sin). The gradient
// turns back. The values pass unchanged.

static void rope(backend* b, tensor out, tensor qkv, const float* turn, const int* position,
                 head_shape heads, int backward) {
    int half = heads.dim / 2;
    for (int r = 0; r < out.rows; r++) {
        const float* x = row(qkv, r);
        for (int c = 0; c < out.cols; c++) {
            int h = c / heads.dim, i = c % heads.dim, upper = i >= half;
            float y = x[c];
            if (h < heads.query + heads.kv && position[r] >= 0) {
                const float* t = turn + ((int64_t)position[r] * half + i % half) * 2;
                float cosine = t[0], sine = backward ? -t[1] : t[1];
                y = upper ? x[c] * cosine + x[c - half] * sine : x[c] * cosine - x[c + half] * sine;
            }
            store(out, r, c, y);
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Products: out = in W^T + bias, din = dout W, dW += dout^T in, dbias += sum of the rows of dout

struct prepared {
    tensor forward, backward;  // W (outputs, inputs) as operand of either product
    const format *operand, *backward_operand;
    linear_plan plan;
};

static size_t weight_bytes(tensor w) { return (size_t)w.rows * w.cols * sizeof(float); }

static prepared* weight_plan(backend* b, const linear_plan* plan) {
    prepared* p = xalloc(1, sizeof *p, "a prepared weight");
    p->plan = *plan;
    return p;
}

static prepared* weight_prepare(backend* b, prepared* reuse, const float* w, int outputs,
                                int inputs, const format* operand, const format* backward_operand) {
    prepared* p = reuse ? reuse : xalloc(1, sizeof *p, "a prepared weight");
    tensor from = {(float*)w, outputs, inputs, inputs, &FORMAT_FP32};
    if (!p->forward.data) {
        p->forward = p->backward = from;
        p->forward.data = b->alloc(b, weight_bytes(from), "weights");
        p->backward.data = b->alloc(b, weight_bytes(from), "weights of backward products");
    }
    p->operand = operand;
    p->backward_operand = backward_operand;
    int whole = p->plan.weight_per_tensor;
    round_operands(p->forward, from, operand, whole ? BY_TENSOR : BY_ROW);
    round_operands(p->backward, from, backward_operand, whole ? BY_TENSOR : BY_COLUMN);
    return p;
}

static void weight_release(backend* b, prepared* p) {
    if (p->forward.data) b->release(b, p->forward.data, weight_bytes(p->forward));
    if (p->backward.data) b->release(b, p->backward.data, weight_bytes(p->backward));
    free(p);
}

// x . W[output], in as many equal parts as the plan says.
static float forward_product(const float* x, const prepared* w, int output) {
    int64_t n = w->forward.cols, parts = w->plan.split_k < 1 ? 1 : w->plan.split_k;
    const float* weights = row(w->forward, output);
    float sum = 0;
    if (parts > n) parts = n;
    for (int p = 0; p < parts; p++) {
        int64_t first = n * p / parts, end = n * (p + 1) / parts;
        float part = block_chain(x + first, 1, weights + first, 1, (int)(end - first));
        sum = p == 0 ? part : sum + part;
    }
    return sum;
}

static void matmul_forward(backend* b, tensor out, tensor in, const prepared* w,
                           const float* bias) {
    tensor x = operands(in, w->operand, w->plan.activation_per_tensor ? BY_TENSOR : BY_ROW);
    for (int r = 0; r < out.rows; r++)
        for (int j = 0; j < out.cols; j++) {
            float sum = forward_product(row(x, r), w, j);
            store(out, r, j, bias ? sum + bias[j] : sum);
        }
    free(x.data);
}

static const format* gradient_operand(const prepared* w) {
    return w->plan.gradient ? w->plan.gradient : w->backward_operand;
}

static void matmul_backward_input(backend* b, tensor din, tensor dout, const prepared* w) {
    scales s = w->plan.activation_per_tensor ? BY_TENSOR : BY_ROW;
    tensor d = operands(dout, gradient_operand(w), s), to = w->backward;
    for (int r = 0; r < din.rows; r++)
        for (int i = 0; i < din.cols; i++)
            store(din, r, i, block_chain(row(d, r), 1, row(to, 0) + i, to.stride, d.cols));
    free(d.data);
}

static void matmul_backward_weight(backend* b, float* dw, float* dbias, tensor dout, tensor in,
                                   const prepared* w) {
    scales s = w->plan.activation_per_tensor ? BY_TENSOR : BY_COLUMN;
    tensor d = operands(dout, gradient_operand(w), s), x = operands(in, w->backward_operand, s);
    for (int j = 0; j < d.cols; j++)
        for (int i = 0; i < x.cols; i++) {
            float* to = dw + (int64_t)j * x.cols + i;
            *to = chain(*to, row(d, 0) + j, d.stride, row(x, 0) + i, x.stride, d.rows);
        }
    for (int r = 0; r < d.rows && dbias; r++)
        for (int j = 0; j < d.cols; j++) dbias[j] += row(dout, r)[j];
    free(d.data), free(x.data);
}

// ------------------------------------------------------------------------------------------------
// GELU: out = x / 2 (1 + t) with t = tanh(sqrt(2 / pi) (x + 0.044715 x^3))

#define SQRT_2_OVER_PI 0.7978845608f

static void gelu_forward(backend* b, tensor out, tensor pre) {
    for (int r = 0; r < out.rows; r++)
        for (int i = 0; i < out.cols; i++) {
            float x = row(pre, r)[i];
            float t = num_tanhf(SQRT_2_OVER_PI * num_fma(0.044715f * x * x, x, x));
            store(out, r, i, 0.5f * x * (1 + t));
        }
}

// dpre = dout (x / 2 (1 - t^2) u + 1 / 2 + t / 2), where u = sqrt(2 / pi) (1 + 3 0.044715 x^2) is
// the derivative of what tanh is taken of
static void gelu_backward(backend* b, tensor dpre, tensor dout, tensor pre) {
    for (int r = 0; r < dpre.rows; r++)
        for (int i = 0; i < dpre.cols; i++) {
            float x = row(pre, r)[i];
            float t = num_tanhf(SQRT_2_OVER_PI * num_fma(0.044715f * (x * x), x, x));
            float u = SQRT_2_OVER_PI * num_fma(3 * 0.044715f, x * x, 1);
            float slope = num_fma(0.5f * x * num_fma(-t, t, 1), u, 0.5f + 0.5f * t);
            store(dpre, r, i, row(dout, r)[i] * slope);
        }
}

// SwiGLU: out = g s u with s = sigmoid(g) = 1 / (1 + exp(-g)). A row holds all g, then all u.

static float sigmoid(float x) { return 1 / (1 + num_expf(-x)); }

static void swiglu_forward(backend* b, tensor out, tensor pre) {
    for (int r = 0; r < out.rows; r++)
        for (int i = 0; i < out.cols; i++) {
            float g = row(pre, r)[i], u = row(pre, r)[out.cols + i];
            store(out, r, i, g * sigmoid(g) * u);
        }
}

// dg = dout u s (1 + g (1 - s)), du = dout g s
static void swiglu_backward(backend* b, tensor dpre, tensor dout, tensor pre) {
    int n = dout.cols;
    for (int r = 0; r < dout.rows; r++)
        for (int i = 0; i < n; i++) {
            float g = row(pre, r)[i], u = row(pre, r)[n + i], d = row(dout, r)[i], s = sigmoid(g);
            store(dpre, r, i, d * u * (s * num_fma(g, 1 - s, 1)));
            store(dpre, r, n + i, d * (g * s));
        }
}

// ------------------------------------------------------------------------------------------------
// Mixture of experts: p = softmax(x W^T) over the experts. A row takes the `used` experts of the
// highest p, and out = the sum of w_e E_e(x) over them, with w_e = p_e, or p_e / (the sum of their
// p), and E_e(x) = down(swiglu(gate_up(x))).

typedef struct route {  // of one row
    float *p, *number, *weight;
} route;

static route route_of(const expert_layer* e, int r) {
    float* p = e->routes + (int64_t)r * (e->experts + 2 * e->used);
    return (route){p, p + e->experts, p + e->experts + e->used};
}

// The sum of p over the row's experts.
static float chosen_sum(const expert_layer* e, route to) {
    float sum = 0;
    for (int j = 0; j < e->used; j++) sum += to.p[(int)to.number[j]];
    return sum;
}

// Whether fewer than `used` experts have a higher p than this one, or the same and a lower number.
static int is_chosen(const expert_layer* e, const float* p, int expert) {
    int before = 0;
    for (int i = 0; i < e->experts; i++)
        before += p[i] > p[expert] || (!(p[i] < p[expert]) && i < expert);
    return before < e->used;
}

static void route_row(const expert_layer* e, int r, const float* logits) {
    route to = route_of(e, r);
    float max = -INFINITY;
    int n = 0;
    for (int i = 0; i < e->experts; i++) max = fmaxf(max, logits[i]);
    for (int i = 0; i < e->experts; i++) to.p[i] = num_expf(logits[i] - max);
    float sum = tree(to.p, e->experts);
    for (int i = 0; i < e->experts; i++) to.p[i] /= sum;
    for (int i = 0; i < e->experts && n < e->used; i++)
        if (is_chosen(e, to.p, i)) to.number[n++] = (float)i;
    for (int j = 0; j < e->used; j++) {
        if (e->taken) e->taken[r * e->stride + j] = (uint8_t)to.number[j];
        if (e->replay) to.number[j] = e->replay[r * e->stride + j];
    }
    float whole = e->normalise ? chosen_sum(e, to) : 1;
    for (int j = 0; j < e->used; j++) to.weight[j] = to.p[(int)to.number[j]] / whole;
}

// The rows of an expert, and which of their experts it is: place[i] of row[i]. Returns how many.
static int rows_of(const expert_layer* e, int expert, int rows, int* index, int* place) {
    int n = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < e->used; j++)
            if ((int)route_of(e, r).number[j] == expert) index[n] = r, place[n++] = j;
    return n;
}

static void experts_forward(backend* b, tensor out, tensor in, const expert_layer* e) {
    tensor logits = matrix(in.rows, e->experts), sum = matrix(out.rows, out.cols);
    int *index = xalloc(2 * (size_t)in.rows, sizeof *index, "rows"), *place = index + in.rows;
    matmul_forward(b, logits, in, e->router, NULL);
    for (int r = 0; r < in.rows; r++) route_row(e, r, row(logits, r));
    for (int x = 0; x < e->experts; x++) {
        int n = rows_of(e, x, in.rows, index, place), hidden = e->down[x]->forward.cols;
        tensor from = matrix(n, in.cols), pre = matrix(n, 2 * hidden), h = matrix(n, hidden);
        tensor y = matrix(n, out.cols);
        from.format = pre.format = h.format = in.format;
        gather_rows(b, from, in, index);
        matmul_forward(b, pre, from, e->gate_up[x], NULL);
        swiglu_forward(b, h, pre);
        matmul_forward(b, y, h, e->down[x], NULL);
        for (int i = 0; i < n; i++)
            for (int c = 0; c < out.cols; c++) {
                float* to = row(sum, index[i]) + c;
                *to = num_fma(route_of(e, index[i]).weight[place[i]], row(y, i)[c], *to);
            }
        free(from.data), free(pre.data), free(h.data), free(y.data);
    }
    for (int r = 0; r < out.rows; r++)
        for (int c = 0; c < out.cols; c++) store(out, r, c, row(sum, r)[c]);
    free(logits.data), free(sum.data), free(index);
}

static void record_rows(backend* b, const slot_record* to, const uint8_t* from, int rows,
                        const int* row_slot, const int* row_position) {
    for (int r = 0; r < rows; r++) {
        int64_t at = (int64_t)to->first[row_slot[r]] + row_position[r];
        if (row_position[r] < 0) continue;
        memcpy(to->data + at * to->each, from + (int64_t)r * to->each, to->each);
    }
}

// The gradient of a row's logits, from that of its experts' weights: of a softmax over the row's
// experts, or over all of them.
static void route_backward(const expert_layer* e, route of, const float* dweight, float* dlogits) {
    float mean = 0;
    for (int j = 0; j < e->used; j++) mean = num_fma(of.weight[j], dweight[j], mean);
    for (int i = 0; i < e->experts; i++) dlogits[i] = e->normalise ? 0 : -of.p[i] * mean;
    for (int j = 0; j < e->used; j++)
        dlogits[(int)of.number[j]] = of.weight[j] * (dweight[j] - mean);
    if (!e->balance) return;
    float balance = 0;
    for (int i = 0; i < e->experts; i++) balance = num_fma(of.p[i], e->balance[i], balance);
    for (int i = 0; i < e->experts; i++) dlogits[i] += of.p[i] * (e->balance[i] - balance);
}

static void experts_backward(backend* b, tensor din, float* drouter, float* dgate_up, float* ddown,
                             tensor dout, tensor in, const expert_layer* e) {
    tensor dweight = matrix(in.rows, e->used), dlogits = matrix(in.rows, e->experts);
    tensor of_router = matrix(in.rows, in.cols);
    int *index = xalloc(2 * (size_t)in.rows, sizeof *index, "rows"), *place = index + in.rows;
    for (int r = 0; r < din.rows; r++) memset(row(din, r), 0, (size_t)din.cols * sizeof(float));
    for (int x = 0; x < e->experts; x++) {
        int n = rows_of(e, x, in.rows, index, place), hidden = e->down[x]->forward.cols;
        size_t size = (size_t)hidden * in.cols;
        tensor from = matrix(n, in.cols), pre = matrix(n, 2 * hidden), h = matrix(n, hidden);
        tensor d = matrix(n, dout.cols), dh = matrix(n, hidden), dpre = matrix(n, 2 * hidden);
        tensor dfrom = matrix(n, in.cols);
        float* product = floats(hidden);
        from.format = pre.format = h.format = in.format;
        d.format = dpre.format = dout.format;
        gather_rows(b, from, in, index);
        gather_rows(b, d, dout, index);
        matmul_forward(b, pre, from, e->gate_up[x], NULL);  // once more: they were not kept
        swiglu_forward(b, h, pre);
        matmul_backward_input(b, dh, d, e->down[x]);
        for (int i = 0; i < n; i++) {
            float weight = route_of(e, index[i]).weight[place[i]];
            for (int k = 0; k < hidden; k++) product[k] = row(dh, i)[k] * row(h, i)[k];
            row(dweight, index[i])[place[i]] = tree(product, hidden);
            for (int k = 0; k < hidden; k++) row(dh, i)[k] *= weight;
            for (int c = 0; c < d.cols; c++) store(d, i, c, row(d, i)[c] * weight);
        }
        swiglu_backward(b, dpre, dh, pre);
        matmul_backward_weight(b, ddown + x * size, NULL, d, h, e->down[x]);
        matmul_backward_weight(b, dgate_up + 2 * x * size, NULL, dpre, from, e->gate_up[x]);
        matmul_backward_input(b, dfrom, dpre, e->gate_up[x]);
        for (int i = 0; i < n; i++)
            for (int c = 0; c < din.cols; c++) row(din, index[i])[c] += row(dfrom, i)[c];
        free(from.data), free(pre.data), free(h.data), free(d.data), free(dh.data);
        free(dpre.data), free(dfrom.data), free(product);
    }
    for (int r = 0; r < in.rows; r++)
        route_backward(e, route_of(e, r), row(dweight, r), row(dlogits, r));
    matmul_backward_weight(b, drouter, NULL, dlogits, in, e->router);
    matmul_backward_input(b, of_router, dlogits, e->router);
    for (int r = 0; r < in.rows; r++)
        for (int c = 0; c < din.cols; c++) row(din, r)[c] += row(of_router, r)[c];
    free(dweight.data), free(dlogits.data), free(of_router.data), free(index);
}

// ------------------------------------------------------------------------------------------------
// Attention. Token i of a sequence reads the tokens j <= i:
// s_ij = q_i . k_j / sqrt(dim), p_ij = exp(s_ij - max_i) / sum_i, out_i = sum over j of p_ij v_j.
// A row of qkv holds the queries of all heads, then the keys, then the values.

// Rows first .. first+n-1 of the `dim` columns from `column` on, as operands.
static tensor columns(tensor t, int first, int n, int column, int dim, const format* f) {
    tensor to = matrix(n, dim);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < dim; c++)
            row(to, i)[c] = format_round(row(t, first + i)[column + c], f);
    return to;
}

// One query against the first n keys and values, all operands. stats: {max, sum}. The weights
// exp(s - max) are rounded before they meet the values; the division by their sum comes last.
static void attend(float* out, float stats[2], const float* q, tensor k, tensor v, int n,
                   const format* operand, const format* how) {
    float *p = floats(n), max = -INFINITY, scale = 1 / sqrtf((float)k.cols);
    for (int j = 0; j < n; j++) {
        p[j] = chain(0, q, 1, row(k, j), 1, k.cols) * scale;
        max = fmaxf(max, p[j]);
    }
    for (int j = 0; j < n; j++) p[j] = num_expf(p[j] - max);
    float sum = tree(p, n);
    for (int j = 0; j < n; j++) p[j] = format_round(p[j], operand);
    for (int c = 0; c < v.cols; c++)
        out[c] = format_round(block_chain(p, 1, row(v, 0) + c, v.stride, n) / sum, how);
    stats[0] = max;
    stats[1] = sum;
    free(p);
}

// Query head h of sequence s, and the key head that it reads: the keys of the prefix, then its own.
typedef struct head_rows {
    int first, n;           // rows of the sequence
    int before, shared;     // first row of its prefix, and how many
    int query, key, value;  // columns of the head in a row of qkv
    tensor q, k, v;         // (n, dim), (shared + n, dim) twice: operands
} head_rows;

// The row of key j.
static int key_row(const head_rows* a, int j) {
    return j < a->shared ? a->before + j : a->first + j - a->shared;
}

// Columns `first` .. first + dim - 1 of the rows of all keys, as operands.
static tensor key_columns(const head_rows* a, tensor qkv, int first, int dim, const format* f) {
    tensor t = matrix(a->shared + a->n, dim);
    for (int j = 0; j < t.rows; j++)
        for (int c = 0; c < dim; c++)
            row(t, j)[c] = format_round(row(qkv, key_row(a, j))[first + c], f);
    return t;
}

static head_rows head_open(tensor qkv, const packing* pack, int s, head_shape heads, int h,
                           const format* operand) {
    int g = h / (heads.query / heads.kv), dim = heads.dim, prefix = prefix_of(pack, s);
    head_rows a = {.first = pack->start[s], .n = pack->start[s + 1] - pack->start[s]};
    if (prefix >= 0) {
        a.before = pack->start[prefix];
        a.shared = pack->start[prefix + 1] - a.before;
    }
    a.query = h * dim;
    a.key = (heads.query + g) * dim;
    a.value = (heads.query + heads.kv + g) * dim;
    a.q = columns(qkv, a.first, a.n, a.query, dim, operand);
    a.k = key_columns(&a, qkv, a.key, dim, operand);
    a.v = key_columns(&a, qkv, a.value, dim, operand);
    return a;
}

static void head_close(head_rows* a) { free(a->q.data), free(a->k.data), free(a->v.data); }

static void attention_forward(backend* b, tensor out, float* stats, tensor qkv, const packing* pack,
                              head_shape heads, const format* operand) {
    for (int s = 0; s < pack->sequences; s++)
        for (int h = 0; h < heads.query; h++) {
            head_rows a = head_open(qkv, pack, s, heads, h, operand);
            for (int i = 0; i < a.n; i++)
                attend(row(out, a.first + i) + a.query,
                       stats + ((int64_t)(a.first + i) * heads.query + h) * 2, row(a.q, i), a.k,
                       a.v, a.shared + i + 1, operand, out.format);
            head_close(&a);
        }
}

// Backward, with dp_ij = dout_i . v_j and D_i = dout_i . out_i = sum over j of p_ij dp_ij:
// ds_ij = p_ij (dp_ij - D_i), dq_i = sum over j of ds_ij k_j / sqrt(dim),
// dk_j = sum over i of ds_ij q_i / sqrt(dim), dv_j = sum over i of p_ij dout_i.
// The sums of dk and dv go over all query heads that read the key head, of all sequences that do.

// Row i of p and of ds, as operands. d is dout as operand, D is D_i.
static void score_gradients(tensor p, tensor ds, const head_rows* a, int i, tensor d, float D,
                            const float stats[2], const format* operand, const format* gradient) {
    int dim = d.cols;
    float scale = 1 / sqrtf((float)dim);
    for (int j = 0; j <= a->shared + i; j++) {
        float score = chain(0, row(a->q, i), 1, row(a->k, j), 1, dim) * scale;
        float dp = chain(0, row(d, i), 1, row(a->v, j), 1, dim);
        float probability = num_expf(score - stats[0]) / stats[1];
        row(p, i)[j] = format_round(probability, operand);
        row(ds, i)[j] = format_round(probability * (dp - D), gradient);
    }
}

// Writes dq of query head h; dk and dv, (rows, dim), go on from what is there.
static void head_gradients(tensor dqkv, tensor dk, tensor dv, tensor dout, tensor out, tensor stats,
                           const head_rows* a, int h, const format* operand,
                           const format* gradient) {
    int n = a->n, keys = a->shared + n, dim = dk.cols;
    tensor d = columns(dout, a->first, n, a->query, dim, gradient);
    tensor p = matrix(n, keys), ds = matrix(n, keys), product = matrix(1, dim);
    for (int i = 0; i < n; i++) {
        const float *dout_i = row(dout, a->first + i), *out_i = row(out, a->first + i);
        for (int c = 0; c < dim; c++)
            row(product, 0)[c] = dout_i[a->query + c] * out_i[a->query + c];
        score_gradients(p, ds, a, i, d, tree(row(product, 0), dim),
                        row(stats, a->first + i) + 2 * h, operand, gradient);
        for (int c = 0; c < dim; c++) {
            float sum = block_chain(row(ds, i), 1, row(a->k, 0) + c, dim, a->shared + i + 1);
            store(dqkv, a->first + i, a->query + c, sum * (1 / sqrtf((float)dim)));
        }
    }
    for (int j = 0; j < keys; j++) {
        int i = j > a->shared ? j - a->shared : 0;  // the first query that sees the key
        for (int c = 0; c < dim; c++) {
            float *dk_j = row(dk, key_row(a, j)) + c, *dv_j = row(dv, key_row(a, j)) + c;
            *dk_j = chain(*dk_j, row(ds, i) + j, keys, row(a->q, i) + c, dim, n - i);
            *dv_j = chain(*dv_j, row(p, i) + j, keys, row(d, i) + c, dim, n - i);
        }
    }
    free(d.data), free(p.data), free(ds.data), free(product.data);
}

static void attention_backward(backend* b, tensor dqkv, tensor dout, tensor qkv, tensor out,
                               const float* stats, const packing* pack, head_shape heads,
                               const format* operand, const format* gradient) {
    tensor pairs = {(float*)stats, out.rows, 2 * heads.query, 2 * heads.query, &FORMAT_FP32};
    int group = heads.query / heads.kv;  // so many query heads read one key head
    float scale = 1 / sqrtf((float)heads.dim);
    for (int g = 0; g < heads.kv; g++) {
        tensor dk = matrix(out.rows, heads.dim), dv = matrix(out.rows, heads.dim);
        int key = (heads.query + g) * heads.dim, value = key + heads.kv * heads.dim;
        for (int s = 0; s < pack->sequences; s++)
            for (int h = g * group; h < (g + 1) * group; h++) {
                head_rows a = head_open(qkv, pack, s, heads, h, operand);
                head_gradients(dqkv, dk, dv, dout, out, pairs, &a, h, operand, gradient);
                head_close(&a);
            }
        for (int r = 0; r < out.rows; r++)
            for (int c = 0; c < heads.dim; c++) {
                store(dqkv, r, key + c, row(dk, r)[c] * scale);
                store(dqkv, r, value + c, row(dv, r)[c]);
            }
        free(dk.data), free(dv.data);
    }
}

// ------------------------------------------------------------------------------------------------
// The KV cache: (layers, pages, KV_PAGE) rows. A row holds the keys of all key heads, then the
// values, as a row of qkv does. Position t of a slot lies in the page that its table names for
// t / KV_PAGE.

static size_t kv_row_floats(const kv_cache* kv) { return (size_t)2 * kv->heads.kv * kv->heads.dim; }

static float* kv_page(const kv_cache* kv, int layer, int page) {
    return (float*)kv->data + ((size_t)layer * kv->pages + page) * KV_PAGE * kv_row_floats(kv);
}

static float* kv_row(const kv_cache* kv, int layer, int slot, int position) {
    int page = kv->page_table[(int64_t)slot * kv->pages_per_slot + position / KV_PAGE];
    return kv_page(kv, layer, page) + position % KV_PAGE * kv_row_floats(kv);
}

static size_t kv_bytes(const kv_cache* kv) {
    return (size_t)kv->layers * kv->pages * KV_PAGE * kv_row_floats(kv) * sizeof(float);
}

static void kv_write(backend* b, const kv_cache* kv, int layer, tensor qkv, const int* row_slot,
                     const int* row_position) {
    for (int r = 0; r < qkv.rows; r++) {
        if (row_position[r] < 0) continue;
        const float* from = row(qkv, r) + kv->heads.query * kv->heads.dim;
        float* to = kv_row(kv, layer, row_slot[r], row_position[r]);
        for (size_t i = 0; i < kv_row_floats(kv); i++)
            to[i] = format_round(format_round(from[i], kv->format), kv->operand);
    }
}

static void kv_round(backend* b, tensor qkv, head_shape heads, const format* f) {
    for (int r = 0; r < qkv.rows; r++)
        for (int i = heads.query * heads.dim; i < qkv.cols; i++) {
            float* x = row(qkv, r) + i;
            *x = format_round(format_round(*x, f), qkv.format);
        }
}

static void kv_copy_page(backend* b, const kv_cache* kv, int to_page, int from_page) {
    size_t bytes = KV_PAGE * kv_row_floats(kv) * sizeof(float);
    for (int layer = 0; layer < kv->layers; layer++)
        memcpy(kv_page(kv, layer, to_page), kv_page(kv, layer, from_page), bytes);
}

// The function `attend` is that of training: so a token gets the same bits in both.
static void attention_cached(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                             const int* row_slot, const int* row_position) {
    int dim = kv->heads.dim, group = kv->heads.query / kv->heads.kv;
    for (int r = 0; r < out.rows; r++) {
        int n = row_position[r] + 1;
        tensor k = matrix(n, dim), v = matrix(n, dim);
        memset(row(out, r), 0, (size_t)out.cols * sizeof(float));
        for (int h = 0; h < kv->heads.query && n > 0; h++) {
            float stats[2];
            for (int j = 0; j < n; j++) {
                const float* from = kv_row(kv, layer, row_slot[r], j) + h / group * dim;
                memcpy(row(k, j), from, dim * sizeof(float));
                memcpy(row(v, j), from + kv->heads.kv * dim, dim * sizeof(float));
            }
            tensor q = columns(qkv, r, 1, h * dim, dim, kv->operand);
            attend(row(out, r) + h * dim, stats, row(q, 0), k, v, n, kv->operand, out.format);
            free(q.data);
        }
        free(k.data), free(v.data);
    }
}

// ------------------------------------------------------------------------------------------------
// The vocabulary head: l = x W^T / T, log p_y = (l_y - max) - log(sum over j of exp(l_j - max)).
// With a nucleus, max and sum go over the tokens in it.

static int kept(const uint32_t* nucleus, int token) {
    return !nucleus || (nucleus[token / 32] >> (token % 32) & 1);
}

// Row i of nuclei over v tokens, if there are any.
static const uint32_t* nucleus_row(const uint32_t* nucleus, int64_t i, int v) {
    return nucleus ? nucleus + i * ((v + 31) / 32) : NULL;
}

// Row r of x as operand of a product with the head's weight.
static tensor head_operand(tensor x, int r, const format* f) {
    tensor one = {row(x, r), 1, x.cols, x.stride, x.format};
    return operands(one, f, BY_ROW);
}

// The logits of row r of x, divided by the temperature.
static void logits_of(float* l, tensor x, int r, const prepared* w, const format* logits,
                      float inverse_temperature) {
    tensor in = head_operand(x, r, w->operand);
    for (int j = 0; j < w->forward.rows; j++)
        l[j] = format_round(forward_product(row(in, 0), w, j), logits) * inverse_temperature;
    free(in.data);
}

typedef struct distribution {
    float max, sum;
} distribution;

// e_j = exp(l_j - max), and 0 for a token that is not kept.
static void exponentials(float* e, const float* l, float max, int n, const uint32_t* nucleus) {
    for (int j = 0; j < n; j++) e[j] = kept(nucleus, j) ? num_expf(l[j] - max) : 0;
}

static distribution softmax(float* e, const float* l, int n, const uint32_t* nucleus) {
    distribution d = {-INFINITY, 0};
    for (int j = 0; j < n; j++)
        if (kept(nucleus, j)) d.max = fmaxf(d.max, l[j]);
    exponentials(e, l, d.max, n, nucleus);
    d.sum = tree(e, n);
    return d;
}

static float log_probability(distribution d, float l) { return (l - d.max) - num_logf(d.sum); }

// The mean of l_j - max: (sum over j of e_j (l_j - max)) / sum
static float mean_of(distribution d, const float* e, const float* l, int n) {
    float* term = floats(n);
    for (int j = 0; j < n; j++) term[j] = e[j] > 0 ? e[j] * (l[j] - d.max) : 0;
    float mean = tree(term, n) / d.sum;
    free(term);
    return mean;
}

static float entropy_of(distribution d, const float* e, const float* l, int n) {
    return num_logf(d.sum) - mean_of(d, e, l, n);
}

// The log-probabilities of the candidates at place i.
static void answer(const candidates* c, int64_t i, distribution d, const float* l) {
    for (int j = 0; j < c->count; j++) {
        int token = c->id[i * c->count + j];
        c->logp[i * c->count + j] = token < 0 ? -INFINITY : log_probability(d, l[token]);
    }
}

static void head_forward(backend* b, float* logp, float* entropy, float* stats, tensor x,
                         const int* index, const int* target, int n, const prepared* w,
                         const format* logits, float inverse_temperature, const uint32_t* nucleus,
                         const candidates* asked) {
    int v = w->forward.rows;
    float *l = floats(2 * (size_t)v), *e = l + v;
    for (int i = 0; i < n; i++) {
        logits_of(l, x, index[i], w, logits, inverse_temperature);
        distribution d = softmax(e, l, v, nucleus_row(nucleus, i, v));
        logp[i] = log_probability(d, l[target[i]]);
        if (entropy) entropy[i] = entropy_of(d, e, l, v);
        if (stats) stats[2 * i] = d.max, stats[2 * i + 1] = d.sum;
        if (asked) answer(asked, i, d, l);
    }
    free(l);
}

// Turns logits l into their gradient for the target y, rounded: dl_j = coef / T (p_j - 1[j = y]) +
// bonus / T p_j (log p_j + H), where log p_j + H is l_j - max less its mean. No gradient of the
// row is larger than that of y where bonus is 0, so fp8 takes its scale from y. Of products only
// those in tf32 round it once more.
static void logit_gradients(float* l, const float* e, distribution d, int v, int y, float scale,
                            float bonus, const format* logits, const format* operand) {
    float mean = bonus != 0 ? mean_of(d, e, l, v) : 0;
    for (int j = 0; j < v; j++) {
        float p = e[j] / d.sum, more = e[j] > 0 ? bonus * (p * ((l[j] - d.max) - mean)) : 0;
        l[j] = scale * (p - (j == y ? 1.0f : 0.0f));
        if (bonus != 0) l[j] += more;
    }
    float unit = format_scale(fabsf(l[y]), logits);
    for (int j = 0; j < v; j++) {
        l[j] = format_round(l[j] / unit, logits) * unit;
        if (operand == &FORMAT_TF32) l[j] = format_round(l[j], operand);
    }
}

// dx += dl W, dW += dl^T x. A row may be asked for several targets.
static void head_backward(backend* b, tensor dx, float* dw, const float* stats, tensor x,
                          const int* index, const int* target, const float* coef,
                          const float* bonus, int n, const prepared* w, const format* logits,
                          float inverse_temperature, const uint32_t* nucleus) {
    int v = w->forward.rows, channels = w->forward.cols;
    float *l = floats(2 * (size_t)v), *e = l + v;
    for (int i = 0; i < n; i++) {
        tensor in = head_operand(x, index[i], w->backward_operand);
        logits_of(l, x, index[i], w, logits, inverse_temperature);
        distribution d = {stats[2 * i], stats[2 * i + 1]};
        exponentials(e, l, d.max, v, nucleus_row(nucleus, i, v));
        logit_gradients(l, e, d, v, target[i], coef[i] * inverse_temperature,
                        bonus ? bonus[i] * inverse_temperature : 0, logits, gradient_operand(w));
        for (int k = 0; k < channels; k++) {
            float sum = block_chain(l, 1, row(w->backward, 0) + k, channels, v);
            store(dx, index[i], k, row(dx, index[i])[k] + sum);
        }
        for (int j = 0; j < v; j++)
            for (int k = 0; k < channels; k++) {
                float* to = dw + (int64_t)j * channels + k;
                *to = num_fma(l[j], row(in, 0)[k], *to);
            }
        free(in.data);
    }
    free(l);
}

// ------------------------------------------------------------------------------------------------
// The sampler

// A token and its logit; tokens are ranked by falling logits, equal ones by rising ids.
typedef struct ranked {
    float logit;
    int token;
} ranked;

static int compare_ranked(const void* a, const void* b) {
    const ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

static ranked* rank_tokens(const float* l, int n) {
    ranked* order = xalloc(n, sizeof *order, "ranked tokens");
    for (int j = 0; j < n; j++) order[j] = (ranked){l[j], j};
    qsort(order, n, sizeof *order, compare_ranked);
    return order;
}

// The sampling weight of e = exp(l - max). It is an integer: no order can change a sum of them.
static uint64_t weight(float e) { return (uint64_t)(e * 0x1p40f); }

// The set that top-k and then top-p leave: the k first tokens (all, if k is 0); of these the first
// ones, until their share of the mass of the k tokens reaches p.
static void choose_nucleus(uint32_t* nucleus, const ranked* order, const float* e, int n, int k,
                           float p) {
    int count = k > 0 && k < n ? k : n;
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < count; i++) total += weight(e[order[i].token]);
    double enough = (double)p * (double)total;
    for (int i = 0; i < count; i++) {
        int token = order[i].token;
        nucleus[token / 32] |= 1u << (token % 32);
        sum += weight(e[token]);
        if (p < 1 && (double)sum >= enough) return;
    }
}

// Each token owns a stretch of 0 .. total-1 as long as its weight; the token in whose stretch a
// uniform point falls is drawn.
static int draw(const float* e, int n, const sampling* how, uint32_t sequence, int position) {
    uint32_t random[4];
    uint64_t total = 0, sum = 0;
    random_at(random, how->seed, how->stream, how->step, sequence, (uint32_t)position);
    for (int j = 0; j < n; j++) total += weight(e[j]);
    uint64_t u = (uint64_t)random[0] << 32 | random[1];  // u / 2^64 is uniform in [0, 1)
    uint64_t point = (uint64_t)((unsigned __int128)u * total >> 64);
    for (int j = 0; j < n; j++) {
        sum += weight(e[j]);
        if (sum > point) return j;
    }
    return 0;  // only if the logits are not numbers
}

// The first kept tokens become the candidates at place i; -1 stands where there are no more.
static void best_tokens(const candidates* c, int64_t i, const ranked* order, int n,
                        const uint32_t* nucleus) {
    int found = 0;
    for (int j = 0; j < n && found < c->count; j++)
        if (kept(nucleus, order[j].token)) c->id[i * c->count + found++] = order[j].token;
    for (; found < c->count; found++) c->id[i * c->count + found] = -1;
}

// Appends a token to the slot's sequence and moves the slot on.
static void advance(const slot_state* s, int slot, int token, float logp, float entropy,
                    const uint32_t* nucleus) {
    int sequence = s->sequence[slot];
    int64_t at = (int64_t)sequence * s->max_new + s->length[sequence]++;
    s->out_token[at] = token;
    s->out_logp[at] = logp;
    s->out_entropy[at] = entropy;
    if (s->out_nucleus && nucleus)
        memcpy(s->out_nucleus + at * s->nucleus_words, nucleus, s->nucleus_words * sizeof *nucleus);
    s->token[slot] = token;
    s->position[slot]++;
    if (end_set_has(&s->ends, token) || --s->left[slot] == 0) s->position[slot] = -1;
}

// Draws the next token of a slot from its logits.
static void sample_row(const slot_state* s, int slot, const float* l, int v, const sampling* how) {
    int sequence = s->sequence[slot];
    ranked* order = rank_tokens(l, v);
    float* e = floats(v);
    uint32_t* nucleus = NULL;
    distribution d = softmax(e, l, v, NULL);
    if (how->top_k > 0 || how->top_p < 1) {
        nucleus = xalloc((v + 31) / 32, sizeof *nucleus, "a nucleus");
        choose_nucleus(nucleus, order, e, v, how->top_k, how->top_p);
        d = softmax(e, l, v, nucleus);
    }
    int token = how->greedy
                    ? order[0].token
                    : draw(e, v, how, how->first + (uint32_t)sequence, s->position[slot] + 1);
    if (s->best.count) {
        int64_t at = (int64_t)sequence * s->max_new + s->length[sequence];
        best_tokens(&s->best, at, order, v, nucleus);
        answer(&s->best, at, d, l);
    }
    advance(s, slot, token, log_probability(d, l[token]), entropy_of(d, e, l, v), nucleus);
    free(order), free(e), free(nucleus);
}

static void sample(backend* b, const slot_state* s, tensor x, const int* row_slot, int n,
                   const prepared* w, const format* logits, const sampling* how) {
    float* l = floats(w->forward.rows);
    for (int i = 0; i < n; i++) {
        if (s->position[row_slot[i]] < 0) continue;
        logits_of(l, x, i, w, logits, how->inverse_temperature);
        sample_row(s, row_slot[i], l, w->forward.rows, how);
    }
    free(l);
}

// ------------------------------------------------------------------------------------------------
// The optimizer

// sum of x^2 in fp64, of each chunk: a tree
static void sum_squares(backend* b, double* sum, const float* x, size_t n) {
    for (size_t first = 0; first < n; first += SUM_CHUNK) {
        double lane[16] = {0};
        for (size_t i = first; i < n && i < first + SUM_CHUNK; i++)
            lane[i % 16] += (double)x[i] * x[i];
        for (int half = 8; half > 0; half /= 2)
            for (int l = 0; l < half; l++) lane[l] += lane[l + half];
        *sum++ = lane[0];
    }
}

// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
// w = w - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w)
static void adamw(backend* b, float* w, float* m, float* v, const float* g, size_t n, size_t first,
                  const adamw_step* how) {
    for (size_t i = 0; i < n; i++) {
        float d = g[i] * how->gradient_scale;
        m[i] = num_fma(how->beta1, m[i], (1 - how->beta1) * d);
        v[i] = num_fma(how->beta2, v[i], (1 - how->beta2) * d * d);
        float step = (m[i] / how->correction1) / (sqrtf(v[i] / how->correction2) + how->eps);
        w[i] = num_fma(-how->lr, num_fma(how->weight_decay, w[i], step), w[i]);
        if (how->format == &FORMAT_FP32) continue;
        // Fewer bits: w goes up or down by chance, so that small steps count on average.
        uint32_t random[4];
        uint64_t index = first + i;
        random_at(random, how->seed, STREAM_ROUND, how->step, (uint32_t)(index >> 32),
                  (uint32_t)index);
        w[i] = format_round_stochastic(w[i], how->format, random[0]);
    }
}

// ------------------------------------------------------------------------------------------------
// Memory, and the table of ops

static size_t bytes_per(const format* f) { return sizeof(float); }

static void* alloc(backend* b, size_t bytes, const char* what) {
    b->allocated += bytes;
    return xalloc(bytes, 1, what);
}

static void release(backend* b, void* p, size_t bytes) {
    b->allocated -= bytes;
    free(p);
}

static void copy(backend* b, void* to, const void* from, size_t bytes) { memmove(to, from, bytes); }
static void clear(backend* b, void* p, size_t bytes) { memset(p, 0, bytes); }
static void sync_nothing(backend* b) {}

backend* plain_open(void) {
    backend* b = xalloc(1, sizeof *b, "the plain device");
    b->name = "plain (one thread)";
    b->bytes_per = bytes_per;
    b->alloc = alloc;
    b->release = release;
    b->upload = b->download = b->copy = copy;
    b->clear = clear;
    b->sync = sync_nothing;
    b->prefill_rows = 256;
#define OP(result, name, parameters) b->name = name;
#include "ops.def"
    return b;
}

void plain_close(backend* b) { free(b); }
