"""Parts of the optimizer for PyTorch."""
