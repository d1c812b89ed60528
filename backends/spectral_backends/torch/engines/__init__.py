"""Ways to compute curvatures in PyTorch."""
