"""Sums of products in one operation of the framework where it has one, each rounded once.

On a GPU every operation is a kernel that the host launches; for matrices of a few hundred rows the
launches take longer than the arithmetic.
"""

from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array, at_least

__all__ = [
    "add_product",
    "add_scaled",
    "frobenius_norm",
    "minus_quotient",
    "plus",
    "product",
    "scaled_to",
]


def product(xp: Any, left: Array, right: Array) -> Array:
    """Return ``left right``, shape (..., m, n); half precision is accumulated in float32."""
    if array_api_compat.is_torch_namespace(xp):
        return left @ right
    return xp.astype(_accumulated(xp, left, right), left.dtype, copy=False)


def add_product(
    xp: Any, total: Array, weight: float, left: Array, right: Array, factor: float
) -> Array:
    """Return ``weight · total + factor · left right`` in the dtype of the operands."""
    if array_api_compat.is_torch_namespace(xp) and left.ndim in (2, 3):
        fused = xp.addmm if left.ndim == 2 else xp.baddbmm
        return fused(total, left, right, beta=weight, alpha=factor)
    found = _accumulated(xp, left, right)
    total = xp.astype(total, found.dtype, copy=False)
    return xp.astype(weight * total + factor * found, left.dtype, copy=False)


def add_scaled(xp: Any, total: Array, matrix: Array, scale: Array, factor: float = 1.0) -> Array:
    """Return ``total + factor · scale · matrix``; all are of one dtype, shapes broadcast."""
    if array_api_compat.is_torch_namespace(xp):
        return xp.addcmul(total, matrix, scale, value=factor)
    dtype = total.dtype
    total, matrix, scale = (_widened(xp, array) for array in (total, matrix, scale))
    return xp.astype(total + matrix * (factor * scale), dtype, copy=False)


def minus_quotient(xp: Any, total: Array, matrix: Array, scale: Array) -> Array:
    """Return ``total − matrix / scale``, rounded once; all are of one dtype."""
    if array_api_compat.is_torch_namespace(xp):
        return xp.addcdiv(total, matrix, scale, value=-1.0)
    dtype = total.dtype
    total, matrix, scale = (_widened(xp, array) for array in (total, matrix, scale))
    return xp.astype(total - matrix / scale, dtype, copy=False)


def plus(xp: Any, total: Array, matrix: Array, factor: float) -> Array:
    """Return ``total + factor · matrix``, rounded once; both are of one dtype."""
    if array_api_compat.is_torch_namespace(xp):
        return xp.add(total, matrix, alpha=factor)
    dtype = total.dtype
    total, matrix = _widened(xp, total), _widened(xp, matrix)
    return xp.astype(total + factor * matrix, dtype, copy=False)


def scaled_to(xp: Any, matrix: Array, scale: Array, dtype: Any) -> Array:
    """Return ``scale · matrix``, rounded once to a dtype that may be narrower."""
    in_one = array_api_compat.is_torch_namespace(xp) and not (
        matrix.requires_grad or scale.requires_grad or xp.compiler.is_compiling()
    )
    if not in_one or type(matrix) is not xp.Tensor or dtype == matrix.dtype:
        return xp.astype(matrix * scale, dtype, copy=False)
    return xp.mul(matrix, scale, out=xp.empty_like(matrix, dtype=dtype))


def frobenius_norm(xp: Any, matrix: Array) -> Array:
    """Return the norm, shape (..., 1, 1), in float32 or wider; squares neither over- nor underflow.

    It is 0 for a matrix of zeros, and NaN or infinite for one that is not finite.
    """
    if array_api_compat.is_torch_namespace(xp) and matrix.device.type in ("cpu", "cuda"):
        axes = (-2, -1)
        return xp.linalg.vector_norm(matrix, axis=axes, keepdims=True, dtype=xp.float64)
    wide = _widened(xp, matrix)
    largest = xp.max(xp.abs(wide), axis=(-2, -1), keepdims=True)
    unit = wide / at_least(xp, largest, float(xp.finfo(wide.dtype).smallest_normal))
    return largest * xp.sqrt(xp.sum(unit * unit, axis=(-2, -1), keepdims=True))


def _accumulated(xp: Any, left: Array, right: Array) -> Array:
    """Return ``left right`` in float32 or wider, multiplied in the dtype of the operands."""
    if xp.finfo(left.dtype).bits >= 32:
        return left @ right
    if array_api_compat.is_jax_namespace(xp):
        return xp.matmul(left, right, preferred_element_type=xp.float32)
    if array_api_compat.is_cupy_namespace(xp):  # cuBLAS accumulates in float32
        return xp.astype(left @ right, xp.float32)
    return _widened(xp, left) @ _widened(xp, right)


def _widened(xp: Any, array: Array) -> Array:
    return xp.astype(array, xp.float32) if xp.finfo(array.dtype).bits < 32 else array
