"""What the scripts of this folder share: refusals in one sentence, input from a file or an address,
output as JSON lines."""
import json
import os
import sys
import urllib.error
import urllib.request


def refuse(message):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {message}")


def read_lines(source):
    """Yields (line number, object) of JSON lines; `source` is a file or an https:// address."""
    try:
        if source.startswith(("http://", "https://")):
            file = urllib.request.urlopen(source, timeout=60)
        else:
            file = open(source, "rb")
        with file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except (urllib.error.URLError, TimeoutError) as error:
        refuse(f"{source} cannot be fetched ({error}); fetch it elsewhere and name the file")
    except OSError as error:
        refuse(f"{source} cannot be read ({error.strerror}); name another file")
    except ValueError as error:
        refuse(f"{source}:{number}: this is no JSON ({error}); use another copy")


def texts_of(source, number, item, keys):
    """The texts of an object of JSON, which must have them."""
    values = [item.get(key) for key in keys] if isinstance(item, dict) else [None]
    if not all(isinstance(value, str) and value for value in values):
        refuse(f"{source}:{number}: the texts {' and '.join(keys)} are expected there; "
               "use another copy")
    return values


def write_problems(path, problems):
    """Writes (prompt, answer) pairs as JSON lines, a prompt once. A refusal leaves the file as it
    was."""
    lines = {}
    for prompt, answer in problems:
        lines.setdefault(prompt, json.dumps({"prompt": prompt, "answer": answer},
                                            ensure_ascii=False) + "\n")
    if not lines:
        refuse(f"no problem came out for {path}; choose other options")
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(lines.values())
    except OSError as error:
        refuse(f"{path} cannot be written ({error.strerror}); choose another file")
    print(f"{path}: {len(lines)} problems")
