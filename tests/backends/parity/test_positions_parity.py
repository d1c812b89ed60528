"""h^diag of Theory 5.3 is the same in PyTorch and in JAX."""

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

RNG = np.random.default_rng(0)
WEIGHTS = {
    "first": RNG.normal(size=(6, 4)),
    "keys": RNG.normal(size=(6, 6)) / 2,
    "head": RNG.normal(size=(5, 6)) / 2,
}
X, LABELS = RNG.normal(size=(12, 7, 4)), RNG.integers(0, 5, 12)


class Network(torch.nn.Module):
    """Attention over positions, whose mean has a loss."""

    def __init__(self):
        super().__init__()
        for name, value in WEIGHTS.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))

    def forward(self, x):
        a = torch.tanh(x @ self.first.T)
        seen = torch.softmax(a @ (a @ self.keys.T).mT, -1) @ a
        return seen.mean(1) @ self.head.T


def in_torch():
    batches = [
        tuple(map(torch.tensor, (X[part], LABELS[part]))) for part in (slice(5), slice(5, 12))
    ]
    return CurvatureProblem(Network(), torch.nn.functional.cross_entropy, batches)


@pytest.fixture
def in_jax(double_jax):
    jax = pytest.importorskip("jax")
    problem = pytest.importorskip("spectral_backends.jax").CurvatureProblem

    def forward(p, x):
        a = jax.numpy.tanh(x @ p["first"].T)
        seen = jax.nn.softmax(a @ (a @ p["keys"].T).mT) @ a
        return seen.mean(1) @ p["head"].T

    def loss(z, labels):
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(z), labels[:, None], -1).mean()

    return problem(
        (forward, loss), WEIGHTS, [(X[part], LABELS[part]) for part in (slice(5), slice(5, 12))]
    )


def test_reports_agree(in_jax):
    theirs, ours = (
        sc.measure(problem, top_k=4, curvature="ggn", decompose=True, progress=False)
        for problem in (in_torch(), in_jax)
    )
    for name in WEIGHTS:
        np.testing.assert_allclose(ours[name].diagonal, theirs[name].diagonal, rtol=1e-8)
        for part in ("kappa_positions", "kappa_dependence"):
            one, other = (getattr(r[name].decomposition, part).exponent for r in (ours, theirs))
            assert one == pytest.approx(other, abs=1e-7)
    np.testing.assert_allclose(ours["head"].diagonal, ours["head"].ggn, rtol=1e-10)
    assert np.abs(ours["first"].diagonal / ours["first"].ggn - 1).max() > 0.1


def test_windows_of_unequal_length_and_drawn_columns(in_jax):
    """Layers of one pass may have directions of different number, or none."""
    directions = {
        name: tuple(np.linalg.qr(RNG.normal(size=(side, k)))[0] for side in WEIGHTS[name].shape)
        for name, k in (("first", 3), ("keys", 5))
    }
    exact = in_jax.kronecker_factors(list(WEIGHTS), directions=directions)
    drawn = in_jax.kronecker_factors(
        list(WEIGHTS), directions=directions, max_columns=0, mc_samples=3000
    )
    torch_directions = {n: tuple(map(torch.tensor, d)) for n, d in directions.items()}
    theirs = in_torch().kronecker_factors(list(WEIGHTS), directions=torch_directions)
    for name, (u, _) in directions.items():
        assert exact[name].diagonal.shape == (u.shape[1],)
        np.testing.assert_allclose(exact[name].diagonal, theirs[name].diagonal, rtol=1e-8)
        np.testing.assert_allclose(drawn[name].diagonal, exact[name].diagonal, rtol=0.06)
    assert exact["head"].diagonal is theirs["head"].diagonal is None


def test_stacked_blocks_of_which_some_have_directions(double_jax):
    """Blocks under a scan are one family: the others' directions are zeros, and cost no sums."""
    jax = pytest.importorskip("jax")
    problem = pytest.importorskip("spectral_backends.jax").CurvatureProblem
    blocks = RNG.normal(size=(3, 4, 4)) / 2

    def forward(p, x):
        def step(a, w):
            mixed = jax.nn.softmax(a @ a.mT) @ jax.numpy.tanh(a @ w.T)
            return mixed, None

        return jax.lax.scan(step, x, p["blocks"])[0].mean(1)

    def written_out(p, x):
        for name in "abc":
            x = jax.nn.softmax(x @ x.mT) @ jax.numpy.tanh(x @ p[name].T)
        return x.mean(1)

    def loss(z, labels):
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(z), labels[:, None], -1).mean()

    batch = [(X, LABELS % 4)]
    stacked = problem((forward, loss), {"blocks": blocks}, batch)
    apart = problem((written_out, loss), dict(zip("abc", blocks, strict=True)), batch)
    names = [layer.name for layer in stacked.layers()]
    u, v = (np.linalg.qr(RNG.normal(size=(4, 3)))[0] for _ in "uv")
    given = {names[0]: (u, v), names[2]: (u[:, :2], v[:, :2])}
    found = stacked.kronecker_factors(names, directions=given)
    alone = apart.kronecker_factors(["a", "c"], directions={"a": (u, v), "c": given[names[2]]})
    np.testing.assert_allclose(found[names[0]].diagonal, alone["a"].diagonal, rtol=1e-9)
    np.testing.assert_allclose(found[names[2]].diagonal, alone["c"].diagonal, rtol=1e-9)
    assert found[names[1]].diagonal is None
