"""A weight matrix as a strided box inside the parameter that holds it."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from spectral_core.matrices.strides import ParameterSlice

__all__ = ["MatrixView", "TrackedView", "tracked_root"]

TrackedView = npt.NDArray[np.int8]
"""A view of the array of `tracked_root`: its strides say where elements lie in the parameter."""


def tracked_root(shape: tuple[int, ...]) -> TrackedView:
    """Return the tracked view of a whole parameter: an array whose memory is never touched."""
    return np.empty(shape, np.int8)


@dataclass(frozen=True)
class MatrixView(ParameterSlice):
    """A slice of a parameter that JAX reads and writes as a box in some reshape of it.

    Parameters
    ----------
    size, stride, offset, out_axes
        The fields of `ParameterSlice`.
    parameter : tuple of int
        The shape of the parameter.
    """

    parameter: tuple[int, ...]

    @classmethod
    def of(cls, view: TrackedView, root: TrackedView, out_axes: int) -> "MatrixView":
        """Describe `view`, a view of `root`, the tracked view of the whole parameter."""
        offset = view.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        return cls(view.shape, view.strides, int(offset), out_axes, root.shape)

    @cached_property
    def is_box(self) -> bool:
        """Say whether the elements are a box in some reshape of the parameter."""
        return self._box is not None

    def starts(self, offset: int) -> tuple[int, ...]:
        """Return the first corner of the box of the matrix that begins at `offset`."""
        grid, _ = self._checked_box
        found = []
        for length in reversed(grid):
            offset, start = divmod(offset, length)
            found.append(start)
        return tuple(reversed(found))

    def matrix(self, parameter: jax.Array, starts: Any = None) -> jax.Array:
        """Read the matrix, shape ``(m, n)``, out of an array of the parameter's shape.

        `starts` (may be traced) are those of another matrix of the same family.
        """
        grid, order = self._checked_box
        starts = self.starts(self.offset) if starts is None else starts
        box = lax.dynamic_slice(parameter.reshape(grid), starts, self._extent)
        return box.reshape(self._sorted_size).transpose(order).reshape(self.shape)

    def embed(self, matrix: jax.Array, starts: Any = None) -> jax.Array:
        """Lay a matrix into zeros of the parameter's shape: the transpose of `matrix`."""
        grid, order = self._checked_box
        starts = self.starts(self.offset) if starts is None else starts
        back = np.argsort(np.asarray(order, int))
        box = matrix.reshape(self.size).transpose([int(axis) for axis in back])
        box = box.reshape(self._extent)
        if self._extent == grid:
            return box.reshape(self.parameter)
        whole = jnp.zeros(grid, matrix.dtype)
        return lax.dynamic_update_slice(whole, box, starts).reshape(self.parameter)

    @property
    def _checked_box(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._box is None:
            raise ValueError(f"no box: {self}")
        return self._box

    @property
    def _extent(self) -> tuple[int, ...]:
        return (*(self.size[axis] for axis in self._by_stride if self.size[axis] > 1), 1)

    @property
    def _by_stride(self) -> list[int]:
        return sorted(range(len(self.size)), key=lambda axis: (-self.stride[axis], axis))

    @property
    def _sorted_size(self) -> tuple[int, ...]:
        return tuple(self.size[axis] for axis in self._by_stride)

    @cached_property
    def _box(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return a shape of the parameter in which the view is a box, and the order of its axes."""
        axes = self._by_stride
        strides = [self.stride[axis] for axis in axes if self.size[axis] > 1]
        sizes = [self.size[axis] for axis in axes if self.size[axis] > 1]
        if 0 in self.size or any(step <= 0 for step in strides):
            return None
        total = prod(self.parameter)
        ends, grid = [total, *strides], []
        for end, step, size in zip(ends, strides, sizes, strict=False):
            if end % step or end // step < size:
                return None
            grid.append(end // step)
        grid.append(ends[-1])
        order = tuple(axes.index(axis) for axis in range(len(self.size)))
        first = _unravel(self.offset, tuple(grid))
        reach = zip(first, (*sizes, 1), grid, strict=True)
        return (tuple(grid), order) if all(a + n <= most for a, n, most in reach) else None


def _unravel(offset: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(offset, grid))
