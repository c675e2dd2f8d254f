#!/usr/bin/env python3
"""Runs the two programs of docs/model.md on a fresh run, and judges what they print.

    python3 dev/hf/test_page.py         needs ./train_gpt2_rl, numpy, torch and transformers
"""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    page = open(os.path.join(ROOT, "docs", "model.md")).read()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in re.findall(r"```python\n# (\w+\.py)(.*?)```", page, re.S):
            with open(os.path.join(folder, name), "w") as f:
                f.write("#" + text)
        subprocess.run([os.path.join(ROOT, "train_gpt2_rl"), "--steps", "1", "--lr", "0", "--log-tokens",
                        "--warmup-steps", "400", "--out", "run"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        model = "run/checkpoints/step-000001/model.bin"
        said = ""
        for command in (["read.py", model, "run/samples.jsonl"], ["in_transformers.py", model]):
            said += subprocess.run([sys.executable, *command], cwd=folder, check=True, text=True,
                                   stdout=subprocess.PIPE).stdout
    print(said, end="")
    differences = [float(x) for x in re.findall(r"largest difference of .*: (\S+)", said)]
    # fp32 sums of some hundred terms, of logits below 20.
    good = len(differences) == 2 and max(differences) < 1e-4 and "7+8+1-8-5:" in said
    print(f"{int(good)} passed, {int(not good)} failed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
