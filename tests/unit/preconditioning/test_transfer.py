"""T(σ; α, d) against mpmath, its bound and its scale law."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import spectral_core as sc

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")

alphas = st.one_of(st.floats(0, 4), st.sampled_from([0.0, 1.0, 2.0, 4.0]))
dampings = st.floats(-6, 1).map(lambda x: 10.0**x)
SIGMA = np.asarray([3.0, 1.0, 0.5, 1e-3, 1e-9, 0.0])


def exact(sigma, alpha, d):
    mpmath = pytest.importorskip("mpmath")
    s, alpha, d = (mpmath.mpf(float(x)) for x in (sigma, alpha, d))
    return s / (s**alpha + d) if s > 0 else mpmath.mpf(0)


@pytest.mark.parametrize("mode", ["spectral", "absolute"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.0, 3.5, 4.0])
@pytest.mark.parametrize("damping", [0.1, 1e-4, 7.0])
def test_9_1_against_mpmath(xp, mode, alpha, damping):
    mpmath = pytest.importorskip("mpmath")
    sigma = xp.array(SIGMA)
    found = xp.run(lambda s: sc.transfer(s, alpha, damping, damping_mode=mode), sigma)
    xp.check_kind(found, sigma)
    for value, s in zip(xp.numpy(found), SIGMA.astype(xp.dtype), strict=True):
        d = mpmath.mpf(damping) * (mpmath.mpf(3) ** mpmath.mpf(alpha) if mode == "spectral" else 1)
        expected = exact(s, alpha, d)
        # a few roundings; with absolute damping those of logarithms up to 4 log 1e9 + log 1e4
        steps = 20 if mode == "spectral" else 20 + 4 * 21 + 10
        assert abs(float(value) - float(expected)) <= steps * xp.eps * abs(float(expected))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.7, 2.0])
def test_extreme_scales_neither_overflow_nor_underflow(xp, scale, alpha):
    mpmath = pytest.importorskip("mpmath")
    sigma = np.asarray([1.0, 0.3, 1e-3]) * scale
    held = sigma.astype(xp.dtype)
    for mode in ("spectral", "absolute"):
        top = mpmath.mpf(float(held[0])) ** mpmath.mpf(alpha)
        d = 0.1 * top
        # in absolute mode d itself may be far outside the range of float32
        given_damping = 0.1 if mode == "spectral" else float(d)
        found = xp.run(
            lambda s, q=given_damping, m=mode: sc.transfer(s, alpha, q, damping_mode=m),
            xp.array(sigma),
        )
        for value, s in zip(xp.numpy(found), held, strict=True):
            expected = float(exact(s, alpha, d))
            if 1e-36 < expected < 1e38:
                assert abs(float(value) - expected) <= 600 * xp.eps * expected


def test_without_damping(xp):
    for mode in ("spectral", "absolute"):
        for alpha in (0.0, 0.5, 1.0):
            found = xp.numpy(
                xp.run(
                    lambda s, a=alpha, m=mode: sc.transfer(s, a, 0.0, damping_mode=m),
                    xp.array(SIGMA),
                )
            )
            expected = np.where(SIGMA > 0, np.where(SIGMA > 0, SIGMA, 1) ** (1 - alpha), 0)
            np.testing.assert_allclose(found, expected, rtol=200 * xp.eps)


def test_a_tenth_of_the_power_of_the_largest_is_the_default(xp):
    found = xp.numpy(xp.run(lambda s: sc.transfer(s, 1.5), xp.array(SIGMA)))
    expected = SIGMA / (SIGMA**1.5 + 0.1 * 3**1.5)
    np.testing.assert_allclose(found, expected, rtol=100 * xp.eps)


def test_an_array_of_zero_damps_nothing(xp):
    for alpha in (0.5, 1.0):
        found = xp.run(
            lambda s, d, a=alpha: sc.transfer(s, a, d, damping_mode="absolute"),
            xp.array(SIGMA), xp.array(0.0),
        )  # fmt: skip
        expected = np.where(SIGMA > 0, np.where(SIGMA > 0, SIGMA, 1) ** (1 - alpha), 0)
        np.testing.assert_allclose(xp.numpy(found), expected, rtol=200 * xp.eps)


def test_arrays_without_axes_that_stay_arrays_in_sums():
    # NumPy makes numbers of its own.
    strict = pytest.importorskip("array_api_strict")
    sigma, alpha, damping = (strict.asarray(x) for x in (SIGMA, 1.3, 0.2))
    expected = sc.transfer(SIGMA, 1.3, 0.2)
    np.testing.assert_allclose(sc.transfer(sigma, alpha, damping), expected, rtol=1e-13)


def test_alpha_and_damping_may_be_arrays(xp):
    for mode in ("spectral", "absolute"):
        found = xp.run(
            lambda s, a, d, m=mode: sc.transfer(s, a, d, damping_mode=m),
            xp.array(SIGMA), xp.array(1.3), xp.array(0.2),
        )  # fmt: skip
        expected = sc.transfer(SIGMA, 1.3, 0.2, damping_mode=mode)
        np.testing.assert_allclose(xp.numpy(found), expected, rtol=400 * xp.eps)


def test_the_maximum_is_of_each_row(xp):
    rows = np.stack([SIGMA, 10 * SIGMA, 0 * SIGMA])
    found = xp.numpy(xp.run(lambda s: sc.transfer(s, 1.5), xp.array(rows)))
    for i in range(3):
        np.testing.assert_allclose(found[i], sc.transfer(rows[i], 1.5), rtol=100 * xp.eps)


@pytest.mark.parametrize("mode", ["spectral", "absolute"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.5, 2.0, 4.0])
def test_the_bound_is_the_maximum_over_a_grid(mode, alpha):
    for top in (0.25, 1.0, 3.0):
        sigma = top * np.geomspace(1e-4, 1, 20001)
        for damping in (1e-3, 0.1, 0.9, 2.0, 30.0):
            d = damping * (top**alpha if mode == "spectral" else 1)
            found = sc.transfer_bound(alpha, damping, damping_mode=mode, sigma_max=top)
            assert found == pytest.approx(np.max(sigma / (sigma**alpha + d)), rel=1e-6)


def test_the_bound_at_the_ends():
    assert sc.transfer_bound(2.0) == pytest.approx(0.5 * 0.1**-0.5, rel=1e-14)
    assert sc.transfer_bound(1.0, 0.0) == 1.0
    assert sc.transfer_bound(0.5, 0.0, sigma_max=4.0) == pytest.approx(2.0, rel=1e-14)
    assert sc.transfer_bound(1.0, 1e300, damping_mode="absolute", sigma_max=1e-100) == 0.0
    assert sc.transfer_bound(0.0, 0.1, sigma_max=1e308) == pytest.approx(1e308 / 1.1, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sc.transfer([1.0], 4.5), r"alpha: 4.5 is outside \[0, 4\]"),
        (lambda: sc.transfer([1.0], 1.5, 0.0), "damping: 0 with alpha = 1.5 leaves"),
        (lambda: sc.transfer([1.0], 1.5, -0.1), "damping: -0.1 is not"),
        (lambda: sc.transfer([1.0], 1.5, damping_mode="x"), "damping_mode: 'x' is none of"),
        (lambda: sc.transfer(1.0, 1.5), r"sigma: has shape \(\)"),
        (lambda: sc.transfer(np.arange(3), 1.5), "sigma: has dtype int64"),
        (lambda: sc.transfer_bound(1.5, sigma_max=0.0), "sigma_max: 0.0 is not positive"),
        (lambda: sc.transfer_bound(1.5, sigma_max=np.inf), "sigma_max: inf is not positive"),
        (lambda: sc.transfer_bound(np.asarray(1.5)), "alpha: a ndarray was passed; pass a number"),
        (lambda: sc.transfer_bound(1.5, np.asarray(0.1)), "damping: a ndarray was passed; pass a"),
        (lambda: sc.transfer_bound(1.5, sigma_max=np.asarray(2.0)), "sigma_max: a ndarray was"),
    ],
)
def test_errors(call, words):
    with pytest.raises(sc.InputError, match=words):
        call()
