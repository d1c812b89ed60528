"""α = 2 with spectral damping: the inverse by Newton's iteration, by products alone."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.fused import (
    add_product,
    add_scaled,
    frobenius_norm,
    minus_quotient,
    plus,
    product,
    scaled_to,
)
from spectral_core.arrays.host import host_constant, on_device
from spectral_core.arrays.namespace import Array
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.function import peak
from spectral_core.preconditioning.gram import ScaledMatrix
from spectral_core.preconditioning.methods.base import (
    DampedPowerMethod,
    Filtered,
    Product,
    below_rounding,
)
from spectral_core.preconditioning.request import Request
from spectral_core.preconditioning.tables.inversion import InversionTable, inversion_table
from spectral_core.preconditioning.top_by_powers import CENTRE, squared_top

__all__ = ["HALF_ROWS", "Inversion"]

HALF_ROWS = 512
"""The rows from which products are in float16; with fewer, its rounding adds up, and they are
cheap."""
_HALF_EPSILON = 2.0**-10
_HALF_LARGEST = 6e4
_FLOOR = 2.0**24  # least norm, in smallest numbers: its inverse is finite also times 1/δ
_SHARE = 0.4  # of the tolerance is for the iteration, the rest for rounding and σ_max
_POWERS = (-1.25, -0.75, -0.25, 0.5)  # of λ_max²


class Inversion(DampedPowerMethod):
    """Newton's iteration."""

    name = "inversion"
    serves = "α = 2, spectral damping"
    computes = "``(B + δ I)⁻¹`` by Newton's iteration, with 4 to 26 products"
    stated_error = "0.4 tolerance + γ + λ"
    remedy = "raise the tolerance or the damping, or use 'closed'"
    precisions = ("working", "float16")

    def unsuited_for(self, function: DampedPower, request: Request) -> str:
        """Return the reason if α or the damping is another than the method takes."""
        alpha, damping = float(function.alpha), float(function.damping)
        if not (alpha == 2 and damping > 0 and function.scale_free):
            return (
                f"is for alpha = 2 and spectral damping above 0, not alpha = {alpha:g} and "
                f"{function.damping_mode} damping {damping:g}; use 'auto' in working precision."
            )
        if in_half(request) and math.sqrt(request.rows) / damping > _HALF_LARGEST:
            return (
                f"leaves the range of float16 for a damping of {damping:g} and {request.rows} "
                "rows; use a larger damping, or 'working' precision."
            )
        return below_rounding(function, request)

    def price(self, request: Request) -> float:
        """Return infinity: "auto" takes the method in float16, where it is the only one."""
        return math.inf

    def left_by_auto(self, request: Request) -> str:
        """Return the reason: the products pay in float16 alone."""
        return "is taken with precision='float16' alone."

    def approximation(self, request: Request) -> float:
        """Return the error of the table, scaled so that the tolerance bounds it."""
        return _table(request).error / _SHARE

    def rounding(self, request: Request) -> float:
        """Return ρ, with the roundings of float16 where they are in it."""
        if not in_half(request):
            return request.rounding()
        relative = _HALF_EPSILON / 2 / float(request.damped_power.damping)
        return relative * (0.06 + 0.9 / math.sqrt(request.rows))

    def error(self, request: Request) -> float:
        """Return the error of the table plus that of rounding."""
        return _table(request).error + self._all_rounding(request)

    def run(self, xp: Any, matrix: ScaledMatrix, request: Request) -> Filtered:
        """Scale by the Frobenius norm, and iterate."""
        gradient, rows = matrix.gradient, request.rows
        norm = frobenius_norm(xp, gradient) + _FLOOR * float(
            xp.finfo(gradient.dtype).smallest_normal
        )
        # The eigenvalues of the Gram matrix are then 1/√k to √k at most.
        scale = xp.astype(_quotient(xp, rows**0.25, norm), gradient.dtype, copy=False)
        half = xp.float16 if in_half(request) else gradient.dtype
        unit = scaled_to(xp, gradient, scale, half)
        found, size, top = _inverse_times(xp, unit, _table(request))
        damping = float(request.damped_power.damping)
        return Filtered(
            Product(found, 1.0),
            scale * size,
            lambda: peak(xp, 2.0, 1.0, damping, scale) / (xp.sqrt(CENTRE * top) * size),
        )


def in_half(request: Request) -> bool:
    """Return whether products are in float16."""
    return request.precision == "float16" and request.rows >= HALF_ROWS


def _quotient(xp: Any, number: float, array: Array) -> Array:
    """Return a number over an array, in one operation also in PyTorch."""
    return xp.asarray(number, dtype=array.dtype) / array


def _table(request: Request) -> InversionTable:
    """Return the table for σ over the root of the estimate, which is below σ_max."""
    return inversion_table(CENTRE * float(request.damped_power.damping), _SHARE * request.target)


def _inverse_times(xp: Any, wide: Array, table: InversionTable) -> tuple[Array, Array, Array]:
    """Return ``(A + δ λ I)⁻¹ X`` with ``A = X Xᵀ`` as a matrix and its factor, and λ's estimate."""
    one = on_device(xp, _identity, wide.shape[-2], wide)
    gram = product(xp, wide, xp.matrix_transpose(wide))
    square = product(xp, gram, gram)
    quotient = squared_top(xp, square)
    powers = quotient ** on_device(xp, _exponents, len(_POWERS), quotient)
    powers = xp.astype(powers, gram.dtype, copy=False)
    start = _started(xp, one, gram, square, powers, table)
    shifted = add_scaled(xp, gram, one, powers[..., 3:], table.damping)
    return *_iterated(xp, one, shifted, start, wide, table), powers[..., 3:]


def _started(
    xp: Any, one: Array, gram: Array, square: Array, powers: Array, table: InversionTable
) -> Array:
    """Return the start of the table without its factor, for a Gram matrix that is λ too large."""
    (b, c), (e, f) = table.quadratics
    second, first, zeroth = powers[..., :1], powers[..., 1:2], powers[..., 2:3]
    left = add_scaled(xp, square * second, gram, first, b)
    left = add_scaled(xp, left, one, zeroth, c)
    right = add_scaled(xp, left, gram, first, e - b)
    right = add_scaled(xp, right, one, zeroth, f - c)
    return product(xp, left, right)


def _iterated(
    xp: Any, one: Array, shifted: Array, start: Array, wide: Array, table: InversionTable
) -> tuple[Array, Array]:
    """Return the product of the iterated inverse and X as a matrix and its factor.

    The residual is formed anew from the matrix in every step, so that a step removes what rounding
    did to those before.
    """
    inverse, size, last = start, table.size, table.scales[-1]
    for step, scale in enumerate(table.scales[:-1], start=2):
        residual = add_product(xp, one, 1.0, shifted, inverse, -size)
        factor = scale * size * (last if step == len(table.scales) else 1.0)
        inverse = add_product(xp, inverse, factor, inverse, residual, factor)
        size = 1.0
    # The last step is X (κ + R), where R = (2 − κ) I − A X / last, as X has its scale already.
    kept = table.kept
    size = size if len(table.scales) == 1 else 1 / last
    residual = add_product(xp, one, 2 - kept, shifted, inverse, -size)
    # On directions that A lacks the inverse is 1/δ, which may exceed T by far, and its rounding
    # too. So it is taken as a multiple of the identity, which the mean of the diagonal shows, plus
    # a matrix that is small there: X (κ + R) = m (κ + (R − κ D) − D R) with D = 1 − X/m.
    mean = xp.mean(xp.linalg.diagonal(inverse), axis=-1)[..., None, None]
    apart = minus_quotient(xp, one, inverse, mean)
    rest = plus(xp, residual, apart, -kept)
    rest = add_product(xp, rest, 1.0, apart, residual, -1.0)
    if len(table.scales) == 1:
        mean = mean * (table.size * last)
    return add_product(xp, wide, kept, rest, wide, 1.0), mean


@host_constant
def _exponents(size: int) -> NDArray[np.float64]:
    return np.asarray(_POWERS[:size])


@host_constant
def _identity(size: int) -> NDArray[np.float64]:
    return np.eye(size)
