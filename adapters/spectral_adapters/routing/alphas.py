"""The exponent of each matrix: a number, by type, by name, or from a report."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

from spectral_adapters.routing.names import TYPE_ALPHAS
from spectral_adapters.routing.table import Route
from spectral_core import InputError, SpectralReport

__all__ = ["Alpha", "belongs", "choose_alphas", "layer_name", "measured_alphas"]

Alpha = float | str | Mapping[str, float] | SpectralReport | PathLike[str]

ALPHA_RANGE = (0.0, 4.0)
WIDEST = 1.0  # half of the interval: beyond, a fit says less than the layer's type
_PART = re.compile(r"\.[qkv]?(group\d+|part\d+)?_*")


def choose_alphas(alpha: Alpha, routes: Sequence[Route]) -> list[Route]:
    """Return the routes with α and where it comes from; AdamW's are as they were.

    Parameters
    ----------
    alpha : float, mapping, str, path or SpectralReport
        A number in [0, 4]; a mapping of layer types or globs of parameter names to numbers, where
        globs go first and the types of `TYPE_ALPHAS` fill in; ``"per-type"``, and ``"auto"``
        before its first measurement: these types; a report or its path: the measured α of each
        layer, and its type's where a layer is missing or its interval is wider than ± 1.
    routes : sequence of Route
        An α that `route=` has set stays.

    Raises
    ------
    InputError
        If α is none of these or out of range, or a glob matches nothing.
    ReportError
        If the report cannot be read.
    """
    pick = _picker(alpha, routes)
    chosen = []
    for route in routes:
        if route.rule == "spectral" and route.alpha is None:
            value, reason = pick(route)
            route = replace(route, alpha=value, alpha_reason=reason)
        if route.rule == "spectral":
            _check(route.alpha, f"alpha of {route.name!r}")
        chosen.append(route)
    return chosen


def measured_alphas(
    report: SpectralReport, names: Sequence[str]
) -> dict[str, tuple[float | None, str]]:
    """Return α of parameters by the layers of a report, or None; each with the reason.

    The matrices of one parameter (q, k, v; groups; a stack) count by their mean.
    """
    return {name: _measured(report, name) for name in names}


def _picker(alpha: Alpha, routes: Sequence[Route]) -> Callable[[Route], tuple[float, str]]:
    if isinstance(alpha, Real) and not isinstance(alpha, bool):
        value = _check(alpha, "alpha")
        return lambda route: (value, "")
    if isinstance(alpha, str) and alpha == "per-type":
        return _per_type
    if isinstance(alpha, str) and alpha == "auto":
        return lambda route: (_per_type(route)[0], "α of its type until measured")
    if isinstance(alpha, SpectralReport):
        return _from_report(alpha)
    if isinstance(alpha, Mapping):
        return _from_mapping(dict(alpha), routes)
    if isinstance(alpha, PathLike) or (isinstance(alpha, str) and alpha.endswith(".json")):
        return _from_report(SpectralReport.load(Path(alpha)))
    raise InputError(
        f"alpha: {alpha!r} is unknown; pass a number in [0, 4], 'per-type', 'auto', a mapping of "
        f"types ({', '.join(TYPE_ALPHAS)}) or globs to numbers, or a SpectralReport or its path."
    )


def _per_type(route: Route) -> tuple[float, str]:
    return TYPE_ALPHAS[route.kind], f"α of type {route.kind!r}"


def _from_mapping(
    alphas: dict[str, Any], routes: Sequence[Route]
) -> Callable[[Route], tuple[float, str]]:
    for key, value in alphas.items():
        _check(value, f"alpha[{key!r}]")
        if key not in TYPE_ALPHAS and not any(fnmatchcase(r.name, key) for r in routes):
            raise InputError(
                f"alpha: {key!r} is no layer type ({', '.join(TYPE_ALPHAS)}) and matches no "
                "parameter name."
            )

    def pick(route: Route) -> tuple[float, str]:
        for key, value in alphas.items():
            if key not in TYPE_ALPHAS and fnmatchcase(route.name, key):
                return float(value), f"α given for {key!r}"
        if route.kind in alphas:
            return float(alphas[route.kind]), f"α given for type {route.kind!r}"
        return _per_type(route)

    return pick


def _from_report(report: SpectralReport) -> Callable[[Route], tuple[float, str]]:
    def pick(route: Route) -> tuple[float, str]:
        value, reason = _measured(report, route.name)
        if value is None:
            default, by = _per_type(route)
            return default, f"{by}: {reason}"
        return value, reason

    return pick


def _measured(report: SpectralReport, name: str) -> tuple[float | None, str]:
    fits = [report[layer].alpha for layer in report if belongs(layer, layer_name(name))]
    if not fits:
        return None, "no such layer in the report"
    values = [float(fit.exponent) for fit in fits]
    widest = max(float(fit.interval[1] - fit.interval[0]) / 2 for fit in fits)
    if not all(map(math.isfinite, values)) or not widest <= WIDEST:
        reason = next((str(fit.reason) for fit in fits if fit.reason), f"± {widest:.2g}")
        return None, f"its fit says too little ({reason})"
    mean = sum(values) / len(values)
    clipped = min(max(mean, ALPHA_RANGE[0]), ALPHA_RANGE[1])
    several = f", mean of {len(fits)} matrices" if len(fits) > 1 else ""
    return clipped, f"α measured{several}{f', clipped from {mean:.3g}' if clipped != mean else ''}"


def layer_name(name: str) -> str:
    """Return the name that a problem's layers take from a parameter's."""
    return re.sub(r"(?<=.)[._]weight$", "", name)


def belongs(layer: str, base: str) -> bool:
    """Return whether a layer of a report is the parameter, or one of its matrices."""
    return layer == base or bool(layer.startswith(base) and _PART.fullmatch(layer[len(base) :]))


def _check(value: Any, name: str) -> float:
    low, high = ALPHA_RANGE
    if not isinstance(value, Real) or not low <= float(value) <= high:
        raise InputError(f"{name}: {value!r} is not a number in [0, 4].")
    return float(value)
