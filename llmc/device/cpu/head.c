// The vocabulary head and the sampler behind it. Both turn a row of logits into log-probabilities
// by one function, so the sampler's log mu and the trainer's log pi of a token are the same bits.
// log p = (l - max) - log(sum exp(l - max)), never log of a quotient: that underflows.
//
// Logits exist for a block of rows at a time. Forward takes the last block first, and the first
// blocks' logits stay for backward, as many as there is memory for; it computes others again.
#include "gemm.h"
#include "ops.h"

// A row's distribution: logits become exp(l / T - max); tokens that are not kept become 0.
typedef struct row_softmax {
    float max, sum, log_sum;
} row_softmax;

INLINE int kept(const uint32_t* nucleus, int i) {
    return !nucleus || (nucleus[i / 32] >> (i % 32) & 1);
}

static void row_scale(float* l, int n, float inverse_temperature) {
    if (inverse_temperature != 1.0f) SIMD
    for (int i = 0; i < n; i++) l[i] *= inverse_temperature;
}

// From scaled logits l to e = exp(l - max); l and e may not overlap.
static void exponentials(float* restrict e, const float* restrict l, float max, int n,
                         const uint32_t* nucleus) {
    SIMD
    for (int i = 0; i < n; i++) e[i] = num_expf(l[i] - max);
    if (nucleus)
        for (int i = 0; i < n; i++)
            if (!kept(nucleus, i)) e[i] = 0;
}

static row_softmax softmax(float* restrict e, const float* restrict l, int n,
                           const uint32_t* nucleus) {
    row_softmax s;
    if (nucleus) {
        s.max = -__builtin_inff();
        for (int i = 0; i < n; i++)
            if (kept(nucleus, i) && l[i] > s.max) s.max = l[i];
    } else {
        s.max = row_max(l, n);
    }
    exponentials(e, l, s.max, n, nucleus);
    s.sum = row_sum(e, n);
    s.log_sum = num_logf(s.sum);
    return s;
}

INLINE float log_probability(const row_softmax* s, float logit) {
    return (logit - s->max) - s->log_sum;
}

// H = log sum - (sum of e (l - max)) / sum; term: (n) scratch.
static float entropy_of(const row_softmax* s, const float* restrict e, const float* restrict l,
                        float* restrict term, int n) {
    const float max = s->max;
    SIMD
    for (int i = 0; i < n; i++) term[i] = e[i] > 0 ? e[i] * (l[i] - max) : 0;
    return s->log_sum - row_sum(term, n) / s->sum;
}

// Rows whose logits exist at one time: about 64 MB of them, whole tiles, at most 256. Each block
// reads the head's weights four times and its gradient twice: they should be few.
static int rows_at_once(int vocabulary) {
    int rows = (16 << 20) / vocabulary / GEMM_MR * GEMM_MR;
    return rows < GEMM_MR ? GEMM_MR : rows > 256 ? 256 : rows;
}

// Scratch for n rows: gathered rows of x of one block, logits of `kept` blocks, and two rows a
// thread.
typedef struct head_block {
    int rows, kept, vocabulary, channels;
    float *x, *logits, *row;
} head_block;

// keep: for backward.
static head_block block_memory(backend* b, int n, const prepared* w, int keep) {
    cpu_context* c = b->context;
    head_block m = {
        .rows = rows_at_once(w->outputs), .vocabulary = w->outputs, .channels = w->inputs};
    size_t logits = (size_t)m.rows * m.vocabulary, x = (size_t)m.rows * m.channels;
    size_t row = 2 * (size_t)cpu_threads(b) * m.vocabulary;
    size_t fit = keep ? c->logits_kept / (logits * sizeof(float)) : 1;
    int blocks = (n + m.rows - 1) / m.rows;
    m.kept = fit < 1 ? 1 : fit < (size_t)blocks ? (int)fit : blocks;
    logits *= m.kept;
    m.logits = cpu_scratch(b, SCRATCH_LOGITS, (logits + x + row) * sizeof(float));
    m.x = m.logits + logits;
    m.row = m.x + x;
    c->logits_of = NULL;
    return m;
}

// The logits of the block whose first row is `first`.
static float* logits_at(const head_block* m, int first) {
    return m->logits + (size_t)(first / m->rows % m->kept * m->rows) * m->vocabulary;
}

// Logits of n rows of x (row numbers in `row`, or the first n) to `to`.
static void block_logits(backend* b, const head_block* m, float* to, tensor x, const int* row,
                         int first, int n, const prepared* w, const format* logits) {
    PARALLEL_FOR(b)
    for (int i = 0; i < n; i++) {
        const float* from = row_of(x, row ? row[first + i] : first + i);
        operand_round(m->x + (size_t)i * m->channels, from, m->channels, w->operand);
    }
    gemm g = {.m = n,
              .n = m->vocabulary,
              .k = m->channels,
              .a = m->x,
              .a_stride = m->channels,
              .packed = w->packed,
              .kept = w->kept,
              .c = to,
              .c_stride = m->vocabulary,
              .round = logits};
    ISA(gemm_run_split)(b, &g, w->plan.split_k);
}

static const uint32_t* nucleus_row(const uint32_t* nucleus, int64_t i, int vocabulary) {
    return nucleus ? nucleus + i * ((vocabulary + 31) / 32) : NULL;
}

// Log-probabilities of the candidates of row i.
static void answer(const candidates* c, int64_t i, const row_softmax* s, const float* l) {
    const int* id = c->id + i * c->count;
    float* logp = c->logp + i * c->count;
    for (int j = 0; j < c->count; j++)
        logp[j] = id[j] < 0 ? -__builtin_inff() : log_probability(s, l[id[j]]);
}

void ISA(head_forward)(backend* b, float* logp, float* entropy, float* stats, tensor x,
                       const int* row, const int* target, int n, const prepared* w,
                       const format* logits, float inverse_temperature, const uint32_t* nucleus,
                       const candidates* asked) {
    if (n == 0) return;
    head_block m = block_memory(b, n, w, stats != NULL);
    int v = m.vocabulary;
    for (int first = (n - 1) / m.rows * m.rows; first >= 0; first -= m.rows) {
        int rows = n - first < m.rows ? n - first : m.rows;
        float* block = logits_at(&m, first);
        block_logits(b, &m, block, x, row, first, rows, w, logits);
        PARALLEL_FOR(b)
        for (int i = 0; i < rows; i++) {
            float *l = block + (size_t)i * v, *e = m.row + 2 * (size_t)cpu_thread() * v;
            row_scale(l, v, inverse_temperature);
            row_softmax s = softmax(e, l, v, nucleus_row(nucleus, first + i, v));
            logp[first + i] = log_probability(&s, l[target[first + i]]);
            if (stats) stats[2 * (first + i)] = s.max, stats[2 * (first + i) + 1] = s.sum;
            if (asked) answer(asked, first + i, &s, l);
            if (entropy) entropy[first + i] = entropy_of(&s, e, l, e + v, v);
        }
    }
    ((cpu_context*)b->context)->logits_of = stats;
}

// Rounds a row of logits' gradients to their format. For fp8 the scale comes from the target's
// entry: it is the largest in magnitude, because the others sum to its negative.
static void round_gradient(float* l, int n, int target, const format* how) {
    if (how->scaled)
        operand_round_to(l, l, n, how, row_amax(0, l + target, 1));
    else
        row_round(l, n, how);
}

// to[row[i]] += from[i] in the order of i: threads share the columns.
static void add_rows(backend* b, tensor to, const int* row, const float* from, int n) {
    enum { COLUMNS = 64 };
    PARALLEL_FOR(b)
    for (int j0 = 0; j0 < to.cols; j0 += COLUMNS) {
        int cols = to.cols - j0 < COLUMNS ? to.cols - j0 : COLUMNS;
        for (int i = 0; i < n; i++) {
            float* sum = row_of(to, row[i]) + j0;
            const float* x = from + (int64_t)i * to.cols + j0;
            SIMD
            for (int j = 0; j < cols; j++) sum[j] += x[j];
            row_round(sum, cols, to.format);
        }
    }
}

// What the entropy adds to the gradient of a row of logits: bonus p (log p + H).
static void entropy_gradient(float* restrict to, float max, float sum, const float* restrict e,
                             const float* restrict l, int n, float bonus) {
    SIMD
    for (int i = 0; i < n; i++) to[i] = e[i] > 0 ? e[i] * (l[i] - max) : 0;
    const float mean = row_sum(to, n) / sum;
    SIMD
    for (int i = 0; i < n; i++) to[i] = e[i] > 0 ? bonus * (e[i] / sum * ((l[i] - max) - mean)) : 0;
}

void ISA(head_backward)(backend* b, tensor dx, float* dw, const float* stats, tensor x,
                        const int* row, const int* target, const float* coef, const float* bonus,
                        int n, const prepared* w, const format* logits, float inverse_temperature,
                        const uint32_t* nucleus) {
    int there = ((cpu_context*)b->context)->logits_of == stats;
    head_block m = block_memory(b, n, w, 1);
    int v = m.vocabulary, c = m.channels, left = there ? m.kept * m.rows : 0;
    // The gradient's own format is that of the logits; only tf32 products round it once more.
    const format* operand = w->plan.gradient ? w->plan.gradient : w->backward_operand;
    if (operand != &FORMAT_TF32) operand = &FORMAT_FP32;
    float* rows_dx = cpu_scratch(b, SCRATCH_ROWS, (size_t)m.rows * c * sizeof(float));
    for (int first = 0; first < n; first += m.rows) {
        int rows = n - first < m.rows ? n - first : m.rows;
        float* block = logits_at(&m, first);
        if (first >= left) block_logits(b, &m, block, x, row, first, rows, w, logits);
        PARALLEL_FOR(b)
        for (int i = 0; i < rows; i++) {
            float *l = block + (size_t)i * v, *e = m.row + 2 * (size_t)cpu_thread() * v;
            float *more = e + v, size = bonus ? bonus[first + i] * inverse_temperature : 0;
            if (first >= left) row_scale(l, v, inverse_temperature);
            float max = stats[2 * (first + i)], sum = stats[2 * (first + i) + 1];
            exponentials(e, l, max, v, nucleus_row(nucleus, first + i, v));
            if (size != 0) entropy_gradient(more, max, sum, e, l, v, size);
            float scale = coef[first + i] * inverse_temperature;
            SIMD
            for (int j = 0; j < v; j++) l[j] = scale * (e[j] / sum);
            int y = target[first + i];
            l[y] = scale * (e[y] / sum - 1.0f);
            if (size != 0) {
                SIMD
                for (int j = 0; j < v; j++) l[j] += more[j];
            }
            round_gradient(l, v, y, logits);
            row_round(l, v, operand);
        }
        gemm g = {.m = rows,
                  .n = c,
                  .k = v,
                  .a = block,
                  .a_stride = v,
                  .b = w->w,
                  .b_stride = c,
                  .b_round = w->backward_operand,
                  .c = rows_dx,
                  .c_stride = c,
                  .round = &FORMAT_FP32};
        ISA(gemm_run)(b, &g);
        add_rows(b, dx, row + first, rows_dx, rows);
        PARALLEL_FOR(b)
        for (int i = 0; i < rows; i++)
            operand_round(m.x + (size_t)i * c, row_of(x, row[first + i]), c, w->backward_operand);
        gemm h = {.m = v,
                  .n = c,
                  .k = rows,
                  .a = block,
                  .a_stride = v,
                  .a_transposed = 1,
                  .b = m.x,
                  .b_stride = c,
                  .b_round = &FORMAT_FP32,
                  .c = dw,
                  .c_stride = c,
                  .carry = 1,
                  .round = &FORMAT_FP32};
        ISA(gemm_run)(b, &h);
    }
}

// Order of tokens for top-k and top-p: the greater logit first, ties to the lower id.
INLINE int precedes(const float* l, int a, int c) { return l[a] > l[c] || (l[a] == l[c] && a < c); }

static void sift(int* heap, int n, int i, const float* l) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && precedes(l, heap[child + 1], heap[child])) child++;
        if (!precedes(l, heap[child], heap[i])) return;
        int t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
    }
}

// Sampling weight of e = exp(l - max): an integer, so that no order of summing can change a total.
INLINE uint64_t weight(float e) { return (uint64_t)(e * 0x1p40f); }

// Takes the first token off the heap of *left tokens; it stays at the heap's old end.
static int take(int* heap, int* left, const float* l) {
    int best = heap[0];
    heap[0] = heap[--*left];
    heap[*left] = best;
    sift(heap, *left, 0, l);
    return best;
}

// The set that top-k and then top-p leave: the k first tokens; of these the first whose share of
// their mass reaches p. k = 0 and p = 1 are off. heap: (n).
static void choose_kept(uint32_t* nucleus, int* heap, const float* l, const float* e, int n, int k,
                        float p) {
    int left = n, count = k > 0 && k < n ? k : n;
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++) heap[i] = i;
    for (int i = n / 2 - 1; i >= 0; i--) sift(heap, n, i, l);
    if (count < n)
        for (int i = 0; i < count; i++) total += weight(e[take(heap, &left, l)]);
    else
        for (int i = 0; i < n; i++) total += weight(e[i]);
    double enough = (double)p * (double)total;
    memset(nucleus, 0, (n + 31) / 32 * sizeof *nucleus);
    for (int i = 0; i < count; i++) {
        int token = count < n ? heap[n - 1 - i] : take(heap, &left, l);
        nucleus[token / 32] |= 1u << (token % 32);
        sum += weight(e[token]);
        if (p < 1 && (double)sum >= enough) break;
    }
}

// The first of the kept tokens, as row i of the candidates: each token finds its place among them.
static void find_best(const candidates* c, int64_t i, const row_softmax* s, const float* l, int n,
                      const uint32_t* nucleus) {
    int *id = c->id + i * c->count, found = 0;
    for (int token = 0; token < n; token++) {
        if (!kept(nucleus, token)) continue;
        if (found == c->count && !precedes(l, token, id[found - 1])) continue;
        int at = found < c->count ? found++ : found - 1;
        for (; at > 0 && precedes(l, token, id[at - 1]); at--) id[at] = id[at - 1];
        id[at] = token;
    }
    for (int j = found; j < c->count; j++) id[j] = -1;
    answer(c, i, s, l);
}

static int draw_greedy(const float* l, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (l[i] > l[best]) best = i;
    return best;
}

// The token in whose stretch of the running sum a uniform point falls.
static int draw(const float* e, int n, const uint32_t random[4]) {
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += weight(e[i]);
    uint64_t u = (uint64_t)random[0] << 32 | random[1];
    uint64_t point = (uint64_t)((unsigned __int128)u * total >> 64);
    for (int i = 0; i < n; i++) {
        sum += weight(e[i]);
        if (sum > point) return i;
    }
    return 0;  // only for logits that are not numbers
}

// Appends a token to its slot's sequence and moves the slot on.
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

// row: (2 v) scratch.
static void sample_row(const slot_state* s, int slot, float* l, float* row, int* heap,
                       uint32_t* nucleus_set, int v, const sampling* how) {
    uint32_t* nucleus = how->top_k > 0 || how->top_p < 1 ? nucleus_set : NULL;
    float* e = row;
    int token;
    row_scale(l, v, how->inverse_temperature);
    row_softmax d = softmax(e, l, v, NULL);
    if (nucleus) {
        choose_kept(nucleus, heap, l, e, v, how->top_k, how->top_p);
        d = softmax(e, l, v, nucleus);
    }
    if (how->greedy) {
        token = draw_greedy(l, v);
    } else {
        uint32_t random[4];
        random_at(random, how->seed, how->stream, how->step,
                  how->first + (uint32_t)s->sequence[slot], (uint32_t)s->position[slot] + 1);
        token = draw(e, v, random);
    }
    float logp = log_probability(&d, l[token]);
    if (s->best.count) {
        int sequence = s->sequence[slot];
        find_best(&s->best, (int64_t)sequence * s->max_new + s->length[sequence], &d, l, v,
                  nucleus);
    }
    advance(s, slot, token, logp, entropy_of(&d, e, l, row + v, v), nucleus);
}

void ISA(sample)(backend* b, const slot_state* s, tensor x, const int* row_slot, int n,
                 const prepared* w, const format* logits, const sampling* how) {
    head_block m = block_memory(b, n, w, 0);
    int v = m.vocabulary, words = (v + 31) / 32;
    size_t each = (size_t)v + words;
    int* memory = cpu_scratch(b, SCRATCH_ROWS, cpu_threads(b) * each * sizeof(int));
    for (int first = 0; first < n; first += m.rows) {
        int rows = n - first < m.rows ? n - first : m.rows;
        block_logits(b, &m, m.logits, x, NULL, first, rows, w, logits);
        PARALLEL_FOR(b)
        for (int i = 0; i < rows; i++) {
            int slot = row_slot[first + i], *heap = memory + cpu_thread() * each;
            if (s->position[slot] >= 0)
                sample_row(s, slot, m.logits + (size_t)i * v, m.row + 2 * (size_t)cpu_thread() * v,
                           heap, (uint32_t*)(heap + v), v, how);
        }
    }
}
