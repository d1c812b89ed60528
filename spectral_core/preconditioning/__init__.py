"""The function T, and methods that apply it to singular values (Theory 9.1 to 9.8)."""

from spectral_core.preconditioning.function import transfer as transfer
from spectral_core.preconditioning.function import transfer_bound as transfer_bound
from spectral_core.preconditioning.preconditioner import precondition as precondition

__all__ = ["precondition", "transfer", "transfer_bound"]
