"""Gradients of the mean loss, and their rounding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.nested import common_length, map_tensors
from spectral_backends.torch.instruments.threads import threads_for
from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_backends.torch.objective.narrowing import CastsWidened
from spectral_backends.torch.objective.objective import Objective

__all__ = ["MeanGradients", "gradient_errors"]

MOST_PARAMETERS = 2**29
"""The limit beyond which copies in float64 and two more gradients take tens of gigabytes."""


class MeanGradients:
    """Adds up gradients over batches, for the mean over all terms.

    Parameters
    ----------
    objective : Objective
        The mean loss that is differentiated.
    names : sequence of str
        The names of the parameters.
    """

    def __init__(self, objective: Objective, names: Sequence[str]) -> None:
        self._objective, self._count = objective, 0.0
        self._totals = {name: torch.zeros_like(objective.model.parameters[name]) for name in names}

    def add(self, batch: Any, times: float = 1.0) -> bool:
        """Add a batch, once or as if there were several like it; say whether its terms count."""
        weights = {name: self._objective.leaf(name) for name in self._totals}
        found, terms = self._objective.model.hold(weights, partial(self._of, weights, batch))
        if terms.count:
            for name, gradient in zip(weights, found, strict=True):
                self._totals[name] += times * terms.scale * gradient
            self._count += times * terms.count
        return bool(terms.count)

    def mean(self, name: str) -> Tensor:
        """Return the gradient in a parameter."""
        return self._totals[name] / self._count

    def _of(
        self, weights: Mapping[str, Tensor], batch: Any
    ) -> tuple[tuple[Tensor, ...], LossTerms]:
        loss, terms = self._objective.loss(weights, batch)
        leaves = list(weights.values())
        return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True), terms


def gradient_errors(
    objective: Objective,
    names: Sequence[str],
    seed: int,
    samples: int | None,
    heaviest: Sequence[int],
    *,
    narrowed: bool,
) -> dict[str, Tensor]:
    """Return about how far the gradient in some parameters is from the exact one.

    It is compared with the gradient of the same values in float64, in which casts of the model to
    float32 give float64 too. Rounding in float64 itself is that of float32, scaled by the spacing
    of their numbers.

    Parameters
    ----------
    objective : Objective
        The mean loss, in the type that is looked at.
    names : sequence of str
        The names of the parameters.
    seed : int
        The seed of the pass.
    samples : int or None
        The number of samples to take of the first batch with terms, if it can be cut. None takes
        all.
    heaviest : sequence of int
        The samples of the first batch, first those that carry most of the gradient.
    narrowed : bool
        Whether the model casts to a narrower type than the objective's.

    Returns
    -------
    dict of str to Tensor
        The errors, in the objective's type. The dict is empty if the model cannot be run in the
        other type, as on a device that has none of 64 bits, or if it has more than
        `MOST_PARAMETERS`.
    """
    dtype, other, share = objective.model.dtype, torch.float64, 1.0
    casts: AbstractContextManager[Any] = CastsWidened()
    if dtype == torch.float64 and not narrowed:
        other, casts = torch.float32, nullcontext()
        share = torch.finfo(dtype).eps / torch.finfo(other).eps
    if sum(p.numel() for p in objective.model.parameters.values()) > MOST_PARAMETERS:
        return {}
    with objective.one_pass(seed) as batches:
        try:
            held_against = objective.in_type(other)
        except (TypeError, RuntimeError):  # the device lacks that type, or memory is short
            return {}
        own, others = MeanGradients(objective, names), MeanGradients(held_against, names)
        for batch in batches:
            parts = [(batch, 1.0)] if samples is None else _parts(batch, samples, heaviest)
            counted = False
            work = objective.work_of_operation * _share_of(batch, samples)
            for part, times in parts:
                try:
                    with threads_for(work):
                        counted |= own.add(part, times)
                        with casts:
                            others.add(map_tensors(held_against.model.cast_input, part), times)
                except Exception:  # the model or the device does not mix types, or memory is short
                    return {}
            if samples is not None and counted:
                break
    return {
        name: (share * (own.mean(name).double() - others.mean(name).double())).to(dtype)
        for name in names
    }


def _parts(batch: Any, samples: int, heaviest: Sequence[int]) -> Iterator[tuple[Any, float]]:
    """Yield the heaviest samples of a batch, and a few that stand for all others."""
    length = common_length(batch)
    if length is None or length <= samples:
        yield batch, 1.0
        return
    heavy = heaviest[: samples // 2] if len(heaviest) == length else []
    others = sorted(set(range(length)) - set(heavy))
    few = others[:: -(-len(others) // (samples - len(heavy)))]
    for chosen, times in ((heavy, 1.0), (few, len(others) / len(few))):
        if chosen:
            yield map_tensors(partial(_rows, chosen), batch), times


def _share_of(batch: Any, samples: int | None) -> float:
    """Return the share of a batch that is looked at."""
    length = common_length(batch)
    return 1.0 if samples is None or not length else min(1.0, samples / length)


def _rows(chosen: Sequence[int], tensor: Tensor) -> Tensor:
    return tensor[torch.tensor(chosen, device=tensor.device)]
