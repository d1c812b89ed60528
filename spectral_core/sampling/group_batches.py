"""The batches of a group of samples, picked from the user's: the same for every backend."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import Array, to_numpy
from spectral_core.losses.sample_cuts import SampleAxis, find_axes
from spectral_core.sampling.sample_groups import Indices, deal_samples, sample_checksums

__all__ = ["BatchArrays", "GroupBatches", "dealt", "sample_ways"]


@dataclass(frozen=True)
class BatchArrays:
    """How a backend takes batches apart and puts them together.

    Parameters
    ----------
    leaves : callable
        A function that returns the arrays of a batch, always in the same order.
    replaced : callable
        ``replaced(batch, arrays)`` returns a batch of the same form with other arrays.
    """

    leaves: Callable[[Any], list[Array]]
    replaced: Callable[[Any, list[Array]], Any]


def sample_ways(batches: Iterable[Any], arrays: BatchArrays) -> list[SampleAxis | None]:
    """Return the ways in which samples may lie in the batches, the likeliest first.

    The last one, None, takes whole batches as samples.
    """
    shapes = [[tuple(array.shape) for array in arrays.leaves(batch)] for batch in batches]
    alike = len({tuple(map(len, of_one)) for of_one in shapes}) == 1
    found = find_axes(shapes) if alike and shapes[0] else []
    return [*(way for ways in found for way in ways), None]


def dealt(
    batches: Iterable[Any], arrays: BatchArrays, way: SampleAxis | None, count: int
) -> list[Indices]:
    """Return the samples of each group.

    Raises
    ------
    InputError
        If there are too few samples.
    """
    checksums = []
    for number, batch in enumerate(batches):
        parts = [
            _bytes(array, way, number, place) for place, array in enumerate(arrays.leaves(batch))
        ]
        checksums.append(sample_checksums([part for part in parts if part is not None]))
    return deal_samples(checksums, count)


class GroupBatches:
    """The batches of the samples of a group, put together to the size of the user's batches.

    Parameters
    ----------
    dataset : iterable
        The user's batches.
    arrays : BatchArrays
        The way of taking them apart.
    way : SampleAxis or None
        The axis of samples in each array. None takes batches whole, as samples.
    indices : list of list of int
        The samples of the group, by batch.
    """

    def __init__(
        self,
        dataset: Iterable[Any],
        arrays: BatchArrays,
        way: SampleAxis | None,
        indices: Indices,
    ) -> None:
        self.dataset, self._arrays, self._way, self._indices = dataset, arrays, way, indices

    @property
    def n_samples(self) -> int:
        """Return the number of the group's samples."""
        return sum(map(len, self._indices))

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        if self._way is None:
            yield from (b for b, i in zip(self.dataset, self._indices, strict=True) if i)
            return
        most = max(self._way.sizes)
        held: list[list[Array]] = []
        size, form = 0, None
        for number, (batch, samples) in enumerate(zip(self.dataset, self._indices, strict=True)):
            if not samples:
                continue
            part = _picked(self._arrays.leaves(batch), self._way.of(number), samples)
            if held and (size + len(samples) > most or not _alike(held[0], part, self._way)):
                yield self._joined(form, held)
                held, size = [], 0
            form = batch if not held else form
            held.append(part)
            size += len(samples)
        if held:
            yield self._joined(form, held)

    def _joined(self, form: Any, parts: list[list[Array]]) -> Any:
        """Return parts of batches as one batch of the form of the first."""
        assert self._way is not None
        whole = [
            of_one[0] if axis is None or len(parts) == 1 else _concatenated(of_one, axis)
            for axis, of_one in zip(self._way.axes, zip(*parts, strict=True), strict=True)
        ]
        return self._arrays.replaced(form, whole)


def _bytes(
    array: Array, way: SampleAxis | None, batch: int, place: int
) -> npt.NDArray[np.uint8] | None:
    """Return the bytes of each sample of an array, (samples, bytes); None if it is not cut."""
    host = to_numpy(array)
    if way is None:
        return _as_bytes(host).reshape(1, -1)
    axis = way.axes[place]
    if axis is None:
        return None
    return _as_bytes(np.moveaxis(host, axis, 0)).reshape(way.sizes[batch], -1)


def _as_bytes(host: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8)


def _picked(leaves: Sequence[Array], way: SampleAxis, samples: Sequence[int]) -> list[Array]:
    """Return the arrays of some samples."""
    found = []
    for place, array in enumerate(leaves):
        if (where := way.indices(place, samples)) is None:
            found.append(array)
            continue
        axis, indices = where
        xp = array_api_compat.array_namespace(array)
        device = array_api_compat.device(array)
        places = xp.asarray(indices, dtype=xp.int64, device=device)
        found.append(xp.take(array, places, axis=axis))
    return found


def _alike(one: Sequence[Array], other: Sequence[Array], way: SampleAxis) -> bool:
    """Return whether parts of two batches differ in their samples alone."""
    return all(
        _same(a, b)
        if axis is None
        else a.dtype == b.dtype and _without(a.shape, axis) == _without(b.shape, axis)
        for axis, a, b in zip(way.axes, one, other, strict=True)
    )


def _same(one: Array, other: Array) -> bool:
    return one is other or (
        one.shape == other.shape
        and one.dtype == other.dtype
        and np.array_equal(to_numpy(one), to_numpy(other))
    )


def _without(shape: Sequence[int], axis: int) -> list[int]:
    return [size for i, size in enumerate(shape) if i != axis]


def _concatenated(parts: Sequence[Array], axis: int) -> Array:
    return array_api_compat.array_namespace(parts[0]).concat(list(parts), axis=axis)
