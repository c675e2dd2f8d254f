#!/usr/bin/env python3
"""Sends the log of a run to Weights & Biases: a chart a number, named PHASE/KEY, over the phase's steps.

    python3 dev/wandb.py RUN [--project NAME] [--name NAME] [--follow]

--follow waits for what the run still writes. WANDB_MODE=offline keeps everything on this machine. Needs
the package wandb.
"""
import argparse
import os
import sys

import run_log

HERE = os.path.dirname(os.path.abspath(__file__))


def package():
    """This file has the name of the package, so Python must not look for that here."""
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != HERE]
    try:
        import wandb
    except ImportError:
        sys.exit("wandb.py needs the package wandb: pip install wandb")
    return wandb


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="--out folder of a run")
    parser.add_argument("--project", default="train_gpt2_rl")
    parser.add_argument("--name", help="of the run there; the folder's")
    parser.add_argument("--follow", action="store_true", help="wait for what the run still writes")
    given = parser.parse_args()
    flags = run_log.config(given.run)
    wandb, phases = package(), set()
    name = given.name or os.path.basename(os.path.abspath(given.run))
    there = wandb.init(project=given.project, name=name, config=flags)
    for phase, step, seconds, numbers in run_log.lines(given.run, given.follow):
        if phase not in phases:
            phases.add(phase)
            there.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        there.log({f"{phase}/step": step, f"{phase}/time": seconds,
                   **{f"{phase}/{key}": v for key, v in numbers.items()}})
    there.finish()


if __name__ == "__main__":
    main()
