"""Results to show and save: spectra, reports, text tables, the sentence that explains a layer."""

from spectral_core.reporting.convergence import Convergence as Convergence
from spectral_core.reporting.convergence import LayerConvergence as LayerConvergence
from spectral_core.reporting.explanation import Explanation as Explanation
from spectral_core.reporting.explanation import Term as Term
from spectral_core.reporting.explanation import explain as explain
from spectral_core.reporting.noise import AgainstNoise as AgainstNoise
from spectral_core.reporting.noise import NoiseComparison as NoiseComparison
from spectral_core.reporting.report import SpectralReport as SpectralReport
from spectral_core.reporting.sampling import LayerSampling as LayerSampling
from spectral_core.reporting.sampling import SampledNumber as SampledNumber
from spectral_core.reporting.spectrum import LayerSpectrum as LayerSpectrum
from spectral_core.reporting.spectrum import ParticipationSummary as ParticipationSummary
from spectral_core.reporting.spectrum import Provenance as Provenance

__all__ = [
    "AgainstNoise",
    "Convergence",
    "Explanation",
    "LayerConvergence",
    "LayerSampling",
    "LayerSpectrum",
    "NoiseComparison",
    "ParticipationSummary",
    "Provenance",
    "SampledNumber",
    "SpectralReport",
    "Term",
    "explain",
]
