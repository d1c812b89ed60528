"""Train a network on real digits and measure every layer, with NumPy and nothing else.

::

    pip install spectral-core
    python docs/examples/numpy_digits.py path/to/digits.npz

The file holds images and labels as ``x_train`` and ``y_train``, as MNIST's does. Without one,
scikit-learn's 8×8 digits are taken where that is installed.
"""

import sys
from importlib.util import find_spec

import numpy as np

import spectral_core as sc
from spectral_adapters.array_optim import SpectralNewton
from spectral_backends.numpy import CurvatureProblem, DenseNetwork

STEPS, BATCH, RATE, HELD_OUT = 400, 64, 3e-3, 300


def load(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float64 (N, n) of zero mean and unit variance, and labels (N,)."""
    if path is not None:
        with np.load(path) as stored:
            x, y = stored["x_train"][:2000], stored["y_train"][:2000].astype(np.int64)
        if x.shape[1:] == (28, 28):  # half the size, for a short run
            x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
        x = x.reshape(len(x), -1)
    elif find_spec("sklearn"):
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    else:
        sys.exit("pass the path of an npz file with x_train and y_train, or install scikit-learn")
    order = np.random.default_rng(0).permutation(len(x))
    return ((x - x.mean()) / x.std())[order], y[order]


def train(network: DenseNetwork, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return parameters after some hundred steps of Spectral Newton."""
    generator = np.random.default_rng(1)
    params, optimizer = network.init(0), SpectralNewton(lr=RATE, weight_decay=0.01)
    print(optimizer.routing(params))
    state = optimizer.init(params)
    for _ in range(STEPS):
        chosen = generator.integers(len(x), size=BATCH)
        gradients = network.gradient(params, (x[chosen], y[chosen]))
        params, state = optimizer.update(params, gradients, state)
    return params


def accuracy(network: DenseNetwork, params: dict, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of digits that the network gets right."""
    return float(np.mean(np.argmax(network.outputs(params, x), axis=1) == y))


def main(path: str | None = None) -> None:
    """Train, measure by exact products, and again by the complex step through the gradient."""
    x, y = load(path)
    test, x, y = (x[:HELD_OUT], y[:HELD_OUT]), x[HELD_OUT:], y[HELD_OUT:]
    network = DenseNetwork((x.shape[1], 64, 48, 10), activation="relu")
    params = train(network, x, y)
    right = accuracy(network, params, *test)
    print(f"{right:.1%} of {HELD_OUT} held-out digits right")
    assert right > 0.8

    batches = [(x[i : i + 256], y[i : i + 256]) for i in range(0, 512, 256)]
    exact = network.problem(params, batches)
    report = sc.measure(exact, top_k=10, decompose=True, progress=False)
    print(report)
    for spectrum in report.values():
        print(sc.explain(spectrum))

    # What a user has who wrote nothing but the gradient.
    by_steps = CurvatureProblem(network.gradient, params, batches, weight=lambda b: len(b[0]))
    again = sc.measure(by_steps, top_k=10, progress=False)
    for name, spectrum in report.items():
        assert again[name].certificate.engine == "complex-step"
        largest = np.max(np.abs(spectrum.curvature))
        assert np.allclose(again[name].curvature, spectrum.curvature, rtol=0, atol=1e-11 * largest)
    print("the complex step through the gradient alone gives the same curvatures")


if __name__ == "__main__":
    main(*sys.argv[1:2])
