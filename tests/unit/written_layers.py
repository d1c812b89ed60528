"""Layers and reports of numbers written by hand."""

import math
from dataclasses import replace

import numpy as np

import spectral_core as sc
from spectral_core.reporting.spectrum import ParticipationSummary, Provenance

NAN = math.nan


def fit(exponent, half=0.25, r_squared=0.5, n=3, dropped=1):
    """A fit whose interval is symmetric; all numbers are told apart."""
    interval = (exponent - half, exponent + half)
    return sc.PowerLawFit(exponent, 0.0, r_squared, half / 2, interval, n, dropped, 0, 0.95)


def layer(name="body", **changes):
    """A layer of numbers written by hand, no two of them alike."""
    triangle = sc.ExponentTriangle(
        alpha=fit(1.7654, 0.1236, 0.9876),
        gamma=fit(0.8123, 0.0456, 0.9321, 4, 0),
        s=fit(1.4321, 0.2345, 0.9135),
        order="sorted",
        predicted_s=1.4342,
        s_index=1.43,
        s_sorted=1.4321,
        gamma_window=0.81,
        defect=-0.0123,
        ordering_term=0.0,
        window_term=0.0,
        defect_bound=0.0457,
        relative_error=0.0147,
    )
    profiles = [sc.RankProfile({"gamma": 0.8}, 0.1 + i, -9.0 + i, -8.0 + i, 4) for i in range(3)]
    spectrum = sc.LayerSpectrum(
        name=name,
        kind="conv2d",
        shape=(64, 27),
        sigma=np.asarray([4.0, 3.0, 2.0, 1.0]),
        curvature=np.asarray([9.0, 5.0, -1.0, 1.0]),
        triangle=triangle,
        participation=ParticipationSummary(2.3456, 2.4, 3, 2.6, math.inf, 1.1, 2.7891),
        rank_profile=sc.RankProfileFits(*profiles, winner_code=2, delta_bic=1.0),
    )
    return replace(spectrum, **changes)


def decomposition(chi=(2.0, 8.0, NAN, 30.0)):
    return sc.ExponentDecomposition(
        alpha=fit(1.7654, 0.1236), beta=fit(2.1, 0.11), phi=fit(-0.6, 0.22), kappa=fit(0.25, 0.33),
        nu=fit(-0.001, 0.44), phi_delta=fit(-0.4, 0.55), phi_a=fit(-0.2, 0.66),
        full_alignment=fit(-0.2346), chi=np.asarray(chi), closure=-3.2e-16,
    )  # fmt: skip


def report(*spectra, **changes):
    problem = {"loss": 2.3025850929, "n_terms": 2048, "backend": "torch", "dtype": "float32",
               "device": "cpu"}  # fmt: skip
    provenance = Provenance(problem, {}, 20, "hessian", 0.95)
    return replace(sc.SpectralReport(provenance, spectra), **changes)
