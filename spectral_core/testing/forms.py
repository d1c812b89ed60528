"""The closed forms that backends are held against; shapes differ from layer to layer."""

from functools import cache
from itertools import pairwise

import numpy as np

from spectral_core.testing.closed_form import Array, Batch, ClosedForm

__all__ = ["closed_forms"]

SAMPLES = 7
POSITIONS = 3


@cache
def closed_forms() -> dict[str, ClosedForm]:
    """Return the closed forms by name.

    - ``"quadratic"``: one matrix, ``½ (z − t)ᵀ M (z − t)``, so that ``H = M ⊗ C_A``;
    - ``"linear network"``: three matrices, ``½ ‖z − t‖²``;
    - ``"softmax regression"``: one matrix, cross-entropy;
    - ``"curved network"``: two matrices, squares between them, cross-entropy: ``h ≠ h^GGN``;
    - ``"positions"``: two matrices, squares between them, at three positions of each sample.
    """
    forms = [
        ClosedForm("quadratic", _matrices(0, 4, 3), _data(0, 4, 3), metric=_metric(3)),
        ClosedForm("linear network", _matrices(1, 5, 6, 4, 3), _data(1, 5, 3)),
        ClosedForm(
            "softmax regression", _matrices(2, 5, 4), _data(2, 5, 4, "labels"), "cross-entropy"
        ),
        ClosedForm(
            "curved network", _matrices(3, 4, 5, 3), _data(3, 4, 3, "labels"), "cross-entropy",
            activation="square",
        ),
        ClosedForm(
            "positions", _matrices(4, 4, 5, 3), _data(4, 4, 3, "values", POSITIONS),
            activation="square",
        ),
    ]  # fmt: skip
    return {form.name: form for form in forms}


def _matrices(seed: int, *widths: int) -> tuple[Array, ...]:
    generator = np.random.default_rng([seed, 0])
    return tuple(generator.standard_normal((m, n)) / np.sqrt(n) for n, m in pairwise(widths))


def _data(
    seed: int, width: int, outputs: int, targets: str = "values", positions: int = 0
) -> tuple[Batch, ...]:
    generator = np.random.default_rng([seed, 1])
    inputs = generator.standard_normal((SAMPLES, *([positions] if positions else []), width))
    if targets == "labels":
        labels = generator.integers(0, outputs, SAMPLES)
        return (Batch(inputs, labels, np.ones(SAMPLES)),)
    return (Batch(inputs, generator.standard_normal((SAMPLES, outputs)), np.ones(SAMPLES)),)


def _metric(size: int) -> Array:
    root = np.random.default_rng(9).standard_normal((size, size))
    metric: Array = root @ root.T / size + np.eye(size) / 2
    return metric
