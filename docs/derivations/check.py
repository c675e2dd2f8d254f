#!/usr/bin/env python3
"""Checks the pages beside it against the program and its sources.

    python3 docs/derivations/check.py [PAGE...]      needs build/dev/reference/derivations and torch

- The Python of a page runs on inputs that dev/reference/derivations.c draws. Inputs are float64.
  What the program computes from them must be what the page computes: float32 results of the page to
  the bit, others within 2^-20 of the largest element of the array, which is 16 roundings to fp32: the
  longest sums have 40 terms, whose errors add up to about the root of that, and exp or log err by one.
- [`name`](file.c) names a function that the file defines.
- C code stands in the file of the last such link above it, line by line.
- Formulas are TeX that matplotlib reads, too. A page has at most 100 lines.
"""
import os
import re
import subprocess
import sys

import torch
from matplotlib import mathtext

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.environ.get("DERIVATIONS", os.path.join(HERE, "../../build/dev/reference/derivations"))
BOUND = 2.0 ** -20


def arrays_of(page):
    """What the program was given, by name, and what it gives: pairs of an expression and an array."""
    done = subprocess.run([PROGRAM, page], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{PROGRAM}: {done.stderr.strip()}")
    given, gives = {}, []
    for line in done.stdout.splitlines():
        which, name, kind, rows, columns, *values = line.split(" ")
        if kind == "int":
            array = torch.tensor([int(v) for v in values])
        else:
            array = torch.tensor([float(v) for v in values]).view(int(rows), int(columns)).double()
            array.requires_grad_(which == "given")
        if which == "given":
            given[name] = array
        else:
            gives.append((name, array))
    return given, gives


def check_numbers(page, text):
    """The largest difference, in units of the largest element."""
    given, gives = arrays_of(page)
    names = {"torch": torch, "F": torch.nn.functional, **given}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)), names)
    worst = 0
    for name, ours in gives:
        theirs = eval(name, names).detach()
        exact = theirs.dtype == torch.float32
        theirs = theirs.double().reshape(ours.shape)
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not difference <= (0 if exact else BOUND):
            raise ValueError(f"{name}: {difference:.2g} of the largest element lies between the page "
                             "and the program")
        worst = max(worst, difference)
    return worst


def lines_of(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_sources(text):
    """Links to functions, and C code. Returns how many functions are named."""
    source, count = None, 0
    for name, path, code in re.findall(r"\[`(\w+)`\]\(([^)]+\.[ch])\)|^```c\n(.*?)^```$", text, re.M | re.S):
        if name:
            with open(os.path.join(HERE, path), encoding="utf-8") as f:
                source = f.read()
            count += 1
            if not re.search(rf"^\w[\w *]*\b{name}\(", source, re.M):
                raise ValueError(f"{path} defines no function {name}")
        elif "\n".join(lines_of(code)) not in "\n".join(lines_of(source or "")):
            raise ValueError(f"these lines are not in the file that is named above them:\n{code}")
    return count


def check_formulas(text):
    parser = mathtext.MathTextParser("agg")
    for block in re.findall(r"^```math\n(.*?)^```$", text, re.M | re.S):
        block = re.sub(r"\\(begin|end)\{aligned\}", "", block).replace("&", "")
        for formula in block.split("\\\\"):
            parser.parse(f"${' '.join(formula.split())}$")


def main():
    pages = sys.argv[1:] or sorted(f for f in os.listdir(HERE) if f.endswith(".md"))
    failed = 0
    for page in pages:
        with open(os.path.join(HERE, os.path.basename(page)), encoding="utf-8") as f:
            text = f.read()
        try:
            if text.count("\n") > 100:
                raise ValueError("longer than 100 lines")
            check_formulas(text)
            functions = check_sources(text)
            worst = check_numbers(os.path.basename(page)[:-len(".md")], text)
            print(f"{page}: {functions} functions, largest difference {worst:.1e}")
        except Exception as error:  # whatever a page's code raises
            failed += 1
            print(f"{page}: {type(error).__name__}: {error}")
    print(f"{len(pages) - failed} passed, {failed} failed")
    return 1 if failed or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
