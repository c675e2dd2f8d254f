"""The log of a run as numbers, for tensorboard.py and wandb.py."""
import json
import os
import sys
import time


def config(run):
    """The run's flags and their values."""
    path = os.path.join(run, "config")
    if not os.path.isfile(path):
        sys.exit(f"{path} does not exist: {run} is not the --out folder of a run")
    flags = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                flags[name.strip()] = value.strip()
    return flags


def lines(run, follow=False, patience=2.0):
    """(phase, step, seconds since the run began, {key: number}) of each line of log.jsonl. Steps count
    within a phase: of the warm-up its steps, of updates all of them (an RL step has several), else RL
    steps. With `follow` it waits for lines, and ends after the last evaluation."""
    last, updates, text = int(config(run)["steps"]), 0, ""
    path = os.path.join(run, "log.jsonl")
    with open(path, encoding="utf-8") as file:
        while True:
            if os.path.getsize(path) < file.tell():
                sys.exit(f"{path} has become shorter, as that of a resumed run does; start again")
            text += file.readline()
            if not text.endswith("\n"):
                if not follow:
                    return
                time.sleep(patience)
                continue
            line, text = json.loads(text), ""
            phase, step, seconds = line.pop("phase"), line.pop("step"), line.pop("time")
            if phase == "eval" and step == last:
                follow = False
            if phase == "update":
                step, updates = updates, updates + 1
            yield phase, step, seconds, {k: v for k, v in line.items() if v is not None}
