"""The user's batches: checks, and their arrays on the device."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.processes import check_in_sight
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError

__all__ = [
    "Signature",
    "common_length",
    "count_where",
    "flat_batch",
    "signature",
]

Signature = tuple[Any, ...]
"""Structure, shapes and types of a batch: what a compiled function is made for."""


def flat_batch(index: int, batch: Any, dtype: Any) -> tuple[list[jax.Array], Any]:
    """Return the arrays of a batch, floating ones in `dtype`, and its structure.

    Raises
    ------
    InputError
        If a leaf is no array, is being traced, is complex or masked, has a unit, or holds NaN.
    """
    leaves, structure = jax.tree_util.tree_flatten(batch)
    return [_array(index, leaf, dtype) for leaf in leaves], structure


def signature(leaves: list[jax.Array], structure: Any) -> Signature:
    """Return a key that tells batches from those that need another trace."""
    return (structure, *((leaf.shape, str(leaf.dtype)) for leaf in leaves))


def common_length(leaves: Sequence[Any]) -> int | None:
    """Return the length that all arrays have along their first axis; None if there is none."""
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    return lengths.pop() if len(lengths) == 1 else None


def count_where(test: Literal["isnan", "isfinite"], array: jax.Array) -> int:
    """Return the number of values that pass a test; on one CPU nothing is compiled."""
    on_host = [device.platform for device in array.devices()] == ["cpu"]
    found = getattr(np, test)(np.asarray(array)) if on_host else getattr(jnp, test)(array)
    return int(found.sum())


def _array(index: int, leaf: Any, dtype: Any) -> jax.Array:
    if isinstance(leaf, jax.core.Tracer) or isinstance(jnp.zeros(()), jax.core.Tracer):
        raise InputError(
            f"batches: batch {index} is being traced; build the problem outside of jit, grad and "
            "vmap, with arrays that have values."
        )
    check_in_sight(f"batches: an array of batch {index}", leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    leaf = plain(f"batches: in batch {index}", leaf)
    try:
        array = jnp.asarray(leaf if isinstance(leaf, jax.Array) else np.asarray(leaf))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"batches: batch {index} holds a {type(leaf).__name__}, which is no array; pass arrays "
            "in tuples, lists and dicts, or register the type as a pytree."
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"batches: batch {index} holds complex numbers; pass their parts.")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    array = array if array.dtype == dtype else array.astype(dtype)
    # Infinities may be meant, as in an additive attention mask.
    if bad := count_where("isnan", array):
        raise InputError(
            f"batches: batch {index} holds {bad} NaN values in an array of shape {array.shape}; "
            "clean the data."
        )
    return array
