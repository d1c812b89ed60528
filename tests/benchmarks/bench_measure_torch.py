"""Whole measurements: `CurvatureProblem(...)` and `measure(...)` together, as a user calls them.

- On idle cores, against a loop over one retained graph a layer and against curvlinops: what their
  products take for all layers and directions, extrapolated from evenly chosen ones. Gradients,
  singular vectors, checks and fits are in our time alone.
- With sampling errors, over the same without: along directions of the groups' own, and fixed.
- Beside two other PyTorch programs, over the same on idle cores: ours, and the retained graph.

Idle and busy runs alternate, and every figure says what the load of the machine was.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from bench_engine_torch import (
    QUICK,
    REPEATING,
    SHARING,
    Case,
    Size,
    resnet20,
    runner,
    task_of,
    transformer,
)
from harness import arguments, evenly, interleaved, print_figure

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

PEERS = {name: peer for name, peer in SHARING.items() if name == "retained graph"} | {
    name: peer for name, peer in REPEATING.items() if name == "curvlinops"
}

BUSY_LOOP = """
import torch
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))
images = torch.randn(64, 3, 32, 32)
print("running", flush=True)
while True:
    net(images).square().mean().backward()
"""


SAMPLING = {
    "4 groups, fixed directions": {"sampling": 4, "sampling_directions": "fixed"},
    "8 groups, fixed directions": {"sampling": 8, "sampling_directions": "fixed"},
    "4 groups, own directions": {"sampling": 4, "sampling_directions": "own"},
    "8 groups, own directions": {"sampling": 8, "sampling_directions": "own"},
}


def whole(case: Case, **options: Any) -> sc.SpectralReport:
    """Measure all layers, from nothing."""
    problem = CurvatureProblem(case.model, case.loss_fn, [(case.x, case.y)])
    return sc.measure(problem, top_k=case.top_k, progress=False, **options)


def with_sampling(case: Case, size: Size) -> None:
    """Print how long a whole call with sampling errors takes, over one without."""
    runs = {name: partial(whole, case, **options) for name, options in SAMPLING.items()}
    times = interleaved({"without": partial(whole, case), **runs}, size.repeats)
    without = statistics.median(times["without"])
    for name in SAMPLING:
        print_figure(
            "with sampling errors",
            model=case.name,
            batch=len(case.x),
            sampling=name,
            time_over_without=round(statistics.median(times[name]) / without, 2),
            seconds_without=round(without, 2),
            **surroundings(),
        )


@contextmanager
def two_busy_loops() -> Iterator[None]:
    """Run two other programs that train, on one thread each."""
    command = [sys.executable, "-c", BUSY_LOOP]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


def against_peers(case: Case, size: Size) -> None:
    """Print how long peers take for their products alone, over a whole call of ours."""
    layers = evenly(case.layers, -(-len(case.layers) // size.layers_for_each_timed))
    tasks = {
        peer: [
            task_of(case, layer, size.directions_timed if peer in REPEATING else None)
            for layer in layers
        ]
        for peer in PEERS
    }
    runs: dict[str, Callable[[], object]] = {
        f"{peer}: {task.layer}": runner(PEERS[peer], task)
        for peer, timed in tasks.items()
        for task in timed
    }
    times = interleaved({"ours": partial(whole, case), **runs}, size.repeats)
    ours = statistics.median(times["ours"])
    for peer, timed in tasks.items():
        seconds = [
            statistics.median(times[f"{peer}: {task.layer}"]) / len(task.chosen) for task in timed
        ]
        print_figure(
            "whole calls",
            model=case.name,
            batch=len(case.x),
            directions=case.n_directions,
            peer=peer,
            peer_time_over_ours=round(statistics.mean(seconds) * case.n_directions / ours, 1),
            our_seconds=round(ours, 2),
            **surroundings(),
        )


def beside_others(case: Case, size: Size) -> None:
    """Print what two busy loops cost a whole call of ours, and a retained graph."""
    task = task_of(case, case.layers[len(case.layers) // 2], size.directions_timed)
    runs: Mapping[str, Callable[[], object]] = {
        "ours": partial(whole, case),
        "retained graph": runner(PEERS["retained graph"], task),
    }
    idle: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(size.repeats):
        clock(runs, idle)
        with two_busy_loops():
            clock(runs, busy)
    for name in runs:
        print_figure(
            "beside two busy loops",
            model=case.name,
            batch=len(case.x),
            contender=name,
            time_over_idle=round(statistics.median(busy[name]) / statistics.median(idle[name]), 2),
            idle_seconds=[round(t, 2) for t in idle[name]],
            busy_seconds=[round(t, 2) for t in busy[name]],
            **surroundings(),
        )


def clock(runs: Mapping[str, Callable[[], object]], times: Mapping[str, list[float]]) -> None:
    """Add the seconds of one run of each."""
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        times[name].append(time.perf_counter() - start)


def surroundings() -> dict[str, object]:
    """Return the threads, the cores, and the load of the last minute, our own included."""
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print every figure."""
    size = QUICK if arguments(__doc__).quick else Size()
    torch.manual_seed(0)
    cases = [transformer(size)]
    try:
        cases.insert(0, resnet20(size.images, size.top_k))
    except (ImportError, FileNotFoundError) as error:
        print_figure("whole calls", model="ResNet-20", skipped=str(error))
    for case in cases:
        with_sampling(case, size)
        beside_others(case, size)
        against_peers(case, size)


if __name__ == "__main__":
    main()
