"""Tools that read autograd's graph, count work and keep the process's state, without layers."""
