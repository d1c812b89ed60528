"""Counting copies from a device to the host, two ways that do not know of each other.

- by PyTorch's profiler, which hears of every copy that CUDA makes in this process, by whatever
  library: events "Memcpy DtoH"
- by CuPy's ``ndarray.get``, through which ``float``, ``bool``, ``int`` and ``asnumpy`` go

A counter is believed only after it has counted a copy that was made on purpose.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Run = Callable[[], Any]


def by_profiler(run: Run) -> int:
    """Return how many copies to the host CUDA made while something ran."""
    torch = importlib.import_module("torch")
    profiler = importlib.import_module("torch.profiler")
    activities = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")  # once a process
        with profiler.profile(activities=activities) as seen:
            run()
            torch.cuda.synchronize()
    return sum("DtoH" in event.name for event in seen.events())


@contextmanager
def counted(owner: Any, names: tuple[str, ...]) -> Iterator[list[str]]:
    """Note each call of some methods of a class."""
    calls: list[str] = []
    own = {name: getattr(owner, name) for name in names if hasattr(owner, name)}

    def noting(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return own[name](self, *args, **kwargs)

        return method

    for name in own:
        setattr(owner, name, noting(name))
    try:
        yield calls
    finally:
        for name, method in own.items():
            setattr(owner, name, method)


def by_methods(owner: Any, names: tuple[str, ...]) -> Callable[[Run], int]:
    """Return what counts calls of some methods of a class while something runs."""

    def count(run: Run) -> int:
        with counted(owner, names) as calls:
            run()
        return len(calls)

    return count


def believed(counters: dict[str, Callable[[Run], int]], copy: Run) -> dict[str, Any]:
    """Return the counters that count a copy which is made on purpose."""
    able = {}
    for name, counter in counters.items():
        try:
            seen = counter(copy)
        except (ImportError, RuntimeError, TypeError, AssertionError):
            continue
        if seen > 0:
            able[name] = counter
    return able
