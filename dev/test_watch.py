#!/usr/bin/env python3
"""Tests of tensorboard.py, wandb.py and report.py: what they write of a run is what its log says.

    python3 dev/test_watch.py [TEST...]

Runs ./train_gpt2_rl (or what TRAIN_GPT2_RL names). What is written for TensorBoard is read back by its own
package, where that is installed; wandb has a stand-in here that notes what it is given.
"""
import html.parser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != HERE]  # the package, not our file
PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "train_gpt2_rl"))
FLAGS = ("--task add:digits=1 --depth 1 --channels 32 --heads 2 --context 32 --max-new-tokens 12 "
         "--warmup-steps 100 --steps 3 --prompts 4 --group 4 --eval-prompts 4 --device cpu --threads 1 "
         "--lag 1").split()  # with --lag the log has nulls
STAND_IN = """
import json, os
class Run:
    def define_metric(self, name, step_metric): note("metric", name, step_metric)
    def log(self, numbers): note("log", numbers)
    def finish(self): note("finish")
def note(*what):
    with open(os.environ["NOTES"], "a") as f: print(json.dumps(what), file=f)
def init(**how):
    note("init", how)
    return Run()
"""


def has(package):
    return importlib.util.find_spec(package) is not None


def tool(name, *arguments, without=(), **environment):
    """Runs dev/NAME, where `without` names packages that it does not find."""
    hide = f"import sys, runpy; sys.modules.update(dict.fromkeys({without!r})); del sys.argv[0]; " \
           "sys.path[0] = sys.argv[0].rpartition('/')[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = ["-c", hide] if without else []
    return subprocess.run([sys.executable, *command, os.path.join(HERE, name), *arguments], text=True,
                          capture_output=True, check=False, env={**os.environ, **environment})


class Page(html.parser.HTMLParser):
    """The texts of a page by the tag around them; whatever opens must close, and nothing is loaded."""
    EMPTY = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.foreign = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.foreign += [(tag, k) for k, _ in attrs if k in ("src", "href", "xlink:href", "onload")]
        self.foreign += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.open += [tag] if tag not in self.EMPTY else []

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes another tag")

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


class Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.run_ = os.path.join(cls.folder, "run")
        subprocess.run([PROGRAM, *FLAGS, "--out", cls.run_], check=True, capture_output=True)
        with open(os.path.join(cls.run_, "log.jsonl"), encoding="utf-8") as file:
            cls.log = [json.loads(line) for line in file]

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def expected(self):
        """{tag: [(step, number)]} of the log."""
        tags, updates = {}, 0
        for line in self.log:
            step = line["step"]
            if line["phase"] == "update":
                step, updates = updates, updates + 1
            for key, value in line.items():
                if key not in ("phase", "step", "time") and value is not None:
                    tags.setdefault(f"{line['phase']}/{key}", []).append((step, value))
        return tags

    def check_events(self, folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        expected = self.expected()
        self.assertEqual(set(events.Tags()["scalars"]), set(expected))
        for tag, points in expected.items():
            found = events.Scalars(tag)
            self.assertEqual([e.step for e in found], [step for step, _ in points], tag)
            for event, (_, value) in zip(found, points):
                self.assertAlmostEqual(event.value, value, delta=1e-6 * abs(value))  # fp32
        times = [e.wall_time for e in events.Scalars("update/loss")]
        seconds = [line["time"] for line in self.log if line["phase"] == "update"]
        for i in range(1, len(times)):
            self.assertAlmostEqual(times[i] - times[0], seconds[i] - seconds[0], delta=1e-4)

    @unittest.skipUnless(has("tensorboard"), "tensorboard is not installed")
    def test_tensorboard(self):
        self.assertIn(None, [v for line in self.log for v in line.values()], "the case has nulls")
        for _ in range(2):  # the second time it replaces what is there
            done = tool("tensorboard.py", self.run_)
            self.assertEqual(done.stderr, "")
            self.assertIn(f"{len(self.log)} lines", done.stdout)
            self.check_events(os.path.join(self.run_, "tensorboard"))

    @unittest.skipUnless(has("tensorboard") and has("tensorboardX"), "one of them is not installed")
    def test_tensorboard_x(self):
        out = os.path.join(self.folder, "x")
        self.assertEqual(tool("tensorboard.py", self.run_, "--out", out, without=["tensorboard"]).stderr, "")
        self.check_events(out)

    @unittest.skipUnless(has("tensorboard"), "tensorboard is not installed")
    def test_follow(self):
        """Lines that come later, one of them in two parts; it ends by itself after the last one."""
        growing = os.path.join(self.folder, "growing")
        os.mkdir(growing)
        shutil.copy(os.path.join(self.run_, "config"), growing)
        with open(os.path.join(self.run_, "log.jsonl"), encoding="utf-8") as file:
            text = file.read()
        half = len(text) // 2
        with open(os.path.join(growing, "log.jsonl"), "w", encoding="utf-8") as file:
            file.write(text[:half])
            file.flush()
            follower = subprocess.Popen([sys.executable, os.path.join(HERE, "tensorboard.py"), growing,
                                         "--follow"], stdout=subprocess.DEVNULL)
            time.sleep(3)
            self.assertIsNone(follower.poll())
            file.write(text[half:])
        self.assertEqual(follower.wait(60), 0)
        self.check_events(os.path.join(growing, "tensorboard"))

    def test_wandb(self):
        package, notes = os.path.join(self.folder, "package"), os.path.join(self.folder, "notes")
        os.mkdir(package)
        with open(os.path.join(package, "wandb.py"), "w", encoding="utf-8") as file:
            file.write(STAND_IN)
        done = tool("wandb.py", self.run_, "--project", "p", PYTHONPATH=package, NOTES=notes)
        self.assertEqual(done.stderr, "")
        with open(notes, encoding="utf-8") as file:
            noted = [json.loads(line) for line in file]
        first, found = noted[0][1], {}
        self.assertEqual((noted[0][0], first["project"], first["name"]), ("init", "p", "run"))
        self.assertEqual((first["config"]["lag"], first["config"]["steps"]), ("1", "3"))
        for what, *rest in noted:
            if what == "metric":
                self.assertEqual(rest[1], rest[0].replace("*", "step"))
            for tag, value in (rest[0].items() if what == "log" else ()):
                phase, _, key = tag.partition("/")
                if key not in ("step", "time"):
                    found.setdefault(tag, []).append((rest[0][f"{phase}/step"], value))
        self.assertEqual(found, self.expected())
        self.assertEqual(noted[-1], ["finish"])

    def report(self, run):
        done = tool("report.py", run)
        self.assertEqual((done.stderr, done.stdout), ("", os.path.join(run, "report.html") + "\n"))
        with open(os.path.join(run, "report.html"), encoding="utf-8") as file:
            text = file.read()
        page = Page(text)
        self.assertEqual((page.open, page.foreign), ([], []))
        return text, page

    def program(self, name, *flags, **environment):
        out = os.path.join(self.folder, name)
        done = subprocess.run([PROGRAM, *FLAGS, "--out", out, "--report", *flags], capture_output=True,
                              text=True, check=False, env={**os.environ, **environment})
        self.assertEqual(done.returncode, 0, done.stderr)
        return out, done

    def test_report(self):
        out, done = self.program("bf16", "--rollout-dtype", "bf16", "--log-tokens", "--resample", "2")
        self.assertEqual(done.stderr, "")
        self.assertIn(f"page        {out}/report.html, at the end\n", done.stdout)
        with open(os.path.join(out, "report.html"), encoding="utf-8") as file:
            made = file.read()
        text, page = self.report(out)
        self.assertEqual(text, made, "--report makes what the script makes")
        self.assertIn("3 of 3 RL steps", page.texts["p"][0])
        with open(os.path.join(out, "plan"), encoding="utf-8") as file:
            plan = file.read()
        self.assertIn(plan, done.stdout)
        self.assertIn(plan, page.texts["pre"])
        self.assertIn("objective   drpo", plan)
        self.assertIn("all, with the warm-up", plan)
        with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as file:
            log = [json.loads(line) for line in file]
        self.check_curve(text, [line["entropy"] for line in log if line["phase"] == "rollout"])
        # The mean over all tokens of step 0 is what the program measured.
        cells, at = page.texts["td"], page.texts["td"].index("all")
        measured = next(line for line in log if line["phase"] == "numerics")
        self.assertEqual(cells[at - 1], "step 0")
        for cell, key in zip(cells[at + 2:], ("prob_diff_mean", "logp_diff_mean")):
            self.assertGreater(measured[key], 0)
            self.assertAlmostEqual(float(cell), measured[key], delta=0.06 * measured[key])  # 1 or 2 digits

    def check_curve(self, text, values):
        """The heights of the curve of entropies are linear in them."""
        svg = next(s for s in text.split("<svg")[1:] if ">entropy (nats)<" in s)
        path = re.search(r'<path d="M([^"]+)" fill="none" stroke="[^"]+" stroke-width="1.7"', svg).group(1)
        heights = [float(point.split(" ")[1]) for point in path.split("L")]
        self.assertEqual((len(heights), 'opacity=".13"' in svg), (len(values), False), "a line and no band")
        slope = (heights[1] - heights[0]) / (values[1] - values[0])
        self.assertLess(slope, 0)  # the page's y grows downwards
        for height, value in zip(heights, values):
            self.assertAlmostEqual(height - heights[0], slope * (value - values[0]), delta=0.5)

    def test_report_of_others(self):
        """A run of an older program, without tokens and a plan, whose last lines are still being written; and
        completions that are HTML."""
        other = os.path.join(self.folder, "other")
        shutil.copytree(self.run_, other)
        os.remove(os.path.join(other, "plan"))
        sample = {"step": 9, "index": 0, "prompt": "<b>&", "completion": "</pre><script>x</script>", "reward": None}
        with open(os.path.join(other, "samples.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(sample) + "\n{\"step\": 9")
        with open(os.path.join(other, "log.jsonl"), "a", encoding="utf-8") as file:
            file.write('{"phase":')
        text, page = self.report(other)
        self.assertIn("</pre><script>x</script>", "".join(page.texts["pre"]))
        self.assertIn("reward none", page.texts["small"])
        self.assertIn("without", "".join(page.texts["p"]))
        self.assertIn("has no file", "".join(page.texts["p"]))
        self.assertNotIn("NaN", text)
        with open(os.path.join(other, "samples.jsonl"), "a", encoding="utf-8") as file:
            file.write("\n")
        done = tool("report.py", other)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
        self.assertIn("samples.jsonl:", done.stderr)

    def test_report_without_python(self):
        """The run itself is complete; what is missing is said."""
        tools = os.path.join(self.folder, "tools")
        os.mkdir(tools)
        out, done = self.program("none", PATH=tools)
        self.assertIn("page        none: python3 is not here\n", done.stdout)
        self.assertFalse(os.path.exists(os.path.join(out, "report.html")))
        with open(os.path.join(tools, "python3"), "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nexit 3\n")
        os.chmod(os.path.join(tools, "python3"), 0o755)
        out, done = self.program("fails", PATH=tools)
        self.assertIn(f"page        none: dev/report.py failed on {out}; the run itself is complete\n", done.stdout)
        done = subprocess.run([PROGRAM, *FLAGS, "--report"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--report means nothing without --out", done.stderr)

    def test_refusals(self):
        for name, packages in (("tensorboard.py", ["tensorboard", "tensorboardX"]), ("wandb.py", ["wandb"])):
            done = tool(name, self.run_, without=packages)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(f"pip install {packages[0]}", done.stderr)
            done = tool(name, os.path.join(self.folder, "nothing"))
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn("is not the --out folder of a run", done.stderr)
        done = tool("report.py", os.path.join(self.folder, "nothing"))
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
        self.assertIn("is not the --out folder of a run", done.stderr)


if __name__ == "__main__":
    unittest.main()
