"""The axes of a parameter in the equations that consume it as a matrix."""

from dataclasses import dataclass
from math import prod

from jax.extend.core import JaxprEqn

from spectral_backends.jax.jaxprs.interpreter import aval_of
from spectral_backends.jax.layers.matrix_view import TrackedView
from spectral_backends.jax.layers.rows import Rows, conv_rows, dot_rows, lookup_rows

__all__ = ["Consumed", "read_operand"]


@dataclass(frozen=True)
class Consumed:
    """The use of an operand by an equation: axes are groups, then outputs, then inputs."""

    tracked: TrackedView
    kind: str
    group_axes: int
    out_axes: int
    rows: Rows


def read_operand(equation: JaxprEqn, operand: int, tracked: TrackedView) -> Consumed | None:
    """Return the use of an operand by an equation as a matrix; None if it is none.

    Parameters
    ----------
    equation : JaxprEqn
        The equation that consumes it.
    operand : int
        The index of the operand that is the parameter.
    tracked : ndarray
        The tracked view of the operand: its strides say where elements lie in the parameter.
    """
    reader = _READERS.get(equation.primitive.name)
    found = reader(equation, operand, tracked) if reader else None
    if found is None or found.tracked.ndim < found.group_axes + 2 or 0 in found.tracked.shape:
        return None
    axes = zip(found.tracked.shape, found.tracked.strides, strict=True)
    repeated = any(n > 1 and step == 0 for n, step in list(axes)[found.group_axes :])
    return None if repeated else found


def _read_dot(equation: JaxprEqn, operand: int, tracked: TrackedView) -> Consumed | None:
    """Read a product: batch axes are groups, contracted ones inputs, the others outputs."""
    contract, batch = equation.params["dimension_numbers"]
    inputs, groups = contract[operand], batch[operand]
    outputs = [axis for axis in range(tracked.ndim) if axis not in (*inputs, *groups)]
    if not inputs or not outputs:
        return None
    first, second = (aval_of(atom) for atom in equation.invars)
    ndims = (first.ndim, second.ndim)
    rows = dot_rows(equation.params, operand, ndims)
    moved = tracked.transpose([*groups, *outputs, *inputs])
    return Consumed(moved, "linear", len(groups), len(outputs), rows)


def _read_convolution(equation: JaxprEqn, operand: int, tracked: TrackedView) -> Consumed | None:
    """Read a kernel: each group of output channels is a matrix."""
    params = equation.params
    if operand != 1 or params["batch_group_count"] != 1:
        return None
    kernel = tracked.transpose(params["dimension_numbers"].rhs_spec)
    groups = params["feature_group_count"]
    apart = kernel.reshape(groups, -1, *kernel.shape[1:], copy=False)
    transposed = any(step != 1 for step in params["lhs_dilation"])
    kind = f"conv{'_transpose' if transposed else ''}{kernel.ndim - 2}d"
    return Consumed(apart, kind, 1, 1, conv_rows(params, kernel.shape, groups))


def _read_lookup(equation: JaxprEqn, operand: int, tracked: TrackedView) -> Consumed | None:
    """Read a table of two axes of which whole entries are taken: inputs are one-hot."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if operand != 0 or tracked.ndim != 2 or numbers.operand_batching_dims:
        return None
    if len(numbers.start_index_map) != 1 or numbers.collapsed_slice_dims != numbers.start_index_map:
        return None
    (axis,) = numbers.start_index_map
    if prod(sizes) != tracked.shape[1 - axis] or sizes[axis] != 1:
        return None
    dtype = aval_of(equation.invars[0]).dtype
    rows = lookup_rows(equation.params, tracked.shape, axis, dtype)
    return Consumed(tracked.transpose(1 - axis, axis), "embedding", 0, 1, rows)


_READERS = {
    "dot_general": _read_dot,
    "conv_general_dilated": _read_convolution,
    "gather": _read_lookup,
}
