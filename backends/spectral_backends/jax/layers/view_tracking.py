"""Equations that return a view of a parameter: its tracked view goes through the same view."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from spectral_backends.jax.layers.matrix_view import TrackedView

__all__ = ["tracked_results"]

_View = Callable[[JaxprEqn, TrackedView], list[TrackedView]]


def tracked_results(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView] | None:
    """Return the tracked views of an equation's results, given that of its first operand.

    The result is None if the equation is no view, or if elements would have to move in memory.
    """
    view = _VIEWS.get(equation.primitive.name)
    try:
        return None if view is None else view(equation, tracked)
    except (ValueError, TypeError):  # it needs a copy, or an index is not known
        return None


def _same(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView]:
    return [tracked]


def _reshape(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView]:
    if equation.params.get("dimensions") is not None:
        raise ValueError("another order of axes")
    return [tracked.reshape(equation.params["new_sizes"], copy=False)]


def _broadcast(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView]:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    missing = [axis for axis in range(len(shape)) if axis not in axes]
    return [np.broadcast_to(np.expand_dims(tracked, missing), shape)]


def _slice(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView]:
    params: Mapping[str, Any] = equation.params
    steps = params["strides"] or (1,) * tracked.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [tracked[tuple(slice(*each) for each in bounds)]]


def _dynamic_slice(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView]:
    known = [int(atom.val) for atom in equation.invars[1:] if isinstance(atom, Literal)]
    if len(known) < tracked.ndim:
        raise ValueError("an index that is not known")
    sizes = equation.params["slice_sizes"]
    corner = zip(known, sizes, tracked.shape, strict=True)
    starts = [min(max(at, 0), most - size) for at, size, most in corner]
    return [tracked[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))]]


def _split(equation: JaxprEqn, tracked: TrackedView) -> list[TrackedView]:
    ends = np.cumsum(equation.params["sizes"])[:-1]
    return list(np.split(tracked, ends, axis=equation.params["axis"]))


_VIEWS: dict[str, _View] = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": lambda equation, tracked: [tracked.transpose(equation.params["permutation"])],
    "squeeze": lambda equation, tracked: [np.squeeze(tracked, axis=equation.params["dimensions"])],
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    **dict.fromkeys(
        (
            "convert_element_type",
            "copy",
            "copy_p",
            "name",
            "sharding_constraint",
            "reduce_precision",
        ),
        _same,
    ),
}
