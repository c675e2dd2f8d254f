"""The tables and figures of mismatch.py --out, which a page may name (ablate_page.py).

bins.csv     a row a pair and bin of mu, the sampler's probability of the token that it drew; the
             bin "all" has every token
    tokens, share                     how many, and of all tokens of the pair
    prob_diff_mean, prob_gap_max      mean and largest |pi - mu|
    logp_diff_mean, logp_diff_max     mean and largest |log pi - log mu|
    ratio_mean, ratio_min, ratio_max  of pi / mu, clamped to e^-20 .. e^20 as an objective sees it
    ratio_outside                     share of the bin's tokens whose ratio is not in 0.8 .. 1.28
    tv_outside                        share of those with |pi - mu| > 0.15
    ratio_only, tv_only               share of those outside the one but inside the other
layers.csv   pair, layer, difference of the residual stream (see mismatch.c)
metrics.csv  a row a pair, a column a metric of llmc/rl/mismatch.c

0.8 .. 1.28 is grpo's clip, 0.15 the delta of dppo-tv and drpo. Both stop a token on one side alone,
which the sign of its advantage chooses, so the shares are of tokens that *can* be stopped. An empty
bin has empty places. The figures follow from these tables as rounded here.
"""
import bisect
import csv
import io
import math

import ablate_stats
import ablate_svg

EDGES = [0, 0.01, 0.03, 0.1, 0.3, 0.7, 0.9, 0.99, 1]
BINS = [f"{low:g} to {high:g}" for low, high in zip(EDGES, EDGES[1:])]  # the low edge is inside
CLIP = (1 - 0.2, 1 + 0.28)
TV = 0.15
FILES = ["bins.csv", "layers.csv", "metrics.csv"]
# Figure: title, limits of its axis, and its panels as (column of bins.csv, title).
BY_BIN = {
    "bins.svg": ("Difference of sampler and trainer, by the sampler's probability μ of the token",
                 None,
                 [("logp_diff_mean", "mean |log π − log μ|"), ("prob_diff_mean", "mean |π − μ|")]),
    "outside.svg": ("Share of tokens outside a region, by the sampler's probability μ of the token",
                    (0, 1),
                    [("ratio_outside", "π / μ outside 0.8 to 1.28"),
                     ("tv_outside", "|π − μ| above 0.15")]),
}


class Results:
    """The three tables, from {file name: text}."""

    def __init__(self, texts):
        self.found = {name: list(csv.DictReader(io.StringIO(texts[name]))) for name in FILES}

    def tables(self):
        return self.found


# ------------------------------------------------------------------------------------------------
# Tables

def differences(log_mu, log_pi):
    """|pi - mu|, |log pi - log mu| and the ratio of a token; exact where the two are equal."""
    x = 0.0 if log_pi == log_mu else log_pi - log_mu
    return abs(math.exp(log_pi) - math.exp(log_mu)), abs(x), math.exp(min(max(x, -20), 20))


def bin_of(log_mu):
    return BINS[bisect.bisect_right(EDGES[1:-1], math.exp(log_mu))]


def bin_figures(tokens):
    """{column of bins.csv: number} of [(log mu, log pi)]."""
    gaps, logs, ratios = zip(*(differences(*t) for t in tokens))
    by_ratio = [not CLIP[0] <= r <= CLIP[1] for r in ratios]
    by_tv = [not g <= TV for g in gaps]  # a NaN lies outside, as in llmc/rl/mismatch.c
    mean = ablate_stats.mean
    return {"prob_diff_mean": mean(gaps), "prob_gap_max": max(gaps),
            "logp_diff_mean": mean(logs), "logp_diff_max": max(logs),
            "ratio_mean": mean(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "ratio_outside": mean(by_ratio), "tv_outside": mean(by_tv),
            "ratio_only": mean([r and not t for r, t in zip(by_ratio, by_tv)]),
            "tv_only": mean([t and not r for r, t in zip(by_ratio, by_tv)])}


def bin_rows(pair, tokens):
    """Rows of bins.csv."""
    inside = {name: [] for name in BINS}
    for log_mu, log_pi in tokens:
        inside[bin_of(log_mu)].append((log_mu, log_pi))
    columns, rows = bin_figures(tokens), []
    for name, found in {**inside, "all": tokens}.items():
        figures = bin_figures(found) if found else {}
        rows.append({"pair": pair, "mu": name, "tokens": str(len(found)),
                     "share": ablate_stats.number_text(len(found) / len(tokens)),
                     **{c: ablate_stats.number_text(figures.get(c)) for c in columns}})
    return rows


def table_texts(pairs):
    """{file name: text} of {pair: {"token": [(sequence, log mu, log pi)], "layer": [difference],
    "metric": {name: number}}}."""
    number = ablate_stats.number_text
    bins = [row for pair, found in pairs.items()
            for row in bin_rows(pair, [(t[1], t[2]) for t in found["token"]])]
    layers = [{"pair": pair, "layer": str(layer), "difference": number(difference)}
              for pair, found in pairs.items() for layer, difference in enumerate(found["layer"])]
    metrics = [{"pair": pair, **{name: number(x) for name, x in found["metric"].items()}}
               for pair, found in pairs.items()]
    return dict(zip(FILES, map(ablate_stats.table_text, (bins, layers, metrics))))


# ------------------------------------------------------------------------------------------------
# Figures

def figures(_):
    """Their names, the same of all results."""
    return [*BY_BIN, "layers.svg"]


def draw(results, name):
    """The figure of that name, or None if there is none."""
    if name in BY_BIN:
        title, limits, panels = BY_BIN[name]
        return draw_bins(title, results.tables()["bins.csv"], panels, limits)
    if name == "layers.svg":
        rows = results.tables()["layers.csv"]
        places = [int(row["layer"]) for row in rows]
        return draw_pairs("Relative difference of the residual stream that enters each layer, or "
                          "leaves the last", rows, [("difference", "")], places,
                          [str(i) for i in range(max(places) + 1)])
    return None


def draw_bins(title, rows, panels, limits=None, width=ablate_svg.WIDTH):
    """Panels [(column of bins.csv, title)] over the bins of mu."""
    rows = [row for row in rows if row["mu"] != "all"]
    labels = [f"<{edge:g}" for edge in EDGES[1:-1]] + [f"≤{EDGES[-1]}"]
    return draw_pairs(title, rows, panels, [BINS.index(row["mu"]) for row in rows], labels, limits,
                      width)


def draw_pairs(title, rows, panels, places, labels, limits=None, width=ablate_svg.WIDTH):
    """Panels [(column, title)] of a curve a pair, over the rows' places, which have labels."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))

    def curve(pair, column):
        having = [(place, float(row[column])) for place, row in zip(places, rows)
                  if row["pair"] == pair and row[column]]
        values = [value for _, value in having]
        return ablate_svg.Curve(pairs.index(pair), [place for place, _ in having], values, values,
                                values)

    drawn = [(panel, [curve(pair, column) for pair in pairs]) for column, panel in panels]
    return ablate_svg.curve_figure(title, pairs, drawn, len(drawn), limits, labels, width)


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/mismatch.py.")
