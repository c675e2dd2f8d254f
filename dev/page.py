#!/usr/bin/env python3
"""Checks pages: fenced blocks that begin with "$ COMMAND" hold what it prints, each `tests/FILE:NAME` is a
test that is called, each link leads somewhere; docs/README.md has a link to every page of docs/.

    python3 dev/page.py --check docs/scale.md ...
    python3 dev/page.py --update docs/scale.md ...   writes what the commands print
"""
import argparse
import difflib
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEST = re.compile(r"`((?:tests|dev)/[\w/.]+):(\w+)`")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
BLOCK = re.compile(r"(?<=^```\n)\$ (.+)\n(?:.*\n)*?(?=```$)", re.MULTILINE)


def run_block(block):
    command = block.group(1)
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"page.py: \"{command}\" ended with {done.returncode}: {done.stderr.strip()}")
    return f"$ {command}\n{done.stdout}"


def missing_tests(text):
    """Those that a page names and that are not defined, or not called, in their files."""
    missing = []
    for file, name in sorted(set(TEST.findall(text))):
        path = os.path.join(ROOT, file)
        source = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
        calls = len(re.findall(rf"\b{name}\(", source))
        if calls < (1 if file.endswith(".py") else 2):  # unittest calls; in C a definition is one
            missing.append(f"{file}:{name}")
    return missing


def anchors(path):
    """What GitHub calls the headings of a page."""
    with open(path, encoding="utf-8") as f:
        headings = re.findall(r"^#+ (.+)$", f.read(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def dead_links(page, text):
    dead = []
    for file, anchor in LINK.findall(text):
        path = os.path.join(os.path.dirname(page), file) if file else page
        if not os.path.exists(path) or (anchor and path.endswith(".md") and anchor not in anchors(path)):
            dead.append(file + (f"#{anchor}" if anchor else ""))
    return dead


def unlisted(page, text):
    """The pages of docs/ that docs/README.md, the way through them, does not link to."""
    if os.path.abspath(page) != os.path.join(ROOT, "docs/README.md"):
        return []
    folder = os.path.dirname(page)
    linked = {os.path.normpath(os.path.join(folder, file)) for file, _ in LINK.findall(text)}
    pages = (os.path.join(at, f) for at, _, files in os.walk(folder) for f in files if f.endswith(".md"))
    return sorted({os.path.normpath(p) for p in pages} - linked - {os.path.normpath(page)})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = p.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--update", action="store_true")
    p.add_argument("pages", nargs="+", metavar="PAGE")
    a = p.parse_args()
    differ = 0
    for page in a.pages:
        with open(page, encoding="utf-8") as f:
            before = f.read()
        after, blocks = BLOCK.subn(run_block, before)
        if a.update:
            with open(page, "w", encoding="utf-8") as f:
                f.write(after)
        elif after != before:
            differ = 1
            sys.stdout.writelines(difflib.unified_diff(
                before.splitlines(True), after.splitlines(True), page, "what the commands print"))
        missing = missing_tests(after)
        for test in missing:
            print(f"{page} names {test}, which is no test that runs")
        dead = dead_links(page, after)
        for link in dead:
            print(f"{page} links to {link}, which is not there")
        left_out = unlisted(page, after)
        for other in left_out:
            print(f"{page} does not link to {other}")
        differ |= bool(missing or dead or left_out)
        if blocks:
            print(f"{page}: {blocks} blocks" + (" differ" if after != before and a.check else ""))
    sys.exit(differ)


if __name__ == "__main__":
    main()
