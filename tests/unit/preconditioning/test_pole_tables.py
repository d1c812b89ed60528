"""Sums of shifted inverses: positive, certified, no more poles than needed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.preconditioning.tables.poles import MOST_POLES, pole_table

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")


@settings(max_examples=25)
@given(
    st.floats(0.1, 1.95),
    st.floats(-3, 0).map(lambda x: 10.0**x),
    st.lists(st.floats(-8, 0), min_size=20, max_size=20),
)
def test_9_6_the_certificate_holds_between_the_points_it_was_taken_at(alpha, damping, logs):
    mpmath = pytest.importorskip("mpmath")
    table = pole_table(alpha, damping, 1e-2)
    for sigma in [0.0, *(10.0**x for x in logs)]:
        s = mpmath.mpf(sigma)
        exact = s / (s ** mpmath.mpf(alpha) + mpmath.mpf(damping)) if s else mpmath.mpf(0)
        found = s * (
            table.constant
            + sum(w / (s * s + p) for w, p in zip(table.weights, table.poles, strict=True))
        )
        above = max(sigma, 1e-3)
        reference = above / (above**alpha + damping)
        # Between 4,000 points the error moves by less than a hundredth of itself.
        assert abs(found - exact) <= 1.01 * table.error * reference


@pytest.mark.long
@settings(max_examples=25)
@given(st.floats(0.1, 1.95), st.floats(-3, 0).map(lambda x: 10.0**x))
def test_9_6_poles_and_weights_are_positive_and_the_fewest(alpha, damping):
    table = pole_table(alpha, damping, 1e-2, smallest=1e-6, floor=5e-3)
    assert all(p >= 1e-6 for p in table.poles) and all(w > 0 for w in table.weights)
    assert table.constant >= 0 and len(table.poles) == len(table.weights) <= MOST_POLES
    looser = pole_table(alpha, damping, 3e-2, smallest=1e-6, floor=5e-3)
    assert len(looser.poles) <= len(table.poles)
    x = np.geomspace(1e-8, 1, 50)
    assert np.all(np.diff(table(x)) <= 0)  # a sum of decreasing functions, as f is


@pytest.mark.parametrize(
    ("alpha", "damping", "tolerance", "poles"),
    [(1.0, 0.1, 5e-3, 4), (1.5, 0.1, 3e-3, 3), (1.5, 0.1, 1e-3, 4), (1.0, 0.1, 1.2e-2, 3)],
)
def test_9_6_a_few_poles_are_enough(alpha, damping, tolerance, poles):
    table = pole_table(alpha, damping, tolerance)
    assert table.error <= tolerance and len(table.poles) <= poles


def test_9_6_one_pole_is_the_best_one():
    # Two parameters and a constant: no neighbour may have a smaller largest error.
    table = pole_table(1.5, 0.1, 0.99)
    assert len(table.poles) == 1
    sigma = np.geomspace(1e-7, 1, 4000)
    at_least = np.maximum(sigma, 1e-3)
    scale = sigma * (at_least**1.5 + 0.1) / at_least

    def error(pole, weight, constant):
        return np.max(
            np.abs(weight / (sigma**2 + pole) + constant - 1 / (sigma**1.5 + 0.1)) * scale
        )

    values = np.asarray([table.poles[0], table.weights[0], table.constant])
    rng = np.random.default_rng(0)
    around = (error(*(values * np.exp(0.02 * rng.normal(size=3)))) for _ in range(500))
    assert error(*values) <= min(around) * 1.02


@pytest.mark.parametrize(
    ("alpha", "tolerance", "poles"),
    [(1.5, 0.99, 1), (1.9, 1e-2, 2), (1.5, 1e-2, 3), (1.0, 1.2e-2, 3), (1.0, 5e-3, 4)],
)
def test_9_6_no_other_poles_of_that_number_are_much_better(alpha, tolerance, poles):
    # The error alternates in sign once more than there are parameters, and nowhere falls below 0.7
    # of its maximum there: the least maximum is above that (de la Vallée Poussin).
    table = pole_table(alpha, 0.1, tolerance)
    assert len(table.poles) == poles
    sigma = np.geomspace(1e-7, 1, 20001)
    above = np.maximum(sigma, 1e-3)
    scale = sigma * (above**alpha + 0.1) / above
    error = (table(sigma**2) - 1 / (sigma**alpha + 0.1)) * scale
    assert np.max(np.abs(error)) == pytest.approx(table.error, rel=1e-3)
    large = error[np.abs(error) >= 0.7 * table.error]
    assert 1 + np.count_nonzero(np.diff(np.sign(large))) == 2 * poles + 2


def test_the_sum_is_taken_of_numbers_and_arrays_of_any_shape():
    table = pole_table(1.5, 0.1, 1e-2)
    x = np.linspace(0, 1, 6).reshape(2, 3)
    expected = table.constant + sum(
        w / (x + p) for p, w in zip(table.poles, table.weights, strict=True)
    )
    np.testing.assert_allclose(table(x), expected, rtol=1e-14)
    assert table(0.2) == pytest.approx(expected[0, 1], rel=1e-14)


def test_what_is_out_of_reach_says_so_and_is_cached():
    first = pole_table(0.25, 1e-2, 1e-9, smallest=1e-4)
    assert first.error > 1e-9
    assert pole_table(0.25, 1e-2, 1e-9, smallest=1e-4) is first
