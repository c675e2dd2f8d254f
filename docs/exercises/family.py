#!/usr/bin/env python3
"""The test of the exercise that adds a family: StarCoder2, held against transformers' own.

    python3 docs/exercises/family.py        (needs torch and transformers)

Small random models, saved by transformers, tied and untied: log-probabilities are those of transformers in
float64; what this program writes transformers loads again, with the same bits; a run of RL has no mismatch.
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
# Sums of fp32, and rotary angles that transformers has in float32 too: 20 times what was seen.
NEAR = 2e-5


def call(*command, text=None, fails=False):
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if (done.returncode != 0) != fails:
        sys.exit(f"{' '.join(command)}: {(done.stdout + done.stderr)[-600:].strip()}")
    return done.stderr if fails else done.stdout


def make(tied):
    model = transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=32, norm_epsilon=3e-5, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0}, tie_word_embeddings=tied))
    for p in model.parameters():  # gains and biases too
        p.data = 0.5 * torch.randn(p.shape)
    return model


def check(model, home):
    source, ours = f"{home}/source", f"{home}/ours"
    model.save_pretrained(source)
    tokens = torch.randint(61, (32,))
    found = call("build/dev/hf/logprobs", source, "fp32", text=" ".join(map(str, tokens.tolist())) + "\n")
    call("build/dev/hf/convert", source, ours)
    again = transformers.AutoModelForCausalLM.from_pretrained(ours)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), f"{name} is not what it was"
    with torch.no_grad():
        expected = torch.log_softmax(model.double()(tokens[None]).logits[0, :-1], -1)
    expected = expected.gather(1, tokens[1:, None])[:, 0]
    gap = (torch.tensor([float(x) for x in found.split()]) - expected).abs().max().item()
    assert gap < NEAR, f"log-probabilities differ by {gap:.2g}"
    print(f"log-probabilities within {gap:.1e} of transformers'")


def refuses_windows(home):
    with open(f"{home}/source/config.json", encoding="utf-8") as f:
        config = json.load(f)
    with open(f"{home}/source/config.json", "w", encoding="utf-8") as f:
        json.dump({**config, "sliding_window": 16}, f)
    said = call("build/dev/hf/convert", f"{home}/source", f"{home}/windows", fails=True)
    assert "sliding_window" in said, said


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
    torch.manual_seed(1)
    for tied in (True, False):
        with tempfile.TemporaryDirectory() as home:
            check(make(tied), home)
            refuses_windows(home)
    with tempfile.TemporaryDirectory() as home:
        call("./train_gpt2_rl", *"--family starcoder2 --kv-heads 2 --warmup-steps 20 --steps 2 --eval-prompts 4 "
             "--train-dtype bf16 --rollout-dtype bf16 --device cpu --out".split(), f"{home}/run")
        with open(f"{home}/run/log.jsonl", encoding="utf-8") as f:
            log = [json.loads(line) for line in f]
    gaps = [e["logp_diff_max"] for e in log if e["phase"] == "numerics"]
    assert gaps == [0, 0], f"the mismatch of equal formats is {gaps}"


if __name__ == "__main__":
    main()
