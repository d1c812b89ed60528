"""Curvature exponents of neural networks: the mathematics, for any Array API library.

`measure` takes a problem from `spectral_backends` and returns a `SpectralReport`; the functions
beside it work on arrays of NumPy, PyTorch, JAX, CuPy or any other library of the standard.
"""

from spectral_core._moved import keep_old_names
from spectral_core._version import __version__ as __version__
from spectral_core.alignment import ExponentDecomposition as ExponentDecomposition
from spectral_core.alignment import FactorSpectrum as FactorSpectrum
from spectral_core.alignment import ResidualPrediction as ResidualPrediction
from spectral_core.alignment import SpectralAlignment as SpectralAlignment
from spectral_core.alignment import decompose_exponent as decompose_exponent
from spectral_core.alignment import effective_rank as effective_rank
from spectral_core.alignment import layernorm_band as layernorm_band
from spectral_core.alignment import residual_prediction as residual_prediction
from spectral_core.alignment import slope_bound as slope_bound
from spectral_core.alignment import softmax_head_rank as softmax_head_rank
from spectral_core.alignment import spectral_alignment as spectral_alignment
from spectral_core.curvature import Certificate as Certificate
from spectral_core.curvature import CurvatureProblem as CurvatureProblem
from spectral_core.curvature import KroneckerFactors as KroneckerFactors
from spectral_core.curvature import LayerCurvature as LayerCurvature
from spectral_core.curvature import LayerInfo as LayerInfo
from spectral_core.errors import InputError as InputError
from spectral_core.errors import LayerError as LayerError
from spectral_core.errors import MissingExtraError as MissingExtraError
from spectral_core.errors import NonDeterministicError as NonDeterministicError
from spectral_core.errors import ReportError as ReportError
from spectral_core.errors import SpectralError as SpectralError
from spectral_core.exponents import ExponentTriangle as ExponentTriangle
from spectral_core.exponents import LineCheck as LineCheck
from spectral_core.exponents import PowerLawFit as PowerLawFit
from spectral_core.exponents import RankProfile as RankProfile
from spectral_core.exponents import RankProfileFits as RankProfileFits
from spectral_core.exponents import check_line as check_line
from spectral_core.exponents import exponent_over_window as exponent_over_window
from spectral_core.exponents import exponent_triangle as exponent_triangle
from spectral_core.exponents import fit_power_law as fit_power_law
from spectral_core.exponents import fit_rank_profiles as fit_rank_profiles
from spectral_core.matrices import MatrixLayout as MatrixLayout
from spectral_core.matrices import MatrixSpec as MatrixSpec
from spectral_core.matrices import as_matrices as as_matrices
from spectral_core.measuring import converge as converge
from spectral_core.measuring import measure as measure
from spectral_core.measuring import select_layers as select_layers
from spectral_core.newton import spectral_newton_step as spectral_newton_step
from spectral_core.participation import certified_exponent as certified_exponent
from spectral_core.participation import entropy_rank as entropy_rank
from spectral_core.participation import exponential_participation as exponential_participation
from spectral_core.participation import log_normal_participation as log_normal_participation
from spectral_core.participation import participation_ratio as participation_ratio
from spectral_core.participation import window_bound as window_bound
from spectral_core.participation import zeta as zeta
from spectral_core.participation import zeta_bound as zeta_bound
from spectral_core.preconditioning import MethodChoice as MethodChoice
from spectral_core.preconditioning import precondition as precondition
from spectral_core.preconditioning import precondition_method as precondition_method
from spectral_core.preconditioning import transfer as transfer
from spectral_core.preconditioning import transfer_bound as transfer_bound
from spectral_core.reporting import AgainstNoise as AgainstNoise
from spectral_core.reporting import Convergence as Convergence
from spectral_core.reporting import Explanation as Explanation
from spectral_core.reporting import LayerConvergence as LayerConvergence
from spectral_core.reporting import LayerSampling as LayerSampling
from spectral_core.reporting import LayerSpectrum as LayerSpectrum
from spectral_core.reporting import NoiseComparison as NoiseComparison
from spectral_core.reporting import ParticipationSummary as ParticipationSummary
from spectral_core.reporting import Provenance as Provenance
from spectral_core.reporting import SampledNumber as SampledNumber
from spectral_core.reporting import SpectralReport as SpectralReport
from spectral_core.reporting import explain as explain
from spectral_core.sampling import NoiseNull as NoiseNull
from spectral_core.sampling import noise_null as noise_null

__all__ = [
    "AgainstNoise",
    "Certificate",
    "Convergence",
    "CurvatureProblem",
    "Explanation",
    "ExponentDecomposition",
    "ExponentTriangle",
    "FactorSpectrum",
    "InputError",
    "KroneckerFactors",
    "LayerConvergence",
    "LayerCurvature",
    "LayerError",
    "LayerInfo",
    "LayerSampling",
    "LayerSpectrum",
    "LineCheck",
    "MatrixLayout",
    "MatrixSpec",
    "MethodChoice",
    "MissingExtraError",
    "NoiseComparison",
    "NoiseNull",
    "NonDeterministicError",
    "ParticipationSummary",
    "PowerLawFit",
    "Provenance",
    "RankProfile",
    "RankProfileFits",
    "ReportError",
    "ResidualPrediction",
    "SampledNumber",
    "SpectralAlignment",
    "SpectralError",
    "SpectralReport",
    "__version__",
    "as_matrices",
    "certified_exponent",
    "check_line",
    "converge",
    "decompose_exponent",
    "effective_rank",
    "entropy_rank",
    "explain",
    "exponent_over_window",
    "exponent_triangle",
    "exponential_participation",
    "fit_power_law",
    "fit_rank_profiles",
    "layernorm_band",
    "log_normal_participation",
    "measure",
    "noise_null",
    "participation_ratio",
    "precondition",
    "precondition_method",
    "residual_prediction",
    "select_layers",
    "slope_bound",
    "softmax_head_rank",
    "spectral_alignment",
    "spectral_newton_step",
    "transfer",
    "transfer_bound",
    "window_bound",
    "zeta",
    "zeta_bound",
]

# Pickles name the module of a class: the public one, wherever the class is defined.
for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__

keep_old_names()
