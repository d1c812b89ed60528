"""Which rule, α and matrices each parameter has."""
