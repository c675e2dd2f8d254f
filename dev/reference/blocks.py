"""Writes tests/fixtures/blocks.txt for tests/test_blocks.c: weights rounded to formats with block scales
(llmc/base/blocks.h). A line "FORMAT ROWS COLS", then for each element of the matrix two hexadecimal
numbers: the bits of a float32, and of its value in the format.

Elements and scales are cast by ml_dtypes. PyTorch's casts of the same types must agree, and where torchao is
installed so must its MX and NVFP4 tensors.

    python3 dev/reference/blocks.py
"""
import math

import ml_dtypes
import numpy as np
import torch

# name: (element, its largest value, rows and columns of a block, scale)
FORMATS = {"mxfp8": (ml_dtypes.float8_e4m3fn, 448, 1, 32, "power"),
           "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 28, 1, 32, "power"),
           "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 7.5, 1, 32, "power"),
           "mxfp4": (ml_dtypes.float4_e2m1fn, 6, 1, 32, "power"),
           "nvfp4": (ml_dtypes.float4_e2m1fn, 6, 1, 16, "two levels"),
           "deepseek": (ml_dtypes.float8_e4m3fn, 448, 128, 128, "fp32"),
           "int8": (None, 127, 1, None, "fp32"),
           "int4": (None, 7, 1, 128, "fp32")}


def element(x, name):
    """x (float32) to the nearest element, ties to even, saturating."""
    dtype, top, _, _, _ = FORMATS[name]
    x = np.clip(x, -top, top)
    if dtype is None:
        return np.rint(x)
    y = x.astype(dtype).astype(np.float32)
    if dtype is ml_dtypes.float8_e4m3fn:
        assert np.array_equal(torch.from_numpy(x).to(torch.float8_e4m3fn).float().numpy(), y)
    return y


def scale_of(block, tensor, name):
    dtype, top, _, _, kind = FORMATS[name]
    amax, whole = np.abs(block).max(), np.abs(tensor).max()
    if kind == "power":
        exponent = math.floor(math.log2(top))
        shared = -127 if amax == 0 else max(math.frexp(amax)[1] - 1 - exponent, -127)
        s = np.float32(2.0**shared)
        assert np.float32(s.astype(ml_dtypes.float8_e8m0fnu)) == s
        assert torch.tensor(s).to(torch.float8_e8m0fnu).float().item() == s
        return s
    if kind == "fp32":
        return amax / np.float32(top)
    t = whole / np.float32(6 * 448)
    if t == 0:
        return np.float32(0)
    ratio = np.minimum(amax / np.float32(6) / t, np.float32(448))
    return t * ratio.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def rounded(x, name):
    _, _, rows, cols, _ = FORMATS[name]
    y, cols = np.empty_like(x), cols or x.shape[1]
    for r in range(0, x.shape[0], rows):
        for c in range(0, x.shape[1], cols):
            block = x[r:r + rows, c:c + cols]
            s = scale_of(block, x, name)
            y[r:r + rows, c:c + cols] = (element(block / s, name) * s if s != 0
                                         else block * np.float32(0))
    return y


def ties(name):
    """A row of a block that holds all midpoints of neighbouring elements and their float32 neighbours, as many
    as fit, under a scale of 1."""
    dtype, top, _, cols, kind = FORMATS[name]
    values = (np.arange(top + 1, dtype=np.float32) if dtype is None else
              np.unique(np.abs(np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32))))
    values = values[np.isfinite(values)]
    middle = (values[1:] + values[:-1]) / 2
    points = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)),
                             np.nextafter(middle, np.float32(0))]).astype(np.float32)
    width = (cols or 41) - 1
    rows = [points[i:i + width] for i in range(0, len(points), width)][:12]
    out = np.zeros((len(rows), width + 1), np.float32)
    for i, row in enumerate(rows):
        out[i, :len(row)] = row * (-1)**np.arange(len(row))
        out[i, -1] = top * (448 if kind == "two levels" and i == 0 else 1)
    return out


def order_of_division(draw):
    """A tensor of nvfp4 with a block whose scale would be another one if amax / (6 t) were computed."""
    e4m3 = ml_dtypes.float8_e4m3fn
    values = np.arange(1, 127, dtype=np.uint8).view(e4m3).astype(np.float32)
    middle, six, steps = (values[1:] + values[:-1]) / 2, np.float32(6), np.arange(-4, 5)
    while True:
        whole = np.float32(draw.uniform(1, 2))
        t = whole / np.float32(6 * 448)
        amax = (middle * six * t)[:, None].view(np.uint32) + steps.astype(np.uint32)
        amax = np.sort(amax.astype(np.uint32).view(np.float32).ravel())
        differ = amax[(amax / six / t).astype(e4m3) != (amax / (six * t)).astype(e4m3)]
        if len(differ):
            x = np.zeros((1, 32), np.float32)
            x[0, 0], x[0, 16:] = whole, differ[-1] * draw.uniform(-1, 1, 16)
            x[0, 20] = differ[-1]
            return x


def cases(name, draw):
    _, top, rows, cols, _ = FORMATS[name]
    wide = cols or 37
    if rows > 1:  # blocks at the edges are what is left
        shapes = [(3, wide + 2), (rows + 2, 3)]
    else:
        shapes = [(3, 2 * wide + 5), (2, wide), (1, 3)]
    for shape in shapes:
        x = draw.standard_normal(shape) * 2.0**draw.integers(-6, 6, (shape[0], 1))
        yield x * np.where(draw.random(shape) < 0.2, 2.0**draw.integers(-20, 0, shape), 1)
    edges = np.zeros((12, wide))
    edges[1] = -0.0
    edges[2] = 3.0                                        # all are the largest
    edges[3, 0] = -top                                    # nothing but the largest
    edges[4] = 2.0**-140 * draw.integers(-500, 500, wide)  # subnormal numbers
    edges[5, :3] = 2.0**-149, -2.0**-149, 3 * 2.0**-149
    edges[6] = 2.0**127 * draw.uniform(-1.9, 1.9, wide)
    edges[7] = draw.uniform(-1, 1, wide) * 2.0**-30
    edges[7, 1] = 1.0                                     # one is far above the others
    edges[8, :3] = 1.0, 1 - 2.0**-24, -1.5                # about a power of two
    edges[9, :3] = 2 - 2.0**-23, -1.0, 0.3                # rounds up to the next one
    edges[10] = np.float32(0.1)
    edges[11] = top * draw.uniform(-1, 1, wide)
    for row in edges:
        yield row[None, :]
    if name == "nvfp4":
        yield order_of_division(draw)
    if rows == 1:
        yield edges[[0, 2, 3, 7, 8]]                      # with one scale of the tensor
        yield ties(name)


def check_torchao(x, y, name):
    try:
        from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    except ImportError:
        return 0
    # It leaves no part of a block, and no scale that is a subnormal float32.
    if x.shape[1] % FORMATS[name][3] or np.abs(x).max() < 2.0**-100:
        return 0
    data = torch.from_numpy(x)
    kinds = {"mxfp8": torch.float8_e4m3fn, "mxfp4": torch.float4_e2m1fn_x2}
    if name in kinds:
        got = MXTensor.to_mx(data, kinds[name], 32, ScaleCalculationMode.FLOOR).dequantize(torch.float32)
    else:
        per_tensor = per_tensor_amax_to_scale(data.abs().max())
        got = NVFP4Tensor.to_nvfp4(data, per_tensor_scale=per_tensor).dequantize(torch.float32)
    assert np.array_equal(got.numpy(), y), (name, x.shape)
    return 1


def main():
    draw = np.random.default_rng(3)
    compared = 0
    with open("tests/fixtures/blocks.txt", "w", encoding="ascii") as f, np.errstate(under="ignore"):
        for name in FORMATS:
            for x in cases(name, draw):
                x = x.astype(np.float32)
                y = rounded(x, name)
                assert np.isfinite(y).all()
                if name in ("mxfp8", "mxfp4", "nvfp4"):
                    compared += check_torchao(x, y, name)
                print(name, *x.shape, file=f)
                for a, b in zip(x.view(np.uint32).ravel(), y.view(np.uint32).ravel()):
                    print(f"{a:08x} {b:08x}", file=f)
    print(f"{compared} matrices compared with torchao")


main()
