"""Counting the multiply-adds of what runs."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["WorkCounter"]


class WorkCounter(TorchDispatchMode):
    """A context that adds up the multiply-adds of matrix products and convolutions.

    Attributes
    ----------
    work : float
        The multiply-adds so far. Operations on single elements are not counted.
    operations : int
        The number of matrix products and convolutions so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = 0.0
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count it."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.work += formula(*args, **kwargs, out_val=result) / 2
            self.operations += 1
        return result
