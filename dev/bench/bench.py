"""The benchmark's peers: GPT-2's training step in PyTorch, and sampling by transformers' generate.

bench.c starts this program and asks for one run at a time, in turn with its own, so that both
meet the same machine. The first line of output names what is installed; then each line of input is
a request and its answer is one line, the seconds of one run:

    train THREADS LAYERS     one step of GPT-2 (124M with 12 layers), 4 sequences of 64 tokens
    sample THREADS BATCH     BATCH prompts of 10 tokens, 24 new tokens each, default model

A request that cannot be served is answered with "nan". Everything is fp32 on the CPU.
"""
import contextlib
import functools
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    torch = None
try:
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    transformers = None

CONTEXT, VOCAB, HEADS, CHANNELS = 1024, 50257, 12, 768  # GPT-2 124M
SEQUENCES, TOKENS = 4, 64


def define_model():
    """The classes need torch, which may be missing."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
            self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
            self.attproj = nn.Linear(CHANNELS, CHANNELS)
            self.fc = nn.Linear(CHANNELS, 4 * CHANNELS)
            self.fcproj = nn.Linear(4 * CHANNELS, CHANNELS)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = self.qkv(self.ln1(x)).view(B, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
            attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attproj(attention.transpose(1, 2).reshape(B, T, C))
            return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    class GPT2(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCAB, CHANNELS), nn.Embedding(CONTEXT, CHANNELS)
            self.blocks = nn.Sequential(*[Block() for _ in range(layers)])
            self.lnf = nn.LayerNorm(CHANNELS)
            for p in self.parameters():
                if p.dim() == 2:
                    nn.init.normal_(p, std=0.02)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
            logits = F.linear(self.lnf(self.blocks(x)), self.wte.weight)
            return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1))

    return GPT2


@functools.cache
def training(layers):
    """A model, its optimizer and a batch."""
    torch.manual_seed(1)
    model = define_model()(layers)
    try:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    except (RuntimeError, TypeError):  # an older PyTorch: no fused form for the CPU
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return model, optimizer, torch.randint(VOCAB, (SEQUENCES, TOKENS + 1))


def train(threads, layers):
    torch.set_num_threads(threads)
    model, optimizer, tokens = training(layers)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - start


@functools.cache
def sampler():
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    shape = GPT2Config(vocab_size=24, n_positions=64, n_embd=64, n_layer=3, n_head=4,
                       bos_token_id=None, eos_token_id=None, pad_token_id=0)
    return GPT2LMHeadModel(shape).eval()


def sample(threads, batch):
    torch.set_num_threads(threads)
    model, prompts = sampler(), torch.randint(24, (batch, 10))
    with torch.inference_mode():
        start = time.perf_counter()
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True,
                             top_k=0, max_new_tokens=24, use_cache=True)
        seconds = time.perf_counter() - start
    assert out.shape == (batch, 34), out.shape
    return seconds


def answer(request):
    verb, *numbers = request.split()
    missing = torch is None or (verb == "sample" and transformers is None)
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is no answer
        return float("nan") if missing else {"train": train, "sample": sample}[verb](
            *map(int, numbers))


def main():
    installed = [f"{name} {module.__version__}" if module else f"{name} not installed"
                 for name, module in (("PyTorch", torch), ("transformers", transformers))]
    print(", ".join(installed), flush=True)
    for request in sys.stdin:
        print(answer(request), flush=True)


if __name__ == "__main__":
    main()
