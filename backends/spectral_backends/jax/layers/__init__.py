"""The weight matrices of a JAX function: which equations consume which parameters."""
