"""The engine of Hessian-vector products: a layer's gradient, differentiated along directions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.engines.hessian_products.forms import (
    GaussNewtonForm,
    HessianForm,
    QuadraticForm,
    along_directions,
)
from spectral_backends.torch.engines.setting import Setting
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_core.curvature.engine import CurvatureEngine, CurvatureRequest, LayerFinding
from spectral_core.curvature.problem import CurvatureKind
from spectral_core.errors import LayerError

__all__ = ["HessianProducts"]

PRICE = 3.0
"""The price of a direction behind its layer, in forward passes of that part; measured, 2 to 6."""


class HessianProducts(CurvatureEngine[Layer]):
    """Computes Hessian-vector products layer by layer. It is the reference for other engines.

    Parameters
    ----------
    setting : Setting
        The state that the engines of the problem share.
    """

    name = "double-backward"
    independent = True

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._without_batching_rule = set[str]()

    def price(self, layers: Sequence[Layer], request: CurvatureRequest) -> float:
        """Return the price of all directions, through the network behind their layers."""
        return sum(
            PRICE * request.n_directions([layer]) * self._setting.structure.downstream(layer)
            for layer in layers
        )

    def run(
        self, layers: Sequence[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | LayerError]:
        """Yield the curvatures of one layer after the other."""
        for layer in request.todo(layers):
            name = layer.info.name
            request.progress_callback(name)
            try:
                values = self._means(layer, *request.directions[name], request.kind)
            except LayerError as error:
                yield error
            else:
                yield LayerFinding(name, values)

    def _means(self, layer: Layer, u: Tensor, v: Tensor, kind: CurvatureKind) -> Tensor:
        """Return the curvatures over all data, in one pass."""
        objective, count = self._setting.objective, 0.0
        with objective.one_pass(self._setting.seed) as batches:
            total = torch.zeros(u.shape[1], dtype=torch.float64, device="cpu")
            for batch in batches:
                weight = objective.leaf(layer.parameter)
                values, terms = objective.model.hold(
                    {layer.parameter: weight},
                    partial(self._of_batch, layer, weight, u, v, batch, kind),
                )
                if terms.count:
                    total += terms.scale * values.to("cpu", torch.float64)
                count += terms.count
        return (total / count).to(objective.model.device, objective.model.dtype)

    def _of_batch(
        self, layer: Layer, weight: Tensor, u: Tensor, v: Tensor, batch: Any, kind: CurvatureKind
    ) -> tuple[Tensor, LossTerms]:
        form, terms = self._form(layer, weight, batch, kind)
        return self._along(form, layer, u, v), terms

    def _form(
        self, layer: Layer, weight: Tensor, batch: Any, kind: CurvatureKind
    ) -> tuple[QuadraticForm, LossTerms]:
        """Return the batch's quadratic form, and its terms."""
        objective, weights = self._setting.objective, {layer.parameter: weight}
        if kind == "hessian":
            loss, terms = objective.loss(weights, batch)
            with _naming(layer.info.name):
                return HessianForm(loss, weight), terms
        outputs, loss_of, terms = objective.split(weights, batch)
        with _naming(layer.info.name):
            return GaussNewtonForm(outputs, loss_of, weight), terms

    def _along(self, form: QuadraticForm, layer: Layer, u: Tensor, v: Tensor) -> Tensor:
        name = layer.info.name
        shape = self._setting.objective.model.parameters[layer.parameter].shape
        chunk = self._setting.together(form.graph_bytes + 3 * shape.numel() * u.element_size())
        with _naming(name):
            if chunk > 1 and name not in self._without_batching_rule:
                try:
                    return along_directions(form, layer.view, shape, u, v, chunk)
                except RuntimeError:
                    self._without_batching_rule.add(name)  # run one direction at a time
            return along_directions(form, layer.view, shape, u, v, 1)


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Turn a failure of autograd into a `LayerError` that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LayerError(
            layer, "its graph does not fit into the device's memory; use smaller batches."
        ) from error
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LayerError(
            layer,
            f"autograd cannot differentiate the loss twice here ({first}); replace the operation "
            "by one with a second derivative.",
        ) from error
