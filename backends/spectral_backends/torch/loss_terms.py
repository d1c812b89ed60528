"""How many terms a batch's loss averages: what makes totals independent of the batching.

``L = (1/N) Σ_i l_i`` runs over terms: samples, or tokens that are not masked (Theory 1). Averaging
batch means without these counts is wrong for a ragged last batch or unequal numbers of tokens. So
the reduction inside the loss is watched, and its own arguments say what it averaged.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from spectral_backends.torch.call_observer import CallObserver

__all__ = ["LossTerms", "Reduction", "ReductionRecorder"]

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class LossTerms:
    """Number of terms (or their total class weight) behind a reduced loss, and how it reduced.

    `known` is False where the loss did not tell and one batch stands for itself.
    """

    count: float
    reduction: Reduction
    known: bool = True

    @property
    def scale(self) -> float:
        """What turns the batch's loss into a sum over its terms."""
        return self.count if self.reduction == "mean" else 1.0


class ReductionRecorder(CallObserver):
    """Watches torch calls for reductions to a scalar: losses, ``mean()`` and ``sum()``."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, int, LossTerms]] = []

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Keep what the call reduced."""
        if isinstance(result, Tensor) and result.ndim == 0:
            with torch.no_grad():
                terms = self._read(func, args, kwargs)
            if terms is not None:
                self._seen.append((result, result._version, terms))

    def terms(self, loss: Tensor) -> LossTerms | None:
        """Return what `loss` reduced, or None if it is not itself the result of a reduction.

        A loss that is computed further (scaled, divided, added to another) may no longer be a mean
        over the counted terms, so nothing is guessed.
        """
        return next(
            (
                terms
                for result, version, terms in self._seen
                if result is loss and result._version == version  # no ``loss += ...`` since
            ),
            None,
        )

    def _read(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LossTerms | None:
        name = getattr(func, "__name__", "")
        if name in ("mean", "sum") and args and isinstance(args[0], Tensor):
            if args[0].ndim == 0:  # of a scalar: the scalar
                return self.terms(args[0])
            return LossTerms(args[0].numel(), "mean" if name == "mean" else "sum")
        return _terms_of_loss(name, func, args, kwargs)


def _terms_of_loss(
    name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LossTerms | None:
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a builtin without a signature is no loss function
        return None
    if "reduction" not in bound.signature.parameters:
        return None
    bound.apply_defaults()
    reduction = bound.arguments["reduction"]
    if bound.arguments.get("size_average") is not None or bound.arguments.get("reduce") is not None:
        return None
    if reduction not in ("mean", "sum", "batchmean"):
        return None
    count = _COUNTS.get(name, _count_unreduced)(func, bound)
    return LossTerms(count, "sum" if reduction == "sum" else "mean")


def _count_unreduced(func: Callable[..., Any], bound: inspect.BoundArguments) -> float:
    if bound.arguments["reduction"] == "batchmean":
        return float(bound.arguments["input"].shape[0])
    unreduced = func(**(bound.arguments | {"reduction": "none"}))
    return float(unreduced.numel())


def _count_classes(func: Callable[..., Any], bound: inspect.BoundArguments) -> float:
    """Count the valid targets of a cross-entropy, by class weight where it has any."""
    logits, target = bound.arguments["input"], bound.arguments["target"]
    if target.is_floating_point():  # class probabilities: one term per distribution
        classes = logits.shape[1 if logits.ndim > 1 else 0]
        return float(logits.numel() / classes)
    valid = target != bound.arguments["ignore_index"]
    weight = bound.arguments["weight"]
    if weight is None:
        return float(valid.sum())
    return float(torch.where(valid, weight[torch.where(valid, target, 0)], 0).sum())


def _count_weights(func: Callable[..., Any], bound: inspect.BoundArguments) -> float:
    """Count elements by their weight where the mean is a weighted one."""
    weight = bound.arguments.get("weight")
    return _count_unreduced(func, bound) if weight is None else float(weight.sum())


def _count_sequences(func: Callable[..., Any], bound: inspect.BoundArguments) -> float:
    return float(prod(torch.as_tensor(bound.arguments["input_lengths"]).shape))


_COUNTS: dict[str, Callable[[Callable[..., Any], inspect.BoundArguments], float]] = {
    "cross_entropy": _count_classes,
    "nll_loss": _count_classes,
    "ctc_loss": _count_sequences,
    "mse_loss": _count_weights,
    "l1_loss": _count_weights,
}
