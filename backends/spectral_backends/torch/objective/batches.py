"""Checks of the user's batches."""

import warnings
from typing import Any

import torch

from spectral_backends.torch.instruments.nested import tensors_in
from spectral_core.errors import InputError

__all__ = ["check_batch", "warn_of_sampler"]


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


def warn_of_sampler(batches: Any) -> bool:
    """Warn of a loader whose sampler keeps to the part of one rank; say whether it does."""
    for sampler in (
        getattr(batches, "sampler", None),
        getattr(getattr(batches, "batch_sampler", None), "sampler", None),
    ):
        size, rank = getattr(sampler, "num_replicas", None), getattr(sampler, "rank", None)
        if not isinstance(size, int) or size < 2:
            continue
        warnings.warn(
            f"batches: their {type(sampler).__name__} keeps to the part of rank {rank} of {size}, "
            "padded where samples do not divide evenly, and this part is measured as if it were "
            "the whole. Pass a loader without it. If each rank is to report its own part, filter "
            "this warning.",
            UserWarning,
            stacklevel=3,
        )
        return True
    return False
