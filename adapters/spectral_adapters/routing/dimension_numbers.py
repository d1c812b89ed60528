"""The axes of a parameter that are inputs and outputs; the others count matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, TypeAlias

import array_api_compat

from spectral_core import InputError, MatrixLayout, MatrixSpec, as_matrices

__all__ = [
    "AxisLayout",
    "MatrixAxes",
    "SpectralDimensionNumbers",
    "axes_text",
    "is_axes",
    "layout_of",
]

Array: TypeAlias = Any


class SpectralDimensionNumbers(NamedTuple):
    """Axes that make a parameter a matrix, or a stack of them.

    All axes that are not named count independent matrices: scanned layers, experts.
    `optax.contrib.MuonDimensionNumbers` has the same fields and serves as well.

    Parameters
    ----------
    reduction_axis : int or sequence of int
        The inputs: the axes over which the layer sums. Negative ones count from the end.
    output_axis : int or sequence of int
        The axes of the outputs.

    Examples
    --------
    The kernel of a convolution is (height, width, in, out) in Flax or Haiku, and (out, in, height,
    width) in Equinox or PyTorch. The heads of queries, (in, heads, width), are one matrix or a
    matrix for each head. Scanned layers are (layers, in, out).

    >>> flax = SpectralDimensionNumbers((0, 1, 2), 3)
    >>> equinox = SpectralDimensionNumbers((1, 2, 3), 0)
    >>> heads_as_one = SpectralDimensionNumbers(0, (1, 2))
    >>> head_by_head = SpectralDimensionNumbers(0, 2)
    >>> scanned = SpectralDimensionNumbers(1, 2)
    """

    reduction_axis: int | Sequence[int] = 0
    output_axis: int | Sequence[int] = 1


MatrixAxes: TypeAlias = SpectralDimensionNumbers | MatrixSpec | str
"""The matrices of a parameter: by its axes, or by a spec of `as_matrices`."""


def is_axes(value: object) -> bool:
    """Return whether a value is a `MatrixAxes`, or dimension numbers of Muon."""
    named = hasattr(value, "reduction_axis") and hasattr(value, "output_axis")
    return named or isinstance(value, (MatrixSpec, str))


def layout_of(shape: tuple[int, ...], axes: MatrixAxes) -> "AxisLayout | MatrixLayout":
    """Return the layout by which a parameter of a shape is split into matrices and merged.

    Parameters
    ----------
    shape : tuple of int
        The shape of the parameter.
    axes : MatrixAxes
        Its dimension numbers or spec.

    Raises
    ------
    InputError
        If the two do not fit.
    """
    if isinstance(axes, (MatrixSpec, str)):
        return as_matrices(shape, axes)
    named = [_several(axes.reduction_axis), _several(axes.output_axis)]
    rank = len(shape)
    for name, found in zip(axes._fields, named, strict=True):
        if not found or not all(-rank <= axis < rank for axis in found):
            raise InputError(
                f"{name}: {getattr(axes, name)!r} names no axes of a parameter of shape {shape}; "
                f"pass axes from 0 to {rank - 1}, or None to leave it to AdamW."
            )
    rows, columns = (tuple(axis % rank for axis in found) for found in named)
    if len({*rows, *columns}) < len(rows) + len(columns):
        raise InputError(
            f"reduction_axis and output_axis: {axes.reduction_axis!r} and {axes.output_axis!r} "
            f"share an axis of the shape {shape}; pass different ones."
        )
    if 0 in shape:
        raise InputError(f"shape {shape} has an empty axis; leave this parameter to AdamW.")
    return AxisLayout(shape, rows, columns)


@dataclass(frozen=True)
class AxisLayout:
    """A `MatrixLayout` behind another order of axes, of matrices (inputs, outputs).

    `layout_of` makes it.

    Parameters
    ----------
    shape : tuple of int
        The shape of the parameter.
    rows, columns : tuple of int
        The axes of its inputs and outputs, in the order in which they are flattened.
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @cached_property
    def whole(self) -> MatrixLayout:
        """The layout of the array with the stack's axes first, then one of inputs and outputs."""
        sides = [prod(self.shape[axis] for axis in axes) for axes in (self.rows, self.columns)]
        return as_matrices((*self.stack, *sides), "stack")

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """The shape (B, m, n) of the matrices that `split` returns, in a tuple."""
        return self.whole.matrices

    @property
    def stack(self) -> tuple[int, ...]:
        """The lengths of the axes that count independent matrices."""
        return tuple(self.shape[axis] for axis in self._order[: -len(self.rows + self.columns)])

    @property
    def slices(self) -> tuple[tuple[int, ...], ...]:
        """The slice of the stack that holds each of the matrices that `split` returns."""
        return self.whole.slices

    def split(self, array: Array) -> list[Array]:
        """Return the matrices of an array of the parameter's shape, (B, m, n), in a list."""
        if tuple(array.shape) != self.shape:
            raise InputError(
                f"array: has shape {tuple(array.shape)}; this layout is for {self.shape}."
            )
        xp = array_api_compat.array_namespace(array)
        moved = xp.permute_dims(array, self._order)
        return self.whole.split(xp.reshape(moved, self.whole.shape))

    def merge(self, matrices: list[Array]) -> Array:
        """Return the array that `split` takes apart."""
        whole = self.whole.merge(matrices)
        xp = array_api_compat.array_namespace(whole)
        order = self._order
        back = tuple(order.index(axis) for axis in range(len(order)))
        permuted = xp.reshape(whole, tuple(self.shape[axis] for axis in order))
        return xp.permute_dims(permuted, back)

    @property
    def _order(self) -> tuple[int, ...]:
        named = self.rows + self.columns
        stacked = tuple(axis for axis in range(len(self.shape)) if axis not in named)
        return stacked + named


def axes_text(axes: MatrixAxes) -> str:
    """Return dimension numbers or a spec as a table shows them: ``"0,1,2 → 3"``."""
    if isinstance(axes, (MatrixSpec, str)):
        return str(axes)
    named = (axes.reduction_axis, axes.output_axis)
    return " → ".join(",".join(map(str, _several(axis))) for axis in named)


def _several(axis: int | Sequence[int]) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(axis)
