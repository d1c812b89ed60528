"""The standard error of a statistic of a sample, from halves of it."""

from typing import Any

from spectral_core.arrays.namespace import Array, ArrayLike, floating
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError

__all__ = ["Division", "balanced_halves", "half_sample_error"]

Division = tuple[tuple[int, ...], tuple[int, ...]]
"""The groups of either half."""


def balanced_halves(count: int) -> tuple[Division, ...]:
    """Return ``count − 1`` divisions of groups into halves, as different as can be.

    Where `count` is a power of two, any two divisions share equally many groups (the columns of a
    Hadamard matrix, as in balanced repeated replication), and halves are equal. Of other counts
    the columns of the next power of two are cut, and those with the most equal halves are taken.

    Parameters
    ----------
    count : int
        The number of groups, 2 or more.

    Raises
    ------
    InputError
        If `count` is no whole number of 2 or more.

    Examples
    --------
    >>> from spectral_core.sampling import balanced_halves
    >>> balanced_halves(4)
    (((0, 2), (1, 3)), ((0, 1), (2, 3)), ((0, 3), (1, 2)))
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise InputError(f"count: {count!r} is no number of groups; pass a whole number from 2 on.")
    columns = range(1, 1 << (count - 1).bit_length())
    divisions = [_division(column, count) for column in columns]
    # `sorted` keeps the order of columns whose halves are as equal.
    by_size = sorted(divisions, key=lambda halves: abs(len(halves[0]) - len(halves[1])))
    return tuple(by_size[: count - 1])


def _division(column: int, count: int) -> Division:
    """Return the groups by their sign in a column of Sylvester's Hadamard matrix."""
    signs = [(row & column).bit_count() % 2 for row in range(count)]
    first, second = ([row for row in range(count) if signs[row] == sign] for sign in (0, 1))
    return tuple(first), tuple(second)


@in_working_precision
def half_sample_error(halves: ArrayLike) -> Array:
    """Estimate a standard error from the two halves of several divisions (Theory 11.4).

    ``se² = mean over divisions of (θ − θ')²/2``. Two halves are independent, so this is unbiased
    for the variance of the statistic of half as many terms, however it depends on them. As a rule
    that of all terms is no larger.

    Parameters
    ----------
    halves : array, shape (D, 2, ...)
        The statistic of either half, by division.

    Returns
    -------
    array, shape (...)
        The standard error, in the dtype of the halves, NaN where a half is. The function runs under
        `jax.jit`.

    Raises
    ------
    InputError
        If `halves` is not real floating point of shape (D, 2, ...) with a division or more.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import half_sample_error
    >>> float(half_sample_error(np.array([[1.0, 1.2], [1.3, 0.9]])).round(4))
    0.2236
    """
    xp, (halves,) = floating(halves=halves)
    shape: Any = halves.shape
    if halves.ndim < 2 or shape[0] < 1 or shape[1] != 2:
        raise InputError(
            f"halves: has shape {tuple(shape)}; pass the statistic of the two halves of one "
            "division or more, (D, 2, ...)."
        )
    return xp.sqrt(xp.mean((halves[:, 0, ...] - halves[:, 1, ...]) ** 2, axis=0) / 2)
