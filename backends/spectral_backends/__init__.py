"""Sources of gradients and curvature: one module per array framework."""
