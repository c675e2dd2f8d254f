"""Did the mismatch grow in a run, and for rare tokens? What mismatch.py RUN prints.

Every checkpoint gives log mu and log pi to the same tokens, which one model drew. The table's rows:

    pair, mu, checkpoint     mu is the bin of the checkpoint's own mu of a token, or all: as a token
                             becomes rarer in training it changes its bin
    tokens                   how many
    logp_diff_mean, ..._low, ..._high    mean |log pi - log mu|, and its 95 % interval
    prob_diff_mean, ..._low, ..._high    the same of |pi - mu|

and a row with `last - first` in the place of the checkpoint: the differences of the means, and

    logp_diff_verdict, prob_diff_verdict    grew, shrank, or not told apart: the interval holds 0

The tokens of a prompt's completions are alike, so a prompt counts as one observation: the interval
is Student's t over the prompts, of a ratio of two sums (by linearization).
"""
import math
import os
import re

import ablate_stats
import mismatch_bins

MEASURES = ["logp_diff", "prob_diff"]
COLUMNS = ["pair", "mu", "checkpoint", "tokens"] + [
    f"{measure}_{what}" for measure in MEASURES for what in ("mean", "low", "high", "verdict")]


class RunError(Exception):
    """Why the run's folder does not do."""


# ------------------------------------------------------------------------------------------------
# The run's folder

def checkpoints(run):
    """[(name, model's file or folder)] from the oldest to the newest: warmup-N is before RL."""
    folder = os.path.join(run, "checkpoints")
    if not os.path.isdir(folder):
        raise RunError(f"{run} is no run: it has no checkpoints")
    names = [n for n in os.listdir(folder) if re.fullmatch(r"(warmup|step)-\d+", n)]
    names.sort(key=lambda n: (n.startswith("step"), int(n.partition("-")[2])))
    found = [(n, model_of(os.path.join(folder, n))) for n in names]
    if len(found) < 2:
        raise RunError(f"{run} keeps {len(found)} checkpoint{'s' * (len(found) != 1)}, and growth "
                       "takes two or more; make the run with --checkpoint-keep 0, which keeps all, "
                       "and --checkpoint-every N")
    return found


def model_of(checkpoint):
    """model.bin, or the folder model/: not every family fits the format of model.bin."""
    for name in ("model.bin", "model"):
        if os.path.exists(os.path.join(checkpoint, name)):
            return os.path.join(checkpoint, name)
    raise RunError(f"{checkpoint} has neither model.bin nor model/; it is no whole checkpoint")


def settings(run):
    """{flag: text} of the run's config."""
    try:
        with open(os.path.join(run, "config"), encoding="utf-8") as file:
            lines = [line.partition(" = ") for line in file]
    except OSError as error:
        raise RunError(f"cannot read {run}/config: {error.strerror}") from None
    return {name: value.strip() for name, _, value in lines}


def tokenizer_flags(run, config):
    """Of build/dev/study/mismatch: the run's own tokenizer, which it keeps, and chat format."""
    folder = os.path.join(run, "tokenizer")
    if not os.path.isdir(folder):
        return []
    return ["--tokenizer", folder, *flags_of(config, "chat", "system")]


def problems_of(config):
    """(task or file, flags): the problems that the run holds out."""
    if not config.get("data"):
        return config.get("task") or "chain", []
    flags = flags_of(config, "data-keys", "data-skip-long", "max-new-tokens")
    if config.get("data-held-out"):
        return os.path.abspath(config["data-held-out"]), flags
    return os.path.abspath(config["data"]), [*flags, "--held-out", "1"]


def flags_of(config, *names):
    return [text for n in names if config.get(n) for text in (f"--{n}", config[n])]


def pair_of(config):
    """The run's own SAMPLER:TRAINER; bf16:fp32 where they are equal, so that nothing could grow."""
    sampler, trainer = config.get("rollout-dtype", "fp32"), config.get("train-dtype", "fp32")
    if config.get("rollout-block", "none") != "none":
        sampler += "+" + config["rollout-block"]
    if config.get("train-block", "none") != "none":
        trainer += "+" + config["train-block"]
    if config.get("rollout-split-k", "1") != "1":
        sampler += "/" + config["rollout-split-k"]
    return f"{sampler}:{trainer}" if sampler != trainer else "bf16:fp32"


# ------------------------------------------------------------------------------------------------
# Statistics

def prompt_sums(tokens, group):
    """{bin: {prompt: [tokens, sum of |log pi - log mu|, sum of |pi - mu|]}} of
    [(sequence, log mu, log pi)]."""
    sums = {name: {} for name in [*mismatch_bins.BINS, "all"]}
    for sequence, log_mu, log_pi in tokens:
        gap, log_gap, _ = mismatch_bins.differences(log_mu, log_pi)
        for name in (mismatch_bins.bin_of(log_mu), "all"):
            found = sums[name].setdefault(sequence // group, [0, 0.0, 0.0])
            found[0] += 1
            found[1] += log_gap
            found[2] += gap
    return sums


def mean_of(sums, measure):
    """The mean over tokens, and {prompt: what it adds to the error of the mean}."""
    place = 1 + MEASURES.index(measure)
    tokens = sum(s[0] for s in sums.values())
    mean = math.fsum(s[place] for s in sums.values()) / tokens
    return mean, {p: (s[place] - mean * s[0]) / tokens for p, s in sums.items()}


def interval(value, errors):
    """Both ends, from what each prompt adds to the error of `value`; None of a single prompt."""
    n = len(errors)
    spread = math.sqrt(math.fsum(e * e for e in errors.values()) * n / (n - 1)) if n > 1 else None
    if spread is None or not math.isfinite(spread):
        return None, None
    width = ablate_stats.t_quantile(n - 1) * spread
    return value - width, value + width


def growth(first, last):
    """Difference of two (mean, errors), and its interval."""
    difference = last[0] - first[0]
    errors = {p: last[1].get(p, 0.0) - first[1].get(p, 0.0) for p in {**first[1], **last[1]}}
    return difference, *interval(difference, errors)


def verdict(low, high):
    return {"higher": "grew", "lower": "shrank"}.get(ablate_stats.verdict(low, high),
                                                     ablate_stats.NOT_TOLD_APART)


# ------------------------------------------------------------------------------------------------
# The table

def row_of(pair, mu, checkpoint, tokens, values):
    """`values`: of each measure three numbers and a verdict."""
    texts = [text for *numbers, found in values
             for text in (*map(ablate_stats.number_text, numbers), found)]
    return dict(zip(COLUMNS, [pair, mu, checkpoint, tokens, *texts]))


def rows_of(pair, found, group):
    """Rows of the table, from {checkpoint: tokens}."""
    sums = {name: prompt_sums(tokens, group) for name, tokens in found.items()}
    rows = []
    for mu in [*mismatch_bins.BINS, "all"]:
        having = {name: s[mu] for name, s in sums.items() if s[mu]}
        means = {name: [mean_of(s, m) for m in MEASURES] for name, s in having.items()}
        for name, both in means.items():
            tokens = sum(s[0] for s in having[name].values())
            rows.append(row_of(pair, mu, name, str(tokens),
                               [(mean, *interval(mean, errors), "") for mean, errors in both]))
        first, *_, last = found
        if first in means and last in means:
            grown = [growth(*ends) for ends in zip(means[first], means[last])]
            rows.append(row_of(pair, mu, "last - first", "",
                               [(*numbers, verdict(*numbers[1:])) for numbers in grown]))
    return rows


def short(text):
    return f"{float(text):.3g}" if text else "-"


def print_rows(rows, drawn_by):
    shown = None
    for row in rows:
        if row["pair"] != shown:
            shown = row["pair"]
            print(f"{shown}: the same tokens at every checkpoint, drawn by {drawn_by}\n"
                  f"{'mu':14s}{'checkpoint':15s}{'tokens':>7s}  {'|log pi - log mu|, 95 %':48s}"
                  "|pi - mu|, 95 %")
        texts = []
        for measure in MEASURES:
            mean, low, high, found = (row[f"{measure}_{w}"]
                                      for w in ("mean", "low", "high", "verdict"))
            texts.append(f"{short(mean):>9s} ({short(low)} to {short(high)}) {found}")
        print(f"{row['mu']:14s}{row['checkpoint']:15s}{row['tokens']:>7s}  {texts[0]:48s}"
              f"{texts[1]}".rstrip())


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/mismatch.py.")
