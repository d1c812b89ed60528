"""The matrices inside a parameter: convolutions, fused projections, heads, stacks of layers."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import accumulate
from math import prod
from numbers import Integral
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError

__all__ = ["MatrixLayout", "MatrixSpec", "as_matrices"]

KINDS = ("matrix", "conv", "conv-transpose", "conv-last")
_LEAST_AXES = {"matrix": 2, "conv": 3, "conv-transpose": 3, "conv-last": 3}
_SHORTHANDS = "'matrix', 'conv', 'conv-transpose', 'conv-last', 'qkv', 'stack'"


@dataclass(frozen=True)
class MatrixSpec:
    """The rule by which a parameter is made of matrices.

    Parameters
    ----------
    kind : {"matrix", "conv", "conv-transpose", "conv-last"}
        The layout of the parameter without its leading `stack` axes:

        ==================== =============================== ===================================
        kind                 parameter                       each matrix
        ==================== =============================== ===================================
        ``"matrix"``         (m, n), either way round        (m, n)
        ``"conv"``           (out, in / groups, kernel …)    (out / groups, in / groups · kernel)
        ``"conv-transpose"`` (in, out / groups, kernel …)    (out / groups, in / groups · kernel)
        ``"conv-last"``      (kernel …, in / groups, out)    (out / groups, kernel · in / groups)
        ==================== =============================== ===================================
    stack : int
        The number of leading axes that count independent layers: experts, scanned blocks.
    groups : int
        The number of groups of a convolution. Each group is a matrix.
    rows, columns : int or tuple of int
        The blocks into which rows and columns are cut: their number if all have one size, or their
        sizes. Fused queries, keys and values are ``rows=3``, for grouped queries
        ``rows=(q, k, v)``, with the heads apart ``rows=3 * heads``; heads of the output projection
        are ``columns=heads``.

    Raises
    ------
    InputError
        If a value is out of range.

    Notes
    -----
    ``str(spec)`` is a short text, ``"conv groups=4"`` or ``"matrix stack=1 rows=512,128,128"``,
    which `parse` reads back.

    Examples
    --------
    >>> import spectral_core as sc
    >>> spec = sc.MatrixSpec.parse("conv groups=4")
    >>> spec.kind, spec.groups, str(spec)
    ('conv', 4, 'conv groups=4')
    """

    kind: str = "matrix"
    stack: int = 0
    groups: int = 1
    rows: int | tuple[int, ...] = 1
    columns: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in KINDS:
            raise InputError(f"kind: {self.kind!r} is none of {', '.join(KINDS)}.")
        if not _is_count(self.stack, 0):
            raise InputError(f"stack: {self.stack!r} is not a number of leading axes.")
        if not _is_count(self.groups, 1) or (self.groups > 1 and self.kind == "matrix"):
            raise InputError(
                f"groups: {self.groups!r} of kind {self.kind!r}; groups are those of a "
                "convolution, a positive number (cut a matrix with rows= or columns=)."
            )
        for name in ("rows", "columns"):
            blocks = getattr(self, name)
            sizes = blocks if isinstance(blocks, tuple) else (blocks,)
            if not sizes or not all(_is_count(size, 1) for size in sizes):
                raise InputError(
                    f"{name}: {blocks!r} is no number of blocks; pass for instance 3, or their "
                    "sizes as a tuple."
                )

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        words = [self.kind]
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if value != option.default:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words.append(f"{option.name}={text}{_lone_comma(value)}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> "MatrixSpec":
        """Read a text such as ``"conv groups=4"``; ``"qkv"`` stands for ``"matrix rows=3"``.

        Raises
        ------
        InputError
            If the text is not understood.
        """
        if not isinstance(text, str):
            raise InputError(f"spec: a {type(text).__name__} is no text; write for instance 'qkv'.")
        kind, *words = text.split() or [""]
        options: dict[str, int | tuple[int, ...]] = {"rows": 3} if kind == "qkv" else {}
        try:
            for word in words:
                name, value = word.split("=")
                sizes = tuple(int(size) for size in value.split(",") if size)
                options[name] = sizes if "," in value else sizes[0]
            if len({word.split("=")[0] for word in words}) < len(words):
                raise ValueError("an option is there twice")
            return cls("matrix" if kind == "qkv" else kind, **options)  # type: ignore[arg-type]
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"spec: {text!r} is not understood ({error}); write for instance {_SHORTHANDS}, "
                "'conv groups=4' or 'matrix rows=512,128,128'."
            ) from error


@dataclass(frozen=True)
class MatrixLayout:
    """The matrices of a parameter of a given shape; see `as_matrices`.

    Parameters
    ----------
    shape : tuple of int
        The shape of the parameter.
    spec : MatrixSpec
        The rule by which the parameter is made of matrices.

    Examples
    --------
    >>> import spectral_core as sc
    >>> sc.as_matrices((16, 3, 5, 5), "conv").matrices
    ((1, 16, 75),)
    >>> sc.as_matrices((12, 6, 4), "stack").stack
    (12,)
    """

    shape: tuple[int, ...]
    spec: MatrixSpec

    def __post_init__(self) -> None:
        if not isinstance(self.spec, MatrixSpec):
            raise InputError(
                f"spec: {self.spec!r} is neither a MatrixSpec nor its text; write for instance "
                f"{_SHORTHANDS}."
            )
        if not isinstance(self.shape, tuple) or not all(_is_count(n, 0) for n in self.shape):
            raise InputError(
                f"shape: {self.shape!r} is no tuple of lengths; pass that of the parameter."
            )
        spec, axes = self.spec, len(self.shape) - self.spec.stack
        if axes < _LEAST_AXES[spec.kind] or (spec.kind == "matrix" and axes > 2):
            needed = "2 axes" if spec.kind == "matrix" else "3 or more axes"
            self._refuse(f"{needed} are needed behind {spec.stack} leading ones")
        if 0 in self.shape:
            self._refuse("an axis is empty")
        if self.shape[self._grouped_axis] % spec.groups:
            self._refuse(f"axis {self._grouped_axis} does not divide into {spec.groups} groups")
        _, height, width = self._whole
        for name, length in (("rows", height), ("columns", width)):
            blocks = getattr(spec, name)
            if (sum(blocks) if isinstance(blocks, tuple) else length - length % blocks) != length:
                self._refuse(f"its matrices have {length} {name}, which are not cut so")

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """The shapes (B, m, n) of the arrays that `split` returns."""
        batch = self._whole[0]
        return tuple((batch * len(at), *shape) for shape, at in self._blocks().items())

    @property
    def stack(self) -> tuple[int, ...]:
        """The lengths of the leading axes that count independent layers."""
        return self.shape[: self.spec.stack]

    @property
    def slices(self) -> tuple[tuple[int, ...], ...]:
        """The slice of the stack for each of the matrices that `split` returns."""
        own = [index for index in range(prod(self.stack)) for _ in range(self.spec.groups)]
        return tuple(tuple(own * len(at)) for at in self._blocks().values())

    def split(self, array: Array) -> list[Array]:
        """Return the matrices of an array of the parameter's shape.

        Parameters
        ----------
        array : array
            An array of any Array API library and dtype, which may be traced.

        Returns
        -------
        list of array, each of shape (B, m, n)
            The matrices. Blocks of one shape share an array: block by block, rows first, each with
            all its layers and groups. Shapes come in the order in which they are met.

        Raises
        ------
        InputError
            If `array` is no array, or has another shape.
        """
        array = _checked("array", array)
        if tuple(array.shape) != self.shape:
            raise InputError(
                f"array: has shape {tuple(array.shape)}; this layout is for {self.shape}."
            )
        xp = array_api_compat.array_namespace(array)
        unfolded, order = self._unfolding
        whole = xp.permute_dims(xp.reshape(array, unfolded), order)
        whole = xp.reshape(whole, self._whole)
        found = []
        for (m, n), places in self._blocks().items():
            blocks = [whole[:, row : row + m, column : column + n] for row, column in places]
            found.append(xp.concat(blocks, axis=0) if len(blocks) > 1 else blocks[0])
        return found

    def merge(self, matrices: list[Array]) -> Array:
        """Return the array of the parameter's shape that `split` takes apart.

        Parameters
        ----------
        matrices : list of array
            The matrices in the order and the shapes of `split`.

        Raises
        ------
        InputError
            If `matrices` are no arrays of one library, or have another number or shape.
        """
        if not isinstance(matrices, (list, tuple)):
            raise InputError(
                f"matrices: a {type(matrices).__name__} was passed; pass the list from split."
            )
        matrices = [_checked("matrices", array) for array in matrices]
        shapes = tuple(tuple(array.shape) for array in matrices)
        if shapes != self.matrices:
            raise InputError(
                f"matrices: have shapes {list(shapes)}; this layout is for {list(self.matrices)}."
            )
        try:
            xp = array_api_compat.array_namespace(*matrices)
        except TypeError as error:
            raise InputError(
                f"matrices: are arrays of different libraries ({error}); convert them to one."
            ) from error
        batch = self._whole[0]
        blocks = {}
        for array, places in zip(matrices, self._blocks().values(), strict=True):
            for i, place in enumerate(places):
                blocks[place] = array[i * batch : (i + 1) * batch, :, :]
        rows, columns = self._starts
        bands = [_joined(xp, [blocks[row, column] for column in columns], 2) for row in rows]
        unfolded, order = self._unfolding
        permuted = xp.reshape(_joined(xp, bands, 1), tuple(unfolded[axis] for axis in order))
        back = tuple(order.index(axis) for axis in range(len(order)))
        return xp.reshape(xp.permute_dims(permuted, back), self.shape)

    @property
    def _grouped_axis(self) -> int:
        return len(self.shape) - 1 if self.spec.kind == "conv-last" else self.spec.stack

    @property
    def _unfolding(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A shape, and the order of its axes that has layers, groups, rows, columns."""
        groups, layers = self.spec.groups, prod(self.shape[: self.spec.stack])
        first, *rest = self.shape[self.spec.stack :]
        if self.spec.kind == "conv-transpose":
            unfolded = (layers, groups, first // groups, rest[0], prod(rest[1:]))
            return unfolded, (0, 1, 3, 2, 4)
        if self.spec.kind == "conv-last":
            columns, last = first * prod(rest[:-1]), rest[-1]
            return (layers, columns, groups, last // groups), (0, 2, 3, 1)
        return (layers, groups, first // groups, prod(rest)), (0, 1, 2, 3)

    @property
    def _whole(self) -> tuple[int, int, int]:
        """Shape (layers · groups, rows, columns) before rows and columns are cut."""
        unfolded, order = self._unfolding
        layers, groups, height, *width = (unfolded[axis] for axis in order)
        return layers * groups, height, prod(width)

    @property
    def _starts(self) -> tuple[list[int], list[int]]:
        """The offsets at which blocks begin, along rows and along columns."""
        _, height, width = self._whole
        return _starts(_sizes(height, self.spec.rows)), _starts(_sizes(width, self.spec.columns))

    def _blocks(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Return where the blocks of each shape (m, n) begin."""
        _, height, width = self._whole
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        rows, columns = self._starts
        for row, m in zip(rows, _sizes(height, self.spec.rows), strict=True):
            for column, n in zip(columns, _sizes(width, self.spec.columns), strict=True):
                found.setdefault((m, n), []).append((row, column))
        return found

    def _refuse(self, reason: str) -> None:
        raise InputError(
            f"shape {self.shape} does not fit the spec '{self.spec}': {reason}; pass the spec of "
            "this parameter."
        )


def as_matrices(shape: tuple[int, ...], spec: MatrixSpec | str = "matrix") -> MatrixLayout:
    """Return how a parameter is split into independent matrices and merged again.

    Parameters
    ----------
    shape : tuple of int
        The shape of the parameter.
    spec : MatrixSpec or str
        The rule by which the parameter is made of matrices. A text is read by `MatrixSpec.parse`;
        ``"stack"`` takes all axes but the last two as layers.

    Returns
    -------
    MatrixLayout
        The layout, for which ``merge(split(x))`` is x, bit for bit.

    Raises
    ------
    InputError
        If the shape is no sequence of lengths, the spec is not understood, or the two do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> layout = sc.as_matrices((6, 4), "qkv")
    >>> parts = layout.split(np.arange(24.0).reshape(6, 4))
    >>> [part.shape for part in parts]
    [(3, 2, 4)]
    >>> layout.merge(parts).shape
    (6, 4)
    """
    lengths: tuple[Any, ...] = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not all(_is_count(length, 0) for length in lengths):
        raise InputError(f"shape: {shape!r} is no tuple of lengths; pass that of the parameter.")
    shape = tuple(map(int, lengths))
    if isinstance(spec, str):
        if spec == "stack":
            spec = MatrixSpec(stack=max(len(shape) - 2, 0))
        else:
            spec = MatrixSpec.parse(spec)
    return MatrixLayout(shape, spec)


def matrices_of(
    name: str, shape: tuple[int, ...], matrices: MatrixSpec | str | None
) -> MatrixLayout | None:
    """Return the layout of an argument by its `matrices=`; None for (m, n) and (B, m, n).

    Raises
    ------
    InputError
        If the two do not fit, or nothing says which of more than three axes make a matrix.
    """
    if matrices is not None:
        try:
            return as_matrices(shape, matrices)
        except InputError as error:
            raise InputError(f"matrices: {error}") from error
    if len(shape) < 2 or 0 in shape[-2:]:
        raise InputError(
            f"{name}: has shape {shape}; pass a matrix (m, n) or a batch (B, m, n) of them (leave "
            "vectors to another optimizer)."
        )
    if len(shape) > 3:
        raise InputError(
            f"{name}: has shape {shape}, of which any two axes may be those of a matrix; say which "
            "by matrices=: 'conv' for a kernel (out, in, …), 'conv-last' for (…, in, out), 'stack' "
            "where all axes but the last two count matrices, or another spec of as_matrices."
        )
    return None


def _sizes(length: int, blocks: int | tuple[int, ...]) -> tuple[int, ...]:
    return blocks if isinstance(blocks, tuple) else (length // blocks,) * blocks


def _starts(sizes: tuple[int, ...]) -> list[int]:
    return [0, *accumulate(sizes[:-1])]


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _checked(name: str, array: Any) -> Array:
    array = plain(name, array)
    if not array_api_compat.is_array_api_obj(array):
        raise InputError(f"{name}: a {type(array).__name__} is no array; pass an array.")
    return array


def _lone_comma(value: object) -> str:
    return "," if isinstance(value, tuple) and len(value) == 1 else ""


def _joined(xp: Any, arrays: list[Array], axis: int) -> Array:
    """Return arrays joined along an axis; a single one as it is, without a copy."""
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=axis)
