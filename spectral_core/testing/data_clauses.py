"""Clauses on data: every total is a mean over terms, however they are cut into batches."""

from dataclasses import replace

import numpy as np

from spectral_core.testing.clause import Clause, Trial
from spectral_core.testing.closed_form import Batch, ClosedForm
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]

FORMS = ("quadratic", "linear network", "softmax regression")
SIZES = ([5, 2], [2, 5], [1, 4, 2])
WEIGHTS = (1, 2, 0, 1, 3, 0.5, 1)


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
    Clause("repetition", "every sample three times is the same as once", _repetition),
)  # fmt: skip
