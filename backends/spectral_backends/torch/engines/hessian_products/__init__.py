"""Hessian-vector products by differentiating the graph of one layer's gradient."""
