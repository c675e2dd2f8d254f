#!/usr/bin/env python3
"""What a GPU's published limits allow, on paper: each kernel of a training step of GPT-2 124M, and of a step of decoding.

    python3 dev/gpu/roofline.py cards|training|decoding

A kernel takes at least the time in which its bytes move (each array read once and written once) and in
which its FLOPs are done, whichever is longer. Beside it stands what results/ measured on an H100. Where
a result counts bytes or FLOPs too, they must be these.
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
MEASURED = "2026-11-26-nvidia-h100-80gb-hbm3.json"

# name, TFLOP/s in bf16 with fp32 sums, dense; GB/s of memory; where both stand
CARDS = [("A100", 312.0, 2039.0, "A100 80GB SXM, NVIDIA's data sheet"),
         ("H100", 989.4, 3350.0, "H100 SXM, NVIDIA's data sheet"),
         ("H200", 989.4, 4800.0, "H200 SXM, NVIDIA's data sheet"),
         ("4090", 165.2, 1008.0, "RTX 4090, NVIDIA Ada architecture paper, appendix A")]

L, C, V, T, SEQUENCES = 12, 768, 50257, 1024, 16
N, VC = SEQUENCES * T, V * C
NC = N * C
BLOCKS = 12 * L * C * C                # parameters of products in blocks
ALL = VC + T * C + L * (12 * C * C + 13 * C) + 2 * C
SLOTS, POSITION = 256, 160
HEAD = "head forward and backward"
# Counted by build/ptx/profile --layers 12 (handwritten products, one chunk of logits).
LAUNCHES = {"training": "502 launches a step",
            "decoding": "112 kernels a step, in 1 launch where the step is replayed"}


def product(rows, inputs, outputs, result=2):
    """Bytes and FLOPs of a product of bf16; `result`: bytes of an element that is written."""
    return 2 * (rows * inputs + inputs * outputs) + result * rows * outputs, 2 * rows * inputs * outputs


def weight_gradient(rows, inputs, outputs):
    return 2 * rows * (inputs + outputs) + 8 * inputs * outputs, 2 * rows * inputs * outputs


def products():
    """Name, inputs, outputs and bytes of an element of the input gradient."""
    return [("qkv", C, 3 * C, 4), ("attproj", C, C, 2), ("fc", C, 4 * C, 4), ("fcproj", 4 * C, C, 4)]


def training():
    """Kernel, how often in a step, bytes, FLOPs."""
    pairs = SEQUENCES * T * (T + 1) / 2
    embedded = 4 * (N * C + T * C)
    rows = [("embed forward", 1, embedded + 2 * NC, 0),
            ("norm forward with residual sum", 2 * L + 1, 8 * NC, 0)]
    for name, inputs, outputs, _ in products():
        rows.append((f"{name} forward", L, *product(N, inputs, outputs)))
    rows += [("attention forward, long", L, 8 * NC, 2 * 2 * C * pairs),
             ("gelu forward", L, 16 * NC, 0),
             ("gather rows", 1, 4 * NC, 0),
             (HEAD, 1, 6 * NC + 12 * VC + 4 * N, 6 * N * VC),
             ("norm backward", 2 * L + 1, 10 * NC, 0),
             ("gelu backward", L, 32 * NC, 0),
             ("attention backward, long", L, 18 * NC, 5 * 2 * C * pairs)]
    for name, inputs, outputs, result in products():
        rows.append((f"{name} input gradient", L, *product(N, outputs, inputs, result)))
        rows.append((f"{name} weight gradient", L, *weight_gradient(N, inputs, outputs)))
    return rows + [("embed backward", 1, 2 * NC + 8 * (N * C + T * C), 0),
                   ("sum of squares", 1, 4 * ALL, 0),
                   ("AdamW", 1, 28 * ALL, 0),
                   ("weights in bf16", 1, 6 * (BLOCKS + VC), 0)]


def decoding():
    rows = [("norm forward, decoding", 2 * L + 1, 8 * SLOTS * C, 0)]
    for name, inputs, outputs, _ in products():
        rows.append((f"{name}, decoding", L, *product(SLOTS, inputs, outputs)))
    return rows + [("gelu forward, decoding", L, 16 * SLOTS * C, 0),
                   ("kv write", L, 8 * SLOTS * C, 0),
                   ("attention cached", L, 4 * SLOTS * C * POSITION, 4 * SLOTS * C * POSITION),
                   ("sample", 1, 2 * VC + 2 * SLOTS * C, 2 * SLOTS * VC)]


def read_measured():
    with open(os.path.join(HERE, "results", MEASURED), encoding="utf-8") as f:
        return {line["name"]: line for line in json.load(f)["timings"]}


def measured_us(lines, row):
    """Microseconds of a call, or None. What the result counted must be what is counted here."""
    name, _, size, flops = row
    line = lines.get(name)
    if not line:  # older results time the head's two passes apart
        return sum(lines[f"head {part}"]["us"] for part in ("forward", "backward")) if name == HEAD else None
    if line["kind"] == "product":
        return flops / line["tflops"] / 1e6
    counted = "bytes" if "bytes" in line else "flops"
    ours = size if counted == "bytes" else flops
    if abs(line[counted] - ours) > 1e-9 * ours:
        sys.exit(f"{name}: {MEASURED} counts {line[counted]} {counted}, and not {ours}")
    return line["us"]


def table(rows, lines):
    print(f"{'':32s}{'':5s}{'a call':>16s}  {'microseconds a step, at least':>31s}  {'measured':>9s}")
    print(f"{'kernel':32s}{'calls':>5s}{'MB':>8s}{'GFLOP':>8s}  "
          + "".join(f"{card[0]:>8s}" for card in CARDS) + f"{'H100':>10s}")
    total, found = [0.0] * len(CARDS), 0.0
    for row in rows:
        name, calls, size, flops = row
        least = [calls * max(size / card[2] / 1e3, flops / card[1] / 1e6) for card in CARDS]
        us = measured_us(lines, row)
        total = [a + b for a, b in zip(total, least)]
        found += calls * us if us else 0
        print(f"{name:32s}{calls:5d}{size / 1e6:8.1f}{flops / 1e9:8.1f}  "
              + "".join(f"{x:8.0f}" for x in least) + (f"{calls * us:10.0f}" if us else f"{'-':>10s}"))
    print(f"{'all':53s}  " + "".join(f"{x:8.0f}" for x in total) + f"{found:10.0f}")
    return total


def rates(what, total, tokens, line):
    print(f"{'tokens/s, at most, thousands':53s}  "
          + "".join(f"{tokens / x * 1e3:8.0f}" for x in total) + f"{line['tokens_per_s'] / 1e3:10.0f}")
    print(LAUNCHES[what])


def main():
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    lines = read_measured()
    if what == "cards":
        for name, flops, memory, source in CARDS:
            print(f"{name:6s}{flops:7.1f} TFLOP/s{memory:7.0f} GB/s   {source}")
    elif what == "training":
        rates(what, table(training(), lines), N, lines["124M long"])
    elif what == "decoding":
        rates(what, table(decoding(), lines), SLOTS, lines["256 sequences"])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
