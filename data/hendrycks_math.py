#!/usr/bin/env python3
"""Fetches MATH (Hendrycks et al. 2021, MIT): 12,000 problems of competitions, and 500 others.

    python3 data/hendrycks_math.py --out math.jsonl                  (10 MB from github.com)
    python3 data/hendrycks_math.py --set test --out math-500.jsonl   (from huggingface.co)
    python3 data/hendrycks_math.py train.jsonl --levels 1,2 --out math.jsonl

The split is the one of Lightman et al. (2023), whose test set is known as MATH-500. The answer is
what stands in the last \\boxed{...} of the solution; the grader is boxed.
"""
import argparse

from common import read_lines, refuse, texts_of, write_problems

ADDRESSES = {"train": "https://media.githubusercontent.com/media/openai/prm800k/main/prm800k/"
                      "math_splits/train.jsonl",
             "test": "https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/main/"
                     "test.jsonl"}


def last_box(text):
    """The content of the last \\boxed{...}, or of "\\boxed 5"; None if there is none."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    rest = text[start + len("\\boxed"):].lstrip(" ")
    if not rest.startswith("{"):
        return rest.split("$")[0]
    depth = 0
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i]
    return None


def problems(source, levels, ending):
    for number, item in read_lines(source):
        problem, solution = texts_of(source, number, item, ["problem", "solution"])
        answer = last_box(solution)
        if answer is None:
            refuse(f"{source}:{number}: the solution has no \\boxed{{...}}; use another copy")
        level = str(item.get("level", "")).removeprefix("Level ")
        if not levels or level in levels:
            yield problem + ending, answer


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="a file or an address in MATH's form: JSON lines "
                                                  "with problem, solution and perhaps level")
    parser.add_argument("--set", choices=["train", "test"], default="train")
    parser.add_argument("--levels", metavar="N,N", help="only these, from 1 to 5")
    parser.add_argument("--ending", metavar="TEXT", default="",
                        help="put after each problem, such as ' Put the answer into \\boxed{}.'")
    parser.add_argument("--out", metavar="FILE", required=True, help="JSON lines: prompt, answer")
    options = parser.parse_args()
    levels = options.levels.split(",") if options.levels else []
    if not set(levels) <= set("12345"):
        refuse(f"--levels {options.levels} is refused; give numbers from 1 to 5, as in 1,2")
    source = options.source or ADDRESSES[options.set]
    write_problems(options.out, problems(source, levels, options.ending))


if __name__ == "__main__":
    main()
