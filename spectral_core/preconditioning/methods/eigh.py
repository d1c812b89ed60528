"""Any function: eigenvalues of the Gram matrix."""

from typing import Any

from spectral_core.arrays.eigen import eigh
from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.gram import ScaledMatrix, smallest_shift
from spectral_core.preconditioning.methods.base import (
    Filtered,
    Method,
    Product,
    squares_too_much,
)
from spectral_core.preconditioning.request import Request

__all__ = ["Eigh"]

# By tests/benchmarks/bench_precondition.py an eigendecomposition costs as much as three to four
# poles of method "shifts" on a CPU, and errs less. On a GPU it takes far longer, as half of it
# hardly runs in parallel; that is not measured here.
_PRICE_ON_CPU, _PRICE_ELSEWHERE = 5.0, 100.0


class Eigh(Method):
    """An eigendecomposition."""

    name = "eigh"
    serves = "any α"
    computes = "eigenvalues of B"
    stated_error = "ρ"

    def unsuited(self, request: Request) -> str:
        """Return an empty text: the method serves everything."""
        return ""

    def price(self, request: Request) -> float:
        """Return the price of an eigendecomposition."""
        return _PRICE_ON_CPU if request.on_cpu else _PRICE_ELSEWHERE

    def left_by_auto(self, request: Request) -> str:
        """Return the reason if squaring loses too much."""
        return squares_too_much(request)

    def exact(self, request: Request) -> bool:
        """Return True: the method finds σ_max itself."""
        return True

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Return ``Q f(Λ) Qᵀ X`` with the orthonormal columns of Q and ``f(σ²) = T(σ)/σ``."""
        gram = matrix.finite(xp, matrix.wide @ xp.matrix_transpose(matrix.wide))
        vectors, ratios, root = _eigen_ratios(xp, gram, request.function.undamped)
        scaled = request.function.at(xp, matrix.scale * root)
        f = scaled.quotients(xp, ratios)
        product = Product(matrix.wide, 1.0, (vectors * f) @ xp.matrix_transpose(vectors))
        return Filtered.of(xp, product, root, scaled)


def _eigen_ratios(xp: Any, gram: Array, undamped: bool) -> tuple[Array, Array, Array]:
    """Return eigenvectors, ``σ/σ_max`` of shape (..., 1, k), and ``σ_max`` of shape (..., 1, 1).

    Without damping, eigenvalues that are rounding count as zero.
    """
    values, vectors = eigh(xp, gram)
    values = values[..., None, :]
    top = values[..., -1:]
    top = xp.where(top > 0, top, xp.ones_like(top))
    unit = values / top
    least = smallest_shift(gram.shape[-1], float(xp.finfo(gram.dtype).eps)) if undamped else 0.0
    unit = xp.where(unit > least, unit, xp.zeros_like(unit))
    return vectors, xp.sqrt(unit), xp.sqrt(top)
