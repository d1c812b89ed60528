"""Lack of fit: whether log y bends over log x, where a power law would be straight."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from spectral_core.arrays.namespace import (
    Array,
    ArrayLike,
    count,
    finite_log,
    mask_like,
    positive,
    spectra,
    to_numpy,
)
from spectral_core.arrays.numbers import check_confidence
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.exponents.line import centre, rounding
from spectral_core.exponents.power_law_fit import to_floats
from spectral_core.exponents.student_t import quantiles

__all__ = ["LineCheck", "check_line"]

OK, TOO_FEW_POINTS, TOO_FEW_VALUES = 0, 1, 2

_REASONS = {
    OK: None,
    TOO_FEW_POINTS: "fewer than 4 usable points; widen the window or use more data",
    TOO_FEW_VALUES: "the abscissa has fewer than three different values; a bend needs three",
}


@dataclass(frozen=True)
class LineCheck:
    """A parabola held against the line of a power law, on the same points (Theory 11.8).

    Each field has the batch shape of the data, their shape without its last axis.

    Parameters
    ----------
    quadratic : array
        The coefficient of ``(log x − mean)²`` in the parabola: half of the rate at which the
        exponent changes with log x.
    stderr : array
        The standard error of the coefficient, on n − 3 degrees of freedom.
    t_statistic : array
        The coefficient over its standard error.
    interval : tuple of two arrays
        The Student t confidence interval of the coefficient, low and high.
    delta_bic : array
        The BIC of the parabola less that of the line. Below 0 it speaks against the line.
    n : array of int
        The number of points used.
    status : array of int
        The code 0 for a check that stands; otherwise `reason` says why the numbers are NaN.
    confidence : float
        The confidence level of the interval.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.geomspace(1.0, 100.0, 12)
    >>> check = sc.check_line(x, np.exp(0.1 * np.log(x) ** 2)).to_floats()
    >>> round(check.quadratic, 6), check.delta_bic < 0, check.rejected
    (0.1, True, True)
    """

    quadratic: Array
    stderr: Array
    t_statistic: Array
    interval: tuple[Array, Array]
    delta_bic: Array
    n: Array
    status: Array
    confidence: float

    @property
    def rejected(self) -> Any:
        """Whether the line is rejected: the interval excludes 0, and the BIC prefers the parabola.

        It is False where there is no check.
        """
        low, high = self.interval
        return ((low > 0) | (high < 0)) & (self.delta_bic < 0)

    @property
    def reason(self) -> Any:
        """The reason for no check: None or a sentence, in nested lists of the batch shape."""
        return _explain(to_numpy(self.status).tolist())

    def to_floats(self) -> Self:
        """Return the check with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@in_working_precision
def check_line(
    x: ArrayLike,
    y: ArrayLike,
    *,
    where: Array | None = None,
    confidence: float = 0.95,
) -> LineCheck:
    """Check whether a power law is the form of y over x: the quadratic term of log y (Theory 11.8).

    Least squares on the points where x and y are positive and finite, over the last axis, of log y
    on 1, log x and ``(log x − mean)²``. The function runs under `jax.jit` and on batches.

    Parameters
    ----------
    x, y : array, shape (..., K)
        The abscissas and ordinates, which broadcast against each other. They are floating point, of
        any scale.
    where : array of bool, shape (..., K), optional
        The points to use.
    confidence : float
        The confidence level of the interval, in (0, 1).

    Returns
    -------
    LineCheck
        The check, in the dtype of the data. With fewer than 4 usable points, or fewer than three
        different x, its numbers are NaN and it has a reason.

    Raises
    ------
    InputError
        For integer or complex arrays, shapes that do not fit, a mask that is not boolean, or a
        confidence outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.geomspace(1.0, 100.0, 12)
    >>> [bool(sc.check_line(x, y).rejected) for y in (x**2, x**2 + 30.0)]
    [False, True]
    """
    check_confidence(confidence)
    xp, (x, y) = spectra(x=x, y=y)
    usable = positive(xp, x) & positive(xp, y)
    if where is not None:
        usable = usable & mask_like(xp, where, usable)
    log_y = finite_log(xp, y, usable)
    mask = xp.astype(usable, log_y.dtype)
    parabola = _fit_parabola(xp, finite_log(xp, x, usable), log_y, mask)
    n = count(xp, usable)
    # Residuals are not below the rounding of the data, so that exact power laws are straight.
    floor = 4 * rounding(xp, log_y, mask, mask) + float(xp.finfo(log_y.dtype).smallest_normal)
    rss = xp.maximum(parabola.rss, floor)
    rss_of_line = xp.maximum(parabola.rss_of_line, floor)
    points = xp.astype(xp.where(n > 0, n, xp.ones_like(n)), log_y.dtype)
    dof = xp.where(n > 3, n - 3, xp.ones_like(n))
    # Roots first: JAX takes a subnormal quotient for 0.
    stderr = xp.sqrt(rss) / xp.sqrt(xp.astype(dof, log_y.dtype) * parabola.norm)
    half = stderr * quantiles(xp, dof, x.shape[-1], (1 + confidence) / 2, stderr)
    status = xp.where(parabola.bends, xp.full_like(n, OK), xp.full_like(n, TOO_FEW_VALUES))
    status = xp.where(n < 4, xp.full_like(n, TOO_FEW_POINTS), status)
    nan = xp.full_like(stderr, float("nan"))

    def or_nan(values: Array) -> Array:
        return xp.where(status == OK, values, nan)

    return LineCheck(
        quadratic=or_nan(parabola.quadratic),
        stderr=or_nan(stderr),
        t_statistic=or_nan(parabola.quadratic / stderr),
        interval=(or_nan(parabola.quadratic - half), or_nan(parabola.quadratic + half)),
        delta_bic=or_nan(points * (xp.log(rss) - xp.log(rss_of_line)) + xp.log(points)),
        n=n,
        status=status,
        confidence=confidence,
    )


class _Parabola(NamedTuple):
    quadratic: Array
    norm: Array
    """Sum of squares of the quadratic regressor, less its part along the others."""
    bends: Array
    """Whether that is more than rounding."""
    rss: Array
    rss_of_line: Array


def _fit_parabola(xp: Any, x: Array, y: Array, mask: Array) -> _Parabola:
    """Fit y on 1, x and x², each regressor made orthogonal to those before it."""
    size = xp.max(xp.abs(x * mask), axis=-1)
    _, x = centre(xp, x, mask, mask)
    _, x = centre(xp, x, mask, mask)  # so that the rounding of the mean does not tilt the square
    largest = _or_one(xp, xp.max(xp.abs(x), axis=-1))
    x = x / largest[..., None]
    _, y = centre(xp, y, mask, mask)
    _, square = centre(xp, x**2, mask, mask)
    for _ in range(2):  # the second time takes away what rounding left
        square = square - _slope(xp, x, square)[..., None] * x
        _, square = centre(xp, square, mask, mask)
    line = y - _slope(xp, x, y)[..., None] * x
    quadratic = _slope(xp, square, line)
    parabola = line - quadratic[..., None] * square
    norm = xp.sum(square**2, axis=-1)
    # The square of an x is right to twice the rounding of x, which is on the scale of the largest.
    level = 16 * float(xp.finfo(y.dtype).eps) * (1 + size / largest)
    bends = norm > xp.sum(mask, axis=-1) * level**2
    return _Parabola(
        quadratic / largest**2,
        _or_one(xp, norm) * largest**4,
        bends,
        xp.sum(parabola**2, axis=-1),
        xp.sum(line**2, axis=-1),
    )


def _slope(xp: Any, x: Array, y: Array) -> Array:
    return xp.sum(x * y, axis=-1) / _or_one(xp, xp.sum(x * x, axis=-1))


def _or_one(xp: Any, values: Array) -> Array:
    return xp.where(values > 0, values, xp.ones_like(values))


def _explain(status: Any) -> Any:
    return [_explain(item) for item in status] if isinstance(status, list) else _REASONS[status]
