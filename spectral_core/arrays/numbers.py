"""Checks of plain numbers that several functions take, in the same words."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from spectral_core.errors import InputError

__all__ = ["check_confidence", "check_mapping", "is_real"]


def is_real(value: Any) -> bool:
    """Return whether a value is a number of Python or NumPy, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_confidence(confidence: Any) -> None:
    """Raise `InputError` unless the level lies in (0, 1), away from 1 by more than rounding."""
    if not (is_real(confidence) and confidence > 0 and (1 + confidence) / 2 < 1):
        raise InputError(f"confidence: {confidence!r} must lie between 0 and 1, for instance 0.95.")


def check_mapping(name: str, value: Any) -> None:
    """Raise `InputError` unless the value is a mapping by name."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: a {type(value).__name__} was passed; pass a dict.")
