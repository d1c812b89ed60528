"""Activations and gradients at the layers of a JAX program."""
