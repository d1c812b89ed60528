"""The mean loss of a JAX function over its data: programs, passes, terms."""
