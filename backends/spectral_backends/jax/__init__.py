"""Exact gradients and curvature of JAX functions."""
