"""Kronecker factors of layers, streamed over batches in O(m² + n²) memory each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.call_observer import CallObserver
from spectral_backends.torch.discovery import Layer
from spectral_backends.torch.factor_capture import FactorCapture, Passage
from spectral_backends.torch.loss_terms import LossTerms
from spectral_backends.torch.objective import Objective
from spectral_backends.torch.output_curvature import OutputCurvature, output_curvature
from spectral_core.errors import InputError, LayerError
from spectral_core.problem import Delta, KroneckerFactors, Sharing

__all__ = ["FactorOptions", "kronecker_factors"]

MAX_SIDE = 16384
"""Largest side of a factor: 2 GiB in float64."""


@dataclass(frozen=True)
class FactorOptions:
    """How factors are made: the arguments of `CurvatureProblem.kronecker_factors`."""

    delta: Delta
    sharing: Sharing
    draws: int
    max_columns: int

    def check(self) -> None:
        """Raise `InputError` for an option that there is not."""
        if self.delta not in ("ggn", "fisher-mc", "empirical"):
            raise InputError(
                f"delta: {self.delta!r} is unknown; choose 'ggn', 'fisher-mc' or 'empirical'."
            )
        if self.sharing not in ("expand", "reduce"):
            raise InputError(f"sharing: {self.sharing!r} is unknown; choose 'expand' or 'reduce'.")
        if not isinstance(self.draws, int) or self.draws < 2 or self.draws % 2:
            raise InputError(
                f"draws: {self.draws!r} is no even number of 2 or more; two halves of the draws "
                "give the standard error."
            )
        if not isinstance(self.max_columns, int) or self.max_columns < 0:
            raise InputError(f"max_columns: {self.max_columns!r} is not a number of columns.")


def kronecker_factors(
    objective: Objective,
    layers: Sequence[Layer],
    options: FactorOptions,
    seed: int,
    chunk: Callable[[int], int],
) -> dict[str, KroneckerFactors]:
    """Return the factors of each layer, in one pass over the data.

    Parameters
    ----------
    chunk : callable
        How many columns to send back together, of the bytes of one.
    """
    options.check()
    _check_sizes(layers)
    totals = {layer.info.name: _Totals(layer, objective.model.device) for layer in layers}
    count, exact, turned = 0.0, True, set[str]()
    generator = torch.Generator(objective.model.device).manual_seed(seed)
    apart: bool | None = None  # whether samples are apart in the network; asked of one batch
    with objective.one_pass(seed) as batches:
        for batch in batches:
            leaves = objective.matrix_leaves()
            capture = FactorCapture(layers, leaves)
            run = partial(_Batch.run, objective, leaves, batch, capture, options)
            made: _Batch | None = objective.model.hold(leaves, run)
            if made is None:
                continue
            work = partial(made.add_to, totals, options, generator, chunk, apart)
            apart, whole = objective.model.hold(leaves, work)
            count += made.terms.count
            exact &= whole
            turned |= capture.turned
    return {
        name: total.factors(count, exact, options, name in turned) for name, total in totals.items()
    }


class _Batch:
    """One batch after its forward pass: passages, outputs, and the loss's curvature in them."""

    def __init__(
        self,
        outputs: Tensor,
        curvature: OutputCurvature,
        passages: dict[str, list[Passage]],
        terms: LossTerms,
    ) -> None:
        self._outputs, self._curvature, self._passages = outputs, curvature, passages
        self.terms = terms

    @classmethod
    def run(
        cls,
        objective: Objective,
        leaves: dict[str, Tensor],
        batch: Any,
        capture: FactorCapture,
        options: FactorOptions,
    ) -> "_Batch | None":
        """Run the forward pass; None if no term of the batch counts."""
        watch = _LossWatch()
        with capture:
            outputs, loss_of, terms = objective.split(leaves, batch)
        if terms.count == 0:
            return None
        with watch:
            loss_of(outputs.detach())
        curvature = output_curvature(
            outputs.detach(), loss_of, terms.scale, options.max_columns,
            logistic=watch.logistic, convex=options.delta != "empirical",
        )  # fmt: skip
        return cls(outputs, curvature, capture.passages, terms)

    @torch.no_grad()
    def add_to(
        self,
        totals: "dict[str, _Totals]",
        options: FactorOptions,
        generator: torch.Generator,
        chunk: Callable[[int], int],
        apart: bool | None,
    ) -> tuple[bool, bool]:
        """Add the batch; return whether samples are apart, and whether what was added is exact."""
        apart = self._samples_are_apart(generator) if apart is None else apart
        weights = self._curvature.sample_weights
        weights = weights * (self.terms.count / float(weights.sum()))
        for name, total in totals.items():
            total.add_inputs(self._passages[name], weights, options, apart)
        columns = self._exact_columns(options) if apart else None
        if columns is not None:
            for part, name, rows in self._sent_back(columns, options, chunk):
                totals[name].add_outputs(rows, half=part % 2)
            return apart, True
        draws = (self._draw(options, generator) for _ in range(options.draws))
        for part, name, rows in self._sent_back(draws, options, chunk):
            totals[name].add_outputs(rows / options.draws**0.5, half=part % 2)
        return apart, False

    def _exact_columns(self, options: FactorOptions) -> Iterator[Tensor] | None:
        """Return the columns that make ``C_δ`` exact, or None where they are too many."""
        curvature = self._curvature
        if options.delta == "ggn" and curvature.n_columns <= options.max_columns:
            return curvature.columns()
        if options.delta == "empirical" and curvature.terms().shape[1] <= options.max_columns:
            return curvature.term_columns()
        return None

    def _draw(self, options: FactorOptions, generator: torch.Generator) -> Tensor:
        def signs(like: Tensor) -> Tensor:
            bits = torch.randint(2, like.shape, generator=generator, device=like.device)
            return 2 * bits.to(like.dtype) - 1

        if options.delta == "fisher-mc":
            return self._curvature.sampled(generator)
        if options.delta == "ggn":
            return self._curvature.mixture(signs)
        return self._curvature.term_mixture(signs)

    def _sent_back(
        self, columns: Iterator[Tensor], options: FactorOptions, chunk: Callable[[int], int]
    ) -> Iterator[tuple[int, str, Tensor]]:
        """Yield, for each column and layer, the rows of output gradients ``(rows, m)``."""
        part = 0
        size = chunk(self._outputs.numel() * self._outputs.element_size())
        while cotangents := list(islice(columns, size)):
            for gradients in self._pull_back(torch.stack(cotangents)):
                yield from self._rows(gradients, part, options)
                part += 1

    def _rows(
        self, gradients: tuple[Tensor | None, ...], part: int, options: FactorOptions
    ) -> Iterator[tuple[int, str, Tensor]]:
        remaining = iter(gradients)
        for name, passages in self._passages.items():
            found = [(passage, next(remaining)) for passage in passages]
            rows = [passage.outputs(g) for passage, g in found if g is not None]
            if options.sharing == "reduce" and rows:
                rows = [_sum_of_positions(rows)]
            for r in rows:
                yield part, name, r.flatten(0, -2)

    def _pull_back(self, cotangents: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Return the gradients at every passage, for each cotangent; None where none arrives."""
        edges = [p.edge for passages in self._passages.values() for p in passages]
        batched = len(cotangents) > 1
        found = torch.autograd.grad(
            self._outputs,
            edges,
            cotangents if batched else cotangents[0],
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
        )
        if not batched:
            return [found]
        return [
            tuple(g if g is None else g[index] for g in found) for index in range(len(cotangents))
        ]

    def _samples_are_apart(self, generator: torch.Generator) -> bool:
        """Say whether no position of any layer is reached from two samples of the outputs.

        Halves of the samples are sent back one at a time: a position that both reach joins
        samples, as where tokens of one sequence were flattened into samples.
        """
        z, count = self._outputs, len(self._outputs)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        if count < 2:
            return True
        for _ in range(4):
            chosen = torch.randperm(count, generator=generator, device=noise.device) < count // 2
            mask = chosen.reshape(count, *[1] * (noise.ndim - 1))
            halves = [self._pull_back((noise * m)[None])[0] for m in (mask, ~mask)]
            passages = (p for found in self._passages.values() for p in found)
            for passage, one, other in zip(passages, *halves, strict=True):
                if one is None or other is None:
                    continue
                reached = [passage.outputs(g).abs().sum(-1) > 0 for g in (one, other)]
                if bool((reached[0] & reached[1]).any()):
                    return False
        return True


class _Totals:
    """Running sums of one layer, in float64 where the device has it."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        m, n = layer.info.shape
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._name = layer.info.name
        self._outputs = torch.zeros(2, m, m, dtype=dtype, device=device)
        self._inputs = torch.zeros(n, n, dtype=dtype, device=device)
        self._weight = 0.0
        self._uneven = False

    def add_inputs(
        self, passages: list[Passage], weights: Tensor, options: FactorOptions, apart: bool
    ) -> None:
        """Add the inputs of a batch, each sample with the number of its terms."""
        rows = [passage.inputs() for passage in passages]
        if options.sharing == "reduce":
            positions = sum(r.shape[1] for r in rows)
            self._check_samples(rows, weights, apart)
            rows = [torch.stack([r.sum(1) for r in rows]).sum(0).unsqueeze(1) / positions]
        for r in rows:
            each = self._weights_of(r, weights)
            self._weight += float(each.sum()) * r.shape[1]
            scaled = r * each.sqrt().to(r.dtype).reshape(-1, 1, 1)
            _add_gram(self._inputs, scaled.flatten(0, 1))

    def add_outputs(self, rows: Tensor, half: int) -> None:
        """Add rows of output gradients to one of the two halves."""
        _add_gram(self._outputs[half], rows)

    def factors(
        self, count: float, exact: bool, options: FactorOptions, turned: bool
    ) -> KroneckerFactors:
        """Return the means.

        Raises
        ------
        LayerError
            If no operation used the layer's matrix.
        """
        if self._weight == 0:
            raise LayerError(self._name, "no operation was seen to use its matrix.")
        first, second = self._outputs / count
        notes = []
        if not exact:
            notes.append(f"C_δ is a Monte-Carlo estimate of {options.draws} draws per batch")
        if turned:
            notes.append(
                "the factors leave out the use of this matrix the other way around (tied weights); "
                "κ holds its part"
            )
        if self._uneven:
            notes.append("C_A weighs all positions alike, not by the terms of their sample")
        return KroneckerFactors(
            output_covariance=first + second,
            input_covariance=self._inputs / self._weight,
            output_noise=None if exact else first - second,
            notes=tuple(notes),
        )

    def _weights_of(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of each sample of the rows, whose first axis may be another one."""
        if len(rows) == len(weights):
            return weights
        if bool((weights == weights[0]).all()):
            return weights[:1].expand(len(rows))
        if len(weights) % len(rows) == 0:  # the outputs' samples are positions of this layer's
            return weights.reshape(len(rows), -1).sum(1)
        self._uneven = True
        return torch.ones_like(weights[:1]).expand(len(rows))

    def _check_samples(self, rows: list[Tensor], weights: Tensor, apart: bool) -> None:
        sizes = {len(r) for r in rows}
        if not apart or sizes != {len(weights)}:
            raise LayerError(
                self._name,
                f"sharing 'reduce' sums over the positions of each sample, and its inputs have "
                f"{', '.join(map(str, sorted(sizes)))} samples along their first axis where the "
                f"outputs have {len(weights)}{'' if apart else ' that are not independent'}; keep "
                "the samples in front, or use sharing='expand'.",
            )


class _LossWatch(CallObserver):
    """Notes whether a loss is the logistic one."""

    def __init__(self) -> None:
        super().__init__()
        self.logistic = False

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Look at the call's name."""
        name = getattr(func, "__name__", "")
        self.logistic |= name == "binary_cross_entropy_with_logits"


def _sum_of_positions(rows: list[Tensor]) -> Tensor:
    """Add rows ``(B, S, m)`` up to ``(B, m)``; what cancels to rounding is zero.

    Attention, for one, does not change when all its keys move together, so the gradients of a
    sample's keys add up to nothing, and the outer products of their rounding would be a factor.
    """
    total = torch.stack([r.sum(1) for r in rows]).sum(0)
    size = torch.stack([r.abs().sum(1) for r in rows]).sum(0)
    return torch.where(total.abs() > 64 * torch.finfo(total.dtype).eps * size, total, 0.0)


def _add_gram(total: Tensor, rows: Tensor, most: int = 2**22) -> None:
    """Add ``Σ r rᵀ`` of the rows, widened part by part: float64 has float32's products exactly."""
    for part in torch.split(rows, max(1, most // rows.shape[1])):
        wide = part.to(total.dtype)
        total.addmm_(wide.T, wide)


def _check_sizes(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if max(layer.info.shape) > MAX_SIDE:
            m, n = layer.info.shape
            size = max(m, n) ** 2 * 8 / 2**30
            raise LayerError(
                layer.info.name,
                f"it is {m}×{n}, and a factor of {size:.0f} GiB is too large; leave it out.",
            )
