#!/usr/bin/env python3
"""Fetches GSM8K (Cobbe et al. 2021, MIT): 7,473 and 1,319 word problems of school arithmetic.

    python3 data/gsm8k.py --out gsm8k.jsonl                 (4 MB from github.com)
    python3 data/gsm8k.py --set test --out gsm8k-test.jsonl
    python3 data/gsm8k.py train.jsonl --out gsm8k.jsonl     (a file that is there)

The answer is the number after "####", without commas; the grader is number:last or number.
"""
import argparse

from common import read_lines, refuse, texts_of, write_problems

ADDRESS = ("https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/"
           "data/{}.jsonl")


def problems(source, ending):
    for number, item in read_lines(source):
        question, answer = texts_of(source, number, item, ["question", "answer"])
        if "####" not in answer:
            refuse(f"{source}:{number}: the answer has no ####; use another copy")
        yield question + ending, answer.rsplit("####", 1)[1].strip().replace(",", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="a file or an address in GSM8K's form")
    parser.add_argument("--set", choices=["train", "test"], default="train")
    parser.add_argument("--ending", metavar="TEXT", default="",
                        help="put after each question, such as ' Write the number after ####.'")
    parser.add_argument("--out", metavar="FILE", required=True, help="JSON lines: prompt, answer")
    options = parser.parse_args()
    source = options.source or ADDRESS.format(options.set)
    write_problems(options.out, problems(source, options.ending))


if __name__ == "__main__":
    main()
