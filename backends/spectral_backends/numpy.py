"""Exact curvature from NumPy alone: your gradient function, or your arrays."""

from typing import ClassVar

from spectral_backends.arrays import CurvatureProblem as AnyCurvatureProblem
from spectral_backends.arrays import DenseNetwork as DenseNetwork
from spectral_backends.arrays import RecordedProblem as RecordedProblem
from spectral_backends.arrays import Rows as Rows
from spectral_backends.arrays import through_dlpack as through_dlpack

__all__ = ["CurvatureProblem", "DenseNetwork", "RecordedProblem", "Rows", "through_dlpack"]


class CurvatureProblem(AnyCurvatureProblem):
    """`spectral_backends.arrays.CurvatureProblem` for parameters of NumPy, and no others."""

    library: ClassVar[str | None] = "numpy"
