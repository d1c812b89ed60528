"""Symmetric positive definite solves, by the framework's own routines if they are fast.

The Array API standard has `cholesky` and `solve`, but no solve with a Cholesky factor, which costs
half. No framework is imported here: it is found through the caller's array.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array, device_of

__all__ = ["after", "identity", "in_turn", "inverse", "on_cpu", "one_by_one", "solve"]

CUBLAS_BATCH, CUBLAS_ROWS = 8, 512
"""Matrices, and rows of each, up to which PyTorch solves triangular batches by cuBLAS."""


def solve(xp: Any, matrix: Array, right: Array) -> tuple[Array, float | Array]:
    """Return ``matrix⁻¹ right`` for symmetric positive definite matrices ``(..., k, k)``.

    The second result, shape (..., 1, 1) or a number, is 0, and NaN where a matrix turned out not to
    be positive definite. The caller adds it to any factor of the result. With JAX, the NaN is in
    the result itself.
    """
    if array_api_compat.is_torch_namespace(xp):
        factor, spoiled = _torch_factor(xp, matrix)
        if matrix.is_cuda:
            return _torch_triangular_solves(xp, factor, right), spoiled
        return xp.cholesky_solve(right, factor), spoiled
    if array_api_compat.is_jax_namespace(xp):
        linalg = importlib.import_module("jax.scipy.linalg")
        return linalg.cho_solve((xp.linalg.cholesky(matrix), True), right), 0.0
    if array_api_compat.is_cupy_namespace(xp):
        factor, spoiled = _cupy_factor(xp, matrix)
        return _cupy_solve(xp, factor, right), spoiled
    return xp.linalg.solve(matrix, right), 0.0


def inverse(xp: Any, matrix: Array) -> tuple[Array, float | Array]:
    """Return the inverse of symmetric positive definite matrices ``(..., k, k)``; see `solve`."""
    if array_api_compat.is_torch_namespace(xp) and not matrix.is_cuda:
        factor, spoiled = _torch_factor(xp, matrix)
        return xp.cholesky_inverse(factor), spoiled
    if _solves_by_factors(xp):
        return solve(xp, matrix, xp.broadcast_to(identity(xp, matrix), matrix.shape))
    return xp.linalg.inv(matrix), 0.0


def identity(xp: Any, like: Array) -> Array:
    """Return the identity of the size of the last axis, in the dtype of `like`."""
    return xp.eye(like.shape[-1], dtype=like.dtype, device=device_of(like))


def after(xp: Any, array: Array, earlier: Array) -> Array:
    """Return the array unchanged, but make it depend on an earlier result.

    On a CPU jaxlib runs LAPACK on a batch in tasks of a pool of threads, and a thread of that pool
    waits for them. As many calls at once as the pool has threads wait for ever, so calls take
    turns.
    """
    if not (array_api_compat.is_jax_namespace(xp) and on_cpu(xp, array)) or 0 in earlier.shape:
        return array
    # The term is always 0, also for NaN. The compiler does not know that, so the order stays.
    nothing = xp.reshape(earlier, (-1,))[:1] > float("inf")
    return array + xp.astype(nothing, array.dtype)


def in_turn(xp: Any, function: Callable[[Array], Array], batches: list[Array]) -> list[Array]:
    """Apply a function to one batch of matrices after the other; see `after`."""
    found: list[Array] = []
    for batch in batches:
        found.append(function(after(xp, batch, found[-1]) if found else batch))
    return found


def on_cpu(xp: Any, array: Array) -> bool:
    """Return whether an array, traced or not, is on a CPU; for JAX, the default device counts."""
    if array_api_compat.is_cupy_namespace(xp):
        return False
    if array_api_compat.is_jax_namespace(xp):
        return bool(importlib.import_module("jax").default_backend() == "cpu")
    if array_api_compat.is_torch_namespace(xp):
        return bool(array.device.type == "cpu")
    return True


def one_by_one(xp: Any, function: Callable[..., Any], *arrays: Array) -> Any:
    """Apply a function of matrices to one after the other of a batch, and stack what it returns.

    Parameters
    ----------
    xp : namespace
        The namespace of the arrays.
    function : callable
        A function that takes one matrix of each array and returns an array or a tuple of them.
    *arrays : array, shape (..., m, n)
        The arrays, all with the same batch shape.
    """
    batch = arrays[0].shape[:-2]
    if not batch or 0 in batch:
        return function(*arrays)
    count = math.prod(batch)
    flat = [xp.reshape(array, (count, *array.shape[-2:])) for array in arrays]
    found = [function(*(array[i, ...] for array in flat)) for i in range(count)]

    def stacked(parts: list[Array]) -> Array:
        return xp.reshape(xp.stack(parts), (*batch, *parts[0].shape))

    if not isinstance(found[0], tuple):
        return stacked(found)
    return tuple(stacked(list(parts)) for parts in zip(*found, strict=True))


def _solves_by_factors(xp: Any) -> bool:
    return (
        array_api_compat.is_torch_namespace(xp)
        or array_api_compat.is_jax_namespace(xp)
        or array_api_compat.is_cupy_namespace(xp)
    )


def _torch_factor(xp: Any, matrix: Array) -> tuple[Array, Array]:
    """Return the Cholesky factor, and NaN where it failed: no exception, no synchronisation."""
    # The compatible namespace holds all functions of PyTorch.
    factor, failed = xp.linalg.cholesky_ex(matrix)
    spoiled = xp.where(failed > 0, float("nan"), 0.0)
    return factor, xp.astype(spoiled, matrix.dtype)[..., None, None]


def _torch_triangular_solves(xp: Any, factor: Array, right: Array) -> Array:
    """Return ``(L Lᵀ)⁻¹ right`` on a GPU by cuBLAS alone.

    PyTorch's solves with a factor, and its triangular solves of more than 8 matrices of more than
    512 rows, go to MAGMA for batches: twice as slow, and a CUDA graph that holds one ends the
    process.
    """

    def both(factor: Array, right: Array) -> Array:
        half = xp.linalg.solve_triangular(factor, right, upper=False)
        return xp.linalg.solve_triangular(factor.mT, half, upper=True)

    count = math.prod(factor.shape[:-2])
    if count <= CUBLAS_BATCH or factor.shape[-1] <= CUBLAS_ROWS:
        return both(factor, right)
    flat = [xp.reshape(array, (count, *array.shape[-2:])) for array in (factor, right)]
    pairs = zip(*(array.split(CUBLAS_BATCH) for array in flat), strict=True)
    return xp.reshape(xp.cat([both(*pair) for pair in pairs]), right.shape)


def _cupy_factor(xp: Any, matrix: Array) -> tuple[Array, Array]:
    """Return the Cholesky factor, and NaN where it failed, without a copy to the host.

    CuPy keeps to itself what cuSOLVER says of success. A finished factor has a positive diagonal,
    and rows whose squares add up to the diagonal of the matrix, but for k + 1 roundings each.
    """
    factor = xp.linalg.cholesky(matrix)
    pivots, wanted = xp.linalg.diagonal(factor), xp.linalg.diagonal(matrix)
    allowed = 4 * (matrix.shape[-1] + 1) * float(xp.finfo(matrix.dtype).eps) * wanted
    close = xp.abs(xp.sum(factor * factor, axis=-1) - wanted) <= allowed  # false for NaN
    stands = xp.all((pivots > 0) & close, axis=-1)
    spoiled = xp.where(stands, 0.0, float("nan"))
    return factor, xp.astype(spoiled, matrix.dtype)[..., None, None]


def _cupy_solve(xp: Any, factor: Array, right: Array) -> Array:
    """Return ``(L Lᵀ)⁻¹ right`` by two triangular solves of cuBLAS."""
    triangular = importlib.import_module("cupyx.scipy.linalg").solve_triangular

    def both(factor: Array, right: Array) -> Array:
        half = triangular(factor, right, lower=True)
        return triangular(factor, half, trans=1, lower=True)

    # CuPy 14 takes batches and CuPy 13 does not; only the docstring tells which.
    if 0 in right.shape:
        return right
    if factor.ndim == 2 or "batches" in (triangular.__doc__ or ""):
        return both(factor, right)
    return one_by_one(xp, both, factor, right)
