"""Writes tests/fixtures/ops.bin: inputs and results of every op from PyTorch in float64, with the
gradients from its autograd. The tests of the CPU device read it (tests/cpu_test.h).

Every function below computes one op from a dict of tensors, in the dtype that they have. It runs
twice: in float64 for the expected values, and in float32, with products as plain loops, to see how
large the errors of ordinary float32 arithmetic are. The root of their mean square goes into the
file, for a tolerance.

    python3 dev/reference/ops.py

The file is a sequence of arrays, little-endian:

    offset  size  meaning
         0    40  name, "op.array", zero-padded
        40     4  type: 0 int32, 1 float32, 2 float64
        44     4  count of elements
        48     8  float64: root mean square error of float32 arithmetic (results), 0 (inputs)
        56     -  elements
"""
import functools
import math
import struct

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(1)


def normal(*shape, scale=1.0):
    return torch.randn(shape, generator=draw) * scale


def integers(below, *shape):
    return torch.randint(below, shape, generator=draw)


def gradients(loss, named):
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()))))


def embed(a):
    wte, wpe = a["wte"].requires_grad_(), a["wpe"].requires_grad_()
    out = wte[a["token"]] + wpe[a["position"]]
    return {"out": out, **gradients((out * a["dout"]).sum(), {"dwte": wte, "dwpe": wpe})}


def norm(a):
    """The residual sum, then layernorm; dresidual comes in as what later layers gave."""
    residual = a["residual"].requires_grad_()
    gain, bias = a["gain"].requires_grad_(), a["bias"].requires_grad_()
    total = residual + a["add"]
    out = F.layer_norm(total, total.shape[-1:], gain, bias)
    loss = (out * a["dout"]).sum() + (total * a["dlater"]).sum()
    named = {"dresidual": residual, "dgain": gain, "dbias": bias}
    return {"total": total, "out": out, **gradients(loss, named)}


def rms(a):
    """The residual sum, then RMS norm; dresidual comes in as what later layers gave."""
    residual, gain = a["residual"].requires_grad_(), a["gain"].requires_grad_()
    total = residual + a["add"]
    out = F.rms_norm(total, total.shape[-1:], gain, 1e-5)
    loss = (out * a["dout"]).sum() + (total * a["dlater"]).sum()
    return {"total": total, "out": out, **gradients(loss, {"dresidual": residual, "dgain": gain})}


def heads_of(qkv, heads):
    """Queries, keys and values, each (rows, heads, dim); `heads`: of queries, of keys."""
    query, kv = heads.tolist()
    dim = qkv.shape[1] // (query + 2 * kv)
    return [part.unflatten(1, (-1, dim))
            for part in qkv.split([query * dim, kv * dim, kv * dim], 1)]


def qk_norm(a):
    qkv, gain = a["qkv"].requires_grad_(), a["gain"].requires_grad_()
    q, k, v = heads_of(qkv, a["heads"])
    q, k = (F.rms_norm(x, x.shape[-1:], g, 1e-5) for x, g in ((q, gain[0]), (k, gain[1])))
    out = torch.cat([x.flatten(1) for x in (q, k, v)], 1)
    return {"out": out, **gradients((out * a["dout"]).sum(), {"dqkv": qkv, "dgain": gain})}


def rope(a):
    """A head's two halves are the real and the imaginary parts of numbers that are turned."""
    qkv = a["qkv"].requires_grad_()
    turn = torch.view_as_complex(a["turn"])[a["position"]][:, None]
    *turned, v = heads_of(qkv, a["heads"])
    turned = [torch.complex(*x.chunk(2, -1)) * turn for x in turned]
    out = torch.cat([torch.cat([x.real, x.imag], -1).flatten(1) for x in turned] +
                    [v.flatten(1)], 1)
    return {"out": out, **gradients((out * a["dout"]).sum(), {"dqkv": qkv})}


def swiglu(a):
    x = a["pre"].requires_grad_()
    gate, up = x.chunk(2, 1)
    out = F.silu(gate) * up
    return {"out": out, **gradients((out * a["dout"]).sum(), {"dpre": x})}


def product(x, w):
    """x w^T, one term after another."""
    return functools.reduce(torch.add, (x[:, k:k + 1] * w[:, k] for k in range(x.shape[1])))


def linear(a):
    x, w, bias = (a[name].requires_grad_() for name in ("in", "w", "bias"))
    out = product(x, w) + bias
    return {"out": out, **gradients((out * a["dout"]).sum(), {"din": x, "dw": w, "dbias": bias})}


def gelu(a):
    x = a["pre"].requires_grad_()
    out = F.gelu(x, approximate="tanh")
    return {"out": out, **gradients((out * a["dout"]).sum(), {"dpre": x})}


def attend(qkv, lengths, heads, prefix):
    """Causal attention of each sequence of a packed batch, behind the rows of its prefix (-1: none).
    `heads`: of queries, of keys."""
    parts, sequences = [], qkv.split(lengths)
    for rows, before in zip(sequences, prefix):
        shared = 0 if before < 0 else len(sequences[before])
        rows = rows if before < 0 else torch.cat([sequences[before], rows])
        q, k, v = (part.transpose(0, 1) for part in heads_of(rows, heads))
        k, v = (part.repeat_interleave(len(q) // len(k), 0) for part in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        future = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
        p = scores.masked_fill(future, -math.inf).softmax(-1)
        parts.append((p @ v).transpose(0, 1).reshape(len(rows), -1)[shared:])
    return torch.cat(parts)


def attention(a):
    qkv = a["qkv"].requires_grad_()
    starts = a["seq_start"].tolist()
    lengths = [end - start for start, end in zip(starts, starts[1:])]
    out = attend(qkv, lengths, a["heads"], a["prefix"].tolist())
    return {"out": out, **gradients((out * a["dout"]).sum(), {"dqkv": qkv})}


def log_softmax(logits, keep):
    return logits.masked_fill(~keep, -math.inf).log_softmax(-1)


def head(a):
    x, w = a["x"].requires_grad_(), a["w"].requires_grad_()
    words = a["keep"].view(len(x), -1, 1)
    keep = (words >> torch.arange(32) & 1).flatten(1)[:, :len(w)] == 1
    every = log_softmax(product(x, w) * a["inverse_temperature"], keep)
    entropy = -(every.exp() * every.masked_fill(~keep, 0)).sum(-1)
    logp = every[torch.arange(len(x)), a["target"]]
    loss = (a["coef"] * -logp - a["bonus"] * entropy).sum()
    return {"logp": logp, "entropy": entropy, **gradients(loss, {"dx": x, "dw": w})}


def adamw(a):
    w = torch.nn.Parameter(a["w"])
    lr, beta1, beta2, eps, decay = a["hyper"].tolist()
    optimizer = torch.optim.AdamW([w], lr, (beta1, beta2), eps, decay)
    for g in a["g"]:
        w.grad = g.clone()
        optimizer.step()
    state = optimizer.state[w]
    return {"after": w, "m": state["exp_avg"], "v": state["exp_avg_sq"]}


def write_array(f, name, values, error=0.0):
    values = values.detach().contiguous().flatten()
    kind = {torch.int64: 0, torch.float32: 1, torch.float64: 2}[values.dtype]
    if kind == 0:  # words of 32 bits, signed or not
        values = torch.where(values < 2**31, values, values - 2**32).to(torch.int32)
    f.write(struct.pack("<40siid", name.encode(), kind, len(values), error))
    f.write(values.numpy().tobytes())


def write_op(f, function, inputs, name=None):
    name = name or function.__name__
    for key, values in inputs.items():
        write_array(f, f"{name}.{key}", values)
    double = function({k: v.double() if v.is_floating_point() else v.clone()
                       for k, v in inputs.items()})
    single = function({k: v.clone() for k, v in inputs.items()})
    for key, values in double.items():
        error = (single[key].double() - values).square().mean().sqrt().item()
        write_array(f, f"{name}.{key}", values, error)


def attention_inputs(lengths, heads, kv_heads, head_dim, prefix=None):
    rows, channels = sum(lengths), heads * head_dim
    starts = torch.tensor([0] + lengths).cumsum(0)
    return {"seq_start": starts, "prefix": torch.tensor(prefix or [-1] * len(lengths)),
            "heads": torch.tensor([heads, kv_heads]),
            "qkv": normal(rows, channels + 2 * kv_heads * head_dim, scale=1.5),
            "dout": normal(rows, channels)}


def head_rows(rows, heads, kv_heads, head_dim):
    """Inputs of the ops on the heads of queries and keys, and a gradient."""
    width = (heads + 2 * kv_heads) * head_dim
    return {"heads": torch.tensor([heads, kv_heads]), "qkv": normal(rows, width, scale=1.5),
            "dout": normal(rows, width)}


def head_inputs(n, vocabulary, channels, temperature, share):
    """`share` of the vocabulary is kept, and the targets in any case."""
    target = integers(vocabulary, n)
    kept = torch.rand(n, vocabulary, generator=draw) < share
    kept[torch.arange(n), target] = True
    kept = F.pad(kept, (0, -vocabulary % 32)).view(n, -1, 32)
    return {"x": normal(n, channels), "w": normal(vocabulary, channels, scale=0.5),
            "target": target, "coef": normal(n), "keep": (kept << torch.arange(32)).sum(-1),
            # Drawn apart, so that what is drawn later stays.
            "bonus": torch.randn(n, generator=torch.Generator().manual_seed(n + vocabulary)),
            "inverse_temperature": torch.tensor([1 / temperature])}


def main():
    with open("tests/fixtures/ops.bin", "wb") as f:
        write_op(f, embed, {"wte": normal(7, 20), "wpe": normal(6, 20), "dout": normal(9, 20),
                            "token": integers(7, 9), "position": integers(6, 9)})
        write_op(f, norm, {"residual": normal(6, 20, scale=2), "add": normal(6, 20),
                           "gain": normal(20) + 1, "bias": normal(20), "dout": normal(6, 20),
                           "dlater": normal(6, 20)})
        write_op(f, linear, {"in": normal(5, 270), "w": normal(7, 270), "bias": normal(7),
                             "dout": normal(5, 7)})
        spread = torch.cat([torch.linspace(-12, 12, 97), normal(63)])
        write_op(f, gelu, {"pre": spread.view(4, 40), "dout": normal(4, 40)})
        write_op(f, attention, attention_inputs([1, 5, 23], 2, 2, 6), "attention")
        write_op(f, attention, attention_inputs([272], 1, 1, 4), "attention_long")
        write_op(f, head, head_inputs(6, 70, 20, 1.0, 1.0), "head")
        write_op(f, head, head_inputs(6, 70, 20, 0.7, 0.3), "head_keep")
        hyper = torch.tensor([1e-2, 0.9, 0.99, 1e-6, 0.1])
        write_op(f, adamw, {"w": normal(60), "g": normal(5, 60), "hyper": hyper})
        write_op(f, rms, {"residual": normal(6, 20, scale=2), "add": normal(6, 20),
                          "gain": normal(20) + 1, "dout": normal(6, 20), "dlater": normal(6, 20)})
        write_op(f, qk_norm, {**head_rows(7, 3, 1, 10), "gain": normal(2, 10) + 1})
        angle = torch.arange(9)[:, None] * 100 ** -(torch.arange(4) / 4)
        write_op(f, rope, {**head_rows(6, 2, 1, 8), "position": integers(9, 6),
                           "turn": torch.stack([angle.cos(), angle.sin()], -1)})
        write_op(f, swiglu, {"pre": torch.cat([spread.view(4, 40), 2 * normal(4, 40)], 1),
                             "dout": normal(4, 40)})
        write_op(f, attention, attention_inputs([2, 7, 20], 4, 2, 6), "attention_grouped")
        write_op(f, attention, attention_inputs([40], 3, 1, 4), "attention_shared")
        write_op(f, attention, attention_inputs([13, 1, 9, 5, 30], 4, 2, 6, [-1, 0, 0, -1, 3]),
                 "attention_prefix")


main()
