"""Activations and gradients at the layers of a running PyTorch model."""
