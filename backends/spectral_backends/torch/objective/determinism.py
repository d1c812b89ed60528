"""Is the loss a function? Comparing two passes over the same data."""

import torch

from spectral_backends.torch.objective.evaluation import Evaluation
from spectral_backends.torch.objective.functional_model import FunctionalModel
from spectral_core.errors import NonDeterministicError

__all__ = ["compare_evaluations"]


def compare_evaluations(first: Evaluation, second: Evaluation, model: FunctionalModel) -> None:
    """Raise `NonDeterministicError`, with the likely cause, unless both passes agree."""
    allow = " Or pass check_deterministic=False to measure the function that the seed fixes."
    mode = " The model is in training mode: call model.eval() first." if model.is_training() else ""
    if first.written_buffers:
        shown = ", ".join(repr(name) for name in first.written_buffers[:3])
        raise NonDeterministicError(
            f"the forward pass writes to the model's buffers ({shown}), as batch norm does in "
            f"training mode, so the loss depends on the batching.{mode}{allow}"
        )
    if first.batch_statistics:
        raise NonDeterministicError(
            "a batch norm uses the statistics of each batch, so the loss depends on the batching."
            f"{mode or ' It has no running statistics: give it some.'}{allow}"
        )
    if len(first.batch_losses) != len(second.batch_losses):
        raise NonDeterministicError(
            f"batches: the first pass had {len(first.batch_losses)} batches, the second "
            f"{len(second.batch_losses)}; pass a list or a DataLoader that repeats itself."
        )
    tolerance = 1000 * torch.finfo(first.narrowing.precision).eps
    if all(map(lambda a, b: _close(a, b, tolerance), first.batch_losses, second.batch_losses)):
        return
    # Another order changes the mean by rounding only, so the tolerance is smaller here.
    if _close(first.loss, second.loss, tolerance / 20) and len(first.batch_losses) > 1:
        raise NonDeterministicError(
            "batches: they come in another order each time; build the DataLoader with "
            f"shuffle=False.{mode}{allow}"
        )
    raise NonDeterministicError(
        f"the loss changes between two passes over the same data, {first.loss!r} and then "
        f"{second.loss!r}: dropout or another random layer, or a loader that augments or "
        f"resamples.{mode or ' Use a fixed transform and a fixed set of samples.'}{allow}"
    )


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(abs(a), abs(b))
