"""Casts inside a model that lose digits on the way from its parameters to the loss."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.call_observer import CallMode

__all__ = ["CastsWidened", "Narrowing"]


@dataclass
class Narrowing:
    """Results on the way from the parameters that have fewer digits than the parameters.

    Values that do not depend on a parameter are constants: float32 is promoted without loss.

    Parameters
    ----------
    precision : torch.dtype
        The narrowest type that was seen; at first that of the parameters.
    operations : list of str
        The operations that made such results first, by name and type.
    """

    precision: torch.dtype
    operations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Keep the type of the parameters."""
        self._widest = self.precision

    def look(self, func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> None:
        """Look at a call."""
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if (
                isinstance(value, Tensor)
                and value.dtype is not self._widest
                and value.requires_grad
                and _bits(value) < _most(args)
            ):
                self._note(getattr(func, "__name__", "?").strip("_"), value.dtype)

    def _note(self, name: str, dtype: torch.dtype) -> None:
        told = f"{name}() to {_name(dtype)}"
        if told not in self.operations:
            self.operations.append(told)
        self.precision = min(self.precision, dtype, key=lambda kind: torch.finfo(kind).bits)

    @property
    def name(self) -> str:
        """Return the narrowest type as reports say it."""
        return _name(self.precision)


def _bits(tensor: Tensor) -> int:
    """Return the bits of a floating number; those of others are no matter."""
    return torch.finfo(tensor.dtype).bits if tensor.is_floating_point() else 64


def _most(args: tuple[Any, ...]) -> int:
    """Return the bits of the widest argument that depends on parameters."""
    found = [_bits(arg) for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
    return max(found, default=0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class CastsWidened(CallMode):
    """A context in which values that depend on parameters stay float64 when cast to float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call in the wider type."""
        kwargs = dict(kwargs or {})
        if _most((*args, *kwargs.values())):
            func = Tensor.double if func is Tensor.float else func
            args = tuple(map(_widened, args))
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
