"""The rule, α and matrices of each parameter."""
