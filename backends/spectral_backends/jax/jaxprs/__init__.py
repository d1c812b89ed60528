"""Programs of JAX read, run and counted equation by equation; it knows no layers."""
