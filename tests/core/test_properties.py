"""The numbered statements of the theory as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import pairs, positive_spectra

import spectral_core as sc

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")

scales = st.floats(-10, 10).map(np.exp)


def tolerance(fit_scale):
    return 1e-9 * (1 + abs(fit_scale))


@given(pairs(), scales, st.floats(-2, 2))
def test_2_5_scales_and_powers(data, c, p):
    sigma, h = data
    base = sc.exponent_triangle(sigma, h)
    alpha, gamma = base.alpha.exponent, base.gamma.exponent
    assert abs(sc.exponent_triangle(sigma, c * h).alpha.exponent - alpha) < tolerance(alpha)
    scaled = sc.exponent_triangle(c * sigma, h)
    assert abs(scaled.alpha.exponent - alpha) < tolerance(alpha)
    assert abs(scaled.gamma.exponent - gamma) < tolerance(gamma)
    tilted = sc.exponent_triangle(sigma, h * sigma**p).alpha.exponent
    assert abs(tilted - (alpha + p)) < tolerance(alpha)


@given(pairs())
def test_3_1_the_identity_is_exact(data):
    sigma, h = data
    t = sc.exponent_triangle(sigma, h, order="index")
    scale = 1 + abs(t.alpha.exponent) + abs(t.s_index)
    assert abs(t.s_index - t.alpha.exponent * t.gamma_window - t.defect) < 1e-9 * scale
    # τ written out as in the theory, by NumPy
    x, y, z = np.log(np.arange(1, len(h) + 1)), np.log(sigma), np.log(h)
    x, y, z = x - x.mean(), y - y.mean(), z - z.mean()
    epsilon = z - (y @ z) / (y @ y) * y
    assert abs(t.defect + (epsilon @ x) / (x @ x)) < 1e-8 * scale


@given(pairs())
def test_3_2_the_bound_holds(data):
    sigma, h = data
    t = sc.exponent_triangle(sigma, h)
    slack = 1e-9 * (1 + abs(t.alpha.exponent))
    assert abs(t.defect) <= t.defect_bound + slack
    r2_gamma = sc.fit_power_law(np.arange(1.0, len(h) + 1), sigma).r_squared
    x, z = np.log(np.arange(1, len(h) + 1)), np.log(h)
    norm = np.linalg.norm(z - z.mean()) / np.linalg.norm(x - x.mean())
    unexplained = max(1 - t.alpha.r_squared, 0) * max(1 - r2_gamma, 0)
    if np.isfinite(unexplained):
        assert t.defect_bound == pytest.approx(norm * np.sqrt(unexplained), rel=1e-3, abs=1e-6)


@given(positive_spectra(min_size=4), st.floats(-3, 3), st.floats(0.1, 3))
def test_3_2_the_bound_is_attained(sigma, alpha, c):
    # ε along the part of x that y does not explain makes Cauchy-Schwarz an equality.
    sigma = np.sort(sigma)[::-1] * (1 + 0.1 * np.arange(len(sigma), 0, -1))
    x, y = np.log(np.arange(1, len(sigma) + 1)), np.log(sigma)
    x, y = x - x.mean(), y - y.mean()
    unexplained = x - (x @ y) / (y @ y) * y
    t = sc.exponent_triangle(sigma, np.exp(alpha * y + c * unexplained))
    assert abs(t.defect) == pytest.approx(t.defect_bound, rel=1e-6, abs=1e-9)


@given(pairs(min_size=6), st.lists(st.integers(0, 5), max_size=2), st.booleans())
def test_3_3_the_three_terms_close(data, dropped, index_order):
    sigma, h = data
    h = h.copy()
    h[dropped] = -1.0
    t = sc.exponent_triangle(sigma, h, order="index" if index_order else "sorted")
    scale = 1 + abs(t.alpha.exponent) * (1 + abs(t.gamma.exponent)) + abs(t.s.exponent)
    assert abs(t.closure) < 1e-9 * scale
    assert t.alpha.n_dropped == len(set(dropped))
    assert t.ordering_term == 0 or not index_order


@given(pairs())
def test_2_3_sorting_never_lowers_s(data):
    sigma, h = data
    t = sc.exponent_triangle(sigma, h)
    assert t.s_sorted >= t.s_index - 1e-9 * (1 + abs(t.s_index))


@given(positive_spectra(min_size=1), scales)
def test_7_1_participation(h, c):
    ratio, rank = sc.participation_ratio(h), sc.entropy_rank(h)
    assert 1 - 1e-12 <= ratio <= rank * (1 + 1e-12) <= len(h) * (1 + 1e-11)
    assert sc.participation_ratio(c * h) == pytest.approx(ratio, rel=1e-12)
    padded = np.concatenate([h, [0.0, -3.0, np.nan, np.inf]])
    assert sc.participation_ratio(padded) == pytest.approx(ratio, rel=1e-12)


@given(st.floats(1.05, 8), st.integers(1, 200))
def test_7_2_windows_grow_to_the_zeta_bound(s, k):
    s = np.asarray(s)
    here, next_ = sc.window_bound(s, k), sc.window_bound(s, k + 1)
    assert here <= next_ * (1 + 1e-14) <= sc.zeta_bound(s) * (1 + 1e-13)
    power_law = np.arange(1.0, k + 1) ** -float(s)
    assert sc.participation_ratio(power_law) == pytest.approx(float(here), rel=1e-12)


@given(positive_spectra(min_size=2))
def test_7_3_the_certificate_holds(h):
    s = sc.certified_exponent(h)
    assert s >= 0
    assert sc.participation_ratio(h) <= sc.window_bound(s, len(h)) * (1 + 1e-10)


def test_7_3_is_false_for_negative_exponents_of_unsorted_data():
    # h_{k+1}/h_k <= (k/(k+1))^s holds with s = -1, and yet PR is above PR_5(-1): hence the sorting.
    h, k = np.asarray([1.0, 2, 2, 2, 2]), np.arange(1, 5)
    assert np.all(h[1:] / h[:-1] <= (k / (k + 1)) ** -1.0)
    assert sc.participation_ratio(h) > sc.window_bound(np.asarray(-1.0), 5)
    assert sc.certified_exponent(h) == 0


@given(st.floats(0.01, 5), st.integers(1, 60))
def test_7_4_exponential(b, k):
    h = np.exp(-b * np.arange(1, k + 1))
    found = sc.exponential_participation(np.asarray(b), k)
    assert found == pytest.approx(sc.participation_ratio(h), rel=1e-10)
    assert found <= sc.exponential_participation(np.asarray(b)) * (1 + 1e-14)


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (lambda k: k**-0.7, "power_law"),
        (lambda k: np.exp(-0.3 * k), "exponential"),
        (lambda k: np.exp(-0.2 * np.log(k) - 0.3 * np.log(k) ** 2), "log_normal"),
    ],
)
def test_8_exact_profiles_are_recognised(profile, name):
    assert sc.fit_rank_profiles(profile(np.arange(1.0, 21))).winner == name
