"""Vectors without structure, for checks: cheap to compile, unlike random numbers."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["scattered"]


def scattered(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """Return numbers between -1 and 1 that look random: fractions of multiples of roots."""
    index = jnp.arange(1, prod(shape) + 1, dtype=jnp.uint32)
    # Weyl sequences mixed once: 2**32 over the golden ratio, and a factor of Knuth's.
    mixed = (index + jnp.uint32(977 * (seed + 1))) * jnp.uint32(2654435769)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(3266489917)
    fraction = (mixed ^ (mixed >> 16)).astype(dtype) / 2.0**31 - 1
    return jnp.reshape(fraction, shape)
