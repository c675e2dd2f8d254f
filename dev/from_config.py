#!/usr/bin/env python3
"""Translates a configuration of TRL, verl or llm.c into a file of flags (--config).

    python3 dev/from_config.py FILE... [-o OUT] [--processes N]

FILE is TRL's or open-r1's YAML, verl's overrides (a shell script or YAML), or a script that starts
llm.c's train_gpt2cu. Of several files of one library a later one wins. Above each flag stands the
line that it comes from; defaults of theirs that differ from ours are flags, too. What has no
counterpart here, and keys that nobody knows, are comments with their file and line. Nothing is
clipped: a value out of our range is said, and its flag is left out.

YAML needs PyYAML, which TRL and verl bring along.
"""
import argparse
import os
import re
import shlex
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "config"))
import llmc_table  # noqa: E402
import trl_table  # noqa: E402
import verl_table  # noqa: E402

TABLES = {"TRL": trl_table, "verl": verl_table, "llm.c": llmc_table}
FLAGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../llmc/run/flags.def")


def stop(message):
    sys.exit(f"from_config.py: {message}")


class Entry:
    """A key of theirs, its value as text (a list of texts, None for null), where it stands."""

    def __init__(self, key, value, where):
        self.key, self.value, self.where = key, value, where

    def __str__(self):
        return f"{self.where} {self.key} = {text_of(self.value)}"


def text_of(value):
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else " ".join(str(value).split())


def number(value):
    """The number that a text is, or None."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------
# Reading

def read_yaml(path, text):
    try:
        import yaml
    except ImportError:
        stop(f"{path} is YAML, and PyYAML is not installed; pip install pyyaml")
    found = []

    def walk(node, key):
        where = f"{path}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                walk(value, f"{key}.{name.value}" if key else name.value)
        elif isinstance(node, yaml.SequenceNode):
            found.append(Entry(key, [str(getattr(v, "value", "...")) for v in node.value], where))
        else:
            null = node.tag.endswith(":null")
            found.append(Entry(key, None if null else node.value, where))
    try:
        root = yaml.compose(text)
    except yaml.YAMLError as error:
        stop(f"{path} is no YAML: {' '.join(str(error).split())}")
    if not isinstance(root, yaml.MappingNode):
        stop(f"{path} holds no keys; it should be a mapping such as learning_rate: 1.0e-06")
    walk(root, "")
    return found


def substitute(text, variables):
    """A line of a shell script with the variables and the sums of integers that are known."""
    def variable(match):
        name, default = match.group(1) or match.group(3), match.group(2)
        if name in variables or default is None:
            return variables.get(name, match.group(0))
        return substitute(default, variables)

    def arithmetic(match):
        inner = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda m: variables.get(m.group(1), "?"),
                       match.group(1))
        if not re.fullmatch(r"[\d\s+*/()%-]+", inner) or "**" in inner:  # powers may not end
            return match.group(0)
        try:
            return str(eval(inner.replace("/", "//")))  # digits and operators only
        except (SyntaxError, ZeroDivisionError):
            return match.group(0)
    text = re.sub(r"\$\(\((.*?)\)\)(?!\))", arithmetic, text)
    return re.sub(r"\$(?:\{(\w+)(?::?-((?:[^{}]|\$\{\w+\})*))?\}|(\w+))", variable, text)


def read_words(path, text):
    """[(word, line, whether it ends its command)] of a shell script, its variables put in."""
    words, variables, held = [], {}, ""
    for line, raw in enumerate(text.split("\n"), 1):
        goes_on = raw.rstrip().endswith("\\")
        part = held + (raw.rstrip()[:-1] if goes_on else raw)
        try:
            found = shlex.split(substitute(part, variables), comments=True)
            held = ""
        except ValueError:  # a quote that is not closed yet
            held = part + "\n"
            continue
        for word in found:
            name, equals, value = word.partition("=")
            if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
                variables[name] = value
        words += [[w, line, False] for w in found]
        if words and not goes_on:
            words[-1][2] = True
    if held:
        stop(f"{path}: a quote is not closed")
    return words


def read_overrides(path, words):
    """verl's key=value."""
    found = []
    for word, line, _ in words:
        match = re.fullmatch(r"\+{0,2}([A-Za-z_][\w-]*(?:\.[\w-]+)+)=(.*)", word, re.DOTALL)
        if match:
            value = None if match.group(2) in ("null", "None") else match.group(2)
            if value and value.startswith("[") and value.endswith("]"):
                value = [v.strip(" '\"") for v in value[1:-1].split(",") if v.strip()]
            found.append(Entry(match.group(1), value, f"{path}:{line}"))
    return found


def read_llmc(path, words):
    """The flags of train_gpt2cu, which come in pairs."""
    start = next((i for i, (word, _, last) in enumerate(words[:-1]) if not last and
                  word.endswith("train_gpt2cu") and words[i + 1][0].startswith("-")), None)
    if start is None:
        return []
    found, i = [], start + 1
    while i < len(words) and not words[i - 1][2]:
        flag, line, last = words[i]
        if last or not flag.startswith("-"):
            stop(f"{path}:{line}: train_gpt2cu takes pairs such as -l 0.0006, and {flag} is none")
        found.append(Entry(flag, words[i + 1][0], f"{path}:{line}"))
        i += 2
    return found


def read(path):
    """(library, its entries) of a file."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        stop(f"cannot read {path}: {error}")
    if path.endswith((".yaml", ".yml")):
        entries = read_yaml(path, text)
        is_verl = any(verl_table.is_root(e.key.split(".")[0]) and "." in e.key for e in entries)
        return ("verl" if is_verl else "TRL"), entries
    words = read_words(path, text)
    for library, entries in (("llm.c", read_llmc(path, words)),
                             ("verl", read_overrides(path, words))):
        if entries:
            return library, entries
    stop(f"{path} is none of TRL's or verl's YAML (.yaml), a script with verl's overrides, a script "
         "that starts train_gpt2cu")


# ------------------------------------------------------------------------------------------------
# Our flags

LIMITS = {"INT_MAX": 2**31 - 1, "FLT_MAX": 3.4028234663852886e38, "DBL_MAX": 1.7e308,
          "INFINITY": float("inf"), "NAN": float("nan")}


def limit(text):
    if text in LIMITS:
        return LIMITS[text]
    base, shift, by = text.partition(" << ")
    return float(base) * 2 ** float(by) if shift else number(text)


def our_flags():
    """{flag: (default, lowest, highest, whether the lowest itself is not legal, whole)}; of flags
    that take no number None in the place of what they lack."""
    flags = {}
    with open(FLAGS, encoding="utf-8") as file:
        for line in file:
            match = re.match(r'(INT|STEPS|REAL|U64|CHOICE|FORMAT|TEXT|SWITCH)\("([\w-]+)", (.*)',
                             line)
            if not match:
                continue
            kind, name, rest = match.groups()
            parts = [p.strip() for p in rest.split(",")][1:5]
            if kind in ("INT", "STEPS", "REAL"):
                flags[name] = (limit(parts[0]), limit(parts[1]), limit(parts[2]),
                               kind == "REAL" and parts[3] == "1", kind != "REAL")
            else:
                flags[name] = (None, None, None, False, False)
    return flags


# ------------------------------------------------------------------------------------------------
# Translating

class Translation:
    """What a table fills: flags with the entries that they come from, and what is lost."""

    def __init__(self, table, entries, processes):
        self.table, self.processes = table, processes
        self.given = {}  # later files win
        for entry in entries:
            self.given[table.canonical(entry.key)] = entry
        self.flags, self.notes, self.lost, self.unknown, self.refused = {}, {}, [], [], []
        self.ours = our_flags()

    def entry(self, key):
        """The user's, or the library's default."""
        if key in self.given:
            return self.given[key]
        return Entry(key, self.table.DEFAULTS.get(key), f"{self.table.VERSION}'s default")

    def value(self, key):
        return self.entry(key).value

    def number(self, key):
        return number(self.value(key))

    def true(self, key):
        return str(self.value(key)).lower() in ("true", "1", "yes")

    def set(self, flag, value, *keys, note=""):
        """One of our flags, from these keys. A number that is our default is left out unless the
        user gave it."""
        if "$" in text_of(value):
            return  # run() says so
        entries = [self.entry(k) for k in keys]
        default, low, high, above, whole = self.ours[flag]
        x = number(value)
        if x is not None and low is not None:
            if whole and x == int(x):
                value = int(x)
            outside = x < low or x > high or (above and x == low) or (whole and x != int(x))
            if outside:
                self.refused.append(f"{entries[0]}: {flag} = {value} is out of our range, "
                                    f"{'above' if above else 'from'} {low:.10g} to {high:.10g}"
                                    f"{', whole numbers' if whole else ''}")
                return
            if x == default and not any(k in self.given for k in keys):
                return
        self.flags[flag] = (value, [str(e) for e in entries], note)

    def lose(self, key, why):
        if key in self.given:
            self.lost.append(f"{self.given[key]}: {why}")

    def run(self):
        self.table.translate(self)
        known = set(self.table.TRANSLATED)
        for key, entry in self.given.items():
            if key in known:
                if "$" in text_of(entry.value):
                    self.refused.append(f"{entry}: the script does not set this shell variable; "
                                        "fill it in")
            else:
                why = self.table.without_counterpart(key)
                if why:
                    self.lost.append(f"{entry}: {why}")
                else:
                    self.unknown.append(str(entry))

    def text(self, files):
        lines = [f"# From {', '.join(files)} ({self.table.VERSION}) by dev/from_config.py.",
                 "# Above each flag stands what it comes from."]
        for flag, (value, entries, note) in self.flags.items():
            lines += ["", *(f"# {e}" for e in entries), *([f"# {note}"] if note else []),
                      f"{flag} = {value}"]
        for title, items in (("Out of range, or not filled in: no flag is set", self.refused),
                             ("Known by nobody", self.unknown),
                             ("Without a counterpart here", self.lost),
                             ("To know", self.table.NOTES)):
            if items:
                lines += ["", f"# {title}:", *(f"#   {item}" for item in items)]
        return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", metavar="FILE", nargs="+")
    parser.add_argument("-o", "--out", help="file to write; else to standard output")
    parser.add_argument("--processes", type=int, default=1, metavar="N",
                        help="TRL: processes that share the batch, which its YAML does not say")
    args = parser.parse_args()
    if args.processes < 1:
        stop("--processes must be at least 1")
    read_files = [read(path) for path in args.files]
    libraries = sorted({library for library, _ in read_files})
    if len(libraries) > 1:
        stop(f"the files are of {' and '.join(libraries)}; give files of one library")
    entries = [e for _, of_file in read_files for e in of_file]
    t = Translation(TABLES[libraries[0]], entries, args.processes)
    t.run()
    text = t.text(args.files)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        sys.stdout.write(text)
    for problem in t.refused:
        print(f"from_config.py: {problem}", file=sys.stderr)
    for key in t.unknown:
        print(f"from_config.py: {key}: nobody knows this key", file=sys.stderr)
    print(f"from_config.py: {libraries[0]}: {len(t.flags)} flags, {len(t.lost)} keys without a "
          f"counterpart, {len(t.unknown)} unknown, {len(t.refused)} not set", file=sys.stderr)


if __name__ == "__main__":
    main()
