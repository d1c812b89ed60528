"""A weight matrix as a strided view of the parameter that holds it."""

from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

__all__ = ["MatrixView"]


@dataclass(frozen=True)
class MatrixView:
    """The elements of one parameter that form one ``(m, n)`` matrix.

    A slice of a packed projection, one group of a convolution, a transposed weight: all are views
    of the parameter, so size, strides and offset (in elements of the contiguous parameter) say
    which element goes where. The first `out_axes` axes together count the m outputs, the others
    the n inputs.

    Parameters
    ----------
    size, stride : tuple of int
        Of the view, any number of axes.
    offset : int
        Of its first element.
    out_axes : int
        Number of leading axes that make up m.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    out_axes: int

    @classmethod
    def of(cls, view: Tensor, out_axes: int) -> "MatrixView":
        """Describe `view`, a view of a contiguous parameter (its values are not read)."""
        return cls(tuple(view.shape), view.stride(), int(view.storage_offset()), out_axes)

    @property
    def shape(self) -> tuple[int, int]:
        """Return ``(m, n)``."""
        return prod(self.size[: self.out_axes]), prod(self.size[self.out_axes :])

    @property
    def elements(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Identify the elements whatever the order of axes: equal for a view and its transpose."""
        axes: list[tuple[int, int]] = []
        for step, n in sorted(zip(self.stride, self.size, strict=True)):
            if axes and step == axes[-1][0] * axes[-1][1]:
                axes[-1] = (axes[-1][0], axes[-1][1] * n)
            elif n > 1:
                axes.append((step, n))
        return self.offset, tuple(axes)

    @property
    def extent(self) -> range:
        """Return the range of the parameter from its first element to its last."""
        reach = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return range(self.offset, self.offset + reach + 1)

    def overlaps(self, other: "MatrixView") -> bool:
        """Say whether two matrices of a parameter have elements in common."""
        one, two = self.extent, other.extent
        if self == other or not (one.start < two.stop and two.start < one.stop):
            return self == other
        marks = torch.zeros(max(one.stop, two.stop), dtype=torch.bool)
        marks.as_strided(self.size, self.stride, self.offset).fill_(True)
        return bool(marks.as_strided(other.size, other.stride, other.offset).any())

    @property
    def row_offsets(self) -> list[int]:
        """Say where in the parameter each row begins."""
        return [self.offset + step for step in _offsets(self.size, self.stride, 0, self.out_axes)]

    @property
    def column_offsets(self) -> list[int]:
        """Say how far from its row's beginning each column is."""
        return _offsets(self.size, self.stride, self.out_axes, len(self.size))

    def matrix(self, parameter: Tensor) -> Tensor:
        """Read the matrix, shape ``(m, n)``, out of a tensor of the parameter's shape."""
        flat = parameter.contiguous()
        return flat.as_strided(self.size, self.stride, self.offset).reshape(self.shape)

    def embed(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Lay `matrices`, shape ``(K, m, n)``, into zeros of shape ``(K, *shape)``."""
        count, numel = matrices.shape[0], prod(shape)
        flat = matrices.new_zeros(count, numel)
        target = flat.as_strided((count, *self.size), (numel, *self.stride), self.offset)
        target.copy_(matrices.reshape(count, *self.size))
        return flat.view(count, *shape)


def _offsets(size: tuple[int, ...], stride: tuple[int, ...], first: int, last: int) -> list[int]:
    axes = [[i * stride[axis] for i in range(size[axis])] for axis in range(first, last)]
    return [sum(steps) for steps in product(*axes)]
