"""The axes along which the samples of the outputs lie among the positions of each use.

Layouts differ: batches in front, time in front, tokens flattened into samples, ``vmap`` with any
axis. So a random cotangent of the outputs is sent back twice, once with a random factor for each
sample: at the axis of samples what arrives has the same factors, and at no other. If it has them
nowhere, samples meet before the layer, as in a batch normalisation with batch statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.capture.layer_io import (
    RowsBySample,
    SampleAxis,
    run_with_probes,
    sample_axes,
)
from spectral_backends.jax.jaxprs.scattered import scattered
from spectral_backends.jax.layers.families import Family, Use
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.objective import Objective

__all__ = ["Samples", "find_samples"]


@dataclass(frozen=True)
class Samples:
    """The axes of samples at the uses of a family; `problem` says why they are not known."""

    axes: tuple[SampleAxis | None, ...]
    problem: str = ""


def find_samples(objective: Objective, batch: Batch, families: Sequence[Family]) -> list[Samples]:
    """Return the axes of the samples of a batch, for each family."""
    key = ("samples", *families)
    run = objective.cache.compiled(batch, key, lambda: _deviations(batch, families))
    found = run(batch.values, batch.leaves)
    tolerance = 1e4 * objective.eps
    chosen = []
    for family, deviations in zip(families, found, strict=True):
        candidates = [_candidates(batch, use) for use in family.uses]
        chosen.append(_chosen(candidates, deviations, tolerance))
    return chosen


def _candidates(batch: Batch, use: Use) -> list[SampleAxis]:
    assert batch.program.forward is not None
    return sample_axes(use, batch.program.forward.out_avals[0].shape[0])


def _deviations(batch: Batch, families: Sequence[Family]) -> Any:
    """Return a function of a batch: for each use, the deviation along each candidate axis."""

    def run(values: Any, leaves: Any) -> Any:
        probed = run_with_probes(batch.program, values, leaves, families)
        z = probed.outputs
        cotangent = scattered(z.shape, z.dtype, 0)
        factors = 2 + scattered(z.shape[:1], z.dtype, 1)
        spread = factors.reshape(-1, *[1] * (z.ndim - 1))
        both = jax.vmap(probed.back)(jnp.stack([cotangent, cotangent * spread]))
        once, again = (jax.tree_util.tree_map(lambda g, i=i: g[i], both) for i in range(2))

        def deviation(use: Use, at: SampleAxis) -> Any:
            rows = RowsBySample(use, len(z), at)
            plain, weighted = rows.outputs(once), rows.outputs(again)
            off = jnp.abs(weighted - factors[:, None, None] * plain).max()
            return off / jnp.maximum(jnp.abs(plain).max(), np.finfo(z.dtype).tiny)

        return [
            [[deviation(use, at) for at in _candidates(batch, use)] for use in family.uses]
            for family in families
        ]

    return run


def _chosen(
    candidates: list[list[SampleAxis]], deviations: list[list[Any]], tolerance: float
) -> Samples:
    axes = []
    for possible, found in zip(candidates, deviations, strict=True):
        good = [at for at, off in zip(possible, found, strict=True) if float(off) <= tolerance]
        if not good:
            meet = "samples of the outputs meet before it"
            return Samples((), meet if possible else "no axis of it holds the outputs' samples")
        axes.append(good[0])
    return Samples(tuple(axes))
