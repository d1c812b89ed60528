"""Gauss-Newton curvature of all layers and directions at once, through the network's outputs.

With J the Jacobian of the outputs in W, every row of J is sent back once, for all samples of a
batch together; at each use of each layer what arrives is projected on the directions and summed
over positions. That gives ``J[u_k v_kᵀ]`` of every sample, and the loss's own second derivative
along it is ``h_k^GGN`` (Theory 5.4), exactly, for any loss of the outputs. The price is that of one
backward pass without weight gradients per output, for all layers together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from spectral_backends.jax.discovery import Layer
from spectral_backends.jax.objective import Batch, Objective
from spectral_backends.jax.parameter_uses import Family
from spectral_backends.jax.sample_search import Samples, find_samples
from spectral_backends.jax.scattered import scattered
from spectral_backends.jax.second_derivatives import second_derivative
from spectral_backends.jax.sizes import largest_value
from spectral_backends.jax.taps import TapRows, tap

__all__ = ["ColumnPass", "ColumnTotals"]

Directions = Mapping[str, tuple[Any, Any]]


@dataclass
class ColumnTotals:
    """Running sums of one layer.

    Parameters
    ----------
    ggn, derivative : ndarray, shape (K,)
        Sums over terms of the quadratic form and of ``<∂l, D_k>``: the latter shows whether every
        use of the weight was seen.
    problem : str
        Why the sums are not the layer's curvature; empty if they are.
    """

    ggn: npt.NDArray[np.float64]
    derivative: npt.NDArray[np.float64]
    problem: str = ""


class ColumnPass:
    """Sends the rows of the outputs' Jacobian back through each batch.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    layers : sequence of Layer
        To measure.
    directions : mapping of str to (u, v)
        By layer: shapes ``(m, K)`` and ``(n, K)``.
    memory_budget : int
        Bytes that what is sent back together may take.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[Layer],
        directions: Directions,
        memory_budget: int,
    ) -> None:
        self._objective, self._directions = objective, directions
        self._names = [layer.info.name for layer in layers]
        self._budget = memory_budget
        counts = {name: directions[name][0].shape[1] for name in self._names}
        self._width = max(counts.values(), default=0)
        self.totals = {
            name: ColumnTotals(np.zeros(count), np.zeros(count)) for name, count in counts.items()
        }

    def run(self, tell: Callable[[int], None]) -> None:
        """Go through the data once; `tell` hears the number of finished batches."""
        for batch, terms in self._objective.weighted():
            layers = [batch.program.layers[name] for name in self._names]
            families = list({id(layer.family): layer.family for layer in layers}.values())
            samples = find_samples(self._objective, batch, families)
            for layer in layers:
                if found := samples[families.index(layer.family)].problem:
                    self.totals[layer.info.name].problem = found
            usable = [
                (family, where)
                for family, where in zip(families, samples, strict=True)
                if not where.problem
            ]
            if usable:
                self._add(batch, layers, usable, terms.scale)
            tell(batch.index + 1)

    def _add(
        self,
        batch: Batch,
        layers: Sequence[Layer],
        families: list[tuple[Family, Samples]],
        scale: float,
    ) -> None:
        key = (batch.key, "columns", self._width, *(id(family) for family, _ in families))
        run = self._objective.compiled(key, lambda: _products(batch, families, self._budget))
        given = [self._stacked(family, layers) for family, _ in families]
        found = run(self._objective.parameters.values, batch.leaves, given)
        tolerance = 1e4 * float(np.finfo(self._objective.parameters.dtype).eps)
        order = [id(family) for family, _ in families]
        for layer in layers:
            if id(layer.family) not in order:
                continue
            ggn, derivative, off = found[order.index(id(layer.family))]
            total = self.totals[layer.info.name]
            count = len(total.ggn)
            total.ggn += scale * np.asarray(ggn, np.float64)[layer.member, :count]
            total.derivative += scale * np.asarray(derivative, np.float64)[layer.member, :count]
            if not float(off) <= tolerance:
                total.problem = "samples of the outputs meet before it"

    def _stacked(self, family: Family, layers: Sequence[Layer]) -> tuple[Any, Any]:
        """Return the directions of all members, zeros for those that are not measured."""
        m, n = family.view.shape
        dtype = self._objective.parameters.dtype
        members = len(family.offsets)
        u = np.zeros((members, m, self._width), dtype)
        v = np.zeros((members, n, self._width), dtype)
        for layer in layers:
            if layer.family is family:
                own_u, own_v = self._directions[layer.info.name]
                u[layer.member, :, : own_u.shape[1]] = own_u
                v[layer.member, :, : own_v.shape[1]] = own_v
        return u, v


def _products(
    batch: Batch, families: list[tuple[Family, Samples]], budget: int
) -> Callable[..., Any]:
    """Return a function of a batch and directions that makes quadratic forms and derivatives."""
    program = batch.program

    def run(values: Any, leaves: Any, directions: Sequence[tuple[Any, Any]]) -> Any:
        tapped = tap(program, values, leaves, [family for family, _ in families])
        z = tapped.outputs
        # Both ways of a use: δ meets u and a meets v, or the other way round in a flipped one.
        projected = []
        for (family, samples), (u, v) in zip(families, directions, strict=True):
            for use, at in zip(family.uses, samples.axes, strict=True):
                rows = TapRows(use, len(z), at)
                left, right = (v, u) if use.flipped else (u, v)
                projected.append((rows, left, rows.project(tapped.kept, right)))

        def arriving(cotangent: Any) -> list[Any]:
            """Return ``(members, B, K)`` for each family."""
            gradients = tapped.back(cotangent)
            each = iter(projected)
            found = []
            for family, _ in families:
                parts = []
                for rows, left, right in (next(each) for _ in family.uses):
                    # u first: what is left is as narrow as there are directions
                    reduced = jnp.einsum("gbsm,gmk->gbsk", rows.outputs(gradients), left)
                    parts.append((reduced * right).sum(2))
                found.append(sum(parts))
            return found

        check = scattered(z.shape, z.dtype, 0)
        rows_of_j, sent = _sent_back(arriving, z, check, budget // largest_value(program.model))

        def loss_of(y: Any) -> Any:
            return program.loss_of([y], leaves)

        gradient = jax.grad(loss_of)(z)
        results = []
        for products, whole in zip(rows_of_j, sent, strict=True):
            # (outputs, members, B, K) to one tangent of the outputs for each member and direction
            tangents = products.transpose(1, 3, 2, 0)
            tangents = tangents.reshape(*tangents.shape[:2], *z.shape)
            form: Any = jax.vmap(jax.vmap(lambda t: second_derivative(loss_of, z, t)))
            over = range(2, tangents.ndim)
            again = (tangents * check).sum(over)
            expected = whole.sum(1)
            size = jnp.maximum(jnp.abs(expected).max(), jnp.abs(products).max())
            off = jnp.abs(again - expected).max() / jnp.maximum(size, np.finfo(z.dtype).tiny)
            results.append((form(tangents), (tangents * gradient).sum(over), off))
        return results

    return run


def _sent_back(
    arriving: Callable[[Any], list[Any]], z: Any, check: Any, together: int
) -> tuple[list[Any], list[Any]]:
    """Send back a one at each output of all samples, and the cotangent `check` at the end."""
    count = prod(z.shape[1:])
    chunk = max(1, min(together, count + 1))
    parts = -(-(count + 1) // chunk)

    def one(index: Any) -> list[Any]:
        unit = (jnp.arange(count) == index).astype(z.dtype).reshape(1, *z.shape[1:])
        return arriving(jnp.where(index == count, check, unit))

    indices = jnp.minimum(jnp.arange(parts * chunk), count).reshape(parts, chunk)
    found = lax.map(jax.vmap(one), indices) if parts > 1 else jax.vmap(one)(indices[0])
    flat = [f.reshape(parts * chunk, *f.shape[(2 if parts > 1 else 1) :]) for f in found]
    return [f[:count] for f in flat], [f[count] for f in flat]
