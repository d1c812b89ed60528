"""A straight line by weighted least squares, batched and masked."""

from typing import Any, NamedTuple

from spectral_core.arrays.namespace import Array, count
from spectral_core.exponents.power_law_fit import CONSTANT_X, OK, TOO_FEW_POINTS

__all__ = ["Line", "centre", "find_line", "rounding"]


class Line(NamedTuple):
    """A line ``y = y_mean + slope (x − x_mean)`` over the last axis, and what it was made of."""

    slope: Array
    x_mean: Array
    y_mean: Array
    x: Array
    """The abscissas less their mean, 0 where a point is not used."""
    y: Array
    """The ordinates less their mean, 0 where a point is not used."""
    weights: Array
    """The weights, 0 where a point is not used."""
    sxx: Array
    """The weighted sum of squares of `x`, and 1 where there is no line."""
    n: Array
    status: Array

    @property
    def residual(self) -> Array:
        """The ordinates less the line, 0 where a point is not used."""
        return self.y - self.slope[..., None] * self.x


def find_line(xp: Any, x: Array, y: Array, usable: Array, weights: Array | None) -> Line:
    """Return the line through the usable points of the last axis."""
    mask = xp.astype(usable, y.dtype)
    w = mask if weights is None else xp.where(usable, weights, xp.zeros_like(weights))
    n = count(xp, usable)
    x_mean, x_centred = centre(xp, x, w, mask)
    y_mean, y_centred = centre(xp, y, w, mask)
    sxx = xp.sum(w * x_centred**2, axis=-1)
    constant = sxx <= rounding(xp, x, mask, w)
    status = xp.where(constant, xp.full_like(n, CONSTANT_X), xp.full_like(n, OK))
    status = xp.where(n < 3, xp.full_like(n, TOO_FEW_POINTS), status)
    sxx = xp.where(status == OK, sxx, xp.ones_like(sxx))
    slope = xp.sum(w * x_centred * y_centred, axis=-1) / sxx
    return Line(slope, x_mean, y_mean, x_centred, y_centred, w, sxx, n, status)


def centre(xp: Any, values: Array, weights: Array, mask: Array) -> tuple[Array, Array]:
    """Return the weighted mean over the last axis, and the values less it (0 where masked)."""
    total = xp.sum(weights, axis=-1)
    safe = xp.where(total > 0, total, xp.ones_like(total))
    mean = xp.sum(weights * values, axis=-1) / safe
    return mean, (values - mean[..., None]) * mask


def rounding(xp: Any, values: Array, mask: Array, weights: Array) -> Array:
    """Return the weighted sum of squares that rounding alone gives if all values are equal."""
    scale = xp.max(xp.abs(values * mask), axis=-1)
    return xp.sum(weights, axis=-1) * (4 * float(xp.finfo(values.dtype).eps) * scale) ** 2
