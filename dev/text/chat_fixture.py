#!/usr/bin/env python3
"""Makes the fixtures of tests/test_chat.c: real chat templates, and what transformers prints with them.

    pip download --no-deps trl        # unpack it: it holds the templates of many models
    python3 dev/text/chat_fixture.py trl/chat_templates SMOLLM2_FOLDER tests/fixtures/chat

Writes NAME.jinja for each template whose licence permits it (Llama's is used, not copied), and
renders.json. Prints the rows of chat.c's table of known templates.
"""
import json
import os
import sys

from transformers.utils.chat_template_utils import render_jinja_template

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["Calculate 7 + 15.", "", "  two\n\nlines \t\n", "\u00a0\u3000x\u200b\x1c", "é <|im_end|>{{ x }}", "  \n"]


def hash_text(text):
    """As in llmc/base/common.c."""
    most = (1 << 64) - 1
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & most
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & most
    h = (h ^ h >> 27) * 0x94D049BB133111EB & most
    return h ^ h >> 31


def main(trl, smollm2, out):
    def read(name):
        with open(os.path.join(trl, name + ".jinja"), encoding="utf-8") as f:
            return f.read()

    with open(os.path.join(smollm2, "tokenizer_config.json"), encoding="utf-8") as f:
        templates = [("smollm2", "SMOLLM2", json.load(f)["chat_template"])]
    templates += [("chatml", "CHATML", CHATML), ("qwen2_5", "QWEN2", read("qwen2_5")), ("qwen3", "QWEN3", read("qwen3"))]
    templates += [("qwen3_instruct_2507", "QWEN3", read("qwen3_instruct_2507")), ("llama3", "LLAMA3", read("llama3"))]
    rows = []
    os.makedirs(out, exist_ok=True)
    for name, kind, template in templates:
        print(f"    {{0x{hash_text(template.rstrip()):016x}u, {kind}}},  // {name}")
        if name != "llama3":
            with open(os.path.join(out, name + ".jinja"), "w", encoding="utf-8", newline="") as f:
                f.write(template)
        for system in [None, "Be brief.", *TEXTS[1:4]]:
            for prompt in TEXTS:
                messages = [] if system is None else [{"role": "system", "content": system}]
                messages.append({"role": "user", "content": prompt})
                (text,), _ = render_jinja_template(
                    [messages], chat_template=template, add_generation_prompt=True, bos_token="<|begin_of_text|>"
                )
                rows.append(dict(kind=kind.lower(), system=system, prompt=prompt, expected=text))
    with open(os.path.join(out, "renders.json"), "w", encoding="utf-8") as f:
        f.write("[" + ",\n".join(json.dumps(r) for r in rows) + "]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
