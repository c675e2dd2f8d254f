#!/usr/bin/env python3
"""Fills the tables of dev/ladders/README.md from a results file of dev/gpu/results:

    python3 dev/ladders/table.py dev/gpu/results/FILE.json
    python3 dev/ladders/table.py                         # empties them: nothing measured

Only cells are filled. Which ops, rungs and shapes there are is the README's matter: a table belongs
to the op that the heading above it names, its header ends with the shapes that are timed, and a row
begins with the rung's number and name. A result that has no cell there is an error, so that programs
and README cannot drift apart; a cell that has no result stays empty.
"""
import json
import pathlib
import re
import sys

README = pathlib.Path(__file__).with_name("README.md")
SHAPES_FROM = 3  # columns before: rung, name, what changes
SOURCE = "Times:"  # how the line above the tables begins


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def text_of(result):
    us = result["us"]
    time = f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.1f} µs"
    return f"{time}, {100 * result['share']:.1f} %"


def limits_of(ladder):
    """The limits as measured beside each shape: "layernorm 2950 to 2960 GB/s"."""
    found = {}
    for r in ladder:
        found.setdefault((r["op"], r["unit"]), []).append(r["limit"])
    return "; ".join(f"{op} {min(x):.4g} to {max(x):.4g} {unit}" for (op, unit), x in found.items())


def fill(lines, ladder, source):
    left = {(r["op"], r["rung"], r["name"], r["shape"]): text_of(r) for r in ladder}
    if len(left) != len(ladder):
        sys.exit("two results for the same op, rung and shape")
    op, shapes = None, []
    for line in lines:
        cells = cells_of(line)
        if line.startswith("## "):
            op = line[3:].strip()
        elif line.startswith("| rung |"):
            shapes = cells[SHAPES_FROM:]
        elif line.startswith(SOURCE):
            line = f"{SOURCE} {source}\n"
        elif re.match(r"\| \d+ \|", line):
            key = op, int(cells[0]), cells[1]
            filled = [left.pop((*key, shape), "") for shape in shapes]
            line = "| " + " | ".join(cells[:SHAPES_FROM] + filled) + " |\n"
        yield line
    if left:
        sys.exit(f"{README} has no cell for {', '.join(map(str, left))}")


def main():
    ladder, source = [], "not measured yet."
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        path = pathlib.Path(sys.argv[1])
        ladder = json.loads(path.read_text()).get("ladder", [])
        if not ladder:
            sys.exit(f"{path} has no times of the ladders")
        source = f"`{path.name}` of `dev/gpu/results`; limits: {limits_of(ladder)}."
    lines = README.read_text().splitlines(keepends=True)
    README.write_text("".join(list(fill(lines, ladder, source))))


if __name__ == "__main__":
    main()
