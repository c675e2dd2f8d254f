// Mixtures of experts: the router, and the rows of each expert together through its products.
#include "ops.h"

// Of a row of e->routes.
typedef struct route {
    float *p, *number, *weight;
} route;

INLINE route route_of(const expert_layer* e, int64_t r) {
    float* p = e->routes + r * (e->experts + 2 * e->used);
    return (route){p, p + e->experts, p + e->experts + e->used};
}

// The experts of the highest p, their numbers rising: one pass for each finds the highest p that
// is not taken yet, the lowest number among equal ones.
static void choose(const expert_layer* e, route to) {
    unsigned char taken[256] = {0};
    for (int j = 0; j < e->used; j++) {
        int best = 0;
        while (taken[best]) best++;
        for (int i = best + 1; i < e->experts; i++)
            if (!taken[i] && to.p[i] > to.p[best]) best = i;
        taken[best] = 1;
    }
    for (int i = 0, n = 0; n < e->used; i++)
        if (taken[i]) to.number[n++] = (float)i;
}

static void route_row(const expert_layer* e, int64_t r, const float* logits) {
    route to = route_of(e, r);
    float max = row_max(logits, e->experts), whole = 0;
    SIMD
    for (int i = 0; i < e->experts; i++) to.p[i] = num_expf(logits[i] - max);
    float sum = row_sum(to.p, e->experts);
    SIMD
    for (int i = 0; i < e->experts; i++) to.p[i] /= sum;
    choose(e, to);
    for (int j = 0; j < e->used; j++) {
        if (e->taken) e->taken[r * e->stride + j] = (uint8_t)to.number[j];
        if (e->replay) to.number[j] = e->replay[r * e->stride + j];
    }
    for (int j = 0; j < e->used; j++) whole += to.p[(int)to.number[j]];
    for (int j = 0; j < e->used; j++)
        to.weight[j] = to.p[(int)to.number[j]] / (e->normalise ? whole : 1);
}

// The rows of all experts: those of expert x are row[start[x]] .. row[start[x + 1] - 1], and x is
// number place[i] of the experts of row[i].
typedef struct lists {
    int *start, *row, *place, most;  // most: rows of one expert
} lists;

static lists lists_of(backend* b, const expert_layer* e, int rows) {
    size_t n = (size_t)rows * e->used;
    int* memory = cpu_scratch(b, SCRATCH_LISTS, (2 * n + e->experts + 2) * sizeof(int));
    lists l = {memory, memory + e->experts + 2, memory + e->experts + 2 + n, 0};
    memset(l.start, 0, (e->experts + 2) * sizeof(int));
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < e->used; j++) l.start[(int)route_of(e, r).number[j] + 2]++;
    for (int x = 2; x < e->experts + 2; x++) {
        if (l.start[x] > l.most) l.most = l.start[x];
        l.start[x] += l.start[x - 1];
    }
    for (int r = 0; r < rows; r++)  // start[x + 1] is where the next row of x goes
        for (int j = 0; j < e->used; j++) {
            int at = l.start[(int)route_of(e, r).number[j] + 1]++;
            l.row[at] = r;
            l.place[at] = j;
        }
    return l;
}

INLINE tensor matrix(float** memory, int rows, int cols, const format* f) {
    tensor t = {*memory, rows, cols, cols, f};
    *memory += (size_t)rows * cols;
    return t;
}

void ISA(experts_forward)(backend* b, tensor out, tensor in, const expert_layer* e) {
    int C = in.cols, F = e->down[0]->inputs, E = e->experts;
    float* logits = cpu_scratch(b, SCRATCH_EXPERTS, (size_t)in.rows * E * sizeof(float));
    ISA(matmul_forward)(b, (tensor){logits, in.rows, E, E, &FORMAT_FP32}, in, e->router, NULL);
    PARALLEL_FOR(b)
    for (int r = 0; r < in.rows; r++) route_row(e, r, logits + (size_t)r * E);
    lists l = lists_of(b, e, in.rows);
    size_t floats = (size_t)in.rows * C + (size_t)l.most * (2 * C + 3 * F);
    float* memory = cpu_scratch(b, SCRATCH_EXPERTS, floats * sizeof(float));
    tensor sum = matrix(&memory, in.rows, C, &FORMAT_FP32);
    memset(sum.data, 0, (size_t)in.rows * C * sizeof(float));
    for (int x = 0; x < E; x++) {
        const int *row = l.row + l.start[x], *place = l.place + l.start[x];
        int n = l.start[x + 1] - l.start[x];
        float* of_expert = memory;
        if (n == 0) continue;
        tensor from = matrix(&of_expert, n, C, in.format), y = matrix(&of_expert, n, C, sum.format);
        tensor pre = matrix(&of_expert, n, 2 * F, in.format);
        tensor h = matrix(&of_expert, n, F, in.format);
        ISA(gather_rows)(b, from, in, row);
        ISA(matmul_forward)(b, pre, from, e->gate_up[x], NULL);
        ISA(swiglu_forward)(b, h, pre);
        ISA(matmul_forward)(b, y, h, e->down[x], NULL);
        PARALLEL_FOR(b)
        for (int i = 0; i < n; i++) {
            float weight = route_of(e, row[i]).weight[place[i]], *to = row_of(sum, row[i]);
            const float* add = row_of(y, i);
            SIMD
            for (int c = 0; c < C; c++) to[c] = num_fma(weight, add[c], to[c]);
        }
    }
    PARALLEL_FOR(b)
    for (int r = 0; r < out.rows; r++) {
        memcpy(row_of(out, r), row_of(sum, r), C * sizeof(float));
        row_round(row_of(out, r), C, out.format);
    }
}

void ISA(record_rows)(backend* b, const slot_record* to, const uint8_t* from, int rows,
                      const int* row_slot, const int* row_position) {
    (void)b;
    for (int r = 0; r < rows; r++) {
        int64_t at = (int64_t)to->first[row_slot[r]] + row_position[r];
        if (row_position[r] < 0) continue;
        memcpy(to->data + at * to->each, from + (int64_t)r * to->each, to->each);
    }
}

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

// to[row[i]] += from[i]
static void add_rows(backend* b, tensor to, tensor from, const int* row) {
    PARALLEL_FOR(b)
    for (int i = 0; i < from.rows; i++) {
        float* sum = row_of(to, row ? row[i] : i);
        const float* add = row_of(from, i);
        SIMD
        for (int c = 0; c < from.cols; c++) sum[c] += add[c];
    }
}

// What an expert's backward products read: d and dh times the weights of their rows, and the
// gradients of these weights. product: (n, F) scratch.
static void weigh(backend* b, const expert_layer* e, tensor d, tensor dh, tensor h, tensor dweight,
                  tensor product, const int* row, const int* place) {
    PARALLEL_FOR(b)
    for (int i = 0; i < d.rows; i++) {
        float weight = route_of(e, row[i]).weight[place[i]];
        float *p = row_of(product, i), *to = row_of(dh, i), *of = row_of(d, i);
        const float* x = row_of(h, i);
        SIMD
        for (int k = 0; k < dh.cols; k++) p[k] = to[k] * x[k];
        row_of(dweight, row[i])[place[i]] = row_sum(p, dh.cols);
        SIMD
        for (int k = 0; k < dh.cols; k++) to[k] *= weight;
        SIMD
        for (int c = 0; c < d.cols; c++) of[c] *= weight;
        row_round(of, d.cols, d.format);
    }
}

void ISA(experts_backward)(backend* b, tensor din, float* drouter, float* dgate_up, float* ddown,
                           tensor dout, tensor in, const expert_layer* e) {
    int C = in.cols, F = e->down[0]->inputs, E = e->experts, rows = in.rows;
    lists l = lists_of(b, e, rows);
    size_t floats = (size_t)rows * (e->used + E + C) + (size_t)l.most * (3 * C + 7 * F);
    float* memory = cpu_scratch(b, SCRATCH_EXPERTS, floats * sizeof(float));
    tensor dweight = matrix(&memory, rows, e->used, &FORMAT_FP32);
    tensor dlogits = matrix(&memory, rows, E, &FORMAT_FP32);
    tensor of_router = matrix(&memory, rows, C, &FORMAT_FP32);
    PARALLEL_FOR(b)
    for (int r = 0; r < rows; r++) memset(row_of(din, r), 0, C * sizeof(float));
    for (int x = 0; x < E; x++) {
        const int *row = l.row + l.start[x], *place = l.place + l.start[x];
        int n = l.start[x + 1] - l.start[x];
        float* of_expert = memory;
        if (n == 0) continue;
        tensor from = matrix(&of_expert, n, C, in.format),
               d = matrix(&of_expert, n, C, dout.format);
        tensor pre = matrix(&of_expert, n, 2 * F, in.format),
               h = matrix(&of_expert, n, F, in.format);
        tensor dh = matrix(&of_expert, n, F, &FORMAT_FP32);
        tensor dpre = matrix(&of_expert, n, 2 * F, dout.format);
        tensor product = matrix(&of_expert, n, F, &FORMAT_FP32);
        tensor dfrom = matrix(&of_expert, n, C, &FORMAT_FP32);
        ISA(gather_rows)(b, from, in, row);
        ISA(gather_rows)(b, d, dout, row);
        ISA(matmul_forward)(b, pre, from, e->gate_up[x], NULL);
        ISA(swiglu_forward)(b, h, pre);
        ISA(matmul_backward_input)(b, dh, d, e->down[x]);
        weigh(b, e, d, dh, h, dweight, product, row, place);
        ISA(swiglu_backward)(b, dpre, dh, pre);
        ISA(matmul_backward_weight)(b, ddown + (size_t)x * C * F, NULL, d, h, e->down[x]);
        ISA(matmul_backward_weight)
        (b, dgate_up + (size_t)x * 2 * F * C, NULL, dpre, from, e->gate_up[x]);
        ISA(matmul_backward_input)(b, dfrom, dpre, e->gate_up[x]);
        add_rows(b, din, dfrom, row);
    }
    PARALLEL_FOR(b)
    for (int r = 0; r < rows; r++)
        route_backward(e, route_of(e, r), row_of(dweight, r), row_of(dlogits, r));
    ISA(matmul_backward_weight)(b, drouter, NULL, dlogits, in, e->router);
    ISA(matmul_backward_input)(b, of_router, dlogits, e->router);
    add_rows(b, din, of_router, NULL);
}
