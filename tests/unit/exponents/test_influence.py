"""Leverage and the exponent without each point, against the hat matrix and fits of the others."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rounding
from hypothesis import assume
from properties import holds
from strategies import spoilt_pairs

import spectral_core as sc
from spectral_core.exponents.influence import carrying_points

RNG = np.random.default_rng(0)
K = 12
X = np.sort(np.exp(RNG.normal(size=(3, K))))[..., ::-1].copy() * np.arange(1, K + 1) ** -0.8
Y = X**1.7 * np.exp(0.3 * RNG.normal(size=(3, K)))
Y[1, 4] = -1.0
Y[2, 7] = np.nan
WEIGHTS = np.exp(RNG.normal(size=(3, K)))


def influence(x, y, weights=None):
    fit = sc.fit_power_law(x, y, weights=weights)
    return fit.leverage, fit.without_each


def hat_diagonal(log_x, weights):
    """The diagonal of ``X (Xᵀ W X)⁻¹ Xᵀ W``."""
    design = np.stack([np.ones_like(log_x), log_x], 1)
    weighted = weights[:, None] * design
    return np.diag(design @ np.linalg.solve(design.T @ weighted, weighted.T))


def slope_without(i, log_x, log_y, weights):
    rest = np.arange(len(log_x)) != i
    return np.polyfit(log_x[rest], log_y[rest], 1, w=np.sqrt(weights[rest]))[0]


def error_of_closed_form(eps, x, y, share):
    """Error of ``b − x_i e_i / (S_xx (1 − ℓ_i))``: of b, of the residual, and of the rest."""
    (log_x, x_), (_, y_) = rounding.centred(x), rounding.centred(y)
    norm = np.linalg.norm(x_)
    residual = np.linalg.norm(y_ - (x_ @ y_) / norm**2 * x_)
    relative = 4 * rounding.of_logs(eps, log_x) / norm + 4 * len(x) * eps
    moved = (rounding.of_residual(eps, x, y) + relative * residual / (1 - share)) / norm
    return rounding.SLACK * (rounding.of_slope(eps, x, y) + moved / (1 - share))


@holds(data=spoilt_pairs)
def test_11_6_the_exponent_without_each_point_in_closed_form(xp, data):
    sigma, h = map(xp.precise, data)
    kept = np.isfinite(h) & (h > 0)
    assume(kept.sum() >= 3)
    found = xp.run(influence, xp.array(sigma), xp.array(h))
    shares, without = (xp.numpy(each).astype(np.float64) for each in found)
    assert np.all(shares[~kept] == 0) and np.isnan(without[~kept]).all()
    x, y = sigma[kept], h[kept]
    (log_x, x_), ones = rounding.centred(x), np.ones(len(x))
    norm = np.linalg.norm(x_)
    error = rounding.SLACK * (3 * rounding.of_logs(xp.eps, log_x) / norm + 3 * len(x) * xp.eps)
    expected = 1 / len(x) + x_**2 / norm**2
    assert np.all(np.abs(shares[kept] - expected) <= error)
    assert abs(shares.sum() - 2) <= len(x) * error and shares.max() <= 1
    if len(x) == 3:
        assert np.isnan(without).all()
        return
    for i, value in enumerate(without[kept]):
        rest = np.arange(len(x)) != i
        size = rounding.of_slope(xp.eps, x[rest], y[rest])
        if expected[i] < 0.6:
            size = max(size, error_of_closed_form(xp.eps, x, y, expected[i]))
        assert abs(value - slope_without(i, log_x, np.log(y), ones)) <= size


def test_11_6_with_weights_and_in_batches(xp):
    arrays = [xp.array(each) for each in (X, Y, WEIGHTS)]
    found = xp.run(influence, *arrays)
    shares, without = map(xp.numpy, found)
    for row in range(3):
        kept = np.isfinite(Y[row]) & (Y[row] > 0)
        x, y, w = np.log(X[row, kept]), np.log(Y[row, kept]), WEIGHTS[row, kept]
        np.testing.assert_allclose(shares[row, kept], hat_diagonal(x, w), rtol=0, atol=1e3 * xp.eps)
        expected = [slope_without(i, x, y, w) for i in range(len(x))]
        np.testing.assert_allclose(without[row, kept], expected, rtol=1e4 * xp.eps)
        assert np.all(shares[row, ~kept] == 0) and np.isnan(without[row, ~kept]).all()
    for each in found:
        xp.check_kind(each, arrays[0])


@pytest.mark.parametrize("far", [1e3, 1e100])
def test_points_of_a_leverage_near_1_are_left_out_in_earnest(far):
    """1 − ℓ has lost its digits: the others lie within a thousandth of each other."""
    x = np.append(far, 1 + 1e-3 * np.arange(6.0)[::-1])
    y = np.append(1.0, x[1:] ** 1.5)
    fit = sc.fit_power_law(x, y)
    assert fit.leverage[0] == pytest.approx(1, abs=1e-6)
    assert fit.without_each[0] == pytest.approx(1.5, rel=1e-9)
    tied = sc.fit_power_law(np.where(x < 2, 1.0, x), y)
    assert np.isfinite(tied.exponent) and np.isnan(tied.without_each[0])
    assert np.isfinite(tied.without_each[1:]).all()
    heavy = sc.fit_power_law(x[1:], y[1:], weights=np.asarray([1e20, 1, 1e20, 1, 1, 1.0]))
    np.testing.assert_allclose(heavy.without_each, 1.5, rtol=1e-9)


def test_where_there_is_no_fit_there_is_no_influence():
    two = sc.fit_power_law([1.0, 2.0, 3.0], [1.0, 2.0, -3.0])
    flat = sc.fit_power_law(np.ones(4), np.arange(1.0, 5))
    for fit, used in ((two, 2), (flat, 4)):
        assert np.isnan(fit.leverage[:used]).all() and np.all(fit.leverage[used:] == 0)
        assert np.isnan(fit.without_each).all()


def test_a_decay_is_one_without_each_point(xp):
    def gammas(sigma, h):
        triangle = sc.exponent_triangle(sigma, h)
        return [(f.leverage, f.without_each) for f in (triangle.alpha, triangle.gamma, triangle.s)]

    found = xp.run(gammas, xp.array(X), xp.array(Y))
    ranks = np.broadcast_to(np.arange(1.0, K + 1), X.shape)
    for (shares, without), sign, x, y in ((found[0], 1, X, Y), (found[1], -1, ranks, X)):
        wanted = influence(x, y)
        np.testing.assert_allclose(xp.numpy(shares), wanted[0], rtol=0, atol=1e3 * xp.eps)
        np.testing.assert_allclose(xp.numpy(without), sign * wanted[1], rtol=1e4 * xp.eps)


def test_arrays_of_points_stay_arrays():
    fit = sc.fit_power_law(X[0], Y[0]).to_floats()
    again = fit.to_floats()
    assert fit == again and hash(fit) == hash(again)
    for name in ("leverage", "without_each"):
        assert getattr(fit, name).shape == (K,) and getattr(fit, name).dtype == np.float64
        np.testing.assert_array_equal(getattr(fit, name), getattr(again, name))
    old = replace(fit, leverage=None, without_each=None).to_floats()
    assert old.leverage is None and old.without_each is None and old == fit


def test_what_carries_a_fit():
    x = 1.3 ** np.append(np.arange(11.0), 14)  # no leverage is above 0.45
    straight = sc.fit_power_law(x, x**2).to_floats()
    assert carrying_points(straight) == ()  # each moves it by rounding alone
    bent = x**2 * np.exp(0.05 * (-1) ** np.arange(12))
    assert carrying_points(sc.fit_power_law(x, bent).to_floats()) == ()
    off = sc.fit_power_law(x, np.where(x == x[11], 3 * bent, bent)).to_floats()
    assert off.leverage[11] < 0.5 and carrying_points(off) == (12,)
    far = np.append(1e9, x[:-1])
    assert carrying_points(sc.fit_power_law(far, far**2).to_floats()) == (1,)
    assert carrying_points(sc.fit_power_law(x[:2], bent[:2]).to_floats()) == ()


def test_11_6_one_point_carries_layers_of_the_paper(shared):
    path = shared / "paper-results" / "results_alpha_triangle.json"
    (gpt2,) = (b for b in json.loads(path.read_text()) if b["experiment"] == "gpt2_triangle")
    layers = {
        r["name"]: (np.asarray(r["sigma"]), np.asarray(r["h_exact"])) for r in gpt2["results"]
    }
    fits = {name: sc.fit_power_law(*layer).to_floats() for name, layer in layers.items()}
    for name in ("block5.mlp.2", "output_head", "block2.mlp.2"):
        assert carrying_points(fits[name]) == (1,)
        assert fits[name].leverage[0] > 0.98
    fit = fits["block5.mlp.2"]
    assert [round(n, 2) for n in (fit.exponent, *fit.interval)] == [2.04, 2.01, 2.07]
    others = sc.fit_power_law(*(each[1:] for each in layers["block5.mlp.2"])).to_floats()
    assert [round(n, 2) for n in (others.exponent, *others.interval)] == [1.41, 1.15, 1.66]
    assert fit.without_each[0] == pytest.approx(others.exponent, rel=1e-12)
