"""Exact curvature from CuPy alone: your gradient function, or your arrays. Needs `cupy`."""

from typing import ClassVar

from spectral_backends.arrays import CurvatureProblem as AnyCurvatureProblem
from spectral_backends.arrays import DenseNetwork as DenseNetwork
from spectral_backends.arrays import RecordedProblem as RecordedProblem
from spectral_backends.arrays import Rows as Rows
from spectral_backends.arrays import through_dlpack as through_dlpack
from spectral_core._extras import require

__all__ = ["CurvatureProblem", "DenseNetwork", "RecordedProblem", "Rows", "through_dlpack"]

require("cupy", "cupy", "The CuPy backend")


class CurvatureProblem(AnyCurvatureProblem):
    """`spectral_backends.arrays.CurvatureProblem` for parameters of CuPy, and no others."""

    library: ClassVar[str | None] = "cupy"
