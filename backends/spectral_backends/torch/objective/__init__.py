"""The mean loss of a PyTorch model over its data: passes, terms, mean gradients."""
