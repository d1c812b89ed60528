"""Parts of the optimizer for Optax."""
