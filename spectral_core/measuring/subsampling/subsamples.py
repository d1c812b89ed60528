"""Subsamples: sets of groups of samples that are measured as if they were all the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["Subsample", "Subsamples"]

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
        """Return all data but each group, then the two halves and the four quarters.

        The first are those of the jackknife (Theory 11.4), the others those of the drift (11.5).
        """
        groups = range(len(shares))
        without_each = (tuple(g for g in groups if g != out) for out in groups)
        return cls(shares, (*without_each, *_parts(len(shares), 2), *_parts(len(shares), 4)))

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


def _parts(groups: int, count: int) -> list[Subsample]:
    parts = np.array_split(np.arange(groups), count)
    return [tuple(int(group) for group in part) for part in parts]
