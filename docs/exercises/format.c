// The test of the exercise that adds a format with block scales: mxint8. The expected value of each
// element is found by search: the nearest n / 64 times the scale, ties to the even n.
#include "../../tests/test.h"
#include "base/blocks.h"

enum { COLS = 40 };  // a whole block, and one of 8

static double expected(double x, double scale) {
    int best = 0;
    for (int n = -127; n <= 127; n++) {
        double far = fabs(n * scale / 64 - x), least = fabs(best * scale / 64 - x);
        if (far < least || (far == least && n % 2 == 0)) best = n;
    }
    return best * scale / 64;
}

static double scale_of(const float* x, int n) {
    double amax = 0;
    for (int i = 0; i < n; i++) amax = fmax(amax, fabs((double)x[i]));
    return amax > 0 ? exp2(floor(log2(amax))) : 0x1p-127;
}

static void check(const float x[COLS], const block_format* f, const char* what) {
    float y[COLS];
    blocks_round(y, x, 1, COLS, f, 0);
    for (int i = 0; i < COLS; i++) {
        double scale = i < 32 ? scale_of(x, 32) : scale_of(x + 32, COLS - 32);
        CHECK(y[i] == expected(x[i], scale), "%s: element %d, %.9g, becomes %.9g, not %.9g", what,
              i, x[i], y[i], expected(x[i], scale));
    }
}

int main(void) {
    const block_format* f = block_format_find("mxint8");
    CHECK(f, "there is no format mxint8");
    if (!f) return test_report();
    float x[COLS] = {0};
    check(x, f, "zeros");
    for (int i = 0; i < COLS; i++) x[i] = (float)(i - 20) / 128;  // half of them are ties
    x[0] = x[32] = 1;
    check(x, f, "ties");
    x[0] = x[32] = -1.999f;  // above 127 / 64: it saturates
    check(x, f, "the largest");
    rng r = rng_at(7, STREAM_PROMPT, 0, 0);
    for (int k = 0; k < 200; k++) {
        float size = ldexpf(1, k - 100);
        for (int i = 0; i < COLS; i++) x[i] = size * (float)rng_normal(&r);
        check(x, f, "random numbers");
    }
    int named = 0;
    for (int i = 0; BLOCK_NAMES[i]; i++) named += !strcmp(BLOCK_NAMES[i], "mxint8");
    CHECK(named == 1, "--rollout-block does not know mxint8");
    return test_report();
}
