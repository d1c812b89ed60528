"""Chebyshev expansions in a matrix: their values, and the products and memory that they take."""

import array_api_compat
import numpy as np
import pytest
from numpy.polynomial import chebyshev

from spectral_core.preconditioning.methods.polynomial import _arithmetic, by_polynomial
from spectral_core.preconditioning.tables.chebyshev import evaluate
from spectral_core.preconditioning.tables.polynomials import REACH, polynomial_table


class Arithmetic:
    """Sums and products of NumPy that overwrite what they may, and count."""

    def __init__(self):
        self.new, self.sums, self.products = 0, 0, 0

    def add(self, sum_, matrix, factor, done):
        self.sums += 1
        return self._stored(sum_, sum_ + factor * matrix, done)

    def multiply(self, sum_, size, left, right, factor, done):
        self.products += 1
        return self._stored(sum_, size * sum_ + factor * (left @ right), done)

    def _stored(self, old, result, done):
        if not done:
            self.new += 1
            return result
        old[...] = result
        return old


def expansion(x, rows):
    """``Σ_i T_s^i Σ_j rows[i][j] T_j`` of numbers."""
    step = np.eye(len(rows[0]))[-1]
    return sum(
        chebyshev.chebval(x, step) ** i * chebyshev.chebval(x, row) for i, row in enumerate(rows)
    )


def of_matrix(function, matrix):
    values, q = np.linalg.eigh(matrix)
    return (q * function(values)) @ q.T


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_9_6_an_expansion_by_few_products_and_matrices(step, count):
    rng = np.random.default_rng(step)
    rows = rng.normal(size=(count, step + 1))
    g = rng.normal(size=(7, 7))
    matrix = g @ g.T / np.linalg.norm(g, 2) ** 2
    first, made = 2 * matrix, Arithmetic()
    value, size, rest = evaluate(first, rows.tolist(), made.add, made.multiply)
    expected = of_matrix(lambda x: expansion(2 * x - 1, rows), matrix)
    np.testing.assert_allclose(value * np.eye(7) + size * rest, expected, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(first, 2 * matrix)
    assert made.products == step - 1 + count - 1
    assert made.new == made.products + (step > 1)  # one a product, and the last row's sum


@pytest.mark.parametrize(
    ("rows", "sums"), [([[3.0, 1.0, 0.0, 2.0]], 1), ([[3.0, 0.0, 0.0, 0.0]], 0), ([[3.0, 0.0]], 0)]
)
def test_coefficients_of_zero_cost_no_sum(rows, sums):
    matrix, made = np.diag([0.0, 0.3, 1.0]), Arithmetic()
    value, size, rest = evaluate(2 * matrix, rows, made.add, made.multiply)
    expected = np.diag(expansion(2 * np.diag(matrix) - 1, rows))
    np.testing.assert_allclose(value * np.eye(3) + size * rest, expected, rtol=0, atol=1e-14)
    assert made.sums == sums + (len(rows[0]) > 3)  # T_3 takes one


def namespace(library):
    return array_api_compat.array_namespace(pytest.importorskip(library).ones(1))


@pytest.mark.parametrize("library", ["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_9_6_a_polynomial_in_the_gram_matrix(library, precision, batch):
    xp, rng = namespace(library), np.random.default_rng(0)
    dtype = getattr(xp, precision)
    held = rng.normal(size=(*batch, 4, 6)).astype(precision)
    wide = xp.asarray(held.copy())
    table = polynomial_table(1.5, 0.1, 0.05)
    gram = wide @ xp.matrix_transpose(wide)
    product = np.asarray(gram).copy()
    top = np.linalg.norm(product, 2, (-2, -1), True)
    found = by_polynomial(xp, gram, xp.asarray(top), wide, table)
    assert found.dtype == dtype
    np.testing.assert_array_equal(wide, held)
    np.testing.assert_array_equal(gram, product)
    limit = 2 * table.gain * np.finfo(precision).eps
    for index in np.ndindex(batch):
        g = held[index].astype(float)
        g /= np.linalg.norm(g, 2)
        expected = of_matrix(lambda x: expansion(2 * x / REACH - 1, table.rows), g @ g.T) @ g
        scaled = np.asarray(found)[index] / np.sqrt(top[index])
        assert np.linalg.norm(scaled - expected, 2) <= limit * np.linalg.norm(expected, 2)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_pytorch_overwrites_sums_that_nobody_needs(batch):
    torch = pytest.importorskip("torch")
    one = torch.eye(2, dtype=torch.float64).expand(*batch, 2, 2).clone()
    other = 5 * one
    for gradients in (False, True):
        add, multiply = _arithmetic(namespace("torch"), one.clone().requires_grad_(gradients))
        for done in (False, True):
            for act, expected in (
                (lambda old, done, add=add: add(old, other, 3.0, done), 16.0),
                (lambda old, done, by=multiply: by(old, 2.0, other, other, 3.0, done), 77.0),
            ):
                old = one.clone()
                found = act(old, done)
                assert torch.equal(found, expected * one)
                assert (found is old) == (done and not gradients)
                assert torch.equal(old, found if found is old else one)
    assert torch.equal(other, 5 * one)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_rounds_a_sum_once_where_no_routine_is_fused(precision):
    torch = pytest.importorskip("torch")
    one = torch.ones(2, 3, 1, 1, dtype=getattr(torch, precision))
    little = torch.finfo(one.dtype).eps / 4  # 1 + little is 1 in this precision
    add, multiply = _arithmetic(namespace("torch"), one)
    for found in (
        add(-one, one, 1 + little, False),
        multiply(-one, 1.0, one, one, 1 + little, False),
        multiply(one, 1 + little, one, -one, 1.0, False),
    ):
        assert found.dtype == one.dtype
        assert torch.equal(found, little * one)
