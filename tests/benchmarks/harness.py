"""Interleaved timing in one process: every figure is a ratio of medians from the same run."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping


def arguments(description: str | None) -> argparse.Namespace:
    """Parse ``--quick``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small problems, fewer repeats")
    return parser.parse_args()


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time the contenders in turn, A B C A B C …, after one warm-up each; seconds per call.

    On one thread `time.process_time` leaves out what other programs take of the core.
    """
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def print_figure(figure: str, **values: object) -> None:
    """Print one JSON line."""
    print(json.dumps({"figure": figure, **values}), flush=True)


def ratio(times: Mapping[str, list[float]], peer: str, ours: str) -> float:
    """Return how many times longer the peer takes, by medians."""
    return statistics.median(times[peer]) / statistics.median(times[ours])
