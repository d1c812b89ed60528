"""The placement of work on many devices, read off the shardings of parameters and batches.

Samples stay where they are. The axes of the mesh that split the first sharded axis of a batch are
its *sample axes*; everything else that is computed lies on all devices. Parameters are copied along
the sample axes, where each device needs them whole for its own samples, and stay split along
others, as for tensor parallelism. jit does the rest: it keeps samples apart and adds their sums up,
as long as it is told where the samples of what has no other origin belong (`split_samples`), and
except for the operations in `sample_shares`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_backends.jax.devices.batches import common_length
from spectral_core.errors import InputError

__all__ = ["Placed", "Placement", "ambient", "find_placement", "split_samples", "traced_under"]

_spec: Any = PartitionSpec  # has no types
_constrained: Any = jax.lax.with_sharding_constraint  # has none either


@dataclass(frozen=True)
class Placement:
    """Devices, and which axes of their mesh split the samples.

    Parameters
    ----------
    mesh : Mesh
        The mesh of all devices. Its axes are of type Auto, so that jit places what is computed.
    samples : tuple of str
        The axes that split samples. The tuple is empty if only parameters are sharded.
    """

    mesh: Mesh
    samples: tuple[str, ...]

    @property
    def shares(self) -> int:
        """Return the number of shares that samples are split into."""
        return prod(self.mesh.shape[axis] for axis in self.samples)

    def everywhere(self, array: jax.Array) -> jax.Array:
        """Copy an array to all devices."""
        found: jax.Array = jax.device_put(array, NamedSharding(self.mesh, _spec()))
        return found

    def on_one(self, array: jax.Array) -> jax.Array:
        """Bring an array, which must not grow with the samples, to the first device."""
        found: jax.Array = jax.device_put(array, self.mesh.devices.flat[0])
        return found

    def weights(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Return parameters on the mesh, whole along the sample axes."""
        return [self._on_mesh(value, without=self.samples) for value in values]

    def batch(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Return a batch on the mesh; arrays beside sharded ones are split like them.

        Raises
        ------
        InputError
            Inside of ``jax.set_mesh``, which would place what is computed as well.
        """
        if not jax.sharding.get_abstract_mesh().empty:
            raise InputError(_SET_MESH)
        lengths = [leaf.shape[0] for leaf in leaves if _first_axes(leaf)[0] == 0]
        length = lengths[0] if lengths else common_length(leaves)

        def placed(leaf: jax.Array) -> jax.Array:
            mate = leaf.ndim > 0 and leaf.shape[0] == length and self.divides(leaf.shape[0])
            there = self._holds(leaf) and _first_axes(leaf)[0] == 0
            return self._split(leaf) if mate and not there else self._on_mesh(leaf)

        return [placed(leaf) for leaf in leaves]

    def divides(self, length: int) -> bool:
        """Say whether an axis of samples can be split."""
        return self.shares > 1 and length % self.shares == 0

    def halves(self, whole: Sequence[jax.Array], cut: Sequence[jax.Array]) -> list[list[jax.Array]]:
        """Cut arrays of samples in two, between devices: nothing is moved. Others are in both."""
        arrays = [*whole, *map(self._split, cut)]
        axis = next(a for a in self.samples if self.mesh.shape[a] > 1)
        place = self.mesh.axis_names.index(axis)
        devices = np.split(self.mesh.devices, [self.mesh.shape[axis] // 2], axis=place)
        return [
            [_part(array, Mesh(own, self.mesh.axis_names), axis) for array in arrays]
            for own in devices
        ]

    def first_samples(self, array: jax.Array, count: int) -> jax.Array:
        """Return the first samples, on all devices; others are not touched."""
        if _first_axes(array)[0] != 0:
            return array[:count]
        shards = self._split(array).addressable_shards
        shares = {shard.index[0].start or 0: shard.data for shard in shards}
        parts = [share[:count] for _, share in sorted(shares.items())[:count]]
        return self.everywhere(jnp.concatenate([self.on_one(part) for part in parts])[:count])

    def _split(self, array: jax.Array) -> jax.Array:
        """Split an array by samples along its first axis."""
        sharding = NamedSharding(self.mesh, _spec(self.samples))
        found: jax.Array = jax.device_put(array, sharding)
        return found

    def _holds(self, array: jax.Array) -> bool:
        """Say whether an array is sharded over the same devices."""
        own = array.sharding
        return isinstance(own, NamedSharding) and np.array_equal(
            own.mesh.devices.flat, self.mesh.devices.flat
        )

    def _on_mesh(self, array: jax.Array, without: Sequence[str] = ()) -> jax.Array:
        """Keep an array's sharding but for some axes; copy one of other devices to all."""
        own = array.sharding
        if not isinstance(own, NamedSharding) or not self._holds(array):
            return self.everywhere(array)
        if not without or own.mesh.axis_names == self.mesh.axis_names:
            spec = _spec(*(_left(entry, without) for entry in own.spec))
        else:  # axes of another mesh of the same devices
            spec = _spec()
        found: jax.Array = jax.device_put(array, NamedSharding(_auto(own.mesh), spec))
        return found


def find_placement(leaves: Sequence[jax.Array], values: Sequence[jax.Array]) -> Placement | None:
    """Read the placement off a batch and the parameters; None where nothing is sharded."""
    for arrays, hold_samples in ((leaves, True), (values, False)):
        for array in arrays:
            sharding, axes = array.sharding, _first_axes(array)[1]
            if isinstance(sharding, NamedSharding) and axes:
                return Placement(_auto(sharding.mesh), axes if hold_samples else ())
    return None


@dataclass(frozen=True)
class Placed:
    """Parameters where the work on batches needs them.

    Parameters
    ----------
    values : list of jax.Array
        The parameters.
    placement : Placement or None
        The placement of parameters and batches on the devices; None if nothing is sharded.
    """

    values: list[jax.Array]
    placement: Placement | None = None

    def beside(self, leaves: Sequence[jax.Array]) -> "Placed":
        """Return them where a batch needs them: the first one that is sharded says where."""
        if self.placement is not None:
            return self
        found = find_placement(leaves, self.values)
        return self if found is None else Placed(found.weights(self.values), found)

    def batch(self, leaves: list[jax.Array]) -> list[jax.Array]:
        """Return a batch beside them."""
        return leaves if self.placement is None else self.placement.batch(leaves)

    def first_samples(self, leaves: Sequence[jax.Array], count: int) -> list[jax.Array]:
        """Return the first samples of a batch."""
        if self.placement is None:
            return [leaf[:count] for leaf in leaves]
        return [self.placement.first_samples(leaf, count) for leaf in leaves]


_AMBIENT: ContextVar[Placement | None] = ContextVar("placement", default=None)


def ambient() -> Placement | None:
    """Return the placement of what is being traced, as JAX has an ambient mesh."""
    return _AMBIENT.get()


def traced_under(placement: Placement | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, with a placement about it whenever it is traced."""

    def run(*arguments: Any) -> Any:
        with _under(placement):
            return function(*arguments)

    return run


def split_samples(array: Any) -> Any:
    """Say that the first axis counts samples, which stay on their devices; may be traced."""
    placement = ambient()
    if placement is None or not array.ndim or not placement.divides(array.shape[0]):
        return array
    rest = [PartitionSpec.UNCONSTRAINED] * (array.ndim - 1)
    spec = _spec(placement.samples, *rest)
    return _constrained(array, NamedSharding(placement.mesh, spec))


@contextmanager
def _under(placement: Placement | None) -> Iterator[None]:
    token = _AMBIENT.set(placement)
    try:
        yield
    finally:
        _AMBIENT.reset(token)


def _first_axes(array: jax.Array) -> tuple[int, tuple[str, ...]]:
    """Return the first axis of an array that is split, and the axes of the mesh that split it."""
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        for place, entry in enumerate(sharding.spec):
            axes = tuple(a for a in _names(entry) if sharding.mesh.shape[a] > 1)
            if axes:
                return place, axes
    return -1, ()


def _names(entry: Any) -> tuple[str, ...]:
    """Return the axes of the mesh in one entry of a specification."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _left(entry: Any, without: Sequence[str]) -> tuple[str, ...]:
    return tuple(axis for axis in _names(entry) if axis not in without)


def _auto(mesh: Any) -> Mesh:
    """Return the mesh with axes of type Auto, whatever they were."""
    return Mesh(mesh.devices, mesh.axis_names)


_SET_MESH = (
    "params, batches: they are sharded, and jax.set_mesh is in force, which would place what is "
    "computed as well; build the problem and measure outside of it: the shardings say enough."
)


def _part(array: jax.Array, mesh: Mesh, axis: str) -> jax.Array:
    """Return the part of an array on a part of the mesh, cut along one of its axes."""
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding)
    own = NamedSharding(mesh, sharding.spec)
    cut = [axis in _names(entry) for entry in sharding.spec]
    shape = tuple(
        n * mesh.shape[axis] // sharding.mesh.shape[axis] if i < len(cut) and cut[i] else n
        for i, n in enumerate(array.shape)
    )
    devices = set(mesh.devices.flat)
    shards = [shard.data for shard in array.addressable_shards if shard.device in devices]
    return jax.make_array_from_single_device_arrays(shape, own, shards)
