"""Theory 11.4: the standard error of a statistic by leaving out groups."""

import numpy as np
import pytest
from hypothesis import strategies as st
from properties import holds
from scipy import stats
from strategies import scales, seeds

import spectral_core as sc
from spectral_core.sampling import jackknife


@st.composite
def estimates(draw, few=False):
    b = 4 if few else draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(seeds))
    return draw(scales) * (draw(st.sampled_from([0, 1, 10])) + rng.normal(size=(b, 3)))


def both(values):
    found = jackknife(values, confidence=0.9)
    return found.stderr, found.half_width


@holds(data=estimates)
def test_11_4_the_spread_of_leave_one_out_estimates(xp, data):
    data = xp.precise(data)
    b = len(data)
    stderr, half = (xp.numpy(a).astype(float) for a in xp.run(both, xp.array(data)))
    expected = np.zeros(3)
    for row in data:
        expected += (row - data.mean(axis=0)) ** 2
    expected = np.sqrt((b - 1) / b * expected)
    error = 4 * (b + 8) * xp.eps * (b * np.max(np.abs(data), axis=0) + expected)
    assert np.all(np.abs(stderr - expected) <= error)
    quantile = stats.t.ppf(0.95, b - 1)
    assert np.all(np.abs(half - quantile * expected) <= 2 * quantile * error)
    xp.check_kind(jackknife(xp.array(data)).stderr, xp.array(data))


@holds(seed=seeds, sizes=st.just([3, 3, 3, 3]) | st.just([1, 2, 5, 4]))
def test_11_4_a_mean_has_its_textbook_error(xp, seed, sizes):
    """For equal groups s/√B of the groups' means; for others the same with their shares."""
    sizes = np.array(sizes, dtype=float)
    means, w = xp.precise(np.random.default_rng(seed).normal(size=4)), sizes / sizes.sum()
    without = (w @ means - w * means) / (1 - w)
    found = xp.run(
        lambda values, weights: jackknife(values, weights=weights).stderr,
        xp.array(without),
        xp.array(sizes),
    )
    expected = np.sqrt(w @ (means - w @ means) ** 2 / 3)
    if np.all(sizes == sizes[0]):
        assert expected == pytest.approx(stats.sem(means))
    # θ_(−b) is rounded, and its difference from the mean counts (1 − w)/√w of it.
    error = 100 * xp.eps * np.max(np.abs(means)) / np.sqrt(np.min(w))
    assert abs(float(xp.numpy(found)) - expected) <= error


@pytest.mark.parametrize("sizes", [[16] * 8, [4, 40, 16, 8, 24, 20, 10, 6]])
def test_11_4_the_error_of_a_smooth_statistic(sizes):
    """The logarithm of a mean: its jackknife error is its spread over samples."""
    rng, sizes = np.random.default_rng(5), np.array(sizes)
    values, errors, covered = [], [], []
    for _ in range(400):
        groups = np.array([rng.exponential(size=size).mean() for size in sizes])
        w = sizes / sizes.sum()
        found = jackknife(np.log((w @ groups - w * groups) / (1 - w)), weights=sizes)
        values.append(np.log(w @ groups))
        errors.append(found.stderr**2)
        covered.append(abs(values[-1]) <= found.half_width)
    assert np.mean(errors) == pytest.approx(np.var(values), rel=0.2)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_a_nan_stays_where_it_is():
    values = np.arange(12.0).reshape(4, 3)
    values[1, 1] = np.nan
    found = jackknife(values)
    np.testing.assert_array_equal(np.isnan(found.stderr), [False, True, False])
    np.testing.assert_array_equal(np.isnan(found.half_width), [False, True, False])


def test_plain_numbers():
    found = jackknife([1.4, 1.5, 1.6]).to_floats()
    assert isinstance(found.stderr, float) and found.n_groups == 3 and found.confidence == 0.95


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jackknife(np.ones(1)), r"estimates: has shape \(1,\); pass 2 groups or more"),
        (lambda: jackknife(np.array(1.0)), r"estimates: has shape \(\)"),
        (lambda: jackknife(np.ones(3), weights=[1, 2]), "weights: has shape"),
        (lambda: jackknife(np.ones(3), confidence=1), "confidence: 1"),
    ],
)
def test_arguments_that_do_not_fit(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()
