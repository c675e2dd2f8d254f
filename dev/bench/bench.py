"""The benchmark's peers: GPT-2's training step in PyTorch, sampling by transformers' generate, and
decoding by that and by llama.cpp (llama-cpp-python, which needs gguf here).

bench.c starts this program and asks for one run at a time, in turn with its own, so that both
meet the same machine. The first line of output names what is installed; then each line of input is
a request and its answer is one line, the seconds of one run:

    train THREADS LAYERS     one step of GPT-2 (124M with 12 layers), 4 sequences of 64 tokens
    train_llama THREADS LAYERS    the same of transformers' Llama in SmolLM2-135M's shape
    sample THREADS BATCH     BATCH prompts of 10 tokens, 24 new tokens each, default model
    PROGRAM-MODEL-FORMAT THREADS SLOTS    16 new tokens for each of SLOTS sequences of 2 tokens,
                             PROGRAM llama.cpp or generate, MODEL gpt2 (124M) or llama (in the shape
                             of SmolLM2-135M), FORMAT fp32 or bf16; random weights

A request that cannot be served is answered with "nan". All runs on the CPU, in fp32 but for the last.
"""
import contextlib
import ctypes
import functools
import os
import sys
import tempfile
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    torch = None
try:
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
except ImportError:
    transformers = None
try:
    import gguf
    import llama_cpp
except ImportError:
    llama_cpp = None

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


def train(threads, layers, of=training):
    torch.set_num_threads(threads)
    model, optimizer, tokens = of(layers)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - start


@functools.cache
def training_llama(layers):
    """The same for transformers' model."""
    torch.manual_seed(1)
    config = real_config("llama")
    config.num_hidden_layers = layers

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = LlamaForCausalLM(config).train()

        def forward(self, tokens, targets):
            logits = self.model(tokens, use_cache=False).logits
            return F.cross_entropy(logits.view(-1, config.vocab_size), targets.reshape(-1))

    model = Loss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return model, optimizer, torch.randint(config.vocab_size, (SEQUENCES, TOKENS + 1))


def train_llama(threads, layers):
    return train(threads, layers, training_llama)


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


STEPS = 16  # of decoding, beside the step that reads the prompts' ends


def real_config(name):
    if name == "gpt2":
        return GPT2Config(bos_token_id=None, eos_token_id=None, pad_token_id=0)  # 124M
    return LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536,
                       num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                       max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=1e5,
                       tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
                       pad_token_id=0)


@functools.lru_cache(maxsize=1)
def real_model(name, form):
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    model = (GPT2LMHeadModel if name == "gpt2" else LlamaForCausalLM)(real_config(name)).eval()
    return model.bfloat16() if form == "bf16" else model


def generate(name, form, threads, slots):
    """The seconds of STEPS decoding steps: of 1 + STEPS new tokens less those of one."""
    torch.set_num_threads(threads)
    model = real_model(name, form)
    prompts = torch.randint(model.config.vocab_size, (slots, 1))

    def seconds(new):
        start = time.perf_counter()
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True,
                             top_k=0, max_new_tokens=new, use_cache=True)
        assert out.shape == (slots, 1 + new), out.shape
        return time.perf_counter() - start

    with torch.inference_mode():
        return seconds(1 + STEPS) - seconds(1)


def write_gguf(path, name, form):
    """A model of random weights for llama.cpp. Matrices are in the format, norms and biases fp32."""
    c = real_config(name)
    w = gguf.GGUFWriter(path, name)
    layers, C, heads = c.num_hidden_layers, c.hidden_size, c.num_attention_heads
    random = torch.Generator().manual_seed(1)

    def add(key, *shape):
        x = torch.randn(shape, generator=random) * 0.02
        if form == "fp32" or len(shape) < 2:
            w.add_tensor(key, x.numpy())
        else:
            bits = x.bfloat16().view(torch.int16).numpy().view("uint8")
            w.add_tensor(key, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)

    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(C)
    w.add_block_count(layers)
    w.add_head_count(heads)
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("no_vocab")
    add("token_embd.weight", c.vocab_size, C)
    add("output_norm.weight", C)
    if name == "gpt2":
        w.add_feed_forward_length(4 * C)
        w.add_layer_norm_eps(1e-5)
        add("position_embd.weight", c.n_positions, C)
        add("output_norm.bias", C)
        shapes = {"attn_norm": (C,), "attn_qkv": (3 * C, C), "attn_output": (C, C),
                  "ffn_norm": (C,), "ffn_up": (4 * C, C), "ffn_down": (C, 4 * C)}
    else:
        F, KV = c.intermediate_size, c.num_key_value_heads * 64
        w.add_feed_forward_length(F)
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_dimension_count(64)
        w.add_rope_freq_base(1e5)
        shapes = {"attn_norm": (C,), "attn_q": (C, C), "attn_k": (KV, C), "attn_v": (KV, C),
                  "attn_output": (C, C), "ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C),
                  "ffn_down": (C, F)}
    for i in range(layers):
        for key, shape in shapes.items():
            add(f"blk.{i}.{key}.weight", *shape)
            if name == "gpt2":
                add(f"blk.{i}.{key}.bias", shape[0])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@functools.lru_cache(maxsize=1)
def llama_cpp_model(name, form):
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        write_gguf(path, name, form)
        how = llama_cpp.llama_model_default_params()
        how.use_mmap = False  # the file goes
        model = llama_cpp.llama_model_load_from_file(path.encode(), how)
    assert model, "llama.cpp refuses the model"
    return model, silent


def decode_llama_cpp(name, form, threads, slots):
    model, _ = llama_cpp_model(name, form)
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = 64 * slots, 64, 64, slots
    how.n_threads = how.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, how)
    assert context, "llama.cpp gives no context"
    batch = llama_cpp.llama_batch_init(slots, 0, 1)
    start = 0
    for step in range(1 + STEPS):
        if step == 1:
            start = time.perf_counter()
        batch.n_tokens = slots
        for s in range(slots):
            batch.token[s], batch.pos[s], batch.logits[s] = 7 * s + step, step, 1
            batch.n_seq_id[s], batch.seq_id[s][0] = 1, s
        assert llama_cpp.llama_decode(context, batch) == 0
        assert llama_cpp.llama_get_logits_ith(context, slots - 1)
    seconds = time.perf_counter() - start
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return seconds


def decode(program, name, form, threads, slots):
    peer = decode_llama_cpp if program == "llama.cpp" else generate
    needs = (torch, transformers) + ((llama_cpp,) if program == "llama.cpp" else ())
    return peer(name, form, threads, slots) if all(needs) else float("nan")


def answer(request):
    verb, *numbers = request.split()
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is no answer
        if "-" in verb:
            return decode(*verb.split("-"), *map(int, numbers))
        missing = torch is None or (verb != "train" and transformers is None)
        verbs = {"train": train, "train_llama": train_llama, "sample": sample}
        return float("nan") if missing else verbs[verb](*map(int, numbers))


def main():
    installed = [f"{name} {module.__version__}" if module else f"{name} not installed"
                 for name, module in (("PyTorch", torch), ("transformers", transformers),
                                      ("llama-cpp-python", llama_cpp))]
    print(", ".join(installed), flush=True)
    for request in sys.stdin:
        print(answer(request), flush=True)


if __name__ == "__main__":
    main()
