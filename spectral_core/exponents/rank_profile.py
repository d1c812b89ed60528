"""The decay of singular values with rank: power law, exponential or log-normal, chosen by BIC."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from spectral_core.arrays.namespace import (
    Array,
    ArrayLike,
    count,
    finite_log,
    mask_like,
    positive,
    ranks,
    spectra,
    to_numpy,
)
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.exponents.line import centre
from spectral_core.exponents.power_law_fit import to_floats

__all__ = ["RankProfile", "RankProfileFits", "fit_rank_profiles"]

_NAMES = ("power_law", "exponential", "log_normal", "undecided")


@dataclass(frozen=True)
class RankProfile:
    """One form fitted to log σ over rank; fields have the batch shape.

    Parameters
    ----------
    parameters : mapping of str to array
        The parameters by name: ``gamma``, ``beta``, or ``a`` and ``b``, with ``log_prefactor``.
    rss : array
        The residual sum of squares of log σ, not below the rounding of the data.
    bic, aic : array
        The criteria ``n ln(RSS/n) + p ln n`` and ``n ln(RSS/n) + 2p`` with p parameters. They are
        NaN below p + 1 points.
    n : array of int
        The number of points used.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> profile = sc.fit_rank_profiles(1 / np.arange(1.0, 11.0)).power_law.to_floats()
    >>> round(profile.parameters["gamma"], 6), profile.n
    (1.0, 10)
    """

    parameters: Mapping[str, Array]
    rss: Array
    bic: Array
    aic: Array
    n: Array

    def to_floats(self) -> Self:
        """Return the fit with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@dataclass(frozen=True)
class RankProfileFits:
    """The fits of the three forms, and the one that the BIC prefers (Theory 8).

    Parameters
    ----------
    power_law : RankProfile
        The form ``log σ = c − γ log k`` (2 parameters).
    exponential : RankProfile
        The form ``log σ = c − β k`` (2 parameters).
    log_normal : RankProfile
        The form ``log σ = c + a log k + b log² k`` (3 parameters).
    winner_code : array of int
        The code of the winner: 0 power law, 1 exponential, 2 log-normal, 3 undecided (fewer than 4
        points).
    delta_bic : array
        The BIC of the second best form less that of the best.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> fits = sc.fit_rank_profiles(np.exp(-np.arange(1.0, 11.0)))
    >>> fits.winner, round(float(fits.exponential.parameters["beta"]), 6)
    ('exponential', 1.0)
    """

    power_law: RankProfile
    exponential: RankProfile
    log_normal: RankProfile
    winner_code: Array
    delta_bic: Array

    @property
    def winner(self) -> Any:
        """Name of the form with the lowest BIC; nested lists of names for a batch."""
        return _name(to_numpy(self.winner_code).tolist())

    def to_floats(self) -> Self:
        """Return the fits with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@in_working_precision
def fit_rank_profiles(sigma: ArrayLike, *, where: Array | None = None) -> RankProfileFits:
    """Fit the three rank profiles and choose by BIC (Theory 8).

    On data that follow a form exactly all residuals are rounding, and rounding would choose at
    random; so RSS is floored at the rounding level of log σ, and the form with fewer parameters
    wins.

    Parameters
    ----------
    sigma : array, shape (..., K)
        The singular values, descending. Those not positive and finite are left out.
    where : array of bool, shape (..., K), optional
        The values to use. Ranks are positions, not counts.

    Returns
    -------
    RankProfileFits
        The fits, in the dtype of the data, of shape ``(...)``. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If `sigma` is not real floating point, or `where` no boolean array that fits it.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> k = np.arange(1.0, 11.0)
    >>> sc.fit_rank_profiles(1 / k).winner
    'power_law'
    >>> sc.fit_rank_profiles(np.stack([k**-2.0, np.exp(-k)])).winner
    ['power_law', 'exponential']
    """
    xp, (sigma,) = spectra(sigma=sigma)
    usable = positive(xp, sigma)
    if where is not None:
        usable = usable & mask_like(xp, where, usable)
    k = xp.broadcast_to(ranks(xp, sigma), sigma.shape)
    log_k, y = xp.log(k), finite_log(xp, sigma, usable)
    forms = (
        _fit(xp, y, usable, {"gamma": log_k}, sign=-1),
        _fit(xp, y, usable, {"beta": k}, sign=-1),
        _fit(xp, y, usable, {"a": log_k, "b": log_k**2}, sign=1),
    )
    bic = xp.stack([form.bic for form in forms], axis=-1)
    decided = xp.all(xp.isfinite(bic), axis=-1)
    comparable = xp.where(decided[..., None], bic, xp.zeros_like(bic))
    in_order = xp.sort(comparable, axis=-1)
    best = xp.argmin(comparable, axis=-1)
    delta = in_order[..., 1] - in_order[..., 0]
    return RankProfileFits(
        *forms,
        winner_code=xp.where(decided, best, xp.full_like(best, len(_NAMES) - 1)),
        delta_bic=xp.where(decided, delta, xp.full_like(delta, float("nan"))),
    )


def _fit(
    xp: Any, y: Array, usable: Array, regressors: Mapping[str, Array], sign: int
) -> RankProfile:
    """Least squares of y on 1 and the regressors, each made orthogonal to those before it."""
    mask = xp.astype(usable, y.dtype)
    n = count(xp, usable)
    n_float = xp.astype(n, y.dtype)
    y_mean, residual = centre(xp, y, mask, mask)
    means: list[Array] = []
    columns: list[Array] = []
    triangle: list[list[Array]] = []
    scores: list[Array] = []
    for regressor in regressors.values():
        mean, column = centre(xp, regressor, mask, mask)
        overlaps = []
        for earlier in columns:
            overlap = _dot(xp, earlier, column) / _norm(xp, earlier)
            overlaps.append(overlap)
            column = column - overlap[..., None] * earlier
        score = _dot(xp, column, residual) / _norm(xp, column)
        residual = residual - score[..., None] * column
        means.append(mean)
        columns.append(column)
        triangle.append(overlaps)
        scores.append(score)
    coefficients = list(scores)
    for j in reversed(range(len(scores))):  # back substitution in the unit triangle
        for i in range(j):
            coefficients[i] = coefficients[i] - triangle[j][i] * coefficients[j]
    offset = y_mean
    for coefficient, mean in zip(coefficients, means, strict=True):
        offset = offset - coefficient * mean
    p = len(regressors) + 1
    nan = xp.full_like(y_mean, float("nan"))
    enough = n > p
    level = 8 * xp.finfo(y.dtype).eps * xp.max(xp.abs(y * mask), axis=-1)
    tiny = xp.finfo(y.dtype).smallest_normal
    floor = xp.where(level > 0, n_float * level**2, xp.zeros_like(level)) + tiny
    rss = xp.maximum(_dot(xp, residual, residual), floor)
    safe_n = xp.where(n > 0, n_float, xp.ones_like(n_float))
    # The logarithm of the quotient would not do: some libraries take a subnormal quotient for 0.
    misfit = n_float * (xp.log(rss) - xp.log(safe_n))
    named = {
        name: xp.where(enough, sign * value, nan)
        for name, value in zip(regressors, coefficients, strict=True)
    }
    return RankProfile(
        parameters=named | {"log_prefactor": xp.where(enough, offset, nan)},
        rss=xp.where(enough, rss, nan),
        bic=xp.where(enough, misfit + p * xp.log(safe_n), nan),
        aic=xp.where(enough, misfit + 2 * p, nan),
        n=n,
    )


def _dot(xp: Any, a: Array, b: Array) -> Array:
    return xp.sum(a * b, axis=-1)


def _norm(xp: Any, a: Array) -> Array:
    square = _dot(xp, a, a)
    return xp.where(square > 0, square, xp.ones_like(square))


def _name(code: Any) -> Any:
    return [_name(item) for item in code] if isinstance(code, list) else _NAMES[code]
