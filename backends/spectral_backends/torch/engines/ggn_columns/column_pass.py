"""Gauss-Newton curvature of all layers and directions at once, from the root of the loss's Hessian.

With ``S Sᵀ`` the Hessian of the loss in the outputs, each GGN column, a column of S, is sent back
once. At every use of every layer the gradient that arrives is projected on the directions, summed
over positions, squared and averaged (Theory 5.4). The price is that of one backward pass per
column, for all layers together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.capture.direction_probes import DirectionProbes
from spectral_backends.torch.instruments.graph import leaves_behind
from spectral_backends.torch.instruments.linearity import find_curvature
from spectral_backends.torch.instruments.sums import sum_dtype, zero_sums
from spectral_backends.torch.instruments.work_counter import WorkCounter
from spectral_backends.torch.layers.discovery import Layer, image_kernels, parameters_of
from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_backends.torch.objective.objective import Objective
from spectral_backends.torch.objective.output_loss import TorchDraws, loss_curvature
from spectral_core.losses.base import OutputCurvature

__all__ = ["ColumnPass", "ColumnTotals"]

Directions = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class ColumnTotals:
    """Running sums of one layer, in float64 where the device has it.

    Parameters
    ----------
    ggn : Tensor, shape (K,)
        The sum over terms of the squared products.
    variance : Tensor, shape (K,)
        The variance of that sum if it is a Monte-Carlo estimate, else zero.
    derivative : Tensor, shape (K,)
        The sum over terms of ``<∂l, D_k>``. It shows whether every use of the weight was seen.
    nonlinear : str
        An operation by which the outputs are nonlinear in the weight. It is empty if there is none.
    problem : str
        The reason why the sums are not the layer's curvature. It is empty if they are.
    """

    ggn: Tensor
    variance: Tensor
    derivative: Tensor
    nonlinear: str = ""
    problem: str = ""


class ColumnPass:
    """Sends the GGN columns back through each batch.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    layers : sequence of Layer
        The layers to measure.
    directions : mapping of str to (Tensor, Tensor)
        The vectors u of shape ``(m, K)`` and v of shape ``(n, K)`` of each layer.
    seed : int
        The seed of the pass and of the random signs.
    chunk : callable
        ``chunk(bytes_of_one)`` returns the number of columns to send back together.
    mc_samples : int
        The number of random combinations of all columns to send back for each batch instead of
        every column. 0 sends every column.
    max_outputs : int
        The largest number of outputs of a sample for which a dense root is made.
    channels_last : bool
        The option of `Objective.leaves`.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[Layer],
        directions: Directions,
        seed: int,
        chunk: Callable[[int], int],
        *,
        mc_samples: int = 0,
        max_outputs: int,
        channels_last: bool,
    ) -> None:
        self._objective, self._layers, self._directions = objective, list(layers), directions
        self._seed, self._chunk, self._mc_samples = seed, chunk, mc_samples
        self._max_outputs, self._channels_last = max_outputs, channels_last
        self.totals: dict[str, ColumnTotals] = {}
        self._generator = torch.Generator(objective.model.device).manual_seed(seed)
        self.count = 0.0
        self._forward_work = self._column_work = 0.0
        self._n_sent = 0
        self._first = True

    @property
    def work(self) -> float:
        """Return the multiply-adds of the first batch: one column is counted for all."""
        return self._forward_work + self._column_work * self._n_sent

    def run(self, progress_callback: Callable[[int], None]) -> None:
        """Go through the data once; `progress_callback` hears the number of finished batches.

        Raises
        ------
        InputError
            If the loss has no root in the outputs.
        """
        with self._objective.one_pass(self._seed) as batches:
            self.totals = {
                name: ColumnTotals(*zero_sums(u)) for name, (u, _) in self._directions.items()
            }
            for index, batch in enumerate(batches):
                leaves = self._objective.leaves(
                    parameters_of(self._layers),
                    channels_last=image_kernels(self._layers) if self._channels_last else (),
                )
                add = partial(self._add, leaves, batch)
                terms = self._objective.model.hold(leaves, add)
                self.count += terms.count
                self._first = False
                progress_callback(index + 1)

    def _add(self, leaves: dict[str, Tensor], batch: Any) -> LossTerms:
        """Add one batch; return its terms."""
        probes = DirectionProbes(self._layers, leaves, self._directions)
        counter = WorkCounter()
        with counter if self._first else nullcontext(), probes:
            outputs, loss_of, terms = self._objective.split(leaves, batch)
        self._forward_work += counter.work
        if terms.count == 0:
            return terms
        root = loss_curvature(outputs.detach(), loss_of, terms, self._max_outputs)
        self._look_for_curvature(outputs, leaves)
        for name, reason in probes.unprobed.items():
            self.totals[name].problem = reason
        self._look_for_direct_uses(outputs, loss_of, leaves)
        if self._mc_samples:
            self._add_draws(outputs, root, probes)
        else:
            self._add_columns(outputs, root, probes)
        self._add_gradient(outputs, root.gradient, probes)
        return terms

    def _look_for_direct_uses(
        self, outputs: Tensor, loss_of: Callable[[Tensor], Tensor], leaves: Mapping[str, Tensor]
    ) -> None:
        """Note the layers whose weight the loss uses directly, as a penalty does."""
        behind = set(map(id, leaves_behind([loss_of(outputs.detach().requires_grad_())])))
        for layer in self._layers:
            if id(leaves[layer.parameter]) in behind:
                self.totals[layer.info.name].problem = "the loss uses its weight directly"

    def _look_for_curvature(self, outputs: Tensor, leaves: Mapping[str, Tensor]) -> None:
        names = list(leaves)
        nonlinear = find_curvature([outputs], {i: [leaves[name]] for i, name in enumerate(names)})
        for layer in self._layers:
            total = self.totals[layer.info.name]
            total.nonlinear = total.nonlinear or nonlinear.get(names.index(layer.parameter), "")

    def _add_columns(self, outputs: Tensor, root: OutputCurvature, probes: DirectionProbes) -> None:
        columns = map(root.column, range(root.n_columns))
        for products in self._sent_back(outputs, columns, probes):
            for name, product in products.items():
                self.totals[name].ggn += product.to(sum_dtype(product.device)).square().sum((0, 1))

    def _add_draws(self, outputs: Tensor, root: OutputCurvature, probes: DirectionProbes) -> None:
        """Add the mean over draws; samples may meet in the network, so they are summed first."""
        random = TorchDraws(self._generator)
        draws = (root.mixture(random) for _ in range(self._mc_samples))
        squares: dict[str, list[Tensor]] = {name: [] for name in self.totals}
        for products in self._sent_back(outputs, draws, probes):
            for name, product in products.items():
                squares[name].append(product.to(sum_dtype(product.device)).sum(1).square())
        for name, found in squares.items():
            if found:
                each = torch.cat(found)
                self.totals[name].ggn += each.mean(0)
                self.totals[name].variance += each.var(0) / len(each)

    def _add_gradient(self, outputs: Tensor, gradient: Tensor, probes: DirectionProbes) -> None:
        """Send the loss's own gradient back, for the derivatives along the directions.

        It is sent once more with a random weight for each sample. The gradient that arrives at a
        layer has the same weights, unless the samples lie along another axis or meet on the way.
        """
        count = len(outputs)
        weights = 1 + torch.rand(count, 1, generator=self._generator, device=outputs.device)
        weights = weights.to(outputs.dtype)
        spread = weights.reshape(count, *[1] * (outputs.ndim - 1))
        base = gradient
        if not bool(gradient.reshape(count, -1).any(1).all()):  # zeros would check nothing
            base = torch.randn(
                outputs.shape, generator=self._generator, dtype=outputs.dtype, device=outputs.device
            )
        sent = [gradient, base, base * spread]
        found = list(
            self._sent_back(outputs, iter(sent if base is not gradient else sent[1:]), probes)
        )
        for name, total in self.totals.items():
            parts = [products[name] for products in found if name in products]
            if not parts:
                continue
            each = torch.cat(parts)  # (sent, B, K)
            total.derivative += each[0].sum(0)
            if self._mc_samples:
                continue
            if each.shape[1] != count:
                total.problem = "its first axis does not hold the samples of the outputs"
                continue
            off = (each[-1] - weights * each[-2]).abs().max()
            if not off <= 1e3 * torch.finfo(outputs.dtype).eps * each[-2].abs().max():
                total.problem = "samples of the outputs meet before it"

    def _sent_back(
        self, outputs: Tensor, columns: Iterator[Tensor], probes: DirectionProbes
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the products of some columns with all directions, ``(columns, B, K)`` by layer."""
        leaves = [leaf for uses in probes.leaves.values() for leaf in uses]
        if not leaves:
            return
        size = self._chunk(_bytes(probes))
        while cotangents := list(islice(columns, size)):
            counter = WorkCounter()
            with counter if self._first and not self._n_sent else nullcontext():
                sent_back = list(_pull_back(outputs, leaves, cotangents))
            self._n_sent += len(cotangents) * self._first
            self._column_work += counter.work / len(cotangents)
            for found in sent_back:
                remaining = iter(found)
                products: dict[str, Tensor] = {}
                for name, uses in probes.leaves.items():
                    parts = [next(remaining) for _ in uses]
                    if parts and len({part.shape for part in parts}) == 1:
                        products[name] = torch.stack(parts).sum(0)
                    elif parts:
                        self.totals[name].problem = "its uses have different numbers of samples"
                yield products


def _bytes(probes: DirectionProbes) -> int:
    """Return the bytes of the gradients that are sent back to the layers for one column."""
    results = [call.result for calls in probes.calls.values() for call in calls]
    return sum(result.numel() * result.element_size() for result in results)


def _pull_back(
    outputs: Tensor, leaves: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> Iterable[tuple[Tensor, ...]]:
    """Yield the gradients at the leaves, several cotangents together where that is possible."""

    def back(cotangent: Tensor, *, batched: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs, leaves, cotangent, retain_graph=True, is_grads_batched=batched,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip

    if len(cotangents) > 1:
        try:
            yield back(torch.stack(list(cotangents)), batched=True)
            return
        except RuntimeError:  # no batching rule: run one at a time
            pass
    for cotangent in cotangents:
        yield tuple(found.unsqueeze(0) for found in back(cotangent, batched=False))
