"""Groups of the samples of an objective's batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.nested import map_tensors, tensors_in
from spectral_backends.torch.objective.objective import Objective
from spectral_core.losses.sample_cuts import SampleAxis
from spectral_core.sampling.group_batches import BatchArrays, GroupBatches, dealt, sample_ways

__all__ = ["batches_of_groups", "terms_and_loss", "ways_of"]


def ways_of(objective: Objective, seed: int) -> list[SampleAxis | None]:
    """Return the ways in which samples may lie in the batches, the likeliest first."""
    with objective.one_pass(seed) as batches:
        return sample_ways(batches, _ARRAYS)


def batches_of_groups(
    objective: Objective, seed: int, way: SampleAxis | None, count: int
) -> list[GroupBatches]:
    """Return the batches of each group.

    Raises
    ------
    InputError
        If there are too few samples.
    """
    with objective.one_pass(seed) as batches:
        groups = dealt(batches, _ARRAYS, way, count)
    return [GroupBatches(objective.batches, _ARRAYS, way, indices) for indices in groups]


def terms_and_loss(objective: Objective, seed: int) -> tuple[float, float]:
    """Return the number of terms, or of samples where it is not known, and the mean loss."""
    terms = total = 0.0
    known = True
    with objective.one_pass(seed) as batches, torch.no_grad():
        for batch in batches:
            loss, found = objective.loss({}, batch)
            known &= found.known
            if found.count:
                terms += found.count
                total += found.scale * float(loss)
    if not known and isinstance(objective.batches, GroupBatches):
        return float(objective.batches.n_samples), total / terms
    return terms, total / terms if terms else 0.0


def _replaced(batch: Any, tensors: Sequence[Tensor]) -> Any:
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), batch)


_ARRAYS = BatchArrays(lambda batch: list(tensors_in(batch)), _replaced)
