"""The matrices of layers as slices of the parameters in a dict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array, device_of
from spectral_core.curvature.problem import LayerInfo
from spectral_core.errors import InputError
from spectral_core.matrices.layout import MatrixLayout, MatrixSpec, as_matrices
from spectral_core.matrices.names import ARRAY_ENDING, distinct_name, layer_names

__all__ = ["LayerSlice", "find_slices"]

Matrices = Mapping[str, "str | MatrixSpec | None"]
"""Globs of parameter names to a spec of `as_matrices`, ``"transposed"``, or None for no layer."""


@dataclass(frozen=True)
class LayerSlice:
    """One matrix of a parameter, found by the parameter's layout.

    Parameters
    ----------
    info : LayerInfo
        The layer.
    parameter : str
        Its name.
    layout : MatrixLayout
        The layout of the parameter.
    part, index : int
        The index of the array in ``layout.split``, and the index of the matrix in that array.
    transposed : bool
        Whether the parameter holds inputs × outputs.
    """

    info: LayerInfo
    parameter: str
    layout: MatrixLayout
    part: int
    index: int
    transposed: bool

    def matrix(self, array: Array) -> Array:
        """Return the layer's (m, n) in an array of the parameter's shape."""
        found = self.layout.split(array)[self.part][self.index, :, :]
        xp = array_api_compat.array_namespace(array)
        return xp.matrix_transpose(found) if self.transposed else found

    def embed(self, matrix: Array) -> Array:
        """Return an array of the parameter's shape with the matrix where it belongs, else zero."""
        xp = array_api_compat.array_namespace(matrix)
        matrix = xp.matrix_transpose(matrix) if self.transposed else matrix
        blocks = []
        for part, shape in enumerate(self.layout.matrices):
            zeros = xp.zeros(shape, dtype=matrix.dtype, device=device_of(matrix))
            if part == self.part:
                i = self.index
                zeros = xp.concat([zeros[:i, :, :], matrix[None, ...], zeros[i + 1 :, :, :]])
            blocks.append(zeros)
        return self.layout.merge(blocks)


def find_slices(
    params: Mapping[str, Array], matrices: Matrices | None
) -> tuple[dict[str, LayerSlice], dict[str, str]]:
    """Return the layers in the order of the parameters, and parameters that are none, and why.

    Parameters
    ----------
    params : mapping of str to array
        The parameters by name.
    matrices : mapping, optional
        The matrices of parameters, by globs of names: ``"transposed"`` (inputs × outputs), a spec
        of `as_matrices`, or None for no layer. The first glob that matches counts. Two axes are
        outputs × inputs by default.

    Raises
    ------
    InputError
        If a glob matches nothing, a spec does not fit, or nothing is a layer.
    """
    matrices = dict(matrices or {})
    for pattern in matrices:
        if not any(fnmatchcase(name, pattern) for name in params):
            raise InputError(
                f"matrices: {pattern!r} matches none of the parameters {list(params)[:8]}."
            )
    named = [name for name, array in params.items() if array.ndim >= 2]
    bases = layer_names(named, ARRAY_ENDING)
    slices: dict[str, LayerSlice] = {}
    skipped: dict[str, str] = {}
    for name, base in zip(named, bases, strict=True):
        array = params[name]
        found = [value for key, value in matrices.items() if fnmatchcase(name, key)]
        if found and found[0] is None:
            skipped[name] = "matrices= says that it is no layer"
        elif not found and array.ndim > 2:
            skipped[name] = (
                f"it has {array.ndim} axes of unknown meaning; name its matrices with matrices="
            )
        else:
            spec = found[0] if found else "matrix"
            for own in _slices(name, base, tuple(array.shape), spec, bases):
                slices[own.info.name] = own
    if not slices:
        raise InputError(
            f"params: none of {list(params)[:8]} is a layer; pass weight matrices of two axes, or "
            "name those of others with matrices=."
        )
    return slices, skipped


def _slices(
    name: str, base: str, shape: tuple[int, ...], spec: Any, bases: Sequence[str]
) -> list[LayerSlice]:
    transposed = spec == "transposed"
    layout = as_matrices(shape, "matrix" if transposed else spec)
    kind = {"matrix": "linear"}.get(layout.spec.kind, layout.spec.kind)
    count = sum(batch for batch, _, _ in layout.matrices)
    slices: list[LayerSlice] = []
    for part, (batch, m, n) in enumerate(layout.matrices):
        for index in range(batch):
            number = len(slices)
            own = distinct_name(f"{base}.part{number}", bases) if count > 1 else base
            info = LayerInfo(own, kind, (n, m) if transposed else (m, n), name, number)
            slices.append(LayerSlice(info, name, layout, part, index, transposed))
    return slices
