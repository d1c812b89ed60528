"""How each operation of PyTorch consumes its weight."""
