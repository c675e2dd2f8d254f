#!/usr/bin/env python3
"""A sampler on transformers for --sampler-cmd (docs/sampler.md), on the CPU or a GPU.

    ./train_gpt2_rl --sampler-cmd 'python3 dev/hf/sampler.py --dtype bf16' --out run ...

log mu is log softmax of the logits as transformers' generate() draws from them: divided by the
temperature and, with top-k and top-p, over the tokens that these left.
"""
import argparse
import json
import sys

import torch
import transformers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def generation(asked):
    return transformers.GenerationConfig(
        do_sample=True, num_return_sequences=asked["samples"], max_new_tokens=asked["max_new_tokens"],
        temperature=float(asked["temperature"]), top_p=float(asked["top_p"]), top_k=asked["top_k"],
        eos_token_id=asked["ends"], pad_token_id=asked["ends"][0], return_dict_in_generate=True,
        output_scores=True)


def complete(model, asked):
    """[(tokens, log mu)] of the samples of one prompt."""
    torch.manual_seed(asked["seed"])
    prompt = torch.tensor([asked["prompt"]], device=model.device)
    drawn = model.generate(prompt, attention_mask=torch.ones_like(prompt),
                           generation_config=generation(asked))
    tokens = drawn.sequences[:, prompt.shape[1]:]
    log_mu = torch.log_softmax(torch.stack(drawn.scores, 1).float(), -1).gather(2, tokens[:, :, None])
    for ids, numbers in zip(tokens.tolist(), log_mu[:, :, 0].tolist()):
        length = next((i + 1 for i, x in enumerate(ids) if x in asked["ends"]), len(ids))
        yield ids[:length], numbers[:length]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of weights and arithmetic")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "weights" in asked:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                asked["weights"], dtype=DTYPES[given.dtype], local_files_only=True)
            model.to(given.device).eval()
            continue
        with torch.inference_mode():
            for tokens, log_mu in complete(model, asked):
                print(json.dumps({"id": asked["id"], "tokens": tokens, "log_mu": log_mu}), flush=True)


if __name__ == "__main__":
    main()
