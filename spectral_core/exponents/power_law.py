"""A power law fitted to data, batched and masked: least squares on logarithms, or without them."""

from typing import Literal

from spectral_core.arrays.namespace import (
    Array,
    ArrayLike,
    finite_log,
    mask_like,
    positive,
    spectra,
)
from spectral_core.arrays.numbers import check_confidence
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.exponents.least_squares import fit_line
from spectral_core.exponents.power_law_fit import PowerLawFit as PowerLawFit
from spectral_core.exponents.power_law_fit import to_floats as to_floats
from spectral_core.exponents.pseudo_likelihood import fit_poisson

__all__ = ["PowerLawFit", "fit_power_law"]


@in_working_precision
def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    where: Array | None = None,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    estimator: Literal["ols", "ppml"] = "ols",
) -> PowerLawFit:
    """Fit ``y = C x^exponent`` over the last axis (Theory 2 and 11.7).

    By default the fit is ordinary least squares with intercept on natural logarithms, on the points
    where x and y are positive and finite. The function runs under `jax.jit` and on batches.

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
    estimator : {"ols", "ppml"}
        The estimator. ``"ppml"`` is Poisson pseudo maximum likelihood, ``E y = C x^exponent``
        (11.7; Santos Silva and Tenreyro 2006): it takes no logarithm of y, so that values y <= 0
        are points like others, and large values count most. Its standard error is robust, and its
        time and memory go with K².

    Returns
    -------
    PowerLawFit
        The fit, in the dtype of the data. With fewer than 3 usable points, or with an x that does
        not vary, its numbers are NaN and it has a reason; so with ``"ppml"`` if the y do not add up
        to more than 0, or if no exponent balances them.

    Raises
    ------
    InputError
        For integer or complex arrays, shapes that do not fit, a mask that is not boolean, a
        confidence outside (0, 1), or an unknown estimator.

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
    >>> y = np.array([5.0, 20.1, -0.3, 79.8])
    >>> [sc.fit_power_law(x, y, estimator=name).to_floats().n for name in ("ols", "ppml")]
    [3, 4]
    """
    check_confidence(confidence)
    if estimator not in ("ols", "ppml"):
        raise InputError(f"estimator: {estimator!r} is unknown; choose 'ols' or 'ppml'.")
    given = {"x": x, "y": y} | ({} if weights is None else {"weights": weights})
    xp, arrays = spectra(**given)
    of_logs = estimator == "ols"
    usable = positive(xp, arrays[0])
    usable &= positive(xp, arrays[1]) if of_logs else xp.isfinite(arrays[1])
    if weights is not None:
        usable &= positive(xp, arrays[2])
    if where is not None:
        usable = usable & mask_like(xp, where, usable)
    log_x = finite_log(xp, arrays[0], usable)
    own = arrays[2] if weights is not None else None
    if not of_logs:
        return fit_poisson(xp, log_x, arrays[1], usable, own, confidence)
    log_y = finite_log(xp, arrays[1], usable)
    return fit_line(xp, log_x, log_y, usable, own, confidence)
