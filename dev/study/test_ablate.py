#!/usr/bin/env python3
"""Tests of ablate.py: its statistics, its pages, and whole matrices that are stopped and go on.

    python3 dev/study/test_ablate.py [TEST...]

Runs ./train_gpt2_rl (or what TRAIN_GPT2_RL names). numpy, where it is installed, is a second
opinion on the bootstrap.
"""
import ast
import csv
import glob
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
import xml.etree.ElementTree

import ablate
import ablate_matrix
import ablate_page
import ablate_report
import ablate_stats
import ablate_svg

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "./train_gpt2_rl"))

SMALL = """title = Small
seeds = 1 2
threshold = 0.5
steps = 4
depth = 1
channels = 16
heads = 2
warmup-steps = 30
warmup-batch = 16
prompts = 4
group = 4
eval-prompts = 8
eval-every = 2
checkpoint-every = 1
[objective]
pg-is: objective = pg-is
drpo 0.15: objective = drpo, delta = 0.15
[precision]
fp32:
bf16 rollout: rollout-dtype = bf16
"""


class MatrixTest(unittest.TestCase):
    def test_runs(self):
        matrix = ablate_matrix.parse(SMALL, "small.matrix")
        runs = matrix.runs()
        self.assertEqual(len(runs), 2 * 2 * 2)
        self.assertEqual([r.seed for r in runs], [1] * 4 + [2] * 4)
        self.assertEqual(runs[-1].name, "drpo-0.15_bf16-rollout_seed-2")
        self.assertEqual(runs[-1].flags["delta"], "0.15")
        self.assertEqual(runs[-1].flags["rollout-dtype"], "bf16")
        self.assertEqual(runs[-1].flags["seed"], "2")
        self.assertNotIn("delta", runs[0].flags)
        self.assertEqual((matrix.title, matrix.threshold), ("Small", 0.5))
        self.assertEqual(matrix.head(), "")
        head = "# One question.\n# A minute.\n"
        self.assertEqual(ablate_matrix.parse(head + SMALL, "small.matrix").head(), head)

    def test_values_with_commas(self):
        text = "[task]\nx: task = chain:operands=5,mistake=20, lr = 1e-3\n"
        matrix = ablate_matrix.parse(text, "m")
        self.assertEqual(matrix.factors["task"]["x"],
                         {"task": "chain:operands=5,mistake=20", "lr": "1e-3"})

    def test_refusals(self):
        for text, message in [
                ("steps = 3\n", "m: there is no [factor]"),
                ("seeds = 1 x\n[a]\nb:\n", "m:1: 'x' is no seed"),
                ("seeds = 1 1\n[a]\nb:\n", "m:1: seeds has to name each seed once"),
                ("threshold = high\n[a]\nb:\n", "m:1: threshold 'high'"),
                ("seed = 3\n[a]\nb:\n", "m:1: seed is set by ablate.py"),
                ("steps = 3\nsteps = 4\n[a]\nb:\n", "m:2: steps is given twice"),
                ("[a]\nb\n", "m:2: a level is written as"),
                ("[a]\nb: --lr = 3\n", "m:2: '--lr = 3' is no flag"),
                ("[a]\nb c:\nb-c:\n", "m:3: the level 'b-c' is there twice"),
                ("[a]\n[b]\nc:\n", "m: [a] has no levels"),
                ("[a]\nb:\n[a]\nc:\n", "m:3: a factor is written as [name], each once"),
                ("[seed]\nb:\n", "m:1: a factor cannot be called seed"),
                ("[a]\nx: lr = 1\n[b]\ny: lr = 2\n", "m: both [a] and [b] set lr")]:
            with self.assertRaises(ablate_matrix.MatrixError, msg=text) as caught:
                ablate_matrix.parse(text, "m")
            self.assertTrue(str(caught.exception).startswith(message), caught.exception)

    def test_recipes(self):
        folder = os.path.join(ROOT, "recipes")
        paths = [os.path.join(d, n) for d, _, names in os.walk(folder) for n in names
                 if n.endswith(".matrix")]
        self.assertTrue(paths)
        for path in paths:
            self.assertTrue(ablate_matrix.read(path).runs())

    def test_the_study_is_what_the_page_shows(self):
        paths = glob.glob(os.path.join(ROOT, "recipes", "study", "*.matrix"))
        self.assertTrue(paths)
        for path in paths:
            name = os.path.basename(path).removesuffix(".matrix")
            shown = os.path.join(ROOT, "docs", "precision", name, "matrix")
            self.assertEqual(ablate_page.read_text(path), ablate_page.read_text(shown), name)


def entry(phase, step, **keys):
    return {"phase": phase, "step": step, "time": 10.0 + step, **keys}


def rows_of(rewards, passes=(0.3, 0.9)):
    """Rows of a run with these rewards, evaluated before and after."""
    rows = {i: {"reward": r, "seconds": 2.0 * i} for i, r in enumerate(rewards)}
    rows[0]["pass1"] = passes[0]
    rows[len(rewards)] = {"pass1": passes[1]}
    return rows


class StatisticsTest(unittest.TestCase):
    def test_curve_rows(self):
        log = [entry("warmup", 50, loss=1), entry("eval", 0, pass1=0.25, greedy=0.5),
               entry("rollout", 0, reward=0.5, entropy=1),
               entry("numerics", 0, prob_diff_mean=None),
               entry("update", 0, kl=1.0, logp_diff_max=2.0, ess=0.5, masked_mu=None,
                     loss_scale=65536),
               entry("update", 0, kl=2.0, logp_diff_max=5.0, ess=None, masked_mu=0.25,
                     loss_scale=32768),
               entry("eval", 1, pass1=0.75)]
        rows = ablate_stats.curve_rows(log)
        self.assertEqual(list(rows), [0, 1])
        self.assertEqual(rows[0], {"seconds": 0.0, "reward": 0.5, "entropy": 1, "pass1": 0.25,
                                   "greedy": 0.5, "update_kl": 1.5, "update_logp_diff_max": 5.0,
                                   "update_masked_mu": 0.25, "update_loss_scale": 32768})
        self.assertEqual(rows[1], {"pass1": 0.75})
        text = ablate_stats.curves_csv({"a": rows})
        self.assertEqual(ablate_stats.read_curves(text), {"a": rows})
        older = "run,step,reward\na,0,0.5\n"  # a column that a file lacks
        self.assertEqual(ablate_stats.read_curves(older), {"a": {0: {"reward": 0.5}}})

    def test_columns_that_few_runs_have(self):
        log = [entry("rollout", 0, reward=0.5),
               entry("update", 0, changed=0.5, changed_train=0.25, changed_rollout=0.0),
               entry("update", 0, changed=1.0, changed_train=0.25, changed_rollout=0.0)]
        plain, counted = (ablate_stats.curve_rows(x) for x in (log[:1], log))
        self.assertNotIn("changed", ablate_stats.curves_csv({"a": plain}))
        text = ablate_stats.curves_csv({"a": plain, "b": counted})
        self.assertEqual(ablate_stats.read_curves(text), {"a": plain, "b": counted})
        self.assertNotIn("routing_differs", text)
        figures = ablate_stats.run_figures(counted, 0.9)
        self.assertEqual([figures[f"update_changed{x}"] for x in ("", "_train", "_rollout")],
                         [0.75, 0.25, 0.0])

    def test_figures(self):
        rewards = [0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 0.3, 0.2, 0.1, 0.0]  # window 3, best 0.9
        figures = ablate_stats.run_figures(rows_of(rewards), 0.75)
        self.assertAlmostEqual(figures["auc"], 0.45)
        self.assertAlmostEqual(figures["last_reward"], 0.1)
        self.assertAlmostEqual(figures["best_reward"], 0.9)
        self.assertEqual(figures["collapsed"], 1)
        self.assertEqual((figures["steps_to"], figures["seconds_to"]), (4, 8.0))
        self.assertEqual((figures["base_pass1"], figures["final_pass1"]), (0.3, 0.9))
        self.assertEqual(figures["steps"], 10)

    def test_numerics_of_some_steps_are_none(self):
        rows = rows_of([0.2, 0.4, 0.6])
        rows[0]["prob_diff_mean"] = 0.0
        figures = ablate_stats.run_figures(rows, 0.9)
        self.assertEqual(ablate_stats.number_text(figures["prob_diff_mean"]), "– (1 of 3 steps)")
        self.assertNotIn("kl_k3", figures)
        rows[1]["prob_diff_mean"] = rows[2]["prob_diff_mean"] = 0.3
        self.assertAlmostEqual(ablate_stats.run_figures(rows, 0.9)["prob_diff_mean"], 0.2)

    def test_a_diverged_run_keeps_its_last_values(self):
        rows = rows_of([0.2, 0.4, 0.9, 0.8])
        del rows[4]  # it ended in its last update
        rows[3]["update_kl"] = 0.5
        rows[2]["pass1"] = 0.7
        ablate_stats.carry_forward(rows, 8)
        self.assertEqual(list(rows), list(range(9)))
        self.assertEqual(rows[4], {"seconds": 6.0, "reward": 0.8, "pass1": 0.7, "diverged": 1})
        self.assertEqual(rows[8], {"pass1": 0.7, "diverged": 1})
        text = ablate_stats.curves_csv({"a": rows})
        self.assertEqual(ablate_stats.read_curves(text), {"a": rows})
        figures = ablate_stats.run_figures(rows, 0.82)
        self.assertAlmostEqual(figures["auc"], (0.2 + 0.4 + 0.9 + 5 * 0.8) / 8)
        self.assertAlmostEqual(figures["last_reward"], 0.8)
        self.assertEqual((figures["collapsed"], figures["diverged"], figures["steps"]), (1, 1, 4))
        self.assertEqual((figures["final_pass1"], figures["update_kl"]), (0.7, 0.5))
        self.assertNotIn("steps_to", figures)  # 0.9, 0.8, 0.8 would reach it
        whole = rows_of([0.5, 0.6, 0.7])  # it ended with updates that came to nothing
        ablate_stats.carry_forward(whole, 3)
        self.assertEqual(whole[3], {"pass1": 0.9, "diverged": 1})
        figures = ablate_stats.run_figures(whole, 0.9)
        self.assertEqual((figures["collapsed"], figures["diverged"], figures["steps"]), (1, 1, 3))

    def test_collapse_is_below_half(self):
        for last, collapsed in ((0.41, 0), (0.4, 0), (0.39, 1)):
            figures = ablate_stats.run_figures(rows_of([0.8] * 3 + [last] * 3), 0.9)
            self.assertEqual(figures["collapsed"], collapsed)
            self.assertNotIn("steps_to", figures)

    def test_window(self):
        self.assertEqual([ablate_stats.window_of(n) for n in (1, 2, 3, 16, 60, 100)],
                         [1, 2, 3, 3, 6, 10])

    def test_bootstrap_by_hand(self):
        self.assertEqual(ablate_stats.bootstrap([3.0]), (None, None))
        # Of two values: 1/4 both low, 1/2 mixed, 1/4 both high.
        self.assertEqual(ablate_stats.bootstrap([0.0, 1.0]), (0.0, 1.0))
        self.assertEqual(ablate_stats.bootstrap([0.0, 1.0], 0.5), (0.0, 0.5))
        # Of three: 1/27 is all zeros, more than 2.5 %, and as much all ones.
        self.assertEqual(ablate_stats.bootstrap([0.0, 0.0, 1.0])[0], 0.0)
        self.assertEqual(ablate_stats.bootstrap([0.0, 0.0, 1.0])[1], 1.0)
        for n in range(1, 8):
            self.assertAlmostEqual(sum(w for _, w in ablate_stats.resamples(n)), 1, places=12)
        self.assertEqual(ablate_stats.bootstrap([0.5] * 5), (0.5, 0.5))

    def test_bootstrap_beside_numpy(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("numpy is not installed")
        random = numpy.random.default_rng(3)
        for n, close in ((3, 0.0), (5, 0.01), (7, 0.01), (9, 0.03)):
            values = random.normal(size=n)
            means = values[random.integers(0, n, (200000, n))].mean(axis=1)
            theirs = numpy.quantile(means, [0.025, 0.975], method="inverted_cdf")
            ours = ablate_stats.bootstrap(list(map(float, values)))
            for a, b in zip(ours, theirs):
                self.assertAlmostEqual(a, b, delta=close + 1e-12, msg=f"{n} values")

    def test_t_quantiles_of_published_tables(self):
        # Freedom, then two-sided 90, 95 and 99 %: the table of Student's t of any textbook.
        for freedom, *expected in [(1, 6.314, 12.706, 63.657), (2, 2.920, 4.303, 9.925),
                                   (3, 2.353, 3.182, 5.841), (4, 2.132, 2.776, 4.604),
                                   (5, 2.015, 2.571, 4.032), (9, 1.833, 2.262, 3.250),
                                   (14, 1.761, 2.145, 2.977), (30, 1.697, 2.042, 2.750),
                                   (120, 1.658, 1.980, 2.617)]:
            found = [round(ablate_stats.t_quantile(freedom, p), 3) for p in (0.9, 0.95, 0.99)]
            self.assertEqual(found, expected, freedom)

    def test_t_interval_by_hand(self):
        self.assertEqual(ablate_stats.t_interval([3.0]), (None, None))
        self.assertEqual(ablate_stats.t_interval([0.5] * 5), (0.5, 0.5))
        # Mean 3, deviation sqrt(2.5), of the mean sqrt(0.5); 2.776445 is t of 4.
        low, high = ablate_stats.t_interval([1, 2, 3, 4, 5])
        self.assertAlmostEqual(low, 3 - 2.776445 * math.sqrt(0.5), places=5)
        self.assertAlmostEqual(high, 3 + 2.776445 * math.sqrt(0.5), places=5)

    def test_t_intervals_are_wide_enough(self):
        draw = random.Random(5)
        held = {"t": 0, "bootstrap": 0}
        for _ in range(1000):
            values = [draw.gauss(0, 1) for _ in range(5)]
            for name, interval in (("t", ablate_stats.t_interval),
                                   ("bootstrap", ablate_stats.bootstrap)):
                low, high = interval(values)
                held[name] += low <= 0 <= high
        # 95 % and 84 % are expected, with a deviation of 0.7 and 1.2 %.
        self.assertAlmostEqual(held["t"], 950, delta=25)
        self.assertLess(held["bootstrap"], 880)

    def test_verdicts(self):
        for low, high, text in [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"),
                                (-0.1, 0.2, "not told apart"), (0.0, 0.2, "not told apart"),
                                (0.0, 0.0, "not told apart"), (None, None, "not told apart")]:
            self.assertEqual(ablate_stats.verdict(low, high), text)

    def test_median_of_those_that_reached(self):
        self.assertEqual(ablate_stats.median_reached([5, 3, 9], 3), 5)
        self.assertEqual(ablate_stats.median_reached([5, 3], 3), 5)
        self.assertEqual(ablate_stats.number_text(ablate_stats.median_reached([5], 3)), "")


def small_results(folder=None):
    """Results of SMALL with made-up curves; written to `folder` as a page needs them."""
    matrix = ablate_matrix.parse(SMALL, "small.matrix")
    curves = {}
    for i, run in enumerate(matrix.runs()):
        rows = rows_of([0.3 + 0.01 * i + 0.1 * step for step in range(5)], (0.25, 0.5 + i / 16))
        for row in list(rows.values())[:5]:
            row["prob_diff_mean"] = 0.0 if run.levels["precision"] == "fp32" else 10.0 ** (i - 9)
        curves[run.name] = rows
    text = ablate_stats.curves_csv(curves)
    if folder:
        os.makedirs(folder)
        for name, content in (("matrix", SMALL), ("curves.csv", text)):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
                f.write(content)
    return ablate_stats.Results(matrix, ablate_stats.read_curves(text))


class TablesTest(unittest.TestCase):
    def test_summary(self):
        rows = small_results().summary_table()
        self.assertEqual(len(rows), 4)
        # Seeds 1 and 2 of the first cell are runs 0 and 4.
        self.assertEqual((rows[0]["final_pass1"], rows[0]["final_pass1_low"],
                          rows[0]["final_pass1_high"]), ("0.625", "0.5", "0.75"))
        # 0.625 +- 12.706 x 0.125, cut to where scores lie.
        self.assertEqual((rows[0]["final_pass1_t_low"], rows[0]["final_pass1_t_high"]), ("0", "1"))
        self.assertEqual((rows[0]["seeds"], rows[0]["collapsed"], rows[0]["reached"]),
                         ("2", "0", "2"))
        self.assertEqual([rows[i]["prob_diff_mean"] for i in (0, 1)], ["0", "5.0005e-05"])

    def test_differences(self):
        rows = small_results().differences_table()
        found = [r for r in rows if r["factor"] == "objective" and r["score"] == "final_pass1"]
        self.assertEqual([(r["level"], r["minus"], r["precision"]) for r in found],
                         [("drpo 0.15", "pg-is", p) for p in ("fp32", "bf16 rollout", "*")])
        for r in found:  # two runs further at each seed
            self.assertEqual([r[f"difference{c}"] for c in ("", "_t_low", "_t_high", "_low",
                                                            "_high")], ["0.125"] * 5)
            self.assertEqual((r["higher"], r["seeds"], r["verdict"]), ("2", "2", "higher"))

    def test_the_t_interval_decides(self):
        results = small_results()
        for step in range(5):  # seed 1 gains 0.03 instead of 0.02, and seed 2 0.01
            results.curves["drpo-0.15_fp32_seed-1"][step]["reward"] += 0.01
            results.curves["drpo-0.15_fp32_seed-2"][step]["reward"] -= 0.01
        results = ablate_stats.Results(results.matrix, results.curves)
        row = next(r for r in results.differences_table()
                   if r["factor"] == "objective" and r["precision"] == "fp32"
                   and r["score"] == "auc")
        self.assertEqual((row["difference_low"], row["difference_high"]), ("0.01", "0.03"))
        self.assertEqual((row["difference_t_low"], row["difference_t_high"]),
                         ("-0.10706", "0.14706"))  # 0.02 -+ 12.706 x 0.01
        self.assertEqual(row["verdict"], "not told apart")
        self.assertEqual(ablate_page.table_number(row, "difference", 3, "r"),
                         "0.020 (-0.107 to 0.147), not told apart")
        text = ablate_report.differences_table(results, [row])
        self.assertIn("<td>-0.107 to 0.147</td><td>0.010 to 0.030</td><td>2 of 2</td>"
                      "<td>not told apart</td>", text)

    def test_a_missing_seed_is_left_out(self):
        results = small_results()
        curves = {n: c for n, c in results.curves.items() if n != "drpo-0.15_fp32_seed-2"}
        rows = ablate_stats.Results(results.matrix, curves).differences_table()
        found = {r["precision"]: r["seeds"] for r in rows
                 if r["factor"] == "objective" and r["score"] == "auc"}
        self.assertEqual(found, {"fp32": "1", "bf16 rollout": "2", "*": "1"})

    def test_a_diverged_run_counts_as_collapsed(self):
        results = small_results()
        rows = results.curves["pg-is_fp32_seed-2"]
        for step in (3, 4, 5):
            del rows[step]
        ablate_stats.carry_forward(rows, 5)
        results = ablate_stats.Results(results.matrix, results.curves)
        self.assertEqual(results.diverged(), ["pg-is_fp32_seed-2"])
        row = results.summary_table()[0]
        self.assertEqual((row["seeds"], row["collapsed"], row["diverged"]), ("2", "1", "1"))
        # Rewards 0.3 to 0.7, and 0.34, 0.44, 0.54 and 0.54 twice more; pass@1 0.5, and 0.25.
        self.assertEqual((row["auc"], row["final_pass1"]), ("0.49", "0.375"))
        text = ablate_report.report_html(results)
        self.assertIn("1 of 8 runs diverged", text)
        self.assertIn("1 of 2 (1 diverged)", text)
        self.assertEqual(ablate_page.table_number(row, "collapsed", 3, "r"), "1 (1 diverged)")
        levels = {"objective": "pg-is", "precision": "fp32"}
        self.assertEqual(ablate_svg.seed_curve(results, levels, "reward", 0).steps, [0, 1, 2, 3, 4])
        curve = ablate_svg.seed_curve(results, levels, "prob_diff_mean", 0)
        self.assertEqual(curve.steps, [0, 1, 2, 3, 4])

    def test_numerics_of_some_steps_are_no_number(self):
        results = small_results()
        for name, rows in results.curves.items():  # as with --lag 2, or 3 at seed 2
            if name.startswith("pg-is_bf16-rollout"):
                for step in range(int(name[-1]), 5):
                    del rows[step]["prob_diff_mean"]
        results = ablate_stats.Results(results.matrix, results.curves)
        row = results.summary_table()[1]
        self.assertEqual(row["prob_diff_mean"], "– (1 to 2 of 5 steps)")
        self.assertEqual(ablate_page.table_number(row, "prob_diff_mean", 3, "r"),
                         row["prob_diff_mean"])
        self.assertIn(f"<td>{row['prob_diff_mean']}</td>", ablate_report.mismatch_table(results))
        self.assertEqual([r["prob_diff_mean"] for r in results.runs_table()[1::4]],
                         ["– (1 of 5 steps)", "– (2 of 5 steps)"])

    def test_figures_are_svg(self):
        results = small_results()
        for name in ablate_svg.figures(results):
            text = ablate_svg.draw(results, name)
            self.assertIsNotNone(text, name)
            xml.etree.ElementTree.fromstring(text)
            self.assertEqual(text, ablate_svg.draw(small_results(), name))
            self.assertNotRegex(text, r"\bnan\b|\binf\b")
        self.assertIsNone(ablate_svg.draw(results, "reward-by-nothing.svg"))

    def test_a_score_over_a_factor(self):
        results = small_results()
        for name in ("fp32_seed-1", "fp32_seed-2", "bf16-rollout_seed-1"):  # one run is left
            del results.curves[f"drpo-0.15_{name}"]
        results = ablate_stats.Results(results.matrix, results.curves)
        with unittest.mock.patch.object(ablate_svg, "curve_figure") as drawn:
            ablate_svg.draw_over(results, "final_pass1", "precision")
        _, names, [(title, curves)], across = drawn.call_args.args
        self.assertEqual((names, title, across), (["pg-is", "drpo 0.15"], "", 1))
        self.assertEqual(drawn.call_args.kwargs, {"labels": ["fp32", "bf16 rollout"]})
        self.assertEqual([(c.number, c.steps, c.means, c.lows, c.highs) for c in curves],
                         [(0, [0, 1], [0.625, 0.6875], [0, 0], [1, 1]),
                          (1, [1], [0.9375], [0.9375], [0.9375])])

    def test_report_needs_no_network(self):
        text = ablate_report.report_html(small_results())
        self.assertNotRegex(text.replace('xmlns="http://www.w3.org/2000/svg"', ""),
                            r"https?:|src=|@import|<link|<script")
        self.assertIn("drpo 0.15", text)


PAGE = """# A page

DRPO ends at 0.000<!-- r/summary.csv final_pass1 objective="drpo 0.15" precision=fp32 --> and
**00.0 %**<!-- r/summary.csv final_pass1 objective=pg-is precision=fp32 -->, with `--lr 3e-4` and
95 % intervals (arXiv 2606.09821); at worst 0.00<!-- r/runs.csv min auc -->, and the mismatch is
0.0e0<!-- r/summary.csv prob_diff_mean objective=pg-is precision="bf16 rollout" -->;
0<!-- r/runs.csv count precision=fp32 --> runs, a gain of +0.000<!-- r/differences.csv difference
factor=objective precision=* score=final_pass1 -->.

<!-- table r/summary.csv final_pass1 rows=objective columns=precision -->
<!-- end -->

<!-- table r/summary.csv auc,collapsed,steps_to rows=objective precision=fp32 digits=2 -->
<!-- end -->

<!-- table r/differences.csv difference rows=level columns=precision factor=objective score=auc -->
<!-- end -->

![Reward](r/reward-by-objective.svg)
"""


class PageTest(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        small_results(os.path.join(self.home, "r"))
        self.page = self.write("page.md", PAGE)

    def write(self, name, text):
        path = os.path.join(self.home, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def change(self, name, old, new):
        text = ablate_page.read_text(os.path.join(self.home, name))
        self.assertIn(old, text)
        self.write(name, text.replace(old, new, 1))

    def test_update_writes_what_check_wants(self):
        self.assertTrue(ablate_page.check(self.page))
        ablate_page.update(self.page)
        self.assertEqual(ablate_page.check(self.page), [])
        text = ablate_page.read_text(self.page)
        for part in ("ends at 0.750<!--", "**62.5 %**<!--", "worst 0.50<!--", "5.0e-5<!--", "4<!--",
                     "+0.125<!--", "| objective | auc | collapsed | steps_to |\n| --- | ---: |",
                     "| final_pass1, objective | fp32 | bf16 rollout |",
                     "| pg-is | 0.625 (0 to 1.000) | 0.688 (0 to 1.000) |",
                     "| difference, level | fp32 | bf16 rollout | all |",
                     "| drpo 0.15 | **0.020** (0.020 to 0.020) |"):
            self.assertIn(part, text)

    def test_a_difference_stands_out_if_it_has_a_verdict(self):
        for low, high, verdict, text in [
                ("0.1", "0.3", "higher", "**0.200** (0.100 to 0.300)"),
                ("-0.3", "-0.1", "lower", "**0.200** (-0.300 to -0.100)"),
                ("0", "0.3", "not told apart", "0.200 (0 to 0.300), not told apart"),
                ("", "", "not told apart", "0.200, not told apart")]:
            row = {"difference": "0.2", "difference_t_low": low, "difference_t_high": high,
                   "verdict": verdict}
            self.assertEqual(ablate_page.table_number(row, "difference", 3, "r"), text)

    def test_each_difference_is_found(self):
        ablate_page.update(self.page)
        shutil.copytree(self.home, self.home + ".good")
        self.addCleanup(shutil.rmtree, self.home + ".good")
        for name, old, new, message in [
                ("page.md", "ends at 0.750", "ends at 0.751", "page.md:3"),
                ("page.md", "62.5 %", "62.4 %", "page.md:4"),
                ("page.md", "| 0.625 (", "| 0.626 (", "page.md:13"),
                ("page.md", "with `--lr 3e-4`", "with 3e-4", "3e-4 names no source"),
                ("page.md", "95 % intervals", "90 % intervals", "90 % names no source"),
                ("page.md", "# A page", "# A page of 0.95", "0.95 names no source"),
                ("page.md", "0.750<!--", "three quarters<!--", "has no number before it"),
                ("page.md", "<!-- end -->", "", "has no number before it, or no end"),
                ("r/curves.csv", "_seed-1,0,0,0.3,", "_seed-1,0,0,0.31,", "summary.csv is not what"),
                ("r/summary.csv", "0.625", "0.626", "summary.csv is not what"),
                ("r/runs.csv", "pg-is", "pg", "runs.csv is not what"),
                ("r/reward-by-objective.svg", "<text", "<Text", "reward-by-objective.svg is not"),
                ("r/matrix", "threshold = 0.5", "threshold = 0.6", "page.md")]:
            self.change(name, old, new)
            problems = ablate_page.check(self.page)
            self.assertTrue(any(message in p for p in problems), (name, new, problems))
            shutil.rmtree(self.home)
            shutil.copytree(self.home + ".good", self.home)

    def test_files_are_missing_or_too_many(self):
        ablate_page.update(self.page)
        os.rename(f"{self.home}/r/reward-by-objective.svg", f"{self.home}/r/old.svg")
        problems = " ".join(ablate_page.check(self.page))
        self.assertIn("reward-by-objective.svg is missing", problems)
        self.assertIn("old.svg is not in", problems)
        self.write("other.md", "![A figure of another page](r/old.svg)\n")
        self.assertNotIn("old.svg is not in", " ".join(ablate_page.check(self.page)))

    def test_marks_that_name_nothing(self):
        for mark, message in [("r/none.csv auc", "choose one of"), ("r/runs.csv", "write FILE.csv"),
                              ("r/runs.csv auc", "matches 8 rows"),
                              ("r/runs.csv auc seed=9", "no row with seed=9"),
                              ("r/runs.csv auc colour=red", "no column colour"),
                              ("r/runs.csv no seed=1 mean", "write FILE"),
                              ("r/runs.csv mean no", "no column no"),
                              ("r/runs.csv max run", "not all numbers"),
                              ("q/runs.csv auc", "cannot read")]:
            page = self.write("bad.md", f"1.0<!-- {mark} -->\n")
            with self.assertRaises(ablate_page.PageError, msg=mark) as caught:
                ablate_page.check(page)
            if message != "write FILE":
                self.assertIn(message, str(caught.exception))

    def test_like(self):
        for number, percent, value, text in [
                ("0.5", None, 0.25, "0.2"), ("1,000", None, 12345.6, "12,346"),
                ("+1", None, -2.0, "-2"), ("−1.0", None, -2.04, "−2.0"), ("9", " %", 0.953, "95"),
                ("1.0e-3", None, 0.00234, "2.3e-3"), ("-0.00", None, -0.001, "0.00")]:
            self.assertEqual(ablate_page.like(number, percent, value), text)


def without_seconds(path):
    with open(path, encoding="utf-8") as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


class HelpTest(unittest.TestCase):
    def test_every_file_has_a_help(self):
        """It begins with the first paragraph of the file's text, whole."""
        for path in sorted(glob.glob(os.path.join(HERE, "*.py"))):
            name = os.path.basename(path)
            if name.startswith("test_"):
                continue
            text = ast.get_docstring(ast.parse(ablate_page.read_text(path)), clean=False)
            done = subprocess.run([sys.executable, path, "--help"], stdin=subprocess.DEVNULL,
                                  text=True, capture_output=True, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""), name)
            self.assertIn(text.split("\n\n", maxsplit=1)[0].strip(), done.stdout, name)
            if "_" in name and name != "check_long.py":
                self.assertIn("the program to run is dev/study/", done.stdout, name)

    def test_readme_says_once_what_needs_matplotlib(self):
        readme = ablate_page.read_text(os.path.join(ROOT, "README.md"))
        found = [os.path.basename(path) for path in glob.glob(os.path.join(HERE, "*.py"))
                 if re.search(r"^\s*import matplotlib", ablate_page.read_text(path), re.MULTILINE)]
        before, after = readme.split("matplotlib")
        self.assertNotIn("## Three things to try", before)
        for name in found:
            self.assertIn(f"dev/study/{name}", before)
        self.assertEqual(sorted(found), ["mismatch.py", "plot.py"])


class JobsTest(unittest.TestCase):
    def jobs(self, matrix):
        home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, home)
        folder = ablate.Folder(home, os.path.join(home, "warmup"))
        self.addCleanup(os.close, folder.lock)
        runs = ablate_matrix.parse(matrix, "m").runs()
        return ablate.make_jobs(folder, sys.executable, runs)

    def test_warmups_come_first(self):
        """Else the last one would keep one core busy while the others wait for it."""
        jobs = self.jobs(SMALL.replace("seeds = 1 2", "seeds = 1-3"))
        self.assertEqual([job.run is None for job in jobs], [True] * 3 + [False] * 12)
        for job in jobs[3:]:
            self.assertTrue(job.needs.name.endswith(f"_seed-{job.run.seed}"))

    def test_another_model_has_another_warmup(self):
        families = "[family]\ngpt2:\nqwen3: family = qwen3\ngrouped: family = qwen3, kv-heads = 1\n"
        jobs = self.jobs(re.sub(r"(?s)\[precision\].*", families, SMALL))
        self.assertEqual(len({job.name for job in jobs if job.run is None}), 3 * 2)


@unittest.skipUnless(os.access(PROGRAM, os.X_OK), f"{PROGRAM} is not built")
class RunTest(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)

    def command(self, matrix, out, *flags):
        path = os.path.join(self.home, f"{out}.matrix")
        with open(path, "w", encoding="utf-8") as f:
            f.write(matrix)
        return [sys.executable, os.path.join(HERE, "ablate.py"), path, "--out",
                os.path.join(self.home, out), "--program", PROGRAM, "--jobs", "2", *flags]

    def ablate(self, matrix, out, *flags):
        return subprocess.run(self.command(matrix, out, *flags), text=True, capture_output=True,
                              check=False)

    def logs(self, out):
        """Folders of runs that have begun. Those of warm-ups come and go."""
        return [d for d, _, files in os.walk(os.path.join(self.home, out))
                if "log.jsonl" in files and not os.path.basename(d).startswith("warmup-")]

    def stopped(self, matrix, out, number):
        """Starts a matrix and signals ablate.py once a run is on its way."""
        process = subprocess.Popen(self.command(matrix, out), stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            texts = [ablate_page.read_text(f"{d}/log.jsonl") for d in self.logs(out)]
            if any('"rollout","step":5' in t and '"eval","step":200' not in t for t in texts):
                process.send_signal(number)
                break
            time.sleep(0.01)
        return process.communicate()[0], process.returncode

    def test_interrupted_runs_go_on(self):
        long = re.sub("steps = 4\n", "steps = 200\n", SMALL).replace("checkpoint-every = 1\n", "")
        whole = self.ablate(long, "whole")
        self.assertEqual(whole.returncode, 0, whole.stdout + whole.stderr)
        for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 130)):
            name = signal.Signals(number).name
            printed, code = self.stopped(long, name, number)
            self.assertEqual(code, status, printed)
            again = self.ablate(long, name)
            self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
            self.assertIn("8 of 8 runs", again.stdout)
            self.assertEqual(without_seconds(f"{self.home}/{name}/curves.csv"),
                             without_seconds(f"{self.home}/whole/curves.csv"), name)
            text = "".join(ablate_page.read_text(f"{self.home}/{name}/runs/{f}")
                           for f in os.listdir(f"{self.home}/{name}/runs") if f.endswith(".out"))
            self.assertIn("continuing after RL step", text, name)
            self.assertFalse([f for d in self.logs(name) for f in os.listdir(d)
                              if f in ("checkpoints", "samples.jsonl")])

    def test_interrupted_warmups_go_on(self):
        long = SMALL.replace("warmup-steps = 30", "warmup-steps = 1500")
        whole = self.ablate(long, "whole")
        self.assertEqual(whole.returncode, 0, whole.stdout + whole.stderr)
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
            name = signal.Signals(number).name
            process = subprocess.Popen(self.command(long, name), stdout=subprocess.PIPE, text=True)
            logs = []
            while len(logs) < 2 or not all('"step":200' in ablate_page.read_text(f"{d}/log.jsonl")
                                           for d in logs):
                self.assertIsNone(process.poll())
                time.sleep(0.01)
                logs = [os.path.dirname(path) for path in
                        glob.glob(f"{self.home}/{name}/runs/warmup-*/log.jsonl")]
            process.send_signal(number)
            printed = process.communicate()[0]
            self.assertEqual(process.returncode, status, printed)
            self.assertEqual(self.logs(name), [])
            again = self.ablate(long, name)
            self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
            self.assertEqual(without_seconds(f"{self.home}/{name}/curves.csv"),
                             without_seconds(f"{self.home}/whole/curves.csv"), name)
            for folder in logs:
                text = ablate_page.read_text(f"{folder}.out")
                self.assertRegex(text, r"continuing after warm-up step \d{3}", name)
                self.assertFalse(os.path.exists(folder))

    def test_finished_runs_are_kept(self):
        self.assertEqual(self.ablate(SMALL, "kept", "--keep").returncode, 0)
        times = {d: os.stat(f"{d}/log.jsonl").st_mtime_ns for d in self.logs("kept")}
        self.assertEqual(len(times), 8)
        more = self.ablate(SMALL.replace("seeds = 1 2", "seeds = 1 2 3"), "kept", "--keep")
        self.assertIn("12 runs, 8 finished", more.stdout)
        self.assertEqual(len(self.logs("kept")), 12)
        self.assertTrue(all(os.path.exists(f"{d}/samples.jsonl") for d in self.logs("kept")))
        for folder, when in times.items():
            self.assertEqual(os.stat(f"{folder}/log.jsonl").st_mtime_ns, when)
        changed = self.ablate(SMALL.replace("steps = 4", "steps = 5"), "kept")
        self.assertEqual(changed.returncode, 1)
        self.assertIn("was made with other flags (steps = 4; steps = 5)", changed.stderr)
        again = self.ablate(SMALL, "kept", "--report-only")
        self.assertEqual(again.returncode, 0, again.stderr)
        with open(f"{self.home}/kept/runs.csv", encoding="utf-8") as f:
            self.assertEqual(len(list(csv.DictReader(f))), 8)

    def test_several_matrices(self):
        """A folder each, one warm-up; what is wrong with the last is said before the first runs."""
        command = self.command(SMALL, "one")
        other = os.path.join(self.home, "two.matrix")
        with open(other, "w", encoding="utf-8") as f:
            f.write(SMALL.replace("steps = 4", "steps = 3").replace("seeds = 1 2", "seeds = 1"))
        for path, message in ((other + "x", "cannot read"), (command[2], "have the same name")):
            refused = subprocess.run(command + [path], text=True, capture_output=True, check=False)
            self.assertIn(message, refused.stderr)
            self.assertFalse(self.logs("one"))
        done = subprocess.run(command + [other], text=True, capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for name, runs in (("one", 8), ("two", 4)):
            with open(f"{self.home}/one/{name}/runs.csv", encoding="utf-8") as f:
                self.assertEqual(len(list(csv.DictReader(f))), runs)
        self.assertEqual(len(os.listdir(f"{self.home}/one/warmup")), 4)  # a model and its text, two seeds
        none = self.ablate(SMALL, "none", "--report-only")
        self.assertEqual((none.returncode, os.listdir(f"{self.home}/none/runs")), (1, []))
        self.assertIn("nothing to report", none.stderr)

    def test_a_failed_run_stops_no_other(self):
        bad = SMALL.replace("[precision]\n", "spo: objective = spo, delta = 3\n[precision]\n")
        done = self.ablate(bad, "bad")
        self.assertEqual(done.returncode, 1)
        self.assertIn("spo_fp32_seed-1 failed: ", done.stdout)
        self.assertIn("--delta means nothing to --objective spo", done.stdout)
        self.assertIn("8 of 12 runs", done.stdout)
        with open(f"{self.home}/bad/runs/pg-is_fp32_seed-1/log.jsonl", encoding="utf-8") as f:
            self.assertEqual(json.loads(f.readlines()[-1])["step"], 4)

    def test_a_diverged_run_is_a_result(self):
        wild = "wild{}: objective = pg-is, weight-decay = 1e15, lr = 1, epochs = {}\n[precision]\n"
        # In 20 updates it ends early; in fewer it ends with its last step.
        matrix = SMALL.replace("[precision]\n", wild.format(6, 6).replace("[precision]\n", "")
                               + wild.format(1, 1)).replace("checkpoint-every = 1\n", "")
        for again in (False, True):
            done = self.ablate(matrix, "wild")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("16 of 16 runs; 8 of 16 runs diverged: wild6_fp32_seed-1", done.stdout)
            self.assertEqual("DIVERGED" in done.stdout, not again)  # it is not tried again
        with open(f"{self.home}/wild/runs.csv", encoding="utf-8") as f:
            rows = {row["run"]: row for row in csv.DictReader(f)}
        self.assertLess(int(rows["wild6_fp32_seed-1"]["steps"]), 4)
        self.assertEqual(rows["wild1_fp32_seed-1"]["steps"], "4")
        for name, row in rows.items():
            diverged = str(int(name.startswith("wild")))
            self.assertEqual((row["diverged"], bool(row["final_pass1"])), (diverged, True), name)
            self.assertIn(row["collapsed"], ("1", diverged), name)

    def test_numerics_of_a_sampler_that_is_behind(self):
        lag = SMALL.replace("bf16 rollout: rollout-dtype = bf16", "behind: lag = 2")
        done = self.ablate(lag, "lag")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        with open(f"{self.home}/lag/summary.csv", encoding="utf-8") as f:
            found = [row["prob_diff_mean"] for row in csv.DictReader(f)]
        self.assertEqual(found, ["0", "– (1 of 4 steps)"] * 2)
        self.assertIn("<td>– (1 of 4 steps)</td>",
                      ablate_page.read_text(f"{self.home}/lag/report.html"))

    def test_one_at_a_time_in_a_folder(self):
        long = re.sub("steps = 4\n", "steps = 3000\n", SMALL)
        first = subprocess.Popen(self.command(long, "same"), stdout=subprocess.PIPE, text=True)
        while not self.logs("same"):
            time.sleep(0.01)
        second = self.ablate(long, "same")
        self.assertEqual(second.returncode, 1)
        self.assertIn("another ablate.py", second.stderr)
        first.send_signal(signal.SIGINT)
        first.communicate()
        self.assertEqual(first.returncode, 130)


if __name__ == "__main__":
    # Started in the background, a shell has it ignored, and so would ablate.py.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unittest.main()
