"""Checks of what a measurement is asked for, and the error where nothing could be measured."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any, get_args

from spectral_core.arrays.numbers import check_confidence
from spectral_core.curvature.argument_checks import check_mc_samples
from spectral_core.curvature.problem import CurvatureKind, CurvatureProblem
from spectral_core.curvature.result_checks import check_problem
from spectral_core.errors import InputError, SpectralError

__all__ = [
    "check_arguments",
    "check_choice",
    "check_noise_draws",
    "check_other",
    "nothing_measured",
]


def check_noise_draws(count: Any, decompose: bool) -> None:
    """Raise `InputError` for what is no number of draws, or draws without factors."""
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        raise InputError(f"noise_draws: {count!r} is no number of draws; pass 100, or 0 for none.")
    if count and not decompose:
        raise InputError("noise_draws: draws are made of Kronecker factors; pass decompose=True.")


def check_other(other: Any, problem: CurvatureProblem, sampling: int | None) -> None:
    """Raise `InputError` unless another problem has the layers of the problem."""
    try:
        check_problem(other)
    except InputError as error:
        raise InputError(f"directions_from: {str(error).removeprefix('problem: ')}") from error
    if sampling is not None:
        raise InputError(
            "directions_from: it does not go with sampling, which estimates the error of "
            "directions that the same data chose; pass one of both."
        )
    shapes = {layer.name: layer.shape for layer in other.layers()}
    for layer in problem.layers():
        if layer.name not in shapes:
            raise InputError(
                f"directions_from: it has no layer {layer.name!r}; pass one of the same model."
            )
        if shapes[layer.name] != layer.shape:
            raise InputError(
                f"directions_from: its layer {layer.name!r} has shape {shapes[layer.name]} and "
                f"that of the problem {layer.shape}; pass one of the same model."
            )


def nothing_measured(selected: int, skipped: Mapping[str, str]) -> SpectralError:
    """Return the error that names up to three reasons, each with the first layer that has it."""
    first: dict[str, str] = {}
    for name, reason in skipped.items():
        first.setdefault(reason, name)
    reasons = [f"{name!r}: {reason}" for reason, name in first.items()][:3]
    return SpectralError(
        f"none of the {selected} selected layers could be measured; {' '.join(reasons)}"
    )


def check_arguments(
    top_k: int, curvature: str, confidence: float, mc_samples: int, progress: Any
) -> None:
    """Raise `InputError` for a window, a kind, a level, a number or a callback that is none."""
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise InputError(f"top_k: {top_k!r} is not a positive whole number of directions.")
    check_choice("curvature", curvature, get_args(CurvatureKind))
    check_confidence(confidence)
    check_mc_samples(mc_samples)
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise InputError(
            f"progress: a {type(progress).__name__} cannot be called; pass a function of (done, "
            "total, name), True, False or None."
        )


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `InputError` for a word that is not among those known."""
    if value not in known:
        *most, last = map(repr, known)
        raise InputError(f"{name}: {value!r} is unknown; choose {', '.join(most)} or {last}.")
