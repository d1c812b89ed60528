"""The state that the engines of one problem share: loss, findings of the jaxpr, memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from spectral_backends.jax.jaxprs.interpreter import EquationPath
from spectral_backends.jax.jaxprs.linearity import find_curvature
from spectral_backends.jax.jaxprs.sizes import largest_value
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.program import Program

__all__ = ["Setting"]

LIVE_VALUES = 8
"""Values of the largest size that a direction takes while it passes through the network."""


@dataclass(frozen=True)
class Setting:
    """The state that an engine works with.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    program : Program
        The computation of the first batch.
    chunk_size : int or None
        The number of directions that go together; None for as many as fit.
    memory_budget : int
        The bytes that what goes together may take, on all devices.
    whole : Objective
        The mean loss over all data, where `objective` is that of a group of samples.
    """

    objective: Objective
    program: Program
    chunk_size: int | None
    memory_budget: int
    whole: Objective

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Return the layers by name, in the order of the forward pass."""
        return self.program.layers

    @property
    def tells_outputs(self) -> bool:
        """Say whether the model's outputs are told from the loss."""
        return self.program.forward is not None

    @property
    def tolerance(self) -> float:
        """Return the largest second-order part of a piecewise linear layer, which is rounding."""
        return 100 * self.objective.eps

    @cached_property
    def n_outputs(self) -> int | None:
        """Return the number of outputs of a sample; None where they are not one array of them."""
        forward = self.program.forward
        if forward is None or not self.program.single_output:
            return None
        shape: tuple[int, ...] = forward.out_avals[0].shape
        return prod(shape[1:])

    @cached_property
    def nonlinear(self) -> Mapping[int, str]:
        """Return the parameters in which the outputs are nonlinear, with the operation."""
        return find_curvature(self.program.model, len(self.program.parameters.names))

    def passes(self, count: float, layer: Layer) -> float:
        """Return the price, in forward passes of the model, of passes from a layer on."""
        return count * self._behind[layer.family.uses[0].path] / self._work

    def of_one_batch(self, work: float) -> float:
        """Return multiply-adds of all batches as a number of forward passes of the model."""
        return work / (self._work * len(self.objective.terms))

    def in_forward_passes(self, work: float) -> float:
        """Return multiply-adds that were counted as a number of forward passes over all data."""
        whole = self.objective.work_of_a_pass
        return work / whole if whole else float("nan")

    def together(self, batch: Batch, layer: Layer) -> int:
        """Return the number of directions of a layer that go together."""
        weight = batch.values[layer.parameter].nbytes
        each = LIVE_VALUES * largest_value(batch.program.model) + 3 * weight
        return self.chunk_size or max(1, self.memory_budget // each)

    def mean(self, total: Any) -> jax.Array:
        """Return the mean of a sum over all terms, in the problem's dtype."""
        return jnp.asarray(total / self.objective.n_terms, self.objective.parameters.dtype)

    @cached_property
    def _behind(self) -> Mapping[EquationPath, float]:
        """Return the multiply-adds of a batch in the layers from an equation on."""
        ends = [(layer.family.uses[-1].path, layer.work) for layer in self.layers.values()]
        starts = {layer.family.uses[0].path for layer in self.layers.values()}
        return {first: sum(work for end, work in ends if end >= first) for first in starts}

    @cached_property
    def _work(self) -> float:
        """Return the multiply-adds of a batch in all layers."""
        return sum(layer.work for layer in self.layers.values()) or 1.0
