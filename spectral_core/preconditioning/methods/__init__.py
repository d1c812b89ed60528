"""Methods that apply T to a matrix."""
