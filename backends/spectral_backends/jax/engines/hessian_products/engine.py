"""The engine of Hessian-vector products: the loss differentiated twice along each direction."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from spectral_backends.jax.engines.hessian_products.forms import curvatures_along
from spectral_backends.jax.engines.setting import Setting
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.compiled import Batch, tallied
from spectral_core.curvature.engine import CurvatureEngine, CurvatureRequest, LayerFinding
from spectral_core.curvature.problem import CurvatureKind
from spectral_core.errors import LayerError

__all__ = ["HessianProducts"]

PRICE = 3.0
"""The price of sending one direction forward twice, in forward passes."""


class HessianProducts(CurvatureEngine[Layer]):
    """Computes Hessian-vector products layer by layer. It is the reference for other engines.

    Parameters
    ----------
    setting : Setting
        The loss, layers and memory that the engines of the problem share.
    """

    name = "double-backward"
    independent = True

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._reversed = set[int]()  # parameters whose tangents JAX cannot send forward

    def price(self, layers: Sequence[Layer], request: CurvatureRequest) -> float:
        """Return the price of all directions, through the network behind their layers."""
        return sum(
            self._setting.passes(PRICE * request.n_directions([layer]), layer) for layer in layers
        )

    def run(
        self, layers: Sequence[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | LayerError]:
        """Yield the curvatures of one layer after the other."""
        for layer in request.todo(layers):
            name = layer.info.name
            request.progress_callback(name)
            try:
                with tallied() as tally:
                    values = self._means(layer, *request.directions[name], request.kind)
            except LayerError as error:
                yield error
                continue
            work = tally.work / request.n_directions([layer])
            yield LayerFinding(name, values, cost=self._setting.in_forward_passes(work))

    def _means(self, layer: Layer, u: Any, v: Any, kind: CurvatureKind) -> jax.Array:
        """Return the curvatures over all data, in one pass."""
        total = np.zeros(u.shape[1])
        for batch, terms in self._setting.objective.weighted():
            found = self._of_batch(layer, batch, u, v, kind)
            total += terms.scale * np.asarray(found, np.float64)
        return self._setting.mean(total)

    def _of_batch(self, layer: Layer, batch: Batch, u: Any, v: Any, kind: CurvatureKind) -> Any:
        """Return the quadratic form of a batch: forward twice, or backward twice if need be."""
        if layer.parameter not in self._reversed:
            try:
                return self._evaluated(layer, batch, u, v, kind, reverse=False)
            except (TypeError, ValueError, NotImplementedError):
                self._reversed.add(layer.parameter)
        try:
            return self._evaluated(layer, batch, u, v, kind, reverse=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            first = str(error).strip().splitlines()[0]
            raise LayerError(
                layer.info.name,
                f"JAX cannot differentiate the loss twice here ({first}); replace the operation "
                "by one with a second derivative.",
            ) from error

    def _evaluated(
        self, layer: Layer, batch: Batch, u: Any, v: Any, kind: CurvatureKind, *, reverse: bool
    ) -> Any:
        # Each shape of batch has a jaxpr of its own, and so families of its own.
        own = batch.program.layers[layer.info.name]
        chunk = self._setting.together(batch, own)
        run = self._setting.objective.cache.compiled(
            batch,
            (kind, own.family, u.shape[1], reverse),
            partial(curvatures_along, batch.program, own, kind, chunk, reverse=reverse),
        )
        return run(batch.values, batch.leaves, own.starts, u, v)
