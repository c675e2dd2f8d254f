#!/usr/bin/env python3
"""make gpu-check: everything there is to do with a GPU, in one command and at most eight minutes.

    python3 dev/gpu/check.py [--ptx] [--results DIR] [--budget SECONDS] [--commit HASH]

Builds for the GPU's architecture; runs the tests of the ops and tiny whole runs on it, beside the
CPU device; runs compute-sanitizer if it is there; times kernels, training steps and sampling as
shares of limits measured in the same run, beside PyTorch and transformers. Prints a table and
writes DIR/DATE-GPU.json. --ptx does this on the PTX machine (tests/ptx), without a GPU and without
times, but for the tests of the ops, which `make test` runs there. The exit status is 1 if a check failed. See dev/gpu/README.md.
"""
import argparse
import concurrent.futures
import datetime
import glob
import hashlib
import itertools
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join("dev", "gpu")
RESERVE = 5  # seconds kept for the table and the file


class Failed(Exception):
    """A check found something wrong."""


class Skipped(Exception):
    """A step could not be taken, for a reason that is no error of the program."""


# --------------------------------------------------------------------------------------------------
# Processes

LIVE = set()


def end_process(process):
    """Ends a process that this script started, and whatever that one started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start(command, **options):
    process = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **options)
    LIVE.add(process)
    return process


def last_lines(text, count=3):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:])[-400:] or "it said nothing"


def run(command, seconds, env=None):
    """(status, stdout, stderr) of a command; status is None if it took longer than `seconds`."""
    try:
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        env={**os.environ, **(env or {})})
    except OSError as error:
        raise Failed(f"{command[0]} does not start: {error.strerror}") from error
    try:
        out, err = process.communicate(timeout=max(seconds, 0.1))
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        end_process(process)
        out, err = process.communicate()
        return None, out, err
    finally:
        LIVE.discard(process)


def said(*command):
    """What a command writes; nothing if it is not there or fails."""
    try:
        status, out, _ = run(list(command), 20)
    except Failed:
        return ""
    return out.strip() if status == 0 else ""


# --------------------------------------------------------------------------------------------------
# The run of this script: its steps, its time, its results

class Check:
    def __init__(self, args):
        self.ptx, self.budget, self.began = args.ptx, args.budget, time.monotonic()
        self.results = args.results or (tempfile.mkdtemp(prefix="gpu-check-") if args.ptx
                                        else os.path.join(ROOT, HERE, "results"))
        self.build = args.build or ("build" if args.ptx else "build/native")
        self.jobs = os.cpu_count() or 1
        self.steps, self.limits, self.timings, self.ladder, self.peers = [], [], [], [], {}
        self.commit = args.commit
        self.machine = {"gpu": "PTX machine" if args.ptx else "unknown GPU"}
        self.path = self.named = None  # of the file: where, and for which GPU
        self.blocked = None  # why nothing more can be done
        self.library = False
        self.no_wgmma = "the device was not asked"  # why not
        self.memory_gb = 70.0

    def left(self):
        return self.budget - RESERVE - (time.monotonic() - self.began)

    def binary(self, name):
        """A program of this build."""
        if name == "train_gpt2_rl" or name in LADDERS:
            return f"{self.build}/ptx/{name}" if self.ptx else f"{self.build}/{name}"
        return f"{self.build}/{'ptx' if self.ptx else 'gpu'}/{name}"

    def run(self, command, limit, env=None):
        """As run(), within the time that is left; cut off for want of it, a step is skipped. On the
        PTX machine tensor cores sum as Hopper's do, and a program that opens cuBLASLt finds the
        stand-in of tests/cublaslt.c."""
        seconds = min(limit, self.left())
        if self.ptx:
            env = {"LD_LIBRARY_PATH": os.path.join(ROOT, self.build, "ptx"),
                   "PTX_SUM": os.environ.get("PTX_SUM", "block16"), **(env or {})}
        status, out, err = run(command, seconds, env)
        if status is None and seconds < limit:
            raise Skipped(f"cut off after {seconds:.0f} s: the time was up")
        return status, out, err

    def step(self, name, needs, work, *args):
        """Takes a step if about `needs` seconds are left for it; returns whether it passed."""
        began, verdict, reason = time.monotonic(), "passed", ""
        try:
            if self.blocked:
                raise Skipped(self.blocked)
            if self.left() < needs:
                raise Skipped(f"needs about {needs} s; {max(self.left(), 0):.0f} s are left")
            print(f"... {name}", file=sys.stderr, flush=True)
            reason = work(self, *args) or ""
        except Failed as error:
            verdict, reason = "failed", str(error)
        except Skipped as error:
            verdict, reason = "skipped", str(error)
        self.steps.append({"name": name, "verdict": verdict, "reason": reason,
                           "seconds": round(time.monotonic() - began, 1)})
        print(f"{verdict:8s} {name}{': ' + reason if reason else ''}", flush=True)
        self.write()
        return verdict == "passed"

    def count(self, verdict):
        return sum(step["verdict"] == verdict for step in self.steps)

    def document(self):
        return {"format": 2, "date": f"{datetime.datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
                "ptx": self.ptx, **self.machine, "budget_s": self.budget,
                "took_s": round(time.monotonic() - self.began, 1), "steps": self.steps,
                "limits": self.limits, "timings": self.timings,
                "ladder": self.ladder, "peers": self.peers}

    def new_path(self):
        """DATE-GPU.json, or DATE-GPU-2.json where the day has one already."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.machine["gpu"].lower()).strip("-")
        for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
            path = os.path.join(self.results, f"{datetime.date.today()}-{slug}{suffix}.json")
            if not os.path.exists(path):
                return path

    def write(self):
        """After each step: the file is whole or as it was. Its name follows the GPU's."""
        os.makedirs(self.results, exist_ok=True)
        old, known = self.path, self.named
        if known != self.machine["gpu"]:
            self.path, self.named = self.new_path(), self.machine["gpu"]
        with open(self.path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(self.document(), file, indent=1, allow_nan=False)
            file.write("\n")
        os.replace(self.path + ".tmp", self.path)
        if old and old != self.path:
            os.remove(old)


def parallel(work, items, at_once):
    """work(item) for every item, `at_once` at a time; the results in order, errors as values."""
    def guarded(item):
        try:
            return work(item)
        except (Failed, Skipped) as error:
            return error

    pool = concurrent.futures.ThreadPoolExecutor(at_once)
    try:
        return list(pool.map(guarded, items))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def settle(results):
    """Raises what is worst among the results."""
    failures = [str(r) for r in results if isinstance(r, Failed)]
    if failures:
        raise Failed("; ".join(failures))
    for result in results:
        if isinstance(result, Skipped):
            raise result


# --------------------------------------------------------------------------------------------------
# Build, and what machine this is

LADDERS = ["dev/ladders/layernorm", "dev/ladders/attention", "dev/ladders/backward"]


def test_names():
    return sorted(os.path.basename(p)[:-2] for p in glob.glob(f"{ROOT}/tests/test_cuda_*.c"))


def build(check):
    targets = [check.binary(n) for n in ["train_gpt2_rl", "time", *LADDERS, *test_names()]]
    env = {"MAKEFLAGS": "", "MFLAGS": "", "MAKELEVEL": ""}
    flags = [f"-j{check.jobs}", f"BUILD={check.build}"]
    if check.ptx:
        targets.append(check.binary("libcublasLt.so.13"))
    else:
        hopper = said("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0") == "9.0"
        flags.append(f"GPU_ARCH={os.environ.get('GPU_ARCH', '90a' if hopper else 'native')}")
    status, _, err = check.run(["make", *flags, *targets], 300, env)
    if status != 0:
        raise Failed(f"make: {last_lines(err)}")


def nvcc():
    return shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def describe(check):
    """Software and commit; the GPU's own name comes from the program. A tree without .git does not
    know its commit: then --commit says it, and whether files had changed is unknown."""
    release = re.search(r"release ([\d.]+)", said(nvcc(), "--version"))
    commit = said("git", "rev-parse", "HEAD") or None
    changed = said("git", "status", "--porcelain", "--", ".", ":!dev/gpu/results")
    check.machine.update(commit=commit or check.commit, dirty=bool(changed) if commit else None,
                           cuda=release.group(1) if release else None, driver=None)
    if check.ptx:
        return
    fields = ["driver_version", "power.limit", "clocks.max.sm"]
    line = said("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0")
    if line:
        driver, power, clock = [field.strip() for field in line.split(",")]
        check.machine.update(driver=driver, power_limit=power, clock_max=clock)


def device(check):
    status, out, err = check.run([check.binary("time"), "--only", "device",
                                    *(["--toy"] if check.ptx else [])], 60)
    if status != 0:
        raise Failed(last_lines(err))
    line = json.loads(out.splitlines()[0])
    name = re.fullmatch(r"cuda \((.*), (\d+) GB, (\w+) products(: .*)?\)", line["name"])
    check.library = bool(line["library"])
    status, _, err = check.run([check.binary("time"), "--only", "device", "--wgmma",
                                *(["--toy"] if check.ptx else [])], 60)
    check.no_wgmma = "" if status == 0 else last_lines(err)
    if name and not check.ptx:
        check.machine.update(gpu=name.group(1), memory_gb=float(name.group(2)))
        check.memory_gb = min(check.memory_gb, 0.85 * float(name.group(2)))
    return line["name"]


# --------------------------------------------------------------------------------------------------
# Tests of the ops

def one_test(check, name, env, limit):
    """Runs a test program; returns how many checks passed."""
    status, out, err = check.run([check.binary(name)], limit, env)
    verdict = re.search(r"^(\d+) passed, (\d+) failed$", out, re.M)
    if status is None:
        raise Failed(f"{name} took longer than {limit} s")
    if status != 0 or not verdict or int(verdict.group(2)):
        raise Failed(f"{name} ended with status {status}: {last_lines(out + err)}")
    return int(verdict.group(1))


def need_wgmma(check):
    if check.no_wgmma:
        raise Skipped(check.no_wgmma)


def op_tests(check, products):
    if check.ptx:
        raise Skipped("make test runs them on the PTX machine")
    if products == "cublaslt" and not check.library:
        raise Skipped("cuBLASLt is not installed, or cannot start")
    if products == "wgmma":
        need_wgmma(check)
    env = {"CUDA_PRODUCTS": products}
    counts = parallel(lambda name: one_test(check, name, env, 150), test_names(),
                      min(check.jobs, 6))
    settle(counts)
    return f"{sum(counts)} checks"


FOUND = 9  # compute-sanitizer's exit status where it found something


def certain_races(text):
    """Racecheck's hazards that are certain errors, the first line of each: those of the level ERROR,
    between accesses that threads make themselves. README.md says why."""
    hazards = re.split(r"\n(?==+ \w+: )", text)
    return [hazard.split("\n")[0].strip("= ") for hazard in hazards
            if re.match(r"=+ error: potential \w+ hazard", hazard, re.I)
            and "memcpy_async" not in hazard]


def racecheck_report(check, results):
    """Keeps what racecheck said in a file beside the result. Fails on what is certain; returns what a
    person has to read."""
    path = os.path.splitext(check.path)[0] + "-racecheck.txt"
    with open(path, "w", encoding="utf-8") as file:
        for name, (status, out, err) in results.items():
            file.write(f"{name}, exit status {status}\n{out}{err}\n")
    said_by = {name: out + err for name, (_, out, err) in results.items()}
    settle([Failed(f"{name}: {races[0]}; all of them: {path}")
            for name, races in ((name, certain_races(said)) for name, said in said_by.items()) if races])
    unread = [name for name, said in said_by.items()
              if results[name][0] == FOUND or re.search("hazard detected|race reported", said, re.I)]
    return f"read {path}: {', '.join(unread)}" if unread else ""


def sanitizer(check, tool):
    """It slows a program by orders of magnitude: a test that does not end in time is left."""
    if check.ptx:
        raise Skipped("there is no GPU; the PTX machine checks memory and races itself")
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(path):
        raise Skipped("compute-sanitizer is not installed")
    seconds = min(40, check.left() - 180)
    if seconds < 10:
        raise Skipped("the time is needed for what follows")
    # A test asks for more memory than there is, on purpose: that error of the API is no finding.
    options = {"memcheck": ["--report-api-errors", "no"], "racecheck": ["--racecheck-report", "all"]}
    command = [path, "--tool", tool, "--error-exitcode", str(FOUND), *options[tool]]
    names = test_names()
    results = parallel(lambda name: run([*command, check.binary(name)], seconds, {"TEST_QUICK": "1"}),
                       names, len(names))
    settle([r for r in results if isinstance(r, Failed)])
    results = dict(zip(names, results))
    fine = (None, 0, FOUND) if tool == "racecheck" else (None, 0)
    settle([Failed(f"{name}: {last_lines(out + err)}") for name, (status, out, err) in results.items()
            if status not in fine])
    notes = [racecheck_report(check, results) if tool == "racecheck" else ""]
    cut = [name for name in names if results[name][0] is None]
    if cut:
        notes.append(f"not ended within {seconds:.0f} s: {', '.join(cut)}")
    if len(cut) == len(names):
        raise Skipped("; ".join(filter(None, notes)))
    return "; ".join(filter(None, notes))


# --------------------------------------------------------------------------------------------------
# Whole runs

DTYPES = ["fp32", "tf32", "bf16", "fp16"]
FAMILIES = ["llama", "qwen2", "qwen3"]  # besides gpt2
SMALL = {"--depth": 1, "--channels": 16, "--heads": 2, "--prompts": 2, "--group": 2, "--steps": 1,
         "--warmup-steps": 2, "--warmup-batch": 4, "--eval-prompts": 2, "--eval-samples": 2,
         "--eval-k": 2}
LARGER = {"--depth": 2, "--channels": 64, "--heads": 4, "--prompts": 8, "--group": 4, "--steps": 3,
          "--warmup-steps": 20, "--warmup-batch": 32, "--eval-prompts": 16, "--eval-samples": 4,
          "--eval-k": 4}
# fp32 has no coarser format to compare with. Log-probabilities of some nats have units of 2^-22 in
# the last place; sums in another order may move them by some of these.
FP32_MISMATCH = 16 * 2.0**-22
# The losses of the same steps on two devices, relative: some fp32 roundings. Sums in another order
# differ by one or a few; AdamW, which divides by a gradient's own size, makes more of those of
# gradients near 0.
LOSS_TOLERANCE = 16 * 2.0**-24


SWITCH = None  # the value of a flag without one


def plain_run(train, sampler=None, device_name="cuda", **flags):
    return {"--device": device_name, "--train-dtype": train, "--rollout-dtype": sampler or train,
            **flags}


INVARIANT = {"--batch-invariant": SWITCH}
# Every token of a response has the coefficient 1 with the objective sft, so that a model that gets
# nothing right has a gradient too.
RUNS = {**{d: plain_run(d) for d in DTYPES},
        "again": plain_run("fp32"),
        "recompute": plain_run("fp32", **{"--recompute": 2}),
        "cpu": plain_run("fp32", device_name="cpu"),
        **{f"cpu {d}": plain_run("fp32", d, "cpu") for d in DTYPES if d != "fp32"},
        **{f"invariant {d}": plain_run(d, **INVARIANT) for d in DTYPES},
        **{f"invariant {f}": plain_run("bf16", **INVARIANT, **{"--family": f, "--kv-heads": 1}) for f in FAMILIES},
        **{f"slots {d}": plain_run(d, **INVARIANT, **{"--slots": 3}) for d in DTYPES}}


def whole_run(check, name, folder, launcher=(), run=None):
    """Log lines and hash of the final model of a run, by its name in RUNS."""
    out = os.path.join(folder, name.replace(" ", "-"))
    shape = SMALL if check.ptx else LARGER
    flags = {**shape, "--objective": "sft", **(run or RUNS[name]), "--out": out}
    command = [*launcher, check.binary("train_gpt2_rl"),
               *(str(x) for item in flags.items() for x in item if x is not SWITCH)]
    status, _, err = check.run(command, 60)
    if status != 0:
        raise Failed(f"run {name} ended with status {status}: {last_lines(err)}")
    with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as log:
        lines = [json.loads(line) for line in log]
    model = "model/model.safetensors" if "--family" in flags else "model.bin"
    models = sorted(glob.glob(os.path.join(out, "checkpoints", "step-*", model)))
    if not models:
        raise Failed(f"run {name} left no checkpoint")
    with open(models[-1], "rb") as file:
        return lines, hashlib.sha256(file.read()).hexdigest()


def of_phase(log, phase):
    return [line for line in log if line["phase"] == phase]


def check_numbers(log, name):
    """Every metric of a log is a finite number: log.c writes null for others, and for the mean of
    no masked token."""
    for line in log:
        for key, value in line.items():
            if key == "masked_mu" and line["masked"] == 0:
                continue
            if key != "phase" and (value is None or not math.isfinite(value)):
                raise Failed(f"run {name}: {key} of phase {line['phase']} is no finite number")
    for phase in ("warmup", "rollout", "numerics", "update", "eval"):
        if not of_phase(log, phase):
            raise Failed(f"run {name} logged no {phase}")


def mismatch(log):
    """Mean |log pi - log mu| of the first rollout, before any update: numerics alone."""
    return of_phase(log, "numerics")[0]["logp_diff_mean"]


def check_mismatch(runs, dtype):
    """Sampler and trainer compute in the same format, in different orders on a GPU. They may be as
    far apart as twice what the format itself does: the distance on the CPU device of a sampler in
    this format from an fp32 trainer."""
    found = mismatch(runs[dtype][0])
    allowed = FP32_MISMATCH if dtype == "fp32" else 2 * mismatch(runs[f"cpu {dtype}"][0])
    if not found <= allowed:
        raise Failed(f"{dtype}: mean |log pi - log mu| is {found:.2e}; {allowed:.2e} is allowed")
    return f"{dtype} {found:.1e} of {allowed:.1e}"


def runs_finish(check, runs, folder):
    names = list(RUNS)
    results = parallel(lambda name: whole_run(check, name, folder), names, min(check.jobs, 4))
    settle(results)
    runs.update(zip(names, results))
    for name, (log, _) in runs.items():
        check_numbers(log, name)
    return f"{len(names)} runs"


def runs_mismatch(_, runs):
    return ", ".join(check_mismatch(runs, d) for d in DTYPES)


def check_equal(name, log):
    for line in of_phase(log, "numerics"):
        if line["logp_diff_max"] != 0:
            raise Failed(f"{name}: max |log pi - log mu| is {line['logp_diff_max']:.2e}")


def runs_invariant(_, runs):
    """With --batch-invariant every token has one log-probability, the sampler's and the trainer's."""
    for name in DTYPES + FAMILIES:
        check_equal(name, runs[f"invariant {name}"][0])


def runs_same_bits(_, runs, name, as_name="fp32"):
    if runs[name][1] != runs[as_name][1]:
        raise Failed("the final model has other bits")


def runs_slots(check, runs):
    for dtype in DTYPES:
        runs_same_bits(check, runs, f"slots {dtype}", f"invariant {dtype}")


def runs_beside_cpu(_, runs):
    (gpu, _), (cpu, _) = runs["fp32"], runs["cpu"]
    for key in ("reward", "response_length"):
        a, b = (of_phase(log, "rollout")[0][key] for log in (gpu, cpu))
        if a != b:
            raise Failed(f"first step: {key} {a} on the GPU, {b} on the CPU")
    apart = 0
    for phase in ("warmup", "update"):
        a, b = (of_phase(log, phase)[0]["loss"] for log in (gpu, cpu))
        apart = max(apart, abs(a - b) / abs(b))
        if not abs(a - b) <= LOSS_TOLERANCE * abs(b):
            raise Failed(f"loss of phase {phase}: {a:.9g} on the GPU, {b:.9g} on the CPU")
    return f"losses apart by {apart:.1e}, {LOSS_TOLERANCE:.1e} is allowed"


def runs_ranks(check):
    """As many ranks as there are GPUs, at most 4, have the bits of one process."""
    if check.ptx:
        raise Skipped("make test runs several ranks on the PTX machine")
    gpus = len(said("nvidia-smi", "-L").splitlines())
    size = 4 if gpus >= 4 else 2
    if gpus < 2:
        raise Skipped("there is one GPU")
    if not shutil.which("mpirun"):
        raise Skipped("there is no mpirun")
    run = plain_run("bf16", **INVARIANT, **{"--shards": size, "--prompts": 2 * size, "--updates": 2})
    launcher = ["mpirun", "-np", str(size)] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
    with tempfile.TemporaryDirectory() as folder:
        one = whole_run(check, "one", folder, run=run)
        many = whole_run(check, "many", folder, launcher, run)
    if one[1] != many[1]:
        raise Failed("the final model has other bits")
    return f"{size} ranks, {of_phase(many[0], 'rank')[0]['sent'] / 1e6:.1f} MB sent by the first"


def run_wgmma(check):
    need_wgmma(check)
    run = plain_run("bf16", **INVARIANT, **{"--products": "wgmma"})
    with tempfile.TemporaryDirectory() as folder:
        log, _ = whole_run(check, "wgmma", folder, run=run)
    check_equal("--products wgmma", log)


def whole_runs(check):
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        if not check.step("whole runs: end well, finite numbers", 5, runs_finish, runs, folder):
            return
    check.step("whole runs: log pi near log mu", 0, runs_mismatch, runs)
    check.step("whole runs: --batch-invariant: log pi is log mu", 0, runs_invariant, runs)
    check.step("whole runs: --batch-invariant: --slots leaves no trace", 0, runs_slots, runs)
    check.step("whole runs: --products wgmma: log pi is log mu", 5, run_wgmma)
    check.step("whole runs: twice the same bits", 0, runs_same_bits, runs, "again")
    check.step("whole runs: --recompute 2 leaves no trace", 0, runs_same_bits, runs, "recompute")
    check.step("whole runs: fp32 as on the CPU device", 0, runs_beside_cpu, runs)
    check.step("whole runs: several ranks have the bits of one", 10, runs_ranks)


# --------------------------------------------------------------------------------------------------
# Times

INVARIANT_TEXT, WGMMA_TEXT = ", batch-invariant", ", wgmma"
SIZES = ["124M", "355M", "774M", "1558M"]
EXPECTED = {"kernels": {"kernel": 23}, "products": {"product": 12, "kernel": 8}, "step": {"step": 1},
            "sampling": {"sampling": 3}}  # lines of a section
MEASURED = ["value", "us", "share", "tflops", "handwritten_tflops", "handwritten_share",
            "handwritten_fp8_tflops", "tokens_per_s", "mfu"]


def check_line(check, line):
    """On a GPU every figure is a number above 0; on the PTX machine none is there."""
    for key in MEASURED:
        if key in line and check.ptx and line[key] is not None:
            raise Failed(f"{line['name']}: the PTX machine gave a {key}")
        if key in line and not check.ptx and not (line[key] and line[key] > 0):
            raise Failed(f"{line['name']}: no {key}")


def time_section(check, section, *flags):
    """Runs a section of time.c; keeps its lines."""
    command = [check.binary("time"), "--only", section, *flags, "--memory",
               f"{check.memory_gb:g}", *(["--toy"] if check.ptx else [])]
    status, out, err = check.run(command, 60)
    if status is None:
        raise Failed("took longer than 60 s")
    if status != 0:
        raise Failed(f"status {status}: {last_lines(err)}")
    lines = [json.loads(line) for line in out.splitlines()]
    skipped = [line for line in lines if line["kind"] == "skipped"]
    if skipped:
        raise Skipped(skipped[0]["reason"])
    expected = {"limit": 2, **EXPECTED[section]}
    if section == "products" and "--wgmma" in flags:
        expected["kernel"] = 4  # the library's were timed before
    for kind, count in expected.items():
        found = [line for line in lines if line["kind"] == kind]
        if len(found) != count:
            raise Failed(f"{len(found)} lines of kind {kind}, not {count}")
        for line in found:
            check_line(check, line)
        (check.limits if kind == "limit" else check.timings).extend(found)


def climb(check, ladder):
    """Verifies the rungs of a kernel ladder and, on a GPU, keeps their times."""
    status, out, err = check.run([check.binary(ladder), *([] if check.ptx else ["--time"])], 30)
    if status is None:
        raise Failed("took longer than 30 s")
    if status != 0:
        raise Failed(f"status {status}: {last_lines(err or out)}")
    if not check.ptx:
        check.ladder.extend(json.loads(line) for line in out.splitlines())


class Peers:
    """The process of peers.py: a line of JSON in, a line of JSON out."""

    def __init__(self, check):
        self.check, self.process, self.lines = check, None, None

    def open(self):
        env = {"TORCHINDUCTOR_CACHE_DIR": os.path.join(ROOT, self.check.build, "inductor")}
        command = [sys.executable, os.path.join(HERE, "peers.py")]
        self.process = start(command + (["--toy"] if self.check.ptx else []),
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env={**os.environ, **env})
        self.lines = queue.Queue()
        threading.Thread(target=self.read, args=(self.process, self.lines), daemon=True).start()
        self.check.peers.update(self.answer(90))

    @staticmethod
    def read(process, lines):
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def answer(self, limit):
        seconds = min(limit, self.check.left())
        try:
            line = self.lines.get(timeout=max(seconds, 0.1))
        except queue.Empty:
            self.close()
            raise Skipped(f"the peer gave no answer within {seconds:.0f} s") from None
        if line is None:
            self.close()
            raise Skipped("the peer's process ended")
        return json.loads(line)

    def ask(self, request, limit):
        if not self.process:
            self.open()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.close()
            raise Skipped("the peer's process ended") from None
        answer = self.answer(limit)
        if "error" in answer:
            raise Skipped(answer["error"])
        return answer

    def close(self):
        if self.process:
            end_process(self.process)
            self.process.wait()
            LIVE.discard(self.process)
        self.process = None


def sampled(check):
    return [t for t in check.timings if t["kind"] == "sampling" and variant_of(t) is None]


def variant_of(line):
    """What a line's name without its suffix is, or None where it has none."""
    names = [line["name"].removesuffix(text) for text in (INVARIANT_TEXT, WGMMA_TEXT)]
    return next((name for name in names if name != line["name"]), None)


def timing_of(check, kind, name):
    for line in check.timings:
        if line["kind"] == kind and line["name"] == name:
            return line
    raise Skipped("there is nothing of ours to compare with")


def compare(check, peers, kind, name, peer, request, limit):
    """A peer's figure beside ours; a peer that is missing or fails is reported, no more."""
    line = timing_of(check, kind, name)
    sizes = ("sequences", "length", "tokens", "prompt", "new")
    answer = peers.ask({**request, **{key: line[key] for key in sizes if key in line}}, limit)
    if check.ptx and answer.get("tokens_per_s") is not None:
        raise Failed("the peer measured something at toy sizes")
    ours, theirs = line["tokens_per_s"], answer["tokens_per_s"]
    answer.update(peer=peer, ratio=ours / theirs if ours and theirs else None)
    line.setdefault("peers", []).append(answer)


def time_step(check, peers, size, short):
    name = f"{size} {'short' if short else 'long'}"
    flags = ["--model", size, *(["--short"] if short else [])]
    if check.step(f"time training step {name}", 15, time_section, "step", *flags):
        check.step(f"peer  training step {name}", 25, compare, peers, "step", name, "PyTorch",
                     {"verb": "train", "model": size, "short": short}, 100)


def time_invariant(check, section, name, *flags):
    """The same with the products that --batch-invariant has."""
    check.step(f"time {name}{INVARIANT_TEXT}", 15, time_section, section, "--batch-invariant", *flags)
    time_wgmma(check, section, name, *flags)


def time_wgmma(check, section, name, *flags):
    if not check.no_wgmma:
        check.step(f"time {name}{WGMMA_TEXT}", 15, time_section, section, "--wgmma", *flags)


def time_generate(check, peers, cache):
    for line in sampled(check):
        check.step(f"peer  sampling {line['name']}, {cache} cache", 30, compare, peers, "sampling",
                     line["name"], f"generate, {cache}", {"verb": "generate", "cache": cache}, 75)


def times(check):
    """What matters most comes first: the time may not suffice for all."""
    peers = Peers(check)
    try:
        check.step("time kernels", 15, time_section, "kernels")
        check.step("time products", 15, time_section, "products")
        time_wgmma(check, "products", "products")
        for ladder in LADDERS:
            check.step(f"kernel ladder {os.path.basename(ladder)}", 5, climb, ladder)
        time_step(check, peers, "124M", False)
        time_step(check, peers, "1558M", False)
        check.step("time sampling", 15, time_section, "sampling")
        time_generate(check, peers, "static")
        time_invariant(check, "sampling", "sampling")
        for size in ("124M", "1558M"):
            time_invariant(check, "step", f"training step {size} long", "--model", size)
        for size in ("355M", "774M"):
            time_step(check, peers, size, False)
        for size in ("124M", "1558M", "355M", "774M"):
            time_step(check, peers, size, True)
        time_generate(check, peers, "dynamic")
    finally:
        peers.close()


# --------------------------------------------------------------------------------------------------
# The table

RATIO_MIN, RATIO_GOAL = 1.0, 1.2
MFU_GOALS = {"124M long": 0.5, "1558M long": 0.6}


def cell(value, decimals=0, unit=""):
    return "-" if value is None else f"{value:,.{decimals}f}{unit}"


def percent(share):
    return cell(None if share is None else 100 * share, 0, "%")


def row(name, value, share="", peer="", ratio="", goal=""):
    print(f"  {name:34s} {value:>20s} {share:>8s}  {peer:22s} {ratio:>7s}  {goal}".rstrip())


def verdict_of(value, goal):
    return "not measured" if value is None else "met" if value >= goal else "missed"


def step_goal(line, ratio):
    texts = [f">= {RATIO_MIN:g}x {verdict_of(ratio, RATIO_MIN)}, "
             f">= {RATIO_GOAL:g}x {verdict_of(ratio, RATIO_GOAL)}"]
    if line["name"] in MFU_GOALS:
        goal = MFU_GOALS[line["name"]]
        texts.append(f"MFU >= {percent(goal)} {verdict_of(line['mfu'], goal)}")
    return "; ".join(texts)


def invariant_row(check, line, name, share):
    """Beside the same with the library's products."""
    base = next(t for t in check.timings if t["name"] == variant_of(line))
    ours, fast = line["tokens_per_s"], base["tokens_per_s"]
    row(name, f"{cell(ours)} tokens/s", percent(share), f"without {cell(fast)}",
        cell(ours / fast if ours and fast else None, 2, "x"))


def step_row(check, line):
    if variant_of(line):
        return invariant_row(check, line, f"step {line['name']}", line["mfu"])
    first = line.get("peers", [{}])[0]
    name = f"step {line['name']}, {line['sequences']} x {line['length']}"
    row(name, f"{cell(line['tokens_per_s'])} tokens/s", percent(line["mfu"]),
        f"PyTorch {cell(first.get('tokens_per_s'))}", cell(first.get("ratio"), 2, "x"),
        step_goal(line, first.get("ratio")))
    row("", f"{cell(line['memory_gb'], 1)} GB", "", f"--recompute {line['recompute']}")
    return None


def sampling_row(check, line):
    if variant_of(line):
        return invariant_row(check, line, f"sampling, {line['name']}", line["share"])
    ours = f"{cell(line['tokens_per_s'])} tokens/s"
    row(f"sampling, {line['name']}", ours, percent(line["share"]))
    for peer in line.get("peers", []):
        row("", "", "", f"{peer['peer']} {cell(peer['tokens_per_s'])}", cell(peer["ratio"], 2, "x"))
    return None


def product_row(_, line):
    ours, library, fp8 = line["handwritten_tflops"], line["tflops"], line["handwritten_fp8_tflops"]
    whose = "wgmma" if variant_of(line) else "handwritten"
    row(line["name"], f"{cell(library, 0)} TFLOP/s", percent(line["share"]),
        f"{whose} {cell(ours, 0)}", cell(ours / library if ours and library else None, 2, "x"))
    row("", "", "", f"in fp8 {cell(fp8, 0)}", cell(fp8 / library if fp8 and library else None, 2, "x"))


def kernel_row(_, line):
    row(line["name"], f"{cell(line['us'], 1)} us", percent(line["share"]), f"of {line['limit']}")


def limit_rows(limits):
    for name in dict.fromkeys(line["name"] for line in limits):
        values = [line["value"] for line in limits if line["name"] == name]
        unit = next(line["unit"] for line in limits if line["name"] == name)
        known = [v for v in values if v is not None]
        text = f"{min(known):,.0f} to {max(known):,.0f}" if known else "-"
        row(f"limit: {name}", f"{text} {unit}")


def table(check):
    print()
    row("measurement", "measured", "of limit", "beside", "ratio", "goal")
    limit_rows(check.limits)
    if check.limits and not check.library:
        print("  without cuBLASLt: the product limit is the handwritten product's")
    rows = (("kernel", kernel_row), ("product", product_row), ("step", step_row),
            ("sampling", sampling_row))
    for kind, print_row in rows:
        for line in (t for t in check.timings if t["kind"] == kind):
            print_row(check, line)
    for step in check.steps:
        if step["verdict"] == "failed":
            print(f"  failed: {step['name']}: {step['reason']}")
    skipped = [step for step in check.steps if step["verdict"] == "skipped"]
    for reason in dict.fromkeys(step["reason"] for step in skipped):
        names = [step["name"] for step in skipped if step["reason"] == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"  skipped: {names[0]}{more}: {reason}")
    print("  peers: " + (", ".join(f"{k} {v}" for k, v in check.peers.items()) or "not asked"))


# --------------------------------------------------------------------------------------------------

def all_steps(check):
    describe(check)
    for name, needs, work in (("build", 0, build), ("device", 0, device)):
        if not check.step(name, needs, work):
            check.blocked = f"the step {name} did not pass"
    check.step("op tests, handwritten products", 5, op_tests, "handwritten")
    check.step("op tests, cuBLASLt products", 5, op_tests, "cublaslt")
    check.step("op tests, wgmma products", 5, op_tests, "wgmma")
    whole_runs(check)
    for tool in ("memcheck", "racecheck"):
        check.step(f"compute-sanitizer {tool}", 5, sanitizer, tool)
    times(check)


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ptx", action="store_true",
                        help="on the PTX machine, without a GPU and without times")
    parser.add_argument("--results", help="folder of the result file (dev/gpu/results; "
                        "with --ptx a temporary one)")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all (480)")
    parser.add_argument("--build", help="folder of the build (build/native; with --ptx build)")
    parser.add_argument("--commit", metavar="HASH",
                        help="which commit this is, where git cannot say")
    check = Check(parser.parse_args())
    signal.signal(signal.SIGTERM, interrupted)
    try:
        all_steps(check)
    except KeyboardInterrupt:
        for process in list(LIVE):
            end_process(process)
        check.steps.append({"name": "interrupted", "verdict": "failed", "reason": "by a signal",
                              "seconds": 0})
    check.write()
    table(check)
    print(f"\n{check.path}\n{check.count('passed')} passed, {check.count('failed')} failed, "
          f"{check.count('skipped')} skipped, {time.monotonic() - check.began:.0f} s")
    sys.exit(check.count("failed") > 0)


if __name__ == "__main__":
    main()
