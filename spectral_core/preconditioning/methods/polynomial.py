"""α > 0 with spectral damping: a polynomial in the Gram matrix, by products alone."""

import math
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import Gram, ScaledMatrix
from spectral_core.preconditioning.methods.base import DampedPowerMethod, Filtered, Product
from spectral_core.preconditioning.request import Request
from spectral_core.preconditioning.tables.chebyshev import Add, Multiply, evaluate
from spectral_core.preconditioning.tables.polynomials import (
    REACH,
    PolynomialTable,
    polynomial_table,
)

__all__ = ["Polynomial", "by_polynomial", "polynomial_of"]

_LOW_STEPS = 8  # Lanczos steps in bfloat16; more would take longer than the products
_LOW_EPSILON = 2.0**-7


class Polynomial(DampedPowerMethod):
    """A Chebyshev expansion."""

    name = "polynomial"
    serves = "α > 0, spectral damping"
    computes = "polynomial of degree 2 to 36 in B, with 1 to 10 products"
    stated_error = "tolerance + γ + λ"
    remedy = "raise the tolerance or the damping, or use 'auto' in working precision"
    precisions = ("working", "bfloat16")

    def unsuited_for(self, function: DampedPower, request: Request) -> str:
        """Return the reason if α or the damping is another than the method takes."""
        alpha, damping = function.alpha, function.damping
        if alpha > 0 and damping > 0 and function.scale_free:
            return ""
        return (
            f"is for alpha above 0 and spectral damping above 0, not alpha = {alpha} and "
            f"{function.damping_mode} damping {damping}; use 'auto' in working precision."
        )

    def price(self, request: Request) -> float:
        """Return infinity: "auto" takes the method in bfloat16, where it is the only one."""
        return math.inf

    def left_by_auto(self, request: Request) -> str:
        """Return the reason: the products pay in bfloat16 alone."""
        return "is taken with precision='bfloat16' alone."

    def approximation(self, request: Request) -> float:
        """Return the error of the table."""
        return polynomial_of(request).error

    def error(self, request: Request) -> float:
        """Return the error of the table plus γ, for roundings that add up at their worst."""
        unit = (_LOW_EPSILON if request.low else request.epsilon) / 2
        return self.approximation(request) + polynomial_of(request).gain * unit

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Evaluate the polynomial, in bfloat16 if that was asked for."""
        if request.low:
            matrix = matrix.lowered()
        gram = Gram.of(xp, matrix, *([_LOW_STEPS] if request.low else []))
        root = xp.sqrt(gram.top)
        scaled = self.scaled(xp, matrix, root, request)
        product = by_polynomial(xp, gram.matrix, gram.top, matrix.wide, polynomial_of(request))
        return Filtered.of(xp, Product(product, 1.0), root, scaled)


def polynomial_of(request: Request) -> PolynomialTable:
    """Return the table of a request."""
    function = request.damped_power
    return polynomial_table(float(function.alpha), float(function.damping), request.target)


def by_polynomial(xp: Any, gram: Array, top: Array, wide: Array, table: PolynomialTable) -> Array:
    """Return ``p(A / top) X``, shape (..., k, n), in the dtype of X.

    Parameters
    ----------
    gram : array, shape (..., k, k)
        The Gram matrix A, in float32 or wider.
    top : array, shape (..., 1, 1)
        The largest eigenvalue of A, in the dtype of A.
    wide : array, shape (..., k, n)
        The wide matrix X.
    table : PolynomialTable
    """
    first = xp.astype(gram * (2 / REACH / top), wide.dtype, copy=False)
    add, multiply = _arithmetic(xp, wide)
    value, size, matrix = evaluate(first, table.rows, add, multiply)
    return multiply(wide, value, matrix, wide, size, False)


def _arithmetic(xp: Any, like: Array) -> tuple[Add, Multiply]:
    """Return sums and products that round once, by the framework's own functions if it has them."""
    if array_api_compat.is_torch_namespace(xp) and like.ndim in (2, 3):
        return _torch_arithmetic(xp, like)
    # Sums are in float32: products of half precision are accumulated there, numbers stay precise.
    wider = xp.float32 if xp.finfo(like.dtype).bits < 32 else like.dtype

    def sum_of(first: Array, size: float, second: Array, factor: float) -> Array:
        first, second = (xp.astype(a, wider, copy=False) for a in (first, second))
        return xp.astype(size * first + factor * second, like.dtype, copy=False)

    return (
        lambda sum_, matrix, factor, _: sum_of(sum_, 1.0, matrix, factor),
        lambda sum_, size, left, right, factor, _: sum_of(sum_, size, left @ right, factor),
    )


def _torch_arithmetic(xp: Any, like: Array) -> tuple[Add, Multiply]:
    """Return fused operations, in place if allowed, as fresh memory costs as much as a sum."""
    fused = xp.addmm if like.ndim == 2 else xp.baddbmm
    in_place = not like.requires_grad

    def add(sum_: Array, matrix: Array, factor: float, done: bool) -> Array:
        if done and in_place:
            return sum_.add_(matrix, alpha=factor)
        return xp.add(sum_, matrix, alpha=factor)

    def multiply(
        sum_: Array, size: float, left: Array, right: Array, factor: float, done: bool
    ) -> Array:
        if done and in_place:
            return fused(sum_, left, right, beta=size, alpha=factor, out=sum_)
        return fused(sum_, left, right, beta=size, alpha=factor)

    return add, multiply
