"""The result of a power law's fit, and how results of arrays become plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import array_api_compat

from spectral_core.arrays.namespace import Array, to_numpy
from spectral_core.errors import InputError

__all__ = [
    "CONSTANT_X", "NO_SOLUTION", "NO_TOTAL", "OK", "TOO_FEW_POINTS", "PowerLawFit", "to_floats",
]  # fmt: skip

T = TypeVar("T")

OK, TOO_FEW_POINTS, CONSTANT_X, NO_TOTAL, NO_SOLUTION = range(5)

_REASONS = {
    OK: None,
    TOO_FEW_POINTS: "fewer than 3 usable points; widen the window or use more data",
    CONSTANT_X: "the abscissa does not vary; an exponent needs at least two different values",
    NO_TOTAL: "the ordinates do not add up to more than 0; use more data, or another window",
    NO_SOLUTION: "no exponent balances these ordinates; use more data, or another window",
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
        constant. With ``estimator="ppml"`` it is the squared correlation of y with its fit.
    stderr : array
        The standard error of the exponent, on n − 2 degrees of freedom. It says how well a power
        law describes these points.
    interval : tuple of two arrays
        The Student t confidence interval of the exponent, low and high.
    n, n_dropped : array of int
        The number of points used, and of points left out (masked, not positive or not finite).
    status : array of int
        The code 0 for a fit that stands; otherwise `reason` says why the numbers are NaN.
    confidence : float
        The confidence level of the interval.
    leverage : array, shape (..., K), or None
        The leverage of each point, which is the share of it that the fitted line follows (Theory
        11.6): 0 for points left out, 1 for a point that the line goes through whatever its
        ordinate. They add up to 2. None in fits of versions before 0.2.
    without_each : array, shape (..., K), or None
        The exponent of the fit without each point (Theory 11.6). It is NaN for points left out, and
        if the others have no fit. None in fits of versions before 0.2.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> fit = sc.fit_power_law(x, np.array([1.0, 4.1, 8.9, 16.2, 24.8])).to_floats()
    >>> round(fit.exponent, 3), [round(end, 3) for end in fit.interval], fit.n, fit.reason
    (1.995, [1.953, 2.037], 5, None)
    >>> fit.leverage.round(2).tolist(), fit.without_each.round(2).tolist()
    ([0.77, 0.24, 0.21, 0.31, 0.46], [1.97, 2.0, 2.0, 1.99, 2.0])
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
    # Two fits are equal if their numbers are: arrays have no truth value.
    leverage: Array | None = field(default=None, compare=False)
    without_each: Array | None = field(default=None, compare=False)

    @property
    def reason(self) -> Any:
        """The reason for no fit: None or a sentence, in nested lists of the batch shape."""
        return _explain(to_numpy(self.status).tolist())

    def to_floats(self) -> Self:
        """Return the fit with Python numbers, the values of each point as NumPy arrays.

        It raises `InputError` for a batch.
        """
        return to_floats(self, ("leverage", "without_each"))


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


def _explain(status: Any) -> Any:
    return [_explain(item) for item in status] if isinstance(status, list) else _REASONS[status]
