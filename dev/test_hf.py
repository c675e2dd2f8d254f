"""Models of transformers' four classes, tied and not, in float32 and bfloat16, whole and in several
files: saved by transformers, read and written here (build/dev/convert), loaded by transformers again.
Every tensor comes back bit for bit, and config.json says the same.

    python3 dev/test_hf.py        (needs torch and transformers; make dev first)
"""
import os
import subprocess
import sys
import tempfile

import torch
import transformers

CONVERT = "build/dev/convert"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 500000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
PLAIN = {"rope_type": "default", "rope_theta": 1000000.0}
SHAPE = dict(vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=32)


def models(tied):
    yield transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=4, tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=None))
    for name, rope in (("Llama", LLAMA3), ("Qwen2", LINEAR), ("Qwen3", PLAIN)):
        config = getattr(transformers, name + "Config")(**SHAPE, rope_parameters=rope,
                                                        tie_word_embeddings=tied)
        yield getattr(transformers, name + "ForCausalLM")(config)


def convert(*args):
    done = subprocess.run([CONVERT, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"convert {' '.join(args)}: {done.stderr}")


def same(a, b):
    """What differs between two models, or nothing."""
    x, y = a.state_dict(), b.state_dict()
    if x.keys() != y.keys():
        return sorted(x.keys() ^ y.keys())
    return [k for k in x if x[k].dtype != y[k].dtype or not torch.equal(x[k], y[k])]


def same_logits(a, b):
    tokens = torch.arange(30)[None] % 50
    with torch.no_grad():
        return torch.equal(a.eval()(tokens).logits, b.eval()(tokens).logits)


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(1)
    passed = failed = 0
    for tied in (True, False):
        for model in models(tied):
            for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
                for size in ("5GB", "10KB"):
                    with tempfile.TemporaryDirectory() as folder:
                        saved, ours = os.path.join(folder, "saved"), os.path.join(folder, "ours")
                        for p in model.parameters():
                            p.data = torch.randn(p.shape) * 0.1
                        model.to(dtype).save_pretrained(saved, max_shard_size=size)
                        convert(saved, ours, name)
                        wanted, got = (transformers.AutoModelForCausalLM.from_pretrained(
                            f, dtype=dtype) for f in (saved, ours))
                        wrong = same(wanted, got) or (not same_logits(wanted, got) and "logits")
                        if wrong:
                            print(f"{type(model).__name__}, tied {tied}, {name}, {size}: {wrong}")
                        failed += bool(wrong)
                        passed += not wrong
                    model.to(torch.float32)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0 or passed == 0)


main()
