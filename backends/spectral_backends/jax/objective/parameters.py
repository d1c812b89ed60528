"""The parameters of a model: the floating leaves of a pytree, flat and by name."""

from copy import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.batches import count_where
from spectral_backends.jax.devices.processes import check_in_sight
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError
from spectral_core.matrices.names import parameter_name

__all__ = ["Parameters"]


class Parameters:
    """The floating arrays of a pytree; everything else in it is a constant.

    Parameters
    ----------
    tree : pytree
        The arrays of any kind, nested in any way that JAX knows; functions, numbers and
        whole-number arrays among the leaves are kept as they are.
    dtype : dtype, optional
        The type to measure in. By default it is that of the leaves, float32 for half precision.

    Attributes
    ----------
    names : list of str
        The paths of the floating leaves.
    values : list of jax.Array
        The values of these leaves as they were given, in one dtype. Nothing replaces them: a batch
        that needs them on other devices brings copies of its own.
    dtype, stored_dtype : dtype
        The types of `values`, and of the leaves as given.

    Raises
    ------
    InputError
        If there is none of two axes, or one cannot be used.
    """

    def __init__(self, tree: Any, dtype: Any = None) -> None:
        paths, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._leaves = [leaf for _, leaf in paths]
        self._indices = [i for i, leaf in enumerate(self._leaves) if _is_parameter(leaf)]
        self.names = [parameter_name(paths[i][0]) for i in self._indices]
        found = [self._leaves[i] for i in self._indices]
        for name, leaf in zip(self.names, found, strict=True):
            _check_leaf(name, leaf)
        if not any(np.ndim(leaf) >= 2 for leaf in found):
            kinds = sorted(
                {str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in self._leaves}
            )
            raise InputError(
                "params: it has no floating array with two or more axes, so no matrix"
                + (f" (leaves are: {', '.join(kinds)})." if kinds else "; it is empty.")
            )
        self.stored_dtype = jnp.result_type(*(leaf.dtype for leaf in found))
        self.dtype = jnp.dtype(dtype or jnp.promote_types(self.stored_dtype, jnp.float32))
        self.values = [jnp.asarray(leaf, self.dtype) for leaf in found]
        self.shapes = [value.shape for value in self.values]
        for name, value in zip(self.names, self.values, strict=True):
            _check_traced(name, value)
            if bad := value.size - count_where("isfinite", value):
                raise InputError(
                    f"params: {name!r} holds {bad} NaN or infinite values; load weights from "
                    "before they diverged."
                )

    def in_type(self, dtype: Any) -> "Parameters":
        """Return the same values in another floating point type."""
        other = copy(self)
        other.dtype = jnp.dtype(dtype)
        other.values = [jnp.asarray(np.asarray(value), dtype) for value in self.values]
        return other

    def tree(self, values: list[Any]) -> Any:
        """Return the pytree with other values of the floating leaves."""
        leaves = list(self._leaves)
        for index, value in zip(self._indices, values, strict=True):
            leaves[index] = value
        return jax.tree_util.tree_unflatten(self._structure, leaves)


def _is_parameter(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array | np.ndarray):
        return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
    return False


def _check_traced(name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.core.Tracer):
        raise InputError(
            f"params: {name!r} is being traced; build the problem outside of jit, grad and vmap, "
            "with arrays that have values."
        )


def _check_leaf(name: str, leaf: Any) -> None:
    _check_traced(name, leaf)
    plain(f"params: {name!r}", leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise InputError(
            f"params: {name!r} is complex ({leaf.dtype}); pass its real and imaginary parts."
        )
    check_in_sight(f"params: {name!r}", leaf)
