"""The memory that a jaxpr's values take."""

from math import prod
from typing import Any

from jax.extend.core import ClosedJaxpr

from spectral_backends.jax.jaxprs.interpreter import walk

__all__ = ["largest_value"]


def largest_value(jaxpr: ClosedJaxpr) -> int:
    """Return the bytes of the largest result of any equation."""
    return max((_bytes(v.aval) for _, e in walk(jaxpr) for v in e.outvars), default=1)


def _bytes(aval: Any) -> int:
    return int(prod(getattr(aval, "shape", ())) * getattr(aval.dtype, "itemsize", 8))
