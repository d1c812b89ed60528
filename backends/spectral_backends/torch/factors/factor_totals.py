"""Running sums of one layer's Kronecker factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_backends.torch.capture.layer_io import LayerCall
from spectral_backends.torch.instruments.sums import sum_dtype, zero_sums
from spectral_backends.torch.layers.discovery import Layer
from spectral_core.curvature.factor_options import FactorOptions, factor_notes
from spectral_core.curvature.problem import KroneckerFactors
from spectral_core.errors import LayerError

__all__ = ["LayerTotals", "Samples"]


@dataclass(frozen=True)
class Samples:
    """The layout of samples.

    `apart` says whether each position belongs to one sample. `in_front` names the layers whose
    first axis holds the samples.
    """

    apart: bool
    in_front: frozenset[str]


class LayerTotals:
    """Running sums of one layer, in float64 where the device has it."""

    def __init__(
        self, layer: Layer, device: torch.device, directions: tuple[Tensor, Tensor] | None = None
    ) -> None:
        m, n = layer.info.shape
        dtype = sum_dtype(device)
        self._name = layer.info.name
        self._outputs = torch.zeros(2, m, m, dtype=dtype, device=device)
        self._inputs = torch.zeros(n, n, dtype=dtype, device=device)
        self._weight = 0.0
        self._uneven = False
        self._diagonal = None if directions is None else _Diagonal(*directions)

    def add_inputs(
        self,
        calls: list[LayerCall],
        weights: Tensor,
        options: FactorOptions,
        samples: Samples,
    ) -> None:
        """Add the inputs of a batch, each sample with the number of its terms."""
        if self._diagonal is not None:
            self._diagonal.set_inputs(calls)
        rows = [call.inputs() for call in calls]
        in_front = samples.apart and self._name in samples.in_front
        in_front &= all(len(r) == len(weights) for r in rows)  # routing may leave samples out
        if options.kfac_approx == "reduce":
            positions = sum(r.shape[1] for r in rows)
            self._check_samples(in_front)
            rows = [torch.stack([r.sum(1) for r in rows]).sum(0).unsqueeze(1) / positions]
        for r in rows:
            each = self._weights_of(r, weights, in_front)
            self._weight += float(each.sum()) * r.shape[1]
            scaled = r * each.sqrt().to(r.dtype).reshape(-1, 1, 1)
            _add_gram(self._inputs, scaled.flatten(0, 1))

    def add_outputs(self, rows: list[Tensor], options: FactorOptions, half: int) -> None:
        """Add output gradients ``(B, S, m)``, use by use, to one of the two halves."""
        if self._diagonal is not None:
            self._diagonal.add_outputs(rows)
        if options.kfac_approx == "reduce" and rows:
            rows = [_sum_of_positions(rows)]
        for r in rows:
            _add_gram(self._outputs[half], r.flatten(0, -2))

    def factors(
        self, count: float, exact: bool, options: FactorOptions, incomplete: bool
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
        # Uses that are not seen are in h^GGN: no split is better than a wrong one.
        diagonal = None if incomplete or self._diagonal is None else self._diagonal.total / count
        return KroneckerFactors(
            output_covariance=first + second,
            input_covariance=self._inputs / self._weight,
            output_noise=None if exact else first - second,
            notes=factor_notes(options, exact, not incomplete, not self._uneven),
            diagonal=diagonal,
        )

    def _weights_of(self, rows: Tensor, weights: Tensor, in_front: bool) -> Tensor:
        """Return the weight of each index of the rows' first axis, which may not be the samples."""
        if bool((weights == weights[0]).all()):
            return weights[:1].expand(len(rows))
        if in_front:
            return weights
        if len(rows) < len(weights) and len(weights) % len(rows) == 0:
            return weights.reshape(len(rows), -1).sum(1)  # flattened: samples count as positions
        self._uneven = True
        return torch.ones_like(weights[:1]).expand(len(rows))

    def _check_samples(self, in_front: bool) -> None:
        if not in_front:
            raise LayerError(
                self._name,
                "kfac_approx 'reduce' sums over the positions of each sample, and the first axis "
                "of its inputs does not hold the samples of the outputs; keep the samples in front "
                "and apart, or use kfac_approx='expand'.",
            )


class _Diagonal:
    """The running sum of ``p²`` over samples, columns and positions (Theory 5.3)."""

    def __init__(self, u: Tensor, v: Tensor) -> None:
        self._u, self._v = u, v
        self._along: list[Tensor] = []
        self.total = zero_sums(u)[0]

    def set_inputs(self, calls: list[LayerCall]) -> None:
        """Project the inputs of a batch on v, use by use, for all columns that follow."""
        self._along = [self._projected(call) for call in calls]

    def _projected(self, call: LayerCall) -> Tensor:
        if call.result.dtype == self._v.dtype:
            return call.project(self._v)
        return call.inputs().to(self._v.dtype) @ self._v  # a model that casts inside

    def add_outputs(self, rows: list[Tensor]) -> None:
        """Add the output gradients ``(B, S, m)`` of a column, use by use."""
        for r, along in zip(rows, self._along, strict=True):
            products = (r.to(self._u.dtype) @ self._u).mul_(along)
            self.total += products.square_().sum((0, 1), dtype=self.total.dtype)


def _sum_of_positions(rows: list[Tensor]) -> Tensor:
    """Add rows ``(B, S, m)`` up to ``(B, m)``; what cancels to rounding is zero.

    Attention does not change when all its keys move together. So the gradients of a sample's keys
    add up to zero, and the outer products of their rounding would be taken for a factor.
    """
    total = torch.stack([r.sum(1) for r in rows]).sum(0)
    size = torch.stack([r.abs().sum(1) for r in rows]).sum(0)
    return torch.where(total.abs() > 64 * torch.finfo(total.dtype).eps * size, total, 0.0)


def _add_gram(total: Tensor, rows: Tensor, most: int = 2**22) -> None:
    """Add ``Σ r rᵀ`` of the rows, widened part by part: float64 has float32's products exactly."""
    for part in torch.split(rows, max(1, most // rows.shape[1])):
        wide = part.to(total.dtype)
        total.addmm_(wide.T, wide)
