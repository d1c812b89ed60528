"""Theory 9.1 to 9.6: T on spectra and on matrices of every kind, in every namespace."""

from functools import cache

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from matrices import (
    POLAR_TOLERANCE,
    TOLERANCE,
    oracle,
    orthonormal,
    spectral_error,
    stated_error,
    with_spectrum,
)
from properties import holds
from strategies import matrices, seeds, shapes, spectra

import spectral_core as sc

alphas = st.one_of(st.floats(0, 4), st.sampled_from([0.0, 1.0, 2.0, 4.0]))
dampings = st.floats(-3, 0).map(lambda x: 10.0**x)
exact_methods = st.sampled_from(["svd", "eigh"])  # that take any α, and arrays for it
MODERATE = ("gaussian", "orthogonal", "graded", "rank-deficient")


def numbers(xp, result):
    return np.asarray(xp.numpy(result), dtype=np.float64)


def given(xp, *values):
    """Round values to the dtype; return them as numbers and as arrays."""
    held = [xp.precise(value) for value in values]
    return [float(v) if v.ndim == 0 else v for v in held], [xp.array(v) for v in held]


# Singular values


def transfers(sigma, alpha, damping):
    return (
        sc.transfer(sigma, alpha, damping),
        sc.transfer(sigma, alpha, damping, damping_mode="absolute"),
    )


def rounding_of_transfers(eps, sigma, alpha, damping):
    """Relative errors of both: a power ``σ^p`` is off by ``4 ε (1 + |p log σ|)`` of itself."""
    top, log = np.max(sigma), np.abs(np.log(sigma))
    ratio = np.abs(np.log(sigma / top))
    spectral = 8 + alpha * (1 + ratio) + abs(1 - alpha) * abs(np.log(top))
    absolute = 8 + (2 + alpha) * log + 2 * abs(np.log(damping))
    return 4 * eps * spectral, 4 * eps * absolute


@holds(sigma=lambda few: spectra(few, at_least=1), alpha=alphas, damping=dampings)
def test_9_1_transfer(xp, sigma, alpha, damping):
    (sigma, alpha, damping), arrays = given(xp, sigma, alpha, damping)
    found = xp.run(transfers, *arrays)
    errors = rounding_of_transfers(xp.eps, sigma, alpha, damping)
    wide = np.asarray(sigma, dtype=np.longdouble)
    for result, d, error in zip(
        found, (damping * np.max(wide) ** alpha, damping), errors, strict=True
    ):
        expected = wide / (wide**alpha + d)
        assert np.all(np.abs(numbers(xp, result) - expected) <= error * expected)
    assert not np.any(numbers(xp, xp.run(transfers, xp.array(0 * sigma), *arrays[1:])[0]))


@holds(
    sigma=lambda few: spectra(few, at_least=1), alpha=alphas, damping=dampings,
    c=st.floats(-3, 3).map(lambda x: 10.0**x),
)  # fmt: skip
def test_9_4_scale_law_of_transfer(xp, sigma, alpha, damping, c):
    (alpha, damping, sigma), arrays = given(xp, alpha, damping, sigma)
    (scaled, other), moved = given(xp, c * sigma, damping * c**alpha)
    base = xp.run(transfers, arrays[2], *arrays[:2])
    spectral, _ = xp.run(transfers, moved[0], *arrays[:2])
    _, absolute = xp.run(transfers, moved[0], arrays[0], moved[1])
    errors = np.add(
        rounding_of_transfers(xp.eps, sigma, alpha, damping),
        rounding_of_transfers(xp.eps, scaled, alpha, other),
    )
    # cσ and d c^α are rounded: T moves by at most 2 + α of that.
    for own, result, error in zip(base, (spectral, absolute), errors, strict=True):
        expected = c ** (1 - alpha) * numbers(xp, own)
        limit = (error + (2 + alpha) * xp.eps) * expected
        assert np.all(np.abs(numbers(xp, result) - expected) <= limit)


@holds(sigma=lambda few: spectra(few, at_least=3), alpha=alphas, damping=dampings)
def test_9_5_the_bound_holds_and_is_attained(xp, sigma, alpha, damping):
    (alpha, damping), arrays = given(xp, alpha, damping)
    sigma = np.sort(sigma)[::-1]
    inside = alpha > 1 and damping < alpha - 1
    place = (damping / (alpha - 1)) ** (1 / alpha) if inside else 1.0
    sigma[1] = place * sigma[0]  # where T is largest
    sigma = xp.precise(sigma)
    bound = sc.transfer_bound(alpha, damping, sigma_max=float(sigma[0]))
    if inside:  # as it is stated, with d = δ σ_max^α
        d = damping * sigma[0] ** alpha
        stated = (alpha - 1) ** (1 - 1 / alpha) / alpha * d ** (1 / alpha - 1)
        assert bound == pytest.approx(stated, rel=1e-12)
    found = numbers(xp, xp.run(transfers, xp.array(sigma), *arrays)[0])
    error = rounding_of_transfers(xp.eps, sigma, alpha, damping)[0]
    assert np.all(found <= bound * (1 + error))
    # At the maximiser the slope is 0, at σ_max (for α ≤ 1) it is exact.
    assert found[1] >= bound * (1 - error[1] - xp.eps)
    if alpha <= 1:
        # T increases; where σ are close its steps are lost in rounding.
        assert np.all(np.diff(found[np.argsort(sigma)]) >= -np.max(error * found))


# Matrices


@cache
def conditioner(method, normalize="none", mode="spectral"):
    def run(g, alpha, damping):
        return sc.precondition(
            g, alpha, damping, method=method, normalize=normalize, damping_mode=mode
        )

    return run


def beyond(g, alpha, damping):
    """The maximum of T over ``‖T(G)‖``: stated errors are relative to the former."""
    sigma = np.linalg.svd(g, compute_uv=False)
    reached = np.max(sigma / (sigma**alpha + damping * sigma[0] ** alpha))
    return sc.transfer_bound(alpha, damping, sigma_max=sigma[0]) / reached


def steepness(alpha, damping):
    """``max |T'| / max T`` for σ_max = 1: ``|T'| ≤ max(1, α − 1) / δ``, and d moves with σ_max."""
    return (max(1, alpha - 1) / damping + alpha) / sc.transfer_bound(alpha, damping)


def moved(eps, g, alpha, damping):
    """What T of a matrix moves by where ``P G Qᵀ`` or ``c G`` is rounded, relative to max T.

    Two products of sums of n terms and a rounding, in the Frobenius norm; T is as steep as its
    scalar function there.
    """
    size = (2 * max(g.shape) + 2) * eps * np.sqrt(min(g.shape))
    return 2 * size * steepness(alpha, damping)


def limit_of(xp, method, g, alpha, damping):
    return 2 * stated_error(method, alpha, damping, g, xp.eps) * beyond(g, alpha, damping)


@holds(g=matrices, alpha=alphas, damping=dampings, method=exact_methods)
def test_9_1_precondition_is_t_of_the_singular_values(xp, g, alpha, damping, method):
    (g, alpha, damping), arrays = given(xp, g, alpha, damping)
    found = numbers(xp, xp.run(conditioner(method), *arrays))
    error = spectral_error(found, oracle(g, alpha, damping)[0])
    assert error <= limit_of(xp, method, g, alpha, damping)


@holds(g=matrices, damping=dampings, method=exact_methods)
def test_9_2_alpha_0_is_a_multiple_of_the_gradient(xp, g, damping, method):
    (g, damping), arrays = given(xp, g, damping)
    found = numbers(xp, xp.run(conditioner(method), arrays[0], xp.array(0.0), arrays[1]))
    error = spectral_error(found, g / (1 + damping))
    assert error <= limit_of(xp, method, g, 0.0, damping)


@cache
def polar(method):
    return lambda g: sc.precondition(g, 1.0, 0.0, method=method, tolerance=POLAR_TOLERANCE)


@holds(
    shape=shapes, seed=seeds, least=st.floats(1e-3, 1), method=st.sampled_from(["svd", "polar"])
)  # fmt: skip
def test_9_2_alpha_1_without_damping_is_the_polar_factor(xp, shape, seed, least, method):
    g = xp.precise(with_spectrum(np.geomspace(1, least, min(shape)), shape, seed))
    found = numbers(xp, xp.run(polar(method), xp.array(g)))
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    error = stated_error(method, 1.0, 0.0, g, xp.eps)
    assert spectral_error(found, u @ vh) <= error + (POLAR_TOLERANCE if method == "polar" else 0)


@cache
def fixed(method, alpha, damping):
    return lambda g: sc.precondition(g, alpha, damping, method=method, tolerance=TOLERANCE)


@holds(g=matrices, damping=st.sampled_from([0.3, 0.03]))
def test_9_2_alpha_2_is_one_solve(xp, g, damping):
    g = xp.precise(g)
    assume(np.any(g))
    found = numbers(xp, xp.run(fixed("closed", 2.0, damping), xp.array(g)))
    scaled = g / np.linalg.norm(g, 2)
    expected = np.linalg.solve(scaled @ scaled.T + damping * np.eye(len(g)), scaled)
    error = spectral_error(found * np.linalg.norm(g, 2), expected)
    assert error <= limit_of(xp, "closed", g, 2.0, damping)


@holds(g=matrices, alpha=alphas, damping=dampings, method=exact_methods, seed=seeds)
def test_9_3_orthogonal_equivariance_and_transposes(xp, g, alpha, damping, method, seed):
    rng = np.random.default_rng(seed)
    p, q = orthonormal(rng, g.shape[0]), orthonormal(rng, g.shape[1])
    (g, _, alpha, damping), arrays = given(xp, g, p @ xp.precise(g) @ q.T, alpha, damping)
    run, options = conditioner(method), arrays[2:]
    t, of_turned, of_transposed, of_zero = (
        numbers(xp, xp.run(run, a, *options)) for a in (*arrays[:2], xp.array(g.T), xp.array(0 * g))
    )
    limit = 2 * limit_of(xp, method, g, alpha, damping)
    at_most = limit + moved(xp.eps, g, alpha, damping) * beyond(g, alpha, damping)
    assert spectral_error(of_turned, p @ t @ q.T) <= at_most
    assert spectral_error(of_transposed, t.T) <= limit
    assert not np.any(of_zero)


@holds(
    g=lambda few: matrices(few, kinds=MODERATE), alpha=alphas, damping=dampings,
    method=exact_methods, c=st.floats(-6, 6).map(lambda x: 10.0**x),
)  # fmt: skip
def test_9_4_scale_law(xp, g, alpha, damping, method, c):
    (g, _, alpha, damping), arrays = given(xp, g, c * xp.precise(g), alpha, damping)
    run = conditioner(method)
    base = numbers(xp, xp.run(run, arrays[0], *arrays[2:]))
    found = numbers(xp, xp.run(run, arrays[1], *arrays[2:]))
    limit = 2 * limit_of(xp, method, g, alpha, damping)
    at_most = limit + moved(xp.eps, g, alpha, damping) * beyond(g, alpha, damping)
    assert spectral_error(found, c ** (1 - alpha) * base) <= at_most


@holds(g=matrices, alpha=alphas, damping=dampings, method=exact_methods)
def test_9_5_normalized_by_its_bound(xp, g, alpha, damping, method):
    (g, alpha, damping), arrays = given(xp, g, alpha, damping)
    found = numbers(xp, xp.run(conditioner(method, "spectral"), *arrays))
    error = 2 * stated_error(method, alpha, damping, g, xp.eps)
    top = np.linalg.norm(g, 2)
    expected = oracle(g, alpha, damping)[0] / sc.transfer_bound(alpha, damping, sigma_max=top)
    assert spectral_error(found, expected) <= error * beyond(g, alpha, damping) + 4 * xp.eps
    assert np.linalg.norm(found, 2) <= 1 + error
    if alpha <= 1:
        assert np.linalg.norm(found, 2) >= 1 - error


@holds(
    share=0.6,
    g=matrices,
    case=st.sampled_from([
        ("closed", 2.0, 0.1), ("closed", 4.0, 0.1), ("shifts", 1.0, 0.1), ("shifts", 1.5, 0.01),
        ("eigh", 3.0, 0.1), ("svd", 1.0, 1e-3),
    ]),
)  # fmt: skip
def test_9_6_each_method_keeps_its_stated_error_on_drawn_matrices(xp, g, case):
    method, alpha, damping = case
    g = xp.precise(g)
    found = numbers(xp, xp.run(fixed(*case), xp.array(g)))
    error = spectral_error(found, oracle(g, alpha, damping)[0])
    assert error <= limit_of(xp, method, g, alpha, damping)
