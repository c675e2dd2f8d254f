#!/usr/bin/env python3
"""Compares losses, advantages, the weights of --correct and the metrics of the mismatch with verl's.
Runs with a coarse sampler keep log mu and log pi of every token (--log-tokens); verl's own functions
make losses, weights and metrics of them, and the log must have the same.

    python3 dev/hf/test_verl.py [TEST...]      (needs torch)

verl's file is read from its wheel, which pip downloads without what it needs:
    pip download --no-deps -d build/wheels verl==0.9.1
"""
import glob
import json
import os
import subprocess
import sys
import tempfile
import types
import unittest
import zipfile

import numpy
import torch

PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "train_gpt2_rl"))
WHEELS = os.environ.get("WHEELS", "build/wheels")
# 1 bit of mantissa in the sampler: ratios from 0.1 to 10.
FLAGS = ("--task add:digits=1 --depth 1 --channels 32 --heads 2 --context 32 --max-new-tokens 12 "
         "--warmup-steps 80 --steps 2 --prompts 8 --group 8 --eval-prompts 4 --device cpu "
         "--threads 1 --rollout-dtype e5m1 --log-tokens").split()


def verl():
    """verl's module, whose own imports are met by what it uses of them."""
    def module(name, **names):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)
    for name in ("verl", "verl.utils", "verl.trainer", "verl.trainer.config", "verl.workers",
                 "verl.workers.config"):
        module(name)
    module("verl.utils.torch_functional",
           masked_sum=lambda x, mask, axis=None: (x * mask).sum(axis),
           masked_mean=lambda x, mask, axis=None: (x * mask).sum(axis) / mask.sum(axis))
    module("verl.protocol", DataProto=object)
    module("verl.trainer.config.algorithm", RolloutCorrectionConfig=object)
    module("verl.workers.config.actor", PolicyLossConfig=object)
    with zipfile.ZipFile(glob.glob(f"{WHEELS}/verl-*.whl")[0]) as wheel:
        source = wheel.read("verl/trainer/ppo/rollout_corr_helper.py")
    helper = types.ModuleType("rollout_corr_helper")
    exec(compile(source, "rollout_corr_helper.py", "exec"), vars(helper))
    return helper


def core():
    """verl's losses and advantages, likewise."""
    def of_groups(scores, index, eps=1e-6, device=None):
        raise NotImplementedError
    utils = sys.modules["verl.utils"]
    utils.as_torch_index = utils.group_mean_std = of_groups
    sys.modules["verl.trainer.config"].AlgoConfig = type("AlgoConfig", (), {})
    sys.modules["verl.workers.config"].ActorConfig = ActorConfig
    sys.modules["verl.utils.torch_functional"].clip_by_value = \
        lambda x, low, high: torch.max(torch.min(x, high), low)
    for name, names in (("verl.utils.import_utils", {"deprecated": lambda *a: lambda f: f}),
                        ("omegaconf", {"DictConfig": type("DictConfig", (), {})})):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)
    sys.modules["verl.utils"].torch_functional = sys.modules["verl.utils.torch_functional"]
    with zipfile.ZipFile(glob.glob(f"{WHEELS}/verl-*.whl")[0]) as wheel:
        source = wheel.read("verl/trainer/ppo/core_algos.py")
    algos = types.ModuleType("core_algos")
    exec(compile(source, "core_algos.py", "exec"), vars(algos))
    return algos


class ActorConfig:
    """What the losses read of verl's."""
    clip_ratio = 0.2
    clip_ratio_low = clip_ratio_high = None
    clip_ratio_c = 3.0
    global_batch_info = {}

    def __init__(self, **given):
        vars(self).update(given)

    def get(self, name, default):
        return getattr(self, name, default)


def rollout(flags):
    """The loss of the only update of each step, and (sequences, tokens) of its samples: log mu,
    log pi, advantages, mask; (sequences) rewards; the group of each."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([PROGRAM, *FLAGS, "--updates", "1", *flags.split(), "--out",
                        f"{folder}/run"], check=True, capture_output=True)
        with open(f"{folder}/run/log.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        with open(f"{folder}/run/samples.jsonl", encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
    for line in (x for x in lines if x["phase"] == "update"):
        step = [s for s in samples if s["step"] == line["step"]]
        mu, pi, advantage, mask = torch.zeros(4, len(step), 12, dtype=torch.float64)
        for i, s in enumerate(step):
            n = len(s["token"])
            mask[i, :n], advantage[i, :n] = 1, s["advantage"]
            mu[i, :n], pi[i, :n] = (torch.tensor(s[key], dtype=torch.float32).double()
                                    for key in ("log_mu", "log_pi"))
        rewards = torch.tensor([s["reward"] for s in step], dtype=torch.float64)
        yield line, mu, pi, advantage, mask, rewards, [s["index"] // 8 for s in step]


def run(flags):
    """For each step its line in the log of corrections (or, without --correct, of numerics), log pi
    - log mu (sequences, tokens), and the mask."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([PROGRAM, *FLAGS, *flags.split(), "--out", f"{folder}/run"], check=True,
                       capture_output=True)
        with open(f"{folder}/run/log.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        with open(f"{folder}/run/samples.jsonl", encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
    found, phase = [], "correct" if "--correct" in flags else "numerics"
    for line in (x for x in lines if x["phase"] == phase):
        step = [s for s in samples if s["step"] == line["step"]]
        longest = max(len(s["token"]) for s in step)
        ratio, mask = torch.zeros(2, len(step), longest, dtype=torch.float64)
        for i, s in enumerate(step):
            mask[i, :len(s["token"])] = 1
            log_pi, log_mu = (torch.tensor(s[key], dtype=torch.float32).double()  # as it was written
                              for key in ("log_pi", "log_mu"))
            ratio[i, :len(s["token"])] = log_pi - log_mu
        found.append((line, ratio, mask))
    return found


class Test(unittest.TestCase):
    def check(self, line, mask, weight):
        self.assertEqual(weight.shape, mask.shape)
        kept = weight[mask > 0]
        # Our weights are float64 sums of the same numbers; verl's exponentials are torch's.
        self.assertAlmostEqual(line["weight_mean"], kept.mean().item(), delta=1e-9)
        self.assertAlmostEqual(line["zeroed"], (kept == 0).double().mean().item(), delta=1e-12)

    def weights(self, flags, level, threshold):
        outside = 0
        for line, ratio, mask in run(flags):
            weight, _ = HELPER.compute_rollout_correction_weights(ratio, mask, level, threshold)
            self.check(line, mask, weight)
            if "_" not in threshold:
                bound = weight == float(threshold)
                self.assertAlmostEqual(line["truncated"], bound[mask > 0].double().mean().item(),
                                       delta=1e-12)
            outside += line["truncated"] + line["zeroed"]
        self.assertGreater(outside, 0.01, "the bounds change nothing")

    def test_tis(self):
        self.weights("--correct tis --correct-high 1.2", "token", "1.2")

    def test_icepop(self):
        self.weights("--correct icepop", "token", "0.5_5.0")

    def test_mis(self):
        self.weights("--correct mis --correct-low 0.7 --correct-high 1.25", "token", "0.7_1.25")

    def test_seq_tis(self):
        self.weights("--correct seq-tis", "sequence", "2.0")

    def test_seq_mis(self):
        self.weights("--correct seq-mis --correct-low 0.6 --correct-high 1.5", "sequence", "0.6_1.5")

    def test_ess(self):
        """verl's is of the bounded weights: the same where no bound is reached."""
        for level, flags in (("token", "tis"), ("sequence", "seq-tis")):
            for line, ratio, mask in run(f"--correct {flags} --correct-high inf"):
                _, metrics = HELPER.compute_rollout_correction_weights(ratio, mask, level, "1e30")
                # verl adds 1e-8 to a mean.
                self.assertAlmostEqual(line["ess"], metrics["rollout_is_eff_sample_size"],
                                       delta=1e-7)

    def test_geo_mis(self):
        """verl's bounds are those of mu / pi_old: the same ones if they are reciprocal."""
        masked = 0
        for line, ratio, mask in run("--correct geo-mis --correct-low 0.8 --correct-high 1.25"):
            kept, _ = HELPER.compute_rollout_rejection_mask(ratio, mask, "seq_mean_k1", "0.8_1.25")
            self.check(line, mask, kept.double())
            masked += line["zeroed"]
        self.assertGreater(masked, 0.01, "the bounds change nothing")

    def losses(self, flags, name, mode="token-mean", **config):
        """The loss of our update, with a coarse sampler as the anchor, is verl's; and another one
        than that of plain importance sampling."""
        theirs = CORE.get_policy_loss_fn(name)
        for line, mu, pi, advantage, mask, _, _ in rollout(flags):
            loss, _ = theirs(old_log_prob=mu, log_prob=pi, advantages=advantage,
                             response_mask=mask, loss_agg_mode=mode, config=ActorConfig(**config))
            # Both in float64, of the same float32 numbers; advantages have 9 digits.
            self.assertAlmostEqual(line["loss"], loss.item(), delta=1e-7 * (1 + abs(loss.item())))
            plain = -(advantage * (pi - mu).exp() * mask).sum() / mask.sum()
            self.assertGreater(abs(line["loss"] - plain.item()), 1e-4, "nothing is cut")

    def test_ppo_clip(self):
        for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
            self.losses(f"--objective grpo --clip-low 0.1 --clip-high 0.3 --ratio-cap 1.5 "
                        f"--aggregate {mode}", "vanilla", mode, clip_ratio_low=0.1,
                        clip_ratio_high=0.3, clip_ratio_c=1.5)

    def test_cispo(self):
        self.losses("--objective cispo --clip-low 0.2 --clip-high 0.28", "cispo",
                    clip_ratio_low=0.2, clip_ratio_high=0.28)

    def test_gspo(self):
        self.losses("--objective gspo --aggregate seq-mean-token-mean --clip-low 0.01 --clip-high "
                    "0.02", "gspo", "seq-mean-token-mean", clip_ratio_low=0.01,
                    clip_ratio_high=0.02)

    def test_dppo(self):
        for kind in ("tv", "kl"):
            self.losses(f"--objective dppo-{kind} --delta 0.05 --ratio-cap 2", f"dppo_{kind}",
                        clip_ratio_low=0.05, clip_ratio_high=0.05, clip_ratio_c=2)

    def advantages(self, kind, name):
        theirs = getattr(CORE, f"compute_{name}_outcome_advantage")
        for _, _, _, ours, mask, rewards, group in rollout(f"--advantage {kind}"):
            scores = torch.zeros_like(mask)
            scores[:, 0] = rewards
            advantage, _ = theirs(scores, mask, numpy.array(group))
            # Ours are float32, and at most sqrt(7) in a group of 8: half a unit is 1.2e-7.
            self.assertLess((advantage - ours).abs().max().item(), 2e-7)
            self.assertGreater(advantage.abs().max().item(), 0.5)

    def test_advantages(self):
        """verl's std is + 1e-6, too."""
        self.advantages("std", "grpo")
        self.advantages("rloo", "rloo")

    def test_metrics(self):
        """verl's names, and NeMo-RL's: docs/metrics.md."""
        pairs = {"kl": "kl", "kl_k3": "k3_kl", "ppl_ratio": "ppl_ratio", "chi2": "chi2_token"}
        for line, ratio, mask in run(""):
            metrics = HELPER.compute_offpolicy_metrics(ratio, torch.zeros_like(ratio), mask)
            for ours, theirs in pairs.items():
                self.assertAlmostEqual(line[ours], metrics[theirs], delta=1e-9 * (1 + line[ours]),
                                       msg=ours)
                self.assertGreater(abs(line[ours]), 1e-3, ours)
            nemo = torch.exp(ratio.abs())[mask > 0].mean().item()
            self.assertAlmostEqual(line["token_mult_prob_error"], nemo, delta=1e-9 * nemo)
            self.assertGreater(nemo, 1.01)


if __name__ == "__main__":
    if not glob.glob(f"{WHEELS}/verl-*.whl"):
        sys.exit(f"{WHEELS}/verl-*.whl is missing; the head of this file has the command")
    HELPER = verl()
    CORE = core()
    unittest.main()
