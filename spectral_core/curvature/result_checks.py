"""Checks of the results of a problem before they are used, as anyone can write a problem."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import array_api_compat

from spectral_core.arrays.plain import plain
from spectral_core.curvature.problem import CurvatureProblem, LayerInfo
from spectral_core.errors import InputError
from spectral_core.storage.json_values import encode

__all__ = [
    "check_problem",
    "check_values",
    "checked_description",
    "checked_gradient",
    "checked_layers",
]


def check_problem(problem: Any) -> None:
    """Raise `InputError` if the problem lacks methods."""
    needed = ("layers", "skipped", "gradients", "curvatures", "describe")
    if missing := [name for name in needed if not hasattr(problem, name)]:
        raise InputError(
            f"problem: a {type(problem).__name__} has no {', '.join(missing)}; pass a "
            "CurvatureProblem, for instance that of spectral_backends.torch."
        )


def checked_layers(problem: CurvatureProblem) -> list[LayerInfo]:
    """Return the layers of the problem, checked to have distinct names."""
    layers = list(problem.layers())
    for layer in layers:
        if not isinstance(layer, LayerInfo):
            raise InputError(
                f"problem: layers() returned a {type(layer).__name__}; return LayerInfo."
            )
    counts = Counter(layer.name for layer in layers)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise InputError(
            f"problem: {len(twice)} names are of several layers, {twice[0]!r} first; name each "
            "layer differently."
        )
    return layers


def checked_description(problem: CurvatureProblem) -> dict[str, Any]:
    """Return the problem's description of itself, checked to be JSON values."""
    description = problem.describe()
    try:
        described = dict(description)
        json.dumps(encode(described), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"problem: describe() returned what is no dict of JSON values ({error}); return "
            "numbers, texts, and lists and dicts of them."
        ) from error
    return described


def checked_gradient(layer: LayerInfo, gradient: Any) -> Any:
    """Return a gradient that is an array of the layer's shape."""
    remedy = f"return a real floating point array of shape {layer.shape}."
    gradient = plain(f"problem: gradients() for layer {layer.name!r}", gradient)
    if not array_api_compat.is_array_api_obj(gradient):
        found = "nothing" if gradient is None else f"a {type(gradient).__name__}"
        raise InputError(
            f"problem: gradients() returned {found} for layer {layer.name!r}; {remedy}"
        )
    xp = array_api_compat.array_namespace(gradient)
    if tuple(gradient.shape) != tuple(layer.shape) or not xp.isdtype(
        gradient.dtype, "real floating"
    ):
        raise InputError(
            f"problem: gradients() returned an array of {gradient.dtype} of shape "
            f"{tuple(gradient.shape)} for layer {layer.name!r}; {remedy}"
        )
    return gradient


def check_values(
    problem: Any, name: str, values: Any, directions: Mapping[str, tuple[Any, Any]]
) -> None:
    """Raise `InputError` unless there is one real curvature for each direction of the layer."""
    count = int(directions[name][0].shape[1])
    plain(f"problem: curvatures of layer {name!r}", values)
    known = array_api_compat.is_array_api_obj(values)
    real = known and array_api_compat.array_namespace(values).isdtype(values.dtype, "real floating")
    if not real or tuple(values.shape) != (count,):
        found = (
            f"{values.dtype} and shape {tuple(values.shape)}" if known else type(values).__name__
        )
        raise InputError(
            f"problem: a {type(problem).__name__} returned curvatures of {found} for layer "
            f"{name!r}; return a real floating point array of shape ({count},)."
        )
