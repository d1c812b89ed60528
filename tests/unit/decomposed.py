"""Layers whose decomposition is known."""

from dataclasses import replace

import numpy as np

import spectral_core as sc
from spectral_core.measuring.layer_spectrum import spectrum_from_values

K = 20


def layer(
    seed=0, noise=0.02, name="body", beta=2.0, phi=0.0, kappa=0.0, nu=0.0, against=False, sigma=None
):
    """Return a layer whose terms have these slopes, with some noise on each, or one for each.

    With `against`, the noise of κ is that of φ turned round.
    """
    rng = np.random.default_rng(seed)
    sigma = np.arange(1.0, K + 1) ** -1.0 if sigma is None else sigma
    lam, align, dependence, residual = (
        sigma**slope * np.exp(size * rng.normal(size=K))
        for slope, size in zip((beta, phi, kappa, nu), np.broadcast_to(noise, 4), strict=True)
    )
    if against:
        dependence = sigma**kappa * sigma**phi / align
    kron = lam * align
    ggn = kron * dependence
    h = ggn * residual
    ones, zeros = np.ones(K), np.zeros(K, dtype=bool)
    delta = sc.FactorSpectrum(lam, kron, align, zeros, K, 5.0, 10.0)
    a = sc.FactorSpectrum(ones, ones, ones, zeros, K, 5.0, 10.0)
    alignment = sc.SpectralAlignment(delta, a, kron)
    info = sc.LayerInfo(name, "linear", (K, K))
    return decomposed(info, sigma, h, ggn, alignment)


def split(spectrum, positions, noise=0.02, seed=0):
    """Return a layer of which κ is split, with κ^pos of this slope."""
    bends = np.exp(noise * np.random.default_rng(seed).normal(size=len(spectrum.sigma)))
    diagonal = spectrum.ggn * bends * spectrum.sigma**-positions
    fits = sc.decompose_exponent(
        spectrum.sigma, spectrum.curvature, spectrum.ggn, spectrum.alignment, diagonal=diagonal
    ).to_floats()
    return replace(spectrum, diagonal=diagonal, decomposition=fits)


def decomposed(info, sigma, h, ggn, alignment):
    """Return what `measure` makes of these values."""
    spectrum = spectrum_from_values(info, sigma, h)
    fits = sc.decompose_exponent(sigma, h, ggn, alignment).to_floats()
    values = {**vars(spectrum), "ggn": ggn, "alignment": alignment, "decomposition": fits}
    return sc.LayerSpectrum(**values)
