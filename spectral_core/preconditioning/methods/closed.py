"""α = 0 is a multiple of the gradient, α = 2 and 4 are one factorisation."""

from typing import Any

from spectral_core.arrays.factorize import identity, inverse, solve
from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import Gram, ScaledMatrix
from spectral_core.preconditioning.methods.base import (
    DampedPowerMethod,
    Filtered,
    Product,
    below_rounding,
    squares_too_much,
)
from spectral_core.preconditioning.request import Request

__all__ = ["Closed", "by_factor"]


class Closed(DampedPowerMethod):
    """A closed form."""

    name = "closed"
    serves = "α = 0, 2, 4"
    computes = "Cholesky of ``B^(α/2) + δ I``"
    stated_error = "ρ + λ"

    def unsuited_for(self, function: DampedPower, request: Request) -> str:
        """Return the reason if α is another, or rounding hides the damping."""
        if function.alpha not in (0, 2, 4):
            return f"is for alpha = 0, 2 or 4, not {function.alpha}; use 'auto'."
        return "" if function.alpha == 0 else below_rounding(function, request)

    def price(self, request: Request) -> float:
        """Return a price of 0, or that of one factorisation."""
        return 0.0 if request.damped_power.linear else 1.0

    def left_by_auto(self, request: Request) -> str:
        """Return the reason if squaring loses too much; a multiple of the gradient is exempt."""
        return "" if self.exact(request) else squares_too_much(request)

    def exact(self, request: Request) -> bool:
        """Return whether the result is a multiple of the gradient, which needs no σ_max."""
        return isinstance(request.function, DampedPower) and request.function.linear

    def multiplies(self, request: Request) -> bool:
        """Return whether the precision serves: a multiple of the gradient takes no products."""
        return self.exact(request) or super().multiplies(request)

    def rounding(self, request: Request) -> float:
        """Return the error of squaring, if anything is squared."""
        return 0.0 if self.exact(request) else request.rounding()

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Multiply, or factor and solve."""
        function = request.damped_power
        if function.linear:
            return Filtered(
                Product(matrix.wide, 1.0),
                matrix.scale / (1 + function.damping),
                lambda: xp.sqrt(Gram.of(xp, matrix).top),  # σ_max, which nothing else needs
            )
        gram = Gram.of(xp, matrix)
        root = xp.sqrt(gram.top)
        scaled = self.scaled(xp, matrix, root, request)
        offset = scaled.offset
        if not function.scale_free:
            offset = xp.maximum(offset, request.shift * scaled.slope)
        alpha = float(function.alpha)
        product = by_factor(xp, gram, matrix.wide, alpha, scaled.slope, offset)
        return Filtered.of(xp, product, root, scaled)


def by_factor(
    xp: Any, gram: Gram, wide: Array, alpha: float, slope: float | Array, offset: float | Array
) -> Product:
    """Return ``(slope B^(α/2) + offset I)⁻¹ X`` for α = 2 or 4, with ``B = A / λ_max(A)``.

    A very wide matrix is multiplied by the inverse. That takes k³/3 more multiplications for the
    factor, but one fast product instead of two triangular solves.
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
