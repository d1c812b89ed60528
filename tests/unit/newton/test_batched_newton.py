"""Which matrices are updated in one call, and that it changes nothing but the number of calls."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.newton import batched
from spectral_core.newton.batched import spectral_newton_steps

SHAPES = [(3, 4), (3, 4), (2, 5), (3, 4), (3, 4), (3, 4)]


@pytest.fixture
def calls(monkeypatch):
    """The shapes that `spectral_newton_step` is called with."""
    seen = []

    def noting(weight, *arguments, **options):
        seen.append(weight.shape)
        return sc.spectral_newton_step(weight, *arguments, **options)

    monkeypatch.setattr(batched, "spectral_newton_step", noting)
    return seen


def check(alphas, decays):
    """All steps of `SHAPES` at once equal those of every matrix by itself."""
    rng = np.random.default_rng(0)
    arrays = [[rng.normal(size=shape) for shape in SHAPES] for _ in range(3)]
    found = spectral_newton_steps(
        *arrays, layouts=[sc.as_matrices(shape) for shape in SHAPES],
        alphas=alphas, weight_decays=decays, lr=0.1, damping=0.2,
    )  # fmt: skip
    for i, (alpha, decay) in enumerate(zip(alphas, decays, strict=True)):
        own = (array[i] for array in arrays)
        alone = sc.spectral_newton_step(*own, alpha=alpha, weight_decay=decay, lr=0.1, damping=0.2)
        for one, many in zip(alone, found, strict=True):
            np.testing.assert_allclose(many[i], one, rtol=0, atol=1e-13)


def test_matrices_of_one_shape_go_together(calls):
    # 2 and 2.0 are one number, whichever objects hold it.
    check([2, 2.0, 2.0, float("2.0"), np.float64(2), 2.0], [0.1, float("0.1"), 0.1, 0.1, 0.1, 0.1])
    assert calls == [(5, 3, 4), (1, 2, 5)]


def test_alpha_and_decay_keep_matrices_apart(calls):
    check([2.0, 1.0, 2.0, 2.0, 1.0, 2.0], [0.1, 0.1, 0.1, 0.1, 0.1, 0.0])
    assert calls == [(2, 3, 4), (2, 3, 4), (1, 2, 5), (1, 3, 4)]


def test_arrays_are_one_only_if_they_are_one_object(calls):
    one, equal, other = np.asarray(1.0), np.asarray(1.0), np.asarray(0.5)
    check([one, equal, 1.0, one, other, equal], [0.0] * 6)
    assert calls == [(2, 3, 4), (2, 3, 4), (1, 2, 5), (1, 3, 4)]


@pytest.mark.parametrize(
    ("elements", "sizes"), [(24, [2, 2, 1]), (35, [2, 2, 1]), (36, [3, 2]), (1, [1] * 5)]
)
def test_a_batch_is_cut_where_it_grows_too_large(calls, monkeypatch, elements, sizes):
    monkeypatch.setattr(batched, "BATCH_ELEMENTS", elements)
    check([2.0] * 6, [0.1] * 6)
    assert sorted(shape[0] for shape in calls if shape[1:] == (3, 4)) == sorted(sizes)
