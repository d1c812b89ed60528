"""Measuring the memory that a piece of PyTorch code takes."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["AllocationPeak"]


class AllocationPeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that follows the memory of all tensors made in it, on any device.

    Attributes
    ----------
    bytes : int
        The largest memory that was held at one time. Memory that a kernel takes for itself while it
        runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._held = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __exit__(self, *raised: Any) -> None:
        """Stop following, and drop the finalizers of tensors that live on, such as the weights."""
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for finalizer in self._known.values():
            finalizer.detach()
        self._known.clear()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and add what it made."""
        kwargs = dict(kwargs or {})
        for tensor in _strided((args, kwargs)):
            self._add(tensor, 0)  # it existed before
        result = func(*args, **kwargs)
        for tensor in _strided(result):
            self._add(tensor, tensor.untyped_storage().nbytes())
        return result

    def _add(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._held += size
            self.bytes = max(self.bytes, self._held)
            self._known[storage._cdata] = weakref.finalize(
                storage, self._free, storage._cdata, size
            )

    def _free(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self._held -= size


def _strided(value: Any) -> list[Tensor]:
    return [
        leaf for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided
    ]  # fmt: skip
