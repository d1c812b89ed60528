"""Half precision is computed in float32, and only the results are rounded."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import array_api_compat

from spectral_core.arrays.namespace import Array, is_half, namespace, widened

__all__ = ["in_working_precision"]

P = ParamSpec("P")
R = TypeVar("R")


def in_working_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of arrays so that it gets those of less than 32 bits in float32.

    A logarithm in bfloat16 has two digits, and a difference of two of them none. The result, an
    array or dataclasses of arrays, is rounded to the type of the arguments if all are of one such
    type. Arrays without axes count only if there are no others.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        seen: list[Array] = []

        def widen(array: Array) -> Array:
            seen.append(array)
            return widened(array)

        wide: Any = _mapped(widen, (args, kwargs))
        if not any(is_half(array.dtype) for array in seen):
            return function(*args, **kwargs)
        result = function(*wide[0], **wide[1])
        deciding = [a.dtype for a in seen if "float" in str(a.dtype)]
        deciding = [a.dtype for a in seen if a.ndim and "float" in str(a.dtype)] or deciding
        if not all(dtype == deciding[0] and is_half(dtype) for dtype in deciding):
            return result
        narrowed: R = _mapped(lambda array: _rounded(array, deciding[0]), result)
        return narrowed

    return call


def _mapped(change: Callable[[Array], Array], value: Any) -> Any:
    """Return a value with all arrays in it changed: in tuples, dicts and dataclasses."""
    if isinstance(value, tuple):
        return tuple(_mapped(change, item) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        items = {f.name: _mapped(change, getattr(value, f.name)) for f in fields(value) if f.init}
        return replace(value, **items)
    return change(value) if array_api_compat.is_array_api_obj(value) else value


def _rounded(array: Array, dtype: Any) -> Array:
    xp = namespace(array)
    return xp.astype(array, dtype) if xp.isdtype(array.dtype, "real floating") else array
