"""Casts that lose digits on the way from the parameters to the loss, and random numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.jaxprs.interpreter import aval_of
from spectral_backends.jax.objective.program import Program

__all__ = ["draws_numbers", "narrowest"]

_RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")


def narrowest(program: Program, dtype: Any) -> Any:
    """Return the narrowest type that what depends on the parameters is cast to, or `dtype`."""
    n = len(program.parameters.values)
    found = [dtype]
    for jaxpr, seeds in ((program.forward, n), (program.loss, n)):
        if jaxpr is None:
            continue
        if jaxpr is program.loss and program.forward is not None:
            seeds = len(program.forward.out_avals)
        inputs = [index < seeds for index in range(len(jaxpr.jaxpr.invars))]
        _follow(jaxpr.jaxpr, inputs, found)
    return min(found, key=_bits)


def draws_numbers(program: Program) -> bool:
    """Say whether it draws random numbers, which are others in another type."""
    jaxprs = [each.jaxpr for each in (program.forward, program.loss) if each is not None]
    return any(
        equation.primitive.name in _RANDOM for jaxpr in jaxprs for equation in _equations(jaxpr)
    )


def _follow(jaxpr: Jaxpr, inputs: Sequence[bool], found: list[Any]) -> None:
    """Add the types of casts of what depends on the inputs that are marked."""
    marked: set[Var] = {var for var, is_in in zip(jaxpr.invars, inputs, strict=True) if is_in}
    for equation in jaxpr.eqns:
        operands = [not isinstance(a, Literal) and a in marked for a in equation.invars]
        if not any(operands):
            continue
        marked.update(equation.outvars)
        if equation.primitive.name == "convert_element_type":
            before, after = aval_of(equation.invars[0]).dtype, equation.params["new_dtype"]
            if jnp.issubdtype(after, jnp.floating) and _bits(after) < _bits(before):
                found.append(after)
        for inner in _inside(equation):
            # Branches do not take the index of cond.
            own = operands[len(operands) - len(inner.invars) :]
            _follow(
                inner, own if len(own) == len(inner.invars) else [True] * len(inner.invars), found
            )


def _bits(dtype: Any) -> int:
    """Return the bits of a floating number; those of others are no matter."""
    finfo: Any = jnp.finfo  # has no types
    return int(finfo(dtype).bits) if jnp.issubdtype(dtype, jnp.floating) else 0


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inside(equation):
            yield from _equations(inner)
