"""How much of a gradient is signal: the spread of the means of groups of its terms."""

from typing import Any

from spectral_core.arrays.namespace import Array, ArrayLike, floating
from spectral_core.arrays.products import exact_products
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.sampling.shares import group_shares

__all__ = ["cross_fitted", "direction_noise", "gradient_noise", "signal_share", "without_group"]


@in_working_precision
def gradient_noise(groups: Array, weights: ArrayLike | None = None) -> Array:
    """Estimate ``tr C / N``, what sampling adds to ``‖G_N‖²``, without bias (Theory 11.1).

    ``ν = Σ_b w_b ‖G_b − G_N‖² / (B − 1)`` with ``G_N = Σ_b w_b G_b``, and C the covariance of the
    gradient of one term. Terms must be independent draws; groups may differ in size.

    Parameters
    ----------
    groups : array, shape (B, m, n)
        The mean gradient ``G_b`` of each group of terms.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.

    Returns
    -------
    array, shape ()
        The estimate, in the dtype of the groups. It is NaN if a weight is not positive and finite.
        The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If `groups` is not real floating point of shape (B, m, n) with two groups or more, or there
        is not one weight for each.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import gradient_noise
    >>> groups = np.array([[[3.0, 1.0]], [[1.0, 1.0]]])  # G_N = (2, 1)
    >>> round(float(gradient_noise(groups)), 6)
    1.0
    """
    xp, (groups,) = floating(groups=groups)
    shares = _shares(xp, weights, groups)
    return _noise(xp, groups, shares, _mean(xp, groups, shares))


@in_working_precision
def signal_share(groups: Array, weights: ArrayLike | None = None) -> Array:
    """Estimate the share of ``‖G_N‖²`` that is the population's: ``1 − ν/‖G_N‖²`` (Theory 11.1).

    Parameters
    ----------
    groups : array, shape (B, m, n)
        The mean gradient of each group of terms.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.

    Returns
    -------
    array, shape ()
        The share, at most 1. Under noise alone it scatters around 0 and may come out negative. It
        is NaN if ``G_N`` is 0.

    Raises
    ------
    InputError
        As for `gradient_noise`.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import signal_share
    >>> groups = np.array([[[3.0, 1.0]], [[1.0, 1.0]]])  # G_N = (2, 1), ν = 1
    >>> round(float(signal_share(groups)), 6)
    0.8
    """
    xp, (groups,) = floating(groups=groups)
    shares = _shares(xp, weights, groups)
    mean = _mean(xp, groups, shares)
    size = xp.sum(mean * mean)
    there = size > 0
    share = 1 - _noise(xp, groups, shares, mean) / xp.where(there, size, xp.ones_like(size))
    return xp.where(there, share, xp.full_like(share, float("nan")))


@in_working_precision
def without_group(groups: Array, weights: ArrayLike | None = None) -> Array:
    """Return the means of all terms but those of one group (Theory 11).

    ``G_{−b} = (G_N − w_b G_b) / (1 − w_b)``.

    Parameters
    ----------
    groups : array, shape (B, m, n)
        The mean gradient of each group of terms.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.

    Returns
    -------
    array, shape (B, m, n)
        The mean without group b, at index b.

    Raises
    ------
    InputError
        As for `gradient_noise`.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import without_group
    >>> groups = np.array([[[1.0]], [[2.0]], [[6.0]]])
    >>> np.round(without_group(groups)[:, 0, 0], 6)
    array([4. , 3.5, 1.5])
    """
    xp, (groups,) = floating(groups=groups)
    shares = _shares(xp, weights, groups)
    each = shares[:, None, None]
    return (_mean(xp, groups, shares) - each * groups) / (1 - each)


@in_working_precision
def cross_fitted(groups: Array, u: Array, v: Array, weights: ArrayLike | None = None) -> Array:
    """Measure each group along the directions that the others show (Theory 11.2).

    ``c_k = Σ_b w_b <G_b, u_k^(b) v_k^(b)ᵀ>`` is unbiased for the derivative of the population's
    loss along the k-th direction of a sample of ``N (1 − 1/B)`` terms: no group is measured along
    directions that it helped to choose. ``c_k / σ_k`` is the signal share of direction k.

    Parameters
    ----------
    groups : array, shape (B, m, n)
        The mean gradient of each group of terms.
    u, v : array, shapes (B, m, K) and (B, n, K)
        The left and right singular vectors, at index b those of the mean without group b (see
        `without_group`), as columns in the order of its σ.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.

    Returns
    -------
    array, shape (K,)
        The derivatives ``c_k``; under noise alone they scatter around 0.

    Raises
    ------
    InputError
        As for `gradient_noise`, and if shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import cross_fitted, without_group
    >>> groups = np.array([[[3.0, 1.0]], [[1.0, 1.0]], [[2.0, -2.0]]])
    >>> u, sigma, v = np.linalg.svd(without_group(groups), full_matrices=False)
    >>> np.round(cross_fitted(groups, u, v.mT), 3)
    array([1.406])
    """
    xp, (groups, u, v) = floating(groups=groups, u=u, v=v)
    shares = _shares(xp, weights, groups)
    _check_directions(groups, u, v, (groups.shape[0],))
    return xp.sum(shares[:, None] * _along(xp, groups, u, v), axis=0)


@in_working_precision
def direction_noise(groups: Array, u: Array, v: Array, weights: ArrayLike | None = None) -> Array:
    """Estimate the variance of ``<G_N, u_k v_kᵀ>`` for fixed directions (Theory 11.2).

    ``τ_k² = Σ_b w_b <G_b − G_N, u_k v_kᵀ>² / (B − 1)`` is unbiased for directions that were chosen
    without these terms. Along singular directions of ``G_N`` itself it says too little.

    Parameters
    ----------
    groups : array, shape (B, m, n)
        The mean gradient of each group of terms.
    u, v : array, shapes (m, K) and (n, K)
        The directions, as columns of unit length.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.

    Returns
    -------
    array, shape (K,)
        The variances ``τ_k²``.

    Raises
    ------
    InputError
        As for `gradient_noise`, and if shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import direction_noise
    >>> groups = np.array([[[3.0, 1.0]], [[1.0, 1.0]]])
    >>> np.round(direction_noise(groups, np.ones((1, 2)), np.eye(2)), 6)
    array([1., 0.])
    """
    xp, (groups, u, v) = floating(groups=groups, u=u, v=v)
    shares = _shares(xp, weights, groups)
    _check_directions(groups, u, v, ())
    along = _along(xp, groups, u, v)
    apart = along - xp.sum(shares[:, None] * along, axis=0)
    return xp.sum(shares[:, None] * apart**2, axis=0) / (groups.shape[0] - 1)


def _shares(xp: Any, weights: ArrayLike | None, groups: Array) -> Array:
    if groups.ndim != 3:
        raise InputError(
            f"groups: has shape {tuple(groups.shape)}; pass the means of B groups, (B, m, n)."
        )
    return group_shares(xp, weights, groups=groups)


def _mean(xp: Any, groups: Array, shares: Array) -> Array:
    """Return ``G_N = Σ_b w_b G_b``."""
    flat = xp.reshape(groups, (groups.shape[0], -1))
    with exact_products(xp, groups):
        return xp.reshape(shares @ flat, groups.shape[1:])


def _noise(xp: Any, groups: Array, shares: Array, mean: Array) -> Array:
    # One group after the other: all differences at once would be a second copy of the groups, and
    # Σ w ‖G_b‖² − ‖G_N‖² would cancel where there is little noise.
    total = xp.zeros_like(shares[0])
    for b in range(groups.shape[0]):
        total = total + shares[b] * xp.sum((groups[b, ...] - mean) ** 2)
    return total / (groups.shape[0] - 1)


def _along(xp: Any, groups: Array, u: Array, v: Array) -> Array:
    """Return ``<G_b, u_k v_kᵀ>``, shape (B, K)."""
    with exact_products(xp, groups):
        return xp.sum(u * (groups @ v), axis=-2)


def _check_directions(groups: Array, u: Array, v: Array, batch: tuple[int, ...]) -> None:
    _, m, n = groups.shape
    for name, array, size in (("u", u, m), ("v", v, n)):
        shape = tuple(array.shape)
        if shape[:-1] != (*batch, size) or not shape[-1:]:
            wanted = ", ".join(str(length) for length in (*batch, size, "K"))
            raise InputError(
                f"{name}: has shape {shape}; for groups of shape {tuple(groups.shape)} pass "
                f"({wanted}), with directions as columns."
            )
    if u.shape[-1] != v.shape[-1]:
        raise InputError(
            f"u and v hold {u.shape[-1]} and {v.shape[-1]} directions; pass as many of both."
        )
