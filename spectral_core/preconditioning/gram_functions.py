"""``f(B) = 1 / (slope B^(α/2) + offset)`` of ``B = A / λ_max(A)``, times the wide matrix X."""

from dataclasses import dataclass
from typing import Any

from spectral_core.arrays.eigen import eigh
from spectral_core.arrays.factorize import after, identity, inverse, solve
from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.function import power
from spectral_core.preconditioning.gram import Gram, smallest_shift
from spectral_core.preconditioning.tables.poles import PoleTable

__all__ = ["Product", "by_eigenvalues", "by_factor", "by_shifts", "eigen_ratios"]


@dataclass(frozen=True)
class Product:
    """``(left wide) · size``; the factor `left` is absent where the product is `wide` itself.

    The size is 1, or NaN where a factorisation failed.
    """

    wide: Array
    size: float | Array
    left: Array | None = None

    def times(self, factor: Array) -> Array:
        """Return the product times a factor (..., 1, 1), which goes to the smaller array."""
        factor = factor * self.size
        return self.wide * factor if self.left is None else (self.left * factor) @ self.wide

    def multiplied(self) -> "Product":
        """Return the product as one array, its size apart."""
        return self if self.left is None else Product(self.left @ self.wide, self.size)


def by_factor(
    xp: Any, gram: Gram, wide: Array, alpha: float, slope: float | Array, offset: float | Array
) -> Product:
    """α = 2 or 4: one Cholesky factorisation of ``slope B + offset I`` or ``slope B² + offset I``.

    A very wide matrix is multiplied by the inverse: k³/3 more multiplications for the factor, but
    one fast product instead of two triangular solves. Returns ``f(B) X``.
    """
    matrix = gram.matrix * (slope / gram.top)
    if alpha == 4:
        matrix = matrix @ (gram.matrix / gram.top)
    matrix = matrix + offset * identity(xp, matrix)
    if wide.shape[-1] >= 2 * wide.shape[-2]:
        left, spoiled = inverse(xp, matrix)
        return Product(wide, 1 + spoiled, left)
    result, spoiled = solve(xp, matrix, wide)
    return Product(result, 1 + spoiled)


def by_shifts(xp: Any, gram: Gram, wide: Array, table: PoleTable) -> Product:
    """0 < α < 2, slope 1: ``w_0 X + Σ_j w_j (B + p_j I)⁻¹ X`` (Theory 9.6).

    The sum of inverses is formed once and multiplied once: solves would cost more from two poles
    on, as X has at least as many columns as rows.
    """
    one = identity(xp, gram.matrix)
    total = table.constant * one
    for pole, weight in zip(table.poles, table.weights, strict=True):
        # (B + p I)⁻¹ = λ_max (A + p λ_max I)⁻¹
        shifted = gram.matrix + (pole * gram.top) * one
        inverted, spoiled = inverse(xp, after(xp, shifted, total))
        total = total + (weight * gram.top + spoiled) * inverted
    return Product(wide, 1.0, total)


def by_eigenvalues(
    xp: Any,
    vectors: Array,
    ratios: Array,
    wide: Array,
    alpha: float | Array,
    slope: float | Array,
    offset: float | Array,
) -> Product:
    """Any α: ``Q f(Λ) Qᵀ X`` with orthonormal columns Q and ``ratios = √Λ``, shape (..., 1, k)."""
    below = slope * power(xp, ratios, alpha) + offset
    kept = below > 0
    f = xp.where(kept, xp.ones_like(below), xp.zeros_like(below)) / xp.where(
        kept, below, xp.ones_like(below)
    )
    return Product(wide, 1.0, (vectors * f) @ xp.matrix_transpose(vectors))


def eigen_ratios(xp: Any, gram: Array, undamped: bool) -> tuple[Array, Array, Array]:
    """Return eigenvectors, ``σ/σ_max`` of shape (..., 1, k), and ``σ_max`` of shape (..., 1, 1).

    Without damping eigenvalues that are rounding count as zero.
    """
    values, vectors = eigh(xp, gram)
    values = values[..., None, :]
    top = values[..., -1:]
    top = xp.where(top > 0, top, xp.ones_like(top))
    unit = values / top
    least = smallest_shift(gram.shape[-1], float(xp.finfo(gram.dtype).eps)) if undamped else 0.0
    unit = xp.where(unit > least, unit, xp.zeros_like(unit))
    return vectors, xp.sqrt(unit), xp.sqrt(top)
