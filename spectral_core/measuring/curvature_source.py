"""Curvatures of many layers, from problems that compute them together and from others."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import array_api_compat
import numpy as np

from spectral_core._renamed import by_new_names
from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.certificate import LayerCurvature, way_of
from spectral_core.curvature.engine import CurvatureRequest, LayerFinding
from spectral_core.curvature.problem import CurvatureProblem, ManyLayers
from spectral_core.curvature.result_checks import check_values
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.directions import Window
from spectral_core.measuring.subsampling.grouped_problem import GroupedProblem

__all__ = ["curvatures_of", "why_not_finite"]

_EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def curvatures_of(
    problem: CurvatureProblem | GroupedProblem,
    request: CurvatureRequest,
    windows: Mapping[str, Window],
    precision: str | None = None,
) -> Iterator[LayerCurvature | LayerError]:
    """Yield the curvatures of each layer that is not done, with NumPy arrays in float64.

    Each result is checked: the derivative along ``D_k`` that the engine computed must be that of
    the gradient, which is σ_k along its own directions. If it is not, some use of the weight was
    overlooked, and the problem is asked for the layer by itself.
    `precision` is the type to which a model casts on the way, if it does.

    Raises
    ------
    InputError
        If an engine is asked for and the problem has no choice of engines.
    """
    if not isinstance(problem, ManyLayers):
        if request.engine != "auto":
            raise InputError(
                f"engine: {request.engine!r} was asked for, and a {type(problem).__name__} "
                "computes one layer at a time in its own way; choose 'auto'."
            )
        for name in request.directions:
            if name not in request.done:
                request.progress_callback(name)
                yield _by_itself(problem, name, request)
        return
    for found in by_new_names(problem.layer_curvatures)(
        request.directions, request.kind, engine=request.engine, done=request.done,
        progress_callback=request.progress_callback, **request.options,
    ):  # fmt: skip
        if isinstance(found, LayerError):
            yield found
            continue
        check_values(problem, found.name, found.values, request.directions)
        error = _derivative_error(found, windows[found.name])
        if doubt := _doubt(found, error, _tolerance(windows[found.name], precision)):
            reason = f"engine {found.certificate.engine!r} {doubt}"
            yield _by_itself(problem, found.name, request, reason)
            continue
        certificate = replace(found.certificate, derivative_error=error)
        yield _on_the_host(replace(found, certificate=certificate))


def _derivative_error(found: LayerCurvature, window: Window) -> float:
    """Return the largest ``|<∂L, D_k> − σ_k| / σ_1``; NaN if no derivative was computed.

    Along directions of another problem the derivatives of the gradient stand in place of σ_k.
    """
    if found.derivative is None:
        return float("nan")
    seen = to_numpy(found.derivative).astype(np.float64)
    wanted = window.sigma if window.derivative is None else window.derivative
    return float(np.max(np.abs(seen - wanted)) / np.max(np.abs(wanted)))


def _doubt(found: LayerCurvature, error: float, tolerance: float) -> str:
    """Return the reason why an engine's finding cannot be right, or an empty text."""
    if not bool(np.all(np.isfinite(to_numpy(found.values)))):
        return "met values that are not finite"
    if found.derivative is not None and not error <= tolerance:
        return f"overlooked a use of the weight: derivatives along D_k are off by {error:.1g} σ_1"
    return ""


def _tolerance(window: Window, precision: str | None) -> float:
    """Return the largest difference, over σ_1, of derivatives that two passes have rounded.

    It is far above rounding, and far below the difference that an overlooked use would make.
    """
    xp = array_api_compat.array_namespace(window.u)
    eps = max(float(xp.finfo(window.u.dtype).eps), _EPS.get(precision or "", 0.0))
    tolerance: float = eps**0.5
    if window.rounding is None:
        return tolerance
    return max(tolerance, 2 * float(np.max(window.rounding)) / float(window.sigma[0]))


def _by_itself(
    problem: CurvatureProblem | GroupedProblem,
    name: str,
    request: CurvatureRequest,
    reason: str = "",
) -> LayerCurvature | LayerError:
    """Ask the problem for one layer, by its method for single layers."""
    try:
        values = problem.curvatures(name, *request.directions[name], request.kind)
    except LayerError as error:
        return error
    check_values(problem, name, values, request.directions)
    if told := why_not_finite(values):
        return LayerError(name, told)
    return _on_the_host(LayerFinding(name, values).certified(way_of(problem), request.kind, reason))


def why_not_finite(values: Any) -> str:
    """Return the number of curvatures that are not finite with advice, or an empty text.

    If one is not finite, the loss has no second derivative at these weights or its numbers have
    left their range. Then nothing shows that the others are right.
    """
    host = to_numpy(values)
    kinds = {"NaN": int(np.sum(np.isnan(host))), "infinite": int(np.sum(np.isinf(host)))}
    if not any(kinds.values()):
        return ""
    counts = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    return (
        f"of its {len(host)} curvatures {counts}: the loss has no finite second derivative here. "
        "Look for a norm, a square root or a power below two at zero, a division by zero or an "
        "overflow in what depends on its weight; a small constant under a root makes it smooth."
    )


def _on_the_host(found: LayerCurvature) -> LayerCurvature:
    values = to_numpy(found.values).astype(np.float64)
    ggn = None if found.ggn is None else to_numpy(found.ggn).astype(np.float64)
    return replace(found, values=values, ggn=ggn)
