"""Equations that return a view of a parameter: its shadow goes through the same view."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from spectral_backends.jax.layers.matrix_view import Shadow

__all__ = ["view_shadow"]

_View = Callable[[JaxprEqn, Shadow], list[Shadow]]


def view_shadow(equation: JaxprEqn, shadow: Shadow) -> list[Shadow] | None:
    """Return the shadows of an equation's results, views of that of its first operand.

    None if the equation is no view, or one for which elements would have to move in memory.
    """
    view = _VIEWS.get(equation.primitive.name)
    try:
        return None if view is None else view(equation, shadow)
    except (ValueError, TypeError):  # would have to be copied, or an index is not known
        return None


def _same(equation: JaxprEqn, shadow: Shadow) -> list[Shadow]:
    return [shadow]


def _reshape(equation: JaxprEqn, shadow: Shadow) -> list[Shadow]:
    if equation.params.get("dimensions") is not None:
        raise ValueError("another order of axes")
    return [shadow.reshape(equation.params["new_sizes"], copy=False)]


def _broadcast(equation: JaxprEqn, shadow: Shadow) -> list[Shadow]:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    missing = [axis for axis in range(len(shape)) if axis not in axes]
    return [np.broadcast_to(np.expand_dims(shadow, missing), shape)]


def _slice(equation: JaxprEqn, shadow: Shadow) -> list[Shadow]:
    params: Mapping[str, Any] = equation.params
    steps = params["strides"] or (1,) * shadow.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [shadow[tuple(slice(*each) for each in bounds)]]


def _dynamic_slice(equation: JaxprEqn, shadow: Shadow) -> list[Shadow]:
    known = [int(atom.val) for atom in equation.invars[1:] if isinstance(atom, Literal)]
    if len(known) < shadow.ndim:
        raise ValueError("an index that is not known")
    sizes = equation.params["slice_sizes"]
    corner = zip(known, sizes, shadow.shape, strict=True)
    starts = [min(max(at, 0), most - size) for at, size, most in corner]
    return [shadow[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))]]


def _split(equation: JaxprEqn, shadow: Shadow) -> list[Shadow]:
    ends = np.cumsum(equation.params["sizes"])[:-1]
    return list(np.split(shadow, ends, axis=equation.params["axis"]))


_VIEWS: dict[str, _View] = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": lambda equation, shadow: [shadow.transpose(equation.params["permutation"])],
    "squeeze": lambda equation, shadow: [np.squeeze(shadow, axis=equation.params["dimensions"])],
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
