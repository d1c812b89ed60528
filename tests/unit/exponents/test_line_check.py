"""Lack of fit and the exponent over the window, against NumPy's polynomials and fits one by one."""

import numpy as np
import pytest
import rounding
from hypothesis import strategies as st
from properties import holds
from scipy import stats
from strategies import pairs, scales

import spectral_core as sc

RNG = np.random.default_rng(0)
K = 20
X = np.sort(np.exp(RNG.normal(size=(3, K))))[..., ::-1].copy() * np.arange(1, K + 1) ** -0.8
Y = X**1.7 * np.exp(0.3 * RNG.normal(size=(3, K)))
Y[1, 4] = -1.0
Y[2, 7] = np.nan
Y[2] *= np.exp(0.4 * np.log(X[2]) ** 2)


def check(x, y):
    c = sc.check_line(x, y)
    return c.quadratic, c.stderr, c.t_statistic, *c.interval, c.delta_bic, c.n, c.status, c.rejected


def numbers(xp, results):
    return [np.asarray(xp.numpy(value), dtype=np.float64)[()] for value in results]


def parabola(x, y):
    """Return the least-squares coefficients of log y on 1, x and x², x centred; and what is left."""
    x, y = rounding.centred(x)[1], np.log(y)
    design = np.stack([np.ones_like(x), x, x**2], 1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    return coefficients, np.sum((y - design @ coefficients) ** 2), design


def error_of_quadratic(eps, x_values, y_values):
    """Error of ``c = <q, y>/<q, q>``, q the square less its line: of y, of x in both, of sums."""
    (log_x, x), (log_y, y) = rounding.centred(x_values), rounding.centred(y_values)
    design = np.stack([np.ones_like(x), x], 1)
    q, residual = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x**2, y))
    norm, widest = np.linalg.norm(q), np.max(np.abs(x))
    dx, dy = rounding.of_logs(eps, log_x), rounding.of_logs(eps, log_y)
    slope, c = abs(x @ y) / (x @ x), abs(q @ y) / norm**2
    dq = 4 * widest * dx + 8 * len(x) * eps * np.linalg.norm(x**2)
    from_y = dy + (slope + 2 * c * widest) * dx + 4 * len(x) * eps * np.linalg.norm(y)
    return 2 * rounding.SLACK * (from_y + (np.linalg.norm(residual) / norm + c) * dq) / norm


@holds(data=lambda few: pairs(few, at_least=4), c=scales, d=scales, p=st.floats(-2, 2))
def test_11_8_the_quadratic_term_sees_no_scale_and_no_power(xp, data, c, d, p):
    sigma, h = data
    for x, y in ((sigma, h), (c * sigma, d * h), (sigma, h * sigma**p)):
        x, y = xp.precise(x), xp.precise(y)
        quadratic, stderr, *_, n, status, _ = numbers(xp, xp.run(check, xp.array(x), xp.array(y)))
        assert n == len(x) and status == 0 and stderr > 0
        expected = parabola(x, y)[0][2]
        size = error_of_quadratic(xp.eps, x, y) + error_of_quadratic(1e-16, sigma, h)
        assert abs(quadratic - expected) <= size


def test_11_8_a_parabola_is_held_against_the_line(xp):
    results = numbers(xp, xp.run(check, xp.array(X), xp.array(Y)))
    for row in range(3):
        kept = np.isfinite(Y[row]) & (Y[row] > 0)
        x, y, n = X[row, kept], Y[row, kept], kept.sum()
        coefficients, rss, design = parabola(x, y)
        covariance = np.linalg.inv(design.T @ design) * rss / (n - 3)
        stderr, c = np.sqrt(covariance[2, 2]), coefficients[2]
        half = stats.t.ppf(0.975, n - 3) * stderr
        line = np.polyfit(np.log(x), np.log(y), 1, full=True)[1][0]
        bic = [n * np.log(r / n) + p * np.log(n) for r, p in ((rss, 3), (line, 2))]
        expected = (c, stderr, c / stderr, c - half, c + half, bic[0] - bic[1], n, 0,
                    abs(c) > half and bic[0] < bic[1])  # fmt: skip
        for value, number in zip(results, expected, strict=True):
            assert abs(value[row] - number) <= 2e4 * xp.eps * (1 + abs(number))
    assert results[-1].tolist() == [0, 0, 1]
    for value in sc.check_line(xp.array(X), xp.array(Y)).interval:
        xp.check_kind(value, xp.array(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_11_8_what_is_straight_to_rounding_is_straight(dtype):
    for gamma in np.linspace(0.1, 3, 30):
        x = (np.arange(1, 21) ** -gamma).astype(dtype)
        for power in (0, 0.3, 2, -5):
            found = sc.check_line(x, x ** dtype(power)).to_floats()
            assert not found.rejected and found.delta_bic > 0 and abs(found.t_statistic) < 2


def test_no_check_has_a_reason():
    k = np.arange(1.0, 7)
    three = sc.check_line(k, k, where=k > 3).to_floats()
    assert "fewer than 4" in three.reason and np.isnan(three.quadratic) and three.n == 3
    assert three.rejected is False
    two = sc.check_line(np.where(k > 3, 1e3, 3.3), k)
    flat = sc.check_line(np.full(6, 7.3), k)
    assert "three different values" in two.reason and "three different values" in flat.reason
    both = sc.check_line(np.stack([k, np.ones(6)]), np.exp(k**2))
    assert both.reason[0] is None and both.reason[1] and both.rejected.tolist() == [True, False]
    with pytest.raises(sc.InputError, match="batch"):
        both.to_floats()
    with pytest.raises(sc.InputError, match="confidence"):
        sc.check_line(k, k, confidence=1)


def test_the_points_and_the_confidence_are_those_asked_for():
    kept = np.arange(K) % 3 != 1
    some = sc.check_line(X[0], Y[0], where=kept, confidence=0.5)
    alone = sc.check_line(X[0, kept], Y[0, kept])
    assert some.n == kept.sum() and some.confidence == 0.5
    for name in ("quadratic", "stderr", "delta_bic"):
        assert getattr(some, name) == pytest.approx(getattr(alone, name), rel=1e-10)
    half = stats.t.ppf(0.75, kept.sum() - 3) * some.stderr
    np.testing.assert_allclose(some.interval, [some.quadratic - half, some.quadratic + half])


@pytest.mark.parametrize("estimator", ["ols", "ppml"])
def test_11_8_the_exponent_over_the_window(xp, estimator):
    def curve(x, y):
        fit = sc.exponent_over_window(x, y, estimator=estimator)
        return fit.exponent, fit.stderr, *fit.interval, fit.n, fit.status

    arrays = xp.array(X), xp.array(Y)
    results = xp.run(curve, *arrays)
    xp.check_kind(results[0], arrays[0])
    found = numbers(xp, results)
    for j in range(1, K + 1):
        alone = sc.fit_power_law(X[:, :j], Y[:, :j], estimator=estimator)
        wanted = (alone.exponent, alone.stderr, *alone.interval, alone.n, alone.status)
        for value, number in zip(found, wanted, strict=True):
            np.testing.assert_allclose(
                value[:, j - 1], number, rtol=3e4 * xp.eps, atol=1e5 * xp.eps
            )


def test_windows_of_some_points_with_weights():
    kept, weights = np.arange(K) % 3 != 1, np.exp(RNG.normal(size=(3, K)))
    found = sc.exponent_over_window(X, Y, where=kept, weights=weights, confidence=0.5)
    assert found.exponent.shape == (3, K) and found.leverage.shape == (3, K, K)
    whole = sc.fit_power_law(X, Y, where=kept, weights=weights, confidence=0.5)
    for each, last in zip(found.interval, whole.interval, strict=True):
        np.testing.assert_allclose(each[:, -1], last, rtol=1e-12)
    good = kept & np.isfinite(Y) & (Y > 0)
    np.testing.assert_array_equal(found.n, np.cumsum(good, axis=-1))
