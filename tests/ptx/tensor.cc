// Tensor cores: ldmatrix, mma.m16n8k16 of 16-bit operands and mma.m16n8k32 of fp8 ones, with fp32
// sums.
//
// How a tensor core adds the products of one mma is not specified. It is known from measurements
// that it aligns a block of products and the accumulator to the largest exponent, cuts what lies
// below some guard bits, and cuts the sum to fp32; block and guard bits differ by generation. So
// there are four ways here, and no test may depend on which one is at work:
//
//   chain    one fp32 FMA a product, in the order of k
//   exact    the exact sum, rounded once
//   block8   blocks of 8 products, 1 guard bit: Ampere
//   block16  one block of 16 products, 2 guard bits: Hopper
//
// Of fp8 nothing has been held against a GPU. Hopper has no such mma: ptxas makes conversions to
// fp16 of it, and two mma of these. So the ways are those of two mma: of the first two codes in
// each register, then of the others. But block8 keeps 14 bits of all 32 products, of the
// accumulator and of the sum: published of Hopper's wgmma (DeepSeek-V3, arXiv 2412.19437,
// section 3.5.2), and what Ada's mma may do.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "ptx.h"

namespace ptx {

const char* const SUMMATION_NAMES[SUMMATIONS] = {"chain", "exact", "block8", "block16"};

static int summation_wanted() {
    const char* name = getenv("PTX_SUM");
    for (int s = 0; name && s < SUMMATIONS; s++)
        if (!strcmp(name, SUMMATION_NAMES[s])) return s;
    if (!name) return SUM_CHAIN;
    fprintf(stderr, "ptx: PTX_SUM is \"%s\"; use chain, exact, block8 or block16\n", name);
    exit(1);
}
int summation = summation_wanted();

// ------------------------------------------------------------------------------------------------
// ldmatrix: x is d0 .. d3, address. Lane l names row l % 8 of matrix l / 8; lane 4g + t gets
// elements 2t, 2t+1 of row g of each matrix, or with .trans of column g.

template <bool transposed>
static instruction* ldmatrix(instruction* i, warp& w) {
    const s32* address = i->x + 4;
    u16 row[LANES][8];
    for (int l = 0; l < LANES; l++) {
        u64 a = lane_address(w, address, l);
        memcpy(row[l], shared_access(w, i, l, a, 16, READ, true), 16);
    }
    for (int m = 0; m < 4; m++) {
        u32* d = w.at<u32>(i->x[m]);
        const u16(*matrix)[8] = row + 8 * m;
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, t = l % 4;
            u32 low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            u32 high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            d[l] = low | high << 16;
        }
    }
    return i + 1;
}
instruction* tensor_ldmatrix(instruction* i, warp& w) { return ldmatrix<false>(i, w); }
instruction* tensor_ldmatrix_trans(instruction* i, warp& w) { return ldmatrix<true>(i, w); }

// ------------------------------------------------------------------------------------------------
// Sums. M x N results, k products each.

enum { M = 16, N = 8, K_MAX = 32 };

struct tile {
    alignas(64) float a[M][K_MAX], b[K_MAX][N], c[M][N];
    int k;                   // products of a sum
    int lowest_a, lowest_b;  // exponents of the operands' smallest normal numbers
};

static void sum_chain(tile& t, int first) {
    for (int r = 0; r < M; r++)
        for (int k = first; k < first + 16; k++)
            for (int n = 0; n < N; n++) t.c[r][n] = __builtin_fmaf(t.a[r][k], t.b[k][n], t.c[r][n]);
}

// Fixed point wide enough for every sum: bit 0 is worth 2^-320.
struct fixed_point {
    enum { LIMBS = 12, LOW = -320 };
    u64 limb[LIMBS] = {};

    void add(double x) {  // finite
        int e;
        double fraction = frexp(fabs(x), &e);
        u64 bits = (u64)ldexp(fraction, 53);
        if (!bits) return;
        int at = e - 53 - LOW;
        unsigned __int128 wide = (unsigned __int128)bits << (at & 63);
        u64 part[LIMBS] = {};
        part[at >> 6] = (u64)wide, part[(at >> 6) + 1] = (u64)(wide >> 64);
        u64 carry = x < 0;
        for (int i = 0; i < LIMBS; i++) {
            unsigned __int128 s = (unsigned __int128)limb[i] + (x < 0 ? ~part[i] : part[i]) + carry;
            limb[i] = (u64)s, carry = (u64)(s >> 64);
        }
    }
    float rounded() const {
        u64 magnitude[LIMBS];
        bool minus = limb[LIMBS - 1] >> 63;
        u64 carry = minus;
        int top = -1;
        for (int i = 0; i < LIMBS; i++) {
            magnitude[i] = (minus ? ~limb[i] : limb[i]) + carry;
            carry = carry && !magnitude[i];
            if (magnitude[i]) top = i;
        }
        if (top < 0) return 0;
        // 64 leading bits, the lowest set if anything below is: then one rounding is right.
        int shift = __builtin_clzll(magnitude[top]);
        u64 lead = magnitude[top] << shift, rest = 0;
        if (top) {
            if (shift) lead |= magnitude[top - 1] >> (64 - shift);
            rest = magnitude[top - 1] << shift;
        }
        for (int i = 0; i < top - 1; i++) rest |= magnitude[i];
        int e = 64 * top - shift + LOW;  // lead is worth lead * 2^e
        int keep = e + 63 >= -126 ? 24 : 24 - (-126 - (e + 63));
        if (keep < 0) return minus ? -0.0f : 0;
        int drop = 64 - keep;
        u64 kept = drop == 64 ? 0 : lead >> drop, half = 1ull << (drop - 1);
        u64 below = drop == 64 ? lead : lead & ((1ull << drop) - 1);
        kept += below > half || (below == half && (rest || (kept & 1)));
        float x = (float)ldexp((double)kept, e + drop);
        return minus ? -x : x;
    }
};

static float exact_sum(const tile& t, int r, int n, int first) {
    fixed_point sum;
    sum.add(t.c[r][n]);
    for (int k = first; k < first + 16; k++) sum.add((double)t.a[r][k] * t.b[k][n]);
    return sum.rounded();
}

// In double, with the error of each addition; where there is one, in fixed point.
static void sum_exact(tile& t, int first) {
    for (int r = 0; r < M; r++) {
        double sum[N], lost[N] = {};
        for (int n = 0; n < N; n++) sum[n] = t.c[r][n];
        for (int k = first; k < first + 16; k++)
            for (int n = 0; n < N; n++) {
                double p = (double)t.a[r][k] * t.b[k][n], s = sum[n] + p, back = s - sum[n];
                lost[n] += fabs((sum[n] - (s - back)) + (p - back));
                sum[n] = s;
            }
        for (int n = 0; n < N; n++)
            t.c[r][n] =
                lost[n] > 0 && std::isfinite(sum[n]) ? exact_sum(t, r, n, first) : (float)sum[n];
    }
}

// The exponent of x; that of the smallest normal number for what is smaller.
static inline int exponent(float x) {
    int e = __builtin_bit_cast(u32, x) >> 23 & 0xff;
    return (e ? e : 1) - 127;
}

// 2^e as a normal double.
static inline double power(int e) { return __builtin_bit_cast(double, (u64)(e + 1023) << 52); }

// A sum in units of 2^unit, cut to some digits, or to what is left above the smallest number.
static float cut(s64 sum, int unit, int digits) {
    int bits = sum ? 64 - __builtin_clzll((u64)llabs(sum)) : 0;
    int drop = bits > digits ? bits - digits : 0;
    if (unit + drop < -149) drop = -149 - unit;
    s64 magnitude = drop > 62 ? 0 : llabs(sum) >> drop << drop;
    return (float)((double)(sum < 0 ? -magnitude : magnitude) * power(unit));
}

// c = cut(c + products of one block), everything aligned to the largest exponent and cut to
// `digits` and `guard` bits. An operand's exponents add up to the product's, which may be one
// lower.
static void sum_block(tile& t, int first, int block, int digits, int guard) {
    int of_a[M][K_MAX], of_b[K_MAX][N], below = digits - 1 + guard;
    for (int k = 0; k < block; k++) {
        for (int r = 0; r < M; r++) of_a[r][k] = std::max(exponent(t.a[r][first + k]), t.lowest_a);
        for (int n = 0; n < N; n++) of_b[k][n] = std::max(exponent(t.b[first + k][n]), t.lowest_b);
    }
    for (int r = 0; r < M; r++) {
        // plain: the sum in double, if not all are finite
        double p[K_MAX + 1][N], plain[N], unit[N];
        int top[N];
        s64 sum[N] = {};
        for (int n = 0; n < N; n++) {
            p[0][n] = plain[n] = t.c[r][n];
            top[n] = exponent(t.c[r][n]);
        }
        for (int k = 0; k < block; k++)
            for (int n = 0; n < N; n++) {
                double x = (double)t.a[r][first + k] * t.b[first + k][n];
                int e = x == 0 ? -999 : of_a[r][k] + of_b[k][n];
                p[k + 1][n] = x;
                plain[n] += x;
                top[n] = e > top[n] ? e : top[n];
            }
        for (int n = 0; n < N; n++) unit[n] = std::isfinite(plain[n]) ? power(below - top[n]) : 0;
        for (int k = 0; k <= block; k++)
            for (int n = 0; n < N; n++) sum[n] += (s64)(p[k][n] * unit[n]);
        for (int n = 0; n < N; n++)
            t.c[r][n] =
                std::isfinite(plain[n]) ? cut(sum[n], top[n] - below, digits) : (float)plain[n];
    }
}

static void sum_tile(tile& t) {
    if (summation == SUM_BLOCK8 && t.k == 32) return sum_block(t, 0, 32, 14, 0);
    for (int first = 0; first < t.k; first += 16) {
        if (summation == SUM_CHAIN) {
            sum_chain(t, first);
        } else if (summation == SUM_EXACT) {
            sum_exact(t, first);
        } else if (summation == SUM_BLOCK8) {
            sum_block(t, first, 8, 24, 1);
            sum_block(t, first + 8, 8, 24, 1);
        } else {
            sum_block(t, first, 16, 24, 2);
        }
    }
}

// ------------------------------------------------------------------------------------------------
// mma: x is d0-d3, a0-a3, b0-b1, c0-c3. A register of A or B holds E elements in the order of k.
// Lane 4g + t holds of A rows g (registers 0, 2) and g + 8 (1, 3), columns E t .. (0, 1) and 4 E
// more (2, 3); of B the same of k, column g; of C and D rows g (0, 1) and g + 8 (2, 3), columns 2t,
// 2t+1. A tile has k in the order of sums: elements 0 and 1 of all registers, then 2 and 3.

// An operand's type: E elements in 32 bits, the exponent of the smallest normal number, and the
// value of one element's bits.
struct of_bf16 {
    enum { E = 2, LOWEST = -126 };
    static float value(u32 h) { return __builtin_bit_cast(float, h << 16); }
};
struct of_f16 {
    enum { E = 2, LOWEST = -14 };
    static float value(u32 h) { return (float)__builtin_bit_cast(_Float16, (u16)h); }
};
// The OCP 8-bit formats: e5m2 is the upper half of fp16; e4m3 has a bias of 7, and NaN at 0x7f.
struct of_e5m2 {
    enum { E = 4, LOWEST = -14 };
    static float value(u32 c) { return of_f16::value(c << 8); }
};
struct of_e4m3 {
    enum { E = 4, LOWEST = -6 };
    static float value(u32 c) {
        if ((c & 0x7f) == 0x7f) return NAN;
        return __builtin_bit_cast(float, (c & 0x80) << 24 | (c & 0x7f) << 20) * 0x1p120f;
    }
};

template <class A, class B>
static instruction* mma(instruction* i, warp& w) {
    constexpr int E = A::E, BITS = 32 / E;
    static_assert((int)A::E == (int)B::E, "one k");
    tile t;
    t.k = 8 * E;
    t.lowest_a = A::LOWEST, t.lowest_b = B::LOWEST;
    const s32* x = i->x;
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, c = l % 4 * 2;
        for (int n = 0; n < 4; n++) {
            u32 a = w.at<u32>(x[4 + n])[l];
            for (int e = 0; e < E; e++, a >>= BITS)
                t.a[g + (n & 1) * 8][e / 2 * 16 + (n >> 1) * 8 + c + e % 2] =
                    A::value(a & ((1u << BITS) - 1));
            t.c[g + (n >> 1) * 8][c + (n & 1)] = w.at<float>(x[10 + n])[l];
        }
        for (int n = 0; n < 2; n++) {
            u32 b = w.at<u32>(x[8 + n])[l];
            for (int e = 0; e < E; e++, b >>= BITS)
                t.b[e / 2 * 16 + n * 8 + c + e % 2][g] = B::value(b & ((1u << BITS) - 1));
        }
    }
    sum_tile(t);
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, c = l % 4 * 2;
        for (int n = 0; n < 4; n++) {
            float d = t.c[g + (n >> 1) * 8][c + (n & 1)];
            w.at<float>(x[n])[l] = d != d ? __builtin_bit_cast(float, 0x7fffffff) : d;
        }
    }
    return i + 1;
}

const operand_type* operand_type_of(std::string_view name) {
    static const operand_type types[] = {{"bf16", 16, of_bf16::LOWEST, of_bf16::value},
                                         {"f16", 16, of_f16::LOWEST, of_f16::value},
                                         {"e4m3", 8, of_e4m3::LOWEST, of_e4m3::value},
                                         {"e5m2", 8, of_e5m2::LOWEST, of_e5m2::value}};
    for (const operand_type& t : types)
        if (name == t.name) return &t;
    return NULL;
}

void tensor_product(float (&c)[M][N], const float (&a)[M][K_MAX], const float (&b)[K_MAX][N], int k,
                    const operand_type& of_a, const operand_type& of_b) {
    tile t;
    t.k = k;
    t.lowest_a = of_a.lowest, t.lowest_b = of_b.lowest;
    memcpy(t.a, a, sizeof a), memcpy(t.b, b, sizeof b), memcpy(t.c, c, sizeof c);
    sum_tile(t);
    for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++)
            c[r][n] = t.c[r][n] != t.c[r][n] ? __builtin_bit_cast(float, 0x7fffffff) : t.c[r][n];
}

instruction* tensor_mma_bf16(instruction* i, warp& w) { return mma<of_bf16, of_bf16>(i, w); }
instruction* tensor_mma_f16(instruction* i, warp& w) { return mma<of_f16, of_f16>(i, w); }
instruction* tensor_mma_e4m3(instruction* i, warp& w) { return mma<of_e4m3, of_e4m3>(i, w); }
instruction* tensor_mma_e5m2(instruction* i, warp& w) { return mma<of_e5m2, of_e5m2>(i, w); }
instruction* tensor_mma_e4m3_e5m2(instruction* i, warp& w) { return mma<of_e4m3, of_e5m2>(i, w); }
instruction* tensor_mma_e5m2_e4m3(instruction* i, warp& w) { return mma<of_e5m2, of_e4m3>(i, w); }

}  // namespace ptx
