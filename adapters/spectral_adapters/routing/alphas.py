"""The exponent of each matrix: a number, by type, by name, or from a report."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

from spectral_adapters.routing.names import TYPE_ALPHAS
from spectral_adapters.routing.table import Route
from spectral_core import InputError, SpectralReport, as_matrices
from spectral_core.matrices.names import MatchedLayer, match_layers
from spectral_core.reporting import LayerSpectrum

__all__ = ["Alpha", "SliceAlphas", "choose_alphas", "loaded", "measured_alphas"]

Alpha = float | str | Mapping[str, float] | SpectralReport | PathLike[str]

ALPHA_RANGE = (0.0, 4.0)
WIDEST = 1.0  # half of the interval: beyond, a fit says less than the layer's type

_Found = tuple[float, str]
_NOT_THERE = "no such layer in the report"


class SliceAlphas(tuple[float, ...]):
    """The α of each slice of a stacked parameter. Trees of JAX take it for one leaf."""

    __slots__ = ()


def choose_alphas(
    alpha: Alpha,
    routes: Sequence[Route],
    *,
    each_slice: bool = False,
    stacks: Sequence[Sequence[int]] | None = None,
) -> list[Route]:
    """Return the routes with α and its source. The routes of AdamW stay as they are.

    Parameters
    ----------
    alpha : float, mapping, str, path or SpectralReport
        The exponent. It is a number in [0, 4]; or a mapping of layer types or globs of parameter
        names to numbers, where globs go first and the types of `TYPE_ALPHAS` fill in.
        ``"per-type"``, and ``"auto"`` before its first measurement, stand for these types. A report
        or its path stands for the measured α of each layer, and for the α of its type if a layer is
        missing or its interval is wider than ± 1.
    routes : sequence of Route
        The routes. An α that `route=` has set stays.
    each_slice : bool
        Whether each slice of a stack gets the α that the report has for it. Otherwise all slices
        get the mean.
    stacks : sequence of sequence of int, optional
        The lengths of the axes of each parameter that count independent matrices. By default its
        spec decides.

    Raises
    ------
    InputError
        If α is none of these or out of range, or a glob matches nothing.
    ReportError
        If the report cannot be read.

    Warns
    -----
    UserWarning
        If no layer of a report is a parameter here.
    """
    alpha = loaded(alpha)
    if isinstance(alpha, SpectralReport):
        choices = _from_report(alpha, routes, stacks or list(map(_stack, routes)), each_slice)
    else:
        choices = _choices(alpha, routes)
    chosen = []
    for route, (value, reason) in zip(routes, choices, strict=True):
        if route.rule == "spectral" and route.alpha is None:
            route = replace(route, alpha=value, alpha_reason=reason)
        if route.rule == "spectral" and not isinstance(route.alpha, tuple):
            _check(route.alpha, f"alpha of {route.name!r}")
        chosen.append(route)
    return chosen


def loaded(alpha: Any) -> Any:
    """Return the report that α names by its path; any other α as it is.

    Raises
    ------
    ReportError
        If the report cannot be read.
    """
    if isinstance(alpha, PathLike) or (isinstance(alpha, str) and alpha.endswith(".json")):
        return SpectralReport.load(Path(alpha))
    return alpha


def measured_alphas(
    report: SpectralReport, names: Sequence[str]
) -> dict[str, tuple[float | None, str]]:
    """Return α of parameters by the layers of a report, or None; each with the reason.

    The matrices of one parameter (q, k, v; groups; a stack) count by their mean.
    """
    matches = match_layers(names, report, [()] * len(names))
    pairs = zip(names, matches.layers, matches.doubts, strict=True)
    return {name: _mean(report, own, doubt) for name, own, doubt in pairs}


def _choices(alpha: Alpha, routes: Sequence[Route]) -> Sequence[_Found]:
    """Return α of each route and its source, as if all were T's."""
    if isinstance(alpha, Real) and not isinstance(alpha, bool):
        return [(_check(alpha, "alpha"), "")] * len(routes)
    if isinstance(alpha, str) and alpha == "per-type":
        return list(map(_per_type, routes))
    if isinstance(alpha, str) and alpha == "auto":
        return [(_per_type(route)[0], "α of its type until measured") for route in routes]
    if isinstance(alpha, Mapping):
        return _from_mapping(dict(alpha), routes)
    raise InputError(
        f"alpha: {alpha!r} is unknown; pass a number in [0, 4], 'per-type', 'auto', a mapping of "
        f"types ({', '.join(TYPE_ALPHAS)}) or globs to numbers, or a SpectralReport or its path."
    )


def _per_type(route: Route) -> _Found:
    if not route.kind:  # AdamW's
        return 0.0, ""
    return TYPE_ALPHAS[route.kind], f"α of type {route.kind!r}"


def _from_mapping(alphas: dict[str, Any], routes: Sequence[Route]) -> list[_Found]:
    for key, value in alphas.items():
        _check(value, f"alpha[{key!r}]")
        if key not in TYPE_ALPHAS and not any(fnmatchcase(r.name, key) for r in routes):
            raise InputError(
                f"alpha: {key!r} is no layer type ({', '.join(TYPE_ALPHAS)}) and matches no "
                "parameter name."
            )

    def pick(route: Route) -> _Found:
        for key, value in alphas.items():
            if key not in TYPE_ALPHAS and fnmatchcase(route.name, key):
                return float(value), f"α given for {key!r}"
        if route.kind in alphas:
            return float(alphas[route.kind]), f"α given for type {route.kind!r}"
        return _per_type(route)

    return list(map(pick, routes))


def _from_report(
    report: SpectralReport,
    routes: Sequence[Route],
    stacks: Sequence[Sequence[int]],
    each_slice: bool,
) -> Sequence[tuple[float | SliceAlphas, str]]:
    """Return α of each parameter by the layers that its name stands for; otherwise its type's."""
    wide = [i for i, route in enumerate(routes) if len(route.shape) >= 2]
    matches = match_layers([routes[i].name for i in wide], report, [stacks[i] for i in wide])
    types = list(map(_per_type, routes))
    found: list[tuple[float | SliceAlphas, str]] = [*types]
    for i, own, doubt in zip(wide, matches.layers, matches.doubts, strict=True):
        if each_slice and any(match.index is not None for match in own):
            found[i] = _each_slice(report, own, stacks[i], types[i])
            continue
        value, reason = _mean(report, own, doubt)
        if value is None:
            found[i] = types[i][0], f"{types[i][1]}: {reason}"
        else:
            found[i] = value, reason + _other_size(report, own, routes[i])
    if not any(matches.layers) and any(route.rule == "spectral" and route.name for route in routes):
        _warn_of_another_model(report, routes)
    return found


def _stack(route: Route) -> Sequence[int]:
    return as_matrices(route.shape, route.matrices).stack if route.matrices else ()


def _mean(
    report: SpectralReport, own: Sequence[MatchedLayer], doubt: str = ""
) -> tuple[float | None, str]:
    """Return the mean α of some layers, or None; with the reason."""
    if not own:
        also = f"; {doubt!r} may be another parameter's" if doubt else ""
        return None, _NOT_THERE + also
    fits = [report[match.name].alpha for match in own]
    values = [float(fit.exponent) for fit in fits]
    widest = max(float(fit.interval[1] - fit.interval[0]) / 2 for fit in fits)
    if not all(map(math.isfinite, values)) or not widest <= WIDEST:
        reason = next((str(fit.reason) for fit in fits if fit.reason), f"± {widest:.2g}")
        return None, f"its fit says too little ({reason})"
    mean = sum(values) / len(values)
    clipped = min(max(mean, ALPHA_RANGE[0]), ALPHA_RANGE[1])
    several = f", mean of {len(fits)} matrices" if len(fits) > 1 else ""
    return clipped, f"α measured{several}{f', clipped from {mean:.3g}' if clipped != mean else ''}"


def _each_slice(
    report: SpectralReport,
    own: Sequence[MatchedLayer],
    stack: Sequence[int],
    default: _Found,
) -> tuple[float | SliceAlphas, str]:
    """Return α of each slice of a stack, by the report or else by the type."""
    of: dict[int | None, list[MatchedLayer]] = {}
    for match in own:
        of.setdefault(match.index, []).append(match)
    count = math.prod(stack)
    found = [_mean(report, of.get(index, of.get(None, []))) for index in range(count)]
    missing = [index for index, (value, _) in enumerate(found) if value is None]
    values = [default[0] if value is None else value for value, _ in found]
    reason = f"α measured for each of {count} slices"
    if missing:
        some = f"α measured for {count - len(missing)} of {count} slices, "
        first = f"{default[1]} for slice {missing[0]}: {found[missing[0]][1]}"
        reason = some + first + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
    return SliceAlphas(values), reason


def _other_size(report: SpectralReport, own: Sequence[MatchedLayer], route: Route) -> str:
    """Say that layers and their parameter differ in the number of elements, or return nothing."""
    spectra: list[LayerSpectrum] = [report[match.name] for match in own]
    if sum(math.prod(each.shape) for each in spectra) == math.prod(route.shape):
        return ""
    shapes = dict.fromkeys("×".join(map(str, each.shape)) for each in spectra)
    return f" on {', '.join(shapes)}"


def _warn_of_another_model(report: SpectralReport, routes: Sequence[Route]) -> None:
    names = [route.name for route in routes if route.rule == "spectral"]
    warnings.warn(
        f"alpha: none of the report's layers {list(report)[:4]} is one of the parameters "
        f"{names[:4]}, which have the α of their types; pass a report of this model.",
        UserWarning,
        stacklevel=6,
    )


def _check(value: Any, name: str) -> float:
    low, high = ALPHA_RANGE
    if not isinstance(value, Real) or not low <= float(value) <= high:
        raise InputError(f"{name}: {value!r} is not a number in [0, 4].")
    return float(value)
