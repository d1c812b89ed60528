"""Activations with their first two derivatives, on real arrays and on complex ones."""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

from spectral_core.arrays.namespace import Array
from spectral_core.errors import InputError

__all__ = ["ACTIVATIONS", "activation", "real_part"]

_CUBIC = 0.044715

Derivatives = tuple[Array, Array, Array]


def activation(name: str) -> Callable[[Any, Array], Derivatives]:
    """Return a function ``f(xp, z)`` that gives φ(z), φ'(z) and φ''(z).

    Parameters
    ----------
    name : {"relu", "tanh", "gelu-tanh", "identity"}
        ``"gelu-tanh"`` is GELU by its tanh form, as the standard has no error function.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in ACTIVATIONS:
        hint = "; the exact GELU needs an error function, which the array API standard lacks"
        raise InputError(
            f"activation: {name!r} is none of {', '.join(ACTIVATIONS)}"
            f"{hint if name == 'gelu' else ''}."
        )
    return ACTIVATIONS[name]


def real_part(xp: Any, values: Array) -> Array:
    """Return the real part, also of real arrays. It decides on branches only."""
    return xp.real(values) if xp.isdtype(values.dtype, "complex floating") else values


def _relu(xp: Any, z: Array) -> Derivatives:
    slope = xp.astype(real_part(xp, z) > 0, z.dtype)
    return z * slope, slope, xp.zeros_like(z)


def _tanh(xp: Any, z: Array) -> Derivatives:
    t = xp.tanh(z)
    slope = 1 - t * t
    return t, slope, -2 * t * slope


def _gelu_tanh(xp: Any, z: Array) -> Derivatives:
    c = sqrt(2 / pi)
    square = z * z  # a power of a complex number may go through its angle
    inner, inner_1 = c * z * (1 + _CUBIC * square), c * (1 + 3 * _CUBIC * square)
    inner_2 = 6 * c * _CUBIC * z
    t, t_1, t_2 = _tanh(xp, inner)
    rise = t_1 * inner_1
    second = t_2 * inner_1 * inner_1 + t_1 * inner_2
    return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * rise, rise + 0.5 * z * second


def _identity(xp: Any, z: Array) -> Derivatives:
    return z, xp.ones_like(z), xp.zeros_like(z)


ACTIVATIONS: dict[str, Callable[[Any, Array], Derivatives]] = {
    "relu": _relu,
    "tanh": _tanh,
    "gelu-tanh": _gelu_tanh,
    "identity": _identity,
}
