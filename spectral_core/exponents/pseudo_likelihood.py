"""Poisson pseudo maximum likelihood: a power law without a logarithm of the ordinate."""

from typing import Any, NamedTuple

from spectral_core.arrays.namespace import Array, at_least, count, ranks
from spectral_core.exponents.exponential_tilt import find_tilt, tilted
from spectral_core.exponents.power_law_fit import (
    CONSTANT_X,
    NO_SOLUTION,
    NO_TOTAL,
    OK,
    TOO_FEW_POINTS,
    PowerLawFit,
)
from spectral_core.exponents.student_t import quantiles

__all__ = ["fit_poisson"]


def fit_poisson(
    xp: Any, x: Array, y: Array, usable: Array, weights: Array | None, confidence: float
) -> PowerLawFit:
    """Fit ``E y = exp(a + b x)`` over the usable points of the last axis (Theory 11.7).

    x is a logarithm already, y is not. The fit, and those without each point, are solved together.
    """
    k = ranks(xp, x)
    all_of_them = usable[..., None, :]
    masks = xp.concat([all_of_them, all_of_them & (k[:, None] != k)], axis=-2)
    w = xp.ones_like(y) if weights is None else weights
    many = _solve(xp, x[..., None, :], y[..., None, :], w[..., None, :], masks)
    fit = _Solution(*(each[..., 0, :] for each in many[:4]), *(each[..., 0] for each in many[4:]))
    shares = _leverage(xp, fit)
    stderr = _robust_stderr(xp, fit, shares)
    n = count(xp, usable)
    dof = xp.where(n > 2, n - 2, xp.ones_like(n))
    half = stderr * quantiles(xp, dof, x.shape[-1], (1 + confidence) / 2, stderr)
    stands = fit.status == OK
    without = usable & stands[..., None] & (many.status[..., 1:] == OK)
    nan, nans = xp.full_like(stderr, float("nan")), xp.full_like(shares, float("nan"))

    def or_nan(values: Array) -> Array:
        return xp.where(stands, values, nan)

    return PowerLawFit(
        exponent=or_nan(fit.slope),
        log_prefactor=or_nan(fit.offset),
        r_squared=or_nan(_squared_correlation(xp, fit)),
        stderr=or_nan(stderr),
        interval=(or_nan(fit.slope - half), or_nan(fit.slope + half)),
        n=n,
        n_dropped=x.shape[-1] - n,
        status=fit.status,
        confidence=confidence,
        leverage=xp.where(usable & ~stands[..., None], nans, shares),
        without_each=xp.where(without, many.slope[..., 1:], nans),
    )


class _Solution(NamedTuple):
    """A solution of the score equations, and its points, with zeros for those not used."""

    x: Array
    y: Array
    """The ordinates, in units of their largest size."""
    w: Array
    fitted: Array
    """The fitted ordinates, in the same units."""
    slope: Array
    offset: Array
    status: Array


def _solve(xp: Any, x: Array, y: Array, w: Array, usable: Array) -> _Solution:
    """Solve ``Σ w (y − μ) = 0`` and ``Σ w (y − μ) x = 0`` for ``μ = exp(a + b x)``.

    With z for x moved to [0, 1], the second says that the mean of z by weights w μ is that by
    weights w y: the slope is a tilt, and it exists if the latter lies between 0 and 1.
    """
    start, span, z = _on_unit_interval(xp, x, usable)
    w = _over_largest(xp, xp.where(usable, w, xp.zeros_like(w)))[0]
    y, unit = _over_largest(xp, xp.where(usable, y, xp.zeros_like(y)))
    above, below, total = (_sum(xp, w * y * part) for part in (z, 1 - z, xp.ones_like(z)))
    status = xp.full_like(count(xp, usable), OK)
    for failed, code in (
        (~((above > 0) & (below > 0)), NO_SOLUTION),
        (~(total > 0), NO_TOTAL),
        (~(span > 0), CONSTANT_X),
        (count(xp, usable) < 3, TOO_FEW_POINTS),
    ):
        status = xp.where(failed, xp.full_like(status, code), status)
    above, below, total = (_positive_or_one(xp, each) for each in (above, below, total))
    tilt, converged = find_tilt(xp, z, w, xp.log(above) - xp.log(below))
    unsolved = (status == OK) & ~converged
    status = xp.where(unsolved, xp.full_like(status, NO_SOLUTION), status)
    shape = tilted(xp, tilt, z, xp.ones_like(z))
    factor = total / _positive_or_one(xp, xp.sum(w * shape, axis=-1))
    slope = tilt / _positive_or_one(xp, span)
    offset = xp.log(factor) + xp.log(unit) - at_least(xp, tilt, 0.0) - slope * start
    return _Solution(
        x * xp.astype(usable, x.dtype), y, w, factor[..., None] * shape, slope, offset, status
    )


def _on_unit_interval(xp: Any, x: Array, usable: Array) -> tuple[Array, Array, Array]:
    """Return the least x, how far the largest is from it, and all x on that scale."""
    beyond = xp.full_like(x, 1e4)  # the logarithm of no number
    start = xp.min(xp.where(usable, x, beyond), axis=-1)
    end = xp.max(xp.where(usable, x, -beyond), axis=-1)
    rounding = 8 * float(xp.finfo(x.dtype).eps) * xp.maximum(xp.abs(start), xp.abs(end))
    varies = end - start > rounding
    start = xp.where(varies, start, xp.zeros_like(start))
    span = xp.where(varies, end - start, xp.zeros_like(start))
    z = (x - start[..., None]) / _positive_or_one(xp, span)[..., None]
    return start, span, xp.where(usable & varies[..., None], z, xp.zeros_like(z))


def _leverage(xp: Any, fit: _Solution) -> Array:
    """Return the leverage of each point in the weighted least squares of the last iteration."""
    weights = fit.w * fit.fitted
    total, x, sxx = _moments(xp, fit)
    return weights * (1 / total[..., None] + x**2 / sxx[..., None])


def _robust_stderr(xp: Any, fit: _Solution, shares: Array) -> Array:
    """Return the sandwich's standard error, with residuals over 1 − leverage.

    Without that (MacKinnon and White 1985) the large ordinates, which carry the fit, would hide
    their own errors in it: 95 % intervals covered 52 % where the errors were relative.
    """
    _, x, sxx = _moments(xp, fit)
    least = xp.finfo(shares.dtype).eps * shares.shape[-1]
    residual = (fit.y - fit.fitted) / at_least(xp, 1 - shares, float(least))
    return xp.sqrt(xp.sum((fit.w * x * residual) ** 2, axis=-1)) / sxx


def _moments(xp: Any, fit: _Solution) -> tuple[Array, Array, Array]:
    """Return the total of the weights w μ, x less its mean by them, and its sum of squares."""
    weights = fit.w * fit.fitted
    total = _positive_or_one(xp, xp.sum(weights, axis=-1))
    mean = xp.sum(weights * fit.x, axis=-1) / total
    x = fit.x - mean[..., None]
    return total, x, _positive_or_one(xp, xp.sum(weights * x**2, axis=-1))


def _squared_correlation(xp: Any, fit: _Solution) -> Array:
    """Return the squared correlation of the ordinates with the fitted ones."""
    total = _positive_or_one(xp, xp.sum(fit.w, axis=-1))[..., None]
    y, fitted = (
        each - xp.sum(fit.w * each, axis=-1, keepdims=True) / total for each in (fit.y, fit.fitted)
    )
    yy, ff = xp.sum(fit.w * y**2, axis=-1), xp.sum(fit.w * fitted**2, axis=-1)
    varies = (yy > 0) & (ff > 0)
    product = _positive_or_one(xp, yy) ** 0.5 * _positive_or_one(xp, ff) ** 0.5
    correlation = xp.sum(fit.w * y * fitted, axis=-1) / product
    square = xp.where(correlation**2 < 1, correlation**2, xp.ones_like(correlation))
    return xp.where(varies, square, xp.full_like(square, float("nan")))


def _sum(xp: Any, terms: Array) -> Array:
    """Return a sum over the last axis, and 0 for what rounding alone makes of one that is 0."""
    found = xp.sum(terms, axis=-1)
    size = xp.sum(xp.abs(terms), axis=-1)
    rounding = terms.shape[-1] * float(xp.finfo(terms.dtype).eps) * size
    return xp.where(xp.abs(found) > rounding, found, xp.zeros_like(found))


def _over_largest(xp: Any, values: Array) -> tuple[Array, Array]:
    """Return values over the largest of their sizes, and that."""
    largest = _positive_or_one(xp, xp.max(xp.abs(values), axis=-1))
    return values / largest[..., None], largest


def _positive_or_one(xp: Any, values: Array) -> Array:
    return xp.where(values > 0, values, xp.ones_like(values))
