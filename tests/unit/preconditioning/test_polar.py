"""Odd polynomials towards the polar factor."""

import numpy as np
import pytest
from matrices import with_spectrum

import spectral_core as sc
from spectral_core.preconditioning.methods.polar import polar_factor
from spectral_core.preconditioning.tables.polar import polar_schedule


@pytest.mark.parametrize("lowest", [0.9995, 0.3, 1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-6, 1e-13])
def test_9_6_a_schedule_maps_the_interval_to_one(lowest, tolerance):
    schedule = polar_schedule(lowest, tolerance)
    sigma = np.concatenate([np.geomspace(lowest, 1, 5000), np.linspace(lowest, 1, 5000)])
    error = np.max(np.abs(1 - schedule(sigma)))
    assert error <= schedule.error * (1 + 1e-6) + 1e-14 and schedule.error <= tolerance
    below = np.geomspace(1e-12, lowest, 200)
    assert np.all(schedule(below) >= 0) and np.all(schedule(below) <= 1 + schedule.error + 1e-12)


@pytest.mark.parametrize("lowest", [0.3, 1e-2])
def test_9_6_a_step_is_the_best_quintic(lowest):
    # Chebyshev: four alternating extremes of one size. And no neighbour does better.
    schedule = polar_schedule(lowest, 0.99)
    ((a, b, c),), error = schedule.steps, schedule.error
    sigma = np.linspace(lowest, 1, 20001)

    def largest(a, b, c):
        return np.max(np.abs(1 - (a * sigma + b * sigma**3 + c * sigma**5)))

    deviation = 1 - schedule(sigma)
    turning = deviation[np.abs(np.abs(deviation) - error) < 1e-4 * error]
    assert np.count_nonzero(np.diff(np.sign(turning))) == 3
    rng = np.random.default_rng(0)
    moved = [
        largest(*(np.asarray([a, b, c]) * (1 + 1e-2 * rng.normal(size=3)))) for _ in range(300)
    ]
    assert largest(a, b, c) <= min(moved)


def test_9_6_fewer_steps_than_newton_schulz():
    # The cubic (3σ − σ³)/2 needs 19 products for σ ≥ 1e-3 to come within 1 %; a quintic has 3 a step.
    sigma, cubic = np.asarray([1e-3]), 0
    while abs(1 - sigma[0]) > 1e-2:
        sigma, cubic = (3 * sigma - sigma**3) / 2, cubic + 1
    assert 3 * len(polar_schedule(1e-3, 1e-2).steps) < 2 * cubic


def test_9_6_the_gain_is_what_rounding_of_a_step_can_do():
    """An error of the first step that turns singular vectors whose σ that step makes smallest."""
    schedule = polar_schedule(1e-3, 1e-4)
    a, b, c = schedule.steps[0]
    # The step's stationary points are at roots of a + 3 b σ² + 5 c σ⁴; the smallest value at the other.
    worst = np.sqrt(np.max(np.roots([5 * c, 3 * b, a]).real))
    low = worst * (a + b * worst**2 + c * worst**4)
    error = 1e-8 * (abs(a) + abs(b) + abs(c)) * np.asarray([[0.0, 1.0], [-1.0, 0.0]])
    moved = low * np.eye(2) + error
    for a, b, c in schedule.steps[1:]:
        gram = moved @ moved.T
        moved = a * moved + (b * gram + c * gram @ gram) @ moved
    change = np.linalg.norm(moved - schedule(np.asarray([worst])) * np.eye(2), 2)
    assert 0.7 * schedule.gain < change / 1e-8 <= schedule.gain


@pytest.mark.parametrize("spectrum", ["graded", "tied"])
@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (9, 5), (1, 4), (4, 1)])
def test_polar_factor_of_matrices(xp, shape, spectrum):
    k = min(shape)
    # Half of the tied ones are what the first step makes smallest.
    sigma = np.geomspace(1, 1e-3, k) if spectrum == "graded" else np.resize([1, 0.8617], k)
    g = with_spectrum(sigma, shape)
    u, _, vh = np.linalg.svd(np.asarray(g, dtype=xp.dtype).astype(float), full_matrices=False)
    gain = polar_schedule(1e-3 / 1.05, 1e-2).gain
    for tolerance in (1e-2, 2e-3, *([1e-8] if xp.dtype == np.float64 else [])):
        gradient = xp.array(g)
        found = xp.run(
            lambda x, t=tolerance: sc.precondition(x, 1.0, 0.0, method="polar", tolerance=t),
            gradient,
        )
        xp.check_kind(found, gradient)
        limit = tolerance + gain * xp.eps
        assert np.linalg.norm(xp.numpy(found) - u @ vh, 2) <= limit


def test_a_tolerance_below_what_rounding_does_is_refused(xp):
    gradient = xp.array(with_spectrum([1, 0.8617], (2, 2)))
    with pytest.raises(sc.InputError, match=r"'polar' rounds to .*; use 'svd' or float64"):
        sc.precondition(gradient, 1.0, 0.0, method="polar", tolerance=8000 * xp.eps)


def test_a_rank_deficient_matrix_keeps_its_rank(xp):
    sigma = np.asarray([1.0, 0.5, 0.2, 0, 0, 0])
    g = with_spectrum(sigma, (6, 8))
    found = xp.numpy(xp.run(lambda x: sc.precondition(x, 1.0, 0.0, method="polar"), xp.array(g)))
    values = np.linalg.svd(found, compute_uv=False)
    assert np.all(np.abs(values[:3] - 1) < 1.1e-2)
    # rounding of G, below ε √6 σ_max, grows by the slope at 0, about a thousandfold
    assert np.all(values[3:] < 3e3 * 3 * xp.eps)


def test_polynomials_keep_singular_vectors():
    schedule = polar_schedule(1e-2, 1e-8)
    sigma = np.linspace(1, 0.02, 5)
    g = with_spectrum(sigma, (5, 7))
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    expected = (u * schedule(sigma)) @ vh
    assert np.max(np.abs(polar_factor(np, g, g @ g.T, schedule) - expected)) < 1e-11
