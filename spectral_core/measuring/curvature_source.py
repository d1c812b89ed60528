"""Curvatures of many layers, from problems that compute them together and from others."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import array_api_compat
import numpy as np

from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.certificate import Certificate, Engine, LayerCurvature
from spectral_core.curvature.problem import CurvatureKind, CurvatureProblem, LayerInfo, ManyLayers
from spectral_core.curvature.result_checks import check_values
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.directions import Window

__all__ = ["curvatures_of", "why_not_finite"]

_EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def curvatures_of(
    problem: CurvatureProblem,
    layers: Sequence[LayerInfo],
    windows: Mapping[str, Window],
    kind: CurvatureKind,
    engine: Engine,
    draws: int,
    done: Collection[str],
    tell: Callable[[str], None],
    precision: str | None = None,
) -> Iterator[LayerCurvature | LayerError]:
    """Yield the curvatures of each layer that is not done, with NumPy arrays in float64.

    Each is held against what is known of it: the derivative along ``D_k`` that the engine saw must
    be σ_k. Where it is not, some use of the weight was overlooked, and the layer is measured by
    itself instead. `precision` is the type that a model casts to on the way, if it does.

    Raises
    ------
    InputError
        If the problem has no choice of engines, and one is asked for.
    """
    directions = {layer.name: (windows[layer.name].u, windows[layer.name].v) for layer in layers}
    if not isinstance(problem, ManyLayers):
        if engine != "auto":
            raise InputError(
                f"engine: {engine!r} was asked for, and a {type(problem).__name__} computes one "
                "layer at a time in its own way; choose 'auto'."
            )
        for layer in layers:
            if layer.name not in done:
                tell(layer.name)
                yield _one_layer(problem, layer.name, directions, kind, "")
        return
    for found in problem.layer_curvatures(
        directions, kind, engine=engine, draws=draws, done=done, tell=tell
    ):
        if isinstance(found, LayerError):
            yield found
            continue
        check_values(problem, found.name, found.values, directions)
        window = windows[found.name]
        sigma = window.sigma
        tolerance = _tolerance(window, precision)
        error = float("nan")
        if found.derivative is not None:
            seen = to_numpy(found.derivative).astype(np.float64)
            error = float(np.max(np.abs(seen - sigma)) / sigma[0])
        finite = bool(np.all(np.isfinite(to_numpy(found.values))))
        if not finite or (found.derivative is not None and not error <= tolerance):
            reason = f"engine {found.certificate.engine!r} " + (
                f"overlooked a use of the weight: derivatives along D_k are off by {error:.1g} σ_1"
                if finite
                else "met values that are not finite"
            )
            yield _one_layer(problem, found.name, directions, kind, reason)
            continue
        yield _on_the_host(
            replace(found, certificate=replace(found.certificate, derivative_error=error))
        )


def _tolerance(window: Window, precision: str | None) -> float:
    """Return by how much of σ_1 derivatives may differ that two passes have rounded.

    It is far above rounding, and far below what an overlooked use would make.
    """
    xp = array_api_compat.array_namespace(window.u)
    eps = max(float(xp.finfo(window.u.dtype).eps), _EPS.get(precision or "", 0.0))
    tolerance: float = eps**0.5
    if window.rounding is None:
        return tolerance
    return max(tolerance, 2 * float(np.max(window.rounding)) / float(window.sigma[0]))


def _one_layer(
    problem: CurvatureProblem,
    name: str,
    directions: Mapping[str, tuple[Any, Any]],
    kind: CurvatureKind,
    reason: str,
) -> LayerCurvature | LayerError:
    try:
        values = problem.curvatures(name, *directions[name], kind)
    except LayerError as error:
        return error
    check_values(problem, name, values, directions)
    if told := why_not_finite(values):
        return LayerError(name, told)
    found = LayerCurvature(name, values, Certificate("double-backward", reason=reason))
    return _on_the_host(found if kind == "hessian" else replace(found, ggn=values))


def why_not_finite(values: Any) -> str:
    """Say how many of a layer's curvatures are not finite and what to look for, or nothing.

    Where one is not, the loss has no second derivative at these weights or its numbers have left
    their range, and nothing vouches for the others.
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
