"""What a loss averages, read off it: time first, loops, couplings, weights; alike in both."""

import importlib

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.arrays.namespace import to_numpy

RNG = np.random.default_rng(0)
TIME, SAMPLES = 6, 24
X = RNG.standard_normal((TIME, SAMPLES, 5))
Y = RNG.standard_normal((TIME, SAMPLES, 3))
W = RNG.standard_normal((3, 5))
KEPT = RNG.random(Y.shape) > np.linspace(0.1, 0.4, TIME)[:, None, None]  # others at each time


def stacked(xp, z, t):
    return xp.stack([((a - b) ** 2).mean() for a, b in zip(z, t, strict=True)])


LOSSES = {
    "mean of a stack": lambda xp, z, t: stacked(xp, z, t).mean(),
    "mean over samples, then time": lambda xp, z, t: ((z - t) ** 2).mean(1).mean(),
    "mean over time, then samples": lambda xp, z, t: ((z - t) ** 2).mean(0).mean(),
    "one axis after the other": lambda xp, z, t: ((z - t) ** 2).mean(-1).mean(1).mean(),
    "mean of means of sums": lambda xp, z, t: ((z - t) ** 2).sum(-1).mean(1).mean(),
    "flat": lambda xp, z, t: ((z - t) ** 2).mean(),
}
COUPLED = {
    "means of samples": lambda xp, z, t: ((z.mean(1) - t.mean(1)) ** 2).mean(),
    "sum of a stack of sums": lambda xp, z, t: (stacked(xp, z, t) * len(z)).sum(),
}


def built(backend, loss, batches, **options):
    """Return the problem of ``z = W x`` for a loss of (xp, z, targets)."""
    library = importlib.import_module("torch" if backend == "torch" else "jax.numpy")
    problem = importlib.import_module(f"spectral_backends.{backend}").CurvatureProblem

    def reduced(z, t):
        return loss(library, z, t)

    def forward(params, x):
        return x @ params["w"].T

    if backend == "torch":
        batches = [tuple(map(library.from_numpy, map(np.ascontiguousarray, b))) for b in batches]
        options["params"] = {"w": library.from_numpy(W)}
        return problem(forward, reduced, batches, **options)
    return problem((forward, reduced), {"w": W}, batches, **options)


def gradient(problem):
    (found,) = problem.gradients(["w"]).values()
    return to_numpy(found)


def cut(sizes, axis=1):
    where = np.cumsum(sizes)[:-1]
    return list(zip(np.split(X, where, axis), np.split(Y, where, axis), strict=True))


@pytest.mark.parametrize("sizes", [(21, 3), (12, 12)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_of_means_inherits_their_count(backend, name, sizes):
    """With time first, 21 and 3 samples weighed the same: both had "as many terms as times"."""
    whole = built(backend, LOSSES[name], [(X, Y)])
    parts = built(backend, LOSSES[name], cut(sizes))
    np.testing.assert_allclose(gradient(parts), gradient(whole), rtol=1e-10)
    assert parts.describe()["n_terms"] == whole.describe()["n_terms"]
    assert parts.describe()["loss"] == pytest.approx(whole.describe()["loss"])
    residual = (X @ W.T - Y).reshape(-1, 3)
    scale = 2 / (TIME * SAMPLES * (1 if "sums" in name else 3))
    np.testing.assert_allclose(gradient(whole), scale * residual.T @ X.reshape(-1, 5), rtol=1e-10)


@pytest.mark.parametrize("name", COUPLED)
def test_time_first_does_not_hide_that_samples_are_not_counted(backend, name):
    """Half of the times adds up; half of the samples tells."""
    with pytest.raises(sc.InputError, match=r"weight: the loss is not a mean.*weight=lambda"):
        built(backend, COUPLED[name], cut((21, 3)))
    told = {"weight": lambda batch: batch[0].shape[1], "reduction": "mean"}
    found = gradient(built(backend, COUPLED[name], cut((21, 3)), **told))
    one, other = (gradient(built(backend, COUPLED[name], [b], **told)) for b in cut((21, 3)))
    np.testing.assert_allclose(found, (21 * one + 3 * other) / 24, rtol=1e-10)


def test_a_stack_of_means_over_unequal_numbers(backend):
    """Means of the times, over what is kept at each, are no mean over all of it."""

    def loss(xp, z, both):
        t, kept = both[..., :3], both[..., 3:]
        if xp.__name__ == "torch":
            rows = [(a - b)[k > 0] for a, b, k in zip(z, t, kept, strict=True)]
            return xp.stack([(r**2).mean() for r in rows]).mean()
        each = [(((a - b) ** 2) * k).sum() / k.sum() for a, b, k in zip(z, t, kept, strict=True)]
        return xp.stack(each).mean()

    def batches(sizes):
        where = np.cumsum(sizes)[:-1]
        both = np.concatenate([Y, KEPT.astype(float)], -1)
        return list(zip(np.split(X, where, 1), np.split(both, where, 1), strict=True))

    for sizes in ((20, 4), (12, 12)):  # also where batches of one shape do not tell the axis
        with pytest.raises(sc.InputError, match=r"weight: .*Pass weight=lambda batch"):
            built(backend, loss, batches(sizes))
    assert built(backend, loss, batches((24,))).describe()["n_batches"] == 1


def test_weights_are_held_against_the_loss(backend):
    def loss(xp, z, t):
        return ((z - t) ** 2).mean()

    with pytest.raises(
        sc.InputError, match=r"it returned 1 for batch 0 and 1 for batch 1.*proport"
    ):
        built(backend, loss, cut((21, 3)), weight=lambda batch: 1)
    found = built(backend, loss, cut((21, 3)), weight=lambda batch: batch[0].shape[1])
    np.testing.assert_allclose(gradient(found), gradient(built(backend, loss, [(X, Y)])))


def test_a_reduction_is_held_against_the_loss(backend):
    def loss(xp, z, t):
        return ((z - t) ** 2).mean()

    with pytest.raises(sc.InputError, match="reduction: it is 'sum', but .* mean of its terms"):
        built(backend, loss, cut((21, 3)), reduction="sum")


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 1, 3)])
def test_few_samples(backend, sizes):
    def loss(xp, z, t):
        return ((z - t) ** 2).mean()

    n = sum(sizes)
    batches = [(x[:, :n], y[:, :n]) for x, y in [(X, Y)]]
    x, y = (a[:, :n].swapaxes(0, 1) for a in (X, Y))
    where = np.cumsum(sizes)[:-1]
    parts = list(zip(np.split(x, where), np.split(y, where), strict=True))
    expected = gradient(built(backend, loss, batches))
    np.testing.assert_allclose(gradient(built(backend, loss, parts)), expected, rtol=1e-10)

    def centred(xp, z, t):
        return ((z - z.mean(0) - t) ** 2).mean()

    with pytest.raises(sc.InputError, match=r"weight: the loss is not a mean"):
        built(backend, centred, parts)
