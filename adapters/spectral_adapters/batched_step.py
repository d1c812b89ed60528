"""Parameters of PyTorch, updated in place by the batched step of the core."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from spectral_core import MatrixLayout, as_matrices
from spectral_core.batched_newton import spectral_newton_steps

__all__ = ["layout_of", "step_options", "update_parameters"]

_OPTIONS = ("lr", "damping", "damping_mode", "nesterov", "scale", "method", "tolerance")


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
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    if group["maximize"]:
        gradients = [-gradient for gradient in gradients]
    steps, moved = spectral_newton_steps(
        parameters,
        gradients,
        momenta,
        layouts=layouts,
        alphas=alphas,
        weight_decays=[group["weight_decay"]] * len(parameters),
        **step_options(group),
    )
    for i, parameter in enumerate(parameters):
        parameter.add_(steps[i])
        momenta[i].copy_(moved[i])


def step_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group as those of `spectral_newton_step`.

    α and weight decay are left out, which parameters may have of their own.
    """
    precision = group.get("precision", "working")  # absent from states saved before it was there
    return {name: group[name] for name in _OPTIONS} | {
        "beta": group["momentum"],
        "precision": precision,
    }


@lru_cache(maxsize=4096)
def layout_of(shape: tuple[int, ...], spec: str) -> MatrixLayout:
    """Return the layout of a parameter, made once for each shape and spec."""
    return as_matrices(shape, spec)
