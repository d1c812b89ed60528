"""Readers of the operations of PyTorch, which say how each consumes its weight."""
