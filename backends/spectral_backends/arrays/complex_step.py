"""Second derivatives by the complex step: the gradient at ``W + i t D``, exact to rounding.

``<D, H[D]> = Im <D, g(W + i t D)> / t + O(t²)``: nothing is subtracted, so t can be so small that
the remainder is below rounding (Squire and Trapp, SIAM Review 40, 1998). It needs a gradient
function that is analytic as it is written, which is tested and not assumed.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat
import numpy as np

from spectral_backends.arrays.curvature_rules import Found
from spectral_backends.arrays.differences import (
    check_tolerance,
    directional_changes,
    disagreement,
    norm,
)
from spectral_backends.arrays.gradient_function import GradientFunction, Params
from spectral_backends.arrays.layer_slices import LayerSlice
from spectral_core.arrays.namespace import Array, device_of
from spectral_core.errors import InputError
from spectral_core.storage.exclusive import exclusively

__all__ = ["ComplexStep"]

_REMEDIES = (
    "Look for abs (write where(real(x) < 0, -x, x)), conj or a conjugate transpose (.H, vecdot, "
    "vdot), .real, sorting, max, min and comparisons of x (compare real parts), casts "
    "(astype(float), arrays made without dtype=x.dtype) and powers of negative numbers (write "
    "products); or pass method='differences'."
)


class ComplexStep:
    """The complex step through a gradient function.

    Parameters
    ----------
    gradient : GradientFunction
        The gradient of the batch's mean loss.
    params : mapping of str to array
        The real parameters, of one floating type.
    """

    name = "complex-step"

    def __init__(self, gradient: GradientFunction, params: Params) -> None:
        self._gradient, self._params = gradient, params
        self._xp = xp = array_api_compat.array_namespace(*params.values())
        self._eps = float(xp.finfo(next(iter(params.values())).dtype).eps)

    def batch_values(self, layer: LayerSlice, u: Array, v: Array, batch: Any) -> Array:
        """Return curvatures and derivatives along the directions, shape (2, K)."""
        xp = self._xp
        values = []
        for k in range(u.shape[1]):
            matrix = u[:, k][:, None] * v[:, k][None, :]
            real, imaginary = self._gradient_along(layer, matrix, batch)
            values.append(xp.stack([xp.sum(matrix * imaginary), xp.sum(matrix * real)]))
        return xp.stack(values, axis=1)

    def finish(self, layer: LayerSlice, means: Array) -> Found:
        """Return them as they are."""
        return Found(means[0, :], derivative=means[1, :])

    def why_not(self, layer: LayerSlice, batch: Any) -> str:
        """Say why the gradient function is not analytic in a layer's weight, or return nothing.

        It is called with complex parameters at a step of zero, where it must be the real gradient
        with no imaginary part, and then with a step along one random direction, where it must
        agree with central differences of the real one.
        """
        xp = self._xp
        m, n = layer.info.shape
        matrix = random_direction(xp, self._params[layer.parameter], m, n)
        try:
            with _casts_refused():
                at_zero = self._gradient(self._complex(), batch)
                _, imaginary = self._gradient_along(layer, matrix, batch)
        except Exception as error:
            return (
                f"its gradient function does not take complex parameters ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'}). {_REMEDIES}"
            )
        plain = self._gradient(self._params, batch)
        # A gradient may vanish by a cancellation, so it is compared with the size of all. A quarter
        # of the digits must agree: where a network fits its data, gradients are the rest 1 − p.
        tolerance, size = self._eps**0.25, max(norm(xp, array) for array in plain.values())
        for name, array in at_zero.items():
            if not xp.isdtype(array.dtype, "complex floating"):
                return (
                    f"its gradient function answers with {array.dtype} for complex parameters (in "
                    f"{name!r}), so an imaginary part is lost on the way. {_REMEDIES}"
                )
            off = norm(xp, xp.real(array) - plain[name]) + norm(xp, xp.imag(array))
            if not off <= tolerance * size:
                return (
                    f"its gradient function differs from itself by {off:.2g} in {name!r} when its "
                    f"parameters are complex with no imaginary part. {_REMEDIES}"
                )
        changes = directional_changes(self._gradient, self._params, layer, matrix, batch)
        found = disagreement(xp, imaginary, changes)
        if found <= check_tolerance(self._eps):
            return ""
        lost = " (it is zero: the imaginary part is lost)" if not norm(xp, imaginary) else ""
        return (
            f"its gradient function is not analytic: the complex step{lost} and central "
            f"differences disagree by {found:.2g} of the curvature along a random direction. "
            f"{_REMEDIES}"
        )

    def _complex(self) -> dict[str, Array]:
        xp = self._xp
        return {
            name: xp.astype(array, _complex_dtype(xp, array.dtype))
            for name, array in self._params.items()
        }

    def _gradient_along(self, layer: LayerSlice, matrix: Array, batch: Any) -> tuple[Array, Array]:
        """Return the layer's gradient, and its derivative along D."""
        xp = self._xp
        weight = self._params[layer.parameter]
        largest = float(xp.max(xp.abs(weight)))
        # With this step t² is far below rounding, and products of a few steps do not underflow.
        step = self._eps * (largest if largest > 0 else 1.0)
        params = self._complex()
        dtype = params[layer.parameter].dtype
        shift = xp.asarray(1j * step, dtype=dtype, device=device_of(weight))
        params[layer.parameter] = params[layer.parameter] + shift * xp.astype(
            layer.embed(matrix), dtype
        )
        found = self._gradient(params, batch)[layer.parameter]
        if not xp.isdtype(found.dtype, "complex floating"):
            raise InputError(
                f"its gradient function answers with {found.dtype} for complex parameters"
            )
        found = layer.matrix(found)
        return xp.real(found), xp.imag(found) / step


def random_direction(xp: Any, like: Array, m: int, n: int) -> Array:
    """Return a matrix (m, n) of unit Frobenius norm, always the same."""
    matrix = np.random.default_rng(0).standard_normal((m, n))
    matrix /= np.linalg.norm(matrix)
    return xp.asarray(matrix, dtype=like.dtype, device=device_of(like))


def _complex_dtype(xp: Any, dtype: Any) -> Any:
    return xp.complex128 if xp.finfo(dtype).bits == 64 else xp.complex64


@contextmanager
def _casts_refused() -> Iterator[None]:
    """Make an error of NumPy's warning that a cast drops imaginary parts."""
    with exclusively(), warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        yield
