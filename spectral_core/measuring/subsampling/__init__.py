"""Measurements of groups of samples, and of subsamples made of them (Theory 11)."""
