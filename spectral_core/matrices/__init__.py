"""The matrices in a parameter, and the names of layers (Theory 1)."""

from spectral_core.matrices.layout import MatrixLayout as MatrixLayout
from spectral_core.matrices.layout import MatrixSpec as MatrixSpec
from spectral_core.matrices.layout import as_matrices as as_matrices

__all__ = ["MatrixLayout", "MatrixSpec", "as_matrices"]
