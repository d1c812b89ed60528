"""Kronecker factors of layers, streamed over batches in O(m² + n²) memory each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    directions: Mapping[str, tuple[Tensor, Tensor]],
    options: FactorOptions,
    seed: int,
    chunk: Callable[[int], int],
) -> dict[str, KroneckerFactors]:
    """Return the factors of each layer, in one pass over the data.

    Parameters
    ----------
    directions : mapping of str to (Tensor, Tensor)
        Along which to sum the Gauss-Newton curvature, for layers that have some.
    chunk : callable
        How many columns to send back together, of the bytes of one.
    """
    options.check()
    _check_sizes(layers)
    totals = {
        layer.info.name: _Totals(layer, objective.model.device, directions.get(layer.info.name))
        for layer in layers
    }
    count, exact, turned = 0.0, True, set[str]()
    generator = torch.Generator(objective.model.device).manual_seed(seed)
    samples: _Samples | None = None  # asked of the first batch that has several
    with objective.one_pass(seed) as batches:
        for batch in batches:
            leaves = objective.matrix_leaves()
            capture = FactorCapture(layers, leaves)
            run = partial(_Batch.run, objective, leaves, batch, capture, options)
            made: _Batch | None = objective.model.hold(leaves, run)
            if made is None:
                continue
            work = partial(made.add_to, totals, options, generator, chunk, samples)
            seen, whole = objective.model.hold(leaves, work)
            samples = samples or (seen if made.n_samples > 1 else None)
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

    @property
    def n_samples(self) -> int:
        """Number of samples of the outputs."""
        return len(self._outputs)

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
        samples: "_Samples | None",
    ) -> tuple["_Samples", bool]:
        """Add the batch; return how its samples lie, and whether what was added is exact."""
        samples = samples or self._find_samples(generator)
        weights = self._curvature.sample_weights
        weights = weights * (self.terms.count / float(weights.sum()))
        for name, total in totals.items():
            total.add_inputs(self._passages[name], weights, options, samples)
        columns = self._exact_columns(options) if samples.apart else None
        if columns is not None:
            for part, name, rows in self._sent_back(columns, chunk):
                totals[name].add_outputs(rows, options, half=part % 2)
                totals[name].add_ggn(rows)
            return samples, True
        draws = (self._draw(options, generator) for _ in range(options.draws))
        for part, name, rows in self._sent_back(draws, chunk):
            scaled = [r / options.draws**0.5 for r in rows]
            totals[name].add_outputs(scaled, options, half=part % 2)
        return samples, False

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
        self, columns: Iterator[Tensor], chunk: Callable[[int], int]
    ) -> Iterator[tuple[int, str, list[Tensor]]]:
        """Yield, for each column and layer, its output gradients ``(B, S, m)`` use by use."""
        part = 0
        size = chunk(self._outputs.numel() * self._outputs.element_size())
        while cotangents := list(islice(columns, size)):
            for gradients in self._pull_back(torch.stack(cotangents)):
                remaining = iter(gradients)
                for name, passages in self._passages.items():
                    found = [(passage, next(remaining)) for passage in passages]
                    yield part, name, [_outputs(passage, g) for passage, g in found]
                part += 1

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

    def _find_samples(self, generator: torch.Generator) -> "_Samples":
        """Look how the samples of the outputs lie in the rows of each layer.

        Halves of the samples are sent back one at a time. A position that both reach joins
        samples, as where tokens of one sequence were flattened into samples; one that is reached
        by a sample other than that of its first index lies along another axis.
        """
        z, count = self._outputs, len(self._outputs)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        apart, in_front = True, dict.fromkeys(self._passages, True)
        for _ in range(4):
            chosen = torch.randperm(count, generator=generator, device=z.device) < (count + 1) // 2
            mask = chosen.reshape(count, *[1] * (z.ndim - 1))
            halves = [iter(self._pull_back((noise * m)[None])[0]) for m in (mask, ~mask)]
            for name, passages in self._passages.items():
                for passage in passages:
                    one, other = (
                        _outputs(passage, next(half)).abs().sum(-1) > 0 for half in halves
                    )
                    apart &= not bool((one & other).any())
                    in_front[name] &= len(one) == count and not bool(
                        one[~chosen].any() or other[chosen].any()
                    )
        return _Samples(apart, frozenset(name for name, found in in_front.items() if found))


@dataclass(frozen=True)
class _Samples:
    """Whether no position is reached from two samples, and the layers that have them in front."""

    apart: bool
    in_front: frozenset[str]


class _Totals:
    """Running sums of one layer, in float64 where the device has it."""

    def __init__(
        self, layer: Layer, device: torch.device, directions: tuple[Tensor, Tensor] | None
    ) -> None:
        m, n = layer.info.shape
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._name = layer.info.name
        self._directions = directions
        count = 0 if directions is None else directions[0].shape[1]
        self._ggn = torch.zeros(count, dtype=dtype, device=device)
        self._projected: list[Tensor] = []  # vᵀ a of the batch, (B, S, K) use by use
        self._outputs = torch.zeros(2, m, m, dtype=dtype, device=device)
        self._inputs = torch.zeros(n, n, dtype=dtype, device=device)
        self._weight = 0.0
        self._uneven = False

    def add_inputs(
        self,
        passages: list[Passage],
        weights: Tensor,
        options: FactorOptions,
        samples: _Samples,
    ) -> None:
        """Add the inputs of a batch, each sample with the number of its terms."""
        rows = [passage.inputs() for passage in passages]
        in_front = samples.apart and self._name in samples.in_front
        if not in_front:
            self._directions = None
        if self._directions is not None:
            self._projected = [r @ self._directions[1] for r in rows]
        if options.sharing == "reduce":
            positions = sum(r.shape[1] for r in rows)
            self._check_samples(in_front)
            rows = [torch.stack([r.sum(1) for r in rows]).sum(0).unsqueeze(1) / positions]
        for r in rows:
            each = self._weights_of(r, weights, self._name in samples.in_front)
            self._weight += float(each.sum()) * r.shape[1]
            scaled = r * each.sqrt().to(r.dtype).reshape(-1, 1, 1)
            _add_gram(self._inputs, scaled.flatten(0, 1))

    def add_outputs(self, rows: list[Tensor], options: FactorOptions, half: int) -> None:
        """Add output gradients ``(B, S, m)``, use by use, to one of the two halves."""
        if options.sharing == "reduce" and rows:
            rows = [_sum_of_positions(rows)]
        for r in rows:
            _add_gram(self._outputs[half], r.flatten(0, -2))

    def add_ggn(self, rows: list[Tensor]) -> None:
        """Add ``(Σ_t (uᵀ δ_t)(vᵀ a_t))²`` of each sample for one column (Theory 5.4)."""
        if self._directions is None or not rows:
            return
        u = self._directions[0]
        along = [(r @ u * p).sum(1) for r, p in zip(rows, self._projected, strict=True)]
        self._ggn += torch.stack(along).sum(0).to(self._ggn.dtype).square().sum(0)

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
        known = exact and options.delta == "ggn" and self._directions is not None and not turned
        return KroneckerFactors(
            output_covariance=first + second,
            input_covariance=self._inputs / self._weight,
            output_noise=None if exact else first - second,
            ggn=self._ggn / count if known else None,
            notes=tuple(notes),
        )

    def _weights_of(self, rows: Tensor, weights: Tensor, in_front: bool) -> Tensor:
        """Return the weight of each index of the rows' first axis, which may not be the samples."""
        if bool((weights == weights[0]).all()):
            return weights[:1].expand(len(rows))
        if in_front:
            return weights
        if len(rows) < len(weights) and len(weights) % len(rows) == 0:
            return weights.reshape(len(rows), -1).sum(1)  # flattened: samples are positions here
        self._uneven = True
        return torch.ones_like(weights[:1]).expand(len(rows))

    def _check_samples(self, in_front: bool) -> None:
        if not in_front:
            raise LayerError(
                self._name,
                "sharing 'reduce' sums over the positions of each sample, and the first axis of "
                "its inputs does not hold the samples of the outputs; keep the samples in front "
                "and apart, or use sharing='expand'.",
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


def _outputs(passage: Passage, gradient: Tensor | None) -> Tensor:
    """Return the output gradients ``(B, S, m)`` of one use: zero where none arrives."""
    return passage.outputs(torch.zeros_like(passage.result) if gradient is None else gradient)


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
