"""The report of an ablation: one HTML file that needs nothing else."""
import html

import ablate_stats
import ablate_svg

STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:1160px;margin:2em auto;padding:0 1em;
background:#fff;color:#222}
h1{font-size:1.6em;margin-bottom:.2em}h2{font-size:1.2em;margin-top:2em}
svg{width:100%;height:auto;display:block;margin:1em 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;white-space:nowrap}
th,td{padding:.25em .5em;text-align:right;border-bottom:1px solid #8884}
th{font-weight:600;vertical-align:bottom}.l{text-align:left}.bad{color:#c0392b;font-weight:600}
small{color:#777}pre{background:#8881;padding:1em;overflow-x:auto}
summary{cursor:pointer;margin:.6em 0}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}.bad{color:#ff8370}
small{color:#999}}
"""


def short(text, digits=3):
    """A number of a table, for reading."""
    if text == "":
        return "–"
    if text.startswith("–"):  # it says why there is no number
        return text
    x = float(text)
    if x == int(x):
        return f"{x:.0f}"
    return f"{x:.{digits}f}" if 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"


def interval(row, name):
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{short(low)} to {short(high)}" if low else "–"


def with_interval(row, name):
    value = short(row[name])
    return f"{value} <small>{interval(row, f'{name}_t')}</small>" if row[f"{name}_t_low"] else value


def table(head, rows, left=0):
    """Cells are HTML; the first `left` columns are text."""
    def cells(tag, row):
        return "".join(f"<{tag}{' class=l' if i < left else ''}>{c}</{tag}>"
                       for i, c in enumerate(row))
    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return (f'<div class=wide><table><thead><tr>{cells("th", head)}</tr></thead>\n{body}</table>'
            '</div>')


def folded(title, content):
    return f"<details><summary>{html.escape(title)}</summary>\n{content}\n</details>"


def count_of(row, name):
    n = int(float(row[name] or 0))
    text = f"{n} of {row['seeds']}"
    if name == "collapsed" and row["diverged"] not in ("", "0"):
        text += f" ({row['diverged']} diverged)"
    return f"<span class=bad>{text}</span>" if n and name == "collapsed" else text


def scores_table(results):
    head = [html.escape(f) for f in results.factors] + [
        "AUC", "final pass@1", "last reward", "collapsed", "reached<br>threshold",
        "steps to it<br>(median)", "seconds to it<br>(median)"]
    rows = [[html.escape(row[f]) for f in results.factors]
            + [with_interval(row, s) for s in ablate_stats.SCORES]
            + [count_of(row, "collapsed"), count_of(row, "reached")]
            + [short(row[name], 0) if row[name] else "never"
               for name in ("steps_to", "seconds_to")]
            for row in results.summary_table()]
    return table(head, rows, len(results.factors))


def mismatch_table(results):
    names = [("mean |π−μ|", "prob_diff_mean"), ("max |log π−log μ|", "logp_diff_max"),
             ("KL (k3)", "kl_k3"), ("mean |π−μ|<br>mini-batches", "update_prob_diff_mean"),
             ("max |log π−log μ|<br>mini-batches", "update_logp_diff_max"),
             ("KL<br>mini-batches", "update_kl"), ("ESS<br>mini-batches", "update_ess"),
             ("outside δ<br>mini-batches", "update_outside"),
             ("masked<br>mini-batches", "update_masked"),
             ("μ of the<br>masked", "update_masked_mu")]
    rows = [[html.escape(row[f]) for f in results.factors]
            + [short(row[key], 4) for _, key in names] for row in results.summary_table()]
    return table([html.escape(f) for f in results.factors] + [n for n, _ in names], rows,
                 len(results.factors))


def differences_table(results, rows):
    head = ["factor", "difference"] + [html.escape(f) for f in results.factors] + [
        "score", "mean", "95 %, t", "95 %, bootstrap", "seeds higher", "verdict"]
    body = [[html.escape(row["factor"]), html.escape(f"{row['level']} − {row['minus']}")]
            + [{"": "", "*": "all"}.get(row[f], html.escape(row[f])) for f in results.factors]
            + [row["score"], short(row["difference"]), interval(row, "difference_t"),
               interval(row, "difference"), f"{row['higher']} of {row['seeds']}",
               row["verdict"] if row["verdict"] == ablate_stats.NOT_TOLD_APART
               else f"<b>{row['verdict']}</b>"] for row in rows]
    return table(head, body, 2 + len(results.factors) + 1)


def differences_section(results):
    rows = [r for r in results.differences_table() if r["score"] != "last_reward"]
    first = {f: next(iter(levels)) for f, levels in results.matrix.factors.items()}
    rows = [r for r in rows if r["minus"] == first[r["factor"]]]
    averaged = [r for r in rows if "*" in r.values()]
    parts = []
    if averaged:
        parts.append("<p>Averaged over the other factors (all).</p>"
                     + differences_table(results, averaged))
        rest = [r for r in rows if "*" not in r.values()]
        parts.append(folded("In each cell", differences_table(results, rest)))
    elif rows:
        parts.append(differences_table(results, rows))
    return "\n".join(parts) or "<p>No two cells share a seed.</p>"


def runs_table(results):
    rows = results.runs_table()
    names = results.factors + ["seed", "auc", "final_pass1", "last_reward", "best_reward",
                               "collapsed", "diverged", "steps_to", "seconds_to", "seconds"]
    left = len(results.factors)
    body = [[html.escape(row[n]) if i < left else short(row[n]) for i, n in enumerate(names)]
            for row in rows]
    return table(names, body, left)


def curve_sections(results):
    shown, more = [], []
    for factor in results.matrix.compared() or results.factors[:1]:
        for column, (title, _, unfolded) in ablate_svg.DRAWN.items():
            drawing = ablate_svg.draw_curves(results, column, factor)
            if unfolded:
                shown.append(drawing)
            else:
                more.append(folded(f"{title}, by {factor}", drawing))
    return "\n".join(shown + more)


def over_sections(results):
    """The area under the curve over each further factor that has enough levels for a line."""
    return [ablate_svg.draw_over(results, "auc", f) for f in results.matrix.compared()[1:]
            if len(results.matrix.factors[f]) > 2]


def rules(results):
    exact = len(results.matrix.seeds) <= ablate_stats.EXACT_SEEDS
    how = "computed exactly" if exact else f"{ablate_stats.RESAMPLES} resamples"
    return f"""<p>The <b>window</b> is a tenth of the steps, at least 3. <b>AUC</b>: mean reward over
all steps. <b>Last reward</b>: mean of the last window. <b>Collapsed</b>: last reward below half of
the best window's, or the run diverged: its gradients or weights were no longer finite, and its last
reward and pass@1 stand for the steps that it did not make. <b>Reached</b>: a window's mean came to
{results.matrix.threshold:g}; times count from the start of RL, on a core each, and depend on the
machine. <b>Numerics</b>: before a step's first update. <b>Mini-batches</b>: numerics and drift.
Intervals are 95 %, Student's t over seeds. Differences are paired by seed; where the interval holds
0, the two levels are <b>not told apart</b>. Next to it stands the percentile bootstrap ({how}), which
is too narrow with few seeds. Bands reach from the lowest to the highest seed.</p>"""


def diverged_text(results):
    n = len(results.diverged())
    return f"{n} of {len(results.runs)} runs diverged"


def html_title(results):
    matrix = results.matrix
    planned = len(matrix.runs())
    missing = "" if len(results.runs) == planned else (
        f' <span class=bad>{planned - len(results.runs)} of {planned} runs are missing.</span>')
    if results.diverged():
        missing += f" <span class=bad>{diverged_text(results)}.</span>"
    return (f"<h1>{html.escape(matrix.title)}</h1>\n<p>{len(matrix.cells())} cells ("
            + html.escape(" × ".join(f"{len(v)} {f}" for f, v in matrix.factors.items()))
            + f") × {len(matrix.seeds)} seeds.{missing}</p>")


def html_page(title, body, style=STYLE):
    return (f'<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><meta name=viewport '
            f'content="width=device-width"><title>{html.escape(title)}</title>\n'
            f"<style>{style}</style>\n<body>\n{body}\n</body></html>\n")


def report_html(results):
    parts = [html_title(results), rules(results), "<h2>Scores</h2>", scores_table(results),
             ablate_svg.draw_scores(results, "final_pass1"), ablate_svg.draw_scores(results, "auc"),
             *over_sections(results),
             "<h2>Differences</h2>", differences_section(results), "<h2>Mismatch</h2>",
             mismatch_table(results), "<h2>Curves</h2>", curve_sections(results),
             "<h2>Details</h2>", folded("Every run", runs_table(results)),
             folded("The matrix", f"<pre>{html.escape(results.matrix.text)}</pre>")]
    return html_page(results.matrix.title, "\n".join(parts))


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/ablate.py.")
