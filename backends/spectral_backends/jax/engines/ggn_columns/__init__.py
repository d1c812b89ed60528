"""Gauss-Newton curvature from the rows of the outputs' Jacobian, sent back once for all layers."""
