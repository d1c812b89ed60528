"""Clauses on refusals: an `InputError` names the argument, the value and the remedy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from spectral_core._renamed import by_new_names
from spectral_core.errors import InputError
from spectral_core.testing.clause import Clause, Subject, Trial
from spectral_core.testing.closed_form import Array, Batch, ClosedForm
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]

UNKNOWN = "no such layer"


def _unknown_layer(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    subject = trial.problem(form)
    problem, names = subject.problem, subject.names
    u, v = subject.in_its_library(*_some(form, 0))
    words = (f"'{UNKNOWN}'", names[0])
    what = f"the layer {UNKNOWN!r}"
    trial.refuses(lambda: problem.gradients([names[0], UNKNOWN]), f"{what} in gradients", *words)
    trial.refuses(lambda: problem.curvatures(UNKNOWN, u, v), f"{what} in curvatures", *words)
    trial.refuses(
        lambda: problem.kronecker_factors([UNKNOWN]), f"{what} in kronecker_factors", *words
    )


def _direction_shapes(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    subject = trial.problem(form)
    name = subject.names[0]
    m, n = form.matrices[0].shape
    u, v = _some(form, 0)
    wrong = {
        "u of one row less": (u[1:], v),
        "v of one row less": (u, v[1:]),
        "u and v swapped": (v, u),
        "vectors": (u[:, 0], v[:, 0]),
        "u and v of different numbers of columns": (u, v[:, 1:]),
    }
    for what, pair in wrong.items():
        given = subject.in_its_library(*pair)
        trial.refuses(
            lambda given=given: subject.problem.curvatures(name, *given),  # type: ignore[misc]
            f"{what}, of shapes {pair[0].shape} and {pair[1].shape},",
            name, str(m), str(n), *(str(tuple(d.shape)) for d in pair),
        )  # fmt: skip


def _options(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    subject = trial.problem(form)
    problem, name = subject.problem, subject.names[0]
    u, v = subject.in_its_library(*_some(form, 0))
    trial.refuses(
        lambda: problem.curvatures(name, u, v, "cubic"), "kind 'cubic'", "'cubic'", "'hessian'"
    )
    factors = by_new_names(problem.kronecker_factors)
    trial.refuses(
        lambda: factors([name], fisher_type="none"),
        "fisher_type 'none'", "'none'", "'ggn'",
    )  # fmt: skip
    trial.refuses(
        lambda: factors([name], kfac_approx="none"),
        "kfac_approx 'none'", "'none'", "'expand'",
    )  # fmt: skip


def _not_a_number(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    whole = form.cut([4, 3])
    inputs, matrices = whole.batches[1].inputs.copy(), [w.copy() for w in whole.matrices]
    inputs[1, 2] = matrices[1][2, 1] = np.nan
    spoiled = replace(whole.batches[1], inputs=inputs)
    cases = {
        "NaN in an input": replace(whole, batches=(whole.batches[0], spoiled)),
        "NaN in a matrix": replace(whole, matrices=tuple(matrices)),
    }
    for what, case in cases.items():
        trial.refuses(_measured(trial, case), what, "NaN")


def _no_data(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    none = replace(form, batches=())
    trial.refuses(_measured(trial, none), "data of no batches", "batches")
    (batch,) = form.batches
    empty = Batch(batch.inputs[:0], batch.targets[:0], batch.weights[:0])
    subject: Subject | None = None
    try:
        subject = trial.problem(replace(form, batches=(batch, empty)))
        subject.form = form
        subject.compare_totals()
    except InputError as error:
        trial.require("batch" in str(error), f"an empty batch is refused without its name: {error}")


def _measured(trial: Trial, form: ClosedForm) -> Callable[[], Any]:
    """Return a call that builds a problem and asks for gradients, as errors may come only then."""

    def measured() -> Any:
        subject = trial.problem(form)
        return subject.problem.gradients(subject.names)

    return measured


def _some(form: ClosedForm, layer: int) -> tuple[Array, Array]:
    """Return three directions of a layer."""
    m, n = form.matrices[layer].shape
    return np.eye(m)[:, :3], np.eye(n)[:, :3]


CLAUSES = (
    Clause(
        "unknown layer", "a name that is no layer is refused, with the names there are",
        _unknown_layer,
    ),
    Clause(
        "direction shapes",
        "directions that do not fit are refused, with the layer, their shapes and the right ones",
        _direction_shapes,
    ),
    Clause("options", "an unknown kind, Fisher type or KFAC approximation is refused", _options),
    Clause("not a number", "NaN in data or weights is refused", _not_a_number),
    Clause(
        "no data", "no batches are refused; a batch without samples too, or it changes nothing",
        _no_data,
    ),
)  # fmt: skip
