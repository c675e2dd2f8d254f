"""Writes three fixtures for tests/test_numerics.c:

tests/fixtures/numerics_round.txt: roundings by PyTorch's casts from float32. A line "FORMAT COUNT",
then COUNT lines of two hexadecimal numbers: the bits of a float32, the bits of its cast. The fp8
inputs are clamped to the largest value first, for the casts do not all saturate. fp8 is covered
whole: every value, every midpoint, and their float32 neighbours; bf16 and fp16 are sampled.

tests/fixtures/numerics_scaled.txt: rows of float32 cast to fp8 under a power-of-two scale, the least
that lets the row's largest magnitude fit. A line "FORMAT COUNT", then COUNT lines of two hexadecimal
numbers: the bits of a float32, and of its cast times the scale.

tests/fixtures/numerics_functions.txt: functions of doubles by mpmath. Lines "FUNCTION x y rest" in
C's hexadecimal: y is the double nearest to f(x), and y + rest is f(x) to about 106 bits.

    python3 dev/reference/numerics.py
"""
import math
import random

import mpmath
import numpy as np
import torch

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn,
           "fp8_e5m2": torch.float8_e5m2}


def neighbourhood(values):
    """The values (doubles), the midpoints between them, and the float32 neighbours of both."""
    values = np.unique(values)
    with np.errstate(over="ignore"):
        points = np.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(np.float32)
        down, up = np.float32(-np.inf), np.float32(np.inf)
        return np.concatenate([points, np.nextafter(points, down), np.nextafter(points, up)])


def inputs(dtype, draw):
    top = torch.finfo(dtype).max
    if dtype.itemsize == 1:
        values = torch.arange(256, dtype=torch.uint8).view(dtype).double().numpy()
        parts = [neighbourhood(values[np.isfinite(values)])]
    else:  # some values, each with a neighbour in the format, so that true midpoints arise
        patterns = torch.from_numpy(draw.integers(-2**15, 2**15, 120, dtype=np.int16))
        pairs = np.stack([(patterns ^ i).view(dtype).double().numpy() for i in (0, 1)], axis=1)
        parts = [neighbourhood(pair) for pair in pairs if np.isfinite(pair).all()]
        parts.append(neighbourhood(np.array([top, 2.0**math.ceil(math.log2(top))])))
    parts.append(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45], np.float32))
    bits = np.unique(np.concatenate(parts).view(np.int32))
    return torch.from_numpy(bits).view(torch.float32)


def write_roundings(path):
    draw = np.random.default_rng(1)
    with open(path, "w") as f:
        for name, dtype in FORMATS.items():
            x = inputs(dtype, draw)
            top = torch.finfo(dtype).max
            cast = (x.clamp(-top, top) if dtype.itemsize == 1 else x).to(dtype)
            y = cast.view(torch.uint8).view(len(x), dtype.itemsize).numpy()[:, ::-1]
            print(name, len(x), file=f)
            for a, b in zip(x.view(torch.int32).tolist(), y):
                print("%08x" % (a & 0xffffffff), b.tobytes().hex(), file=f)


def write_scaled(path):
    draw = np.random.default_rng(2)
    with open(path, "w") as f:
        for row in range(40):
            name = ("fp8_e4m3", "fp8_e5m2")[row % 2]
            top = torch.finfo(FORMATS[name]).max
            x = draw.standard_normal(24) * 2.0**draw.integers(-40, 40)
            x[:8] *= 2.0**draw.integers(-24, 0, 8)  # into the subnormals
            if row % 4 == 2:  # the largest magnitude is where the scale changes, or next to it
                x *= top * 2.0**draw.integers(-30, 30) / np.abs(x).max() * (1 + 1e-7 * (row % 3 - 1))
            x = torch.from_numpy(x.astype(np.float32))
            mantissa, exponent = math.frexp(x.abs().max().item() / top)
            scale = 2.0**(exponent - (mantissa == 0.5))
            cast = (x / scale).clamp(-top, top).to(FORMATS[name])
            print(name, len(x), file=f)
            for a, b in zip(x.view(torch.int32).tolist(),
                            (cast.float() * scale).view(torch.int32).tolist()):
                print("%08x %08x" % (a & 0xffffffff, b & 0xffffffff), file=f)


def write_functions(path):
    mpmath.mp.prec = 1300  # enough for e^x - 1 at tiny x, and for sin(pi x) at huge x
    draw = random.Random(1)
    around = lambda size: draw.choice((-1, 1)) * math.exp(draw.uniform(math.log(size), 0))
    points = {
        "exp": [draw.uniform(-745, 709) for _ in range(40)] + [around(1e-18) for _ in range(20)]
               + [0.0, 1.0, -1.0, 709.782712893384, -708.3, -744.4, 0.34657359, -0.34657359],
        "expm1": [draw.uniform(-40, 50) for _ in range(20)] + [around(1e-300) for _ in range(20)]
                 + [draw.uniform(-1.1, 1.1) for _ in range(30)]
                 + [0.0, 39.9, 40.1, -39.9, -40.1, -1000.0, 709.7],
        "log": [math.exp(draw.uniform(-740, 709)) for _ in range(30)]
               + [1 + around(1e-16) / 2 for _ in range(30)]
               + [1.0, 5e-324, 1.7976931348623157e308, 0.5, 2.0, 0.7071067811865475,
                  0.7071067811865476, 1.4142135623730951],
        "sinpi": [draw.uniform(-2.5, 2.5) for _ in range(40)] + [around(1e-300) for _ in range(15)]
                 + [draw.uniform(1e5, 1e15) for _ in range(8)]
                 + [0.0, 0.25, -0.25, 0.5, 1.0, 1.5, -1.5, 1e300],
        "cospi": [draw.uniform(-2.5, 2.5) for _ in range(40)] + [around(1e-10) for _ in range(15)]
                 + [draw.uniform(1e5, 1e15) for _ in range(8)]
                 + [0.0, 0.25, -0.25, 0.5, 1.0, 1.5, -1.5, 1e300],
    }
    with open(path, "w") as f:
        for name, xs in points.items():
            for x in xs:
                exact = getattr(mpmath, name)(mpmath.mpf(x))
                y = float(exact)
                print(name, x.hex(), y.hex(), float(exact - mpmath.mpf(y)).hex(), file=f)


write_roundings("tests/fixtures/numerics_round.txt")
write_scaled("tests/fixtures/numerics_scaled.txt")
write_functions("tests/fixtures/numerics_functions.txt")
