"""The evaluation of a Chebyshev expansion in a matrix by few products, with no identity stored.

Matrices stand for ``r I + R``, where the number r is the value at ``x = 0`` and R vanishes there:
rounding R to few digits costs least on the many directions that a Gram matrix hardly has.
"""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Add", "Multiply", "evaluate"]

# (sum, matrix, factor, done) -> sum + factor · matrix; done: nobody needs the old sum any more
Add = Callable[[Any, Any, float, bool], Any]
# (sum, its factor, left, right, factor, done) -> its factor · sum + factor · left right
Multiply = Callable[[Any, float, Any, Any, float, bool], Any]
Rows = Sequence[Sequence[float]]


def evaluate(first: Any, rows: Rows, add: Add, multiply: Multiply) -> tuple[float, float, Any]:
    """Return r, q and R with ``Σ_i S_i T_s^i = r I + q R`` (Theory 9.6).

    Parameters
    ----------
    first : matrix or numbers
        The matrix ``2 B / h``. Chebyshev polynomials are those of ``x' = 2 B / h − 1``.
    rows : sequence of s + 1 coefficients each
        The coefficients of ``S_i = Σ_j rows[i][j] T_j``, from the lowest i. They take ``s − 1``
        products, and one more for every row but the last.
    add, multiply : callable
        The arithmetic of the type of `first`. All sums are made by them, so that every rounding is
        seen.
    """
    powers = _shifted_chebyshev(first, len(rows[0]) - 1, add, multiply)
    step, at_zero = powers[-1], _sign(len(powers))
    value = _at_zero(rows[-1])
    size, matrix = _sum(rows[-1][1:], powers, add)
    for row in reversed(rows[:-1]):
        # (r + R)(e + W) + (r' + R') = (r e + r') + (R' + r W + e R) + R W
        inner = [*row[1:-1], row[-1] + value, at_zero * size]
        factor, sum_ = _sum(inner, [*powers, matrix], add)
        matrix = multiply(sum_, factor, matrix, step, size, True)
        value, size = value * at_zero + _at_zero(row), 1.0
    return value, size, matrix


def _shifted_chebyshev(first: Any, count: int, add: Add, multiply: Multiply) -> list[Any]:
    """Return ``U_k = T_k(x') − T_k(−1)``, k = 1..count."""
    powers = [first]
    for k in range(2, count + 1):
        j = k // 2
        half = powers[j - 1]
        if k % 2 == 0:  # T_2j = 2 T_j² − 1
            powers.append(multiply(half, 4 * _sign(j), half, half, 2.0, False))
            continue
        # T_2j+1 = 2 T_j T_j+1 − T_1
        factors = [0.0] * len(powers)
        factors[0] = -1.0
        factors[j - 1] += 2 * _sign(j + 1)
        factors[j] += 2 * _sign(j)
        factor, sum_ = _sum(factors, powers, add)
        powers.append(multiply(sum_, factor, half, powers[j], 2.0, True))
    return powers


def _sum(factors: Sequence[float], matrices: Sequence[Any], add: Add) -> tuple[float, Any]:
    """Return q and M with ``Σ factors · matrices = q M``, so that nothing is spent on scaling.

    For two or more matrices, M is always a new one.
    """
    terms = [(f, m) for f, m in zip(factors, matrices, strict=True) if f != 0 or m is matrices[0]]
    sizes = [abs(factor) for factor, _ in terms]
    lead = sizes.index(max(sizes))
    size, total = terms.pop(lead)
    for i, (factor, matrix) in enumerate(terms):
        total = add(total, matrix, factor / size, i > 0)
    return size, total


def _at_zero(row: Sequence[float]) -> float:
    return sum(c * _sign(j) for j, c in enumerate(row))


def _sign(k: int) -> float:
    """Return T_k(−1)."""
    return -1.0 if k % 2 else 1.0
