"""Division of samples into groups, by what the samples hold: the same for every backend."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from spectral_core.curvature.problem import CurvatureProblem, SampleGroup
from spectral_core.errors import InputError, first_line

__all__ = ["Indices", "check_group_count", "deal_samples", "groups_of", "sample_checksums"]

Indices = list[list[int]]
"""The samples of a group: their indices, batch by batch."""

FEWEST = 4
"""The fewest groups: of quarters of the data there are four."""


def check_group_count(count: Any) -> None:
    """Raise `InputError` unless `count` is a number of groups."""
    if isinstance(count, bool) or not isinstance(count, int) or count < FEWEST:
        raise InputError(
            f"sampling: {count!r} is no number of groups; pass a whole number of {FEWEST} or more, "
            "or None."
        )


def sample_checksums(parts: Sequence[npt.NDArray[np.uint8]]) -> list[int]:
    """Return a checksum of each sample of a batch.

    Parameters
    ----------
    parts : sequence of ndarray, shape (samples, bytes), uint8
        The bytes of each array of the batch that has an axis of samples.
    """
    found = []
    for rows in zip(*parts, strict=True):
        digest = blake2b(digest_size=8)
        for row in rows:
            digest.update(row.tobytes())
        found.append(int.from_bytes(digest.digest(), "big"))
    return found


def deal_samples(checksums: Sequence[Sequence[int]], count: int) -> list[Indices]:
    """Deal samples to groups in turn, in the order of their checksums.

    That is a random order, whatever order the data have, and equal samples take equal places. So
    a group does not depend on how samples lie in batches.

    Parameters
    ----------
    checksums : sequence of sequences of int
        The checksum of each sample, by batch.
    count : int
        The number of groups.

    Returns
    -------
    list of list of list of int
        For each group, by batch, the indices of its samples.

    Raises
    ------
    InputError
        If there are fewer than two samples for each group.
    """
    places = [(c, batch, i) for batch, of_one in enumerate(checksums) for i, c in enumerate(of_one)]
    if len(places) < 2 * count:
        raise InputError(
            f"sampling: {len(places)} samples are too few for {count} groups of at least two; use "
            "more data or fewer groups."
        )
    groups: list[Indices] = [[[] for _ in checksums] for _ in range(count)]
    for rank, (_, batch, index) in enumerate(sorted(places)):
        groups[rank % count][batch].append(index)
    for group in groups:
        for indices in group:
            indices.sort()
    return groups


def groups_of(
    loss: float,
    ways: Sequence[Callable[[], Sequence[tuple[CurvatureProblem, float, float]]]],
    eps: float,
) -> list[SampleGroup]:
    """Return the groups of the first way of dividing the data that the loss bears out.

    Parameters
    ----------
    loss : float
        The mean loss over all terms.
    ways : sequence of callables
        Each returns, for every group, its problem, its number of terms and its mean loss.
    eps : float
        The relative precision of losses.

    Raises
    ------
    InputError
        If none is borne out: the mean over the groups is not the loss.
    """
    reasons = []  # the likeliest way has the first word
    for way in ways:
        try:
            found = way()
        except InputError as error:
            reasons.append(str(error).removeprefix("sampling: ").rstrip("."))
            continue
        except Exception as error:  # the user's code may take whole batches only
            reasons.append(f"a part of the data raises {first_line(error)}")
            continue
        total = sum(terms for _, terms, _ in found)
        shares = [terms / total if total else 0.0 for _, terms, _ in found]
        if not all(shares):
            reasons.append("a group has no term that counts")
            continue
        parts = [share * of_one for share, (*_, of_one) in zip(shares, found, strict=True)]
        off, size = abs(sum(parts) - loss), sum(map(abs, parts))
        if isfinite(off) and off <= eps**0.5 * size:
            return [
                SampleGroup(problem, share)
                for share, (problem, *_) in zip(shares, found, strict=True)
            ]
        reasons.append(
            f"the mean over groups of samples, {sum(parts):.6g}, is not that of all, {loss:.6g}"
        )
    raise InputError(
        f"sampling: the samples cannot be divided into groups: {reasons[0]}. Pass batches of "
        "arrays with one axis of samples, or sampling=None."
    )
