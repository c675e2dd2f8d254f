#!/usr/bin/env python3
"""Tests of dev/from_config.py: each file of examples/ becomes the flags that stand here and a run of
two steps; what nobody knows is named; the tables are those of the installed TRL and of verl's wheel.

    python3 dev/config/test_from_config.py [TEST...]

Without trl, transformers or the wheel (see dev/hf/test_verl.py) what needs them is skipped.
"""
import dataclasses
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
import from_config  # noqa: E402
import trl_table  # noqa: E402
import verl_table  # noqa: E402
from config_keys import KEYS  # noqa: E402

PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "train_gpt2_rl"))
WHEELS = os.environ.get("WHEELS", "build/wheels")
BPE = os.path.join(HERE, "../../tests/fixtures/bpe/qwen.json")
try:
    import trl
except ImportError:
    trl = None

# The flags of each example, but for those that all of its library have.
EXPECTED = {
    "trl.yaml": "group=8 prompts=2 updates=1 epochs=2 passes=2 schedule=cosine lr-warmup=10% "
                "lr=2.0e-06 beta2=0.999 weight-decay=0.01 objective=grpo clip-low=0.1 "
                "clip-high=0.3 aggregate=seq-mean-token-sum-norm kl-coef=0.04 kl-estimator=k2 "
                "advantage=mean max-new-tokens=12 temperature=0.9 top-p=0.95 "
                "trainer-support=full anchor=recompute seed=7 checkpoint-every=4 "
                "checkpoint-keep=3",
    "open_r1.yaml": "group=16 prompts=4 updates=1 steps=2 schedule=cosine lr-warmup=10% "
                    "lr-final=0.1 lr=2.0e-05 beta2=0.999 objective=grpo clip-low=0.2 "
                    "clip-high=0.2 aggregate=token-mean advantage=std advantage-eps=1e-4 "
                    "max-new-tokens=10 train-dtype=bf16 rollout-dtype=bf16 anchor=recompute "
                    "correct=tis correct-low=0 correct-high=2.0 seed=42 recompute=2 "
                    "checkpoint-every=500 reward=1.0*boxed "
                    "system=Think_first._Then_put_the_answer_into_a_box.",
    "trl_sequence.yaml": "group=4 prompts=4 updates=2 steps=2 schedule=constant lr-warmup=1 "
                         "lr=1e-6 beta2=0.999 objective=gspo clip-low=3.0e-4 clip-high=4.0e-4 "
                         "aggregate=seq-mean-token-mean advantage=std advantage-eps=1e-4 "
                         "max-new-tokens=12 anchor=recompute seed=42 checkpoint-every=250 "
                         "checkpoint-best=1 eval-every=1 eval-samples=4 eval-k=0",
    "verl.sh": "prompts=16 group=8 updates=4 shuffle=1 lr=1e-6 weight-decay=0.1 beta2=0.999 "
               "schedule=constant lr-warmup=10 objective=grpo clip-low=0.2 clip-high=0.28 "
               "ratio-cap=10.0 aggregate=token-mean entropy-coef=0.001 advantage=std resample=9 "
               "overlong-buffer=4 anchor=recompute "
               "max-new-tokens=12 temperature=1.0 train-dtype=bf16 rollout-dtype=bf16 "
               "data-skip-long=1 steps=2 checkpoint-every=5 eval-every=5 checkpoint-keep=0 "
               "eval-samples=4 eval-k=0 eval-temperature=1.0 eval-top-p=0.7",
    "verl_correction.sh": "prompts=8 group=4 updates=1 lr=1e-6 weight-decay=0.01 beta2=0.999 "
                          "schedule=constant lr-warmup=0 objective=grpo clip-low=0.2 "
                          "clip-high=0.2 ratio-cap=3.0 aggregate=seq-mean-token-mean "
                          "kl-coef=0.001 kl-estimator=k3 advantage=rloo anchor=recompute "
                          "correct=tis correct-high=2.0 max-new-tokens=12 train-dtype=bf16 "
                          "rollout-dtype=fp8_e4m3 steps=2 checkpoint-every=0 eval-every=0 "
                          "checkpoint-keep=0 eval-samples=1 eval-k=0",
    "verl.yaml": "prompts=8 group=4 updates=2 lr=1e-6 weight-decay=0.01 beta1=0.9 beta2=0.95 "
                 "schedule=cosine lr-final=0.1 lr-warmup=5% objective=gspo clip-low=0.0003 "
                 "clip-high=0.0004 aggregate=seq-mean-token-sum advantage=reinforce++-baseline "
                 "anchor=recompute max-new-tokens=12 top-p=0.9 trainer-support=full "
                 "train-dtype=fp32 rollout-dtype=fp32 passes=2 checkpoint-every=1 eval-every=0 "
                 "checkpoint-keep=1 eval-samples=1 eval-k=0",
    "llmc.sh": "steps=0 warmup-steps=4 warmup-batch=8 micro-tokens=256 context=64 "
               "warmup-lr=0.0006 warmup-lr-rise=2 warmup-lr-final=0.1 warmup-weight-decay=0.1 "
               "recompute=0 depth=6 channels=384 heads=6 out=log_small checkpoint-keep=5",
    "llmc_resume.sh": "steps=0 warmup-steps=3 warmup-batch=2 micro-tokens=64 context=32 "
                      "warmup-lr=1e-4 warmup-lr-rise=1 warmup-lr-final=1 "
                      "warmup-weight-decay=0.0 init=gpt2_124M_bf16.bin",
}
UNKNOWN = {"trl_sequence.yaml": "trl_sequence.yaml:22 lerning_rate = 1.0e-05",
           "verl_correction.sh": "verl_correction.sh:18 actor_rollout_ref.rollout.temprature = 0.7",
           "llmc_resume.sh": "llmc_resume.sh:1 -qq = 1"}
REFUSED = {"trl_sequence.yaml": "trl_sequence.yaml:21 top_k = 1.5: top-k = 1.5 is out of our range",
           "verl.sh": "verl.sh:49 trainer.total_epochs = ${TOTAL_EPOCHS}: the script does not set",
           "llmc_resume.sh": "llmc_resume.sh:1 -r = 3: recompute = 3 is out of our range"}


def convert(*arguments):
    return subprocess.run([sys.executable, os.path.join(HERE, "../from_config.py"), *arguments],
                          capture_output=True, text=True)


def flags_of(text):
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    return dict(line.split(" = ", 1) for line in lines)


def on_file(test, content, name="a.yaml", *arguments):
    """The flags of a file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        done = convert(path, *arguments)
    test.assertEqual(done.returncode, 0, done.stderr)
    return flags_of(done.stdout), done.stdout


class Examples(unittest.TestCase):
    def test_flags(self):
        self.assertEqual(sorted(os.listdir(os.path.join(HERE, "examples"))), sorted(EXPECTED))
        for name, expected in EXPECTED.items():
            done = convert(os.path.join(HERE, "examples", name))
            with self.subTest(name):
                self.assertEqual(done.returncode, 0, done.stderr)
                want = {k: v.replace("_", " ") if k == "system" else v
                        for k, _, v in (pair.partition("=") for pair in expected.split())}
                self.assertEqual(flags_of(done.stdout), want)
                for found in (done.stdout, done.stderr):
                    for named in (UNKNOWN, REFUSED):
                        if name in named:
                            self.assertIn(named[name], found)
                for title, named in (("Known by nobody", UNKNOWN), ("Out of range", REFUSED)):
                    self.assertEqual(title in done.stdout, name in named)

    def test_two_steps(self):
        """Every file runs, with a small model and problems of its own."""
        for name, expected in EXPECTED.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                flags = ["--config", f"{folder}/flags", "--depth", "1", "--channels", "32",
                         "--heads", "2", "--context", "128", "--device", "cpu", "--threads", "1",
                         "--out", f"{folder}/run", "--eval-prompts", "2"]
                convert(os.path.join(HERE, "examples", name), "-o", f"{folder}/flags")
                with open(f"{folder}/data", "w", encoding="utf-8") as file:
                    for i in range(40):
                        line = {"prompt": f"{i % 7}+{i // 7}=", "answer": str(i % 7 + i // 7)}
                        file.write(json.dumps({**line, "response": line["answer"]}) + "\n")
                if name.startswith("llmc"):
                    flags += ["--task", "add:digits=1", "--warmup-steps", "2", "--init=",
                              "--max-new-tokens", "12"]
                else:
                    os.mkdir(f"{folder}/bpe")
                    shutil.copy(BPE, f"{folder}/bpe/tokenizer.json")
                    flags += ["--data", f"{folder}/data", "--warmup-steps", "4", "--passes", "0",
                              "--steps", "2", "--tokenizer", f"{folder}/bpe", "--chat",
                              "chatml"]
                    if " reward=" not in expected:
                        flags += ["--reward", "exact"]
                done = subprocess.run([PROGRAM, *flags], capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stderr)
                with open(f"{folder}/run/log.jsonl", encoding="utf-8") as file:
                    phases = [json.loads(line) for line in file]
                steps = [x for x in phases if x["phase"] == "rollout"]
                warm = [x for x in phases if x["phase"] == "warmup"]
                if name.startswith("llmc"):
                    self.assertEqual((len(steps), warm[-1]["step"]), (0, 2))
                else:
                    self.assertEqual(len(steps), 2)

    def test_later_files_win(self):
        example = os.path.join(HERE, "examples/trl.yaml")
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/more.yaml", "w", encoding="utf-8") as file:
                file.write("learning_rate: 5.0e-05\nscale_rewards: group\n")
            done = convert(example, f"{folder}/more.yaml")
        found = flags_of(done.stdout)
        self.assertEqual((found["lr"], found["advantage"], found["group"]),
                         ("5.0e-05", "std", "8"))
        self.assertIn("more.yaml:1 learning_rate", done.stdout)

    def test_processes(self):
        example = os.path.join(HERE, "examples/trl.yaml")
        found = flags_of(convert(example, "--processes", "4").stdout)
        self.assertEqual((found["prompts"], found["updates"]), ("8", "1"))


class Reading(unittest.TestCase):
    def test_yaml(self):
        """What a reader of a part of YAML would get wrong."""
        found, text = on_file(self, "# c\nlearning_rate:   1e-5   # rate\n'beta': 0.1\n"
                                    "max_grad_norm: 0\nseed: !!int 3\n"
                                    "anchored: &a {x: 1}\nother: *a\n"
                                    "system_prompt: >\n  one\n  line\n")
        self.assertEqual((found["lr"], found["kl-coef"], found["grad-clip"], found["system"]),
                         ("1e-5", "0.1", "inf", "one line"))
        self.assertIn("a.yaml:2 learning_rate = 1e-5", text)
        self.assertIn("a.yaml:6 anchored.x = 1", text)

    def test_shell(self):
        found, text = on_file(self, "N=3\nB=$((N * (2 + 2)))\nexport LR=2e-6\n"
                              "python -m verl.trainer.main_ppo data.train_batch_size=$B \\\n"
                              "  actor_rollout_ref.actor.ppo_mini_batch_size=${MINI:-6} \\\n"
                              "  'actor_rollout_ref.actor.optim.lr'=\"${LR}\" \\\n"
                              "  # data.seed=5\n"
                              "  ++data.seed=7 trainer.total_epochs=$UNSET\n", "run.sh")
        self.assertEqual((found["prompts"], found["updates"], found["lr"], found["seed"]),
                         ("12", "2", "2e-6", "7"))
        self.assertNotIn("passes", found)
        self.assertIn("run.sh:8 trainer.total_epochs = $UNSET: the script does not set", text)

    def test_defaults_of_shell_variables(self):
        """A default may hold another variable, which the script has or has not."""
        found, text = on_file(self, "B=8\nROOT=${ROOT:-\"${HOME}/verl\"}\nOUT=${OUT:-\"${ROOT}/run\"}\n"
                              "python -m verl.trainer.main_ppo data.train_batch_size=${N:-${B}} "
                              "trainer.default_local_dir=${OUT}\n", "run.sh")
        self.assertEqual(found["prompts"], "8")
        self.assertIn("default_local_dir = ${HOME}/verl/run: the script does not set", text)

    def test_fp8_sampler(self):
        more = "actor_rollout_ref.rollout.quantization"
        found, _ = on_file(self, f"{more}=fp8 trainer.resume_mode=auto\n", "a.sh")
        self.assertEqual((found["train-dtype"], found["rollout-dtype"]), ("bf16", "fp8_e4m3"))
        found, text = on_file(self, f"{more}=torchao trainer.resume_mode=auto\n", "a.sh")
        self.assertIn(f"{more} = torchao: no --rollout-dtype is this", text)
        self.assertIn("--resume=auto on the command line", text)

    def test_blocks(self):
        """verl's NVFP4 training is --train-block and --rollout-block, unless it rounds activations too."""
        q = "actor_rollout_ref.actor.fsdp_config.qat."
        found, _ = on_file(self, f"{q}enable=True trainer.resume_mode=auto\n", "a.sh")
        self.assertEqual((found["train-block"], found["rollout-block"]), ("nvfp4", "nvfp4"))
        for more in (f"{q}mode=w4a4", f"{q}group_size=32"):
            found, text = on_file(self, f"{q}enable=True {more} trainer.resume_mode=auto\n", "a.sh")
            self.assertNotIn("train-block", found)
            self.assertIn("--train-block has nvfp4", text)
        found, _ = on_file(self, f"{q}mode=w4a4 trainer.resume_mode=auto\n", "a.sh")
        self.assertNotIn("train-block", found)

    def test_gradient_norm(self):
        """verl 0.9.1 reads the optimizer's key; older scripts have the actor's."""
        actor = "actor_rollout_ref.actor."
        for keys, expected in ((f"{actor}grad_clip=0.5", "0.5"),
                               (f"{actor}optim.clip_grad=2.5", "2.5"),
                               (f"{actor}optim.clip_grad=2.5 {actor}grad_clip=0.5", "2.5"),
                               (f"{actor}optim.grad_clip=3", "3")):
            found, _ = on_file(self, f"python -m verl {keys} trainer.total_epochs=1\n", "a.sh")
            self.assertEqual(found["grad-clip"], expected)

    def test_refusals(self):
        cases = (("a.yaml", "a: [1", "is no YAML"), ("a.yaml", "- 1\n", "holds no keys"),
                 ("a.sh", "echo hello\n", "is none of TRL's or verl's YAML"),
                 ("a.sh", "echo 'x\n", "a quote is not closed"),
                 ("a.sh", "./train_gpt2cu -l 3 -x\n", "a.sh:1: train_gpt2cu takes pairs"))
        with tempfile.TemporaryDirectory() as folder:
            for name, content, words in cases:
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(content)
                done = convert(f"{folder}/{name}")
                with self.subTest(content):
                    self.assertEqual((done.returncode, done.stdout), (1, ""))
                    self.assertIn(words, done.stderr)
                    self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        done = convert("/nowhere.yaml")
        self.assertIn("cannot read /nowhere.yaml", done.stderr)
        examples = [os.path.join(HERE, "examples", name) for name in ("trl.yaml", "verl.yaml")]
        self.assertIn("the files are of TRL and verl", convert(*examples).stderr)

    def test_sums_over_tokens(self):
        """dapo and an entropy bonus, in one mini-batch and in two; a bonus that follows another sum."""
        more = "entropy_coef: 0.01\nmask_truncated_completions: true\nscale_rewards: batch\n"
        found, _ = on_file(self, more)
        names = ("aggregate", "entropy-coef", "overlong-filter", "advantage", "advantage-eps")
        self.assertEqual([found[n] for n in names],
                         ["token-mean", "0.01", "1", "batch-std", "1e-4"])
        found, _ = on_file(self, more + "steps_per_generation: 2\n")
        self.assertEqual([found["aggregate"], found["entropy-coef"]],
                         ["rollout-token-mean", "0.01"])  # and 2 updates, as is our default
        found, text = on_file(self, more + "loss_type: luspo\nimportance_sampling_level: sequence\n"
                                           "use_adaptive_entropy: true\n")
        self.assertEqual(found["aggregate"], "seq-mean-token-sum")
        self.assertNotIn("entropy-coef", found)
        for words in ("entropy_coef = 0.01: the bonus follows", "use_adaptive_entropy = true: the"):
            self.assertIn(words, text)

    def test_overlong_penalty(self):
        """verl's factor is 1 here, wherever its key stands."""
        for key in ("reward_model.overlong_buffer", "reward.reward_kwargs.overlong_buffer_cfg"):
            given = f"python -m verl.trainer.main_ppo {key}.enable=True {key}.len=4 "
            found, _ = on_file(self, given + f"{key}.penalty_factor=1\n", "a.sh")
            self.assertEqual(found["overlong-buffer"], "4")
            found, text = on_file(self, given + f"{key}.penalty_factor=0.5\n", "a.sh")
            self.assertNotIn("overlong-buffer", found)
            self.assertIn("penalty_factor = 0.5: the penalty of --overlong-buffer", text)

    def test_nothing_is_clipped(self):
        """A value out of our range is no flag."""
        found, text = on_file(self, "temperature: 0\nlearning_rate: -1\nadam_beta2: 1.0\n"
                                    "num_generations: 3\nlr_scheduler_type: polynomial\ntop_p: 0\n")
        for flag in ("top-p", "trainer-support", "temperature", "lr", "beta2", "prompts", "schedule"):
            self.assertNotIn(flag, found)
        for line in ("a.yaml:1 temperature = 0: temperature = 0 is out of our range",
                     "learning_rate = -1", "adam_beta2 = 1.0", "prompts = 2.666666667",
                     "top_p = 0: top-p = 0 is out of our range, above 0 to 1",
                     "a.yaml:5 lr_scheduler_type = polynomial: --schedule is constant"):
            self.assertIn(line, text)


class Tables(unittest.TestCase):
    def test_ours(self):
        """Every flag that a table may set is one of the program's."""
        listed = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True).stdout
        for flag in from_config.our_flags():
            self.assertIn(f"\n  --{flag} ", listed)

    @unittest.skipUnless(trl, "trl is not installed")
    def test_trl(self):
        self.assertEqual(trl_table.VERSION, "TRL " + trl.__version__.rpartition(".")[0])
        with tempfile.TemporaryDirectory() as folder:
            config = trl.GRPOConfig(output_dir=folder, use_cpu=True, bf16=False)
        names = {f.name for c in (trl.GRPOConfig, trl.ScriptArguments, trl.ModelConfig)
                 for f in dataclasses.fields(c)}
        self.assertLessEqual(names, KEYS["TRL"])
        for key, text in trl_table.DEFAULTS.items():
            value = getattr(config, key)
            value = getattr(value, "value", value)
            same = from_config.number(text) == value if isinstance(value, (int, float)) and \
                not isinstance(value, bool) else str(value) == text
            self.assertTrue(same, f"{key} is {value}, not {text}")
        for name in sorted(names):
            self.assertTrue(name in trl_table.TRANSLATED or trl_table.without_counterpart(name),
                            name)

    @unittest.skipUnless(glob.glob(f"{WHEELS}/verl-*.whl"), "verl's wheel is missing")
    def test_verl(self):
        path = glob.glob(f"{WHEELS}/verl-*.whl")[0]
        self.assertIn(verl_table.VERSION.replace(" ", "-"), path)
        with zipfile.ZipFile(path) as wheel:
            config = yaml.safe_load(wheel.read("verl/trainer/config/_generated_ppo_trainer.yaml"))

        def leaves(node, key):
            for name, value in node.items():
                inner = f"{key}.{name}" if key else name
                if isinstance(value, dict) and value:
                    yield from leaves(value, inner)
                elif name != "_target_":
                    yield inner, value
        theirs = dict(leaves(config, ""))
        for key, text in verl_table.DEFAULTS.items():
            value = theirs[key]
            same = ([str(v) for v in value] == text if isinstance(value, list) else
                    value is text if value is None or text is None else
                    from_config.number(value) == from_config.number(text)
                    if from_config.number(text) is not None else str(value) == text)
            self.assertTrue(same, f"{key} is {value}, not {text}")
        for key in theirs:
            self.assertTrue(key in verl_table.TRANSLATED or verl_table.without_counterpart(key), key)

    @unittest.skipUnless(trl, "transformers is not installed")
    def test_first_steps_of_the_rate(self):
        """While it rises our rate is a step ahead of transformers'; then both are equal."""
        import torch
        import transformers
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 3, 8)
        theirs = []
        for _ in range(8):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([PROGRAM, "--task", "add:digits=1", "--depth", "1", "--channels", "32",
                            "--heads", "2", "--warmup-steps", "0", "--steps", "8", "--lr", "1e-3",
                            "--schedule", "cosine", "--lr-warmup", "3", "--updates", "1",
                            "--prompts", "2", "--group", "2", "--eval-prompts", "1", "--out",
                            f"{folder}/run", "--device", "cpu"], check=True, capture_output=True)
            with open(f"{folder}/run/log.jsonl", encoding="utf-8") as file:
                ours = [x["lr"] for x in map(json.loads, file) if x["phase"] == "update"]
        for step in range(8):  # float64 on both sides
            self.assertAlmostEqual(ours[step], theirs[step + 1 if step < 3 else step], delta=1e-12)
        self.assertEqual(theirs[0], 0)


if __name__ == "__main__":
    unittest.main(warnings="ignore")
