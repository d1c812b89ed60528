"""The equations of a jaxpr that are nonlinear in a parameter, and their second-order parts.

Along a line ``W + t D`` a network's values move by their tangents ẋ. To second order each nonlinear
equation ``y = f(x)`` adds ``d²f[ẋ, ẋ]``. Nonlinear equations are not looked up in a table: the
second derivative is traced, and depends on ẋ or does not. This also serves operations with rules of
their own, and those that JAX does not know yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.jaxprs.dependence import dependents
from spectral_backends.jax.jaxprs.inner_product import inner_product
from spectral_backends.jax.jaxprs.interpreter import (
    EquationPath,
    aval_of,
    bind,
    inner_jaxpr,
    is_scan,
    scan_counts,
)

__all__ = ["NonlinearEquation", "NonlinearEquations"]

Form = Callable[[Sequence[Any]], Any]
"""A function of the tangents of an equation's moving operands: ``<λ, d²f[ẋ, ẋ]>``."""

_PRODUCTS = ("mul", "dot_general", "conv_general_dilated")


@dataclass(frozen=True)
class NonlinearEquation:
    """A nonlinear equation.

    Parameters
    ----------
    equation : JaxprEqn
        The equation as it stands in the jaxpr.
    moving : tuple of int
        The indices of the operands that depend on the parameter.
    depth : int
        The number of scans around it.
    """

    equation: JaxprEqn
    moving: tuple[int, ...]
    depth: int

    def form(self, operands: Sequence[Any], adjoints: Sequence[Any]) -> Form:
        """Return the form ``<λ, d²f[ẋ, ẋ]>``; its parts without ẋ are already computed.

        Operands and adjoints have the iterations of the scans around it as leading axes.
        """
        if len(self.moving) == 2 and self.equation.primitive.name in _PRODUCTS:
            (weight,) = adjoints
            product = _over(self.depth, lambda pair: bind(self.equation, pair)[0])
            return lambda tangents: 2 * inner_product(weight, product(list(tangents)))

        def back(moving: list[Any], fixed: Sequence[Any], given: Sequence[Any]) -> list[Any]:
            found: list[Any] = jax.vjp(lambda x: self._results(x, fixed), moving)[1](list(given))[0]
            return found

        gradient = _over(self.depth, back)
        start = [operands[i] for i in self.moving]
        _, second = jax.linearize(lambda x: gradient(x, list(operands), list(adjoints)), start)
        return lambda tangents: sum(map(inner_product, tangents, second(list(tangents))))

    def _results(self, moving: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """Return the real results; `moving` replaces those of the operands that move."""
        every = list(operands)
        for index, value in zip(self.moving, moving, strict=True):
            every[index] = value
        return [r for r in bind(self.equation, every) if _is_real(r)]


class NonlinearEquations:
    """Finds the nonlinear equations of a jaxpr, for one parameter after the other.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        Its first arguments are the parameters.
    """

    def __init__(self, jaxpr: ClosedJaxpr) -> None:
        self._jaxpr = jaxpr
        self._known: dict[Any, bool] = {}

    def of(self, parameter: int) -> dict[EquationPath, NonlinearEquation]:
        """Return the equations that are nonlinear as one parameter moves along a line."""
        moving: dict[EquationPath, NonlinearEquation] = {}
        start = [i == parameter for i in range(len(self._jaxpr.jaxpr.invars))]
        _follow(self._jaxpr.jaxpr, start, (), 0, moving)
        return {path: found for path, found in moving.items() if self._is_nonlinear(found)}

    def _is_nonlinear(self, found: NonlinearEquation) -> bool:
        equation = found.equation
        # Blocks repeat themselves: equations that print alike are nonlinear alike.
        shapes = tuple(str(aval_of(atom)) for atom in equation.invars)
        key = (equation.primitive.name, found.moving, shapes, str(equation.params))
        if key not in self._known:
            self._known[key] = _second_derivative_varies(found)
        return self._known[key]


def _follow(
    jaxpr: Jaxpr,
    inputs: Sequence[bool],
    prefix: EquationPath,
    depth: int,
    found: dict[EquationPath, NonlinearEquation],
) -> list[bool]:
    """Collect the equations whose operands move; return which results do."""
    states: dict[Var, bool] = dict(zip(jaxpr.invars, inputs, strict=True))

    def moves(atom: Any) -> bool:
        return not isinstance(atom, Literal) and states.get(atom, False)

    for index, equation in enumerate(jaxpr.eqns):
        path, operands = (*prefix, index), [moves(atom) for atom in equation.invars]
        results = [False] * len(equation.outvars)
        inner = inner_jaxpr(equation)
        if any(operands) and is_scan(equation):
            results = _follow_scan(equation, operands, path, depth, found)
        elif any(operands) and inner is not None:
            results = _follow(inner.jaxpr, operands, path, depth, found)
        elif any(operands) and equation.primitive.name != "stop_gradient":
            moving = tuple(i for i, m in enumerate(operands) if m)
            found[path] = NonlinearEquation(equation, moving, depth)
            results = [_is_real(aval_of(v)) for v in equation.outvars]
        states.update(zip(equation.outvars, results, strict=True))
    return [moves(atom) for atom in jaxpr.outvars]


def _follow_scan(
    equation: JaxprEqn,
    operands: list[bool],
    prefix: EquationPath,
    depth: int,
    found: dict[EquationPath, NonlinearEquation],
) -> list[bool]:
    """Follow the body of a scan again and again, until no further carried value moves."""
    n_consts, n_carry = scan_counts(equation)
    carried = slice(n_consts, n_consts + n_carry)
    while True:
        results = _follow(equation.params["jaxpr"].jaxpr, operands, prefix, depth + 1, found)
        before = operands[carried]
        after = [a or b for a, b in zip(before, results[:n_carry], strict=True)]
        if after == before:
            return results
        operands[carried] = after


def _second_derivative_varies(found: NonlinearEquation) -> bool:
    """Say whether the second derivative along a line depends on the line."""
    operands = map(aval_of, found.equation.invars)
    make: Any = jax.ShapeDtypeStruct  # has no types
    avals = [make(a.shape, a.dtype) for a in operands]
    moving = [avals[i] for i in found.moving]

    def second(operands: list[Any], tangents: list[Any]) -> list[Any]:
        def slope(*x: Any) -> list[Any]:
            along: list[Any] = jax.jvp(lambda *y: found._results(y, operands), x, tuple(tangents))[
                1
            ]
            return along

        second_order: list[Any] = jax.jvp(
            slope, tuple(operands[i] for i in found.moving), tuple(tangents)
        )[1]
        return second_order

    jaxpr = jax.make_jaxpr(second)(avals, moving).jaxpr
    depending = dependents(jaxpr, jaxpr.invars[len(avals) :])
    return any(not isinstance(v, Literal) and v in depending for v in jaxpr.outvars)


def _is_real(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _over(depth: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function over the iterations of the scans around an equation."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function
