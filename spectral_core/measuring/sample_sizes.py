"""The sample sizes of a convergence: whole numbers of groups of samples, cut from all data."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from spectral_core.errors import InputError
from spectral_core.measuring.subsamples import Subsample

__all__ = ["SampleSizes", "sizes_in_groups"]

SMALLEST = 16
"""The default sizes halve from all N terms down to N/16."""


@dataclass(frozen=True)
class SampleSizes:
    """Sample sizes in groups of samples.

    Parameters
    ----------
    n_groups : int
        The number of groups into which all data are divided.
    sizes : tuple of int
        The sizes below that of all data, in groups, ascending.
    """

    n_groups: int
    sizes: tuple[int, ...]

    def parts(self, size: int) -> list[Subsample]:
        """Return as many disjoint parts of a size as there are, as equal as groups allow.

        A part takes every m-th group where there are m parts: groups of one sample more than
        others come first.
        """
        count = self.n_groups // size
        return [tuple(range(first, count * size, count)) for first in range(count)]

    def without_each(self, blocks: int) -> list[Subsample]:
        """Return all data without each of so many blocks of groups (Theory 11.4)."""
        groups = range(self.n_groups)
        return [tuple(g for g in groups if g % blocks != out) for out in range(blocks)]


def sizes_in_groups(sizes: Sequence[int] | None, n_terms: float, blocks: int) -> SampleSizes:
    """Return sizes in groups, which are as many as the smallest size asks for.

    Parameters
    ----------
    sizes : sequence of int, or None
        The sizes in terms; None takes N/16, N/8, N/4 and N/2.
    n_terms : float
        The number of all terms N.
    blocks : int
        The number of blocks of the jackknife, the fewest groups.

    Raises
    ------
    InputError
        If `sizes` are no numbers of terms, or too large or too small for these data.
    """
    wanted = [n_terms / 2**i for i in (4, 3, 2, 1)] if sizes is None else _checked(sizes, n_terms)
    n_groups = 1
    while n_groups < max(blocks, n_terms / min(wanted)):
        n_groups *= 2  # a power of two, so that sizes that halve do so to the group
    if n_terms < 2 * n_groups:
        raise InputError(
            f"sizes: {min(wanted):g} of {n_terms:g} terms ask for {n_groups} groups of two samples "
            f"or more; choose sizes from {n_terms / max(n_groups // 4, 1):g} up, or use more data."
        )
    counts = {max(1, round(size * n_groups / n_terms)) for size in wanted} - {n_groups}
    return SampleSizes(n_groups, tuple(sorted(counts)))


def _checked(sizes: Any, n_terms: float) -> list[int]:
    """Return sizes that are numbers of terms of which there are two disjoint parts, or all."""
    found = list(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else [sizes]
    for size in found:
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise InputError(f"sizes: {size!r} is no number of terms; pass whole numbers from 1.")
        if size > n_terms:
            raise InputError(f"sizes: {size} is more than all {n_terms:g} terms; use more data.")
        if n_terms / 2 < size < n_terms:
            raise InputError(
                f"sizes: of {size} terms there is no second part among {n_terms:g}; choose sizes "
                f"up to {n_terms / 2:g}."
            )
    if not any(size < n_terms for size in found):
        raise InputError(f"sizes: there is none below all {n_terms:g} terms; pass one or more.")
    return [int(size) for size in found]
