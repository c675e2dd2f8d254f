#!/usr/bin/env python3
"""Makes llmc/text/unicode_tables.h: what the patterns of tokenizers mean by letters, numbers and
spaces, and what NFC composes, as the tokenizers package has it.

    python3 dev/text/unicode.py > llmc/text/unicode_tables.h      (needs tokenizers)

Letters, numbers and spaces are asked of its regular expressions, digits of its Digits step,
decompositions of its normalizer. The class of a mark is told by the marks of known classes that it
changes places with there.
"""
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]


def ranges(points):
    found = []
    for c in sorted(points):
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return found


def matching(pattern):
    replace = normalizers.Replace(Regex(pattern), "\x01")
    return [c for c in POINTS if c > 1 and replace.normalize_str(chr(c)) == "\x01"]


def digits():
    step = pre_tokenizers.Digits(individual_digits=True)
    return [c for c in POINTS if len(step.pre_tokenize_str("a" + chr(c))) == 2]


def put(name, meaning, rows):
    width = len(rows[0])
    print(f"\n// {meaning}\nstatic const uint32_t {name}[][{width}] = {{")
    line = "   "
    for row in rows:
        text = " {" + ", ".join(f"{x:#x}" for x in row) + "},"
        if len(line) + len(text) > 100:
            print(line)
            line = "   "
        line += text
    print(line + "\n};")


def decompositions():
    """(point, first, second, whether the two compose to it); second 0: a single one."""
    nfd, nfc, found = normalizers.NFD(), normalizers.NFC(), []
    whole = {c: nfd.normalize_str(chr(c)) for c in POINTS}
    by_text = {}
    for c in POINTS:
        if not 0xAC00 <= c <= 0xD7A3:
            by_text.setdefault(whole[c], []).append(c)
    for c in POINTS:
        if whole[c] == chr(c) or 0xAC00 <= c <= 0xD7A3:
            continue
        text = whole[c]
        if len(text) == 1:
            found.append((c, ord(text), 0, 0))
            continue
        # The first part of a pair may itself be composed: a text without its last character.
        parts = by_text.get(text[:-1], [])
        stable = [p for p in parts if nfc.normalize_str(chr(p)) == chr(p)]
        if not parts:
            raise SystemExit(f"U+{c:04X} decomposes to what no pair gives: {text!a}")
        first = (stable or parts)[0]
        found.append((c, first, ord(text[-1]), int(nfc.normalize_str(chr(c)) == chr(c))))
    return found


def combining_classes():
    """{class: points}: which marks change places with which marks of a known class tells theirs."""
    nfd, known, found = normalizers.NFD(), {}, {}

    def trade(a, b):  # whether their classes differ
        return nfd.normalize_str(a + b) != a + b or nfd.normalize_str(b + a) != b + a

    marks = [c for c in POINTS if c >= 0x300 and nfd.normalize_str(chr(c)) == chr(c) and
             (trade(chr(c), "\u0334") or trade(chr(c), "\u0301"))]  # of class 1 and 230
    for c in marks:
        known.setdefault(unicodedata.combining(chr(c)), chr(c))
    for c in marks:
        same = [k for k, x in known.items() if k and not trade(chr(c), x)]
        if len(same) != 1:
            raise SystemExit(f"U+{c:04X} has the class of none of these: {same}")
        found.setdefault(same[0], []).append(c)
    return found


def main():
    print("// Made by dev/text/unicode.py. Ranges hold both ends.")
    put("LETTERS", r"\p{L} of the patterns", ranges(matching(r"\p{L}")))
    put("NUMBERS", r"\p{N} of the patterns", ranges(matching(r"\p{N}")))
    put("SPACES", r"\s of the patterns", ranges(matching(r"\s")))
    put("DIGITS", "what the Digits step takes for a digit", ranges(digits()))
    put("DECOMPOSED", "a point, the two that it decomposes to (the second may be 0), and whether NFC "
        "composes them", decompositions())
    classes = combining_classes()
    put("COMBINING", "ranges of points, and their combining class",
        sorted((a, b, k) for k in classes for a, b in ranges(classes[k])))


main()
