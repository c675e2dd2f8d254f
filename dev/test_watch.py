#!/usr/bin/env python3
"""Tests of tensorboard.py and wandb.py: what they write of a run is what its log says.

    python3 dev/test_watch.py [TEST...]

Runs ./train_gpt2_rl (or what TRAIN_GPT2_RL names). What is written for TensorBoard is read back by its own
package, where that is installed; wandb has a stand-in here that notes what it is given.
"""
import importlib.util
import json
import os
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

    def test_refusals(self):
        for name, packages in (("tensorboard.py", ["tensorboard", "tensorboardX"]), ("wandb.py", ["wandb"])):
            done = tool(name, self.run_, without=packages)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(f"pip install {packages[0]}", done.stderr)
            done = tool(name, os.path.join(self.folder, "nothing"))
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn("is not the --out folder of a run", done.stderr)


if __name__ == "__main__":
    unittest.main()
