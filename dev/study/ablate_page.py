"""A Markdown page whose findings follow from CSV files: --check compares, --update writes.

The page's results lie in folders beside it, of two kinds. One holds a `matrix` and a `curves.csv`
that ablate.py made; what else it holds (runs.csv, summary.csv, differences.csv and figures) follows
from these two. The other holds bins.csv, layers.csv and metrics.csv that mismatch.py --out made;
its figures follow from these three. In the page, paths are relative to it; a value with blanks
stands in "quotes".

    0.953<!-- precision/stale/summary.csv final_pass1 objective=drpo precision=fp32 -->

    0.0021<!-- precision/drift/bins.csv logp_diff_mean pair=bf16:fp32 mu="0 to 0.01" -->

A number and where it comes from: a file, a column, and what picks the row. It is compared at the
digits that the page shows; before %, as a percentage. Where several rows match, mean, min, max, sum
or count before the column makes one number of them (count needs no column).

    <!-- table precision/stale/summary.csv auc,collapsed rows=objective precision=fp32 -->
    <!-- end -->

A table between the two, a row a level and a column a number; columns=FACTOR makes a column a level
instead; digits=3 is the default; a number with an interval shows it (Student's t), a difference
whose interval does not hold 0 stands out, and of any other the table says "not told apart".

    ![What it shows](precision/stale/reward-by-objective.svg)

A figure, which follows from the folder. The page may show no other.

Every number with a decimal point, an exponent or a % must be marked so, or stand in `backticks`,
which say that it is a setting and no finding. (95 % is free.)
"""
import glob
import math
import os
import re
import shlex

import ablate_matrix
import ablate_stats
import ablate_svg
import mismatch_bins

NUMBER = r"[-−+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
MARKED = re.compile(rf"(?P<number>{NUMBER})(?P<percent>\s?%)?(?P<gap>\**\s?)"
                    r"<!--\s*(?P<source>[^\s>]+\.csv\b[^>]*?)\s*-->")
ANY_MARK = re.compile(r"<!--\s*[^\s>]+\.csv\b[^>]*?-->")
TABLE = re.compile(r"(?P<head><!--\s*table\s+(?P<source>[^>]*?)\s*-->\n)(?P<body>(?:(?!<!--).)*?)"
                   r"(?P<end><!--\s*end\s*-->)", re.DOTALL)
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
NOT_PROSE = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)|arXiv[ :]\S+|https?://\S+|\b95 %",
                       re.DOTALL)
FINDING = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+|(?:\.\d+)? ?%)")
REDUCE = {"mean": ablate_stats.mean, "min": min, "max": max, "sum": math.fsum, "count": len}
WHOLE = ("seeds", "collapsed", "diverged", "reached", "higher", "steps", "steps_to", "seed",
         "tokens")


class PageError(Exception):
    """What is wrong with a page or its results; the text says where."""


def read_text(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PageError(f"cannot read {path}: {error}") from None


def read_results(folder):
    """From the files alone that the others follow from."""
    if os.path.exists(os.path.join(folder, "matrix")):
        try:
            matrix = ablate_matrix.read(os.path.join(folder, "matrix"))
        except ablate_matrix.MatrixError as error:
            raise PageError(str(error)) from None
        curves = ablate_stats.read_curves(read_text(os.path.join(folder, "curves.csv")))
        return ablate_stats.Results(matrix, curves)
    if any(os.path.exists(os.path.join(folder, name)) for name in mismatch_bins.FILES):
        return mismatch_bins.Results({name: read_text(os.path.join(folder, name))
                                      for name in mismatch_bins.FILES})
    raise PageError(f"cannot read {folder}: it has neither matrix and curves.csv, as ablate.py "
                    f"makes them, nor {', '.join(mismatch_bins.FILES)}, as mismatch.py --out does")


def drawer_of(results):
    """The module that draws results of this kind."""
    return mismatch_bins if isinstance(results, mismatch_bins.Results) else ablate_svg


class Page:
    """A page, and the results that it names, each read once."""

    def __init__(self, path):
        self.path, self.text = path, read_text(path)
        self.results, self.tables = {}, {}

    def folder(self, path):
        return os.path.normpath(os.path.join(os.path.dirname(self.path), os.path.dirname(path)))

    def results_of(self, folder):
        """The Results of a folder, of one of the two kinds."""
        if folder not in self.results:
            self.results[folder] = read_results(folder)
            self.tables[folder] = self.results[folder].tables()
        return self.results[folder]

    def rows(self, path):
        """The rows of a CSV file that the page names."""
        folder = self.folder(path)
        self.results_of(folder)
        name = os.path.basename(path)
        if name not in self.tables[folder]:
            raise PageError(f"{path}: choose one of {', '.join(self.tables[folder])}")
        return self.tables[folder][name]

    def line_of(self, place):
        return f"{self.path}:{self.text.count(chr(10), 0, place) + 1}"


# ------------------------------------------------------------------------------------------------
# Sources

def parse_source(text):
    """Path, words and {key: value} of a mark."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise PageError(f"{text!r}: {error}") from None
    plain = [w for w in words if "=" not in w]
    if len(plain) < 2:
        raise PageError(f"{text!r}: write FILE.csv COLUMN and what picks the row")
    return plain[0], plain[1:], dict(w.split("=", 1) for w in words if "=" in w)


def matching(rows, where, path):
    for key in where:
        if rows and key not in rows[0]:
            raise PageError(f"{path} has no column {key}; there are {', '.join(rows[0])}")
    found = [r for r in rows if all(r[k] == v for k, v in where.items())]
    if not found:
        raise PageError(f"{path} has no row with "
                        + ", ".join(f"{k}={v}" for k, v in where.items()))
    return found


def cell(row, name, path):
    if name not in row:
        raise PageError(f"{path} has no column {name}; there are {', '.join(row)}")
    return row[name]


def value_of(page, source):
    """The number that a mark names."""
    path, words, where = parse_source(source)
    found = matching(page.rows(path), where, path)
    if words[0] == "count" and len(words) == 1:
        return len(found)
    reduce, name = (words[0], words[1]) if len(words) == 2 and words[0] in REDUCE else (
        None, words[0])
    texts = [cell(row, name, path) for row in found]
    if reduce is None and len(texts) > 1:
        raise PageError(f"{source!r} matches {len(texts)} rows; name more, or mean, min, max, sum")
    try:
        values = [float(t) for t in texts]
    except ValueError:
        raise PageError(f"{source!r}: {texts} is not all numbers") from None
    return REDUCE[reduce](values) if reduce else values[0]


def like(number, percent, value):
    """`value` written in the form of the text `number`."""
    value = 100 * value if percent else value
    mantissa, exponent, _ = number.partition("e")
    digits = len(mantissa.partition(".")[2])
    if exponent:
        mantissa_text, power = f"{value:.{digits}e}".split("e")
        text = f"{mantissa_text}e{int(power)}"
    else:
        text = f"{value:,.{digits}f}" if "," in number else f"{value:.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    if number.startswith("+") and not text.startswith("-"):
        text = "+" + text
    return text.replace("-", "−", 1) if "−" in number and text.startswith("-") else text


# ------------------------------------------------------------------------------------------------
# Tables

def table_number(row, name, digits, path):
    text = cell(row, name, path)
    if text.startswith("–"):
        return text
    if not text:
        return "never" if name in ("steps_to", "seconds_to") else "–"
    if name == "collapsed" and row.get("diverged", "0") not in ("", "0") and "seeds" in row:
        return f"{text} ({row['diverged']} diverged)"
    if name in WHOLE:
        return text

    def short(t):
        x = float(t)
        if x == 0:
            return "0"  # exactly
        return f"{x:.{digits}f}" if abs(x) >= 10.0**-digits else f"{x:.1e}"
    low, high = row.get(f"{name}_t_low"), row.get(f"{name}_t_high")
    interval = f" ({short(low)} to {short(high)})" if low else ""
    if name != "difference" or "verdict" not in row:
        return short(text) + interval
    if row["verdict"] == ablate_stats.NOT_TOLD_APART:
        return f"{short(text)}{interval}, {ablate_stats.NOT_TOLD_APART}"
    return f"**{short(text)}**{interval}"


def single(rows, where, path):
    found = [r for r in rows if all(r[k] == v for k, v in where.items())]
    if len(found) > 1:
        raise PageError(f"{path}: {len(found)} rows have "
                        + ", ".join(f"{k}={v}" for k, v in where.items()) + "; name more")
    return found[0] if found else None


def levels_of(rows, factor, path):
    return list(dict.fromkeys(cell(r, factor, path) for r in rows))


def title_of(level):
    return "all" if level == "*" else level


def markdown(lines, texts):
    """The first `texts` columns are text and stand left."""
    head, *body = lines
    rule = ["---" if i < texts else "---:" for i in range(len(head))]
    return "".join("| " + " | ".join(x) + " |\n" for x in [head, rule] + body)


def make_table(page, source):
    path, words, options = parse_source(source)
    names, digits = words[0].split(","), int(options.pop("digits", "3"))
    down, across = options.pop("rows", None), options.pop("columns", None)
    if not down or (across and len(names) > 1):
        raise PageError(f"{source!r}: a table has rows=FACTOR; with columns=, one number")
    rows = matching(page.rows(path), options, path)
    lines = []
    if across:
        heads = levels_of(rows, across, path)
        lines.append([f"{names[0]}, {down}"] + [title_of(h) for h in heads])
    else:
        lines.append([down] + names)
    for level in levels_of(rows, down, path):
        if across:
            found = [single(rows, {down: level, across: h}, path) for h in heads]
            lines.append([title_of(level)] + [table_number(r, names[0], digits, path) if r else "–"
                                              for r in found])
        else:
            row = single(rows, {down: level}, path)
            lines.append([title_of(level)] + [table_number(row, n, digits, path) for n in names])
    return markdown(lines, 1)


# ------------------------------------------------------------------------------------------------
# The page

def expected_text(page):
    """The page with every marked number and table as the results say."""
    def number(match):
        try:
            text = like(match["number"], match["percent"], value_of(page, match["source"]))
        except PageError as error:
            raise PageError(f"{page.line_of(match.start())}: {error}") from None
        return text + match[0][len(match["number"]):]

    def table(match):
        try:
            return match["head"] + make_table(page, match["source"]) + match["end"]
        except PageError as error:
            raise PageError(f"{page.line_of(match.start())}: {error}") from None
    return TABLE.sub(table, MARKED.sub(number, page.text))


def expected_files(page):
    """{path: text} of the figures that the page shows and the tables that follow from others."""
    files = {}
    for match in IMAGE.finditer(page.text):
        folder, name = page.folder(match[1]), os.path.basename(match[1])
        results = page.results_of(folder)
        drawer = drawer_of(results)
        drawing = drawer.draw(results, name)
        if drawing is None:
            raise PageError(f"{page.line_of(match.start())}: there is no figure {name}; there are "
                            + ", ".join(drawer.figures(results)))
        files[os.path.join(folder, name)] = drawing
    for folder, tables in page.tables.items():
        if isinstance(page.results[folder], ablate_stats.Results):
            for name, rows in tables.items():
                files[os.path.join(folder, name)] = ablate_stats.table_text(rows)
    return files


def blank(match):
    return re.sub(r"[^\n]", " ", match[0])


def unmarked(page):
    """Numbers of the prose that look like findings and have no source."""
    prose = NOT_PROSE.sub(blank, TABLE.sub(blank, MARKED.sub(blank, page.text)))
    return [f"{page.line_of(m.start())}: {m[0]} names no source; mark it, or put a setting in "
            "backticks" for m in FINDING.finditer(prose)]


def stray_marks(page):
    """Marks that follow no number, and tables without an end."""
    rest = TABLE.sub(blank, MARKED.sub(blank, page.text))
    found = list(ANY_MARK.finditer(rest)) + list(re.finditer(r"<!--\s*(table|end)\b.*?-->", rest))
    return [f"{page.line_of(m.start())}: {m[0]} has no number before it, or no end"
            for m in sorted(found, key=lambda m: m.start())]


def differing_lines(page, expected):
    have, want = page.text.splitlines(), expected.splitlines()
    if len(have) != len(want):
        return [f"{page.path}: a table has {len(want) - len(have):+d} lines in the results"]
    return [f"{page.path}:{i}: has     {a.strip()}\n    results {b.strip()}"
            for i, (a, b) in enumerate(zip(have, want), 1) if a != b]


def stray_figures(page, files):
    """Figures in the folders that no page could be held to: neither this one nor one beside it shows them."""
    beside = glob.glob(os.path.join(os.path.dirname(page.path) or ".", "*.md"))
    shown = set(files).union(*(IMAGE.findall(read_text(p)) for p in beside))
    return [f"{path} is not in {page.path}; remove it" for folder in page.results
            for path in sorted(glob.glob(os.path.join(folder, "*.svg")))
            if path not in files and os.path.relpath(path, os.path.dirname(page.path) or ".") not in shown]


def check(path):
    """What does not follow, a text each; [] if everything does."""
    page = Page(path)
    problems = stray_marks(page) + unmarked(page) + differing_lines(page, expected_text(page))
    files = expected_files(page)
    for name, text in files.items():
        if not os.path.exists(name):
            problems.append(f"{name} is missing")
        elif read_text(name) != text:
            problems.append(f"{name} is not what its folder's data give")
    if not page.results:
        problems.append(f"{path} names no results")
    return problems + stray_figures(page, files)


def update(path):
    """Writes the numbers, tables, figures and CSV files that follow."""
    page = Page(path)
    text = expected_text(page)
    for name, content in {**expected_files(page), path: text}.items():
        with open(name, "w", encoding="utf-8") as f:
            f.write(content)


if __name__ == "__main__":
    print(f"{__doc__}\nThis is a module; the program to run is dev/study/ablate.py.")
