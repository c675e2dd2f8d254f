#!/usr/bin/env python3
"""The long check: do whole runs learn as README.md says?

Three default runs (seeds 1 to 3) must end at pass@1 >= 0.9 from at most 0.45 before RL. Then stale
data (recipes/stale, five seeds): the mean reward of the last 10 steps without a trust region (pg-is)
must be below 0.5 and with one (drpo, delta 0.15) above 0.6. The figures are printed either way; the
exit status is the verdict.

    python3 dev/check_long.py [--program ./train_gpt2_rl]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile


def run(program, out, *flags):
    """Runs the program with a log in `out`; returns the log's objects."""
    command = [program, "--out", out, *flags]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    with open(os.path.join(out, "log.jsonl")) as log:
        return [json.loads(line) for line in log]


def default_runs(program, scratch, cache):
    print("default run       pass@1 before   after   logp_diff_max")
    good = True
    for seed in (1, 2, 3):
        log = run(program, f"{scratch}/default-{seed}", "--seed", str(seed), "--warmup-cache", cache)
        evals = [x for x in log if x["phase"] == "eval"]
        mismatch = max(x["logp_diff_max"] for x in log if x["phase"] == "numerics")
        before, after, prompts = evals[0]["pass1"], evals[-1]["pass1"], evals[-1]["prompts"]
        ok = before <= 0.45 and after >= 0.9 and prompts >= 512 and mismatch == 0
        good &= ok
        print(f"seed {seed}            {before:13.3f} {after:7.3f} {mismatch:15g}   {'ok' if ok else 'NO'}",
              flush=True)
    return good


def stale_runs(program, scratch, cache):
    print("stale data        mean reward of the last 10 steps, seeds 1 to 5")
    good = True
    for name, limit, flags in (("pg-is", lambda x: x < 0.5, ["--objective", "pg-is"]),
                               ("drpo 0.15", lambda x: x > 0.6, ["--objective", "drpo",
                                                                 "--delta", "0.15"])):
        last = []
        for seed in range(1, 6):
            log = run(program, f"{scratch}/{flags[1]}-{seed}", "--config", "recipes/stale", "--seed",
                      str(seed), "--warmup-cache", cache, *flags)
            rewards = [x["reward"] for x in log if x["phase"] == "rollout"]
            last.append(sum(rewards[-10:]) / 10)
        mean = sum(last) / len(last)
        ok = limit(mean)
        good &= ok
        print(f"{name:16s} {mean:6.3f}   ({', '.join(f'{x:.3f}' for x in last)})   {'ok' if ok else 'NO'}",
              flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--program", default="./train_gpt2_rl")
    program = parser.parse_args().program
    with tempfile.TemporaryDirectory() as scratch:
        cache = f"{scratch}/cache"
        results = [default_runs(program, scratch, cache), stale_runs(program, scratch, cache)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
