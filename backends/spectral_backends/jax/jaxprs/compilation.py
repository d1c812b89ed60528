"""Tracing and compiling with products in the precision of their operands."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

__all__ = ["compile_exactly", "exact_products"]

P = ParamSpec("P")
R = TypeVar("R")


def exact_products() -> AbstractContextManager[Any]:
    """Trace products that do not say their precision with the highest.

    On a GPU and a TPU JAX multiplies float32 in fewer bits unless told otherwise, and the curvature
    would be that of another function.
    """
    context: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
    return context


def compile_exactly(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, compiled once for each shape, with exact products."""
    run: Callable[P, R] = jax.jit(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with exact_products():
            return run(*args, **kwargs)

    return call
