"""The function T(σ; α, d) = σ / (σ^α + d) as the methods apply it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spectral_core.arrays.host import host_constant
from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.function import (
    check_exponent,
    damped_ratio,
    is_number,
    log_damping,
    peak,
    power,
)
from spectral_core.preconditioning.spectral_function import SpectralFunction, squaring_error

__all__ = ["DampedPower", "ScaledDampedPower", "gram_rounding"]


@dataclass(frozen=True)
class DampedPower(SpectralFunction):
    """The function T with its parameters.

    Parameters
    ----------
    alpha, damping : float or 0-d array
        The arguments of `precondition`. The values of arrays count as unknown.
    damping_mode : {"spectral", "absolute"}
        The argument of `precondition`.
    """

    formula: ClassVar[str] = "T(σ) = σ / (σ^α + d)"

    alpha: float | Array
    damping: float | Array
    damping_mode: str = "spectral"

    def __str__(self) -> str:
        """Return the parameters, for messages."""
        return f"alpha = {self.alpha} and damping = {self.damping}"

    @property
    def known(self) -> bool:
        """Whether α and the damping are numbers."""
        return is_number(self.alpha) and is_number(self.damping)

    @property
    def scale_free(self) -> bool:
        """Whether the damping is relative to σ_max."""
        return self.damping_mode == "spectral"

    @property
    def undamped(self) -> bool:
        """Whether there is no damping, as far as is known."""
        return self.known and bool(self.damping == 0)

    @property
    def linear(self) -> bool:
        """Whether T is a multiple of σ, as far as is known."""
        return self.known and bool(self.alpha == 0)

    def check(self) -> None:
        """Raise `InputError` if a parameter is out of range."""
        check_exponent(self.alpha, self.damping, self.damping_mode)

    def at(self, xp: Any, sigma_max: Array) -> "ScaledDampedPower":
        """Return T for largest singular values (..., 1, 1), positive or NaN."""
        alpha, damping = self.alpha, self.damping
        if self.damping_mode == "spectral":
            return ScaledDampedPower(alpha, 1.0, damping, power(xp, sigma_max, 1 - alpha))
        log_sigma = xp.log(sigma_max)
        log_d = log_damping(xp, sigma_max, damping)
        excess = alpha * log_sigma - log_d  # log(σ_max^α / d)
        zero = xp.zeros_like(excess)
        return ScaledDampedPower(
            alpha,
            xp.exp(xp.minimum(excess, zero)),
            xp.exp(xp.minimum(-excess, zero)),
            xp.exp(log_sigma - xp.maximum(alpha * log_sigma, zero + log_d)),
        )

    def rounding(self, shift: float) -> float:
        """Return the error in T, over max T, where a Gram matrix over σ_max² errs by `shift`."""
        return gram_rounding(float(self.alpha), float(self.damping), shift)


@dataclass(frozen=True)
class ScaledDampedPower:
    """T as ``factor · r / (slope r^α + offset)`` with ``r = σ/σ_max`` in [0, 1] (Theory 9.4).

    Slope and offset are at most 1 with absolute damping, whatever the scale of the gradient.
    """

    alpha: float | Array
    slope: float | Array
    offset: float | Array
    factor: Array

    def values(self, xp: Any, ratios: Array) -> Array:
        """Return ``r / (slope r^α + offset)``, and 0 where the denominator is 0."""
        return damped_ratio(xp, ratios, self.alpha, self.slope, self.offset)

    def quotients(self, xp: Any, ratios: Array) -> Array:
        """Return ``1 / (slope r^α + offset)``, and 0 where the denominator is 0."""
        below = self.slope * power(xp, ratios, self.alpha) + self.offset
        kept = below > 0
        return xp.where(kept, xp.ones_like(below), xp.zeros_like(below)) / xp.where(
            kept, below, xp.ones_like(below)
        )

    def peak(self, xp: Any, like: Array) -> Array:
        """Return the maximum over ``0 ≤ r ≤ 1``, shaped like an array."""
        return peak(xp, self.alpha, self.slope, self.offset, like)


@host_constant
def gram_rounding(alpha: float, damping: float, shift: float, floor: float | None = None) -> float:
    """Return `squaring_error` of T with spectral damping."""

    def quotient(x: Any) -> Any:
        below = x ** (alpha / 2) + damping
        return np.where(below > 0, 1.0, 0.0) / np.where(below > 0, below, 1.0)

    return squaring_error(quotient, shift, floor, power=2 if alpha == 4 else 1)
