"""Theory 11.4: the standard error of a statistic from halves, and the lesser of two errors."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import strategies as st
from properties import holds
from scipy import stats
from scipy.linalg import hadamard
from strategies import scales, seeds

import spectral_core as sc
from spectral_core.sampling import (
    balanced_halves,
    gradient_noise,
    half_sample_error,
    jackknife,
    sampling_error,
)


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_divisions_are_the_columns_of_a_hadamard_matrix(count):
    signs = np.ones((count, count - 1))
    for column, (_, second) in enumerate(balanced_halves(count)):
        signs[list(second), column] = -1
    expected = {tuple(column) for column in hadamard(count)[:, 1:].T}
    assert {tuple(column) for column in signs.T} == expected


@pytest.mark.parametrize("count", range(2, 40))
def test_each_division_has_all_groups_in_halves_that_are_nearly_equal(count):
    divisions = balanced_halves(count)
    assert len(divisions) == len(set(divisions)) == count - 1
    for first, second in divisions:
        assert sorted((*first, *second)) == list(range(count))
        assert first and second
        assert abs(len(first) - len(second)) <= max(2, count // 4)


@st.composite
def pairs(draw, few=False):
    count = 3 if few else draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(seeds))
    center = draw(st.sampled_from([0, 1, 10]))
    return draw(scales) * (center + rng.normal(size=(count, 2, 3)))


@holds(data=pairs)
def test_11_4_half_the_mean_squared_difference(xp, data):
    data = xp.precise(data)
    found = xp.numpy(xp.run(half_sample_error, xp.array(data))).astype(float)
    expected = np.sqrt(np.mean((data[:, 0] - data[:, 1]) ** 2, axis=0) / 2)
    error = 20 * xp.eps * (np.max(np.abs(data), axis=(0, 1)) + expected)
    assert np.all(np.abs(found - expected) <= error)
    xp.check_kind(half_sample_error(xp.array(data)), xp.array(data))


@holds(seed=seeds, few=st.just(4) | st.just(8))
def test_11_4_a_mean_has_twice_the_variance_in_halves(xp, seed, few):
    """For a mean of equal groups the two errors are s/√B and √2 of it, exactly."""
    groups = xp.precise(np.random.default_rng(seed).normal(size=few))
    without = (groups.sum() - groups) / (few - 1)
    halves = [[groups[list(half)].mean() for half in both] for both in balanced_halves(few)]

    def errors(without, halves):
        found = sampling_error(without, halves)
        return found.jackknife, found.half_samples, found.stderr, found.half_width

    found = xp.run(errors, xp.array(without), xp.array(np.array(halves)))
    expected, error = stats.sem(groups), 100 * few * xp.eps * np.max(np.abs(groups))
    factors = (1, 2**0.5, 1, stats.t.ppf(0.975, few - 1))
    for value, factor in zip(found, factors, strict=True):
        assert abs(float(xp.numpy(value)) - factor * expected) <= factor * error


@holds(seed=seeds, few=st.just(4) | st.just(8))
def test_11_5_the_drift_of_the_squared_gradient_is_its_noise(xp, seed, few):
    """``mean ‖G_half‖² − ‖G_N‖² = ν`` over balanced halves of equal groups, exactly."""
    groups = xp.precise(np.random.default_rng(seed).normal(size=(few, 3, 2)))

    def drift_and_noise(groups):
        squares = [
            sum(groups[i, ...] for i in half) ** 2 / (few / 2) ** 2
            for both in balanced_halves(few)
            for half in both
        ]
        namespace = array_api_compat.array_namespace(groups)
        of_all = namespace.sum(namespace.mean(groups, axis=0) ** 2)
        of_halves = sum(namespace.sum(square) for square in squares) / len(squares)
        return of_halves - of_all, gradient_noise(groups)

    drift, noise = (float(xp.numpy(x)) for x in xp.run(drift_and_noise, xp.array(groups)))
    assert abs(drift - noise) <= 100 * few * xp.eps * (groups**2).sum()
    expected = ((groups - groups.mean(0)) ** 2).sum() / (few * (few - 1))
    assert abs(drift - expected) <= 100 * few * xp.eps * (groups**2).sum()


@pytest.mark.parametrize("signal", [0.0, 30.0])
def test_11_4_the_lesser_holds_under_noise_and_under_signal(signal):
    """The first two singular values' ratio, of noise alone and of noise beside a strong signal."""
    rng, count, draws = np.random.default_rng(3), 8, 400
    fixed = signal * np.diag([2.0, 1.0, 0.5, 0.1])

    def statistic(gradients):
        sigma = np.linalg.svd(gradients, compute_uv=False)
        return np.log(sigma[..., 0] / sigma[..., 1])

    groups = fixed + count**0.5 * rng.normal(size=(draws, count, 4, 4))
    value = statistic(groups.mean(1))
    without = statistic((groups.sum(1, keepdims=True) - groups) / (count - 1)).T
    halves = [
        [statistic(groups[:, list(half)].mean(1)) for half in both]
        for both in balanced_halves(count)
    ]
    found = sampling_error(without, np.array(halves))
    spread = np.std(value)
    covered = np.mean(np.abs(value - np.mean(value)) <= found.half_width)
    assert 0.9 <= covered <= 0.98
    ratio = np.sqrt(np.mean(found.stderr**2)) / spread
    assert 0.85 <= ratio <= 1.25
    # Each of the two by itself is too wide in one of the cases.
    worse = found.half_samples if signal else found.jackknife
    assert np.sqrt(np.mean(worse**2)) / spread > 1.3


def test_the_error_is_the_lesser_one_and_nan_where_either_is():
    without = np.array([[1.0, 1.0, 1.0], [1.1, 1.1, np.nan], [1.2, 1.2, 1.0], [1.0, 1.0, 1.0]])
    halves = np.array([[[1.0, 1.0, 1.0], [1.01, 3.0, 1.0]]])
    found = sampling_error(without, halves, weights=[1, 2, 2, 1], confidence=0.9)
    assert found.stderr[0] == found.half_samples[0] == pytest.approx(0.01 / 2**0.5)
    assert (
        found.stderr[1] == found.jackknife[1] == jackknife(without, weights=[1, 2, 2, 1]).stderr[1]
    )
    assert np.isnan(found.stderr[2]) and np.isnan(found.half_width[2])
    assert found.half_width[0] == pytest.approx(stats.t.ppf(0.95, 3) * found.stderr[0])
    assert found.n_groups == 4 and found.confidence == 0.9


def test_plain_numbers():
    found = sampling_error([1.4, 1.5, 1.6], [[1.4, 1.5], [1.3, 1.6]]).to_floats()
    assert isinstance(found.stderr, float) and isinstance(found.half_samples, float)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: balanced_halves(1), "count: 1 is no number of groups"),
        (lambda: balanced_halves(True), "count: True"),
        (lambda: balanced_halves(4.0), r"count: 4\.0"),
        (lambda: half_sample_error(np.ones(2)), r"halves: has shape \(2,\)"),
        (lambda: half_sample_error(np.ones((3, 3))), r"halves: has shape \(3, 3\)"),
        (lambda: half_sample_error(np.ones((0, 2))), r"halves: has shape \(0, 2\)"),
        (lambda: sampling_error(np.ones(1), np.ones((1, 2))), "estimates: has shape"),
        (lambda: sampling_error(np.ones(3), np.ones((1, 2)), confidence=2), "confidence: 2"),
        (lambda: sampling_error(np.ones((3, 2)), np.ones((1, 2))), "halves: .*without_each"),
    ],
)
def test_arguments_that_do_not_fit(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()
