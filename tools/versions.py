"""Which versions the tests ran with: a line of JSON for each run, and the README's table of them.

::

    python tools/versions.py run torch -- pytest arguments   # in an environment of its own
    python tools/versions.py table                           # writes the table into the README

`nox -s versions` makes the environments.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "results" / "versions.jsonl"
README = ROOT / "README.md"
BEGIN, END = "<!-- versions: begin -->", "<!-- versions: end -->"

SHOWN = {
    "arrays": ["numpy", "array-api-compat", "array-api-extra", "array-api-strict"],
    "torch": ["torch", "numpy"],
    "jax": ["jax", "optax", "numpy"],
}
"""What each run is about, in the order of the table."""

Run = dict[str, Any]


def versions_of(library: str) -> dict[str, str]:
    """Return the versions here of what a run is about."""
    found = {}
    for name in SHOWN[library]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def counts_of(output: str) -> dict[str, int]:
    """Read the last line of pytest's output."""
    pairs = re.findall(r"(\d+) (passed|failed|skipped|error)s?", output.strip().splitlines()[-1])
    return {word: int(number) for number, word in pairs}


def run(library: str, age: str, arguments: Sequence[str]) -> int:
    """Run pytest and add a line to the record; return its status."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    output: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            output.append(line)
    entry = {
        "library": library,
        "age": age,
        "python": platform.python_version(),
        "versions": versions_of(library),
        "date": time.strftime("%Y-%m-%d"),
        "counts": counts_of("".join(output) or "nothing"),
        "status": process.returncode,
    }
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return process.returncode


def latest(runs: Sequence[Run]) -> list[Run]:
    """Return the last run of each combination, in the order of the table."""
    found: dict[Any, Run] = {}
    for entry in runs:
        minor = ".".join(entry["python"].split(".")[:2])
        found[entry["library"], minor, tuple(entry["versions"].values())] = entry
    order = list(SHOWN)
    return sorted(
        found.values(),
        key=lambda r: (
            order.index(r["library"]),
            _key(r["python"]),
            *map(_key, r["versions"].values()),
        ),
    )


def _key(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def table(runs: Sequence[Run]) -> str:
    """Return the Markdown of the runs."""
    lines = ["| tests of | Python | with | passed | skipped | failed | date |", "|" + " --- |" * 7]
    for entry in latest(runs):
        counts = entry["counts"]
        failed = counts.get("failed", 0) + counts.get("error", 0)
        told = f"{failed}" if entry["status"] == 0 or failed else "did not run"
        if any(re.search(r"(a|b|rc|dev)\d", own) for own in entry["versions"].values()):
            told += " (pre-releases)"
        versions = ", ".join(f"{name} {own}" for name, own in entry["versions"].items())
        cells = [entry["library"], entry["python"], versions, counts.get("passed", 0),
                 counts.get("skipped", 0), told, entry["date"]]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def recorded() -> list[Run]:
    """Return every run of the record."""
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


def with_table(text: str, runs: Sequence[Run]) -> str:
    """Return the README with the table of the runs in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(runs)}\n\n{END}{after}"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("library", choices=list(SHOWN))
    running.add_argument("--age", default="newest", choices=["oldest", "newest", "pre"])
    commands.add_parser("table")
    own = list(sys.argv[1:] if given is None else given)
    cut = own.index("--") if "--" in own else len(own)
    options = parser.parse_args(own[:cut])
    if options.command == "run":
        return run(options.library, options.age, own[cut + 1 :])
    README.write_text(with_table(README.read_text("utf-8"), recorded()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
