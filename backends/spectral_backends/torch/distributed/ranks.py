"""The ranks of `torch.distributed`, as processes that leave notes for each other."""

import hashlib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.distributed.shards import is_distributed
from spectral_core.curvature.processes import Board

__all__ = ["bits_of", "find_board", "identity_of", "warn_of_sampler"]

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def find_board() -> Board | None:
    """Return the board on which ranks can leave notes, or None if there is only one process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size() == 1:
        return None
    # The store by which the processes found each other. Unlike a collective it makes no rank wait,
    # and it does not depend on devices.
    store: Any = distributed.distributed_c10d._get_default_store()

    def leave(key: str, note: str) -> None:
        if store is None:
            raise RuntimeError("the process group has no store")
        store.set(f"spectral_core/{key}", note)

    def read(key: str) -> str | None:
        key = f"spectral_core/{key}"
        found: str | None = store.get(key).decode() if store.check([key]) else None
        return found

    return Board("rank", distributed.get_rank(), distributed.get_world_size(), leave, read)


def bits_of(tensors: Iterable[Tensor]) -> list[str]:
    """Return a key of the values of each tensor to the bit, on every device alike.

    Of a distributed tensor the key is of the values that this rank holds.
    """
    # Sums of whole numbers wrap around, and do not depend on their order.
    held = [_local(tensor.detach()) for tensor in tensors]
    sums = [t.view(_WHOLE[t.element_size()]).sum(dtype=torch.int64) for t in held]
    return [f"{total % 2**64:x}" for total in torch.stack(sums).tolist()] if sums else []


def identity_of(tensors: Iterable[Tensor]) -> str:
    """Return a key of the values of all tensors together."""
    return hashlib.sha256(" ".join(bits_of(tensors)).encode()).hexdigest()[:16]


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


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if is_distributed(tensor) else tensor
    return found
