"""Subsamples along the directions of their own gradients: their SVDs, curvatures and exponents."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.problem import LayerInfo
from spectral_core.exponents.transfer_identity import exponent_triangle
from spectral_core.measuring.directions import Decomposition, Window, top_directions
from spectral_core.measuring.subsampling.subsamples import Subsamples
from spectral_core.participation.participation import participation_ratio

__all__ = [
    "exponents_of_each",
    "further_directions",
    "means_over_subsamples",
    "own_windows",
    "padded",
]

Values = npt.NDArray[np.float64]


def own_windows(
    layer: LayerInfo,
    gradients: Sequence[Any],
    subsamples: Subsamples,
    top_k: int,
    svd: Decomposition,
) -> tuple[Window, ...]:
    """Return the top directions of each subsample of a layer, from the gradients of its groups.

    Raises
    ------
    LayerError
        If the gradient of a subsample is zero or not finite.
    """
    return tuple(
        top_directions(layer, subsamples.mean(subsample, gradients), top_k, svd)
        for subsample in subsamples
    )


def further_directions(
    windows: Mapping[str, Sequence[Window]], subsamples: Subsamples, group: int
) -> dict[str, tuple[Any, Any]]:
    """Return the directions of all subsamples that a group belongs to, by layer."""
    found = {}
    for name, of_layer in windows.items():
        own = [of_layer[i] for i in subsamples.with_group(group)]
        xp = array_api_compat.array_namespace(own[0].u)
        u, v = (xp.concat([getattr(w, side) for w in own], axis=1) for side in "uv")
        found[name] = u, v
    return found


def means_over_subsamples(
    windows: Sequence[Window], subsamples: Subsamples, further: Sequence[Any]
) -> list[Values]:
    """Return the curvatures of each subsample along its own directions.

    Parameters
    ----------
    windows : sequence of Window
        The directions of each subsample.
    subsamples : Subsamples
        The groups of each subsample.
    further : sequence of array
        For each group, its curvatures along its `further_directions`.
    """
    by_group: list[dict[int, Values]] = []
    for group, values in enumerate(further):
        counts = {i: len(windows[i].sigma) for i in subsamples.with_group(group)}
        ends = np.cumsum([0, *counts.values()])
        host = to_numpy(values).astype(np.float64)
        parts = [host[a:b] for a, b in pairwise(ends)]
        by_group.append(dict(zip(counts, parts, strict=True)))
    return [
        subsamples.mean(subsample, [of_one.get(i) for of_one in by_group])
        for i, subsample in enumerate(subsamples)
    ]


def exponents_of_each(sigma: Sequence[Values], h: Sequence[Values]) -> dict[str, Values]:
    """Return α, γ, s and the participation ratio of each subsample, in arrays by name."""
    padded_sigma, padded_h = padded(sigma), padded(h)
    triangle = exponent_triangle(padded_sigma, padded_h)
    fits = {"alpha": triangle.alpha, "gamma": triangle.gamma, "s": triangle.s}
    return {
        **{name: to_numpy(fit.exponent) for name, fit in fits.items()},
        "participation": to_numpy(participation_ratio(padded_h)),
    }


def padded(rows: Sequence[Values]) -> Values:
    """Return rows of unequal lengths as one array, with zeros, which no fit takes, behind."""
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])
