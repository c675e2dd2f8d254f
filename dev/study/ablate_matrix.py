"""The matrix of an ablation: a small text file, and the runs that follow from it.

    # Everything before the first [factor] holds for every run: flags of the program, as in a
    # --config file, and three lines that are read here.
    title = Stale data
    seeds = 1-5
    threshold = 0.8
    steps = 16

    [objective]
    pg-is: objective = pg-is
    drpo: objective = drpo, delta = 0.15

    [precision]
    fp32:
    bf16 rollout: rollout-dtype = bf16

A factor's lines are its levels: a name, a colon, and the flags it sets, separated by a comma and a
blank. A level's flag wins over the one above; two factors may not set the same flag. Every
combination of levels is a cell, and every cell runs once a seed. A line that begins with # is a
comment. `threshold` is the reward whose time is measured (0.8).
"""
import itertools
import re

SETTINGS = ("title", "seeds", "threshold")
OWN_FLAGS = ("out", "resume", "seed", "threads", "config", "warmup-cache", "checkpoint-keep",
             "help")


class MatrixError(Exception):
    """What is wrong with a matrix file; the text names file and line."""


class Run:
    """One cell with one seed. `levels` maps factor to level, `flags` a flag to its text."""

    def __init__(self, levels, seed, flags):
        self.levels = levels
        self.seed = seed
        self.flags = flags
        self.cell = tuple(levels.values())
        self.name = "_".join([slug(level) for level in self.cell] + [f"seed-{seed}"])


class Matrix:
    """`factors` maps a factor's name to its levels: {level: {flag: text}}."""

    def __init__(self, text, title):
        self.text, self.title = text, title
        self.base, self.factors = {}, {}
        self.seeds, self.threshold = [1], 0.8

    def head(self):
        """The comment at the head of the file."""
        lines = itertools.takewhile(lambda line: line.startswith("#"), self.text.splitlines())
        return "".join(line + "\n" for line in lines)

    def cells(self):
        return [dict(zip(self.factors, c)) for c in itertools.product(*self.factors.values())]

    def runs(self):
        """All runs, the first seed's first, so that an unfinished matrix still compares cells."""
        return [Run(levels, seed, self.flags_of(levels, seed))
                for seed in self.seeds for levels in self.cells()]

    def flags_of(self, levels, seed):
        flags = dict(self.base, seed=str(seed))
        for factor, level in levels.items():
            flags.update(self.factors[factor][level])
        return flags

    def compared(self):
        """The factors with more than one level."""
        return [f for f, levels in self.factors.items() if len(levels) > 1]


def slug(text):
    return re.sub(r"[^A-Za-z0-9.=+-]+", "-", text)


def read_flag(text, where):
    name, equals, value = (part.strip() for part in text.partition("="))
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise MatrixError(f"{where}: {text!r} is no flag; write name = value")
    if name in OWN_FLAGS:
        raise MatrixError(f"{where}: {name} is set by ablate.py itself; leave it out")
    return name, value if equals else "1"


def read_seeds(text, where):
    seeds = []
    for word in text.split():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if not match:
            raise MatrixError(f"{where}: {word!r} is no seed; write seeds = 1 2 3 or 1-3")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise MatrixError(f"{where}: seeds has to name each seed once")
    return seeds


def read_setting(matrix, name, value, where):
    if name == "title":
        matrix.title = value
    elif name == "seeds":
        matrix.seeds = read_seeds(value, where)
    else:
        try:
            matrix.threshold = float(value)
        except ValueError:
            raise MatrixError(f"{where}: threshold {value!r} is no number") from None


def read_base_line(matrix, line, where):
    name, equals, value = (part.strip() for part in line.partition("="))
    if name in SETTINGS and equals:
        read_setting(matrix, name, value, where)
        return
    flag, value = read_flag(line, where)
    if flag in matrix.base:
        raise MatrixError(f"{where}: {flag} is given twice")
    matrix.base[flag] = value


def read_level_line(levels, line, where):
    name, colon, flags = (part.strip() for part in line.partition(":"))
    if not colon or not name:
        raise MatrixError(f"{where}: a level is written as name: flag = value, flag = value")
    if slug(name) in map(slug, levels):
        raise MatrixError(f"{where}: the level {name!r} is there twice")
    levels[name] = dict(read_flag(f, where) for f in re.split(r",\s+", flags) if f)


def check_factors(matrix, path):
    if not matrix.factors:
        raise MatrixError(f"{path}: there is no [factor]")
    owner = {}
    for factor, levels in matrix.factors.items():
        if not levels:
            raise MatrixError(f"{path}: [{factor}] has no levels")
        for flag in {f for flags in levels.values() for f in flags}:
            if flag in owner:
                raise MatrixError(f"{path}: both [{owner[flag]}] and [{factor}] set {flag}")
            owner[flag] = factor


def parse(text, path):
    """The Matrix that `text` describes; `path` is for messages."""
    matrix = Matrix(text, re.sub(r"\.matrix$", "", path.rsplit("/", 1)[-1]))
    levels = None
    for number, line in enumerate(text.splitlines(), 1):
        line, where = line.strip(), f"{path}:{number}"
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            name = line.strip("[]").strip()
            if not line.endswith("]") or not name or name in matrix.factors:
                raise MatrixError(f"{where}: a factor is written as [name], each once")
            if name in ("run", "seed", "step"):
                raise MatrixError(f"{where}: a factor cannot be called {name}")
            levels = matrix.factors[name] = {}
        elif levels is None:
            read_base_line(matrix, line, where)
        else:
            read_level_line(levels, line, where)
    check_factors(matrix, path)
    return matrix


def read(path):
    try:
        with open(path, encoding="utf-8") as f:
            return parse(f.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise MatrixError(f"cannot read {path}: {error}") from None


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/ablate.py.")
