"""Spectral Newton for many parameters: matrices of one shape are updated in one call."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from typing import Protocol

import array_api_compat

from spectral_core.arrays.factorize import after
from spectral_core.arrays.namespace import Array, device_key
from spectral_core.newton.options import StepOptions
from spectral_core.newton.step import newton_step
from spectral_core.preconditioning.function import is_number

__all__ = ["Layout", "spectral_newton_steps"]

# The limit keeps the copies of a batch small beside a large model: 256 MiB in float32.
BATCH_ELEMENTS = 2**26


class Layout(Protocol):
    """The matrices of a parameter: a `MatrixLayout`, or an object with the same members."""

    @property
    def slices(self) -> tuple[tuple[int, ...], ...]:
        """The slice of the parameter for each of the matrices that `split` returns."""

    def split(self, array: Array) -> list[Array]:
        """Return arrays of matrices, each of shape (B, m, n)."""

    def merge(self, matrices: list[Array]) -> Array:
        """Return the array of the parameter; this undoes `split`."""


@dataclass(frozen=True)
class _Part:
    """Matrices (B, m, n) of one shape and one α in a parameter, which is known by its number.

    They are all, or some, of the matrices in one array of the parameter's split, which is known by
    its number, too.
    """

    parameter: int
    array: int
    alpha: float | Array
    weight_decay: float | Array
    weight: Array
    gradient: Array
    momentum: Array

    @property
    def key(self) -> Hashable:
        """Parts with equal keys can be updated together."""
        arrays = (self.weight, self.gradient, self.momentum)
        dtypes = tuple(array.dtype for array in arrays)
        options = (_identity(self.alpha), _identity(self.weight_decay))
        return options, tuple(self.weight.shape[1:]), dtypes, device_key(self.weight)


def spectral_newton_steps(
    weights: Sequence[Array],
    gradients: Sequence[Array],
    momenta: Sequence[Array],
    *,
    layouts: Sequence[Layout],
    alphas: Sequence[float | Array | tuple[float, ...]],
    options: StepOptions,
    weight_decays: Sequence[float | Array] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Return the step of each parameter, and its new momentum (Theory 9.9).

    Parameters
    ----------
    weights, gradients, momenta : sequence of array
        One array of each kind for every parameter, of its shape. Nothing is written to.
    layouts : sequence of Layout
        The matrices of each parameter.
    alphas : sequence of float or 0-d array
        The exponent of each parameter. It may be a tuple with one number for each slice of the
        parameter's stack.
    options : StepOptions
        The options, which all parameters share.
    weight_decays : sequence of float or array, optional
        The weight decay of each parameter, if it is not that of the options.

    Returns
    -------
    steps, momenta : list of array
        The steps and momenta. They are equal, up to rounding, to those of every matrix by itself:
        the batches depend on shapes, dtypes, devices, α and weight decay alone. Arrays for the
        latter two are the same only if they are one object. The function runs under `jax.jit`.

    Raises
    ------
    InputError
        If `spectral_newton_step` raises it, or a shape is not that of its layout.
    """
    decays = [options.weight_decay] * len(layouts) if weight_decays is None else weight_decays
    parts: list[_Part] = []
    for i, layout in enumerate(layouts):
        split = [layout.split(array) for array in (weights[i], gradients[i], momenta[i])]
        for j, arrays in enumerate(zip(*split, strict=True)):
            for alpha, own in _runs(alphas[i], layout, j):
                held = [array if own is None else array[own, :, :] for array in arrays]
                parts.append(_Part(i, j, alpha, decays[i], *held))
    results: dict[int, tuple[Array, Array]] = {}
    previous = None
    for batch in _batches(parts):
        for part, result in _update(batch, options, previous):
            results[id(part)] = result
        previous = result[0]
    found: list[dict[int, list[tuple[Array, Array]]]] = [{} for _ in layouts]
    for part in parts:  # the order is that of their parameter's matrices
        found[part.parameter].setdefault(part.array, []).append(results[id(part)])
    return _merged(layouts, found, 0), _merged(layouts, found, 1)


def _merged(
    layouts: Sequence[Layout], found: Sequence[dict[int, list[tuple[Array, Array]]]], which: int
) -> list[Array]:
    """Return an array for each layout, of the steps (0) or of the momenta (1) of its parts."""
    return [
        layout.merge([_joined([result[which] for result in own]) for own in arrays.values()])
        for layout, arrays in zip(layouts, found, strict=True)
    ]


def _runs(
    alpha: float | Array | tuple[float, ...], layout: Layout, index: int
) -> list[tuple[float | Array, slice | None]]:
    """Return each α with its matrices within one array of a split; None stands for all."""
    if not isinstance(alpha, tuple) or len(set(alpha)) == 1:
        return [(alpha[0] if isinstance(alpha, tuple) else alpha, None)]
    runs: list[tuple[float | Array, slice | None]] = []
    start = 0
    for value, members in groupby(alpha[number] for number in layout.slices[index]):
        stop = start + len(list(members))
        runs.append((value, slice(start, stop)))
        start = stop
    return runs


def _batches(parts: Iterable[_Part]) -> list[list[_Part]]:
    """Return the batches of parts, in an order that depends on the parameters alone."""
    open_batches: dict[Hashable, list[_Part]] = {}
    done: list[list[_Part]] = []
    for part in parts:
        batch = open_batches.setdefault(part.key, [])
        if batch and sum(prod(p.weight.shape) for p in (*batch, part)) > BATCH_ELEMENTS:
            done.append(batch)
            batch = open_batches[part.key] = []
        batch.append(part)
    return done + list(open_batches.values())


def _update(
    batch: Sequence[_Part], options: StepOptions, previous: Array | None
) -> Iterable[tuple[_Part, tuple[Array, Array]]]:
    """Return the step and the new momentum of each part of a batch, after a previous step."""
    gradient = _joined([part.gradient for part in batch])
    if previous is not None:
        gradient = after(array_api_compat.array_namespace(gradient), gradient, previous)
    step, momentum = newton_step(
        _joined([part.weight for part in batch]),
        gradient,
        _joined([part.momentum for part in batch]),
        batch[0].alpha,
        replace(options, weight_decay=batch[0].weight_decay),
    )
    start = 0
    for part in batch:
        own = slice(start, start + part.weight.shape[0])
        start = own.stop
        yield part, (step[own, :, :], momentum[own, :, :])


def _joined(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    return array_api_compat.array_namespace(*arrays).concat(list(arrays), axis=0)


def _identity(value: float | Array) -> Hashable:
    """Return a number itself, and for an array, whose value may be traced, its identity."""
    return float(value) if is_number(value) else ("array", id(value))
