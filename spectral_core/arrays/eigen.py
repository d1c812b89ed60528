"""Eigenvalues of symmetric matrices, also if a library's routine does not converge."""

import math
from collections.abc import Callable
from typing import Any

import array_api_compat

from spectral_core.arrays.factorize import on_cpu, one_by_one
from spectral_core.arrays.namespace import Array, at_least, device_of

__all__ = ["by_squaring", "eigh", "eigvalsh", "top_eigenvalue"]

# CuPy runs Jacobi's method on all matrices of a batch at once. PyTorch on a GPU takes Jacobi's
# method up to 32 rows; for more rows it runs divide and conquer on one matrix after the other.
_JACOBI_ROWS = 32
_SLACK = 8  # roundings that repeated squaring may be above the eigenvalue


def eigh(xp: Any, matrix: Array) -> tuple[Array, Array]:
    """Return eigenvalues, ascending, and eigenvectors of symmetric matrices ``(..., k, k)``."""
    values, vectors = _batched(xp, xp.linalg.eigh, _untied(xp, matrix))
    return values, vectors


def eigvalsh(xp: Any, matrix: Array) -> Array:
    """Return the eigenvalues, ascending, of symmetric matrices ``(..., k, k)``."""
    return _batched(xp, xp.linalg.eigvalsh, _untied(xp, matrix))


def top_eigenvalue(xp: Any, matrix: Array) -> Array:
    """Return the largest eigenvalue of positive semi-definite matrices, shape (..., 1, 1).

    On a GPU it is computed by products alone: PyTorch's routine makes the host wait, to see whether
    it converged, and CuPy's takes one matrix after the other.
    """
    if array_api_compat.is_jax_namespace(xp) or on_cpu(xp, matrix):
        return eigvalsh(xp, matrix)[..., -1:, None]
    return by_squaring(xp, matrix)


def by_squaring(xp: Any, matrix: Array) -> Array:
    """Return ``(tr M^N)^(1/N)``, shape (..., 1, 1), for a power N of 16.

    The value lies between λ_max and ``k^(1/N) λ_max``, plus at most eight roundings. An error of
    the product that gives ``M^(2 j)`` counts ``1/(2 j)`` of itself.

    Parameters
    ----------
    matrix : array, shape (..., k, k)
        The matrices M, positive semi-definite, so that the largest entry is on the diagonal. k is
        at most 200, so that ``k^15`` is in the range of float32. A zero matrix gives 0.
    """
    size, limits = matrix.shape[-1], xp.finfo(matrix.dtype)
    least = float(limits.smallest_normal)
    rounds = math.ceil(math.log(max(math.log(size), 1.0) / (_SLACK * float(limits.eps)), 16))
    factors = []
    for _ in range(rounds):
        factors.append(xp.max(xp.linalg.diagonal(matrix), axis=-1)[..., None, None])
        matrix = matrix / at_least(xp, factors[-1], least)
        for _ in range(4):  # entries up to k, k³, k⁷, k¹⁵; the largest is never below 1
            matrix = matrix @ matrix
    value = xp.linalg.trace(matrix)[..., None, None]
    for factor in reversed(factors):
        value = factor * value ** (1 / 16)
    return value


def _batched(xp: Any, function: Callable[..., Any], matrix: Array) -> Any:
    """Apply a function of matrices to a batch, in the way that suits the library."""
    if array_api_compat.is_cupy_namespace(xp) and matrix.shape[-1] > _JACOBI_ROWS:
        return one_by_one(xp, function, matrix)
    return function(matrix)


def _untied(xp: Any, matrix: Array) -> Array:
    """Move the diagonal by up to ε/4 of the Frobenius norm, a different amount for each row.

    MKL's single-precision routine, PyTorch's on a CPU, returns NaN for 12 equal rows and fails on
    one in a thousand Gram matrices of few small integers: exact ties of many zeros. It failed on
    none of 24,000 once they were apart by less than the rounding of the entries. The code has no
    branch, so that the result can be traced.
    """
    if not array_api_compat.is_torch_namespace(xp) or xp.finfo(matrix.dtype).bits > 32:
        return matrix
    rows = matrix.shape[-1]
    apart = xp.arange(rows, dtype=matrix.dtype, device=device_of(matrix)) / rows
    apart = apart * (float(xp.finfo(matrix.dtype).eps) / 4)
    largest = xp.max(xp.abs(matrix), axis=(-2, -1), keepdims=True)
    size = xp.where(largest > 0, largest, xp.ones_like(largest))
    norm = largest * xp.sqrt(xp.sum((matrix / size) ** 2, axis=(-2, -1), keepdims=True))
    return matrix + xp.eye(rows, dtype=matrix.dtype, device=device_of(matrix)) * (apart * norm)
