"""Second derivatives by central differences of the gradient, extrapolated, with an error."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import array_api_compat
import numpy as np

from spectral_backends.arrays.curvature_rules import Found
from spectral_backends.arrays.gradient_function import GradientFunction, Params
from spectral_backends.arrays.layer_slices import LayerSlice
from spectral_core.arrays.namespace import Array, device_of, to_numpy
from spectral_core.errors import LayerError

__all__ = [
    "Change",
    "Differences",
    "check_tolerance",
    "directional_changes",
    "disagreement",
    "noise_of",
    "norm",
]

LEVELS = 6
"""The number of steps of the extrapolation, each half of the one before."""

FIRST_STEP = 2.0**-6
"""The largest step, relative to the Frobenius norm of the weight."""

EPSILON = float(np.finfo(np.float64).eps)  # a NumPy scalar would turn arrays into NumPy arrays


class Differences:
    """``<D, H[D]>`` from ``(φ(t) − φ(−t)) / 2t``, φ(t) = <D, g(W + tD)>, by Richardson.

    The error of a central difference is a series in t²; with steps t, t/2, t/4, … each
    extrapolation removes its leading term (Ridders, Adv. Eng. Software 4, 1982). Of all entries of
    the table, the one with the smallest error estimate is taken. The estimate is twice the largest
    of its distances from the order below and from the same order at the two steps before, plus the
    rounding of φ carried through. Three steps must agree: two do so by chance, and the smallest of
    many estimates is then too small (25 of 3,600 curvatures of saturated networks, by up to 39
    times; now none).

    Parameters
    ----------
    gradient : GradientFunction
        The gradient of the batch's mean loss.
    params : mapping of str to array
        The parameters, in float64.
    tolerance : float
        The largest error estimate of a curvature, relative to it.
    """

    name = "differences"

    def __init__(self, gradient: GradientFunction, params: Params, tolerance: float) -> None:
        self._gradient, self._params, self._tolerance = gradient, params, tolerance
        self._xp = array_api_compat.array_namespace(*params.values())

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Return φ at every step in both senses and at none, and the rounding it carries.

        There are two roundings: that of the sum, and that of the gradient, which may be left over
        from a cancellation. The shape is (2 · levels + 2, K).
        """
        xp = self._xp
        noise = noise_of(self._gradient, self._params, batch)[layer.parameter]
        columns = []
        for k in range(u.shape[1]):
            matrix = u[:, k][:, None] * v[:, k][None, :]
            signed = [sign * step for step in self._steps(layer) for sign in (1, -1)]
            terms = [
                matrix * _gradient_at(self._gradient, self._params, layer, matrix, t, batch)
                for t in [*signed, 0.0]
            ]
            rounding = 4 * EPSILON * xp.sum(xp.abs(terms[-1])) + noise
            columns.append(xp.stack([*(xp.sum(own) for own in terms), rounding]))
        return xp.stack(columns, axis=1)

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return the extrapolated curvatures with their errors.

        Raises
        ------
        LayerError
            If an error exceeds the tolerance.
        """
        xp = self._xp
        phi = to_numpy(means).astype(np.float64)
        steps = np.asarray(self._steps(layer))[:, None]
        up, down = phi[0:-2:2], phi[1:-2:2]
        values, errors = extrapolated((up - down) / (2 * steps), phi[-1] / steps)
        if not np.all(np.isfinite(values)):
            raise LayerError(layer.info.name, "differences of its gradient are not finite.")
        worst = int(np.argmax(errors / np.maximum(np.abs(values), np.finfo(float).tiny)))
        if not errors[worst] <= self._tolerance * abs(values[worst]):
            raise LayerError(
                layer.info.name,
                f"differences give h = {values[worst]:.3g} ± {errors[worst]:.1g} along direction "
                f"{worst + 1}, beyond the tolerance of {self._tolerance:g}: kinks (ReLU, max, abs) "
                "between the points, or too small a curvature. Make the gradient function safe for "
                "complex numbers, pass hvp=, take fewer directions, or raise tolerance=.",
            )
        like = self._params[layer.parameter]

        def back(array: Any) -> Array:
            return xp.asarray(array, dtype=like.dtype, device=device_of(like))

        return Found(back(values), derivative=means[-2, :], error=back(errors))

    def _steps(self, layer: LayerSlice) -> list[float]:
        size = norm(self._xp, self._params[layer.parameter])
        first = FIRST_STEP * (size if size > 0 else 1.0)
        return [first * 2.0**-level for level in range(LEVELS)]


def extrapolated(
    slopes: np.ndarray[Any, Any], rounding: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return limits for t → 0 and their error estimates, each of shape (K,).

    Parameters
    ----------
    slopes : ndarray, shape (L, K)
        The central differences at t, t/2, t/4, ….
    rounding : ndarray, shape (L, K)
        The rounding error of each difference.
    """
    table = [[slopes[level]] for level in range(len(slopes))]
    for level in range(1, len(slopes)):
        for order in range(1, level + 1):
            finer, coarser = table[level][order - 1], table[level - 1][order - 1]
            table[level].append(finer + (finer - coarser) / (4.0**order - 1))
    best, error = slopes[-1], np.full(slopes.shape[1], np.inf)
    for level in range(3, len(slopes)):
        for order in range(1, level - 1):
            entry = table[level][order]
            others = table[level][order - 1], table[level - 1][order], table[level - 2][order]
            # The absolute weights of all orders sum to less than 2.
            found = 2 * np.maximum.reduce([np.abs(entry - other) for other in others])
            found = found + 2 * rounding[level]
            better = found < error
            best, error = np.where(better, entry, best), np.where(better, found, error)
    return best, error


@dataclass(frozen=True)
class Change:
    """A central difference (m, n) of the gradient, and the norm of its rounding."""

    value: Array
    rounding: float

    def along(self, matrix: Array) -> "Change":
        """Return its inner product with D, of unit norm, as an array (1, 1)."""
        xp = array_api_compat.array_namespace(matrix)
        return Change(xp.reshape(xp.sum(self.value * matrix), (1, 1)), self.rounding)


def directional_changes(
    gradient: GradientFunction, params: Params, layer: LayerSlice, matrix: Array, batch: Any
) -> list[Change]:
    """Return central differences of a layer's gradient along D, at steps from large to small.

    They are for checks: the best of them is good to about eps^(2/3).
    """
    xp = array_api_compat.array_namespace(matrix)
    eps = float(xp.finfo(matrix.dtype).eps)
    weight = params[layer.parameter]
    size = norm(xp, weight) or 1.0
    noise = 10 * noise_of(gradient, params, batch)[layer.parameter]
    changes = []
    for t in _check_steps(eps, size):
        up, down = (
            _gradient_at(gradient, params, layer, matrix, sign * t, batch) for sign in (1, -1)
        )
        changes.append(Change((up - down) / (2 * t), (8 * eps * norm(xp, up) + noise) / t))
    return changes


def disagreement(xp: Any, value: Array, changes: list[Change]) -> float:
    """Return the relative error that a derivative is shown to have; the least over the steps.

    Two differences that disagree with each other, across kinks or in rounding, show no larger error
    than their disagreement.
    """
    size = max(norm(xp, value), norm(xp, changes[-1].value))
    shown = [
        norm(xp, value - one.value) - norm(xp, one.value - other.value) - one.rounding
        for one, other in pairwise(changes)
    ]
    return min(shown) / size if size > 0 else 0.0


def noise_of(gradient: GradientFunction, params: Params, batch: Any) -> dict[str, float]:
    """Return the change of each gradient when all parameters change by rounding.

    A gradient that is left over from a cancellation, as that of a network that fits its data, is
    no better than this, however small it is itself.
    """
    plain = gradient(params, batch)
    found = dict.fromkeys(params, 0.0)
    generator = np.random.default_rng(0)
    for _ in range(2):
        moved = {}
        for name, array in params.items():
            xp = array_api_compat.array_namespace(array)
            factors = 1 + 8 * float(xp.finfo(array.dtype).eps) * generator.choice(
                [-1.0, 1.0], tuple(array.shape)
            )
            moved[name] = array * xp.asarray(factors, dtype=array.dtype, device=device_of(array))
        for name, array in gradient(moved, batch).items():
            xp = array_api_compat.array_namespace(array)
            with np.errstate(invalid="ignore"):  # the measurement itself reports it
                found[name] = max(found[name], norm(xp, array - plain[name]))
    return found


def check_tolerance(eps: float) -> float:
    """Return the relative difference from central differences that a derivative may have.

    It is 10 eps^(1/3): between the error of the differences, eps^(2/3), and a wrong derivative's,
    1.
    """
    return float(10 * eps ** (1 / 3))


def norm(xp: Any, array: Array) -> float:
    """Return the Frobenius norm of an array of any shape."""
    return float(xp.sqrt(xp.sum(array * array)))


def _check_steps(eps: float, size: float) -> Iterator[float]:
    best = eps ** (1 / 3)
    # Large steps serve where rounding matters, small ones where kinks are near.
    return (best * factor * size for factor in (1e3, 1e2, 10.0, 1.0, 0.1, 0.01))


def _gradient_at(
    gradient: GradientFunction,
    params: Params,
    layer: LayerSlice,
    matrix: Array,
    t: float,
    batch: Any,
) -> Array:
    """Return the layer's gradient (m, n) at W + tD."""
    moved = dict(params)
    moved[layer.parameter] = params[layer.parameter] + t * layer.embed(matrix)
    return layer.matrix(gradient(moved, batch)[layer.parameter])
