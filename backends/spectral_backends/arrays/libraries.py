"""The library that an array belongs to."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import array_api_compat

__all__ = ["library_of", "version_of"]


def library_of(array: Any) -> str:
    """Return the name of an array's library: ``"numpy"``, ``"cupy"``, ``"torch"``, ``"jax"``, …."""
    for name in ("numpy", "cupy", "torch", "jax", "dask"):
        if getattr(array_api_compat, f"is_{name}_array")(array):
            return name
    return type(array).__module__.partition(".")[0]


def version_of(array: Any) -> str:
    """Return the version of an array's library, or ``"unknown"``."""
    name = library_of(array)
    found = getattr(importlib.import_module(name), "__version__", None)
    if found is None:
        try:
            return version(name)
        except PackageNotFoundError:
            return "unknown"
    return str(found)
