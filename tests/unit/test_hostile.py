"""Bad arguments get a sentence; bad data get a NaN with a reason."""

import subprocess
import sys

import numpy as np
import pytest

import spectral_core as sc

ONES = np.ones(5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sc.fit_power_law(np.arange(5), ONES), "x: has dtype int64"),
        (lambda: sc.fit_power_law(ONES, ONES.astype(complex)), "y: has dtype complex"),
        (lambda: sc.fit_power_law(ONES, np.ones(4)), r"differ in length: x \(5,\), y \(4,\)"),
        (lambda: sc.fit_power_law(np.ones((2, 5)), np.ones((3, 5))), "do not broadcast"),
        (lambda: sc.fit_power_law(ONES, "abc"), "y: a str is no array"),
        (lambda: sc.fit_power_law(ONES, None), "y: a NoneType is no array"),
        (lambda: sc.fit_power_law(ONES, [[1.0], [1.0, 2.0]]), "y: is no regular sequence"),
        (lambda: sc.fit_power_law(ONES, ONES, confidence=95), "confidence: 95"),
        (lambda: sc.fit_power_law(np.float64(1.0), ONES), "x: "),
        (lambda: sc.exponent_triangle(ONES, ONES, order="rank"), "order: 'rank'"),
        (lambda: sc.exponent_triangle([], []), "sigma: has shape"),
        (lambda: sc.participation_ratio(np.ones((3, 0))), "h: has shape"),
        (lambda: sc.window_bound(np.asarray(1.0), 0), "k: 0 is not a window"),
        (lambda: sc.window_bound(np.asarray(1.0), 2.5), "k: 2.5 is not a window"),
        (lambda: sc.zeta(np.asarray(2)), "s: has dtype int64"),
        (lambda: sc.fit_rank_profiles(np.ones(4, dtype=bool)), "sigma: has dtype bool"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()


def test_few_points_give_a_reason():
    fit = sc.fit_power_law([1.0, 2.0, -3.0, np.nan], [1.0, 2.0, 3.0, 4.0])
    assert np.isnan(fit.exponent) and np.isnan(fit.interval[0])
    assert "fewer than 3" in fit.reason and fit.n == 2 and fit.n_dropped == 2


def test_constant_abscissa_gives_a_reason():
    fit = sc.fit_power_law(7.3 * ONES, np.exp(np.arange(5.0)))
    assert np.isnan(fit.exponent) and "does not vary" in fit.reason
    triangle = sc.exponent_triangle(ONES, np.exp(np.arange(5.0)))
    assert np.isnan(triangle.defect) and np.isnan(triangle.defect_bound)


def test_constant_ordinate_is_a_zero_exponent_without_r_squared():
    fit = sc.fit_power_law(np.arange(1.0, 6), 7.3 * ONES)
    assert fit.exponent == pytest.approx(0, abs=1e-14) and np.isnan(fit.r_squared)


def test_a_small_variation_is_one():
    x = 100 * (1 + 1e-9 * np.arange(8.0))
    assert sc.fit_power_law(x, x**2).exponent == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("points", [10, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constants_that_round_are_constant(points, dtype):
    """The mean of equal logarithms is not always one of them."""
    constants = np.geomspace(1e-3, 1e3, 60)[:, None] * np.ones(points)
    varying = np.broadcast_to(np.arange(1.0, points + 1), constants.shape)
    constants, varying = constants.astype(dtype), varying.astype(dtype)
    assert np.isnan(sc.fit_power_law(constants, varying).exponent).all()
    assert np.isnan(sc.fit_power_law(varying, constants).r_squared).all()


def test_all_negative_curvature():
    t = sc.exponent_triangle(np.arange(5.0, 0, -1), -ONES).to_floats()
    assert np.isnan(t.alpha.exponent) and np.isnan(t.s.exponent) and np.isnan(t.defect)
    assert t.alpha.n_dropped == 5 and np.isfinite(t.gamma.exponent)
    assert np.isnan(sc.participation_ratio(-ONES)) and np.isnan(sc.certified_exponent(-ONES))


def test_batches_keep_their_reasons_apart():
    fit = sc.fit_power_law(np.arange(1.0, 6), np.stack([np.arange(1.0, 6), -ONES]))
    assert fit.reason[0] is None and "fewer" in fit.reason[1]
    with pytest.raises(sc.InputError, match="batch"):
        fit.to_floats()


def test_what_does_not_vary_is_judged_by_each_row():
    k = np.arange(1.0, 6)
    x, y = np.stack([1 + 1e-13 * k, 10.0 ** (60 * k)]), np.stack([k, k])
    fit = sc.fit_power_law(x, y)
    assert fit.status.tolist() == [0, 0]
    for i in range(2):
        assert fit.exponent[i] == pytest.approx(sc.fit_power_law(x[i], y[i]).exponent, rel=1e-12)


def test_extreme_scales():
    h = np.arange(1.0, 21) ** -1.5
    for scale in (1e-300, 1e300):
        assert sc.participation_ratio(scale * h) == pytest.approx(sc.participation_ratio(h))
        fit = sc.fit_power_law(np.arange(1.0, 21), scale * h)
        assert fit.exponent == pytest.approx(-1.5, abs=1e-10)
    assert sc.window_bound(np.asarray(-400.0), 20) == pytest.approx(1, abs=1e-6)


def test_too_few_ranks_are_undecided():
    fits = sc.fit_rank_profiles([3.0, 2.0, 1.0]).to_floats()
    assert fits.winner == "undecided" and np.isnan(fits.log_normal.bic)
    assert np.isfinite(fits.power_law.bic)


def test_arguments_are_not_changed():
    sigma, h = np.arange(5.0, 0, -1), np.asarray([1.0, -2.0, np.nan, 0.0, 3.0])
    before = h.copy()
    sc.exponent_triangle(sigma, h)
    sc.fit_rank_profiles(sigma)
    np.testing.assert_array_equal(h, before)


def test_import_loads_no_framework():
    code = (
        "import sys, spectral_core; "
        "bad = {'torch', 'jax', 'cupy', 'scipy', 'matplotlib', 'pandas', 'click'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
