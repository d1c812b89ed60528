"""Kronecker factors of JAX layers (Theory 4)."""
