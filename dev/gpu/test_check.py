#!/usr/bin/env python3
"""What check.py makes of compute-sanitizer's reports, with a stand-in for the tool that says what the
manual shows. Takes a second.

    python3 dev/gpu/test_check.py
"""
import argparse
import os
import stat
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check  # noqa: E402

HAZARD = """========= COMPUTE-SANITIZER
========= {level}: Potential {kind} hazard detected at __shared__ 0x0 in block (0,0,0) :
=========     Write Thread (0,0,0) at kernel()+0x2f0 in a.cu:20{mark}
=========     Write Thread (1,0,0) at kernel()+0x2f0 in a.cu:20
=========     Current Value : 1, Incoming Value : 2
=========
========= RACECHECK SUMMARY: 1 hazard displayed ({errors} errors, {warnings} warnings)
"""
ANALYSIS = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at kernel()+0xf0 in a.cu:40
=========     and Read access at kernel()+0x280 in a.cu:46 [4 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
MARK = " (invalid memcpy_async synchronization)"


def hazard(level, kind, mark=""):
    error = level.lower() == "error"
    return HAZARD.format(level=level, kind=kind, mark=mark, errors=int(error), warnings=int(not error))


# What the tool says and its exit status; whether the step fails; whether its note names the report.
CASES = [("========= ERROR SUMMARY: 0 errors\n", 0, False, False),
         (hazard("ERROR", "WAW"), 9, True, None),
         (hazard("Error", "RAW"), 9, True, None),
         (hazard("Error", "RAW", MARK), 9, False, True),
         (hazard("Error", "RAW", MARK) + hazard("Error", "WAR"), 9, True, None),
         (hazard("Error", "WAR") + hazard("Error", "RAW", MARK), 9, True, None),
         (hazard("WARNING", "WAR"), 0, False, True),
         (ANALYSIS, 9, False, True),  # without its hazards: nobody knows whether they bear a mark
         ("words that nobody foresaw\n", 9, False, True),
         ("========= ERROR SUMMARY: 0 errors\n1 passed, 1 failed\n", 1, True, None)]


def judge(text, status):
    """(whether the step failed, its note or reason, the report)"""
    with tempfile.TemporaryDirectory() as folder:
        tool = os.path.join(folder, "compute-sanitizer")
        with open(tool, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
        os.chmod(tool, os.stat(tool).st_mode | stat.S_IXUSR)
        os.environ["PATH"] = folder + os.pathsep + PATH
        c = check.Check(argparse.Namespace(ptx=False, budget=480, results=folder, build="build/none",
                                           commit=None))
        c.write()
        try:
            failed, said = False, check.sanitizer(c, "racecheck")
        except check.Failed as error:
            failed, said = True, str(error)
        report = c.path[:-len(".json")] + "-racecheck.txt"
        kept = ""
        if os.path.exists(report):
            with open(report, encoding="utf-8") as file:
                kept = file.read()
        return failed, said, kept


PATH = os.environ["PATH"]
wrong = 0
for text, status, fails, named in CASES:
    failed, said, kept = judge(text, status)
    right = failed == fails and (named is None or ("-racecheck.txt" in said) == named)
    right &= status not in (0, 9) or kept.count(text) == len(check.test_names())
    if not right:
        wrong += 1
        print(f"status {status}, failed {failed}, said {said!r} of:\n{text}")
print(f"{len(CASES) - wrong} passed, {wrong} failed")
sys.exit(wrong > 0)
