"""The least-squares fit of a line with its uncertainty and influence, from which exponents come."""

from typing import Any

from spectral_core.arrays.namespace import Array
from spectral_core.exponents.influence import leverage, slope_without_each
from spectral_core.exponents.line import find_line, rounding
from spectral_core.exponents.power_law_fit import OK, PowerLawFit
from spectral_core.exponents.student_t import quantiles

__all__ = ["fit_line"]


def fit_line(
    xp: Any,
    x: Array,
    y: Array,
    usable: Array,
    weights: Array | None,
    confidence: float,
) -> PowerLawFit:
    """Fit ``y = a + b x`` over the usable points of the last axis; x and y are logs already."""
    line = find_line(xp, x, y, usable, weights)
    w, slope, n = line.weights, line.slope, line.n
    syy = xp.sum(w * line.y**2, axis=-1)
    rss = xp.sum(w * line.residual**2, axis=-1)
    dof = xp.where(n > 2, n - 2, xp.ones_like(n))
    stderr = xp.sqrt(rss / xp.astype(dof, y.dtype) / line.sxx)
    nan = xp.full_like(slope, float("nan"))
    flat = syy <= rounding(xp, y, xp.astype(usable, y.dtype), w)
    r_squared = xp.where(flat, nan, 1 - rss / xp.where(flat, xp.ones_like(syy), syy))
    half = stderr * quantiles(xp, dof, x.shape[-1], (1 + confidence) / 2, slope)
    stands = line.status == OK
    shares = leverage(xp, line, usable)

    def or_nan(values: Array) -> Array:
        return xp.where(stands, values, nan)

    return PowerLawFit(
        exponent=or_nan(slope),
        log_prefactor=or_nan(line.y_mean - slope * line.x_mean),
        r_squared=or_nan(r_squared),
        stderr=or_nan(stderr),
        interval=(or_nan(slope - half), or_nan(slope + half)),
        n=n,
        n_dropped=x.shape[-1] - n,
        status=line.status,
        confidence=confidence,
        leverage=shares,
        without_each=slope_without_each(xp, x, y, usable, weights, line, shares),
    )
