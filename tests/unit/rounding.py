"""How far rounding can move a result: bounds to first order, from sizes and conditions alone.

A logarithm is right to ``4 ε (1 + |log|)``, which covers the rounding of its argument, too; a sum of
n terms to ``n ε`` of the sum of their sizes. What a bound leaves out is of second order: `SLACK`
covers that, and the rounding of the float64 numbers that results are compared with.
"""

import numpy as np

SLACK = 2


def of_logs(eps, log_values):
    """Norm of the error of centred logarithms: each its own, and n ε more from their mean."""
    n = len(log_values)
    return np.sqrt(n) * (n + 4) * eps * (1 + np.max(np.abs(log_values)))


def centred(values):
    logs = np.log(values)
    return logs, logs - np.mean(logs)


def of_slope(eps, x_values, y_values):
    """Error of ``b = <x, y>/<x, x>`` of centred logarithms.

    ``δb = (<δx, y − 2bx> + <x, δy>)/<x, x>`` and ``|b| ≤ ‖y‖/‖x‖``; both inner products round.
    """
    (log_x, x), (log_y, y) = centred(x_values), centred(y_values)
    dx, dy, n = of_logs(eps, log_x), of_logs(eps, log_y), len(x)
    norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
    return SLACK * (3 * dx * norm_y / norm_x + dy + 2 * n * eps * norm_y) / norm_x


def of_residual(eps, x_values, y_values):
    """Norm of the error of the residual ``y − b x``: δy, and what x and b bring."""
    (log_x, x), (log_y, y) = centred(x_values), centred(y_values)
    slope = abs(x @ y) / (x @ x)
    return SLACK * (
        of_logs(eps, log_y)
        + slope * of_logs(eps, log_x)
        + np.linalg.norm(x) * of_slope(eps, x_values, y_values)
    )


def of_defect(eps, k, sigma, h):
    """Error of ``τ = −<ε, x⊥>/<x, x>``: each residual's against the other one, over ``<x, x>``."""
    (log_x, x), (_, y), (_, z) = centred(k), centred(sigma), centred(h)
    epsilon, across = z - (y @ z) / (y @ y) * y, x - (x @ y) / (y @ y) * y
    norm_e, norm_a, xx = np.linalg.norm(epsilon), np.linalg.norm(across), x @ x
    de, da = of_residual(eps, sigma, h), of_residual(eps, sigma, k)
    ratio = 2 * of_logs(eps, log_x) / np.sqrt(xx) + 2 * len(x) * eps
    return SLACK * (de * (norm_a + da) + norm_e * da + norm_e * norm_a * ratio) / xx


def of_quadratic_forms(eps, directions, covariance):
    """Error of each ``uᵀ C u``: two sums of m products, of size ``‖u‖² ‖C‖`` at most."""
    lengths = np.sum(directions**2, axis=0)
    return SLACK * (2 * len(covariance) + 2) * eps * lengths * np.linalg.norm(covariance)


def of_eigenvalues(eps, covariance):
    """Error of each eigenvalue (Weyl) by a routine that is backward stable to ``10 m ε ‖C‖``."""
    return SLACK * 10 * len(covariance) * eps * np.linalg.norm(covariance, 2)
