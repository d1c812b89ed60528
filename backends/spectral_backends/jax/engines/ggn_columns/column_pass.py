"""Gauss-Newton curvature of all layers and directions at once, through the network's outputs.

With J the Jacobian of the outputs in W, every row of J is sent back once, for all samples of a
batch together; at each use of each layer what arrives is projected on the directions and summed
over positions. That gives ``J[u_k v_kᵀ]`` of every sample, and the loss's own second derivative
along it is ``h_k^GGN`` (Theory 5.4), exactly, for any loss of the outputs. The price is that of one
backward pass without weight gradients per output, for all layers together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from spectral_backends.jax.capture.layer_io import RowsBySample, run_with_probes
from spectral_backends.jax.capture.sample_axes import Samples, find_samples
from spectral_backends.jax.jaxprs.scattered import scattered
from spectral_backends.jax.jaxprs.second_derivative import second_derivative
from spectral_backends.jax.jaxprs.sizes import largest_value
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.layers.families import Family
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.program import Program

__all__ = ["ColumnPass", "ColumnTotals"]

LEAST_CHUNK = 16
"""Outputs that are sent back together at least, so that the forward pass does not matter."""

Directions = Mapping[str, tuple[Any, Any]]


@dataclass
class ColumnTotals:
    """Running sums of one layer.

    Parameters
    ----------
    ggn, derivative : ndarray, shape (K,)
        The sums over terms of the quadratic form and of ``<∂l, D_k>``: the latter shows whether
        every use of the weight was seen.
    problem : str
        The reason why the sums are not the layer's curvature; empty if they are.
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
        The layers to measure.
    directions : mapping of str to (u, v)
        The vectors u and v of each layer, of shapes ``(m, K)`` and ``(n, K)``.
    memory_budget : int
        The bytes that what is sent back together may take.
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

    def run(self, progress_callback: Callable[[int], None]) -> None:
        """Go through the data once; `progress_callback` hears the number of finished batches."""
        for batch, terms in self._objective.weighted():
            layers = [batch.program.layers[name] for name in self._names]
            families = list(dict.fromkeys(layer.family for layer in layers))
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
            progress_callback(batch.index + 1)

    def _add(
        self,
        batch: Batch,
        layers: Sequence[Layer],
        families: list[tuple[Family, Samples]],
        scale: float,
    ) -> None:
        objective, program = self._objective, batch.program
        key = (self._width, *(family for family, _ in families))
        assert program.forward is not None
        count = prod(program.forward.out_avals[0].shape[1:])
        chunk = min(count + 1, max(LEAST_CHUNK, self._budget // largest_value(program.model)))
        given = [self._stacked(family, layers) for family, _ in families]
        send = objective.cache.compiled(
            batch, ("columns", *key), partial(_products, program, families, chunk)
        )
        values, leaves = batch.values, batch.leaves
        sent = [send(values, leaves, given, first) for first in range(0, count + 1, chunk)]
        finish = objective.cache.compiled(batch, ("forms", *key), partial(_forms, program, count))
        found = finish(values, leaves, sent)
        tolerance = 1e4 * self._objective.eps
        order = [family for family, _ in families]
        for layer in layers:
            if layer.family not in order:
                continue
            ggn, derivative, off = found[order.index(layer.family)]
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
    program: Program, families: list[tuple[Family, Samples]], chunk: int
) -> Callable[..., Any]:
    """Return a function that sends some rows of the outputs' Jacobian back.

    Rows are numbered by outputs; behind the last one comes the cotangent of the check. The forward
    pass is made again for each chunk: XLA's loops, which would spare it, make the gradient of a
    convolution 30 times slower on a CPU.
    """

    def run(values: Any, leaves: Any, directions: Sequence[tuple[Any, Any]], first: Any) -> Any:
        probed = run_with_probes(program, values, leaves, [family for family, _ in families])
        z = probed.outputs
        # δ is projected on u and a on v; in a flipped use δ on v and a on u.
        projected = []
        for (family, samples), (u, v) in zip(families, directions, strict=True):
            for use, at in zip(family.uses, samples.axes, strict=True):
                rows = RowsBySample(use, len(z), at)
                left, right = (v, u) if use.flipped else (u, v)
                projected.append((rows, left, rows.project(probed.kept, right)))

        def sent_back(index: Any) -> Any:
            return probed.back(_cotangent(z, index))

        gradients = jax.vmap(sent_back)(first + jnp.arange(chunk))
        each = iter(projected)
        found = []
        for family, _ in families:
            parts = []
            for rows, left, right in (next(each) for _ in family.uses):
                parts.append(_contracted(jax.vmap(rows.outputs)(gradients), left, right))
            found.append(sum(parts))
        return found

    return run


def _contracted(deltas: Any, left: Any, right: Any) -> Any:
    """Return ``Σ_s (δ_s · u)(a_s · v)``, shape ``(columns, members, B, K)``.

    Parameters
    ----------
    deltas : array, shape (columns, members, B, S, m)
        The output gradients, or the inputs in a flipped use.
    left : array, shape (members, m, K)
        The directions that `deltas` are projected on.
    right : array, shape (members, B, S, K)
        The other factor.
    """
    if deltas.shape[3] < deltas.shape[4]:  # directions first: K columns are left
        return (jnp.einsum("cgbsm,gmk->cgbsk", deltas, left) * right).sum(3)
    # Positions first, where there are more of them. Column by column, as all columns together would
    # be copied into another order. On ResNet-20, 64 images and a CPU, all columns took 46 forward
    # passes with directions first, 26 with positions first, and 22 with positions
    # first and column by column.
    across = jnp.swapaxes(left, 1, 2)[:, None]
    return jnp.stack(
        [(jnp.einsum("gbsk,gbsm->gbkm", right, delta) * across).sum(3) for delta in deltas]
    )


def _forms(program: Program, count: int) -> Callable[..., Any]:
    """Return a function that makes quadratic forms and derivatives of what was sent back."""

    def run(values: Any, leaves: Any, sent: Sequence[Sequence[Any]]) -> Any:
        (z,) = program.outputs(values, leaves)
        check = _check(z)

        def loss_of(y: Any) -> Any:
            return program.loss_of([y], leaves)

        gradient = jax.grad(loss_of)(z)
        form: Any = jax.vmap(jax.vmap(lambda t: second_derivative(loss_of, z, t)))
        results = []
        for parts in zip(*sent, strict=True):
            products = jnp.concatenate(parts)
            # (outputs, members, B, K) to one tangent of the outputs for each member and direction
            tangents = products[:count].transpose(1, 3, 2, 0)
            tangents = tangents.reshape(*tangents.shape[:2], *z.shape)
            over = range(2, tangents.ndim)
            again, expected = (tangents * check).sum(over), products[count].sum(1)
            size = jnp.maximum(jnp.abs(expected).max(), jnp.abs(products).max())
            off = jnp.abs(again - expected).max() / jnp.maximum(size, np.finfo(z.dtype).tiny)
            results.append((form(tangents), (tangents * gradient).sum(over), off))
        return results

    return run


def _cotangent(z: Any, index: Any) -> Any:
    """Return ones at an output of all samples, or the check's cotangent behind the last one."""
    count = prod(z.shape[1:])
    unit = (jnp.arange(count) == index).astype(z.dtype).reshape(1, *z.shape[1:])
    return jnp.where(index == count, _check(z), unit)


def _check(z: Any) -> Any:
    return scattered(z.shape, z.dtype, 0)
