"""What a process holds, counted before and after many runs of something that should keep nothing."""

import ctypes
import gc
import os
import sys
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

OBJECTS = 10
"""More of one type, or more graph nodes or hooks, than this are a leak, however long the soak."""

BYTES = 64
"""In use by C code that a run may add: an empty tensor takes over 300, one of NumPy 32."""

SLACK = 2**14
"""And all of them: a free piece is given out whole where little more than was asked for is left."""

BLOCKS = 1 / 4
"""In use by Python that a run may add: an array of NumPy is one, a list of numbers two."""

RESIDENT = 2**23
"""Bytes that a process may grow by: free memory between pieces in use goes back in its own time."""

PARTS = 4
"""Of a soak. A leak adds to each of them; a cache that fills, or a table that doubles, does not."""


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


def heap() -> int:
    """Return the bytes that are allocated by C code: tensors, arrays, graphs; 0 without glibc."""
    try:
        read = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return 0
    read.restype = _Heap
    found = read()
    return int(found.uordblks + found.hblkhd)


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def graph_nodes(tensors: list[Any]) -> int:
    """Return how many nodes of autograd's graphs hang on tensors."""
    found: set[Any] = set()
    todo = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in found:
            continue
        found.add(node)
        todo += [after for after, _ in node.next_functions if after is not None]
    return len(found)


def _tells(tensor: Any) -> bool:
    """Say whether autograd tells of a tensor: not of one of several views, changed in place."""
    try:
        tensor.grad_fn  # noqa: B018 - which raises then
    except RuntimeError:
        return False
    return True


def hooks(modules: list[Any], tensors: list[Any]) -> int:
    """Return how many hooks modules and tensors have, with those of all modules."""
    tables = [vars(sys.modules["torch.nn.modules.module"])]
    tables += [vars(module) for module in modules]
    own = [
        len(value)
        for table in tables
        for name, value in table.items()
        if "_hooks" in name and hasattr(value, "__len__")
    ]
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    held = [getattr(t, name) for t in tensors if t.is_leaf for name in names]
    return sum(own) + sum(len(each) for each in held if each)


def clean() -> None:
    """Collect all garbage, and the names by which attributes were looked up."""
    for _ in range(3):  # finalizers free others
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.13, not of 3.11
        sys._clear_type_cache()


def memory() -> tuple[int, int, int]:
    """Return bytes of the process, bytes in use by C code, and blocks in use by Python."""
    clean()
    return resident(), heap(), sys.getallocatedblocks()


@dataclass(frozen=True)
class Held:
    """What is alive: objects that the garbage collector knows by type, and what hangs on them."""

    objects: Counter[str]
    graph_nodes: int
    hooks: int
    jax_arrays: int


def held() -> Held:
    """Count what is alive."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    everything = gc.get_objects()
    tensors = [o for o in everything if torch and issubclass(type(o), torch.Tensor) and _tells(o)]
    modules = [o for o in everything if torch and issubclass(type(o), torch.nn.Module)]
    return Held(
        objects=Counter(
            f"{type(o).__module__}.{type(o).__qualname__}"
            for o in everything
            if type(o).__module__ != __name__
        ),
        graph_nodes=graph_nodes(tensors),
        hooks=hooks(modules, tensors) if torch else 0,
        jax_arrays=len(jax.live_arrays()) if jax else 0,
    )


@dataclass(frozen=True)
class Growth:
    """What was added by many runs.

    Attributes
    ----------
    runs : int
        How many.
    resident, heap, traced : int
        Bytes: of the process, in use by C code, and in use by Python, the last by a tenth of the
        runs.
    blocks, graph_nodes, hooks, jax_arrays : int
        Numbers.
    steady_heap, steady_blocks : int
        What they would be if all parts of the soak had added as much as the one that added least.
    objects : dict of str to int
        By type, where there are more than before.
    lines : list of str
        Where most of the traced memory was taken.
    """

    runs: int
    resident: int
    heap: int
    steady_heap: int
    blocks: int
    steady_blocks: int
    traced: int
    lines: list[str]
    graph_nodes: int
    hooks: int
    jax_arrays: int
    objects: dict[str, int]

    def leaks(self) -> list[str]:
        """Return what grew beyond the bounds, in words."""
        numbers = {**self.objects, "nodes of graphs": self.graph_nodes, "hooks": self.hooks}
        numbers["arrays of JAX"] = self.jax_arrays
        found = [f"{count} more {name}" for name, count in numbers.items() if count > OBJECTS]
        if self.steady_heap > SLACK + BYTES * self.runs:
            found.append(f"{self.steady_heap} more bytes in use by C code")
        if self.steady_blocks > OBJECTS + BLOCKS * self.runs:
            found.append(f"{self.steady_blocks} more blocks of Python, of {self.lines}")
        if self.resident > RESIDENT:
            found.append(f"{self.resident} more bytes in memory")
        return found

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def growth(run: Callable[[int], Any], runs: int, warm_up: int) -> Growth:
    """Return what `runs` runs leave behind after some more that fill caches.

    Parameters
    ----------
    run : callable
        Gets the number of the run.
    """
    for index in range(warm_up):
        run(index)
    held(), memory()  # what counting itself leaves
    alive = held()
    used = np.zeros((PARTS + 1, 3), np.int64)  # made now: the counts themselves take no memory
    used[0] = memory()
    for part in range(PARTS):
        for index in range(part * runs // PARTS, (part + 1) * runs // PARTS):
            run(warm_up + index)
        used[part + 1] = memory()
    alive_after = held()
    traced, lines = _traced(run, runs // 10, warm_up + runs)
    more = np.diff(used, axis=0)
    total, steady = np.sum(more, axis=0).tolist(), (PARTS * np.min(more, axis=0)).tolist()
    return Growth(
        runs=runs,
        resident=total[0],
        heap=total[1],
        steady_heap=steady[1],
        blocks=total[2],
        steady_blocks=steady[2],
        traced=traced,
        lines=lines,
        graph_nodes=alive_after.graph_nodes - alive.graph_nodes,
        hooks=alive_after.hooks - alive.hooks,
        jax_arrays=alive_after.jax_arrays - alive.jax_arrays,
        objects=dict(alive_after.objects - alive.objects),  # those with more
    )


def _traced(run: Callable[[int], Any], runs: int, start: int) -> tuple[int, list[str]]:
    """Return what runs add to the memory of Python, and the lines that took most of it."""
    tracemalloc.start()
    try:
        first = start + max(runs // 2, 1)  # what is replaced in each run was not traced before
        for index in range(start, first):
            run(index)
        clean()
        before = tracemalloc.take_snapshot()
        for index in range(first, first + runs):
            run(index)
        clean()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    own = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
    found = after.filter_traces(own).compare_to(before.filter_traces(own), "lineno")
    grown = sorted(found, key=lambda line: -line.size_diff)[:3]
    places = [
        f"{Path(line.traceback[0].filename).name}:{line.traceback[0].lineno} +{line.size_diff}"
        for line in grown
        if line.size_diff > 0
    ]
    return sum(line.size_diff for line in found), places
