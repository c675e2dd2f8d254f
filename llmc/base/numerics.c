// numerics: the format table, random sequences, and the double-precision functions. The functions
// use + - * / and exact operations of libm alone (rint, fmod, frexp, ldexp; sqrt is correctly
// rounded), so they have the same bits on every machine.
#include "numerics.h"

#include <float.h>
#include <math.h>

_Static_assert(FLT_EVAL_METHOD == 0, "float and double expressions must round at every operation");

#define FP32_LIKE 0.0f, 0.0f  // fp32's exponents: see struct format

//                            name    e  m   max             overflow  drop  min_normal, spacing
const format FORMAT_FP32 = {"fp32", 8, 23, 0x1.fffffep127f, INFINITY, 0, FP32_LIKE, 0};
const format FORMAT_TF32 = {"tf32", 8, 10, 0x1.ffcp127f, INFINITY, 13, FP32_LIKE, 0};
const format FORMAT_BF16 = {"bf16", 8, 7, 0x1.fep127f, INFINITY, 16, FP32_LIKE, 0};
const format FORMAT_FP16 = {"fp16", 5, 10, 65504.0f, INFINITY, 13, 0x1p-14f, 0x1p-24f, 0};
const format FORMAT_E4M3 = {"fp8_e4m3", 4, 3, 448.0f, 448.0f, 20, 0x1p-6f, 0x1p-9f, 1};
const format FORMAT_E5M2 = {"fp8_e5m2", 5, 2, 57344.0f, 57344.0f, 21, 0x1p-14f, 0x1p-16f, 1};
const format* const FORMATS[] = {&FORMAT_FP32, &FORMAT_TF32, &FORMAT_BF16, &FORMAT_FP16,
                                 &FORMAT_E4M3, &FORMAT_E5M2, NULL};

// eXmY by mantissa bits, then exponent bits. `top` and `least` are the powers of two of the largest
// and of the smallest normal value; what ends at 8 bits with the sign is scaled and saturates.
#define LARGEST(y, top) ((2 - 0x1p-##y##f) * top)
#define BY_BITS(x, y, top, least)                                                              \
    {                                                                                          \
        "e" #x "m" #y, x, y, LARGEST(y, top), x + y <= 7 ? LARGEST(y, top) : INFINITY, 23 - y, \
            least, least * 0x1p-##y##f, x + y <= 7                                             \
    }
#define BY_MANTISSA(y)                                                                             \
    BY_BITS(2, y, 0x1p1f, 0x1p0f), BY_BITS(3, y, 0x1p3f, 0x1p-2f), BY_BITS(4, y, 0x1p7f, 0x1p-6f), \
        BY_BITS(5, y, 0x1p15f, 0x1p-14f), BY_BITS(6, y, 0x1p31f, 0x1p-30f),                        \
        BY_BITS(7, y, 0x1p63f, 0x1p-62f), BY_BITS(8, y, 0x1p127f, 0.0f) /* fp32's exponents */
static const format FORMATS_BY_BITS[] = {
    BY_MANTISSA(1),  BY_MANTISSA(2),  BY_MANTISSA(3),  BY_MANTISSA(4),  BY_MANTISSA(5),
    BY_MANTISSA(6),  BY_MANTISSA(7),  BY_MANTISSA(8),  BY_MANTISSA(9),  BY_MANTISSA(10),
    BY_MANTISSA(11), BY_MANTISSA(12), BY_MANTISSA(13), BY_MANTISSA(14), BY_MANTISSA(15),
    BY_MANTISSA(16), BY_MANTISSA(17), BY_MANTISSA(18), BY_MANTISSA(19), BY_MANTISSA(20),
    BY_MANTISSA(21), BY_MANTISSA(22)};

const format* format_find(const char* name) {
    static const struct {
        const char* name;
        const format* f;
    } same[] = {{"e8m23", &FORMAT_FP32},
                {"e8m7", &FORMAT_BF16},
                {"e5m10", &FORMAT_FP16},
                {"e5m2", &FORMAT_E5M2}};
    for (const format* const* f = FORMATS; *f; f++)
        if (!strcmp((*f)->name, name)) return *f;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (!strcmp(same[i].name, name)) return same[i].f;
    for (size_t i = 0; i < sizeof FORMATS_BY_BITS / sizeof *FORMATS_BY_BITS; i++)
        if (!strcmp(FORMATS_BY_BITS[i].name, name)) return &FORMATS_BY_BITS[i];
    return NULL;
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

// The high word of draw * n, where draws are rejected that would favour some results: D. Lemire,
// "Fast random integer generation in an interval" (2019).
uint32_t rng_below(rng* r, uint32_t n) {
    uint64_t product = (uint64_t)rng_u32(r) * n;
    if ((uint32_t)product < n) {
        uint32_t reject = -n % n;
        while ((uint32_t)product < reject) product = (uint64_t)rng_u32(r) * n;
    }
    return (uint32_t)(product >> 32);
}

// Fisher and Yates' shuffle: place i gets one of the i + 1 numbers so far.
void rng_permutation(rng* r, size_t n, uint32_t* order) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = rng_below(r, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}

double rng_uniform(rng* r) {
    uint64_t high = rng_u32(r), low = rng_u32(r);
    return (double)(high << 21 | low >> 11) * 0x1p-53;
}

double rng_normal(rng* r) {
    double u = 1.0 - rng_uniform(r), turn = rng_uniform(r);
    return sqrt(-2.0 * num_log(u)) * num_cospi(2.0 * turn);
}

// ln 2 in two parts; the first has 32 significant bits, so that an integer below 2^21 times it is
// exact.
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33

static const double INVERSE_FACTORIAL[] = {
    1.0,
    1.0,
    1.0 / 2,
    1.0 / 6,
    1.0 / 24,
    1.0 / 120,
    1.0 / 720,
    1.0 / 5040,
    1.0 / 40320,
    1.0 / 362880,
    1.0 / 3628800,
    1.0 / 39916800,
    1.0 / 479001600,
    1.0 / 6227020800,
    1.0 / 87178291200,
    1.0 / 1307674368000,
    1.0 / 20922789888000,
    1.0 / 355687428096000,
};

// 1/first! + z/(first+step)! + z^2/(first+2 step)! + ... up to 1/last!.
static double taylor(double z, int first, int last, int step) {
    double sum = 0;
    for (int k = last; k >= first; k -= step) sum = sum * z + INVERSE_FACTORIAL[k];
    return sum;
}

// e^x = 2^n (1 + s): sets n and returns s, |s| < 0.42. |x| < 2000.
static double exp_reduced(double x, int* n) {
    double k = rint(x * 0x1.71547652b82fep0);
    double high = x - k * LN2_HIGH, low = k * LN2_LOW, r = high - low;
    double lost = (high - r) - low;  // what rounding took from r
    *n = (int)k;
    return r + (r * r * taylor(r, 2, 14, 1) + lost);
}

// 2^n of a normal number, which takes a tenth of ldexp's time.
static double power_of_two(int n) {
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

double num_exp(double x) {
    if (x != x) return x;
    if (x > 709.79) return INFINITY;
    if (x < -745.14) return 0.0;
    int n;
    double s = exp_reduced(x, &n);
    return n >= -1022 && n <= 1023 ? (1.0 + s) * power_of_two(n) : ldexp(1.0 + s, n);
}

double num_expm1(double x) {
    if (!(x < 40.0)) return num_exp(x);  // the 1 is below half a unit; NaN
    if (x < -40.0) return -1.0;
    int n;
    double s = exp_reduced(x, &n), scale = power_of_two(n);
    return scale * s + (scale - 1.0);
}

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f / (2 + f), and
// ln(1 + f) = 2 atanh(s) = 2 s + s R = f - f^2/2 + s (f^2/2 + R),  R = 2 s^2/3 + 2 s^4/5 + ...
double num_log(double x) {
    if (!(x > 0)) return x == 0 ? -INFINITY : NAN;
    if (x == INFINITY) return x;
    int k;
    double m = frexp(x, &k);
    if (m < 0x1.6a09e667f3bcdp-1) m *= 2, k--;
    double f = m - 1.0, s = f / (2.0 + f), z = s * s, half = 0.5 * f * f, rest = 0;
    for (int n = 23; n >= 3; n -= 2) rest = (rest + 2.0 / n) * z;
    return k * LN2_HIGH + (f - (half - (s * (half + rest) + k * LN2_LOW)));
}

// sin(pi x) or, a quarter turn later, cos(pi x): x = q / 2 + rest with |rest| <= 1/4.
static double sine_half_turns(double x, int quarters) {
    x = fmod(x, 2.0);
    if (x != x) return NAN;
    double q = rint(2.0 * x), y = (x - 0.5 * q) * 3.14159265358979324, z = -y * y;
    unsigned quadrant = (unsigned)((int)q + quarters) % 4u;
    double sine = y + y * z * taylor(z, 3, 17, 2), cosine = 1.0 + z * taylor(z, 2, 16, 2);
    double value = quadrant % 2 ? cosine : sine;
    return quadrant < 2 ? value : -value;
}

double num_sinpi(double x) { return sine_half_turns(x, 0); }
double num_cospi(double x) { return sine_half_turns(x, 1); }

double num_powi(double x, uint64_t n) {
    double result = 1.0;
    for (; n; n >>= 1, x *= x)
        if (n & 1) result *= x;
    return result;
}
