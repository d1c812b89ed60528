"""Watching a forward pass for what spoils a measurement without changing the loss."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from spectral_core.errors import InputError

__all__ = ["ForwardWatch"]


class ForwardWatch(TorchFunctionMode):
    """Refuses an autocast inside the model; notes a batch norm that uses its batch.

    Parameters
    ----------
    device : torch.device
        Where the model computes.

    Attributes
    ----------
    batch_statistics : bool
        Whether such a batch norm was seen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device.type
        self.batch_statistics = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at the call, then run it."""
        kwargs = dict(kwargs or {})
        if torch.is_autocast_enabled(self._device):
            raise InputError(
                "model: its forward computes under torch.autocast, which rounds to half precision "
                "what is to be measured; take the autocast out, or pass a forward without it."
            )
        if getattr(func, "__name__", "") == "batch_norm":
            # Sixth, both in torch.nn.functional.batch_norm and in torch.batch_norm.
            training = kwargs.get("training", args[5] if len(args) > 5 else False)
            self.batch_statistics |= bool(training)
        return func(*args, **kwargs)
