"""Running sums, in float64 where the device has it."""

import torch
from torch import Tensor

__all__ = ["sum_dtype", "zero_sums"]


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type to sum in."""
    return torch.float32 if device.type == "mps" else torch.float64


def zero_sums(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return three sums, each with an element for every column of u."""
    zeros = torch.zeros(3, u.shape[1], dtype=sum_dtype(u.device), device=u.device)
    first, second, third = zeros
    return first, second, third
