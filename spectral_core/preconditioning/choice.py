"""The choice of the method that serves a request."""

from dataclasses import replace

from spectral_core.errors import InputError
from spectral_core.preconditioning.methods.table import METHODS
from spectral_core.preconditioning.request import Request

__all__ = ["choose", "with_precision"]


def choose(request: Request) -> str:
    """Return the name of the method that will run.

    Raises
    ------
    InputError
        If the method asked for does not serve the request.
    """
    name = request.method
    if name == "auto" and not request.low:
        return _cheapest(request)
    if name == "auto":  # the first method that multiplies so serves, or gives the reason why not
        name = next(name for name in METHODS if METHODS[name].multiplies(request))
    if request.low and not METHODS[name].multiplies(request):
        kind = request.precision
        able = ", ".join(
            repr(name) for name, method in METHODS.items() if kind in method.precisions
        )
        raise InputError(
            f"precision: {kind!r} is for methods {able} and 'auto', not {name!r}; use 'working'."
        )
    if reason := METHODS[name].refuses(request):
        raise InputError(f"method: {name!r} {reason}")
    return name


def _cheapest(request: Request) -> str:
    """Return the fastest method, or the fastest exact one if rounding misses the tolerance."""
    able = [method for method in METHODS.values() if not method.left_by_auto(request)]
    able = [method for method in able if not method.refuses(request)] or [
        method for method in able if method.exact(request)
    ]
    prices = [method.price(request) for method in able]
    return able[prices.index(min(prices))].name


def with_precision(request: Request, fast_half: bool) -> Request:
    """Return a request with its precision settled: float16 if that is fast and a method has it.

    A tolerance, or a method, that the caller has chosen is kept to, in working precision.
    """
    if request.precision != "auto":
        return request
    half = replace(request, precision="float16")
    able = [m for m in METHODS.values() if "float16" in m.precisions and not m.refuses(half)]
    free = request.tolerance is None and request.method == "auto"
    return half if fast_half and free and able else replace(request, precision="working")
