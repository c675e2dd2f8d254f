"""Writes tests/fixtures/objective.txt: gradient coefficients from PyTorch's autograd in float64.

Each objective stands here as its loss alone, with .detach() where the loss holds something fixed;
c is minus the gradient with respect to log pi. Points nearer than 1e-3 to a kink or a step of
their loss are left out.

    python3 dev/reference/objective.py > tests/fixtures/objective.txt

The objectives for whole sequences stand as losses of all log pi of a sequence. Their values are fp32
numbers, which is what objective_sequence takes.

Format: a line "objective NAME delta epsilon clip_low clip_high ratio_cap reg reg_coef kl kl_coef"
sets what the lines after it use: "A log_pi log_mu log_ref c loss masked"; or, for a whole
sequence, a line "sequence A n loss" and n lines "log_pi log_mu log_ref c masked"; or, for
dppo-topk-*, a line "topk A log_pi log_mu D c loss y K" and K lines "id log_pi log_mu", c and loss
being those of a token that is kept. Numbers are the shortest text with the same double.
"""
import math
import random

import torch

INF = math.inf
DEFAULTS = dict(delta=0.15, epsilon=0.2, clip_low=0.2, clip_high=0.28, ratio_cap=INF, reg="none",
                reg_coef=0.0, kl="k2", kl_coef=0.0)
CONFIGS = [
    dict(name="sft"),
    dict(name="reinforce"),
    dict(name="reinforce", kl="k2", kl_coef=0.1),
    dict(name="pg-is"),
    dict(name="pg-is", ratio_cap=1.5),
    dict(name="pg-is", reg="kl", reg_coef=0.3),
    dict(name="pg-is", reg="k3", reg_coef=0.3),
    dict(name="pg-is", reg="tv", reg_coef=0.3),
    dict(name="pg-is", reg="k3", reg_coef=0.2, kl="k3", kl_coef=0.05),
    dict(name="cispo"),
    dict(name="cispo", clip_low=0.9, clip_high=4.0),
    dict(name="grpo"),
    dict(name="grpo", ratio_cap=3.0),
    dict(name="grpo", clip_low=0.1, clip_high=0.1, kl="k3", kl_coef=0.2),
    dict(name="spo"),
    dict(name="spo", epsilon=12.5),
    dict(name="dppo-tv"),
    dict(name="dppo-tv", delta=0.02, ratio_cap=2.0),
    dict(name="dppo-kl", delta=0.05),
    dict(name="dppo-kl", delta=0.005, ratio_cap=5.0),
    dict(name="drpo"),
    dict(name="drpo", delta=0.02),
    dict(name="drpo", delta=12.5, kl="k2", kl_coef=0.1),
    dict(name="drpo-mask"),
    dict(name="drpo-mask", delta=0.05),
    dict(name="drpo-noabs"),
    dict(name="drpo-noabs", delta=0.5),
]
SEQUENCE_CONFIGS = [
    dict(name="seq-tis"),
    dict(name="seq-tis", ratio_cap=1.3),
    dict(name="seq-tis", ratio_cap=2.0, kl="k2", kl_coef=0.1),
    dict(name="seq-mis", ratio_cap=1.3),
    dict(name="seq-mis", ratio_cap=2.0),
    dict(name="gspo", clip_low=3e-4, clip_high=4e-4),
    dict(name="gspo"),
    dict(name="gspo", clip_low=0.03, clip_high=0.04, kl="k3", kl_coef=0.2),
    # An objective of single tokens: the sum of its losses.
    dict(name="pg-is"),
]


def own_loss(o, A, lp, lm):
    """The loss, whether a mask zeroes the token, and the distances to kinks and steps."""
    name, x = o["name"], lp - lm
    ratio, pi, mu = x.exp(), lp.exp(), lm.exp()
    shift = torch.sign(A) * (pi - mu)
    bounds = ratio.clamp(1 - o["clip_low"], 1 + o["clip_high"])
    edges = [ratio - (1 - o["clip_low"]), ratio - (1 + o["clip_high"])]

    def surrogate():
        if o["ratio_cap"] == INF:
            return -A * ratio
        return -A * ratio.clamp(max=o["ratio_cap"]).detach() * lp

    if name == "sft":
        return -lp, False, []
    if name == "reinforce":
        return -A * lp, False, []
    if name == "pg-is":
        return surrogate(), False, [x]
    if name == "cispo":
        return -A * bounds.detach() * lp, False, []
    if name == "grpo":
        loss = torch.maximum(-A * ratio, -A * bounds)
        if A < 0:
            loss = torch.minimum(loss, -A * o["ratio_cap"])
        masked = bool((A > 0 and ratio > 1 + o["clip_high"]) or
                      (A < 0 and (ratio < 1 - o["clip_low"] or ratio > o["ratio_cap"])))
        return loss, masked, edges + [ratio - o["ratio_cap"]]
    if name == "spo":
        return -A * ratio + A.abs() / (2 * o["epsilon"]) * (ratio - 1) ** 2, False, []
    if name == "dppo-tv":
        masked = bool(shift > o["delta"])
        return (0 if masked else 1) * surrogate(), masked, [shift - o["delta"]]
    if name == "dppo-kl":
        d = mu * (lm - lp) + (1 - mu) * (torch.log1p(-mu) - torch.log1p(-pi))
        masked = bool(d > o["delta"] and A * x > 0)
        return (0 if masked else 1) * surrogate(), masked, [d - o["delta"], x]
    penalty = mu * (ratio - 1) ** 2 / (2 * o["delta"])
    if name == "drpo":
        return -A * ratio + A.abs() * penalty, False, []
    if name == "drpo-mask":
        beyond = bool(shift > o["delta"])
        return -A * ratio + beyond * A.abs() * penalty, False, [shift - o["delta"]]
    if name == "drpo-noabs":
        return -A * ratio + penalty, False, []
    raise ValueError(name)


def extra_loss(o, lp, lm, lr):
    x, y = lp - lm, lp - lr
    ratio = x.exp()
    reg = {"none": 0 * x, "kl": ratio * x, "k3": ratio - 1 - x, "tv": (ratio - 1).abs() / 2}
    kl = {"k2": y ** 2 / 2, "k3": (-y).exp() - 1 + y}
    return o["reg_coef"] * reg[o["reg"]] + o["kl_coef"] * ratio.detach() * kl[o["kl"]]


def sequence_loss(o, A, lp, lm):
    """The loss of a sequence, whether it is masked, and the distances to kinks and steps."""
    name, x = o["name"], lp - lm
    whole, mean = x.sum().exp(), x.mean().exp()
    if name == "pg-is":
        return (-A * x.exp()).sum(), False, []
    if name == "seq-tis":
        loss = -A * whole
        if o["ratio_cap"] < INF:
            loss = -A * whole.clamp(max=o["ratio_cap"]).detach() * lp.sum()
        return loss, False, [whole - o["ratio_cap"]]
    if name == "seq-mis":
        masked = bool(whole > o["ratio_cap"])
        return 0 * whole if masked else -A * whole, masked and A != 0, [whole - o["ratio_cap"]]
    # gspo, times the length: the aggregation divides by it.
    low, high = 1 - o["clip_low"], 1 + o["clip_high"]
    loss = torch.maximum(-A * mean, -A * mean.clamp(low, high)) * len(x)
    masked = bool((A > 0 and mean > high) or (A < 0 and mean < low))
    return loss, masked, [mean - low, mean - high]


def fp32(numbers):
    return torch.tensor(numbers, dtype=torch.float32).double()


def sequences():
    draw = random.Random(2)
    for config in SEQUENCE_CONFIGS:
        o = {**DEFAULTS, **config}
        print("objective", o["name"], *(repr(o[k]) if isinstance(o[k], float) else o[k]
                                        for k in DEFAULTS))
        count = 0
        while count < 8:
            n = draw.choice((1, 2, 3, 7, 12))
            lm = fp32([-math.exp(draw.uniform(math.log(0.1), math.log(5))) for _ in range(n)])
            drift = draw.uniform(-0.5, 0.5) / n
            lp = lm + fp32([draw.gauss(drift, 0.1) for _ in range(n)])
            lp = fp32(lp.tolist())
            lr = fp32([-math.exp(draw.uniform(-2, 2)) for _ in range(n)])
            A = torch.tensor(round(draw.choice((1, 1, -1, -1, 0)) * draw.uniform(0.1, 2), 3) + 0.0,
                             dtype=torch.float64)
            if lp.max() > -1e-3:
                continue
            lp.requires_grad_(True)
            loss, masked, edges = sequence_loss(o, A, lp, lm)
            if any(abs(e.item()) < 1e-5 for e in edges):
                continue
            x, y = lp - lm, lp - lr
            kl = {"k2": y ** 2 / 2, "k3": (-y).exp() - 1 + y}[o["kl"]]
            loss = loss + (o["kl_coef"] * x.exp().detach() * kl).sum()
            grad, = torch.autograd.grad(loss, lp)
            print("sequence", repr(A.item()), n, repr(loss.item() + 0.0))
            for t in range(n):
                print(*(repr(v[t].item()) for v in (lp, lm, lr)), repr(-grad[t].item() + 0.0),
                      int(masked))
            count += 1


def topk():
    """The divergence of whole distributions, coarsened to the K first of mu, y, and the rest."""
    torch.manual_seed(3)
    for name in "dppo-topk-tv", "dppo-topk-kl":
        o = {**DEFAULTS, "name": name}
        print("objective", name, *(repr(o[k]) if isinstance(o[k], float) else o[k]
                                   for k in DEFAULTS))
        for case in range(24):
            vocabulary, k = 30, (1, 2, 5, 20)[case % 4]
            logits = 2 * torch.randn(vocabulary, dtype=torch.float64)
            moved = logits + 0.3 * torch.randn(vocabulary, dtype=torch.float64)
            log_mu = torch.log_softmax(logits, 0).float().double()
            log_pi = torch.log_softmax(moved, 0).float().double()
            best = log_mu.topk(k).indices.tolist()
            y = int(torch.randint(vocabulary, ())) if case % 3 else best[-1]
            A = (-1 if case % 5 < 2 else 1) * (0.25 + case / 16)
            cells = sorted(set(best) | {y})
            mu, pi = log_mu[cells].exp(), log_pi[cells].exp()
            mu = torch.cat([mu, 1 - mu.sum(0, keepdim=True)])
            pi = torch.cat([pi, 1 - pi.sum(0, keepdim=True)])
            d = (mu * (mu / pi).log()).sum() if name.endswith("kl") else (mu - pi).abs().sum() / 2
            lp = log_pi[y].clone().requires_grad_(True)
            loss = -A * (lp - log_mu[y]).exp()
            grad, = torch.autograd.grad(loss, lp)
            print("topk", repr(A), *(repr(v.item()) for v in (lp, log_mu[y], d)),
                  repr(-grad.item()), repr(loss.item()), y, k)
            for i in best:
                print(i, repr(log_pi[i].item()), repr(log_mu[i].item()))


def main():
    draw = random.Random(1)
    for config in CONFIGS:
        o = {**DEFAULTS, **config}
        print("objective", o["name"], *(repr(o[k]) if isinstance(o[k], float) else o[k]
                                        for k in DEFAULTS))
        count = 0
        while count < 12:
            # A log-ratio from small to large, at a probability from near 1 to 1e-4.
            mu_log = round(-math.exp(draw.uniform(math.log(0.02), math.log(9))), 4)
            pi_log = round(mu_log + draw.choice((-1, 1)) * math.exp(draw.uniform(-4, 1.5)), 4)
            if pi_log > -1e-3:
                continue
            # Mostly moves that go on in the direction of A: those are what masks and clips see.
            sign = draw.choice((1, 1, 1, 1, 1, 1, 1, -1, -1, 0)) * (1 if pi_log > mu_log else -1)
            point = [round(sign * draw.uniform(0.1, 2), 3) + 0.0, pi_log, mu_log,
                     round(-math.exp(draw.uniform(-4, 2.2)), 4)]
            A, lp, lm, lr = (torch.tensor(v, dtype=torch.float64) for v in point)
            lp.requires_grad_(True)
            loss, masked, edges = own_loss(o, A, lp, lm)
            if any(abs(e.item()) < 1e-3 for e in edges):
                continue
            loss = loss + extra_loss(o, lp, lm, lr)
            grad, = torch.autograd.grad(loss, lp)
            print(*(repr(v) for v in point), repr(-grad.item() + 0.0), repr(loss.item() + 0.0),
                  int(masked))
            count += 1


main()
sequences()
topk()
