"""Theory 5 and 6 as properties: those of section 5 in every namespace."""

import numpy as np
import pytest
import rounding
from hypothesis import assume, given
from hypothesis import strategies as st
from matrices import covariance, orthonormal
from properties import holds
from scipy import linalg
from strategies import FactorPair, factor_pairs, seeds

import spectral_core as sc
from spectral_core.exponents.power_law import fit_power_law


def falling(rng, size, decay):
    return covariance(rng, np.arange(1.0, size + 1) ** -decay)


def setting(rng, m, n, k):
    c_delta, c_a = falling(rng, m, 1.5), falling(rng, n, 0.7)
    return orthonormal(rng, m)[:, :k], orthonormal(rng, n)[:, :k], c_delta, c_a


sizes = st.tuples(st.integers(5, 12), st.integers(5, 12)).flatmap(
    lambda mn: st.tuples(st.just(mn[0]), st.just(mn[1]), st.integers(3, min(mn)))
)


def precise(xp, factors):
    """The values that the namespace's dtype leaves."""
    return FactorPair(*(xp.precise(a) for a in vars(factors).values()))


def arrays(xp, factors, *spectra):
    return [xp.array(a) for a in (*spectra, *vars(factors).values())]


def align(u, v, c_delta, c_a):
    s = sc.spectral_alignment(u, v, c_delta, c_a)
    return s.kron, s.phi, s.lam, s.delta.quadratic, s.a.quadratic, s.delta.rank, s.a.rank


@holds(factors=factor_pairs)
def test_5_2_kron_is_phi_lambda(xp, factors):
    factors = precise(xp, factors)
    found = [xp.numpy(a).astype(float) for a in xp.run(align, *arrays(xp, factors))]
    kron, phi, lam, *quadratic = found[:5]
    k = factors.u.shape[1]
    there = np.arange(k) < min(found[5], found[6])
    # Two quotients and three products round.
    np.testing.assert_allclose(kron[there], (phi * lam)[there], rtol=8 * xp.eps)
    assert np.isnan(phi[~there]).all() and np.isfinite(kron).all()
    for q, d, c in zip(
        quadratic, (factors.u, factors.v), (factors.c_delta, factors.c_a), strict=True
    ):
        expected = np.einsum("mk,ml,lk->k", d, c, d)
        assert np.all(np.abs(q - expected) <= rounding.of_quadratic_forms(xp.eps, d, c))


NAMES = ("alpha", "beta", "phi", "kappa", "nu", "phi_delta", "phi_a", "full_alignment")


def decompose(sigma, h, ggn, *factors):
    s = sc.spectral_alignment(*factors)
    d = sc.decompose_exponent(sigma, h, ggn, s)
    return (*(getattr(d, name).exponent for name in NAMES), d.closure, d.chi, s.kron, s.lam,
            s.rho_delta, s.rho_a, d.alpha.n)  # fmt: skip


@st.composite
def chains(draw, few=False):
    """Factors, and σ, h and h^GGN along their directions, some of h negative."""
    factors = draw(factor_pairs(few, kinds=("power-law", "tied")))
    k = factors.u.shape[1]
    rng = np.random.default_rng(draw(seeds))
    sigma = np.sort(np.exp(2 * rng.normal(size=k)))[::-1] * (1 + 0.01 * np.arange(k, 0, -1))
    h, ggn = np.exp(3 * rng.normal(size=(2, k)))
    return factors, sigma, np.where(rng.random(k) < draw(st.floats(0, 0.3)), -h, h), ggn


class Chain:
    """A decomposition as found in a namespace, and what rounding may do to each slope."""

    def __init__(self, xp, data):
        factors, *spectra = data
        self.factors = precise(xp, factors)
        self.sigma, self.h, self.ggn = map(xp.precise, spectra)
        found = xp.run(decompose, *arrays(xp, self.factors, self.sigma, self.h, self.ggn))
        found = [xp.numpy(a).astype(float) for a in found]
        self.slopes = dict(zip(NAMES, found, strict=False))
        self.closure, self.chi, self.kron, self.lam, self.rho_delta, self.rho_a = found[8:14]
        self.kept = self.h > 0
        assert found[14] == self.kept.sum()
        assume(self.kept.sum() >= 3)

    def error(self, eps, *terms):
        """Of a sum of slopes of these terms on σ, as they were found."""
        kept = self.kept
        return sum(rounding.of_slope(eps, self.sigma[kept], values[kept]) for values in terms)


@holds(data=chains)
def test_5_3_the_chain_is_exact(xp, data):
    c = Chain(xp, data)
    assert (np.isfinite(c.chi) == c.kept).all()
    # χ = exp(log h − log h^Kron): the logarithms are off by 4 ε of themselves.
    h, kron = c.h[c.kept], c.kron[c.kept]
    error = rounding.SLACK * 4 * xp.eps * (2 + np.abs(np.log(h)) + np.abs(np.log(kron)))
    assert np.all(np.abs(kron * c.chi[c.kept] / h - 1) <= error)
    own = fit_power_law(c.sigma[c.kept], c.chi[c.kept]).exponent
    total = c.slopes["kappa"] + c.slopes["nu"]
    assert abs(total - own) <= 2 * c.error(xp.eps, c.h, c.ggn, c.kron)


@holds(data=chains)
def test_5_5_the_slopes_add_up(xp, data):
    c = Chain(xp, data)
    s = c.slopes
    error = c.error(xp.eps, c.h, c.lam, c.rho_delta, c.rho_a, c.ggn, c.kron, c.ggn, c.h)
    assert abs(s["alpha"] - s["beta"] - s["phi"] - s["kappa"] - s["nu"]) <= error
    assert abs(c.closure) <= error
    assert abs(s["phi_delta"] + s["phi_a"] - s["phi"]) <= 2 * c.error(xp.eps, c.rho_delta, c.rho_a)


PARTS = ("kappa", "kappa_positions", "kappa_dependence", "alpha")


def decompose_by_position(sigma, h, ggn, diagonal, *factors):
    s = sc.spectral_alignment(*factors)
    d = sc.decompose_exponent(sigma, h, ggn, s, diagonal=diagonal)
    return (*(getattr(d, name).exponent for name in PARTS), d.closure, d.chi, s.kron, d.alpha.n)


@st.composite
def chains_by_position(draw, few=False):
    """A chain with h^diag along the same directions, up to 16 times h^GGN or less of it."""
    chain = draw(chains(few))
    rng = np.random.default_rng(draw(seeds))
    return *chain, chain[-1] * np.exp(3 * rng.normal(size=len(chain[-1])))


@holds(data=chains_by_position)
def test_5_3_the_parts_of_kappa_add_up(xp, data):
    factors, *spectra = data
    factors = precise(xp, factors)
    sigma, h, ggn, diagonal = map(xp.precise, spectra)
    found = xp.run(decompose_by_position, *arrays(xp, factors, sigma, h, ggn, diagonal))
    found = [xp.numpy(a).astype(float) for a in found]
    slopes, (closure, chi, kron, n) = dict(zip(PARTS, found, strict=False)), found[4:]
    kept = h > 0
    assert n == kept.sum() and (np.isfinite(chi) == kept).all()
    assume(kept.sum() >= 3)

    def error(*terms):
        return sum(rounding.of_slope(xp.eps, sigma[kept], values[kept]) for values in terms)

    total = slopes["kappa_positions"] + slopes["kappa_dependence"]
    assert abs(total - slopes["kappa"]) <= 2 * error(ggn, diagonal, kron)
    own = fit_power_law(sigma[kept], ggn[kept]).exponent
    own = own - fit_power_law(sigma[kept], diagonal[kept]).exponent
    assert abs(slopes["kappa_positions"] - own) <= 2 * error(ggn, diagonal)
    without = xp.run(decompose, *arrays(xp, factors, sigma, h, ggn))
    assert slopes["kappa"] == float(xp.numpy(without[NAMES.index("kappa")]))
    assert closure == float(xp.numpy(without[8]))


def test_5_3_directions_without_a_diagonal_are_not_in_the_window():
    rng = np.random.default_rng(0)
    s = sc.spectral_alignment(*setting(rng, 9, 8, 6))
    sigma, h, ggn = np.arange(6, 0, -1.0), *np.exp(rng.normal(size=(2, 6)))
    fits = sc.decompose_exponent(sigma, h, ggn, s, diagonal=ggn * (np.arange(6) != 2))
    assert fits.alpha.n == fits.kappa_positions.n == 5 and np.isnan(fits.chi[2])
    assert abs(fits.closure) < 1e-14 and abs(fits.kappa_positions.exponent) < 1e-14
    unsplit = sc.decompose_exponent(sigma, h, ggn, s).to_floats()
    assert unsplit.kappa_positions is unsplit.kappa_dependence is None and unsplit.alpha.n == 6
    with pytest.raises(sc.InputError, match="diagonal"):
        sc.decompose_exponent(sigma, h, ggn, s, diagonal=ggn[:5])


@holds(data=chains)
def test_5_6_alpha_is_2_and_the_slope_of_the_full_alignment(xp, data):
    c = Chain(xp, data)
    error = 2 * c.error(xp.eps, c.h) + 2 * c.error(xp.eps, c.sigma)
    assert abs(2 + c.slopes["full_alignment"] - c.slopes["alpha"]) <= error


@given(seeds, sizes, st.floats(-20, 20).map(np.exp))
def test_5_1_alignment_is_free_of_scale_and_basis(seed, shape, c):
    rng = np.random.default_rng(seed)
    u, v, c_delta, c_a = setting(rng, *shape)
    p = orthonormal(rng, shape[0])
    base = sc.spectral_alignment(u, v, c_delta, c_a)
    moved = sc.spectral_alignment(p @ u, v, c * p @ c_delta @ p.T, c_a)
    np.testing.assert_allclose(moved.phi, base.phi, rtol=1e-8)
    np.testing.assert_allclose(moved.kron, c * base.kron, rtol=1e-8)


@holds(factors=lambda few: factor_pairs(few, kinds=("power-law",)))
def test_5_7_perfect_alignment(xp, factors):
    """Directions that are the eigenvectors give Φ = 1, and with h = h^Kron all of α is β."""
    factors = precise(xp, factors)
    k = factors.u.shape[1]
    relative = 0.0
    u, v = (np.linalg.eigh(c)[1][:, ::-1][:, :k] for c in (factors.c_delta, factors.c_a))
    factors = precise(xp, FactorPair(u, v, factors.c_delta, factors.c_a))
    for d, c in ((factors.u, factors.c_delta), (factors.v, factors.c_a)):
        values = np.linalg.eigvalsh(c)[::-1][:k]
        # Directions are rounded: a form moves by 2 ε √m ‖C‖ for that, at most.
        off = rounding.of_quadratic_forms(xp.eps, d, c) + rounding.of_eigenvalues(xp.eps, c)
        off = off + 2 * np.sqrt(len(c)) * xp.eps * values[0]
        relative = relative + off / values
    kron, phi, lam, *_ = (xp.numpy(a).astype(float) for a in xp.run(align, *arrays(xp, factors)))
    assert np.all(np.abs(phi - 1) <= relative)
    # independent factors: σ² = Λ
    sigma = xp.precise(np.sqrt(lam))
    found = xp.run(decompose, *arrays(xp, factors, sigma, kron, kron))
    slopes = {name: float(xp.numpy(a)) for name, a in zip(NAMES, found, strict=False)}
    # log h^Kron is off by what Φ is from 1, and each logarithm by its rounding.
    _, x = rounding.centred(sigma)
    error = np.linalg.norm(relative) / np.linalg.norm(x)
    error += rounding.of_slope(xp.eps, sigma, kron) + rounding.of_slope(xp.eps, sigma, lam)
    for term, value in (("alpha", 2), ("beta", 2), ("phi", 0), ("kappa", 0), ("nu", 0)):
        assert abs(slopes[term] - value) <= error


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
        orthonormal(rng, m), orthonormal(rng, m), falling(rng, m, 1.5), np.eye(m)
    )
    sums = np.cumsum(s.delta.quadratic), np.cumsum(s.delta.eigenvalues)
    assert np.all(sums[0] <= sums[1] * (1 + 1e-12))
    assert np.sum(np.log(s.rho_delta)) >= -1e-9
    assert s.rho_delta[0] <= 1 + 1e-12


def test_5_1_a_rank_deficient_factor_has_no_alignment_beyond_its_rank():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8))  # three samples: rank 3
    u, v = orthonormal(rng, 8)[:, :5], orthonormal(rng, 6)[:, :5]
    s = sc.spectral_alignment(u, v, x.T @ x, np.eye(6))
    assert s.delta.rank == 3 and np.isnan(s.rho_delta[3:]).all() and np.isfinite(s.kron).all()
    assert s.a.tied.all() and s.a.condition == 1 and not s.delta.tied[:3].any()
    d = sc.decompose_exponent(np.arange(5.0, 0, -1), np.ones(5), np.ones(5), s)
    assert d.alpha.n == 3 and d.alpha.n_dropped == 2


def test_5_1_eigenvalues_below_a_tolerance_are_none():
    small, eye = np.diag([4.0, 2.0, 1e-3]), np.eye(3)
    s = sc.spectral_alignment(eye, eye, small, small, rtol=1e-2)
    for found in (s.delta, s.a):
        assert found.rank == 2 and found.condition == 2 and found.effective_rank < 2
        np.testing.assert_array_equal(found.rho, [1, 1, np.nan])
    # By default those below the rounding of the dtype.
    wide = np.diag([1.0, 0.5, 2e-7])
    for dtype, rank in ((np.float32, 2), (np.float64, 3)):
        found = sc.spectral_alignment(*(a.astype(dtype) for a in (eye, eye, wide, 0 * eye)))
        assert found.delta.rank == rank and found.a.rank == 0 and np.isnan(found.a.condition)
    s = sc.spectral_alignment(np.eye(3), np.eye(3), np.eye(3), np.diag([2.0, 1e-3, 0]), rtol=1e-2)
    assert s.a.rank == 1 and s.a.condition == 1


def test_factors_in_a_batch_are_those_of_each():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 2, 6, 5)), rng.normal(size=(2, 9, 7))
    c_delta, c_a = np.swapaxes(x, -1, -2) @ x, np.swapaxes(y, -1, -2) @ y
    c_delta[1, 0, 1:] = c_delta[1, 0, :, 1:] = 0  # of rank one
    u, v = orthonormal(rng, 5)[:, :3], orthonormal(rng, 7)[:, :3]
    whole = sc.spectral_alignment(u, np.stack([v, -v[:, ::-1]]), c_delta, c_a)
    assert whole.kron.shape == whole.rho_delta.shape == (4, 2, 3)
    assert whole.delta.rank.shape == whole.delta.condition.shape == (4, 2)
    for i, j in np.ndindex(4, 2):
        one = sc.spectral_alignment(u, (v, -v[:, ::-1])[j], c_delta[i, j], c_a[j])
        np.testing.assert_allclose(whole.kron[i, j], one.kron)
        for side, k in (("delta", (i, j)), ("a", (j,))):
            found, expected = vars(getattr(whole, side)), vars(getattr(one, side))
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][k], value, rtol=1e-6, err_msg=name)


def test_5_1_factors_of_one_dimension():
    s = sc.spectral_alignment(
        *([[x]] for x in [1.0, -1.0]), *(np.full((1, 1), x) for x in [2.0, 3.0])
    )
    assert s.kron == 6 and s.phi == 1 and s.lam == 6 and not s.delta.tied


def test_5_1_order_inside_a_tie_does_not_matter():
    """Any basis of a degenerate eigenspace gives the same ρ: it divides by the eigenvalue alone."""
    rng = np.random.default_rng(1)
    values = np.asarray([4.0, 2.0, 2.0, 2.0, 1.0, 0.5])
    q, turn = orthonormal(rng, 6), linalg.block_diag(1, orthonormal(rng, 3), 1, 1)
    u, v = orthonormal(rng, 6)[:, :4], orthonormal(rng, 6)[:, :4]
    one, other = (sc.spectral_alignment(u, v, (b * values) @ b.T, np.eye(6)) for b in (q, q @ turn))
    np.testing.assert_allclose(one.rho_delta, other.rho_delta, rtol=1e-12)
    np.testing.assert_array_equal(one.delta.tied, [False, True, True, True])


def test_equal_eigenvalues_are_tied_without_a_tolerance():
    c_delta = np.diag([2.0, 2.0, 1.0])
    s = sc.spectral_alignment(np.eye(3), np.eye(3), c_delta, np.eye(3), gap_tolerance=0.0)
    np.testing.assert_array_equal(s.delta.tied, [True, True, False])
    np.testing.assert_array_equal(s.a.tied, [True, True, True])
    # A gap counts beside its own eigenvalues, not beside the largest.
    c_delta = np.diag([1e3, 1.0, 0.9])
    s = sc.spectral_alignment(np.eye(3), np.eye(3), c_delta, np.eye(3), gap_tolerance=1e-2)
    assert not s.delta.tied.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.ones((4, 2))}, "u: has shape"),
        ({"c_a": np.ones((6, 5))}, "c_a: has shape"),
        ({"v": np.ones((6, 3))}, "2 and 3 directions"),
        ({"u": np.ones((5, 6)), "v": np.ones((6, 6))}, "6 directions of 5 dimensions"),
        (
            {"c_delta": np.zeros((3, 0, 0))},
            "c_delta: has shape \\(3, 0, 0\\); pass a square matrix",
        ),
        ({"u": np.ones((7, 5, 6)), "v": np.ones((6, 6))}, "6 directions of 5 dimensions"),
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


def test_6_1_between_two_values_the_bound_is_the_slope():
    assert sc.slope_bound([1.0, 8.0], 2.0) == pytest.approx(1 / 3)
    assert sc.slope_bound([1.0, 8.0], np.inf) == np.inf


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
    assert sc.softmax_head_rank(10) == 9 and sc.softmax_head_rank(2) == 1
    with pytest.raises(sc.InputError):
        sc.softmax_head_rank(1)
