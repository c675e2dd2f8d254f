#!/usr/bin/env python3
"""Checks the exercises of docs/exercises.md in a copy of the tree: do their tests notice what they should?

    python3 docs/exercises/check.py           applies each solution, and tries the first exercise
    python3 docs/exercises/check.py --all     tries all of them (make check-exercises)
    python3 docs/exercises/check.py NAME...   these

An exercise is a section of the page with a patch, docs/exercises/NAME.patch, a block of commands, and
below the block what one of them says, and when: "Before: `TEXT`". Before the patch the commands fail and
say TEXT, after it they pass. Where a patch breaks the program it is "After: `TEXT`", and the other way round.
Compiled files of build/ are taken along, so that only what a patch touches is compiled.
"""
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
COMMANDS = re.compile(r"```sh\n(.*?)```\n\n(Before|After): `([^`]+)`", re.S)
PATCH = re.compile(r"\(exercises/(\w+)\.patch\)")

exercise = collections.namedtuple("exercise", "name commands when text")


def exercises():
    with open(os.path.join(HERE, "../exercises.md"), encoding="utf-8") as f:
        sections = re.split(r"^## ", f.read(), flags=re.M)
    found = []
    for section in sections:
        patch, commands = PATCH.search(section), COMMANDS.search(section)
        if patch and commands:
            found.append(exercise(patch[1], *commands.groups()))
    names = [e.name for e in found]
    patches = sorted(f.removesuffix(".patch") for f in os.listdir(HERE) if f.endswith(".patch"))
    if sorted(names) != patches:
        sys.exit(f"docs/exercises.md has exercises for {', '.join(names)}; patches there are: {', '.join(patches)}")
    return found


def others(folder, names):
    """What is no object file of the C compiler, nor says what one depends on."""
    return [n for n in names if n == "cuda.o" or
            not n.endswith((".o", ".d")) and not os.path.isdir(os.path.join(folder, n))]


def copy_tree(to):
    """The tree as it stands, and what the C compiler made of it. Times stay, for make."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\n")
    for file in filter(None, files):
        os.makedirs(os.path.join(to, os.path.dirname(file)), exist_ok=True)
        if os.path.exists(os.path.join(ROOT, file)):
            shutil.copy2(os.path.join(ROOT, file), os.path.join(to, file))
    for part in "llmc", "docs", "dev", "tests", "flags":
        built = os.path.join(ROOT, "build", part)
        if os.path.isdir(built):
            shutil.copytree(built, os.path.join(to, "build", part), ignore=others)
        elif os.path.exists(built):
            os.makedirs(os.path.join(to, "build"), exist_ok=True)
            shutil.copy2(built, os.path.join(to, "build", part))


def apply(tree, name, *options):
    return subprocess.run(["git", "apply", *options, os.path.join(HERE, name + ".patch")], cwd=tree,
                          capture_output=True, text=True, check=False)


def fault(tree, e):
    """What is wrong with an exercise, or nothing."""
    def passes():
        done = subprocess.run(["bash", "-ec", e.commands], cwd=tree, text=True, check=False,
                              env={**os.environ, "NO_CUDA": "1", "MAKEFLAGS": f"-s -j{os.cpu_count()}"},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = e.text in done.stdout
        if (done.returncode != 0) != said:
            return None, f'ended with {done.returncode}, and "{e.text}" was ' \
                         f'{"" if said else "not "}said:\n{done.stdout[-3000:]}'
        return done.returncode == 0, ""

    for patched in (False, True):
        if patched and apply(tree, e.name).returncode:
            return "the patch does not apply"
        passed, problem = passes()
        state = "after" if patched else "before"
        if problem:
            return f"{state} the patch the commands {problem}"
        if passed != (patched == (e.when == "Before")):
            return f"{state} the patch the commands {'pass' if passed else 'fail'}"
    return ""


def main():
    found, wanted, failed = exercises(), sys.argv[1:], 0
    unknown = set(wanted) - {"--all"} - {e.name for e in found}
    if unknown:
        sys.exit(f"check.py: there is no exercise {', '.join(sorted(unknown))}; "
                 f"there are {', '.join(e.name for e in found)}")
    for e in found:
        chosen = e.name in wanted or "--all" in wanted or (not wanted and e is found[0])
        with tempfile.TemporaryDirectory(prefix="exercise-") as tree:
            copy_tree(tree)
            if chosen:
                problem = fault(tree, e)
            else:
                problem = apply(tree, e.name, "--check").stderr
        failed += bool(problem)
        print(f"{e.name}: {problem or ('its test notices' if chosen else 'its patch applies')}", flush=True)
    print(f"{len(found) - failed} passed, {failed} failed")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
