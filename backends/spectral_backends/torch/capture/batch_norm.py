"""Batch normalisation by running statistics, as the affine map that it is."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Affine", "affine_batch_norm"]


class Affine(NamedTuple):
    """``shift + x · scale``, channel by channel."""

    shift: Tensor
    x: Tensor
    scale: Tensor


def affine_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Affine | None:
    """Return the result of `torch.nn.functional.batch_norm` with running statistics.

    As a product its backward pass takes about half the time. The result is None if the statistics
    are those of the batch, or if the map itself is to be differentiated.
    """
    given = [t for t in (running_mean, running_var, weight, bias) if t is not None]
    if training or running_mean is None or running_var is None:
        return None
    if any(t.requires_grad for t in given):
        return None
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    shape = (-1, *[1] * (input.ndim - 2))
    return Affine(shift.reshape(shape), input, scale.reshape(shape))
