"""Coefficients of the methods, computed on the host and cached."""
