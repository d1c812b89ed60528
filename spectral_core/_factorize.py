"""Symmetric positive definite solves: the framework's own where it has fast ones.

The Array API standard has `cholesky` and `solve`, but no solve with a Cholesky factor, which costs
half. A framework is only ever found where the caller's array already comes from it.
"""

import importlib
from typing import Any

import array_api_compat

from spectral_core._arrays import Array, device_of

__all__ = ["after", "identity", "inverse", "on_cpu", "solve"]


def solve(xp: Any, matrix: Array, right: Array) -> tuple[Array, float | Array]:
    """Return ``matrix⁻¹ right`` for symmetric positive definite matrices ``(..., k, k)``.

    The second result, shape (..., 1, 1) or a number, is 0, and NaN where a matrix turned out not to
    be positive definite: to be added to any factor of the result. JAX has NaN in the result itself.
    """
    if array_api_compat.is_torch_namespace(xp):
        factor, spoiled = _torch_factor(xp, matrix)
        return xp.cholesky_solve(right, factor), spoiled
    if array_api_compat.is_jax_namespace(xp):
        linalg = importlib.import_module("jax.scipy.linalg")
        return linalg.cho_solve((xp.linalg.cholesky(matrix), True), right), 0.0
    return xp.linalg.solve(matrix, right), 0.0


def inverse(xp: Any, matrix: Array) -> tuple[Array, float | Array]:
    """Return the inverse of symmetric positive definite matrices ``(..., k, k)``; see `solve`."""
    if array_api_compat.is_torch_namespace(xp):
        factor, spoiled = _torch_factor(xp, matrix)
        return xp.cholesky_inverse(factor), spoiled
    if array_api_compat.is_jax_namespace(xp):
        return solve(xp, matrix, xp.broadcast_to(identity(xp, matrix), matrix.shape))
    return xp.linalg.inv(matrix), 0.0


def identity(xp: Any, like: Array) -> Array:
    """Return the identity of the size of the last axis, in the dtype of `like`."""
    return xp.eye(like.shape[-1], dtype=like.dtype, device=device_of(like))


def after(xp: Any, array: Array, earlier: Array) -> Array:
    """Return the array unchanged, but known only when an earlier result is.

    On a CPU jaxlib runs LAPACK on a batch in tasks of a pool of threads, and a thread of that pool
    waits for them: as many calls at once as it has threads wait for ever. So they take turns.
    """
    if not (array_api_compat.is_jax_namespace(xp) and on_cpu(xp, array)) or 0 in earlier.shape:
        return array
    # Always 0, for NaN too; but the compiler does not know that, so the order stays.
    nothing = xp.reshape(earlier, (-1,))[:1] > float("inf")
    return array + xp.astype(nothing, array.dtype)


def on_cpu(xp: Any, array: Array) -> bool:
    """Return whether an array lies on a CPU; for JAX, traced too, whether that is the default."""
    if array_api_compat.is_cupy_namespace(xp):
        return False
    if array_api_compat.is_jax_namespace(xp):
        return bool(importlib.import_module("jax").default_backend() == "cpu")
    if array_api_compat.is_torch_namespace(xp):
        return bool(array.device.type == "cpu")
    return True


def _torch_factor(xp: Any, matrix: Array) -> tuple[Array, Array]:
    """Return the Cholesky factor, and NaN where it failed: no exception, no synchronisation."""
    # The compatible namespace holds all of PyTorch's.
    factor, failed = xp.linalg.cholesky_ex(matrix)
    spoiled = xp.where(failed > 0, float("nan"), 0.0)
    return factor, xp.astype(spoiled, matrix.dtype)[..., None, None]
