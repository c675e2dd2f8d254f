"""Drawings of an ablation as SVG text: curves in panels, and scores as dots with intervals.

A drawing depends on its numbers alone and is the same text on every machine, so that a page's
figures can be compared byte for byte. It holds its own style, for light and dark pages.
"""
import html
import itertools
import math
import re

import ablate_stats

WIDTH = 900
COLOURS = ["#2f7fc1", "#de6b12", "#2a9a6c", "#c2569d", "#a98600", "#45aecb", "#8466cc", "#808080"]
DASHES = ["", "6 3", "2 2", "8 3 2 3"]
STYLE = ("text{font:11px system-ui,sans-serif;fill:#333}.h{font-weight:600}.g{stroke:#8886;"
         "stroke-width:.5}.a{stroke:#888;fill:none}"
         "@media(prefers-color-scheme:dark){text{fill:#ddd}}")
LETTER = 6.3  # a letter's width at most, nearly always


def escape(text):
    return html.escape(str(text), quote=True)


def place(x):
    """A coordinate as short text."""
    text = f"{x:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def text_at(x, y, text, anchor="start", kind=""):
    kind = f' class="{kind}"' if kind else ""
    return (f'<text x="{place(x)}" y="{place(y)}" text-anchor="{anchor}"{kind}>'
            f'{escape(text)}</text>')


def line(x1, y1, x2, y2, kind="g"):
    return (f'<line x1="{place(x1)}" y1="{place(y1)}" x2="{place(x2)}" y2="{place(y2)}" '
            f'class="{kind}"/>')


def document(height, title, parts, width=WIDTH):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {place(height)}" '
            f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>\n'
            + "\n".join(parts) + "\n</svg>\n")


def colour(i):
    return COLOURS[i % len(COLOURS)]


def dash(i):
    dashes = DASHES[i // len(COLOURS) % len(DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


# ------------------------------------------------------------------------------------------------
# Scales

def nice_ticks(low, high, about=4):
    """Round numbers that cover low..high."""
    span = high - low or abs(high) or 1
    size = 10 ** math.floor(math.log10(span / about))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m * about >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_text(x):
    if x == 0:
        return "0"
    if abs(x) >= 1e4 or abs(x) < 1e-3:
        mantissa, exponent = f"{x:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{x:.4g}"


class Linear:
    """Values to heights between `bottom` and `top` (of the page: bottom is the larger)."""

    def __init__(self, values, limits=None):
        low, high = limits or (min(values, default=0), max(values, default=1))
        self.ticks = nice_ticks(low, high)
        self.low, self.high = self.ticks[0], self.ticks[-1]

    def share(self, value):
        return (value - self.low) / (self.high - self.low)


class Logarithmic:
    """Decades; exact zeros have a place of their own below them."""

    def __init__(self, values):
        positive = [v for v in values if v > 0]
        self.first = math.floor(math.log10(min(positive)) + 1e-9)
        self.last = max(math.ceil(math.log10(max(positive)) - 1e-9), self.first + 1)
        zero = any(v == 0 for v in values)
        self.bottom = self.first - (1 if zero else 0)
        every = math.ceil((self.last - self.first) / 5)
        self.ticks = ([0] if zero else []) + [10.0**e for e in
                                              range(self.first, self.last + 1, every)]

    def share(self, value):
        power = math.log10(value) if value > 0 else self.bottom
        return (max(power, self.bottom) - self.bottom) / (self.last - self.bottom)


def scale_of(values, limits=None):
    """Logarithmic where no value is negative and the positive ones span more than two decades."""
    positive = [v for v in values if v > 0]
    if not limits and positive and min(values) >= 0 and max(positive) > 100 * min(positive):
        return Logarithmic(values)
    if not limits and values and min(values) == max(values) == 0:
        limits = (0, 1)
    return Linear(values, limits)


# ------------------------------------------------------------------------------------------------
# Curves

class Curve:
    """A line with a band: at each step the mean, and the band's lower and upper edge."""

    def __init__(self, number, steps, means, lows, highs):
        self.number = number  # which colour
        self.steps, self.means, self.lows, self.highs = steps, means, lows, highs


def legend(names, y, most=WIDTH):
    """Entries from left to right, in as many rows as they need; returns the parts and the new y."""
    parts, x = [], 8
    for i, name in enumerate(names):
        width = 30 + LETTER * len(name) + 14
        if x + width > most and x > 8:
            x, y = 8, y + 17
        parts.append(f'<path d="M{place(x)} {place(y - 4)}h22" stroke="{colour(i)}" '
                     f'stroke-width="2.5" fill="none"{dash(i)}/>')
        parts.append(text_at(x + 28, y, name))
        x += width
    return parts, y + 8


def points(steps, values, x_of, y_of):
    return "L".join(f"{place(x_of(s))} {place(y_of(v))}" for s, v in zip(steps, values))


def draw_curve(curve, x_of, y_of):
    band = ""
    if curve.lows != curve.highs and len(curve.steps) > 1:
        there = points(curve.steps, curve.highs, x_of, y_of)
        back = points(curve.steps[::-1], curve.lows[::-1], x_of, y_of)
        band = f'<path d="M{there}L{back}Z" fill="{colour(curve.number)}" opacity=".13"/>'
    number = curve.number
    if len(curve.steps) == 1:
        x, y = place(x_of(curve.steps[0])), place(y_of(curve.means[0]))
        return band, f'<circle cx="{x}" cy="{y}" r="3" fill="{colour(number)}"/>'
    return band, (f'<path d="M{points(curve.steps, curve.means, x_of, y_of)}" fill="none" '
                  f'stroke="{colour(number)}" stroke-width="1.7" stroke-linejoin="round"'
                  f'{dash(number)}/>')


def draw_panel(title, curves, box, scale, x_ticks, ends, y_labels):
    """`x_ticks` are [(step, text)], `ends` the steps at both ends of the axis."""
    left, top, width, height = box
    first, last = ends

    def x_of(step):
        return left + width * (step - first) / (last - first)

    def y_of(value):
        return top + height * (1 - min(1, max(0, scale.share(value))))

    parts = [text_at(left, top - 7, shorten(title, width), kind="h")]
    for tick in scale.ticks:
        parts.append(line(left, y_of(tick), left + width, y_of(tick)))
        if y_labels:
            parts.append(text_at(left - 6, y_of(tick) + 4, tick_text(tick), "end"))
    for tick, text in x_ticks:
        parts.append(line(x_of(tick), top + height, x_of(tick), top + height + 4, "a"))
        parts.append(text_at(x_of(tick), top + height + 16, text, "middle"))
    drawn = [draw_curve(c, x_of, y_of) for c in curves if c.steps]
    parts += [band for band, _ in drawn if band] + [mean for _, mean in drawn]
    if not drawn:
        parts.append(text_at(left + width / 2, top + height / 2, "no numbers", "middle"))
    return parts


def shorten(text, width):
    most = int(width / LETTER)
    return text if len(text) <= most else text[:most - 1] + "…"


def step_ticks(last):
    return [(t, tick_text(t)) for t in nice_ticks(0, last) if t == int(t) and t <= last]


def curve_figure(title, names, panels, across, limits=None, labels=None, whole=WIDTH):
    """A figure of panels [(title, [Curve])], `across` side by side, that share their axes; `names`
    are the legend's. With `labels`, step i is called by the i-th of them. `whole` is its width."""
    values = [v for _, curves in panels for c in curves for v in c.lows + c.highs]
    steps = [s for _, curves in panels for c in curves for s in c.steps]
    scale = scale_of(values, limits)
    last = max(steps, default=0) or 1
    x_ticks, ends = step_ticks(last), (0, last)
    margin, gap, height = 50, 24, 150 if len(panels) > 1 else 260
    width = (whole - margin - 14 - gap * (across - 1)) / across
    if labels:
        x_ticks = [(i, shorten(text, width / len(labels))) for i, text in enumerate(labels)]
        ends = (-0.5, len(labels) - 0.5)
    parts = [text_at(8, 16, title, kind="h")]
    entries, y = legend(names, 36, whole)
    parts += entries
    for i, (panel, curves) in enumerate(panels):
        box = (margin + (width + gap) * (i % across), y + 24 + (height + 52) * (i // across), width,
               height)
        parts += draw_panel(panel, curves, box, scale, x_ticks, ends, i % across == 0)
    rows = math.ceil(len(panels) / across)
    bottom = y + 24 + (height + 52) * rows
    if not labels:
        parts.append(text_at(whole - 14, bottom - 20 + 4, "step", "end"))
    return document(bottom - 8, title, parts, whole)


# ------------------------------------------------------------------------------------------------
# Scores

class Score:
    """A row of a score figure; low and high are None where there is no interval."""

    def __init__(self, name, number, mean, low, high, seeds):
        self.name, self.number = name, number
        self.mean, self.low, self.high, self.seeds = mean, low, high, seeds


def draw_score(score, y, x_of):
    tint = colour(score.number)
    parts = [text_at(x_of(None) - 10, y + 4, score.name, "end")]
    if score.low is not None:
        parts.append(f'<path d="M{place(x_of(score.low))} {place(y)}H{place(x_of(score.high))}" '
                     f'stroke="{tint}" stroke-width="5" opacity=".4" fill="none"/>')
    parts += [f'<circle cx="{place(x_of(v))}" cy="{place(y)}" r="2.5" fill="{tint}"/>'
              for v in score.seeds]
    parts.append(f'<path d="M{place(x_of(score.mean))} {place(y - 7)}v14" stroke="{tint}" '
                 'stroke-width="3" fill="none"/>')
    return parts


def score_figure(title, groups):
    """Rows [(group title, [Score])] on one axis that holds all seeds and intervals."""
    scale = Linear([v for _, scores in groups for s in scores for v in [*s.seeds, s.low, s.high]
                    if v is not None])
    names = [s.name for _, scores in groups for s in scores]
    left = min(300, 24 + LETTER * max(map(len, names), default=0))

    def x_of(value):
        return left if value is None else left + (WIDTH - 30 - left) * scale.share(value)

    parts, y = [text_at(8, 16, title, kind="h")], 34
    rows = []
    for group, scores in groups:
        if group:
            rows.append(text_at(8, y + 4, group, kind="h"))
            y += 20
        for score in scores:
            rows += draw_score(score, y, x_of)
            y += 19
        y += 6
    for tick in scale.ticks:
        parts.append(line(x_of(tick), 26, x_of(tick), y - 10))
        parts.append(text_at(x_of(tick), y + 4, tick_text(tick), "middle"))
    return document(y + 14, title, parts + rows)


# ------------------------------------------------------------------------------------------------
# The figures of an ablation, by name

# Column of curves.csv: title, limits of its axis, and whether the report shows it unfolded.
DRAWN = {
    "reward": ("Reward of training rollouts", (0, 1), True),
    "pass1": ("pass@1 at evaluations", (0, 1), True),
    "prob_diff_mean": ("mean |π − μ| before the first update (numerics)", None, True),
    "logp_diff_max": ("max |log π − log μ| before the first update (numerics)", None, False),
    "kl_k3": ("KL (k3) before the first update (numerics)", None, False),
    "update_prob_diff_mean": ("mean |π − μ| in the mini-batches (numerics and drift)", None, False),
    "update_logp_diff_max": ("max |log π − log μ| in the mini-batches", None, False),
    "update_kl": ("KL(μ‖π), mean of −log π/μ, in the mini-batches", None, False),
    "update_ess": ("effective sample size in the mini-batches", (0, 1), False),
    "update_outside": ("share of tokens with |π − μ| > δ in the mini-batches", None, False),
    "update_grad_norm": ("largest gradient norm of a step", None, False),
    "entropy": ("entropy of the sampler (nats)", None, False),
    "response_length": ("response length (tokens)", None, False),
    "zero_std_groups": ("share of groups whose rewards are all equal", (0, 1), False),
}
SCORED = {"final_pass1": "Final pass@1", "auc": "Area under the reward curve",
          "last_reward": "Mean reward of the last window"}


def figures(results):
    """{name: how it is drawn}: SCORE.svg, SCORE-over-FACTOR.svg and COLUMN-by-FACTOR.svg."""
    found = {f"{score}.svg": (draw_scores, score) for score in SCORED}
    compared = results.matrix.compared()
    for factor in compared if len(compared) > 1 else []:
        for score in SCORED:
            found[f"{score}-over-{factor}.svg".replace(" ", "-")] = (draw_over, score, factor)
    for factor in compared or results.factors[:1]:
        for column in DRAWN:
            found[f"{column}-by-{factor}.svg".replace(" ", "-")] = (draw_curves, column, factor)
    return found


def draw(results, name):
    """The figure of that name, or None if there is none."""
    how, *what = figures(results).get(name, [None])
    return how(results, *what) if how else None


def level_title(factor, level):
    """A level by itself, with its factor where it would be a bare number."""
    return level if re.search(r"[^\W\d]{2}", level) else f"{factor} {level}"


def panel_choices(results, *drawn):
    """The combinations of the other factors, with a title that names what differs."""
    others = [f for f in results.factors if f not in drawn]
    compared = results.matrix.compared()
    for choice in itertools.product(*(results.matrix.factors[f] for f in others)):
        fixed = dict(zip(others, choice))
        yield ", ".join(level_title(f, level) for f, level in fixed.items() if f in compared), fixed


def panels_across(results, factor):
    """As many as the last of the other factors has levels, so that panels stand in a grid."""
    levels = [len(v) for f, v in results.matrix.factors.items() if f != factor and len(v) > 1]
    return 1 if not levels else levels[-1] if levels[-1] <= 4 else 3


def cell_of(results, levels):
    """The levels of a cell, in the order of the matrix."""
    return {f: levels[f] for f in results.factors}


def seed_curve(results, levels, column, number):
    """The curve of a cell: steps that every seed has. A seed that diverged may lack those that it
    did not make."""
    having = []
    for run in results.of_cell(levels):
        rows = results.curves[run.name]
        values = {s: row[column] for s, row in rows.items() if column in row}
        made = ablate_stats.made_steps(rows)
        if values:
            having.append((values, max(made) if len(made) < len(rows) else math.inf))
    union = sorted(set().union(*(values for values, _ in having)))
    steps = [s for s in union if all(s in values or s > end for values, end in having)]
    at = [[values[s] for values, _ in having if s in values] for s in steps]
    return Curve(number, steps, [math.fsum(v) / len(v) for v in at], [min(v) for v in at],
                 [max(v) for v in at])


def draw_curves(results, column, factor):
    title, limits, _ = DRAWN[column]
    names = list(results.matrix.factors[factor])
    panels = [(panel, [seed_curve(results, cell_of(results, {**fixed, factor: level}), column, i)
                       for i, level in enumerate(names)])
              for panel, fixed in panel_choices(results, factor)]
    return curve_figure(f"{title}, by {factor}", names, panels, panels_across(results, factor),
                        limits)


def summary_rows(results):
    """{levels of a cell: its row}."""
    return {tuple(row[f] for f in results.factors): row for row in results.summary_table()}


def draw_over(results, score, factor):
    """A score over the levels of a factor, a line a level of the first other one."""
    rows, labels = summary_rows(results), list(results.matrix.factors[factor])
    lines = next(f for f in results.matrix.compared() if f != factor)
    names = list(results.matrix.factors[lines])

    def curve(fixed, number):
        found = [(i, rows.get(tuple(cell_of(results, {**fixed, lines: names[number],
                                                      factor: level}).values())))
                 for i, level in enumerate(labels)]
        found = [(i, row) for i, row in found if row and row[score]]
        # Of a single seed there is no interval.
        ends = [[float(row[f"{score}{end}"] or row[score]) for _, row in found]
                for end in ("", "_t_low", "_t_high")]
        return Curve(number, [i for i, _ in found], *ends)

    panels = [(title, [curve(fixed, i) for i in range(len(names))])
              for title, fixed in panel_choices(results, factor, lines)]
    return curve_figure(f"{SCORED[score]} over {factor}: mean, 95 % interval", names, panels,
                        min(2, len(panels)), labels=labels)


def draw_scores(results, score):
    factor = (results.matrix.compared() or results.factors)[0]
    number = {level: i for i, level in enumerate(results.matrix.factors[factor])}
    rows = summary_rows(results)
    groups = []
    for title, fixed in panel_choices(results, factor):
        scores = []
        for level in number:
            levels = cell_of(results, {**fixed, factor: level})
            row = rows.get(tuple(levels.values()))
            seeds = results.values(results.of_cell(levels), score) if row else []
            if seeds:
                low, high = (float(row[f"{score}_t_{end}"] or "nan") for end in ("low", "high"))
                has_interval = not math.isnan(low)
                scores.append(Score(level, number[level], float(row[score]),
                                    low if has_interval else None,
                                    high if has_interval else None, seeds))
        groups.append((title, scores))
    return score_figure(f"{SCORED[score]}: mean, 95 % interval, seeds", groups)


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/ablate.py.")
