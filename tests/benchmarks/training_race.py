"""The training race: run what is missing, or write the page about what has run.

::

    SPECTRAL_DATA=path/to/data python tests/benchmarks/training_race.py run --hours 2
    python tests/benchmarks/training_race.py report

`run` goes on where it stopped: each finished run is a JSON file under docs/results/training/runs,
and a run that was interrupted begins again. `report` writes docs/results/training.md and curves.
"""

import argparse
import time
from pathlib import Path

from race.plan import PHASES, QUICK, Phase, missing, remaining
from race.report import write_report
from race.runner import race
from race.runs import Results

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "training.md"


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "report", "status"))
    parser.add_argument("--quick", action="store_true", help="two tiny tasks, to see that it works")
    parser.add_argument("--hours", type=float, help="begin no run after this long")
    parser.add_argument("--tasks", nargs="+", help="these tasks only")
    parser.add_argument("--tiers", nargs="+", type=int, help="these tiers of proxy contenders only")
    parser.add_argument("--folder", type=Path, help="of the runs; the page goes beside its parent")
    given = parser.parse_args()
    page = given.folder.parent.with_suffix(".md") if given.folder else PAGE
    results = Results(given.folder or PAGE.with_suffix("") / "runs")
    phases = [phase for phase in (QUICK if given.quick else PHASES) if _wanted(phase, given)]
    if given.action == "run":
        race(phases, results, None if given.hours is None else time.time() + 3600 * given.hours)
    elif given.action == "report":
        write_report(phases, results, page)
    for phase in phases:
        following = next(missing(phase, results), None)
        after = f"; next {following.file_name}" if following else ""
        print(f"{phase.task} {phase.tiers}: {remaining(phase, results)} runs missing{after}")


def _wanted(phase: Phase, given: argparse.Namespace) -> bool:
    return (given.tasks is None or phase.task in given.tasks) and (
        given.tiers is None or bool(set(phase.tiers) & set(given.tiers))
    )


if __name__ == "__main__":
    main()
