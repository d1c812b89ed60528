"""Cuts of a loss's data between samples, which show how the loss reduces its terms."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.nested import map_tensors, tensors_in
from spectral_core.losses.sample_cuts import Cutter, SampleAxis
from spectral_core.losses.terms import BatchLoss, Shapes

__all__ = ["cutter_of", "shapes_of"]


def shapes_of(data: Any) -> Shapes:
    """Return the shapes of the tensors that a loss is computed from."""
    return [tuple(tensor.shape) for tensor in tensors_in(data)]


def cutter_of(data: Callable[[int], Any], loss: Callable[[Any], BatchLoss]) -> Cutter[Any]:
    """Return the cutter that takes apart tensors nested in any way.

    Parameters
    ----------
    data : callable
        ``data(index)`` returns what the loss of a batch is a function of.
    loss : callable
        The loss of a batch, as a function of what `data` returns.
    """
    return Cutter(data, _part, _joined, loss)


def _part(data: Any, axis: SampleAxis, start: int, stop: int) -> Any:
    places = count()

    def part(tensor: Tensor) -> Tensor:
        found = axis.slices(next(places), start, stop)
        if found is None:
            return tensor
        along, which = found
        return tensor.narrow(along, which.start, which.stop - which.start)

    return map_tensors(part, data)


def _joined(first: Any, second: Any, axis: SampleAxis) -> Any:
    others: Iterator[Tensor] = tensors_in(second)
    places = count()

    def joined(one: Tensor) -> Tensor:
        along, other = axis.axes[next(places)], next(others)
        if along is None:
            return one
        for i, sizes in enumerate(zip(one.shape, other.shape, strict=True)):
            if i != along:
                one, other = (t.narrow(i, 0, min(sizes)) for t in (one, other))
        return torch.cat([one, other], along)

    return map_tensors(joined, first)
