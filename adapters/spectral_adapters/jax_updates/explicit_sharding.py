"""Arrays of a mesh with explicit axes: the compiler decides how intermediate values are sharded."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spectral_core._extras import require

if TYPE_CHECKING:
    import jax
else:
    jax = require("jax", "optax", "Spectral Newton for JAX")

__all__ = ["with_automatic_axes"]


def with_automatic_axes(
    function: Callable[..., Any], constants: Any, arrays: list[list[Any]]
) -> Any:
    """Call ``function(constants, *arrays)``, whatever mesh the arrays are on.

    With explicit axes, which `jax.make_mesh` makes, every product would need the sharding of its
    result. Inside, axes are automatic. Results are sharded like the last two lists of arrays.

    Parameters
    ----------
    function : callable
        A function that returns two lists of arrays, of the shapes of the last two in `arrays`.
    constants : pytree
        A tree of numbers and arrays. An object that occurs twice is one object for the function
        too.
    arrays : list of list of array
        The further arguments.
    """
    mesh = next((m for group in arrays for a in group if (m := _explicit_mesh(a))), None)
    if mesh is None:
        return function(constants, *arrays)
    # Arrays of an enclosing scope would still have explicit axes: all are passed as arguments.
    leaves = jax.tree.leaves(constants)
    captured = {id(value): value for value in leaves if hasattr(value, "dtype")}

    def inside(values: list[Any], *own: list[Any]) -> Any:
        moved = dict(zip(captured, values, strict=True))
        return function(jax.tree.map(lambda leaf: moved.get(id(leaf), leaf), constants), *own)

    shardings = tuple([jax.typeof(array).sharding for array in group] for group in arrays[-2:])
    with jax.sharding.use_abstract_mesh(mesh):
        call = jax.sharding.auto_axes(inside, out_sharding=shardings)
        return call(list(captured.values()), *arrays)


def _explicit_mesh(array: Any) -> Any:
    """Return the mesh of an array that has explicit axes, or None."""
    mesh = getattr(jax.typeof(array).sharding, "mesh", None)
    return mesh if mesh is not None and mesh.explicit_axes else None
