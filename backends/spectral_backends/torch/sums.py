"""Running sums, in float64 where the device has it."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["sum_dtype", "zero_sums"]


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type to sum in."""
    return torch.float32 if device.type == "mps" else torch.float64


def zero_sums(count: int, u: Tensor) -> Iterator[Tensor]:
    """Yield `count` sums, each with an element for every column of u."""
    dtype = sum_dtype(u.device)
    return (torch.zeros(u.shape[1], dtype=dtype, device=u.device) for _ in range(count))
