"""Checks for masks and units, which an array carries beside its numbers and would lose here."""

from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np

from spectral_core.errors import InputError

__all__ = ["plain"]

_NUMBERS = (np.ndarray, float, int)


def plain(name: str, value: Any) -> Any:
    """Return a value that is nothing but numbers; of a masked array without a mask, its data.

    Masks and units are told by the attributes that carry them in NumPy, astropy, pint, unyt, unxt
    and marray: no library is imported. Other subclasses of arrays stay as they are.

    Parameters
    ----------
    name : str
        The name of the argument, for messages.
    value : Any
        An array of any library, a number, or a nested sequence of them.

    Raises
    ------
    InputError
        If a value is masked, or numbers have a unit, also inside a sequence.
    """
    if type(value) in _NUMBERS or array_api_compat.is_jax_array(value):
        return value
    if array_api_compat.is_torch_array(value):  # dynamo would not trace a look at attributes
        if type(value).__name__ == "MaskedTensor":
            raise InputError(_MASKED.format(name, "a MaskedTensor", "x.to_tensor(0.0)"))
        return value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            plain(name, item)
        return value
    kind = f"a {type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    unit = next((u for u in _attributes(value, "unit", "units") if u is not None), None)
    if unit is not None:
        raise InputError(
            f"{name}: {kind} has the unit {str(unit) or 'dimensionless'!r}, which is not carried "
            "through; pass its plain numbers (x.value, or x.magnitude of pint)."
        )
    for mask in _attributes(value, "mask"):
        if np.any(np.asarray(mask)):
            raise InputError(_MASKED.format(name, kind, "x.filled(0.0)"))
        return value.unmasked if hasattr(value, "unmasked") else value.data
    return value


def _attributes(value: Any, *names: str) -> list[Any]:
    """Return the attributes that a value has, unless they are methods."""
    found = [getattr(value, name) for name in names if hasattr(value, name)]
    return [attribute for attribute in found if not callable(attribute)]


_MASKED = (
    "{}: {} has masked values, and a mask is not carried through; fill them with numbers that may "
    "count ({}), or leave them out: x.compressed(), or in fits where=~x.mask beside x.filled(1.0)."
)
