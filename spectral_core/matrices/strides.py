"""A matrix as a strided slice of the parameter that holds it: sizes, steps and offsets."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod

__all__ = ["ParameterSlice"]

Axes = tuple[tuple[int, int], ...]
"""Lengths and steps of axes, with those that are one in memory joined."""


@dataclass(frozen=True)
class ParameterSlice:
    """The elements of one parameter that form one ``(m, n)`` matrix.

    It may be a slice of a packed projection, one group of a convolution, a transposed weight or one
    block of a stack. Size, strides and offset (in elements of the parameter in C order) say which
    element goes where. The first `out_axes` axes together count the m outputs, the others the n
    inputs.

    Parameters
    ----------
    size, stride : tuple of int
        The lengths and steps of its axes, any number of them.
    offset : int
        The offset of its first element.
    out_axes : int
        The number of leading axes that make up m.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    out_axes: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return ``(m, n)``."""
        return prod(self.size[: self.out_axes]), prod(self.size[self.out_axes :])

    @property
    def order(self) -> tuple[Axes, Axes]:
        """Return the order of outputs and inputs: equal for slices that read in the same order."""
        axes = list(zip(self.size, self.stride, strict=True))
        return _joined(axes[: self.out_axes]), _joined(axes[self.out_axes :])

    @property
    def elements(self) -> tuple[int, Axes]:
        """Return a key of the elements in any order: equal for a slice and its transpose."""
        axes = zip(self.size, self.stride, strict=True)
        return self.offset, _joined(sorted(axes, key=lambda axis: (-axis[1], axis[0])))

    @property
    def extent(self) -> range:
        """Return the range of the parameter from its first element to its last."""
        reach = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return range(self.offset, self.offset + reach + 1)

    @property
    def row_offsets(self) -> list[int]:
        """Return the offset in the parameter at which each row begins."""
        return [self.offset + step for step in self._steps(range(self.out_axes))]

    @property
    def column_offsets(self) -> list[int]:
        """Return the distance of each column from the beginning of its row."""
        return self._steps(range(self.out_axes, len(self.size)))

    def _steps(self, axes: Iterable[int]) -> list[int]:
        """Return the distance of each element along some axes from the first."""
        steps = [[i * self.stride[axis] for i in range(self.size[axis])] for axis in axes]
        return [sum(each) for each in product(*steps)]


def _joined(axes: Iterable[tuple[int, int]]) -> Axes:
    """Join neighbours (size, step) that are one axis, and leave out those of one element."""
    found: list[tuple[int, int]] = []
    for size, step in axes:
        if size == 1:
            continue
        if found and found[-1][1] == size * step:
            found[-1] = (found[-1][0] * size, step)
        else:
            found.append((size, step))
    return tuple(found)
