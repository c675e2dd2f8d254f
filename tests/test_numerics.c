// Tests of numerics: every rounding decision of every format, stochastic rounding, scales, Philox,
// the elementary functions' errors, and the same bits for all instruction sets and compilers.
// Fixtures: dev/reference/numerics.py.
#include <float.h>

#include "base/numerics.h"
#include "test.h"

#define QUIET_NAN 0x7fc00000u

// ---------------------------------------------------------------------------------------------
// Sweeps: the vectorised loops that kernels use, compiled for each instruction set.

typedef enum { ROUND, STOCHASTIC, SCALE, EXP, LOG, TANH, UNFUSED, OPS } sweep_op;
static const char* const OP_NAMES[] = {
    "format_round", "format_round_stochastic", "format_scale", "num_expf", "num_logf", "num_tanhf",
    "a * a - 1"};

typedef void sweep(float* to, const float* from, int n, sweep_op op, const format* how);

NUM_INLINE float apply(float x, sweep_op op, const format* f) {
    switch (op) {
        case ROUND:
            return format_round(x, f);
        case STOCHASTIC:
            return format_round_stochastic(x, f, float_bits(x) * 2654435761u);
        case SCALE:
            return format_scale(x, f);
        case EXP:
            return num_expf(x);
        case LOG:
            return num_logf(x);
        case TANH:
            return num_tanhf(x);
        default:
            return x * x - 1.0f;
    }
}

#define LOOP(op)                                                                        \
    case op:                                                                            \
        _Pragma("omp simd") for (int i = 0; i < n; i++) to[i] = apply(from[i], op, &f); \
        break

NUM_INLINE void sweep_body(float* restrict to, const float* restrict from, int n, sweep_op op,
                           const format* how) {
    const format f = *how;
    switch (op) {
        LOOP(ROUND);
        LOOP(STOCHASTIC);
        LOOP(SCALE);
        LOOP(EXP);
        LOOP(LOG);
        LOOP(TANH);
        LOOP(UNFUSED);
        case OPS:
            break;
    }
}

static void sweep_plain(float* to, const float* from, int n, sweep_op op, const format* how) {
    sweep_body(to, from, n, op, how);
}

// One value at a time, through a pointer that the compiler cannot see through.
static float apply_once(float x, sweep_op op, const format* f) { return apply(x, op, f); }
static float (*volatile apply_scalar)(float, sweep_op, const format*) = apply_once;
static void sweep_scalar(float* to, const float* from, int n, sweep_op op, const format* how) {
    for (int i = 0; i < n; i++) to[i] = apply_scalar(from[i], op, how);
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void sweep_avx2(float* to, const float* from, int n,
                                                           sweep_op op, const format* how) {
    sweep_body(to, from, n, op, how);
}
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))) static void sweep_avx512(
    float* to, const float* from, int n, sweep_op op, const format* how) {
    sweep_body(to, from, n, op, how);
}
#endif

// The sweeps that this machine can run, best last.
static int sweeps(sweep* list[4], const char* name[4]) {
    int count = 0;
    list[count] = sweep_scalar, name[count++] = "scalar";
    list[count] = sweep_plain, name[count++] = "plain";
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        list[count] = sweep_avx2, name[count++] = "avx2";
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        list[count] = sweep_avx512, name[count++] = "avx512";
#endif
    return count;
}

static sweep* best_sweep(void) {
    sweep* list[4];
    const char* name[4];
    return list[sweeps(list, name) - 1];
}

static uint64_t hash_word(uint64_t hash, uint64_t word, int bytes) {  // FNV-1a
    for (int i = 0; i < bytes; i++) hash = (hash ^ (word >> 8 * i & 255)) * 0x100000001b3u;
    return hash;
}

#define GRID 100003  // not a multiple of a vector, so that loops have tails

// Floats spread over all bit patterns.
static void fill_grid(float x[GRID]) {
    for (uint32_t i = 0; i < GRID; i++) x[i] = float_from_bits(i * 42947u);
}

static uint64_t hash_grid(sweep* run, sweep_op op, const format* f, const float* x, float* y) {
    run(y, x, GRID, op, f);
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < GRID; i++)
        hash = hash_word(hash, y[i] != y[i] ? QUIET_NAN : float_bits(y[i]), 4);
    return hash;
}

// The literals were frozen with ARITHMETIC_VERSION 1. If one differs, some result has changed.
static void test_same_bits(void) {
    static const uint64_t FUNCTIONS[] = {[EXP] = 0x3ee0c750b42926eeu,
                                         [LOG] = 0x5f6d3fb9e3db057fu,
                                         [TANH] = 0x330d1a71b88fb05bu,
                                         [UNFUSED] = 0xca1b73a60e19b09fu};
    // By FORMATS, then ROUND, STOCHASTIC, SCALE.
    static const uint64_t FORMATTED[][3] = {
        {0x207a35e4304041c9u, 0x207a35e4304041c9u, 0x0e2d3d0278d16248u},
        {0x3ae9c5e9a383b855u, 0x53e1703e85dba1bbu, 0x0e2d3d0278d16248u},
        {0x71cad833c47b562eu, 0x4294b44f567f0b42u, 0x0e2d3d0278d16248u},
        {0xdc9f04900f5e9435u, 0x1d88b2e357f3d64eu, 0x0e2d3d0278d16248u},
        {0x0b2c1030e2ec5eb7u, 0xec0549885b646b7du, 0x7c75e376f2a58d11u},
        {0x5084624906d5f9d2u, 0x6b963406bed45ae0u, 0xfd04f1108a769019u},
    };
    static float x[GRID], y[GRID];
    sweep* list[4];
    const char* name[4];
    int count = sweeps(list, name);
    fill_grid(x);
    for (int s = 0; s < count; s++) {
        for (int op = EXP; op < OPS; op++) {
            uint64_t hash = hash_grid(list[s], op, &FORMAT_FP32, x, y);
            CHECK(hash == FUNCTIONS[op], "%s, %s: hash 0x%016llx", name[s], OP_NAMES[op],
                  (unsigned long long)hash);
        }
        for (int f = 0; FORMATS[f]; f++)
            for (int op = ROUND; op <= SCALE; op++) {
                uint64_t hash = hash_grid(list[s], op, FORMATS[f], x, y);
                CHECK(hash == FORMATTED[f][op], "%s, %s to %s: hash 0x%016llx", name[s],
                      OP_NAMES[op], FORMATS[f]->name, (unsigned long long)hash);
            }
    }
}

static double normal_at(double sequence) {
    rng r = rng_at(9, STREAM_INIT, 0, (uint32_t)(int32_t)sequence);
    return rng_normal(&r);
}

static void test_same_bits_double(void) {
    static const struct {
        const char* name;
        double (*f)(double);
        double step;
        uint64_t hash;
    } CASES[] = {{"num_exp", num_exp, 0.0731, 0x3efc38ab3f012526u},
                 {"num_expm1", num_expm1, 0.00431, 0x93ad84ff668b92b7u},
                 {"num_log", num_log, 1.37, 0x0425dd41dae12277u},
                 {"num_sinpi", num_sinpi, 0.000317, 0xbdfe198ffb8fc37eu},
                 {"num_cospi", num_cospi, 0.000317, 0x7e5a3b0521d9048du},
                 {"rng_normal", normal_at, 1, 0xd3b484c6a460f183u}};
    for (int c = 0; c < 6; c++) {
        uint64_t hash = 0xcbf29ce484222325u;
        for (int i = -10000; i < 10000; i++) {
            double y = CASES[c].f(i * CASES[c].step);
            uint64_t bits;
            memcpy(&bits, &y, 8);
            hash = hash_word(hash, y != y ? 0 : bits, 8);
        }
        CHECK(hash == CASES[c].hash, "%s: hash 0x%016llx", CASES[c].name, (unsigned long long)hash);
    }
}

// ---------------------------------------------------------------------------------------------
// The machine: what the numerics contract takes for granted.

static void test_arithmetic(void) {
    volatile float least = 0x1p-149f, normal = FLT_MIN, up = 1.0f + 0x1p-12f;
    int alive = 1;
#pragma omp parallel reduction(&& : alive)
    alive = least * 0x1p100f == 0x1p-49f && normal * 0.5f == 0x1p-127f && least + least > least;
    CHECK(alive, "subnormals are flushed to zero in some thread");
    float a = up, b = 1.0f + 0x1p-11f;
    CHECK(a * a - b == 0.0f, "the compiler fused a product and a sum: needs -ffp-contract=off");
    CHECK_SAME(num_fma(a, a, -b), 0x1p-24f, "num_fma(a, a, -b)");
    volatile float half = 0.5f;
    CHECK(0x1p23f + half == 0x1p23f && 0x1.000002p23f + half == 0x1.000004p23f,
          "sums are not rounded to nearest, ties to even");
}

// ---------------------------------------------------------------------------------------------
// The reference for rounding: all values of a format, decoded from its bit patterns, in order. The
// pattern of a value, without the sign, is its index, so that even index = even mantissa.

static double value[1 << 18];  // (values + 1): with the first one beyond the largest
static int values;

static int has_infinity(const format* f) { return strcmp(f->name, "fp8_e4m3") != 0; }

static double decode(const format* f, int pattern) {
    int m = f->mantissa_bits, bias = (1 << (f->exponent_bits - 1)) - 1;
    int exponent = pattern >> m, mantissa = pattern & ((1 << m) - 1);
    int top = exponent == (1 << f->exponent_bits) - 1;
    if (top && has_infinity(f)) return mantissa ? NAN : INFINITY;
    if (top && mantissa == (1 << m) - 1) return NAN;  // e4m3: all ones alone
    if (exponent == 0) return ldexp(mantissa, 1 - bias - m);
    return ldexp((1 << m) + mantissa, exponent - bias - m);
}

static void decode_all(const format* f) {
    for (values = 0; isfinite(decode(f, values)); values++) value[values] = decode(f, values);
    value[values] = 2 * value[values - 1] - value[values - 2];
}

// The index of the largest value <= x, where 0 <= x; `values` for the one beyond, and above it.
static int index_below(double x) {
    int low = 0, high = values + 1;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (value[middle] <= x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// What index stands for as a result: beyond the largest value lies infinity, but 8 bits saturate.
static float result(const format* f, int index) {
    if (index < values) return (float)value[index];
    return f->exponent_bits + f->mantissa_bits <= 7 ? (float)value[values - 1] : INFINITY;
}

static float round_reference(const format* f, float x) {
    double a = fabs((double)x);
    if (a != a) return x;
    int i = index_below(a);
    if (i < values) {
        double below = a - value[i], above = value[i + 1] - a;
        i += above < below || (above == below && i % 2);
    }
    return copysignf(result(f, i), x);
}

static int same(float a, float b) { return (a != a && b != b) || float_bits(a) == float_bits(b); }

// Points are collected, rounded together by the vector loop, and compared.
static struct {
    float x[1 << 12], y[1 << 12];
    int n;
    long long wrong, total;
    float first, first_result;
} batch;

static void batch_flush(const format* f) {
    best_sweep()(batch.y, batch.x, batch.n, ROUND, f);
    for (int i = 0; i < batch.n; i++)
        if (!same(batch.y[i], round_reference(f, batch.x[i])) && batch.wrong++ == 0)
            batch.first = batch.x[i], batch.first_result = batch.y[i];
    batch.total += batch.n;
    batch.n = 0;
}

static void batch_add(const format* f, float x) {
    for (int sign = 0; sign < 2; sign++, x = -x) {
        if (batch.n == 1 << 12) batch_flush(f);
        batch.x[batch.n++] = x;
    }
}

// x and its two neighbours in fp32, with both signs.
static void batch_add_around(const format* f, double x) {
    batch_add(f, (float)x);
    batch_add(f, nextafterf((float)x, INFINITY));
    if (x > 0) batch_add(f, nextafterf((float)x, 0));
}

// Every rounding decision. Between two neighbouring values of the format, format_round does the
// same monotone operations to all x, so its result changes at most once on the way from one to the
// other; right results next to both ends and on both sides of the midpoint, and at the midpoint,
// leave it no wrong place to change. Random patterns check the argument.
static void test_round(const format* f) {
    decode_all(f);
    CHECK_SAME(f->max, (float)value[values - 1], f->name);
    CHECK_SAME(f->overflow, result(f, values), f->name);
    CHECK(f->drop == 23u - (unsigned)f->mantissa_bits, "%s: drop %u", f->name, f->drop);
    if (f->min_normal > 0) {
        CHECK_SAME(f->min_normal, (float)value[1 << f->mantissa_bits], f->name);
        CHECK_SAME(f->subnormal_spacing, (float)value[1], f->name);
    }
    memset(&batch, 0, sizeof batch);
    for (int i = 0; i < values; i++) {
        batch_add_around(f, value[i]);
        batch_add_around(f, (value[i] + value[i + 1]) / 2);
    }
    if (value[values] <= (double)FLT_MAX) batch_add_around(f, value[values]);
    batch_add(f, FLT_MAX);
    batch_add(f, INFINITY);
    batch_add(f, NAN);
    rng r = rng_at(1, STREAM_INIT, 0, 0);
    for (int i = 0; i < 200000; i++) batch_add(f, float_from_bits(rng_u32(&r)));
    batch_flush(f);
    CHECK(batch.wrong == 0,
          "%s: %lld of %lld roundings are wrong; the first: %a becomes %a, not %a", f->name,
          batch.wrong, batch.total, (double)batch.first, (double)batch.first_result,
          (double)round_reference(f, batch.first));
}

static void test_round_fp32(void) {
    static float x[GRID], y[GRID];
    fill_grid(x);
    best_sweep()(y, x, GRID, ROUND, &FORMAT_FP32);
    int wrong = 0;
    for (int i = 0; i < GRID; i++) wrong += !same(x[i], y[i]);
    CHECK(wrong == 0, "%d values changed", wrong);
    CHECK_SAME(format_round(FLT_MAX, &FORMAT_FP32), FLT_MAX, "FLT_MAX");
    CHECK_SAME(format_round(-INFINITY, &FORMAT_FP32), -INFINITY, "-infinity");
}

// NaN of every payload stays NaN, keeps its sign, and becomes one that the format has.
static void test_round_nan(const format* f) {
    for (uint32_t payload = 1; payload < 0x00800000u; payload += payload < 64 ? 1 : 77773)
        for (uint32_t sign = 0; sign < 2; sign++) {
            float x = float_from_bits(sign << 31 | 0x7f800000u | payload);
            for (int stochastic = 0; stochastic < 2; stochastic++) {
                float y = stochastic ? format_round_stochastic(x, f, 0xffffffffu - payload)
                                     : format_round(x, f);
                int ok = y != y && float_bits(y) >> 31 == sign && float_bits(y) & 0x00400000u &&
                         !(float_bits(y) & ((1u << f->drop) - 1));
                CHECK(ok, "%s: NaN %08x becomes %08x", f->name, float_bits(x), float_bits(y));
            }
        }
}

// PyTorch's casts.
static void test_round_fixture(void) {
    const char* path = "tests/fixtures/numerics_round.txt";
    FILE* file = file_open(path, "r");
    char name[16];
    int count, formats = 0;
    for (; fscanf(file, "%15s %d", name, &count) == 2; formats++) {
        const format* f = format_find(name);
        CHECK(f != NULL, "no format %s", name);
        if (!f) break;
        for (int i = 0; i < count; i++) {
            unsigned x, pattern;
            CHECK(fscanf(file, "%x %x", &x, &pattern) == 2, "%s ends early", path);
            unsigned sign = 1u << (f->exponent_bits + f->mantissa_bits);
            float expected = (float)decode(f, (int)(pattern & (sign - 1)));
            if (pattern & sign) expected = -expected;
            float actual = format_round(float_from_bits(x), f);
            CHECK(same(actual, expected), "%s: %a becomes %a, not %a", name,
                  (double)float_from_bits(x), (double)actual, (double)expected);
        }
    }
    CHECK(formats == 4, "%d formats in %s", formats, path);
    file_close(file, path);
}

// PyTorch's casts to fp8 of rows under their power-of-two scales.
static void test_scaled_fixture(void) {
    const char* path = "tests/fixtures/numerics_scaled.txt";
    FILE* file = file_open(path, "r");
    char name[16];
    int count, rows = 0;
    for (; fscanf(file, "%15s %d", name, &count) == 2; rows++) {
        const format* f = format_find(name);
        unsigned x[64], expected[64];
        float amax = 0;
        CHECK(f && count <= 64, "a row of %d in %s", count, name);
        if (!f || count > 64) break;
        for (int i = 0; i < count; i++) {
            CHECK(fscanf(file, "%x %x", &x[i], &expected[i]) == 2, "%s ends early", path);
            amax = fmaxf(amax, fabsf(float_from_bits(x[i])));
        }
        float scale = format_scale(amax, f);
        for (int i = 0; i < count; i++) {
            float y = format_round(float_from_bits(x[i]) / scale, f) * scale;
            CHECK(float_bits(y) == expected[i], "%s, scale %a: %a becomes %a, not %a", name,
                  (double)scale, (double)float_from_bits(x[i]), (double)y,
                  (double)float_from_bits(expected[i]));
        }
    }
    CHECK(rows == 40, "%d rows in %s", rows, path);
    file_close(file, path);
}

// ---------------------------------------------------------------------------------------------
// Stochastic rounding

// Over all 2^drop values of the low random bits, a normal x rises exactly as often as it is far
// from the value below, in fp32 units: no bias at all.
static void check_stochastic_exact(const format* f, float x) {
    int i = index_below(fabs((double)x));
    float lower = copysignf(result(f, i), x), upper = copysignf(result(f, i + 1), x);
    double distance = (fabs((double)x) - value[i]) / (value[i + 1] - value[i]);
    uint32_t draws = 1u << f->drop, rises = 0, strange = 0;
    for (uint32_t r = 0; r < draws; r++) {
        float y = format_round_stochastic(x, f, r | r << f->drop);
        if (same(y, upper)) {
            rises++;
        } else {
            strange += !same(y, lower);
        }
    }
    CHECK(strange == 0, "%s: %a goes elsewhere than its neighbours", f->name, (double)x);
    if (!same(lower, upper))
        CHECK(rises == distance * draws, "%s: %a rises %u times of %u, not %.17g", f->name,
              (double)x, rises, draws, distance * draws);
}

// A subnormal x compares the high 24 bits. Over 2^16 equally spaced ones it rises as often as it is
// far from the value below, to within one draw.
static void check_stochastic_subnormal(const format* f, float x) {
    int i = index_below(fabs((double)x));
    float lower = copysignf((float)value[i], x), upper = copysignf((float)value[i + 1], x);
    double distance = (fabs((double)x) - value[i]) / (value[i + 1] - value[i]);
    int rises = 0, strange = 0;
    for (uint32_t r = 0; r < 0x10000; r++) {
        float y = format_round_stochastic(x, f, r << 16);
        rises += same(y, upper);
        strange += !same(y, lower) && !same(y, upper);
    }
    CHECK(strange == 0, "%s: %a goes elsewhere than its neighbours", f->name, (double)x);
    CHECK_NEAR(rises / 65536.0, distance, 0x1p-16, "share of rises");
}

// A uniform draw rises by a Bernoulli law of probability p = distance: the mean of N draws has a
// standard deviation of at most spacing / (2 sqrt N). The seed is fixed; 5 sigma happen by chance
// in one seed of 1.7 million.
static void check_stochastic_mean(const format* f, float x) {
    int i = index_below(fabs((double)x)), draws = 1 << 14;
    double sum = 0, spacing = value[i + 1] - value[i];
    for (int k = 0; k < draws; k++) {
        uint32_t word[4];
        random_at(word, 7, STREAM_ROUND, 0, 0, (uint32_t)k);
        sum += format_round_stochastic(x, f, word[k & 3]);
    }
    CHECK_NEAR(sum / draws, x, 5 * spacing / (2 * sqrt(draws)), f->name);
}

static void test_stochastic(const format* f) {
    decode_all(f);
    int normals = 1 << f->mantissa_bits, wrong = 0;
    rng r = rng_at(2, STREAM_INIT, 0, 0);
    for (int k = 0; k < 6; k++) {
        int i = normals + (int)rng_below(&r, (uint32_t)(values - 1 - normals));
        float below = (float)value[i], above = (float)value[i + 1];
        float between[] = {nextafterf(below, INFINITY), nextafterf(above, 0),
                           -(float)(value[i] + (value[i + 1] - value[i]) * rng_uniform(&r))};
        check_stochastic_exact(f, between[k % 3]);
        check_stochastic_mean(f, between[2]);
        float small = (float)(f->min_normal * rng_uniform(&r)) * (k % 2 ? -1 : 1);
        if (small != 0.0f) check_stochastic_subnormal(f, small);
        if (small != 0.0f) check_stochastic_mean(f, small);
    }
    check_stochastic_exact(f, (float)(value[values - 1] * 0.75 + value[values] * 0.25));
    if (f->min_normal == 0) check_stochastic_exact(f, -0x1.234p-128f);  // subnormal in fp32 as well
    for (int i = 0; i < values; i++)
        for (int k = 0; k < 3; k++) {
            uint32_t random = k == 0 ? 0 : k == 1 ? 0xffffffffu : rng_u32(&r);
            float x = (float)value[i] * (i % 2 ? -1.0f : 1.0f);
            wrong += !same(format_round_stochastic(x, f, random), x);
        }
    CHECK(wrong == 0, "%s: %d values of the format changed", f->name, wrong);
    for (uint32_t k = 0; k < 64; k++) {
        float beyond = float_from_bits(0x7f7fffffu - k), y = 0x1p-149f;
        CHECK_SAME(format_round_stochastic(beyond, f, 0xffffffffu), result(f, values),
                   "beyond max");
        CHECK_SAME(format_round_stochastic(-INFINITY, f, k << 27), -result(f, values), "-infinity");
        CHECK_SAME(format_round_stochastic(0.0f, f, k << 26), 0.0f, "0");
        CHECK_SAME(format_round_stochastic(-0.0f, f, ~k), -0.0f, "-0");
        if (f->min_normal > 0) {
            CHECK_SAME(format_round_stochastic(y, f, 0), f->subnormal_spacing,
                       "2^-149, lowest draw");
            CHECK_SAME(format_round_stochastic(y, f, 256 + k), 0.0f, "2^-149, any other");
        }
    }
}

static void test_stochastic_neighbours(const format* f) {
    decode_all(f);
    rng r = rng_at(3, STREAM_INIT, 0, 0);
    int wrong = 0;
    for (int k = 0; k < 100000; k++) {
        float x = float_from_bits(rng_u32(&r));
        if (x != x) continue;
        int i = index_below(fabs((double)x));
        float y = format_round_stochastic(x, f, rng_u32(&r));
        float lower = copysignf(result(f, i), x);
        float upper = copysignf(result(f, i < values && value[i] < fabs((double)x) ? i + 1 : i), x);
        wrong += !same(y, lower) && !same(y, upper);
    }
    CHECK(wrong == 0, "%s: %d of 100000 go elsewhere than their neighbours", f->name, wrong);
}

// ---------------------------------------------------------------------------------------------
// Scales

static void check_scale(const format* f, float amax) {
    double s = format_scale(amax, f), max = f->max;
    int exponent;
    int ok = frexp(s, &exponent) == 0.5 && s >= 0x1p-126 && amax <= max * s &&
             (s == 0x1p-126 || amax > max * s / 2);
    CHECK(ok, "%s: the scale for %a is %a", f->name, (double)amax, s);
    float largest = amax / (float)s;
    CHECK(largest <= f->max && format_round(largest, f) <= f->max, "%s: %a / %a does not fit",
          f->name, (double)amax, s);
}

static void test_scale(void) {
    const format* const scaled[] = {&FORMAT_E4M3, &FORMAT_E5M2};
    rng r = rng_at(4, STREAM_INIT, 0, 0);
    for (int i = 0; i < 2; i++) {
        const format* f = scaled[i];
        for (int k = -149; k < 128; k++) {
            float edges[] = {(float)ldexp(1, k), (float)ldexp(f->max, k - 8)};
            for (int e = 0; e < 2; e++) {
                float x = edges[e] < FLT_MAX ? edges[e] : FLT_MAX;
                check_scale(f, x);
                if (x < FLT_MAX) check_scale(f, nextafterf(x, INFINITY));
                if (x > 0x1p-149f) check_scale(f, nextafterf(x, 0));
            }
        }
        for (int k = 0; k < 10000; k++) {
            float x = float_from_bits(rng_u32(&r) >> 1);
            if (x > 0 && x <= FLT_MAX) check_scale(f, x);
        }
        CHECK_SAME(format_scale(f->max, f), 1.0f, "scale for amax = max");
        CHECK_SAME(format_scale(0.0f, f), 1.0f, "scale for 0");
        CHECK_SAME(format_scale(INFINITY, f), 1.0f, "scale for infinity");
        CHECK_SAME(format_scale(NAN, f), 1.0f, "scale for NaN");
        CHECK_SAME(format_scale(0x1p-149f, f), 0x1p-126f, "scale for 2^-149");
    }
    CHECK_SAME(format_scale(448.5f, &FORMAT_E4M3), 2.0f, "e4m3's scale for 448.5");
    CHECK_SAME(format_scale(1e5f, &FORMAT_BF16), 1.0f, "bf16 carries no scale");
}

// ---------------------------------------------------------------------------------------------
// eXmY

// Rounding by integers alone: a float is an integer times a power of two.
static float round_by_integers(float x, int exponent_bits, int mantissa_bits) {
    uint32_t a = float_bits(x) & 0x7fffffffu;
    if (a >= 0x7f800000u) a = 0x7f7fffffu;  // infinity goes where the largest float goes
    int bias = (1 << (exponent_bits - 1)) - 1, exponent = a >> 23 ? (int)(a >> 23) : 1, top = 23;
    uint64_t significand = a >> 23 ? (a & 0x7fffffu) | 0x800000u : a;
    while (top > 0 && !(significand >> top)) top--;
    int log2 = top + exponent - 150, unit = log2 - mantissa_bits, least = 1 - bias - mantissa_bits;
    if (unit < least) unit = least;
    int shift = unit - (exponent - 150);  // bits that are lost
    if (shift > 40) shift = 40;
    if (shift > 0) {
        uint64_t half = 1ull << (shift - 1), rest = significand & (2 * half - 1);
        significand >>= shift;
        significand += rest > half || (rest == half && significand % 2);
        exponent += shift;
    }
    double y = ldexp((double)significand, exponent - 150);
    double largest = ldexp(2 - ldexp(1, -mantissa_bits), bias);
    if (y > largest) y = exponent_bits + mantissa_bits <= 7 ? largest : INFINITY;
    return copysignf((float)y, x);
}

static void test_by_bits(int exponent_bits, int mantissa_bits) {
    char name[32];
    snprintf(name, sizeof name, "e%dm%d", exponent_bits, mantissa_bits);
    const format* f = format_find(name);
    CHECK(f && f == format_find(name), "no format %s, or two", name);
    if (!f) return;
    CHECK(f->exponent_bits == exponent_bits && f->mantissa_bits == mantissa_bits, "%s", name);
    CHECK(f->scaled == (exponent_bits + mantissa_bits <= 7), "%s is scaled: %d", name, f->scaled);
    rng r = rng_at(6, STREAM_INIT, 0, (uint32_t)(32 * exponent_bits + mantissa_bits));
    int wrong = 0;
    for (int i = 0; i < 4000; i++) {
        float x = float_from_bits(rng_u32(&r));
        // Among the format's own exponents too, and at its midpoints.
        if (i % 2) x = (float)ldexp(1 + rng_uniform(&r), (int)rng_below(&r, 40) - 20);
        if (i % 4 == 3) x = float_from_bits(float_bits(x) & ~((1u << f->drop) / 2 - 1));
        if (x == x)
            wrong += !same(format_round(x, f), round_by_integers(x, exponent_bits, mantissa_bits));
    }
    CHECK(wrong == 0, "%s: %d of 4000 roundings differ from the integers'", name, wrong);
    if (f->scaled)
        for (int k = -126; k < 127; k++) check_scale(f, (float)ldexp(1.3, k));
    test_round_nan(f);
}

static void test_formats_by_bits(void) {
    for (int x = 2; x <= 8; x++)
        for (int y = 1; y <= 22; y++) test_by_bits(x, y);
    // The whole argument of test_round, for some.
    static const char* const names[] = {"e2m1", "e3m2", "e2m3", "e4m3", "e3m4",
                                        "e2m5", "e6m9", "e4m6", "e8m1", "e8m4"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const format* f = format_find(names[i]);
        test_round(f);
        test_stochastic(f);
        test_stochastic_neighbours(f);
    }
    CHECK_SAME(format_find("e4m3")->max, 240.0f, "e4m3 is not fp8_e4m3");
}

static void test_format_find(void) {
    static const char* const none[] = {"fp64", "",    "e1m5",  "e9m2", "e5m0",  "e5m23", "e5",
                                       "m3",   "e5m", "e5m2x", "E5M2", "e05m2", "e5m02", "same"};
    for (int i = 0; FORMATS[i]; i++)
        CHECK(format_find(FORMATS[i]->name) == FORMATS[i], "%s", FORMATS[i]->name);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        CHECK(format_find(none[i]) == NULL, "found a format %s", none[i]);
    CHECK(format_find("e8m23") == &FORMAT_FP32 && format_find("e8m7") == &FORMAT_BF16 &&
              format_find("e5m10") == &FORMAT_FP16 && format_find("e5m2") == &FORMAT_E5M2,
          "other names of formats");
    CHECK(FORMAT_E4M3.scaled && FORMAT_E5M2.scaled && !FORMAT_FP16.scaled, "fp8 alone is scaled");
}

// ---------------------------------------------------------------------------------------------
// Randomness

// The known answers that come with Random123 (kat_vectors, philox4x32 10).
static void test_philox(void) {
    static const uint32_t KNOWN[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(out, KNOWN[i], KNOWN[i][4], KNOWN[i][5]);
        CHECK(!memcmp(out, KNOWN[i] + 6, 16), "known answer %d: %08x %08x %08x %08x", i, out[0],
              out[1], out[2], out[3]);
    }
    uint32_t a[4], b[4];  // which field goes where
    random_at(a, 0x299f31d0a4093822u, (rng_stream)0x03707344, 0x13198a2e, 0x85a308d3, 0x243f6a88);
    CHECK(!memcmp(a, KNOWN[2] + 6, 16), "random_at fills the counter in another order");
    random_at(a, 1, STREAM_SAMPLE, 2, 3, 4);
    for (int field = 0; field < 6; field++) {
        random_at(b, 1 + (field == 0) + ((uint64_t)(field == 1) << 32),
                  field == 2 ? STREAM_EVALUATE : STREAM_SAMPLE, 2 + (field == 3), 3 + (field == 4),
                  4 + (field == 5));
        for (int i = 0; i < 4; i++) CHECK(a[i] != b[i], "field %d leaves word %d alone", field, i);
    }
}

static void test_rng(void) {
    rng r = rng_at(5, STREAM_PROMPT, 6, 7);
    uint32_t word[4];
    for (uint32_t i = 0; i < 12; i++) {
        random_at(word, 5, STREAM_PROMPT, 6, 7, i / 4);
        CHECK(rng_u32(&r) == word[i % 4], "draw %u is not word %u of its position", i, i % 4);
    }
    for (int i = 0; i < 100; i++) CHECK(rng_below(&r, 1) == 0, "rng_below(1)");

    // Multiplying without rejection would give the multiples of 3 a share of 1/2.
    int draws = 100000, multiples = 0;
    for (int i = 0; i < draws; i++) multiples += rng_below(&r, 3u << 30) % 3 == 0;
    CHECK_NEAR((double)multiples / draws, 1 / 3.0, 5 * sqrt(2 / 9.0 / draws), "multiples of 3");

    int count[7] = {0}, outside = 0;
    for (int i = 0; i < draws; i++) {
        uint32_t k = rng_below(&r, 7);
        outside += k >= 7;
        count[k % 7]++;
    }
    CHECK(outside == 0, "%d draws of rng_below(7) are not below 7", outside);
    for (int i = 0; i < 7; i++)  // binomial, 5 sigma
        CHECK_NEAR(count[i], draws / 7.0, 5 * sqrt(draws * 6 / 49.0), "draws of one of seven");
}

// Moments of n draws, each within 5 standard deviations of its own estimate.
static void test_rng_moments(void) {
    rng r = rng_at(8, STREAM_INIT, 0, 0);
    int n = 200000, outside = 0;
    double u1 = 0, u2 = 0, z[5] = {0};
    for (int i = 0; i < n; i++) {
        double u = rng_uniform(&r), x = rng_normal(&r);
        outside += !(u >= 0 && u < 1) || !isfinite(x);
        u1 += u / n, u2 += u * u / n;
        for (int k = 1; k <= 4; k++) z[k] += num_powi(x, (uint64_t)k) / n;
    }
    CHECK(outside == 0, "%d draws out of range", outside);
    CHECK_NEAR(u1, 1 / 2.0, 5 * sqrt(1 / 12.0 / n), "mean of rng_uniform");
    CHECK_NEAR(u2, 1 / 3.0, 5 * sqrt(4 / 45.0 / n), "second moment of rng_uniform");
    CHECK_NEAR(z[1], 0, 5 * sqrt(1.0 / n), "mean of rng_normal");
    CHECK_NEAR(z[2], 1, 5 * sqrt(2.0 / n), "variance of rng_normal");
    CHECK_NEAR(z[3], 0, 5 * sqrt(15.0 / n), "third moment of rng_normal");
    CHECK_NEAR(z[4], 3, 5 * sqrt(96.0 / n), "fourth moment of rng_normal");
}

// ---------------------------------------------------------------------------------------------
// Elementary functions

// The unit in the last place of x in a binary format of `digits` bits whose least spacing is
// 2^least.
static double unit(double x, int digits, int least) {
    int exponent = -9999;
    if (x != 0) frexp(x, &exponent);
    exponent -= digits;
    return ldexp(1, exponent < least ? least : exponent);
}

// The largest error over the floats of bits first, first + step, ... up to last; libm's double
// functions are 2^29 times finer than the results and serve as exact.
static double worst_error(sweep_op op, double exact(double), uint32_t first, uint32_t last,
                          uint32_t step) {
    float x[1024], y[1024];
    double worst = 0;
    for (uint64_t bits = first; bits <= last;) {
        int n = 0;
        for (; n < 1024 && bits <= last; bits += step) x[n++] = float_from_bits((uint32_t)bits);
        best_sweep()(y, x, n, op, &FORMAT_FP32);
        for (int i = 0; i < n; i++) {
            double expected = exact(x[i]), error = fabs(y[i] - expected) / unit(expected, 24, -149);
            worst = fmax(worst, error == error ? error : INFINITY);
        }
    }
    return worst;
}

// The bounds are the maxima over all floats, measured once, rounded up: numerics.h states them.
static void test_float_errors(void) {
    static const struct {
        sweep_op op;
        double (*exact)(double);
        float first, last;  // in order of magnitude, one sign
        double bound;
    } RANGES[] = {{EXP, exp, 0.0f, 0x1.62e42ep6f, 0.892},
                  {EXP, exp, -0.0f, -0x1.5d589ep6f, 0.892},
                  {LOG, log, 0x1p-149f, FLT_MAX, 0.827},
                  {TANH, tanh, 0x1p-149f, FLT_MAX, 1.04},
                  {TANH, tanh, -0x1p-149f, -FLT_MAX, 1.04},
                  {LOG, log, 0.99f, 1.01f, 0.827},
                  {TANH, tanh, 0.5f, 1.0f, 1.04}};
    for (int i = 0; i < 7; i++) {
        uint32_t first = float_bits(RANGES[i].first), last = float_bits(RANGES[i].last);
        uint32_t step = (last - first) / 1000000 | 1;
        uint32_t part[3][3] = {{first, last, step},
                               {first, first + 1000, 1},  // and every float at the ends
                               {last - 1000, last, 1}};
        for (int p = 0; p < 3; p++) {
            double worst =
                worst_error(RANGES[i].op, RANGES[i].exact, part[p][0], part[p][1], part[p][2]);
            CHECK(worst <= RANGES[i].bound, "%s from %a to %a: %g ulp", OP_NAMES[RANGES[i].op],
                  (double)RANGES[i].first, (double)RANGES[i].last, worst);
        }
    }
}

static void test_float_edges(void) {
    CHECK_SAME(num_expf(0.0f), 1.0f, "exp 0");
    CHECK_SAME(num_expf(-0.0f), 1.0f, "exp -0");
    CHECK_SAME(num_expf(nextafterf(0x1.62e42ep6f, INFINITY)), INFINITY, "exp above ln 2^128");
    CHECK_SAME(num_expf(nextafterf(-0x1.5d589ep6f, -INFINITY)), 0.0f, "exp below ln 2^-126");
    CHECK(num_expf(-0x1.5d589ep6f) >= FLT_MIN, "exp at its cut is subnormal");
    CHECK_SAME(num_expf(INFINITY), INFINITY, "exp infinity");
    CHECK_SAME(num_expf(-INFINITY), 0.0f, "exp -infinity");
    CHECK_SAME(num_expf(FLT_MAX), INFINITY, "exp FLT_MAX");
    CHECK_SAME(num_expf(-FLT_MAX), 0.0f, "exp -FLT_MAX");
    CHECK(isnan(num_expf(NAN)), "exp NaN");

    CHECK_SAME(num_logf(1.0f), 0.0f, "log 1");
    CHECK_SAME(num_logf(0.0f), -INFINITY, "log 0");
    CHECK_SAME(num_logf(-0.0f), -INFINITY, "log -0");
    CHECK_SAME(num_logf(INFINITY), INFINITY, "log infinity");
    CHECK(isnan(num_logf(-1.0f)) && isnan(num_logf(-INFINITY)) && isnan(num_logf(-0x1p-149f)),
          "log below 0");
    CHECK(isnan(num_logf(NAN)), "log NaN");

    CHECK_SAME(num_tanhf(0.0f), 0.0f, "tanh 0");
    CHECK_SAME(num_tanhf(-0.0f), -0.0f, "tanh -0");
    CHECK_SAME(num_tanhf(20.0f), 1.0f, "tanh 20");
    CHECK_SAME(num_tanhf(-INFINITY), -1.0f, "tanh -infinity");
    CHECK_SAME(num_tanhf(FLT_MAX), 1.0f, "tanh FLT_MAX");
    CHECK(isnan(num_tanhf(NAN)), "tanh NaN");
}

// The bounds are what numerics.h states.
static const struct {
    const char* name;
    double (*f)(double);
    double bound;  // ulp
} DOUBLES[] = {{"exp", num_exp, 0.9},
               {"expm1", num_expm1, 1.6},
               {"log", num_log, 0.9},
               {"sinpi", num_sinpi, 1.9},
               {"cospi", num_cospi, 1.9}};

#if LDBL_MANT_DIG >= 64
static long double exact_sinpi(long double x) {
    return sinl(3.14159265358979323846264338327950288L * x);
}
static long double exact_cospi(long double x) {
    return cosl(3.14159265358979323846264338327950288L * x);
}

// Against long double, whose error is 2^-11 of a double's unit at most.
static void test_double_errors(void) {
    static const struct {
        int function;
        long double (*exact)(long double);
        double first, last;
    } RANGES[] = {{0, expl, -708, 709.7},    {0, expl, -2, 2},
                  {1, expm1l, -2, 2},        {1, expm1l, 0.34, 0.45},
                  {2, logl, 1e-300, 10},     {2, logl, 0.5, 2},
                  {3, exact_sinpi, 0, 0.25}, {4, exact_cospi, -0.25, 0.25}};
    rng r = rng_at(10, STREAM_INIT, 0, 0);
    for (int i = 0; i < 8; i++) {
        int k = RANGES[i].function;
        double worst = 0, at = 0;
        for (int n = 0; n < 50000; n++) {
            double x = RANGES[i].first + (RANGES[i].last - RANGES[i].first) * rng_uniform(&r);
            long double exact = RANGES[i].exact(x);
            long double error = fabsl(DOUBLES[k].f(x) - exact) / unit((double)exact, 53, -1074);
            if (error != error) error = INFINITY;
            if (error > worst) worst = (double)error, at = x;
        }
        CHECK(worst <= DOUBLES[k].bound, "%s: %g ulp at %a", DOUBLES[k].name, worst, at);
    }
}
#else  // nothing finer than double to compare with
static void test_double_errors(void) {}
#endif

// mpmath's values, in two doubles.
static void test_double_fixture(void) {
    const char* path = "tests/fixtures/numerics_functions.txt";
    FILE* file = file_open(path, "r");
    char name[16];
    double x, high, rest;
    int lines = 0;
    for (; fscanf(file, "%15s %lf %lf %lf", name, &x, &high, &rest) == 4; lines++) {
        int k = 0;
        while (k < 5 && strcmp(DOUBLES[k].name, name)) k++;
        CHECK(k < 5, "no function %s", name);
        if (k == 5) break;
        double y = DOUBLES[k].f(x), error = fabs((y - high) - rest) / unit(high, 53, -1074);
        CHECK(error <= DOUBLES[k].bound, "%s of %a is %a, not %a: %g ulp", name, x, y, high, error);
    }
    CHECK(lines == 355, "%d lines in %s", lines, path);
    file_close(file, path);
}

static void test_double_edges(void) {
    CHECK(num_exp(0) == 1 && num_exp(INFINITY) == INFINITY && num_exp(-INFINITY) == 0 &&
              num_exp(709.79) == INFINITY && num_exp(-746) == 0 && isnan(num_exp(NAN)),
          "num_exp at an edge");
    // e^-745 is 0.57 of the least number, which it becomes; e^-745.2 is 0.47 of it.
    CHECK(num_exp(-745) == 0x1p-1074 && num_exp(-745.2) == 0, "num_exp of the least numbers");
    CHECK(num_expm1(0) == 0 && num_expm1(INFINITY) == INFINITY && num_expm1(-INFINITY) == -1 &&
              num_expm1(1e-300) == 1e-300 && isnan(num_expm1(NAN)),
          "num_expm1 at an edge");
    CHECK(num_log(1) == 0 && num_log(0) == -INFINITY && num_log(INFINITY) == INFINITY &&
              isnan(num_log(-1)) && isnan(num_log(NAN)) && isnan(num_log(-INFINITY)),
          "num_log at an edge");
    static const int SINE[] = {0, 1, 0, -1};  // at 0, 1/2, 1, 3/2
    for (int i = -40; i <= 40; i++) {
        int quarter = ((i % 4) + 4) % 4;
        CHECK(num_sinpi(i / 2.0) == SINE[quarter], "sinpi %g is %g", i / 2.0, num_sinpi(i / 2.0));
        CHECK(num_cospi(i / 2.0) == SINE[(quarter + 1) % 4], "cospi %g", i / 2.0);
    }
    CHECK(num_cospi(DBL_MAX) == 1 && num_sinpi(-DBL_MAX) == 0, "a huge even number");
    CHECK(num_cospi(0x1p52 + 1) == -1, "cospi of an odd number");
    CHECK(isnan(num_sinpi(INFINITY)) && isnan(num_cospi(-INFINITY)) && isnan(num_sinpi(NAN)),
          "sinpi and cospi of what has no fraction");
}

// x^n has n - 1 roundings of 2^-53, and the product in a row as many, of that or finer.
static void test_powi(void) {
    CHECK(num_powi(0, 0) == 1 && num_powi(NAN, 0) == 1, "x^0");
    CHECK(num_powi(3, 20) == 3486784401.0 && num_powi(-2, 3) == -8 && num_powi(7, 1) == 7,
          "exact powers");
    CHECK(num_powi(2, 1023) == 0x1p1023 && num_powi(2, 1024) == INFINITY, "powers of 2");
    CHECK(num_powi(0.5, 1074) == 0x1p-1074 && num_powi(0.9, UINT64_MAX) == 0, "small powers");
    for (int n = 1; n < 3000; n += 7) {
        long double product = 1;
        for (int i = 0; i < n; i++) product *= 0.999;
        CHECK_NEAR((double)(num_powi(0.999, (uint64_t)n) / product), 1, 2 * n * 0x1p-53, "0.999^n");
    }
}

// Values of a scaled format do not change when they become operands: the scale of any of them is at
// most 1.
static void test_scaled_again(void) {
    static const char* const names[] = {"fp8_e4m3", "fp8_e5m2", "e2m2", "e6m1", "e2m5"};
    for (int i = 0; i < 5; i++) {
        const format* f = format_find(names[i]);
        float number[256];
        int count = 0, changed = 0;
        for (float x = 0; x <= f->max; count++) {
            number[count] = x;
            x += ldexpf(1, ilogbf(fmaxf(x, f->min_normal)) - f->mantissa_bits);
        }
        for (int a = 1; a < count; a++)
            for (int v = 0; v <= a; v++) {
                float scale = format_scale(number[a], f);
                CHECK(scale <= 1, "%s: the scale of %g is %g", f->name, (double)number[a],
                      (double)scale);
                changed += format_round(number[v] / scale, f) * scale != number[v];
            }
        CHECK(f->scaled && number[count - 1] == f->max && changed == 0,
              "%s: %d of %d values change", f->name, changed, count);
    }
}

int main(void) {
    test_arithmetic();
    test_format_find();
    test_round_fp32();
    for (int i = 0; FORMATS[i]; i++) {
        if (FORMATS[i] != &FORMAT_FP32) {
            test_round(FORMATS[i]);
            test_stochastic(FORMATS[i]);
            test_stochastic_neighbours(FORMATS[i]);
        }
        test_round_nan(FORMATS[i]);
    }
    test_round_fixture();
    test_scaled_fixture();
    test_scale();
    test_scaled_again();
    test_formats_by_bits();
    test_philox();
    test_rng();
    test_rng_moments();
    test_float_errors();
    test_float_edges();
    test_double_errors();
    test_double_fixture();
    test_double_edges();
    test_powi();
    test_same_bits();
    test_same_bits_double();
    return test_report();
}
