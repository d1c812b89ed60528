"""Matrices of one shape from many parameters, updated in one call."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spectral_core import MatrixLayout, as_matrices, spectral_newton_step

__all__ = ["MatrixPart", "layout_of", "update_batch", "update_parameters"]

# So that the copies of a batch stay small beside a large model: 256 MiB in float32.
BATCH_ELEMENTS = 2**26


@dataclass(frozen=True)
class MatrixPart:
    """Matrices (B, m, n) of one shape in a parameter, which is known by its number."""

    parameter: int
    alpha: float
    weight: Tensor
    gradient: Tensor
    momentum: Tensor

    @property
    def key(self) -> tuple[Any, ...]:
        """Parts with equal keys can be updated together."""
        tensors = (self.weight, self.gradient, self.momentum)
        dtypes = tuple(t.dtype for t in tensors)
        return self.alpha, self.weight.shape[1:], dtypes, self.weight.device


def update_parameters(
    parameters: Sequence[Tensor],
    momenta: Sequence[Tensor],
    layouts: Sequence[MatrixLayout],
    alphas: Sequence[float],
    group: Mapping[str, Any],
) -> None:
    """Update parameters by their gradients, and their momenta, in place.

    Parameters
    ----------
    parameters, momenta : sequence of Tensor
        One momentum for each, of its shape.
    layouts : sequence of MatrixLayout
        The matrices of each.
    alphas : sequence of float
        The exponent of each.
    group : mapping
        Options of their parameter group.
    """
    parts = []
    for i, (parameter, momentum) in enumerate(zip(parameters, momenta, strict=True)):
        split = [layouts[i].split(array) for array in (parameter, parameter.grad, momentum)]
        for tensors in zip(*split, strict=True):
            parts.append(MatrixPart(i, alphas[i], *tensors))
    results = {
        id(part): (step, moved)
        for batch in _batches(parts)
        for part, step, moved in update_batch(batch, group)
    }
    updated: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for part in parts:  # in the order of their parameter's matrices
        updated.setdefault(part.parameter, []).append(results[id(part)])
    for i, found in updated.items():
        steps, moved = zip(*found, strict=True)
        parameters[i].add_(layouts[i].merge(list(steps)))
        momenta[i].copy_(layouts[i].merge(list(moved)))


def _batches(parts: Iterable[MatrixPart]) -> list[list[MatrixPart]]:
    """Return what is updated together, in an order that depends on the parameters alone."""
    open_batches: dict[tuple[Any, ...], list[MatrixPart]] = {}
    done: list[list[MatrixPart]] = []
    for part in parts:
        batch = open_batches.setdefault(part.key, [])
        if batch and sum(p.weight.numel() for p in (*batch, part)) > BATCH_ELEMENTS:
            done.append(batch)
            batch = open_batches[part.key] = []
        batch.append(part)
    return done + list(open_batches.values())


def update_batch(
    batch: Sequence[MatrixPart], group: Mapping[str, Any]
) -> Iterable[tuple[MatrixPart, Tensor, Tensor]]:
    """Return the step and the new momentum of each part.

    Parameters
    ----------
    batch : sequence of MatrixPart
        With equal keys.
    group : mapping
        Options of their parameter group.
    """
    gradient = _joined([part.gradient for part in batch])
    step, momentum = spectral_newton_step(
        _joined([part.weight for part in batch]),
        -gradient if group["maximize"] else gradient,
        _joined([part.momentum for part in batch]),
        lr=group["lr"],
        alpha=batch[0].alpha,
        damping=group["damping"],
        damping_mode=group["damping_mode"],
        beta=group["momentum"],
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        scale=group["scale"],
        method=group["method"],
        tolerance=group["tolerance"],
        precision=group.get("precision", "working"),  # absent from states saved before it was there
    )
    sizes = [len(part.weight) for part in batch]
    return zip(batch, step.split(sizes), momentum.split(sizes), strict=True)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


@lru_cache(maxsize=4096)
def layout_of(shape: tuple[int, ...], spec: str) -> MatrixLayout:
    """Return the layout of a parameter, made once for each shape and spec."""
    return as_matrices(shape, spec)
