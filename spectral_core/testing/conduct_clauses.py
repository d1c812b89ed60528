"""Clauses on conduct: the same bits each time, and nothing of the user's changed."""

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from spectral_core._renamed import by_new_names
from spectral_core.curvature.problem import ManyLayers
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.measurement import measure
from spectral_core.testing.clause import Clause, Subject, Trial, directions, frozen
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]


def _determinism(trial: Trial) -> None:
    form = closed_forms()["curved network"]
    subject = trial.problem(form)
    again = trial.problem(form)
    first, second, other = (list(_everything(s)) for s in (subject, subject, again))
    for (what, one), (_, two), (_, three) in zip(first, second, other, strict=True):
        trial.require(one == two, f"{what}: found other bits in a second call; expected the same")
        trial.require(one == three, f"{what}: found other bits of the same problem built again")


def _everything(subject: Subject) -> Any:
    """Yield everything that a problem returns, by its bytes."""
    problem, names = subject.problem, subject.names
    yield "layers", frozen([layer.name for layer in problem.layers()])
    yield "gradients", frozen(problem.gradients(names))
    given = {
        name: tuple(subject.in_its_library(*directions(subject.form, layer)))
        for layer, name in enumerate(names)
    }
    for kind in ("hessian", "ggn"):
        for name, (u, v) in given.items():
            yield (
                f"{kind} curvatures of {name!r}",
                _or_reason(partial(problem.curvatures, name, u, v, kind)),
            )
        if isinstance(problem, ManyLayers):
            for each in problem.layer_curvatures(given, kind):
                found = each if isinstance(each, LayerError) else [each.name, each.values]
                yield f"{kind} curvatures of all layers", frozen(found)
    factors = by_new_names(problem.kronecker_factors)
    for fisher_type in ("ggn", "fisher-mc", "empirical"):
        yield (
            f"factors with fisher_type={fisher_type!r}",
            _or_reason(partial(factors, names, fisher_type=fisher_type)),
        )
    yield "description", frozen(problem.describe())


def _or_reason(call: Callable[[], Any]) -> Any:
    try:
        return frozen(call())
    except LayerError as error:
        return str(error)


def _side_effects(trial: Trial) -> None:
    form = closed_forms()["curved network"]
    states: list[tuple[Callable[[], Any], Any]] = []

    def watch(state: Callable[[], Any]) -> None:
        states.append((state, frozen(state())))

    watch(_generators)
    subject = trial.problem(form, watch)
    u, v = subject.in_its_library(*directions(form, 0))
    watch(lambda: {"u": u, "v": v})
    for _ in _everything(subject):
        pass
    subject.problem.curvatures(subject.names[0], u, v)
    measure(subject.problem, top_k=3, decompose=True, progress=False)
    with suppress(InputError):
        subject.problem.curvatures(subject.names[0], u[1:, ...], v)
    for state, was in states:
        _compare_states(trial, frozen(state()), was)


def _generators() -> Any:
    return {"random's generator": random.getstate(), "NumPy's generator": np.random.get_state()}


def _compare_states(trial: Trial, found: Any, was: Any) -> None:
    pairs = was.items() if isinstance(was, dict) else [("what was watched", was)]
    now = found if isinstance(was, dict) else {"what was watched": found}
    for key, value in pairs:
        trial.require(
            now.get(key) == value,
            f"found {key} changed by building or measuring; expected it to be left alone",
        )


CLAUSES = (
    Clause(
        "determinism",
        "the same call, and the same problem built again, give the same bits in the same order",
        _determinism,
    ),
    Clause(
        "no side effects",
        "parameters, data, directions, random states and all that is watched stay as they are",
        _side_effects,
    ),
)
