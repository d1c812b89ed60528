"""α = 1 without damping: the polar factor by products alone."""

from typing import Any

from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import Gram, ScaledMatrix
from spectral_core.preconditioning.methods.base import DampedPowerMethod, Filtered, Product
from spectral_core.preconditioning.request import Request
from spectral_core.preconditioning.tables.polar import PolarSchedule, polar_schedule

__all__ = ["POLAR_FLOOR", "POLAR_MARGIN", "Polar", "polar_factor"]

# The smallest σ/σ_max that comes out as 1, and the factor by which σ_max is raised for the error of
# the Lanczos steps.
POLAR_FLOOR, POLAR_MARGIN = 1e-3, 1.05
_PRICE = 20.0  # on a GPU, where products are cheap: less than any decomposition


class Polar(DampedPowerMethod):
    """The polynomials of Polar Express."""

    name = "polar"
    serves = "α = 1, damping = 0"
    computes = "odd polynomials (Polar Express)"
    stated_error = "tolerance + γ, σ ≥ 1e-3 σ_max"

    def unsuited_for(self, function: DampedPower, request: Request) -> str:
        """Return the reason if T is not the polar factor."""
        if function.alpha == 1 and function.damping == 0:
            return ""
        return f"is for alpha = 1 and damping = 0, not {function}; use 'auto'."

    def price(self, request: Request) -> float:
        """Return the price of some ten products."""
        return _PRICE

    def left_by_auto(self, request: Request) -> str:
        """Return the reason if products are not cheap enough."""
        return "takes as long as 'svd' on a CPU." if request.on_cpu else ""

    def approximation(self, request: Request) -> float:
        """Return the error of the schedule, which is below any tolerance."""
        return _schedule(request).error

    def rounding(self, request: Request) -> float:
        """Return the error γ of rounding, see `precondition`."""
        return _schedule(request).gain * request.epsilon

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Bring the spectral norm below 1, and run the schedule."""
        gram = Gram.of(xp, matrix)
        top = xp.sqrt(gram.top) * POLAR_MARGIN
        unit = polar_factor(xp, matrix.wide / top, gram.matrix / top**2, _schedule(request))
        one = xp.ones_like(top)
        return Filtered(Product(unit, 1.0), one, lambda: one)


def _schedule(request: Request) -> PolarSchedule:
    return polar_schedule(POLAR_FLOOR / POLAR_MARGIN, request.target)


def polar_factor(xp: Any, unit: Array, gram: Array, schedule: PolarSchedule) -> Array:
    """Apply a schedule to a matrix of spectral norm at most 1, shape (..., k, n) with k ≤ n.

    `gram` is the Gram matrix of its rows.
    """
    for step, (a, b, c) in enumerate(schedule.steps):
        if step > 0:
            gram = unit @ xp.matrix_transpose(unit)
        unit = a * unit + (b * gram + c * (gram @ gram)) @ unit
    return unit
