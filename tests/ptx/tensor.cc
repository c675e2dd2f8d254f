// Tensor cores: ldmatrix, and mma.m16n8k16 of 16-bit operands with fp32 sums.
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
// Sums. M x N results, K products each.

enum { M = 16, N = 8, K = 16 };

struct tile {
    alignas(64) float a[M][K], b[K][N], c[M][N];
    int lowest;  // exponent of the operands' smallest normal number
};

static void sum_chain(tile& t) {
    for (int r = 0; r < M; r++)
        for (int k = 0; k < K; k++)
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

static float exact_sum(const tile& t, int r, int n) {
    fixed_point sum;
    sum.add(t.c[r][n]);
    for (int k = 0; k < K; k++) sum.add((double)t.a[r][k] * t.b[k][n]);
    return sum.rounded();
}

// In double, with the error of each addition; where there is one, in fixed point.
static void sum_exact(tile& t) {
    for (int r = 0; r < M; r++) {
        double sum[N], lost[N] = {};
        for (int n = 0; n < N; n++) sum[n] = t.c[r][n];
        for (int k = 0; k < K; k++)
            for (int n = 0; n < N; n++) {
                double p = (double)t.a[r][k] * t.b[k][n], s = sum[n] + p, back = s - sum[n];
                lost[n] += fabs((sum[n] - (s - back)) + (p - back));
                sum[n] = s;
            }
        for (int n = 0; n < N; n++)
            t.c[r][n] = lost[n] > 0 && std::isfinite(sum[n]) ? exact_sum(t, r, n) : (float)sum[n];
    }
}

// The exponent of x; that of the smallest normal number for what is smaller.
static inline int exponent(float x) {
    int e = __builtin_bit_cast(u32, x) >> 23 & 0xff;
    return (e ? e : 1) - 127;
}

// 2^e as a normal double.
static inline double power(int e) { return __builtin_bit_cast(double, (u64)(e + 1023) << 52); }

// A sum in units of 2^unit, cut to 24 bits, or to what is left above the smallest number.
static float cut(s64 sum, int unit) {
    int bits = sum ? 64 - __builtin_clzll((u64)llabs(sum)) : 0;
    int drop = bits > 24 ? bits - 24 : 0;
    if (unit + drop < -149) drop = -149 - unit;
    s64 magnitude = drop > 62 ? 0 : llabs(sum) >> drop << drop;
    return (float)((double)(sum < 0 ? -magnitude : magnitude) * power(unit));
}

// c = cut(c + products of one block), everything aligned to the largest exponent. An operand's
// exponents add up to the product's, which may be one lower.
static void sum_block(tile& t, int first, int block, int guard) {
    int of_a[M][K], of_b[K][N];
    for (int k = 0; k < block; k++) {
        for (int r = 0; r < M; r++) of_a[r][k] = std::max(exponent(t.a[r][first + k]), t.lowest);
        for (int n = 0; n < N; n++) of_b[k][n] = std::max(exponent(t.b[first + k][n]), t.lowest);
    }
    for (int r = 0; r < M; r++) {
        double p[K + 1][N], plain[N], unit[N];  // plain: the sum in double, if not all are finite
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
        for (int n = 0; n < N; n++)
            unit[n] = std::isfinite(plain[n]) ? power(23 + guard - top[n]) : 0;
        for (int k = 0; k <= block; k++)
            for (int n = 0; n < N; n++) sum[n] += (s64)(p[k][n] * unit[n]);
        for (int n = 0; n < N; n++)
            t.c[r][n] =
                std::isfinite(plain[n]) ? cut(sum[n], top[n] - 23 - guard) : (float)plain[n];
    }
}

static void sum_tile(tile& t) {
    switch (summation) {
        case SUM_CHAIN:
            sum_chain(t);
            break;
        case SUM_EXACT:
            sum_exact(t);
            break;
        case SUM_BLOCK8:
            sum_block(t, 0, 8, 1);
            sum_block(t, 8, 8, 1);
            break;
        default:
            sum_block(t, 0, 16, 2);
    }
}

// ------------------------------------------------------------------------------------------------
// mma: x is d0-d3, a0-a3, b0-b1, c0-c3. Lane 4g + t holds of A rows g (registers 0, 2) and g + 8
// (1, 3), columns 2t, 2t+1 (0, 1) and 8 more (2, 3); of B rows 2t, 2t+1 and 8 more, column g; of C
// and D rows g (0, 1) and g + 8 (2, 3), columns 2t, 2t+1.

template <class F>
static instruction* mma(instruction* i, warp& w, int lowest, F value) {
    tile t;
    t.lowest = lowest;
    const s32* x = i->x;
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, c = l % 4 * 2;
        for (int n = 0; n < 4; n++) {
            u32 a = w.at<u32>(x[4 + n])[l];
            float* to = &t.a[g + (n & 1) * 8][c + (n >> 1) * 8];
            to[0] = value(a & 0xffff), to[1] = value(a >> 16);
            t.c[g + (n >> 1) * 8][c + (n & 1)] = w.at<float>(x[10 + n])[l];
        }
        for (int n = 0; n < 2; n++) {
            u32 b = w.at<u32>(x[8 + n])[l];
            t.b[c + 8 * n][g] = value(b & 0xffff), t.b[c + 8 * n + 1][g] = value(b >> 16);
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

void tensor_product(float (&c)[M][N], const float (&a)[M][K], const float (&b)[K][N], int lowest) {
    tile t;
    t.lowest = lowest;
    memcpy(t.a, a, sizeof a), memcpy(t.b, b, sizeof b), memcpy(t.c, c, sizeof c);
    sum_tile(t);
    for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++)
            c[r][n] = t.c[r][n] != t.c[r][n] ? __builtin_bit_cast(float, 0x7fffffff) : t.c[r][n];
}

instruction* tensor_mma_bf16(instruction* i, warp& w) {
    return mma(i, w, -126, [](u32 h) { return __builtin_bit_cast(float, h << 16); });
}
instruction* tensor_mma_f16(instruction* i, warp& w) {
    return mma(i, w, -14, [](u32 h) { return (float)__builtin_bit_cast(_Float16, (u16)h); });
}

}  // namespace ptx
