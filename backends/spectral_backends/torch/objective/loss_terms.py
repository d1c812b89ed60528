"""The number of terms that a batch's loss averages, which makes totals free of the batching.

``L = (1/N) Σ_i l_i`` runs over terms: samples, or tokens that are not masked (Theory 1). Averaging
batch means without these counts is wrong for a ragged last batch or unequal numbers of tokens. So
the reduction inside the loss is watched, and its own arguments say what it averaged.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan, prod
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.call_observer import CallObserver
from spectral_core.losses.terms import LossTerms, Reduction

__all__ = ["LossTerms", "Reduction", "ReductionRecorder"]


class ReductionRecorder(CallObserver):
    """Watches torch calls for reductions: losses, ``mean()`` and ``sum()``, also of each other."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[Tensor, int, LossTerms]] = {}

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Keep what the call reduced."""
        if isinstance(result, Tensor):
            terms = self._read(func, args, kwargs, result)
            if terms is not None:
                self._seen[id(result)] = (result, result._version, terms)

    def terms(self, loss: Tensor) -> LossTerms | None:
        """Return the terms that `loss`, or each element of it, reduced; None if it reduced none.

        A loss that is computed further (scaled, divided, added to another) may no longer be a mean
        over the counted terms, so nothing is guessed.
        """
        result, version, terms = self._seen.get(id(loss), (None, 0, None))
        return terms if result is loss and version == loss._version else None  # no ``loss += …``

    def _read(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Tensor,
    ) -> LossTerms | None:
        name = getattr(func, "__name__", "")
        given = args[0] if args else kwargs.get("input")
        if name in ("mean", "sum"):
            return self._reduced(given, result, "mean" if name == "mean" else "sum")
        if name in _JOINED and isinstance(given, list | tuple):
            return _common([self.terms(part) for part in given])
        if name in _ARRANGED and isinstance(given, Tensor):
            return self.terms(given)
        if result.ndim:
            return None
        with torch.no_grad():
            return _terms_of_loss(name, func, args, kwargs)

    def _reduced(self, given: Any, result: Tensor, reduction: Reduction) -> LossTerms | None:
        """Return the terms of a reduction, also along some axes only."""
        if not isinstance(given, Tensor) or not result.numel():
            return None
        terms = self.terms(given)
        if given.ndim == 0:  # the reduction of a scalar is the scalar
            return terms
        count = float(given.numel() // result.numel())
        if terms is None:
            return LossTerms(count, reduction)
        return LossTerms(count, reduction, terms.averaged, terms.stacked)


_JOINED = ("stack", "cat", "concat", "concatenate", "hstack", "vstack")
_ARRANGED = (
    "reshape", "view", "flatten", "ravel", "squeeze", "unsqueeze", "__getitem__", "to", "float",
    "double", "type", "contiguous", "clone", "transpose", "permute", "t",
)  # fmt: skip


def _common(each: Sequence[LossTerms | None]) -> LossTerms | None:
    """Return the terms of elements put together; their number is NaN where they differ in it."""
    first = each[0] if each else None
    if first is not None and all(terms == first for terms in each):
        return replace(first, stacked=True)
    means = any(terms is not None and terms.averaged is not None for terms in each)
    return LossTerms(nan, "mean", stacked=True) if means else None


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
