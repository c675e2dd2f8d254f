// correction: hand-computed weights of every kind, bounds, exactness where the policies are equal,
// edge values, refusals. dev/hf/test_verl.py compares with verl.
#include "base/numerics.h"
#include "refusal.h"
#include "rl/correction.h"

#define WORDS (const char* [REFUSAL_WORDS])

enum { TOKENS = 6, SEQUENCES = 4 };

// log rho of three sequences, of 3, 0, 2 and 1 tokens: rho = 3, 1/4, 1; 1.5, 1.2; 0.
static const size_t START[SEQUENCES + 1] = {0, 3, 3, 5, 6};
static const double RHO[TOKENS] = {3, 0.25, 1, 1.5, 1.2, 1e-30};
static float log_old[TOKENS], log_mu[TOKENS], weight[TOKENS];

static void set_ratios(void) {
    for (int t = 0; t < TOKENS; t++) {
        log_mu[t] = -1.5f;
        log_old[t] = (float)(log_mu[t] + num_log(RHO[t]));
    }
}

// exp(-20), what a ratio is at least.
#define LEAST 2.0611536224385579e-9

static void test_weights(void) {
    static const struct {
        correction c;
        double weight[TOKENS];
        double zeroed, truncated;  // tokens
    } rows[] = {
        {{CORRECT_TIS, 0, 2}, {2, 0.25, 1, 1.5, 1.2, LEAST}, 0, 1},
        {{CORRECT_TIS, 0.5, 1.25}, {1.25, 0.5, 1, 1.25, 1.2, 0.5}, 0, 4},
        {{CORRECT_TIS, 0, INFINITY}, {3, 0.25, 1, 1.5, 1.2, LEAST}, 0, 0},
        {{CORRECT_MIS, 0.5, 2}, {0, 0, 1, 1.5, 1.2, 0}, 3, 0},
        {{CORRECT_ICEPOP, 0.2, 5}, {3, 0.25, 1, 1.5, 1.2, 0}, 1, 0},
        {{CORRECT_SEQ_TIS, 0, 1.7}, {0.75, 0.75, 0.75, 1.7, 1.7, LEAST}, 0, 2},
        {{CORRECT_SEQ_TIS, 0.8, 3}, {0.8, 0.8, 0.8, 1.8, 1.8, 0.8}, 0, 4},
        {{CORRECT_SEQ_MIS, 0, 1.7}, {0.75, 0.75, 0.75, 0, 0, LEAST}, 2, 0},
        {{CORRECT_SEQ_MIS, 0.8, 2}, {0, 0, 0, 1.8, 1.8, 0}, 4, 0},
        // The geometric means are 0.909, 1.342 and 2e-9.
        {{CORRECT_GEO_MIS, 0.9, 1.3}, {1, 1, 1, 0, 0, 0}, 3, 0},
        {{CORRECT_GEO_MIS, 0.95, 1.35}, {0, 0, 0, 1, 1, 0}, 4, 0},
    };
    set_ratios();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char* name = CORRECTION_NAMES[rows[i].c.kind];
        correction_report r =
            correction_weights(&rows[i].c, log_old, log_mu, START, SEQUENCES, weight);
        double mean = 0;
        for (int t = 0; t < TOKENS; t++) {
            // log rho was rounded to 24 bits of a number below 71, and below 3 but for the last.
            double size = rows[i].weight[t], rounding = t == 5 ? 0 : size * 8 * 0x1p-24;
            CHECK(fabs(weight[t] - size) <= rounding + size * 0x1p-24,
                  "%s, row %d: token %d weighs %.9g, expected %.9g", name, (int)i, t, weight[t],
                  size);
            mean += size / TOKENS;
        }
        CHECK_NEAR(r.weight_mean, mean, 1e-6, name);
        CHECK_NEAR(r.zeroed, rows[i].zeroed / TOKENS, 1e-15, name);
        CHECK_NEAR(r.truncated, rows[i].truncated / TOKENS, 1e-15, name);
    }
}

// Ten tokens of log rho = 0.1: rho of the sequence is e, above 2; neither the mean of ten
// rho, 1.105, nor their sum, 11.05.
static void test_ten_tokens(void) {
    enum { TEN = 10 };
    static const size_t start[] = {0, TEN};
    static const struct {
        correction c;
        double weight;
    } rows[] = {{{CORRECT_SEQ_TIS, 0, 2}, 2},     {{CORRECT_SEQ_TIS, 0, 3}, 2.718281828459045},
                {{CORRECT_SEQ_MIS, 0, 2}, 0},     {{CORRECT_GEO_MIS, 0.9, 1.2}, 1},
                {{CORRECT_GEO_MIS, 0.9, 1.1}, 0}, {{CORRECT_TIS, 0, 2}, 1.1051709180756477}};
    float old[TEN], mu[TEN], w[TEN];
    for (int t = 0; t < TEN; t++) mu[t] = -1, old[t] = -0.9f;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        correction_weights(&rows[i].c, old, mu, start, 1, w);
        // -0.9 was rounded to 24 bits, ten times.
        for (int t = 0; t < TEN; t++) CHECK_NEAR(w[t], rows[i].weight, 3e-6, "ten tokens");
    }
}

// (sum)^2 / (n sum of squares) of what is bounded, before the bounds.
static void test_ess(void) {
    static const struct {
        correction_kind kind;
        double ratio[TOKENS];
    } rows[] = {
        {CORRECT_TIS, {3, 0.25, 1, 1.5, 1.2, 0}},
        {CORRECT_SEQ_MIS, {0.75, 0.75, 0.75, 1.8, 1.8, 0}},
        {CORRECT_GEO_MIS,
         {0.90856029641606980, 0.90856029641606980, 0.90856029641606980, 1.3416407864998738,
          1.3416407864998738, 0}},
    };
    set_ratios();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        correction c = correction_defaults(rows[i].kind);
        correction_report r = correction_weights(&c, log_old, log_mu, START, SEQUENCES, weight);
        double sum = 0, squares = 0;
        for (int t = 0; t < TOKENS; t++) {
            sum += rows[i].ratio[t];
            squares += rows[i].ratio[t] * rows[i].ratio[t];
        }
        CHECK_NEAR(r.ess, sum * sum / (TOKENS * squares), 1e-6, CORRECTION_NAMES[rows[i].kind]);
    }
}

// Equal policies, two infinities included, weigh exactly 1, whatever the bounds.
static void test_equal(void) {
    static float same[TOKENS] = {-0.1f, -1e-20f, -INFINITY, 0, -88.3f, -7};
    for (int kind = CORRECT_TIS; CORRECTION_NAMES[kind]; kind++)
        for (int narrow = 0; narrow < 2; narrow++) {
            correction c = correction_defaults((correction_kind)kind);
            if (narrow) c.low = c.high = 1;
            correction_check(&c);
            correction_report r = correction_weights(&c, same, same, START, SEQUENCES, weight);
            for (int t = 0; t < TOKENS; t++)
                CHECK(weight[t] == 1, "%s: token %d weighs %.9g", CORRECTION_NAMES[kind], t,
                      weight[t]);
            CHECK(r.weight_mean == 1 && r.ess == 1 && r.zeroed == 0 && r.truncated == 0,
                  "%s: the report of equal policies", CORRECTION_NAMES[kind]);
        }
}

static void test_edges(void) {
    for (int kind = CORRECT_TIS; CORRECTION_NAMES[kind]; kind++) {
        const char* name = CORRECTION_NAMES[kind];
        correction c = correction_defaults((correction_kind)kind);
        size_t start[] = {0, 2};
        float old[] = {NAN, -1}, mu[] = {-1, -1}, never[] = {-INFINITY, -1};
        correction_weights(&c, old, mu, start, 1, weight);
        CHECK(isnan(weight[0]), "%s hides a NaN", name);
        correction_report r = correction_weights(&c, never, mu, start, 1, weight);
        CHECK(weight[0] >= 0 && weight[0] <= (float)LEAST, "%s: rho of 0 weighs %g", name,
              weight[0]);
        CHECK(r.weight_mean <= 1, "%s: a mean of %g", name, r.weight_mean);
        correction_weights(&c, mu, never, start, 1, weight);
        CHECK(isfinite(weight[0]), "%s: an infinite rho weighs %g", name, weight[0]);
        r = correction_weights(&c, mu, mu, (size_t[]){0, 0}, 1, weight);
        CHECK(isnan(r.weight_mean) && isnan(r.ess), "%s: a mean of nothing", name);
    }
}

static void check_child(const void* c) { correction_check(c); }

static void test_refusals(void) {
    static const struct {
        double low, high;
        const char* word;
    } rows[] = {{-0.1, 2, "--correct-low is -0.1"},
                {1.1, 2, "--correct-low is 1.1"},
                {NAN, 2, "--correct-low is"},
                {0, 0.9, "--correct-high is 0.9"},
                {0, NAN, "--correct-high is"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        correction c = {CORRECT_TIS, rows[i].low, rows[i].high};
        check_refusal(check_child, &c, rows[i].word, WORDS{rows[i].word, "must be"});
    }
}

int main(void) {
    test_weights();
    test_ten_tokens();
    test_ess();
    test_equal();
    test_edges();
    test_refusals();
    return test_report();
}
