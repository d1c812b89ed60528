"""Try the mutants that mutmut wrote: tests are collected once, and each mutant is a fork of that.

::

    mutmut run "nothing*"                      # writes mutants, and which tests reach which function
    python tools/mutants/run.py mutants [--workers N] [--seconds S]

mutmut itself collects the tests anew for each mutant, which here takes ten times as long as they
run. What was tried before is not tried again, unless the function has changed since.
"""

import argparse
import functools
import gc
import json
import os
import random
import resource
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

UNREACHED = 33  # as mutmut has it
SURVIVED, KILLED, FAILED = 0, 1, 2
LEAST_SECONDS, TIMES_LONGER = 20, 5  # that a mutant may take of a processor


class Trials:
    """A pytest plugin that runs, instead of the tests, the mutants."""

    def __init__(self, workers: int, seconds: float) -> None:
        self._workers, self._most = workers, seconds
        self._metas = {path: json.loads(path.read_text("utf-8")) for path in metas()}
        stats = json.loads(Path("mutmut-stats.json").read_text("utf-8"))
        self._tests: dict[str, list[str]] = stats["tests_by_mangled_function_name"]
        self._seconds: dict[str, float] = stats["duration_by_test"]
        # How many functions a test reaches: those that reach few are about them.
        self._breadth = Counter(chain.from_iterable(self._tests.values()))
        self._running: dict[int, tuple[Path, str]] = {}

    def pytest_runtestloop(self, session: Any) -> bool:
        """Fork for each mutant that has not been tried."""
        items = {item.nodeid: item for item in session.items}
        caches = core_caches()
        gc.freeze()  # objects that no child looks at are not copied into it
        todo = [
            (path, mutant)
            for path, meta in self._metas.items()
            for mutant, code in meta["exit_code_by_key"].items()
            if code is None
        ]
        random.Random(0).shuffle(todo)  # what is tried at any moment is a fair sample
        for number, (path, mutant) in enumerate(todo):
            names = self._reaching(mutant)
            if not names:
                self._note(path, mutant, UNREACHED)
                continue
            while len(self._running) >= self._workers:
                self._wait()
            print(f"\r[{number + 1}/{len(todo)}] {mutant}", end="\x1b[K", flush=True)
            chosen, code = [items[name] for name in names if name in items], FAILED
            if pid := os.fork():
                self._running[pid] = (path, mutant)
            else:
                try:
                    code = try_out(
                        mutant, chosen, caches, sum(map(self._seconds.__getitem__, names))
                    )
                finally:
                    os._exit(code)
        while self._running:
            self._wait()
        return True

    def _reaching(self, mutant: str) -> list[str]:
        """Return the tests that reach the mutant's function, quick and narrow ones first."""
        names = self._tests.get(mutant.rpartition("__mutmut_")[0], [])
        names = sorted(names, key=lambda name: self._seconds[name] * self._breadth[name])
        until = accumulate(self._seconds[name] for name in names)
        return [name for name, end in zip(names, until, strict=True) if end <= self._most]

    def _wait(self) -> None:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        self._note(*self._running.pop(pid), code)

    def _note(self, path: Path, mutant: str, code: int) -> None:
        self._metas[path]["exit_code_by_key"][mutant] = code
        text = json.dumps(self._metas[path], indent=4)
        path.with_suffix(".new").write_text(text, "utf-8")
        path.with_suffix(".new").replace(path)


def try_out(mutant: str, items: Sequence[Any], caches: Sequence[Any], seconds: float) -> int:
    """Run tests until one fails, in a process that ends with it."""
    from _pytest.runner import runtestprotocol

    most = int(LEAST_SECONDS + TIMES_LONGER * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.environ["MUTANT_UNDER_TEST"] = mutant
    for cache in caches:  # of what the core computed while tests were collected
        cache.cache_clear()
    for item, following in zip(items, [*items[1:], None], strict=True):
        reports = runtestprotocol(item, log=False, nextitem=following)
        if any(report.failed for report in reports):
            return KILLED
    return SURVIVED


def core_caches() -> list[Any]:
    """Return the functions of the core that keep what they computed."""
    kept = [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]
    return [function for function in kept if str(function.__module__).startswith("spectral_core")]


def metas() -> Iterator[Path]:
    yield from sorted(Path("spectral_core").glob("**/*.meta"))


def main(given: Sequence[str] | None = None) -> int:
    import pytest

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="that mutmut wrote")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of tests, a mutant")
    options = parser.parse_args(given)
    os.chdir(options.folder)
    settings = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["mutmut"]
    arguments = [
        *settings["pytest_add_cli_args"], *settings["pytest_add_cli_args_test_selection"]
    ]  # fmt: skip
    sys.path.insert(0, os.getcwd())
    os.environ["MUTANT_UNDER_TEST"] = ""
    start = time.perf_counter()
    code = pytest.main(
        ["-q", "-p", "no:cacheprovider", *arguments],
        plugins=[Trials(options.workers, options.seconds)],
    )
    print(f"\n{time.perf_counter() - start:.0f} s")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
