"""Subsamples: sets of groups of samples that are measured as if they were all the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Subsample", "Subsamples"]

Subsample = tuple[int, ...]
"""The indices of the groups that it consists of."""


@dataclass(frozen=True)
class Subsamples:
    """The subsamples of a measurement: all data but one group, the halves and the quarters.

    Parameters
    ----------
    shares : tuple of float
        The share of all terms that each group has.
    """

    shares: tuple[float, ...]

    @property
    def without_each(self) -> list[Subsample]:
        """The data without each group (Theory 11.4)."""
        groups = range(len(self.shares))
        return [tuple(g for g in groups if g != out) for out in groups]

    @property
    def halves(self) -> list[Subsample]:
        """The two halves (Theory 11.5)."""
        return self._parts(2)

    @property
    def quarters(self) -> list[Subsample]:
        """The four quarters (Theory 11.5)."""
        return self._parts(4)

    def __iter__(self) -> Iterator[Subsample]:
        """Iterate over all of them, in this order."""
        yield from (*self.without_each, *self.halves, *self.quarters)

    def with_group(self, group: int) -> list[int]:
        """Return the numbers of the subsamples that have a group."""
        return [i for i, subsample in enumerate(self) if group in subsample]

    def mean(self, subsample: Subsample, values: Sequence[Any]) -> Any:
        """Return the mean over a subsample of a quantity that each group has, indexed by group."""
        weights = self._weights(subsample)
        parts = [w * values[group] for w, group in zip(weights, subsample, strict=True)]
        return sum(parts[1:], parts[0])

    def _weights(self, subsample: Subsample) -> list[float]:
        shares: npt.NDArray[np.float64] = np.asarray([self.shares[g] for g in subsample])
        return [float(weight) for weight in shares / shares.sum()]

    def _parts(self, count: int) -> list[Subsample]:
        parts = np.array_split(np.arange(len(self.shares)), count)
        return [tuple(int(group) for group in part) for part in parts]
