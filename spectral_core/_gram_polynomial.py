"""``p(B) X`` of ``B = A / λ_max(A)`` by products alone, in the dtype of the operands."""

import importlib
from collections.abc import Callable
from typing import Any

import array_api_compat

from spectral_core._arrays import Array
from spectral_core._polynomial_steps import evaluate
from spectral_core.polynomial_tables import REACH, PolynomialTable

__all__ = ["by_polynomial"]


def by_polynomial(
    xp: Any, gram: Array, top: Array, wide: Array, table: PolynomialTable
) -> Array:
    """Return ``p(A / top) X``, shape (..., k, n), in the dtype of X.

    Parameters
    ----------
    gram : array, shape (..., k, k)
        A, in the dtype of X.
    top : array, shape (..., 1, 1)
        In float32 or wider.
    wide : array, shape (..., k, n)
        X.
    table : PolynomialTable
    """
    first = xp.astype(gram * (2 / REACH / top), wide.dtype, copy=False)
    add, multiply = _arithmetic(xp, wide)
    value, matrix = evaluate(first, table.rows, add, multiply)
    return multiply(wide, value, matrix, wide, 1.0)


def _arithmetic(xp: Any, like: Array) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Return sums and products that round once: the framework's own where it has them."""
    if array_api_compat.is_torch_namespace(xp) and like.ndim in (2, 3):
        torch = importlib.import_module("torch")
        fused = torch.addmm if like.ndim == 2 else torch.baddbmm
        return (
            lambda sum_, factor, matrix: torch.add(sum_, matrix, alpha=factor),
            lambda sum_, size, left, right, factor: fused(
                sum_, left, right, beta=size, alpha=factor
            ),
        )
    # Sums in float32: products of half precision are accumulated there, numbers stay precise.
    wider = xp.float32 if xp.finfo(like.dtype).bits < 32 else like.dtype

    def sum_of(first: Array, size: float, second: Array, factor: float) -> Array:
        first, second = (xp.astype(a, wider, copy=False) for a in (first, second))
        return xp.astype(size * first + factor * second, like.dtype, copy=False)

    return (
        lambda sum_, factor, matrix: sum_of(sum_, 1.0, matrix, factor),
        lambda sum_, size, left, right, factor: sum_of(sum_, size, left @ right, factor),
    )
