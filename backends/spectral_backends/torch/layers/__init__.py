"""The weight matrices of a PyTorch model: which operations consume which parameters."""
