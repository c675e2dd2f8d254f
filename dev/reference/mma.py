"""Which model of a tensor core's sums reproduces what a GPU returned?

    MMA_INPUTS=inputs.txt build/gpu/test_cuda_instructions     on any machine
    MMA_RECORD=results.txt build/gpu/test_cuda_instructions    on the GPU
    python3 dev/reference/mma.py inputs.txt results.txt [FAILURES]

The models: a chain of fp32 FMAs; the exact sum, rounded once; and blocks of products that are
aligned with the accumulator to the largest exponent, cut to 24 + g bits and added, the sum being
cut or rounded to fp32. Variants of the latter: whether a product's exponent is the sum of its
factors' exponents or that of its value; whether a product that is 0 takes part in the alignment;
whether a subnormal factor has the exponent of its value; whether blocks are neighbours in k or
interleaved. A sample of the results chooses the best models, all results count for the numbers that
are printed with them; FAILURES cases that the best one gets wrong follow.
"""
import itertools
import sys

FORMATS = {"bf16": (7, 127, 255), "f16": (10, 15, 31), "f32": (23, 127, 255)}
NAN, INFINITY = 0x7fffffff, 0x7f800000


def decode(bits, name):
    """(m, e, exponent): the value m 2^e, and the exponent as the format has it. Or a float."""
    digits, bias, special = FORMATS[name]
    e, m = bits >> digits & special, bits & ((1 << digits) - 1)
    sign = -1 if bits >> (31 if name == "f32" else 15) else 1
    if e == special: return float("nan") if m else sign * float("inf")
    m, e = (m | 1 << digits, e) if e else (m, 1)
    return sign * m, e - bias - digits, e - bias


def to_fp32(m, e, nearest):
    """The bits of m 2^e: rounded to nearest even, or cut."""
    if not m: return 0
    sign, m = (m < 0) << 31, abs(m)
    low = max(m.bit_length() + e - 24, -149)  # the exponent of the last digit
    drop = low - e
    if drop > 0:
        rest, m = m & ((1 << drop) - 1), m >> drop
        half = 1 << (drop - 1)
        m += nearest and (rest > half or (rest == half and m & 1))
    else:
        m <<= -drop
    bits = m + ((low + 149) << 23)  # the leading bit of a normal number adds 1 to the exponent
    return sign | min(bits, INFINITY)


def add(terms):
    """The exact sum of [(m, e)], as (m, e)."""
    low = min(e for _, e in terms)
    return sum(m << (e - low) for m, e in terms), low


def special(pairs, c):
    """NaN and infinities: the sum of the doubles is then right."""
    as_double = lambda x: x if isinstance(x, float) else float((x[0] > 0) - (x[0] < 0))
    total = as_double(c) + sum(as_double(a) * as_double(b) for a, b in pairs)
    return NAN if total != total else INFINITY | (total < 0) << 31


def leading(m, e): return abs(m).bit_length() - 1 + e


def chain(pairs, c):
    for (a, ea, _), (b, eb, _) in pairs:
        m, e = add([(a * b, ea + eb), c[:2]])
        bits = to_fp32(m, e, True)
        if bits & INFINITY == INFINITY: return bits
        c = decode(bits, "f32")
    return bits


def exact(pairs, c):
    return to_fp32(*add([(a[0] * b[0], a[1] + b[1]) for a, b in pairs] + [c[:2]]), True)


def blocks(size, guard, nearest, by_value, zeros, normal_factors, interleaved):
    def factor(x):
        return leading(*x[:2]) if normal_factors and x[0] else x[2]

    def model(pairs, c):
        for i in range(16 // size):
            group = pairs[i::16 // size] if interleaved else pairs[i * size:(i + 1) * size]
            terms = [c] if c[0] or zeros else []
            for a, b in group:
                m, e = a[0] * b[0], a[1] + b[1]
                if m or zeros: terms.append((m, e, leading(m, e) if by_value and m else
                                             factor(a) + factor(b)))
            total, last = 0, 0
            if terms:
                last = max(t[2] for t in terms) - 23 - guard  # what the last bit is worth
                for m, e, _ in terms:
                    part = abs(m) << (e - last) if e >= last else abs(m) >> (last - e)
                    total += part if m > 0 else -part
            bits = to_fp32(total, last, nearest)
            if bits & INFINITY == INFINITY: return bits
            c = decode(bits, "f32")
        return bits
    return model


def models():
    yield "chain of FMAs", chain
    yield "exact, rounded once", exact
    flags = itertools.product((4, 8, 16), range(4), (0, 1), (0, 1), (0, 1), (0, 1), (0, 1))
    for size, guard, nearest, by_value, zeros, normal_factors, interleaved in flags:
        if size == 16 and interleaved or by_value and normal_factors: continue
        name = f"blocks of {size}, {24 + guard} bits, {'rounded' if nearest else 'cut'}"
        name += ", exponents of values" * by_value + ", zeros align" * zeros
        name += ", subnormals normalised" * normal_factors + ", interleaved" * interleaved
        yield name, blocks(size, guard, nearest, by_value, zeros, normal_factors, interleaved)


def read(inputs, results):
    """(kind, pairs, c, result, place) of each sum."""
    words = lambda line: [int(x, 16) for x in line.split()]
    lines, found = open(inputs).read().splitlines(), open(results).read().splitlines()
    for i in range(0, len(lines), 4):
        title, (a, b, c) = lines[i], map(words, lines[i + 1:i + 4])
        at = i // 4 * 17
        assert found[at] == title, (found[at], title)
        d = words(" ".join(found[at + 1:at + 17]))
        f = title.split()[0]
        for m, n in itertools.product(range(16), range(8)):
            pairs = [(decode(a[16 * m + k], f), decode(b[8 * k + n], f)) for k in range(16)]
            yield title.rsplit(" ", 1)[0], pairs, decode(c[8 * m + n], "f32"), d[8 * m + n], \
                f"{title} D[{m}][{n}]"


def main():
    cases = list(read(*sys.argv[1:3]))
    is_special = lambda x: any(isinstance(v, float) for p in [*x[1], (x[2],)] for v in p)
    specials = [x for x in cases if is_special(x)]
    finite = [x for x in cases if not is_special(x)]
    agree = sum(special(x[1], x[2]) == x[3] for x in specials)
    print(f"{agree} of {len(specials)} sums with infinities or NaN are as IEEE has them")
    failures = lambda model, sums: [x for x in sums if model(x[1], x[2]) != x[3]]
    best = None
    for name, model in sorted(models(), key=lambda x: len(failures(x[1], finite[::7])))[:6]:
        wrong = failures(model, finite)
        kinds = {x[0]: sum(y[0] == x[0] for y in wrong) for x in wrong}
        print(f"{len(finite) - len(wrong)} of {len(finite)}: {name}; wrong: {kinds or 'none'}")
        if best is None or len(wrong) < len(best[0]): best = wrong, model
    for kind, pairs, c, d, place in best[0][:int(sys.argv[3]) if sys.argv[3:] else 0]:
        print(f"{place}: {d:08x}, the model has {best[1](pairs, c):08x}; C is {c[:2]}, "
              f"the products {[(a[0] * b[0], a[1] + b[1]) for a, b in pairs]}")


if __name__ == "__main__":
    main()
