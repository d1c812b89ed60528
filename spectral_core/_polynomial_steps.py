"""How a Chebyshev expansion in a matrix is evaluated: few products, and no identity stored.

Matrices stand for ``r I + R``, where the number r is the value at ``x = 0`` and R vanishes there:
rounding R to few digits costs least on the many directions that a Gram matrix hardly has.
"""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["evaluate"]

# (accumulator, factor, matrix) -> accumulator + factor · matrix
Add = Callable[[Any, float, Any], Any]
# (accumulator, its factor, left, right, factor) -> factor · accumulator + factor · left right
Multiply = Callable[[Any, float, Any, Any, float], Any]


def evaluate(
    first: Any, rows: Sequence[Sequence[float]], add: Add, multiply: Multiply
) -> tuple[float, Any]:
    """Return r and R with ``Σ_i S_i(B) T_s(2 B/h − 1)^i = r I + R`` (Theory 9.6).

    Parameters
    ----------
    first : matrix or numbers
        ``2 B / h``.
    rows : sequence of s + 1 coefficients each
        Of ``S_i = Σ_j rows[i][j] T_j(2 B/h − 1)``, from the lowest i. Takes ``s − 1`` products and
        one for every row but the last.
    add, multiply : callable
        The arithmetic of whatever `first` is.
    """
    powers = _shifted_chebyshev(first, len(rows[0]) - 1, add, multiply)
    step, at_zero = powers[-1], _sign(len(powers))
    value, matrix = _combination(powers, rows[-1], add)
    for row in reversed(rows[:-1]):
        below, sum_ = _combination(powers, row, add)
        # (r + R)(e + W) + (r' + R') = (r e + r') + (R' + r W + e R + R W)
        sum_ = add(add(sum_, value, step), at_zero, matrix)
        matrix = multiply(sum_, 1.0, matrix, step, 1.0)
        value = value * at_zero + below
    return value, matrix


def _shifted_chebyshev(first: Any, count: int, add: Add, multiply: Multiply) -> list[Any]:
    """Return ``U_k = T_k(x') − T_k(−1)``, k = 1..count, with ``x' = first − 1``."""
    powers = [first]
    for k in range(2, count + 1):
        half = powers[k // 2 - 1]
        if k % 2 == 0:  # T_2j = 2 T_j² − 1
            powers.append(multiply(half, 4.0 * _sign(k // 2), half, half, 2.0))
            continue
        more = powers[k // 2]  # T_2j+1 = 2 T_j T_j+1 − T_1
        sum_ = add(add(-first, 2.0 * _sign(k // 2 + 1), half), 2.0 * _sign(k // 2), more)
        powers.append(multiply(sum_, 1.0, half, more, 2.0))
    return powers


def _combination(powers: Sequence[Any], row: Sequence[float], add: Add) -> tuple[float, Any]:
    """Return the value at zero of ``Σ_j row[j] T_j`` and what is left."""
    total = row[1] * powers[0]
    for coefficient, power in zip(row[2:], powers[1:], strict=True):
        if coefficient != 0:
            total = add(total, coefficient, power)
    return sum(c * _sign(j) for j, c in enumerate(row)), total


def _sign(k: int) -> float:
    """T_k(−1)."""
    return -1.0 if k % 2 else 1.0
