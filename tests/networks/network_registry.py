"""Networks that tests share: what each is made of, and the builders of every framework.

A `Network` describes itself in words and NumPy arrays. `problem_of` hands it to the builder of a
backend, `networks_in_torch`, `networks_in_jax` or `networks_in_arrays`; another backend needs
another builder and nothing else. `NETWORKS` are those with a name; hypothesis draws others
(`strategies.networks`). What NumPy computes of one without autograd is in `networks_in_numpy`.
"""

import importlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

ACTIVATIONS = ("relu", "identity", "tanh", "gelu-tanh")
PIECEWISE_LINEAR = ("relu", "identity")
LOSSES = ("cross-entropy", "squared")
BACKENDS = ("arrays", "torch", "jax")


@dataclass(frozen=True)
class Network:
    """A network in words and NumPy arrays, which each framework's builder makes a problem of.

    Hidden layers act at each of S positions: ``dense`` on every one alone, ``convolution`` on three
    neighbours, with zeros beyond the ends. The last hidden values are averaged over the positions,
    and the ``head`` makes the outputs of them. With one position and dense layers that is a
    multilayer perceptron.

    Parameters
    ----------
    kinds : tuple of str
        The kind of each hidden layer.
    widths : tuple of int
        The widths of the input, the hidden layers and the output.
    activation, loss : str
        Names in `ACTIVATIONS` and `LOSSES`. A loss is the mean of softmax cross-entropy, or of
        ``½ Σ_c (z_c − t_c)²``.
    samples, positions : int
        The numbers of samples and of positions in the data.
    seed : int
        The seed of weights and data.
    """

    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    activation: str
    loss: str
    samples: int
    positions: int
    seed: int

    @property
    def layers(self):
        """Names, first to last."""
        return [*map(str, range(len(self.kinds))), "head"]

    @property
    def expected(self):
        """By layer: the kind and the shape of its matrix, as every backend should find them."""
        kinds = zip(self.layers, (*self.kinds, "dense"), strict=True)
        named = {"dense": "linear", "convolution": "conv1d"}
        return {name: (named[kind], _matrix(self.weights[name])) for name, kind in kinds}

    @property
    def weights(self):
        """By layer: (m, n), and (m, n, 3) for convolutions."""
        rng, weights = np.random.default_rng(self.seed), {}
        kinds = zip(self.layers, (*self.kinds, "dense"), pairwise(self.widths), strict=True)
        for name, kind, (n, m) in kinds:
            shape = (m, n, 3) if kind == "convolution" else (m, n)
            weights[name] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        return weights

    @property
    def inputs(self):
        """Shape (samples, positions, n)."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.normal(size=(self.samples, self.positions, self.widths[0]))

    @property
    def targets(self):
        """Labels (samples,), or values (samples, outputs)."""
        rng, outputs = np.random.default_rng(self.seed + 2), self.widths[-1]
        if self.loss == "cross-entropy":
            return rng.integers(0, outputs, self.samples)
        return rng.normal(size=(self.samples, outputs))

    def batches(self, dtype=np.float64):
        """All samples as one batch of inputs and targets."""
        targets = self.targets
        kept = targets if self.loss == "cross-entropy" else targets.astype(dtype)
        return [(self.inputs.astype(dtype), kept)]


def _matrix(weight):
    return len(weight), int(np.prod(weight.shape[1:]))


NETWORKS = {
    "perceptron": Network(("dense", "dense"), (5, 8, 6, 4), "tanh", "cross-entropy", 12, 1, 0),
    "regression": Network(("dense",), (5, 7, 3), "gelu-tanh", "squared", 9, 1, 1),
    "piecewise linear": Network(("dense", "dense"), (6, 8, 8, 5), "relu", "squared", 16, 1, 2),
    "tokens": Network(("dense", "dense"), (4, 6, 6, 3), "tanh", "cross-entropy", 8, 3, 3),
    "convolutions": Network(
        ("convolution", "convolution"), (3, 4, 4, 3), "relu", "cross-entropy", 8, 4, 4
    ),
}
"""Dense layers on one position can be built of arrays, too."""


def can_build(backend, net):
    """Say whether the backend's builder knows the layers: `DenseNetwork` has no positions."""
    return backend != "arrays" or (net.positions == 1 and "convolution" not in net.kinds)


def problem_of(backend, net, dtype=np.float64, batches=None):
    """Return a network as a `CurvatureProblem` of a backend, on batches of NumPy's arrays."""
    builder = importlib.import_module(f"networks_in_{backend}")
    return builder.problem(net, dtype, net.batches(dtype) if batches is None else batches)
