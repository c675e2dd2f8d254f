#!/usr/bin/env python3
"""The pictures of docs/pictures, as SVG. The block is drawn from the tables of llmc/model/families.c,
the coefficients are those that the program's objectives give (build/dev/reference/coefficients).

    python3 dev/pictures.py --check     are the files what this script makes?
    python3 dev/pictures.py --update    makes them
"""
import argparse
import html
import math
import os
import re
import subprocess
import sys
import textwrap

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "docs", "pictures")
COEFFICIENTS = os.path.join(ROOT, "build", "dev", "reference", "coefficients")

# A picture is 400 units wide and its text 12 high: legible on a page of 400 pixels. It has a
# background of its own, for light and dark pages.
WIDTH, LETTER = 400, 6.4
BLUE, ORANGE, GREEN, GREY = "#1f6fb2", "#c4570b", "#23805a", "#6b6b6b"
STYLE = ("text{font:12px system-ui,sans-serif;fill:#222}.m{font-family:ui-monospace,monospace}"
         ".h{font-weight:600;font-size:13px}.g{fill:#6b6b6b}.b{fill:#1f6fb2}.o{fill:#c4570b}"
         ".n{fill:#23805a}")
PALE = {BLUE: "#dcebf8", ORANGE: "#fbe6d6", GREEN: "#dcf1e7", GREY: "#ececec"}


def place(x):
    """A coordinate as short text."""
    text = f"{x:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


class Picture:
    def __init__(self, title):
        self.title = title
        self.parts = []
        self.text(12, 22, title, "h")

    def text(self, x, y, text, kind="", anchor="start"):
        kind = f' class="{kind}"' if kind else ""
        anchor = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self.parts.append(f'<text x="{place(x)}" y="{place(y)}"{kind}{anchor}>'
                          f'{html.escape(text, quote=False)}</text>')

    def paragraph(self, x, y, text, kind=""):
        """Lines from y on, short enough for a wide font; returns where the next one would be."""
        for line in textwrap.wrap(text, int((WIDTH - 12 - x) / LETTER),
                                  break_on_hyphens=False):
            self.text(x, y, line, kind)
            y += 16
        return y

    def box(self, x, y, width, height, colour=GREY, text="", kind="", fill=None):
        fill = PALE[colour] if fill is None else fill
        self.parts.append(f'<rect x="{place(x)}" y="{place(y)}" width="{place(width)}" '
                          f'height="{place(height)}" rx="3" fill="{fill}" stroke="{colour}"/>')
        if text:
            self.text(x + width / 2, y + height / 2 + 4, text, kind, "middle")

    def path(self, d, colour=GREY, arrow=False, dashed=False, width=1.2):
        end = f' marker-end="url(#{colour[1:]})"' if arrow else ""
        dash = ' stroke-dasharray="3 3"' if dashed else ""
        self.parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width}"'
                          f'{dash}{end}/>')

    def line(self, x1, y1, x2, y2, colour=GREY, **how):
        self.path(f"M{place(x1)} {place(y1)}L{place(x2)} {place(y2)}", colour, **how)

    def svg(self, height):
        heads = "".join(
            f'<marker id="{c[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8Z" fill="{c}"/>'
            '</marker>' for c in (BLUE, ORANGE, GREEN, GREY) if f"url(#{c[1:]})" in "".join(self.parts))
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="560" '
                f'viewBox="0 0 {WIDTH} {place(height)}" role="img" '
                f'aria-label="{html.escape(self.title)}"><style>{STYLE}</style>'
                f'{"<defs>" + heads + "</defs>" if heads else ""}\n'
                f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{place(height - 1)}" rx="6" '
                'fill="#fdfdfb" stroke="#cfcfcf"/>\n' + "\n".join(self.parts) + "\n</svg>\n")


# ------------------------------------------------------------------------------------------------
# The block, from families.c

DIMENSIONS = {"D_C": "C", "D_Q": "C", "D_QKV": "3C", "D_F": "4C", "D_V": "V", "D_T": "T", "D_1": ""}
LINKS = {"LAYER_NORM": "layer norm", "LINEAR": "linear", "ATTEND": "attention", "GELU": "GELU",
         "KV_ROUND": "round k, v"}


def dimension(name):
    return DIMENSIONS.get(name, name)


def read_gpt2():
    """GPT-2's weights {NAME: (name, shape)} and its two branches [[(link, weight, bias, output)]]."""
    with open(os.path.join(ROOT, "llmc/model/families.c"), encoding="utf-8") as f:
        table = re.search(r"GPT2_FAMILY = \{.*?\n\};", f.read(), re.DOTALL).group(0)
    weights = {}
    for name, short, out, inputs in re.findall(
            r'\[(\w+)\]\s*= \{"(\w+)",\s*\w+,\s*(\w+),\s*(\w+),', table):
        weights[name] = (short, ", ".join(d for d in (dimension(out), dimension(inputs)) if d))
    branches = [re.findall(r"\{(\w+),\s*(\w+),\s*(\w+),\s*(D_\w+),", part)
                for part in table[table.index(".branch"):].split("}},")[:2]]
    return weights, branches


def draw_block():
    p = Picture("A block of GPT-2")
    weights, branches = read_gpt2()
    stream, x, y = 30, 62, 66

    def shown(name):
        short, shape = weights[name]
        return f"{short} ({shape})"

    p.text(12, 42, f"token and position: a row of {shown('WTE')}, one of {shown('WPE')}", "g")
    start = 50
    for branch in branches:
        p.path(f"M{stream} {y}H{x + 48}V{y + 12}", BLUE, arrow=True)
        p.text(x + 58, y + 2, "(N, C)", "b")
        y += 14
        for link, weight, bias, out in branch:
            names = [shown(n) for n in (weight, bias) if n != "NONE"]
            p.box(x, y, 96, 22, BLUE if names else GREY, LINKS.get(link, link))
            p.text(x + 106, y + 15, f"(N, {dimension(out)})", "b")
            p.text(x + 164, y + 15, ", ".join(names), "n")
            if link == "KV_ROUND":
                p.text(x + 164, y + 15, "where --train-kv-dtype asks", "g")
            if link == "ATTEND":
                p.text(x + 164, y + 15, "of NH heads, causal", "g")
            y += 32
            p.line(x + 48, y - 10, x + 48, y - 1, BLUE)
        y -= 4
        p.path(f"M{x + 48} {y - 2}V{y + 4}H{stream + 10}", BLUE, arrow=True)
        p.parts.append(f'<circle cx="{stream}" cy="{place(y + 4)}" r="8" fill="#fff" stroke="{BLUE}"/>')
        p.text(stream, y + 8.5, "+", "", "middle")
        y += 30
    p.parts.insert(0, f'<path d="M{stream} {start}V{place(y + 6)}" stroke="{BLUE}" stroke-width="3"/>')
    y = p.paragraph(12, y + 24,
            "The thick line is the residual stream. Every block adds to it twice.")
    y = p.paragraph(12, y + 4,
            f"After the last block: layer norm, {shown('LNFW')}, {shown('LNFB')}; then the head, "
            f"{shown('WTE')} again where it is tied: V logits for each row that is asked for its "
            "next token.")
    y = p.paragraph(12, y + 4, "N rows (tokens), C channels, V tokens known, T positions", "g")
    return p.svg(y)


# ------------------------------------------------------------------------------------------------
# The packed batch and the pages of the cache

def kv_page():
    return read("llmc/device/backend.h", r".*", r"KV_PAGE = (\d+)")[0]


def draw_packed():
    p = Picture("A group: the trainer's batch, the sampler's cache")
    prompt, samples = "9-4+2:", ["07", "9-4=05+2=07"]
    responses = [list(s) + ["\\n"] for s in samples]
    colours = [BLUE, ORANGE, GREEN]
    runs = [list(prompt)] + [r[:-1] for r in responses]
    cell, left = 19.6, 12
    y = p.paragraph(12, 42,
            "Training: the prompt stands once, then each sample without its last token.") + 14
    x = left
    for s, tokens in enumerate(runs):
        p.text(x, y - 4, ["prompt", "1", "sample 2"][s], ["b", "o", "n"][s])
        for i, token in enumerate(tokens):
            p.box(x, y, cell - 1, 22, colours[s], token, "m")
            p.text(x + cell / 2 - .5, y + 36, str(i if s == 0 else len(prompt) + i), "g", "middle")
            x += cell
    p.text(left, y + 52, "position; a sample's positions go on from the prompt's", "g")
    y = p.paragraph(left, y + 74,
            "Each row is asked for the token that follows, the prompt's last one for the first "
            "token of each sample:") - 8
    x = left
    for s, tokens in enumerate(runs):
        for i, token in enumerate(tokens):
            targets = [(s, responses[s - 1][i + 1])] if s else []
            if s == 0 and i == len(prompt) - 1:
                targets = [(1, responses[0][0]), (2, responses[1][0])]
            for k, (of, target) in enumerate(targets):
                p.box(x, y + 24 * k, cell - 1, 22, colours[of], target, "m")
            x += cell
    y = p.paragraph(left, y + 74,
            "Sampling: keys and values lie in pages, here of 4 positions (in the program "
            f"{kv_page()}).") - 6
    page, gap = 4, 5
    cell = (WIDTH - 24 - 4 * gap) / (5 * page)

    def strip(x, y, tokens, colour, name, height=22):
        for i in range(page):
            token = tokens[i] if i < len(tokens) else ""
            p.box(x + cell * i, y, cell - 1, height, colour if token else GREY, token, "m",
                  None if token else "#fff")
        p.text(x + cell * page / 2, y + height + 14, name, "g", "middle")

    strip(left, y + 18, list(prompt[:page]), BLUE, "page 0", 40)
    number = 1
    for s, response in enumerate(responses):
        held = list(prompt[page:]) + response[:-1]
        pages = [held[i:i + page] for i in range(0, len(held), page)]
        for i, tokens in enumerate(pages):
            strip(left + (cell * page + gap) * (i + 1), y + 52 * s, tokens, colours[s + 1],
                  f"page {number}")
            number += 1
    y = p.paragraph(left, y + 112,
            "Slot 1 reads pages 0 and 1, slot 2 pages 0 and 2 to 5. Page 0 is full of the prompt "
            "and shared; the prompt's partly filled page was copied for each sample. A sample's "
            "last token is drawn and never read, so it has no key.")
    return p.svg(y)


# ------------------------------------------------------------------------------------------------
# c as a function of pi

MU, LIMIT, LOWEST, JUMP = 0.3, 4.0, 0.001, 0.3
AXIS = [max(LOWEST, i / 100) for i in range(101)]


def objectives():
    with open(os.path.join(ROOT, "llmc/rl/objective.c"), encoding="utf-8") as f:
        names = re.search(r"OBJECTIVE_NAMES\[\] = \{(.*?)NULL", f.read(), re.DOTALL).group(1)
    return re.findall(r'"([\w-]+)"', names)


def curve(name, advantage):
    """[(pi, c, masked)], as the program's objective gives them."""
    lines = "".join(f"{advantage} {math.log(pi)!r} {math.log(MU)!r}\n" for pi in AXIS)
    done = subprocess.run([COEFFICIENTS, "--objective", name, "--all"], input=lines, text=True,
                          capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"pictures.py: {COEFFICIENTS}: {done.stderr.strip()}")
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(pi, float(row[0]), row[2]) for pi, row in zip(AXIS, rows)]


def draw_curve(p, points, x_of, y_of, colour):
    """A line that is interrupted where a mask begins or ends, and where c jumps: far, and much farther than before."""
    d, before, last, rise = "", None, 0, 0
    for pi, c, masked in points:
        jumps = abs(c - last) > max(JUMP, 3 * abs(rise))
        step = "L" if before == masked and not jumps else "M"
        d += f"{step}{place(x_of(pi))} {place(y_of(max(-LIMIT - .5, min(LIMIT + .5, c))))}"
        before, last, rise = masked, c, c - last
    p.path(d, colour, width=1.8)


def draw_coefficients():
    p = Picture("c as a function of π, for every objective")
    y = p.paragraph(12, 42,
            f"One token, drawn with μ = {MU} (dashed). c multiplies the gradient of its log π: "
            "above 0 the token becomes more probable, below 0 less.")
    p.line(14, y, 36, y, BLUE, width=2)
    p.text(42, y + 4, "A = 1", "b")
    p.line(94, y, 116, y, ORANGE, width=2)
    p.text(122, y + 4, "A = −1", "o")
    p.text(180, y + 4, f"π from 0 to 1, c from −{LIMIT:g} to {LIMIT:g}", "g")
    width, height, top = 112, 74, y + 38
    names = objectives()
    for i, name in enumerate(names):
        x, y = 26 + (width + 12) * (i % 3), top + (height + 30) * (i // 3)
        clip = f"clip{i}"

        def x_of(pi, x=x):
            return x + width * pi

        def y_of(c, y=y):
            return y + height / 2 * (1 - c / LIMIT)

        p.text(x, y - 6, name, "m")
        p.box(x, y, width, height, "#b5b5b5", fill="#fff")
        p.line(x, y_of(0), x + width, y_of(0), "#b5b5b5", width=.8)
        p.line(x_of(MU), y, x_of(MU), y + height, GREY, dashed=True, width=.8)
        p.parts.append(f'<clipPath id="{clip}"><rect x="{x}" y="{y}" width="{width}" '
                       f'height="{height}"/></clipPath><g clip-path="url(#{clip})">')
        draw_curve(p, curve(name, -1), x_of, y_of, ORANGE)
        draw_curve(p, curve(name, 1), x_of, y_of, BLUE)
        p.parts.append("</g>")
        if i % 3 == 0:
            for tick in (-LIMIT, 0, LIMIT):
                p.text(x - 3, y_of(tick) + 4, f"{tick:g}".replace("-", "−"), "g", "end")
    rows = math.ceil(len(names) / 3)
    y = top + (height + 30) * (rows - 1)
    if len(names) % 3:
        x = 26 + (width + 12) * (len(names) % 3)
        p.paragraph(x, y + 10,
                "Flags have their defaults. Where a line breaks, a mask begins or ends. seq-* and"
                " gspo: a response of one token. dppo-topk-*: without other candidates.", "g")
    return p.svg(y + height + 14)


# ------------------------------------------------------------------------------------------------
# The life of a run

STEP = {"sample": "y ~ μ( · | x), a group for each prompt x",
        "verify": "R(x, y), what a response is worth",
        "measure": "log π(y | x) by the trainer", "anchor": "what the ratio is taken against",
        "advantages": "A = R − mean of R over the group",
        "update": "Σ c(A, r) ∇ log π, then AdamW"}
PHASES = ["FRESH", "WARMUP", "RL", "DONE"]


def expect(what, found, drawn):
    if found != drawn:
        sys.exit(f"pictures.py: {what} are {', '.join(found)} now; draw them as they are")


def read(path, pattern, inner):
    """What `inner` finds in the part of a file that `pattern` finds."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return re.findall(inner, re.search(pattern, f.read(), re.DOTALL).group(0))


def draw_life():
    p = Picture("The life of a run")
    expect("the phases", read("llmc/run/checkpoint.h", r"PHASE_.*?\}", r"PHASE_(\w+)"), PHASES)
    expect("the parts of a step", read("train_gpt2_rl.cu", r"static void step\(run\* r\).*?\n\}",
                                       r"\n    (?!report)(\w+)\(r[,)]"), list(STEP))
    left, width, height, gap = 40, 84, 26, 40
    top = [44 + (height + gap) * i for i in range(len(PHASES))]
    notes = ["run_create: it has a warm-up", "run_start_rl: the warm-up is done",
             "run_pause: no step is left"]
    for name, y in zip(PHASES, top):
        p.box(left, y, width, height, BLUE, name)
    for note, y in zip(notes, top):
        p.line(left + width / 2, y + height, left + width / 2, y + height + gap - 1, BLUE, arrow=True)
        p.text(left + width / 2 + 10, y + height + 25, note)
    p.path(f"M{left} {top[0] + 13}H22V{top[2] + 13}H{left - 1}", BLUE, arrow=True)
    right = left + width
    for y in (top[1], top[2]):
        p.path(f"M{right} {y + 19}h12v-12h-11", BLUE, arrow=True)
    p.text(right + 20, top[1] + 17, "warmup_step")
    p.text(right + 20, top[2] + 17, "step, and evaluation where it is due")
    y = p.paragraph(12, top[3] + height + 22,
            "On the left, run_start_rl: a run that begins with --init or --from, without a "
            "warm-up, or with one from the cache.", "g")
    y = p.paragraph(12, y + 6,
            "Checkpoints are written by run_start_rl and run_pause, never in between. A signal "
            "lets the step end, run_pause saves, and --resume enters the box that was left: with "
            "the same bits as if nothing had happened.")
    p.text(12, y + 16, "A step of RL", "h")
    y += 28
    first = y
    for i, (name, says) in enumerate(STEP.items()):
        p.box(left, y, width, height, GREEN, name)
        p.text(right + 26 if name == "update" else right + 12, y + 17, says)
        if i < len(STEP) - 1:
            p.line(left + width / 2, y + height, left + width / 2, y + height + 11, GREEN, arrow=True)
        y += height + 12
    y -= height + 12
    p.path(f"M{right} {y + 19}h12v-12h-11", GREEN, arrow=True)
    p.path(f"M{left} {y + 13}H22V{first + 13}H{left - 1}", GREEN, arrow=True)
    y = p.paragraph(12, y + height + 20,
            "There are --updates times --epochs updates on a rollout. Only the first one changes "
            "the policy that drew the samples.", "g")
    return p.svg(y)


# ------------------------------------------------------------------------------------------------
# Where rounding happens

ROUNDED = [("Weights, when they are new", "--rollout-dtype", "--train-dtype", 1),
           ("Both operands of a product", "--rollout-dtype", "--train-dtype", 1),
           ("The sums of a product", "fp32", "fp32", 0),
           ("What an op writes, once", "--rollout-dtype", "--train-dtype", 1),
           ("Keys and values", "--kv-dtype", "--train-kv-dtype", 1),
           ("Logits", "--rollout-logits-dtype", "--logits-dtype", 1),
           ("Softmax and log-probability", "log μ in fp32", "log π in fp32", 0),
           ("Gradients of activations", "", "--grad-dtype", 1),
           ("Weight gradients, AdamW", "", "fp32", 0)]


def flags_of_formats():
    return set(read("llmc/run/flags.def", r".*", r'FORMAT\("([\w-]+)"'))


def draw_rounding():
    p = Picture("Where rounding happens")
    drawn = {name[2:] for row in ROUNDED for name in row[1:3] if name.startswith("--")}
    expect("the flags of formats", sorted(flags_of_formats()), sorted(drawn | {"eval-dtype"}))
    y = p.paragraph(12, 42,
            "Orange: rounded to nearest, ties to even, into the format of the flag. Blue: fp32, "
            "always. With equal formats on both sides, log μ and log π of the same weights have "
            "equal bits (on a GPU, with --batch-invariant).")
    width, right = 172, 216
    p.text(12 + width / 2, y + 10, "sampler", "h", "middle")
    p.text(right + width / 2, y + 10, "trainer", "h", "middle")
    y += 18
    p.box(12, y, right + width - 12, 24, BLUE, "parameters: fp32 masters, one copy")
    y += 24
    for title, sampler, trainer, rounds in ROUNDED:
        for x, text in ((12, sampler), (right, trainer)):
            if text:
                p.line(x + 10, y, x + 10, y + 21, arrow=True)
                p.box(x, y + 22, width, 22, ORANGE if rounds else BLUE, text,
                      "m" if text.startswith("--") else "")
        p.text(30 if sampler else right + 18, y + 16, title, "g")
        y += 44
    p.path(f"M{right + width} {y - 11}h6V{y - 44 * len(ROUNDED) - 12}h-5", BLUE, arrow=True)
    y = p.paragraph(12, y + 20,
            "In fp8 an operand has a scale for each row, a power of two; what an op writes, keys "
            "and values are bf16 then. With --master-weights 0 there is no fp32 copy, and AdamW "
            "rounds the weights stochastically. --eval-dtype gives evaluations a sampler of their"
            " own.")
    return p.svg(y)


# ------------------------------------------------------------------------------------------------
# How the PTX machine runs a warp

WARP = [("setp.ge.u32 %p1", 32), ("@%p1 bra END", 32), ("ld.global.f32", 20), ("mul.rn.f32", 20),
        ("st.global.f32", 20), ("END: ret", 32)]


def draw_warp():
    p = Picture("How the PTX machine runs a warp")
    y = p.paragraph(12, 42,
            "Each thread doubles one number; there are 20 numbers and 32 threads. A row is an "
            "instruction, a column one of the warp's 32 lanes, time goes down.")
    left, cell, height = 128, 8.1, 22
    for lane in (0, 8, 16, 24, 31):
        p.text(left + cell * (lane + .5), y + 8, str(lane), "g", "middle")
    y += 14
    for instruction, active in WARP:
        p.text(12, y + 15, instruction, "m")
        for lane in range(32):
            on = lane < active
            p.box(left + cell * lane, y, cell - 1, height - 3, BLUE if on else "#d6d6d6",
                  fill=PALE[BLUE] if on else "#fff")
        y += height
    y = p.paragraph(12, y + 18,
            "A register is an array over the lanes, so an instruction is a loop over those that "
            "take part (blue). Lanes at the same instruction are a group. The jump splits one "
            "group in two. The group that is furthest behind runs first, so the other one waits "
            "at END until both have met.")
    y += 10
    p.text(12, y + 15, "memory", "m")
    for lane in range(32):
        on = lane < 20
        p.box(left + cell * lane, y, cell - 1, height - 3, GREEN if on else ORANGE,
              fill=PALE[GREEN] if on else "#fff")
    y = p.paragraph(12, y + height + 16,
            "Every 2 bytes know who wrote them last (green: these lanes). A read of what nothing "
            "wrote (orange) ends the program with kernel, thread and source line; so does a race,"
            " a wait that never ends, and what breaks another rule of CUDA.")
    y = p.paragraph(12, y + 4,
            "PTX_SCHEDULE=7 runs groups, warps and blocks in a random order, by that seed: a "
            "result that depends on an order that CUDA does not promise then changes.")
    return p.svg(y)


# ------------------------------------------------------------------------------------------------

PICTURES = {"block": draw_block, "packed": draw_packed, "coefficients": draw_coefficients,
            "life": draw_life, "rounding": draw_rounding, "warp": draw_warp}


def main():
    a = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = a.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--update", action="store_true")
    mode = a.parse_args()
    if not os.path.exists(COEFFICIENTS):
        sys.exit(f"pictures.py: there is no {COEFFICIENTS}; make dev builds it")
    found = sorted(n.removesuffix(".svg") for n in os.listdir(FOLDER) if n.endswith(".svg"))
    differ = mode.check and found != sorted(PICTURES)
    if differ:
        print(f"docs/pictures has {', '.join(found)}; this script makes {', '.join(sorted(PICTURES))}")
    for name, draw in PICTURES.items():
        path, text = os.path.join(FOLDER, name + ".svg"), draw()
        if mode.update:
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        elif name in found:
            with open(path, encoding="utf-8") as f:
                if f.read() != text:
                    differ = True
                    print(f"docs/pictures/{name}.svg is not what dev/pictures.py makes; --update")
    print(f"docs/pictures: {len(PICTURES)} pictures" + (" differ" if differ else ""))
    sys.exit(differ)


if __name__ == "__main__":
    main()
