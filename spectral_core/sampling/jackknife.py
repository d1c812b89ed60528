"""The standard error of a statistic of a sample, from leaving out one group of terms at a time."""

from dataclasses import dataclass
from typing import Self

from spectral_core.arrays.namespace import Array, ArrayLike, floating
from spectral_core.arrays.numbers import check_confidence
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.exponents.power_law import to_floats
from spectral_core.exponents.student_t import student_t_quantile
from spectral_core.sampling.shares import group_shares

__all__ = ["Jackknife", "jackknife"]


@dataclass(frozen=True)
class Jackknife:
    """How far a statistic would move with another sample of as many terms (Theory 11.4).

    Fields have the shape of one estimate.

    Parameters
    ----------
    stderr : array
        The standard error of the statistic of the whole sample.
    half_width : array
        Half the length of its Student t interval, on ``B − 1`` degrees of freedom.
    n_groups : int
        The number of groups B.
    confidence : float
        The confidence level of the interval.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import jackknife
    >>> found = jackknife(np.array([1.4, 1.5, 1.6]))
    >>> round(float(found.stderr), 4), round(float(found.half_width), 4), found.n_groups
    (0.1155, 0.4968, 3)
    """

    stderr: Array
    half_width: Array
    n_groups: int
    confidence: float

    def to_floats(self) -> Self:
        """Return the result with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@in_working_precision
def jackknife(
    estimates: ArrayLike, *, weights: ArrayLike | None = None, confidence: float = 0.95
) -> Jackknife:
    """Estimate a standard error from leave-one-group-out estimates (Theory 11.4).

    ``se² = (B−1)/B Σ_b (θ_(−b) − mean)²`` for equal groups. For unequal ones
    ``se² = Σ_b (1−w_b)²/w_b (θ_(−b) − mean)² / (B−1)`` with the mean
    ``Σ_b (1−w_b) θ_(−b) / (B−1)``, which is as unbiased for a mean of terms. Groups are left out
    and not single terms, since ordered singular values are not smooth in the terms (Shao and Wu
    1989).

    Parameters
    ----------
    estimates : array, shape (B, ...)
        The statistic without group b, at index b: with its own directions, and the curvature of the
        other groups.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.
    confidence : float
        The confidence level of the interval, in (0, 1).

    Returns
    -------
    Jackknife
        The standard error and the interval's half width, in the dtype of the estimates, NaN where
        an estimate is. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If `estimates` is not real floating point with two groups or more, there is not one weight
        for each, or the confidence is outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import jackknife
    >>> terms = np.array([1.0, 2.0, 4.0, 5.0])
    >>> means = (terms.sum() - terms) / 3  # without each term: the textbook's s/√N
    >>> round(float(jackknife(means).stderr), 6), round(terms.std(ddof=1).item() / 2, 6)
    (0.912871, 0.912871)
    """
    check_confidence(confidence)
    xp, (estimates,) = floating(estimates=estimates)
    shares = group_shares(xp, weights, estimates=estimates)
    count = estimates.shape[0]
    shares = xp.reshape(shares, (count,) + (1,) * (estimates.ndim - 1))
    left = 1 - shares
    apart = estimates - xp.sum(left * estimates, axis=0) / (count - 1)
    stderr = xp.sqrt(xp.sum(left**2 / shares * apart**2, axis=0) / (count - 1))
    quantile = student_t_quantile((1 + confidence) / 2, count - 1)
    return Jackknife(stderr, quantile * stderr, count, confidence)
