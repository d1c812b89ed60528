"""Frozen dataclasses to JSON values and back, driven by their type hints."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")


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

    Raises
    ------
    KeyError, TypeError, ValueError
        If the data do not fit the class.
    """
    hints = get_type_hints(cls)
    known = fields(cls)  # type: ignore[arg-type]
    required = (f.name for f in known if f.default is MISSING and f.default_factory is MISSING)
    if missing := [name for name in required if name not in data]:
        raise KeyError(*missing)
    return cls(**{f.name: _decode(hints[f.name], data[f.name]) for f in known if f.name in data})


def _decode(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        return None if value is None else _decode(options[0], value)
    if is_dataclass(hint):
        return decode(hint, value)  # type: ignore[arg-type]
    if hint is np.ndarray or get_origin(hint) is np.ndarray:
        return np.asarray([_number(item) for item in value], dtype=np.float64)
    if hint is Any and isinstance(value, list):  # an array of numbers or of booleans
        return np.asarray([_number(item) for item in value])
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return _number(value)


def _number(value: Any) -> Any:
    if value is None:
        return math.nan
    return float(value) if value in ("Infinity", "-Infinity") else value
