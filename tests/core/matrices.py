"""Matrices with chosen singular values, and T of them by a float64 SVD written out."""

import numpy as np

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
