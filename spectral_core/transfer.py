"""The transfer function T(σ; α, d) = σ / (σ^α + d) on singular values, and its maximum."""

import math
from numbers import Real
from typing import Any, TypeGuard

from spectral_core._arrays import Array, ArrayLike, as_like, floating
from spectral_core.errors import InputError

__all__ = ["transfer", "transfer_bound"]

DAMPING_MODES = ("spectral", "absolute")


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
        Singular values, not negative, in any order.
    alpha : float or 0-d array
        In [0, 4]. The values of an array are not checked: it may be traced.
    damping : float or 0-d array
        δ for ``damping_mode="spectral"``, d for ``"absolute"``. Not negative; positive if α > 1.
    damping_mode : {"spectral", "absolute"}
        What `damping` is relative to: the largest of the K values to the power α, or nothing.

    Returns
    -------
    array, shape (..., K)
        In the dtype of `sigma`. ``T(0) = 0``, also without damping. No intermediate value over- or
        underflows where T itself does not. Relative error a few roundings, with absolute damping
        ``1 + 4 |log σ| + |log d|`` of them. Runs under `jax.jit`.

    Raises
    ------
    InputError
        If an argument is out of range, or `sigma` is not real floating point or has no axis.
    """
    xp, (sigma,) = floating(sigma=sigma)
    check_exponent(alpha, damping, damping_mode)
    if sigma.ndim == 0 or sigma.shape[-1] == 0:
        raise InputError(
            f"sigma: has shape {tuple(sigma.shape)}; pass the singular values along the last axis."
        )
    if damping_mode == "absolute":
        return _absolute(xp, sigma, alpha, damping)
    top = xp.max(sigma, axis=-1, keepdims=True)
    safe = xp.where(top > 0, top, xp.ones_like(top))
    # In two halves: σ_max^(1−α) can leave the range of the dtype where its product with T does not.
    half = power(xp, safe, (1 - alpha) / 2)
    return damped_ratio(xp, sigma / safe, alpha, 1.0, damping) * half * half


def transfer_bound(
    alpha: float, damping: float = 0.1, *, damping_mode: str = "spectral", sigma_max: float = 1.0
) -> float:
    """Return the maximum of T(σ; α, d) over ``0 ≤ σ ≤ σ_max`` (Theory 9.5).

    For α ≤ 1, or where the maximiser ``(d / (α − 1))^(1/α)`` lies beyond `sigma_max`, T increases
    up to ``T(σ_max)``; otherwise the maximum is ``(α−1)^(1−1/α) / α · d^(1/α−1)``.

    Parameters
    ----------
    alpha : float
        In [0, 4].
    damping : float
        δ or d, as in `transfer`.
    damping_mode : {"spectral", "absolute"}
        With ``"spectral"``, ``d = δ σ_max^α``.
    sigma_max : float
        Positive.

    Returns
    -------
    float

    Raises
    ------
    InputError
        If an argument is out of range.
    """
    check_exponent(alpha, damping, damping_mode)
    if not 0 < sigma_max < float("inf"):
        raise InputError(f"sigma_max: {sigma_max} is not positive and finite.")
    delta = damping if damping_mode == "spectral" else damping / sigma_max**alpha
    return float(sigma_max ** (1 - alpha) * _unit_bound(alpha, delta))


def _unit_bound(alpha: float, delta: float) -> float:
    """Return the bound for σ_max = 1."""
    if alpha <= 1 or delta >= alpha - 1:
        return 1 / (1 + delta)
    return float((alpha - 1) ** (1 - 1 / alpha) / alpha * delta ** (1 / alpha - 1))


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
    if is_number(exponent):  # made an array on a GPU, the host would wait for its copy
        return base ** float(exponent)
    return xp.pow(base, as_like(xp, exponent, base))


def _absolute(xp: Any, sigma: Array, alpha: float | Array, d: float | Array) -> Array:
    """T without the maximum: the larger of σ^α and d is taken out of the denominator."""
    positive = sigma > 0
    log_sigma = xp.log(xp.where(positive, sigma, xp.ones_like(sigma)))
    log_d = log_damping(xp, sigma, d)
    excess = alpha * log_sigma - log_d  # log(σ^α / d)
    large = excess > 0
    shrunk = xp.exp(-xp.abs(excess))
    # σ^(1−α) where σ^α > d, σ / d elsewhere: the logarithms add before they are taken back.
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


def check_exponent(alpha: float | Array, damping: float | Array, damping_mode: str) -> None:
    """Check α, damping and its mode; arrays are taken as they are.

    Raises
    ------
    InputError
        If one is out of range.
    """
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
