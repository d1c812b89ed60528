"""Clauses on data: every total is a mean over terms, however they are cut into batches."""

from dataclasses import replace
from typing import Any

import numpy as np

from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.problem import KnowsSamples
from spectral_core.errors import LayerError
from spectral_core.testing.clause import Clause, Trial, directions
from spectral_core.testing.closed_form import Batch, ClosedForm
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]

FORMS = ("quadratic", "linear network", "softmax regression")
SIZES = ([5, 2], [2, 5], [1, 4, 2])
WEIGHTS = (1, 2, 0, 1, 3, 0.5, 1)
N_GROUPS = 4


def _batch_sizes(trial: Trial) -> None:
    for name, sizes in zip(FORMS, SIZES, strict=True):
        trial.problem(closed_forms()[name].cut(sizes)).compare_totals()


def _sample_weights(trial: Trial) -> None:
    for name in FORMS:
        trial.problem(closed_forms()[name].with_weights(WEIGHTS).cut([3, 4])).compare_totals()


def _batch_without_terms(trial: Trial) -> None:
    for name in FORMS:
        form = closed_forms()[name]
        trial.problem(replace(form, batches=(*form.batches, _masked(form)))).compare_totals()


def _masked(form: ClosedForm) -> Batch:
    """Return other samples, none of which counts."""
    (batch,) = form.batches
    return Batch(batch.inputs[:3] + 1, batch.targets[:3], np.zeros(3))


def _repetition(trial: Trial) -> None:
    for name in FORMS:
        form = closed_forms()[name]
        subject = trial.problem(form.repeated(3))
        subject.form = form  # the same mean
        subject.compare_totals()


def _sample_groups(trial: Trial) -> None:
    for name in FORMS:
        form = closed_forms()[name].repeated(3).with_weights(3 * WEIGHTS)
        subject = trial.problem(form.cut([12, 9]))
        if not isinstance(subject.problem, KnowsSamples):
            trial.refused.append("sample_groups: there is no such method, which may be so")
            return
        groups = list(subject.problem.sample_groups(N_GROUPS))
        trial.require(
            len(groups) == N_GROUPS and abs(sum(g.share for g in groups) - 1) < 1e-9,
            f"found {len(groups)} groups with shares {[g.share for g in groups]}; expected "
            f"{N_GROUPS} with shares that add up to 1",
        )
        first = subject.names[0]
        gradients = [to_numpy(g.problem.gradients([first])[first]) for g in groups]
        mean = sum(g.share * each for g, each in zip(groups, gradients, strict=True))
        subject.compare("mean of the groups' gradients by their shares", mean, form.gradient(0))
        u, v = directions(form, 0)
        given = {first: tuple(subject.in_its_library(u, v))}
        problems: list[Any] = [group.problem for group in groups]
        found = [next(iter(each.layer_curvatures(given, "ggn"))) for each in problems]
        if errors := [each for each in found if isinstance(each, LayerError)]:
            trial.refused.append(f"Gauss-Newton curvatures of groups: {errors[0].reason}")
            continue
        h = sum(g.share * to_numpy(each.values) for g, each in zip(groups, found, strict=True))
        expected = form.curvature(0, u, v, "ggn")
        subject.compare("mean of the groups' ggn curvatures by their shares", h, expected)
        other = trial.problem(form.cut([5, 7, 9])).problem.sample_groups(N_GROUPS)
        for one, again in zip(gradients, other, strict=True):
            subject.compare(
                "gradient of a group of the same samples in other batches",
                again.problem.gradients([first])[first],
                one.astype(np.float64),
                float(np.max(np.abs(form.gradient(0)))),
            )


CLAUSES = (
    Clause(
        "batch sizes",
        "totals are means over samples and not over batches, whatever their sizes and order",
        _batch_sizes,
    ),
    Clause(
        "sample weights", "a sample of weight ω counts as ω terms, in every total", _sample_weights
    ),
    Clause(
        "batch without terms", "a batch whose samples weigh nothing changes nothing",
        _batch_without_terms,
    ),
    Clause(
        "sample groups",
        "groups of samples, where offered, make up all data, and no batching changes them",
        _sample_groups,
    ),
    Clause("repetition", "every sample three times is the same as once", _repetition),
)  # fmt: skip
