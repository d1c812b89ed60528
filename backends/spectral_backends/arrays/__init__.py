"""Curvature from arrays of any library of the standard, without automatic differentiation."""

from spectral_backends.arrays.dense_network import DenseNetwork as DenseNetwork
from spectral_backends.arrays.dlpack import through_dlpack as through_dlpack
from spectral_backends.arrays.problem import CurvatureProblem as CurvatureProblem
from spectral_backends.arrays.recorded import RecordedProblem as RecordedProblem
from spectral_backends.arrays.rows import Rows as Rows

__all__ = ["CurvatureProblem", "DenseNetwork", "RecordedProblem", "Rows", "through_dlpack"]
