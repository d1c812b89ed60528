"""Theory 2, 3, 7 and 8: one property or more for each statement, in every namespace."""

from functools import cache

import numpy as np
import pytest
import rounding
from hypothesis import assume
from hypothesis import strategies as st
from properties import holds
from scipy import stats
from strategies import lengths, pairs, scales, spectra, spoilt, spoilt_pairs

import spectral_core as sc

FLOAT64 = float(np.finfo(np.float64).eps)


def numbers(xp, results):
    """Convert results to NumPy scalars or arrays in float64."""
    return [np.asarray(xp.numpy(value), dtype=np.float64)[()] for value in results]


def usable(values):
    return np.isfinite(values) & (values > 0)


def ranks(values):
    return np.arange(1.0, len(values) + 1)


def slope(x, y):
    return stats.linregress(np.log(x), np.log(y)).slope


# 2 Exponents


def triangle(sigma, h):
    t = sc.exponent_triangle(sigma, h)
    return (
        t.alpha.exponent, t.gamma.exponent, t.s_index, t.s_sorted, t.gamma_window, t.defect,
        t.defect_bound, t.ordering_term, t.window_term, t.closure, t.alpha.n, t.alpha.n_dropped,
    )  # fmt: skip


@holds(data=spoilt_pairs)
def test_2_1_alpha_is_a_slope_over_positive_pairs(xp, data):
    sigma, h = map(xp.precise, data)
    kept = usable(h)
    alpha, *_, n, dropped = numbers(xp, xp.run(triangle, xp.array(sigma), xp.array(h)))
    assert n == kept.sum() and dropped == len(h) - kept.sum()
    if n < 3:
        assert np.isnan(alpha)
        return
    error = rounding.of_slope(xp.eps, sigma[kept], h[kept])
    assert abs(alpha - slope(sigma[kept], h[kept])) <= error


@holds(data=spoilt_pairs)
def test_2_2_gamma_is_a_slope_over_all_positive_sigma(xp, data):
    sigma, h = map(xp.precise, data)
    gamma = numbers(xp, xp.run(triangle, xp.array(sigma), xp.array(h)))[1]
    error = rounding.of_slope(xp.eps, ranks(sigma), sigma)
    assert abs(gamma + slope(ranks(sigma), sigma)) <= error


@holds(data=spoilt_pairs)
def test_2_3_s_in_two_orders(xp, data):
    sigma, h = map(xp.precise, data)
    kept = usable(h)
    assume(kept.sum() >= 3)
    _, _, s_index, s_sorted, *_ = numbers(xp, xp.run(triangle, xp.array(sigma), xp.array(h)))
    k, positive = ranks(h)[kept], h[kept]
    descending = np.sort(positive)[::-1]
    error = rounding.of_slope(xp.eps, ranks(positive), descending)
    own = rounding.of_slope(xp.eps, k, positive)
    assert abs(s_sorted + slope(ranks(positive), descending)) <= error
    assert abs(s_index + slope(k, positive)) <= own
    if kept.all():
        assert s_sorted >= s_index - own - error


def fit(x, y):
    f = sc.fit_power_law(x, y)
    return f.exponent, f.stderr, *f.interval, f.r_squared, f.n, f.status


@holds(data=spoilt_pairs)
def test_2_4_a_fit_has_an_interval_or_a_reason(xp, data):
    sigma, h = map(xp.precise, data)
    kept = usable(h)
    found = numbers(xp, xp.run(fit, xp.array(sigma), xp.array(h)))
    exponent, stderr, low, high, r_squared, n, status = found
    assert n == kept.sum()
    assert (status == 0) == (n >= 3)  # σ of pairs has no ties
    if n < 3:
        assert np.isnan(found[:5]).all()
        assert sc.fit_power_law(sigma, h).reason.startswith("fewer than 3 usable points")
        return
    x, y = sigma[kept], h[kept]
    # stderr = ‖residual‖ / (√(n − 2) ‖x‖), and the interval is t of them to each side.
    (log_x, x_), (_, y_) = rounding.centred(x), rounding.centred(y)
    norm = np.linalg.norm(x_)
    expected = np.linalg.norm(y_ - (x_ @ y_) / norm**2 * x_) / norm / np.sqrt(n - 2)
    relative = rounding.SLACK * (rounding.of_logs(xp.eps, log_x) / norm + 2 * n * xp.eps)
    error = rounding.of_residual(xp.eps, x, y) / norm / np.sqrt(n - 2) + relative * expected
    assert abs(stderr - expected) <= error
    half = stats.t.ppf(0.975, n - 2) * stderr
    # The quantile's own error is that of `test_student_t`.
    size = 8 * xp.eps * (abs(exponent) + half) + 1e-11 * half
    assert abs(high - exponent - half) <= size and abs(exponent - low - half) <= size
    assert np.isnan(r_squared) or r_squared <= 1


@holds(data=pairs, c=scales, p=st.floats(-2, 2))
def test_2_5_scales_and_powers(xp, data, c, p):
    sigma, h = data
    cases = {"as it is": (sigma, h), "h": (sigma, c * h), "sigma": (c * sigma, h),
             "power": (sigma, h * sigma**p)}  # fmt: skip
    found, error = {}, {}
    for name, (x, y) in cases.items():
        x, y = xp.precise(x), xp.precise(y)
        found[name] = numbers(xp, xp.run(triangle, xp.array(x), xp.array(y)))[:2]
        error[name] = (
            rounding.of_slope(xp.eps, x, y), rounding.of_slope(xp.eps, ranks(x), x)
        )  # fmt: skip
    (alpha, gamma), own = found["as it is"], error["as it is"]
    assert abs(found["h"][0] - alpha) <= own[0] + error["h"][0]
    assert abs(found["sigma"][0] - alpha) <= own[0] + error["sigma"][0]
    assert abs(found["sigma"][1] - gamma) <= own[1] + error["sigma"][1]
    assert abs(found["power"][0] - (alpha + p)) <= own[0] + error["power"][0]


# 3 The transfer identity


@holds(data=pairs)
def test_3_1_the_identity_is_exact(xp, data):
    sigma, h = map(xp.precise, data)
    alpha, gamma, s, *rest = numbers(xp, xp.run(triangle, xp.array(sigma), xp.array(h)))
    defect, k = rest[2], ranks(h)
    in_defect = rounding.of_defect(xp.eps, k, sigma, h)
    in_alpha, in_gamma = (
        rounding.of_slope(xp.eps, *of) for of in ((sigma, h), (k, sigma))
    )  # fmt: skip
    error = (
        rounding.of_slope(xp.eps, k, h)
        + abs(gamma) * in_alpha + (abs(alpha) + in_alpha) * in_gamma + in_defect
    )  # fmt: skip
    assert abs(s - alpha * gamma - defect) <= error
    # τ written out as in the theory, by NumPy, whose own residual is not against x⊥ alone
    x, y, z = (rounding.centred(values)[1] for values in (k, sigma, h))
    epsilon = z - (y @ z) / (y @ y) * y
    double = np.finfo(np.float64).eps
    in_numpy = rounding.of_residual(double, sigma, h) / np.linalg.norm(x)
    assert abs(defect + (epsilon @ x) / (x @ x)) <= in_defect + in_numpy


@holds(data=pairs)
def test_3_2_the_bound_holds(xp, data):
    sigma, h = map(xp.precise, data)
    defect, bound = numbers(xp, xp.run(triangle, xp.array(sigma), xp.array(h)))[5:7]
    k = ranks(h)
    error = rounding.of_defect(xp.eps, k, sigma, h)
    assert abs(defect) <= bound + 2 * len(h) * xp.eps * bound  # Cauchy-Schwarz of two sums
    # The bound as it is stated; R² is 1 less what is left, and loses as much as it is small.
    x, y, z = (rounding.centred(values)[1] for values in (k, sigma, h))
    left_z = np.linalg.norm(z - (y @ z) / (y @ y) * y)
    left_x = np.linalg.norm(x - (x @ y) / (y @ y) * y)
    assert abs(bound - left_z * left_x / (x @ x)) <= error


@holds(data=pairs, alpha=st.floats(-1, 1), c=st.floats(0.1, 3))
def test_3_2_the_bound_is_attained(xp, data, alpha, c):
    # ε along the part of x that y does not explain makes Cauchy-Schwarz an equality.
    sigma = xp.precise(data[0])
    x, y = (rounding.centred(values)[1] for values in (ranks(sigma), sigma))
    h = xp.precise(np.exp(alpha * y + c * (x - (x @ y) / (y @ y) * y)))
    defect, bound = numbers(xp, xp.run(triangle, xp.array(sigma), xp.array(h)))[5:7]
    error = rounding.of_defect(xp.eps, ranks(sigma), sigma, h)
    assert abs(abs(defect) - bound) <= 2 * error


@holds(data=lambda few: spoilt_pairs(few, at_least=6))
def test_3_3_the_three_terms_close(xp, data):
    sigma, h = map(xp.precise, data)
    kept = usable(h)
    assume(kept.sum() >= 3)
    alpha, gamma, s_index, s, gamma_window, _, _, ordering, window, closure, *_ = numbers(
        xp, xp.run(triangle, xp.array(sigma), xp.array(h))
    )
    # s and αγ cancel in the closure: what is left is the identity on the window, and one rounding
    # of each term that is added and taken away.
    k, x, y = ranks(h)[kept], sigma[kept], h[kept]
    in_alpha, in_gamma = rounding.of_slope(xp.eps, x, y), rounding.of_slope(xp.eps, k, x)
    error = (
        rounding.of_slope(xp.eps, k, y) + rounding.of_defect(xp.eps, k, x, y)
        + abs(gamma_window) * in_alpha + (abs(alpha) + in_alpha) * in_gamma
    )  # fmt: skip
    terms = abs(s) + abs(s_index) + abs(alpha) * (abs(gamma) + abs(gamma_window))
    assert abs(closure) <= error + 8 * xp.eps * terms
    assert ordering == pytest.approx(s - s_index, abs=4 * xp.eps * (abs(s) + abs(s_index)))
    assert window == pytest.approx(alpha * (gamma_window - gamma), abs=8 * xp.eps * terms)


# 7 Participation


def participation(h):
    return sc.participation_ratio(h), sc.entropy_rank(h)


def of_sums(eps, n):
    """Relative error of a ratio of sums of n positive numbers, one of them squared."""
    return rounding.SLACK * (3 * n + 8) * eps


@holds(h=lambda few: spoilt(few, at_least=1), c=scales)
def test_7_1_participation(xp, h, c):
    h = xp.precise(h)
    kept = usable(h)
    ratio, rank = numbers(xp, xp.run(participation, xp.array(h)))
    if not kept.any():
        assert np.isnan(ratio)
        return
    n = kept.sum()
    error = of_sums(xp.eps, n) * (1 + np.log(n))
    assert 1 - error <= ratio <= rank * (1 + error) <= n * (1 + 2 * error)
    p = h[kept] / np.sum(h[kept])
    assert ratio == pytest.approx(1 / np.sum(p**2), rel=error)
    assert rank == pytest.approx(np.exp(stats.entropy(p)), rel=error)
    scaled = numbers(xp, xp.run(participation, xp.array(c * h)))
    assert scaled == pytest.approx([ratio, rank], rel=2 * error)


@cache
def windows(k):
    return lambda s: (sc.window_bound(s, k), sc.window_bound(s, k + 1), sc.zeta_bound(s))


def of_power_law(eps, s, k):
    """Relative error of PR_K(s): exponents s log k are off by 4 ε of themselves."""
    return of_sums(eps, k + 1) + rounding.SLACK * 16 * eps * s * np.log(k + 1)


@holds(s=st.floats(1.05, 8), k=lambda few: st.sampled_from([1, 7] if few else [1, 2, 7, 40]))
def test_7_2_windows_grow_to_the_zeta_bound(xp, s, k):
    s = float(xp.precise(s))
    here, larger, limit = numbers(xp, xp.run(windows(k), xp.array(s)))
    error = of_power_law(xp.eps, s, k)
    assert here <= larger * (1 + 2 * error)
    assert larger <= limit * (1 + error + 200 * xp.eps)  # three times ζ, by 7.5
    h = np.arange(1.0, k + 1) ** -s
    assert here == pytest.approx(np.sum(h) ** 2 / np.sum(h**2), rel=error)


@cache
def certificate(k):
    def both(h):
        s = sc.certified_exponent(h)
        return s, sc.participation_ratio(h), sc.window_bound(s, k)

    return both


@holds(h=lambda few: spectra(few, at_least=2))
def test_7_3_the_certificate_holds(xp, h):
    h, n = xp.precise(h), len(h)
    s, ratio, bound = numbers(xp, xp.run(certificate(n), xp.array(h)))
    assert s >= 0
    descending = np.log(np.sort(h)[::-1])
    steps = np.diff(np.log(ranks(h)))
    # Differences of two logarithms, over the smallest step of log k.
    off = 4 * rounding.of_logs(xp.eps, descending) / steps[-1]
    assert s == pytest.approx(np.min(-np.diff(descending) / steps), abs=off)
    # |d log PR_K / ds| ≤ 2 log K
    error = of_power_law(xp.eps, s, n) + of_sums(xp.eps, n) + 2 * np.log(n) * off
    assert ratio <= bound * (1 + error)


def test_7_3_is_false_for_negative_exponents_of_unsorted_data():
    # h_{k+1}/h_k <= (k/(k+1))^s holds with s = -1, and yet PR is above PR_5(-1): hence the sorting.
    h, k = np.asarray([1.0, 2, 2, 2, 2]), np.arange(1, 5)
    assert np.all(h[1:] / h[:-1] <= (k / (k + 1)) ** -1.0)
    assert sc.participation_ratio(h) > sc.window_bound(np.asarray(-1.0), 5)
    assert sc.certified_exponent(h) == 0


@cache
def exponentials(k):
    return lambda b: (sc.exponential_participation(b, k), sc.exponential_participation(b))


@holds(b=st.floats(0.01, 3), k=lambda few: st.sampled_from([5] if few else [1, 5, 60]))
def test_7_4_exponential(xp, b, k):
    b = float(xp.precise(b))
    windowed, limit = numbers(xp, xp.run(exponentials(k), xp.array(b)))
    h = np.exp(-b * np.arange(1, k + 1))
    error = 16 * xp.eps + of_sums(FLOAT64, k)  # two tanh and a product; the sums are NumPy's
    assert windowed == pytest.approx(np.sum(h) ** 2 / np.sum(h**2), rel=error)
    assert limit == pytest.approx(1 / np.tanh(b / 2), rel=16 * xp.eps)
    assert windowed <= limit * (1 + 16 * xp.eps)


@cache
def log_normal(k):
    return lambda a, b: (sc.log_normal_participation(a, b, k),)


@holds(
    a=st.floats(-2, 2),
    b=st.floats(-2, 0),
    k=lambda few: st.sampled_from([5] if few else [1, 5, 60]),
)
def test_7_4_log_normal_in_rank(xp, a, b, k):
    a, b = float(xp.precise(a)), float(xp.precise(b))
    (found,) = numbers(xp, xp.run(log_normal(k), xp.array(a), xp.array(b)))
    log_k = np.log(np.arange(1, k + 1))
    exponents = a * log_k + b * log_k**2
    h = np.exp(exponents - np.max(exponents))
    error = of_sums(xp.eps, k) + 32 * xp.eps * np.max(np.abs(a * log_k) + np.abs(b) * log_k**2)
    assert found == pytest.approx(np.sum(h) ** 2 / np.sum(h**2), rel=error)


@holds(s=st.one_of(st.floats(-4, 0).map(lambda x: 1 + 10.0**x), st.floats(1.001, 100)))
def test_7_5_zeta(xp, s):
    mpmath = pytest.importorskip("mpmath")
    s = float(xp.precise(s))
    assume(s > 1)
    (found,) = numbers(xp, [xp.run(sc.zeta, xp.array(s))])
    with mpmath.workdps(40):
        expected = mpmath.zeta(s)
        error = abs((mpmath.mpf(float(found)) - expected) / expected)
    # A dozen powers, each off by s log k roundings of k^−s, which is less than 0.37 in all, and
    # their sum; Euler and Maclaurin's remainder is below float64.
    assert error <= min(1e-13, 40 * xp.eps) if xp.dtype is np.float64 else error <= 40 * xp.eps


# 8 Rank profiles

NAMES = ("power_law", "exponential", "log_normal")


def profiles(sigma):
    f = sc.fit_rank_profiles(sigma)
    forms = [getattr(f, name) for name in NAMES]
    scores = [value for form in forms for value in (form.rss, form.bic, form.aic)]
    return *scores, f.winner_code, f.delta_bic


@holds(sigma=lambda few: spectra(few, at_least=8))
def test_8_forms_are_fitted_and_scored(xp, sigma):
    sigma = xp.precise(sigma)
    n, y, k = len(sigma), np.log(sigma), np.log(ranks(sigma))
    *scores, winner, delta = numbers(xp, xp.run(profiles, xp.array(sigma)))
    designs = (k[:, None], ranks(sigma)[:, None], np.stack([k, k**2], 1))
    bics = []
    for design, p, (rss, bic, aic) in zip(
        designs, (2, 2, 3), np.reshape(scores, (3, 3)), strict=True
    ):
        full = np.c_[np.ones(n), design]
        left = y - full @ np.linalg.lstsq(full, y, rcond=None)[0]
        # What is left moves with y, and with columns that are off by roundings of their size, each
        # times its coefficient: condition times y, after scaling. 8 ε max|y| is the floor.
        scaled = full / np.linalg.norm(full, axis=0)
        error = rounding.SLACK * np.linalg.cond(scaled) ** 2 * rounding.of_logs(xp.eps, y)
        floor = np.sqrt(n) * 8 * xp.eps * np.max(np.abs(y))
        assert abs(np.sqrt(rss) - np.linalg.norm(left)) <= error + floor + 1e-18
        size = 4 * xp.eps * (n * abs(np.log(rss / n)) + p * np.log(n) + n)
        assert abs(bic - (n * np.log(rss / n) + p * np.log(n))) <= size
        assert abs(aic - (n * np.log(rss / n) + 2 * p)) <= size
        bics.append(bic)
    assert bics[int(winner)] == min(bics)
    assert delta == np.sort(np.asarray(bics, xp.dtype))[1] - np.asarray(min(bics), xp.dtype)


@holds(
    name=st.sampled_from(NAMES), rate=st.floats(0.2, 1), bend=st.floats(0.2, 1),
    log_scale=st.floats(-5, 5), k=lambda few: lengths(few, at_least=8),
)  # fmt: skip
def test_8_exact_profiles_are_recognised(xp, name, rate, bend, log_scale, k):
    rank = np.arange(1.0, k + 1)
    falls = {
        "power_law": rate * np.log(rank),
        "exponential": rate * rank,
        "log_normal": rate * np.log(rank) + bend * np.log(rank) ** 2,
    }[name]
    winner = xp.run(profiles, xp.array(np.exp(log_scale - falls)))[-2]
    assert NAMES[int(xp.numpy(winner))] == name
