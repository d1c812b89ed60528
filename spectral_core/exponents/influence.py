"""What each point does to a line: its leverage, and the slope without it (Theory 11.6)."""

from typing import Any

import numpy as np

from spectral_core.arrays.namespace import Array, device_of, to_numpy
from spectral_core.exponents.line import Line, find_line
from spectral_core.exponents.power_law_fit import OK, PowerLawFit

__all__ = ["carrying_points", "leverage", "slope_without_each"]

HEAVY = 0.5
"""The leverage above which a point carries a fit: more than all others together have in it."""

# Leverages add up to 2, so that no more points than these have more than 1/2.
_MOST_HEAVY = 3


def leverage(xp: Any, line: Line, usable: Array) -> Array:
    """Return ``ℓ_i = w_i (1/Σw + (x_i − x̄)²/S_xx)``, how far the line follows each point.

    It is 0 where a point is not used, and NaN where it is but there is no line.
    """
    total = xp.sum(line.weights, axis=-1)
    safe = xp.where(total > 0, total, xp.ones_like(total))
    shares = line.weights * (1 / safe[..., None] + line.x**2 / line.sxx[..., None])
    shares = xp.where(shares > 1, xp.ones_like(shares), shares)
    failed = usable & (line.status != OK)[..., None]
    return xp.where(failed, xp.full_like(shares, float("nan")), shares)


def slope_without_each(
    xp: Any,
    x: Array,
    y: Array,
    usable: Array,
    weights: Array | None,
    line: Line,
    shares: Array,
) -> Array:
    """Return ``b − w_i (x_i − x̄) e_i / (S_xx (1 − ℓ_i))``, the slope without point i.

    Points of the largest leverages are left out in earnest: 1 − ℓ cancels where ℓ is near 1. It is
    NaN where a point is not used, or where what is left has no line.
    """
    stands = usable & ((line.status == OK) & (line.n > 3))[..., None]
    shares = xp.where(stands, shares, xp.zeros_like(shares))
    heaviest = xp.argsort(shares, axis=-1, descending=True)[..., :_MOST_HEAVY]
    index = xp.arange(x.shape[-1], dtype=heaviest.dtype, device=device_of(x))
    left_out = heaviest[..., None] == index
    rest = find_line(
        xp,
        x[..., None, :],
        y[..., None, :],
        usable[..., None, :] & ~left_out,
        None if weights is None else weights[..., None, :],
    )
    slopes = xp.where(rest.status == OK, rest.slope, xp.full_like(rest.slope, float("nan")))
    refitted = xp.sum(
        xp.where(left_out, slopes[..., None], xp.zeros_like(slopes[..., None])), axis=-2
    )
    refit = xp.any(left_out, axis=-2)
    kept = xp.where(refit, xp.ones_like(shares), 1 - shares)
    moved = line.weights * line.x * line.residual / (line.sxx[..., None] * kept)
    without = xp.where(refit, refitted, line.slope[..., None] - moved)
    return xp.where(stands, without, xp.full_like(without, float("nan")))


def carrying_points(fit: PowerLawFit) -> tuple[int, ...]:
    """Return the places, from 1, of points that carry a fit of plain numbers (Theory 11.6).

    A point carries it if its leverage is above 1/2, or if the exponent without it is farther away
    than half of the width of the interval. What moves the exponent by less than half of its digits
    moves it by rounding.
    """
    shares, without = to_numpy(fit.leverage), to_numpy(fit.without_each)
    low, high = fit.interval
    size = max((high - low) / 2, float(np.finfo(shares.dtype).eps) ** 0.5 * (1 + abs(fit.exponent)))
    found = (shares > HEAVY) | (np.abs(without - fit.exponent) > size)
    return tuple(int(place) + 1 for place in np.flatnonzero(found))
