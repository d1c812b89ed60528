"""Batches and arrays on devices and processes of JAX."""
