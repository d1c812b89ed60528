"""Kronecker factors of PyTorch layers (Theory 4)."""
