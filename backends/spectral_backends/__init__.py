"""Where gradients and curvature come from: one module per array framework."""
