"""Rules for a curvature along directions; each is a total over batches and a final step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import array_api_compat

from spectral_backends.arrays.gradient_function import NO_BATCH
from spectral_backends.arrays.layer_slices import LayerSlice
from spectral_backends.arrays.rows import Rows, ggn_along
from spectral_core.arrays.namespace import Array
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError, LayerError

__all__ = [
    "AlongFunction",
    "CurvatureRule",
    "Found",
    "NoGaussNewton",
    "ProductFunction",
    "RowsFunction",
    "called",
]


@dataclass(frozen=True)
class Found:
    """Curvatures (K,), the derivatives along the directions, and an error estimate; or None."""

    values: Array
    derivative: Array | None = None
    error: Array | None = None


class CurvatureRule(Protocol):
    """One way to ``<D_k, H[D_k]>``."""

    name: str

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Return numbers of shape (R, K) that are means over the batch's terms."""

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return the curvatures, made of the means over all terms."""


class AlongFunction:
    """The user's ``curvature(layer, u, v[, batch])``."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Return the curvatures, shape (1, K)."""
        found = plain(self.name, called(self._function, (layer.info.name, u, v), batch))
        if tuple(getattr(found, "shape", ())) != (u.shape[1],):
            raise InputError(
                f"{self.name}: returned shape {tuple(getattr(found, 'shape', ()))} for "
                f"{u.shape[1]} directions of {layer.info.name!r}; return ({u.shape[1]},)."
            )
        return found[None, :]

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return them as they are."""
        return Found(means[0, :])


class ProductFunction:
    """The user's ``hvp(layer, direction[, batch])``, a direction at a time."""

    name = "hvp"

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def product(self, layer: LayerSlice, matrix: Array, batch: Any) -> Array:
        """Return the layer's part of H[D], shape (m, n)."""
        direction = layer.embed(matrix)
        found = plain(self.name, called(self._function, (layer.info.name, direction), batch))
        if tuple(getattr(found, "shape", ())) != tuple(direction.shape):
            raise InputError(
                f"hvp: returned shape {tuple(getattr(found, 'shape', ()))} for a direction of "
                f"shape {tuple(direction.shape)} in {layer.parameter!r}; return that shape."
            )
        return layer.matrix(found)

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Return the curvatures, shape (1, K)."""
        xp = array_api_compat.array_namespace(u)
        values = []
        for k in range(u.shape[1]):
            matrix = u[:, k][:, None] * v[:, k][None, :]
            values.append(xp.sum(matrix * self.product(layer, matrix, batch)))
        return xp.stack(values)[None, :]

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return them as they are."""
        return Found(means[0, :])


class RowsFunction:
    """Gauss-Newton curvatures of the rows that the user's ``rows(layer[, batch])`` returns."""

    name = "rows"

    def __init__(self, function: Callable[..., Rows]) -> None:
        self._function = function

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Return ``h^GGN``, shape (1, K)."""
        rows: Rows = called(self._function, (layer.info.name,), batch)
        if rows.root_gradients is None:
            raise LayerError(
                layer.info.name, "no Gauss-Newton curvature without root_gradients in its rows."
            )
        return (ggn_along(rows, u, v) / rows.n_terms)[None, :]

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return them as they are."""
        return Found(means[0, :])


class NoGaussNewton:
    """The rule of a problem that has no rule for ``h^GGN``."""

    name = "ggn"

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Refuse, with the remedy."""
        raise LayerError(
            layer.info.name, "no Gauss-Newton curvature without ggn= or rows=; pass one."
        )

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return them as they are."""
        return Found(means)


def called(function: Callable[..., Any], arguments: tuple[Any, ...], batch: Any) -> Any:
    """Call a user's function, with the batch if there is one."""
    return function(*arguments) if batch is NO_BATCH else function(*arguments, batch)
