"""Theory 4-6 as properties, on NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

import spectral_core as sc
from spectral_core.power_law import fit_power_law

seeds = st.integers(0, 2**32 - 1)


def orthogonal(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def covariance(rng, n, decay):
    q = orthogonal(rng, n)
    return (q * np.arange(1.0, n + 1) ** -decay) @ q.T


def setting(rng, m, n, k):
    c_delta, c_a = covariance(rng, m, 1.5), covariance(rng, n, 0.7)
    return orthogonal(rng, m)[:, :k], orthogonal(rng, n)[:, :k], c_delta, c_a


sizes = st.tuples(st.integers(5, 12), st.integers(5, 12)).flatmap(
    lambda mn: st.tuples(st.just(mn[0]), st.just(mn[1]), st.integers(3, min(mn)))
)


@given(seeds, sizes)
def test_5_2_kron_is_phi_lambda(seed, shape):
    rng = np.random.default_rng(seed)
    s = sc.spectral_alignment(*setting(rng, *shape))
    np.testing.assert_allclose(s.kron, s.phi * s.lam, rtol=1e-12)


@given(seeds, sizes, st.floats(-20, 20).map(np.exp))
def test_alignment_is_free_of_scale_and_basis(seed, shape, c):
    rng = np.random.default_rng(seed)
    u, v, c_delta, c_a = setting(rng, *shape)
    p = orthogonal(rng, shape[0])
    base = sc.spectral_alignment(u, v, c_delta, c_a)
    moved = sc.spectral_alignment(p @ u, v, c * p @ c_delta @ p.T, c_a)
    np.testing.assert_allclose(moved.phi, base.phi, rtol=1e-8)
    np.testing.assert_allclose(moved.kron, c * base.kron, rtol=1e-8)


@given(seeds, sizes)
def test_5_7_perfect_alignment(seed, shape):
    """Directions that are the eigenvectors give Φ = 1, and with h = h^Kron all of α is β."""
    rng = np.random.default_rng(seed)
    m, n, k = shape
    c_delta, c_a = covariance(rng, m, 1.5), covariance(rng, n, 0.7)
    u, v = (linalg.eigh(c)[1][:, ::-1][:, :k] for c in (c_delta, c_a))
    s = sc.spectral_alignment(u, v, c_delta, c_a)
    np.testing.assert_allclose(s.phi, 1, rtol=1e-10)
    # independent factors: σ² = Λ
    d = sc.decompose_exponent(np.sqrt(s.lam), s.kron, s.kron, s)
    for term, value in (("alpha", 2), ("beta", 2), ("phi", 0), ("kappa", 0), ("nu", 0)):
        assert abs(getattr(d, term).exponent - value) < 1e-8


def test_only_the_symmetric_part_counts():
    rng = np.random.default_rng(2)
    u, v, c_delta, c_a = setting(rng, 6, 7, 4)
    skew = rng.normal(size=(6, 6))
    one = sc.spectral_alignment(u, v, c_delta, c_a)
    other = sc.spectral_alignment(u, v, c_delta + skew - skew.T, c_a)
    np.testing.assert_allclose(other.rho_delta, one.rho_delta, rtol=1e-10)


@given(seeds, st.integers(3, 12))
def test_5_1_which_sign_to_expect(seed, m):
    """Ky Fan: ρ_1 ≤ 1, and so for sums; Hadamard: over a complete basis the ρ multiply to ≥ 1."""
    rng = np.random.default_rng(seed)
    s = sc.spectral_alignment(
        orthogonal(rng, m), orthogonal(rng, m), covariance(rng, m, 1.5), np.eye(m)
    )
    sums = np.cumsum(s.delta.quadratic), np.cumsum(s.delta.eigenvalues)
    assert np.all(sums[0] <= sums[1] * (1 + 1e-12))
    assert np.sum(np.log(s.rho_delta)) >= -1e-9
    assert s.rho_delta[0] <= 1 + 1e-12


@given(seeds, sizes)
def test_5_5_and_5_6_close(seed, shape):
    rng = np.random.default_rng(seed)
    k = shape[2]
    sigma = np.sort(np.exp(2 * rng.normal(size=k)))[::-1]
    h, ggn = np.exp(3 * rng.normal(size=(2, k)))
    h = np.where(rng.random(k) < 0.1, -h, h)
    d = sc.decompose_exponent(sigma, h, ggn, sc.spectral_alignment(*setting(rng, *shape)))
    if d.alpha.reason:
        assert d.alpha.n < 3
        return
    terms = [d.beta.exponent, d.phi.exponent, d.kappa.exponent, d.nu.exponent]
    scale = 1 + sum(map(abs, terms)) + abs(d.alpha.exponent)
    assert abs(d.closure) < 1e-12 * scale * (1 + 1 / np.var(np.log(sigma)))
    assert abs(d.phi_delta.exponent + d.phi_a.exponent - d.phi.exponent) < 1e-9 * scale
    assert abs(2 + d.full_alignment.exponent - d.alpha.exponent) < 1e-9 * scale
    kept = h > 0
    np.testing.assert_array_equal(np.isfinite(d.chi), kept)


def test_a_rank_deficient_factor_has_no_alignment_beyond_its_rank():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8))  # three samples: rank 3
    u, v = orthogonal(rng, 8)[:, :5], orthogonal(rng, 6)[:, :5]
    s = sc.spectral_alignment(u, v, x.T @ x, np.eye(6))
    assert s.delta.rank == 3 and np.isnan(s.rho_delta[3:]).all() and np.isfinite(s.kron).all()
    assert s.a.tied.all() and s.a.condition == 1 and not s.delta.tied[:3].any()
    d = sc.decompose_exponent(np.arange(5.0, 0, -1), np.ones(5), np.ones(5), s)
    assert d.alpha.n == 3 and d.alpha.n_dropped == 2


def test_order_inside_a_tie_does_not_matter():
    """Any basis of a degenerate eigenspace gives the same ρ: it divides by the eigenvalue alone."""
    rng = np.random.default_rng(1)
    values = np.asarray([4.0, 2.0, 2.0, 2.0, 1.0, 0.5])
    q, turn = orthogonal(rng, 6), linalg.block_diag(1, orthogonal(rng, 3), 1, 1)
    u, v = orthogonal(rng, 6)[:, :4], orthogonal(rng, 6)[:, :4]
    one, other = (sc.spectral_alignment(u, v, (b * values) @ b.T, np.eye(6)) for b in (q, q @ turn))
    np.testing.assert_allclose(one.rho_delta, other.rho_delta, rtol=1e-12)
    np.testing.assert_array_equal(one.delta.tied, [False, True, True, True])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.ones((4, 2))}, "u: has shape"),
        ({"c_a": np.ones((6, 5))}, "c_a: has shape"),
        ({"v": np.ones((6, 3))}, "2 and 3 directions"),
        ({"u": np.ones((5, 6)), "v": np.ones((6, 6))}, "6 directions of 5 dimensions"),
        ({"c_delta": np.ones((5, 5), dtype=int)}, "c_delta: has dtype"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    arrays = {"u": np.ones((5, 2)), "v": np.ones((6, 2)), "c_delta": np.eye(5), "c_a": np.eye(6)}
    with pytest.raises(sc.InputError, match=message):
        sc.spectral_alignment(**(arrays | change))


@given(seeds, st.integers(3, 20), st.floats(0, 5).map(np.exp))
def test_6_1_slope_bound_holds_and_is_attained(seed, k, band):
    rng = np.random.default_rng(seed)
    sigma = np.sort(np.exp(rng.normal(size=k)))[::-1]
    bound = sc.slope_bound(sigma, band)
    inside = band ** rng.uniform(-0.5, 0.5, size=k)
    assert abs(fit_power_law(sigma, inside).exponent) <= bound * (1 + 1e-9)
    x = np.log(sigma)
    extreme = band ** (np.where(x > x.mean(), 0.5, -0.5))
    assert fit_power_law(sigma, extreme).exponent == pytest.approx(bound, rel=1e-6, abs=1e-12)


def test_6_1_a_rise_over_a_run_is_no_bound():
    """log(band)/spread(log σ) is exceeded: two far points and many near the mean."""
    sigma = np.exp(np.asarray([1.0] + 20 * [0.05] + 20 * [-0.05] + [-1.0]))
    values = np.where(sigma > 1, np.e, 1.0)
    slope = fit_power_law(sigma, values).exponent
    assert slope > 1.5 * (1 / np.ptp(np.log(sigma)))
    assert slope <= sc.slope_bound(sigma, np.e) * (1 + 1e-12)


def test_6_1_band():
    assert sc.layernorm_band(64, 64) == np.inf and sc.layernorm_band(64, 10) == np.inf
    assert sc.layernorm_band(1, 100) == pytest.approx((1.1 / 0.9) ** 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 100))
    measured = np.linalg.cond(x.T @ x / 4000)
    assert 0.8 * sc.layernorm_band(100, 4000) < measured < 1.05 * sc.layernorm_band(100, 4000)
    for bad in ((0, 5), (5, 0)):
        with pytest.raises(sc.InputError):
            sc.layernorm_band(*bad)
    for bad in (np.ones(4), np.asarray([1.0, -1])):
        with pytest.raises(sc.InputError):
            sc.slope_bound(bad, 2.0)
    with pytest.raises(sc.InputError):
        sc.slope_bound(np.asarray([1.0, 2]), 0.5)


def test_6_2_directions_that_know_nothing_of_the_factor():
    """Random directions: uᵀCu has slope 0 with the stated spread, ρ that of 1/λ, which is not 0."""
    rng = np.random.default_rng(0)
    m, k = 40, 20
    values = np.arange(1.0, m + 1) ** -1.2
    sigma = np.arange(1.0, k + 1) ** -0.8
    predicted = sc.residual_prediction(sigma, values)
    c = np.diag(values)
    quadratic, rho = [], []
    for _ in range(400):
        u = rng.normal(size=(m, k))
        u /= np.linalg.norm(u, axis=0)
        s = sc.spectral_alignment(u, np.eye(k), c, np.eye(k))
        quadratic.append(fit_power_law(sigma, s.delta.quadratic).exponent)
        rho.append(fit_power_law(sigma, s.rho_delta).exponent)
    assert abs(np.mean(quadratic)) < 4 * np.std(quadratic) / 20
    # the stated spread is that of uᵀCu itself; logarithms of skewed values spread a little less
    assert 0.6 < np.std(quadratic) / predicted.quadratic_error < 1.2
    assert np.mean(rho) == pytest.approx(predicted.rho_delta, abs=4 * np.std(rho) / 20)
    assert predicted.rho_delta == pytest.approx(-1.5)
    isotropic = sc.residual_prediction(sigma, np.ones(m))
    assert isotropic.rho_delta == pytest.approx(0)
    assert isotropic.quadratic_error == pytest.approx(0, abs=1e-7)
    for bad in ((sigma, values[:5]), (-sigma, values), (np.ones(k), values), (sigma, 0 * values)):
        with pytest.raises(sc.InputError):
            sc.residual_prediction(*bad)


def test_4_6_head_rank():
    assert sc.softmax_head_rank(10) == 9
    with pytest.raises(sc.InputError):
        sc.softmax_head_rank(1)
