#!/usr/bin/env python3
"""Compares bpe with the tokenizers package, and with tiktoken if that is asked for, on hard strings.

    make dev
    python3 dev/text/test_bpe.py                      # 2,000 strings for small tokenizers made here
    python3 dev/text/test_bpe.py --count 250000 --tiktoken 100000 FOLDER...   # for real ones (packages.py)

A folder holds a tokenizer.json, or GPT-2's vocab.json and merges.txt. Every string is encoded and
decoded by both; the first difference is printed, and the exit status is 1.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import fixtures

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, "build/dev/text/tokenize")


class Ours:
    """The program, answering records."""

    def __init__(self, folder):
        self.p = subprocess.Popen([PROGRAM, "records", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, kind, count, data, size):
        self.p.stdin.write(kind + struct.pack("<I", count) + data)
        self.p.stdin.flush()
        (n,) = struct.unpack("<I", self.p.stdout.read(4))
        return self.p.stdout.read(n * size)

    def encode(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        answer = self.ask(b"e", len(data), data, 4)
        return list(struct.unpack(f"<{len(answer) // 4}i", answer))

    def decode(self, ids, specials):
        return self.ask(b"D" if specials else b"d", len(ids), struct.pack(f"<{len(ids)}i", *ids), 1)

    def close(self):
        self.p.stdin.close()
        return self.p.wait()


def load(folder):
    path = os.path.join(folder, "tokenizer.json")
    if os.path.exists(path):
        return Tokenizer.from_file(path)
    vocab, merges = os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt")
    t = Tokenizer(models.BPE.from_file(vocab, merges))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return t


SPACES = [chr(c) for c in range(0x110000) if chr(c).isspace()] + list("\u180e\u200b\u2060\ufeff\x1c\x1f")
MARKS = [chr(c) for c in range(0x300, 0x20000) if unicodedata.combining(chr(c))]
DIGITS = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c))[0] == "N"]
WHOLES = [chr(c) for c in range(0x30000) if unicodedata.normalize("NFD", chr(c)) != chr(c)]
HANGUL = [chr(c) for c in [*range(0x1100, 0x1176), *range(0x11A7, 0x11C3), *range(0xAC00, 0xAC40)]]
LANGUAGES = "der Fluß naïve Ελληνικά русский язык עברית العربية हिन्दी ภาษาไทย 日本語 中文 한국어 tiếng Việt".split()
SHORT = ["'s", "'S", "'T", "'Re", "'VE", "'m", "'LL", "'lL", "'d", "'ſ", "'x", "''", "'", "'re", "'e", "'K"]


def code_lines():
    lines = []
    for folder, _, files in os.walk(ROOT):
        if "/." in folder or "/build" in folder:
            continue
        for name in sorted(files):
            if name.endswith((".c", ".py", ".md", ".h")):
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    lines += f.readlines()
    return lines


class Strings:
    def __init__(self, tokenizer, seed):
        self.r = random.Random(seed)
        self.lines = code_lines()
        self.t = tokenizer
        added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
        self.added = added + [a[:-1] for a in added] + [a + ">" for a in added] or ["<|x|>"]
        self.size = tokenizer.get_vocab_size()

    def point(self):
        r = self.r
        top = r.choice([0x80, 0x100, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])
        c = r.randrange(top)
        return chr(c) if not 0xD800 <= c < 0xE000 else "\ufffd"

    def piece(self):
        r = self.r
        kind = r.randrange(15)
        if kind == 0:
            return r.choice(self.lines)
        if kind == 1:
            return "".join(self.point() for _ in range(r.randrange(8)))
        if kind == 2:
            return "".join(r.choice("0123456789") for _ in range(r.randrange(1, 12)))
        if kind == 3:
            return "".join(r.choice(SPACES) for _ in range(r.randrange(1, 5)))
        if kind == 4:
            return r.choice(" \n\r\t") * r.randrange(1, 6)
        if kind == 5:
            return chr(r.choice([*range(32), 127, *range(0x80, 0xA0)]))
        if kind == 6:
            return r.choice(self.added)
        if kind == 7:  # what bytes of tokens of no sense make
            ids = [r.randrange(self.size) for _ in range(r.randrange(1, 6))]
            return self.t.decode(ids, skip_special_tokens=False)
        if kind == 8:
            return r.choice(SHORT) + r.choice(["", " ", "a", "S"])
        if kind == 9:
            return "".join(r.choice("aé\u1e0b가" + self.point()) + "".join(r.sample(MARKS, r.randrange(1, 5))) for _ in range(2))
        if kind == 10:
            return "".join(r.choice(WHOLES) + r.choice(MARKS) for _ in range(r.randrange(1, 4)))
        if kind == 11:
            return "".join(r.choice(HANGUL) for _ in range(r.randrange(1, 6)))
        if kind == 12:
            return r.choice(DIGITS) * r.randrange(1, 5)
        if kind == 13:
            return r.choice(LANGUAGES) + r.choice(["", " "])
        return "".join(r.choice("\"#$%&()*+,-./:;<=>?@[]^_{|}~") for _ in range(r.randrange(1, 7)))

    def string(self):
        return "".join(self.piece() for _ in range(self.r.choice([1, 2, 3, 5, 8])))


def differs(what, text, ours, theirs):
    print(f"{what} of {text!r}: ours {ours}, theirs {theirs}")
    return 1


def all_points():
    """Every character of the planes in use, around words and among marks."""
    for start in [*range(0, 0x32400, 64), *range(0xE0000, 0xE0200, 64), 0x10FFC0]:
        points = [chr(c) for c in range(start, start + 64) if not 0xD800 <= c < 0xE000]
        yield "".join(f"a{c} {c}1{c}\u0327{c}\u0301" for c in points)


def compare(folder, count, seed):
    """Returns 1 at the first difference."""
    theirs, ours = load(folder), Ours(folder)
    strings, lists = Strings(theirs, seed), 0
    lossless = not theirs.normalizer and not dropped_bytes(theirs)
    for text in all_points():
        ids, expected = ours.encode(text), theirs.encode(text, add_special_tokens=False).ids
        if ids != expected:
            return differs("tokens", text, ids, expected)
    batch = 1000
    for start in range(0, count, batch):
        texts = [strings.string() for _ in range(min(batch, count - start))]
        for text, e in zip(texts, theirs.encode_batch(texts, add_special_tokens=False)):
            ids = ours.encode(text)
            if ids != e.ids:
                return differs("tokens", text, ids, e.ids)
            for specials in (False, True):
                back = ours.decode(ids, specials).decode("utf-8", "replace")
                theirs_back = theirs.decode(ids, skip_special_tokens=not specials)
                if back != theirs_back:
                    return differs("text", ids, back, theirs_back)
        # Random ids, a few beyond the vocabulary: bytes may be no UTF-8. Then strings of such bytes.
        for _ in range(batch // 10):
            ids = [strings.r.randrange(strings.size + 3) for _ in range(strings.r.randrange(6))]
            raw = ours.decode(ids, True)
            if raw.decode("utf-8", "replace") != theirs.decode(ids, skip_special_tokens=False):
                return differs("text", ids, raw, theirs.decode(ids, skip_special_tokens=False))
            again = ours.encode(raw)
            if lossless and ours.decode(again, True) != raw:
                return differs("round trip", raw, ours.decode(again, True), raw)
            lists += 1
    if ours.close():
        return differs("exit status", folder, "not 0", 0)
    print(f"{folder}: all characters, {count} strings and {lists} lists of ids are equal")
    return 0


def dropped_bytes(tokenizer):
    vocab = tokenizer.get_vocab()
    return [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in vocab]


def compare_tiktoken(folder, count, seed):
    """tiktoken with the folder's tokens as ranks: its order of merges is that of the ids."""
    import tiktoken

    theirs, ours = load(folder), Ours(folder)
    data = json.loads(theirs.to_str())
    back = {c: b for b, c in fixtures.byte_alphabet().items()}
    if theirs.normalizer or dropped_bytes(theirs) or '"Digits"' in json.dumps(data["pre_tokenizer"]):
        return ours.close()
    added = {t.content: i for i, t in theirs.get_added_tokens_decoder().items()}
    ranks = {bytes(back[c] for c in t): i for t, i in data["model"]["vocab"].items() if t not in added}
    encoding = tiktoken.Encoding("x", pat_str=fixtures.pattern(data), mergeable_ranks=ranks, special_tokens=added)
    strings = Strings(theirs, seed + 1)
    for _ in range(count):
        text = strings.string()
        ids, expected = ours.encode(text), encoding.encode(text, allowed_special="all")
        if ids != expected:
            return differs("tokens (tiktoken)", text, ids, expected)
    print(f"{folder}: {count} strings are equal to tiktoken's")
    return ours.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiktoken", type=int, default=0, metavar="COUNT", help="strings to compare with tiktoken")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for folder in args.folder or fixtures.write_folders(scratch):
            wrong |= compare(folder, args.count, args.seed)
        for folder in args.folder if args.tiktoken else []:
            wrong |= compare_tiktoken(folder, args.tiktoken, args.seed)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
