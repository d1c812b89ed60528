"""Predictions of a layer's alignment from its architecture: from sizes and spectra alone."""

from dataclasses import dataclass
from math import inf, log, sqrt
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import floating, to_numpy
from spectral_core.arrays.numbers import is_real
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError

__all__ = [
    "ResidualPrediction",
    "layernorm_band",
    "residual_prediction",
    "slope_bound",
    "softmax_head_rank",
]


def layernorm_band(n: int, batch: int) -> float:
    """Return the bound on the condition number of normalised features (Theory 6.1).

    The bound is ``((1 + √(n/B)) / (1 − √(n/B)))²``, the Bai-Yin limit for B isotropic sub-Gaussian
    samples of n features. Trained features are rarely isotropic: compare with the measured
    condition number.

    Parameters
    ----------
    n : int
        The number of features.
    batch : int
        The number of samples (times positions) B.

    Returns
    -------
    float
        The bound, at least 1. It is infinite for B <= n.

    Raises
    ------
    InputError
        If a number is not positive and finite.

    Examples
    --------
    >>> import spectral_core as sc
    >>> round(sc.layernorm_band(n=64, batch=1024), 3)
    2.778
    """
    if not all(is_real(number) and 1 <= number < inf for number in (n, batch)):
        raise InputError(f"n and batch: {n!r} and {batch!r}; pass positive numbers.")
    if batch <= n:
        return inf
    ratio = sqrt(n / batch)
    return ((1 + ratio) / (1 - ratio)) ** 2


@in_working_precision
def slope_bound(sigma: npt.ArrayLike, band: float) -> float:
    """Return the largest slope on log σ of values that lie within a band.

    The slope is ``log(band) Σ|x − x̄| / (2 Σ(x − x̄)²)`` with ``x = log σ``. Values that jump at
    the mean attain it. (Dividing by the spread of x, as if the slope were a rise over a run, is no
    bound.)

    Parameters
    ----------
    sigma : array, shape (K,)
        The singular values, positive.
    band : float
        The largest ratio of two values, at least 1.

    Returns
    -------
    float
        The bound, in units of an exponent. For ``ρ = uᵀ C u / λ`` with the condition number of C as
        the band, take it twice: quotient and eigenvalue each lie within the band.

    Raises
    ------
    InputError
        If `sigma` is not positive and finite or does not vary, or the band is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> round(sc.slope_bound(1 / np.arange(1.0, 11.0), band=2.0), 3)
    0.41
    """
    values = _on_the_host("sigma", sigma)
    if values.ndim != 1 or not _all_positive(values) or len(set(values.tolist())) < 2:
        raise InputError(
            f"sigma: has shape {values.shape}, or values that do not serve; pass one axis of "
            "positive, finite singular values, at least two of them different."
        )
    if not (is_real(band) and band >= 1):
        raise InputError(f"band: {band!r} is below 1; pass a condition number.")
    x = np.log(values)
    x = x - x.mean()
    return float(log(band) * np.sum(np.abs(x)) / (2 * np.sum(x * x)))


@dataclass(frozen=True)
class ResidualPrediction:
    """Slopes on log σ if C_δ is independent of the layer's directions (Theory 6.2).

    Parameters
    ----------
    quadratic : float
        The slope of ``u_kᵀ C_δ u_k``. It is 0, as random directions all see ``tr C_δ / m``.
    quadratic_error : float
        The standard deviation of that slope over random directions.
    rho_delta : float
        The slope of ``ρ_k^δ``. As ``ρ_k^δ`` then is ``tr C_δ / (m λ_k)``, this is the slope of the
        eigenvalues with its sign reversed.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> k = np.arange(1.0, 11.0)
    >>> prediction = sc.residual_prediction(1 / k, 1 / k**2)
    >>> prediction.quadratic, round(prediction.quadratic_error, 3), round(prediction.rho_delta, 3)
    (0.0, 0.348, -2.0)
    """

    quadratic: float
    quadratic_error: float
    rho_delta: float


@in_working_precision
def residual_prediction(sigma: npt.ArrayLike, eigenvalues: npt.ArrayLike) -> ResidualPrediction:
    """Predict the slopes of a skip-dominated block from the eigenvalues of C_δ (Theory 6.2).

    With directions that are random relative to ``C_δ`` the quadratic form ``uᵀ C_δ u`` does not
    follow σ, and ``ρ^δ`` follows the eigenvalues that divide it. Its slope is 0 only for an
    isotropic ``C_δ``.

    Parameters
    ----------
    sigma : array, shape (K,)
        The singular values of the gradient, positive.
    eigenvalues : array, shape (m,)
        All eigenvalues of ``C_δ``, descending, with m of at least K.

    Raises
    ------
    InputError
        If shapes do not fit, or values are not finite, or not positive where they must be.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> k = np.arange(1.0, 11.0)
    >>> round(sc.residual_prediction(1 / k, 1 / k**2).rho_delta, 3)
    -2.0
    >>> round(abs(sc.residual_prediction(1 / k, np.ones(10)).rho_delta), 3)
    0.0
    """
    values, x = _on_the_host("eigenvalues", eigenvalues), _on_the_host("sigma", sigma)
    if x.ndim != 1 or values.ndim != 1 or len(values) < len(x) or not _all_positive(x):
        raise InputError(
            f"sigma and eigenvalues: have shapes {x.shape} and {values.shape}; pass (K,) positive "
            "and finite, and (m,) with m of at least K."
        )
    if not (_all_positive(values[: len(x)]) and np.all(np.isfinite(values))):
        raise InputError(
            "eigenvalues: all must be finite and the first K positive; shorten the window."
        )
    x = np.log(x) - np.log(x).mean()
    if not np.any(x):
        raise InputError("sigma: does not vary, so nothing has a slope on it.")
    m, total = len(values), values.sum()
    # This is the variance of uᵀCu over the unit sphere, relative to its squared mean.
    variance = 2 * (m * np.sum(values**2) / total**2 - 1) / (m + 2)
    slope = np.sum(x * np.log(values[: len(x)])) / np.sum(x * x)
    return ResidualPrediction(
        quadratic=0.0,
        quadratic_error=float(np.sqrt(variance / np.sum(x * x))),
        rho_delta=float(-slope),
    )


def softmax_head_rank(classes: int) -> int:
    """Return the rank that ``C_δ`` has at most at a softmax head: classes − 1 (Theory 4.6, 6.3).

    The gradients of a cross-entropy in its logits add up to zero. The paper says `classes`.

    Raises
    ------
    InputError
        If `classes` is not a whole number of 2 or more.

    Examples
    --------
    >>> import spectral_core as sc
    >>> sc.softmax_head_rank(10)
    9
    """
    if not isinstance(classes, Integral) or classes < 2:
        raise InputError(
            f"classes: {classes!r} is not a whole number of 2 or more; a softmax over fewer is "
            "constant."
        )
    return int(classes) - 1


def _on_the_host(name: str, values: Any) -> npt.NDArray[np.float64]:
    _, (array,) = floating(**{name: values})
    return np.asarray(to_numpy(array), dtype=np.float64)


def _all_positive(values: npt.NDArray[np.float64]) -> bool:
    return bool(np.all((values > 0) & np.isfinite(values)))
