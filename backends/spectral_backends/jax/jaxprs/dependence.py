"""The variables of a jaxpr that depend on some of its arguments."""

from collections.abc import Iterable
from typing import Any

from jax.extend.core import Jaxpr, Literal, Var

__all__ = ["dependents"]


def dependents(jaxpr: Jaxpr, seeds: Iterable[Var]) -> set[Var]:
    """Return the variables that depend on any of the seeds, as far as its equations tell."""
    found = set(seeds)
    for equation in jaxpr.eqns:
        if any(_is_in(atom, found) for atom in equation.invars):
            found.update(equation.outvars)
    return found


def _is_in(atom: Any, variables: set[Var]) -> bool:
    return not isinstance(atom, Literal) and atom in variables
