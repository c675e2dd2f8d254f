#!/usr/bin/env python3
"""Tests of whole ways through: a tiny random model of each family, with a byte-level BPE and a chat
template, goes from Hugging Face into the trainer, takes RL steps, and comes back. Then transformers
gives its tokens the log-probabilities that this program gives them. And the shares of weights that an
update changed are counted again, by torch.

    python3 dev/hf/test_run.py [TEST...]        (needs torch, transformers and tokenizers)
"""
import json
import os
import subprocess
import tempfile
import unittest

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from test_hf import MODELS

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
PROGRAM = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "train_gpt2_rl"))
CONVERT, LOGPROBS = (os.path.abspath(f"build/dev/hf/{name}") for name in ("convert", "logprobs"))
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
          "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\n' }}{% endif %}")
SIZES = {"gpt2": dict(vocab_size=262, n_positions=96),
         "other": dict(vocab_size=262, max_position_embeddings=96)}


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    vocab.update({"he": 256, "an": 257, "er": 258})
    t = Tokenizer(models.BPE(vocab, [("h", "e"), ("a", "n"), ("e", "r")]))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, normalized=False, special=True)
                          for x in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|im_end|>",
                                                chat_template=CHATML)


def make_model(name):
    torch.manual_seed(len(name))
    model = MODELS[name]()
    config = model.config.to_dict()
    config.update(SIZES.get(name, SIZES["other"]), bos_token_id=None, eos_token_id=None)
    config.pop("layer_types", None)
    model = type(model)(type(model.config)(**config)).to(torch.float32)
    with torch.no_grad():
        for p in model.parameters():  # wide enough that responses differ
            p.add_(0.3 * torch.randn_like(p))
    return model


def call(*command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}, {done.stderr}")
    return done.stdout


def our_logprobs(model, tokens):
    line = call(LOGPROBS, model, "fp32", text=" ".join(map(str, tokens)) + "\n")
    return torch.tensor([float(x) for x in line.split()])


class Run(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.TemporaryDirectory()
        self.at = lambda name: os.path.join(self.home.name, name)
        with open(self.at("data"), "w", encoding="utf-8") as f:
            for i in range(40):  # the longer of two words
                f.write(json.dumps({"prompt": f"he or hand {i}", "answer": "hand"}) + "\n")

    def tearDown(self):
        self.home.cleanup()

    def train(self, model, *more):
        call(PROGRAM, "--init", model, "--data", self.at("data"), "--reward-cmd",
             "sed -u 's/.*response[^a-z]*\\([a-z]*\\).*/\\1/;s/[^ae]//g;s/./1/g;s/^$/0/'",
             "--max-new-tokens", "12", "--prompts", "4", "--group", "8", "--steps", "2", "--lr",
             "1e-2", "--lr-warmup", "0", "--eval-prompts", "2", "--eval-samples", "1", "--eval-k",
             "1", "--log-tokens", "--device", "cpu", "--out", self.at("run"), *more)
        with open(self.at("run/samples.jsonl"), encoding="utf-8") as f:
            samples = [json.loads(line) for line in f]
        with open(self.at("run/log.jsonl"), encoding="utf-8") as f:
            numerics = [x for x in map(json.loads, f) if x["phase"] == "numerics"]
        self.assertEqual([x["logp_diff_max"] for x in numerics], [0, 0])
        return samples

    def check_logprobs(self, model, ours, tokens):
        with torch.no_grad():
            if hasattr(model.config, "num_experts"):  # their fast products have no float64
                model.set_experts_implementation("eager")
            logits = model.double().eval()(torch.tensor([tokens])).logits[0, :-1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        difference = (our_logprobs(ours, tokens) - expected).abs().max().item()
        self.assertLess(difference, 1e-4)  # norms and rotary positions are float32 in transformers

    def check_family(self, name):
        start, source = make_model(name), self.at("start")
        start.save_pretrained(source)
        tokenizer().save_pretrained(source)
        samples = self.train(source)
        checkpoint = kept = self.at("run/checkpoints/step-000002/model")
        if name == "gpt2":
            checkpoint, kept = self.at("back"), self.at("run/tokenizer")
            call(CONVERT, self.at("run/checkpoints/step-000002/model.bin"), checkpoint)
        after = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
        t = transformers.AutoTokenizer.from_pretrained(kept)
        text = t.apply_chat_template([{"role": "user", "content": samples[0]["prompt"]}],
                                     tokenize=False, add_generation_prompt=True)
        prompt = t(text, add_special_tokens=False).input_ids
        tokens = prompt + samples[0]["token"]
        self.check_logprobs(after, checkpoint, tokens)
        self.check_logprobs(start, source, tokens)
        # What the log holds of the first sample is of the model before the steps.
        before = our_logprobs(source, tokens)[len(prompt) - 1:]
        logged = torch.tensor(samples[0]["log_mu"])
        self.assertLess((before - logged).abs().max().item(), 1e-6)
        now = our_logprobs(checkpoint, tokens)[len(prompt) - 1:]
        self.assertGreater((now - before).abs().max().item(), 1e-3, "nothing was learned")

    def test_gpt2(self):
        self.check_family("gpt2")

    def test_llama(self):
        self.check_family("llama")

    def test_qwen2(self):
        self.check_family("qwen2")

    def test_qwen3(self):
        self.check_family("qwen3")

    def test_qwen3_moe(self):
        self.check_family("qwen3_moe")


def is_product(name):
    return name.endswith("_proj.weight")


def rounded(w, name, kind):
    """A weight's values in a format, by torch's casts; of int8 the integers, without their scales."""
    if kind == "fp32":
        return w
    if kind == "int8" and is_product(name):
        return torch.round(w / (w.abs().amax(1, keepdim=True) / 127))
    if kind == "fp8" and is_product(name):
        scale = 2.0**torch.ceil(torch.log2(w.abs().amax(1, keepdim=True).double() / 448)).float()
        return (w / scale).to(torch.float8_e4m3fn).float() * scale
    return w.to({"int8": torch.float32, "fp8": torch.bfloat16, "bf16": torch.bfloat16,
                 "fp16": torch.float16}[kind]).float()


class Changed(unittest.TestCase):
    """The shares of weights that an update changed are those between two checkpoints."""

    def check(self, flags, train, sampler):
        with tempfile.TemporaryDirectory() as folder:
            call(PROGRAM, *("--task add:digits=1 --depth 1 --channels 32 --heads 2 --context 32 --family llama "
                            "--max-new-tokens 12 --warmup-steps 60 --steps 3 --prompts 8 --group 8 --updates 1 --lr "
                            "3e-4 --objective sft --eval-prompts 4 --device cpu --checkpoint-every 1 "
                            f"--checkpoint-keep 0 --log-changes {flags} --out {folder}/run").split())
            with open(f"{folder}/run/log.jsonl", encoding="utf-8") as f:
                lines = [x for x in map(json.loads, f) if x["phase"] == "update"]
            for line in lines[1:]:
                before, after = (load_file(f"{folder}/run/checkpoints/step-{line['step'] + i:06d}/model/"
                                           "model.safetensors") for i in (0, 1))
                count = sum(w.numel() for w in before.values())
                for key, kind in (("changed", "fp32"), ("changed_train", train), ("changed_rollout", sampler)):
                    changed = sum((rounded(before[n], n, kind) != rounded(after[n], n, kind)).sum().item()
                                  for n in before)
                    self.assertEqual(line[key], changed / count, key)
                self.assertLess(line["changed_rollout"], line["changed_train"])
                self.assertLess(line["changed_train"], line["changed"])

    def test_bf16_fp8(self):
        self.check("--train-dtype bf16 --rollout-dtype fp8_e4m3", "bf16", "fp8")

    def test_fp16_int8(self):
        self.check("--train-dtype fp16 --rollout-block int8", "fp16", "int8")


if __name__ == "__main__":
    unittest.main()
