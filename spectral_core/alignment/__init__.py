"""Alignment with the Kronecker factors, the terms of α, and its mechanisms (Theory 5 and 6)."""

from spectral_core.alignment.alignment import FactorSpectrum as FactorSpectrum
from spectral_core.alignment.alignment import SpectralAlignment as SpectralAlignment
from spectral_core.alignment.alignment import effective_rank as effective_rank
from spectral_core.alignment.alignment import spectral_alignment as spectral_alignment
from spectral_core.alignment.decomposition import ExponentDecomposition as ExponentDecomposition
from spectral_core.alignment.decomposition import decompose_exponent as decompose_exponent
from spectral_core.alignment.mechanisms import ResidualPrediction as ResidualPrediction
from spectral_core.alignment.mechanisms import layernorm_band as layernorm_band
from spectral_core.alignment.mechanisms import residual_prediction as residual_prediction
from spectral_core.alignment.mechanisms import slope_bound as slope_bound
from spectral_core.alignment.mechanisms import softmax_head_rank as softmax_head_rank

__all__ = [
    "ExponentDecomposition",
    "FactorSpectrum",
    "ResidualPrediction",
    "SpectralAlignment",
    "decompose_exponent",
    "effective_rank",
    "layernorm_band",
    "residual_prediction",
    "slope_bound",
    "softmax_head_rank",
    "spectral_alignment",
]
