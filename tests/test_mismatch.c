// Mismatch metrics: hand-computed values, an independent computation in long double on random data,
// exactness at equality, accuracy near it, edge values.
#include <float.h>

#include "base/numerics.h"
#include "rl/mismatch.h"
#include "test.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

// A copy of MISMATCH_NAMES: logs are searched for these names, so that a test must notice when one
// is changed or moved.
static const char* const NAMES[MISMATCH_METRICS] = {"logp_diff_max",
                                                    "logp_diff_mean",
                                                    "prob_diff_max",
                                                    "prob_diff_min",
                                                    "prob_diff_mean",
                                                    "kl",
                                                    "kl_k3",
                                                    "ratio_mean",
                                                    "ratio_min",
                                                    "ratio_max",
                                                    "ess",
                                                    "chi2",
                                                    "seq_logratio_max",
                                                    "ppl_ratio",
                                                    "token_mult_prob_error",
                                                    "outside",
                                                    "entropy"};

// Six tokens, one 24 nats off, in sequences of 3, 0, 2 and 1. Expected: the table of mismatch.c in
// 40 digits; the differences pi - mu are .0713, -.0814, .00097, -.0323, -.368 and 0.
static void check_by_hand(void) {
    static const float log_pi[] = {-.5f, -1.25f, -.001953125f, -3, -25, -.75f};
    static const float log_mu[] = {-.625f, -1, -.0029296875f, -2.5f, -1, -.75f};
    static const float entropy[] = {.5f, 1.5f, .25f, 2, .125f, 3};
    static const size_t start[] = {0, 3, 3, 5, 6};
    static const double expected[MISMATCH_METRICS] = {24,
                                                      4.14599609375,
                                                      .071269231193643181647,
                                                      -.36787944115755437773,
                                                      .09229923802990335271,
                                                      4.10400390625,
                                                      3.8572467288135054149,
                                                      .75324282290073912773,
                                                      2.061153622438557828e-9,
                                                      1.1331484530668263168,
                                                      .79904611106127316498,
                                                      -.28993490813952999311,
                                                      24.5,
                                                      69661.110359100881422,
                                                      4414853689.318390745681,
                                                      1 / 3.,
                                                      1.2291666666666666667};
    double value[MISMATCH_METRICS];
    mismatch m = mismatch_measure(log_pi, log_mu, entropy, start, 4, .08);
    mismatch_values(&m, value);
    for (int i = 0; i < MISMATCH_METRICS; i++) {
        CHECK(!strcmp(MISMATCH_NAMES[i], NAMES[i]), "%s is %s", NAMES[i], MISMATCH_NAMES[i]);
        // Six terms, each an exp of an ulp or two; absolute for the probabilities.
        CHECK_NEAR(value[i], expected[i], 8 * DBL_EPSILON * fmax(1, fabs(expected[i])), NAMES[i]);
    }
    CHECK(m.kl_k3 == value[6] && m.ess == value[10] && m.ppl_ratio == value[13], "order of values");
}

// ------------------------------------------------------------------------------------------------
// Random data against long double

enum { MAX_TOKENS = 4096 };
static float pi_data[MAX_TOKENS], mu_data[MAX_TOKENS], entropy_data[MAX_TOKENS];

// One of them is longer than what is computed at a time.
static int random_starts(rng* r, size_t* start, int sequences) {
    start[0] = 0;
    for (int s = 0; s < sequences; s++)
        start[s + 1] = start[s] + rng_below(r, 60) + (s == 1 ? 500 : 0);
    return (int)start[sequences];
}

// Every fifth token is equal for both.
static void random_tokens(rng* r, int tokens, double noise) {
    for (int t = 0; t < tokens; t++) {
        double mu = -8 * rng_uniform(r) * rng_uniform(r);
        double pi = t % 5 ? mu + noise * rng_normal(r) : mu;
        mu_data[t] = (float)mu;
        pi_data[t] = (float)(pi < 0 ? pi : 0);
        entropy_data[t] = (float)(3 * rng_uniform(r));
    }
}

// Every metric as its formula reads, one pass each. `out` in the order of NAMES.
static void reference(const size_t* start, int sequences, int n, double delta, long double* out) {
    long double sum[MISMATCH_METRICS] = {0}, r_sum = 0, r2 = 0, max[4] = {-1e9, -1e9, -1e9, -1e9};
    long double min[2] = {1e9, 1e9};
    for (int t = 0; t < n; t++) {
        long double x = (long double)pi_data[t] - mu_data[t], r = expl(x);
        long double gap = expl(pi_data[t]) - expl(mu_data[t]);
        sum[1] += fabsl(x), sum[4] += fabsl(gap), sum[5] -= x, sum[6] += expm1l(x) - x;
        sum[11] += expm1l(2 * x), sum[14] += expl(fabsl(x)), sum[15] += fabsl(gap) > delta;
        sum[16] += entropy_data[t];
        max[0] = fmaxl(max[0], fabsl(x)), max[1] = fmaxl(max[1], gap), max[2] = fmaxl(max[2], r);
        min[0] = fminl(min[0], gap), min[1] = fminl(min[1], r);
        r_sum += r;
    }
    for (int t = 0; t < n; t++)
        r2 += powl(expl((long double)pi_data[t] - mu_data[t]) / (r_sum / n), 2);
    int used = 0;
    long double ppl = 0;
    for (int s = 0; s < sequences; s++) {
        long double x = 0, length = (long double)(start[s + 1] - start[s]);
        for (size_t t = start[s]; t < start[s + 1]; t++) x += (long double)pi_data[t] - mu_data[t];
        max[3] = fmaxl(max[3], fabsl(x));
        if (length > 0) ppl += expl(-x / length), used++;
    }
    for (int i = 0; i < MISMATCH_METRICS; i++) out[i] = sum[i] / n;
    out[0] = max[0], out[2] = max[1], out[3] = min[0], out[7] = r_sum / n, out[8] = min[1];
    out[9] = max[2], out[10] = 1 / (r2 / n), out[12] = max[3], out[13] = ppl / used;
}

static void check_random(void) {
    static const double noises[] = {1e-6, 1e-3, .1, 1};
    for (int trial = 0; trial < 20; trial++) {
        rng r = rng_at(5, STREAM_PROMPT, (uint32_t)trial, 0);
        size_t start[49];
        int n = random_starts(&r, start, 48);
        random_tokens(&r, n, noises[trial % 4]);
        long double expected[MISMATCH_METRICS];
        double value[MISMATCH_METRICS];
        mismatch m = mismatch_measure(pi_data, mu_data, entropy_data, start, 48, .01);
        mismatch_values(&m, value);
        reference(start, 48, n, .01, expected);
        double size = (double)expected[0];  // of the differences
        for (int i = 0; i < MISMATCH_METRICS; i++) {
            // n roundings of partial sums at most n times too large; absolute where terms of
            // either sign cancel, of the size of a log-ratio or, for pi - mu, of 1.
            double scale = i == 5 || i == 11 ? size : i <= 4 ? 1 : fabs((double)expected[i]);
            double tolerance = n * DBL_EPSILON * scale;
            if (i == 6) tolerance += size * 0x1p-62;  // long double's own cancellation
            CHECK_NEAR(value[i], (double)expected[i], tolerance, NAMES[i]);
        }
        CHECK(n > 1000 && m.ess > 0 && m.ess <= 1, "%d tokens, ess %g", n, m.ess);
    }
}

// ------------------------------------------------------------------------------------------------
// Exactness

static void check_equality(void) {
    static const double expected[MISMATCH_METRICS] = {0, 0, 0, 0, 0, 0, 0, 1,
                                                      1, 1, 1, 0, 0, 1, 1, 0};
    static const float edges[] = {0, -1e-20f, -103.97f, -INFINITY};
    for (int trial = 0; trial < 30; trial++) {
        rng r = rng_at(6, STREAM_PROMPT, (uint32_t)trial, 0);
        size_t start[49];
        int n = random_starts(&r, start, 48);
        random_tokens(&r, n, 0);
        for (int i = 0; i < COUNT(edges); i++) mu_data[i * 7] = edges[i];
        memcpy(pi_data, mu_data, sizeof pi_data);
        double value[MISMATCH_METRICS];
        mismatch m = mismatch_measure(pi_data, mu_data, entropy_data, start, 48, DBL_MIN);
        mismatch_values(&m, value);
        for (int i = 0; i < MISMATCH_METRICS - 1; i++)
            CHECK(value[i] == expected[i] && !signbit(value[i]), "%s is %.17g with %d tokens",
                  NAMES[i], value[i], n);
    }
}

// One token, from equal to far. Expected in 20 digits: e^x - x - 1 and e^2x - 1.
static void check_accuracy(void) {
    static const struct {
        double x, k3, chi2;
    } cases[] = {{0x1p-100, 3.1115076389305708536e-61, 1.5777218104420236108e-30},
                 {0x1p-30, 4.3368086912883403479e-19, 1.8626451509656805083e-9},
                 {0x1p-23, 7.1054276399453260247e-15, 2.3841860752327418916e-7},
                 {-0x1p-23, 7.1054270752566945218e-15, -2.3841855067985532835e-7},
                 {0x1p-10, 4.7699241653524284529e-7, .0019550335910028120465},
                 {.4375, .111330298634133098, 1.3988752939670979147},
                 {-.4375, .083148526427892037348, -.58313798032149159741},
                 {.49609375, 0.14619976561890994115, 1.6971279914439187908},
                 {-.49609375, 0.10499830359506361965, -0.62923524461119629598},
                 {.5, .14872127070012814685, 1.7182818284590452354},
                 {-.5, .1065306597126334236, -.6321205588285576784},
                 {2, 4.3890560989306502272, 53.598150033144239078},
                 {-2, 1.1353352832366126919, -.98168436111126581971},
                 {-30, 29.000000000000093576, -1}};
    for (int i = 0; i < COUNT(cases); i++) {
        double x = cases[i].x;
        // The larger of the two logs is chosen so that both are floats.
        double high = fabs(x) < 1e-6 ? -fabs(x) : -.03125, low = high - fabs(x);
        float log_pi = (float)(x > 0 ? high : low), log_mu = (float)(x > 0 ? low : high);
        CHECK((double)log_pi - log_mu == x, "the case %g", x);
        const size_t one[] = {0, 1};
        float entropy = 0;
        mismatch m = mismatch_measure(&log_pi, &log_mu, &entropy, one, 1, .1);
        // Relative: a few ulp, and where e^x - 1 - x cancels (0.5 <= |x|), up to 6 times that.
        CHECK_NEAR(m.kl_k3, cases[i].k3, 12 * DBL_EPSILON * cases[i].k3, "kl_k3");
        CHECK_NEAR(m.chi2, cases[i].chi2, 4 * DBL_EPSILON * fabs(cases[i].chi2), "chi2");
        CHECK(m.kl == -x && m.logp_diff_max == fabs(x) && m.seq_logratio_max == fabs(x), "%g", x);
    }
}

// ------------------------------------------------------------------------------------------------
// Edges

static void check_nothing(void) {
    static const size_t none[4] = {0};
    for (int sequences = 0; sequences <= 3; sequences += 3) {
        double value[MISMATCH_METRICS];
        mismatch m = mismatch_measure(NULL, NULL, NULL, none, sequences, .1);
        mismatch_values(&m, value);
        for (int i = 0; i < MISMATCH_METRICS; i++) CHECK(isnan(value[i]), "%s", NAMES[i]);
    }
}

static void check_outside(void) {
    // pi - mu is 1 - 0, exactly.
    static const float log_pi[2] = {0, -1}, log_mu[2] = {-INFINITY, -1}, entropy[2] = {0, 0};
    static const size_t start[] = {0, 2};
    static const struct {
        double delta, expected;
    } cases[] = {{1, 0}, {.9999999, .5}, {INFINITY, 0}, {DBL_MIN, .5}};
    for (int i = 0; i < COUNT(cases); i++) {
        double outside =
            mismatch_measure(log_pi, log_mu, entropy, start, 1, cases[i].delta).outside;
        CHECK(outside == cases[i].expected, "outside %g is %g", cases[i].delta, outside);
        outside = mismatch_measure(log_mu, log_pi, entropy, start, 1, cases[i].delta).outside;
        CHECK(outside == cases[i].expected, "outside %g is %g", cases[i].delta, outside);
    }
}

static void check_infinite(void) {
    static const float log_pi[3] = {-INFINITY, -1, -2}, log_mu[3] = {-1, -1, -2}, entropy[3] = {0};
    static const size_t start[] = {0, 2, 3};
    mismatch m = mismatch_measure(log_pi, log_mu, entropy, start, 2, .1);
    CHECK(isinf(m.logp_diff_max) && isinf(m.kl) && isinf(m.kl_k3) && isinf(m.ppl_ratio) &&
              isinf(m.token_mult_prob_error),
          "differences");
    CHECK_NEAR(m.ratio_min, 2.061153622438557828e-9, 1e-23, "ratio_min");
    CHECK_NEAR(m.ess, 2 / 3., 1e-8, "ess");
    CHECK_NEAR(m.chi2, -1 / 3., 1e-15, "chi2");
    CHECK_NEAR(m.prob_diff_min, -exp(-1), 1e-16, "prob_diff_min");
}

static void check_ess(void) {
    static float log_pi[100], log_mu[100], entropy[100];
    static const size_t start[] = {0, 100};
    for (int i = 0; i < 100; i++) log_pi[i] = -.3f - (float)i / 3, log_mu[i] = log_pi[i] - .7f;
    double ess = mismatch_measure(log_pi, log_mu, entropy, start, 1, 1).ess;
    // r is the same but for the rounding of the logs to fp32 (2^-20 near 33).
    CHECK(ess <= 1 && ess > 1 - 1e-10, "%.17g", ess);
    // Equal ratios: the rounding of sums lifts some of these above 1, and that is cut.
    for (int n = 2; n <= 100; n++)
        for (int k = 1; k <= 20; k++) {
            for (int i = 0; i < n; i++) log_mu[i] = -3, log_pi[i] = -3 + (float)k / 8;
            ess =
                mismatch_measure(log_pi, log_mu, entropy, (const size_t[]){0, (size_t)n}, 1, 1).ess;
            CHECK(ess <= 1 && ess > 1 - n * DBL_EPSILON, "%d equal ratios: %.17g", n, ess);
        }
    // One token carries everything: 1 / n. The largest ratios do not overflow.
    for (int i = 0; i < 100; i++) log_pi[i] = -50, log_mu[i] = -1;
    log_pi[3] = -1, log_mu[3] = -100;
    mismatch m = mismatch_measure(log_pi, log_mu, entropy, start, 1, 1);
    CHECK_NEAR(m.ess, .01, 1e-15, "ess");
    CHECK_NEAR(m.ratio_max, 485165195.40979027797, 1e-7, "ratio_max");
}

static void check_nan(void) {
    static const size_t start[] = {0, 2, 4};
    for (int at = 0; at < 4; at++) {
        float log_pi[4] = {-1, -2, -1, -2}, log_mu[4] = {-1.5f, -1, -1, -3}, entropy[4] = {0};
        log_pi[at] = NAN;
        double value[MISMATCH_METRICS];
        mismatch m = mismatch_measure(log_pi, log_mu, entropy, start, 2, .5);
        mismatch_values(&m, value);
        for (int i = 0; i < MISMATCH_METRICS - 2; i++)
            CHECK(isnan(value[i]), "%s hides a NaN at %d: %g", NAMES[i], at, value[i]);
        CHECK(m.outside == .25 && m.entropy == 0, "outside %g, entropy %g", m.outside, m.entropy);
    }
}

// Where sequences begin shows in the sequence metrics alone; empty ones show nowhere.
static void check_cuts(void) {
    rng r = rng_at(7, STREAM_PROMPT, 0, 0);
    random_tokens(&r, 60, .3);
    static const size_t one[] = {0, 60}, many[] = {0, 10, 10, 35, 59, 59, 60};
    static const size_t fewer[] = {0, 10, 35, 59, 60};
    double a[MISMATCH_METRICS], b[MISMATCH_METRICS], c[MISMATCH_METRICS];
    mismatch m = mismatch_measure(pi_data, mu_data, entropy_data, one, 1, .1);
    mismatch_values(&m, a);
    m = mismatch_measure(pi_data, mu_data, entropy_data, many, 6, .1);
    mismatch_values(&m, b);
    m = mismatch_measure(pi_data, mu_data, entropy_data, fewer, 4, .1);
    mismatch_values(&m, c);
    for (int i = 0; i < MISMATCH_METRICS; i++) {
        int of_sequences = i == 12 || i == 13;
        CHECK((a[i] == b[i]) == !of_sequences, "%s: %.17g, %.17g", NAMES[i], a[i], b[i]);
        CHECK(b[i] == c[i], "%s with empty sequences: %.17g, %.17g", NAMES[i], b[i], c[i]);
    }
}

int main(void) {
    check_by_hand();
    check_random();
    check_equality();
    check_accuracy();
    check_nothing();
    check_outside();
    check_infinite();
    check_ess();
    check_nan();
    check_cuts();
    return test_report();
}
