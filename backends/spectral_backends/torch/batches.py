"""Checks of the user's batches."""

from typing import Any

import torch

from spectral_backends.torch.nested import tensors_in
from spectral_core.errors import InputError

__all__ = ["check_batch"]


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
