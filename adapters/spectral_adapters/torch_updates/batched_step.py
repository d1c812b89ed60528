"""Parameters of PyTorch, updated in place by the batched step of the core."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spectral_core import InputError, MatrixLayout, as_matrices
from spectral_core.newton import StepOptions
from spectral_core.newton.batched import spectral_newton_steps

__all__ = ["Update", "layout_of", "step_options"]


@dataclass(frozen=True)
class Update:
    """The batched step of some parameters.

    Parameters
    ----------
    parameters, momenta : sequence of Tensor
        The parameters, and one momentum for each, of its shape.
    layouts : sequence of MatrixLayout
        The matrices of each parameter.
    alphas : sequence of float
        The exponent of each parameter.
    group : mapping
        The options of their parameter group.
    """

    parameters: Sequence[Tensor]
    momenta: Sequence[Tensor]
    layouts: Sequence[MatrixLayout]
    alphas: Sequence[float]
    group: Mapping[str, Any]

    def steps(
        self, gradients: Sequence[Tensor], lr: float | Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the step of each parameter and its new momentum; write nothing."""
        if self.group["maximize"]:
            gradients = [-gradient for gradient in gradients]
        return spectral_newton_steps(
            self.parameters,
            gradients,
            self.momenta,
            layouts=self.layouts,
            alphas=self.alphas,
            options=step_options(self.group, lr),
        )

    def apply(self, gradients: Sequence[Tensor], lr: float | Tensor) -> None:
        """Update the parameters and their momenta in place."""
        steps, moved = self.steps(gradients, lr)
        torch._foreach_add_(list(self.parameters), steps)
        torch._foreach_copy_(list(self.momenta), moved)


def step_options(group: Mapping[str, Any], lr: float | Tensor) -> StepOptions:
    """Return the options of a parameter group, whose keys are those of torch's optimizers."""
    return StepOptions(
        lr=lr,
        damping=group["damping"],
        damping_mode=group["damping_mode"],
        beta=group["momentum"],
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        scale=group["scale"],
        method=group["method"],
        tolerance=group["tolerance"],
        # Absent from states saved before it was there.
        precision=group.get("precision", "working"),
    )


@lru_cache(maxsize=4096)
def layout_of(shape: tuple[int, ...], spec: str) -> MatrixLayout:
    """Return the layout of a parameter, made once for each shape and spec.

    Raises
    ------
    InputError
        If the shape is not the one that the parameter had when it was added.
    """
    if len(shape) < 2:
        raise InputError(
            f"params: a matrix has become a vector of shape {shape} since it was added, as "
            "DeepSpeed's ZeRO and others put flat shards in the place of parameters; T needs whole "
            "matrices. Train with DistributedDataParallel, where parameters stay whole."
        )
    return as_matrices(shape, spec)
