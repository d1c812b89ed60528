"""One least-squares fit in log space, batched and masked: every exponent comes from it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import array_api_compat

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
from spectral_core.errors import InputError
from spectral_core.exponents.student_t import EXACT_DOF, normal_expansion, student_t_quantile

__all__ = ["PowerLawFit", "fit_power_law"]

T = TypeVar("T")

OK, TOO_FEW_POINTS, CONSTANT_X = 0, 1, 2

_REASONS = {
    OK: None,
    TOO_FEW_POINTS: "fewer than 3 usable points; widen the window or use more data",
    CONSTANT_X: "the abscissa does not vary; an exponent needs at least two different values",
}


@dataclass(frozen=True)
class PowerLawFit:
    """A fit of ``y = C x^exponent`` with its uncertainty.

    Each field has the batch shape of the fit: the shape of the data without its last axis.

    Parameters
    ----------
    exponent : array
        The slope of log y on log x.
    log_prefactor : array
        The natural logarithm of C.
    r_squared : array
        The share of the (weighted) variance of log y that is explained. It is NaN if log y is
        constant.
    stderr : array
        The standard error of the exponent, on n − 2 degrees of freedom.
    interval : tuple of two arrays
        The Student t confidence interval of the exponent, low and high.
    n, n_dropped : array of int
        The number of points used, and of points left out (masked, not positive or not finite).
    status : array of int
        The code 0 for a fit that stands; otherwise `reason` says why the numbers are NaN.
    confidence : float
        The confidence level of the interval.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> fit = sc.fit_power_law(x, np.array([1.0, 4.1, 8.9, 16.2, 24.8])).to_floats()
    >>> round(fit.exponent, 3), [round(end, 3) for end in fit.interval], fit.n, fit.reason
    (1.995, [1.953, 2.037], 5, None)
    """

    exponent: Array
    log_prefactor: Array
    r_squared: Array
    stderr: Array
    interval: tuple[Array, Array]
    n: Array
    n_dropped: Array
    status: Array
    confidence: float

    @property
    def reason(self) -> Any:
        """The reason for no fit: None or a sentence, in nested lists of the batch shape."""
        return _explain(to_numpy(self.status).tolist())

    def to_floats(self) -> Self:
        """Return the fit with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@in_working_precision
def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    where: Array | None = None,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
) -> PowerLawFit:
    """Fit ``y = C x^exponent`` by least squares on natural logarithms (Theory 2).

    The fit is ordinary least squares with intercept, over the last axis, on the points where x and
    y are positive and finite. The function runs under `jax.jit` and on batches.

    Parameters
    ----------
    x, y : array, shape (..., K)
        The abscissas and ordinates, which broadcast against each other. They are floating point, of
        any scale.
    where : array of bool, shape (..., K), optional
        The points to use.
    weights : array, shape (..., K), optional
        The relative weights of the squared residuals. Points whose weight is not positive are
        dropped.
    confidence : float
        The confidence level of the interval, in (0, 1).

    Returns
    -------
    PowerLawFit
        The fit, in the dtype of the data. With fewer than 3 usable points, or with an x that does
        not vary, its numbers are NaN and it has a reason.

    Raises
    ------
    InputError
        For integer or complex arrays, shapes that do not fit, a mask that is not boolean, or a
        confidence outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.array([1.0, 2.0, 3.0, 4.0])
    >>> fit = sc.fit_power_law(x, 5.0 * x**2).to_floats()
    >>> round(fit.exponent, 6), round(np.exp(fit.log_prefactor).item(), 6)
    (2.0, 5.0)
    >>> sc.fit_power_law(x[:2], x[:2]).reason
    'fewer than 3 usable points; widen the window or use more data'
    """
    check_confidence(confidence)
    given = {"x": x, "y": y} | ({} if weights is None else {"weights": weights})
    xp, arrays = spectra(**given)
    usable = positive(xp, arrays[0]) & positive(xp, arrays[1])
    if weights is not None:
        usable &= positive(xp, arrays[2])
    if where is not None:
        usable = usable & mask_like(xp, where, usable)
    log_x = finite_log(xp, arrays[0], usable)
    log_y = finite_log(xp, arrays[1], usable)
    return fit_line(
        xp, log_x, log_y, usable, arrays[2] if weights is not None else None, confidence
    )


def fit_line(
    xp: Any,
    x: Array,
    y: Array,
    usable: Array,
    weights: Array | None,
    confidence: float,
) -> PowerLawFit:
    """Fit ``y = a + b x`` over the usable points of the last axis; x and y are logs already."""
    mask = xp.astype(usable, y.dtype)
    w = mask if weights is None else xp.where(usable, weights, xp.zeros_like(weights))
    n = count(xp, usable)
    x_mean, x_centred = centre(xp, x, w, mask)
    y_mean, y_centred = centre(xp, y, w, mask)
    sxx = xp.sum(w * x_centred**2, axis=-1)
    syy = xp.sum(w * y_centred**2, axis=-1)
    constant = sxx <= _rounding(xp, x, mask, w)
    status = xp.where(constant, xp.full_like(n, CONSTANT_X), xp.full_like(n, OK))
    status = xp.where(n < 3, xp.full_like(n, TOO_FEW_POINTS), status)
    safe_sxx = xp.where(status == OK, sxx, xp.ones_like(sxx))
    slope = xp.sum(w * x_centred * y_centred, axis=-1) / safe_sxx
    rss = xp.sum(w * (y_centred - slope[..., None] * x_centred) ** 2, axis=-1)
    dof = xp.where(n > 2, n - 2, xp.ones_like(n))
    stderr = xp.sqrt(rss / xp.astype(dof, y.dtype) / safe_sxx)
    nan = xp.full_like(slope, float("nan"))
    flat = syy <= _rounding(xp, y, mask, w)
    r_squared = xp.where(flat, nan, 1 - rss / xp.where(flat, xp.ones_like(syy), syy))
    half = stderr * _quantiles(xp, dof, x.shape[-1], (1 + confidence) / 2, slope)
    stands = status == OK

    def or_nan(values: Array) -> Array:
        return xp.where(stands, values, nan)

    return PowerLawFit(
        exponent=or_nan(slope),
        log_prefactor=or_nan(y_mean - slope * x_mean),
        r_squared=or_nan(r_squared),
        stderr=or_nan(stderr),
        interval=(or_nan(slope - half), or_nan(slope + half)),
        n=n,
        n_dropped=x.shape[-1] - n,
        status=status,
        confidence=confidence,
    )


def centre(xp: Any, values: Array, weights: Array, mask: Array) -> tuple[Array, Array]:
    """Return the weighted mean over the last axis, and the values less it (0 where masked)."""
    total = xp.sum(weights, axis=-1)
    safe = xp.where(total > 0, total, xp.ones_like(total))
    mean = xp.sum(weights * values, axis=-1) / safe
    return mean, (values - mean[..., None]) * mask


def to_floats(result: T, per_direction: Sequence[str] = ()) -> T:
    """Return a result dataclass with Python numbers in place of arrays without axes.

    Fields named in `per_direction` have one axis, of directions, and become NumPy arrays.
    """
    known = [f.name for f in fields(result) if f.init]  # type: ignore[arg-type]
    plain = {name: _plain(name, getattr(result, name), name in per_direction) for name in known}
    return replace(result, **plain)  # type: ignore[type-var]


def _plain(name: str, value: Any, per_direction: bool = False) -> Any:
    if hasattr(value, "to_floats"):
        return value.to_floats()
    if isinstance(value, tuple):
        return tuple(_plain(name, item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(key, item) for key, item in value.items()}
    if not array_api_compat.is_array_api_obj(value):
        return value
    if value.ndim != int(per_direction):
        raise InputError(
            f"{name}: has shape {tuple(value.shape)}; a batch has no plain numbers, index it first."
        )
    return to_numpy(value) if per_direction else to_numpy(value).item()


def _rounding(xp: Any, values: Array, mask: Array, weights: Array) -> Array:
    """Return the weighted sum of squares that rounding alone gives if all values are equal."""
    scale = xp.max(xp.abs(values * mask), axis=-1)
    return xp.sum(weights, axis=-1) * (4 * float(xp.finfo(values.dtype).eps) * scale) ** 2


def _quantiles(xp: Any, dof: Array, n_max: int, probability: float, like: Array) -> Array:
    """Return the Student t quantile: small degrees of freedom from a table, safe under jit."""
    largest = max(n_max - 2, 1)
    quantile = xp.zeros_like(like)
    if largest > EXACT_DOF:
        inverse = 1 / xp.astype(dof, like.dtype)
        for coefficient in reversed(normal_expansion(probability)):
            quantile = quantile * inverse + coefficient
    table = [student_t_quantile(probability, d) for d in range(1, min(largest, EXACT_DOF) + 1)]
    for d, value in enumerate(table, start=1):
        quantile = xp.where(dof == d, xp.full_like(like, value), quantile)
    return quantile


def _explain(status: Any) -> Any:
    return [_explain(item) for item in status] if isinstance(status, list) else _REASONS[status]
