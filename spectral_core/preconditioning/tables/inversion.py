"""The start and the scales of Newton's iteration for an inverse, computed on the host."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.host import host_constant

__all__ = ["InversionTable", "inversion_table"]

Vector = NDArray[np.float64]
Quadratic = tuple[float, float]

REACH = 1.2  # the end of the interval, as σ_max² may be underestimated by a sixth
START = 5  # the order of the start: two products that leave a residual of degree five
MOST_STEPS = 12
_CHECK = 4000  # points of the certificate


@dataclass(frozen=True)
class InversionTable:
    """``1 / (x + δ) ≈ X(x)`` on ``0 ≤ x ≤ 1.2`` by Newton's iteration (Theory 9.6).

    ``X ← c X (1 + R)`` with ``R = 1 − (x + δ) X`` starts from
    ``X = size (x² + b_1 x + c_1)(x² + b_2 x + c_2)``.

    Parameters
    ----------
    damping : float
        The damping δ.
    size : float
        The factor of the start.
    quadratics : pair of (float, float)
        The coefficients ``(b_1, c_1)`` and ``(b_2, c_2)``.
    scales : tuple of float
        The factors c of the steps.
    error : float
        The largest ``|1 − (x + δ) X(x)|``, which is the relative error of T at every singular
        value.
    """

    damping: float
    size: float
    quadratics: tuple[Quadratic, Quadratic]
    scales: tuple[float, ...]
    error: float

    @property
    def products(self) -> int:
        """The number of products of k rows and columns, not counting the Gram matrix."""
        return 2 + 2 * len(self.scales)

    def __call__(self, x: Vector) -> Vector:
        """Evaluate X."""
        found = self.started(np.asarray(x, dtype=np.float64))
        for scale in self.scales:
            found = scale * (found + found * (1 - (x + self.damping) * found))
        return found

    def started(self, x: Vector) -> Vector:
        """Evaluate the start."""
        (b, c), (e, f) = self.quadratics
        return np.asarray(self.size * (x * x + b * x + c) * (x * x + e * x + f))

    @property
    def kept(self) -> float:
        """The factor ``1 + R`` of the last step at ``x = 0``, to 1/256 so that float16 has it."""
        before = InversionTable(self.damping, self.size, self.quadratics, self.scales[:-1], 0.0)
        return round(256 * float(2 - self.damping * before(np.zeros(1))[0])) / 256


@host_constant
def inversion_table(damping: float, tolerance: float) -> InversionTable:
    """Return the table with the fewest steps, at least one, that reaches a tolerance.

    The residual of the start is a Chebyshev polynomial of degree five, the least of all that are
    1 at ``x = −δ``. A step squares the residual, and its scale centres what that leaves, so that
    Chebyshev polynomials of degree 10, 20 and so on follow.

    Parameters
    ----------
    damping : float
        The spectral damping δ > 0.
    tolerance : float
        The largest relative error.

    Returns
    -------
    InversionTable
        The table. If 12 steps do not reach the tolerance, it is the one of 12 steps: look at its
        `error`, which is taken on 4,000 points.
    """
    angle = math.acosh(1 + 2 * damping / REACH)
    amplitude = 1 / math.cosh(START * angle)
    # T_5(c) − T_5(w) is 16 times the product of the distances from its roots to w = 1 − 2 x / 1.2.
    size = 16 * (2 / REACH) * (4 / REACH**2) ** 2 * amplitude
    quadratics = _quadratic(angle, 1), _quadratic(angle, 2)
    scales: list[float] = []
    while not scales or (amplitude > tolerance and len(scales) < MOST_STEPS):
        scales.append(2 / (2 - amplitude**2))
        amplitude = amplitude**2 / (2 - amplitude**2)
    table = InversionTable(damping, size, quadratics, tuple(scales), amplitude)
    return InversionTable(damping, size, quadratics, tuple(scales), _largest_residual(table))


def _quadratic(angle: float, root: int) -> Quadratic:
    """Return b and c of ``x² + b x + c`` with the root and its conjugate, mapped to x."""
    turn = 2 * math.pi * root / START
    real, imaginary = math.cosh(angle) * math.cos(turn), math.sinh(angle) * math.sin(turn)
    half = REACH / 2
    return -2 * half * (1 - real), half**2 * ((1 - real) ** 2 + imaginary**2)


def _largest_residual(table: InversionTable) -> float:
    """Return the certificate: the largest residual on a grid that is dense near both ends."""
    x = np.concatenate(
        [
            REACH * np.sin(np.linspace(0, np.pi / 2, _CHECK)) ** 2,
            np.geomspace(1e-3 * table.damping, REACH, _CHECK),
        ]
    )
    return float(np.max(np.abs(1 - (x + table.damping) * table(x))))
