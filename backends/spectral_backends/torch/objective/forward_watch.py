"""A watch for operations that spoil a measurement without changing the loss."""

from collections.abc import Callable
from typing import Any

import torch

from spectral_backends.torch.instruments.call_observer import CallObserver
from spectral_backends.torch.objective.narrowing import Narrowing
from spectral_core.errors import InputError

__all__ = ["ForwardWatch"]

_DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "normal", "normal_", "uniform_", "exponential_",
    "bernoulli", "bernoulli_", "multinomial", "poisson",
}  # fmt: skip
"""Functions whose random numbers are others in another type, also from a seed of the model's."""


class ForwardWatch(CallObserver):
    """Refuses an autocast inside the model; notes a batch norm that uses its batch, and casts.

    Parameters
    ----------
    device : torch.device
        The device on which the model computes.
    dtype : torch.dtype
        The type of its parameters.

    Attributes
    ----------
    batch_statistics : bool
        Whether such a batch norm was seen.
    draws_numbers : bool
        Whether random numbers were drawn.
    narrowing : Narrowing
        The operations that were cast to a narrower type.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._device = device.type
        self.batch_statistics = self.draws_numbers = False
        self.narrowing = Narrowing(dtype)

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Look at the call."""
        if torch.is_autocast_enabled(self._device):
            raise InputError(
                "model: its forward computes under torch.autocast, which rounds to half precision "
                "what is to be measured; take the autocast out, or pass a forward without it."
            )
        self.narrowing.look(func, (*args, *kwargs.values()), result)
        name = getattr(func, "__name__", "")
        self.draws_numbers |= name in _DRAWS
        if name == "batch_norm":
            # Sixth, both in torch.nn.functional.batch_norm and in torch.batch_norm.
            training = kwargs.get("training", args[5] if len(args) > 5 else False)
            self.batch_statistics |= bool(training)
