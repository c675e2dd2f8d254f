#!/usr/bin/env python3
"""Compares `build/dev/text/tokenize --chat` with the templates themselves, run by Jinja as transformers
runs them: those that trl ships (copies of the models' own), and those written below.

    python3 dev/text/test_chat.py            (needs jinja2 and trl's files; trl itself is not imported)
    python3 dev/text/test_chat.py --hashes   the table of chat.c
"""
import glob
import os
import subprocess
import sys
import sysconfig
import tempfile

from jinja2.sandbox import ImmutableSandboxedEnvironment

TURNS = ("{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
FIRST = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
         "{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}")
OWN = {"chatml": ["{% for message in messages %}" + TURNS],
       "smollm2": [(FIRST + TURNS).replace("SYSTEM", "You are a helpful AI assistant named SmolLM, "
                                           "trained by Hugging Face")],
       "qwen2": [(FIRST + TURNS).replace("SYSTEM", "You are a helpful assistant.")]}
SHIPPED = {"qwen2.5": ["qwen2_5"], "qwen3": ["qwen3", "qwen3_instruct_2507"], "llama3": ["llama3"]}
WORD = (1 << 64) - 1
TEXTS = ["What is 2 + 2?", "  spaces around \n", "two\n\nlines", "caf\u00e9 {{ x }} {% y %}", "\\n"]

def templates():
    """{name: [template text]}"""
    found = {name: list(texts) for name, texts in OWN.items()}
    for name, files in SHIPPED.items():
        for file in files:
            places = [p for d in sys.path + [sysconfig.get_paths()["purelib"]]
                      for p in glob.glob(os.path.join(d, "trl", "chat_templates", file + ".jinja"))]
            if not places:
                sys.exit("test_chat.py: pip install trl: its chat templates are needed")
            found.setdefault(name, []).append(open(places[0], encoding="utf-8").read())
    return found

def hash_text(text):  # as llmc/base/common.c
    h = 0xcbf29ce484222325
    for byte in text.rstrip(" \t\r\n").encode():
        h = (h ^ byte) * 0x100000001b3 & WORD
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9 & WORD
    h = (h ^ h >> 27) * 0x94d049bb133111eb & WORD
    return h ^ h >> 31

def rendered(template, system, prompt):
    e = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                      extensions=["jinja2.ext.loopcontrols"])
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    return e.from_string(template).render(messages=messages, add_generation_prompt=True,
                                          bos_token="<|begin_of_text|>", tools=None)

def ours(folder, system, prompt):
    command = [os.path.abspath("build/dev/text/tokenize"), "--chat", folder]
    command += [system] if system is not None else []
    return subprocess.run(command, input=prompt.encode(), stdout=subprocess.PIPE, check=True).stdout

def main():
    wrong = count = 0
    if "--hashes" in sys.argv:
        for name, texts in templates().items():
            for text in texts:
                print(f"    {{{hash_text(text):#x}, CHAT_{name.upper().replace('.', '_')}}},")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in templates().items():
            for template in texts:
                with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
                    f.write(template)
                for system in (None, "Be brief.", " two\nlines "):
                    for prompt in TEXTS:
                        count += 1
                        expected = rendered(template, system, prompt).encode()
                        found = ours(folder, system, prompt)
                        if found != expected:
                            wrong += 1
                            print(f"{name}: {found}\n  expected {expected}")
    print(f"{count} conversations, {wrong} differ from the templates")
    sys.exit(wrong > 0)

main()
