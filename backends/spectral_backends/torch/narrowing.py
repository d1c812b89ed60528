"""Casts inside a model that lose digits on the way from its parameters to the loss."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["CastsWidened"]


class CastsWidened(TorchFunctionMode):
    """A context in which what depends on parameters and is cast to float32 stays float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call in the wider type."""
        kwargs = dict(kwargs or {})
        if any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            func = Tensor.double if func is Tensor.float else func
            args = tuple(map(_widened, args))
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
