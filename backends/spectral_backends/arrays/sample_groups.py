"""Groups of the samples of a problem's batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import array_api_compat

from spectral_backends.arrays.data_pass import DataPass
from spectral_backends.arrays.gradient_function import NO_BATCH, arrays_in
from spectral_core.arrays.namespace import Array
from spectral_core.errors import InputError
from spectral_core.losses.sample_cuts import SampleAxis
from spectral_core.sampling.group_batches import BatchArrays, GroupBatches, dealt, sample_ways

__all__ = ["batches_of_groups", "n_terms", "ways_of"]


def ways_of(data: DataPass) -> list[SampleAxis | None]:
    """Return the ways in which samples may lie in the batches, the likeliest first.

    Raises
    ------
    InputError
        If the functions hold the data themselves.
    """
    if any(batch is NO_BATCH for batch in data.batches):
        raise InputError(
            "sampling: the functions hold the data themselves, and nobody else can divide them; "
            "pass batches=, or sampling=None."
        )
    return sample_ways(data.batches, _ARRAYS)


def batches_of_groups(data: DataPass, way: SampleAxis | None, count: int) -> list[GroupBatches]:
    """Return the batches of each group.

    Raises
    ------
    InputError
        If there are too few samples.
    """
    groups = dealt(data.batches, _ARRAYS, way, count)
    return [GroupBatches(data.batches, _ARRAYS, way, indices) for indices in groups]


def n_terms(data: DataPass) -> float:
    """Return the number of terms of a group, or of samples where it is not known."""
    if not data.weighted and isinstance(data.batches, GroupBatches):
        return float(data.batches.n_samples)
    return float(sum(terms for _, terms in data))


def _replaced(batch: Any, arrays: Sequence[Array]) -> Any:
    return _filled(batch, iter(arrays))


def _filled(batch: Any, arrays: Any) -> Any:
    if array_api_compat.is_array_api_obj(batch):
        return next(arrays)
    if isinstance(batch, Mapping):
        return {key: _filled(item, arrays) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_filled(item, arrays) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_filled(item, arrays) for item in batch)
    return batch


_ARRAYS = BatchArrays(arrays_in, _replaced)
