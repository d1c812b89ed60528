"""0 < α < 2: a sum of shifted inverses of the Gram matrix."""

from typing import Any

import numpy as np

from spectral_core.arrays.factorize import after, identity, inverse
from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import Gram, ScaledMatrix, smallest_shift
from spectral_core.preconditioning.methods.base import (
    DampedPowerMethod,
    Filtered,
    Product,
    below_rounding,
    squares_too_much,
)
from spectral_core.preconditioning.request import Request
from spectral_core.preconditioning.tables.poles import PoleTable, pole_table

__all__ = ["Shifts", "poles_of", "relative_floor"]

_FEW_ROWS = 256  # up to this size an eigendecomposition is as fast as any number of poles


class Shifts(DampedPowerMethod):
    """Poles and weights of a table."""

    name = "shifts"
    serves = "0 < α < 2"
    computes = "``w_0 + Σ w_j (B + p_j I)⁻¹``"
    stated_error = "tolerance + ρ + λ"
    remedy = "use 'eigh' or 'svd'"

    def unsuited_for(self, function: DampedPower, request: Request) -> str:
        """Return the reason if α or the damping is another than the method takes."""
        if not 0 < function.alpha < 2:
            return f"is for alpha between 0 and 2, not {function.alpha}; use 'auto' or 'eigh'."
        if not function.scale_free:
            return "is for spectral damping; with absolute damping use 'eigh' or 'svd'."
        return below_rounding(function, request)

    def price(self, request: Request) -> float:
        """Return the price of a factorisation and an inverse for each pole."""
        return 2.0 * len(poles_of(request).poles)

    def left_by_auto(self, request: Request) -> str:
        """Return the reason if squaring loses too much, or overhead decides against the method."""
        if reason := squares_too_much(request):
            return reason
        if request.on_cpu and request.rows <= _FEW_ROWS:
            return f"takes longer than 'eigh' up to {_FEW_ROWS} rows on a CPU."
        return ""

    def approximation(self, request: Request) -> float:
        """Return the error of the table."""
        return poles_of(request).error

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Sum the inverses, and multiply once."""
        gram = Gram.of(xp, matrix)
        root = xp.sqrt(gram.top)
        scaled = self.scaled(xp, matrix, root, request)
        product = _by_shifts(xp, gram, matrix.wide, poles_of(request))
        return Filtered.of(xp, product, root, scaled)


def poles_of(request: Request) -> PoleTable:
    """Return the table of a request."""
    # The size is rounded up to a power of four, so that all sizes share a few tables.
    rows = 4 ** int(np.ceil(np.log(max(request.rows, 1)) / np.log(4)))
    return pole_table(
        float(request.damped_power.alpha),
        float(request.damped_power.damping),
        request.target,
        floor=relative_floor(request.epsilon),
        smallest=smallest_shift(rows, request.epsilon),
    )


def relative_floor(epsilon: float) -> float:
    """Return the least σ/σ_max that a Gram matrix resolves to some accuracy."""
    return 5e-3 if epsilon > 1e-10 else 1e-3


def _by_shifts(xp: Any, gram: Gram, wide: Array, table: PoleTable) -> Product:
    """Return ``w_0 X + Σ_j w_j (B + p_j I)⁻¹ X`` (Theory 9.6).

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
