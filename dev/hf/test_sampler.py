#!/usr/bin/env python3
"""Tests of --sampler-cmd with a sampler on transformers, sampler.py: RL steps on tiny models, whose
mismatch is measured, whose log mu are what transformers gives the tokens, and which go on after a stop.

    python3 dev/hf/test_sampler.py [TEST...]        (needs torch and transformers)

Runs ./train_gpt2_rl (or what TRAIN_GPT2_RL names).
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "train_gpt2_rl"))
SAMPLER = f"{sys.executable} {os.path.join(HERE, 'sampler.py')} --device cpu --threads 1 --dtype "
FLAGS = ("--task add:digits=1 --depth 2 --channels 32 --heads 2 --context 32 --max-new-tokens 12 "
         "--warmup-steps 60 --steps 2 --prompts 4 --group 8 --lr 1e-2 --lr-warmup 0 --eval-prompts 4 --device cpu "
         "--threads 1 --temperature 0.8 --checkpoint-every 1 --checkpoint-keep 0 --log-tokens").split()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def run(*flags):
    return subprocess.run([PROGRAM, *flags], capture_output=True, text=True, check=False)


class Test(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.TemporaryDirectory()

    def tearDown(self):
        self.home.cleanup()

    def at(self, *names):
        return os.path.join(self.home.name, *names)

    def lines(self, *names):
        with open(self.at(*names), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def log(self, name, phase):
        return [line for line in self.lines(name, "log.jsonl") if line["phase"] == phase]

    def train(self, name, command, *flags):
        done = run(*FLAGS, "--sampler-cmd", command, "--out", self.at(name), *flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def model(self, name, step):
        with open(self.at(name, "checkpoints", step, "model", "model.safetensors"), "rb") as file:
            return file.read()

    def check_log_mu(self, name, step, checkpoint, asked):
        """The step's log mu are those of transformers for whole sequences, without a cache, under the
        weights of a checkpoint. Sums in another order move them by some roundings of fp32."""
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self.at(name, "checkpoints", checkpoint, "model"), dtype=torch.float32).eval()
        samples = [x for x in self.lines(name, "samples.jsonl") if x["step"] == step]
        self.assertEqual(len(samples), 32)
        for i, sample in enumerate(samples):
            prompt, tokens = asked[i // 8]["prompt"], sample["token"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1:-1] / 0.8
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
            self.assertLess((expected - torch.tensor(sample["log_mu"])).abs().max().item(), 1e-5)

    def test_fp32(self):
        """Also: the weights are those of the step, or with --lag older ones, and a run that was left goes on
        with the same bits."""
        said = self.train("whole", f"tee -a {self.at('asked')} | {SAMPLER} fp32", "--family", "llama", "--lag", "1")
        self.assertIn("evaluations are by this program's sampler", said)
        asked = [x for x in self.lines("asked") if "prompt" in x]
        self.assertEqual([x["id"] for x in asked], list(range(8)))
        self.assertEqual(len({x["seed"] for x in asked}), 8)
        for step in range(2):  # with --lag 1 both are sampled with the weights before RL
            self.check_log_mu("whole", step, "warmup-000060", asked[4 * step:][:4])
        exact = self.log("whole", "numerics")[0]
        self.assertGreater(exact["logp_diff_mean"], 0)
        self.assertLess(exact["logp_diff_max"], 1e-5)
        self.assertNotEqual(self.model("whole", "step-000001"), self.model("whole", "step-000002"))
        shutil.copytree(self.at("whole"), self.at("left"))
        shutil.rmtree(self.at("left", "checkpoints", "step-000002"))
        done = run("--resume", "--out", self.at("left"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(self.model("left", "step-000002"), self.model("whole", "step-000002"))
        self.assertFalse(os.path.exists(self.at("left", "sampler")))

    def test_bf16(self):
        """Its mismatch is that of bf16, and a sampler that ends early costs only its step."""
        command = f"head -n 5 | {SAMPLER} bf16"  # one batch, then the end of its input
        done = run(*FLAGS, "--sampler-cmd", command, "--out", self.at("run"), "--family", "qwen2")
        self.assertEqual(done.returncode, 1)
        self.assertIn("ended (status 0), with 0 of 32 sequences answered; correct the program", done.stderr)
        done = run("--resume", "--out", self.at("run"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        steps = self.log("run", "numerics")
        self.assertEqual([x["step"] for x in steps], [0, 1])
        for x in steps:  # a rounding of bf16 is 2^-9, and there are dozens from the embedding to a logit
            self.assertGreater(x["logp_diff_mean"], 2e-4)
            self.assertLess(x["logp_diff_mean"], 0.1)
        for x in self.log("run", "rollout"):  # -log mu estimates the entropy
            self.assertEqual((x["tokens"] > 32, "occupancy" in x), (True, False))
            mu = [t for s in self.lines("run", "samples.jsonl") if s["step"] == x["step"] for t in s["log_mu"]]
            self.assertAlmostEqual(x["entropy"], -sum(mu) / len(mu), places=6)

    def test_filters(self):
        """Under top-k 3 and top-p 0.9 a token's log mu is over what they left."""
        self.train("run", f"{SAMPLER} fp32", "--top-k", "3", "--top-p", "0.9", "--trainer-support", "full",
                   "--resample", "1")
        over = [m - p for s in self.lines("run", "samples.jsonl") for m, p in zip(s["log_mu"], s["log_pi"])]
        self.assertGreater(min(over), -1e-5)
        self.assertGreater(max(over), 0.01)
        done = run("--sampler-cmd", "cat", "--prompt", "1+1=", "--max-new-tokens", "12", "--init",
                   self.at("run", "checkpoints", "step-000002", "model.bin"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("--sampler-cmd means nothing to --prompt", done.stderr)

    def test_refusals(self):
        cat = ("--sampler-cmd", "cat")
        for flags, words in (
                (cat, "needs --out"),
                (("--sampler-timeout", "9"), "--sampler-timeout means nothing without --sampler-cmd"),
                ((*cat, "--out", self.at("x"), "--top-p", "0.9"), "--trainer-support full"),
                ((*cat, "--out", self.at("x"), "--top-k", "3"), "--trainer-support full"),
                ((*cat, "--out", self.at("x"), "--objective", "dppo-topk-tv"), "tells no candidates"),
                (("--sampler-cmd", "/no/program", "--out", self.at("x")), "cannot be started (status 127)")):
            done = run(*flags)
            self.assertEqual(done.returncode, 1, flags)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("train_gpt2_rl:"), 1)


if __name__ == "__main__":
    unittest.main()
