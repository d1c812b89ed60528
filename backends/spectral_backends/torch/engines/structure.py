"""The findings of one forward pass over the first batch: a model's layers and their cost."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.linearity import find_curvature
from spectral_backends.torch.instruments.nested import common_length
from spectral_backends.torch.instruments.work_counter import WorkCounter
from spectral_backends.torch.layers.discovery import Layer, name_layers
from spectral_backends.torch.layers.recorder import OperationRecorder
from spectral_backends.torch.objective.objective import Objective

__all__ = ["Structure", "examine"]


@dataclass(frozen=True)
class Structure:
    """The layers of a model, and the facts that decide how their curvature is computed.

    Parameters
    ----------
    layers : dict of str to Layer
        The layers by name, in the order of the forward pass.
    skipped : dict of str to str
        The parameters that are no layer, with the reason.
    n_outputs : int or None
        The number of outputs of the model for each sample of the first batch. It is None if outputs
        are not told from the loss, or are no tensor.
    nonlinear : dict of str to str
        The parameters in which the outputs are nonlinear, with the operation that shows it.
    work : float
        The multiply-adds of the forward pass.
    operations : int
        The number of matrix products and convolutions of the forward pass.
    heaviest : list of int
        The samples of the first batch, first those whose outputs the loss would change most. The
        list is empty if the outputs are not told from the loss.
    """

    layers: dict[str, Layer]
    skipped: dict[str, str]
    n_outputs: int | None
    nonlinear: dict[str, str]
    work: float
    operations: int
    heaviest: list[int]

    @property
    def work_of_operation(self) -> float:
        """Return the multiply-adds of a matrix product or convolution, on average."""
        return self.work / max(self.operations, 1)

    def downstream(self, layer: Layer) -> float:
        """Return the share of the layers' work from a layer on, its own work included."""
        return self._shares[layer.info.name]

    @cached_property
    def _shares(self) -> dict[str, float]:
        behind = accumulate(layer.work for layer in reversed(self.layers.values()))
        works = dict(zip(reversed(self.layers), behind, strict=True))
        total = max(works.values(), default=0.0)
        return {name: work / total if total else 1.0 for name, work in works.items()}


def examine(objective: Objective, seed: int) -> Structure:
    """Run the model on the first batch and return its structure."""
    seen: list[Any] = []

    def look(outputs: Any) -> Any:
        seen.append(outputs)
        return outputs

    with objective.one_pass(seed) as batches:
        leaves = objective.matrix_leaves()
        with WorkCounter() as counter, OperationRecorder(leaves) as recorder:
            batch = next(batches)
            loss, _ = objective.loss(leaves, batch, look)
        layers, skipped = name_layers(recorder, leaves, objective.model.frozen)
        outputs = seen[0] if seen and isinstance(seen[0], Tensor) and seen[0].ndim else None
        nonlinear: dict[str, str] = {}
        if outputs is not None:
            names = list(leaves)
            found = find_curvature([outputs], {i: [leaves[n]] for i, n in enumerate(names)})
            nonlinear = {names[i]: node for i, node in found.items()}
        heaviest = _heaviest(loss, outputs, common_length(batch))
    n_outputs = None if outputs is None else outputs.numel() // max(len(outputs), 1)
    return Structure(
        layers, skipped, n_outputs, nonlinear, counter.work, counter.operations, heaviest
    )


def _heaviest(loss: Tensor, outputs: Tensor | None, length: int | None) -> list[int]:
    if outputs is None or not outputs.requires_grad or not length or len(outputs) % length:
        return []
    (pull,) = torch.autograd.grad(loss, outputs, allow_unused=True, materialize_grads=True)
    each = torch.linalg.vector_norm(pull.reshape(length, -1), dim=1, ord=torch.inf)
    return [int(index) for index in torch.argsort(each, descending=True)]
