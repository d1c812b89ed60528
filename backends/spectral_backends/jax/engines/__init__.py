"""Ways to compute curvatures in JAX."""
