"""Checks of the user's batches."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.nested import tensors_in
from spectral_core.errors import InputError

__all__ = ["check_batch", "check_reiterable"]


def check_reiterable(batches: Any) -> None:
    """Raise `InputError` unless `batches` can be traversed more than once."""
    if not isinstance(batches, Iterable):
        raise InputError(
            f"batches: a {type(batches).__name__} cannot be iterated; pass a DataLoader or a list."
        )
    if isinstance(batches, Tensor):
        raise InputError(
            "batches: a tensor was passed; pass a list of batches, [(inputs, targets)]."
        )
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches: a {type(batches).__name__} is exhausted after one pass and the measurement "
            "needs several; pass list(batches), or a DataLoader."
        )


def check_batch(index: int, batch: Any) -> None:
    """Raise `InputError` if a tensor of the batch holds NaN.

    Infinities may be meant, as in an additive attention mask; where they are not, the loss or a
    gradient says so.
    """
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and (bad := int(torch.isnan(tensor).sum())):
            raise InputError(
                f"batches: batch {index} holds {bad} NaN values in a tensor of shape "
                f"{tuple(tensor.shape)}; clean the data."
            )
