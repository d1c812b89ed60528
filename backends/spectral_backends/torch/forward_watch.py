"""Watching a forward pass for what spoils a measurement without changing the loss."""

from collections.abc import Callable
from typing import Any

import torch

from spectral_backends.torch.call_observer import CallObserver
from spectral_core.errors import InputError

__all__ = ["ForwardWatch"]


class ForwardWatch(CallObserver):
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

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Look at the call."""
        if torch.is_autocast_enabled(self._device):
            raise InputError(
                "model: its forward computes under torch.autocast, which rounds to half precision "
                "what is to be measured; take the autocast out, or pass a forward without it."
            )
        if getattr(func, "__name__", "") == "batch_norm":
            # Sixth, both in torch.nn.functional.batch_norm and in torch.batch_norm.
            training = kwargs.get("training", args[5] if len(args) > 5 else False)
            self.batch_statistics |= bool(training)
