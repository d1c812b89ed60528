"""Matrices with chosen singular values, and T of them by a float64 SVD written out."""

import numpy as np

import spectral_core as sc
from spectral_core.preconditioning.damped_power import gram_rounding
from spectral_core.preconditioning.extreme_value import largest_eigenvalue
from spectral_core.preconditioning.gram import smallest_shift
from spectral_core.preconditioning.tables.polar import polar_schedule

TOLERANCE = 2e-2  # that tests ask of method "shifts"
POLAR_TOLERANCE = 2e-3  # little above the rounding of "polar" in float32
SHAPES = {"square": (24, 24), "wide": (16, 40), "tall": (40, 16), "row": (1, 12), "column": (12, 1)}


def with_spectrum(sigma, shape, seed=0):
    """Return a float64 matrix with given singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    u, _, vh = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return (u * sigma) @ vh


def orthonormal(rng, n):
    """Return a random orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def covariance(rng, eigenvalues):
    """Return a symmetric matrix of these eigenvalues with random eigenvectors."""
    q = orthonormal(rng, len(eigenvalues))
    return (q * eigenvalues) @ q.T


def spectrum(kind, k, seed=0):
    """Return k singular values, descending."""
    if kind == "graded":
        return np.geomspace(1, 1e-8, k)
    if kind == "deficient":
        return np.where(np.arange(k) < (k + 1) // 2, np.linspace(1, 0.3, k), 0.0)
    if kind == "power":
        return np.arange(1.0, k + 1) ** -1
    assert kind == "gaussian"
    return np.linalg.svd(np.random.default_rng(seed).normal(size=(k, k)), compute_uv=False)


def oracle(gradient, alpha, damping=0.1, mode="spectral", zero=1e-14):
    """Return T(G) in float64, its singular vectors and σ, one matrix; σ/σ_max below `zero` is 0."""
    u, sigma, vh = np.linalg.svd(np.asarray(gradient, dtype=np.float64), full_matrices=False)
    sigma = np.where(sigma > zero * sigma[0], sigma, 0.0)
    d = damping * sigma[0] ** alpha if mode == "spectral" else damping
    below = sigma**alpha + d
    values = np.divide(sigma, below, out=np.zeros_like(sigma), where=below > 0)
    return (u * values) @ vh, u, sigma, vh


def spectral_error(found, expected):
    """Return ``‖T̂ − T‖₂ / ‖T‖₂``."""
    return np.linalg.norm(found - expected, 2) / np.linalg.norm(expected, 2)


def stated_error(method, alpha, damping, gradient, eps, floor=None):
    """The bound in the docstring of `precondition`, of one matrix."""
    k = min(gradient.shape)
    if method == "svd":
        # T moves by |T'| ε √k σ_max for singular values off by that; |T'| ≤ max(1, α) / δ, unless
        # there is no damping and the slope is that of σ^(1−α) at the smallest one kept.
        steep = max(1, alpha) / damping if damping else 1 / min_ratio(gradient) ** alpha
        return 20 * np.sqrt(k) * eps * (1 + steep / sc.transfer_bound(alpha, damping))
    if method == "polar":
        return polar_schedule(1e-3 / 1.05, POLAR_TOLERANCE).gain * eps
    if (method, alpha) == ("closed", 0.0):
        return 20 * k * eps  # of the oracle
    rounding = gram_rounding(alpha, damping, smallest_shift(k, eps), floor)
    wide = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
    gram = wide @ wide.T / np.max(np.abs(gradient)) ** 2
    top = float(largest_eigenvalue(np, gram)[0, 0]) / np.linalg.eigvalsh(gram)[-1]
    lanczos = alpha / 2 * (1 - top) if method in ("closed", "shifts") else 0.0
    return rounding + lanczos + (TOLERANCE if method == "shifts" else 0.0) + 20 * k * eps


def min_ratio(gradient):
    sigma = np.linalg.svd(np.asarray(gradient, dtype=np.float64), compute_uv=False)
    return np.min(sigma[sigma > 1e-6 * sigma[0]]) / sigma[0]
