"""From logs to tables: curves of each run, figures of each run and cell, paired differences.

Everything is computed from the rows of curves.csv, as rounded there, so that the other tables
follow from that file alone. Sums are exact (fsum): the same text on every machine. The rules:

    window        a tenth of the steps, at least 3 (or all, if there are fewer)
    auc           area under the reward curve over its length: the mean reward over all steps
    final_pass1   pass@1 at the last evaluation; base_pass1 at the first
    last_reward   mean reward of the last window
    best_reward   highest mean reward of any window
    collapsed     1 where last_reward < best_reward / 2, and where the run diverged
    diverged      1 where the program ended the run because its gradients or weights were not
                  finite. Its last reward and pass@1 then stand for the steps that it did not make:
                  curves.csv has a row for each of these, with diverged = 1
    steps_to      the first step at which the mean of the window that ends there reaches the
                  threshold; seconds_to is the time since the start of RL. Empty: never
    prob_diff_mean, kl_k3     mean over steps before the first update: numerics alone. Where the
                              sampler's weights were older at some step, that is drift too: then
                              the place says at how many steps they were not, "– (1 of 40 steps)"
    logp_diff_max             the largest over steps, there
    update_...                in the mini-batches, numerics and drift: mean over updates and steps,
                              but the largest for logp_diff_max and grad_norm, and of masked_mu,
                              the probability of masked tokens, where any is masked. Only
                              curves.csv has grad_norm and loss_scale, of which it has the least;
                              files of older programs lack loss_scale
    update_changed...         shares of weights that an update changed (docs/metrics.md), and
    routing_differs           of tokens and layers whose experts differ: where runs log them
    ..._t_low, ..._t_high     95 % interval of the mean by Student's t over seeds. That of a score
                              is cut to 0 .. 1, where scores lie
    ..._low, ..._high         95 %, percentile bootstrap over seeds: the resampling distribution of
                              the mean, exact up to 7 seeds, else 10000 resamples with a fixed
                              seed. Of five seeds it holds the true mean in about 84 % of cases
    differences   of two levels at the same seed, all else equal; * averages over a factor's levels
    verdict       higher or lower where the t interval of a difference does not hold 0; else, and
                  of a single seed, "not told apart"
"""
import csv
import functools
import io
import itertools
import json
import math
import random
import statistics

EXACT_SEEDS = 7
RESAMPLES = 10000
# Columns of curves.csv: (name, phase, key, how the lines of a step become one number).
COLUMNS = [
    ("reward", "rollout", "reward", "mean"),
    ("response_length", "rollout", "response_length", "mean"),
    ("entropy", "rollout", "entropy", "mean"),
    ("zero_std_groups", "rollout", "zero_std_groups", "mean"),
    ("prob_diff_mean", "numerics", "prob_diff_mean", "mean"),
    ("logp_diff_max", "numerics", "logp_diff_max", "max"),
    ("kl_k3", "numerics", "kl_k3", "mean"),
    ("update_prob_diff_mean", "update", "prob_diff_mean", "mean"),
    ("update_logp_diff_max", "update", "logp_diff_max", "max"),
    ("update_kl", "update", "kl", "mean"),
    ("update_ess", "update", "ess", "mean"),
    ("update_outside", "update", "outside", "mean"),
    ("update_masked", "update", "masked", "mean"),
    ("update_masked_mu", "update", "masked_mu", "mean of some"),
    ("update_grad_norm", "update", "grad_norm", "max"),
    ("update_loss_scale", "update", "loss_scale", "min"),
    ("pass1", "eval", "pass1", "mean"),
    ("greedy", "eval", "greedy", "mean"),
]
# What only some families and flags log: files of runs without it have no such column.
OPTIONAL_COLUMNS = [
    ("routing_differs", "numerics", "routing_differs", "mean"),
    ("update_changed", "update", "changed", "mean"),
    ("update_changed_train", "update", "changed_train", "mean"),
    ("update_changed_rollout", "update", "changed_rollout", "mean"),
]
COLUMNS += OPTIONAL_COLUMNS
OPTIONAL = [name for name, *_ in OPTIONAL_COLUMNS]
CURVES = ["seconds"] + [name for name, *_ in COLUMNS] + ["diverged"]
# What stands for the steps that a diverged run did not make.
CARRIED = ["seconds"] + [name for name, phase, *_ in COLUMNS if phase in ("rollout", "eval")]
NUMERICS = [name for name, phase, *_ in COLUMNS if phase == "numerics"]
# Of a run, over its steps.
OVER_STEPS = [("prob_diff_mean", "mean"), ("logp_diff_max", "max"), ("kl_k3", "mean"),
              ("update_prob_diff_mean", "mean"), ("update_logp_diff_max", "max"),
              ("update_kl", "mean"), ("update_ess", "mean"), ("update_outside", "mean"),
              ("update_masked", "mean"), ("update_masked_mu", "mean")]
OVER_STEPS += [(name, "mean") for name in OPTIONAL]
SCORES = ["auc", "final_pass1", "last_reward"]  # these get intervals and differences
NOT_TOLD_APART = "not told apart"
RUN_FIGURES = (["steps"] + SCORES + ["base_pass1", "best_reward", "collapsed", "diverged",
                                     "steps_to", "seconds_to", "seconds"]
               + [name for name, _ in OVER_STEPS])


def number_text(x):
    if isinstance(x, Partly):
        return partly_text([x])
    return "" if x is None or not math.isfinite(x) else f"{x:.5g}"


def mean(values):
    return math.fsum(values) / len(values)


class Partly:
    """In the place of a figure that only some steps of a run have."""

    def __init__(self, having, steps):
        self.having, self.steps = having, steps


def partly_text(found):
    """Of one run or several: – (1 of 40 steps)."""
    counts = [sorted({getattr(p, what) for p in found}) for what in ("having", "steps")]
    having, steps = (f"{c[0]}" if len(c) == 1 else f"{c[0]} to {c[-1]}" for c in counts)
    return f"– ({having} of {steps} steps)"


REDUCE = {"mean": mean, "max": max, "min": min, "mean of some": mean}


# ------------------------------------------------------------------------------------------------
# Logs and curves

def read_log(path):
    """The objects of a log.jsonl; a last line without its newline is still being written."""
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


def last_eval_step(log):
    return max((e["step"] for e in log if e["phase"] == "eval"), default=-1)


def curve_rows(log):
    """{step: {column: number}} of a log. An evaluation stands at the number of steps before it."""
    found, rows = {}, {}
    start = next((e["time"] for e in log if e["phase"] == "eval"), 0)
    for entry in log:
        if entry["phase"] != "warmup":
            found.setdefault((entry["step"], entry["phase"]), []).append(entry)
    for step in sorted({step for step, _ in found}):
        row = rows[step] = {}
        rollout = found.get((step, "rollout"))
        if rollout:
            row["seconds"] = rollout[-1]["time"] - start
        for name, phase, key, how in COLUMNS:
            values = [e.get(key) for e in found.get((step, phase), [])]
            if how == "mean of some":
                values = [v for v in values if v is not None]
            if values and all(isinstance(v, (int, float)) for v in values):
                row[name] = REDUCE[how](values)
    return rows


def carry_forward(rows, steps):
    """Adds the rows that a diverged run of so many steps did not come to, and marks its end."""
    last = {name: column(rows, name)[1][-1] for name in CARRIED if column(rows, name)[1]}
    for step in range(column(rows, "reward")[0][-1] + 1, steps):
        rows[step] = {**last, "diverged": 1}
    end = {name: last[name] for name in ("pass1", "greedy") if name in last}
    rows[steps] = {**end, **rows.get(steps, {}), "diverged": 1}


def curves_csv(curves):
    """The text of curves.csv from {run name: rows}."""
    return table_text([{"run": name, "step": step, **{c: number_text(row.get(c)) for c in CURVES}}
                       for name, rows in curves.items() for step, row in rows.items()])


def read_curves(text):
    """{run name: {step: {column: number}}}; an empty place has no entry."""
    curves = {}
    for line in csv.DictReader(io.StringIO(text)):
        rows = curves.setdefault(line["run"], {})
        rows[int(line["step"])] = {c: float(line[c]) for c in CURVES if line.get(c)}
    return curves


def column(rows, name):
    """Steps and values of a column, where it has any."""
    steps = [s for s in rows if name in rows[s]]
    return steps, [rows[s][name] for s in steps]


def made_steps(rows):
    """The rows without those that stand for steps that a diverged run did not make."""
    return {s: row for s, row in rows.items() if not row.get("diverged")}


# ------------------------------------------------------------------------------------------------
# A run's figures

def window_of(steps):
    return min(steps, max(3, round(steps / 10)))


def moving_means(values, window):
    """Entry i is the mean of the window that ends at place window - 1 + i."""
    return [mean(values[i:i + window]) for i in range(len(values) - window + 1)]


def run_figures(rows, threshold):
    """{name of RUN_FIGURES: number} of a run's rows; what it lacks has no entry."""
    steps, reward = column(rows, "reward")
    made = column(made_steps(rows), "reward")[0]
    passes = column(rows, "pass1")[1]
    diverged = len(made_steps(rows)) < len(rows)
    figures = {"steps": len(made), "diverged": int(diverged)}
    if passes:
        figures.update(base_pass1=passes[0], final_pass1=passes[-1])
    if reward:
        window = window_of(len(reward))
        means = moving_means(reward, window)
        reached = next((i + window - 1 for i, m in enumerate(means[:len(made) - window + 1])
                        if m >= threshold), None)
        figures.update(auc=mean(reward), last_reward=means[-1], best_reward=max(means),
                       collapsed=int(diverged or means[-1] < max(means) / 2),
                       seconds=rows[steps[-1]]["seconds"])
        if reached is not None:
            figures.update(steps_to=steps[reached], seconds_to=rows[steps[reached]]["seconds"])
    for name, how in OVER_STEPS:
        values = column(made_steps(rows), name)[1]
        if values and name in NUMERICS and len(values) < len(made):
            figures[name] = Partly(len(values), len(made))
        elif values:
            figures[name] = REDUCE[how](values)
    return figures


# ------------------------------------------------------------------------------------------------
# The bootstrap

@functools.cache
def resamples(n):
    """How often each of n values occurs in a resample: [(counts, weight)], weights add up to 1."""
    if n > EXACT_SEEDS:
        draw = random.Random(1)
        counted = [[0] * n for _ in range(RESAMPLES)]
        for counts in counted:
            for _ in range(n):
                counts[int(draw.random() * n)] += 1
        return [(tuple(counts), 1 / RESAMPLES) for counts in counted]
    found = []
    for picked in itertools.combinations_with_replacement(range(n), n):
        counts = tuple(picked.count(i) for i in range(n))
        ways = math.factorial(n) // math.prod(map(math.factorial, counts))
        found.append((counts, ways / n**n))
    return found


def bootstrap(values, level=0.95):
    """Both ends of the percentile interval of the mean. One value has none: (None, None)."""
    n = len(values)
    if n < 2:
        return None, None
    means = sorted((math.fsum(c * v for c, v in zip(counts, values)) / n, weight)
                   for counts, weight in resamples(n))
    return quantile(means, (1 - level) / 2), quantile(means, (1 + level) / 2)


def quantile(weighted, q):
    """The first of the sorted (value, weight) at which the weights add up to q."""
    total = 0.0
    for value, weight in weighted:
        total += weight
        if total >= q - 1e-12:
            return value
    return weighted[-1][0]


# ------------------------------------------------------------------------------------------------
# Student's t

def t_within(t, freedom):
    """The probability that |T| <= t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd, cosine, total = freedom % 2, math.cos(angle), 0.0
    term = cosine if odd else 1.0
    for i in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * i + 1 + odd) / (2 * i + 2 + odd)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


@functools.cache
def t_quantile(freedom, level=0.95):
    """The t that |T| exceeds with probability 1 - level."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < level else (low, middle)
    return high


def t_interval(values, level=0.95):
    """Both ends of the interval of the mean. One value has none: (None, None)."""
    n = len(values)
    if n < 2:
        return None, None
    middle = mean(values)
    spread = math.sqrt(math.fsum((v - middle)**2 for v in values) / (n - 1) / n)
    return middle - t_quantile(n - 1, level) * spread, middle + t_quantile(n - 1, level) * spread


def verdict(low, high):
    """What a difference with this interval shows."""
    if low is None or low <= 0 <= high:
        return NOT_TOLD_APART
    return "higher" if low > 0 else "lower"


def median_reached(values, n):
    """The median of n runs of which only `values` reached it; None where most did not."""
    return statistics.median_low(sorted(values) + [math.inf] * (n - len(values))) if n else None


# ------------------------------------------------------------------------------------------------
# Tables: lists of {column: text}

def interval_texts(name, low, high):
    """The two columns of an interval."""
    return {f"{name}_low": number_text(low), f"{name}_high": number_text(high)}


class Results:
    """A matrix and its curves, and every table that follows from the two."""

    def __init__(self, matrix, curves):
        self.matrix, self.curves = matrix, curves
        self.factors = list(matrix.factors)
        self.runs = [r for r in matrix.runs() if r.name in curves]
        self.figures = {r.name: run_figures(curves[r.name], matrix.threshold) for r in self.runs}

    def diverged(self):
        """Names of the runs that diverged."""
        return [r.name for r in self.runs if self.figures[r.name]["diverged"]]

    def of_cell(self, levels):
        return [r for r in self.runs if r.levels == levels]

    def cells(self):
        return [c for c in self.matrix.cells() if self.of_cell(c)]

    def values(self, runs, name):
        return [self.figures[r.name][name] for r in runs if name in self.figures[r.name]]

    def runs_table(self):
        return [{**r.levels, "seed": str(r.seed), "run": r.name,
                 **{n: number_text(self.figures[r.name].get(n)) for n in RUN_FIGURES}}
                for r in self.runs]

    def summary_row(self, levels):
        runs = self.of_cell(levels)
        row = {**levels, "seeds": str(len(runs))}
        for name in SCORES:
            values = self.values(runs, name)
            row[name] = number_text(mean(values) if values else None)
            t_ends = [end if end is None else min(max(end, 0), 1) for end in t_interval(values)]
            row.update(interval_texts(f"{name}_t", *t_ends))
            row.update(interval_texts(name, *bootstrap(values)))
        row["base_pass1"] = self.over_runs(runs, "base_pass1", mean)
        for name in ("collapsed", "diverged"):
            row[name] = self.over_runs(runs, name, sum)
        row["reached"] = str(len(self.values(runs, "steps_to")))
        for name in ("steps_to", "seconds_to"):
            row[name] = number_text(median_reached(self.values(runs, name), len(runs)))
        for name, how in OVER_STEPS:
            row[name] = self.over_runs(runs, name, REDUCE[how])
        return row

    def over_runs(self, runs, name, reduce):
        values = self.values(runs, name)
        partly = [v for v in values if isinstance(v, Partly)]
        if partly:
            return partly_text(partly)
        return number_text(reduce(values)) if values else ""

    def summary_table(self):
        return [self.summary_row(levels) for levels in self.cells()]

    def score_by_seed(self, levels, name):
        """{seed: mean score} over the cells that match `levels`, * matching every level. A seed
        counts only where all of these cells have it."""
        cells = [c for c in self.matrix.cells()
                 if all(levels[f] in ("*", c[f]) for f in self.factors)]
        by_seed = {}
        for run in self.runs:
            if run.levels in cells and name in self.figures[run.name]:
                by_seed.setdefault(run.seed, []).append(self.figures[run.name][name])
        return {s: mean(v) for s, v in by_seed.items() if len(v) == len(cells)}

    def differences_table(self):
        rows = []
        for factor in self.matrix.compared():
            others = [f for f in self.factors if f != factor]
            options = [list(self.matrix.factors[f]) for f in others]
            averaged = ["*" if len(levels) > 1 else levels[0] for levels in options]
            choices = list(itertools.product(*options))
            for choice in choices + ([averaged] if len(choices) > 1 else []):
                rows += self.differences(factor, dict(zip(others, choice)))
        return rows

    def differences(self, factor, fixed):
        rows = []
        for name in SCORES:
            scores = {level: self.score_by_seed({**fixed, factor: level}, name)
                      for level in self.matrix.factors[factor]}
            for minus, level in itertools.combinations(scores, 2):
                seeds = [s for s in self.matrix.seeds if s in scores[level] and s in scores[minus]]
                if not seeds:
                    continue
                gaps = [scores[level][s] - scores[minus][s] for s in seeds]
                low, high = t_interval(gaps)
                rows.append({"factor": factor, "level": level, "minus": minus,
                             **{f: fixed.get(f, "") for f in self.factors}, "score": name,
                             "seeds": str(len(seeds)), "difference": number_text(mean(gaps)),
                             **interval_texts("difference_t", low, high),
                             **interval_texts("difference", *bootstrap(gaps)),
                             "higher": str(sum(g > 0 for g in gaps)),
                             "verdict": verdict(low, high)})
        return rows

    def tables(self):
        """{file name: rows} of what follows from curves.csv."""
        return {"runs.csv": self.runs_table(), "summary.csv": self.summary_table(),
                "differences.csv": self.differences_table()}


def table_text(rows):
    columns = [c for c in (rows[0] if rows else []) if c not in OPTIONAL or any(r[c] for r in rows)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/ablate.py.")
