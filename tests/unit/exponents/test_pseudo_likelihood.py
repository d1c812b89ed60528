"""Poisson pseudo maximum likelihood: its score equations, SciPy's maximum, coverage."""

import numpy as np
import pytest
import rounding
from hypothesis import assume
from hypothesis import strategies as st
from properties import holds
from scipy import optimize, stats
from strategies import scales, spectra, spoilt_pairs

import spectral_core as sc

K = 20
RANKS = np.arange(1.0, K + 1)


def fit(x, y, weights=None):
    f = sc.fit_power_law(x, y, weights=weights, estimator="ppml")
    return (
        f.exponent, f.log_prefactor, f.status, f.n, f.stderr, *f.interval, f.r_squared, f.leverage,
        f.without_each,
    )  # fmt: skip


def numbers(xp, results):
    return [np.asarray(xp.numpy(value), dtype=np.float64)[()] for value in results]


def log_likelihood(parameters, log_x, y, weights):
    eta = parameters[0] + parameters[1] * log_x
    return np.sum(weights * (y * eta - np.exp(eta)))


@holds(data=spoilt_pairs)
def test_11_7_the_score_equations_hold_with_what_is_not_positive(xp, data):
    sigma, h = map(xp.precise, data)
    kept = np.isfinite(h)
    exponent, offset, status, n, *_ = numbers(xp, xp.run(fit, xp.array(sigma), xp.array(h)))
    assert n == kept.sum()
    log_x, y = np.log(sigma[kept]), h[kept]
    if n < 3:
        assert status == 1 and np.isnan(exponent)
        return
    z = (log_x - log_x.min()) / np.ptp(log_x)
    sums = [(np.sum(y * w), np.sum(np.abs(y * w))) for w in (np.ones(len(y)), z, 1 - z)]
    assume(all(abs(s) > 1e3 * len(y) * xp.eps * size for s, size in sums))  # no matter of rounding
    total, *parts = (s for s, _ in sums)
    assert status == (3 if total <= 0 else 4 if min(parts) <= 0 else 0)
    if status:
        assert np.isnan(exponent)
        return
    fitted = np.exp(offset + exponent * log_x)
    relative = len(y) + 8 + abs(offset) + abs(exponent) * np.max(np.abs(log_x))
    error = 16 * rounding.SLACK * xp.eps * relative * np.sum(np.abs(y) + fitted)
    assert abs(np.sum(y - fitted)) <= error
    assert abs(np.sum((y - fitted) * z)) <= error


@holds(x=spectra, exponent=st.floats(-3, 3), c=scales, d=scales)
def test_11_7_a_power_law_is_found_on_any_scale(xp, x, exponent, c, d):
    x = xp.precise(c * np.sort(x)[::-1] * (1 + 0.01 * np.arange(len(x), 0, -1)))
    y = xp.precise(d * x**exponent)
    assume(np.all(np.isfinite(y) & (y > 1e-30)))
    found, offset, status, *_ = numbers(xp, xp.run(fit, xp.array(x), xp.array(y)))
    assert status == 0
    log_x = np.log(x)
    fitted = np.exp(offset + found * log_x)
    relative = len(y) + 8 + abs(offset) + (1 + abs(found)) * np.max(np.abs(log_x))
    error = 16 * rounding.SLACK * xp.eps * relative
    # As y follows a power law to rounding, so does the fit, where the ordinates count.
    assert np.sum(np.abs(fitted - y)) <= len(y) * error * np.sum(y) * (1 + np.ptp(log_x))


@pytest.mark.parametrize("weighted", [False, True])
def test_11_7_it_is_the_maximum_that_scipy_finds(weighted):
    rng = np.random.default_rng(0)
    for _ in range(30):
        x = np.exp(rng.normal(size=K))
        y = x ** rng.uniform(-2, 2) * np.exp(0.3 * rng.normal(size=K)) + 0.1 * rng.normal(size=K)
        w = np.exp(rng.normal(size=K)) if weighted else np.ones(K)
        found = sc.fit_power_law(x, y, weights=w if weighted else None, estimator="ppml")
        log_x = np.log(x)
        best = optimize.minimize(
            lambda p, *args: -log_likelihood(p, *args), [0.0, 0.0], args=(log_x, y, w), tol=1e-14
        )
        ours = found.log_prefactor, found.exponent
        np.testing.assert_allclose(ours, best.x, rtol=0, atol=1e-5)
        assert log_likelihood(ours, log_x, y, w) >= -best.fun - 1e-12 * abs(best.fun)


def test_the_uncertainty_is_the_sandwichs(xp):
    rng = np.random.default_rng(1)
    x, w = np.sort(np.exp(rng.normal(size=(2, K))))[..., ::-1].copy(), np.exp(rng.normal(size=K))
    y = x**1.5 * np.exp(0.3 * rng.normal(size=(2, K))) + 0.1 * rng.normal(size=(2, K))
    y[0, 3], y[1, 5] = 0.0, np.nan
    arrays = [xp.array(each) for each in (x, y, np.stack([w, w]))]
    results = xp.run(fit, *arrays)
    for value in (*results[:2], *results[4:]):
        xp.check_kind(value, arrays[0])
    found = numbers(xp, results)
    for row in range(2):
        kept = np.isfinite(y[row])
        log_x, own, ww = np.log(x[row, kept]), y[row, kept], w[kept]
        exponent, offset, _, n, stderr, low, high, r2, shares, without = (v[row] for v in found)
        fitted = np.exp(offset + exponent * log_x)
        design = np.stack([np.ones_like(log_x), log_x], 1)
        bread = np.linalg.inv(design.T @ ((ww * fitted)[:, None] * design))
        hat = np.einsum("ij,jk,ik->i", design, bread, design) * ww * fitted
        scores = (ww * (own - fitted) / (1 - hat))[:, None] * design
        expected = np.sqrt((bread @ scores.T @ scores @ bread)[1, 1])
        tolerance = 3e4 * xp.eps
        assert stderr == pytest.approx(expected, rel=tolerance)
        half = stats.t.ppf(0.975, n - 2) * expected
        assert (low, high) == pytest.approx((exponent - half, exponent + half), rel=tolerance)
        np.testing.assert_allclose(shares[kept], hat, rtol=0, atol=tolerance)
        moments = np.cov(own, fitted, aweights=ww)
        assert r2 == pytest.approx(
            moments[0, 1] ** 2 / moments[0, 0] / moments[1, 1], abs=tolerance
        )
        assert np.all(shares[~kept] == 0) and np.isnan(without[~kept]).all()


def test_without_each_is_a_fit_of_the_others():
    rng = np.random.default_rng(2)
    x, w = np.exp(rng.normal(size=(2, 5, 9))), np.exp(rng.normal(size=(2, 5, 9)))
    y = x**1.5 + 0.3 * rng.normal(size=x.shape)
    y[0, 0, 2] = np.nan
    found = sc.fit_power_law(x, y, weights=w, estimator="ppml").without_each
    for i in range(9):
        rest = np.arange(9) != i
        expected = sc.fit_power_law(
            x[..., rest], y[..., rest], weights=w[..., rest], estimator="ppml"
        ).exponent
        used = np.isfinite(y[..., i])
        np.testing.assert_allclose(found[..., i][used], expected[used], rtol=1e-9)
        assert np.isnan(found[..., i][~used]).all()


def test_each_scale_is_as_good_as_another():
    x, y = RANKS**-0.7, RANKS**-1.4 + 0.01 * np.sin(RANKS)
    wanted = sc.fit_power_law(x, y, estimator="ppml")
    for c, d in ((1e-200, 1e-300), (1e200, 1e300), (1.0, 1e-3)):
        found = sc.fit_power_law(c * x, d * y, estimator="ppml")
        for name in ("exponent", "stderr", "r_squared", "leverage", "without_each"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9)
        expected = wanted.log_prefactor + np.log(d) - wanted.exponent * np.log(c)
        assert found.log_prefactor == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (RANKS, -RANKS, "do not add up to more than 0"),
        (RANKS, 0 * RANKS, "do not add up to more than 0"),
        (RANKS, np.cos(np.pi * RANKS), "do not add up to more than 0"),
        (RANKS, (RANKS == K) * 1.0, "no exponent balances"),
        (RANKS, (RANKS == 1) * 1.0, "no exponent balances"),
        (RANKS, np.where(RANKS == K, 9.0, -0.1), "no exponent balances"),
        (7.3 + 0 * RANKS, RANKS, "does not vary"),
        (RANKS, np.where(RANKS < 3, 1.0, np.nan), "fewer than 3"),
    ],
)
def test_no_fit_has_a_reason(x, y, words):
    with np.errstate(all="raise", under="ignore"):
        found = sc.fit_power_law(x, y, estimator="ppml").to_floats()
    assert words in found.reason
    assert np.isnan([found.exponent, found.log_prefactor, found.stderr, *found.interval]).all()
    assert np.isnan(found.without_each).all() and np.isnan(found.leverage[np.isfinite(y)]).all()


def test_ordinates_that_span_all_numbers():
    with np.errstate(all="raise", under="ignore"):
        steep = sc.fit_power_law(RANKS, RANKS**200, estimator="ppml")
    assert steep.exponent == pytest.approx(200, rel=1e-12)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(sc.InputError, match="'poisson' is unknown; choose 'ols' or 'ppml'"):
        sc.fit_power_law(RANKS, RANKS, estimator="poisson")


def test_11_7_what_is_dropped_biases_the_line():
    """``h = σ² + noise`` of 0.03: 4 of 20 are negative, and only the line leaves them out."""
    rng = np.random.default_rng(3)
    sigma = RANKS**-0.8
    h = sigma**2 + 0.03 * rng.normal(size=(4000, K))
    line, poisson = (sc.fit_power_law(sigma, h, estimator=name) for name in ("ols", "ppml"))
    bias = [np.mean(f.exponent) - 2 for f in (line, poisson)]
    assert bias[0] < -0.25 and abs(bias[1]) < 0.03
    covered = [np.mean((f.interval[0] <= 2) & (f.interval[1] >= 2)) for f in (line, poisson)]
    assert covered[0] < 0.9 and covered[1] >= 0.95
