#!/usr/bin/env python3
"""The numerics of a model without training: draws and tabulates the log-ratio of every token that a
sampler in one format draws and a trainer in another format weighs, with the same weights.

    make build/dev/study/mismatch
    python3 dev/study/mismatch.py MODEL.bin [SAMPLER:TRAINER ...] [--task chain] [--prompts 128]
                                  [--group 8] [-o mismatch.png] [--csv mismatch.csv]
                                  [--sampler OLDER.bin] [--out DIR]
    python3 dev/study/mismatch.py RUN [SAMPLER:TRAINER ...] [--csv growth.csv]

MODEL.bin is a run's checkpoints/STEP/model.bin, or a file that --warmup-cache keeps; or a model's
folder, such as checkpoints/STEP/model of other families than gpt2, whose tokenizer and chat format
are used. --task may be a file of problems (NAME.jsonl), with --max-new-tokens. Without pairs: fp16,
bf16, fp8_e4m3 and fp8_e5m2 samplers beside an fp32 trainer, and bf16 beside bf16. A format is
written FORMAT; FORMAT/N: its products sum in N parts; FORMAT+BLOCK, such as bf16+nvfp4: its weights
have block scales. With --sampler the sampler's weights are those of an earlier model, so that the
differences are drift and numerics together.

The tables show the metrics, and the differences by mu, the sampler's probability of the token that
it drew. -o (needs matplotlib) draws a row of plots a pair: pi against mu, pi - mu against mu,
pi / mu against mu, a sequence's log-ratio against its length, and how far the residual stream is
off at each layer. At equal formats and weights every difference is exactly 0.

RUN is a run's folder: did the mismatch grow from checkpoint to checkpoint, and for rare tokens? All
checkpoints get the same tokens, drawn by the oldest or by --tokens, for problems that the run
holds out, in its chat format. The table has, by mu, counts and means with intervals, and whether
the newest checkpoint differs from the oldest (mismatch_run.py). Without pairs: the run's own
formats, or bf16:fp32 where these are equal. Keep the checkpoints of such a run with
--checkpoint-keep 0.

--out DIR writes what a page can name (ablate_page.py): bins.csv, layers.csv and metrics.csv,
which mismatch_bins.py describes, their figures, and `command`: how they were made. Give paths
that a reader has too.
"""
import argparse
import csv
import hashlib
import io
import math
import os
import shlex
import subprocess
import sys

import ablate_stats
import mismatch_bins
import mismatch_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, "build", "dev", "study", "mismatch")
PAIRS = ["fp16:fp32", "bf16:fp32", "fp8_e4m3:fp32", "fp8_e5m2:fp32", "bf16:bf16"]
SHOWN = ["logp_diff_max", "logp_diff_mean", "prob_diff_max", "prob_diff_min", "prob_diff_mean",
         "kl", "kl_k3", "ratio_mean", "ratio_min", "ratio_max", "ess", "chi2", "seq_logratio_max",
         "ppl_ratio", "outside", "entropy"]
# Columns of bins.csv that are printed.
BINNED = ["tokens", "prob_diff_mean", "prob_gap_max", "logp_diff_mean", "ratio_min", "ratio_max",
          "ratio_outside", "tv_outside", "ratio_only", "tv_only"]
POINT = {"s": 3, "alpha": 0.35, "linewidths": 0, "color": "#0072B2", "rasterized": True}


def stop(message):
    sys.exit(f"mismatch.py: {message}")


def run(args, model, flags=()):
    """The program's lines."""
    if not os.path.exists(PROGRAM):
        stop("build/dev/study/mismatch is missing; make build/dev/study/mismatch")
    command = [PROGRAM, *flags]
    for flag, given in (("--sampler", args.sampler), ("--tokens", args.tokens),
                        ("--max-new-tokens", args.max_new_tokens)):
        command += [flag, str(given)] if given else []  # the last one of a flag wins
    command += [model, args.task, str(args.prompts), str(args.group), *args.pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        stop(done.stderr.strip() or f"build/dev/study/mismatch ended with {done.returncode}")
    return done.stdout


def read(text):
    """{pair: {"token": [(sequence, log mu, log pi)], "layer": [difference], "metric": {}}}"""
    pairs = {}
    for kind, pair, *rest in csv.reader(io.StringIO(text)):
        found = pairs.setdefault(pair, {"token": [], "layer": [], "metric": {}})
        if kind == "token":
            found["token"].append((int(rest[0]), float(rest[3]), float(rest[4])))
        elif kind == "layer":
            found["layer"].append(float(rest[1]))
        else:
            found["metric"][rest[0]] = float(rest[1])
    return pairs


def print_table(pairs):
    print(f"{'metric':18s}" + "".join(f"{pair:>16s}" for pair in pairs))
    for name in SHOWN:
        print(f"{name:18s}" + "".join(f"{p['metric'][name]:16.3g}" for p in pairs.values()))
    layers = max(len(p["layer"]) for p in pairs.values())
    for layer in range(layers):
        what = f"residual {layer}" if layer + 1 < layers else "residual, end"
        print(f"{what:18s}" + "".join(f"{p['layer'][layer]:16.3g}" for p in pairs.values()))


def print_bins(results):
    pair = None
    for row in results.tables()["bins.csv"]:
        if row["pair"] != pair:
            pair = row["pair"]
            print(f"\n{pair + ', mu':18s}" + "".join(f"{name:>15s}" for name in BINNED))
        print(f"{row['mu']:18s}" + "".join(f"{row[name] or '-':>15s}" for name in BINNED))


def command_text(args):
    """The command, and what tells whether a reader's models are the same."""
    lines = ["python3 dev/study/mismatch.py " + shlex.join(sys.argv[1:])]
    for path in filter(None, (args.model, args.sampler, args.tokens)):
        weights = os.path.join(path, "model.safetensors")
        with open(weights if os.path.isdir(path) else path, "rb") as file:
            lines.append(f"# {path}: sha256 {hashlib.sha256(file.read()).hexdigest()}")
    return "\n".join(lines) + "\n"


def write_folder(args, texts, results):
    files = {"command": command_text(args), **texts}
    files.update((name, mismatch_bins.draw(results, name))
                 for name in mismatch_bins.figures(results))
    os.makedirs(args.out, exist_ok=True)
    for name, text in files.items():
        with open(os.path.join(args.out, name), "w", encoding="utf-8") as file:
            file.write(text)


def sequences(tokens):
    """(length, sum of log pi - log mu) of each."""
    sums = {}
    for sequence, log_mu, log_pi in tokens:
        length, total = sums.get(sequence, (0, 0.0))
        sums[sequence] = (length + 1, total + log_pi - log_mu)
    return list(sums.values())


def draw_pair(row, pair, found):
    mu = [math.exp(t[1]) for t in found["token"]]
    pi = [math.exp(t[2]) for t in found["token"]]
    row[0].plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    row[0].scatter(mu, pi, **POINT)
    row[0].set_ylabel(f"{pair}\nπ")
    row[1].scatter(mu, [p - m for p, m in zip(pi, mu)], **POINT)
    row[1].set_ylabel("π − μ")
    row[2].scatter(mu, [math.exp(t[2] - t[1]) for t in found["token"]], **POINT)
    row[2].set_ylabel("π / μ")
    lengths, ratios = zip(*sequences(found["token"]))
    row[3].scatter(lengths, ratios, **POINT)
    row[3].set_ylabel("Σ log π/μ")
    row[4].plot(range(len(found["layer"])), found["layer"], marker="o", color="#D55E00")
    row[4].set_ylabel("residual, relative")
    row[4].set_ylim(bottom=0)
    row[4].set_xticks(range(len(found["layer"])))
    for axis in row[:3]:
        axis.set_xlim(0, 1)
    for axis in row[1:4]:
        axis.ticklabel_format(axis="y", scilimits=(-3, 3), useOffset=False)


def draw(pairs, path, weights):
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        stop("matplotlib is missing; pip install matplotlib, or leave -o out for the table alone")
    figure, axes = pyplot.subplots(len(pairs), 5, figsize=(17, 2.9 * len(pairs)), squeeze=False,
                                   layout="constrained")
    for row, (pair, found) in zip(axes, pairs.items()):
        draw_pair(row, pair, found)
    for axis, label in zip(axes[-1], ["μ", "μ", "μ", "response length (tokens)", "layer"]):
        axis.set_xlabel(label)
    figure.suptitle(f"SAMPLER:TRAINER, {weights}")
    figure.savefig(path, dpi=110)


def run_table(args):
    """The table of a run's checkpoints."""
    for flag, value in (("-o", args.output), ("--sampler", args.sampler), ("--out", args.out)):
        if value:
            stop(f"{flag} means nothing to a run; name the model of one of its checkpoints")
    try:
        found = mismatch_run.checkpoints(args.model)
        config = mismatch_run.settings(args.model)
    except mismatch_run.RunError as error:
        stop(error)
    task, flags = mismatch_run.problems_of(config)
    flags = mismatch_run.tokenizer_flags(args.model, config) + ([] if args.task else flags)
    args.task = args.task or task
    args.pairs = args.pairs or [mismatch_run.pair_of(config)]
    drawn_by = args.tokens or found[0][0]
    args.tokens = args.tokens or found[0][1]
    pairs = {}
    for name, path in found:
        for pair, lines in read(run(args, path, flags)).items():
            pairs.setdefault(pair, {})[name] = lines["token"]
    rows = [row for pair, tokens in pairs.items()
            for row in mismatch_run.rows_of(pair, tokens, args.group)]
    mismatch_run.print_rows(rows, drawn_by)
    if args.csv:
        with open(args.csv, "w", encoding="utf-8") as file:
            file.write(ablate_stats.table_text(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model file, a model's folder, or a run's")
    parser.add_argument("pairs", nargs="*", help="formats, as SAMPLER:TRAINER")
    parser.add_argument("--task", help="whose held-out prompts are answered (chain, or the run's)")
    parser.add_argument("--prompts", type=int, default=128, help="how many (128)")
    parser.add_argument("--group", type=int, default=8, help="completions of each prompt (8)")
    parser.add_argument("--max-new-tokens", type=int, help="longest completion (the task's)")
    parser.add_argument("-o", "--output", help="draws a PNG, SVG or PDF; needs matplotlib")
    parser.add_argument("--csv", help="keeps the program's lines, or the table of a run")
    parser.add_argument("--sampler", metavar="OLDER.bin", help="the sampler's weights")
    parser.add_argument("--tokens", metavar="OTHER.bin", help="the model that draws the tokens")
    parser.add_argument("--out", metavar="DIR", help="keeps tables and figures for a page")
    args = parser.parse_intermixed_args()
    if os.path.isdir(args.model) and not os.path.exists(os.path.join(args.model, "config.json")):
        run_table(args)
        return
    args.task, args.pairs = args.task or "chain", args.pairs or PAIRS
    text = run(args, args.model)
    if args.csv:
        with open(args.csv, "w", encoding="utf-8") as file:
            file.write(text)
    pairs = read(text)
    texts = mismatch_bins.table_texts(pairs)
    results = mismatch_bins.Results(texts)
    print_table(pairs)
    print_bins(results)
    if args.out:
        write_folder(args, texts, results)
    if args.output:
        draw(pairs, args.output, "the sampler's are older" if args.sampler else "the same weights")


if __name__ == "__main__":
    main()
