#!/usr/bin/env python3
"""Makes the fixtures of tests/test_bpe.c: small tokenizers, and what the tokenizers package makes of
some strings with them.

    python3 dev/text/fixtures.py tests/fixtures/bpe

A tokenizer of each of the four kinds is trained on the sources of this repository and some words of
other languages. NAME.json is a tokenizer.json; NAME.txt holds, a line each, a string in hexadecimal
digits of its UTF-8 bytes, a colon, the expected ids, and another colon with the text of the ids where
that is not the string: NFC changes it, and the package writes an added token caf\u00e9! as other bytes.
A ? is a text that is no UTF-8.
"""
import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3, QWEN = LATER % r"\p{N}{1,3}", LATER % r"\p{N}"
NAMES = ["gpt2", "smollm2", "llama3", "qwen"]


def byte_alphabet():
    """The character that stands for each byte in a tokenizer.json."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def pattern(data):
    """The regular expression of a tokenizer.json."""
    pre = data["pre_tokenizer"]
    for step in pre.get("pretokenizers", [pre]):
        if step["type"] == "Split":
            return step["pattern"]["Regex"]
    return GPT2


def split(regex):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def texts():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for path in ["README.md", "llmc/base/json.c", "docs/tasks.md"]:
        with open(os.path.join(root, path), encoding="utf-8") as f:
            yield from f
    yield from ["don't we'll they've I'm you're he'd it's DON'T WE'LL '12 1234 56 789 2024\n\n  \n"] * 40
    yield from ["der Fluß naïve Ελληνικά русский язык 日本語 한국어 tiếng Việt é\r\n\t x\u00a0y\u3000z"] * 40


def train(name, size=600):
    t = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif name == "smollm2":
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        t.pre_tokenizer = split(LLAMA3 if name == "llama3" else QWEN)
    if name == "qwen":
        t.normalizer = normalizers.NFC()
    t.decoder = decoders.ByteLevel()
    # SmolLM2's vocabulary lacks some bytes, and so does this one's.
    alphabet = list(byte_alphabet().values())
    if name == "smollm2":
        alphabet = [byte_alphabet()[b] for b in range(256) if b not in (0x04, 0x06, 0xC0, 0xF5, 0xFF)]
    t.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return t


def finish(name, t):
    """Adds tokens and rewrites what the trainer leaves otherwise than the real files have it."""
    special = dict(special=True, normalized=False)
    if name == "llama3":
        # A whole word that no merges make: only ignore_merges finds it. Llama 3 has such words.
        data = json.loads(t.to_str())
        data["model"]["vocab"]["\u0120qqzz"] = t.get_vocab_size()
        t = Tokenizer.from_str(json.dumps(data))
    t.add_special_tokens([AddedToken(s, **special) for s in ("<|im_start|>", "<|im_end|>", "<|im_end|>x")])
    t.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    t.add_tokens([AddedToken(s, special=False, normalized=True) for s in ("caf\u00e9!", "e\u0301e?")])
    if name == "llama3":
        t.add_special_tokens([AddedToken("<|begin_of_text|>", **special)])
        begin = t.token_to_id("<|begin_of_text|>")
        t.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A",
                    pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                    special_tokens=[("<|begin_of_text|>", begin)],
                ),
            ]
        )
    data = json.loads(t.to_str())
    if name in ("gpt2", "llama3"):
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def make(name):
    return finish(name, train(name))


def write_folders(scratch):
    """A folder for each tokenizer, and one with GPT-2's two files."""
    for name in NAMES:
        folder = os.path.join(scratch, name)
        os.makedirs(folder)
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
            f.write(make(name))
        yield folder


def main(folder):
    import test_bpe

    os.makedirs(folder, exist_ok=True)
    for name in NAMES:
        text = make(name)
        with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8") as f:
            f.write(text + "\n")
        t = Tokenizer.from_str(text)
        strings = test_bpe.Strings(t, 7)
        strings.lines = ["int main(void) { return 0x1f; }\n", "  for (i = 0; i < 1000; i++)\n", "It's we'LL qqzz qqzz.\r\n"]
        rows = ["", " ", "a", "caf\u00e9! cafe\u0301! <|im_end|>x<|im_end|>", " qqzz qqzz", "a" * 300]
        rows += [strings.string() for _ in range(150)]
        with open(os.path.join(folder, name + ".txt"), "w", encoding="utf-8") as f:
            for row in rows:
                ids = t.encode(row, add_special_tokens=False).ids
                back = t.decode(ids, skip_special_tokens=False)
                other = "" if back == row else ":?" if "\ufffd" in back else ":" + back.encode().hex()
                f.write(row.encode().hex() + ":" + " ".join(map(str, ids)) + other + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
