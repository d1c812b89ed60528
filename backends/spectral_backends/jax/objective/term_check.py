"""Cuts of a loss's data between samples, which show how the loss reduces its terms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from spectral_backends.jax.devices.batches import common_length
from spectral_backends.jax.devices.placement import Placement
from spectral_backends.jax.objective.program import Program
from spectral_core.losses.sample_cuts import Cutter, SampleAxis
from spectral_core.losses.terms import BatchLoss, Shapes

__all__ = ["LossData", "cutter_of"]


@dataclass(frozen=True)
class LossData:
    """The arguments of the loss of a batch, or of a part of it.

    Parameters
    ----------
    values : list of jax.Array
        The parameters. They are empty if the loss is a function of outputs.
    outputs : list of jax.Array
        The outputs of the model. They are empty if the loss is a function of the parameters.
    leaves : list of jax.Array
        The arrays of the batch.
    structure : pytree structure
        The structure that they make.
    program : Program
        The program that holds the loss, for batches of these shapes.
    """

    values: list[jax.Array]
    outputs: list[jax.Array]
    leaves: list[jax.Array]
    structure: Any
    program: Program

    @property
    def own(self) -> list[int]:
        """Return the leaves of the batch that the loss depends on: the targets, or all."""
        indices = range(len(self.leaves))
        if self.program.forward is None:
            return list(indices)
        targets = jax.tree_util.tree_unflatten(self.structure, indices)[-1]
        return list(jax.tree_util.tree_leaves(targets))

    @property
    def shapes(self) -> Shapes:
        """Return the shapes of the outputs, and of the leaves that the loss is a function of."""
        forward = self.program.forward
        outputs: Sequence[Any] = () if forward is None else forward.out_avals
        arrays = (*(self.outputs or outputs), *(self.leaves[i] for i in self.own))
        return [tuple(array.shape) for array in arrays]

    @property
    def length(self) -> int | None:
        """Return the length that all of them have along their first axis; None without one."""
        lengths = {shape[0] if shape else None for shape in self.shapes}
        return lengths.pop() if len(lengths) == 1 else None

    def mapped(self, function: Callable[..., jax.Array], *others: "LossData") -> "LossData":
        """Return the data with ``function(place, array, *others)`` of each that it lists."""
        n = len(self.outputs)
        outputs = [
            function(i, z, *(other.outputs[i] for other in others))
            for i, z in enumerate(self.outputs)
        ]
        leaves = list(self.leaves)
        for place, i in enumerate(self.own):
            of_others = (other.leaves[i] for other in others)
            leaves[i] = function(n + place, leaves[i], *of_others)
        return replace(self, outputs=outputs, leaves=leaves)


def cutter_of(
    data: Callable[[int], LossData],
    loss: Callable[[LossData], BatchLoss],
    placement: Placement | None,
) -> Cutter[LossData]:
    """Return the cutter that takes the data of losses apart.

    Parameters
    ----------
    data : callable
        ``data(index)`` returns the data of a batch.
    loss : callable
        ``loss(data)`` returns the loss of data, also of a part of a batch.
    placement : Placement or None
        The place of samples on devices; they are cut between these where they can be.
    """

    def part(whole: LossData, axis: SampleAxis, start: int, stop: int) -> LossData:
        arrays = [*whole.outputs, *whole.leaves]
        length = common_length(arrays)
        halved = set(axis.axes) == {0} and length in (2 * stop, 2 * start)
        if placement is not None and length and halved and placement.divides(length):
            halves = placement.halves(whole.values, arrays)
            return _with(whole, halves[0 if start == 0 else 1])

        def sliced(place: int, array: jax.Array) -> jax.Array:
            found = axis.slices(place, start, stop)
            return array if found is None else _slice(array, *found)

        return whole.mapped(sliced)

    def joined(first: LossData, second: LossData, axis: SampleAxis) -> LossData:
        def join(place: int, one: jax.Array, other: jax.Array) -> jax.Array:
            along = axis.axes[place]
            if along is None:
                return one
            for i, sizes in enumerate(zip(one.shape, other.shape, strict=True)):
                if i != along:
                    one, other = (_slice(a, i, slice(0, min(sizes))) for a in (one, other))
            return jnp.concatenate([one, other], along)

        return first.mapped(join, second)

    return Cutter(data, part, joined, loss)


def _with(data: LossData, arrays: Sequence[jax.Array]) -> LossData:
    """Return data with other values, outputs and leaves, in this order."""
    n, m = len(data.values), len(data.values) + len(data.outputs)
    return replace(
        data, values=list(arrays[:n]), outputs=list(arrays[n:m]), leaves=list(arrays[m:])
    )


def _slice(array: jax.Array, axis: int, which: slice) -> jax.Array:
    found: jax.Array = array[(slice(None),) * axis + (which,)]
    return found
