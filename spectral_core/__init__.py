"""Curvature exponents of neural networks: the mathematics, for any Array API library.

`measure` takes a problem from `spectral_backends` and returns a `SpectralReport`; the functions
beside it work on arrays of NumPy, PyTorch, JAX, CuPy or any other library of the standard.
"""

from spectral_core._version import __version__ as __version__
from spectral_core.alignment import FactorSpectrum as FactorSpectrum
from spectral_core.alignment import SpectralAlignment as SpectralAlignment
from spectral_core.alignment import effective_rank as effective_rank
from spectral_core.alignment import spectral_alignment as spectral_alignment
from spectral_core.certificate import Certificate as Certificate
from spectral_core.certificate import LayerCurvature as LayerCurvature
from spectral_core.decomposition import ExponentDecomposition as ExponentDecomposition
from spectral_core.decomposition import decompose_exponent as decompose_exponent
from spectral_core.errors import InputError as InputError
from spectral_core.errors import LayerError as LayerError
from spectral_core.errors import MissingExtraError as MissingExtraError
from spectral_core.errors import NonDeterministicError as NonDeterministicError
from spectral_core.errors import ReportError as ReportError
from spectral_core.errors import SpectralError as SpectralError
from spectral_core.explanation import Explanation as Explanation
from spectral_core.explanation import explain as explain
from spectral_core.exponents import ExponentTriangle as ExponentTriangle
from spectral_core.exponents import exponent_triangle as exponent_triangle
from spectral_core.layer_selection import select_layers as select_layers
from spectral_core.matrix_layout import MatrixLayout as MatrixLayout
from spectral_core.matrix_layout import MatrixSpec as MatrixSpec
from spectral_core.matrix_layout import as_matrices as as_matrices
from spectral_core.measurement import measure as measure
from spectral_core.mechanisms import ResidualPrediction as ResidualPrediction
from spectral_core.mechanisms import layernorm_band as layernorm_band
from spectral_core.mechanisms import residual_prediction as residual_prediction
from spectral_core.mechanisms import slope_bound as slope_bound
from spectral_core.mechanisms import softmax_head_rank as softmax_head_rank
from spectral_core.participation import certified_exponent as certified_exponent
from spectral_core.participation import entropy_rank as entropy_rank
from spectral_core.participation import exponential_participation as exponential_participation
from spectral_core.participation import log_normal_participation as log_normal_participation
from spectral_core.participation import participation_ratio as participation_ratio
from spectral_core.participation import window_bound as window_bound
from spectral_core.participation import zeta_bound as zeta_bound
from spectral_core.power_law import PowerLawFit as PowerLawFit
from spectral_core.power_law import fit_power_law as fit_power_law
from spectral_core.preconditioner import precondition as precondition
from spectral_core.problem import CurvatureProblem as CurvatureProblem
from spectral_core.problem import KroneckerFactors as KroneckerFactors
from spectral_core.problem import LayerInfo as LayerInfo
from spectral_core.rank_profile import RankProfile as RankProfile
from spectral_core.rank_profile import RankProfileFits as RankProfileFits
from spectral_core.rank_profile import fit_rank_profiles as fit_rank_profiles
from spectral_core.report import LayerSpectrum as LayerSpectrum
from spectral_core.report import ParticipationSummary as ParticipationSummary
from spectral_core.report import Provenance as Provenance
from spectral_core.report import SpectralReport as SpectralReport
from spectral_core.spectral_newton import spectral_newton_step as spectral_newton_step
from spectral_core.transfer import transfer as transfer
from spectral_core.transfer import transfer_bound as transfer_bound
from spectral_core.zeta import zeta as zeta

__all__ = [
    "Certificate",
    "CurvatureProblem",
    "Explanation",
    "ExponentDecomposition",
    "ExponentTriangle",
    "FactorSpectrum",
    "InputError",
    "KroneckerFactors",
    "LayerCurvature",
    "LayerError",
    "LayerInfo",
    "LayerSpectrum",
    "MatrixLayout",
    "MatrixSpec",
    "MissingExtraError",
    "NonDeterministicError",
    "ParticipationSummary",
    "PowerLawFit",
    "Provenance",
    "RankProfile",
    "RankProfileFits",
    "ReportError",
    "ResidualPrediction",
    "SpectralAlignment",
    "SpectralError",
    "SpectralReport",
    "__version__",
    "as_matrices",
    "certified_exponent",
    "decompose_exponent",
    "effective_rank",
    "entropy_rank",
    "explain",
    "exponent_triangle",
    "exponential_participation",
    "fit_power_law",
    "fit_rank_profiles",
    "layernorm_band",
    "log_normal_participation",
    "measure",
    "participation_ratio",
    "precondition",
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
