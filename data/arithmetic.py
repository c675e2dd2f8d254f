#!/usr/bin/env python3
"""Makes problems of arithmetic, such as "Calculate 7 + 15. Reply with the number only."

    python3 data/arithmetic.py --out sums.jsonl                             (361 sums of 1 to 19)
    python3 data/arithmetic.py --operators +-* --most 99 --count 5000 --out mixed.jsonl
    python3 data/arithmetic.py --out train.jsonl --held-out test.jsonl     (an eighth to the second)

All problems of the range are made, or --count of them, chosen at random; none comes twice. The
grader is number:last. Without --held-out the trainer itself holds an eighth of the problems out.
"""
import argparse
import itertools
import os
import random

from common import refuse, write_problems

MOST_LISTED = 1_000_000  # problems of a range that is listed as a whole


def evaluate(numbers, operators):
    """The value of a chain, products first."""
    terms = [numbers[0]]
    for operator, number in zip(operators, numbers[1:]):
        if operator == "*":
            terms[-1] *= number
        else:
            terms.append(number if operator == "+" else -number)
    return sum(terms)


def chains(options, pick):
    """Yields (numbers, operators), each once: all of them, or options.count drawn by `pick`."""
    values = range(options.least, options.most + 1)
    shape = [values] * options.operands + [options.operators] * (options.operands - 1)
    total = len(values) ** options.operands * len(options.operators) ** (options.operands - 1)
    count = options.count or total
    if count > total:
        refuse(f"--count {count} is refused: the range has only {total} problems")
    if total <= MOST_LISTED:
        every = list(itertools.product(*shape))
        pick.shuffle(every)
        chosen = every[:count]
    elif not options.count:
        refuse(f"the range has {total} problems; say how many with --count")
    elif 2 * count > total:
        refuse(f"--count {count} is more than half of {total} problems; choose a smaller one")
    else:
        chosen = {}
        while len(chosen) < count:
            chosen[tuple(pick.choice(part) for part in shape)] = None
    for chain in chosen:
        yield chain[:options.operands], chain[options.operands:]


def problems(options):
    for numbers, operators in chains(options, random.Random(options.seed)):
        text = str(numbers[0])
        for operator, number in zip(operators, numbers[1:]):
            text += f" {operator} {number}"
        yield options.template.replace("{}", text), str(evaluate(numbers, operators))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=1, help="smallest operand (1)")
    parser.add_argument("--most", type=int, default=19, help="largest operand (19)")
    parser.add_argument("--operands", type=int, default=2, help="numbers of a problem (2)")
    parser.add_argument("--operators", default="+", help="any of +-* (+)")
    parser.add_argument("--count", type=int, help="problems to make; all of them otherwise")
    parser.add_argument("--template", default="Calculate {}. Reply with the number only.",
                        help="the prompt; {} stands for the problem")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", metavar="FILE", required=True, help="JSON lines: prompt, answer")
    parser.add_argument("--held-out", metavar="FILE", help="an eighth of the problems")
    options = parser.parse_args()
    if not 0 <= options.least <= options.most:
        refuse(f"--least {options.least} --most {options.most} is refused; give 0 <= least <= most")
    if not 2 <= options.operands <= 8:
        refuse(f"--operands {options.operands} is refused; give 2 to 8")
    if not options.operators or set(options.operators) - set("+-*"):
        refuse(f"--operators {options.operators} is refused; give any of +-*")
    if "{}" not in options.template:
        refuse("--template has no {}, which stands for the problem")
    if options.held_out and os.path.realpath(options.held_out) == os.path.realpath(options.out):
        refuse(f"--held-out {options.held_out} is the file of --out; choose another")
    if options.count is not None and options.count < 1:
        refuse(f"--count {options.count} is refused; give a number above 0")
    options.operators = "".join(dict.fromkeys(options.operators))
    made = list(problems(options))
    held_out = len(made) // 8 if options.held_out else 0
    if options.held_out and not held_out:
        refuse(f"an eighth of {len(made)} problems is none; choose a larger range, or leave out "
               "--held-out")
    write_problems(options.out, made[held_out:])
    if options.held_out:
        write_problems(options.held_out, made[:held_out])


if __name__ == "__main__":
    main()
