"""Exact gradients and curvature of JAX functions."""

from spectral_backends.jax.problem import CurvatureProblem as CurvatureProblem

__all__ = ["CurvatureProblem"]
