"""docs/results/coverage.md from coverage's JSON: lines and branches of the core, by module.

::

    python tools/coverage_report.py coverage.json
"""

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "coverage.md"
COUNTS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def share(covered: int, number: int) -> str:
    return f"{100 * covered / number:.1f}" if number else ""


def row(name: str, found: Mapping[str, Any]) -> str:
    """Return a module's cells, with what is missing of it."""
    of = found["summary"]
    lines, statements, branches, all_branches = (of[key] for key in COUNTS)
    missing = ", ".join(map(str, found.get("missing_lines", [])))
    partial = ", ".join(
        f"{a}→{b}" if b > 0 else f"{a}→end" for a, b in found.get("missing_branches", [])
    )
    cells = [
        name,
        statements,
        share(lines, statements),
        share(branches, all_branches),
        missing,
        partial,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown."""
    rows = []
    for path, found in sorted(data["files"].items()):
        name = path.replace("\\", "/").rpartition("spectral_core/")[2].removesuffix(".py")
        rows.append(row(name, found))
    whole = row("all", {"summary": data["totals"]})
    return "\n".join([
        "# Coverage",
        "",
        "Lines and branches of `spectral_core` that run in the tests on a CPU with NumPy and PyTorch: "
        "`nox -s coverage` "
        f"(coverage {data['meta']['version']}, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}). What runs only in compilers, in subprocesses of tests or on "
        "a GPU does not count; tests with array-api-strict and JAX are not in it.",
        "",
        "| module | lines | of these run, % | branches run, % | lines not run | branches not run |",
        "|" + " --- |" * 6,
        *rows,
        whole,
        "",
    ])  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if given is None else given
    PAGE.write_text(page(json.loads(Path(path).read_text("utf-8"))), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
