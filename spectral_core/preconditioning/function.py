"""The transfer function T(σ; α, d) = σ / (σ^α + d) on singular values, and its maximum."""

import math
from numbers import Real
from typing import Any, TypeGuard

import array_api_compat

from spectral_core.arrays.namespace import Array, ArrayLike, as_like, floating, namespace
from spectral_core.arrays.plain import plain
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError

__all__ = ["transfer", "transfer_bound"]

DAMPING_MODES = ("spectral", "absolute")


@in_working_precision
def transfer(
    sigma: ArrayLike,
    alpha: float | Array,
    damping: float | Array = 0.1,
    *,
    damping_mode: str = "spectral",
) -> Array:
    """Return ``T(σ; α, d) = σ / (σ^α + d)`` (Theory 9.1).

    With spectral damping ``d = δ σ_max^α``, so that T depends on ``σ / σ_max`` alone but for the
    factor ``σ_max^(1−α)`` (Theory 9.4).

    Parameters
    ----------
    sigma : array, shape (..., K)
        The singular values, in any order.
    alpha : float or 0-d array
        The exponent α, in [0, 4]. The values of an array are not checked, since it may be traced.
    damping : float or 0-d array
        The damping: δ for ``damping_mode="spectral"``, d for ``"absolute"``. It is not negative,
        and it is positive if α > 1.
    damping_mode : {"spectral", "absolute"}
        The reference of the damping. ``"spectral"`` makes it relative to the largest of the K
        values to the power α; ``"absolute"`` takes it as it is.

    Returns
    -------
    array, shape (..., K)
        The values T(σ), in the dtype of `sigma`. ``T(0) = 0``, also without damping. A σ that is
        negative or not finite gives NaN, with spectral damping for all that share its σ_max. No
        intermediate value over- or underflows where T itself does not; where T does, it is infinite
        or 0. The relative error is a few roundings, with absolute damping
        ``1 + 4 |log σ| + |log d|`` of them. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If an argument is out of range, or `sigma` is not real floating point or has no axis.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sc.transfer(np.array([2.0, 1.0, 0.0]), alpha=2.0, damping=0.1).round(3)
    array([0.455, 0.714, 0.   ])
    """
    xp, (sigma,) = floating(sigma=sigma)
    check_exponent(alpha, damping, damping_mode)
    if sigma.ndim == 0 or sigma.shape[-1] == 0:
        raise InputError(
            f"sigma: has shape {tuple(sigma.shape)}; pass the singular values along the last axis."
        )
    nan = xp.full_like(sigma, float("nan"))
    usable = xp.isfinite(sigma) & (sigma >= 0)
    if damping_mode == "absolute":
        safe = xp.where(usable, sigma, xp.ones_like(sigma))
        return xp.where(usable, _absolute(xp, safe, alpha, damping), nan)
    usable = usable & xp.all(usable, axis=-1, keepdims=True)
    sigma = xp.where(usable, sigma, xp.ones_like(sigma))
    top = xp.max(sigma, axis=-1, keepdims=True)
    safe = xp.where(top > 0, top, xp.ones_like(top))
    # Two halves: σ_max^(1−α) can leave the range of the dtype while its product with T does not.
    half = power(xp, safe, (1 - alpha) / 2)
    values = damped_ratio(xp, sigma / safe, alpha, 1.0, damping) * half * half
    return xp.where(usable, values, nan)


def transfer_bound(
    alpha: float, damping: float = 0.1, *, damping_mode: str = "spectral", sigma_max: float = 1.0
) -> float:
    """Return the maximum of T(σ; α, d) over ``0 ≤ σ ≤ σ_max`` (Theory 9.5).

    For α ≤ 1, or where the maximiser ``(d / (α − 1))^(1/α)`` lies beyond `sigma_max`, T increases
    up to ``T(σ_max)``; otherwise the maximum is ``(α−1)^(1−1/α) / α · d^(1/α−1)``.

    Parameters
    ----------
    alpha : float
        The exponent α, in [0, 4].
    damping : float
        The damping δ or d, see `transfer`.
    damping_mode : {"spectral", "absolute"}
        The reference of the damping, see `transfer`. With ``"spectral"``, ``d = δ σ_max^α``.
    sigma_max : float
        The largest singular value, positive.

    Returns
    -------
    float
        The maximum. It is infinite or 0 where it leaves the range of a float.

    Raises
    ------
    InputError
        If an argument is out of range, or no number.

    Examples
    --------
    >>> import spectral_core as sc
    >>> round(sc.transfer_bound(alpha=2.0, damping=0.01), 6)
    5.0
    """
    check_exponent(alpha, damping, damping_mode)
    for name, value in (("alpha", alpha), ("damping", damping), ("sigma_max", sigma_max)):
        if not is_number(value):
            raise InputError(f"{name}: a {type(value).__name__} was passed; pass a number.")
    if not 0 < sigma_max < float("inf"):
        raise InputError(f"sigma_max: {sigma_max} is not positive and finite; pass 1 for σ/σ_max.")
    log_sigma = math.log(sigma_max)
    log_delta = math.log(damping) if damping > 0 else -math.inf
    if damping_mode == "absolute":
        log_delta -= alpha * log_sigma
    try:
        return math.exp((1 - alpha) * log_sigma + _log_unit_bound(alpha, log_delta))
    except OverflowError:
        return math.inf


def _log_unit_bound(alpha: float, log_delta: float) -> float:
    """Return the logarithm of the bound for σ_max = 1."""
    if alpha <= 1 or log_delta >= math.log(alpha - 1):
        return (
            -math.log1p(math.exp(log_delta))
            if log_delta < 0
            else (-log_delta - math.log1p(math.exp(-log_delta)))
        )
    return (1 - 1 / alpha) * (math.log(alpha - 1) - log_delta) - math.log(alpha)


def peak(
    xp: Any, alpha: float | Array, slope: float | Array, offset: float | Array, like: Array
) -> Array:
    """Return the maximum of ``r / (slope r^α + offset)`` over ``0 ≤ r ≤ 1``, shaped like `like`."""
    one = xp.ones_like(like)
    excess = (alpha - 1) * slope * one
    inside = excess > offset  # the derivative vanishes at r^α = offset / excess
    log_place = xp.log(xp.where(inside, offset * one, one) / xp.where(inside, excess, one))
    place = xp.exp(log_place / xp.where(inside, alpha * one, one))
    return damped_ratio(xp, place, alpha, slope, offset)


def damped_ratio(
    xp: Any, ratio: Array, alpha: float | Array, slope: float | Array, offset: float | Array
) -> Array:
    """Return ``r / (slope r^α + offset)``, and 0 where the denominator is 0."""
    below = slope * power(xp, ratio, alpha) + offset
    usable = below > 0
    return xp.where(usable & (ratio > 0), ratio, xp.zeros_like(ratio)) / xp.where(
        usable, below, xp.ones_like(below)
    )


def power(xp: Any, base: Array, exponent: float | Array) -> Array:
    """Return ``base ** exponent`` in the dtype of the base; the exponent may be traced."""
    if is_number(exponent):  # the host would wait for the copy of an array to a GPU
        return base ** float(exponent)
    return xp.pow(base, as_like(xp, exponent, base))


def _absolute(xp: Any, sigma: Array, alpha: float | Array, d: float | Array) -> Array:
    """Return T without the maximum: the larger of σ^α and d is factored out of the denominator."""
    positive = sigma > 0
    log_sigma = xp.log(xp.where(positive, sigma, xp.ones_like(sigma)))
    log_d = log_damping(xp, sigma, d)
    excess = alpha * log_sigma - log_d  # log(σ^α / d)
    large = excess > 0
    shrunk = xp.exp(-xp.abs(excess))
    # The factor is σ^(1−α) where σ^α > d, and σ / d elsewhere; logarithms are added before exp.
    exponent = xp.where(large, (1 - alpha) * log_sigma, log_sigma - log_d)
    value = xp.exp(exponent) / (1 + shrunk)
    return xp.where(positive, value, xp.zeros_like(value))


def log_damping(xp: Any, like: Array, d: float | Array) -> float | Array:
    """Return log d; for d = 0 a number below the logarithm of every σ^α of the dtype of `like`."""
    floor = 8 * math.log(float(xp.finfo(like.dtype).smallest_normal))
    if is_number(d):  # on the host: d may lie outside the range of the dtype
        return math.log(d) if d > 0 else floor
    d = as_like(xp, d, like)
    return xp.where(d > 0, xp.log(xp.where(d > 0, d, xp.ones_like(d))), xp.full_like(d, floor))


def is_number(value: float | Array) -> TypeGuard[float]:
    """Return whether a value is a number of Python or NumPy rather than an array."""
    return isinstance(value, Real)


def check_number_or_array(name: str, value: Any, axes: int | None = None) -> None:
    """Raise `InputError` unless the value is a real number, or an array with so many axes."""
    if is_number(value):
        return
    plain(name, value)
    if not array_api_compat.is_array_api_obj(value):
        raise InputError(f"{name}: {value!r} is no number; pass one, or an array of the standard.")
    xp = namespace(value)
    if not xp.isdtype(value.dtype, ("real floating", "integral")):
        raise InputError(f"{name}: has dtype {value.dtype}; pass real numbers.")
    if axes is not None and value.ndim != axes:
        raise InputError(
            f"{name}: has shape {tuple(value.shape)}; pass a number, or an array of shape (), and "
            "call once for each where they differ."
        )


def check_exponent(alpha: float | Array, damping: float | Array, damping_mode: str) -> None:
    """Check α, damping and its mode; the values of arrays are not checked.

    Raises
    ------
    InputError
        If one of them is out of range, or neither a number nor an array without axes.
    """
    check_number_or_array("alpha", alpha, 0)
    check_number_or_array("damping", damping, 0)
    if damping_mode not in DAMPING_MODES:
        raise InputError(f"damping_mode: {damping_mode!r} is none of {', '.join(DAMPING_MODES)}.")
    if is_number(alpha) and not 0 <= alpha <= 4:
        raise InputError(f"alpha: {alpha} is outside [0, 4]; pass the exponent of h ∝ σ^α.")
    if is_number(damping) and not 0 <= damping < float("inf"):
        raise InputError(f"damping: {damping} is not a number of 0 or more; 0.1 is the default.")
    if is_number(alpha) and is_number(damping) and damping == 0 and alpha > 1:
        raise InputError(
            f"damping: 0 with alpha = {alpha} leaves T = σ^{1 - float(alpha):g} unbounded at "
            "σ = 0; pass a positive damping."
        )
