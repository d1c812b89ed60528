"""Mapping a function over pairs of vectors, a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["in_chunks"]


def in_chunks(function: Callable[[Any], Any], pairs: tuple[Any, Any], chunk: int) -> Any:
    """Map over the first axis, `chunk` at a time; what is missing in the last one is zeros.

    `function` takes a pair and returns a pytree of arrays, which get that axis in front.
    """
    count = len(pairs[0])
    chunk = min(chunk, count)
    parts = -(-count // chunk)

    def cut(array: Any) -> Any:
        padded = jnp.pad(array, ((0, parts * chunk - count), (0, 0)))
        return padded.reshape(parts, chunk, -1)

    each = jax.vmap(function)
    cuts = (cut(pairs[0]), cut(pairs[1]))
    if parts == 1:
        return each((cuts[0][0], cuts[1][0]))
    found = lax.map(each, cuts)
    return jax.tree_util.tree_map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)
