"""Objects that are made once for each shape of batch, such as compiled functions.

A compiled function is called with a batch's own arrays, so that one serves all batches of a shape.
Each call tells the multiply-adds that it ran to whoever counts them in the same thread.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import jax

from spectral_backends.jax.devices.batches import Signature
from spectral_backends.jax.devices.placement import Placed, Placement, traced_under
from spectral_backends.jax.jaxprs.compilation import exact_products
from spectral_backends.jax.jaxprs.work import multiply_adds
from spectral_backends.jax.objective.program import Program

__all__ = ["Batch", "CompileCache", "Compiled", "Tally", "tallied"]

Compiled = Callable[..., Any]

Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """One batch on the device, and the parameters beside it.

    Parameters
    ----------
    index : int
        Its index among the batches.
    key : tuple
        Its structure, shapes and types, which tell it from batches that need another program.
    program : Program
        The computation of batches like it.
    leaves : list of jax.Array
        Its arrays.
    raw : Any
        The batch as the user's iterable gave it.
    placed : Placed
        The parameters where the batch needs them.
    """

    index: int
    key: Signature
    program: Program
    leaves: list[jax.Array]
    raw: Any
    placed: Placed

    @property
    def values(self) -> list[jax.Array]:
        """Return the parameters, where the batch needs them."""
        return self.placed.values

    @property
    def placement(self) -> Placement | None:
        """Return the placement of the work on devices; None if nothing is sharded."""
        return self.placed.placement


class CompileCache:
    """A cache of objects, each made once for its key.

    Threads may share it: of two that make the same at once, both get what the first one put there.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the object that was made for a key, or make it."""
        if key not in self._made:
            self._made.setdefault(key, make())
        made: Made = self._made[key]
        return made

    def compiled(self, batch: Batch, what: Hashable, make: Callable[[], Compiled]) -> Compiled:
        """Return a function of arrays, compiled once for batches of one shape and placement.

        Parameters
        ----------
        batch : Batch
            One of the batches that the function is for.
        what : hashable
            A key that tells the function from others of the same batch.
        make : callable
            ``make()`` returns the function, which is traced with exact products.
        """
        placement = batch.placement

        def make_compiled() -> Compiled:
            return _counted(jax.jit(traced_under(placement, make())))

        return self.once((batch.key, placement, what), make_compiled)


@dataclass
class Tally:
    """The multiply-adds that were counted."""

    work: float = 0.0


_TALLIES: ContextVar[tuple[Tally, ...]] = ContextVar("tallies", default=())


@contextmanager
def tallied() -> Iterator[Tally]:
    """Count the multiply-adds of the compiled functions that this thread calls inside."""
    tally = Tally()
    token = _TALLIES.set((*_TALLIES.get(), tally))
    try:
        yield tally
    finally:
        _TALLIES.reset(token)


def _counted(run: Any) -> Compiled:
    """Return a jitted function whose multiply-adds are counted; its arguments have one shape."""
    each: float | None = None

    def counted(*arguments: Any) -> Any:
        nonlocal each
        with exact_products():
            found = run(*arguments)
            if each is None:
                each = multiply_adds(run.trace(*arguments).jaxpr)  # JAX kept the trace
        for tally in _TALLIES.get():
            tally.work += each
        return found

    return counted
