"""The largest eigenvalue by Lanczos steps."""

import array_api_compat
import numpy as np
import pytest
from matrices import spectrum

from spectral_core.preconditioning.extreme_value import DIRECT_SIZE, largest_eigenvalue


def gram(kind, k, n=None):
    rng = np.random.default_rng(1)
    if kind == "gaussian":
        g = rng.normal(size=(k, n or k))
        return g @ g.T
    q = np.linalg.qr(rng.normal(size=(k, k)))[0]
    return (q * spectrum(kind, k) ** 2) @ q.T


@pytest.mark.parametrize(
    ("kind", "limit"), [("gaussian", 3e-2), ("power", 1e-9), ("graded", 1e-9), ("deficient", 3e-2)]
)
@pytest.mark.parametrize("k", [7, DIRECT_SIZE, DIRECT_SIZE + 1, 300])
def test_9_6_from_below_and_close(kind, limit, k):
    a = gram(kind, k)
    exact = np.linalg.eigvalsh(a)[-1]
    found = float(largest_eigenvalue(np, a)[0, 0])
    assert (1 - limit) * exact <= found <= (1 + 1e-12) * exact
    if k <= DIRECT_SIZE:
        assert found == pytest.approx(exact, rel=1e-12)


def test_a_dominant_block_is_found_wherever_it_lies():
    # The longest column is not the largest eigenvalue's: a start from it would miss the block.
    a = np.zeros((200, 200))
    a[:100, :100] = 0.5
    a[120, 120] = 6.0
    assert float(largest_eigenvalue(np, a)[0, 0]) == pytest.approx(50, rel=1e-12)


def test_matrices_of_any_scale_beside_each_other(xp):
    # What counts as rounding is so of each matrix.
    a = gram("power", DIRECT_SIZE + 10)
    scales = np.asarray([1.0, 1e-12, 1e-15]) / np.linalg.norm(a, 2)
    stack = xp.array(scales[:, None, None] * a)
    namespace = array_api_compat.array_namespace(stack)
    found = xp.numpy(xp.run(lambda x: largest_eigenvalue(namespace, x), stack))[:, 0, 0]
    np.testing.assert_allclose(found, [1.0, 1e-12, 1e-15], rtol=100 * xp.eps)


def test_low_rank_and_zero_and_not_finite(xp):
    u = np.random.default_rng(2).normal(size=(170, 2))
    stack = np.stack([u @ u.T, np.zeros((170, 170)), np.full((170, 170), np.nan), np.eye(170)])
    a = xp.array(stack)
    namespace = array_api_compat.array_namespace(a)
    found = xp.run(lambda x: largest_eigenvalue(namespace, x), a)
    values = xp.numpy(found)
    assert values.shape == (4, 1, 1)
    exact = np.linalg.eigvalsh(stack[0])[-1]
    assert abs(values[0, 0, 0] - exact) <= 50 * xp.eps * exact
    assert values[1, 0, 0] == 0 and values[2, 0, 0] == 0
    assert abs(values[3, 0, 0] - 1) <= 50 * xp.eps
    xp.check_kind(found, a)
