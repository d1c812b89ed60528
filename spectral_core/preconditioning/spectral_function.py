"""The interface of a function of singular values, by which the methods apply it to matrices.

Another function is a file like `damped_power`, with a class of its parameters and one of its values
at a given σ_max.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.namespace import Array

__all__ = ["ScaledFunction", "SpectralFunction", "squaring_error"]

Vector = NDArray[np.float64]


class ScaledFunction(Protocol):
    """``T(σ) = factor · t(σ/σ_max)`` of matrices whose largest singular values are known."""

    @property
    def factor(self) -> Array:
        """The factor of t, shape (..., 1, 1)."""

    def values(self, xp: Any, ratios: Array) -> Array:
        """Return t(r) for ratios r in [0, 1]."""

    def quotients(self, xp: Any, ratios: Array) -> Array:
        """Return t(r) / r, and a finite number where r is 0: it multiplies zeros."""

    def peak(self, xp: Any, like: Array) -> Array:
        """Return the maximum of t over [0, 1], shaped like an array."""


class SpectralFunction(ABC):
    """A function T of singular values, with ``T(0) = 0`` (Theory 9.1).

    Every method that serves the function can apply it; "svd" and "eigh" need no more than the
    values that `at` gives.
    """

    formula: ClassVar[str]
    """T in plain text, for messages."""

    @property
    def known(self) -> bool:
        """Whether its parameters are numbers rather than arrays."""
        return True

    @property
    def scale_free(self) -> bool:
        """Whether t is the same function for every σ_max."""
        return True

    @property
    def undamped(self) -> bool:
        """Whether T does not fade towards 0, so that a σ that is only rounding must count as 0."""
        return False

    def check(self) -> None:  # noqa: B027
        """Raise `InputError` if a parameter is out of range."""

    @abstractmethod
    def at(self, xp: Any, sigma_max: Array) -> ScaledFunction:
        """Return T for largest singular values (..., 1, 1), positive or NaN."""

    def rounding(self, shift: float) -> float:
        """Return the error in T, over max T, where a Gram matrix over σ_max² errs by `shift`."""
        scaled = self._at_one()
        return squaring_error(lambda x: scaled.quotients(np, np.sqrt(x)), shift)

    def steepness(self) -> float:
        """Return ``max |t'| / max t``, the factor from an error in σ/σ_max to one in T."""
        ratios = np.concatenate([[0.0], np.geomspace(1e-8, 1, 2000)])
        values = self._at_one().values(np, ratios)
        return float(np.max(np.abs(np.diff(values) / np.diff(ratios))) / np.max(np.abs(values)))

    def _at_one(self) -> ScaledFunction:
        return self.at(np, np.ones(1))


def squaring_error(
    quotient: Callable[[Any], Any], shift: float, floor: float | None = None, power: int = 1
) -> float:
    """Return ``max_σ |T(σ') − T(σ)| / max T`` where σ'² and σ² differ by `shift` (Theory 9.6).

    This is the effect on T of an error of that size in a Gram matrix, to first order.

    Parameters
    ----------
    quotient : callable
        The function T(σ)/σ of σ², on [0, 1].
    shift : float
        The error of the Gram matrix, for σ_max = 1.
    floor : float, optional
        A singular value; if it is given, the change counts relative to ``T(max(σ, floor))``.
    power : int
        The power of the Gram matrix that is formed. A second product errs as the first does.
    """
    x = np.concatenate([[0.0], np.geomspace(1e-3 * shift, 1, 2000)])
    middle = quotient(x)
    moved = np.maximum(
        np.abs(quotient(np.maximum(x - shift, 0)) - middle), np.abs(quotient(x + shift) - middle)
    )
    product = shift * middle**2 if power == 2 else 0.0
    sigma = np.sqrt(x)
    reference = np.max(sigma * middle)
    if floor is not None:
        above = np.maximum(sigma, floor)
        reference = above * quotient(above**2)
    return float(np.max(sigma * (moved + product) / reference))
