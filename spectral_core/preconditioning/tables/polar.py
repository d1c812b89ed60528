"""Odd polynomials of degree five that lead to 1, each the best on the interval left to it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.host import host_constant

__all__ = ["PolarSchedule", "polar_schedule"]

Vector = NDArray[np.float64]
Quintic = tuple[float, float, float]

MOST_STEPS = 40


@dataclass(frozen=True)
class PolarSchedule:
    """Steps ``p(σ) = a σ + b σ³ + c σ⁵``; together they map [lowest, 1] to [1 − error, 1 + error].

    Parameters
    ----------
    steps : tuple of (float, float, float)
        The coefficients a, b, c in the order of use.
    lowest, error : float
    gain : float
        The growth of errors: if each step errs by u times the sum of its terms' sizes, the result
        errs by at most ``gain · u`` in the spectral norm, to first order (Theory 9.6).
    """

    steps: tuple[Quintic, ...]
    lowest: float
    error: float
    gain: float

    def __call__(self, sigma: Vector) -> Vector:
        """Evaluate the composition."""
        for a, b, c in self.steps:
            square = sigma * sigma
            sigma = sigma * (a + square * (b + square * c))
        return sigma


@host_constant
def polar_schedule(lowest: float, tolerance: float) -> PolarSchedule:
    """Return the shortest schedule that maps [lowest, 1] to 1 within a tolerance.

    Each step is the odd quintic closest to 1 in the maximum norm on the interval ``[l, u]`` that
    the one before left, by Remez exchange; it maps ``[l, u]`` onto ``[1 − e, 1 + e]``. Taking the
    best at every step is the best composition (Amsel et al. 2025).

    Parameters
    ----------
    lowest : float
        The smallest ratio σ/σ_max that must come out as 1, in (0, 1).
    tolerance : float
        The largest distance from 1, at least 1e-15.

    Returns
    -------
    PolarSchedule
    """
    low, high, error, gain = lowest, 1.0, 1.0, 0.0
    steps: list[Quintic] = []
    while error > tolerance and len(steps) < MOST_STEPS:
        (a, b, c), error = _best_quintic(low, high)
        steps.append((a, b, c))
        size = abs(a) * high + abs(b) * high**3 + abs(c) * high**5
        low, high = 1 - error, 1 + error
        gain += size / low
    return PolarSchedule(tuple(steps), lowest, error, gain)


def _best_quintic(low: float, high: float) -> tuple[Quintic, float]:
    """Return the odd quintic nearest to 1 on [low, high] and its largest distance from 1.

    Four points of equal error with alternating signs characterise it: both ends and the two
    stationary points between, which are exchanged until they stay.
    """
    if high - low < 1e-3 * high:
        return _flat(0.5 * (low + high)), _flat_error(low, high)
    points = low + (high - low) * np.asarray([0.0, 0.25, 0.75, 1.0])
    a = b = c = 0.0
    for _ in range(60):
        signs = np.asarray([1.0, -1.0, 1.0, -1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        squares = np.sort(np.roots([5 * c, 3 * b, a]).real)
        inner = np.clip(np.sqrt(np.maximum(squares, 0.0)), low, high)
        moved = np.asarray([low, inner[0], inner[1], high])
        if np.max(np.abs(moved - points)) < 1e-14 * high:
            break
        points = moved
    grid = np.concatenate([np.geomspace(low, high, 2000), points])
    largest = float(np.max(np.abs(1 - (a * grid + b * grid**3 + c * grid**5))))
    return (float(a), float(b), float(c)), largest


def _flat(centre: float) -> Quintic:
    """Return the quintic that is 1 to third order at a point: the limit of a short interval."""
    return 15 / (8 * centre), -10 / (8 * centre**3), 3 / (8 * centre**5)


def _flat_error(low: float, high: float) -> float:
    """Return its largest distance from 1: ``5/2 x³`` at relative distance x, and rounding."""
    half = (high - low) / (high + low)
    return max(4 * half**3, 2 * float(np.finfo(np.float64).eps))
