"""Any function: singular values."""

import math
from typing import Any

from spectral_core.preconditioning.gram import ScaledMatrix
from spectral_core.preconditioning.methods.base import Filtered, Method, Product
from spectral_core.preconditioning.request import Request

__all__ = ["Svd"]

_PRICE = 1000.0  # above every other method: this one is for requests that no other serves


class Svd(Method):
    """A singular value decomposition."""

    name = "svd"
    serves = "any α"
    computes = "singular values of G"
    stated_error = "ω"
    sharper = "float64"

    def unsuited(self, request: Request) -> str:
        """Return an empty text: the method serves everything."""
        return ""

    def price(self, request: Request) -> float:
        """Return the price of a last resort."""
        return _PRICE

    def exact(self, request: Request) -> bool:
        """Return True: the method finds σ_max itself."""
        return True

    def rounding(self, request: Request) -> float:
        """Return 0: nothing is squared, and the effect of errors in σ on T is no refusal."""
        return 0.0

    def error(self, request: Request) -> float:
        """Return ω: T's slope times the rounding of the singular values."""
        if not request.predictable or request.function.undamped:
            return math.nan
        moved = request.epsilon * math.sqrt(request.rows) * (1 + request.function.steepness())
        return max(super().error(request), moved)

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Return ``U T(Σ) Vᵀ``."""
        u, sigma, vh = xp.linalg.svd(matrix.finite(xp, matrix.wide), full_matrices=False)
        sigma = sigma[..., None, :]
        top = sigma[..., :1]
        root = xp.where(top > 0, top, xp.ones_like(top))
        ratios = sigma / root
        if request.function.undamped:  # a σ that is rounding of zero has no direction
            kept = ratios > request.columns * request.epsilon
            ratios = xp.where(kept, ratios, xp.zeros_like(ratios))
        scaled = request.function.at(xp, matrix.scale * root)
        values = scaled.values(xp, ratios)
        spoiled = matrix.scale / matrix.scale  # NaN for a matrix that is not finite, otherwise 1
        product = Product((u * (values * spoiled)) @ vh, 1.0)
        return Filtered.of(xp, product, xp.ones_like(root), scaled)
