#!/usr/bin/env python3
"""Writes llmc/text/unicode_tables.h: what the tokenizers package knows of Unicode.

    python3 dev/text/unicode_tables.py > llmc/text/unicode_tables.h

The tables come from the package itself (its regular expressions, its Digits step, its NFC), not from
a Unicode release, because these three know different releases, and tokens must be equal to theirs.
"""
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
NFC, NFD = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str


def cut_out(pre_tokenizer):
    """The characters that a pre-tokenizer removes from a text."""
    found = set(POINTS)
    for start in range(0, len(POINTS), 4096):
        some = POINTS[start : start + 4096]
        for _, (a, b) in pre_tokenizer.pre_tokenize_str("".join(map(chr, some))):
            found.difference_update(some[a:b])
    return found


def matching(regex):
    return cut_out(pre_tokenizers.Split(Regex(regex), "removed"))


def digits():
    """The Digits step leaves each digit alone; between letters, any other piece is longer."""
    step, found = pre_tokenizers.Digits(individual_digits=True), set()
    for start in range(0, len(POINTS), 4096):
        text = "x".join(["", *map(chr, POINTS[start : start + 4096]), ""])
        found.update(ord(p) for p, _ in step.pre_tokenize_str(text) if len(p) == 1 and p != "x")
    return found


def classes():
    letters, numbers, spaces = matching(r"\p{L}"), matching(r"\p{N}"), matching(r"\s")
    numeric = digits()
    assert not (letters & numbers or letters & spaces or numbers & spaces)
    assert numbers <= numeric and not numeric & (letters | spaces)
    counts = f"{len(letters)} letters, {len(numbers)} numbers, {len(spaces)} spaces, {len(numeric)} digits"
    starts, last = [], None
    for c in range(0x110000):
        kind = 1 if c in letters else 2 if c in numbers else 3 if c in spaces else 0
        kind |= 4 if c in numeric else 0
        if kind != last:
            starts.append(c << 3 | kind)
        last = kind
    return counts, starts


def combining():
    """Canonical combining classes: (character, class), found by what NFD moves across what."""
    low, high = "\u0334", "\u0345"  # of classes 1 and 240, the ends
    marks = []  # what moves across one of them; the package does not know all that unicodedata knows
    for s in map(chr, POINTS):
        if NFD(s) == s and (NFD(s + low) != s + low or NFD(high + s) != high + s):
            marks.append(s)
    example = {}
    for s in marks:
        example.setdefault(unicodedata.combining(s), s)
    # A mark's class is the largest whose example it does not move in front of.
    return [(ord(s), max(k for k, e in example.items() if k and NFD(e + s) == e + s)) for s in marks]


def decompositions():
    full = {}
    for c in POINTS:
        if not 0xAC00 <= c < 0xAC00 + 11172 and NFD(chr(c)) != chr(c):
            full[NFD(chr(c))] = full.get(NFD(chr(c)), []) + [c]
    rows = []
    for text, points in full.items():
        for c in points:
            composes = NFC(chr(c)) == chr(c)
            if len(text) == 1:
                rows.append((c, ord(text), 0, 0))
                continue
            front = text[:-1]
            if len(front) > 1:
                front = NFC(front) if len(NFC(front)) == 1 else chr(full[front][0])
            rows.append((c, ord(front), ord(text[-1]), int(composes)))
            assert NFD(text[-1]) == text[-1]
            if composes:
                assert NFC(front + text[-1]) == chr(c)
    return sorted(rows)


def table(kind, name, texts):
    print(f"static const {kind} {name}[] = {{")
    line = "   "
    for t in texts:
        if len(line) + len(t) + 2 > 100:
            print(line)
            line = "   "
        line += f" {t},"
    print(line.rstrip(",") + "};\n")


def main():
    counts, starts = classes()
    print(f"""// Made by dev/text/unicode_tables.py from tokenizers {tokenizers.__version__}; do not edit.
// clang-format off
#ifndef LLMC_UNICODE_TABLES_H
#define LLMC_UNICODE_TABLES_H

#include <stdint.h>

// Where the class of characters changes, in order: first character << 3 | class. Bits 0 and 1 are 1
// for letters, 2 for numbers, 3 for spaces; bit 2 marks what the Digits step cuts out.
// {counts}.""")
    table("uint32_t", "UNICODE_CLASSES", (f"0x{x:x}" for x in starts))
    marks, runs = combining(), []
    for c, k in marks:
        if runs and runs[-1][0] + runs[-1][1] == c and runs[-1][2] == k:
            runs[-1][1] += 1
        else:
            runs.append([c, 1, k])
    print("// Combining marks: runs of (first character, count, class), in order.")
    table("uint32_t", "UNICODE_MARKS", (f"0x{c:x}, {n}, {k}" for c, n, k in runs))
    rows = decompositions()
    print("// Canonical decompositions but Hangul's: (character, first part, second part or 0), in order.")
    table("uint32_t", "UNICODE_PARTS", (f"0x{c:x}, 0x{a:x}, 0x{b:x}" for c, a, b, _ in rows))
    pairs = sorted((a, b, i) for i, (c, a, b, composes) in enumerate(rows) if composes)
    print("// Rows of UNICODE_PARTS whose parts NFC puts together, ordered by the parts.")
    table("uint16_t", "UNICODE_WHOLES", (str(i) for _, _, i in pairs))
    print("#endif")


if __name__ == "__main__":
    main()
