"""Dense networks of the registry as problems of arrays, without autograd."""

import numpy as np

from spectral_backends.arrays import DenseNetwork


def network(net):
    return DenseNetwork(net.widths, net.activation, net.loss)


def parameters(net):
    """Return weights and biases; these are zero, as other builders have none."""
    zero = {f"{name}.bias": np.zeros(len(w)) for name, w in net.weights.items()}
    return {f"{name}.weight": w for name, w in net.weights.items()} | zero


def problem(net, dtype, batches):
    held = {name: value.astype(dtype) for name, value in parameters(net).items()}
    return network(net).problem(held, [(inputs[:, 0], targets) for inputs, targets in batches])
