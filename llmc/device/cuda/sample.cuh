// The sampler: draws a token for each row of logits and advances the row's slot. A block owns a
// row.
//
// A token's weight is the integer floor(2^40 exp(l - max)), so sums have no order: from equal
// logits this draws the token, and keeps the set of tokens, that the CPU device does. Top-k and
// top-p look for a threshold among keys that order the tokens, the greater logit first and then the
// lower id. They find it digit by digit (radix selection): a pass over the row counts and weighs
// the tokens by the next eight bits of their keys, until one token is left.
#ifndef LLMC_CUDA_SAMPLE_CUH
#define LLMC_CUDA_SAMPLE_CUH

#include "head.cuh"

static __device__ inline uint64_t weight_of(float l, float max) {
    return (uint64_t)(num_expf(l - max) * 0x1p40f);
}

static __device__ inline uint64_t warp_sum_to_here(uint64_t x) {
    int lane = threadIdx.x % WARP;
    for (int d = 1; d < WARP; d *= 2) {
        uint64_t before = __shfl_up_sync(~0u, (unsigned long long)x, d);
        if (lane >= d) x += before;
    }
    return x;
}

// ------------------------------------------------------------------------------------------------
// The set that top-k and top-p leave

// Greater where a token comes first; no two tokens of a row have the same.
static __device__ inline uint64_t key_of(float l, int i) {
    uint32_t u = l == 0 ? 0 : float_bits(l);  // -0 ties with 0
    u ^= u >> 31 ? ~0u : 0x80000000u;         // the order of floats as that of integers
    return (uint64_t)u << 32 | (uint32_t)~i;
}

// The tokens of a row by a digit of their keys: how many, and their weight, as two words. Each
// eighth lane adds to a copy of its own: many logits share their first digit, and additions to one
// word wait for each other. A gap after each copy leads its words to other banks.
enum { DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS, COPIES = 8, BANK_GAP = 4 };
struct alignas(16) digit_sums {
    uint32_t count[COPIES][DIGITS + BANK_GAP], low[COPIES][DIGITS + BANK_GAP],
        high[COPIES][DIGITS + BANK_GAP];
};

static __device__ inline void sums_clear(digit_sums& sums) {
    for (int i = threadIdx.x; i < (int)(sizeof sums / sizeof(int4)); i += blockDim.x)
        ((int4*)&sums)[i] = make_int4(0, 0, 0, 0);
    __syncthreads();
}

// 64-bit additions to shared memory are loops on the hardware; these two are not.
static __device__ inline void sums_add(digit_sums& sums, uint32_t digit, uint64_t weight) {
    int copy = threadIdx.x % COPIES;
    atomicAdd(&sums.count[copy][digit], 1u);
    uint32_t low = (uint32_t)weight, before = atomicAdd(&sums.low[copy][digit], low);
    uint32_t high = (uint32_t)(weight >> 32) + (before + low < before);
    if (high) atomicAdd(&sums.high[copy][digit], high);
}

// The greatest key from which on there are enough tokens, as far as it is known.
struct threshold {
    uint64_t key;     // the digits that are known, then zeros
    uint64_t before;  // the weight of the tokens whose keys begin with greater digits
    uint32_t left;    // tokens whose keys begin with these digits
};

// For a warp: the next digit. `enough`: the weight that is enough; below 0 it is found first, as
// share p of all.
static __device__ inline void find_digit(threshold& found, const threshold& t,
                                         const digit_sums& sums, int shift, float p,
                                         double& enough) {
    constexpr int EACH = DIGITS / WARP, N = packet<uint32_t>::N;
    int lane = threadIdx.x % WARP, first = DIGITS - EACH * (lane + 1), digit = -1;
    uint32_t count[EACH] = {};
    uint64_t weight[EACH] = {}, own = 0, before = t.before;
    for (int copy = 0; copy < COPIES; copy++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            int at = first + j / N * N;
            count[j] += packet_load(&sums.count[copy][at]).v[j % N];
            weight[j] += packet_load(&sums.low[copy][at]).v[j % N];
            weight[j] += (uint64_t)packet_load(&sums.high[copy][at]).v[j % N] << 32;
        }
#pragma unroll
    for (int j = 0; j < EACH; j++) own += weight[j];
    uint64_t running = warp_sum_to_here(own);
    if (enough < 0)
        enough = (double)p * (double)__shfl_sync(~0u, (unsigned long long)running, WARP - 1);
    running += before - own;
#pragma unroll
    for (int j = EACH - 1; j >= 0; j--) {
        if (digit < 0 && count[j] && (double)(running + weight[j]) >= enough) {
            digit = first + j;
            before = running;
            own = count[j];
        }
        running += weight[j];
    }
    if (lane == __ffs(__ballot_sync(~0u, digit >= 0)) - 1)
        found = {t.key | (uint64_t)digit << shift, before, (uint32_t)own};
}

// k > 0: the k-th key. Else the last key of the first tokens whose share of the weight of those
// from `from` on reaches p; one at least. Tokens weigh 1 in the first case: k is enough.
static __device__ inline uint64_t threshold_key(const logits_row& r, uint64_t from, float max,
                                                int k, float p) {
    __shared__ digit_sums sums;
    __shared__ threshold found;
    threshold t = {0, 0, (uint32_t)r.vocabulary};
    double enough = k > 0 ? (double)(uint64_t)k : -1;
    for (int shift = 64 - DIGIT_BITS; shift >= 0 && t.left > 1; shift -= DIGIT_BITS) {
        if (shift < 32 && (uint32_t)(r.vocabulary - 1) >> shift == 0) {  // alike in all keys
            t.key |= (uint64_t)(DIGITS - 1) << shift;
            continue;
        }
        sums_clear(sums);
        row_each(r, [&](int i, float l) {
            uint64_t key = key_of(l, i), other = (key ^ t.key) >> shift;
            if (key >= from && other < DIGITS)
                sums_add(sums, (uint32_t)other, k > 0 ? 1 : weight_of(l, max));
        });
        __syncthreads();
        if (threadIdx.x < WARP) find_digit(found, t, sums, shift, p, enough);
        __syncthreads();
        t = found;
    }
    return t.key > from ? t.key : from;
}

// Writes the set: the k first tokens; of these the first whose share of their weight reaches p.
// k = 0 and p = 1 are off.
static __device__ inline void choose_kept(uint32_t* nucleus, const logits_row& r, float max, int k,
                                          float p) {
    uint64_t key = 0;
    if (k > 0 && k < r.vocabulary) key = threshold_key(r, 0, max, k, 1);
    if (p < 1) key = threshold_key(r, key, max, 0, p);
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int word = threadIdx.x / WARP; word < words_of_set(r.vocabulary); word += warps) {
        int i = word * 32 + lane;
        bool in = i < r.vocabulary && key_of(logit(r, r.l[i]), i) >= key;
        uint32_t set = __ballot_sync(~0u, in);
        if (lane == 0) nucleus[word] = set;
    }
    __syncthreads();
}

// ------------------------------------------------------------------------------------------------
// Drawing

static __device__ inline int draw_greedy(const logits_row& r) {
    uint64_t best = 0;
    row_each(r, [&](int i, float l) {
        uint64_t key = key_of(l, i);
        if (key > best) best = key;
    });
    best = block_combine(best, (uint64_t)0, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
    return (int)~(uint32_t)best;
}

// For a whole warp: the first token of first .. end - 1 with which the running sum of weights,
// `sum` before them, exceeds point. -1: none.
static __device__ inline int find_point(const logits_row& r, int first, int end, float max,
                                        uint64_t sum, uint64_t point) {
    constexpr int STEP = WARP * packet<float>::N;
    int lane = threadIdx.x % WARP;
    for (; first < end; first += STEP) {
        uint64_t own = 0;
        int part_end = first + STEP < end ? first + STEP : end, found = -1;
        auto weight = [&](int i, float l) { return kept(r, i) ? weight_of(l, max) : 0; };
        row_each(r, first, part_end, lane, WARP, [&](int i, float l) { own += weight(i, l); });
        uint64_t running = sum + warp_sum_to_here(own);
        uint32_t beyond = __ballot_sync(~0u, running > point);
        sum = __shfl_sync(~0u, (unsigned long long)running, WARP - 1);
        if (!beyond) continue;
        int owner = __ffs(beyond) - 1;
        running -= own;
        row_each(r, first, part_end, lane, WARP, [&](int i, float l) {
            running += weight(i, l);
            if (found < 0 && running > point) found = i;
        });
        return __shfl_sync(~0u, found, owner);
    }
    return -1;
}

// The token in whose stretch of the running sum a uniform point falls. Each warp sums a section of
// the row; the warp in whose section the point lies looks for the token.
static __device__ inline int draw(const logits_row& r, float max, uint64_t uniform) {
    __shared__ uint64_t section_sum[WARP];
    __shared__ int drawn;
    int warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    int packets = (r.vocabulary + packet<float>::N - 1) / packet<float>::N;
    int section = (packets + warps - 1) / warps * packet<float>::N, first = warp * section;
    int end = first + section < r.vocabulary ? first + section : r.vocabulary;
    uint64_t own = 0, total = 0, sum = 0;
    row_each(r, first, end, lane, WARP, [&](int i, float l) {
        if (kept(r, i)) own += weight_of(l, max);
    });
    own = warp_sum_to_here(own);
    if (threadIdx.x == 0) drawn = 0;  // it stays only for logits that are not numbers
    if (lane == WARP - 1) section_sum[warp] = own;
    __syncthreads();
    for (int i = 0; i < warps; i++) total += section_sum[i];
    for (int i = 0; i < warp; i++) sum += section_sum[i];
    uint64_t point = __umul64hi(uniform, total);
    if (sum <= point && point < sum + section_sum[warp]) {
        int token = find_point(r, first, end, max, sum, point);
        if (lane == 0 && token >= 0) drawn = token;
    }
    __syncthreads();
    return drawn;
}

// ------------------------------------------------------------------------------------------------

// The first tokens of a row, as row `at` of the candidates: a pass for each, which looks for the
// greatest key below the last.
static __device__ inline void find_best(const candidates& c, int64_t at, const logits_row& r,
                                        const distribution& d) {
    uint64_t last = ~(uint64_t)0;
    for (int j = 0; j < c.count; j++) {
        uint64_t best = 0;
        row_each(r, [&](int i, float l) {
            uint64_t key = key_of(l, i);
            if (key < last && key > best && kept(r, i)) best = key;
        });
        last =
            block_combine(best, (uint64_t)0, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
        if (threadIdx.x) continue;
        int id = last ? (int)~(uint32_t)last : -1;
        c.id[at * c.count + j] = id;
        c.logp[at * c.count + j] = log_probability_of(d, r, id);
    }
}

// slot_state but for its end tokens: a kernel reads small parameters at fixed places.
struct slot_arrays {
    int *token, *position, *sequence, *left, *length, *out_token;
    float *out_logp, *out_entropy;
    uint32_t* out_nucleus;
    int max_new, nucleus_words;
    candidates best;
};

static slot_arrays slot_arrays_of(const slot_state& s) {
    return {s.token,    s.position,    s.sequence,    s.left,    s.length,        s.out_token,
            s.out_logp, s.out_entropy, s.out_nucleus, s.max_new, s.nucleus_words, s.best};
}

// end_set_has; -1 stands for no token.
struct end_words {
    int4 first, others;
};
static_assert(ENDS_MOST == 8, "the ids of end_words");

static end_words end_words_of(const end_set& ends) {
    int id[ENDS_MOST];
    for (int i = 0; i < ENDS_MOST; i++) id[i] = i < ends.count ? ends.id[i] : -1;
    return {{id[0], id[1], id[2], id[3]}, {id[4], id[5], id[6], id[7]}};
}

static __device__ inline bool is_end(const int4& e, int token) {
    return token == e.x || token == e.y || token == e.z || token == e.w;
}

// Appends a token to its slot's sequence and moves the slot on.
static __device__ __forceinline__ void advance(const slot_arrays& s, const end_words& ends,
                                               int slot, int64_t at, int token, float logp,
                                               float entropy) {
    s.out_token[at] = token;
    s.out_logp[at] = logp;
    s.out_entropy[at] = entropy;
    s.length[s.sequence[slot]]++;
    s.token[slot] = token;
    s.position[slot]++;
    if (is_end(ends.first, token) || is_end(ends.others, token) || --s.left[slot] == 0)
        s.position[slot] = -1;
}

// nucleus_sets: memory for the rows' sets, where top-k or top-p asks for them. `drawing` says how
// to draw, the temperature too: b's counts for nothing.
static __global__ void __launch_bounds__(ROW_THREADS_MAX, 1)
    sample_rows(const slot_arrays s, const int* row_slot, logits_block b, uint32_t* nucleus_sets,
                const sampling* drawing, const end_words ends) {
    const sampling how = *drawing;
    int slot = row_slot[blockIdx.x], position = s.position[slot], sequence = s.sequence[slot];
    if (position < 0) return;
    int64_t at = (int64_t)sequence * s.max_new + s.length[sequence];
    b.inverse_temperature = how.inverse_temperature;
    logits_row r = row_of_block(b);
    distribution d = row_distribution(r);
    if (how.top_k > 0 || how.top_p < 1) {
        uint32_t* nucleus = nucleus_sets + (int64_t)blockIdx.x * words_of_set(r.vocabulary);
        choose_kept(nucleus, r, d.max, how.top_k, how.top_p);
        r.nucleus = nucleus;
        d = row_distribution(r);
        for (int i = threadIdx.x; s.out_nucleus && i < s.nucleus_words; i += blockDim.x)
            s.out_nucleus[at * s.nucleus_words + i] = nucleus[i];
    }
    find_best(s.best, at, r, d);
    int token;
    if (how.greedy) {
        token = draw_greedy(r);
    } else {
        uint32_t random[4];
        random_at(random, how.seed, how.stream, how.step, how.first + (uint32_t)sequence,
                  (uint32_t)position + 1);
        token = draw(r, d.max, (uint64_t)random[0] << 32 | random[1]);
    }
    if (threadIdx.x == 0)
        advance(s, ends, slot, at, token, log_probability(d, logit(r, r.l[token])), d.entropy);
}

static void cuda_sample(backend* b, const slot_state* s, tensor x, const int* row_slot, int n,
                        const prepared* w, const format* logits, const sampling* how) {
    size_t each = b->bytes_per(w->operand), words = words_of_set(w->outputs);
    if (n <= 0) return;
    same_storage(x, w);
    logits_memory m = logits_memory_for(b, n, w, logits, 1, false);
    logits_block l = m.block;
    int most = m.most;
    uint32_t* nucleus_sets = (uint32_t*)cuda_scratch(b, SCRATCH_ROWS, most * words * 4);
    for (int first = 0; first < n; first += most) {
        int rows = n - first < most ? n - first : most;
        void* data = (char*)x.data + first * x.stride * each;
        logits_product(b, l, {data, rows, x.cols, x.stride, x.format}, w);
        LAUNCH(sample_rows, rows, row_threads(l.vocabulary), 0, stream_of(b), slot_arrays_of(*s),
               row_slot + first, l, nucleus_sets, how, end_words_of(s->ends));
    }
}

#endif
