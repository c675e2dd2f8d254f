"""The peers of make gpu-check: GPT-2's training step in PyTorch, and transformers' generate.

dev/gpu/check.py starts this program. Its first line of output names what is installed; then each
line of input is a request and its answer is one line, both JSON:

    {"verb": "train", "model": "124M", "short": false, "sequences": 16, "length": 1024, "tokens": N}
    {"verb": "generate", "cache": "dynamic", "sequences": 64, "prompt": 32, "new": 128}

An answer has tokens_per_s and how it was done, or error. The recipe is the usual fast one: bf16
autocast over fp32 weights, torch.compile, flash attention, fused AdamW, a vocabulary padded to a
multiple of 128. Short sequences come as a full batch of (tokens / length, length), without padding:
the best case for the peer. generate runs on bf16 weights.

--toy: tiny models on the CPU, no times; torch.compile is left out.
"""
import contextlib
import gc
import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:
    torch = None
try:
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    transformers = None

TOY = "--toy" in sys.argv[1:]
CONTEXT, VOCAB = 1024, 50304  # 50257 tokens, padded
SHAPES = {"124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280),
          "1558M": (48, 25, 1600)}  # layers, heads, channels
WARM_UP, ROUNDS = 3, 5
WHOLE_MAX = 12  # layers; a deeper model is compiled by the block: as a whole it takes minutes


def device():
    return "cpu" if TOY else "cuda"


def shape_of(model):
    return (2, 2, 32) if TOY else SHAPES[model]


def define_model():
    """The classes need torch, which may be missing."""

    class Block(nn.Module):
        def __init__(self, heads, C):
            super().__init__()
            self.heads = heads
            self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = self.qkv(self.ln1(x)).split(C, dim=2)
            q, k, v = (y.view(B, T, self.heads, C // self.heads).transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attproj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    class GPT2(nn.Module):
        def __init__(self, layers, heads, C, context, vocab):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, C), nn.Embedding(context, C)
            self.blocks = nn.ModuleList(Block(heads, C) for _ in range(layers))
            self.lnf = nn.LayerNorm(C)
            for p in self.parameters():
                if p.dim() == 2:
                    nn.init.normal_(p, std=0.02)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.lnf(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1))

    return GPT2


def compiled(model):
    """(what to call, how it was compiled)"""
    if TOY:
        return model, "no"
    if len(model.blocks) <= WHOLE_MAX:
        return torch.compile(model), "whole"
    for block in model.blocks:
        block.compile()
    return model, "blocks"


def wait():
    if not TOY:
        torch.cuda.synchronize()


def measure(work):
    """Median seconds of a call after a warm-up; None at toy sizes, which are run once."""
    for _ in range(1 if TOY else WARM_UP):
        work()
    if TOY:
        return None
    seconds = []
    for _ in range(ROUNDS):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def flash():
    """Flash attention or an error: another kernel would be another peer."""
    return contextlib.nullcontext() if TOY else sdpa_kernel(SDPBackend.FLASH_ATTENTION)


def train(request):
    layers, heads, channels = shape_of(request["model"])
    T = request["length"]
    B = max(request["tokens"] // T, 1)
    vocab = 61 if TOY else VOCAB
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    with torch.device(device()):
        model = define_model()(layers, heads, channels, T if TOY else CONTEXT, vocab)
        tokens = torch.randint(vocab, (B, T + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01,
                                  fused=True)
    forward, how = compiled(model)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device(), dtype=torch.bfloat16), flash():
            loss = forward(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    seconds = measure(step)
    memory = None if TOY else torch.cuda.max_memory_allocated() / 1e9
    return {"batch": [B, T], "compile": how, "memory_gb": memory,
            "tokens_per_s": B * T / seconds if seconds else None}


def generate(request):
    if transformers is None:
        raise RuntimeError("transformers is not installed")
    transformers.logging.set_verbosity_error()
    layers, heads, channels = shape_of("124M")
    vocab, B, new = 61 if TOY else 50257, request["sequences"], request["new"]
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=vocab, n_positions=CONTEXT, n_embd=channels, n_layer=layers,
                        n_head=heads, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model = GPT2LMHeadModel(config).to(device(), torch.bfloat16).eval()
    prompts = torch.randint(vocab, (B, request["prompt"]), device=device())
    cache = {"cache_implementation": "static"} if request["cache"] == "static" else {}

    def sample():
        with torch.inference_mode():
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True,
                                 top_k=0, max_new_tokens=new, use_cache=True, **cache)
        assert out.shape == (B, request["prompt"] + new), out.shape

    seconds = measure(sample)
    return {"cache": request["cache"], "tokens_per_s": B * new / seconds if seconds else None}


def clean():
    """As if no request had been before."""
    gc.collect()
    if torch and not TOY:
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def answer(line):
    request = json.loads(line)
    if torch is None:
        return {"error": "PyTorch is not installed"}
    if not TOY and not torch.cuda.is_available():
        return {"error": "PyTorch finds no GPU"}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is no answer
            return {"train": train, "generate": generate}[request["verb"]](request)
    except Exception as error:  # a peer's trouble, whatever it is, is reported and no more
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                if str(error).strip() else type(error).__name__}
    finally:
        clean()


def main():
    installed = {name: module.__version__ if module else "not installed"
                 for name, module in (("PyTorch", torch), ("transformers", transformers))}
    print(json.dumps(installed), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
