"""Constants that are computed on the host from numbers, once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

__all__ = ["host_constant"]

P = ParamSpec("P")
R = TypeVar("R")


def host_constant(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a function of numbers; what traces a caller takes its result as a constant.

    JAX does by itself, as no array comes in. PyTorch's compiler would trace into the function, and
    into NumPy, unless it is marked.
    """
    cached = lru_cache(maxsize=512)(function)

    @wraps(function)
    def constant(*args: P.args, **kwargs: P.kwargs) -> R:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    # What `torch.compiler.assume_constant_result` does, without importing torch.
    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return constant
