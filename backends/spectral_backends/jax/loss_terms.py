"""How many terms a batch's loss averages: what makes totals independent of the batching.

``L = (1/N) Σ_i l_i`` runs over terms: samples, or tokens that are not masked (Theory 1). The jaxpr
of the loss is read backwards from its result: a mean ends in a division by a number that does not
depend on the parameters, which is N, known or computed from the batch as in
``sum(l * mask) / sum(mask)``; a sum ends in a ``reduce_sum``. What is read is a conjecture until
the halves of a batch have shown that the loss adds up so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Var
from jax.extend.core import Literal as Constant

from spectral_backends.jax.dependence import dependents
from spectral_backends.jax.jaxpr_interpreter import Site, bind, evaluate, inner_jaxpr, is_scan

__all__ = ["Reading", "Reduction", "count_terms", "readings"]

Reduction = Literal["mean", "sum"]

_PASSED = ("convert_element_type", "reshape", "squeeze", "copy", "copy_p", "neg")


@dataclass(frozen=True)
class Reading:
    """How a loss may reduce its terms.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        What it makes of them.
    count : float or None
        How many there are, where it is the same for each batch of the shape.
    site : tuple of int
        Else, of the division by their number.
    """

    reduction: Reduction
    count: float | None = None
    site: Site = ()


def readings(loss: ClosedJaxpr, n_seeds: int, length: int | None) -> Iterator[Reading]:
    """Yield how the loss may reduce its terms, the likeliest first.

    Parameters
    ----------
    loss : ClosedJaxpr
        Scalar; depends on parameters or outputs by its first `n_seeds` arguments.
    length : int or None
        Of the first axis of what it reduces.
    """
    seeds = loss.jaxpr.invars[:n_seeds]
    yield from _back(loss, loss.jaxpr.outvars[0], set(seeds), ())
    if length is not None:
        yield Reading("mean", float(length))
        yield Reading("sum", float(length))


def count_terms(loss: ClosedJaxpr, reading: Reading, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Return the loss and the number of its terms; may be traced."""
    if not reading.site:
        return evaluate(loss, inputs)[0][0], jnp.asarray(reading.count, jnp.float32)

    def divide(equation: Any, operands: Sequence[Any], fed: Any) -> tuple[Sequence[Any], Any]:
        return bind(equation, operands), operands[1]

    (value, *_), kept = evaluate(loss, inputs, {reading.site: divide})
    return value, kept[reading.site].reshape(())


def _back(closed: ClosedJaxpr, var: Any, seeds: set[Var], path: Site) -> Iterator[Reading]:
    """Follow a variable back through its equations as long as each has one that matters."""
    jaxpr = closed.jaxpr
    moving = dependents(jaxpr, seeds)
    made = {out: index for index, equation in enumerate(jaxpr.eqns) for out in equation.outvars}
    while not isinstance(var, Constant) and var in made:
        index = made[var]
        equation = jaxpr.eqns[index]
        name, site = equation.primitive.name, (*path, index)
        operands = [a for a in equation.invars if not isinstance(a, Constant) and a in moving]
        inner = inner_jaxpr(equation)
        if inner is not None and not is_scan(equation):
            inside = {
                v
                for v, a in zip(inner.jaxpr.invars, equation.invars, strict=True)
                if not isinstance(a, Constant) and a in moving
            }
            result = inner.jaxpr.outvars[equation.outvars.index(var)]
            yield from _back(inner, result, inside, site)
            if len(operands) != 1 or prod(operands[0].aval.shape) != 1:
                return
        elif name == "reduce_sum":
            yield Reading("sum", float(prod(equation.invars[0].aval.shape)))
            return
        elif name == "div" and operands == equation.invars[:1]:
            if prod(equation.invars[1].aval.shape) == 1:
                yield _divided(equation.invars[1], site)
        elif not (name in _PASSED or (name == "mul" and _by_number(equation.invars))):
            return
        if len(operands) != 1:
            return
        (var,) = operands


def _divided(by: Any, site: Site) -> Reading:
    return (
        Reading("mean", float(by.val)) if isinstance(by, Constant) else Reading("mean", None, site)
    )


def _by_number(atoms: Sequence[Any]) -> bool:
    return any(isinstance(atom, Constant) for atom in atoms)
