"""Inputs and output gradients of matrices at the equations that use them, of a whole batch.

A *probe* is a zero that is added to the result of an equation. The gradient in it is δ. The other
operand, a, is kept on the way. For each use of a family both become unfolded activations of shape
``(members, B, S, width)``, with samples of the outputs apart from the other positions, as soon as
the axes of samples are known.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from spectral_backends.jax.devices.placement import split_samples
from spectral_backends.jax.jaxprs.interpreter import EquationPath, bind, evaluate, walk
from spectral_backends.jax.layers.families import Family, Use
from spectral_backends.jax.objective.program import Program

__all__ = ["ProbedBatch", "RowsBySample", "SampleAxis", "run_with_probes", "sample_axes"]

Array = jax.Array


@dataclass(frozen=True)
class SampleAxis:
    """The axis of the positions of a use along which the samples of the outputs lie.

    Parameters
    ----------
    axis : int
        The index of the axis among the positions.
    minor : bool
        Whether samples are the fast part of the axis, if it holds other positions too.
    """

    axis: int
    minor: bool = False


@dataclass(frozen=True)
class ProbedBatch:
    """A batch after its forward pass with probes.

    Parameters
    ----------
    outputs : array
        The outputs of the model.
    kept : dict of path to tuple
        The operands of the probed equations. An operand that is no input is None.
    back : callable
        ``back(cotangent)`` returns the gradients in the probes, by path, for a cotangent of the
        outputs.
    """

    outputs: Any
    kept: dict[EquationPath, tuple[Any, ...]]
    back: Callable[[Any], dict[EquationPath, Any]]


def run_with_probes(
    program: Program, values: Sequence[Any], batch: Sequence[Any], families: Iterable[Family]
) -> ProbedBatch:
    """Run the forward pass with probes at every use of some families; may be traced."""
    assert program.forward is not None
    wanted: dict[EquationPath, set[int]] = {}
    for family in families:
        for use in family.uses:
            wanted.setdefault(use.path, set()).add(use.rows.other)

    def handler(others: set[int]) -> Any:
        def run(equation: Any, operands: Sequence[Any], fed: Any) -> Any:
            (result,) = bind(equation, operands)
            return [result + fed], tuple(o if i in others else None for i, o in enumerate(operands))

        return run

    handlers = {path: handler(others) for path, others in wanted.items()}

    def forward(feeds: dict[EquationPath, Any]) -> tuple[Any, dict[EquationPath, Any]]:
        found, kept = evaluate(program.forward, [*values, *batch], handlers, feeds)  # type: ignore[arg-type]
        return split_samples(found[0]), kept

    zeros = _zero_feeds(program, wanted)
    outputs, back, kept = jax.vjp(forward, zeros, has_aux=True)
    return ProbedBatch(outputs, kept, lambda cotangent: back(split_samples(cotangent))[0])


class RowsBySample:
    """Unfolded activations of one use, sample by sample.

    Parameters
    ----------
    use : Use
        A use of a family.
    samples : int
        The number of samples of the outputs.
    at : SampleAxis or None
        The axis of the samples. None takes all positions for one sample.
    """

    def __init__(self, use: Use, samples: int, at: SampleAxis | None) -> None:
        self._use, self._samples, self._at = use, samples, at

    def inputs(self, kept: Mapping[EquationPath, tuple[Any, ...]]) -> Array:
        """Return a, shape ``(members, B, S, n)``."""
        rows = _over(self._use.depth, self._use.rows.inputs)
        return self._by_sample(rows(kept[self._use.path][self._use.rows.other]))

    def outputs(self, gradients: Mapping[EquationPath, Any]) -> Array:
        """Return δ, shape ``(members, B, S, m)``."""
        rows = _over(self._use.depth, self._use.rows.outputs)
        return self._by_sample(rows(gradients[self._use.path]))

    def project(self, kept: Mapping[EquationPath, tuple[Any, ...]], v: Array) -> Array:
        """Return ``a v`` for v ``(members, n, K)``, shape ``(members, B, S, K)``."""
        use = self._use
        own = [n if mine else 1 for n, mine in zip(use.axes, use.own, strict=True)]
        wide = jnp.broadcast_to(v.reshape(*own, *v.shape[1:]), (*use.axes, *v.shape[1:]))
        rows = _over(use.depth, use.rows.project)
        return self._by_sample(rows(kept[use.path][use.rows.other], wide))

    def _by_sample(self, rows: Array) -> Array:
        found = positions_of(self._use, rows)  # (members, *positions, width)
        members, width = found.shape[0], found.shape[-1]
        if self._at is None:
            return found.reshape(members, 1, -1, width)
        front = jnp.moveaxis(found, 1 + self._at.axis, 1)
        length = front.shape[1]
        rest = front.shape[2:-1]
        if self._at.minor:
            front = front.reshape(members, length // self._samples, self._samples, *rest, width)
            front = jnp.moveaxis(front, 2, 1)
        return front.reshape(members, self._samples, -1, width)


def sample_axes(use: Use, samples: int) -> list[SampleAxis]:
    """Return the axes along which samples may lie, the likeliest first."""
    others = [n for n, mine in zip(use.axes, use.own, strict=True) if not mine]
    shape = [*others, *use.positions]
    exact = [SampleAxis(i) for i, length in enumerate(shape) if length == samples]
    mixed = [i for i, n in enumerate(shape) if n > samples and n % samples == 0]
    return exact + [SampleAxis(i, minor) for minor in (False, True) for i in mixed]


def positions_of(use: Use, rows: Array) -> Array:
    """Bring the axes that count members to the front, as one: ``(members, *positions, width)``."""
    own = [i for i, mine in enumerate(use.own) if mine]
    moved = jnp.moveaxis(rows, own, range(len(own)))
    members = prod(use.axes[i] for i in own)
    return moved.reshape(members, *moved.shape[len(own) :])


def _over(depth: int, function: Callable[..., Array]) -> Callable[..., Array]:
    """Map a function over the iterations of the scans around a use."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function


def _zero_feeds(program: Program, paths: Iterable[EquationPath]) -> dict[EquationPath, Any]:
    """Return a zero for each equation, with the iterations of the scans around it in front."""
    assert program.forward is not None
    equations = dict(walk(program.forward))
    feeds = {}
    for path in paths:
        around = [equations[path[:i]] for i in range(1, len(path))]
        lengths = [e.params["length"] for e in around if e.primitive.name == "scan"]
        aval: Any = equations[path].outvars[0].aval
        feeds[path] = jnp.zeros((*lengths, *aval.shape), aval.dtype)
    return feeds
