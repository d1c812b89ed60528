"""T as a polynomial in the Gram matrix, computed on the host and cached."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from spectral_core.arrays.host import host_constant
from spectral_core.preconditioning.tables.chebyshev import evaluate

__all__ = ["PolynomialTable", "polynomial_table"]

Vector = NDArray[np.float64]

REACH = 1.2  # the end of the fit, as σ_max² may be underestimated by a sixth
# (degree, s): the highest degrees for 1, 2, 3 ... products, with T_s as the step.
SCHEMES = ((2, 2), (4, 2), (6, 3), (9, 3), (12, 4), (16, 4), (20, 5), (25, 5), (30, 5), (36, 6))
_ROUNDS = 60  # rounds of Lawson's reweighting
_GRID = 300
_CHECK = 4000  # points of the certificate


@dataclass(frozen=True)
class PolynomialTable:
    """``1 / (x^(α/2) + δ) ≈ p(x) = Σ_i T_s(x')^i Σ_j rows[i][j] T_j(x')`` (Theory 9.6).

    ``x' = 2 x / 1.2 − 1``, and T_j are Chebyshev polynomials.

    Parameters
    ----------
    rows : tuple of tuples of s + 1 floats
        The coefficients.
    error : float
        The largest ``|σ p(σ²) − T(σ)| / max T`` over ``0 ≤ σ² ≤ 1.2``, which covers an estimate of
        σ_max² that is a sixth too small.
    gain : float
        The growth of rounding errors: if every matrix that is stored errs by at most u times its
        own spectral norm, T errs by at most ``gain · u`` of its maximum, to first order.
    """

    rows: tuple[tuple[float, ...], ...]
    error: float
    gain: float

    @property
    def products(self) -> int:
        """The number of products of k rows and columns, not counting the Gram matrix."""
        return len(self.rows[0]) - 2 + len(self.rows) - 1

    def __call__(self, x: Vector) -> Vector:
        """Evaluate p."""
        return np.asarray(_Scalars().run(np.asarray(x), self.rows))


@host_constant
def polynomial_table(alpha: float, damping: float, tolerance: float) -> PolynomialTable:
    """Return the table with the fewest products that reaches a tolerance (Theory 9.6).

    For each degree, least squares in Chebyshev polynomials approach the least maximum: the weights
    of points grow where the error of T is large (Lawson).

    Parameters
    ----------
    alpha : float
        The exponent α, in (0, 4].
    damping : float
        The spectral damping δ > 0.
    tolerance : float
        The largest error of T, see `PolynomialTable.error`.

    Returns
    -------
    PolynomialTable
        The table. If no degree up to 36 reaches the tolerance, it is the best one found: look at
        its `error`.
    """
    tables = []
    for degree, step in SCHEMES:
        tables.append(_table(alpha, damping, degree, step))
        if tables[-1].error <= tolerance:
            break
    return min(tables, key=lambda table: table.error)


def _table(alpha: float, damping: float, degree: int, step: int) -> PolynomialTable:
    rows = _rows(_fit(alpha, damping, degree), step)
    x, wanted, weight = _problem(alpha, damping, _CHECK)
    error = float(np.max(np.abs(_Scalars().run(x, rows) - wanted) * weight))
    inside = x <= 1
    return PolynomialTable(rows, error, _gain(rows, x[inside][::8], weight[inside][::8]))


def _problem(alpha: float, damping: float, points: int) -> tuple[Vector, Vector, Vector]:
    """Return x, f(x) and the weights that turn errors of f into errors of T over its maximum."""
    angles = np.linspace(0, np.pi / 2, points)
    sigma = np.concatenate([np.sin(angles), np.geomspace(1e-4, 0.3, points // 3)])
    x = REACH * np.sort(sigma) ** 2
    f = 1 / (x ** (alpha / 2) + damping)
    return x, f, np.sqrt(x) / np.max((np.sqrt(x) * f)[x <= 1])


def _fit(alpha: float, damping: float, degree: int) -> Vector:
    """Return Chebyshev coefficients in x'."""
    x, wanted, weight = _problem(alpha, damping, _GRID)
    basis = chebyshev.chebvander(2 * x / REACH - 1, degree) * weight[:, None]
    goal = wanted * weight
    lawson: Vector = np.ones_like(x)
    best: Vector = np.zeros(degree + 1)
    least = np.inf
    for _ in range(_ROUNDS):
        root = np.sqrt(lawson)
        solution = np.linalg.lstsq(basis * root[:, None], goal * root)[0]
        found = np.asarray(solution, dtype=np.float64)
        errors = np.abs(basis @ found - goal)
        largest = float(np.max(errors))
        if largest < least:
            best, least = found, largest
        lawson = lawson * (errors / largest + 1e-3)
        lawson = lawson / np.mean(lawson)
    return best


def _rows(coefficients: Vector, step: int) -> tuple[tuple[float, ...], ...]:
    """Divide by T_s again and again; the last two remainders are one row, of degree s."""
    divisor = np.eye(step + 1)[step]
    remainders = []
    while len(coefficients) > step + 1:
        coefficients, remainder = chebyshev.chebdiv(coefficients, divisor)
        remainders.append(remainder)
    padded = [np.pad(row, (0, step + 1 - len(row))) for row in (*remainders, coefficients)]
    return tuple(tuple(float(c) for c in row) for row in padded)


class _Scalars:
    """Arithmetic on numbers that spoils one result: by its largest magnitude times `spoil`."""

    def __init__(self, victim: int = -1, spoil: float = 0.0) -> None:
        self.victim, self.spoil, self.results = victim, spoil, 0

    def run(self, x: Vector, rows: tuple[tuple[float, ...], ...]) -> Vector:
        first = self._store(2 * x / REACH)
        value, size, matrix = evaluate(first, rows, self._add, self._multiply)
        return np.asarray(value + size * matrix)

    def _add(self, sum_: Vector, matrix: Vector, factor: float, _: bool) -> Vector:
        return self._store(sum_ + factor * matrix)

    def _multiply(
        self, sum_: Vector, size: float, left: Vector, right: Vector, factor: float, _: bool
    ) -> Vector:
        return self._store(size * sum_ + factor * left * right)

    def _store(self, result: Vector) -> Vector:
        self.results += 1
        if self.results - 1 != self.victim:
            return result
        return np.asarray(result + self.spoil * np.max(np.abs(result)))


def _gain(rows: tuple[tuple[float, ...], ...], x: Vector, weight: Vector) -> float:
    """Return the summed effect of one rounding of each stored matrix on T (Theory 9.6)."""
    plain = _Scalars()
    p, small = plain.run(x, rows), 1e-6

    def change(victim: int) -> float:
        spoiled = _Scalars(victim, small).run(x, rows)
        return float(np.max(np.abs(spoiled - p) * weight)) / small

    gram = change(0)
    # Rounded are the entries of G, twice in the product; the product; and its quotient by λ_max,
    # which change(0) counts.
    moved = _Scalars().run(x + small * np.sqrt(x), rows)
    gradient = float(np.max((p + 2 * np.abs(moved - p) / small) * weight / np.sqrt(x + 1e-12)))
    stored = sum(change(victim) for victim in range(plain.results))
    return gradient + gram + stored + 1.0  # the result
