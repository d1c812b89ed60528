"""Groups of the samples of an objective's batches."""

from typing import Any

import jax
import numpy as np

from spectral_backends.jax.objective.objective import Objective
from spectral_core.errors import InputError
from spectral_core.losses.sample_cuts import SampleAxis
from spectral_core.sampling.group_batches import BatchArrays, GroupBatches, dealt, sample_ways

__all__ = ["batches_of_groups", "terms_and_loss", "ways_of"]


def ways_of(objective: Objective) -> list[SampleAxis | None]:
    """Return the ways in which samples may lie in the batches, the likeliest first.

    Raises
    ------
    InputError
        If the batches lie on several devices.
    """
    if objective.placement is not None:
        raise InputError(
            "sampling: samples that lie on several devices are not divided into groups; measure "
            "on one device, or pass sampling=None."
        )
    return sample_ways(objective.raw_batches, _ARRAYS)


def batches_of_groups(
    objective: Objective, way: SampleAxis | None, count: int
) -> list[GroupBatches]:
    """Return the batches of each group.

    Raises
    ------
    InputError
        If there are too few samples.
    """
    groups = dealt(objective.raw_batches, _ARRAYS, way, count)
    return [GroupBatches(objective.raw_batches, _ARRAYS, way, indices) for indices in groups]


def terms_and_loss(objective: Objective) -> tuple[float, float]:
    """Return the number of terms, or of samples where it is not known, and the mean loss."""
    batches = objective.raw_batches
    if not objective.known and isinstance(batches, GroupBatches):
        return float(batches.n_samples), objective.loss
    return objective.n_terms, objective.loss


def _leaves(batch: Any) -> list[Any]:
    """Return the arrays of a batch, of NumPy, so that parts of them need no compilation."""
    return [_on_the_host(leaf) for leaf in jax.tree_util.tree_leaves(batch)]


def _on_the_host(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise InputError("sampling: a batch holds a random key, which belongs to no sample.")
    return np.asarray(leaf)


def _replaced(batch: Any, arrays: list[Any]) -> Any:
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(batch), arrays)


_ARRAYS = BatchArrays(_leaves, _replaced)
