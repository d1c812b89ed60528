"""The standard error of a statistic of a sample: the lesser of the jackknife's and of halves."""

from dataclasses import dataclass
from typing import Self

from spectral_core.arrays.namespace import Array, ArrayLike, floating
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.errors import InputError
from spectral_core.exponents.power_law import to_floats
from spectral_core.exponents.student_t import student_t_quantile
from spectral_core.sampling.half_samples import half_sample_error
from spectral_core.sampling.jackknife import jackknife

__all__ = ["SamplingError", "sampling_error"]


@dataclass(frozen=True)
class SamplingError:
    """How far a statistic would move with another sample of as many terms (Theory 11.4).

    Fields have the shape of one estimate.

    Parameters
    ----------
    stderr : array
        The standard error of the statistic of the whole sample: the lesser of the next two.
    jackknife : array
        The standard error of the jackknife over groups. It is right where the statistic is smooth
        in the data, and too large where noise decides.
    half_samples : array
        The standard error of the statistic of half as many terms. It is right where noise decides,
        and √2 too large where the statistic is smooth.
    half_width : array
        Half the length of the Student t interval, on ``B − 1`` degrees of freedom.
    n_groups : int
        The number of groups B.
    confidence : float
        The confidence level of the interval.
    """

    stderr: Array
    jackknife: Array
    half_samples: Array
    half_width: Array
    n_groups: int
    confidence: float

    def to_floats(self) -> Self:
        """Return the result with Python numbers; raises `InputError` for a batch."""
        return to_floats(self)


@in_working_precision
def sampling_error(
    without_each: ArrayLike,
    halves: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
) -> SamplingError:
    """Estimate a standard error from subsamples (Theory 11.4).

    Both `jackknife` and `half_sample_error` are right or too large, each where the other is not.

    Parameters
    ----------
    without_each : array, shape (B, ...)
        The statistic without group b, at index b.
    halves : array, shape (D, 2, ...)
        The statistic of either half of the groups, by division; those of `balanced_halves` have
        about as many degrees of freedom as the jackknife.
    weights : array, shape (B,), optional
        The number of terms in each group, or its share of them. By default groups are equal.
    confidence : float
        The confidence level of the interval, in (0, 1).

    Returns
    -------
    SamplingError
        In the dtype of the estimates, NaN where an estimate is. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If an argument is none that `jackknife` or `half_sample_error` takes, or the two hold
        statistics of different shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_core.sampling import balanced_halves, sampling_error
    >>> groups = np.array([1.0, 2.0, 4.0, 5.0])
    >>> without_each = (groups.sum() - groups) / 3
    >>> halves = [[groups[[*half]].mean() for half in both] for both in balanced_halves(4)]
    >>> found = sampling_error(without_each, np.array(halves))
    >>> round(float(found.jackknife), 4), round(float(found.half_samples), 4)  # of a mean: × √2
    (0.9129, 1.291)
    """
    left_out = jackknife(without_each, weights=weights, confidence=confidence)
    xp, (of_jackknife, of_halves) = floating(
        without_each=left_out.stderr, halves=half_sample_error(halves)
    )
    if of_jackknife.shape != of_halves.shape:
        raise InputError(
            f"halves: of shape {tuple(of_halves.shape)} behind the first two axes, without_each of "
            f"shape {tuple(of_jackknife.shape)} behind the first; pass the same statistics."
        )
    stderr = xp.minimum(of_jackknife, of_halves)
    quantile = student_t_quantile((1 + confidence) / 2, left_out.n_groups - 1)
    return SamplingError(
        stderr, of_jackknife, of_halves, quantile * stderr, left_out.n_groups, confidence
    )
