"""Writes tests/fixtures/families.bin: for each family, tied and not, a tiny random model of
transformers' own class in float64: its log-probabilities and all its gradients, with our fused weights
put together from its parts. tests/test_families.c reads it. The layout is that of ops.py. A third model
of each family rounds keys and values to e4m3 before attention, and gradients pass unchanged. To the loss of
qwen3_moe_balanced 5 times the load-balancing loss is added.

    python3 dev/reference/families.py        (needs torch and transformers)
"""
import contextlib
import struct
import sys

import torch
import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

draw = torch.Generator().manual_seed(1)
LENGTHS = [9, 1, 6]
V, C, L, T = 13, 8, 2, 16
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8, "rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}


def plain(theta):
    return {"rope_type": "default", "rope_theta": theta}


def llama_shape(rope, tied):
    return dict(vocab_size=V, hidden_size=C, intermediate_size=12, num_hidden_layers=L,
                num_attention_heads=4, num_key_value_heads=2, head_dim=4, rms_norm_eps=1e-5,
                max_position_embeddings=T, rope_parameters=rope, tie_word_embeddings=tied,
                attn_implementation="sdpa", use_cache=False)


def gpt2(tied):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=12, n_layer=L, n_head=3, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, attn_implementation="sdpa", tie_word_embeddings=tied, use_cache=False))


def llama(rope, tied):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_shape(rope, tied)))


def qwen2(rope, tied):
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**llama_shape(rope, tied)))


def qwen3(rope, tied):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**llama_shape(rope, tied)))


def qwen3_moe(rope, tied):
    """Weights of a token's experts are divided by their sum in the untied model."""
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(
        **llama_shape(rope, tied), moe_intermediate_size=6, num_experts=5, num_experts_per_tok=2,
        norm_topk_prob=not tied, experts_implementation="eager"))


CASES = {"gpt2_tied": lambda: gpt2(True), "gpt2_untied": lambda: gpt2(False),
         "llama_tied": lambda: llama(plain(100.0), True),
         "llama_untied": lambda: llama(LLAMA3, False),
         "qwen2_tied": lambda: qwen2(LINEAR, True), "qwen2_untied": lambda: qwen2(plain(50.0), False),
         "qwen3_tied": lambda: qwen3(plain(100.0), True),
         "qwen3_untied": lambda: qwen3(LLAMA3, False),
         "qwen3_moe_tied": lambda: qwen3_moe(plain(100.0), True),
         "qwen3_moe_untied": lambda: qwen3_moe(LLAMA3, False),
         "qwen3_moe_balanced": lambda: qwen3_moe(plain(100.0), True)}
CASES |= {name.replace("_tied", "_rounded"): make for name, make in CASES.items()
          if name.endswith("_tied")}
GPT2_PARTS = {
    "wte": ["wte.weight"], "wpe": ["wpe.weight"], "ln1w": ["h.%d.ln_1.weight"],
    "ln1b": ["h.%d.ln_1.bias"], "qkvw": ["h.%d.attn.c_attn.weight"],
    "qkvb": ["h.%d.attn.c_attn.bias"], "attprojw": ["h.%d.attn.c_proj.weight"],
    "attprojb": ["h.%d.attn.c_proj.bias"], "ln2w": ["h.%d.ln_2.weight"],
    "ln2b": ["h.%d.ln_2.bias"], "fcw": ["h.%d.mlp.c_fc.weight"], "fcb": ["h.%d.mlp.c_fc.bias"],
    "fcprojw": ["h.%d.mlp.c_proj.weight"], "fcprojb": ["h.%d.mlp.c_proj.bias"],
    "lnfw": ["ln_f.weight"], "lnfb": ["ln_f.bias"]}
LLAMA_PARTS = {
    "embed": ["embed_tokens.weight"], "norm1": ["layers.%d.input_layernorm.weight"],
    "qkv": [f"layers.%d.self_attn.{x}_proj.weight" for x in "qkv"],
    "qkv_bias": [f"layers.%d.self_attn.{x}_proj.bias" for x in "qkv"],
    "qk_gain": [f"layers.%d.self_attn.{x}_norm.weight" for x in "qk"],
    "out": ["layers.%d.self_attn.o_proj.weight"],
    "norm2": ["layers.%d.post_attention_layernorm.weight"],
    "gate_up": [f"layers.%d.mlp.{x}_proj.weight" for x in ("gate", "up")],
    "down": ["layers.%d.mlp.down_proj.weight"], "last_norm": ["norm.weight"]}
# {our name: its parts in the model} of a family; of the others LLAMA_PARTS.
PARTS = {"gpt2": GPT2_PARTS,
         "qwen3_moe": {**LLAMA_PARTS, "router": ["layers.%d.mlp.gate.weight"],
                       "gate_up": ["layers.%d.mlp.experts.gate_up_proj"],
                       "down": ["layers.%d.mlp.experts.down_proj"]}}


@contextlib.contextmanager
def no_narrowing():
    """transformers computes norms and routers in float32 whatever the model's dtype; here float64
    stays."""
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def stay(x, *a, **k):
        if x.dtype == torch.float64 and torch.float32 in (*a, k.get("dtype")):
            return x
        return to(x, *a, **k)

    def stay_softmax(x, *a, dtype=None, **k):
        return softmax(x, *a, dtype=None if x.dtype == torch.float64 else dtype, **k)

    torch.Tensor.to, torch.nn.functional.softmax = stay, stay_softmax
    try:
        yield
    finally:
        torch.Tensor.to, torch.nn.functional.softmax = to, softmax


def rounded(x):
    """To e4m3, straight through: the gradient is that of x."""
    return x + (x.detach().float().to(torch.float8_e4m3fn).to(x.dtype) - x.detach())


def round_keys_and_values(model):
    """Where a cache would take them: GPT-2's come out of c_attn, the others' keys are turned first."""
    for name, module in model.named_modules():
        if name.endswith("c_attn"):
            module.register_forward_hook(lambda _, __, out: torch.cat(
                [out[..., :out.shape[-1] // 3], rounded(out[..., out.shape[-1] // 3:])], -1))
        if name.endswith("v_proj"):
            module.register_forward_hook(lambda _, __, out: rounded(out))
            attention = model.get_submodule(name.rpartition(".")[0])
            globals_of = vars(sys.modules[type(attention).__module__])
            turn = globals_of["apply_rotary_pos_emb"]

            def turn_and_round(q, k, *a, turn=turn, **more):
                q, k = turn(q, k, *a, **more)
                return q, rounded(k)

            if turn.__name__ != "turn_and_round":
                globals_of["apply_rotary_pos_emb"] = turn_and_round


def fused(parts, values, transposed):
    """Our weight from the file's: layers one after another, parts one below the other."""
    layers = range(L) if "%d" in parts[0] else [None]
    rows = []
    for l in layers:
        for part in parts:
            key = part % l if l is not None else part
            rows.append((values[key].T if key in transposed else values[key]).flatten())
    return torch.cat(rows)


def run(model, a, balance=0.0):
    """Log-probabilities of the targets and gradients of the loss, sequence by sequence; `balance`
    times transformers' load-balancing loss is added to it."""
    logp, gates, first = [], [], 0
    for n in LENGTHS:
        rows = (a["row"] >= first) & (a["row"] < first + n)
        more = dict(output_router_logits=True) if balance else {}
        out = model(a["token"][None, first:first + n], **more)
        logits = out.logits[0]
        gates.append(out.router_logits if balance else ())
        every = (logits[a["row"][rows] - first] * a["inverse_temperature"].to(logits)).log_softmax(-1)
        logp.append(every[torch.arange(len(every)), a["target"][rows]])
        first += n
    logp = torch.cat(logp)
    names, parameters = zip(*model.named_parameters())
    loss = (a["coef"].to(logp) * -logp).sum()
    if balance:
        loss += balance * load_balancing_loss_func(tuple(map(torch.cat, zip(*gates))),
                                                   model.config.num_experts,
                                                   model.config.num_experts_per_tok)
    return logp, dict(zip(names, torch.autograd.grad(loss, parameters)))


def write_array(f, name, values, error=0.0):
    values = values.detach().contiguous().flatten()
    kind = {torch.int64: 0, torch.float32: 1, torch.float64: 2}[values.dtype]
    if kind == 0:
        values = values.to(torch.int32)
    f.write(struct.pack("<40siid", name.encode(), kind, len(values), error))
    f.write(values.numpy().tobytes())


def inputs():
    n = sum(LENGTHS)
    row = torch.tensor([0, 1, 2, 5, 7, 8, 9, 10, 12, 13, 15])
    return {"seq_start": torch.tensor([0] + LENGTHS).cumsum(0),
            "token": torch.randint(V, (n,), generator=draw),
            "position": torch.cat([torch.arange(k) for k in LENGTHS]), "row": row,
            "target": torch.randint(V, (len(row),), generator=draw),
            "coef": torch.randn(len(row), generator=draw),
            "inverse_temperature": torch.tensor([1.25])}


def base(name):
    return name.removeprefix("transformer.").removeprefix("model.")


def measure(case, a):
    """Of a case: log-probabilities in float64 and their error in float32, and {our name: (weights, gradient
    in float64, gradient in float32)}."""
    single = CASES[case]().float().eval()
    for name, p in single.named_parameters():
        gain = "norm" in name or "ln_" in name and name.endswith("weight")
        scale = 1.0 if "wte" in name or "embed" in name else 0.2
        if "mlp.gate." in name:  # apart, so that a small step changes no token's experts
            scale = 3.0
        p.data = torch.randn(p.shape, generator=draw) * scale + (1.0 if gain else 0.0)
    double = CASES[case]().eval()
    double.load_state_dict(single.state_dict())
    double = double.double()
    if case.endswith("_rounded"):  # the last cases: what is replaced stays so
        round_keys_and_values(single)
        round_keys_and_values(double)
    balance = 5.0 if case == "qwen3_moe_balanced" else 0.0
    with no_narrowing():
        logp, gradients = run(double, a, balance)
    rough, rough_gradients = run(single, a, balance)
    weights = {base(n): p for n, p in single.named_parameters()}
    exact = {base(n): g for n, g in gradients.items()}
    near = {base(n): g for n, g in rough_gradients.items()}
    conv1d = {base(n) + ".weight" for n, m in single.named_modules()
              if isinstance(m, transformers.pytorch_utils.Conv1D)}
    parts = PARTS.get(case.rpartition("_")[0], LLAMA_PARTS)
    head = {"lm_head" if parts is GPT2_PARTS else "head": ["lm_head.weight"]}
    parts = {**parts, **(head if case.endswith("_untied") else {})}
    return logp, rms(rough.double() - logp), {
        name: [fused(part, values, conv1d) for values in (weights, exact, near)]
        for name, part in parts.items() if part[0].replace("%d", "0") in weights}


def rms(x):
    return x.square().mean().sqrt().item()


def main():
    a = inputs()
    found = {case: measure(case, a) for case in CASES}
    # The errors of one model come from a few roundings, and on another machine from others: twice as large, or
    # half. So the largest of all models counts as that of ordinary float32; of gradients the largest share.
    error = max(error for _, error, _ in found.values())
    share = max(rms(n.double() - g) / rms(g) for _, _, written in found.values() for _, g, n in written.values())
    with open("tests/fixtures/families.bin", "wb") as f:
        for key, values in a.items():
            write_array(f, f"batch.{key}", values)
        for case, (logp, _, written) in found.items():
            write_array(f, f"{case}.logp", logp, error)
            for name, (w, g, n) in written.items():
                write_array(f, f"{case}.{name}", w)
                write_array(f, f"{case}.d{name}", g, max(rms(n.double() - g), share * rms(g)))


main()
