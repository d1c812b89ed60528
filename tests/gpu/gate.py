"""The GPU gate: runs tests and benchmarks on the device, and cannot pass by skipping.

`run.sh` starts it; see docs/developers.md. Exit status: 0 where everything ran and held, 1 where
something failed, ran nowhere or had no time left, 2 where it could not begin.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gate_environment import FRAMEWORKS, describe, probe_all, reason_not_to_begin
from gate_jobs import PARTS, PATIENCE, jobs_of, run_jobs, stop_all
from gate_verdict import Verdict, judge, read_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from harness import end_line

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 8.5


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="only this; repeatable"
    )
    parser.add_argument("--dry", action="store_true", help="small, on a CPU: the same code")
    parser.add_argument("--output", type=Path, help="folder of the results; $OUT, or build/gpu")
    parser.add_argument("--minutes", type=float, help="end after this long; 8.5, or 45 if dry")
    return parser.parse_args(given)


class Folder:
    """The folder of results: lines of figures and tests, and what is known to be finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return found

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write in one piece, so that a stop leaves the old file or the new one."""
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, self.path / name)

    def finished(self) -> list[str]:
        """Return the jobs that ended well."""
        found: list[str] = self.read("status.json").get("finished", [])
        return found

    def finish(self, jobs: Sequence[str]) -> None:
        done = dict.fromkeys([*self.finished(), *jobs])
        self.write("status.json", {"finished": list(done)})


def main() -> int:
    options = arguments()
    began = time.monotonic()
    if reason := reason_not_to_begin():
        print(reason, file=sys.stderr)
        return 2
    default = os.environ.get("OUT") or ROOT / "build" / "gpu"
    folder = Folder(Path(options.output or default).resolve())
    before = folder.read("environment.json")
    if before and before["dry"] != options.dry:
        kind = "a dry run" if before["dry"] else "a GPU"
        print(f"{folder.path} holds results of {kind}; pass another --output.", file=sys.stderr)
        return 2
    found = probe_all(options.dry)
    for name in FRAMEWORKS:
        print(f"{name}: {found[name]['sentence']}", flush=True)
    usable = [name for name in FRAMEWORKS if found[name]["usable"]]
    if not usable:
        where = "" if options.dry else " that sees a GPU; --dry runs on a CPU"
        print(f"There is no framework{where}.", file=sys.stderr)
        return 2
    environment = describe(found, options.dry, ROOT)
    if before and before["commit"] != environment["commit"]:
        print(f"The folder was begun at commit {before['commit']}; new results are added to it.")
    folder.write("environment.json", environment)
    end_line(folder.path / "tests.jsonl")
    verdict = Verdict()
    minutes = options.minutes or MINUTES * (PATIENCE if options.dry else 1)
    for part in options.part or PARTS:
        left = 60 * minutes - (time.monotonic() - began)
        verdict += run_part(part, folder, found, options.dry, left)
    print()
    for sentence in verdict.sentences:
        print(sentence)
    print(f"{folder.path}: {'passed' if verdict.holds else 'NOT PASSED'}")
    return 0 if verdict.holds else 1


def run_part(part: str, folder: Folder, found: dict[str, Any], dry: bool, left: float) -> Verdict:
    """Run what a part still lacks, and judge it."""
    jobs = jobs_of(part, found, dry, folder.path)
    finished = folder.finished()
    missing = [job for job in jobs if job.name not in finished]
    seconds = min(PARTS[part] * (PATIENCE if dry else 1), left)
    print(f"\n{part}: {len(missing)} of {len(jobs)} jobs to do", flush=True)
    lacking = []
    if missing and seconds <= 5:
        lacking = [f"{part}: no time was left; call again with the same folder to go on."]
        missing = []
    failures = run_jobs(missing, seconds, dry, folder.path / "log.txt", folder.finish)
    if not jobs:
        lacking = [f"{part}: nothing can run it here; it needs PyTorch."]
    verdict = Verdict(lacking + failures, not lacking and not failures)
    if part == "tests":
        verdict += judge(read_lines(folder.path / "tests.jsonl"), found, dry)
    return verdict


def stop(number: int, frame: Any) -> None:
    """Take the jobs along when this process is told to end."""
    stop_all()
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    sys.exit(main())
