"""Constants that are computed on the host from numbers, once, and copied to a GPU once."""

import importlib
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.factorize import on_cpu
from spectral_core.arrays.namespace import Array, device_key, device_of

__all__ = ["host_constant", "on_device"]

P = ParamSpec("P")
R = TypeVar("R")


def host_constant(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a function of numbers; a compiler that traces a caller takes the result as a constant.

    JAX does so by itself, as no argument is an array. PyTorch's compiler would trace into the
    function, and into NumPy, unless the function is marked.
    """
    cached = lru_cache(maxsize=512)(function)

    @wraps(function)
    def constant(*args: P.args, **kwargs: P.kwargs) -> R:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    # This is what `torch.compiler.assume_constant_result` does, without importing torch.
    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return constant


_copies: dict[Any, Array] = {}


def on_device(
    xp: Any, constant: Callable[[int], NDArray[np.float64]], size: int, like: Array
) -> Array:
    """Return ``constant(size)`` in the dtype and on the device of an array.

    For a GPU the copy is made once and kept for good: the host waits for a copy, and a CUDA graph
    cannot make one but reads it in later replays. There is one copy for each size of a matrix. So
    it is for PyTorch on a CPU, where a conversion would be another operation.
    """
    kept = array_api_compat.is_torch_namespace(xp) or not on_cpu(xp, like)
    if not kept or _traced(xp, like):
        return xp.asarray(constant(size), dtype=like.dtype, device=device_of(like))
    key = (constant, size, like.dtype, device_key(like))
    if key not in _copies:
        copy = xp.asarray(constant(size), dtype=like.dtype, device=device_of(like))
        if _traced(xp, copy):
            return copy
        _copies[key] = copy
    return _copies[key]


def _traced(xp: Any, array: Array) -> bool:
    """Return whether a trace or inference mode owns the arrays, so that none may outlive it."""
    if not array_api_compat.is_torch_namespace(xp):
        return bool(array_api_compat.is_jax_namespace(xp))
    if xp.compiler.is_compiling() or array.is_inference():
        return True
    if type(array) is not xp.Tensor:
        return True
    functorch = importlib.import_module("torch")._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(array))
