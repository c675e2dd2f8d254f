"""Writes tests/fixtures/ptx.txt: PTX instructions, operands, and the results that they must have.

The results follow from the text of NVIDIA's PTX ISA: Python's integers and fractions compute them
exactly, then round once. Where NumPy and ml_dtypes have the same operation, they must agree.

    python3 dev/reference/ptx.py > tests/fixtures/ptx.txt
    python3 dev/reference/ptx.py fp8 > tests/fixtures/fp8.txt

With "fp8" it writes what the 256 codes of fp8_e4m3 and of fp8_e5m2 mean, as ml_dtypes decodes them:
lines "code value value", a code and fp32 bits in hexadecimal.

Cases that the ISA leaves open are not here: integer division by zero, the smallest integer divided
by -1, and positions or lengths of bit fields above 255.

Format: a line "op NAME RESULT OPERAND..." gives an instruction and the types of its values; the
lines after it are its cases, "result operand...", in hexadecimal. A result "nan" is any NaN: the
ISA leaves its payload open. A result of type tf32 is 32 bits of which the lower 13 are open.
"""
import math
import random
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np

F32, F64 = (24, -126, 127, 32), (53, -1022, 1023, 64)
F16, BF16 = (11, -14, 15, 16), (8, -126, 127, 16)
TF32 = (11, -126, 127, 19)
BITS = dict(pred=1, b16=16, s16=16, u16=16, b32=32, s32=32, u32=32, f32=32, tf32=32,
            b64=64, s64=64, u64=64, f64=64)
FORMAT = dict(f32=F32, f64=F64)
NAN32, NAN16 = 0x7fffffff, 0x7fff
rng = random.Random(20240607)

# What nvcc makes of the CUDA device's kernels, and near kin of it.
INSTRUCTIONS = """
abs.f32 add.rn.f32 add.rn.f64 add.s32 add.s64 and.b16 and.b32 and.b64 and.pred bfe.u32 bfi.b32
bfi.b64 bfind.shiftamt.u32 brev.b32 clz.b32 cvt.f32.bf16 cvt.f32.f16 cvt.f64.f32 cvt.rn.bf16.f32
cvt.rn.f16.f32 cvt.rn.f32.s32 cvt.rn.f32.u32 cvt.rn.f64.u32 cvt.rn.f64.u64 cvt.rna.tf32.f32
cvt.rzi.s32.f32 cvt.rzi.u32.f32 cvt.rzi.u64.f32 cvt.s64.s32 cvt.u16.u32 cvt.u32.u64 cvt.u64.u32
div.rn.f32 div.s32 div.s64 div.u32 fma.rn.f32 mad.lo.s32 mad.lo.s64 max.f32 max.s32 max.s64
max.u32 max.u64 min.f32 min.s32 min.s64 min.u32 min.u64 mul.hi.u32 mul.hi.u64 mul.lo.s16
mul.lo.s32 mul.lo.s64 mul.rn.f32 mul.rn.f64 mul.wide.s32 mul.wide.u16 mul.wide.u32 neg.f32
neg.s32 neg.s64 not.b32 not.b64 not.pred or.b32 or.b64 or.pred popc.b32 prmt.b32 rcp.rn.f32
rem.s32 rem.u32 selp.b32 selp.b64 selp.f32 selp.u16 selp.u32 setp.eq.b32 setp.eq.b64 setp.eq.f32
setp.eq.s16 setp.eq.s32 setp.eq.s64 setp.equ.f32 setp.ge.f32 setp.ge.s32 setp.ge.s64 setp.ge.u32
setp.ge.u64 setp.geu.f32 setp.gt.f32 setp.gt.s32 setp.gt.s64 setp.gt.u32 setp.gt.u64 setp.gtu.f32
setp.gtu.f64 setp.le.f32 setp.le.f64 setp.le.s32 setp.le.s64 setp.le.u32 setp.le.u64 setp.leu.f32
setp.lt.f32 setp.lt.s32 setp.lt.s64 setp.lt.u32 setp.lt.u64 setp.ltu.f32 setp.nan.f32 setp.ne.b32
setp.ne.b64 setp.ne.f32 setp.ne.s16 setp.ne.s32 setp.ne.s64 setp.ne.u32 setp.neu.f32 setp.num.f32
shl.b32 shl.b64 shr.s32 shr.u16 shr.u32 shr.u64 sqrt.rn.f32 sub.rn.f32 sub.s16 sub.s32 sub.s64
xor.b32 xor.b64
""".split()
written = set()


# Floats: bits of a format (digits, least and greatest exponent, width) and Fractions.
def fields(bits, f):
    p, low, _, width = f
    e = bits >> (p - 1) & ((1 << (width - p)) - 1)
    return bits >> (width - 1), e, bits & ((1 << (p - 1)) - 1)


def is_special(bits, f):
    return fields(bits, f)[1] == (1 << (f[3] - f[0])) - 1


def is_nan(bits, f): return is_special(bits, f) and fields(bits, f)[2] != 0


def exact(bits, f):
    sign, e, m = fields(bits, f)
    m, e = (m | 1 << (f[0] - 1), e) if e else (m, 1)
    return (-1) ** sign * m * Fraction(2) ** (e + f[1] - f[0])


def rounded(x, f, away=False):
    """The bits of a Fraction that is not zero, rounded to nearest; ties go to even, or away."""
    p, low, high, width = f
    sign, x = (x < 0) << (width - 1), abs(x)
    e = x.numerator.bit_length() - x.denominator.bit_length()
    if Fraction(2) ** e > x: e -= 1
    e = max(e, low)
    n = x / Fraction(2) ** (e - p + 1)
    m = math.floor(n + Fraction(1, 2)) if away else round(n)
    bits = m + ((e - low) << (p - 1))
    infinity = ((1 << (width - p)) - 1) << (p - 1)
    return sign | min(bits, infinity)


def as_float(bits, f):
    kind = {16: np.uint16, 32: np.uint32, 64: np.uint64}[f[3]]
    value = {F16: np.float16, BF16: ml_dtypes.bfloat16, F32: np.float32, F64: np.float64}[f]
    return kind(bits).view(value)


def arithmetic(f, fraction, ieee, nan=NAN32):
    """An operation: by fractions where the operands are finite and the result is not zero; the
    other cases, zeros and infinities, are IEEE's, for which doubles are enough."""
    def op(*operands):
        values = [np.float64(as_float(x, f)) for x in operands]
        special = ieee(*values)
        if np.isnan(special): return nan
        if not any(is_special(x, f) for x in operands) and not np.isinf(special):
            x = fraction(*(exact(o, f) for o in operands))
            if x != 0: return rounded(x, f)
        elif np.isinf(special) and not any(is_special(x, f) for x in operands) and f == F64:
            return rounded(fraction(*(exact(o, f) for o in operands)), f)
        sign = int(np.signbit(special)) << (f[3] - 1)
        return sign | (rounded(Fraction(2) ** 5000, f) if np.isinf(special) else 0)
    return op


def root(x):
    """The square root, with so many digits that its rounding is that of the exact one."""
    n = x * 4 ** 200
    r = math.isqrt(n.numerator // n.denominator)
    return Fraction(2 * r + (r * r != n), 2 * 2 ** 200)


def extreme(a, b, largest):
    if is_nan(a, F32): return NAN32 if is_nan(b, F32) else b
    if is_nan(b, F32): return a
    order = lambda x: -(x & 0x7fffffff) - 1 if x >> 31 else x  # -0 is less than +0
    return (max if largest else min)((a, b), key=order)


def convert(bits, source, target, nan, away=False):
    if is_nan(bits, source): return nan
    sign = bits >> (source[3] - 1) << (target[3] - 1)
    if is_special(bits, source): return sign | rounded(Fraction(2) ** 5000, target)
    x = exact(bits, source)
    return rounded(x, target, away) if x else sign


def to_integer(bits, width, is_signed):
    if is_nan(bits, F32): return 0 if width == 32 else 1 << 63
    low = -1 << (width - 1) if is_signed else 0
    high = low + (1 << width) - 1
    if is_special(bits, F32): return (low if bits >> 31 else high) & ((1 << width) - 1)
    return min(max(math.trunc(exact(bits, F32)), low), high) & ((1 << width) - 1)


# Integers.
def signed(x, width): return x - (x >> (width - 1) << width)


def mask(x, width): return x & ((1 << width) - 1)


def quotient(a, b): return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def shift_right(a, n, width, is_signed):
    return mask((signed(a, width) if is_signed else a) >> min(n, width), width)


def extract(a, position, length):
    """bfe.u32"""
    return sum((a >> (position + i) & 1) << i for i in range(length) if position + i < 32)


def insert(a, b, position, length, width):
    for i in range(length):
        if position + i < width:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def permute(a, b, selector):
    pool, result = b << 32 | a, 0
    for i in range(4):
        s = selector >> 4 * i & 15
        byte = pool >> 8 * (s & 7) & 255
        if s & 8: byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


# Operands.
def integers(width):
    top = 1 << (width - 1)
    near = {1 << k for k in range(0, width, 4)} | {(1 << k) - 1 for k in range(0, width + 1, 8)}
    return sorted({mask(x, width) for x in [0, 1, 2, 3, 7, 10, -1, -2, -3, -7, -10, top, top - 1,
                                            top + 1, *near, *(-x for x in near)]})


FLOATS = dict(
    f32=[0, 0x80000000, 0x7f800000, 0xff800000, 0x7fffffff, 0x7fc00000, 0xffc00001, 0x7f800001,
         0xffa00000, 0x7f7fffff, 0xff7fffff, 0x00800000, 0x80800000, 0x007fffff, 0x807fffff,
         0x00000001, 0x80000001, 0x00400000, 0x3f800000, 0xbf800000, 0x3f800001, 0x3f7fffff,
         0x40000000, 0x40400000, 0x3f000000, 0x34000000, 0xb3800000, 0x33800000, 0x33800001,
         0x4b000000, 0x4b7fffff, 0xcb800001, 0x4effffff, 0x4f000000, 0xcf000000, 0xcf000001,
         0x4f7fffff, 0x4f800000, 0x5effffff, 0x5f000000, 0x5f7fffff, 0x5f800000, 0x1fffffff,
         0x20000001, 0x3fb504f3, 0x3fb504f4, 0x5f3504f3, 0x7f000000, 0xff000000, 0x7e800000],
    f64=[0, 1 << 63, 0x7ff << 52, 0xfff << 52, (1 << 63) - 1, 0x7ff8 << 48, 0xfff0000000000001,
         0x7fefffffffffffff, 0xffefffffffffffff, 1 << 52, (1 << 52) - 1, 1, 0x8000000000000001,
         0x3ff << 52, 0xbff << 52, 0x3ff0000000000001, 0x3fefffffffffffff, 0x3ca << 52,
         0x3ca0000000000001, 0x4008 << 48, 0x7fe << 52, 0x1ff << 52, 0x5ff8000000000000])


def anything(kind):
    """A random operand: an edge value, random bits, or a value of moderate size."""
    width = BITS[kind]
    if kind in FLOATS:
        f, way = FORMAT[kind], rng.random()
        if way < 0.3: return rng.choice(FLOATS[kind])
        bits = rng.getrandbits(width)
        if way < 0.55: return bits
        e = (1 << (width - f[0] - 1)) - 1 + rng.randint(-12, 12)
        m = rng.getrandbits(f[0] - 1) & rng.choice([-1, -1 << f[0] // 2])
        return (bits >> (width - 1)) << (width - 1) | e << (f[0] - 1) | m
    if width == 1: return rng.getrandbits(1)
    if rng.random() < 0.4: return rng.choice(integers(width))
    return rng.getrandbits(width) >> rng.randrange(width) if rng.random() < 0.5 else \
        rng.getrandbits(width)


def cases(kinds, count):
    """First each edge value of one operand, then pairs of edges and random ones."""
    if all(k == "pred" for k in kinds):
        return [tuple(i >> j & 1 for j in range(len(kinds))) for i in range(1 << len(kinds))]
    edges = [[0, 1] if k == "pred" else FLOATS[k] if k in FLOATS else integers(BITS[k])
             for k in kinds]
    if len(kinds) == 1:
        chosen = [(e,) for e in edges[0]]
    else:
        chosen = [tuple(rng.choice(e) for e in edges) for _ in range(count // 2)]
        if len(set(kinds)) == 1: chosen += [(e,) * len(kinds) for e in rng.sample(edges[0], 8)]
    while len(chosen) < count: chosen.append(tuple(anything(k) for k in kinds))
    return chosen


def op(name, result, kinds, value, extra=(), count=80, keep=lambda *a: True):
    if name not in INSTRUCTIONS: return
    written.add(name)
    print("op", name, result, *kinds)
    seen = set()
    for operands in [*extra, *cases(kinds, max(count - len(extra), count // 2))]:
        if operands in seen or not keep(*operands): continue
        seen.add(operands)
        r = value(*operands)
        words = ["nan" if r == "nan" else format(mask(int(r), BITS[result]), "x")]
        print(*words, *(format(x, "x") for x in operands))


def unary(name, kind, value, **more): op(name, kind, [kind], value, **more)


def binary(name, kind, value, **more): op(name, kind, [kind, kind], value, **more)


def integer_ops():
    for w in (16, 32, 64):
        s = lambda x, w=w: signed(x, w)
        if w > 16:
            binary(f"add.s{w}", f"s{w}", lambda a, b: a + b)
            binary(f"mul.hi.u{w}", f"u{w}", lambda a, b: a * b >> w)
            op(f"mad.lo.s{w}", f"s{w}", [f"s{w}"] * 3, lambda a, b, c: a * b + c)
            for name, f in (("max", max), ("min", min)):
                binary(f"{name}.s{w}", f"s{w}", lambda a, b: f(a, b, key=s), count=48)
                binary(f"{name}.u{w}", f"u{w}", lambda a, b: f(a, b), count=48)
            nonzero = lambda a, b: b != 0 and (a, b) != (1 << (w - 1), (1 << w) - 1)
            near = [(a, b) for a in (0, 1, (1 << w) - 1, 1 << (w - 1), (1 << (w - 1)) - 1)
                    for b in (1, 2, 3, (1 << w) - 2, 1 << (w - 1), (1 << (w - 1)) - 1)]
            binary(f"div.s{w}", f"s{w}", lambda a, b: quotient(s(a), s(b)), extra=near, count=90,
                   keep=nonzero)
            binary(f"div.u{w}", f"u{w}", lambda a, b: a // b, extra=near, count=90, keep=nonzero)
            binary(f"rem.s{w}", f"s{w}", lambda a, b: s(a) - quotient(s(a), s(b)) * s(b),
                   extra=near, count=90, keep=nonzero)
            binary(f"rem.u{w}", f"u{w}", lambda a, b: a % b, extra=near, count=90, keep=nonzero)
            unary(f"neg.s{w}", f"s{w}", lambda a: -a, count=40)
        binary(f"mul.lo.s{w}", f"s{w}", lambda a, b: a * b)
        binary(f"sub.s{w}", f"s{w}", lambda a, b: a - b)
        binary(f"and.b{w}", f"b{w}", lambda a, b: a & b, count=40)
        binary(f"or.b{w}", f"b{w}", lambda a, b: a | b, count=40)
        binary(f"xor.b{w}", f"b{w}", lambda a, b: a ^ b, count=40)
        unary(f"not.b{w}", f"b{w}", lambda a: ~a, count=40)
        amounts = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 0x80000000, 0xffffffff]
        values = [1, 1 << (w - 1), (1 << w) - 1, mask(0x9e3779b97f4a7c15, w)]
        edge = [(v, n) for n in amounts for v in values]
        op(f"shl.b{w}", f"b{w}", [f"b{w}", "u32"], lambda a, n: a << min(n, w), edge, 90)
        op(f"shr.u{w}", f"u{w}", [f"u{w}", "u32"], lambda a, n: shift_right(a, n, w, 0), edge, 90)
        op(f"shr.s{w}", f"s{w}", [f"s{w}", "u32"], lambda a, n: shift_right(a, n, w, 1), edge, 90)
        for kind in ("b", "u") + (("f",) if w == 32 else ()):
            op(f"selp.{kind}{w}", f"{kind}{w}", [f"{kind}{w}"] * 2 + ["pred"],
               lambda a, b, p: a if p else b, count=32)
        tests = dict(eq=lambda a, b: a == b, ne=lambda a, b: a != b, lt=lambda a, b: a < b,
                     le=lambda a, b: a <= b, gt=lambda a, b: a > b, ge=lambda a, b: a >= b)
        top = 1 << (w - 1)
        same = [(a, a) for a in values] + [(1, 0), (0, 1), (top, top - 1), (top - 1, top),
                                           ((1 << w) - 1, 0)]
        for name, f in tests.items():
            for kind in ("b", "s", "u"):
                if kind == "b" and name not in ("eq", "ne"): continue
                value = (lambda a, b: f(s(a), s(b))) if kind == "s" else f
                op(f"setp.{name}.{kind}{w}", "pred", [f"{kind}{w}"] * 2, value, same, 32)
    op("mul.wide.s16", "s32", ["s16"] * 2, lambda a, b: signed(a, 16) * signed(b, 16), count=48)
    op("mul.wide.u16", "u32", ["u16"] * 2, lambda a, b: a * b, count=48)
    op("mul.wide.s32", "s64", ["s32"] * 2, lambda a, b: signed(a, 32) * signed(b, 32))
    op("mul.wide.u32", "u64", ["u32"] * 2, lambda a, b: a * b)
    op("brev.b32", "b32", ["b32"], lambda a: int(format(a, "032b")[::-1], 2))
    op("popc.b32", "u32", ["b32"], lambda a: bin(a).count("1"), count=48)
    op("clz.b32", "u32", ["b32"], lambda a: 32 - a.bit_length(), [(1 << i,) for i in range(32)])
    op("bfind.shiftamt.u32", "u32", ["u32"],
       lambda a: 32 - a.bit_length() if a else 0xffffffff,
       [(1 << i,) for i in range(32)])
    ranges = [(a, p, n) for a in (0xffffffff, 0x9e3779b9)
              for p, n in ((0, 0), (0, 1), (0, 31), (0, 32), (0, 33), (1, 31), (1, 32), (5, 7),
                           (31, 0), (31, 1), (31, 2), (32, 1), (33, 5), (63, 64), (16, 255),
                           (255, 255), (255, 0), (0, 255), (24, 8), (24, 9))]
    small = lambda a, *rest: all(x <= 255 for x in rest[-2:])
    randoms = lambda w, n: [(*(rng.getrandbits(w) for _ in range(n)), rng.randrange(w),
                             rng.randrange(w)) for _ in range(56)]
    op("bfe.u32", "u32", ["u32"] * 3, extract, ranges + randoms(32, 1), 100, keep=small)
    for w in (32, 64):
        ones = (1 << w) - 1
        edge = [(mask(a * 0x100000001, w), b, p, n) for a, p, n in ranges for b in (0, ones)]
        edge += [(mask(0x9e3779b97f4a7c15, w), 0, p, n) for p, n in ((60, 10), (63, 1), (64, 1),
                                                                     (0, 64), (0, 65), (32, 32))]
        op(f"bfi.b{w}", f"b{w}", [f"b{w}"] * 2 + ["u32"] * 2,
           lambda a, b, p, n: insert(a, b, p, n, w), edge + randoms(w, 2), 150, keep=small)
    op("prmt.b32", "b32", ["b32"] * 3, permute,
       [(0x83726150, 0xf4e5d6c7, 0x3210 & ~(15 << 4 * i) | s << 4 * i)
        for i in range(4) for s in range(16)] +
       [(rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(16)) for _ in range(48)], 128,
       keep=lambda a, b, c: c < 65536)
    for name, f in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b),
                    ("xor", lambda a, b: a ^ b)):
        op(f"{name}.pred", "pred", ["pred"] * 2, f)
    op("not.pred", "pred", ["pred"], lambda a: 1 - a)
    for source, target in (("s32", "s64"), ("u32", "u64"), ("u32", "u16"), ("u64", "u32"),
                           ("s64", "s32"), ("u16", "u32"), ("s16", "s32"), ("u16", "u64")):
        wide = (lambda a, w=BITS[source]: signed(a, w)) if source[0] == "s" else lambda a: a
        op(f"cvt.{target}.{source}", target, [source], wide, count=48)


# Sums and products at and near halfway between two floats, near the subnormals and near overflow.
TIES = [(0x3f800000, 0x33800000), (0x3f800001, 0x33800000), (0x3f800000, 0x33800001),
        (0x3f800000, 0xb3000000), (0x3f800000, 0xb3000001), (0x3f800001, 0xb3800000),
        (0x4b800000, 0x3f800000), (0x4b800001, 0x3f800000), (0x4b800000, 0x3f800001),
        (0x7f7fffff, 0x73000000), (0x7f7fffff, 0x72ffffff), (0xff7fffff, 0xf3000000),
        (0x00800000, 0x80000001), (0x007fffff, 0x00000001), (0x00000001, 0x80000001),
        (0x80000000, 0x80000000), (0x00000000, 0x80000000), (0x3f800000, 0xbf800000)]
SMALL = [(0x00800000, 0x3f000000), (0x00800001, 0x3f000000), (0x00800003, 0x3f000000),
         (0x00000001, 0x3f000000), (0x00000001, 0x3f000001), (0x00000003, 0x3f000000),
         (0x80000001, 0x3f000000), (0x00000001, 0x3effffff), (0x1a000000, 0x1a000000),
         (0x1a000000, 0x19800000), (0x3f800001, 0x3f800001), (0x3fffffff, 0x3fffffff),
         (0x3fc00000, 0x3f800001), (0x3fa00000, 0x3f800002), (0x5f800000, 0x5f7fffff),
         (0x5f800000, 0x5f800000), (0x00ffffff, 0x3f7fffff), (0x00000000, 0xff800000)]


def fma_cases():
    """Cancellation, and sums that lie so near a tie that rounding the product first, or rounding
    to a double first, would be wrong."""
    found = [(0x3f800001, 0x3f800001, 0xbf800002), (0x3f800001, 0x3f7ffffe, 0xbf800000),
             (0x3f800000, 0x33800000, 0x3f800000), (0x3f800001, 0x33800000, 0x3f800000),
             (0x00000001, 0x00000001, 0x33800000), (0x7f7fffff, 0x40000000, 0xff7fffff),
             (0x7f7fffff, 0x7f7fffff, 0xff800000), (0x00000000, 0x7f800000, 0x7fc00000),
             (0x00000000, 0x7f800000, 0x3f800000), (0x80000000, 0x3f800000, 0x00000000),
             (0x80000000, 0x3f800000, 0x80000000), (0x3f800000, 0x3f800000, 0xbf800000),
             (0x7f800000, 0x3f800000, 0xff800000), (0x00000001, 0x3f000000, 0x00000001),
             (0x00800000, 0x3f000000, 0x80400000), (0x1a000000, 0x1a000000, 0x00800000)]
    while len(found) < 60:
        a, b = (127 << 23 | rng.getrandbits(23) for _ in range(2))
        c = rounded(-exact(a, F32) * exact(b, F32), F32)
        found.append((a, b, c if rng.random() < 0.5 else c + rng.choice((-1, 1))))
    # a b is half an ulp of c, less or more by a part of 2^-36 or less: a double does not keep it.
    while len(found) < 84:
        i = rng.choice((1, 3, 5, 7))
        x, y = rng.choice(((Fraction(i, 2 ** 23), Fraction(i, 2 ** 23)),
                           (Fraction(2048, 2 ** 23), Fraction(4095, 2 ** 24))))
        a = rounded((1 + x) * Fraction(2) ** -12, F32) | rng.getrandbits(1) << 31
        b, c = rounded((1 - y) * Fraction(2) ** -12, F32), 127 << 23 | rng.getrandbits(23)
        once = exact(a, F32) * exact(b, F32) + exact(c, F32)
        twice = exact(rounded(once, F64), F64)
        if rounded(once, F32) != rounded(twice, F32): found.append((a, b, c))
    return found


def float_ops():
    with np.errstate(all="ignore"):
        add = arithmetic(F32, lambda a, b: a + b, lambda a, b: a + b)
        binary("add.rn.f32", "f32", add, extra=TIES, count=128)
        sub = arithmetic(F32, lambda a, b: a - b, lambda a, b: a - b)
        binary("sub.rn.f32", "f32", sub, extra=[(a, b ^ 1 << 31) for a, b in TIES], count=128)
        mul = arithmetic(F32, lambda a, b: a * b, lambda a, b: a * b)
        binary("mul.rn.f32", "f32", mul, extra=SMALL, count=128)
        div = arithmetic(F32, lambda a, b: a / b if b else 0, lambda a, b: np.divide(a, b))
        binary("div.rn.f32", "f32", div, count=150,
               extra=[(a, rounded(1 / exact(b, F32), F32)) if exact(b, F32) else (a, b)
                      for a, b in SMALL[:-1]] +
               [(0x3f800000, 0x40400000), (0x00800000, 0x7f7fffff), (0x00000001, 0x40000000),
                (0x00000003, 0x40000000), (0x7f7fffff, 0x00000001), (0x007fffff, 0x3f7fffff)])
        fma = arithmetic(F32, lambda a, b, c: a * b + c, lambda a, b, c: a * b + c)
        op("fma.rn.f32", "f32", ["f32"] * 3, fma, fma_cases(), 160)
        divide_one = arithmetic(F32, lambda a: 1 / a if a else 0, lambda a: np.divide(1.0, a))
        unary("rcp.rn.f32", "f32", divide_one, count=110)
        unary("sqrt.rn.f32", "f32", arithmetic(F32, lambda a: root(a) if a > 0 else 0, np.sqrt),
              count=110)
        for name, f, numpy in (("add", lambda a, b: a + b, np.add),
                               ("mul", lambda a, b: a * b, np.multiply)):
            value = arithmetic(F64, f, f, "nan")
            binary(f"{name}.rn.f64", "f64", value, count=64)
            for a, b in cases(["f64"] * 2, 500):
                y = numpy(as_float(a, F64), as_float(b, F64))
                assert value(a, b) == ("nan" if np.isnan(y) else int(y.view(np.uint64))), (a, b)
        for value, numpy in ((add, np.add), (sub, np.subtract), (mul, np.multiply),
                             (div, np.divide)):
            for a, b in TIES + SMALL + cases(["f32"] * 2, 2000):
                y = numpy(as_float(a, F32), as_float(b, F32))
                assert value(a, b) == (NAN32 if np.isnan(y) else int(y.view(np.uint32))), (a, b)
    for name, largest in (("max", True), ("min", False)):
        binary(f"{name}.f32", "f32", lambda a, b: extreme(a, b, largest),
               extra=[(0, 1 << 31), (1 << 31, 0), (0x7f800001, 0xffc00000),
                      (0x7fc00000, 0x7f800001), (0x7fc00000, 0x3f800000),
                      (0x00000001, 0x7f800001), (1, 2), (0x80000001, 1)],
               count=96)
    unary("abs.f32", "f32", lambda a: "nan" if is_nan(a, F32) else a & 0x7fffffff)
    unary("neg.f32", "f32", lambda a: "nan" if is_nan(a, F32) else a ^ 1 << 31)
    tests = dict(eq=lambda c: c == 0, ne=lambda c: c != 0, lt=lambda c: c < 0, le=lambda c: c <= 0,
                 gt=lambda c: c > 0, ge=lambda c: c >= 0)
    for kind, f in FORMAT.items():
        def compare(a, b):
            if is_nan(a, f) or is_nan(b, f): return None
            x, y = (exact(v, f) for v in (a, b))
            return (x > y) - (x < y)
        nans = [FLOATS[kind][4], FLOATS[kind][6]]
        ones = [0, 1 << (f[3] - 1), 1, FLOATS[kind][2], FLOATS[kind][9]]
        edge = [(a, b) for a in nans + ones[:2] for b in nans + ones[:3]] + \
            [(a, a) for a in ones] + [(ones[3], ones[4]), (ones[4], ones[3])]
        for name, test in tests.items():
            op(f"setp.{name}.{kind}", "pred", [kind] * 2,
               lambda a, b: compare(a, b) is not None and test(compare(a, b)), edge, 40)
            op(f"setp.{name}u.{kind}", "pred", [kind] * 2,
               lambda a, b: compare(a, b) is None or test(compare(a, b)), edge, 40)
        op(f"setp.num.{kind}", "pred", [kind] * 2, lambda a, b: compare(a, b) is not None, edge, 40)
        op(f"setp.nan.{kind}", "pred", [kind] * 2, lambda a, b: compare(a, b) is None, edge, 40)


def halfway(f):
    """float32 bits at, and next to, values and midpoints of a smaller format."""
    chosen = []
    step = 1 << (24 - f[0])
    least = Fraction(2) ** (f[1] - f[0] + 1)
    top = rounded(Fraction(2) ** (f[2] + 1) - Fraction(2) ** (f[2] - f[0]), F32)  # a tie with 2^max
    for base in (0x3f800000, 0x3f800000 + step, 0x40490fdb & -step, 0xc2f6e979 & -step):
        chosen += [base, base + step // 2 - 1, base + step // 2, base + step // 2 + 1, base + step]
    chosen += [top - 1, top, top + 1, top | 1 << 31, top - step // 2, top + step]
    for k in (1, 2, 3, 5):  # quarters and halves of the least subnormal
        x = rounded(Fraction(k, 4) * least, F32)
        chosen += [x, x + 1, x | 1 << 31, max(x - 1, 0)]
    normal = rounded(Fraction(2) ** f[1], F32)
    chosen += [normal, normal - 1, normal + 1, normal - step // 2, normal - step, 0x00000001]
    return [(x,) for x in dict.fromkeys(chosen)]


def conversions():
    near = [(c,) for k in (-1, 0, 1, 2, 22, 23, 24, 30, 31, 32, 62, 63, 64)
            for c in (127 + k << 23, (127 + k << 23) - 1, (127 + k << 23) + 1, 0x80000000 |
                      127 + k << 23)]
    fractions = [(x,) for x in (0x3f7fffff, 0xbf7fffff, 0x3fffffff, 0xbfffffff, 0xc0200000)]
    for target, width, is_signed in (("s32", 32, 1), ("u32", 32, 0), ("u64", 64, 0)):
        op(f"cvt.rzi.{target}.f32", target, ["f32"],
           lambda a: to_integer(a, width, is_signed), near + fractions, 110)
    for source, width in (("s32", 32), ("u32", 32), ("s64", 64), ("u64", 64)):
        number = (lambda a: signed(a, width)) if source[0] == "s" else lambda a: a
        for target in ("f32", "f64"):
            f = FORMAT[target]
            ties = [(mask(s * ((1 << f[0] + k) + j), width),) for k in (0, 1, 5) for s in (1, -1)
                    for j in (1, 2, 3, 1 << k, 3 << k, (1 << k) + 1, (1 << k) - 1, (1 << f[0]) - 1)
                    if f[0] + k < width - 1]
            op(f"cvt.rn.{target}.{source}", target, [source],
               lambda a: rounded(Fraction(number(a)), f) if a else 0, ties, 80)
    for name, f, kind in (("f16", F16, np.float16), ("bf16", BF16, ml_dtypes.bfloat16)):
        value = lambda a: convert(a, F32, f, NAN16)
        op(f"cvt.rn.{name}.f32", "b16", ["f32"], value, halfway(f), 150)
        with np.errstate(all="ignore"):
            for (a,) in halfway(f) + cases(["f32"], 2000):
                y = as_float(a, F32).astype(kind)
                assert is_nan(a, F32) or value(a) == int(y.view(np.uint16)), (name, hex(a))
        small = [(x,) for x in (0, 1, 2, 0x3ff, 0x400, 0x7f, 0x80, 0x7bff, 0x7c00, 0x7c01, 0x7e00,
                                0x7f7f, 0x7f80, 0x7f81, 0x7fc0, 0x7fff, 0x3c00, 0x3f80, 0x3555)]
        op(f"cvt.f32.{name}", "f32", ["b16"], lambda a: convert(a, f, F32, "nan"),
           small + [(x | 0x8000,) for (x,) in small], 96)
    op("cvt.f64.f32", "f64", ["f32"], lambda a: convert(a, F32, F64, "nan"), count=80)

    def to_tf32(a):
        r = convert(a, F32, TF32, "nan", away=True)
        return r if r == "nan" else r << 13
    # A signalling NaN became infinity on an H200, where the ISA has NaN: no case of these.
    quiet = lambda a: not is_nan(a, F32) or a >> 22 & 1
    op("cvt.rna.tf32.f32", "tf32", ["f32"], to_tf32, halfway(TF32), 110, keep=quiet)


def fp8_codes():
    values = [np.arange(256, dtype=np.uint8).view(t).astype(np.float32).view(np.uint32)
              for t in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]
    for code in range(256):
        print(f"{code:02x} {values[0][code]:08x} {values[1][code]:08x}")


if __name__ == "__main__" and sys.argv[1:] == ["fp8"]:
    fp8_codes()
elif __name__ == "__main__":
    print("# PTX instructions, operands and right results. dev/reference/ptx.py writes this file")
    print("# and says what its lines mean.")
    integer_ops()
    float_ops()
    conversions()
    assert written == set(INSTRUCTIONS), set(INSTRUCTIONS) - written
