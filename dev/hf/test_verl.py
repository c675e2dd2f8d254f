#!/usr/bin/env python3
"""Compares losses, advantages, the weights of --correct and the metrics of the mismatch with verl's.
Runs with a coarse sampler keep log mu and log pi of every token (--log-tokens); verl's own functions
make losses, weights and metrics of them, and the log must have the same.

    python3 dev/hf/test_verl.py [TEST...]      (needs torch and transformers)

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

import torch
import transformers

transformers.utils.logging.disable_progress_bar()
PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "train_gpt2_rl"))
WHEELS = os.environ.get("WHEELS", "build/wheels")
ALPHABET = "\n0123456789+-=:*/(),;<> "  # the tokens of a task
AGGREGATES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm", "seq-mean-token-sum",
              "token-sum"]
# 1 bit of mantissa in the sampler: ratios from 0.1 to 10.
FLAGS = ("--task add:digits=1 --depth 1 --channels 32 --heads 2 --context 32 --max-new-tokens 12 "
         "--warmup-steps 200 --steps 2 --prompts 8 --group 8 --eval-prompts 4 --device cpu "
         "--threads 1 --rollout-dtype e5m1 --log-tokens").split()


def verl():
    """verl's modules for corrections and for losses, whose imports are met by what they use of them:
    a batch is a dict of padded tensors here, and a metric its value."""
    def module(name, **names):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)
    for name in ("verl", "verl.utils", "verl.trainer", "verl.trainer.config", "verl.workers",
                 "verl.workers.config"):
        module(name)
    module("verl.protocol", DataProto=object)
    module("verl.trainer.config.algorithm", RolloutCorrectionConfig=object)
    module("verl.workers.config.actor", PolicyLossConfig=object)
    module("omegaconf", DictConfig=object)
    sys.modules["verl.trainer.config"].AlgoConfig = type("AlgoConfig", (), {})
    sys.modules["verl.workers.config"].ActorConfig = object
    vars(sys.modules["verl.utils"]).update(as_torch_index=None, group_mean_std=None)
    module("verl.utils.import_utils", deprecated=lambda _: lambda f: f)
    module("verl.utils.device", get_device_name=lambda: "cpu", get_torch_device=lambda: torch.cpu)
    module("tensordict", TensorDict=object)
    sys.modules["verl.workers.config"].CriticConfig = object
    for name in ("verl.trainer.ppo", "verl.utils.tensordict_utils", "verl.utils.dataset",
                 "verl.workers.utils"):
        module(name)
    module("verl.utils.dataset.dataset_utils", DatasetPadMode=object)
    module("verl.utils.metric", AggregationType=types.SimpleNamespace(SUM="sum", MEAN="mean"),
           Metric=Metric)
    module("verl.workers.utils.padding", no_padding_2_padding=lambda x, _: x)
    with zipfile.ZipFile(glob.glob(f"{WHEELS}/verl-*.whl")[0]) as wheel:
        for name, path in (("verl.utils.torch_functional", "verl/utils/torch_functional.py"),
                           ("helper", "verl/trainer/ppo/rollout_corr_helper.py"),
                           ("verl.trainer.ppo.core_algos", "verl/trainer/ppo/core_algos.py"),
                           ("losses", "verl/workers/utils/losses.py")):
            module(name)
            exec(compile(wheel.read(path), path, "exec"), vars(sys.modules[name]))
            if name == "verl.utils.torch_functional":
                sys.modules["verl.utils"].torch_functional = sys.modules[name]
    return (sys.modules[name] for name in ("helper", "verl.trainer.ppo.core_algos", "losses"))


class Metric:
    from_dict = staticmethod(lambda values, **_: values)

    def __init__(self, value, **_):
        self.value = value


class Data(dict):
    """A batch of padded tensors."""
    def select(self, *keys):
        return Data({k: self[k] for k in keys})

    def to_padded_tensor(self):
        return self


class ActorConfig:
    """What the losses read of verl's."""
    clip_ratio = 0.2
    clip_ratio_low = clip_ratio_high = None
    clip_ratio_c = 3.0
    global_batch_info = {}
    loss_scale_factor = None
    policy_loss = {}
    use_kl_loss = False

    def __init__(self, **given):
        vars(self).update(given)

    def get(self, name, default):
        return getattr(self, name, default)


def logs(step, key):
    """What --log-tokens keeps of a step, as it was written, and the mask; (sequences, tokens)."""
    longest = max(len(s["token"]) for s in step)
    value, mask = torch.zeros(2, len(step), longest, dtype=torch.float64)
    for i, s in enumerate(step):
        mask[i, :len(s["token"])] = 1
        value[i, :len(s["token"])] = torch.tensor(s[key], dtype=torch.float32).double()
    return value, mask


def steps(flags, phase, models=None):
    """For each step its line of this phase in the log, with what the line of the rollout has beside,
    and its samples; with the model of each checkpoint, by its step, into `models`."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([PROGRAM, *FLAGS, *flags.split(), "--out", f"{folder}/run"], check=True,
                       capture_output=True)
        for at in glob.glob(f"{folder}/run/checkpoints/step-*/model") if models is not None else ():
            models[int(at.split("-")[-1].split("/")[0])] = (
                transformers.AutoModelForCausalLM.from_pretrained(at, dtype=torch.float64))
        with open(f"{folder}/run/log.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        with open(f"{folder}/run/samples.jsonl", encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
    rollouts = {x["step"]: x for x in lines if x["phase"] == "rollout"}
    return [({**rollouts[x["step"]], **x}, [s for s in samples if s["step"] == x["step"]])
            for x in lines if x["phase"] == phase]


def run(flags):
    """For each step its line in the log of corrections (or, without --correct, of numerics), log pi
    - log mu (sequences, tokens), and the mask."""
    found = []
    for line, step in steps(flags, "correct" if "--correct" in flags else "numerics"):
        log_pi, mask = logs(step, "log_pi")
        found.append((line, log_pi - logs(step, "log_mu")[0], mask))
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

    def losses(self, flags, name, mode="token-mean", **config):
        """The loss of our update, with a coarse sampler as the anchor, is verl's; and another one
        than that of plain importance sampling."""
        theirs = ALGOS.get_policy_loss_fn(name)
        for line, samples in steps(f"--updates 1 {flags}", "update"):
            (mu, mask), (pi, _) = logs(samples, "log_mu"), logs(samples, "log_pi")
            advantage = torch.tensor([s["advantage"] for s in samples], dtype=torch.float64)
            advantage = advantage[:, None] * mask
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

    def test_entropy(self):
        """The loss with --entropy-coef is that of verl's actor: entropies by transformers, of the
        weights before the second step."""
        for aggregate in ("token-mean", "seq-mean-token-mean"):
            models = {}
            found = steps("--objective grpo --ratio-cap 3 --updates 1 --entropy-coef 0.3 "
                          "--family llama --temperature 0.8 --checkpoint-every 1 --checkpoint-keep 0 --aggregate "
                          + aggregate, "update", models)
            (line, samples), model = found[1], models[1]
            (mu, mask), (pi, _) = logs(samples, "log_mu"), logs(samples, "log_pi")
            entropy = torch.zeros_like(mask)
            for row, s in zip(entropy, samples):
                prompt = [ALPHABET.index(c) for c in s["prompt"]]
                logits = model(torch.tensor([prompt + s["token"]])).logits[0].detach() / 0.8
                of = HELPER.verl_F.entropy_from_logits(logits[len(prompt) - 1:-1])
                row[:len(of)] = of
            advantage = torch.tensor([s["advantage"] for s in samples], dtype=torch.float64)
            data = Data(response_mask=mask, old_log_probs=mu, advantages=advantage[:, None] * mask,
                        dp_size=1, batch_num_tokens=None, global_batch_size=None)
            config = ActorConfig(clip_ratio_high=0.28, loss_agg_mode=aggregate, entropy_coeff=0.3,
                                 global_batch_info={})
            loss, metrics = LOSSES.ppo_loss(config, {"log_probs": pi, "entropy": entropy}, data)
            # The entropies are of fp32 arithmetic here, of float64 there.
            self.assertAlmostEqual(line["loss"], loss.item(), delta=1e-6)
            self.assertGreater(0.3 * metrics["actor/entropy_loss"].value, 0.01)

    def batches(self, flags, updates=1):
        """For each update of each step its line in the log, rewards, the number of each one's
        group, its advantages, log pi, mask, and which responses ended by themselves."""
        for line, samples in steps(f"--objective reinforce --updates {updates} {flags}", "update"):
            logp, mask = logs(samples, "log_pi")
            of = {key: torch.tensor([s[key] for s in samples], dtype=torch.float64)
                  for key in ("reward", "advantage")}
            ended = torch.tensor([float(s["token"][-1] == 0) for s in samples])
            yield (line, of["reward"], [s["index"] // 8 for s in samples], of["advantage"], logp,
                   mask, ended)

    def loss(self, aggregate, flags="", cut=False):
        for line, _, _, advantage, logp, mask, ended in self.batches(
                f"--aggregate {aggregate} {flags}"):
            if cut:
                mask = mask * ended[:, None]
                self.assertTrue(0 < ended.sum() < len(ended), "some responses were cut off, not all")
            loss = ALGOS.agg_loss(-advantage[:, None] * logp, mask, aggregate,
                                  loss_scale_factor=12)  # --max-new-tokens
            # The advantages and log pi are the same floats; verl adds 1e-8 to a length.
            self.assertAlmostEqual(line["loss"], loss.item(), delta=1e-7 * abs(loss.item()))
            self.assertGreater(abs(loss.item()), 1e-5)

    def test_aggregates(self):
        for aggregate in AGGREGATES:
            with self.subTest(aggregate):
                self.loss(aggregate)

    def test_rollout_token_mean(self):
        """verl's token-mean, given the number of tokens of the whole rollout; here of its first half."""
        for line, _, _, advantage, logp, mask, _ in self.batches(
                "--aggregate rollout-token-mean", updates=2):
            if line["index"] == 0:
                half = slice(len(mask) // 2)
                loss = ALGOS.agg_loss(-advantage[half, None] * logp[half], mask[half], "token-mean",
                                      batch_num_tokens=mask.sum() / 2)
                self.assertAlmostEqual(line["loss"], loss.item(), delta=1e-7 * abs(loss.item()))
                self.assertNotEqual(mask[half].sum(), mask.sum() / 2)

    def test_advantages(self):
        """Those of equal rewards are 0 here; verl's are not quite (test_objective.c)."""
        estimators = {
            "mean": lambda *a: ALGOS.compute_grpo_outcome_advantage(*a, norm_adv_by_std_in_grpo=False),
            "std": ALGOS.compute_grpo_outcome_advantage, "rloo": ALGOS.compute_rloo_outcome_advantage,
            "reinforce++": lambda reward, mask, _: ALGOS.compute_reinforce_plus_plus_outcome_advantage(
                reward, mask, config=types.SimpleNamespace(gamma=1.0)),
            "reinforce++-baseline": ALGOS.compute_reinforce_plus_plus_baseline_outcome_advantage}
        for kind, estimate in estimators.items():
            with self.subTest(kind):
                for _, reward, index, ours, _, mask, _ in self.batches(
                        f"--advantage {kind}"):
                    last = mask.cumsum(-1) == mask.sum(-1, keepdim=True)  # where the reward comes
                    theirs, _ = estimate(reward[:, None] * (last * mask), mask, index)
                    # Ours are rounded to fp32.
                    self.assertLess((theirs[:, 0] - ours).abs().max().item(), 1e-6)
                    self.assertGreater(ours.abs().max().item(), 0.5)

    def test_overlong_filter(self):
        """What is cut off leaves the mask, and with it all denominators."""
        for aggregate in AGGREGATES:
            with self.subTest(aggregate):
                self.loss(aggregate, "--overlong-filter --overlong-buffer 12 --temperature 2", cut=True)

    def test_overlong_buffer(self):
        """verl's reward of DAPO, and TRL's where it is installed."""
        punished = 0
        for line, reward, index, advantage, _, mask, _ in self.batches("--overlong-buffer 10"):
            length = mask.sum(-1)
            penalty = torch.minimum(-(length - (12 - 10)) / 10 * 1.0, torch.zeros(()))
            try:
                from trl.rewards import get_soft_overlong_punishment
                ids = [[1] * int(n) for n in length]
                given = get_soft_overlong_punishment(12, 10)(ids)
                self.assertLess((torch.tensor(given) - penalty).abs().max().item(), 1e-6)
            except ImportError:
                pass
            self.assertAlmostEqual(line["overlong_penalty"], penalty.mean().item(), delta=1e-9)
            theirs, _ = ALGOS.compute_grpo_outcome_advantage(
                (reward + penalty)[:, None] * (mask.cumsum(-1) == 1), mask, index,
                norm_adv_by_std_in_grpo=False)
            self.assertLess((theirs[:, 0] - advantage).abs().max().item(), 1e-6)
            punished += (penalty < 0).sum()
        self.assertGreater(punished, 10)


if __name__ == "__main__":
    if not glob.glob(f"{WHEELS}/verl-*.whl"):
        sys.exit(f"{WHEELS}/verl-*.whl is missing; the head of this file has the command")
    HELPER, ALGOS, LOSSES = verl()
    unittest.main()
