"""Kronecker factors with h^diag along directions, of problems that know it and of others."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from spectral_core._renamed import by_new_names
from spectral_core.curvature.problem import KroneckerFactors

__all__ = ["HasFactors", "factors_along"]


class HasFactors(Protocol):
    """Whatever computes Kronecker factors, as `CurvatureProblem.kronecker_factors` does."""

    @property
    def kronecker_factors(self) -> Any:
        """Return the method."""


def factors_along(
    problem: HasFactors,
    layers: Sequence[str],
    directions: Mapping[str, tuple[Any, Any]],
    **options: Any,
) -> Mapping[str, KroneckerFactors]:
    """Return the factors of layers, in one pass of the problem.

    The directions are passed on only to a method that has an argument for them, so that a problem
    written without it is measured as before.
    """
    method = problem.kronecker_factors
    if _takes_directions(method):
        options["directions"] = directions
    found: Mapping[str, KroneckerFactors] = by_new_names(method)(layers, **options)
    return found


def _takes_directions(method: Any) -> bool:
    try:
        return "directions" in inspect.signature(method).parameters
    except (TypeError, ValueError):  # compiled, without a signature
        return False
