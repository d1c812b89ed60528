"""Eigenvalues of symmetric matrices, also where a library's routine does not converge."""

from typing import Any

import array_api_compat

from spectral_core._arrays import Array, device_of

__all__ = ["eigh", "eigvalsh"]


def eigh(xp: Any, matrix: Array) -> tuple[Array, Array]:
    """Return eigenvalues, ascending, and eigenvectors of symmetric matrices ``(..., k, k)``."""
    values, vectors = xp.linalg.eigh(_untied(xp, matrix))
    return values, vectors


def eigvalsh(xp: Any, matrix: Array) -> Array:
    """Return the eigenvalues, ascending, of symmetric matrices ``(..., k, k)``."""
    return xp.linalg.eigvalsh(_untied(xp, matrix))


def _untied(xp: Any, matrix: Array) -> Array:
    """Move the diagonal by up to ε/4 of the Frobenius norm, a different amount for each row.

    MKL's single-precision routine, PyTorch's on a CPU, returns NaN for 12 equal rows and fails on
    one in a thousand Gram matrices of few small integers: exact ties of many zeros. It failed on
    none of 24,000 once they were apart by less than the rounding of the entries. Without a branch,
    so that the result can be traced.
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
