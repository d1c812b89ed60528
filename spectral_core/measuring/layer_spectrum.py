"""From measured values to a `LayerSpectrum`: fits, bounds, decomposition and notes."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spectral_core.alignment.decomposition import decompose_exponent
from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.certificate import LayerCurvature
from spectral_core.curvature.problem import CurvatureProblem, LayerInfo
from spectral_core.errors import LayerError
from spectral_core.exponents.rank_profile import fit_rank_profiles
from spectral_core.exponents.transfer_identity import exponent_triangle
from spectral_core.measuring.curvature_source import why_not_finite
from spectral_core.measuring.directions import Window
from spectral_core.measuring.factor_source import Aligned, FactorSource
from spectral_core.measuring.noise_source import compare_with_noise
from spectral_core.measuring.subsampling.resampling import Resampling
from spectral_core.participation.participation import (
    certified_exponent,
    entropy_rank,
    participation_ratio,
    window_bound,
    zeta_bound,
)
from spectral_core.reporting.spectrum import LayerSpectrum, ParticipationSummary, Provenance

__all__ = ["measured_spectrum", "spectrum_from_values", "with_note"]


def measured_spectrum(
    problem: CurvatureProblem,
    layer: LayerInfo,
    window: Window,
    found: LayerCurvature,
    provenance: Provenance,
    source: FactorSource | None,
    resampling: Resampling | None = None,
) -> LayerSpectrum:
    """Return the spectrum of a layer from its directions, curvatures and, if wanted, factors.

    Parameters
    ----------
    problem : CurvatureProblem
        The problem, which is asked for Gauss-Newton curvatures that did not come with the others.
    layer : LayerInfo
        The layer of the directions.
    window : Window
        The directions of the layer.
    found : LayerCurvature
        The curvatures along them.
    provenance : Provenance
        The description of the measurement, with the options that were requested.
    source : FactorSource or None
        The source of Kronecker factors, or None without a decomposition.
    resampling : Resampling or None
        The groups of samples for sampling errors, or None without them.
    """
    aligned, reason = _aligned(source, layer)
    notes = window.notes + reason
    if provenance.problem.get("loss") == 0:
        notes += (
            "the loss is exactly zero and its gradient is not: where it cannot be negative, both "
            "are rounding",
        )
    spectrum = spectrum_from_values(
        layer, window.sigma, found.values, confidence=provenance.confidence, notes=notes
    )
    spectrum = replace(
        spectrum,
        certificate=found.certificate,
        rounding=window.rounding,
        derivative=window.derivative,
    )
    if aligned is not None:
        try:
            found = _with_ggn(problem, found, window, resampling)
        except LayerError as error:
            spectrum = with_note(spectrum, f"no decomposition: {error.reason}")
        else:
            ggn = found.ggn.astype(np.float64)
            spectrum = _decomposed(spectrum, ggn, aligned, provenance.confidence)
    if resampling is None:
        return spectrum
    try:
        alignments = () if aligned is None else aligned.of_subsamples
        return replace(spectrum, sampling=resampling.sampling_of(spectrum, found, alignments))
    except LayerError as error:
        return with_note(spectrum, f"no sampling errors: {error.reason}")


def with_note(spectrum: LayerSpectrum, note: str) -> LayerSpectrum:
    """Return a spectrum with one more note, if it is not empty."""
    return replace(spectrum, notes=(*spectrum.notes, note)) if note else spectrum


def _with_ggn(
    problem: CurvatureProblem,
    found: LayerCurvature,
    window: Window,
    resampling: Resampling | None,
) -> LayerCurvature:
    """Return curvatures with their Gauss-Newton part; the problem is asked if it is not known."""
    if resampling is not None:
        found = resampling.problem.with_ggn(found, window.u, window.v)
    if found.ggn is None:
        ggn = to_numpy(problem.curvatures(found.name, window.u, window.v, "ggn"))
        found = replace(found, ggn=ggn)
    if told := why_not_finite(found.ggn):
        raise LayerError(found.name, told)
    return found


def spectrum_from_values(
    layer: LayerInfo,
    sigma: npt.NDArray[np.float64],
    curvature: npt.NDArray[np.float64],
    *,
    confidence: float = 0.95,
    notes: tuple[str, ...] = (),
) -> LayerSpectrum:
    """Fit everything that a `LayerSpectrum` holds to measured values.

    Parameters
    ----------
    layer : LayerInfo
        The layer to which the values belong.
    sigma, curvature : ndarray, shape (K,), float64
        The singular values, descending, and the curvatures in the same order.
    confidence : float
        The confidence level of every interval, in (0, 1).
    notes : tuple of str
        The notes that exist already. Dropped directions and failed fits are added.
    """
    triangle = exponent_triangle(sigma, curvature, confidence=confidence).to_floats()
    if triangle.alpha.n_dropped:
        bad = int(np.sum(~((curvature > 0) & np.isfinite(curvature))))
        notes += (
            f"{triangle.alpha.n_dropped} of {len(sigma)} directions dropped from the fits of α "
            f"and s ({bad} with h <= 0 or not finite)",
        )
    if triangle.alpha.reason:
        notes += (f"α: {triangle.alpha.reason}",)
    return LayerSpectrum(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        sigma=sigma,
        curvature=curvature,
        triangle=triangle,
        participation=_participation(curvature, triangle.s.exponent),
        rank_profile=fit_rank_profiles(sigma).to_floats(),
        notes=notes,
    )


def _decomposed(
    spectrum: LayerSpectrum, ggn: npt.NDArray[np.float64], aligned: Aligned, confidence: float
) -> LayerSpectrum:
    """Return a spectrum with the terms of its α."""
    alignment, notes = aligned.alignment, aligned.notes
    diagonal = aligned.diagonal
    fits = decompose_exponent(
        spectrum.sigma, spectrum.curvature, ggn, alignment, diagonal=diagonal,
        confidence=confidence,
    ).to_floats()  # fmt: skip
    if lost := fits.alpha.n_dropped - spectrum.alpha.n_dropped:
        notes += (
            f"{lost} more directions dropped from the decomposition (eigenvalues of a factor at "
            "rounding level, or a Gauss-Newton curvature <= 0)",
        )
    notes = spectrum.notes + notes
    noise = None
    if aligned.null is not None:
        kron = np.asarray(alignment.kron, dtype=np.float64)
        noise = compare_with_noise(spectrum.sigma, kron, aligned.null, confidence)
    return replace(
        spectrum, ggn=ggn, alignment=alignment, decomposition=fits, notes=notes,
        diagonal=diagonal, noise=noise,
    )  # fmt: skip


def _aligned(
    source: FactorSource | None, layer: LayerInfo
) -> tuple[Aligned | None, tuple[str, ...]]:
    """Return the alignment with the factors, or None with the reason why there is none."""
    if source is None:
        return None, ()
    try:
        return source.take(layer), ()
    except LayerError as error:
        return None, (f"no decomposition: {error.reason}",)


def _participation(curvature: npt.NDArray[np.float64], s: float) -> ParticipationSummary:
    count = int(np.sum(curvature > 0))
    certified = float(certified_exponent(curvature))
    exponent = np.asarray(s, dtype=np.float64)
    return ParticipationSummary(
        ratio=float(participation_ratio(curvature)),
        entropy_rank=float(entropy_rank(curvature)),
        count=count,
        window_bound=float(window_bound(exponent, max(count, 1))),
        zeta_bound=float(zeta_bound(exponent)),
        certified_exponent=certified,
        certified_bound=float(window_bound(np.asarray(certified, dtype=np.float64), max(count, 1))),
    )
