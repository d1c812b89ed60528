"""The function T, and methods that apply it to singular values (Theory 9.1 to 9.8)."""

from spectral_core.preconditioning.function import transfer as transfer
from spectral_core.preconditioning.function import transfer_bound as transfer_bound
from spectral_core.preconditioning.method_choice import MethodChoice as MethodChoice
from spectral_core.preconditioning.method_choice import precondition_method as precondition_method
from spectral_core.preconditioning.preconditioner import precondition as precondition

__all__ = ["MethodChoice", "precondition", "precondition_method", "transfer", "transfer_bound"]
