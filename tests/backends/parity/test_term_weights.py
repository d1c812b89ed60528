"""Factors of losses that weigh samples, or divide by a number of their own: see Theory 4.4."""

import importlib

import numpy as np
import pytest

from spectral_core.arrays.namespace import to_numpy

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((6, 5)), RNG.standard_normal((3, 5))
VALUES, COINS = RNG.standard_normal((6, 3)), (RNG.random((6, 3)) < 0.5).astype(float)
WEIGHTS = np.array([1.0, 2, 0, 3, 1, 1])
REPEATED = np.repeat(np.arange(6), WEIGHTS.astype(int))


def squared(xp, z, t):
    return 0.5 * ((z - t) ** 2).sum(1)


def logistic(xp, z, t):
    return (xp.logaddexp(0 * z, z) - z * t).sum(1)


LOSSES = {"squared": (squared, VALUES), "logistic": (logistic, COINS)}


def factors(backend, loss, data, delta, **options):
    """Return those of ``z = W x``, for a loss of (xp, z, targets)."""
    library = importlib.import_module("torch" if backend == "torch" else "jax.numpy")
    problem = importlib.import_module(f"spectral_backends.{backend}").CurvatureProblem

    def reduced(z, targets):
        return loss(library, z, targets)

    if backend == "torch":
        arguments = (lambda p, x: x @ p["w"].T, reduced, [tuple(map(library.from_numpy, data))])
        options["params"] = {"w": library.from_numpy(W)}
    else:
        arguments = ((lambda p, x: x @ p["w"].T, reduced), {"w": W}, [data])
    (found,) = problem(*arguments, **options).kronecker_factors(["w"], fisher_type=delta).values()
    return [to_numpy(each) for each in (found.output_covariance, found.input_covariance)]


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("delta", ["ggn", "empirical"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_of_weight_w_is_w_samples(backend, name, delta):
    each, targets = LOSSES[name]

    def weighed(xp, z, both):
        t, w = both[..., :3], both[:, 3]
        return (w * each(xp, z, t)).sum() / w.sum()

    found = factors(
        backend, weighed, (X, np.hstack([targets, WEIGHTS[:, None]])), delta,
        weight=lambda batch: float(batch[1][:, 3].sum()),
    )  # fmt: skip
    plain = factors(
        backend, lambda xp, z, t: each(xp, z, t).mean(), (X[REPEATED], targets[REPEATED]), delta
    )
    close(found, plain)


@pytest.mark.parametrize("delta", ["ggn", "empirical"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_counts_its_samples_itself(backend, name, delta):
    """PyTorch's backend cannot read the number, so it takes the batch for one term."""
    each, targets = LOSSES[name]
    found = factors(backend, lambda xp, z, t: each(xp, z, t).sum() / len(z), (X, targets), delta)
    close(found, factors(backend, lambda xp, z, t: each(xp, z, t).mean(), (X, targets), delta))
