"""The number of directions that carry the curvature, and its bound under a power law."""

from typing import Any

from spectral_core.arrays.namespace import (
    Array,
    ArrayLike,
    at_least,
    check_broadcast,
    finite_log,
    floating,
    positive,
    ranks,
    spectra,
)
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.participation.zeta import zeta

MAX_WINDOW = 10**7
"""Ranks that a sum runs over at most: a gigabyte or less on the way, for one exponent."""

__all__ = [
    "certified_exponent",
    "entropy_rank",
    "exponential_participation",
    "log_normal_participation",
    "participation_ratio",
    "window_bound",
    "zeta_bound",
]


@in_working_precision
def participation_ratio(h: ArrayLike) -> Array:
    """Return ``PR(h) = (Σ h)² / Σ h²`` over the positive values (Theory 7.1).

    Parameters
    ----------
    h : array, shape (..., K)
        The curvatures, in any order and scale. Values that are not positive and finite are left
        out.

    Returns
    -------
    array, shape (...)
        The ratio, between 1 and the number of positive values. It is NaN if there is none.

    Raises
    ------
    InputError
        If `h` is not real floating point or has no value along its last axis.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> float(sc.participation_ratio(np.array([1.0, 1.0, 0.0, -2.0])))
    2.0
    """
    xp, (h,) = spectra(h=h)
    p = _shares(xp, h)
    return 1 / xp.sum(p * p, axis=-1)


@in_working_precision
def entropy_rank(h: ArrayLike) -> Array:
    """Return ``exp(−Σ p log p)`` with ``p = h / Σ h`` over the positive values (Theory 7.1).

    The entropy rank is never below `participation_ratio`. It has the same parameter, its result has
    the same range, and it raises `InputError` for the same reasons.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> round(float(sc.entropy_rank(np.array([0.5, 0.25, 0.25]))), 3)
    2.828
    """
    xp, (h,) = spectra(h=h)
    p = _shares(xp, h)
    return xp.exp(-xp.sum(p * finite_log(xp, p, p > 0), axis=-1))


@in_working_precision
def window_bound(s: ArrayLike, k: int) -> Array:
    """Return ``PR_K(s) = H_K(s)² / H_K(2s)``, that of a power law on K ranks (Theory 7.2).

    Parameters
    ----------
    s : array, any shape
        The exponent, any real number. Infinity, the limit, gives 1.
    k : int
        The window K, at least 1.

    Returns
    -------
    array
        The bound, in the shape and dtype of `s`.

    Raises
    ------
    InputError
        If `k` is not a positive integer of at most 10 million, or `s` not real floating point.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sc.window_bound(np.array([0.0, 1.0, 2.0]), 100).round(3)
    array([100.   ,  16.458,   2.47 ])
    """
    xp, (s,) = floating(s=s)
    endless = xp.isinf(s)
    log_h = -xp.where(endless, xp.zeros_like(s), s)[..., None] * _log_ranks(xp, s, k)
    return xp.where(endless, xp.ones_like(s), _profile_ratio(xp, log_h))


@in_working_precision
def zeta_bound(s: ArrayLike) -> Array:
    """Return ``ζ(s)² / ζ(2s)``, the limit of `window_bound` as K grows (Theory 7.2).

    Parameters
    ----------
    s : array, any shape
        The exponent. For s <= 1 there is no bound without a window, and the result is infinite.

    Returns
    -------
    array
        The bound, in the shape and dtype of `s`. It is 2.5 at s = 2.

    Raises
    ------
    InputError
        If `s` is not real floating point.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sc.zeta_bound(np.array([1.0, 1.5, 2.0])).round(3)
    array([  inf, 5.677, 2.5  ])
    """
    xp, (s,) = floating(s=s)
    safe = xp.where(s > 1, s, 2 * xp.ones_like(s))
    bound = zeta(safe) ** 2 / zeta(2 * safe)
    infinite = xp.where(xp.isnan(s), s, xp.full_like(s, float("inf")))
    return xp.where(s > 1, bound, infinite)


@in_working_precision
def certified_exponent(h: ArrayLike) -> Array:
    """Return the largest s with ``h_{k+1}/h_k <= (k/(k+1))^s`` at every rank (Theory 7.3).

    The positive values are sorted first: PR does not depend on order, and the certificate
    ``PR(h) <= PR_K(s)`` needs s >= 0, which sorting guarantees.

    Parameters
    ----------
    h : array, shape (..., K)
        The curvatures, in any order. Values that are not positive and finite are left out.

    Returns
    -------
    array, shape (...)
        The exponent ``min_k log(h_k/h_{k+1}) / log((k+1)/k)``, at least 0. It is NaN for fewer than
        two values.

    Raises
    ------
    InputError
        If `h` is not real floating point or has no value along its last axis.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> round(float(sc.certified_exponent(np.arange(1.0, 9.0) ** -1.5)), 6)
    1.5
    """
    xp, (h,) = spectra(h=h)
    usable = positive(xp, h)
    lowest = xp.full_like(h, -float("inf"))
    log_h = xp.sort(xp.where(usable, finite_log(xp, h, usable), lowest), axis=-1, descending=True)
    there = xp.isfinite(log_h)
    log_h = xp.where(there, log_h, xp.zeros_like(log_h))
    pairs = there[..., 1:]
    steps = log_h[..., :-1] - log_h[..., 1:]
    log_k = xp.log(ranks(xp, h))
    slopes = steps / (log_k[1:] - log_k[:-1])
    if slopes.shape[-1] == 0:
        return xp.full_like(h[..., 0], float("nan"))
    unlimited = xp.full_like(slopes, float("inf"))
    smallest = xp.min(xp.where(pairs, slopes, unlimited), axis=-1)
    return xp.where(xp.any(pairs, axis=-1), smallest, xp.full_like(smallest, float("nan")))


@in_working_precision
def exponential_participation(b: ArrayLike, k: int | None = None) -> Array:
    """Return the participation ratio of ``h ∝ e^(−b k)`` (Theory 7.4).

    It is ``coth(b/2)`` without a window, and ``coth(b/2) tanh(bK/2)`` on a window of K.

    Parameters
    ----------
    b : array, any shape
        The rate, positive.
    k : int, optional
        The window K. By default there is no window.

    Returns
    -------
    array
        The ratio, in the shape and dtype of `b`. It is NaN where b is not positive.

    Raises
    ------
    InputError
        If `k` is not a positive integer of at most 10 million, or `b` not real floating point.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> b = np.array([0.5, 1.0])
    >>> sc.exponential_participation(b).round(3), sc.exponential_participation(b, k=2).round(3)
    (array([4.083, 2.164]), array([1.887, 1.648]))
    """
    xp, (b,) = floating(b=b)
    # For b below the normal numbers 1/b would overflow; the limit b → 0 is reached long before.
    rate = at_least(xp, b, 4 * float(xp.finfo(b.dtype).smallest_normal))
    ratio = 1 / xp.tanh(rate / 2)
    if k is not None:
        ratio = ratio * xp.tanh(_window(k) * rate / 2)
    return xp.where(b > 0, ratio, xp.full_like(b, float("nan")))


@in_working_precision
def log_normal_participation(a: ArrayLike, b: ArrayLike, k: int) -> Array:
    """Return the participation ratio of ``h_k ∝ exp(a log k + b log² k)`` on K ranks (Theory 7.4).

    Parameters
    ----------
    a, b : array
        The parameters of the log-normal form of `fit_rank_profiles`, which broadcast against each
        other.
    k : int
        The window K.

    Raises
    ------
    InputError
        If `k` is not a positive integer of at most 10 million, or `a` and `b` are not real
        floating point or do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> round(float(sc.log_normal_participation(np.array(-1.0), np.array(0.0), k=10)), 3)
    5.536
    """
    xp, (a, b) = floating(a=a, b=b)
    check_broadcast(a=a, b=b)
    log_k = _log_ranks(xp, a, k)
    return _profile_ratio(xp, a[..., None] * log_k + b[..., None] * log_k**2)


def _shares(xp: Any, h: Array) -> Array:
    """Return h / Σ h over the positive values; NaN if there is none. No sum overflows."""
    usable = positive(xp, h)
    kept = xp.where(usable, h, xp.zeros_like(h))
    largest = xp.max(kept, axis=-1, keepdims=True)
    scaled = kept / xp.where(largest > 0, largest, xp.full_like(largest, float("nan")))
    return scaled / xp.sum(scaled, axis=-1, keepdims=True)


def _profile_ratio(xp: Any, log_h: Array) -> Array:
    """Return the participation ratio of exp(log_h), whatever its scale."""
    h = xp.exp(log_h - xp.max(log_h, axis=-1, keepdims=True))
    return xp.sum(h, axis=-1) ** 2 / xp.sum(h * h, axis=-1)


def _log_ranks(xp: Any, like: Array, k: int) -> Array:
    return xp.log(ranks(xp, xp.broadcast_to(like[..., None], (*like.shape, _window(k)))))


def _window(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k: {k!r} is not a window; pass a positive whole number of ranks.")
    if k > MAX_WINDOW:
        raise InputError(
            f"k: {k} ranks are too many to add up; pass at most {MAX_WINDOW}, or take the limit "
            "for a window without end (zeta_bound; no k for an exponential)."
        )
    return k
