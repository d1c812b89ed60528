"""Gauss-Newton curvature from GGN columns: of the root of the loss's Hessian in the outputs."""
