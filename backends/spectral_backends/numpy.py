"""Exact curvature from NumPy alone: your gradient function, or your arrays."""

from typing import ClassVar

from spectral_backends.arrays import CurvatureProblem as AnyCurvatureProblem
from spectral_backends.arrays import DenseNetwork as DenseNetwork
from spectral_backends.arrays import RecordedProblem as RecordedProblem
from spectral_backends.arrays import Rows as Rows
from spectral_backends.arrays import through_dlpack as through_dlpack

__all__ = ["CurvatureProblem", "DenseNetwork", "RecordedProblem", "Rows", "through_dlpack"]


class CurvatureProblem(AnyCurvatureProblem):
    """`spectral_backends.arrays.CurvatureProblem` for parameters of NumPy, and no others.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import CurvatureProblem
    >>> problem = CurvatureProblem(lambda params: {"w": 3 * params["w"]}, {"w": np.ones((1, 2))})
    >>> problem.curvatures("w", np.array([[1.0]]), np.array([[0.0], [1.0]])).round(6)
    array([3.])
    """

    library: ClassVar[str | None] = "numpy"
