"""Conversion of frozen dataclasses to JSON values and back, driven by their type hints."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

_INFINITIES = ("Infinity", "-Infinity")

UNREADABLE = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError,
)  # fmt: skip
"""What parsing and decoding raise for a file that is damaged or of another kind."""


def parse(text: str | bytes) -> Any:
    """Return strict JSON as Python values.

    NaN and infinities, which `encode` writes in another way, are refused. Text that is no strict
    JSON raises one of `UNREADABLE`.
    """
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return number


def encode(value: Any) -> Any:
    """Return `value` as JSON: strict JSON has no NaN, so NaN is null and infinities are strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, np.ndarray):
        return encode(value.tolist())
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def decode(cls: type[T], data: Any) -> T:
    """Rebuild the dataclass `cls` from what `encode` wrote.

    Unknown keys are left out and missing ones take their default, so that a file of an older
    minor version is read.

    Data that do not fit the class raise one of `UNREADABLE`.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a {type(data).__name__} in place of a {cls.__name__}")
    hints = get_type_hints(cls)
    known = fields(cls)  # type: ignore[arg-type]
    required = (f.name for f in known if f.default is MISSING and f.default_factory is MISSING)
    if missing := [name for name in required if name not in data]:
        raise KeyError(f"a {cls.__name__} without {', '.join(missing)}")
    return cls(**{f.name: _decode(hints[f.name], data[f.name]) for f in known if f.name in data})


def _decode(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        return None if value is None else _decode(options[0], value)
    if is_dataclass(hint):
        return decode(hint, value)  # type: ignore[arg-type]
    if hint is np.ndarray or origin in (np.ndarray, npt.NDArray):  # an alias from NumPy 2.5 on
        return np.asarray([_number(item) for item in _of(list, value)], dtype=np.float64)
    if hint is Any and isinstance(value, list):  # an array of numbers or of booleans
        return np.asarray([_number(item) for item in value])
    if hint is Any:
        return _number(value)
    if origin is tuple:
        return _tuple(get_args(hint), _of(list, value))
    if origin is not None and issubclass(origin, Mapping):
        items = _of(dict, value).items()
        item_hint = get_args(hint)[1]
        return {key: _plain(v) if item_hint is Any else _decode(item_hint, v) for key, v in items}
    return _number(value) if hint is float else _of(hint, value)


def _tuple(hints: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        return tuple(_decode(hints[0], item) for item in items)
    return tuple(_decode(hint, item) for hint, item in zip(hints, items, strict=True))


def _of(kind: type, value: Any) -> Any:
    """Return a value, checked to be of exactly that type: True is no number."""
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value if isinstance(value, str) and value not in _INFINITIES else _number(value)


def _number(value: Any) -> Any:
    """Return what `encode` wrote for a number or a truth value."""
    if value is None:
        return math.nan
    if value in _INFINITIES:
        return float(value)
    if not isinstance(value, (int, float)):
        raise TypeError(f"a {type(value).__name__} in place of a number")
    return value
