"""Exact gradients and curvature of PyTorch models."""

from spectral_backends.torch.problem import CurvatureProblem as CurvatureProblem

__all__ = ["CurvatureProblem"]
