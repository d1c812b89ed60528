"""Theory 11.1 and 11.2: what the spread of groups of terms tells of signal and noise."""

import numpy as np
import pytest
from hypothesis import strategies as st
from matrices import covariance
from properties import holds
from strategies import scales, seeds

import spectral_core as sc
from spectral_core.sampling import (
    cross_fitted,
    direction_noise,
    gradient_noise,
    signal_share,
    without_group,
)

SLACK = 4


@st.composite
def grouped(draw, few=False):
    """Means of groups, their sizes, and K directions for each."""
    m, n = (3, 5) if few else (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    b = 4 if few else draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(seeds))
    sizes = rng.integers(1, 40, size=b).astype(float) if draw(st.booleans()) else np.full(b, 8.0)
    mean, noise = rng.normal(size=(m, n)) * draw(st.sampled_from([0, 1, 30])), draw(scales)
    groups = draw(scales) * mean + noise * rng.normal(size=(b, m, n))
    k = min(m, n)
    u, v = rng.normal(size=(b, m, k)), rng.normal(size=(b, n, k))
    u, v = u / np.linalg.norm(u, axis=1, keepdims=True), v / np.linalg.norm(v, axis=1)[:, None]
    return groups, sizes, u, v


class Groups:
    """The same values in float64, and how far rounding moves what is computed of them."""

    def __init__(self, xp, data):
        self.groups, self.sizes, self.u, self.v = map(xp.precise, data)
        self.w = self.sizes / self.sizes.sum()
        self.mean = np.einsum("b,bmn->mn", self.w, self.groups)
        self.count = len(self.groups)
        self.noise = sum(
            w * np.sum((g - self.mean) ** 2) for w, g in zip(self.w, self.groups, strict=True)
        ) / (self.count - 1)
        # One of G_b − G_N, and of an inner product with a matrix of norm 1.
        self.eps = SLACK * (self.groups.size + 8) * xp.eps
        self.moved = self.eps * np.max(np.linalg.norm(self.groups, axis=(1, 2)))

    def arrays(self, xp):
        return [xp.array(a) for a in (self.groups, self.sizes, self.u, self.v)]

    def error_of_squares(self, value):
        """Of a mean of squares, each of a root that moved."""
        value = value * self.count / (self.count - 1)
        return 2 * np.sqrt(value) * self.moved + self.moved**2 + self.eps * value


def found(xp, function, *arrays):
    return xp.numpy(xp.run(function, *arrays)).astype(float)


@holds(data=grouped)
def test_11_1_the_spread_of_groups_is_the_noise_of_their_mean(xp, data):
    g = Groups(xp, data)
    groups, sizes, _, _ = g.arrays(xp)
    noise = found(xp, gradient_noise, groups, sizes)
    assert abs(noise - g.noise) <= g.error_of_squares(g.noise)
    # For equal groups it is Σ ‖G_b − G_N‖² / (B (B − 1)).
    equal = np.sum((g.groups - g.groups.mean(axis=0)) ** 2) / g.count / (g.count - 1)
    assert abs(found(xp, gradient_noise, groups) - equal) <= g.error_of_squares(equal)
    xp.check_kind(without_group(groups, sizes), groups)


@holds(data=grouped)
def test_11_1_the_share_of_the_signal(xp, data):
    g = Groups(xp, data)
    share = found(xp, signal_share, *g.arrays(xp)[:2])
    size = np.sum(g.mean**2)
    error = g.error_of_squares(g.noise) + g.noise / size * g.error_of_squares(size)
    if error < 0.1 * size:
        assert abs(share - (1 - g.noise / size)) <= 2 * error / size + xp.eps


@holds(data=grouped)
def test_11_2_the_others_are_the_mean_of_their_terms(xp, data):
    g = Groups(xp, data)
    others = found(xp, without_group, *g.arrays(xp)[:2])
    for b in range(g.count):
        kept = np.arange(g.count) != b
        expected = np.average(g.groups[kept], axis=0, weights=g.sizes[kept])
        assert np.max(np.abs(others[b] - expected)) <= g.moved / (1 - g.w[b])


@holds(data=grouped)
def test_11_2_each_group_is_measured_along_the_directions_of_the_others(xp, data):
    g = Groups(xp, data)
    groups, sizes, u, v = g.arrays(xp)
    c = found(xp, lambda *a: cross_fitted(a[0], a[1], a[2], weights=a[3]), groups, u, v, sizes)
    expected = np.einsum("b,bmn,bmk,bnk->k", g.w, g.groups, g.u, g.v)
    assert np.all(np.abs(c - expected) <= g.moved)


@holds(data=grouped)
def test_11_2_noise_along_fixed_directions(xp, data):
    g = Groups(xp, data)
    groups, sizes, u, v = g.arrays(xp)
    u, v = u[0, ...], v[0, ...]
    tau = found(xp, lambda *a: direction_noise(a[0], a[1], a[2], weights=a[3]), groups, u, v, sizes)
    along = np.einsum("bmn,mk,nk->bk", g.groups - g.mean, g.u[0], g.v[0])
    expected = g.w @ along**2 / (g.count - 1)
    assert np.all(np.abs(tau - expected) <= g.error_of_squares(expected))


# Simulated samples: G_b = G + C^{1/2} X / √n_b.

SIZES = {"equal": np.full(8, 32), "unequal": np.array([8, 100, 40, 20, 60, 12, 10, 6])}


class Population:
    """Terms whose gradients have a mean of three directions and a Kronecker covariance."""

    def __init__(self, m=8, n=10, signal=0.15):
        rng = np.random.default_rng(11)
        self.rng, self.shape = rng, (m, n)
        q, r = (np.linalg.qr(rng.normal(size=(size, size)))[0][:, :3] for size in (m, n))
        self.mean = signal * (q * [4.0, 2.0, 1.0]) @ r.T
        self.c_delta = covariance(rng, np.arange(1.0, m + 1) ** -1)
        self.c_a = covariance(rng, np.arange(1.0, n + 1) ** -0.5)
        self.roots = [np.linalg.cholesky(c) for c in (self.c_delta, self.c_a)]

    def sample(self, size):
        """The mean gradient of some terms."""
        x = self.rng.normal(size=self.shape)
        return self.mean + self.roots[0] @ x @ self.roots[1].T / np.sqrt(size)

    def groups(self, sizes):
        return np.stack([self.sample(size) for size in sizes])

    @property
    def trace(self):
        return np.trace(self.c_delta) * np.trace(self.c_a)


def directions(gradient):
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    return u[..., :4], vt[..., :4, :].mT


def assert_mean(draws, expected):
    """Within three standard errors of the mean of the draws."""
    draws = np.asarray(draws)
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - expected) <= 3 * error)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_11_1_noise_and_signal_are_unbiased(sizes):
    p = Population()
    noise, signal, naive = [], [], []
    for _ in range(200):
        groups = p.groups(sizes)
        noise.append(gradient_noise(groups, sizes))
        whole = np.average(groups, axis=0, weights=sizes)
        naive.append(np.sum(whole**2))
        signal.append(naive[-1] * signal_share(groups, sizes))
    assert_mean(noise, p.trace / sizes.sum())
    assert_mean(signal, np.sum(p.mean**2))
    assert_mean(naive, np.sum(p.mean**2) + p.trace / sizes.sum())


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("signal", [0.0, 0.15])
def test_11_2_cross_fitting_is_unbiased(sizes, signal):
    """For the derivative of the population's loss along what samples without a group show."""
    p, shares = Population(signal=signal), sizes / sizes.sum()
    fitted, selected, fresh = [], [], []
    for _ in range(200):
        groups = p.groups(sizes)
        fitted.append(cross_fitted(groups, *directions(without_group(groups, sizes)), sizes))
        whole = np.average(groups, axis=0, weights=sizes)
        selected.append(np.linalg.svd(whole, compute_uv=False)[:4])
        # The same derivative, of samples of their own.
        value = 0.0
        for share, size in zip(shares, sizes, strict=True):
            u, v = directions(p.sample(sizes.sum() - size))
            value = value + share * np.sum(u * (p.mean @ v), axis=0)
        fresh.append(value)
    fitted, fresh = np.array(fitted), np.array(fresh)
    assert_mean(fitted - fresh, 0.0)
    # σ_k, chosen and measured on the same terms, is larger, most where there is no signal.
    assert np.all(np.mean(selected, axis=0) > fitted.mean(axis=0) + 0.01)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_11_2_the_noise_of_a_direction_is_unbiased(sizes):
    p = Population()
    u, v = directions(np.random.default_rng(3).normal(size=p.shape))
    expected = np.sum(u * (p.c_delta @ u), axis=0) * np.sum(v * (p.c_a @ v), axis=0) / sizes.sum()
    tau, along = [], []
    for _ in range(200):
        groups = p.groups(sizes)
        tau.append(direction_noise(groups, u, v, sizes))
        along.append(np.sum(u * (np.average(groups, axis=0, weights=sizes) @ v), axis=0))
    assert_mean(tau, expected)
    np.testing.assert_allclose(np.var(along, axis=0), expected, rtol=0.35)


def test_weights_are_shares_or_numbers():
    groups = np.random.default_rng(0).normal(size=(3, 2, 4))
    by_count = gradient_noise(groups, [10, 20, 70])
    assert by_count == pytest.approx(gradient_noise(groups, np.array([0.1, 0.2, 0.7])))
    assert gradient_noise(groups) == pytest.approx(gradient_noise(groups, [5, 5, 5]))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_share_that_is_none_makes_nan(bad):
    groups = np.ones((3, 2, 4))
    assert np.isnan(gradient_noise(groups, [1.0, 2.0, bad]))
    assert np.isnan(without_group(groups, [1.0, 2.0, bad])).all()


def test_no_gradient_has_no_share():
    assert np.isnan(signal_share(np.zeros((3, 2, 4))))


def test_half_precision_is_computed_wide():
    groups = np.random.default_rng(1).normal(size=(4, 20, 20)).astype(np.float16)
    found = gradient_noise(groups)
    assert found.dtype == np.float16
    wide = gradient_noise(groups.astype(float))
    assert found == pytest.approx(wide, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gradient_noise(np.ones((4, 3))), r"groups: has shape \(4, 3\); pass the means"),
        (lambda: signal_share(np.ones((1, 4, 3))), r"groups: has shape .*; pass 2 groups or more"),
        (lambda: gradient_noise(np.ones((4, 3, 2), dtype=int)), "groups: has dtype int64"),
        (lambda: without_group(np.ones((2, 3, 2)), [1, 1, 1]), r"weights: has shape \(3,\)"),
        (
            lambda: cross_fitted(np.ones((2, 3, 4)), np.ones((3, 2)), np.ones((4, 2))),
            r"u: has shape \(3, 2\); for groups of shape \(2, 3, 4\) pass \(2, 3, K\)",
        ),
        (
            lambda: direction_noise(np.ones((2, 3, 4)), np.ones((3, 2)), np.ones((3, 2))),
            r"v: has shape \(3, 2\); for groups of shape \(2, 3, 4\) pass \(4, K\)",
        ),
        (
            lambda: direction_noise(np.ones((2, 3, 4)), np.ones((3, 2)), np.ones((4, 3))),
            "u and v hold 2 and 3 directions",
        ),
    ],
)
def test_arguments_that_do_not_fit(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()
