"""One pass over all data: its loss, and the checks of everything that goes into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.batches import check_batch
from spectral_backends.torch.forward_watch import ForwardWatch
from spectral_backends.torch.functional_model import FunctionalModel, count_not_finite
from spectral_backends.torch.graph import node_names
from spectral_backends.torch.loss_terms import LossTerms
from spectral_backends.torch.narrowing import Narrowing
from spectral_backends.torch.nested import tensors_in
from spectral_backends.torch.objective import Objective
from spectral_core.errors import InputError, SpectralError

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What one pass over the data saw.

    Parameters
    ----------
    loss : float
        Mean over all terms.
    n_terms : float or None
        Number of terms; None if it could not be read off the loss of a single batch.
    batch_losses : tuple of float
        As the loss function returned them.
    written_buffers : tuple of str
        Buffers of the model that its forward pass changed.
    batch_statistics : bool
        Whether a batch normalisation used the statistics of the batch.
    depends_on_count : bool
        Whether `loss` depends on how many terms each batch's loss was found to reduce: one mean
        over one batch does not.
    draws_numbers : bool
        Whether the model draws random numbers, with a seed of its own if the loss repeats itself.
    narrowing : Narrowing
        Casts to narrower types on the way from the parameters.
    """

    loss: float
    n_terms: float | None
    batch_losses: tuple[float, ...]
    written_buffers: tuple[str, ...]
    batch_statistics: bool
    depends_on_count: bool
    draws_numbers: bool
    narrowing: Narrowing


def evaluate(objective: Objective, seed: int) -> Evaluation:
    """Run the model over all data once.

    Raises
    ------
    InputError
        If data, model or loss hold or make NaN, if the loss does not depend on the model, or if
        the batches cannot be weighted by the numbers of their terms.
    """
    losses: list[float] = []
    counted: list[LossTerms] = []
    watch = ForwardWatch(objective.model.device, objective.model.dtype)
    with objective.one_pass(seed) as batches:
        before = {name: buffer.clone() for name, buffer in objective.model.buffers.items()}
        for index, batch in enumerate(batches):
            check_batch(index, batch)
            with watch, _noting(index):
                loss, terms = objective.loss(objective.matrix_leaves(), batch)
            _check_graph(loss)
            if terms.count and not torch.isfinite(loss):
                raise InputError(
                    f"batches: the loss of batch {index} is {float(loss.detach())}; "
                    f"{_why_not_finite(objective.model, batch)}."
                )
            losses.append(float(loss.detach()) if terms.count else 0.0)
            counted.append(terms)
        after = objective.model.buffers
        written = [name for name, b in before.items() if not _same(b, after[name])]
    n_terms = _count(counted)
    total = sum(
        terms.scale * value for terms, value in zip(counted, losses, strict=True) if terms.count
    )
    return Evaluation(
        loss=total / n_terms,
        n_terms=n_terms if counted[0].known else None,
        batch_losses=tuple(losses),
        written_buffers=tuple(sorted(written)),
        batch_statistics=watch.batch_statistics,
        depends_on_count=len(counted) > 1 or counted[0].reduction == "sum",
        draws_numbers=watch.draws_numbers,
        narrowing=watch.narrowing,
    )


@contextmanager
def _noting(index: int) -> Iterator[None]:
    """Say of an error of the user's own code which batch it was; the error stays as it is."""
    try:
        yield
    except SpectralError:
        raise
    except Exception as error:
        error.add_note(
            f"batches: raised by the model or its loss on batch {index}; see that all batches are "
            "of one structure, and of the shapes and dtypes that the model takes."
        )
        raise


def _count(counted: list[LossTerms]) -> float:
    """Return the number of terms of all batches."""
    if not counted:
        raise InputError("batches: it is empty; a measurement needs at least one batch.")
    if len(counted) > 1 and not all(terms.known for terms in counted):
        raise InputError(
            "weight: the number of terms behind each batch's loss cannot be read off it, and "
            f"{len(counted)} batches must be weighted by it; pass weight=lambda batch: "
            "<number of samples or tokens that the loss averages>."
        )
    n_terms = sum(terms.count for terms in counted)
    if n_terms == 0:
        raise InputError("batches: no term counts, every target is ignored; check the targets.")
    return n_terms


def _check_graph(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise InputError(
            "loss_fn: the loss does not depend on the model's parameters in a differentiable way; "
            "look for detach(), no_grad(), argmax or item() on the way, or outputs that the loss "
            "ignores."
        )
    if "CheckpointFunctionBackward" in node_names(loss):
        raise InputError(
            "model: its gradient checkpointing is of the reentrant kind, which hides parameters "
            "from autograd; call checkpoint(..., use_reentrant=False)."
        )


def _why_not_finite(model: FunctionalModel, batch: Any) -> str:
    infinite = sum(map(count_not_finite, tensors_in(batch)))
    causes = [f"the batch holds {infinite} infinite values"] if infinite else []
    causes += [
        f"buffer {name!r} of the model holds NaN or infinite values"
        for name, buffer in model.buffers.items()
        if count_not_finite(buffer)
    ]
    return " and ".join(causes) or (
        "the data and the model are finite, so look for an overflow, a logarithm of zero or a "
        "division by zero"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN
