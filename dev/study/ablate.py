#!/usr/bin/env python3
"""Runs matrices of experiments and reports on them.

    python3 dev/study/ablate.py recipes/quick.matrix --out DIR [--jobs N]   run what is not finished
    python3 dev/study/ablate.py recipes/quick.matrix --out DIR --report-only   tables and report only
    python3 dev/study/ablate.py recipes/study/*.matrix --out DIR        one after the other
    python3 dev/study/ablate.py --check docs/precision.md    does the page follow from its CSV files?
    python3 dev/study/ablate.py --update docs/precision.md   write into it what follows from them

The matrix is a text file: see ablate_matrix.py. The comment at its head, which says what it asks and
how long it takes, is printed first. Each cell and seed is one run on one thread, as
many at a time as --jobs. Runs that differ in RL only share a warm-up; the warm-ups come first, and
a run starts when its own is done. Finished runs are kept, interrupted ones continued with the same
bits, failed ones reported and tried again the next time. Ctrl-C and SIGTERM let every run and
warm-up save, then stop; after `kill -9` too the same command continues. A run whose flags in the
matrix have changed is refused.
A run that the program ended because it diverged is a result: it is kept, it counts as collapsed,
and its last values stand for the steps that it did not make.

Of several matrices each gets its folder DIR/NAME, and all share DIR/warmup. The folder of a matrix
gets report.html (one file, no network), curves.csv (a row a run and step), runs.csv, summary.csv and
differences.csv, which ablate_stats.py describes, and runs/NAME with each run's log; samples and
checkpoints of finished runs are removed unless --keep. Python's standard library is enough.
"""
import argparse
import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import ablate_matrix
import ablate_page
import ablate_report
import ablate_stats

# What the model before RL depends on: runs that agree in these share one warm-up.
WARMUP_FLAGS = ("seed", "family", "depth", "heads", "channels", "context", "kv-heads", "head-dim",
                "hidden", "experts", "experts-used", "norm-topk-prob", "rope-theta", "norm-eps", "tied",
                "task", "device", "warmup-steps", "warmup-batch", "warmup-lr", "warmup-lr-rise", "warmup-lr-final",
                "warmup-lr-decay-steps", "warmup-beta1", "warmup-beta2", "warmup-weight-decay",
                "shards")
# Stands in every sentence with which the program ends a run whose gradients or weights are not
# finite.
DIVERGED = "the run has diverged"


def stop(message):
    sys.exit(f"ablate.py: {message}")


def clock_text(seconds):
    s = int(seconds + 0.5)
    if s < 60:
        return f"{s} s"
    return f"{s // 60}:{s % 60:02d} min" if s < 3600 else f"{s // 3600}:{s // 60 % 60:02d} h"


def write_whole(path, text):
    """The file is the old one or the new one, never a part."""
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(path + ".tmp", path)


def read_text(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


# ------------------------------------------------------------------------------------------------
# The folder of an ablation

class Folder:
    def __init__(self, path, warmup):
        self.path, self.warmup = path, warmup
        os.makedirs(os.path.join(path, "runs"), exist_ok=True)
        self.lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT, 0o644)

    def take(self):
        """One ablate.py a folder. Its runs hold the lock too, so none is left when it is free."""
        for _ in range(100):
            try:
                return fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
        stop(f"another ablate.py, or a run that it started, is still at work in {self.path}")

    def of(self, run):
        return os.path.join(self.path, "runs", run.name)

    def flags_file(self, run):
        return self.of(run) + ".flags"

    def log(self, run):
        """The run's log so far; [] if there is none."""
        try:
            return ablate_stats.read_log(os.path.join(self.of(run), "log.jsonl"))
        except FileNotFoundError:
            return []
        except ValueError as error:
            stop(f"{self.of(run)}/log.jsonl is damaged ({error}); remove that run's folder")

    def steps(self, run):
        """The steps that the run is to make, by its own config; None if it has not begun."""
        try:
            lines = read_text(os.path.join(self.of(run), "config")).splitlines()
        except FileNotFoundError:
            return None
        return next(int(x.partition("=")[2]) for x in lines if x.startswith("steps ="))

    def diverged(self, run):
        """Whether the program ended the run because it diverged, in RL."""
        return (self.steps(run) is not None and DIVERGED in self.message(self.of(run))
                and any(e["phase"] == "rollout" for e in self.log(run)))

    def finished(self, run):
        """Whether the run made all its steps, or diverged."""
        steps = self.steps(run)
        return steps is not None and (ablate_stats.last_eval_step(self.log(run)) >= steps
                                      or self.diverged(run))

    def message(self, name):
        """The last line that a program printed, which says why it ended."""
        try:
            lines = [x for x in read_text(f"{name}.out").splitlines() if x.strip()]
        except FileNotFoundError:
            lines = []
        return lines[-1].strip() if lines else "it said nothing"

    def curve_rows(self, run):
        """Rows of curves.csv of a finished run."""
        rows = ablate_stats.curve_rows(self.log(run))
        if self.diverged(run):
            ablate_stats.carry_forward(rows, self.steps(run))
        return rows

    def prune(self, run):
        shutil.rmtree(os.path.join(self.of(run), "checkpoints"), ignore_errors=True)
        for name in ("samples.jsonl", "base.bin"):
            if os.path.exists(os.path.join(self.of(run), name)):
                os.remove(os.path.join(self.of(run), name))


def flags_text(run):
    return "".join(f"{name} = {value}\n" for name, value in run.flags.items())


def program_text(program):
    with open(program, "rb") as f:
        return f"# made by the program {hashlib.sha256(f.read()).hexdigest()[:16]}\n"


def refuse_changed(folder, run):
    """A run is made with one set of flags. Its file of flags begins with a line on the program."""
    if not os.path.exists(folder.flags_file(run)) or folder.steps(run) is None:
        return
    _, _, old = read_text(folder.flags_file(run)).partition("\n")
    changed = sorted(set(old.splitlines()) ^ set(flags_text(run).splitlines()))
    if changed:
        stop(f"{folder.of(run)} was made with other flags ({'; '.join(changed)}); remove it, or "
             "choose another --out")


def count_other_programs(folder, runs, program):
    return sum(folder.steps(r) is not None
               and not read_text(folder.flags_file(r)).startswith(program) for r in runs)


# ------------------------------------------------------------------------------------------------
# Running

class Job:
    """A process: the warm-up that several runs share (run = None), or a run."""

    def __init__(self, name, command, run=None, needs=None):
        self.name, self.command, self.run, self.needs = name, command, run, needs
        self.process, self.began, self.done, self.failure = None, 0, False, None

    def ready(self):
        return self.process is None and not self.failure and (not self.needs or self.needs.done)

    def start(self, folder):
        with open(f"{self.name}.out", "a", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                pass_fds=[folder.lock], start_new_session=True, preexec_fn=interrupt_with_parent)
        self.began = time.monotonic()


def interrupt_with_parent():
    """In the child: if ablate.py is killed, its runs are interrupted, save and end (Linux)."""
    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)
    except (OSError, AttributeError):
        pass


def command(folder, program, out, begin):
    """Continues what is in `out`, or begins it with the flags `begin`."""
    common = ["--out", out, "--threads", "1", "--warmup-cache", folder.warmup]
    if os.path.exists(os.path.join(out, "config")):
        return [program, "--resume"] + common
    return [program, *begin, "--checkpoint-keep", "1"] + common


def run_command(folder, program, run):
    return command(folder, program, folder.of(run), ["--config", folder.flags_file(run)])


def warmup_command(folder, program, run, out):
    """Leaves the model in the cache; does nothing else but to save in `out` if interrupted."""
    return command(folder, program, out,
                   ["--config", folder.flags_file(run), "--steps", "0", "--eval-prompts", "1",
                    "--eval-samples", "1", "--eval-k", "1"])


def warmup_name(folder, run, key):
    """The warm-up's folder: the same whichever of its runs are left."""
    text = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
    return os.path.join(folder.path, "runs", f"warmup-{text}_seed-{run.seed}")


def make_jobs(folder, program, runs):
    """One job a run that is not finished, and before them all one a warm-up that they share: a run
    that waits for none starts while others warm up."""
    jobs, warmups = [], {}
    for run in runs:
        key = tuple(run.flags.get(f) for f in WARMUP_FLAGS)
        fresh = folder.steps(run) is None
        needed = run.flags.get("warmup-steps") != "0" and "init" not in run.flags
        if fresh:
            write_whole(folder.flags_file(run), program_text(program) + flags_text(run))
        if fresh and needed and key not in warmups:
            name = warmup_name(folder, run, key)
            warmups[key] = Job(name, warmup_command(folder, program, run, name))
        jobs.append(Job(folder.of(run), run_command(folder, program, run), run,
                        warmups.get(key) if fresh else None))
    return list(warmups.values()) + jobs


class Progress:
    """One line on a terminal that says how far it is; a line for each run that ends."""

    def __init__(self, folder, jobs, kept, at_once):
        self.folder, self.jobs, self.kept, self.at_once = folder, jobs, kept, at_once
        self.terminal, self.shown = sys.stdout.isatty(), 0
        self.took = {True: [], False: []}  # seconds of jobs that are runs, and of warm-ups

    def left(self):
        """Seconds until the end, or None before a run has ended."""
        if not self.took[True]:
            return None
        work = 0
        for job in self.jobs:
            if job.done or job.failure:
                continue
            took = self.took[job.run is not None]
            each = sum(took) / len(took) if took else 0
            spent = time.monotonic() - job.began if job.process else 0
            work += max(each - spent, 0.1 * each)
        return work / self.at_once

    def text(self):
        runs = [j for j in self.jobs if j.run]
        ended = sum(j.done or bool(j.failure) for j in runs) + self.kept
        left = self.left()
        return (f"{ended} of {len(runs) + self.kept} runs"
                + (f", {clock_text(left)} left" if left is not None else ""))

    def show(self):
        if self.terminal and time.monotonic() - self.shown > 0.5:
            at_work = ", ".join(os.path.basename(j.name) for j in self.jobs
                                if j.process and not j.done and not j.failure)
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + f"{self.text()}: {at_work}"[:width], end="", flush=True)
            self.shown = time.monotonic()

    def ended(self, job):
        seconds = time.monotonic() - job.began
        if not job.failure:
            self.took[job.run is not None].append(seconds)
        score = ""
        if job.run and not job.failure:
            last = [e for e in self.folder.log(job.run) if e["phase"] == "eval"][-1]
            score = f"pass@1 {last['pass1']:.3f}, "
            if self.folder.diverged(job.run):
                score += "DIVERGED, "
        print("\r\033[K" * self.terminal + f"[{self.text()}] {os.path.basename(job.name)}: "
              + (f"FAILED: {job.failure}" if job.failure else f"{score}{clock_text(seconds)}"),
              flush=True)


def collect(folder, job, keep):
    """Takes note of how a job's process ended."""
    good = job.process.returncode == 0 or (job.run and folder.diverged(job.run))
    job.done = good and (not job.run or folder.finished(job.run))
    if not job.done:
        job.failure = folder.message(job.name)
    elif not job.run:
        shutil.rmtree(job.name)  # the model is in the cache
    elif not keep:
        folder.prune(job.run)


def stop_jobs(jobs):
    """Lets the runs finish their step and save; a second Ctrl-C ends them at once."""
    alive = [j for j in jobs if j.process and j.process.poll() is None]
    print(f"\ninterrupted: {len(alive)} runs or warm-ups finish their step and save; the same "
          "command continues", flush=True)
    for job in alive:
        job.process.send_signal(signal.SIGINT)
    try:
        for job in alive:
            job.process.wait()
    except KeyboardInterrupt:
        for job in alive:
            job.process.kill()
    sys.exit(130)


def run_jobs(folder, jobs, progress, keep):
    """Starts jobs in order, as many at a time as may be; returns when none is left."""
    at_work = []
    try:
        while True:
            for job in [j for j in at_work if j.process.poll() is not None]:
                at_work.remove(job)
                collect(folder, job, keep)
                progress.ended(job)
            for job in jobs:
                if job.needs and job.needs.failure and not job.failure:
                    job.failure = job.needs.failure
                if len(at_work) < progress.at_once and job.ready():
                    at_work.append(job)
                    job.start(folder)
            if not at_work:
                return
            progress.show()
            time.sleep(0.05)
    except KeyboardInterrupt:
        stop_jobs(at_work)


def run_matrix(folder, matrix, args):
    if not os.access(args.program, os.X_OK):
        stop(f"{args.program} is not there: run make train_gpt2_rl, or name it with --program")
    folder.take()
    runs = matrix.runs()
    for run in runs:
        refuse_changed(folder, run)
    missing = [r for r in runs if not folder.finished(r)]
    kept = len(runs) - len(missing)
    others = count_other_programs(folder, runs, program_text(args.program))
    if others:
        print(f"{others} runs were begun by another build of the program; remove "
              f"{folder.path}/runs to make them again")
    print(matrix.head(), end="")  # what it asks, and how long it takes
    print(f"{matrix.title}: {len(matrix.cells())} cells x {len(matrix.seeds)} seeds = {len(runs)} "
          f"runs, {kept} finished, {args.jobs} at a time", flush=True)
    jobs = make_jobs(folder, args.program, missing)
    run_jobs(folder, jobs, Progress(folder, jobs, kept, args.jobs), args.keep)
    failed = [j for j in jobs if j.run and j.failure]
    for job in failed:
        print(f"{os.path.basename(job.name)} failed: {job.failure}")
    return len(failed)


# ------------------------------------------------------------------------------------------------
# Reporting

def report(folder, matrix):
    """Writes tables and report from the logs of the finished runs; False if there are none."""
    curves = {run.name: folder.curve_rows(run) for run in matrix.runs() if folder.finished(run)}
    if not curves:
        print(f"ablate.py: no run in {folder.path} is finished; there is nothing to report",
              file=sys.stderr)
        return False
    text = ablate_stats.curves_csv(curves)
    # Only what stands in curves.csv counts, so that the rest follows from it.
    results = ablate_stats.Results(matrix, ablate_stats.read_curves(text))
    files = {"matrix": matrix.text, "curves.csv": text,
             "report.html": ablate_report.report_html(results)}
    files.update((name, ablate_stats.table_text(rows)) for name, rows in results.tables().items())
    for name, content in files.items():
        write_whole(os.path.join(folder.path, name), content)
    names = ", ".join(results.diverged())
    print(f"{folder.path}/report.html and CSV files: {len(curves)} of {len(matrix.runs())} runs"
          + (f"; {ablate_report.diverged_text(results)}: {names}" if names else ""))
    return True


def name_of(path):
    """What the folder of a matrix is called, if there are several."""
    return os.path.basename(path).removesuffix(".matrix")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("matrix", nargs="*", help="a file that lists factors, levels and seeds")
    parser.add_argument("--out", help="folder of the runs and the report")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="runs at a time (one a core)")
    parser.add_argument("--program", default="./train_gpt2_rl")
    parser.add_argument("--keep", action="store_true", help="keep samples and checkpoints")
    parser.add_argument("--report-only", action="store_true", help="start no runs")
    parser.add_argument("--check", metavar="PAGE", help="compare a page with its CSV files")
    parser.add_argument("--update", metavar="PAGE", help="write a page's numbers and figures")
    args = parser.parse_intermixed_args()
    if not args.check and not args.update and not (args.matrix and args.out):
        parser.error("name a matrix and --out, or a page with --check or --update")
    if args.jobs < 1:
        parser.error("--jobs has to be at least 1")
    if len(set(map(name_of, args.matrix))) < len(args.matrix):
        parser.error("two of the matrices have the same name, and so the same folder")
    return args


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.update:
            ablate_page.update(args.update)
        if args.check:
            problems = ablate_page.check(args.check)
            print("\n".join(problems) or f"{args.check} follows from its CSV files")
            sys.exit(bool(problems))
        if args.update:
            return
        matrices = {name_of(path): ablate_matrix.read(path) for path in args.matrix}
        failed = 0
        for name, matrix in matrices.items():
            path = os.path.join(args.out, name) if len(matrices) > 1 else args.out
            folder = Folder(path, os.path.join(args.out, "warmup"))
            failed += 0 if args.report_only else run_matrix(folder, matrix, args)
            failed += not report(folder, matrix)
        sys.exit(bool(failed))
    except (ablate_matrix.MatrixError, ablate_page.PageError, OSError) as error:
        stop(error)


if __name__ == "__main__":
    main()
