"""The sample sizes of a convergence: whole numbers of groups of samples, cut from all data."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from spectral_core.errors import InputError
from spectral_core.measuring.subsampling.subsamples import (
    Subsample,
    Subsamples,
    halves,
    without_each,
)

__all__ = ["SampleSizes", "sizes_in_groups"]


@dataclass(frozen=True)
class SampleSizes:
    """Sample sizes in groups of samples.

    Parameters
    ----------
    n_groups : int
        The number of groups into which all data are divided, a power of two.
    sizes : tuple of int
        The sizes below that of all data, in groups, ascending.
    blocks : int
        The number of blocks of groups from which the sampling error of all data is estimated.
    """

    n_groups: int
    sizes: tuple[int, ...]
    blocks: int

    def parts(self, size: int) -> list[Subsample]:
        """Return as many disjoint parts of a size as there are.

        Of m parts each takes every m-th group: groups of one sample more than others come first,
        and so are spread evenly.
        """
        count = self.n_groups // size
        return [tuple(range(first, count * size, count)) for first in range(count)]

    def subsamples(self, shares: tuple[float, ...]) -> Subsamples:
        """Return those of the sampling error, with blocks for groups, then the parts of each size.

        The sampling error needs all data without each block, and the halves of each division of the
        blocks (Theory 11.4).
        """
        of_error = (*without_each(self.blocks), *halves(self.blocks))
        in_groups = [tuple(sorted(g for b in sub for g in self._block(b))) for sub in of_error]
        parts = [part for size in self.sizes for part in self.parts(size)]
        return Subsamples(shares, (*in_groups, *parts))

    def of_error(self) -> tuple[slice, slice]:
        """Return where, among the subsamples, are those without each block, and the halves."""
        n_halves = 2 * (self.blocks - 1)
        return slice(self.blocks), slice(self.blocks, self.blocks + n_halves)

    def places(self) -> list[slice]:
        """Return where the parts of each size are among the subsamples, with all data behind."""
        counts = [*(len(self.parts(size)) for size in self.sizes), 1]
        ends = self.of_error()[1].stop + np.cumsum(counts)
        return [slice(int(end) - count, int(end)) for end, count in zip(ends, counts, strict=True)]

    def _block(self, block: int) -> range:
        return range(block, self.n_groups, self.blocks)


def sizes_in_groups(sizes: Iterable[int] | None, n_terms: float, blocks: int) -> SampleSizes:
    """Return sizes in groups, which are as many as the smallest size asks for.

    Parameters
    ----------
    sizes : iterable of int, or None
        The sizes in terms; None takes N/16, N/8, N/4 and N/2.
    n_terms : float
        The number of all terms N.
    blocks : int
        The number of blocks of the sampling error, the fewest groups.

    Raises
    ------
    InputError
        If `sizes` are no numbers of terms, or too large or too small for these data.
    """
    wanted = [n_terms / 2**i for i in (4, 3, 2, 1)] if sizes is None else _checked(sizes, n_terms)
    n_groups = _power_of_two_from(max(blocks, n_terms / min(wanted)))
    if n_terms < 2 * n_groups:
        raise InputError(
            f"sizes: {min(wanted):g} of {n_terms:g} terms and sampling={blocks} ask for {n_groups} "
            "groups of two samples or more, which these data do not have; choose larger sizes, "
            "fewer blocks, or more data."
        )
    counts = {max(1, round(size * n_groups / n_terms)) for size in wanted} - {n_groups}
    return SampleSizes(n_groups, tuple(sorted(counts)), blocks)


def _power_of_two_from(least: float) -> int:
    """Return the smallest power of two that is `least` or more: sizes that halve then fit it."""
    return 1 << math.ceil(math.log2(least))


def _checked(sizes: Any, n_terms: float) -> list[int]:
    """Return sizes that are numbers of terms of which there are two disjoint parts, or all."""
    given: list[Any] = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    whole = [isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in given]
    if not isinstance(sizes, Iterable) or isinstance(sizes, str) or not all(whole):
        raise InputError(
            f"sizes: {sizes!r} is no list of numbers of terms; pass for instance [256, 512, 1024]."
        )
    found = [int(n) for n in given]
    if largest := [n for n in found if n > n_terms]:
        raise InputError(f"sizes: {largest[0]} is more than all {n_terms:g} terms; use more data.")
    if single := [n for n in found if n_terms / 2 < n < n_terms]:
        raise InputError(
            f"sizes: of {single[0]} terms there is no second part among {n_terms:g}; choose sizes "
            f"up to {n_terms // 2:g}."
        )
    if not any(n < n_terms for n in found):
        raise InputError(
            f"sizes: none is below all {n_terms:g} terms, with which to compare; pass for instance "
            f"[{n_terms // 4:g}, {n_terms // 2:g}]."
        )
    return found
