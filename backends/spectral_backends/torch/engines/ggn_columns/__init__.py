"""Gauss-Newton curvature from columns of the root of the loss's Hessian in the outputs."""
