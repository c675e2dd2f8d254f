#!/usr/bin/env python3
"""Draws the curves of one or several runs from their log.jsonl.

    python3 dev/study/plot.py RUN [RUN...] [-o out.png] [--phase rollout] [--keys reward,...]

RUN is a run's folder or a log.jsonl. One small plot a key, one line a run. Without --keys: reward,
length, entropy, mismatch, gradient norm and evaluation; with --phase alone: every key of that
phase. A null is a gap. In a plot of more than 100 points a curve, the points are pale and the bold
line is their median in 50 bins of whole steps. The phases and keys are described at the head of
llmc/run/log.c.
"""
import argparse
import itertools
import json
import math
import os
import statistics
import sys

NOT_DRAWN = ("phase", "step", "time", "index")
PHASES = ["rollout", "numerics", "update", "eval", "warmup"]
# A panel: its title, then (key, phases to look in, first that has a number wins, line style).
DEFAULT_PANELS = [
    ("reward", [("reward", ["rollout"], "-")]),
    ("response length (tokens)", [("response_length", ["rollout"], "-")]),
    ("entropy (nats)", [("entropy", ["rollout"], "-")]),
    ("pass@1 (dashed: greedy)", [("pass1", ["eval"], "-"), ("greedy", ["eval"], "--")]),
    ("grad_norm", [("grad_norm", ["update"], "-")]),
    ("weights changed by an update (dashed: the sampler's)",
     [("changed", ["update"], "-"), ("changed_rollout", ["update"], "--")]),
    ("logp_diff_max", [("logp_diff_max", ["numerics", "update"], "-")]),
    ("prob_diff_mean", [("prob_diff_mean", ["numerics", "update"], "-")]),
    ("kl_k3", [("kl_k3", ["numerics", "update"], "-")]),
]
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A900"]


def stop(message):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {message}")


def read_log(path):
    """{phase: [object, ...]} of a log. A last line without its newline is still being written."""
    if os.path.isdir(path):
        path = os.path.join(path, "log.jsonl")
    try:
        with open(path, encoding="utf-8") as f:
            lines = f.readlines()
    except (OSError, UnicodeDecodeError) as error:
        stop(f"cannot read {path}: {error}")
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    phases = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            phases.setdefault(entry["phase"], []).append(entry)
            float(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            stop(f"{path}:{number}: no line of a log ({type(error).__name__}: {error})")
    if not phases:
        stop(f"{path} has no lines yet")
    return phases


def series(phases, phase, key):
    """x and y of a key. The n lines of one step (updates) lie evenly within it; null is NaN."""
    entries = [e for e in phases.get(phase, []) if key in e]
    lines_of_step, seen, x, y = {}, {}, [], []
    for e in entries:
        lines_of_step[e["step"]] = lines_of_step.get(e["step"], 0) + 1
    for e in entries:
        step, value = e["step"], e[key]
        x.append(step + seen.get(step, 0) / lines_of_step[step])
        seen[step] = seen.get(step, 0) + 1
        y.append(value if isinstance(value, (int, float)) else math.nan)
    return x, y


def binned_median(x, y, width):
    """One point a bin of `width` steps: its middle and its median; NaN where it has no number."""
    bins = {}
    for step, value in zip(x, y):
        numbers = bins.setdefault(step // width, [])
        if not math.isnan(value):
            numbers.append(value)
    return ([(b + 0.5) * width for b in sorted(bins)],
            [statistics.median(bins[b]) if bins[b] else math.nan for b in sorted(bins)])


def choose_panels(logs, phase, keys):
    if keys is None and phase is None:
        return DEFAULT_PANELS
    if keys is None:
        entries = [e for log in logs for e in log.get(phase, [])]
        keys = list(dict.fromkeys(k for e in entries for k in e if k not in NOT_DRAWN))
    where = PHASES if phase is None else [phase]
    return [(key, [(key, where, "-")]) for key in keys]


def has_number(log, phase, key):
    return any(not math.isnan(v) for v in series(log, phase, key)[1])


def scale_axis(axis, values):
    """Logarithmic where positive values span decades; with zeros, linear below the smallest."""
    positive = [v for v in values if v > 0]
    if not positive or min(values) < 0 or max(positive) < 100 * min(positive):
        return
    if min(values) > 0:
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=min(positive))
        axis.set_ylim(bottom=0)


def phase_of(key, where, logs):
    """One phase for all runs, since lines of a panel must be comparable; None without a number."""
    return next((p for p in where if any(has_number(log, p, key) for log in logs)), None)


def draw_panel(axis, title, curves, logs):
    shown = []
    for key, where, style in curves:
        phase = phase_of(key, where, logs)
        lines = [series(log, phase, key) for log in logs]
        longest = max(len(y) for _, y in lines)
        bin_width = math.ceil((max(x[-1] - x[0] for x, _ in lines if x) + 1) / 50) if longest else 1
        for (x, y), colour in zip(lines, itertools.cycle(COLOURS)):
            shown += [v for v in y if not math.isnan(v)]
            if longest > 100:
                axis.plot(x, y, style, color=colour, linewidth=0.6, alpha=0.3)
                x, y = binned_median(x, y, bin_width)
            axis.plot(x, y, style, color=colour, linewidth=1.4, markersize=3,
                      marker="o" if longest < 40 else None)
        if phase and len(where) > 1:
            title = f"{title}  [{phase}]"
    axis.set_title(title, fontsize=10, loc="left")
    scale_axis(axis, shown)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    note = "no numbers" if not shown else "" if any(shown) else "exactly 0"
    axis.text(0.5, 0.6, note, transform=axis.transAxes, ha="center", color="grey")


def run_names(paths):
    """The shortest ends of the paths that tell the runs apart."""
    full = [os.path.abspath(p) for p in paths]
    parts = [p.removesuffix("/log.jsonl").split("/") for p in full]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return full


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or a log.jsonl")
    parser.add_argument("-o", "--out", default="plot.png", help="picture to write (plot.png)")
    parser.add_argument("--phase", choices=PHASES, help="look for keys in this phase alone")
    parser.add_argument("--keys", help="comma-separated keys, a plot each")
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        stop("matplotlib is missing: python3 -m pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logs = [read_log(path) for path in args.runs]
    keys = args.keys.split(",") if args.keys else None
    panels = choose_panels(logs, args.phase, keys)
    for key in keys or []:
        where = [args.phase] if args.phase else PHASES
        if not any(key in e for log in logs for p in where for e in log.get(p, [])):
            found = sorted({k for log in logs for p in where for e in log.get(p, []) for k in e})
            stop(f"no run has the key {key}; there are {', '.join(found) or 'none'}")
    if not panels:
        stop(f"no run has lines of the phase {args.phase}")

    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(3.6 * columns, 2.5 * rows + 0.5))
    for axis, (title, curves) in zip(axes.flat, panels):
        draw_panel(axis, title, curves, logs)
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis in axes.flat[max(0, len(panels) - columns):len(panels)]:
        axis.set_xlabel("step", fontsize=9)
    handles = [plt.Line2D([], [], color=COLOURS[i % len(COLOURS)]) for i in range(len(logs))]
    figure.legend(handles, run_names(args.runs), loc="outside upper center",
                  ncols=min(len(logs), 4), frameon=False, fontsize=10)
    try:
        figure.savefig(args.out, dpi=130)
    except (OSError, ValueError) as error:
        stop(f"cannot write {args.out}: {error}")
    print(args.out)


if __name__ == "__main__":
    main()
