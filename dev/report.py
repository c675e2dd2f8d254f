#!/usr/bin/env python3
"""Makes one HTML page of a run, finished or not, that needs no other file and no network: its plan, its
curves, the mismatch by the sampler's probability of a token, completions before and after.

    python3 dev/report.py RUN [-o PAGE]        PAGE is RUN/report.html if none is given

The page shows the mismatch by probability where the run had --log-tokens. Python's own library is enough.
"""
import argparse
import html
import json
import math
import os
import sys

import run_log

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "study"))
import ablate_report
import ablate_svg
import mismatch_bins
import plot

WIDTH = 460  # of a figure, so that its text can be read on a telephone
COMPLETIONS = 6  # of a step
STYLE = ablate_report.STYLE + """
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:0 1.5em}
.grid>*{min-width:0}pre{font-size:12px}
.said{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3em 0 1em;padding:.5em .8em;font-size:13px}
"""


def escape(text):
    return html.escape(str(text))


# ------------------------------------------------------------------------------------------------
# Curves

def curve(number, x, y):
    """Of more than 100 points, medians in 50 bins of whole steps, as plot.py has them."""
    if len(x) > 100:
        x, y = plot.binned_median(x, y, math.ceil((x[-1] - x[0] + 1) / 50))
    made = [(a, b) for a, b in zip(x, y) if not math.isnan(b)]
    values = [b for _, b in made]
    return ablate_svg.Curve(number, [a for a, _ in made], values, values, values)


def curve_figures(log):
    for title, keys in plot.DEFAULT_PANELS:
        found = [(key, plot.phase_of(key, where, [log])) for key, where, _ in keys]
        curves = [curve(i, *plot.series(log, phase, key)) for i, (key, phase) in enumerate(found) if phase]
        values = [v for c in curves for v in c.means]
        if not curves:
            continue
        name = title.partition(" (dashed")[0] + ("" if any(values) else ", exactly 0")
        if found[0][1] in ("numerics", "update"):
            name += f" [{found[0][1]}]"
        names = [key for key, _ in found] if len(curves) > 1 else []
        yield ablate_svg.curve_figure(name, names, [("", curves)], 1, whole=WIDTH)


# ------------------------------------------------------------------------------------------------
# Samples

def samples(run):
    """{step: [object]} of the first and the last step in samples.jsonl; a line that is still being written
    is left out. The file may be large: one step is held at a time."""
    first, last = [], []
    path = os.path.join(run, "samples.jsonl")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                sample = json.loads(line)
                step = sample["step"]
            except (ValueError, KeyError, TypeError) as error:
                plot.stop(f"{path}:{number}: no line of samples ({type(error).__name__}: {error})")
            if not first or step == first[0]["step"]:
                first.append(sample)
            if last and step != last[0]["step"]:
                last = []
            last.append(sample)
    return {group[0]["step"]: group for group in (first, last) if group}


def bins_section(found):
    """Where a step's sampler had older weights, this mixes numerics and drift, as its data did."""
    rows = []
    for step, group in found.items():
        pairs = [(mu, pi) for s in group for mu, pi in zip(s.get("log_mu", []), s.get("log_pi", []))
                 if mu is not None and pi is not None]
        if pairs:
            rows += mismatch_bins.bin_rows(f"step {step}", pairs)
    if not rows:
        return "<p>The run was made without <code>--log-tokens</code>, which records log μ and log π of each token.</p>"
    _, limits, panels = mismatch_bins.BY_BIN["bins.svg"]
    figures = [mismatch_bins.draw_bins(f"{title}, by μ", rows, [(column, "")], limits, WIDTH)
               for column, title in panels]
    head = ["", "μ", "tokens", "mean |π − μ|", "mean |log π − log μ|", "max |log π − log μ|"]
    table = ablate_report.table(head, [[escape(row["pair"]), row["mu"], row["tokens"]] + [
        ablate_report.short(row[key], 4) for key in ("prob_diff_mean", "logp_diff_mean", "logp_diff_max")]
        for row in rows if row["tokens"] != "0"], 2)
    return f"<div class=grid>{''.join(figures)}</div>{ablate_report.folded('The numbers', table)}"


def completions(step, group):
    """The first ones, of different prompts as far as there are."""
    by_prompt = {}
    for sample in group:
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    turns = [s for turn in range(len(group)) for own in by_prompt.values() for s in own[turn:turn + 1]]
    shown = "".join(f"<b>{escape(s['prompt'])}</b> <small>reward "
                    f"{'none' if s['reward'] is None else format(s['reward'], '.4g')}</small>"
                    f"<pre class=said>{escape(s['completion'])}</pre>" for s in turns[:COMPLETIONS])
    return f"<div><h3>Step {step}: {min(len(turns), COMPLETIONS)} of {len(group)}</h3>{shown}</div>"


# ------------------------------------------------------------------------------------------------
# The page

def state(run, flags, log):
    steps = 1 + max((e["step"] for e in log.get("rollout", [])), default=-1)
    seconds = max(e["time"] for entries in log.values() for e in entries)
    words = [f"{steps} of {flags['steps']} RL steps", f"{seconds:,.0f} seconds"]
    evals = log.get("eval", [])
    if evals:
        words.append(f"pass@1 {evals[0]['pass1']:.3f} before and {evals[-1]['pass1']:.3f} after step "
                     f"{evals[-1]['step']}")
    return f"<p>{escape('; '.join(words))}.</p>"


def text_of(run, name):
    path = os.path.join(run, name)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def page(run):
    flags, log, found = run_log.config(run), plot.read_log(run), samples(run)
    name = os.path.basename(os.path.abspath(run))
    plan = text_of(run, "plan")
    plan = f"<pre>{escape(plan)}</pre>" if plan else "<p>The folder has no file <code>plan</code>.</p>"
    parts = [f"<h1>{escape(name)}</h1>", state(run, flags, log),
             "<h2>Curves</h2>", f"<div class=grid>{''.join(curve_figures(log))}</div>",
             "<h2>Mismatch by token probability</h2>", bins_section(found),
             "<h2>Completions</h2>",
             f"<div class=grid>{''.join(completions(*s) for s in found.items())}</div>" if found
             else "<p>The run kept none (<code>--samples-every 0</code>).</p>",
             "<h2>Plan</h2>", plan,
             ablate_report.folded("All flags", f"<pre>{escape(text_of(run, 'config'))}</pre>")]
    return ablate_report.html_page(name, "\n".join(parts), STYLE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN", help="--out folder of a run")
    parser.add_argument("-o", "--out", metavar="PAGE", help="page to write (RUN/report.html)")
    given = parser.parse_args()
    out = given.out or os.path.join(given.run, "report.html")
    text = page(given.run)
    try:
        with open(f"{out}.tmp", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{out}.tmp", out)
    except OSError as error:
        plot.stop(f"cannot write {out}: {error}")
    print(out)


if __name__ == "__main__":
    main()
