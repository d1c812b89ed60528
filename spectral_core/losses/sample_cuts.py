"""The axes of samples in a batch, and its loss beside those of the two parts of a cut.

Samples lie along the first axis, unless shapes say more: along an axis in which the batches differ
in size, a loss can be cut as well, as time may come first. Arrays without such an axis, like a mask
that all samples share, belong whole to both parts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from spectral_core.errors import first_line
from spectral_core.losses.terms import BatchLoss, Shapes

__all__ = ["Cut", "Cutter", "SampleAxis", "cut_batches", "find_axes"]

Data = TypeVar("Data")
Pieces = tuple[BatchLoss, BatchLoss, BatchLoss]
"""A batch, and the two parts of it."""


@dataclass(frozen=True)
class Cut:
    """The result of cutting a batch along one axis.

    Parameters
    ----------
    varies : bool
        Whether the batches differ in size along the axis.
    pieces : tuple of BatchLoss, or None
        The batch and its parts, or None if no cut could be made.
    failure : str
        The reason why no cut could be made.
    """

    varies: bool
    pieces: Pieces | None
    failure: str = ""


@dataclass(frozen=True)
class SampleAxis:
    """An axis along which batches can be cut.

    Parameters
    ----------
    axes : tuple of (int or None)
        The axis of each array, or None for an array that belongs whole to each part.
    each : tuple of tuple of int
        The number of indices that one sample has, for each array, by batch. It is above one where
        tokens are flattened.
    sizes : tuple of int
        The number of samples in each batch.
    """

    axes: tuple[int | None, ...]
    each: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]

    @property
    def varies(self) -> bool:
        """Whether batches differ in size."""
        return len(set(self.sizes)) > 1

    def of(self, batch: int) -> "SampleAxis":
        """Return the axis for one of the batches alone."""
        each = tuple((of_one[batch],) for of_one in self.each)
        return SampleAxis(self.axes, each, (self.sizes[batch],))

    def slices(self, array: int, start: int, stop: int) -> tuple[int, slice] | None:
        """Return axis and slice of an array that hold some samples; None if it is not cut."""
        axis, each = self.axes[array], self.each[array][0]
        return None if axis is None else (axis, slice(start * each, stop * each))

    def indices(self, array: int, samples: Sequence[int]) -> tuple[int, list[int]] | None:
        """Return axis and indices of an array that hold some samples; None if it is not cut."""
        axis, each = self.axes[array], self.each[array][0]
        if axis is None:
            return None
        return axis, [each * sample + i for sample in samples for i in range(each)]


@dataclass(frozen=True)
class Cutter(Generic[Data]):
    """The operations of a backend on the data of a loss.

    Parameters
    ----------
    data : callable
        A function: ``data(index)`` returns the data of a batch.
    part : callable
        A function: ``part(data, axis, start, stop)`` returns the data of some of its samples.
    joined : callable
        A function: ``joined(data, data, axis)`` returns the data of the samples of two batches,
        with other axes cropped to the shorter.
    loss : callable
        A function that returns the loss of data.
    """

    data: Callable[[int], Data]
    part: Callable[[Data, SampleAxis, int, int], Data]
    joined: Callable[[Data, Data, SampleAxis], Data]
    loss: Callable[[Data], BatchLoss]


def cut_batches(batches: Sequence[BatchLoss], cutter: Cutter[Data]) -> list[Cut]:
    """Cut a batch in two along each axis that may hold samples, the likeliest first.

    Parameters
    ----------
    batches : sequence of BatchLoss
        The losses of all batches.
    cutter : Cutter
        The object that takes batches apart and computes their losses.
    """
    usable = [i for i, batch in enumerate(batches) if not batch.empty]
    if not usable or not batches[usable[0]].readings:
        return []
    comparable = len({tuple(map(len, batches[i].shapes)) for i in usable}) == 1
    indices = usable if comparable else usable[:1]
    found = find_axes([batches[i].shapes for i in indices])
    return [_cut(ways, indices, cutter, join=place == 0) for place, ways in enumerate(found)]


def find_axes(shapes: Sequence[Shapes]) -> list[list[SampleAxis]]:
    """Return the axes that may hold samples; for each the ways to cut along it, likeliest first."""
    lengths = [
        [tuple(shape[array][axis] for shape in shapes) for axis in range(len(shapes[0][array]))]
        for array in range(len(shapes[0]))
    ]
    firsts = list(dict.fromkeys(of_one[0] for of_one in lengths if of_one))
    if not firsts:
        return []

    def led(sizes: tuple[int, ...]) -> int:
        return sum(bool(of_one) and _each(of_one[0], sizes) is not None for of_one in lengths)

    sizes = max(firsts, key=led)
    ways = [_way(lengths, sizes, *way) for way in ((True, False), (False, False), (False, True))]
    others = {n for of_one in lengths for n in of_one if len(set(n)) > 1 and n != sizes}
    needed = [i for i, _ in enumerate(lengths) if any(way.axes[i] is not None for way in ways)]
    varying = [_way(lengths, n, True, False) for n in sorted(others)]
    varying = [way for way in varying if all(way.axes[i] is not None for i in needed)]
    return [list(dict.fromkeys(ways)), *([way] for way in varying)]


def _way(
    lengths: Sequence[Sequence[tuple[int, ...]]],
    sizes: tuple[int, ...],
    anywhere: bool,
    flattened: bool,
) -> SampleAxis:
    """Return the axes of arrays that have given sizes.

    Parameters
    ----------
    lengths : sequence
        The length of each axis of each array, by batch.
    sizes : tuple of int
        The number of samples by batch.
    anywhere : bool
        Whether the axis need not be the first one.
    flattened : bool
        Whether a sample may have several indices of the axis.
    """
    axes: list[int | None] = []
    each = []
    one = (1,) * len(sizes)
    for of_one in lengths:
        axis = of_one.index(sizes) if anywhere and sizes in of_one else None
        factors = _each(of_one[0], sizes) if of_one and axis is None else None
        if factors == one or (flattened and factors is not None):
            axis = 0
        axes.append(axis)
        each.append(factors if factors is not None and axis is not None else one)
    return SampleAxis(tuple(axes), tuple(each), sizes)


def _each(lengths: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the length over the size for each batch; None if a quotient is no whole number."""
    if lengths == sizes:
        return (1,) * len(sizes)
    divide = all(size > 1 and n % size == 0 for n, size in zip(lengths, sizes, strict=True))
    return tuple(n // size for n, size in zip(lengths, sizes, strict=True)) if divide else None


def _cut(
    ways: Sequence[SampleAxis], indices: Sequence[int], cutter: Cutter[Data], *, join: bool
) -> Cut:
    """Cut the first batch that is large enough; batches of one sample each may be joined."""
    sizes, varies = ways[0].sizes, ways[0].varies
    largest = sorted(range(len(indices)), key=lambda i: -min(sizes[i], 4))
    alone = sizes[largest[0]] > 1
    if not alone and (not join or len(largest) < 2):
        return Cut(varies, None, "no batch has two samples to be told apart")
    failure = ""
    try:
        data = [cutter.data(indices[i]) for i in largest[: 1 if alone else 2]]
        for way in (way.of(largest[0]) for way in ways):
            whole, size = data[0], sizes[largest[0]]
            if not alone:
                whole, size = cutter.joined(data[0], data[1], way), 2
            loss = cutter.loss(whole)  # computed again, as a loader may give other data now
            for middle in _middles(size):
                try:
                    parts = (
                        cutter.part(whole, way, *ends) for ends in ((0, middle), (middle, size))
                    )
                    one, other = map(cutter.loss, parts)
                    return Cut(varies, (loss, one, other))
                except Exception as error:  # the user's code may take one batch size only
                    failure = failure or first_line(error)
    except Exception as error:  # batches that do not fit together
        failure = failure or first_line(error)
    return Cut(varies, None, f"part of a batch raises {failure}")


def _middles(size: int) -> Iterator[int]:
    """Yield positions of a cut: in the middle, or nearby between pairs or groups of four."""
    middle = size // 2
    yield from dict.fromkeys(m for m in (middle, middle - middle % 2, middle - middle % 4) if m)
