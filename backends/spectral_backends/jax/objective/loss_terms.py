"""The number of terms that a batch's loss averages, which makes totals free of the batching.

``L = (1/N) Σ_i l_i`` runs over terms: samples, or tokens that are not masked (Theory 1). The jaxpr
of the loss is read backwards from its result: a mean ends in a division by a number that does not
depend on the parameters, which is N, known or computed from the batch as in
``sum(l * mask) / sum(mask)``; a sum ends in a ``reduce_sum``. What they reduce may be means itself,
so the way back goes on behind them. What is read is a conjecture until the parts of a batch have
shown that the loss adds up so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan, prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.extend.core import Literal as Constant

from spectral_backends.jax.jaxprs.dependence import dependents
from spectral_backends.jax.jaxprs.interpreter import (
    EquationPath,
    bind,
    evaluate,
    inner_jaxpr,
    is_scan,
    scan_counts,
)
from spectral_core.losses.terms import LossTerms, Reduction

__all__ = ["Reading", "numbers_at", "paths_of", "readings", "terms_of"]

Divisor = float | EquationPath
"""A number, or the path of a division by a number that depends on the batch."""

_PASSED = (
    "convert_element_type", "reshape", "squeeze", "expand_dims", "copy", "copy_p", "neg",
    "transpose",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A way in which a loss may reduce its terms.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        The way in which it reduces them.
    count : float or tuple of int
        The number of terms, if it is the same for each batch of the shape. Otherwise it is the path
        of the division by their number.
    inside : tuple or None
        The divisors of the values that are counted, if they are means: for each mean the
        divisors of all the values, which are one number or no mean of all terms. None if they are
        no means.
    stacked : bool
        Whether the values were put together one by one.
    """

    reduction: Reduction
    count: Divisor
    inside: tuple[tuple[Divisor, ...], ...] | None = None
    stacked: bool = False

    def terms(self, numbers: Mapping[EquationPath, float]) -> LossTerms:
        """Return the terms, given a batch's numbers by their paths."""

        def number(divisor: Divisor) -> float:
            return numbers[divisor] if isinstance(divisor, tuple) else divisor

        inside = None if self.inside is None else 1.0
        for divisors in self.inside or ():
            found = np.array([number(divisor) for divisor in divisors])
            alike = np.allclose(found, found[0], rtol=1e-6, atol=0)
            inside = (inside or 1.0) * (float(found[0]) if alike else np.nan)
        return LossTerms(number(self.count), self.reduction, inside, self.stacked)

    @property
    def paths(self) -> set[EquationPath]:
        """Return the paths of the numbers that depend on the batch."""
        every = [self.count, *(d for divisors in self.inside or () for d in divisors)]
        return {divisor for divisor in every if isinstance(divisor, tuple)}


def readings(loss: ClosedJaxpr, n_seeds: int, length: int | None) -> tuple[Reading, ...]:
    """Return the ways in which the loss may reduce its terms, the likeliest first.

    Parameters
    ----------
    loss : ClosedJaxpr
        The scalar loss. It depends on parameters or outputs by its first `n_seeds` arguments.
    length : int or None
        The length of the first axis of what it reduces; None where there is no common one.
    """
    seeds = set(loss.jaxpr.invars[:n_seeds])
    scope = _Scope(loss.jaxpr, dependents(loss.jaxpr, seeds), ())
    divisors, summed, values = _reduction(scope, loss.jaxpr.outvars[0])
    look = _inside(values) if divisors or summed is not None else _Inside()
    inside = look.means or None
    found: list[tuple[Reduction, Divisor]] = [("mean", divisor) for divisor in divisors]
    if summed is not None:
        found.append(("sum", summed))
    if length is not None:
        found += [("mean", float(length)), ("sum", float(length))]
    return tuple(Reading(*each, inside, look.stacked) for each in found)


def paths_of(found: Sequence[Reading]) -> list[EquationPath]:
    """Return the paths of the numbers that the readings need, in order."""
    return sorted({path for reading in found for path in reading.paths})


def numbers_at(
    paths: Sequence[EquationPath], loss: ClosedJaxpr, inputs: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """Return the loss, and the divisors of the divisions at some paths; may be traced."""

    def divide(equation: Any, operands: Sequence[Any], fed: Any) -> tuple[Sequence[Any], Any]:
        return bind(equation, operands), operands[1]

    (value, *_), kept = evaluate(loss, inputs, dict.fromkeys(paths, divide))
    return value, [jnp.reshape(kept[path], ()) for path in paths]


def terms_of(found: Sequence[Reading], numbers: Sequence[Any]) -> tuple[LossTerms, ...]:
    """Return the terms of each reading, given the numbers at their paths."""
    at = dict(zip(paths_of(found), map(float, numbers), strict=True))
    return tuple(reading.terms(at) for reading in found)


@dataclass(frozen=True)
class _Scope:
    """Holds a jaxpr, and the scope around it.

    Parameters
    ----------
    jaxpr : Jaxpr
        The jaxpr with its equations.
    moving : set of Var
        The variables that depend on the parameters or outputs.
    path : tuple of int
        The path of the equation that it belongs to.
    outer : (_Scope, JaxprEqn) or None
        The scope around it, and the equation of that scope that it belongs to.
    repeated : bool
        Whether it runs once for each index of an axis, so that no division in it is by one number.
    """

    jaxpr: Jaxpr
    moving: set[Var]
    path: EquationPath
    outer: "tuple[_Scope, JaxprEqn] | None" = None
    repeated: bool = False

    @cached_property
    def makers(self) -> dict[Any, int]:
        """Return the index of the equation that makes each variable."""
        return {out: i for i, equation in enumerate(self.jaxpr.eqns) for out in equation.outvars}

    def moves(self, atom: Any) -> bool:
        """Say whether a variable depends on the parameters or outputs."""
        return not isinstance(atom, Constant) and atom in self.moving

    def inside(self, equation: JaxprEqn, path: EquationPath) -> "_Scope | None":
        """Return the scope of the jaxpr in an equation."""
        inner = inner_jaxpr(equation)
        if inner is None:
            return None
        moving = [self.moves(atom) for atom in equation.invars]
        if is_scan(equation):
            n_consts, n_carry = scan_counts(equation)
            moving[n_consts : n_consts + n_carry] = [True] * n_carry
        seeds = {v for v, moves in zip(inner.jaxpr.invars, moving, strict=True) if moves}
        repeated = self.repeated or is_scan(equation)
        found = dependents(inner.jaxpr, seeds)
        return _Scope(inner.jaxpr, found, path, (self, equation), repeated)


Value = tuple[_Scope, Any]
"""A variable, and the jaxpr that it is of."""


def _maker(scope: _Scope, var: Any) -> tuple[_Scope, JaxprEqn, EquationPath, Any] | None:
    """Return the equation that makes a variable, in any jaxpr; None for an input of all."""
    while scope.moves(var):
        index = scope.makers.get(var)
        if index is None:
            if scope.outer is None or is_scan(scope.outer[1]):
                return None
            position = scope.jaxpr.invars.index(var)
            scope, equation = scope.outer
            var = equation.invars[position]
            continue
        equation, path = scope.jaxpr.eqns[index], (*scope.path, index)
        inner = None if is_scan(equation) else scope.inside(equation, path)
        if inner is None:
            return scope, equation, path, var
        scope, var = inner, inner.jaxpr.outvars[equation.outvars.index(var)]
    return None


def _reduction(scope: _Scope, var: Any) -> tuple[list[Divisor], float | None, list[Value]]:
    """Return the divisors of a variable, and the number of values that it is the sum of.

    Without a sum the number is None, and the values are those that were put together to it, or
    added one by one.
    """
    divisors: list[Divisor] = []
    while (made := _maker(scope, var)) is not None:
        scope, equation, path, var = made
        name, operands = equation.primitive.name, list(equation.invars)
        moving = [atom for atom in operands if scope.moves(atom)]
        if name == "reduce_sum":
            return divisors, _size(operands[0]) / max(_size(var), 1), [(scope, operands[0])]
        if name in ("concatenate", "stack"):
            return divisors, None, [(scope, atom) for atom in operands]
        if name in ("add", "add_any") and len(moving) > 1 and _size(var) == 1:
            return divisors, None, [(scope, atom) for atom in moving]
        if is_scan(equation):
            inner, position = scope.inside(equation, path), equation.outvars.index(var)
            return divisors, None, [] if inner is None else [(inner, inner.jaxpr.outvars[position])]
        if name == "div" and moving == operands[:1] and _size(operands[1]) == 1:
            divisors.append(_divisor(operands[1], path, scope))
        elif not (name in _PASSED or _same_values(equation) or _by_number(equation)):
            break
        if len(moving) != 1:
            break
        (var,) = moving
    return divisors, None, []


@dataclass(frozen=True)
class _Inside:
    """Describes values that are means themselves: their divisors, and how they were joined."""

    means: tuple[tuple[Divisor, ...], ...] = ()
    reduced: bool = False
    stacked: bool = False


def _inside(values: Sequence[Value]) -> _Inside:
    """Look into values: which divisors each mean of them has, and if a loop put them together."""
    each = []
    for value in values:
        divisors, count, inner = _reduction(*value)
        deeper = _inside(inner) if inner else _Inside()
        if count is None:
            stacked = deeper.stacked or (bool(inner) and deeper.reduced)
            each.append(_Inside(deeper.means, deeper.reduced, stacked))
            continue
        own = _own(divisors, count)
        means = deeper.means if own is None else ((own,), *deeper.means)
        each.append(_Inside(means, True, deeper.stacked))
    levels: Any = zip(*(one.means for one in each), strict=False)
    means = tuple(tuple(d for of_one in level for d in of_one) for level in levels)
    if len({len(one.means) for one in each}) > 1:
        means = ((nan,),)
    reduced, stacked = (any(getattr(one, name) for one in each) for name in ("reduced", "stacked"))
    return _Inside(means, reduced, stacked)


def _own(divisors: Sequence[Divisor], count: float) -> Divisor | None:
    """Return the divisor that makes a sum a mean: the number of its values, or one of the batch."""
    return next((d for d in divisors if d == count or isinstance(d, tuple) or d != d), None)


def _divisor(by: Any, path: EquationPath, scope: _Scope) -> Divisor:
    if isinstance(by, Constant):
        return float(by.val)
    return nan if scope.repeated else path


def _same_values(equation: JaxprEqn) -> bool:
    """Say whether an equation adds axes of length one only."""
    is_broadcast = equation.primitive.name == "broadcast_in_dim"
    return is_broadcast and _size(equation.invars[0]) == _size(equation.outvars[0])


def _by_number(equation: JaxprEqn) -> bool:
    scales = equation.primitive.name in ("mul", "add")
    return scales and any(isinstance(atom, Constant) for atom in equation.invars)


def _size(atom: Any) -> int:
    return prod(atom.aval.shape)
