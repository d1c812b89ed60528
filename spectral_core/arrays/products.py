"""Products in the dtype of their operands, whatever surrounds the call."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array

__all__ = ["exact_products", "fast_half"]


def exact_products(xp: Any, array: Array) -> AbstractContextManager[Any]:
    """Return a context for exact products of arrays like this one.

    A PyTorch autocast around a step would multiply float32 in half precision, and so do JAX's
    defaults on a GPU or TPU; the rounding would be far above small dampings. Both are settings of
    the thread. PyTorch's choice of TF32 is one of the process, which no function here touches.
    """
    if array_api_compat.is_torch_namespace(xp):
        kind = array.device.type
        if xp.amp.is_autocast_available(kind) and xp.is_autocast_enabled(kind):
            off: AbstractContextManager[Any] = xp.autocast(kind, enabled=False)
            return off
    elif array_api_compat.is_jax_namespace(xp):
        jax = importlib.import_module("jax")
        highest: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return highest
    return nullcontext()


def fast_half(xp: Any, array: Array) -> bool:
    """Return whether products in float16 take a fraction of the time of those in float32."""
    if array_api_compat.is_torch_namespace(xp):
        return bool(array.device.type == "cuda")
    if array_api_compat.is_jax_namespace(xp):
        return bool(importlib.import_module("jax").default_backend() == "gpu")
    return array_api_compat.is_cupy_namespace(xp)
