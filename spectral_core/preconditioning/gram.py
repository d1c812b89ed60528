"""A gradient made ready for its small Gram matrix: wide, scaled, free of what is not finite."""

import math
from dataclasses import dataclass, replace
from typing import Any

from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.extreme_value import STEPS, largest_eigenvalue

__all__ = ["Gram", "ScaledMatrix", "smallest_shift"]


@dataclass(frozen=True)
class ScaledMatrix:
    """``G = scale · wide``, transposed where G is tall; the largest entry of `wide` is 1.

    Scale and `wide` are computed when they are first asked for.

    Parameters
    ----------
    gradient : array, shape (..., k, n) with k ≤ n
        The matrix in float32 or wider, not scaled.
    transposed : bool
        Whether `gradient` and `wide` are transposes.
    xp : namespace
        The namespace of the arrays.
    low : bool
        Whether `wide` is rounded to bfloat16; the scale is not.
    """

    gradient: Array
    transposed: bool
    xp: Any
    low: bool = False

    @classmethod
    def of(cls, xp: Any, gradient: Array, solved: bool) -> "ScaledMatrix":
        """Take a gradient, shape (..., m, n).

        Square ones are transposed too if they may be a right hand side, since columns are then
        contiguous, as solvers want them.
        """
        if xp.finfo(gradient.dtype).bits < 32:
            gradient = xp.astype(gradient, xp.float32)
        rows, columns = gradient.shape[-2:]
        transposed = rows > columns or (solved and rows == columns)
        return cls(xp.matrix_transpose(gradient) if transposed else gradient, transposed, xp)

    @property
    def scale(self) -> Array:
        """The largest magnitude in G, or 1 for a zero matrix, shape (..., 1, 1).

        It is NaN where G is not finite: it spoils the result of that matrix and of no other.
        """
        if not hasattr(self, "_scale"):  # `cached_property` has a lock, which is not compiled
            xp, largest = self.xp, _largest_magnitude(self.xp, self.gradient)
            one = xp.ones_like(largest)
            scale = xp.where(largest > 0, largest, one)
            scale = xp.where(xp.isfinite(largest), scale, one * float("nan"))
            object.__setattr__(self, "_scale", scale)
        return self.__dict__["_scale"]

    @property
    def wide(self) -> Array:
        """The scaled matrix, whose squares neither over- nor underflow; NaN where G is infinite."""
        if not hasattr(self, "_wide"):
            wide = self.gradient / self.scale
            wide = self.xp.astype(wide, self.xp.bfloat16) if self.low else wide
            object.__setattr__(self, "_wide", wide)
        return self.__dict__["_wide"]

    def lowered(self) -> "ScaledMatrix":
        """Round `wide` to bfloat16; the scale stays as it is."""
        return replace(self, low=True)

    def finite(self, xp: Any, array: Array) -> Array:
        """Return an array of this batch with zeros for the matrices that are not finite.

        Decompositions raise on NaN, or do not return; the NaN in `wide` and `scale` stays.
        """
        return xp.where(xp.isfinite(self.scale), array, xp.zeros_like(self.scale))

    def restore(self, xp: Any, matrix: Array) -> Array:
        """Transpose a result back to the shape of the gradient."""
        return xp.matrix_transpose(matrix) if self.transposed else matrix


def _largest_magnitude(xp: Any, matrix: Array) -> Array:
    highest = xp.max(matrix, axis=(-2, -1), keepdims=True)
    return xp.maximum(highest, -xp.min(matrix, axis=(-2, -1), keepdims=True))


@dataclass(frozen=True)
class Gram:
    """The Gram matrix on the small side.

    Parameters
    ----------
    matrix : array, shape (..., k, k)
        The Gram matrix ``A = X Xᵀ`` of the wide matrix X.
    top : array, shape (..., 1, 1)
        The largest eigenvalue by Lanczos steps, or 1 for a matrix that is zero or not finite.
    """

    matrix: Array
    top: Array

    @classmethod
    def of(cls, xp: Any, scaled: ScaledMatrix, steps: int = STEPS) -> "Gram":
        """Form the Gram matrix: multiply in the dtype of `wide`, keep the dtype of the scale."""
        matrix = scaled.wide @ xp.matrix_transpose(scaled.wide)
        matrix = xp.astype(matrix, scaled.scale.dtype, copy=False)
        top = largest_eigenvalue(xp, matrix, steps)
        return cls(matrix, xp.where(top > 0, top, xp.ones_like(top)))


def smallest_shift(size: int, epsilon: float) -> float:
    """Return ``η = (4 + √k) ε``: rounding of a k × k Gram matrix over its largest eigenvalue.

    Entries of the product err, at random, by about ε/2 times the lengths of two rows, which are
    σ_max at most. A random symmetric matrix has a spectral norm of 2 √k times its entries, which
    gives √k ε; 4 ε are added for the factorisation. A smaller shift is lost in rounding.
    """
    return (4 + math.sqrt(size)) * epsilon
