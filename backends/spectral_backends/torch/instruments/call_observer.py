"""Watching the calls that a piece of PyTorch code makes."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["CallMode", "CallObserver"]

_OVERRIDES: Any = torch.overrides  # without types


class CallMode(TorchFunctionMode):
    """A context of calls that Ctrl-C cannot leave in disorder."""

    def __exit__(self, *error: Any) -> None:
        """Leave, unless Ctrl-C has hit a function of PyTorch that had left for a moment."""
        if _OVERRIDES._get_current_function_mode() is self:
            _OVERRIDES._pop_mode()


class CallObserver(CallMode):
    """A context in which every call of a torch function is run, then shown to `observe`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call and look at it."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        self.observe(func, args, kwargs, result)
        return self.replace(func, args, kwargs, result)

    def replace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> Any:
        """Return the result that the caller gets: the result of the call, unless overridden."""
        return result

    @abstractmethod
    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Look at a call and its result. Calls that are made in here are not observed."""
