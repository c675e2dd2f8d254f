// Formats, stochastic rounding, random sequences and the double-precision functions.
#include "numerics.h"

#include <math.h>  // exact operations alone: fma, sqrt, rint, ldexp, INFINITY

#define FP32_LIKE 0.0f, 0.0f  // fp32's exponent range: the integer rounding serves subnormals too

const format FORMAT_FP32 = {"fp32", 8, 23, 0x1.fffffep127f, INFINITY, 0, FP32_LIKE, 0};
const format FORMAT_TF32 = {"tf32", 8, 10, 0x1.ffcp127f, INFINITY, 13, FP32_LIKE, 0};
const format FORMAT_BF16 = {"bf16", 8, 7, 0x1.fep127f, INFINITY, 16, FP32_LIKE, 0};
const format FORMAT_FP16 = {"fp16", 5, 10, 65504.0f, INFINITY, 13, 0x1p-14f, 0x1.8p-1f, 0};
const format FORMAT_E4M3 = {"fp8_e4m3", 4, 3, 448.0f, 448.0f, 20, 0x1p-6f, 0x1.8p14f, 1};
const format FORMAT_E5M2 = {"fp8_e5m2", 5, 2, 57344.0f, 57344.0f, 21, 0x1p-14f, 0x1.8p7f, 1};
const format* const FORMATS[] = {&FORMAT_FP32, &FORMAT_TF32, &FORMAT_BF16, &FORMAT_FP16,
                                 &FORMAT_E4M3, &FORMAT_E5M2, NULL};

const format* format_find(const char* name) {
    for (const format* const* f = FORMATS; *f; f++)
        if (!strcmp((*f)->name, name)) return *f;
    return NULL;
}

float format_round_stochastic(float x, const format* f, uint32_t random) {
    float a = fabsf(x);
    if (!(a < INFINITY) || f->drop == 0) return format_round(x, f);
    int exponent;
    frexpf(a, &exponent);
    int smallest = f->min_normal > 0 ? ilogbf(f->min_normal) : -126;
    exponent = exponent - 1 < smallest ? smallest : exponent - 1;
    double spacing = ldexp(1.0, exponent - f->mantissa_bits);
    double y = floor(a / spacing + random * 0x1p-32) * spacing;
    return copysignf(y > f->max ? f->overflow : (float)y, x);
}

float format_scale(float amax, const format* f) {
    if (!(amax > 0) || !(amax < INFINITY)) return 1.0f;
    int exponent;
    double mantissa = frexp((double)amax / f->max, &exponent);  // amax / max = mantissa 2^exponent
    exponent -= mantissa == 0.5;
    return ldexpf(1.0f, exponent < -126 ? -126 : exponent);
}

rng rng_at(uint64_t seed, rng_stream stream, uint32_t step, uint32_t sequence) {
    rng r = {.seed = seed, .stream = stream, .step = step, .sequence = sequence};
    return r;
}

uint32_t rng_u32(rng* r) {
    if (r->left == 0) {
        random_at(r->word, r->seed, r->stream, r->step, r->sequence, r->position++);
        r->left = 4;
    }
    return r->word[4 - r->left--];
}

// Lemire, "Fast random integer generation in an interval" (2019).
uint32_t rng_below(rng* r, uint32_t n) {
    uint64_t product = (uint64_t)rng_u32(r) * n;
    if ((uint32_t)product < n) {
        uint32_t reject = -n % n;
        while ((uint32_t)product < reject) product = (uint64_t)rng_u32(r) * n;
    }
    return (uint32_t)(product >> 32);
}

double rng_uniform(rng* r) {
    uint64_t high = rng_u32(r), low = rng_u32(r);
    return (double)(high << 21 | low >> 11) * 0x1p-53;
}

double rng_normal(rng* r) {
    double u = 1.0 - rng_uniform(r), turn = rng_uniform(r);
    return sqrt(-2.0 * num_log(u)) * num_cospi(2.0 * turn);
}

// Sum of x^k / k! for k = first .. 14, divided by x^first: relative error below 1e-17, |x| < 0.35.
static double exp_series(double x, int first) {
    double sum = 0, factorial = 1;
    for (int k = 2; k <= first; k++) factorial *= k;
    double inverse[15];
    for (int k = first; k <= 14; k++) {
        inverse[k] = 1.0 / factorial;
        factorial *= k + 1;
    }
    for (int k = 14; k >= first; k--) sum = fma(sum, x, inverse[k]);
    return sum;
}

double num_exp(double x) {
    if (x != x) return x;
    if (x > 709.78) return INFINITY;
    if (x < -745.2) return 0.0;
    double n = rint(x * 1.4426950408889634);
    double r = fma(n, -0x1.62e42fefa39efp-1, x);
    r = fma(n, -0x1.abc9e3b39803fp-56, r);
    return ldexp(fma(exp_series(r, 1), r, 1.0), (int)n);
}

double num_expm1(double x) {
    if (fabs(x) < 0.34) return fma(exp_series(x, 2) * x, x, x);
    return num_exp(x) - 1.0;
}

double num_log(double x) {
    if (x != x || x < 0) return NAN;
    if (x == 0) return -INFINITY;
    if (x == INFINITY) return x;
    int k;
    double m = frexp(x, &k);
    if (m < 0.70710678118654752) m *= 2, k--;
    double f = m - 1.0, s = f / (2.0 + f), z = s * s, sum = 0;
    for (int n = 25; n >= 3; n -= 2) sum = fma(sum, z, 1.0 / n);  // atanh(s) = s + s^3/3 + ...
    double y = fma(2.0 * s * z, sum, k * 0x1.abc9e3b39803fp-56);
    return fma(k, 0x1.62e42fefa39efp-1, 2.0 * s + y);
}

// sin (first = 1) or cos (first = 0) of y, |y| <= pi / 4, by Taylor's series.
static double sine_series(double y, int first) {
    double z = -y * y, sum = 0;
    for (int k = 18 + first; k > first; k -= 2) sum = (sum + 1.0) * z / (k * (k - 1.0));
    return first ? fma(sum, y, y) : 1.0 + sum;
}

static double half_turns(double x, int quarter_shift) {
    if (x - x != 0) return NAN;
    double quarters = rint(x * 2.0);  // x = quarters / 2 + rest, |rest| <= 1/4
    double y = (x - quarters * 0.5) * 3.14159265358979324;
    int q = (int)fmod(quarters, 4.0) + quarter_shift + 4;
    double value = sine_series(y, q % 2 == 0);
    return q % 4 >= 2 ? -value : value;
}

double num_sinpi(double x) { return half_turns(x, 0); }
double num_cospi(double x) { return half_turns(x, 1); }

double num_powi(double x, uint64_t n) {
    double result = 1.0;
    for (; n; n >>= 1, x *= x)
        if (n & 1) result *= x;
    return result;
}
