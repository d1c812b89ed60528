"""Theory 11.3: the exponents of nothing but noise."""

import numpy as np
import pytest
from matrices import covariance
from properties import holds
from scipy import stats
from strategies import factor_pairs

import spectral_core as sc


def falling(size, decay):
    return np.diag(np.arange(1.0, size + 1) ** -decay)


# Rows, columns, decay of C_δ and of C_A; α, γ and the transfer error; what draws scatter by.
FIGURES = [
    ((64, 576, 1.0, 1.0), 2.89, 0.58, 0.010, 0.17),
    ((32, 288, 1.0, 1.0), 2.69, 0.62, 0.011, 0.13),
    ((64, 64, 1.0, 1.0), 2.46, 0.65, 0.013, 0.10),
    ((64, 576, 1.0, 0.0), 2.0, 0.50, 0.003, 0.05),
    ((64, 576, 0.0, 1.0), 2.75, 0.41, 0.011, 0.12),
    ((64, 64, 1.0, 0.0), 1.97, 0.50, 0.015, 0.10),
    ((64, 64, 2.0, 2.0), 2.4, 1.47, 0.005, 0.13),
]


@pytest.mark.parametrize(("case", "alpha", "gamma", "error", "spread"), FIGURES)
def test_11_3_what_noise_alone_shows(case, alpha, gamma, error, spread):
    m, n, a, b = case
    found = sc.noise_null(falling(m, a), falling(n, b), 2048, n_draws=40).exponents
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert means["alpha"] == pytest.approx(alpha, abs=0.08)
    assert means["gamma"] == pytest.approx(gamma, abs=0.03)
    assert means["transfer_error"] == pytest.approx(error, abs=0.006)
    assert np.std(found["alpha"]) < 1.3 * spread
    np.testing.assert_allclose(found["alpha"], found["beta"] + found["phi"], atol=1e-10)


def test_11_3_flat_factors_show_no_exponent():
    found = sc.noise_null(np.eye(64), 3 * np.eye(100), 10, n_draws=5).exponents
    np.testing.assert_allclose(found["alpha"], 0, atol=1e-10)
    assert np.all(found["gamma"] > 0.05)


# Where C_δ of the curvature is another than that of the gradients, α is not near 2.
OTHERS = {"flat": 1.24, "turned": 1.26, "slower": 1.84, "faster": 3.04}


@pytest.mark.parametrize("case", OTHERS)
def test_11_3_what_noise_shows_of_another_curvature(case):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    c_delta = {
        "flat": np.eye(64),
        "turned": turn @ falling(64, 1.0) @ turn.T,
        "slower": falling(64, 0.5),
        "faster": falling(64, 1.5),
    }[case]
    null = sc.noise_null(falling(64, 1.0), falling(64, 1.0), 1, c_delta=c_delta, n_draws=40)
    # Another turn moves the mean by 0.07.
    assert np.mean(null.exponents["alpha"]) == pytest.approx(OTHERS[case], abs=0.2)


class Layer:
    """A gradient of noise and a planted signal, written out with all its matrices."""

    def __init__(self, m=16, n=24, k=8, seed=0):
        self.rng, self.shape, self.k = np.random.default_rng(seed), (m, n), k
        self.c_delta = covariance(self.rng, np.arange(1.0, m + 1) ** -1.0)
        # Alike and not the same: other eigenvalues, and eigenvectors a little turned.
        values, basis = np.linalg.eigh(self.c_delta)
        other = covariance(self.rng, np.arange(1.0, m + 1) ** -1.0)
        self.ggn = (basis * values**0.8) @ basis.T + 0.05 * other
        self.c_a = covariance(self.rng, np.arange(1.0, n + 1) ** -1.0)
        self.roots = [np.linalg.cholesky(c) for c in (self.c_delta, self.c_a)]

    def null(self, **options):
        return sc.noise_null(self.c_delta, self.c_a, 100, c_delta=self.ggn, top_k=self.k, **options)

    def exponents(self, signal=0.0):
        x = self.rng.normal(size=self.shape)
        gradient = self.roots[0] @ x @ self.roots[1].T / 10 + signal
        u, sigma, vt = np.linalg.svd(gradient, full_matrices=False)
        u, sigma, v = u[:, : self.k], sigma[: self.k], vt[: self.k].T
        h = np.sum(u * (self.ggn @ u), axis=0) * np.sum(v * (self.c_a @ v), axis=0)
        t = sc.exponent_triangle(sigma, h).to_floats()
        return {"alpha": t.alpha.exponent, "gamma": t.gamma.exponent, "s": t.s.exponent}

    def planted(self, size, rank=2):
        """A signal of equal singular values in random directions."""
        q, r = (np.linalg.qr(self.rng.normal(size=(d, rank)))[0] for d in self.shape)
        return size * q @ r.T


def test_11_3_p_values_are_uniform_under_noise():
    """Of gradients made with Cholesky factors, against draws made in the eigenbases."""
    layer, p_values, inside = Layer(), {"alpha": [], "gamma": [], "s": []}, 0
    for seed in range(200):
        null = layer.null(n_draws=99, seed=seed)
        for name, value in layer.exponents().items():
            p_values[name].append(null.p_value(name, value))
            inside += null.contains(name, value, confidence=0.9)
    for name, values in p_values.items():
        # Ranks among 99 draws: uniform on the multiples of 1/50.
        jitter = np.random.default_rng(1).uniform(0, 0.02, size=200)
        assert stats.kstest(np.array(values) - jitter, "uniform").pvalue > 0.01, name
    assert 0.86 < inside / 600 < 0.94


def test_11_3_a_planted_signal_is_told():
    """The share of p < 0.05, with two directions of a size relative to the median σ_1 of noise.

    Found with 200 gradients each, and 999 draws:

    size       0     0.5   0.75  1     1.5   2
    by α       .04   .27   .92   1.00  1.00  1.00
    by γ       .05   .09   .02   .10   .91   1.00
    """
    layer = Layer()
    null = layer.null(n_draws=999)
    noise = float(np.median(null.sigma[:, 0]))
    power = {}
    for size in (0.0, 0.75, 2.0):
        found = [layer.exponents(layer.planted(size * noise)) for _ in range(100)]
        for name in ("alpha", "gamma"):
            told = [null.p_value(name, exponents[name]) < 0.05 for exponents in found]
            power[name, size] = np.mean(told)
    assert power["alpha", 0.0] < 0.12 and power["gamma", 0.0] < 0.12
    assert power["alpha", 0.75] > 0.7 and power["alpha", 2.0] > 0.95
    assert power["gamma", 0.75] < 0.3 and power["gamma", 2.0] > 0.9


@pytest.mark.not_in("device")  # which lets nothing be copied to the host
@holds(share=0.1, factors=factor_pairs)
def test_11_3_factors_of_any_library_give_the_same_draws(xp, factors):
    """Drawn on the host in float64; scales of the factors leave the exponents."""
    c_delta, c_a = factors.c_delta.astype(xp.dtype), factors.c_a.astype(xp.dtype)
    found = sc.noise_null(xp.array(c_delta), xp.array(c_a), 64, n_draws=4, top_k=4)
    expected = sc.noise_null(c_delta, c_a, 64, n_draws=4, top_k=4)
    scaled = sc.noise_null(4.0 * c_delta, c_a, 1, c_delta=16.0 * c_delta, n_draws=4, top_k=4)
    np.testing.assert_array_equal(found.sigma, expected.sigma)
    np.testing.assert_allclose(scaled.sigma, 16 * expected.sigma, rtol=1e-12)
    for name, values in expected.exponents.items():
        np.testing.assert_array_equal(found.exponents[name], values)
        if name in ("alpha", "gamma"):
            np.testing.assert_allclose(scaled.exponents[name], values, rtol=1e-6, atol=1e-6)


def test_beta_is_of_the_paired_eigenvalues():
    layer = Layer()
    null = layer.null(n_draws=5)
    eye = np.eye(len(layer.c_a))[:, : layer.k]
    lam = sc.spectral_alignment(eye[: len(layer.ggn)], eye, layer.ggn, layer.c_a).lam
    for sigma, beta in zip(null.sigma, null.exponents["beta"], strict=True):
        assert sc.fit_power_law(sigma, lam).exponent == pytest.approx(beta, abs=1e-8)
    # A curvature of rank 4 has three or more α, but Λ ends there.
    short = sc.noise_null(layer.c_delta, layer.c_a, 1, c_delta=np.diag([1.0] * 4 + [0.0] * 12))
    assert np.isfinite(short.exponents["beta"]).all() and np.isfinite(short.exponents["phi"]).all()


def test_either_side_may_be_the_longer():
    c_delta, c_a = falling(30, 1.0), falling(12, 0.5)
    tall, wide = (
        sc.noise_null(c_delta, c_a, 9, n_draws=200),
        sc.noise_null(c_a, c_delta, 9, n_draws=200),
    )
    assert tall.sigma.shape == (200, 12)
    assert stats.ks_2samp(tall.exponents["alpha"], wide.exponents["alpha"]).pvalue > 0.01
    assert stats.ks_2samp(tall.sigma[:, 0], wide.sigma[:, 0]).pvalue > 0.01


def test_directions_end_where_a_factor_does():
    """A softmax over 10 classes: nine directions, and no σ of rounding."""
    c_delta = np.eye(10) - 0.1
    null = sc.noise_null(c_delta, falling(40, 1.0), 100, n_draws=3)
    assert null.sigma.shape == (3, 9) and np.all(null.sigma > 1e-3)
    few = sc.noise_null(np.diag([1.0, 1.0, 0.0]), np.eye(4), 100, n_draws=3)
    assert np.isnan(few.exponents["alpha"]).all()
    assert np.isnan(few.interval("alpha")).all() and np.isnan(few.p_value("alpha", 2.0))
    assert not few.contains("alpha", 2.0)


def test_steep_factors_keep_their_small_values():
    """Squares would lose them: σ over ten orders of magnitude come from the decomposition itself."""
    values = np.geomspace(1, 1e-10, 6)
    null = sc.noise_null(np.diag(values), np.diag(values), 1, n_draws=3)
    assert np.all(null.sigma[:, -1] < 1e-8 * null.sigma[:, 0])
    assert np.all(np.abs(null.exponents["alpha"] - 2) < 0.3)


def test_factors_come_as_problems_return_them():
    layer = Layer()
    empirical = sc.KroneckerFactors(layer.c_delta, layer.c_a)
    ggn = sc.KroneckerFactors(layer.ggn, layer.c_a)
    found = sc.noise_null(empirical, empirical, 100, c_delta=ggn, top_k=layer.k)
    np.testing.assert_array_equal(found.exponents["alpha"], layer.null().exponents["alpha"])


def test_a_rank_is_a_p_value():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    null = sc.NoiseNull({"alpha": values}, np.ones((4, 1)), 1)
    assert null.p_value("alpha", 0.0) == null.p_value("alpha", 9.0) == 0.5
    assert null.p_value("alpha", 1.0) == 1.0 == null.p_value("alpha", 2.0)
    assert np.isnan(null.p_value("alpha", np.nan))
    assert null.interval("alpha", 0.5) == (1.5, 2.5)
    assert null.contains("alpha", 1.5, 0.5) and not null.contains("alpha", 1.4, 0.5)


def test_rounding_below_zero_counts_as_zero():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0][:, :5]
    c_delta = (q @ q.T).astype(np.float32)
    assert np.linalg.eigvalsh(c_delta)[0] < 0
    for factor in (c_delta, c_delta.astype(float)):
        assert sc.noise_null(factor, np.eye(8), 10, n_draws=2).sigma.shape == (2, 5)


EYE = np.eye(4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sc.noise_null(-EYE, EYE, 10), "c_delta_gradient: has the eigenvalue -1 beside"),
        (lambda: sc.noise_null(EYE, EYE - 0.3, 10), "c_a: has the eigenvalue -0.2"),
        (lambda: sc.noise_null(EYE, EYE, 10, c_delta=-EYE), "c_delta: has the eigenvalue -1"),
        (lambda: sc.noise_null(EYE, EYE, 10, c_delta=np.eye(3)), r"c_delta: has shape \(3, 3\)"),
        (lambda: sc.noise_null(0 * EYE, EYE, 10), "c_delta_gradient: is zero"),
        (lambda: sc.noise_null(EYE, np.full((4, 4), np.nan), 10), "c_a: has entries that are not"),
        (lambda: sc.noise_null(EYE, np.ones((4, 3)), 10), r"c_a: has shape \(4, 3\)"),
        (lambda: sc.noise_null(np.eye(4, dtype=int), EYE, 10), "c_delta_gradient: has dtype int64"),
        (lambda: sc.noise_null(EYE, EYE, 0), "n_terms: 0 is not a whole number of 1"),
        (lambda: sc.noise_null(EYE, EYE, 10, top_k=2.5), "top_k: 2.5"),
        (lambda: sc.noise_null(EYE, EYE, 10, n_draws=True), "n_draws: True"),
        (lambda: sc.noise_null(EYE, EYE, 10, seed=-1), "seed: -1 is not a whole number of 0"),
        (
            lambda: sc.noise_null(EYE, EYE, 10).interval("kappa"),
            "name: 'kappa' is unknown; choose one of alpha",
        ),
        (lambda: sc.noise_null(EYE, EYE, 10).interval("alpha", 95), "confidence: 95"),
    ],
)
def test_arguments_that_do_not_fit(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()
