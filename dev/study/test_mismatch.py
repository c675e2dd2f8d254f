#!/usr/bin/env python3
"""Tests of what mismatch.py --out writes, of pages that name it, and of the program behind it.

    python3 dev/study/test_mismatch.py [TEST...]

Runs build/dev/study/mismatch and ./train_gpt2_rl (or what TRAIN_GPT2_RL names).
"""
import csv
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import ablate_page
import mismatch
import mismatch_bins
import mismatch_run

HERE = os.path.dirname(os.path.abspath(__file__))
TRAIN = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "./train_gpt2_rl"))

# The models are tiny: more threads would only wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_bytes_tokenizer(folder):
    """One of the 256 bytes and three special tokens."""
    printable = [b for b in range(256) if 0x21 <= b <= 0x7e or 0xa1 <= b and b != 0xad]
    others = [b for b in range(256) if b not in printable]
    vocabulary = {chr(b): b for b in printable}
    vocabulary.update((chr(256 + i), b) for i, b in enumerate(others))
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    files = {"tokenizer.json": {
        "added_tokens": [{"id": 256 + i, "content": text, "special": True, "normalized": False}
                         for i, text in enumerate(specials)],
        "normalizer": None, "post_processor": None, "decoder": {"type": "ByteLevel"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}},
             "tokenizer_config.json": {"eos_token": "<|endoftext|>"}}
    os.makedirs(folder)
    for name, tree in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(tree, f)


# (mu, pi) of a few tokens: each way to lie outside, none, and the largest mu.
TOKENS = [(0.005, 0.01), (0.004, 0.004), (0.5, 0.3), (0.5, 0.6), (0.95, 0.79), (1, 1)]


def small_texts():
    tokens = [(0, math.log(mu), math.log(pi)) for mu, pi in TOKENS]
    same = [(0, log_mu, log_mu) for _, log_mu, _ in tokens]
    return mismatch_bins.table_texts({
        "bf16:fp32": {"token": tokens, "layer": [0.001, 0.25], "metric": {"kl": 0.5, "ess": 0.75}},
        "bf16:bf16": {"token": same, "layer": [0, 0], "metric": {"kl": 0, "ess": 1}}})


class BinsTest(unittest.TestCase):
    def rows(self, pair):
        rows = mismatch_bins.Results(small_texts()).tables()["bins.csv"]
        return {row["mu"]: row for row in rows if row["pair"] == pair}

    def test_by_hand(self):
        rows = self.rows("bf16:fp32")
        columns = ["tokens", "share", "prob_diff_mean", "prob_gap_max", "logp_diff_mean",
                   "logp_diff_max", "ratio_mean", "ratio_min", "ratio_max", "ratio_outside",
                   "tv_outside", "ratio_only", "tv_only"]
        for name, expected in [
                ("0 to 0.01", "2 0.33333 0.0025 0.005 0.34657 0.69315 1.5 1 2 0.5 0 0.5 0"),
                ("0.3 to 0.7", "2 0.33333 0.15 0.2 0.34657 0.51083 0.9 0.6 1.2 0.5 0.5 0 0"),
                ("0.9 to 0.99", "1 0.16667 0.16 0.16 0.18443 0.18443 0.83158 0.83158 0.83158 0 1 "
                                "0 1"),
                ("0.99 to 1", "1 0.16667 0 0 0 0 1 1 1 0 0 0 0"),
                ("all", "6 1 0.0775 0.2 0.26179 0.69315 1.1053 0.6 2 0.33333 0.33333 0.16667 "
                        "0.16667")]:
            self.assertEqual([rows[name][c] for c in columns], expected.split(), name)
        self.assertEqual(list(rows), mismatch_bins.BINS + ["all"])
        self.assertEqual([rows["0.01 to 0.03"][c] for c in columns], ["0", "0"] + [""] * 11)

    def test_equal_is_exactly_zero(self):
        for row in self.rows("bf16:bf16").values():
            if row["tokens"] != "0":
                self.assertEqual([row[c] for c in row if "ratio_m" in c], ["1"] * 3)
                self.assertEqual({row[c] for c in row if "diff" in c or "gap" in c or "out" in c
                                  or "only" in c}, {"0"})

    def test_the_ratio_is_clamped(self):
        for log_mu, log_pi, ratio in ((-1, -800, math.exp(-20)), (-800, -1, math.exp(20))):
            self.assertEqual(mismatch_bins.differences(log_mu, log_pi)[1:], (799, ratio))

    def test_figures(self):
        results = mismatch_bins.Results(small_texts())
        for name in mismatch_bins.figures(results):
            text = mismatch_bins.draw(results, name)
            xml.etree.ElementTree.fromstring(text)
            self.assertEqual(text, mismatch_bins.draw(mismatch_bins.Results(small_texts()), name))
            self.assertNotRegex(text, r"\bnan\b|\binf\b|>step<")
            self.assertIn("bf16:bf16", text)
        self.assertIsNone(mismatch_bins.draw(results, "kl.svg"))


class RunTest(unittest.TestCase):
    def test_by_hand(self):
        # Three prompts of two completions; |log pi - log mu| of their tokens.
        gaps = [[1.0, 3.0], [2.0], [4.0, 4.0, 4.0]]
        tokens = [(2 * prompt + i % 2, -0.1 - 0.001 * i, -0.1 - 0.001 * i - gap)
                  for prompt, found in enumerate(gaps) for i, gap in enumerate(found)]
        sums = mismatch_run.prompt_sums(tokens, 2)
        self.assertEqual({name for name, s in sums.items() if s}, {"0.9 to 0.99", "all"})
        self.assertEqual([(p, s[0], round(s[1], 9)) for p, s in sums["all"].items()],
                         [(0, 2, 4.0), (1, 1, 2.0), (2, 3, 12.0)])
        mean, errors = mismatch_run.mean_of(sums["all"], "logp_diff")
        self.assertAlmostEqual(mean, 3)
        # 4 - 3 x 2, 2 - 3 x 1 and 12 - 3 x 3 of 6 tokens; t of 2 is 4.302653.
        for prompt, expected in enumerate((-2 / 6, -1 / 6, 3 / 6)):
            self.assertAlmostEqual(errors[prompt], expected)
        low, high = mismatch_run.interval(mean, errors)
        width = 4.302653 * math.sqrt((4 + 1 + 9) / 36 * 3 / 2)
        self.assertAlmostEqual(low, 3 - width, places=5)
        self.assertAlmostEqual(high, 3 + width, places=5)
        self.assertEqual(mismatch_run.interval(1.0, {0: 0.5}), (None, None))
        # Paired by prompt: the same change at each leaves no doubt.
        later = 3.5, dict(errors)
        self.assertEqual(mismatch_run.growth((mean, errors), later), (0.5, 0.5, 0.5))
        for ends, text in (((0.1, 0.2), "grew"), ((-0.2, -0.1), "shrank"),
                           ((-0.1, 0.2), "not told apart"), ((None, None), "not told apart")):
            self.assertEqual(mismatch_run.verdict(*ends), text)

    def test_rows(self):
        def tokens(gap):
            return [(i, math.log(0.005 if i % 2 else 0.5), math.log(0.005 if i % 2 else 0.5) + gap
                     + 0.001 * i) for i in range(8)]
        rows = mismatch_run.rows_of("a:b", {"step-1": tokens(0.01), "step-2": tokens(0.02),
                                            "step-3": tokens(0.03)}, 2)
        found = [(r["mu"], r["checkpoint"], r["tokens"]) for r in rows if r["mu"] != "all"]
        self.assertEqual(found,
                         [(mu, name, n) for mu in ("0 to 0.01", "0.3 to 0.7") for name, n in
                          (("step-1", "4"), ("step-2", "4"), ("step-3", "4"),
                           ("last - first", ""))])
        self.assertEqual([r["logp_diff_mean"] for r in rows[:4]],
                         ["0.014", "0.024", "0.034", "0.02"])
        self.assertEqual([r["logp_diff_verdict"] for r in rows[:4]], ["", "", "", "grew"])
        self.assertEqual(list(rows[0]), mismatch_run.COLUMNS)

    def test_the_pair_of_a_run(self):
        for config, pair in (({}, "bf16:fp32"), ({"rollout-dtype": "fp16"}, "fp16:fp32"),
                             ({"rollout-dtype": "bf16", "train-dtype": "bf16"}, "bf16:fp32"),
                             ({"rollout-split-k": "2"}, "fp32/2:fp32"),
                             ({"rollout-block": "nvfp4", "train-block": "none"}, "fp32+nvfp4:fp32"),
                             ({"rollout-block": "int8", "train-block": "int8"}, "bf16:fp32")):
            self.assertEqual(mismatch_run.pair_of(config), pair)


PAGE = """# A page

A clip stops 0.0 %<!-- r/bins.csv ratio_outside pair=bf16:fp32 mu="0 to 0.01" --> of
0<!-- r/bins.csv tokens pair=bf16:fp32 mu="0 to 0.01" --> tokens; at the end the stream is off by
0.00<!-- r/layers.csv max difference pair=bf16:fp32 -->, KL is
0.00<!-- r/metrics.csv kl pair=bf16:fp32 -->.

<!-- table r/bins.csv tokens,ratio_outside,tv_outside rows=mu pair=bf16:fp32 -->
<!-- end -->

<!-- table r/layers.csv difference rows=layer columns=pair -->
<!-- end -->

![Differences](r/bins.svg)
![Regions](r/outside.svg)
![Layers](r/layers.svg)
"""


class PageTest(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        os.makedirs(os.path.join(self.home, "r"))
        for name, text in small_texts().items():
            self.write(f"r/{name}", text)
        self.page = self.write("page.md", PAGE)
        ablate_page.update(self.page)

    def write(self, name, text):
        path = os.path.join(self.home, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def test_update_writes_what_check_wants(self):
        self.assertEqual(ablate_page.check(self.page), [])
        text = ablate_page.read_text(self.page)
        for part in ("stops 50.0 %<!--", "\n2<!--", "\n0.25<!--", "\n0.50<!--",
                     "| 0 to 0.01 | 2 | 0.500 | 0 |", "| 0.01 to 0.03 | 0 | – | – |",
                     "| all | 6 | 0.333 | 0.333 |", "| difference, layer | bf16:fp32 | bf16:bf16 |",
                     "| 1 | 0.250 | 0 |"):
            self.assertIn(part, text)

    def test_what_was_measured_is_never_written(self):
        text = small_texts()["metrics.csv"].replace("bf16:fp32", '"bf16:fp32"')
        path = self.write("r/metrics.csv", text)
        self.assertEqual(ablate_page.check(self.page), [])
        ablate_page.update(self.page)
        self.assertEqual(ablate_page.read_text(path), text)

    def test_each_difference_is_found(self):
        shutil.copytree(self.home, self.home + ".good")
        self.addCleanup(shutil.rmtree, self.home + ".good")
        for name, old, new, message in [
                ("page.md", "50.0 %", "50.1 %", "page.md:3"),
                ("page.md", "| 6 | 0.333", "| 6 | 0.334", "page.md:19"),
                ("r/bins.csv", "0 to 0.01,2,", "0 to 0.01,3,", "page.md:4"),
                ("r/bins.csv", ",0.34657,", ",0.44657,", "bins.svg is not what"),
                ("r/bins.csv", ",1,0,1\n", ",0.5,0,1\n", "outside.svg is not what"),
                ("r/layers.csv", "1,0.25", "1,0.26", "layers.svg is not what"),
                ("r/metrics.csv", "0.5", "0.6", "page.md:6"),
                ("r/layers.svg", "<text", "<Text", "layers.svg is not what")]:
            path = os.path.join(self.home, name)
            text = ablate_page.read_text(path)
            self.assertIn(old, text)
            self.write(name, text.replace(old, new, 1))
            problems = ablate_page.check(self.page)
            self.assertTrue(any(message in p for p in problems), (name, new, problems))
            shutil.rmtree(self.home)
            shutil.copytree(self.home + ".good", self.home)

    def test_refusals(self):
        os.makedirs(os.path.join(self.home, "empty"))
        for text, message in [
                ("1<!-- empty/bins.csv tokens mu=all -->", "empty: it has neither matrix and"),
                ("1<!-- r/runs.csv auc -->", "choose one of bins.csv, layers.csv, metrics.csv"),
                ("1<!-- r/bins.csv auc -->", "has no column auc"),
                ("1<!-- r/bins.csv tokens mu=0.5 -->", "no row with mu=0.5"),
                ("![x](r/kl.svg)", "there is no figure kl.svg; there are bins.svg")]:
            page = self.write("bad.md", text + "\n")
            with self.assertRaises(ablate_page.PageError, msg=text) as caught:
                ablate_page.check(page)
            self.assertIn(message, str(caught.exception))
        os.remove(os.path.join(self.home, "r", "layers.csv"))
        with self.assertRaisesRegex(ablate_page.PageError, "cannot read .*layers.csv"):
            ablate_page.check(self.page)

    def test_a_figure_that_is_not_shown(self):
        text = ablate_page.read_text(self.page)
        self.write("page.md", text.replace("![Layers](r/layers.svg)", ""))
        self.assertIn("layers.svg is not in", " ".join(ablate_page.check(self.page)))


@unittest.skipUnless(os.access(TRAIN, os.X_OK) and os.access(mismatch.PROGRAM, os.X_OK),
                     f"{TRAIN} or {mismatch.PROGRAM} is not built")
class ProgramTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.home)
        for name, seed, channels in (("new", "1", "32"), ("old", "2", "32"), ("wide", "1", "64")):
            subprocess.run([TRAIN, "--steps", "1", "--warmup-steps", "5", "--depth", "1",
                            "--channels", channels, "--seed", seed, "--eval-prompts", "1", "--out",
                            os.path.join(cls.home, name)],
                           env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
            shutil.copy(f"{cls.home}/{name}/checkpoints/step-000001/model.bin",
                        f"{cls.home}/{name}.bin")

    def mismatch(self, *args):
        return subprocess.run([sys.executable, os.path.join(HERE, "mismatch.py"), "--prompts", "4",
                               "--group", "2", *args], cwd=self.home, env=ENVIRONMENT, text=True,
                              capture_output=True, check=False)

    def bins(self, *args):
        """{pair: rows of bins.csv}"""
        done = self.mismatch(*args, "--out", "out")
        self.assertEqual(done.returncode, 0, done.stderr)
        found = {}
        with open(f"{self.home}/out/bins.csv", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                found.setdefault(row["pair"], []).append(row)
        return found

    def largest(self, *args):
        """{pair: largest |log pi - log mu| in any bin}"""
        return {pair: max(float(r["logp_diff_max"] or 0) for r in rows)
                for pair, rows in self.bins(*args).items()}

    def test_equal_formats_give_zero(self):
        pairs = ["bf16:bf16", "fp8_e4m3:fp8_e4m3", "bf16/2:bf16/2", "bf16+int4:bf16+int4"]
        for pair, rows in self.bins("new.bin", *pairs, "fp32/2:fp32", "bf16+int4:bf16").items():
            for row in rows:
                texts = {row[c] for c in row if "diff" in c or "gap" in c}
                if pair in pairs:
                    self.assertLessEqual(texts, {"0", ""}, pair)
            self.assertEqual(float(rows[-1]["logp_diff_max"]) == 0, pair in pairs, pair)
            self.assertEqual(int(rows[-1]["tokens"]), sum(int(r["tokens"]) for r in rows[:-1]))

    def test_a_sampler_of_other_weights(self):
        self.assertEqual(self.largest("--sampler", "new.bin", "new.bin", "fp32:fp32"),
                         {"fp32:fp32": 0})
        drift = self.largest("--sampler", "old.bin", "new.bin", "fp32:fp32")["fp32:fp32"]
        self.assertGreater(drift, 1e-3)
        with open(f"{self.home}/out/layers.csv", encoding="utf-8") as f:
            self.assertTrue(all(float(row["difference"]) > 1e-3 for row in csv.DictReader(f)))
        drawn = []
        for model in ("new.bin", "old.bin"):  # mu is the sampler's, whoever is the trainer
            self.mismatch("--sampler", "old.bin", model, "fp32:fp32", "--csv", "tokens.csv")
            with open(f"{self.home}/tokens.csv", encoding="utf-8") as f:
                drawn.append([row[:-1] for row in csv.reader(f) if row[0] == "token"])
        self.assertTrue(drawn[0])
        self.assertEqual(*drawn)

    def test_the_same_tokens_of_another_model(self):
        found = {}
        for how in ((), ("--tokens", "new.bin"), ("--tokens", "old.bin")):
            done = self.mismatch(*how, "new.bin", "bf16:fp32", "--csv", "tokens.csv")
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(f"{self.home}/tokens.csv", encoding="utf-8") as f:
                found[how[-1:]] = [row for row in csv.reader(f) if row[0] == "token"]
        # A forward pass of training has the bits of the sampler that drew the tokens.
        self.assertEqual(found[()], found["new.bin",])
        self.mismatch("old.bin", "bf16:fp32", "--csv", "tokens.csv")
        with open(f"{self.home}/tokens.csv", encoding="utf-8") as f:
            drawn = [row[:5] for row in csv.reader(f) if row[0] == "token"]
        self.assertEqual([row[:5] for row in found["old.bin",]], drawn)
        self.assertNotEqual([row[:5] for row in found[()]], drawn)

    def run_of(self, name, *flags):
        subprocess.run([TRAIN, "--steps", "3", "--warmup-steps", "5", "--depth", "1", "--channels",
                        "32", "--eval-prompts", "1", "--rollout-dtype", "fp8_e4m3",
                        "--checkpoint-every", "1", "--out", os.path.join(self.home, name), *flags],
                       cwd=self.home, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)

    def test_all_checkpoints_of_a_run(self):
        self.run_of("run", "--checkpoint-keep", "0")
        for pairs, shown in (((), "fp8_e4m3:fp32"), (("bf16:bf16",), "bf16:bf16")):
            done = self.mismatch("run", *pairs, "--csv", "growth.csv")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"{shown}: the same tokens at every checkpoint, drawn by warmup-000005",
                          done.stdout)
            with open(f"{self.home}/growth.csv", encoding="utf-8") as f:
                rows = list(csv.DictReader(f))
            every = [r for r in rows if r["mu"] == "all"]
            self.assertEqual([r["checkpoint"] for r in every],
                             ["warmup-000005", "step-000001", "step-000002", "step-000003",
                              "last - first"])
            self.assertEqual(len({r["tokens"] for r in every[:4]}), 1)
            for name in (r["checkpoint"] for r in every[:4]):
                bins = [int(r["tokens"]) for r in rows if r["checkpoint"] == name]
                self.assertEqual(sum(bins[:-1]), bins[-1])
            zero = {r["logp_diff_mean"] for r in rows} == {"0"}
            self.assertEqual(zero, bool(pairs))

    def ends(self, run):
        """{checkpoint: (tokens, mean |log pi - log mu|)} of a run's table."""
        done = self.mismatch(run, "--csv", "growth.csv")
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(f"{self.home}/growth.csv", encoding="utf-8") as f:
            rows = [r for r in csv.DictReader(f) if r["mu"] == "all"]
        return {r["checkpoint"]: (int(r["tokens"]), float(r["logp_diff_mean"]))
                for r in rows[:-1]}

    def test_runs_of_other_families(self):
        for family in ("llama", "qwen2", "qwen3"):
            self.run_of(family, "--checkpoint-keep", "0", "--family", family)
            found = self.ends(family)
            self.assertEqual(list(found), ["warmup-000005", "step-000001", "step-000002",
                                           "step-000003"], family)
            self.assertEqual(len({tokens for tokens, _ in found.values()}), 1, family)

    def first(self, run, *args):
        """What `ends` is to give for the oldest checkpoint, from the C program's lines."""
        model = f"{self.home}/{run}/checkpoints/warmup-000005/model"
        model += "" if os.path.exists(model) else ".bin"
        done = subprocess.run([mismatch.PROGRAM, "--max-new-tokens", "24", *args, model,
                               "./sums", "4", "2", "fp8_e4m3:fp32"], cwd=self.home, text=True,
                              env=ENVIRONMENT, check=True, capture_output=True)
        gaps = [abs(mu - pi) for _, mu, pi in
                mismatch.read(done.stdout)["fp8_e4m3:fp32"]["token"]]
        return len(gaps), float(f"{math.fsum(gaps) / len(gaps):.5g}")

    def test_runs_on_problems_of_a_file(self):
        with open(f"{self.home}/sums", "w", encoding="utf-8") as f:
            for i in range(64):
                f.write(f'{{"ask": "{i}+{i}=", "say": "{2 * i}", "answer": "{2 * i}"}}\n')
            for i in range(64):  # too long
                f.write(f'{{"ask": "{i}{"+1" * 80}=", "say": "8", "answer": "8"}}\n')
        write_bytes_tokenizer(f"{self.home}/bytes")
        data = ["--data", "./sums", "--reward", "exact", "--data-skip-long", "--data-keys",
                "prompt=ask,response=say"]
        asked = ["--data-keys", "prompt=ask", "--data-skip-long", "1"]
        tokenizer = ["--tokenizer", "bytes", "--chat", "chatml", "--system", "Add."]
        cases = [("file", [], [*asked, "--held-out", "1"]),
                 ("two", ["--data-held-out", "./sums"], asked),
                 ("gpt2", [*tokenizer, "--context", "128"],
                  [*asked, "--held-out", "1", *tokenizer]),
                 ("qwen3", [*tokenizer, "--context", "128", "--family", "qwen3"],
                  [*asked, "--held-out", "1", *tokenizer])]
        for name, flags, same in cases:
            self.run_of(f"data-{name}", "--checkpoint-keep", "0", *data, *flags)
            found = self.ends(f"data-{name}")
            self.assertEqual(len(found), 4)
            self.assertEqual(found["warmup-000005"], self.first(f"data-{name}", *same), name)
            if same != asked:  # the last flag matters
                self.assertNotEqual(found["warmup-000005"],
                                    self.first(f"data-{name}", *same[:-2]), name)

    def test_runs_that_do_not_do(self):
        self.run_of("short", "--checkpoint-keep", "1")
        for args, message in [(("short",), "short keeps 1 checkpoint, and growth takes two or "
                                           "more; make the run with --checkpoint-keep 0"),
                              (("short", "--out", "x"), "--out means nothing to a run"),
                              (("short/checkpoints",), "is no run: it has no checkpoints")]:
            done = self.mismatch(*args)
            self.assertEqual(done.returncode, 1, args)
            self.assertIn(message, done.stderr)

    def test_the_folder_says_how_it_was_made(self):
        self.bins("--sampler", "old.bin", "new.bin", "fp32:fp32")
        command, *models = ablate_page.read_text(f"{self.home}/out/command").splitlines()
        self.assertEqual(command, "python3 dev/study/mismatch.py --prompts 4 --group 2 --sampler "
                                  "old.bin new.bin fp32:fp32 --out out")
        with open(f"{self.home}/old.bin", "rb") as f:
            self.assertEqual(models[1], f"# old.bin: sha256 {hashlib.sha256(f.read()).hexdigest()}")

    def test_refusals(self):
        for args, message in [
                (("--sampler", "wide.bin", "new.bin", "fp32:fp32"),
                 "wide.bin and new.bin differ in shape"),
                (("--sampler", "none.bin", "new.bin", "fp32:fp32"), "none.bin cannot be read"),
                (("new.bin", "bf16/0:bf16"), "bf16/0:bf16 0: give a number"),
                (("new.bin", "bf16/2"), "write a pair SAMPLER:TRAINER")]:
            done = self.mismatch(*args)
            self.assertEqual(done.returncode, 1, args)
            self.assertIn(message, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


if __name__ == "__main__":
    unittest.main()
