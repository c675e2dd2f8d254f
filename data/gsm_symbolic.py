#!/usr/bin/env python3
"""Makes word problems in the manner of GSM-Symbolic (Mirzadeh et al. 2024) from the templates of
the package reasoning-gym (Apache-2.0).

    pip install reasoning-gym==0.1.25
    python3 data/gsm_symbolic.py --count 5000 --out gsm-symbolic.jsonl

The answer is a number; the grader is number:last. Problems whose answer is no plain number are left
out, and so are repetitions, so fewer may come out than --count.
"""
import argparse
import re

from common import refuse, write_problems


def problems(count, seed, ending):
    try:
        import reasoning_gym
    except ImportError:
        refuse("Python's package reasoning-gym is missing; run pip install reasoning-gym==0.1.25")
    for item in reasoning_gym.create_dataset("gsm_symbolic", size=count, seed=seed):
        answer = str(item["answer"]).replace(",", "")
        if re.fullmatch(r"-?\d+(\.\d+)?", answer):
            yield item["question"] + ending, answer


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="problems to draw (1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ending", metavar="TEXT", default="", help="put after each question")
    parser.add_argument("--out", metavar="FILE", required=True, help="JSON lines: prompt, answer")
    options = parser.parse_args()
    if options.count < 1:
        refuse(f"--count {options.count} is refused; give a number above 0")
    write_problems(options.out, problems(options.count, options.seed, options.ending))


if __name__ == "__main__":
    main()
