"""Subsamples: sets of groups of samples that are measured as if they were all the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from spectral_core.sampling.half_samples import balanced_halves

__all__ = ["Subsample", "Subsamples", "halves", "without_each"]

Subsample = tuple[int, ...]
"""The indices of the groups that it consists of."""


@dataclass(frozen=True)
class Subsamples:
    """The subsamples of a measurement.

    Parameters
    ----------
    shares : tuple of float
        The share of all terms that each group has.
    sets : tuple of Subsample
        The groups of each subsample.
    """

    shares: tuple[float, ...]
    sets: tuple[Subsample, ...]

    @classmethod
    def for_sampling_errors(cls, shares: tuple[float, ...]) -> Self:
        """Return all data but each group, the halves of each division, and then the four quarters.

        The first two are those of the sampling error (Theory 11.4), halves and quarters those of
        the drift (11.5).
        """
        count = len(shares)
        return cls(shares, (*without_each(count), *halves(count), *_quarters(count)))

    @classmethod
    def for_jackknife(cls, shares: tuple[float, ...]) -> Self:
        """Return all data but each group."""
        return cls(shares, without_each(len(shares)))

    def __iter__(self) -> Iterator[Subsample]:
        """Iterate over all of them, in this order."""
        yield from self.sets

    def with_group(self, group: int) -> list[int]:
        """Return the numbers of the subsamples that have a group."""
        return [i for i, subsample in enumerate(self) if group in subsample]

    def share(self, subsample: Subsample) -> float:
        """Return the share of all terms that a subsample has."""
        return float(sum(self.shares[group] for group in subsample))

    def mean(self, subsample: Subsample, values: Sequence[Any]) -> Any:
        """Return the mean over a subsample of a quantity that each group has, indexed by group."""
        weights = self._weights(subsample)
        parts = [w * values[group] for w, group in zip(weights, subsample, strict=True)]
        return sum(parts[1:], parts[0])

    def _weights(self, subsample: Subsample) -> list[float]:
        shares: npt.NDArray[np.float64] = np.asarray([self.shares[g] for g in subsample])
        return [float(weight) for weight in shares / shares.sum()]


def without_each(count: int) -> tuple[Subsample, ...]:
    """Return all groups but each in turn."""
    return tuple(tuple(g for g in range(count) if g != out) for out in range(count))


def halves(count: int) -> tuple[Subsample, ...]:
    """Return the first and the second half of each division of the groups, in turn."""
    return tuple(half for division in balanced_halves(count) for half in division)


def _quarters(count: int) -> tuple[Subsample, ...]:
    parts = np.array_split(np.arange(count), 4)
    return tuple(tuple(int(group) for group in part) for part in parts)
