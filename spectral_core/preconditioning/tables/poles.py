"""Poles and weights that turn T into a few shifted inverses, computed on the host and cached."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_core.arrays.host import host_constant

__all__ = ["PoleTable", "pole_table"]

Vector = NDArray[np.float64]

MOST_POLES = 12
_ROUNDS = 400  # rounds of Levenberg-Marquardt, which settles long before
_GRID = 400  # points of the fit
_CHECK = 4000  # points of the certificate, which also sees the error between points of the fit


@dataclass(frozen=True)
class PoleTable:
    """``1 / (x^(α/2) + δ) ≈ w_0 + Σ_j w_j / (x + p_j)`` on ``0 ≤ x ≤ 1`` (Theory 9.6).

    Parameters
    ----------
    poles, weights : tuple of float
        The numbers ``p_j`` and ``w_j``, all positive.
    constant : float
        The constant ``w_0 ≥ 0``.
    error : float
        The largest error of T over σ/σ_max in [0, 1], relative to ``T(max(σ, floor))``.
    """

    poles: tuple[float, ...]
    weights: tuple[float, ...]
    constant: float
    error: float

    def __call__(self, x: Vector) -> Vector:
        """Evaluate the sum."""
        terms = np.asarray(self.weights) / (np.asarray(x)[..., None] + np.asarray(self.poles))
        return np.asarray(self.constant + terms.sum(axis=-1))


@host_constant
def pole_table(
    alpha: float, damping: float, tolerance: float, *, floor: float = 1e-3, smallest: float = 0.0
) -> PoleTable:
    """Return the table with the fewest poles that reaches a tolerance (Theory 9.6).

    f is a Stieltjes function for 0 < α < 2, so sums with positive weights converge to it
    geometrically in the number of poles. Each number of poles is fitted by Levenberg-Marquardt on
    the logarithms of poles and weights, which keeps them positive, with weights of the points that
    grow where the error is large (Lawson): that turns least squares into the least maximum.

    Parameters
    ----------
    alpha : float
        The exponent α, in (0, 2).
    damping : float
        The spectral damping δ > 0.
    tolerance : float
        The largest relative error of T, see `PoleTable.error`.
    floor : float
        The ratio σ/σ_max below which errors count relative to T at the floor.
    smallest : float
        The lower bound of the poles, as a shift must stand out of the rounding of the matrix.

    Returns
    -------
    PoleTable
        The table. If no number of poles up to 12 reaches the tolerance, it is the best one found:
        look at its `error`.
    """
    check = _Error(alpha, damping, floor, _CHECK)
    fit = _Error(alpha, damping, floor, _GRID)
    best: PoleTable | None = None
    for count in range(1, MOST_POLES + 1):
        logs = _minimax(fit, _start(fit, count, smallest), smallest)
        poles, weights, constant = _parts(logs, smallest)
        error = check.largest(poles, weights, constant)
        gain = error / best.error if best else 0.0
        if gain < 1:
            best = PoleTable(tuple(poles.tolist()), tuple(weights.tolist()), constant, error)
        if error <= tolerance or gain > 0.9:  # more poles help no more: the smallest is reached
            break
    assert best is not None
    return best


class _Error:
    """Errors of T, relative to ``T(max(σ, floor))``, on a grid of σ in [0, 1]."""

    def __init__(self, alpha: float, damping: float, floor: float, points: int) -> None:
        sigma = np.concatenate([[0.0], np.geomspace(min(1e-7, floor), 1, points)])
        at_least = np.maximum(sigma, floor)
        self.x = sigma**2
        self.target = 1 / (sigma**alpha + damping)
        self.scale = sigma * (at_least**alpha + damping) / at_least

    def terms(self, poles: Vector) -> Vector:
        """Return 1 / (x + p_j), one column a pole."""
        return np.asarray(1 / (self.x[:, None] + poles))

    def errors(self, poles: Vector, weights: Vector, constant: float) -> Vector:
        return np.asarray((self.terms(poles) @ weights + constant - self.target) * self.scale)

    def largest(self, poles: Vector, weights: Vector, constant: float) -> float:
        return float(np.max(np.abs(self.errors(poles, weights, constant))))


def _parts(logs: Vector, smallest: float) -> tuple[Vector, Vector, float]:
    """Return poles, weights and the constant of a vector of logarithms."""
    count = len(logs) // 2
    return smallest + np.exp(logs[:count]), np.exp(logs[count:-1]), float(np.exp(logs[-1]))


def _start(fit: _Error, count: int, smallest: float) -> Vector:
    """Start from poles evenly spaced in the logarithm, with weights of least squares."""
    poles = np.geomspace(max(3e-7, 2 * smallest), 3.0, count + 2)[1:-1]
    columns = np.concatenate([fit.terms(poles), np.ones((len(fit.x), 1))], axis=1)
    weights = np.linalg.lstsq(columns * fit.scale[:, None], fit.target * fit.scale)[0]
    weights = np.maximum(weights, 1e-3 * np.max(np.abs(weights)))
    return np.concatenate([np.log(poles - smallest), np.log(weights)])


def _minimax(fit: _Error, logs: Vector, smallest: float) -> Vector:
    """Return the logarithms with the smallest largest error on the way."""

    def evaluate(logs: Vector) -> tuple[Vector, Vector]:
        poles, weights, constant = _parts(logs, smallest)
        terms = fit.terms(poles)
        errors = fit.errors(poles, weights, constant)
        slopes = np.concatenate(
            [-(terms**2) * (weights * (poles - smallest)), terms * weights,
             np.full((len(fit.x), 1), constant)], axis=1,
        )  # fmt: skip
        return errors, slopes * fit.scale[:, None]

    return lawson(evaluate, logs)


def lawson(
    evaluate: Callable[[Vector], tuple[Vector, Vector]], start: Vector, rounds: int = _ROUNDS
) -> Vector:
    """Minimise the largest residual by damped Gauss-Newton steps on reweighted squares.

    Parameters
    ----------
    evaluate : callable
        A function that takes parameters, shape ``(P,)``, and returns residuals ``(R,)`` and
        derivatives ``(R, P)``.
    start : array, shape (P,)
        The parameters to begin with.
    rounds : int
        The number of steps.

    Returns
    -------
    array, shape (P,)
        The parameters with the smallest maximum that were met.
    """
    here, best, smallest = start, start, np.inf
    weights, damping = np.ones_like(evaluate(start)[0]), 1e-2
    for step in range(rounds):
        residuals, slopes = evaluate(here)
        largest = float(np.max(np.abs(residuals)))
        if largest < smallest:
            best, smallest = here, largest
        if step % 5 == 4:
            weights = weights * (np.abs(residuals) / largest + 1e-3)
            weights = weights / np.mean(weights)
        here, damping = _step(evaluate, here, residuals, slopes, weights, damping)
    return best


def _step(
    evaluate: Callable[[Vector], tuple[Vector, Vector]],
    here: Vector, residuals: Vector, slopes: Vector, weights: Vector, damping: float,
) -> tuple[Vector, float]:  # fmt: skip
    """Try Levenberg-Marquardt steps until one does not raise the weighted sum of squares."""
    normal = (slopes * weights[:, None]).T @ slopes
    gradient = (slopes * weights[:, None]).T @ residuals
    cost = float(np.sum(weights * residuals**2))
    ridge = np.diag(np.diag(normal))
    for _ in range(8):
        move = np.linalg.lstsq(normal + damping * ridge, -gradient)[0]
        there = here + np.clip(move, -1, 1)
        if float(np.sum(weights * evaluate(there)[0] ** 2)) <= cost:
            return there, max(damping / 5, 1e-12)
        damping *= 4
    return here, damping
