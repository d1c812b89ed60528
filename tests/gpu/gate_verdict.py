"""Whether enough ran: counted from the tests' own lines, not from exit statuses."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Verdict", "judge", "read_lines"]

NEEDS_GPU = "needs a GPU"


@dataclass
class Verdict:
    """Sentences for the reader, and whether the gate holds."""

    sentences: list[str] = field(default_factory=list)
    holds: bool = True

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.sentences + other.sentences, self.holds and other.holds)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return JSON lines; one that a stop cut off is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def judge(lines: Iterable[dict[str, Any]], found: Mapping[str, Any], dry: bool) -> Verdict:
    """Count the tests of each framework that is there; one that ran none does not hold."""
    latest = {(line["framework"], line["test"]): line for line in lines if "test" in line}
    verdict = Verdict()
    total = 0
    for name, own in found.items():
        if not own["usable"]:
            verdict.sentences.append(f"{name}: {own['sentence']}")
            continue
        tests = [line for (framework, _), line in latest.items() if framework == name]
        ran = [line for line in tests if line["outcome"] != "skipped"]
        counted = ran if dry else [line for line in ran if line.get("on_gpu")]
        failed = [line["test"] for line in ran if line["outcome"] == "failed"]
        waiting = sum(line.get("reason") == NEEDS_GPU for line in tests)
        total += len(counted)
        verdict.sentences.append(_sentence(name, len(counted), ran, failed, tests, waiting, dry))
        verdict.holds = verdict.holds and bool(counted) and not failed
    where = "on a CPU in the GPU's place (--dry)" if dry else "on the GPU"
    verdict.sentences.append(f"In all {total} tests ran {where}.")
    return Verdict(verdict.sentences, verdict.holds and total > 0)


def _sentence(
    name: str,
    counted: int,
    ran: list[dict[str, Any]],
    failed: list[str],
    tests: list[dict[str, Any]],
    waiting: int,
    dry: bool,
) -> str:
    place = "ran on the CPU" if dry else "ran on the GPU"
    parts = [f"{name}: {counted} tests {place}"]
    if not dry and len(ran) > counted:
        parts.append(f"{len(ran) - counted} ran without taking memory there")
    if waiting:
        parts.append(f"{waiting} need a GPU")
    if other := len(tests) - len(ran) - waiting:
        parts.append(f"{other} skipped")
    if failed:
        parts.append(f"{len(failed)} FAILED, {', '.join(failed[:3])}")
    if not counted:
        parts.append("which is none: the gate does not hold")
    return "; ".join(parts) + "."
