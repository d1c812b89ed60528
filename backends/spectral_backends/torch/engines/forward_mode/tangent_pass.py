"""Curvature of several layers from tangents, streamed over the batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from spectral_backends.torch.engines.forward_mode.batch import Block, SweepResult, TangentBatch
from spectral_backends.torch.instruments.allocation import AllocationPeak
from spectral_backends.torch.instruments.sums import zero_sums
from spectral_backends.torch.instruments.work_counter import WorkCounter
from spectral_backends.torch.layers.discovery import Layer, image_kernels, parameters_of
from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_backends.torch.objective.objective import Objective

__all__ = ["TangentPass", "TangentTotals"]


@dataclass
class TangentTotals:
    """Running sums of one layer over all terms, shape ``(K,)``; as in `SweepResult`."""

    ggn: Tensor
    second_order: Tensor
    derivative: Tensor

    def add(self, directions: slice, found: SweepResult, where: slice) -> None:
        """Add what a sweep found for some directions."""
        for name in ("ggn", "second_order", "derivative"):
            getattr(self, name)[directions] += getattr(found, name)[where]


class TangentPass:
    """Sends directions forward through each batch, as many together as memory allows.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    layers : sequence of Layer
        The layers to measure.
    directions : mapping of str to (Tensor, Tensor)
        The vectors u of shape ``(m, K)`` and v of shape ``(n, K)`` of each layer.
    seed : int
        The seed of the pass.
    chunk : callable
        ``chunk(bytes_of_one)`` returns the number of directions to send together.
    channels_last : bool
        The option of `Objective.leaves`.

    Attributes
    ----------
    totals : dict of str to TangentTotals
        The running sums of each layer.
    count : float
        The number of terms.
    work : float
        The multiply-adds of the first batch: one direction of each layer is counted for all.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[Layer],
        directions: Mapping[str, tuple[Tensor, Tensor]],
        seed: int,
        chunk: Callable[[int], int],
        *,
        channels_last: bool,
    ) -> None:
        self._objective, self._layers, self._directions = objective, list(layers), directions
        self._seed, self._chunk, self._channels_last = seed, chunk, channels_last
        self.totals: dict[str, TangentTotals] = {}
        self.count, self.work = 0.0, 0.0
        self._knows_outputs, self._used_by_loss = False, set[str]()
        self._bytes = 0  # the most bytes that one direction takes; 0 until measured

    def run(self, progress_callback: Callable[[int], None]) -> None:
        """Go through the data once; `progress_callback` hears the number of finished batches.

        Raises
        ------
        RuntimeError
            If an operation cannot be differentiated twice.
        """
        with self._objective.one_pass(self._seed) as batches:
            self.totals = {
                layer.info.name: TangentTotals(*zero_sums(self._directions[layer.info.name][0]))
                for layer in self._layers
            }
            for index, batch in enumerate(batches):
                leaves = self._objective.leaves(
                    parameters_of(self._layers),
                    channels_last=image_kernels(self._layers) if self._channels_last else (),
                )
                terms = self._objective.model.hold(leaves, partial(self._add, leaves, batch))
                self.count += terms.count
                progress_callback(index + 1)

    def tells_ggn(self, layer: Layer) -> bool:
        """Say whether a layer's h^GGN is told from the rest of h.

        It is not where the loss is not told from the model, or uses the weight itself.
        """
        return self._knows_outputs and layer.parameter not in self._used_by_loss

    def _add(self, leaves: dict[str, Tensor], batch: Any) -> LossTerms:
        counter = WorkCounter()
        with counter:
            made = TangentBatch(self._objective, self._layers, leaves, batch)
        self._knows_outputs |= made.knows_outputs
        self._used_by_loss |= made.used_by_loss
        if made.terms.count:
            done = dict.fromkeys(self.totals, 0)
            if not self._bytes:
                self.work += counter.work
                done = self._measure(made)
            for chunk in self._chunks(done):
                self._sweep(made, chunk)
        return made.terms

    def _measure(self, made: TangentBatch) -> dict[str, int]:
        """Send a direction of each layer by itself, and see what it takes.

        Several together may take more than so many alone, as what they share is then copied for
        each; so where several have room, two are tried. Returns how many are done.
        """
        taken: dict[str, int] = {}
        for layer in self._layers:
            counter, peak = WorkCounter(), AllocationPeak()
            with counter, peak:
                self._sweep(made, [(layer, slice(0, 1))])
            self.work += counter.work * self._count(layer)
            taken[layer.info.name] = max(peak.bytes, 1)
        self._bytes = max(taken.values())
        done = dict.fromkeys(taken, 1)
        largest = max(self._layers, key=lambda layer: taken[layer.info.name])
        if self._chunk(self._bytes) > 1 and self._count(largest) > 2:
            peak = AllocationPeak()
            with peak:
                self._sweep(made, [(largest, slice(1, 3))])
            self._bytes = max(self._bytes, peak.bytes // 2)
            done[largest.info.name] = 3
        return done

    def _sweep(self, made: TangentBatch, chunk: Sequence[tuple[Layer, slice]]) -> None:
        blocks = []
        for layer, part in chunk:
            u, v = self._directions[layer.info.name]
            blocks.append(Block(layer, u[:, part], v[:, part]))
        found = made.sweep(blocks)
        start = 0
        for (layer, part), block in zip(chunk, blocks, strict=True):
            self.totals[layer.info.name].add(part, found, slice(start, start + len(block)))
            start += len(block)

    def _chunks(self, done: Mapping[str, int]) -> Iterator[list[tuple[Layer, slice]]]:
        """Yield directions that go together, all but the first ones that are done.

        Where a layer's directions join those of earlier ones, both are held beside what they
        become, so half as many go together there.
        """
        alone, mixed = (max(1, self._chunk(times * self._bytes)) for times in (1, 2))
        chunk: list[tuple[Layer, slice]] = []
        for layer in self._layers:
            start, stop = done[layer.info.name], self._count(layer)
            while stop - start > mixed:
                part = slice(start, min(stop, start + alone))
                yield [(layer, part)]
                start = part.stop
            if start == stop:
                continue
            if _size(chunk) + stop - start > mixed:
                yield chunk
                chunk = []
            chunk.append((layer, slice(start, stop)))
        if chunk:
            yield chunk

    def _count(self, layer: Layer) -> int:
        return int(self._directions[layer.info.name][0].shape[1])


def _size(chunk: Sequence[tuple[Layer, slice]]) -> int:
    return sum(part.stop - part.start for _, part in chunk)
