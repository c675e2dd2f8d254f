#!/usr/bin/env python3
"""Tests of build/dev/hf/convert against transformers: tiny random models of five classes, saved by
save_pretrained, are read and written here, and loaded again: every tensor has the same bits.

    python3 dev/hf/test_hf.py [TEST...]        (needs torch, transformers and numpy)
"""
import json
import os
import subprocess
import tempfile
import unittest

import numpy
import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
CONVERT = os.path.abspath("build/dev/hf/convert")
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8, "rope_theta": 500.0}
ROPES = {"plain": {"rope_type": "default", "rope_theta": 12345.678},
         "linear": {"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0}, "llama3": LLAMA3}


def small(rope="plain", **more):
    return dict(vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=4, rms_norm_eps=3e-6,
                max_position_embeddings=16, rope_parameters=dict(ROPES[rope]), **more)


def gpt2(rope="plain", n_inner=None, **more):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=13, n_positions=17, n_embd=12, n_layer=2, n_head=3, n_inner=n_inner,
        bos_token_id=0, eos_token_id=0, **more))


def llama(rope="plain", **more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small(rope, **more)))


def qwen2(rope="plain", **more):
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**small(rope, **more)))


def qwen3(rope="plain", **more):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**small(rope, **more)))


def qwen3_moe(rope="plain", **more):
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(
        **small(rope, **more), moe_intermediate_size=4, num_experts=5, num_experts_per_tok=2,
        norm_topk_prob=True))


MODELS = {"gpt2": gpt2, "llama": llama, "qwen2": qwen2, "qwen3": qwen3, "qwen3_moe": qwen3_moe}
KEYS = {"gpt2": ["n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon",
                 "activation_function"],
        "llama": ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings",
                  "hidden_act"],
        "qwen3_moe": ["hidden_size", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                      "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"]}


def make(name, dtype=torch.float32, **more):
    model = MODELS[name](**more)
    for p in model.parameters():  # gains and biases too
        p.data = torch.randn(p.shape)
    return model.to(dtype)


def read_config(folder):
    with open(folder + "/config.json") as f:
        return json.load(f)


def write_config(folder, config):
    with open(folder + "/config.json", "w") as f:
        json.dump(config, f)


def convert(*arguments):
    done = subprocess.run([CONVERT, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done


def load(folder, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype,
                                                             output_loading_info=True)


class Folders(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.source, self.ours = folder.name + "/source", folder.name + "/ours"
        self.file = folder.name + "/model.bin"

    def check_equal(self, model, folder, dtype, name):
        again, info = load(folder, dtype)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            self.assertFalse(info[problem], problem)
        self.assertIs(type(again), type(model))
        a, b = model.state_dict(), again.state_dict()
        self.assertEqual(a.keys(), b.keys())
        for key in a:
            self.assertTrue(torch.equal(a[key].to(dtype), b[key]), key)
        for key in KEYS.get(name, KEYS["llama"]) + ["tie_word_embeddings"]:
            self.assertEqual(getattr(model.config, key), getattr(again.config, key), key)
        if name != "gpt2":
            self.assertEqual({k: v for k, v in model.config.rope_parameters.items()},
                             {k: v for k, v in again.config.rope_parameters.items() if k != "type"})
            if dtype == torch.float32:
                self.assertTrue(torch.equal(model.model.rotary_emb.inv_freq,
                                            again.model.rotary_emb.inv_freq))

    def test_round_trips(self):
        for name in MODELS:
            for tied in (True, False):
                for dtype, word in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
                    for size in ("1GB", "1KB"):
                        with self.subTest(name=name, tied=tied, word=word, size=size):
                            model = make(name, dtype, tie_word_embeddings=tied)
                            source, ours = (f"{p}.{name}.{tied}.{word}.{size}"
                                            for p in (self.source, self.ours))
                            model.save_pretrained(source, max_shard_size=size)
                            convert(source, ours, word)
                            self.check_equal(model, ours, dtype, name)

    def test_rope(self):
        for name in ("llama", "qwen2", "qwen3", "qwen3_moe"):
            for rope in ROPES:
                with self.subTest(name=name, rope=rope):
                    model = make(name, rope=rope)
                    source, ours = f"{self.source}.{name}.{rope}", f"{self.ours}.{name}.{rope}"
                    model.save_pretrained(source)
                    convert(source, ours)
                    self.check_equal(model, ours, torch.float32, name)

    def test_old_spellings(self):
        model = make("llama", rope="linear")
        model.save_pretrained(self.source)
        config = read_config(self.source)
        rope = config.pop("rope_parameters")
        config["rope_theta"], config["torch_dtype"] = rope["rope_theta"], config.pop("dtype")
        config["rope_scaling"] = {"type": "linear", "factor": rope["factor"]}
        write_config(self.source, config)
        convert(self.source, self.ours)
        self.check_equal(model, self.ours, torch.float32, "llama")

    def test_other_widths(self):
        model = make("gpt2", n_inner=20)
        model.save_pretrained(self.source)
        convert(self.source, self.ours)
        self.check_equal(model, self.ours, torch.float32, "gpt2")
        self.assertEqual(load(self.ours, torch.float32)[0].config.n_inner, 20)
        with self.assertRaisesRegex(RuntimeError, "holds only tied GPT-2"):
            convert(self.source, self.file)

    def test_odd_bfloat16(self):
        """The data is no whole number of words, so that it does not begin at a multiple of 4."""
        shape = {**small(tie_word_embeddings=False), "hidden_size": 9, "num_attention_heads": 3,
                 "num_key_value_heads": 3}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).bfloat16()
        self.assertEqual(sum(p.numel() for p in model.parameters()) % 2, 1)
        model.save_pretrained(self.source)
        convert(self.source, self.ours, "bf16")
        self.assertEqual(os.path.getsize(self.ours + "/model.safetensors") % 4, 0)
        self.check_equal(model, self.ours, torch.bfloat16, "llama")

    def test_base_model_and_half(self):
        """Files without the prefix, as the hub's gpt2, in float16."""
        model = make("gpt2", torch.float16)
        model.transformer.save_pretrained(self.source)
        convert(self.source, self.ours)
        self.check_equal(model, self.ours, torch.float32, "gpt2")

    def test_file(self):
        model = make("gpt2")
        model.save_pretrained(self.source)
        convert(self.source, self.file)
        words = numpy.fromfile(self.file, dtype=numpy.float32)
        wte = model.transformer.wte.weight.detach().numpy().ravel()
        self.assertTrue((words[256:256 + wte.size] == wte).all())
        convert(self.file, self.ours)
        self.check_equal(model, self.ours, torch.float32, "gpt2")

    def test_other_head(self):
        model = make("llama", tie_word_embeddings=False)
        model.save_pretrained(self.source)
        config = read_config(self.source)
        config["tie_word_embeddings"] = True
        write_config(self.source, config)
        self.assertIn("another head", convert(self.source, self.ours).stderr)
        self.check_equal(model, self.ours, torch.float32, "llama")

    def test_log_probabilities(self):
        for name in MODELS:
            model = make(name).eval()
            source, ours = f"{self.source}.{name}", f"{self.ours}.{name}"
            model.save_pretrained(source)
            convert(source, ours)
            tokens = torch.tensor([[1, 5, 3, 2]])
            again = load(ours, torch.float32)[0].eval()
            self.assertTrue(torch.equal(model(tokens).logits, again(tokens).logits))


if __name__ == "__main__":
    unittest.main()
