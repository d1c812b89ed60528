"""Interleaved timing in one process: every figure is a ratio of medians from the same run."""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Run = Callable[[], object]
Timer = Callable[[Run], float]

_written: list[Path] = []
_section: list[str] = []


def arguments(description: str | None, device: bool = False) -> argparse.Namespace:
    """Parse ``--quick``, and of benchmarks that run on a GPU the rest."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small problems, fewer repeats")
    if device:
        parser.add_argument("--device", default="cpu", help="cpu or cuda")
        parser.add_argument("--figures", type=Path, help="add JSON lines to this file")
        parser.add_argument("--seconds", type=float, help="begin no section after this long")
    return parser.parse_args()


def peer_library(name: str) -> Any:
    """Return a module, or None where it is not installed: a machine with a GPU may have none."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def evenly(items: Sequence[Item], number: int) -> list[Item]:
    """Return at most so many items, evenly spread."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def by_clock(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Return what times a run by a clock; seconds."""

    def seconds(run: Run) -> float:
        start = clock()
        run()
        return clock() - start

    return seconds


def by_device_events(device: str) -> Timer:
    """Return what times a run by events of the device, once it is idle; by a clock on a CPU."""
    if device == "cpu":
        return by_clock()
    cuda = importlib.import_module("torch").cuda

    def seconds(run: Run) -> float:
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return seconds


def interleaved(
    contenders: Mapping[str, Run],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    timer: Timer | None = None,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Time the contenders in turn, A B C A B C …, after a warm-up of each; seconds per call.

    On one thread `time.process_time` leaves out what other programs take of the core.
    """
    timer = timer or by_clock(clock)
    for run in contenders.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(timer(run))
    return times


def print_figure(figure: str, **values: object) -> None:
    """Print one JSON line, and add it to the file of the sections if there is one."""
    line = json.dumps({"figure": figure, **values})
    print(line, flush=True)
    for path in _written:
        section = {"section": _section[-1]} if _section else {}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"figure": figure, **section, **values}) + "\n")


class Sections:
    """Parts of a long benchmark that run once: what a file holds already is not run again.

    Parameters
    ----------
    path : Path, optional
        Of JSON lines, which are added as the figures come.
    seconds : float, optional
        After which no further section begins.
    """

    def __init__(self, path: Path | None, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self.failed: list[str] = []
        self.left: list[str] = []
        self._done: set[str] = set()
        if path is not None:
            _written[:] = [path]
            end_line(path)
            for line in read_figures(path):
                if line["figure"] == "section finished":
                    self._done.add(str(line["section"]))

    def run(self, name: str, section: Run) -> None:
        """Run a section unless it is done or time is up; one that fails says so and is passed."""
        if name in self._done:
            return
        if self._end is not None and time.monotonic() > self._end:
            self.left.append(name)
            return
        with _inside(name):
            started = time.monotonic()
            try:
                section()
            except Exception as error:  # the others go on
                self.failed.append(name)
                reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
                print_figure("section failed", reason=reason)
                return
            print_figure("section finished", seconds=round(time.monotonic() - started, 1))

    def finish(self) -> None:
        """Say what is missing, and leave with a status that says so: 1 failed, 75 time was up."""
        for name in self.left:
            print_figure("no time was left", section=name)
        if self.failed or self.left:
            raise SystemExit(1 if self.failed else 75)


@contextmanager
def _inside(name: str) -> Iterator[None]:
    _section.append(name)
    try:
        yield
    finally:
        _section.pop()


def end_line(path: Path) -> None:
    """End the last line of a file if a stop has cut it off, so that the next one is whole."""
    held = path.read_bytes() if path.exists() else b""
    if held and not held.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def read_figures(path: Path) -> list[dict[str, object]]:
    """Return the lines of a file of figures; one that was cut off by a stop is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def ratio(times: Mapping[str, list[float]], peer: str, ours: str) -> float:
    """Return how many times longer the peer takes, by medians."""
    return statistics.median(times[peer]) / statistics.median(times[ours])
