"""The size of the second-order part on random directions, measured without shortcuts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectral_backends.torch.engines.forward_mode.batch import Block, TangentBatch
from spectral_backends.torch.instruments.nested import common_length, map_tensors
from spectral_backends.torch.instruments.threads import threads_for
from spectral_backends.torch.layers.discovery import Layer, parameters_of
from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_backends.torch.objective.objective import Objective

__all__ = ["N_DIRECTIONS", "LinearityProbe", "probe_second_order"]

N_DIRECTIONS = 2
"""The number of random directions of each layer."""

N_SAMPLES = 2
"""The number of samples of the first batch, if it can be cut."""


class LinearityProbe:
    """Measures second-order parts of some layers, once for all groups of samples.

    Parameters
    ----------
    objective : Objective
        The mean loss over all data.
    seed : int
        The seed of the pass and of the directions.
    """

    def __init__(self, objective: Objective, seed: int) -> None:
        self._objective, self._seed = objective, seed
        self._known: dict[tuple[str, ...], dict[str, float]] = {}

    def __call__(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Return what `probe_second_order` does."""
        names = tuple(layer.info.name for layer in layers)
        if names not in self._known:
            self._known[names] = probe_second_order(self._objective, layers, self._seed)
        return self._known[names]


def probe_second_order(
    objective: Objective, layers: Sequence[Layer], seed: int
) -> dict[str, float]:
    """Return ``max |h − h^GGN| / |h^GGN|`` over random directions of each layer.

    The first samples of the first batch with terms are taken, if its tensors have an axis in
    common. Samples that are fitted to rounding have neither part, and would show nothing. So the
    ratio is also taken with another function of the outputs in place of the loss, and the larger
    one counts.

    Raises
    ------
    RuntimeError
        If an operation cannot be differentiated twice.
    """
    generator = torch.Generator(objective.model.device).manual_seed(seed)
    blocks = [_random_block(objective, layer, generator) for layer in layers]
    with objective.one_pass(seed) as batches:
        for batch in batches:
            if found := _probe_batch(objective, layers, batch, blocks, generator):
                return found
    return {}


def _probe_batch(
    objective: Objective,
    layers: Sequence[Layer],
    batch: Any,
    blocks: Sequence[Block],
    generator: torch.Generator,
) -> dict[str, float]:
    for data in _candidates(batch):
        leaves = objective.leaves(parameters_of(layers))
        try:
            with threads_for(objective.work_of_operation * data.share):
                found = objective.model.hold(
                    leaves, partial(_shares, objective, layers, leaves, data, blocks, generator)
                )
        except Exception:
            if data.is_last:
                raise
            continue  # model or loss take batches of one size only
        if found:
            return found
    return {}


@dataclass(frozen=True)
class _Data:
    """Holds a batch or a share of it; `is_last` if nothing else is left to try."""

    batch: Any
    share: float
    is_last: bool


def _candidates(batch: Any) -> Iterator[_Data]:
    length = common_length(batch)
    if length is not None and length > N_SAMPLES:
        first = map_tensors(lambda t: t[:N_SAMPLES], batch)
        yield _Data(first, N_SAMPLES / length, is_last=False)
    yield _Data(batch, 1.0, is_last=True)


def _shares(
    objective: Objective,
    layers: Sequence[Layer],
    leaves: dict[str, Tensor],
    data: _Data,
    blocks: Sequence[Block],
    generator: torch.Generator,
) -> dict[str, float]:
    """Return the shares; nothing where no term of the data counts."""
    made = TangentBatch(objective, layers, leaves, data.batch, shortcuts=False)
    if not made.terms.count:
        return {}
    shares = _share(made, blocks)
    if made.knows_outputs:
        bare = _SquaredOutputs(objective, generator)
        other = TangentBatch(bare, layers, leaves, data.batch, shortcuts=False)
        shares = torch.maximum(shares, _share(other, blocks))
    return {
        layer.info.name: float(part.max())
        for layer, part in zip(layers, torch.split(shares, N_DIRECTIONS), strict=True)
    }


def _share(made: TangentBatch, blocks: Sequence[Block]) -> Tensor:
    found = made.sweep(blocks)
    share = found.second_order.abs() / found.ggn.abs()
    return share.nan_to_num(0.0, posinf=float("inf"))


class _SquaredOutputs:
    """Replaces the loss by ``½ |z|² + <c, z>`` of the outputs z, with c drawn at random."""

    def __init__(self, objective: Objective, generator: torch.Generator) -> None:
        self._objective, self._generator = objective, generator

    def loss(
        self,
        weights: Mapping[str, Tensor],
        batch: Any,
        at_outputs: Callable[[Any], Any] | None = None,
    ) -> tuple[Tensor, LossTerms]:
        """Return the replacement as `Objective.loss` does, with the terms of the loss."""
        outputs, _, terms = self._objective.split(weights, batch)
        z = at_outputs(outputs) if at_outputs else outputs
        c = torch.randn(z.shape, generator=self._generator, dtype=z.dtype, device=z.device)
        return (z * z).sum() / 2 + (c * z).sum(), terms


def _random_block(objective: Objective, layer: Layer, generator: torch.Generator) -> Block:
    like = objective.model.parameters[layer.parameter]
    u, v = (
        functional.normalize(
            torch.randn(
                size, N_DIRECTIONS, generator=generator, dtype=like.dtype, device=like.device
            ),
            dim=0,
        )
        for size in layer.info.shape
    )
    return Block(layer, u, v)
