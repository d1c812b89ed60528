"""Where the matrices of layers lie in a dict of parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array, device_of
from spectral_core.curvature.problem import LayerInfo
from spectral_core.errors import InputError
from spectral_core.matrices.layout import MatrixLayout, MatrixSpec, as_matrices

__all__ = ["Place", "find_places"]

Matrices = Mapping[str, "str | MatrixSpec | None"]
"""Globs of parameter names to a spec of `as_matrices`, ``"transposed"``, or None for no layer."""


@dataclass(frozen=True)
class Place:
    """One matrix in a parameter.

    Parameters
    ----------
    info : LayerInfo
        The layer.
    parameter : str
        Its name.
    layout : MatrixLayout
        Of the parameter.
    part, index : int
        Which array of ``layout.split``, and which of its matrices.
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
        """Return an array of the parameter's shape with the matrix in its place, else zero."""
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


def find_places(
    params: Mapping[str, Array], matrices: Matrices | None
) -> tuple[dict[str, Place], dict[str, str]]:
    """Return the layers in the order of the parameters, and those that are none with the reason.

    Parameters
    ----------
    params : mapping of str to array
        By name.
    matrices : mapping, optional
        Globs of names to ``"transposed"`` (inputs × outputs), a spec of `as_matrices`, or None for
        no layer; the first that matches counts. Two axes are outputs × inputs by default.

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
    places: dict[str, Place] = {}
    skipped: dict[str, str] = {}
    for name, array in params.items():
        if array.ndim < 2:
            continue
        found = [value for key, value in matrices.items() if fnmatchcase(name, key)]
        if found and found[0] is None:
            skipped[name] = "matrices= says that it is no layer"
        elif not found and array.ndim > 2:
            skipped[name] = (
                f"it has {array.ndim} axes of unknown meaning; name its matrices with matrices="
            )
        else:
            for place in _places(name, tuple(array.shape), found[0] if found else "matrix"):
                places[place.info.name] = place
    if not places:
        raise InputError(
            f"params: none of {list(params)[:8]} is a layer; pass weight matrices of two axes, or "
            "name those of others with matrices=."
        )
    return places, skipped


def _places(name: str, shape: tuple[int, ...], spec: Any) -> list[Place]:
    transposed = spec == "transposed"
    layout = as_matrices(shape, "matrix" if transposed else spec)
    base = name.removesuffix(".weight") or name
    kind = {"matrix": "linear"}.get(layout.spec.kind, layout.spec.kind)
    count = sum(batch for batch, _, _ in layout.matrices)
    places: list[Place] = []
    for part, (batch, m, n) in enumerate(layout.matrices):
        for index in range(batch):
            own = f"{base}.part{len(places)}" if count > 1 else base
            info = LayerInfo(own, kind, (n, m) if transposed else (m, n))
            places.append(Place(info, name, layout, part, index, transposed))
    return places
