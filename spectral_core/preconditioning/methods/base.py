"""The base of all methods."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.damped_power import DampedPower, ScaledDampedPower
from spectral_core.preconditioning.gram import ScaledMatrix
from spectral_core.preconditioning.request import Request
from spectral_core.preconditioning.spectral_function import ScaledFunction

__all__ = [
    "NORMALIZATIONS",
    "DampedPowerMethod",
    "Filtered",
    "Method",
    "Product",
    "below_rounding",
    "squares_too_much",
]

NORMALIZATIONS = ("none", "spectral", "rms")
UPDATE_RMS = 0.2  # the usual root mean square of AdamW's updates
FEW_ROUNDINGS = 32  # the least error that a method promises, in units of ε


@dataclass(frozen=True)
class Product:
    """``(left wide) · size``; the factor `left` is absent where the product is `wide` itself.

    The size is 1, or NaN where a factorisation failed.
    """

    wide: Array
    size: float | Array
    left: Array | None = None

    def times(self, factor: Array) -> Array:
        """Return the product times a factor (..., 1, 1), which multiplies the smaller array."""
        if not isinstance(self.size, float) or self.size != 1:
            factor = factor * self.size
        return self.wide * factor if self.left is None else (self.left * factor) @ self.wide

    def multiplied(self) -> "Product":
        """Return the product as one array, its size apart."""
        return self if self.left is None else Product(self.left @ self.wide, self.size)


@dataclass(frozen=True)
class Filtered:
    """``T(G) = product · size``, where T has its maximum ``peak() · size`` over [0, σ_max]."""

    product: Product
    size: Array
    peak: Callable[[], Array]

    @classmethod
    def of(cls, xp: Any, product: Product, root: Array, scaled: ScaledFunction) -> "Filtered":
        """Make it of a product that is `root` times too large for singular values over σ_max."""
        return cls(product, scaled.factor / root, lambda: scaled.peak(xp, root) * root)

    def normalized(self, xp: Any, normalize: str) -> Array:
        """Return T(G) in the size that `precondition` was asked for."""
        if normalize == "none":
            return self.product.times(self.size)
        if normalize == "spectral":
            return self.product.times(1 / self.peak())
        product = self.product.multiplied()
        entries = xp.astype(product.wide, self.size.dtype, copy=False)  # it may be bfloat16
        rms = xp.sqrt(xp.mean(entries**2, axis=(-2, -1), keepdims=True))
        return product.times(UPDATE_RMS / xp.where(rms > 0, rms, xp.ones_like(rms)))


class Method(ABC):
    """A way to apply T to the singular values of a matrix.

    A new method is a file beside this one with a class like those there, and a line in `table`. Its
    reasons are the rest of sentences that begin with its name.
    """

    name: ClassVar[str]
    serves: ClassVar[str]
    """Which requests, for the table in the docstring of `precondition`; so are the next two."""
    computes: ClassVar[str]
    stated_error: ClassVar[str]
    remedy: ClassVar[str] = ""
    """What to do where the approximation does not reach the tolerance, if that can happen."""
    sharper: ClassVar[str] = "'svd' or float64"
    """What rounds less."""
    precisions: ClassVar[tuple[str, ...]] = ("working",)
    """The precisions in which it can multiply; several mean that it needs products alone."""

    @abstractmethod
    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Apply T."""

    @abstractmethod
    def unsuited(self, request: Request) -> str:
        """Say why it cannot serve a request at any tolerance, or nothing."""

    @abstractmethod
    def price(self, request: Request) -> float:
        """Return the time of the method, in Cholesky factorisations of k rows and columns."""

    def left_by_auto(self, request: Request) -> str:
        """Return the reason why "auto" leaves the method although it serves, or an empty text."""
        return ""

    def exact(self, request: Request) -> bool:
        """Return whether rounding is the method's only error."""
        return False

    def multiplies(self, request: Request) -> bool:
        """Return whether all products of the method can be in the precision asked for."""
        return request.precision in self.precisions

    def approximation(self, request: Request) -> float:
        """Return the error that the method would have without rounding."""
        return 0.0

    def rounding(self, request: Request) -> float:
        """Return the error that rounding brings, if that is more than a few roundings."""
        return request.rounding()

    def error(self, request: Request) -> float:
        """Return the predicted ``‖T̂ − T‖₂ / ‖T‖₂``; NaN if it depends on the matrix."""
        if not request.predictable:
            return math.nan
        return self.approximation(request) + self._all_rounding(request)

    def refuses(self, request: Request) -> str:
        """Return the reason why the method does not serve a request, or an empty text."""
        if reason := self.unsuited(request):
            return reason
        error = self.approximation(request) if self.remedy else 0.0
        if error > request.target:
            return (
                f"reaches {error:.1e} for {request.function}, not the tolerance "
                f"{request.target:g}; {self.remedy}."
            )
        if (
            request.tolerance is None or request.low
        ):  # the rounding of half precision comes on top, as stated
            return ""
        least = self._all_rounding(request)
        if request.tolerance < least:
            return (
                f"rounds to {least:.1e}, above the tolerance {request.tolerance:g}; use "
                f"{self.sharper}."
            )
        return ""

    def _all_rounding(self, request: Request) -> float:
        return max(FEW_ROUNDINGS * request.epsilon, self.rounding(request))


class DampedPowerMethod(Method):
    """A method for `DampedPower` with numbers as its parameters, and for no other function."""

    def unsuited(self, request: Request) -> str:
        """Say why it cannot serve a request at any tolerance, or nothing."""
        if not isinstance(request.function, DampedPower):
            return (
                f"is for {DampedPower.formula} alone, not {request.function.formula}; use 'eigh' "
                "or 'svd'."
            )
        if not request.function.known:
            return "needs alpha and damping as numbers, not arrays; use 'eigh' or 'svd'."
        return self.unsuited_for(request.function, request)

    @abstractmethod
    def unsuited_for(self, function: DampedPower, request: Request) -> str:
        """Return the reason against this function, whose parameters are numbers, if any."""

    def scaled(
        self, xp: Any, matrix: ScaledMatrix, root: Array, request: Request
    ) -> ScaledDampedPower:
        """Return T for a matrix whose largest singular values are `root` times its scale."""
        function = request.damped_power
        found = function.at(xp, matrix.scale * root)
        return replace(found, alpha=float(function.alpha))  # NumPy's own would widen float32


def squares_too_much(request: Request) -> str:
    """Return the reason why "auto" does not square the gradient for a request, or nothing."""
    if not request.function.known:
        return "has an error that nobody knows beforehand, as alpha or damping is an array."
    if not request.function.scale_free:
        return "has an error that nobody knows beforehand, as the damping is absolute."
    if request.rounding() > request.target:
        return (
            f"loses {request.rounding():.1e} by squaring, above the tolerance {request.target:g}."
        )
    return ""


def below_rounding(function: DampedPower, request: Request) -> str:
    """Return the reason if rounding of the Gram matrix hides the damping, or an empty text."""
    if function.scale_free and function.damping < request.shift:
        return (
            f"needs a damping above the rounding of the Gram matrix, {request.shift:.1e} at this "
            f"size and dtype, not {function.damping}; use 'svd', or float64."
        )
    return ""
