"""The user's batches: traversed again and again, moved, cast and checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from spectral_core.errors import InputError

__all__ = ["check_batch", "check_reiterable", "map_tensors", "tensors_in"]


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


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and mappings."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, value)
    return iter(found)


def check_batch(index: int, batch: Any) -> None:
    """Raise `InputError` if a floating point tensor of the batch is not finite."""
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor)).sum())):
            raise InputError(
                f"batches: batch {index} holds {bad} NaN or infinite values in a tensor of shape "
                f"{tuple(tensor.shape)}; clean the data."
            )
