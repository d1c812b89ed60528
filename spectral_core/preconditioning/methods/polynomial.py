"""``p(B) X`` of ``B = A / λ_max(A)`` by products alone, in the dtype of the operands."""

from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.tables.chebyshev import Add, Multiply, evaluate
from spectral_core.preconditioning.tables.polynomials import REACH, PolynomialTable

__all__ = ["by_polynomial"]


def by_polynomial(xp: Any, gram: Array, top: Array, wide: Array, table: PolynomialTable) -> Array:
    """Return ``p(A / top) X``, shape (..., k, n), in the dtype of X.

    Parameters
    ----------
    gram : array, shape (..., k, k)
        A, in float32 or wider.
    top : array, shape (..., 1, 1)
        In the dtype of A.
    wide : array, shape (..., k, n)
        X.
    table : PolynomialTable
    """
    first = xp.astype(gram * (2 / REACH / top), wide.dtype, copy=False)
    add, multiply = _arithmetic(xp, wide)
    value, size, matrix = evaluate(first, table.rows, add, multiply)
    return multiply(wide, value, matrix, wide, size, False)


def _arithmetic(xp: Any, like: Array) -> tuple[Add, Multiply]:
    """Return sums and products that round once: the framework's own where it has them."""
    if array_api_compat.is_torch_namespace(xp) and like.ndim in (2, 3):
        return _torch_arithmetic(xp, like)
    # Sums in float32: products of half precision are accumulated there, numbers stay precise.
    wider = xp.float32 if xp.finfo(like.dtype).bits < 32 else like.dtype

    def sum_of(first: Array, size: float, second: Array, factor: float) -> Array:
        first, second = (xp.astype(a, wider, copy=False) for a in (first, second))
        return xp.astype(size * first + factor * second, like.dtype, copy=False)

    return (
        lambda sum_, matrix, factor, _: sum_of(sum_, 1.0, matrix, factor),
        lambda sum_, size, left, right, factor, _: sum_of(sum_, size, left @ right, factor),
    )


def _torch_arithmetic(xp: Any, like: Array) -> tuple[Add, Multiply]:
    """Fused, and in place where that takes nothing away: fresh memory costs as much as a sum."""
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
