"""Which method serves a request to precondition, what error it brings, and which is cheapest."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spectral_core.arrays.host import host_constant
from spectral_core.arrays.namespace import Array
from spectral_core.errors import InputError
from spectral_core.preconditioning.function import is_number
from spectral_core.preconditioning.gram import smallest_shift
from spectral_core.preconditioning.methods.polar import PolarSchedule, polar_schedule
from spectral_core.preconditioning.tables.poles import PoleTable, pole_table
from spectral_core.preconditioning.tables.polynomials import PolynomialTable, polynomial_table

__all__ = ["METHODS", "PRECISIONS", "Request", "choose", "gram_rounding"]

METHODS = ("auto", "closed", "shifts", "eigh", "svd", "polar", "polynomial")
PRECISIONS = ("working", "bfloat16")
TOLERANCE = 1e-2
LOW_TOLERANCE = 5e-2  # about what rounding to bfloat16 adds
# The least σ/σ_max that method "polar" takes to 1, and by what its σ_max is raised for the error of
# the Lanczos steps.
POLAR_FLOOR, POLAR_MARGIN = 1e-3, 1.05
# A pole costs a Cholesky factorisation and an inverse. By tests/benchmarks/bench_precondition.py
# an eigendecomposition costs as much as three to four of them on a CPU, and errs less. On a GPU it
# takes far longer, as half of it hardly runs in parallel; that is not measured here.
_POLES_WORTH = 2
_FEW_ROWS = 256  # up to here it takes no longer than any number of poles


@dataclass(frozen=True)
class Request:
    """What `precondition` was asked for one matrix of a batch.

    Parameters
    ----------
    alpha, damping : float or 0-d array
        As given; arrays count as unknown.
    damping_mode, method : str
        As given.
    tolerance : float or None
        As given.
    normalize : str
        As given.
    rows, columns : int
        Of the wide matrix.
    epsilon : float
        Of the dtype that is computed in.
    on_cpu : bool
        Whether eigendecompositions are cheap.
    low : bool
        Whether products are in bfloat16.
    """

    alpha: float | Array
    damping: float | Array
    damping_mode: str
    method: str
    tolerance: float | None
    normalize: str
    rows: int
    columns: int
    epsilon: float
    on_cpu: bool = True
    low: bool = False

    @property
    def known(self) -> bool:
        """Whether α and the damping are numbers."""
        return is_number(self.alpha) and is_number(self.damping)

    @property
    def target(self) -> float:
        """The tolerance, or its default."""
        if self.tolerance is not None:
            return self.tolerance
        return LOW_TOLERANCE if self.low else TOLERANCE

    @property
    def shift(self) -> float:
        """The smallest shift that the rounding of the Gram matrix leaves visible."""
        return smallest_shift(self.rows, self.epsilon)

    def table(self) -> PoleTable:
        """Return the poles of method "shifts"."""
        # Up to the next power of four rows, so that all sizes share a few tables.
        rows = 4 ** int(np.ceil(np.log(max(self.rows, 1)) / np.log(4)))
        return pole_table(
            float(self.alpha),
            float(self.damping),
            self.target,
            floor=relative_floor(self.epsilon),
            smallest=smallest_shift(rows, self.epsilon),
        )

    def polynomial(self) -> PolynomialTable:
        """Return the coefficients of method "polynomial"."""
        return polynomial_table(float(self.alpha), float(self.damping), self.target)

    def polar(self) -> PolarSchedule:
        """Return the steps of method "polar"."""
        return polar_schedule(POLAR_FLOOR / POLAR_MARGIN, self.target)

    def rounding(self) -> float:
        """Return the error that squaring brings; 0 where the damping is not known."""
        if not self.known or self.damping_mode == "absolute":
            return 0.0
        return gram_rounding(float(self.alpha), float(self.damping), self.shift)


def relative_floor(epsilon: float) -> float:
    """Return σ/σ_max from which on a Gram matrix tells a singular value to some accuracy."""
    return 5e-3 if epsilon > 1e-10 else 1e-3


@host_constant
def gram_rounding(alpha: float, damping: float, shift: float, floor: float | None = None) -> float:
    """Return ``max_σ |T(σ') − T(σ)| / max T`` where σ'² and σ² differ by `shift` (Theory 9.6).

    That is what an error of that size in a Gram matrix does to T, to first order. With a floor the
    change counts relative to ``T(max(σ, floor))`` instead.
    """
    x = np.concatenate([[0.0], np.geomspace(1e-3 * shift, 1, 2000)])

    def f(x: Any) -> Any:
        below = x ** (alpha / 2) + damping
        return np.where(below > 0, 1.0, 0.0) / np.where(below > 0, below, 1.0)

    middle = f(x)
    moved = np.maximum(np.abs(f(np.maximum(x - shift, 0)) - middle), np.abs(f(x + shift) - middle))
    squaring = shift * middle**2 if alpha == 4 else 0.0  # of the product B B
    sigma = np.sqrt(x)
    reference = np.max(sigma * middle)
    if floor is not None:
        above = np.maximum(sigma, floor)
        reference = above * f(above**2)
    return float(np.max(sigma * (moved + squaring) / reference))


def choose(request: Request) -> str:
    """Return the method that will run.

    Raises
    ------
    InputError
        If the method asked for does not serve the request.
    """
    if request.method == "auto" and not request.low:
        return _automatic(request)
    if request.method == "auto":
        exact = request.known and request.alpha == 0
        return choose(replace(request, method="closed" if exact else "polynomial"))
    if (
        request.low
        and request.method != "polynomial"
        and not (request.method == "closed" and request.known and request.alpha == 0)
    ):
        raise InputError(
            f"precision: 'bfloat16' is for methods 'polynomial' and 'auto', not "
            f"{request.method!r}; use 'working'."
        )
    if reason := _objection(request):
        raise InputError(f"method: {request.method!r} {reason}")
    return request.method


def _automatic(request: Request) -> str:
    """Cheapest first; "svd" serves everything."""
    if not request.known:
        return "svd"
    if not request.on_cpu and _objection(request, "polar") is None:
        return "polar"  # on a CPU an SVD takes no longer
    if request.alpha == 0:
        return "closed"
    if request.damping_mode == "absolute" or request.rounding() > request.target:
        return "svd"
    if _objection(request, "closed") is None:
        return "closed"
    if request.on_cpu and request.rows <= _FEW_ROWS:
        return "eigh"  # overhead decides
    if _objection(request, "shifts") is None:
        few = len(request.table().poles) <= _POLES_WORTH
        return "shifts" if few or not request.on_cpu else "eigh"
    return "eigh"


def _objection(request: Request, method: str | None = None) -> str | None:
    """Say why a method does not serve, as the rest of a sentence, or None."""
    method = method or request.method
    if method in ("closed", "shifts", "polar", "polynomial") and not request.known:
        return "needs alpha and damping as numbers, not arrays; use 'eigh' or 'svd'."
    alpha, damping = request.alpha, request.damping
    spectral = request.damping_mode == "spectral"
    if method == "polar" and not (alpha == 1 and damping == 0):
        return (
            f"is for alpha = 1 and damping = 0, not alpha = {alpha} and damping = {damping}; "
            "use 'auto'."
        )
    if method == "closed" and alpha not in (0, 2, 4):
        return f"is for alpha = 0, 2 or 4, not {alpha}; use 'auto'."
    if method == "shifts" and not 0 < alpha < 2:
        return f"is for alpha between 0 and 2, not {alpha}; use 'auto' or 'eigh'."
    if method == "shifts" and not spectral:
        return "is for spectral damping; with absolute damping use 'eigh' or 'svd'."
    if method == "polynomial" and not (alpha > 0 and damping > 0 and spectral):
        return (
            f"is for alpha above 0 and spectral damping above 0, not alpha = {alpha} and "
            f"{request.damping_mode} damping {damping}; use 'auto' in working precision."
        )
    if method in ("closed", "shifts") and alpha > 0 and spectral and damping < request.shift:
        return (
            f"needs a damping above the rounding of the Gram matrix, {request.shift:.1e} at this "
            f"size and dtype, not {damping}; use 'svd', or float64."
        )
    return _shortfall(request, method)


def _shortfall(request: Request, method: str) -> str | None:
    """Say by how much a method misses the tolerance, or None."""
    if method == "shifts" and request.table().error > request.target:
        return (
            f"reaches {request.table().error:.1e} for alpha = {request.alpha} and damping = "
            f"{request.damping}, not the tolerance {request.target:g}; use 'eigh' or 'svd'."
        )
    if method == "polynomial" and request.polynomial().error > request.target:
        return (
            f"reaches {request.polynomial().error:.1e} for alpha = {request.alpha} and damping = "
            f"{request.damping}, not the tolerance {request.target:g}; raise the tolerance or the "
            "damping, or use 'auto' in working precision."
        )
    if request.tolerance is None or request.low:  # rounding to bfloat16 comes on top, as stated
        return None
    least = 32 * request.epsilon
    if method == "polar":
        least = max(least, request.polar().gain * request.epsilon)
    elif method != "svd" and not (method == "closed" and request.alpha == 0):
        least = max(least, request.rounding())
    if request.tolerance < least:
        remedy = "float64" if method == "svd" else "'svd' or float64"
        return f"rounds to {least:.1e}, above the tolerance {request.tolerance:g}; use {remedy}."
    return None
