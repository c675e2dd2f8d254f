#!/usr/bin/env python3
"""How far data parallelism carries, on paper: the efficiency of R ranks with a GPU each.

    python3 dev/study/scale.py [--link GB/s] [--node-link GB/s] [--sequences N] [--length L] [--updates U]

A rank keeps its work: R ranks sample R times as many sequences a step (weak scaling). Efficiency is
the time of a step of one rank over that of R. What is assumed, a line each:

- rates of one H100: 124M's, and 1558M's training, as measured (dev/gpu/README.md); elsewhere training at
  1558M's 47 % of 989 TFLOP/s, and sampling at 25 % of what 3.35 TB/s let through (256 sequences);
- a gradient (4 bytes a parameter) is added by recursive halving, new weights (4 bytes) go the way back, each
  update: (1 - 1/R) of both leaves every rank; log2(R) rounds of 20 us, of gradients for each layer;
- gradients travel during the last backward pass of an update (16,384 tokens, 2/3 of the time that training on
  them takes), but for those that are final with layer 0 or the embedding: 41, 11 and 12 % (optimizer.c's stripes);
- ranks of one machine (8) have its link, more have the slower one between machines;
- a rollout (12 bytes a token, 5 arrays) goes round a ring; then rank 0 computes the metrics of the whole step
  on one core, before the updates and in them: 200 ns a token, twice what mismatch_measure takes
  (84 to 141 ns on one core of a busy Xeon with AVX-512), while the others wait;
- memory: fp32 weights and gradient, of several ranks half of the largest that is final at one time, bf16 weights,
  activations and cache of 16 GB; moments / R. x: more than the 80 GB of a card.
"""
import argparse
import math

FLOPS, BANDWIDTH, SEQUENCES = 989e12, 3.35e12, 256


def sampling_rate(parameters, cache, length):
    """Tokens/s; cache: bytes of a token's keys and values."""
    return 0.25 * SEQUENCES * BANDWIDTH / (2 * parameters + SEQUENCES * cache * length / 2)


# name, parameters, layers, the share of gradients that is final last, and of those that come in at one time;
# tokens/s of training on one GPU and of sampling where it was measured, else bytes of a token's keys and values
MODELS = [("124M", 124e6, 12, 0.41, 0.16, 347e3, 151e3, None),
          ("1558M", 1558e6, 48, 0.11, 0.03, 37e3, None, 48 * 2 * 1600 * 2),
          ("8B", 8.0e9, 32, 0.12, 0.04, 0.47 * FLOPS / 6 / 8.0e9, None, 32 * 2 * 1024 * 2)]
RANKS = [1, 2, 4, 8, 16, 64, 256, 1024]
MACHINE, ROUND, HOST, OTHER_BYTES, CARD, MICRO_BATCH = 8, 20e-6, 200e-9, 16e9, 80e9, 16384


def step_seconds(ranks, parameters, layers, late, train, sample, a):
    """The parts of a step: sampling, training, gradients and weights that the GPU waits for, the rollout, metrics."""
    link = (a.node_link if ranks <= MACHINE else a.link) * 1e9
    tokens = a.sequences * a.length
    left = 1 - 1 / ranks
    weights = 4 * parameters * left / link + ROUND * math.log2(ranks)
    gradients = 4 * parameters * left / link + ROUND * math.log2(ranks) * (layers + 2)
    exchange = weights + max(late * gradients, gradients - 2 / 3 * MICRO_BATCH / train)
    rollout = 12 * tokens * ranks * left / link + 5 * ROUND * (ranks - 1)
    return [tokens / sample, tokens / train, a.updates * exchange, rollout, HOST * tokens * ranks]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--link", type=float, default=50, help="GB/s a GPU between machines (50: 400 Gbit/s)")
    p.add_argument("--node-link", type=float, default=300, help="GB/s a GPU within a machine")
    p.add_argument("--sequences", type=int, default=256, help="a rank and step")
    p.add_argument("--length", type=int, default=512, help="tokens of a response")
    p.add_argument("--updates", type=int, default=4, help="a step")
    a = p.parse_args()
    for name, value in vars(a).items():
        if value <= 0:
            p.error(f"--{name.replace('_', '-')} {value} is not above 0")
    print(f"{'model':8s}{'ranks':>6s}{'step':>9s}{'sampling':>10s}{'training':>10s}{'exchange':>10s}{'share':>7s}"
          f"{'rollout':>9s}{'metrics':>9s}{'efficiency':>12s}{'memory a GPU':>14s}")
    for name, parameters, layers, late, incoming, train, measured, cache in MODELS:
        sample = measured or sampling_rate(parameters, cache, a.length)
        alone = sum(step_seconds(1, parameters, layers, late, train, sample, a))
        for ranks in RANKS:
            parts = step_seconds(ranks, parameters, layers, late, train, sample, a)
            memory = parameters * (4 + 4 + 4 * incoming * (ranks > 1) + 2 + 8 / ranks) + OTHER_BYTES
            fits = f"{memory / 1e9:8.0f} GB" + ("" if memory <= CARD else " x")
            print(f"{name:8s}{ranks:6d}{sum(parts):8.2f}s" + f"{parts[0]:9.2f}s{parts[1]:9.2f}s{parts[2]:9.3f}s{100 * parts[2] / sum(parts):6.1f}%"
                  f"{parts[3]:8.3f}s{parts[4]:8.2f}s{100 * alone / sum(parts):11.0f}%{fits:>14s}")


if __name__ == "__main__":
    main()
