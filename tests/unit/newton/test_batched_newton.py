"""Which matrices are updated in one call, and that it changes nothing but the number of calls."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.newton import StepOptions, batched
from spectral_core.newton.batched import spectral_newton_steps
from spectral_core.newton.step import newton_step

SHAPES = [(3, 4), (3, 4), (2, 5), (3, 4), (3, 4), (3, 4)]


@pytest.fixture
def calls(monkeypatch):
    """The shapes that `newton_step` is called with."""
    seen = []

    def noting(weight, *arguments, **options):
        seen.append(weight.shape)
        return newton_step(weight, *arguments, **options)

    monkeypatch.setattr(batched, "newton_step", noting)
    return seen


def check(alphas, decays):
    """All steps of `SHAPES` at once equal those of every matrix by itself."""
    rng = np.random.default_rng(0)
    arrays = [[rng.normal(size=shape) for shape in SHAPES] for _ in range(3)]
    found = spectral_newton_steps(
        *arrays, layouts=[sc.as_matrices(shape) for shape in SHAPES],
        alphas=alphas, weight_decays=decays, options=StepOptions(lr=0.1, damping=0.2),
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


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((3, 4, 5), "stack"), ((3, 4, 6), "matrix stack=1 rows=2"), ((3, 4, 6), "matrix stack=1 rows=1,3"),
     ((3, 6, 2, 2), "conv stack=1"),
     ((3, 4, 2, 2), "conv stack=1 groups=2"), ((3, 1, 4, 5), "stack")],
)  # fmt: skip
def test_slices_of_a_stack_have_each_their_own_alpha(calls, shape, spec):
    layout = sc.as_matrices(shape, spec)
    own = sc.as_matrices(shape[1:], spec.replace("stack=1 ", "").replace(" stack=1", ""))
    rng = np.random.default_rng(0)
    weight, gradient, momentum = (rng.normal(size=shape) for _ in range(3))
    options = StepOptions(lr=0.1, damping=0.2, weight_decay=0.1)
    alphas = (2.0, 1.0, 1.0)
    found = spectral_newton_steps(
        [weight], [gradient], [momentum], layouts=[layout], alphas=[alphas], options=options
    )  # fmt: skip
    assert layout.stack == shape[: layout.spec.stack] and len(calls) >= 2
    for i, alpha in enumerate(alphas):
        alone = spectral_newton_steps(
            [weight[i]], [gradient[i]], [momentum[i]], layouts=[own], alphas=[alpha],
            options=options,
        )  # fmt: skip
        for many, one in zip(found, alone, strict=True):
            np.testing.assert_allclose(many[0][i], one[0], rtol=0, atol=1e-13)


def test_a_tuple_of_one_alpha_is_that_of_a_stack_of_one_slice():
    array, layout = (
        np.random.default_rng(0).normal(size=(1, 2, 4)),
        sc.as_matrices((1, 2, 4), "stack"),
    )
    of_tuple, of_number = (
        spectral_newton_steps(
            [array], [array], [array], layouts=[layout], alphas=[alpha], options=StepOptions(lr=0.1)
        )
        for alpha in ((1.0,), 1.0)
    )  # fmt: skip
    np.testing.assert_array_equal(of_tuple, of_number)


def test_slices_of_one_alpha_are_one_call(calls):
    array = np.ones((3, 2, 4))
    spectral_newton_steps(
        [array, array], [array, array], [array, array], layouts=[sc.as_matrices((3, 2, 4), "stack")] * 2,
        alphas=[(1.0, 2.0, 1.0), (2.0, 2.0, 2.0)], options=StepOptions(lr=0.1),
    )  # fmt: skip
    assert sorted(calls) == [(2, 2, 4), (4, 2, 4)]
