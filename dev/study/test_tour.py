#!/usr/bin/env python3
"""The tour is a step of train_gpt2_rl: what build/dev/study/tour prints is compared with what the
program (./train_gpt2_rl, or TRAIN_GPT2_RL) logs with the same flags, and a row of dlogits with
PyTorch's gradient.

    python3 dev/study/test_tour.py
"""
import json
import os
import struct
import subprocess
import tempfile
import unittest

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TRAIN = os.path.abspath(os.environ.get("TRAIN_GPT2_RL", "./train_gpt2_rl"))


def run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tour(station, *flags):
    """The lines of a station, as lists of words."""
    done = run(["build/dev/study/tour", station, *flags])
    if done.returncode:
        raise AssertionError(done.stderr)
    return [line.split() for line in done.stdout.splitlines()]


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def bits(x):
    return f"{struct.unpack('<I', struct.pack('<f', x))[0]:08x}"


class Tour(unittest.TestCase):
    def compare(self, *flags):
        with tempfile.TemporaryDirectory() as home:
            done = run([TRAIN, "--config", "dev/study/tour.flags", "--steps", "1", "--eval-prompts", "1",
                        "--log-tokens", "--out", f"{home}/run", *flags])
            self.assertEqual(done.returncode, 0, done.stderr)
            samples = read_lines(f"{home}/run/samples.jsonl")
            updates = [e for e in read_lines(f"{home}/run/log.jsonl") if e["phase"] == "update"]
        shown = [row[3].replace("\\n", "\n") for row in tour("advantage", *flags)[1:-1]]
        self.assertEqual(shown, [s["completion"] for s in samples])
        for row, s in zip(tour("advantage", *flags)[1:-1], samples):
            self.assertEqual(row[1:3], [f"{s['reward']:g}", f"{s['advantage']:.4f}"])
        head, *rows, _ = tour("pi", *flags)
        sample = samples[int(head[1])]
        self.assertEqual([row[2] for row in rows], [bits(x) for x in sample["log_mu"]])
        self.assertEqual([row[4] for row in rows], [bits(x) for x in sample["log_pi"]])
        for lines, u in zip((tour("first", *flags)[2:], tour("after", *flags)), updates):
            self.assertEqual(lines[0][3], f"{u['loss']:.4f}")
            self.assertEqual(lines[1][2], f"{u['grad_norm']:.4f},")

    def test_it_is_the_programs_step(self):
        self.compare()

    def test_other_flags(self):
        self.compare("--rollout-dtype", "bf16", "--objective", "grpo", "--seed", "3", "--lr", "1e-3")

    def test_dlogits(self):
        """The tolerance is that of what is printed: 4 digits of pi, whose errors of 5e-5 add up to
        about twice that in the drawn token's 1 - pi, and 6 of the coefficient and of dlogits."""
        for flags in ([], ["--top-k", "4"], ["--temperature", "0.5"], ["--train-dtype", "fp16"]):
            lines = tour("dlogits", *flags)
            coef = float(lines[1][-1])
            rows = [line for line in lines[4:] if line and line[-2:] != ["<-", "drawn"]][:-2]
            rows += [line[:-2] for line in lines if line[-2:] == ["<-", "drawn"]]
            self.assertEqual(len(rows), 4 if "--top-k" in flags else 8)
            scale = 1 / float(flags[1]) if "--temperature" in flags else 1
            pi = torch.tensor([float(row[-2]) for row in rows], dtype=torch.float64)
            logits = (torch.log(pi) / scale).requires_grad_()
            rest = torch.tensor([1 - pi.sum()], dtype=torch.float64).clamp(1e-9)
            every = torch.cat([logits * scale, torch.log(rest)])
            (-coef * torch.log_softmax(every, 0)[len(rows) - 1]).backward()
            for row, expected in zip(rows, logits.grad.tolist()):
                error = abs(float(row[-1]) - expected)
                self.assertLess(error, scale * (abs(coef) * 1e-4 + 5e-7) + 5e-7, (flags, row))

    def test_refusals(self):
        for words, message in [([], "usage: tour STATION"), (["nowhere"], "usage: tour STATION"),
                               (["mu", "--prompts", "2"], "the tour follows one prompt"),
                               (["mu", "--seed", "1", "--warmup-steps", "0"], "nothing is learned")]:
            done = run(["build/dev/study/tour", *words])
            self.assertEqual(done.returncode, 1, words)
            self.assertIn(message, done.stderr)


if __name__ == "__main__":
    unittest.main()
