"""The interface of backends: the protocol of a problem, its arguments, results, certificates."""

from spectral_core.curvature.certificate import Certificate as Certificate
from spectral_core.curvature.certificate import LayerCurvature as LayerCurvature
from spectral_core.curvature.problem import CurvatureProblem as CurvatureProblem
from spectral_core.curvature.problem import KroneckerFactors as KroneckerFactors
from spectral_core.curvature.problem import LayerInfo as LayerInfo

__all__ = ["Certificate", "CurvatureProblem", "KroneckerFactors", "LayerCurvature", "LayerInfo"]
