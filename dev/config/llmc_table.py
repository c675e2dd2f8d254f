"""llm.c's train_gpt2cu in our flags. It pretrains on a stream of tokens; what comes near it here is
the warm-up, which imitates responses."""
VERSION = "llm.c"
DEFAULTS = {"-x": "-1", "-l": "3e-4", "-u": "0", "-q": "1", "-c": "0", "-b": "4", "-t": "1024",
            "-d": "-1", "-r": "1", "-e": "gpt2_124M_bf16.bin", "-n": "0", "-y": "0", "-w": "1"}
TRANSLATED = list(DEFAULTS) + ["-o", "-nk"]
NOTES = [
    "The batches are responses of a task or of --data here, not a stream of tokens: give --task, or "
    "--data with \"response\" in it, --reward and --tokenizer.",
    "The warm-up's schedule is llm.c's cosine, with (step + 1) / -u while it rises, as in llm.c.",
    "betas 0.9 and 0.95, eps 1e-8, gradient norm 1, no decay of gains and biases: equal in both.",
    "The warm-up is fp32 with fp32 masters; llm.c trains in bf16 unless it was built otherwise.",
]
LOST = {
    "-i": "the stream of training tokens; --data has problems with responses instead",
    "-j": "the stream of validation tokens; held-out problems are evaluated by their reward",
    "-v": "there is no validation loss; --eval-every counts RL steps",
    "-m": "there is no validation loss",
    "-s": "the warm-up prints no completions; three are printed before and after RL",
    "-g": "the length of those completions",
    "-h": "there is no HellaSwag",
    "-a": "a single batch cannot be repeated",
    "-f": "the warm-up is fp32, without TF32",
    "-ge": "kernels are not fused; the result is the same",
    "-z": "ranks always share the optimizer's state (ZeRO stage 1)",
    "-sl": "no update is skipped for its loss", "-sg": "no update is skipped for its norm",
    "-k": "the warm-up's schedule is a cosine",
    "-nm": "--checkpoint-keep 0 keeps all",
    "-lg": "the GPU's state is not logged",
    "-pn": "start ranks with mpirun or srun", "-pr": "start ranks with mpirun or srun",
    "-pg": "start ranks with mpirun or srun", "-pm": "start ranks with mpirun or srun",
    "-ps": "start ranks with mpirun or srun", "-pp": "start ranks with mpirun or srun",
    "-pf": "start ranks with mpirun or srun",
    "-pi": "start ranks with mpirun or srun",
}


def canonical(key):
    return key


def without_counterpart(key):
    return LOST.get(key)


def translate(t):
    t.flags["steps"] = ("0", ["llm.c does no RL"], "")
    if t.number("-x") is not None and t.number("-x") >= 0:
        t.set("warmup-steps", t.value("-x"), "-x")
    else:
        t.refused.append("-x is not given: llm.c takes one pass over its tokens; give "
                         "--warmup-steps")
    length, batch, total = t.number("-t"), t.number("-b"), t.number("-d")
    if not length or batch is None or total is None:
        t.refused.append("-b, -t or -d is no number; give --warmup-batch")
    else:
        if total < 0:
            total = batch * length * t.processes
        t.set("warmup-batch", f"{total / length:.10g}", "-d", "-t",
              note=f"{total:.10g} tokens a step in sequences of {length:.10g}; responses may be shorter")
        t.set("micro-tokens", f"{batch * length:.10g}", "-b", "-t")
        t.set("context", t.value("-t"), "-t")
    t.set("warmup-lr", t.value("-l"), "-l")
    t.set("warmup-lr-rise", t.value("-u"), "-u")
    t.set("warmup-lr-final", t.value("-q"), "-q")
    t.set("warmup-weight-decay", t.value("-c"), "-c")
    t.set("recompute", t.value("-r"), "-r")
    model = str(t.value("-e"))
    if model.startswith("d") and model[1:].isdigit():
        depth = int(model[1:])
        # The widths of llm.c's gpt2_set_hyperparameters.
        sizes = {6: (384, 6), 12: (768, 12), 24: (1024, 16), 36: (1280, 20), 48: (1600, 25),
                 60: (1920, 30), 72: (2880, 30), 84: (3456, 36)}
        if depth in sizes:
            t.set("depth", depth, "-e")
            t.set("channels", sizes[depth][0], "-e")
            t.set("heads", sizes[depth][1], "-e")
        else:
            t.refused.append(f"{t.entry('-e')}: llm.c knows d6, d12, d24, d36, d48, d60, d72, d84")
    elif "-e" in t.given:
        t.set("init", model, "-e", note="with it there is a warm-up only if --data has responses")
    if "-o" in t.given:
        t.set("out", t.value("-o"), "-o")
    if "-nk" in t.given:
        t.set("checkpoint-keep", t.value("-nk"), "-nk")
    t.lose("-n", "checkpoints are counted in RL steps; the warm-up is saved at its end and when it "
                 "is interrupted")
    t.lose("-y", "--resume=auto on the command line continues a run")
    t.lose("-w", "the warm-up has fp32 weights")
