"""Riemann's zeta function for real arguments above 1, in any Array API library."""

from spectral_core.arrays.namespace import Array, ArrayLike, floating
from spectral_core.arrays.working_precision import in_working_precision

__all__ = ["zeta"]

_TERMS = 12
# The Euler-Maclaurin coefficients B_2j / (2j)! for j = 1..10.
_COEFFICIENTS = (
    1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000,
    1 / 74724249600, -3617 / 10670622842880000, 43867 / 5109094217170944000,
    -174611 / 802857662698291200000,
)  # fmt: skip


@in_working_precision
def zeta(s: ArrayLike) -> Array:
    """Return ``ζ(s) = Σ_k k^−s`` for real s > 1 (Theory 7.5).

    The sum is by Euler-Maclaurin: the first 11 terms, the integral of the tail and ten corrections.

    Parameters
    ----------
    s : array, any shape
        The argument, floating point. The result is NaN below 1, where the series diverges (this is
        not the analytic continuation), and infinity at 1.

    Returns
    -------
    array
        The value, in the shape and dtype of `s`. Its relative error is at most 1e-13 in float64.
        The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If `s` is not real floating point.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> sc.zeta(np.array([0.5, 1.0, 2.0, 4.0])).round(4)
    array([   nan,    inf, 1.6449, 1.0823])
    """
    xp, (s,) = floating(s=s)
    inside = s > 1
    # For s > 80, ζ is 1 to the last bit of float64 and the corrections would overflow.
    safe = xp.where(inside, xp.where(s > 80, 80 * xp.ones_like(s), s), 2 * xp.ones_like(s))
    base = float(_TERMS)
    tail = base ** (1 - safe) / (safe - 1) + 0.5 * base**-safe
    rising = safe * base ** (-safe - 1)  # s (s+1) … (s+2j−2) base^(−s−2j+1)
    for j, coefficient in enumerate(_COEFFICIENTS, start=1):
        tail = tail + coefficient * rising
        rising = rising * (safe + (2 * j - 1)) * (safe + 2 * j) / base**2
    for k in range(_TERMS - 1, 1, -1):
        tail = tail + float(k) ** -safe  # smallest first
    value = 1 + tail
    outside = xp.where(s == 1, xp.full_like(s, float("inf")), xp.full_like(s, float("nan")))
    return xp.where(inside, value, outside)
