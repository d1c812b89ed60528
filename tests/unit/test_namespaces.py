"""Every core function in every namespace, against NumPy and SciPy in float64."""

import numpy as np
import pytest
from scipy import stats

import spectral_core as sc

RNG = np.random.default_rng(0)
K = 20
SIGMA = np.sort(np.exp(RNG.normal(size=(3, K))))[..., ::-1].copy() * np.arange(1, K + 1) ** -0.8
CURVATURE = SIGMA**1.7 * np.exp(0.3 * RNG.normal(size=(3, K)))
CURVATURE[1, 4] = -1.0
CURVATURE[2, 7] = np.nan


def relative(xp, found, expected):
    found = np.asarray(xp.numpy(found), dtype=np.float64)
    return np.max(np.abs(found - expected) / np.abs(expected))


def test_fit_power_law(xp):
    weights = np.exp(RNG.normal(size=(3, K)))
    where = np.ones((3, K), dtype=bool)
    where[0, 3] = False
    arrays = [xp.array(a) for a in (SIGMA, CURVATURE, weights)]
    mask = arrays[0] == arrays[0]

    def fit(x, y, w):
        f = sc.fit_power_law(x, y, weights=w, where=mask)
        return f.exponent, f.log_prefactor, f.r_squared, f.stderr, *f.interval, f.n, f.n_dropped

    results = xp.run(fit, *arrays)
    for row in range(3):
        ok = (CURVATURE[row] > 0) & np.isfinite(CURVATURE[row])
        x, y, w = np.log(SIGMA[row, ok]), np.log(CURVATURE[row, ok]), weights[row, ok]
        (slope, offset), covariance = np.polyfit(x, y, 1, w=np.sqrt(w), cov=True)
        half = stats.t.ppf(0.975, len(x) - 2) * np.sqrt(covariance[0, 0])
        residual = y - slope * x - offset
        r2 = 1 - np.sum(w * residual**2) / np.sum(w * (y - np.average(y, weights=w)) ** 2)
        expected = (slope, offset, r2, np.sqrt(covariance[0, 0]), slope - half, slope + half)
        for value, number in zip(results, expected, strict=False):
            assert abs(float(xp.numpy(value)[row]) - number) <= 2000 * xp.eps * (1 + abs(number))
        assert int(xp.numpy(results[6])[row]) == ok.sum()
        assert int(xp.numpy(results[7])[row]) == K - ok.sum()
    xp.check_kind(results[0], arrays[0])


def test_fit_agrees_with_scipy_linregress(xp):
    x, y = xp.array(SIGMA[0]), xp.array(CURVATURE[0])
    exponent, low, high = xp.run(
        lambda a, b: (sc.fit_power_law(a, b).exponent, *sc.fit_power_law(a, b).interval), x, y
    )
    oracle = stats.linregress(np.log(SIGMA[0]), np.log(CURVATURE[0]))
    half = stats.t.ppf(0.975, K - 2) * oracle.stderr
    for value, number in ((exponent, oracle.slope), (low, oracle.slope - half)):
        assert relative(xp, value, number) < 1000 * xp.eps
    assert relative(xp, high, oracle.slope + half) < 1000 * xp.eps


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_the_confidence_is_that_of_every_interval(xp, confidence):
    def fits(x, y):
        triangle = sc.exponent_triangle(x, y, confidence=confidence)
        alone = sc.fit_power_law(x, y, confidence=confidence)
        return [
            value
            for fit in (triangle.alpha, triangle.gamma, triangle.s, alone)
            for value in (fit.exponent, fit.stderr, *fit.interval, fit.n)
        ]

    results = xp.run(fits, xp.array(SIGMA), xp.array(CURVATURE))
    for i, value in enumerate(results):
        if i % 5 < 4:  # all but n
            xp.check_kind(value, xp.array(SIGMA))
    found = [xp.numpy(value) for value in results]
    for exponent, stderr, low, high, n in zip(*(found[i::5] for i in range(5)), strict=True):
        half = stderr * stats.t.ppf((1 + confidence) / 2, n - 2)
        assert np.all(np.abs(exponent - low - half) <= 100 * xp.eps)
        assert np.all(np.abs(high - exponent - half) <= 100 * xp.eps)
    alone = sc.fit_power_law(SIGMA, CURVATURE, confidence=confidence)
    triangle = sc.exponent_triangle(SIGMA, CURVATURE, confidence=confidence)
    for fit in (alone, triangle.alpha, triangle.gamma, triangle.s):
        assert fit.confidence == confidence


@pytest.mark.parametrize("points", [202, 203, 1000])
def test_intervals_of_long_windows(points):
    k = np.arange(1.0, points + 1)
    y = k**-1.1 * np.exp(0.1 * np.random.default_rng(1).normal(size=points))
    fit = sc.fit_power_law(k, y)
    half = fit.stderr * stats.t.ppf(0.975, points - 2)
    np.testing.assert_allclose(fit.interval, [fit.exponent - half, fit.exponent + half], rtol=1e-9)


def test_each_row_of_a_batch_is_as_if_alone():
    # Of different sizes, slopes and windows.
    sigma, h = SIGMA * np.asarray([[1.0], [1e9], [1e-9]]), CURVATURE.copy()
    h[1, 2:] = -1.0  # too few for a fit
    together = sc.exponent_triangle(sigma, h), sc.fit_rank_profiles(sigma, where=h > 0)
    for row in range(3):
        triangle = sc.exponent_triangle(sigma[row], h[row])
        profiles = sc.fit_rank_profiles(sigma[row], where=h[row] > 0)
        for name in ("predicted_s", "s_sorted", "defect", "defect_bound", "relative_error"):
            found = getattr(together[0], name)[row]
            np.testing.assert_allclose(found, getattr(triangle, name), rtol=1e-9, atol=1e-12)
        assert triangle.relative_error == pytest.approx(
            abs(triangle.s.exponent - triangle.predicted_s) / abs(triangle.s.exponent),
            rel=1e-12,
            nan_ok=True,
        )
        for name in ("power_law", "exponential", "log_normal"):
            many, one = getattr(together[1], name), getattr(profiles, name)
            for value, number in ((many.rss, one.rss), (many.bic, one.bic), (many.aic, one.aic)):
                np.testing.assert_allclose(value[row], number, rtol=1e-9)
        assert together[1].winner[row] == profiles.winner
        assert np.isnan(together[0].defect[row]) == (row == 1)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_only_ratios_of_weights_count(factor):
    weights = np.exp(RNG.normal(size=K))
    one, other = (
        sc.fit_power_law(SIGMA[0], CURVATURE[0], weights=w) for w in (weights, factor * weights)
    )
    for name in ("exponent", "log_prefactor", "r_squared", "stderr", "interval", "n", "status"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-10)


def test_plain_numbers_are_pythons():
    fit = sc.fit_power_law(SIGMA[0], CURVATURE[0]).to_floats()
    assert {type(fit.exponent), *map(type, fit.interval)} == {float} and type(fit.n) is int


@pytest.mark.parametrize("order", ["sorted", "index"])
def test_exponent_triangle(xp, order):
    names = ("predicted_s", "s_index", "s_sorted", "gamma_window", "defect", "defect_bound",
             "ordering_term", "window_term", "relative_error", "closure")  # fmt: skip

    def triangle(sigma, h):
        t = sc.exponent_triangle(sigma, h, order=order)
        return (t.alpha.exponent, t.gamma.exponent, t.s.exponent, *(getattr(t, n) for n in names))

    arrays = xp.array(SIGMA), xp.array(CURVATURE)
    results = xp.run(triangle, *arrays)
    expected = sc.exponent_triangle(SIGMA, CURVATURE, order=order)
    oracle = [expected.alpha.exponent, expected.gamma.exponent, expected.s.exponent]
    oracle += [getattr(expected, name) for name in names]
    for value, numbers in zip(results, oracle, strict=True):
        assert np.all(np.abs(xp.numpy(value) - numbers) <= 3000 * xp.eps * (1 + np.abs(numbers)))
        xp.check_kind(value, arrays[0])
    for row in range(3):
        k = np.arange(1, K + 1)
        gamma = -stats.linregress(np.log(k), np.log(SIGMA[row])).slope
        h = CURVATURE[row]
        ok = (h > 0) & np.isfinite(h)
        alpha = stats.linregress(np.log(SIGMA[row, ok]), np.log(h[ok])).slope
        in_order = np.sort(h[ok])[::-1] if order == "sorted" else h[ok]
        rank = np.arange(1, ok.sum() + 1) if order == "sorted" else k[ok]
        s = -stats.linregress(np.log(rank), np.log(in_order)).slope
        for value, number in zip(results, (alpha, gamma, s), strict=False):
            assert abs(float(xp.numpy(value)[row]) - number) < 2000 * xp.eps * (1 + abs(number))


def test_participation(xp):
    h = xp.array(CURVATURE)
    ratio, entropy, certified = xp.run(
        lambda a: (sc.participation_ratio(a), sc.entropy_rank(a), sc.certified_exponent(a)), h
    )
    for row in range(3):
        values = CURVATURE[row][(CURVATURE[row] > 0) & np.isfinite(CURVATURE[row])]
        p = values / values.sum()
        assert abs(float(xp.numpy(ratio)[row]) - 1 / np.sum(p**2)) < 100 * xp.eps * K
        assert abs(float(xp.numpy(entropy)[row]) - np.exp(stats.entropy(p))) < 100 * xp.eps * K
        d = np.sort(values)[::-1]
        k = np.arange(1, len(d))
        exponent = np.min(np.log(d[:-1] / d[1:]) / np.log((k + 1) / k))
        assert abs(float(xp.numpy(certified)[row]) - exponent) < 2000 * xp.eps
    xp.check_kind(ratio, h)


def test_of_one_value_no_exponent_is_certified(xp):
    h = xp.array(np.asarray([[1.0], [2.0]]))
    found = xp.run(sc.certified_exponent, h)
    xp.check_kind(found, h)
    assert found.shape == (2,) and np.isnan(xp.numpy(found)).all()
    h = xp.array(np.asarray([[4.0, 2.0], [4.0, -1.0]]))
    np.testing.assert_array_equal(xp.numpy(xp.run(sc.certified_exponent, h)), [1, np.nan])


def test_bounds(xp):
    values = np.asarray([0.3, 1.0, 1.01, 1.5, 2.0, 3.3, 30.0])
    s = xp.array(values)
    window, limit = xp.run(lambda a: (sc.window_bound(a, 50), sc.zeta_bound(a)), s)
    k = np.arange(1.0, 51)[:, None]
    assert (
        relative(xp, window, np.sum(k**-values, 0) ** 2 / np.sum(k ** (-2 * values), 0))
        < 1e2 * xp.eps
    )
    finite = xp.numpy(limit)
    assert np.all(np.isinf(finite[:2])) and abs(finite[4] - 2.5) < 20 * xp.eps
    xp.check_kind(window, s)
    xp.check_kind(limit, s)


def test_other_profiles(xp):
    b, k = np.asarray([0.01, 0.5, 3.0]), np.arange(1, 31)
    a = np.asarray([-1.0, 0.2, -2.0])
    rates, slopes = xp.array(b), xp.array(a)
    ratio, windowed, bent = xp.run(
        lambda b, a: (
            sc.exponential_participation(b), sc.exponential_participation(b, 30),
            sc.log_normal_participation(a, -b, 30),
        ),
        rates, slopes,
    )  # fmt: skip
    h = np.exp(-b[:, None] * k)
    assert relative(xp, windowed, h.sum(1) ** 2 / (h**2).sum(1)) < 1e3 * xp.eps
    assert relative(xp, ratio, 1 / np.tanh(b / 2)) < 20 * xp.eps
    h = np.exp(a[:, None] * np.log(k) - b[:, None] * np.log(k) ** 2)
    assert relative(xp, bent, h.sum(1) ** 2 / (h**2).sum(1)) < 1e3 * xp.eps
    xp.check_kind(ratio, rates)


def test_profiles_of_a_batch_keep_their_scales_apart(xp):
    """One falls below the smallest number where the other passes the largest."""
    a = np.asarray([-400.0, 0.0, 400.0])
    bounds, ratios = xp.run(
        lambda a: (sc.window_bound(a, 30), sc.log_normal_participation(a, 0 * a, 30)), xp.array(a)
    )
    for found in (bounds, ratios):  # the last or the first rank has it all
        assert relative(xp, found, np.asarray([1.0, 30.0, 1.0])) < 1e-5


def test_exponentials_of_the_smallest_rates(xp):
    """coth(b/2) is 2/b near zero; on a window of K below any number, K."""
    smallest = float(np.finfo(xp.dtype).smallest_normal)
    b = np.asarray([1e-3, 1e-20, 4.5 * smallest, smallest / 100, 0.0, -1.0, np.nan])
    endless, windowed = xp.run(
        lambda b: (sc.exponential_participation(b), sc.exponential_participation(b, 7)), xp.array(b)
    )
    assert relative(xp, endless[:3], 2 / b[:3]) < 1e-6
    assert relative(xp, windowed[:3], np.full(3, 7.0)) < 2e-5
    if xp.library != "jax":  # to which a subnormal number is zero
        assert np.isfinite(xp.numpy(endless)[3]) and xp.numpy(windowed)[3] == pytest.approx(7)
    for result in (endless, windowed):
        assert np.isnan(xp.numpy(result)[4:]).all()


def test_rank_profiles(xp):
    sigma = xp.array(SIGMA)

    def fits(a):
        f = sc.fit_rank_profiles(a)
        return (
            f.power_law.parameters["gamma"], f.exponential.parameters["beta"],
            f.log_normal.parameters["a"], f.log_normal.parameters["b"],
            f.power_law.rss, f.exponential.rss, f.log_normal.rss, f.log_normal.bic, f.delta_bic,
            *(p.parameters["log_prefactor"] for p in (f.power_law, f.exponential, f.log_normal)),
        )  # fmt: skip

    results = [xp.numpy(value) for value in xp.run(fits, sigma)]
    k = np.arange(1, K + 1)
    for row in range(3):
        y = np.log(SIGMA[row])
        designs = (np.log(k)[:, None], k[:, None], np.stack([np.log(k), np.log(k) ** 2], 1))
        solved = [np.linalg.lstsq(np.c_[np.ones(K), d], y, rcond=None) for d in designs]
        rss = [float(s[1][0]) for s in solved]
        bic = [K * np.log(r / K) + p * np.log(K) for r, p in zip(rss, (2, 2, 3), strict=True)]
        expected = (-solved[0][0][1], -solved[1][0][1], *solved[2][0][1:], *rss, bic[2],
                    np.diff(np.sort(bic))[0], *(s[0][0] for s in solved))  # fmt: skip
        for value, number in zip(results, expected, strict=True):
            assert abs(float(value[row]) - number) < 2e4 * xp.eps * (1 + abs(number))


def test_each_profile_has_the_rounding_of_its_own_row():
    """Residuals are not below the rounding of the data, here of logarithms of 3 and of 300."""
    exact = np.arange(1.0, 21) ** -1.0
    many = sc.fit_rank_profiles(np.stack([exact, exact**100]))
    one = sc.fit_rank_profiles(exact)
    for name in ("power_law", "exponential", "log_normal"):
        assert float(getattr(many, name).rss[0]) == pytest.approx(
            float(getattr(one, name).rss), rel=1e-9, abs=0
        )


def test_rank_profiles_of_the_points_asked_for(xp):
    where = np.arange(K) % 3 != 1
    mask = xp.array(where.astype(float)) > 0.5
    found = sc.fit_rank_profiles(xp.array(SIGMA[0]), where=mask)
    y, k = np.log(SIGMA[0][where]), np.arange(1, K + 1)[where]
    for profile, name, x in (
        (found.power_law, "gamma", np.log(k)),
        (found.exponential, "beta", k),
    ):
        slope, start = np.polyfit(x, y, 1)
        for value, number in (
            (profile.parameters[name], -slope),
            (profile.parameters["log_prefactor"], start),
            (profile.n, where.sum()),
        ):
            assert abs(float(xp.numpy(value)) - number) < 2e4 * xp.eps * (1 + abs(number))


def test_a_rank_profile_of_three_points():
    sigma = np.asarray([9.0, 7.0, 1.0])
    found = sc.fit_rank_profiles(sigma).power_law
    x, y = np.log([1, 2, 3]), np.log(sigma)
    (slope, start), (rss,), *_ = np.polyfit(x, y, 1, full=True)
    assert float(found.parameters["gamma"]) == pytest.approx(-slope, rel=1e-12)
    assert float(found.parameters["log_prefactor"]) == pytest.approx(start, rel=1e-12)
    assert float(found.rss) == pytest.approx(rss, rel=1e-10)


def test_zeta(xp):
    mpmath = pytest.importorskip("mpmath")
    values = np.asarray([1.0001, 1.01, 1.3, 2.0, 5.5, 17.0, 59.9, 75.0])
    expected = np.asarray([float(mpmath.zeta(float(xp.dtype(v)))) for v in values])
    s = xp.array(values)
    found = xp.run(sc.zeta, s)
    assert relative(xp, found, expected) < 8 * xp.eps
    xp.check_kind(found, s)


M, N, J = 7, 9, 5


def kronecker_setting():
    """Return directions of a gradient, its singular values, and two factors, in batches of 3."""
    rng = np.random.default_rng(3)
    delta = rng.normal(size=(3, 40, M)) * np.arange(1, M + 1) ** -0.7
    inputs = rng.normal(size=(3, 40, N)) + delta[..., :1]
    g = np.einsum("bim,bin->bmn", delta, inputs) / 40
    u, sigma, vh = np.linalg.svd(g, full_matrices=False)
    u, v = u[..., :J], np.swapaxes(vh, 1, 2)[..., :J]
    c_delta = np.einsum("bim,bil->bml", delta, delta) / 40
    c_a = np.einsum("bim,bil->bml", inputs, inputs) / 40
    ggn = np.mean((delta @ u) ** 2 * (inputs @ v) ** 2, axis=1)
    return u, sigma[..., :J], v, c_delta, c_a, ggn, ggn * np.exp(0.1 * rng.normal(size=ggn.shape))


def test_spectral_alignment(xp):
    u, _, v, c_delta, c_a, _, _ = kronecker_setting()
    c_delta[2] = np.nan
    arrays = [xp.array(a) for a in (u, v, c_delta, c_a)]

    def align(*args):
        s = sc.spectral_alignment(*args)
        return (s.rho_delta, s.rho_a, s.phi, s.lam, s.kron, s.delta.rank, s.a.condition,
                s.a.effective_rank, s.a.tied)  # fmt: skip

    found = [xp.numpy(value) for value in xp.run(align, *arrays)]
    for row in range(2):
        values = [np.linalg.eigvalsh(c[row])[::-1] for c in (c_delta, c_a)]
        quadratic = [np.diag(d[row].T @ c[row] @ d[row]) for d, c in ((u, c_delta), (v, c_a))]
        rho = [q / w[:J] for q, w in zip(quadratic, values, strict=True)]
        p = values[1] / values[1].sum()
        expected = (*rho, rho[0] * rho[1], values[0][:J] * values[1][:J],
                    quadratic[0] * quadratic[1], M, values[1][0] / values[1][-1],
                    np.exp(stats.entropy(p)), np.zeros(J, dtype=bool))  # fmt: skip
        for value, number in zip(found, expected, strict=True):
            error = np.abs(1.0 * value[row] - number)
            assert np.all(error <= 1e3 * xp.eps * (1 + np.abs(number)))
    assert np.isnan(found[0][2]).all() and np.isfinite(found[1][2]).all() and found[5][2] == 0
    xp.check_kind(sc.spectral_alignment(*arrays).phi, arrays[0])


def test_decompose_exponent(xp):
    u, sigma, v, c_delta, c_a, ggn, h = kronecker_setting()
    h[1, 2] = -1.0
    arrays = [xp.array(a) for a in (sigma, h, ggn, u, v, c_delta, c_a)]
    names = ("alpha", "beta", "phi", "kappa", "nu", "phi_delta", "phi_a", "full_alignment")

    def decompose(sigma, h, ggn, *factors):
        d = sc.decompose_exponent(sigma, h, ggn, sc.spectral_alignment(*factors))
        return *(getattr(d, name).exponent for name in names), d.closure, d.chi, d.alpha.n

    found = [xp.numpy(value) for value in xp.run(decompose, *arrays)]
    for row in range(3):
        ok = h[row] > 0
        values = [np.linalg.eigvalsh(c[row])[::-1][:J] for c in (c_delta, c_a)]
        rho = [np.diag(d[row].T @ c[row] @ d[row]) / w
               for d, c, w in ((u, c_delta, values[0]), (v, c_a, values[1]))]  # fmt: skip
        lam, phi = values[0] * values[1], rho[0] * rho[1]
        terms = (h[row], lam, phi, ggn[row] / (lam * phi), h[row] / ggn[row], *rho,
                 h[row] / sigma[row] ** 2)  # fmt: skip
        with np.errstate(invalid="ignore"):
            expected = [
                stats.linregress(np.log(sigma[row, ok]), np.log(t[ok])).slope for t in terms
            ]
        for value, number in zip(found, expected, strict=False):
            assert abs(value[row] - number) < 1e5 * xp.eps * (1 + abs(number))
        assert abs(found[8][row]) < 100 * xp.eps * sum(map(abs, expected))
        assert np.isnan(found[9][row]).sum() == (~ok).sum() and found[10][row] == ok.sum()
    xp.check_kind(sc.decompose_exponent(
        *arrays[:3], sc.spectral_alignment(*arrays[3:])).closure, arrays[0])  # fmt: skip


def test_a_decomposition_leaves_out_what_has_no_singular_value():
    rng = np.random.default_rng(0)
    sigma, h, ggn = 1.5 ** -np.arange(5.0), *np.exp(rng.normal(size=(2, 5)))
    u, v = (np.linalg.qr(rng.normal(size=(6, 6)))[0][:, :5] for _ in range(2))
    alignment = sc.spectral_alignment(u, v, np.diag(np.arange(6.0, 0, -1)), np.eye(6))
    found = sc.decompose_exponent(np.append(sigma[:4], 0.0), h, ggn, alignment)
    missing = sc.decompose_exponent(sigma, np.append(h[:4], -1.0), ggn, alignment)
    for name in ("alpha", "beta", "phi", "kappa", "nu"):
        assert getattr(found, name).n_dropped == 1
        assert getattr(found, name).exponent == getattr(missing, name).exponent


def test_effective_rank(xp):
    covariance = np.stack([np.diag([1.0, 1, 1, 0]), np.diag([5.0, 0, 0, 0]), np.zeros((4, 4))])
    found = xp.numpy(xp.run(sc.effective_rank, xp.array(covariance)))
    assert np.allclose(found[:2], [3, 1]) and np.isnan(found[2])
