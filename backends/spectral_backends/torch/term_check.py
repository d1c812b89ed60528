"""Does a batch's loss average the terms that were read off it? Its two halves tell.

A mean over c terms is additive: ``c L = c₁ L₁ + c₂ L₂`` for the halves of a batch. A loss that is
not, such as a mean of batch means or one that compares the samples of a batch with each other,
would be weighted wrongly over batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.loss_terms import LossTerms
from spectral_backends.torch.nested import common_length, map_tensors
from spectral_core.errors import InputError

__all__ = ["check_additive"]


def check_additive(loss_of: Callable[[Any], tuple[Tensor, LossTerms]], data: Any) -> None:
    """Raise `InputError` if the loss of `data` is not that of its halves, weighted by their terms.

    Data that cannot be cut along a common first axis are let pass, as nothing can be said of them.

    Parameters
    ----------
    loss_of : callable
        Returns the loss of data like `data`, and its terms.
    data : Any
        What the loss is a function of: tensors, nested in any way.
    """
    halves = _halves(data)
    if halves is None:
        return
    try:
        whole, *parts = [_Total.of(*loss_of(piece)) for piece in (data, *halves)]
    except Exception:  # a loss for batches of one size only: nothing to compare
        return
    count, total = (sum(getattr(part, name) for part in parts) for name in ("count", "total"))
    tolerance = whole.precision**0.5
    if (
        abs(count - whole.count) > tolerance * whole.count
        or abs(total - whole.total) > tolerance * sum(abs(part.total) for part in parts)
    ):  # fmt: skip
        raise InputError(
            "weight: the loss is not a mean over independent terms as far as can be read off it: "
            f"a batch has {whole.count:g} terms with a sum of {whole.total:.6g}, its two halves "
            f"{count:g} with {total:.6g}. Pass weight=lambda batch: <number of samples or tokens "
            "that the loss averages>, which is then taken as it is."
        )


@dataclass(frozen=True)
class _Total:
    """Sum of a loss over its terms, their number, and the relative precision of the sum."""

    total: float
    count: float
    precision: float

    @classmethod
    def of(cls, loss: Tensor, terms: LossTerms) -> "_Total":
        total = terms.scale * float(loss.detach()) if terms.count else 0.0
        return cls(total, terms.count, torch.finfo(loss.dtype).eps)


def _halves(data: Any) -> tuple[Any, Any] | None:
    size = common_length(data)
    if size is None or size < 2:
        return None
    middle = size // 2
    return map_tensors(lambda t: t[:middle], data), map_tensors(lambda t: t[middle:], data)
