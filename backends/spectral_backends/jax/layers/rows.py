"""Unfolded activations of the operations that use a matrix, position by position.

An operation that consumes a matrix W computes ``y = W a`` at each position of a batch, an image or
a sequence. Its other operand holds all a, and its result all y, in an order of axes that depends on
the operation. `Rows` brings both into one order: groups, positions, then the elements of a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spectral_backends.jax.devices.sample_shares import on_own_samples

__all__ = ["Rows", "conv_rows", "dot_rows", "lookup_rows"]

Array = jax.Array


@dataclass(frozen=True)
class Rows:
    """Unfolded activations: inputs and outputs of one equation, as rows.

    Parameters
    ----------
    other : int
        The index of the operand that holds the inputs.
    inputs : callable
        ``inputs(operand)`` returns a, shape ``(*groups, *positions, n)``.
    outputs : callable
        ``outputs(result)`` returns y, shape ``(*groups, *positions, m)``. It also takes the
        cotangent of a result.
    project : callable
        ``project(operand, v)`` returns ``a v``, shape ``(*groups, *positions, K)``, for vectors v
        of shape ``(*groups, n, K)``.
    """

    other: int
    inputs: Callable[[Array], Array]
    outputs: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]


def dot_rows(params: Mapping[str, Any], operand: int, ndims: tuple[int, int]) -> Rows:
    """Return the rows of a ``dot_general`` whose operand 0 or 1 is the matrix."""
    contract, batch = params["dimension_numbers"]
    other = 1 - operand
    mine, own = list(contract[other]), list(batch[other])
    free = [axis for axis in range(ndims[other]) if axis not in mine + own]
    n_out = ndims[operand] - len(contract[operand]) - len(own)

    def inputs(a: Array) -> Array:
        moved = a.transpose([*own, *free, *mine])
        return moved.reshape(*moved.shape[: len(own + free)], -1)

    def outputs(y: Array) -> Array:
        first = len(own) + (n_out if operand == 0 else 0)
        axes = range(first, first + len(free))
        moved = jnp.moveaxis(y, list(axes), list(range(len(own), len(own) + len(free))))
        return moved.reshape(*moved.shape[: len(own) + len(free)], -1)

    def project(a: Array, v: Array) -> Array:
        rows = inputs(a)
        flat = rows.reshape(*rows.shape[: len(own)], -1, rows.shape[-1])
        return (flat @ v).reshape(*rows.shape[:-1], v.shape[-1])

    return Rows(other, inputs, outputs, project)


def conv_rows(params: Mapping[str, Any], kernel: tuple[int, ...], groups: int) -> Rows:
    """Return the rows of a convolution with a kernel ``(out, in / groups, *window)``."""
    numbers = params["dimension_numbers"]
    same = {
        key: params[key]
        for key in ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "precision")
    }
    if isinstance(same["precision"], tuple):  # one of each operand, and patches take a single one
        same["precision"] = max(same["precision"], key=lambda precision: precision.value)
    # Channels last, as in rows: arrays of that layout are then not moved for each column.
    space = tuple(range(1, len(kernel) - 1))
    last = len(space) + 1
    channels_last = lax.ConvDimensionNumbers(
        (0, last, *space), (last, last - 1, *(i - 1 for i in space)), (0, last, *space)
    )

    def channels_behind(y: Array, spec: tuple[int, ...]) -> Array:
        return y.transpose((spec[0], *spec[2:], spec[1]))

    def grouped(y: Array) -> Array:
        """Bring ``(B, *space, groups · c)`` into ``(groups, B, *space, c)``."""
        if groups == 1:
            return y[None]
        return jnp.moveaxis(y.reshape(*y.shape[:-1], groups, -1), -2, 0)

    def inputs(a: Array) -> Array:
        def patches(a: Array) -> Array:
            return lax.conv_general_dilated_patches(
                a, kernel[2:], dimension_numbers=channels_last, **same
            )

        return grouped(on_own_samples(patches)(channels_behind(a, numbers.lhs_spec)))

    def outputs(y: Array) -> Array:
        return grouped(channels_behind(y, numbers.out_spec))

    def project(a: Array, v: Array) -> Array:
        kernels = jnp.swapaxes(v, -1, -2).reshape(-1, *kernel[1:])
        kernels = jnp.moveaxis(kernels, (0, 1), (-1, -2))

        def convolved(a: Array, kernels: Array) -> Array:
            return lax.conv_general_dilated(
                a, kernels, feature_group_count=groups, dimension_numbers=channels_last, **same
            )

        found = on_own_samples(convolved)(channels_behind(a, numbers.lhs_spec), kernels)
        return grouped(found)

    return Rows(0, inputs, outputs, project)


def lookup_rows(params: Mapping[str, Any], table: tuple[int, ...], axis: int, dtype: Any) -> Rows:
    """Return the rows of a lookup in a table whose entries lie along `axis`."""
    width_axes = params["dimension_numbers"].offset_dims
    entries = table[axis]
    clipped = "CLIP" in str(params["mode"]).upper()

    def indices(a: Array) -> Array:
        found = a[..., 0]
        return jnp.clip(found, 0, entries - 1) if clipped else found

    def inputs(a: Array) -> Array:
        return jax.nn.one_hot(indices(a), entries, dtype=dtype)

    def outputs(y: Array) -> Array:
        moved = jnp.moveaxis(y, list(width_axes), list(range(-len(width_axes), 0)))
        return moved.reshape(*moved.shape[: moved.ndim - len(width_axes)], prod(table) // entries)

    def project(a: Array, v: Array) -> Array:
        return jnp.take(v, indices(a), axis=0, mode="fill", fill_value=0)

    return Rows(1, inputs, outputs, project)
