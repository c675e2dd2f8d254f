#!/usr/bin/env python3
"""Compares build/dev/text/tokenize with Hugging Face's tokenizers, and with tiktoken where that can
express the tokenizer, on random strings: pieces of this repository's files, letters of all scripts,
digits, spaces, control characters, marks to compose, added tokens.

    python3 dev/text/test_bpe.py                            (needs tokenizers; tiktoken is optional)
    python3 dev/text/test_bpe.py --strings 1000000 FOLDER...

Without folders it trains four small tokenizers, one for each pattern. Decoding is compared on the
tokens of the strings and on random ones.
"""
import argparse
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import decoders

TOOL = os.path.abspath("build/dev/text/tokenize")
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
PATTERNS = {"llama3": WORDS + r"\p{N}{1,3}|" + REST, "qwen2": WORDS + r"\p{N}|" + REST}
SCRIPTS = [(0x20, 0x7f), (0xa0, 0x250), (0x250, 0x3000), (0x3000, 0x3200), (0x4e00, 0x9fff),
           (0xac00, 0xd7a4), (0x1100, 0x1200), (0x300, 0x370), (0xf900, 0xfb00), (0x1f300, 0x1fb00),
           (0x10000, 0x20000), (1, 0x20), (0x2000, 0x2070), (0x1d100, 0x1d800)]
HARD = ["'s", "'LL", "'\u017f", "don't", "\r\n", "\n\n", "   ", "\u3000", "\u180e", "\u200b", "1234567",
        "\u0661\u0662", "\u00bd", "e\u0301", "\u1e0b\u0323", "\u212b", "\uac00\u11a8", "\u0344",
        "\u2126", "\u0958", "\u0915\u093c", "a" * 300, "=" * 70, "\t", " \n ", "\x00", "\\n"]


def small_tokenizers():
    """{name: Tokenizer}, trained on this repository's texts."""
    files = sorted(glob.glob("llmc/**/*.[ch]", recursive=True) + glob.glob("docs/*.md"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = {"gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
             "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                pre_tokenizers.ByteLevel(add_prefix_space=False)])}
    for name, pattern in PATTERNS.items():
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        steps[name] = pre_tokenizers.Sequence([split, byte_level])
    found = {}
    for name, step in steps.items():
        t = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        t.pre_tokenizer, t.decoder = step, decoders.ByteLevel()
        if name == "qwen2":
            t.normalizer = normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if name == "smollm":  # as SmolLM2's, it lacks the tokens of some bytes
            alphabet = sorted(alphabet)[:-20]
        t.train(files, trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet,
                                           show_progress=False))
        t.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True),
                              AddedToken("<|end|>>", normalized=False, special=True)])
        t.add_tokens([AddedToken("<tool>", normalized=False)])
        found[name] = t
    return found


def sources():
    files = glob.glob("**/*.[ch]", recursive=True) + glob.glob("**/*.py", recursive=True)
    files += glob.glob("**/*.md", recursive=True)
    return [open(name, encoding="utf-8").read() for name in files if "build" not in name]


def random_string(r, texts, added):
    parts = []
    for _ in range(r.randint(1, 6)):
        kind = r.random()
        if kind < 0.3:
            text = r.choice(texts)
            at = r.randrange(max(1, len(text)))
            parts.append(text[at:at + r.randint(1, 40)])
        elif kind < 0.7:
            low, high = r.choice(SCRIPTS)
            parts.append("".join(chr(r.randrange(low, high)) for _ in range(r.randint(1, 8))))
        elif kind < 0.9:
            parts.append(r.choice(HARD))
        elif kind < 0.95 and added:
            parts.append(r.choice(added))
        else:
            parts.append(str(r.randrange(10 ** r.randint(1, 12))))
    return "".join(parts).encode("utf-8", "ignore").decode()


def spell(text):
    for a, b in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\0", "\\0")):
        text = text.replace(a, b)
    return text


def unspell(data):
    out, at = bytearray(), 0
    while at < len(data):
        if data[at] == 0x5c:
            at += 1
            out.append({0x6e: 10, 0x72: 13, 0x30: 0}.get(data[at], data[at]))
        else:
            out.append(data[at])
        at += 1
    return bytes(out)


def tool(how, folder, lines):
    done = subprocess.run([TOOL, how, folder], input="\n".join(lines).encode() + b"\n",
                          stdout=subprocess.PIPE, check=True)
    return done.stdout.split(b"\n")[:-1]


def show(text):
    return ascii(text)[:200]


def compare_encoding(name, folder, reference, strings):
    lines = tool("--lines", folder, [spell(s) for s in strings])
    if len(lines) != len(strings):
        sys.exit(f"{name}: {len(lines)} lines for {len(strings)} strings")
    wrong = 0
    for text, line, expected in zip(strings, lines, reference):
        if [int(x) for x in line.split()] != expected:
            wrong += 1
            if wrong < 4:
                print(f"{name}: {show(text)}\n  here     {line.decode()}\n  expected {expected}")
    return wrong


def compare_decoding(name, folder, t, r, count):
    size = t.get_vocab_size()
    tokens = [[r.randrange(size) for _ in range(r.randint(1, 12))] for _ in range(count)]
    lines = tool("--decode", folder, [" ".join(map(str, x)) for x in tokens])
    wrong = 0
    for line, expected in zip(lines, t.decode_batch(tokens, skip_special_tokens=False)):
        if unspell(line).decode("utf-8", "replace") != expected:
            wrong += 1
            if wrong < 4:
                print(f"{name}: decoded {show(line)}, expected {show(expected)}")
    return wrong + abs(len(lines) - count)


def tiktoken_of(folder, data):
    """The same in tiktoken, whose merges are ordered by the tokens' numbers; None if that differs."""
    try:
        import tiktoken
    except ImportError:
        return None
    step = data["pre_tokenizer"]
    if data.get("normalizer") or step["type"] == "Sequence" and \
            step["pretokenizers"][0]["type"] == "Digits":
        return None
    pattern = GPT2 if step["type"] == "ByteLevel" else \
        step["pretokenizers"][0]["pattern"]["Regex"]
    byte_of = {c: i for i, c in enumerate(chr(b) for b in range(256))}
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(b): b for b in keep}
    for i, b in enumerate(b for b in range(256) if b not in keep):
        byte_of[chr(256 + i)] = b
    special = {a["content"]: a["id"] for a in data["added_tokens"]}
    ranks = {bytes(byte_of[c] for c in token): id for token, id in data["model"]["vocab"].items()
             if token not in special}
    order = [ranks[bytes(byte_of[c] for c in "".join(m if isinstance(m, list) else m.split(" ")))]
             for m in data["model"]["merges"]]
    if order != sorted(order) or sum(len(b) == 1 for b in ranks) < 256:
        return None
    return tiktoken.Encoding(os.path.basename(folder), pat_str=pattern, mergeable_ranks=ranks,
                             special_tokens=special)


def compare(name, folder, strings, r):
    path = os.path.join(folder, "tokenizer.json")
    t, data = Tokenizer.from_file(path), json.load(open(path, encoding="utf-8"))
    reference = [e.ids for e in t.encode_batch(strings, add_special_tokens=False)]
    wrong = compare_encoding(name, folder, reference, strings)
    wrong += compare_decoding(name, folder, t, r, max(100, len(strings) // 10))
    print(f"{name}: {len(strings)} strings, {wrong} differ from tokenizers", end="")
    other = tiktoken_of(folder, data)
    if other:
        theirs = [other.encode(s, allowed_special="all") for s in strings]
        differ = compare_encoding(name + " (tiktoken)", folder, theirs, strings)
        print(f", {differ} from tiktoken", end="")
        wrong += differ
    print()
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*", help="with a tokenizer.json")
    parser.add_argument("--strings", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    r, texts, wrong = random.Random(a.seed), sources(), 0
    with tempfile.TemporaryDirectory() as home:
        folders = a.folder
        if not folders:
            for name, t in small_tokenizers().items():
                os.mkdir(os.path.join(home, name))
                t.save(os.path.join(home, name, "tokenizer.json"))
                folders.append(os.path.join(home, name))
        for folder in folders:
            with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
                added = [x["content"] for x in json.load(f)["added_tokens"]]
            strings = [random_string(r, texts, added) for _ in range(a.strings)]
            wrong += compare(os.path.basename(os.path.normpath(folder)), folder, strings, r)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
