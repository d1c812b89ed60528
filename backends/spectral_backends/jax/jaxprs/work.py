"""Counting the multiply-adds of a computation."""

from collections.abc import Iterator
from math import nan, prod
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from spectral_backends.jax.jaxprs.interpreter import aval_of, is_scan

__all__ = ["multiply_adds"]


def multiply_adds(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Return the multiply-adds of all matrix products and convolutions of a jaxpr.

    Operations on single elements are not counted. Of the branches of a ``cond`` the dearest is;
    products in a ``while``, whose length is not known, make it NaN.
    """
    return sum(map(_work, jaxpr.eqns))


def _work(equation: JaxprEqn) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inside = [multiply_adds(jaxpr) for jaxpr in _jaxprs(equation.params.values())]
    if name == "cond":
        return max(inside)
    if name == "while":
        return nan if any(inside) else 0.0
    return sum(inside) * _times(equation)


def _times(equation: JaxprEqn) -> int:
    """Return the number of runs of the jaxprs inside an equation, on all devices together."""
    params = equation.params
    if is_scan(equation):
        return int(params["length"])
    if equation.primitive.name == "shard_map":
        axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
        return prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _of_product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    first = aval_of(equation.invars[0]).shape
    return float(_size(equation) * prod(first[axis] for axis in contracted))


def _of_convolution(equation: JaxprEqn) -> float:
    """Count what meets each output, with the zeros around the input, but not those within."""
    params = equation.params
    kernel = aval_of(equation.invars[1]).shape
    met = prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return float(_size(equation) * met / prod(params["lhs_dilation"]))


def _size(equation: JaxprEqn) -> int:
    return prod(aval_of(equation.outvars[0]).shape)


def _jaxprs(values: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the jaxprs among an equation's parameters."""
    for value in values:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
