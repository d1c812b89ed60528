"""Clauses on the protocol of a problem: its members, its layers, its description."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from spectral_core.curvature.problem import CurvatureProblem, LayerInfo
from spectral_core.testing.clause import Clause, Trial
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]

MEMBERS = ("layers", "skipped", "gradients", "curvatures", "kronecker_factors", "describe")
KEYS = {"backend": str, "versions": Mapping, "dtype": str, "device": str}


def _members(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    problem = trial.problem(form).problem
    missing = [name for name in MEMBERS if not callable(getattr(problem, name, None))]
    trial.require(not missing, f"found no method {', '.join(missing)}; expected {MEMBERS}")
    assert isinstance(problem, CurvatureProblem)
    skipped = problem.skipped()
    trial.require(
        isinstance(skipped, Mapping) and not skipped,
        f"found skipped() to be {skipped!r}; expected an empty mapping, as every matrix is a layer",
    )


def _layers(trial: Trial) -> None:
    for form in closed_forms().values():
        problem = trial.problem(form).problem
        layers = list(problem.layers())
        trial.require(
            all(isinstance(layer, LayerInfo) and layer.name and layer.kind for layer in layers),
            f"found layers {layers}; expected `LayerInfo`s with a name and a kind",
        )
        names = [layer.name for layer in layers]
        trial.require(len(set(names)) == len(names), f"found names {names}; expected unique ones")
        found, expected = [layer.shape for layer in layers], [w.shape for w in form.matrices]
        trial.require(
            found == expected,
            f"found shapes {found}; expected {expected}, outputs × inputs in the order of the "
            "forward pass",
        )
        trial.require(
            list(problem.layers()) == layers, "found other layers in a second call; expected equal"
        )


def _description(trial: Trial) -> None:
    for name in ("linear network", "softmax regression"):
        form = closed_forms()[name]
        subject = trial.problem(form)
        found = dict(subject.problem.describe())
        for key, kind in KEYS.items():
            trial.require(
                isinstance(found.get(key), kind),
                f"found {key!r} to be {found.get(key)!r}; expected a {kind.__name__}",
            )
        trial.require(
            json.loads(json.dumps(found, allow_nan=False)) == found,
            f"found {found}; expected JSON values, as reports are written in it",
        )
        for key, expected in (("n_terms", form.n_terms), ("n_batches", len(form.batches))):
            trial.require(
                found.get(key) in (None, expected),
                f"found {key} {found.get(key)!r}; expected {expected!r}, or None where unknown",
            )
        if found.get("loss") is not None:
            subject.compare("loss", np.asarray(found["loss"]), np.asarray(form.mean_loss()))
        again = dict(trial.problem(form).problem.describe())
        trial.require(again == found, f"found {again} of the same problem; expected {found}")
        trial.require(
            dict(trial.problem(_others(form)).problem.describe()) != found,
            "found one description of problems with different weights; expected something that "
            "tells them apart, such as the loss, so that no measurement goes on with another's",
        )


def _others(form: Any) -> Any:
    return replace(form, matrices=tuple(1.5 * matrix for matrix in form.matrices))


CLAUSES = (
    Clause("members", "a problem has the methods of the protocol, and skips no layer", _members),
    Clause(
        "layers",
        "layers are the weight matrices in the order of the forward pass, with unique names",
        _layers,
    ),
    Clause(
        "description",
        "describe() identifies a problem in JSON values, with its loss and number of terms",
        _description,
    ),
)
