"""Tensors inside nested tuples, lists, mappings and dataclasses: batches, and calls' arguments."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["common_length", "leaves_in", "map_tensors", "tensors_in"]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `value` with `function` applied to every tensor; containers keep their type.

    Mappings that are neither a dict nor a `UserDict` become dicts: how to copy them is not known.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return _like(value, {key: map_tensors(function, item) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value,
            **{
                field.name: map_tensors(function, getattr(value, field.name))
                for field in fields(value)
                if field.init
            },
        )
    return value


def leaves_in(value: Any) -> Iterator[Any]:
    """Yield everything that is no container."""
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, (list, tuple)):
        items = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name) for field in fields(value)]
    else:
        yield value
        return
    for item in items:
        yield from leaves_in(item)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor."""
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor))


def common_length(value: Any) -> int | None:
    """Return the length that all leaves have along their first axis; None if there is none."""
    leaves = [leaf for leaf in leaves_in(value) if leaf is not None]
    if not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
        return None  # a number may be a count of the whole batch
    lengths = {len(leaf) for leaf in leaves}
    return lengths.pop() if len(lengths) == 1 else None


def _like(original: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return `items` in a mapping of the original's type, with its attributes."""
    if type(original) is dict or not isinstance(original, (dict, UserDict)):
        return items
    new = copy.copy(original)
    for key, item in items.items():
        new[key] = item
    return new
