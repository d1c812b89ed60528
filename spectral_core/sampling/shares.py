"""The shares of the terms that groups hold."""

from typing import Any

from spectral_core.arrays.namespace import Array, ArrayLike, as_like, device_of, positive
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError

__all__ = ["group_shares"]


def group_shares(xp: Any, weights: ArrayLike | None, **argument: Array) -> Array:
    """Return the shares ``w_b`` of the groups along axis 0, which add up to 1, shape (B,).

    The array of groups comes under the name that messages call it. The numbers of terms
    serve as well as their shares. One that is not positive and finite makes all shares NaN, since a
    traced value cannot raise.

    Raises
    ------
    InputError
        If there are fewer than two groups, or not one weight for each.
    """
    ((name, groups),) = argument.items()
    count = groups.shape[0] if groups.ndim else 0
    if count < 2:
        raise InputError(
            f"{name}: has shape {tuple(groups.shape)}; pass 2 groups or more along the first axis, "
            "say 8: their spread is what is measured."
        )
    if weights is None:
        return xp.full((count,), 1 / count, dtype=groups.dtype, device=device_of(groups))
    weights = as_like(xp, plain("weights", weights), groups)
    if tuple(weights.shape) != (count,):
        raise InputError(
            f"weights: has shape {tuple(weights.shape)}; pass one number for each of the {count} "
            "groups, how many terms it holds."
        )
    there = positive(xp, weights)
    shares = xp.where(there, weights, xp.ones_like(weights))
    shares = shares / xp.sum(shares)
    return xp.where(xp.all(there), shares, xp.full_like(shares, float("nan")))
