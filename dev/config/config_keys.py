"""The names of keys.txt."""
import os

KEYS = {}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "keys.txt"),
          encoding="utf-8") as file:
    for line in file:
        if line.startswith(" "):
            KEYS[library].update(line.split())
        elif not line.startswith("#"):
            library = line.strip()
            KEYS[library] = set()
