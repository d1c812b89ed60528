"""One batch on its way into the Kronecker factors: forward once, then back column by column."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.capture.layer_io import ActivationCapture, LayerCall
from spectral_backends.torch.factors.factor_totals import LayerTotals, Samples
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_backends.torch.objective.objective import Objective
from spectral_backends.torch.objective.output_loss import TorchDraws, loss_curvature
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.losses.base import OutputCurvature

__all__ = ["FactorBatch"]


class FactorBatch:
    """One batch after its forward pass: layer calls, outputs, and the loss's curvature in them."""

    def __init__(
        self,
        outputs: Tensor,
        curvature: OutputCurvature,
        calls: dict[str, list[LayerCall]],
        terms: LossTerms,
    ) -> None:
        self._outputs, self._curvature, self._calls = outputs, curvature, calls
        self.terms = terms

    @property
    def n_samples(self) -> int:
        """Return the number of samples of the outputs."""
        return len(self._outputs)

    @classmethod
    def run(
        cls,
        objective: Objective,
        leaves: dict[str, Tensor],
        batch: Any,
        capture: ActivationCapture,
        options: FactorOptions,
    ) -> "FactorBatch | None":
        """Run the forward pass; None if no term of the batch counts."""
        with capture:
            outputs, loss_of, terms = objective.split(leaves, batch)
        capture.check_none_hidden()
        if terms.count == 0:
            return None
        curvature = loss_curvature(
            outputs.detach(), loss_of, terms, options.max_columns,
            convex=options.fisher_type != "empirical",
        )  # fmt: skip
        return cls(outputs, curvature, capture.calls, terms)

    @torch.no_grad()
    def incomplete(
        self, layers: Sequence[Layer], leaves: Mapping[str, Tensor], generator: torch.Generator
    ) -> set[str]:
        """Return the layers that have uses besides their calls.

        For any cotangent of the outputs ``Σ δ aᵀ`` over all calls is the gradient. It is not if
        a matrix is also transposed in some use, as in a tied embedding, if only some of its columns
        are used, or if an operation is no product.
        """
        z = self._outputs
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        names = list(dict.fromkeys(layer.parameter for layer in layers))
        found = torch.autograd.grad(
            z, [leaves[name] for name in names], noise, retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        whole = {n: g.to_dense() for n, g in zip(names, found, strict=True)}
        sent = iter(self._pull_back(noise[None])[0])
        missing = set()
        for layer in layers:
            gradient = layer.view.matrix(whole[layer.parameter])
            shown = torch.zeros_like(gradient)
            for call in self._calls[layer.info.name]:
                delta = _outputs(call, next(sent)).flatten(0, -2)
                shown += delta.T @ call.inputs().flatten(0, -2)
            tolerance = torch.finfo(z.dtype).eps ** 0.5 * gradient.norm()
            if (shown - gradient).norm() > tolerance:
                missing.add(layer.info.name)
        return missing

    @torch.no_grad()
    def add_to(
        self,
        totals: dict[str, LayerTotals],
        options: FactorOptions,
        generator: torch.Generator,
        chunk: Callable[[int], int],
        samples: Samples | None,
    ) -> tuple[Samples, bool]:
        """Add the batch; return how its samples lie, and whether what was added is exact."""
        samples = samples or self._find_samples(generator)
        weights = self._curvature.sample_weights
        weights = weights * (self.terms.count / float(weights.sum()))
        for name, total in totals.items():
            total.add_inputs(self._calls[name], weights, options, samples)
        columns = self._exact_columns(options) if samples.apart else None
        if columns is not None:
            for part, name, rows in self._sent_back(columns, chunk):
                totals[name].add_outputs(rows, options, half=part % 2)
            return samples, True
        draws = (self._draw(options, generator) for _ in range(options.mc_samples))
        for part, name, rows in self._sent_back(draws, chunk):
            scaled = [r / options.mc_samples**0.5 for r in rows]
            totals[name].add_outputs(scaled, options, half=part % 2)
        return samples, False

    def _exact_columns(self, options: FactorOptions) -> Iterator[Tensor] | None:
        """Return the columns that make ``C_δ`` exact, or None where they are too many."""
        curvature = self._curvature
        if options.fisher_type == "ggn" and curvature.n_columns <= options.max_columns:
            return map(curvature.column, range(curvature.n_columns))
        if options.fisher_type == "empirical" and curvature.n_terms <= options.max_columns:
            return map(curvature.term_column, range(curvature.n_terms))
        return None

    def _draw(self, options: FactorOptions, generator: torch.Generator) -> Tensor:
        root = self._curvature
        draw = {"ggn": root.mixture, "fisher-mc": root.sampled, "empirical": root.term_mixture}
        drawn: Tensor = draw[options.fisher_type](TorchDraws(generator))
        return drawn

    def _sent_back(
        self, columns: Iterator[Tensor], chunk: Callable[[int], int]
    ) -> Iterator[tuple[int, str, list[Tensor]]]:
        """Yield, for each column and layer, its output gradients ``(B, S, m)`` use by use."""
        part = 0
        size = chunk(sum(p.result.numel() * p.result.element_size() for p in self._all_calls()))
        while cotangents := list(islice(columns, size)):
            for gradients in self._pull_back(torch.stack(cotangents)):
                remaining = iter(gradients)
                for name, calls in self._calls.items():
                    found = [(call, next(remaining)) for call in calls]
                    yield part, name, [_outputs(call, g) for call, g in found]
                part += 1

    def _pull_back(self, cotangents: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Return the gradients at every call, for each cotangent; None where none arrives."""
        edges = [call.edge for call in self._all_calls()]

        def back(cotangent: Tensor, *, batched: bool) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(
                self._outputs, edges, cotangent, retain_graph=True, is_grads_batched=batched,
                allow_unused=True,
            )  # fmt: skip

        if len(cotangents) > 1:
            try:
                found = back(cotangents, batched=True)
                return [
                    tuple(g if g is None else g[index] for g in found)
                    for index in range(len(cotangents))
                ]
            except RuntimeError:  # no batching rule: run one at a time
                pass
        return [back(cotangent, batched=False) for cotangent in cotangents]

    def _all_calls(self) -> list[LayerCall]:
        return [call for calls in self._calls.values() for call in calls]

    def _find_samples(self, generator: torch.Generator) -> Samples:
        """Find how the samples of the outputs lie in the rows of each layer.

        Halves of the samples are sent back one at a time. A position that both reach joins
        samples, as where tokens of one sequence were flattened into samples; one that is reached
        by a sample other than that of its first index lies along another axis.
        """
        z, count = self._outputs, len(self._outputs)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        apart, in_front = True, dict.fromkeys(self._calls, True)
        for _ in range(2):
            chosen = torch.randperm(count, generator=generator, device=z.device) < (count + 1) // 2
            mask = chosen.reshape(count, *[1] * (z.ndim - 1))
            halves = [iter(self._pull_back((noise * m)[None])[0]) for m in (mask, ~mask)]
            for name, calls in self._calls.items():
                for call in calls:
                    one, other = (_outputs(call, next(half)).abs().sum(-1) > 0 for half in halves)
                    apart &= not bool((one & other).any())
                    in_front[name] &= len(one) == count and not bool(
                        one[~chosen].any() or other[chosen].any()
                    )
        return Samples(apart, frozenset(name for name, found in in_front.items() if found))


def _outputs(call: LayerCall, gradient: Tensor | None) -> Tensor:
    """Return the output gradients ``(B, S, m)`` of one use: zero where none arrives."""
    return call.outputs(torch.zeros_like(call.result) if gradient is None else gradient)
