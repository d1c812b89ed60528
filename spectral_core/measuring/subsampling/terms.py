"""The terms of α of each subsample, fitted together."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from spectral_core.alignment.alignment import SpectralAlignment
from spectral_core.alignment.decomposition import decompose_exponent
from spectral_core.measuring.subsampling.own_directions import padded

__all__ = ["TERMS", "terms_of_each"]

T = TypeVar("T")
Values = npt.NDArray[np.float64]
TERMS = ("beta", "phi", "kappa", "nu")


def terms_of_each(
    sigma: Sequence[Values],
    h: Sequence[Values],
    ggn: Sequence[Values],
    alignments: Sequence[SpectralAlignment],
) -> dict[str, Values]:
    """Return β, φ, κ and ν of each subsample, in arrays by name (Theory 5.5)."""
    x, y, z = (padded(rows) for rows in (sigma, h, ggn))
    fits = decompose_exponent(x, y, z, _stacked(alignments))
    return {term: np.asarray(getattr(fits, term).exponent) for term in TERMS}


def _stacked(results: Sequence[T]) -> T:
    """Return results of NumPy arrays as one batch; directions that some lack are zeros."""
    parts = {f.name: [getattr(each, f.name) for each in results] for f in fields(results[0])}  # type: ignore[arg-type]
    return type(results[0])(**{name: _batch(values) for name, values in parts.items()})


def _batch(values: Sequence[Any]) -> Any:
    if hasattr(values[0], "__dataclass_fields__"):
        return _stacked(values)
    return padded(values) if np.ndim(values[0]) else np.asarray(values)
