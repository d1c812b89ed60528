"""The method that `precondition` would take, told without computing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_core.arrays.namespace import Array
from spectral_core.errors import InputError
from spectral_core.matrices.layout import MatrixSpec, matrices_of
from spectral_core.preconditioning.choice import choose, with_precision
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.methods.table import METHODS
from spectral_core.preconditioning.preconditioner import check_arguments
from spectral_core.preconditioning.request import Request

__all__ = ["MethodChoice", "precondition_method"]

_EPSILONS = dict.fromkeys(("float16", "bfloat16", "float32"), 2.0**-23) | {"float64": 2.0**-52}


@dataclass(frozen=True)
class MethodChoice:
    """The method that `precondition` takes for a matrix.

    Parameters
    ----------
    name : str
        The name of the method.
    error : float
        The predicted ``‖T̂ − T‖₂ / ‖T‖₂``, as the notes of `precondition` bound it to first order,
        without λ. NaN where it depends on the matrix: with absolute damping, with arrays for α or
        the damping, and for "svd" without damping.
    reasons : mapping of str to str
        The reason why each other method was not taken, as the rest of a sentence that begins with
        its name.

    Examples
    --------
    >>> import spectral_core as sc
    >>> choice = sc.precondition_method((64, 64), "float64", alpha=0.0)
    >>> choice.name, "svd" in choice.reasons
    ('closed', True)
    """

    name: str
    error: float
    reasons: Mapping[str, str]

    def __str__(self) -> str:
        """Return the choice in sentences."""
        error = (
            "an error that depends on the matrix"
            if self.error != self.error
            else (f"an error of {self.error:.1e} at most")
        )
        lines = [f"{name!r} {reason}" for name, reason in self.reasons.items()]
        return "\n".join([f"{self.name!r} is taken, with {error}.", *lines])


def precondition_method(
    shape: tuple[int, ...],
    dtype: Any,
    alpha: float | Array,
    damping: float | Array = 0.1,
    *,
    damping_mode: str = "spectral",
    method: str = "auto",
    tolerance: float | None = None,
    precision: str = "working",
    matrices: MatrixSpec | str | None = None,
    device: Any = "cpu",
) -> MethodChoice:
    """Return the method that `precondition` takes, its error, and why it takes no other.

    Nothing is computed on matrices, so that an optimizer can ask when it is made: whether its
    update can be recorded as a CUDA graph, which "eigh" and "svd" cannot, or how far a tolerance
    reaches.

    Parameters
    ----------
    shape : tuple of int
        The shape of the gradient.
    dtype : dtype or str
        The dtype of the gradient, of any library, or its name such as ``"float32"``.
    alpha, damping, damping_mode, method, tolerance, precision, matrices
        The arguments of `precondition`.
    device : str or device
        The device of the gradient: ``"cpu"`` or anything else, such as ``"cuda"``. Decompositions
        are slow elsewhere, and "auto" avoids them there.

    Returns
    -------
    MethodChoice
        The choice. If `matrices` cuts the gradient into matrices of several shapes, it is that of
        the largest.

    Raises
    ------
    InputError
        If `precondition` raises it for such a gradient.

    Examples
    --------
    >>> import spectral_core as sc
    >>> choice = sc.precondition_method((256, 1024), "float32", alpha=2.0)
    >>> choice.name
    'closed'
    >>> choice.reasons["shifts"]
    "is for alpha between 0 and 2, not 2.0; use 'auto' or 'eigh'."
    >>> sc.precondition_method((256, 1024), "float32", alpha=1.0, damping=0.0, device="cuda").name
    'polar'
    """
    shape = _checked(shape)
    function = DampedPower(alpha, damping, damping_mode)
    check_arguments(function, method, tolerance, "none", precision)
    layout = matrices_of("shape", shape, matrices)
    shapes = [shape] if layout is None else layout.matrices
    rows, columns = max(sorted(each[-2:]) for each in shapes)
    request = Request(
        function, method, tolerance, rows, columns, _epsilon(dtype),
        str(device).lower().startswith(("cpu", "tfrt_cpu")), precision,
    )  # fmt: skip
    request = with_precision(request, not request.on_cpu)
    name = choose(request)
    others = {other: _why_not(other, name, request) for other in METHODS if other != name}
    return MethodChoice(name, METHODS[name].error(request), others)


def _why_not(name: str, taken: str, request: Request) -> str:
    method = METHODS[name]
    if not method.multiplies(request):
        return f"does not multiply in {request.precision}."
    if reason := method.refuses(request):
        return reason
    if request.method != "auto":
        return f"serves too; method={taken!r} was asked for."
    return method.left_by_auto(request) or f"takes longer than {taken!r}."


def _checked(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple."""
    whole = isinstance(shape, Sequence) and all(isinstance(n, (int, np.integer)) for n in shape)
    if not whole or any(n < 0 for n in shape):
        raise InputError(f"shape: {shape!r} is no tuple of lengths; pass that of the gradient.")
    return tuple(map(int, shape))


def _epsilon(dtype: Any) -> float:
    """Return the machine precision of the dtype that is computed in."""
    try:
        name = "None" if dtype is None else np.dtype(dtype).name
    except TypeError:  # a dtype of PyTorch, or a name that NumPy does not know
        name = str(dtype).rpartition(".")[2]
    if name not in _EPSILONS:
        raise InputError(
            f"dtype: {dtype!r} is none of {', '.join(_EPSILONS)}; pass that of the gradient."
        )
    return _EPSILONS[name]
