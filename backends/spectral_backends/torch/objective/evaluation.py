"""One pass over all data: its loss, and the checks of everything that goes into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.graph import node_names
from spectral_backends.torch.instruments.nested import tensors_in
from spectral_backends.torch.objective.forward_watch import ForwardWatch
from spectral_backends.torch.objective.functional_model import FunctionalModel, count_not_finite
from spectral_backends.torch.objective.narrowing import Narrowing
from spectral_backends.torch.objective.objective import Objective
from spectral_core.errors import InputError, SpectralError
from spectral_core.losses.batch_weighting import Weighting
from spectral_core.losses.terms import BatchLoss

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The findings of one pass over the data.

    Parameters
    ----------
    batches : tuple of BatchLoss
        The losses of the batches, as the loss function returned them. They are 0 for batches
        without terms.
    weighting : Weighting
        The rule by which they are put together.
    written_buffers : tuple of str
        The buffers of the model that its forward pass changed.
    batch_statistics : bool
        Whether a batch normalisation used the statistics of the batch.
    draws_numbers : bool
        Whether the model draws random numbers, with a seed of its own if the loss repeats itself.
    narrowing : Narrowing
        The casts to narrower types on the way from the parameters.
    """

    batches: tuple[BatchLoss, ...]
    weighting: Weighting
    written_buffers: tuple[str, ...]
    batch_statistics: bool
    draws_numbers: bool
    narrowing: Narrowing

    @property
    def loss(self) -> float:
        """Return the mean over all terms."""
        terms = [self.weighting.terms(batch) for batch in self.batches]
        total = sum(
            t.scale * batch.loss for t, batch in zip(terms, self.batches, strict=True) if t.count
        )
        return total / sum(t.count for t in terms)

    @property
    def n_terms(self) -> float | None:
        """Return the number of terms; None if a single batch's loss does not tell it."""
        terms = [self.weighting.terms(batch) for batch in self.batches]
        return sum(t.count for t in terms) if terms[0].known else None

    @property
    def batch_losses(self) -> tuple[float, ...]:
        """Return the losses of the batches."""
        return tuple(batch.loss for batch in self.batches)


def evaluate(objective: Objective, seed: int) -> Evaluation:
    """Run the model over all data once.

    Raises
    ------
    InputError
        If data, model or loss hold or make NaN, or if the loss does not depend on the model.
    """
    found: list[BatchLoss] = []
    watch = ForwardWatch(objective.model.device, objective.model.dtype)
    with objective.one_pass(seed) as batches:
        before = {name: buffer.clone() for name, buffer in objective.model.buffers.items()}
        for index, batch in enumerate(batches):
            _check_batch(index, batch)
            with watch, _noting(index):
                loss, read = objective.read(objective.matrix_leaves(), batch)
            _check_graph(loss)
            counts = objective.weighting.terms(read).count != 0
            if counts and not torch.isfinite(loss):
                raise InputError(
                    f"batches: the loss of batch {index} is {float(loss.detach())}; "
                    f"{_why_not_finite(objective.model, batch)}."
                )
            found.append(replace(read, loss=float(loss.detach()) if counts else 0.0))
        after = objective.model.buffers
        written = [name for name, b in before.items() if not _same(b, after[name])]
    if not found:
        raise InputError("batches: it is empty; a measurement needs at least one batch.")
    if not any(objective.weighting.terms(batch).count for batch in found):
        raise InputError("batches: no term counts, every target is ignored; check the targets.")
    return Evaluation(
        tuple(found),
        objective.weighting,
        tuple(sorted(written)),
        watch.batch_statistics,
        watch.draws_numbers,
        watch.narrowing,
    )


def _check_batch(index: int, batch: Any) -> None:
    """Raise `InputError` if a tensor of the batch holds NaN.

    Infinities may be intended, as in an additive attention mask. If they are not, the loss or a
    gradient shows it.
    """
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and (bad := int(torch.isnan(tensor).sum())):
            raise InputError(
                f"batches: batch {index} holds {bad} NaN values in a tensor of shape "
                f"{tuple(tensor.shape)}; clean the data."
            )


@contextmanager
def _noting(index: int) -> Iterator[None]:
    """Add the batch to an error of the user's own code; the error stays as it is."""
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
    # NaN counts as equal to NaN.
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
